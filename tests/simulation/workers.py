"""Workers: an engine that runs attempts, a process around it that dies and comes back, and a plain one of our own.

`real_workers` has the process with the real `WorkerCore` inside. The text of an attempt is made of numbered tokens that
name their lease, and its result says how many there were, so that a reader can tell any loss, repeat or splice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lmq_broker.core.settings import ENGINE_TASKS
from lmq_proto import bounds
from lmq_proto.codec import cut
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Acked,
    Breaker,
    Bye,
    Capacity,
    CapacityReport,
    CatalogModel,
    Ended,
    Enlist,
    Enlisted,
    ErrorReply,
    Heartbeat,
    Held,
    HostLoad,
    InstanceInfo,
    Lease,
    LoadEnded,
    LoadModel,
    PhaseReport,
    Phases,
    Piece,
    Results,
    Stop,
    Text,
    TextDurable,
    TextReport,
    ToPeer,
    UnloadModel,
    Who,
    Work,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simulation.checks import Checks, Key
    from simulation.network import Network, Port
    from simulation.world import World

MODELS = ("m1", "m2")
EMBEDDERS = ("e1",)
TASK_TYPES = ("echo", "chat", "embed", "train")
_TICK_MS = 500


def token(key: Key, number: int) -> str:
    """Return the nth token of an attempt's text: it names its lease."""
    return f"{key[0].hex()[-8:]}:{key[1]}:{key[2]}:{number};"


def result_of(key: Key, tokens: int) -> bytes:
    return f"{key[0].hex()[-8:]}:{key[1]}:{key[2]}:{tokens}".encode()


class Teller(Protocol):
    """What an engine tells of its attempts: a process, or the core in it."""

    def attempt_text(self, key: Key, text: str) -> None: ...

    def attempt_phase(self, report: PhaseReport) -> None: ...

    def attempt_ended(self, ended: Ended, result: bytes) -> None: ...


class Attempt:
    """An attempt that runs."""

    def __init__(self, lease: Lease, tokens: int, outcome: str) -> None:
        self.key: Key = (lease.job_id, lease.epoch, lease.attempt)
        self.lease = lease
        self.tokens = tokens
        self.written = 0
        self.outcome = outcome


class Engine:
    """Runs attempts, each with its own fate."""

    def __init__(self, world: World, checks: Checks, port: Port, teller: Teller) -> None:
        self.world = world
        self.checks = checks
        self.port = port
        self.teller = teller
        self.running: dict[Key, Attempt] = {}
        self.dead = False

    def start(self, lease: Lease, slots: int) -> None:
        """Begin an attempt."""
        world = self.world
        random = world.random
        tokens = random.choice((0, 1, 3, 10, 30))
        outcome = "complete"
        if world.raging:
            outcome = random.choices(
                ("complete", "fail", "permanent", "release", "crash", "hang"), (80, 8, 1, 5, 3, 3)
            )[0]
        attempt = Attempt(lease, tokens, outcome)
        self.checks.started(attempt.key, self.port, lease.instance_id, slots)
        self.running[attempt.key] = attempt
        run_ms = random.choice((0, 1, 50, 500, 3000, 8000 if world.raging else 100))
        step_ms = run_ms // (tokens + 1)
        self.world.after(step_ms, lambda: self._go_on(attempt, step_ms))

    def _go_on(self, attempt: Attempt, step_ms: int) -> None:
        if self.running.get(attempt.key) is not attempt:
            return
        if attempt.written < attempt.tokens:
            count = min(self.world.random.choice((1, 1, 2, 5)), attempt.tokens - attempt.written)
            text = ""
            for _ in range(count):
                attempt.written += 1
                text += token(attempt.key, attempt.written)
            self.teller.attempt_text(attempt.key, text)
            if self.world.chance(0.2):
                # What an engine runs has nothing to wait for: the broker is to take no notice.
                phase = self.world.random.choice(("writing", "writing", "parked"))
                if phase == "parked" and attempt.lease.task_type not in ENGINE_TASKS:
                    self.checks.lent.add(attempt.key)
                self.teller.attempt_phase(
                    PhaseReport(job_id=attempt.key[0], attempt=attempt.key[2], phase=phase, tokens=count)
                )
            self.world.after(step_ms, lambda: self._go_on(attempt, step_ms))
        elif attempt.outcome == "hang" and self.world.raging:
            # Until someone stops it, or the faults are over.
            self.world.after(5000, lambda: self._go_on(attempt, step_ms))
        else:
            self._end(attempt, attempt.outcome)

    def _end(self, attempt: Attempt, outcome: str) -> None:
        beside = [
            each for each in self.running.values() if each.lease.instance_id == attempt.lease.instance_id
        ]
        if outcome == "crash":
            for each in beside:
                self._close(each, "crash", shared=len(beside) > 1)
        else:
            self._close(attempt, outcome)

    def _close(self, attempt: Attempt, outcome: str, *, shared: bool = False) -> None:
        if self.running.pop(attempt.key, None) is None:
            return
        self.checks.ended(attempt.key)
        key = attempt.key
        is_done = outcome in ("complete", "hang")
        result = result_of(key, attempt.written) if is_done else b""
        if is_done and self.world.chance(0.05):
            result += b"." * self.world.random.choice((100, 1000))
        elif is_done and not attempt.written and self.world.chance(0.2):
            result = b""
        error = None if is_done else ErrorInfo(outcome, f"as fate would have it: {outcome}", True)
        wire = {"hang": "complete", "permanent": "fail"}.get(outcome, outcome)
        self.teller.attempt_ended(
            Ended(
                job_id=key[0], epoch=key[1], attempt=key[2], outcome=wire, result_bytes=len(result), error=error,
                permanent=outcome == "permanent", shared=shared, output_tokens=attempt.written,
                retry_after_ms=self.world.random.choice((0, 0, 700)) if outcome == "fail" else 0,
            ),
            result,
        )  # fmt: skip

    def stop(self, key: Key) -> None:
        """End an attempt on demand, a little later; it may have been done by then."""
        attempt = self.running.get(key)
        if attempt is not None:
            outcome = "complete" if self.world.chance(0.2) else "stopped"
            self.world.after(self.world.random.choice((0, 5, 300)), lambda: self._close(attempt, outcome))

    def kill(self, key: Key) -> None:
        """End an attempt without a word."""
        if self.running.pop(key, None) is not None:
            self.checks.ended(key)

    def kill_all(self) -> None:
        self.dead = True
        for key in list(self.running):
            self.kill(key)


