"""The shell around the broker's core, as the simulation has it: turns, sends held until durable, crash and recovery."""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, assert_never

from lmq_broker.core import invariants
from lmq_broker.core.effects import Effect, Log, Publish, Read, Send, SendWork, WakeAt
from lmq_broker.core.machine import step
from lmq_broker.core.records import JobAdded, JobsDeleted, Record
from lmq_broker.core.recover import recover
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import (
    Credential,
    DiskChanged,
    HostFacts,
    Loaded,
    Now,
    PeerClogged,
    PeerGone,
    Received,
    Stimulus,
    Stop,
    TurnEnded,
)
from lmq_proto.codec import ON_PUB_TABLE, encode
from lmq_proto.messages import Group, Work

if TYPE_CHECKING:
    from lmq_broker.core.state import BrokerState
    from lmq_proto.ids import PeerId
    from lmq_proto.messages import FromPeer, ToPeer
    from simulation.checks import Checks
    from simulation.disk import Disk
    from simulation.network import Network
    from simulation.world import World

_LOCAL = Credential("loopback")
_TURN_STIMULI = 50


class Broker:
    """One broker over all its lives: the journal stays, everything else is new after a crash."""

    def __init__(
        self, world: World, network: Network, disk: Disk, checks: Checks, settings: Settings, *, read_ms: int
    ) -> None:
        self.world = world
        self.network = network
        self.disk = disk
        self.checks = checks
        self.settings = settings
        self.read_ms = read_ms
        self.state: BrokerState | None = None
        self.life = 0
        self.turns = 0
        self._mono_base_ms = 0
        self._fresh()

    def _fresh(self) -> None:
        """Forget what one life had in memory."""
        self.state = None
        self._inbox: deque[Stimulus] = deque()
        self._turn_due = False
        self._wake_ms = -1
        self._held: list[tuple[int, int, Send | SendWork | Read]] = []
        """Heap by position: what waits for one leaves in the order it came."""
        self._holds = 0
        self._payloads: dict[int, bytes] = {}
        self._is_open = False
        self._last_read_ms = 0

    @property
    def now(self) -> Now:
        """The time as this life sees it: monotonic clocks begin anywhere."""
        return Now(self.world.mono_ms + self._mono_base_ms, self.world.wall_ms)

    # --- life and death ---

    def start(self) -> None:
        """Recover from the journal; open the door once the new epoch is durable."""
        assert self.state is None
        world = self.world
        self.life += 1
        self._mono_base_ms = world.random.randrange(1 << 30)
        memory = self.disk.tables.memory()
        self.disk.on_durable = self._durable
        self.disk.on_full = self._full
        self.state, effects = recover(
            memory, self.settings, self.now, software="lmq simulated", seed=world.random.getrandbits(32),
            fresh_id=world.random.randbytes(16), fresh_secret=world.random.randbytes(32),
        )  # fmt: skip
        invariants.check(self.state)
        self.checks.recovered(self.state)
        world.note("broker starts", self.state.epoch, len(self.state.jobs))
        effects += step(self.state, TurnEnded(), self.now)
        self._carry_out(effects)

    def crash(self) -> None:
        """Die as by `kill -9` or a power cut."""
        if self.state is None:
            return
        self.world.note("broker dies")
        self.disk.crash()
        self._fresh()
        self.life += 1
        self.network.deliver = None
        self.checks.crashed()
        self.network.cut_all()

    def stop(self) -> None:
        """Take the shell's part in an orderly stop; the process ends a little later."""
        self._take(Stop())

    # --- what comes in ---

    def _receive(self, peer: PeerId, message: FromPeer, body: bytes) -> None:
        self._take(Received(peer, _LOCAL, message, body))

    def clog(self, peer: PeerId) -> None:
        self._take(PeerClogged(peer))

    def _take(self, stimulus: Stimulus) -> None:
        if self.state is not None:
            self._inbox.append(stimulus)
            self._turn_soon(self.world.random.choice((0, 0, 0, 1, 5)))

    def _full(self, is_full: bool) -> None:
        free = 0 if is_full else 1 << 30
        self._take(DiskChanged("full" if is_full else "", free, 1 << 20))

    def _turn_soon(self, wait_ms: int) -> None:
        if not self._turn_due:
            self._turn_due = True
            life = self.life
            self.world.after(wait_ms, lambda: self._turn(life))

    def _wake_at(self, mono_ms: int) -> None:
        """End a turn at a time, even if nothing happens."""
        self._wake_ms = mono_ms
        life = self.life
        wait_ms = max(0, mono_ms - self.now.mono_ms)
        self.world.after(wait_ms, lambda: self._woken(life, mono_ms))

    def _woken(self, life: int, mono_ms: int) -> None:
        if life == self.life and mono_ms == self._wake_ms:
            self._turn_soon(0)

    def _turn(self, life: int) -> None:
        if life != self.life or self.state is None:
            return
        self._turn_due = False
        self.turns += 1
        effects: list[Effect] = []
        if self.world.chance(0.02):
            effects += step(self.state, HostFacts(memory_bytes=1), self.now)
        for _ in range(min(len(self._inbox), self.world.random.randint(1, _TURN_STIMULI))):
            effects += step(self.state, self._inbox.popleft(), self.now)
        effects += step(self.state, TurnEnded(), self.now)
        invariants.check(self.state)
        self.checks.turn_ended(self.state, effects)
        self._carry_out(effects)
        if self._inbox:
            self._turn_soon(0)

    # --- what goes out ---

    def _carry_out(self, effects: list[Effect]) -> None:
        """Do what the core said, in order: the records of the turn are one entry of the journal."""
        assert self.state is not None
        records: list[Record] = []
        rest: list[Send | SendWork | Read] = []
        for effect in effects:
            match effect:
                case Send() | SendWork() | Read():
                    rest.append(effect)
                case Publish():
                    ON_PUB_TABLE.decode(encode(effect.message))
                    self.checks.published(effect)
                case WakeAt():
                    self._wake_at(effect.mono_ms)
                case Log():
                    self.world.note("log", effect.name, sorted(effect.fields.items()))
                case _:
                    records.append(effect)
                    self._keep_payload(effect)
        for each in rest:
            # Reads have a line of their own in the shell, work goes out when the turn is over.
            if each.after <= self.disk.durable:
                self._do(each)
            else:
                self._holds += 1
                heapq.heappush(self._held, (each.after, self._holds, each))
        if records:
            self.disk.append(self.state.position, records)

    def _keep_payload(self, record: Record) -> None:
        """Hold the payloads of jobs that this life has accepted: work may be sent before they are on disk."""
        if isinstance(record, JobAdded):
            self._payloads[record.job.number] = record.payload
        elif isinstance(record, JobsDeleted):
            for number in record.numbers:
                self._payloads.pop(number, None)

    def _durable(self) -> None:
        """Let go what waited for the disk."""
        if self.state is None:
            return
        if not self._is_open:
            self._is_open = True
            self.network.deliver = self._receive
            self.checks.opened()
        while self._held and self._held[0][0] <= self.disk.durable:
            self._do(heapq.heappop(self._held)[2])

    def _do(self, effect: Send | SendWork | Read) -> None:
        match effect:
            case Send():
                self._send(effect.peer, effect.message, effect.body)
            case SendWork():
                self._send_work(effect)
            case Read():
                life = self.life
                at_ms = self.world.mono_ms + self.world.random.randint(0, self.read_ms)
                self._last_read_ms = max(self._last_read_ms, at_ms)
                self.world.after(self._last_read_ms - self.world.mono_ms, lambda: self._read(life, effect))
            case _:
                assert_never(effect)

    def _send_work(self, effect: SendWork) -> None:
        """Send leases with their payloads, but for those of jobs that were deleted meanwhile."""
        numbers = iter(effect.numbers)
        groups: list[Group] = []
        body = b""
        for group in effect.message.groups:
            leases = []
            for lease, number in zip(group.leases, numbers, strict=False):
                payload = self._payloads.get(number, self.disk.tables.payloads.get(number))
                if payload is not None:
                    leases.append(lease)
                    body += payload
            if leases:
                groups.append(Group(leases=leases))
        if groups:
            self._send(effect.peer, Work(groups=groups), body)

    def _read(self, life: int, effect: Read) -> None:
        if life == self.life:
            self._take(Loaded(effect.request, self.disk.tables.read(effect.request)))

    def _send(self, peer: PeerId, message: ToPeer, body: bytes) -> None:
        assert self.state is not None
        self.checks.told(peer, message, body, self.state)
        if not self.network.carry_down(peer, message, body):
            self._take(PeerGone(peer))
