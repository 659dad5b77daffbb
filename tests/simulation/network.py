"""The network between the broker and its peers.

A connection is as ZeroMQ over TCP makes it: in order, nothing repeated, and when it breaks all that was under way is
lost and the next one has another peer id. A stall holds messages back for long, as a cut cable does. In the evil mode
single messages are also dropped, repeated and overtaken; the protocol has its own resends for that. Every message is
encoded and decoded on its way.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from lmq_proto.codec import FROM_PEER_TABLE, TO_PEER_TABLE, encode, verb_of
from lmq_proto.ids import PeerId
from lmq_proto.messages import Bye, Enlist, Hello

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmq_proto.messages import FromPeer, ToPeer
    from simulation.world import World

# What a socket keeps for a connection that is not there.
_OUTBOX = 200

_RECONNECT_MS = (1, 20, 200, 1500, 4000)

FAIR = 0.0


class Port:
    """One peer's end of its connection; makes a new one whenever the old one breaks."""

    def __init__(self, network: Network, name: str, take: Callable[[ToPeer, bytes], None]) -> None:
        self.network = network
        self.name = name
        self.take = take
        self.on_up: Callable[[], None] = _nothing
        self.on_down: Callable[[], None] = _nothing
        self.peer = PeerId(b"")
        self.connected = False
        self.closed = False
        self.life = 0
        """Grows with each connection: what was under way on an older one is lost."""
        self.stalled_until_ms = 0
        self.disturbances: list[int] = []
        """When this connection was not as a good one is."""
        self.outbox: deque[tuple[FromPeer, bytes]] = deque(maxlen=_OUTBOX)
        self.last_up_ms = 0
        self.last_down_ms = 0
        self.taken_sent_ms = 0
        """When the broker sent what arrives now."""

    def send(self, message: FromPeer, body: bytes = b"") -> None:
        """Send to the broker, or keep for when it is there again."""
        assert not self.closed, f"{self.name} sends after its end"
        if self.connected:
            self.network.carry_up(self, message, body)
        elif self.network.keeps or not self.life:
            self.outbox.append((message, body))

    def reconnect(self) -> None:
        """Give up the connection and all that waits on it, and make a new one."""
        self.outbox.clear()
        self.network.cut(self, told=False)

    def close(self) -> None:
        """End; no more messages either way."""
        self.closed = True
        self.outbox.clear()
        self.network.cut(self, told=False)


def _nothing() -> None:
    """Do nothing: most peers do not watch their connection."""