class Endpoint:
    """A model server: what is loaded there, and what happens to it. Outlives the worker's process."""

    def __init__(self, world: World, name: str, *, serves_any: bool, slots: int) -> None:
        self.world = world
        self.name = name
        self.slots = slots
        self.may_load = not serves_any
        self.loaded: dict[str, InstanceInfo] = {}
        self.breaker: Breaker | None = None
        self.host: HostLoad | None = None
        self.total_slots: int | None = None
        self.room = 2
        if serves_any:
            self.loaded["any"] = InstanceInfo(instance_id="any", model="*", kind="any", slots=slots)

    def capacity(self) -> Capacity:
        catalog = []
        if self.may_load:
            catalog = [CatalogModel(model=model) for model in MODELS]
            catalog += [CatalogModel(model=model, kind="embedding") for model in EMBEDDERS]
        return Capacity(
            instances=list(self.loaded.values()), catalog=catalog, may_load=self.may_load, slots=self.total_slots,
            breaker=self.breaker, host=self.host,
        )  # fmt: skip

    def load(self, model: str) -> ErrorInfo | None:
        """Load a model, if all goes well."""
        if len(self.loaded) >= self.room:
            return ErrorInfo("insufficient_memory", "no room")
        if self.world.raging and self.world.chance(0.1):
            return ErrorInfo("load_failed", "it did not load", True)
        kind = "embedding" if model in EMBEDDERS else "llm"
        name = f"{model}:{self.world.random.randint(1, 9)}"
        self.loaded[name] = InstanceInfo(
            instance_id=name, model=model, kind=kind, slots=self.slots, ours=True
        )
        return None

    def unload(self, instance_id: str) -> ErrorInfo | None:
        if self.loaded.pop(instance_id, None) is None:
            return ErrorInfo("not_found", "no such instance")
        return None

    def change(self) -> None:
        """Let something happen at the endpoint."""
        random = self.world.random
        what = random.randrange(5)
        if what == 0:
            self.breaker = None if self.breaker else Breaker(since_ms=self.world.wall_ms, reason="it fails")
        elif what == 1:
            self.host = HostLoad(cpu_ratio=random.random())
        elif what == 2:
            self.total_slots = random.choice((None, 1, self.slots))
        elif what == 3 and self.loaded:
            name = random.choice(list(self.loaded))
            old = self.loaded[name]
            slots = random.randint(0, self.slots)
            self.loaded[name] = InstanceInfo(
                instance_id=name, model=old.model, kind=old.kind, slots=slots, ours=old.ours
            )
        elif what == 4 and self.may_load and self.loaded:
            # Somebody else unloads it.
            self.loaded.pop(random.choice(list(self.loaded)))

    def recover(self) -> None:
        """Be well again."""
        self.breaker = None
        self.total_slots = None
        for name, old in self.loaded.items():
            self.loaded[name] = InstanceInfo(
                instance_id=name, model=old.model, kind=old.kind, slots=self.slots, ours=old.ours
            )


