"""Whatever happens to connection, broker and worker, in whatever order: no result is lost, no text has a gap."""

from __future__ import annotations

from collections import deque

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmq_proto.messages import (
    Acked,
    Capacity,
    Ended,
    Enlist,
    Enlisted,
    FromPeer,
    Group,
    Heartbeat,
    Held,
    Lease,
    LeaseRef,
    Piece,
    Results,
    TextDurable,
    TextMark,
    TextReport,
    ToPeer,
    Who,
    Work,
)
from lmq_worker.attempt import Key, Outcome
from lmq_worker.core import Session, WorkerCore
from lmq_worker.instructions import (
    Forget,
    GiveUp,
    Instruction,
    Persist,
    Reconnect,
    SendMessage,
    StartGroup,
    StopAttempt,
)

ENLIST = Enlist(
    request_id=0,
    instance=b"i" * 16,
    protocol_oldest=1,
    protocol_newest=1,
    name="w",
    endpoint="e",
    backend="b",
    capacity=Capacity(),
)
FAULTS = st.sampled_from(["connection", "broker", "worker"])
CHANNELS = st.sampled_from(["content", "reasoning"])
INSTANCES = st.sampled_from(["i", "j"])


class Wire:
    """One connection, both ways; what is on it dies with it."""

    def __init__(self) -> None:
        self.to_broker: deque[tuple[FromPeer, bytes]] = deque()
        self.to_worker: deque[tuple[ToPeer, bytes]] = deque()


