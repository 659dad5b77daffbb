"""The DEALER socket and nothing else: options, draining, and what waits while it cannot send.

It reads the socket's descriptor in the event loop instead of using `zmq.asyncio`, which costs twice the CPU per
message. The descriptor is edge-triggered, and sending swallows edges: after each batch either way the socket is asked
again whether it has something.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

import zmq

from lmq_proto import bounds, codec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmq_proto.messages import FromPeer

# Messages taken from the socket before other callbacks of the loop get their turn.
DRAIN_MESSAGES = 300
# How often a socket that could not send is tried again, should the descriptor stay silent.
RETRY_SEND_S = 0.1

# Facts behind each number: a half-open peer is noticed, nothing is queued for an absent broker, nothing hangs at exit.
_OPTIONS = {
    zmq.SNDHWM: 1000,
    zmq.RCVHWM: 1000,
    zmq.LINGER: 1000,
    zmq.IMMEDIATE: 1,
    zmq.HEARTBEAT_IVL: 5000,
    zmq.HEARTBEAT_TIMEOUT: 15000,
    zmq.HEARTBEAT_TTL: 15000,
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 60,
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.HANDSHAKE_IVL: 10000,
    zmq.CONNECT_TIMEOUT: 3000,
    zmq.RECONNECT_IVL: 100,
    zmq.RECONNECT_IVL_MAX: 5000,
    zmq.MAXMSGSIZE: bounds.BODY_BYTES,
}


class Link:
    """One connection at a time, to one of several addresses of the broker."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        addresses: Sequence[str],
        *,
        received: Callable[[list[bytes]], None],
        drained: Callable[[], None],
        blocked: Callable[[], None],
        unblocked: Callable[[], None],
    ) -> None:
        """Make a link that is not connected yet.

        Args:
            context: owned by the caller, who destroys it.
            addresses: tried in turn, one at a time.
            received: called with the frames of each message.
            drained: called after a batch of messages.
            blocked: called when a message has to wait.
            unblocked: called when no message waits any more.
        """
        self._context = context
        self._addresses = list(addresses)
        self._received, self._drained = received, drained
        self._blocked, self._unblocked = blocked, unblocked
        self._waiting: deque[list[bytes]] = deque()
        self._socket: zmq.Socket[bytes] | None = None
        self._fd = -1
        self._at = -1
        self._look_planned = False
        self._retry: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """The address that is connected to, or tried."""
        return self._addresses[self._at]

    def connect(self) -> None:
        """Drop the connection there is, with all that waits, and connect to the next address."""
        self.close(linger_ms=0)
        self._at = (self._at + 1) % len(self._addresses)
        socket = self._context.socket(zmq.DEALER)
        for option, value in _OPTIONS.items():
            socket.setsockopt(option, value)
        socket.connect(self.address)
        self._socket = socket
        self._fd = int(socket.getsockopt(zmq.FD))
        asyncio.get_running_loop().add_reader(self._fd, self._look)

    def close(self, *, linger_ms: int) -> None:
        """Close; messages already handed to the socket may leave within `linger_ms`."""
        self._waiting.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._socket.close(linger=linger_ms)
            self._socket = None

    def send(self, message: FromPeer, body: bytes = b"") -> None:
        """Send, or keep until the socket can."""
        frames = codec.encode(message, body)
        if self._waiting or not self._try_send(frames):
            self._wait(frames)
        self._plan_look()

    def _try_send(self, frames: list[bytes]) -> bool:
        assert self._socket is not None
        try:
            self._socket.send(frames[0], zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            return False
        self._socket.send(frames[1], zmq.SNDMORE)
        self._socket.send(frames[2], zmq.SNDMORE)
        self._socket.send(frames[3])
        return True

    def _wait(self, frames: list[bytes]) -> None:
        if not self._waiting:
            self._blocked()
        self._waiting.append(frames)
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SEND_S, self._retry_send)

    def _retry_send(self) -> None:
        self._retry = None
        self._send_waiting()
        if self._waiting:
            self._retry = asyncio.get_running_loop().call_later(RETRY_SEND_S, self._retry_send)

    def _send_waiting(self) -> None:
        waited = len(self._waiting)
        while self._waiting and self._try_send(self._waiting[0]):
            self._waiting.popleft()
        if len(self._waiting) == waited:
            return  # looking again would find the same: the timer or the socket says when
        if not self._waiting:
            self._unblocked()
        self._plan_look()

    def _plan_look(self) -> None:
        """Look at the socket soon: the send may have swallowed its signal."""
        if not self._look_planned:
            self._look_planned = True
            asyncio.get_running_loop().call_soon(self._planned_look)

    def _planned_look(self) -> None:
        self._look_planned = False
        self._look()

    def _look(self) -> None:
        """Send what waits, take what came."""
        self._send_waiting()
        socket = self._socket
        taken = 0
        while socket is not None and socket is self._socket and taken < DRAIN_MESSAGES:
            try:
                frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            frames = [frame]
            while socket.getsockopt(zmq.RCVMORE):
                frame = socket.recv()
                if len(frames) <= bounds.FRAMES:
                    frames.append(frame)
            taken += 1
            self._received(frames)
        if taken:
            self._drained()
        if taken == DRAIN_MESSAGES:
            self._plan_look()