class Process:
    """One life of a worker: what every kind of it has in common."""

    def __init__(self, host: Host, instance: bytes, replaces: bytes) -> None:
        self.host = host
        self.world = host.world
        self.instance = instance
        self.replaces = replaces
        self.port = host.network.open(host.name, self.take)
        self.engine = Engine(host.world, host.checks, self.port, self)
        self.begin()
        self.world.after(_TICK_MS, self._beat)

    def enlist(self, request_id: int, held: Iterable[Held]) -> Enlist:
        endpoint = self.host.endpoint
        return Enlist(
            request_id=request_id, instance=self.instance, protocol_oldest=bounds.PROTOCOL_OLDEST,
            protocol_newest=bounds.PROTOCOL_NEWEST, name=self.host.name, endpoint=endpoint.name, backend="simulated",
            capacity=endpoint.capacity(), queues=list(self.host.queues), task_types=list(TASK_TYPES),
            held=list(held), replaces=self.replaces,
        )  # fmt: skip

    def run(self, lease: Lease, payload: bytes) -> None:
        """Run an attempt at the endpoint."""
        self.host.checks.payload_arrived(lease.job_id, payload)
        self.engine.start(lease, self.host.endpoint.slots)

    def _beat(self) -> None:
        if not self.engine.dead:
            self.tick()
            self.world.after(_TICK_MS, self._beat)

    def load_later(self, command_id: int, model: str, instance_id: str) -> None:
        """Load or unload, which takes a while."""
        wait_ms = self.world.random.choice((10, 800, 5000))
        self.world.after(wait_ms, lambda: self._load(command_id, model, instance_id))

    def _load(self, command_id: int, model: str, instance_id: str) -> None:
        if not self.engine.dead:
            endpoint = self.host.endpoint
            if not model and any(
                each.lease.instance_id == instance_id for each in self.engine.running.values()
            ):
                error: ErrorInfo | None = ErrorInfo("instance_busy", "it still has jobs")
            else:
                error = endpoint.load(model) if model else endpoint.unload(instance_id)
            self.capacity_changed()
            self.load_ended(command_id, error)

    def die(self) -> None:
        """End at once; what is in the spool stays."""
        self.engine.kill_all()
        self.port.close()

    # --- what each kind does its own way ---

    def begin(self) -> None:
        raise NotImplementedError

    def take(self, message: ToPeer, body: bytes) -> None:
        raise NotImplementedError

    def tick(self) -> None:
        raise NotImplementedError

    def leave(self) -> None:
        """Give everything back and say goodbye."""
        raise NotImplementedError

    def capacity_changed(self) -> None:
        raise NotImplementedError

    def load_ended(self, command_id: int, error: ErrorInfo | None) -> None:
        raise NotImplementedError

    def unsettled(self) -> str:
        """Say what is still under way, or nothing."""
        raise NotImplementedError

    def attempt_text(self, key: Key, text: str) -> None:
        raise NotImplementedError

    def attempt_phase(self, report: PhaseReport) -> None:
        raise NotImplementedError

    def attempt_ended(self, ended: Ended, result: bytes) -> None:
        raise NotImplementedError