class Network:
    """All connections to one broker."""

    def __init__(self, world: World, *, latency_ms: int, keeps: bool, evil: float) -> None:
        self.world = world
        self.latency_ms = latency_ms
        self.keeps = keeps
        """Whether what is sent while there is no connection is kept for the next."""
        self.evil = evil
        """How likely a single message is dropped, and repeated, and overtaken."""
        self.deliver: Callable[[PeerId, FromPeer, bytes], None] | None = None
        """The broker's ear; None while there is no broker."""
        self.ports: list[Port] = []
        self._by_peer: dict[PeerId, Port] = {}
        self._last_peer = 0

    def open(self, name: str, take: Callable[[ToPeer, bytes], None]) -> Port:
        """Return a new port that connects as soon as it can."""
        port = Port(self, name, take)
        self.ports.append(port)
        self._connect_later(port, 0)
        return port

    # --- connections ---

    def cut(self, port: Port, *, told: bool = True) -> None:
        """Break a connection: what is under way is lost, another follows."""
        if port.connected:
            del self._by_peer[port.peer]
            port.connected = False
            port.life += 1
            self.disturb(port)
            if told:
                port.on_down()
        if port.closed:
            if port in self.ports:
                self.ports.remove(port)
        else:
            self._connect_later(port, self.world.random.choice(_RECONNECT_MS))

    def stall(self, port: Port, for_ms: int) -> None:
        """Hold back all messages of a connection, both ways."""
        port.stalled_until_ms = max(port.stalled_until_ms, self.world.mono_ms + for_ms)
        self.disturb(port)

    def disturb(self, port: Port) -> None:
        """Note that a connection is not as a good one is."""
        port.disturbances.append(self.world.mono_ms)

    def cut_all(self) -> None:
        """Break every connection: the broker is gone, or the faults end."""
        for port in list(self.ports):
            self.cut(port)

    def heal(self) -> None:
        """Make the network a good one; connections begin anew."""
        self.evil = FAIR
        for port in self.ports:
            port.stalled_until_ms = 0
        self.cut_all()

    def _connect_later(self, port: Port, wait_ms: int) -> None:
        life = port.life
        self.world.after(wait_ms, lambda: self._connect(port, life))

    def _connect(self, port: Port, life: int) -> None:
        if port.closed or port.connected or port.life != life:
            return
        if self.deliver is None:
            self._connect_later(port, 100)
            return
        self._last_peer += 1
        port.peer = PeerId(self._last_peer.to_bytes(5, "big"))
        port.connected = True
        port.last_up_ms = port.last_down_ms = 0
        self._by_peer[port.peer] = port
        port.on_up()
        while port.outbox and port.connected:
            self.carry_up(port, *port.outbox.popleft())

    # --- messages ---

    def carry_up(self, port: Port, message: FromPeer, body: bytes) -> None:
        """Carry a message from a peer to the broker."""
        frames = encode(message, body)
        peer, life = port.peer, port.life
        opens = isinstance(message, Hello | Enlist | Bye)
        for _ in range(self._copies(opens)):
            at_ms = self._arrival(port, port.last_up_ms, in_order=opens)
            port.last_up_ms = max(port.last_up_ms, at_ms)
            self.world.after(at_ms - self.world.mono_ms, lambda: self._arrive_up(port, peer, life, frames))

    def _arrive_up(self, port: Port, peer: PeerId, life: int, frames: list[bytes]) -> None:
        if port.life != life or self.deliver is None:
            return
        message, body = FROM_PEER_TABLE.decode(frames)
        self.world.note("up", port.name, frames[1], frames[2])
        self.deliver(peer, message, body)

    def carry_down(self, peer: PeerId, message: ToPeer, body: bytes) -> bool:
        """Carry a message to a peer; False if its connection is not there."""
        port = self._by_peer.get(peer)
        if port is None:
            return False
        frames = encode(message, body)
        life = port.life
        opens = verb_of(message) in ("welcome", "enlisted", "who", "bye")
        sent_ms = self.world.mono_ms
        for _ in range(self._copies(opens)):
            at_ms = self._arrival(port, port.last_down_ms, in_order=opens)
            port.last_down_ms = max(port.last_down_ms, at_ms)
            self.world.after(at_ms - sent_ms, lambda: self._arrive_down(port, life, frames, sent_ms))
        return True

    def _arrive_down(self, port: Port, life: int, frames: list[bytes], sent_ms: int) -> None:
        if port.life != life or port.closed:
            return
        port.taken_sent_ms = sent_ms
        message, body = TO_PEER_TABLE.decode(frames)
        self.world.note("down", port.name, frames[1], frames[2])
        port.take(message, body)

    def port_of(self, peer: PeerId) -> Port | None:
        return self._by_peer.get(peer)

    def _copies(self, opens: bool) -> int:
        """Return how many of a message arrive. What opens a session is only ever lost with its connection."""
        if not self.evil or opens:
            return 1
        draw = self.world.random.random()
        return 0 if draw < self.evil else 2 if draw < 2 * self.evil else 1

    def _arrival(self, port: Port, last_ms: int, *, in_order: bool) -> int:
        world = self.world
        at_ms = world.mono_ms + world.random.randint(0, self.latency_ms)
        if self.evil and not in_order and world.chance(self.evil):
            self.disturb(port)
            return at_ms + world.random.randint(0, 20 * self.latency_ms + 20)
        return max(at_ms, last_ms, port.stalled_until_ms)
