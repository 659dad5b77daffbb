"""The worker's thinking: leases in hand, what is not yet acknowledged, when proof of life is due.

Pure: no sockets, no files, no clock, no chance. Events go in by methods, each handed `now_ms` (monotonic), and each
returns what the shell must now do, in order. Messages are not built one by one: what is to be said gathers until
`flush`, which the shell calls once per turn of its loop (`tick` calls it too), so that many jobs ride in one message.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import assert_never

import msgspec

from lmq_proto import bounds
from lmq_proto.codec import cut
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Acked,
    Bye,
    Capacity,
    CapacityReport,
    Ended,
    Enlist,
    Enlisted,
    ErrorReply,
    Heartbeat,
    Held,
    LeaseRef,
    LoadEnded,
    LoadModel,
    PhaseReport,
    Phases,
    Stop,
    Text,
    TextDurable,
    ToPeer,
    UnloadModel,
    Who,
    Work,
)
from lmq_worker.attempt import Attempt, Key, Outcome
from lmq_worker.instructions import (
    Forget,
    GiveUp,
    Instruction,
    Load,
    Note,
    Persist,
    Reconnect,
    SendMessage,
    StartGroup,
    StopAttempt,
    Unload,
)
from lmq_worker.packing import result_batches, text_reports
from lmq_worker.texts import AttemptText

# Failed enlistments that say no `retry_after_s`, and an `enlist` that nobody answered, are repeated after this.
ENLIST_AGAIN_MS = 1000

# The bound of `enlist.held`. More ends than that can only lie in a spool; the oldest are offered first.
HELD_LEASES = 9192

# Results fall due for the spool in steps, so that a fast worker does not wake for each.
PERSIST_STEP_MS = 250


@dataclass(frozen=True, slots=True)
class Pace:
    """How often things happen, in milliseconds."""

    heartbeat_ms: int = 2000
    """Until `enlisted` says otherwise."""
    reach_ms: int = 5000
    """How long one address of a broker is tried before the next."""
    persist_after_ms: int = 2000
    """How long a result may stay unacknowledged before it is written down."""
    phases_ms: int = 250
    """Least distance of two `phases`."""


class Session(StrEnum):
    """Where the worker stands with the broker."""

    ABSENT = "absent"
    ENLISTING = "enlisting"
    ENLISTED = "enlisted"
    GONE = "gone"


@dataclass(slots=True)
class _Company:
    """Who runs on one instance."""

    groups: int = 0
    alone: bool = False
    """What runs there wants nobody beside it."""
    waiting: deque["_Group"] = field(default_factory=deque)
    crashed_ms: int = -1


@dataclass(slots=True)
class _Group:
    attempts: tuple[Attempt, ...]
    instance_id: str
    alone: bool
    left: int
    started_ms: int = -1


@dataclass(slots=True)
class _Hold:
    """A lease in hand that has not ended."""

    attempt: Attempt
    group: _Group
    stopping: bool = False


@dataclass(slots=True)
class _Unacked:
    """How a lease ended, until the broker has it on disk."""

    ended: Ended
    result: bytes
    persisted: bool = False


class WorkerCore:
    """One worker's side of the conversation with one broker."""

    def __init__(
        self,
        enlist: Enlist,
        *,
        spooled: Iterable[tuple[Ended, bytes]] = (),
        pace: Pace | None = None,
    ) -> None:
        """Make a worker that has not said anything yet.

        Args:
            enlist: what it says of itself; `request_id` and `held` are filled in by the core.
            spooled: results that an earlier process of this worker left unacknowledged.
            pace: distances in time.
        """
        self._enlist = enlist
        self._pace = pace or Pace()
        self._session = Session.ABSENT
        self._request_id = 0
        self._epoch = 0
        self._heartbeat_ms = self._pace.heartbeat_ms
        self._heard_ms = 0
        self._sent_ms = 0
        self._enlist_due_ms = 0
        self._reach_until_ms = 0
        self._blocked = False
        self._draining = False
        self._capacity = enlist.capacity
        self._told_capacity: Capacity | None = None

        self._held: dict[Key, _Hold] = {}
        self._companies: dict[str, _Company] = {}
        self._unacked: dict[Key, _Unacked] = {}
        self._unsent: dict[Key, None] = {}
        self._to_persist: deque[tuple[int, Key]] = deque()
        self._texts: dict[tuple[bytes, int], AttemptText] = {}
        self._texts_waiting: dict[tuple[bytes, int], None] = {}
        self._phases: dict[tuple[bytes, int], PhaseReport] = {}
        self._phases_due_ms = 0
        self._commands: dict[int, int] = {}
        self._loads_ended: list[LoadEnded] = []
        self._last_load: tuple[int, LoadEnded] | None = None
        for ended, result in spooled:
            self._unacked[_key(ended)] = _Unacked(ended, result, persisted=True)

    # --- to look at ---

    @property
    def session(self) -> Session:
        return self._session

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def is_enlisted(self) -> bool:
        """Tell whether a broker knows this worker now."""
        return self._session is Session.ENLISTED

    @property
    def held(self) -> list[Key]:
        """The leases that run or wait to run."""
        return list(self._held)

    @property
    def unacked(self) -> list[Key]:
        """The leases that have ended and whose end the broker has not acknowledged."""
        return list(self._unacked)

    @property
    def idle(self) -> bool:
        """Tell whether nothing runs."""
        return not self._held

    @property
    def settled(self) -> bool:
        """Tell whether nothing runs and nothing waits to be acknowledged."""
        return not self._held and not self._unacked

    @property
    def next_due_ms(self) -> int:
        """When `tick` has something to do at the latest; 0 when `flush` has."""
        due = [self._to_persist[0][0]] if self._to_persist else []
        match self._session:
            case Session.ENLISTED:
                if not self._blocked and self._unflushed():
                    return 0
                due += [self._sent_ms + self._heartbeat_ms, self._heard_ms + 3 * self._heartbeat_ms]
                if self._phases and not self._blocked:
                    due.append(self._phases_due_ms)
            case Session.ENLISTING:
                due += [self._enlist_due_ms, self._reach_until_ms]
            case Session.ABSENT | Session.GONE:
                pass
            case _:
                assert_never(self._session)
        return min(due, default=1 << 62)

    def _unflushed(self) -> bool:
        return bool(self._texts_waiting or self._unsent or self._loads_ended) or (
            self._told_capacity is not self._capacity
        )

    # --- session ---

    def start(self, now_ms: int) -> list[Instruction]:
        """Say `enlist` to the broker for the first time."""
        return self._say_enlist(now_ms)

    def received(self, message: ToPeer, body: bytes, now_ms: int) -> list[Instruction]:
        """Take a message of the broker."""
        if self._session in (Session.ABSENT, Session.GONE):
            return []
        self._heard_ms = now_ms
        match message:
            case Work():
                return self._work(message, body, now_ms)
            case Acked():
                return self._acked(message.leases)
            case Heartbeat():
                return []
            case TextDurable():
                for mark in message.marks:
                    text = self._texts.get((mark.job_id, mark.attempt))
                    if text is not None:
                        text.durable(mark.piece)
                return []
            case Stop():
                return self._stop(message, now_ms)
            case Enlisted():
                return self._enlisted(message, now_ms)
            case Who():
                if self._session is Session.ENLISTED:
                    return [Note("enlist_again", {"why": "who"}), *self._say_enlist(now_ms)]
                return []
            case Bye():
                if self._session is Session.ENLISTED:
                    return [Note("broker_left", {"reason": message.reason}), *self._reconnect(now_ms)]
                return []
            case ErrorReply():
                return self._refused(message, now_ms)
            case LoadModel():
                return self._load(message)
            case UnloadModel():
                self._commands[message.command_id] = self._epoch
                return [Unload(message.command_id, message.instance_id)]
            case _:
                return [Note("message_not_for_workers", {"kind": type(message).__name__})]

    def tick(self, now_ms: int) -> list[Instruction]:
        """Do what is due by now."""
        out: list[Instruction] = []
        if self._session is Session.ENLISTED and now_ms >= self._heard_ms + 3 * self._heartbeat_ms:
            out.append(Note("broker_silent", {"heard_ms_ago": now_ms - self._heard_ms}))
            out += self._reconnect(now_ms)
        elif self._session is Session.ENLISTING:
            if now_ms >= self._reach_until_ms:
                out += self._reconnect(now_ms)
            elif now_ms >= self._enlist_due_ms:
                # While the connection is not up, the first `enlist` still waits in the shell: do not queue more.
                self._enlist_due_ms = now_ms + ENLIST_AGAIN_MS
                if not self._blocked:
                    out.append(SendMessage(self._enlist_now()))
        while self._to_persist and now_ms >= self._to_persist[0][0]:
            _, key = self._to_persist.popleft()
            out += self._persist(key)
        out += self.flush(now_ms)
        if (
            self._session is Session.ENLISTED
            and not self._blocked
            and now_ms >= self._sent_ms + self._heartbeat_ms
        ):
            out.append(SendMessage(Heartbeat()))
            self._sent_ms = now_ms
        return out

    def send_blocked(self) -> None:
        """Take note that the shell cannot send now: what is to be said gathers and merges."""
        self._blocked = True

    def send_unblocked(self, now_ms: int) -> list[Instruction]:
        """Take note that the shell can send again."""
        self._blocked = False
        return self.flush(now_ms)

    def _say_enlist(self, now_ms: int) -> list[Instruction]:
        """Begin a new round of enlisting on the connection there is."""
        self._session = Session.ENLISTING
        self._request_id += 1
        self._enlist_due_ms = now_ms + ENLIST_AGAIN_MS
        self._reach_until_ms = now_ms + self._pace.reach_ms
        out: list[Instruction] = [SendMessage(self._enlist_now())]
        for key in self._unacked:
            out += self._persist(key)
        self._to_persist.clear()
        return out

    def _reconnect(self, now_ms: int) -> list[Instruction]:
        self._blocked = False
        return [Reconnect(), *self._say_enlist(now_ms)]

    def _enlist_now(self) -> Enlist:
        held = [
            Held(job_id=key[0], epoch=key[1], attempt=key[2], instance_id=hold.group.instance_id)
            for key, hold in self._held.items()
        ]
        held += [Held(job_id=j, epoch=e, attempt=a, ended=True) for j, e, a in self._unacked]
        self._told_capacity = self._capacity
        return msgspec.structs.replace(
            self._enlist,
            request_id=self._request_id,
            capacity=self._shown_capacity(),
            held=held[:HELD_LEASES],
        )

    def _enlisted(self, message: Enlisted, now_ms: int) -> list[Instruction]:
        if self._session is not Session.ENLISTING or message.request_id != self._request_id:
            return []
        self._session = Session.ENLISTED
        self._epoch = message.epoch
        self._heartbeat_ms = message.heartbeat_ms if message.heartbeat_ms > 0 else self._pace.heartbeat_ms
        self._sent_ms = now_ms
        # The end of a load is not acknowledged: the last one may have died with the connection.
        self._loads_ended = (
            [self._last_load[1]] if self._last_load and self._last_load[0] == self._epoch else []
        )
        out: list[Instruction] = [
            Note(
                "enlisted", {"epoch": message.epoch, "software": message.software, "lost": len(message.stop)}
            )
        ]
        for lost in message.stop:
            out += self._lost((lost.job_id, lost.epoch, lost.attempt), now_ms)
        # What was sent before may have died with the connection: all of it goes again, text before results.
        texts = []
        for (job_id, attempt), text in self._texts.items():
            if text.keeps:
                first, pieces = text.kept()
                texts.append(Text(job_id=job_id, attempt=attempt, first=first, pieces=pieces))
        out += [SendMessage(report) for report in text_reports(texts)]
        self._unsent = dict.fromkeys(self._unacked)
        return out + self.flush(now_ms)

    def _refused(self, message: ErrorReply, now_ms: int) -> list[Instruction]:
        error = message.error
        noted = Note("broker_refused", {"code": error.code, "what": error.message})
        if self._session is not Session.ENLISTING or message.request_id != self._request_id:
            return [noted]
        if not error.retryable:
            self._session = Session.GONE
            return [noted, GiveUp(error)]
        asked_s = error.fields.get("retry_after_s")
        wait_ms = int(asked_s * 1000) if isinstance(asked_s, int | float) else ENLIST_AGAIN_MS
        self._enlist_due_ms = now_ms + max(wait_ms, ENLIST_AGAIN_MS)
        self._reach_until_ms = self._enlist_due_ms + self._pace.reach_ms
        return [noted]

    # --- leases ---

    def _work(self, message: Work, body: bytes, now_ms: int) -> list[Instruction]:
        payloads = iter(
            cut(body, [lease.payload_bytes for group in message.groups for lease in group.leases])
        )
        out: list[Instruction] = []
        for sent in message.groups:
            attempts = [Attempt(lease, next(payloads)) for lease in sent.leases]
            new = tuple(a for a in attempts if a.key not in self._held and a.key not in self._unacked)
            if not new:
                continue
            group = _Group(new, sent.leases[0].instance_id, any(a.lease.alone for a in new), len(new))
            for attempt in new:
                self._held[attempt.key] = _Hold(attempt, group)
            if self._draining or self._session is not Session.ENLISTED:
                for attempt in new:
                    out += self._end(attempt.key, _RELEASED, now_ms)
            else:
                out += self._start_or_wait(group, now_ms)
        return out

    def _start_or_wait(self, group: _Group, now_ms: int) -> list[Instruction]:
        company = self._companies.get(group.instance_id)
        if company is None:
            company = self._companies[group.instance_id] = _Company()
        if company.waiting or company.alone or (group.alone and company.groups):
            company.waiting.append(group)
            return []
        return [self._start(group, company, now_ms)]

    def _start(self, group: _Group, company: _Company, now_ms: int) -> Instruction:
        company.groups += 1
        company.alone = group.alone
        group.started_ms = now_ms
        if len(group.attempts) == group.left:
            return StartGroup(group.instance_id, group.attempts)
        return StartGroup(group.instance_id, tuple(a for a in group.attempts if a.key in self._held))

    def attempt_ended(self, key: Key, outcome: Outcome, now_ms: int) -> list[Instruction]:
        """Take the end of an attempt that was started. Of one that was lost meanwhile nothing is said."""
        if key not in self._held:
            return []
        return self._end(key, outcome, now_ms)

    def _end(self, key: Key, outcome: Outcome, now_ms: int) -> list[Instruction]:
        """Keep an end until it is acknowledged."""
        hold = self._held[key]
        shared = outcome.outcome == "crash" and self._crashed_in_company(hold.group, now_ms)
        self._phases.pop((key[0], key[2]), None)
        ended = Ended(
            job_id=key[0],
            epoch=key[1],
            attempt=key[2],
            outcome=outcome.outcome,
            result_bytes=len(outcome.result),
            error=outcome.error,
            permanent=outcome.permanent,
            retry_after_ms=outcome.retry_after_ms,
            shared=shared,
            model=outcome.model,
            prompt_tokens=outcome.prompt_tokens,
            output_tokens=outcome.output_tokens,
            engine_ms=outcome.engine_ms,
        )
        out = self._keep_end(key, ended, outcome.result, now_ms)
        return out + self._leave(key, now_ms)

    def _keep_end(self, key: Key, ended: Ended, result: bytes, now_ms: int) -> list[Instruction]:
        self._unacked[key] = _Unacked(ended, result)
        self._unsent[key] = None
        if self._session is Session.ENLISTED:
            due_ms = now_ms + self._pace.persist_after_ms
            self._to_persist.append((due_ms - due_ms % -PERSIST_STEP_MS, key))
            return []
        return self._persist(key)

    def _leave(self, key: Key, now_ms: int) -> list[Instruction]:
        """Take a lease out of hand and start what waited for its place."""
        group = self._held.pop(key).group
        group.left -= 1
        if group.left:
            return []
        company = self._companies.get(group.instance_id)
        if company is None:
            return []
        if group.started_ms < 0:
            if group in company.waiting:
                company.waiting.remove(group)
        else:
            company.groups -= 1
            if not company.groups:
                company.alone = False
        out: list[Instruction] = []
        while not self._draining and company.waiting and not company.alone:
            if company.waiting[0].alone and company.groups:
                break
            out.append(self._start(company.waiting.popleft(), company, now_ms))
        if not company.groups and not company.waiting and company.crashed_ms < 0:
            del self._companies[group.instance_id]
        return out

    def _crashed_in_company(self, group: _Group, now_ms: int) -> bool:
        """Tell whether an engine that just died under a group had other work too.

        The deaths of one crash arrive one after another: the last to report finds the others gone, but knows that one
        of them crashed while it ran itself.
        """
        company = self._companies[group.instance_id]
        shared = len(group.attempts) > 1 or company.groups > 1 or company.crashed_ms >= group.started_ms
        company.crashed_ms = now_ms
        return shared

    def _stop(self, message: Stop, now_ms: int) -> list[Instruction]:
        out: list[Instruction] = []
        for ref in message.leases:
            key = (ref.job_id, ref.epoch, ref.attempt)
            hold = self._held.get(key)
            if hold is None:
                if key not in self._unacked:
                    # The `work` that carried it never came, or its end is acknowledged: say `stopped` all the same.
                    out += self._keep_end(key, _ended_stopped(ref), b"", now_ms)
            elif hold.group.started_ms < 0:
                out += self._end(key, _STOPPED, now_ms)
            elif not hold.stopping:
                hold.stopping = True
                self.attempt_phase(PhaseReport(job_id=ref.job_id, attempt=ref.attempt, phase="stopping"))
                out.append(StopAttempt(key, message.reason))
        return out

    def _lost(self, key: Key, now_ms: int) -> list[Instruction]:
        """Give up a lease that has passed on: stop it, say nothing more about it."""
        self._drop_text(key)
        if key in self._held:
            started = self._held[key].group.started_ms >= 0
            self._phases.pop((key[0], key[2]), None)
            stop: list[Instruction] = [StopAttempt(key, "lease lost")] if started else []
            return stop + self._leave(key, now_ms)
        return self._forget(key)

    def _acked(self, leases: list[LeaseRef]) -> list[Instruction]:
        out: list[Instruction] = []
        for ref in leases:
            key = (ref.job_id, ref.epoch, ref.attempt)
            if key in self._unacked:
                self._drop_text(key)
                out += self._forget(key)
        return out

    def _forget(self, key: Key) -> list[Instruction]:
        unacked = self._unacked.pop(key, None)
        self._unsent.pop(key, None)
        return [Forget(key)] if unacked is not None and unacked.persisted else []

    def _persist(self, key: Key) -> list[Instruction]:
        unacked = self._unacked.get(key)
        if unacked is None or unacked.persisted:
            return []
        unacked.persisted = True
        return [Persist(unacked.ended, unacked.result)]

    # --- what attempts report on their way ---

    def attempt_text(self, key: Key, channel: str, text: str) -> list[Instruction]:
        """Take a piece of text of a running attempt; it leaves with the next `flush`."""
        if key in self._held:
            mark = (key[0], key[2])
            kept = self._texts.get(mark)
            if kept is None:
                kept = self._texts[mark] = AttemptText()
            kept.add(channel, text)
            self._texts_waiting[mark] = None
        return []

    def attempt_phase(self, report: PhaseReport) -> list[Instruction]:
        """Take the latest progress of a running attempt; it leaves within `Pace.phases_ms`."""
        self._phases[report.job_id, report.attempt] = report
        return []

    def _drop_text(self, key: Key) -> None:
        self._texts.pop((key[0], key[2]), None)
        self._texts_waiting.pop((key[0], key[2]), None)

    # --- endpoint ---

    def capacity_changed(self, capacity: Capacity) -> list[Instruction]:
        """Take what the endpoint can do now; it leaves with the next `flush` if it is news."""
        if capacity != self._capacity:
            self._capacity = capacity
        return []

    def load_ended(
        self, command_id: int, seconds: float, error: ErrorInfo | None = None
    ) -> list[Instruction]:
        """Take the end of a load or unload. Call `capacity_changed` first."""
        if self._commands.pop(command_id, None) == self._epoch:
            ended = LoadEnded(command_id=command_id, seconds=seconds, error=error)
            self._last_load = (self._epoch, ended)
            self._loads_ended.append(ended)
        return []

    def _load(self, message: LoadModel) -> list[Instruction]:
        self._commands[message.command_id] = self._epoch
        if not self._capacity.may_load or self._draining:
            return self.load_ended(
                message.command_id, 0.0, ErrorInfo("load_not_allowed", "this worker loads no models")
            )
        return [Load(message.command_id, message.model, message.context_tokens)]

    def _shown_capacity(self) -> Capacity:
        if not self._draining:
            return self._capacity
        return msgspec.structs.replace(self._capacity, slots=0, may_load=False)

    # --- going ---

    def drain(self, now_ms: int) -> list[Instruction]:
        """Take no more work and tell the broker so. What runs goes on; what only waits is given back."""
        self._draining = True
        self._told_capacity = None
        out: list[Instruction] = []
        for key in [key for key, hold in self._held.items() if hold.group.started_ms < 0]:
            if key in self._held:
                out += self._end(key, _RELEASED, now_ms)
        return out + self.flush(now_ms)

    def release_all(self, now_ms: int) -> list[Instruction]:
        """Stop all that runs and give it back, uncharged."""
        out: list[Instruction] = []
        for key in list(self._held):
            out.append(StopAttempt(key, "worker stops"))
            out += self._end(key, _RELEASED, now_ms)
        return out + self.flush(now_ms)

    def leave(self, now_ms: int) -> list[Instruction]:
        """Write down what is not acknowledged and say goodbye. Nothing comes after it."""
        out = self.flush(now_ms)
        for key in self._unacked:
            out += self._persist(key)
        if self._session is Session.ENLISTED and not self._blocked:
            out.append(SendMessage(Bye(reason="worker stops")))
        self._session = Session.GONE
        return out

    # --- saying what has gathered ---

    def flush(self, now_ms: int) -> list[Instruction]:
        """Return what has gathered since the last flush, in as few messages as its bounds allow."""
        if self._session is not Session.ENLISTED or self._blocked:
            return []
        out: list[Instruction] = []
        if self._told_capacity is not self._capacity:
            self._told_capacity = self._capacity
            out.append(SendMessage(CapacityReport(capacity=self._shown_capacity())))
        if self._texts_waiting:
            out += self._waiting_texts()
        if self._phases and now_ms >= self._phases_due_ms:
            reports = list(self._phases.values())
            self._phases.clear()
            self._phases_due_ms = now_ms + self._pace.phases_ms
            for at in range(0, len(reports), bounds.BATCH_JOBS):
                out.append(SendMessage(Phases(leases=reports[at : at + bounds.BATCH_JOBS])))
        if self._unsent:
            out += self._unsent_results()
        out += [SendMessage(ended) for ended in self._loads_ended]
        self._loads_ended.clear()
        if out:
            self._sent_ms = now_ms
        return out

    def _waiting_texts(self) -> list[Instruction]:
        texts = []
        for mark in self._texts_waiting:
            text = self._texts[mark]
            while text.waits:
                first, pieces = text.number(bounds.TEXT_PIECES)
                texts.append(Text(job_id=mark[0], attempt=mark[1], first=first, pieces=pieces))
        self._texts_waiting.clear()
        return [SendMessage(report) for report in text_reports(texts)]

    def _unsent_results(self) -> list[Instruction]:
        unsent = [self._unacked[key] for key in self._unsent]
        self._unsent.clear()
        batches = result_batches([(one.ended, one.result) for one in unsent])
        return [SendMessage(results, body) for results, body in batches]


_RELEASED = Outcome(
    "release", error=ErrorInfo("worker_stops", "the worker takes no more work", retryable=True)
)
_STOPPED = Outcome("stopped")


def _key(ended: Ended) -> Key:
    return (ended.job_id, ended.epoch, ended.attempt)


def _ended_stopped(ref: LeaseRef) -> Ended:
    return Ended(job_id=ref.job_id, epoch=ref.epoch, attempt=ref.attempt, outcome="stopped")