class Host:
    """A worker over all its processes: its name, its endpoint, its spool."""

    def __init__(
        self,
        world: World,
        network: Network,
        checks: Checks,
        endpoint: Endpoint,
        name: str,
        queues: tuple[str, ...],
        kind: type[Process],
    ) -> None:
        self.world = world
        self.network = network
        self.checks = checks
        self.endpoint = endpoint
        self.name = name
        self.queues = queues
        self.kind = kind
        self.spool: dict[Key, tuple[Ended, bytes]] = {}
        self.process: Process | None = None
        self.last_instance = b""

    def start(self) -> None:
        if self.process is None:
            replaces = self.last_instance if self.world.chance(0.7) else b""
            self.last_instance = self.world.random.randbytes(16)
            self.world.note("worker starts", self.name)
            self.process = self.kind(self, self.last_instance, replaces)

    def crash(self) -> None:
        """Lose the process and all it had in memory."""
        if self.process is not None:
            self.world.note("worker dies", self.name)
            self.checks.text_lost(self.process.port)
            self.process.die()
            self.process = None

    def leave(self) -> None:
        """Stop as by SIGTERM."""
        if self.process is not None:
            process, self.process = self.process, None
            self.world.note("worker leaves", self.name)
            self.checks.text_lost(process.port)
            process.leave()
            process.engine.kill_all()
            # A socket lingers a little, or it does not.
            self.world.after(self.world.random.choice((0, 100)), process.port.close)

    def happen(self) -> None:
        """Let something happen to the endpoint, and its worker notice."""
        self.endpoint.change()
        if self.process is not None:
            self.process.capacity_changed()


class _Run:
    """What a plain worker knows of a lease in hand."""

    def __init__(self, instance_id: str) -> None:
        self.instance_id = instance_id
        self.stopping = False


class _Text:
    """Pieces of an attempt's text that are not known to be durable, and what has no number yet."""

    def __init__(self) -> None:
        self.first = 1
        self.pieces: list[Piece] = []
        self.waiting = ""

    def number(self) -> tuple[int, list[Piece]]:
        """Give what waits its number; return it."""
        fresh = [Piece(channel="content", text=self.waiting)] if self.waiting else []
        first = self.first + len(self.pieces)
        self.pieces += fresh
        self.waiting = ""
        return first, fresh

    def durable(self, piece: int) -> None:
        count = max(0, piece + 1 - self.first)
        del self.pieces[:count]
        self.first += count