class WorkerAndBroker(RuleBasedStateMachine):
    """A core, a broker reduced to leases and ledgers, and a network and a disk between them."""

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0
        self.core = WorkerCore(ENLIST)
        self.wire = Wire()
        self.known = False
        self.epoch = 1
        self.jobs = 0
        self.spool: dict[Key, tuple[Ended, bytes]] = {}
        self.running: dict[Key, bool] = {}
        self.ended: dict[Key, bytes] = {}
        self.ended_before: dict[int, set[Key]] = {}
        """What had ended when an `enlist` was said; the broker may hear it much later."""
        self.leases: dict[Key, None] = {}
        self.acked: dict[Key, bytes] = {}
        self.said: dict[tuple[bytes, int], str] = {}
        self.pieces: dict[tuple[bytes, int], list[Piece]] = {}
        self.durable: dict[tuple[bytes, int], int] = {}

    @initialize()
    def begin(self) -> None:
        self.do(self.core.start(self.now_ms))
        self.exchange()

    # --- carrying out what the core says ---

    def do(self, instructions: list[Instruction]) -> None:
        for one in instructions:
            match one:
                case SendMessage():
                    if isinstance(one.message, Enlist):
                        self.ended_before[one.message.request_id] = set(self.ended)
                    self.wire.to_broker.append((one.message, one.body))
                case Reconnect():
                    self.cut()
                case StartGroup():
                    for attempt in one.attempts:
                        assert attempt.key not in self.running, "an attempt started twice"
                        self.running[attempt.key] = True
                case StopAttempt():
                    self.running.pop(one.key, None)
                    self.do(self.core.attempt_ended(one.key, Outcome("stopped"), self.now_ms))
                case Persist():
                    key = (one.ended.job_id, one.ended.epoch, one.ended.attempt)
                    self.spool[key] = (one.ended, one.result)
                case Forget():
                    del self.spool[one.key]
                case GiveUp():
                    raise AssertionError("the broker never refuses here")
                case _:
                    pass

    def cut(self) -> None:
        self.wire = Wire()
        self.known = False

    # --- the world ---

    @rule(instance_id=INSTANCES, alone=st.booleans(), count=st.integers(1, 3))
    @precondition(lambda self: self.known)
    def give_work(self, instance_id: str, alone: bool, count: int) -> None:
        leases = []
        for _ in range(count):
            self.jobs += 1
            lease = Lease(
                job_id=self.jobs.to_bytes(16, "big"),
                epoch=self.epoch,
                attempt=1,
                task_type="echo",
                payload_bytes=0,
                instance_id=instance_id,
                alone=alone,
            )
            leases.append(lease)
            self.leases[lease.job_id, lease.epoch, 1] = None
        self.wire.to_worker.append((Work(groups=[Group(leases=leases)]), b""))

    @rule(count=st.integers(1, 5))
    def deliver_to_worker(self, count: int) -> None:
        for _ in range(min(count, len(self.wire.to_worker))):
            message, body = self.wire.to_worker.popleft()
            self.do(self.core.received(message, body, self.now_ms))

    @rule(count=st.integers(1, 5))
    def deliver_to_broker(self, count: int) -> None:
        for _ in range(min(count, len(self.wire.to_broker))):
            message, body = self.wire.to_broker.popleft()
            self.broker_takes(message, body)

    def broker_takes(self, message: FromPeer, body: bytes) -> None:
        if isinstance(message, Enlist):
            self.known = True
            held = {(one.job_id, one.epoch, one.attempt) for one in message.held}
            lost = [key for key in self.leases if key not in held]
            for key in lost:
                assert key not in self.ended_before[message.request_id], "an end was kept and not offered"
                del self.leases[key]
            strange = [Held(job_id=k[0], epoch=k[1], attempt=k[2]) for k in held if k not in self.leases]
            stop = [one for one in strange if (one.job_id, one.epoch, one.attempt) not in self.acked]
            self.push(
                Enlisted(
                    request_id=message.request_id,
                    protocol=1,
                    software="",
                    broker_id=b"",
                    epoch=self.epoch,
                    wall_ms=0,
                    heartbeat_ms=1000,
                    stop=stop,
                )
            )
        elif not self.known:
            self.push(Who())
        elif isinstance(message, TextReport):
            self.take_text(message)
        elif isinstance(message, Results):
            for one in message.ended:
                key = (one.job_id, one.epoch, one.attempt)
                result, body = body[: one.result_bytes], body[one.result_bytes :]
                if key in self.leases:
                    self.acked[key] = result
                    del self.leases[key]
                elif key in self.acked:
                    assert self.acked[key] == result, "a result changed between two sendings"
                self.push(Acked(leases=[LeaseRef(job_id=one.job_id, epoch=one.epoch, attempt=one.attempt)]))

    def take_text(self, message: TextReport) -> None:
        for text in message.texts:
            mark = (text.job_id, text.attempt)
            pieces = self.pieces.setdefault(mark, [])
            if (text.job_id, self.epoch_of(text.job_id), text.attempt) not in self.leases:
                continue
            assert text.first <= len(pieces) + 1, f"a gap before piece {text.first}"
            for at, piece in enumerate(text.pieces, start=text.first):
                if at <= len(pieces):
                    assert pieces[at - 1] == piece, f"piece {at} changed"
                else:
                    pieces.append(piece)

    def epoch_of(self, job_id: bytes) -> int:
        return next((key[1] for key in self.leases if key[0] == job_id), 0)

    def push(self, message: ToPeer) -> None:
        self.wire.to_worker.append((message, b""))

    @rule()
    @precondition(lambda self: self.known)
    def journal_text(self) -> None:
        marks = []
        for (job_id, attempt), pieces in self.pieces.items():
            self.durable[job_id, attempt] = len(pieces)
            marks.append(TextMark(job_id=job_id, attempt=attempt, piece=len(pieces)))
        self.push(TextDurable(marks=marks))

    @rule(
        pick=st.integers(0, 100),
        channel=st.sampled_from(["content", "reasoning"]),
        text=st.text(min_size=1, max_size=5),
    )
    @precondition(lambda self: self.running)
    def say(self, pick: int, channel: str, text: str) -> None:
        key = list(self.running)[pick % len(self.running)]
        self.said[key[0], key[2]] = self.said.get((key[0], key[2]), "") + text
        self.do(self.core.attempt_text(key, channel, text))

    @rule(pick=st.integers(0, 100), outcome=st.sampled_from(["complete", "fail", "crash"]))
    @precondition(lambda self: self.running)
    def end(self, pick: int, outcome: str) -> None:
        key = list(self.running)[pick % len(self.running)]
        del self.running[key]
        result = b"result of " + key[0] if outcome == "complete" else b""
        self.ended[key] = result
        self.do(self.core.attempt_ended(key, Outcome(outcome, result), self.now_ms))

    @rule()
    def flush(self) -> None:
        self.do(self.core.flush(self.now_ms))

    @rule(ms=st.sampled_from([1, 100, 300, 1000, 2500, 6000]))
    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        self.do(self.core.tick(self.now_ms))

    @rule()
    def exchange(self) -> None:
        """Let all that is on its way arrive, answers to it too."""
        while self.wire.to_broker or self.wire.to_worker:
            self.deliver_to_broker(100)
            self.deliver_to_worker(100)
            self.do(self.core.flush(self.now_ms))

    @rule(blocked=st.booleans())
    def fill_or_empty_the_pipe(self, blocked: bool) -> None:
        if blocked:
            self.core.send_blocked()
        else:
            self.do(self.core.send_unblocked(self.now_ms))

    @rule(fault=FAULTS, reconnects=st.booleans())
    def fail(self, fault: str, reconnects: bool) -> None:
        """Let one thing go wrong; then, perhaps, let the worker find out and enlist again."""
        match fault:
            case "connection":
                self.cut()
            case "broker":
                self.cut()
                self.epoch += 1
                for mark, pieces in self.pieces.items():
                    del pieces[self.durable.get(mark, 0) :]
            case "worker":
                self.kill_worker()
        if reconnects:
            self.do(self.core.send_unblocked(self.now_ms))
            self.pass_time(1000)
            self.exchange()

    def kill_worker(self) -> None:
        self.cut()
        self.running.clear()
        for key in [key for key in self.ended if key not in self.spool and key not in self.acked]:
            del self.ended[key]
        self.core = WorkerCore(ENLIST, spooled=list(self.spool.values()))
        self.do(self.core.start(self.now_ms))

    # --- what always holds ---

    @invariant()
    def what_ended_is_kept_until_it_is_acknowledged(self) -> None:
        unacked = set(self.core.unacked)
        assert all(key in unacked for key in self.ended if key in self.leases and key not in self.acked)

    @invariant()
    def what_waits_for_its_place_is_not_running(self) -> None:
        assert set(self.running) <= set(self.core.held)

    @invariant()
    def somebody_is_always_due(self) -> None:
        assert self.core.next_due_ms < self.now_ms + 10_000_000 or self.core.session is Session.ABSENT

    def teardown(self) -> None:
        """Stop the faults: everything that ended arrives, and the text of what runs is whole."""
        self.do(self.core.send_unblocked(self.now_ms))
        for _ in range(60):
            self.now_ms += 500
            if self.known:
                self.push(Heartbeat())
            self.do(self.core.tick(self.now_ms))
            self.exchange()
        assert self.core.session is Session.ENLISTED
        assert self.core.unacked == []
        assert self.spool == {}
        for key, result in self.ended.items():
            assert key not in self.leases, "the broker still waits for something that ended"
            assert self.acked.get(key, result) == result
        for key in self.running:
            mark = (key[0], key[2])
            if key in self.leases:
                said = "".join(piece.text for piece in self.pieces.get(mark, []))
                assert said == self.said.get(mark, "")
        while self.running:
            self.end(0, "complete")
            self.flush()
            self.exchange()
        assert self.core.settled, "something waits for its place for ever"


TestWorkerAndBroker = WorkerAndBroker.TestCase
TestWorkerAndBroker.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