class PlainProcess(Process):
    """A worker of our own, as PROTOCOL.md has it and no cleverer."""

    def begin(self) -> None:
        self.held: dict[Key, _Run] = {}
        self.unacked: dict[Key, tuple[Ended, bytes]] = dict(self.host.spool)
        self.texts: dict[Key, _Text] = {}
        self.enlisted = False
        self.request_id = 0
        self.heard_ms = self.sent_ms = self.asked_ms = self.resent_ms = self.world.mono_ms
        self.heartbeat_ms = 2000
        self._say_enlist()

    def _say_enlist(self) -> None:
        self.enlisted = False
        self.request_id += 1
        self.heard_ms = self.world.mono_ms
        self._ask()

    def _ask(self) -> None:
        held = [
            Held(job_id=j, epoch=e, attempt=a, instance_id=run.instance_id)
            for (j, e, a), run in self.held.items()
        ]
        held += [Held(job_id=j, epoch=e, attempt=a, ended=True) for j, e, a in self.unacked]
        self.asked_ms = self.world.mono_ms
        self.port.send(self.enlist(self.request_id, held))

    def take(self, message: ToPeer, body: bytes) -> None:
        if self.engine.dead:
            return
        self.heard_ms = self.world.mono_ms
        match message:
            case Work():
                self._work(message, body)
            case Acked():
                for ref in message.leases:
                    self._forget((ref.job_id, ref.epoch, ref.attempt))
            case TextDurable():
                for mark in message.marks:
                    for key, text in self.texts.items():
                        if (key[0], key[2]) == (mark.job_id, mark.attempt):
                            text.durable(mark.piece)
            case Stop():
                for ref in message.leases:
                    self._stop((ref.job_id, ref.epoch, ref.attempt))
            case Enlisted():
                self._enlisted(message)
            case Who():
                if self.enlisted:
                    self._say_enlist()
            case Bye():
                if self.enlisted:
                    self.port.reconnect()
                    self._say_enlist()
            case ErrorReply():
                assert message.error.retryable, message
            case LoadModel():
                self.load_later(message.command_id, message.model, "")
            case UnloadModel():
                self.load_later(message.command_id, "", message.instance_id)
            case Heartbeat():
                pass
            case _:
                raise AssertionError(f"a worker was sent {message}")

    def _work(self, message: Work, body: bytes) -> None:
        leases = [lease for group in message.groups for lease in group.leases]
        for lease, payload in zip(leases, cut(body, [each.payload_bytes for each in leases]), strict=True):
            key = (lease.job_id, lease.epoch, lease.attempt)
            if key not in self.held and key not in self.unacked:
                assert self.enlisted or self.host.checks.evil, "work came before `enlisted`"
                self.held[key] = _Run(lease.instance_id)
                self.run(lease, payload)

    def _stop(self, key: Key) -> None:
        if key in self.held:
            if not self.held[key].stopping:
                self.held[key].stopping = True
                self.engine.stop(key)
        elif key not in self.unacked:
            self.attempt_ended(Ended(job_id=key[0], epoch=key[1], attempt=key[2], outcome="stopped"), b"")

    def _enlisted(self, message: Enlisted) -> None:
        if self.enlisted or message.request_id != self.request_id:
            return
        self.enlisted = True
        self.heartbeat_ms = message.heartbeat_ms
        for lost in message.stop:
            key = (lost.job_id, lost.epoch, lost.attempt)
            self.engine.kill(key)
            self.held.pop(key, None)
            self._forget(key)
        # It may have changed since the `enlist` was written.
        self.capacity_changed()
        for key, text in self.texts.items():
            text.number()
            if text.pieces:
                self._send_text(key, text.first, text.pieces)
        self._resend()

    def _send_text(self, key: Key, first: int, pieces: list[Piece]) -> None:
        self._send(TextReport(texts=[Text(job_id=key[0], attempt=key[2], first=first, pieces=list(pieces))]))

    def _send(
        self,
        message: TextReport | Results | Heartbeat | CapacityReport | LoadEnded | Phases,
        body: bytes = b"",
    ) -> None:
        if self.enlisted:
            self.sent_ms = self.world.mono_ms
            self.port.send(message, body)

    def _resend(self) -> None:
        self.resent_ms = self.world.mono_ms
        if self.unacked:
            ended = [each for each, _ in self.unacked.values()]
            results = [result for _, result in self.unacked.values()]
            self._send(Results(ended=ended), b"".join(results))

    def _forget(self, key: Key) -> None:
        self.unacked.pop(key, None)
        self.host.spool.pop(key, None)
        self.texts.pop(key, None)

    def tick(self) -> None:
        now = self.world.mono_ms
        if now - self.heard_ms >= 3 * self.heartbeat_ms:
            self.port.reconnect()
            self._say_enlist()
        elif not self.enlisted and now - self.asked_ms >= 1000:
            self._ask()
        elif self.enlisted:
            for key, text in self.texts.items():
                self._flush_text(key, text)
            if self.host.checks.evil and now - self.resent_ms >= 3000:
                for key, text in self.texts.items():
                    if text.pieces:
                        self._send_text(key, text.first, text.pieces)
                self._resend()
            if now - self.sent_ms >= self.heartbeat_ms:
                self._send(Heartbeat())
        for key, kept in self.unacked.items():
            self.host.spool[key] = kept

    def _flush_text(self, key: Key, text: _Text) -> None:
        first, pieces = text.number()
        if pieces:
            self._send_text(key, first, pieces)

    def leave(self) -> None:
        for key in list(self.held):
            self.held.pop(key)
            self.engine.kill(key)
            ended = Ended(job_id=key[0], epoch=key[1], attempt=key[2], outcome="release")
            self.unacked[key] = (ended, b"")
        for key, kept in self.unacked.items():
            self.host.spool[key] = kept
        self._resend()
        if self.enlisted:
            self.port.send(Bye(reason="leaving"))

    def capacity_changed(self) -> None:
        self._send(CapacityReport(capacity=self.host.endpoint.capacity()))

    def load_ended(self, command_id: int, error: ErrorInfo | None) -> None:
        self._send(LoadEnded(command_id=command_id, error=error))

    def attempt_text(self, key: Key, text: str) -> None:
        if key in self.held:
            kept = self.texts.setdefault(key, _Text())
            kept.waiting += text
            if self.enlisted and self.world.chance(0.5):
                self._flush_text(key, kept)

    def attempt_phase(self, report: PhaseReport) -> None:
        self._send(Phases(leases=[report]))

    def attempt_ended(self, ended: Ended, result: bytes) -> None:
        key = (ended.job_id, ended.epoch, ended.attempt)
        self.held.pop(key, None)
        self.unacked[key] = (ended, result)
        if self.world.chance(0.3):
            self.host.spool[key] = (ended, result)
        if self.enlisted and key in self.texts:
            self._flush_text(key, self.texts[key])
        self._send(Results(ended=[ended]), result)

    def unsettled(self) -> str:
        return f"{len(self.held)} held, {len(self.unacked)} unacked" if self.held or self.unacked else ""
