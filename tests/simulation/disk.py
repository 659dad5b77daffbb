"""The journal as the simulation has it: tables in memory, a writer whose fsync takes a while, a disk that fills.

Only what was synced is in the tables: a crash forgets the rest. One batch that is being synced when the crash comes may
or may not have reached the disk. Laws of the journal itself (one result each, nothing accepted twice) are asserted
here, where every change of it passes.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from lmq_broker.core.reads import (
    CopyJournal,
    CopyReply,
    EndsReply,
    EventsReply,
    JobsReply,
    ListReply,
    PayloadReply,
    ReadDue,
    ReadEnds,
    ReadEvents,
    ReadJobs,
    ReadList,
    ReadPayload,
    ReadReply,
    ReadRequest,
    ReadText,
    ReadUsage,
    StoredEnd,
    StoredText,
    TextReply,
    UsageSums,
)
from lmq_broker.core.records import (
    EventsAdded,
    JobAdded,
    JobChanged,
    JobsDeleted,
    MetaSet,
    Record,
    ResultAdded,
    ResultDropped,
    StoredJob,
    TextAdded,
    TombstonesDropped,
    UsageAdded,
    UsageDropped,
)
from lmq_broker.core.recover import Memory, StoredKey
from lmq_proto.ids import ends_with, suffix_bounds
from lmq_proto.messages import JobFilter, Piece, UsageRow
from lmq_proto.states import FINAL, State, may_move

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmq_proto.events import Event
    from simulation.world import World

_unpack = msgspec.msgpack.Decoder(list[Piece])

Texts = dict[int, dict[int, Piece]]
"""Attempt -> number of piece -> piece."""


class Tables:
    """What is on disk."""

    def __init__(self) -> None:
        self.jobs: dict[int, StoredJob] = {}
        self.numbers: dict[bytes, int] = {}
        self.payloads: dict[int, bytes] = {}
        self.results: dict[int, bytes] = {}
        self.ended: dict[int, None] = {}
        """Final jobs in the order they ended."""
        self.texts: dict[int, Texts] = {}
        self.text_rows: dict[tuple[int, int], list[tuple[int, list[Piece]]]] = {}
        """(Job's number, attempt) -> first piece and pieces of each record."""
        self.keys: dict[tuple[str, str], StoredKey] = {}
        self.tombstones: dict[bytes, int] = {}
        self.meta: dict[str, bytes] = {}
        self.usage: dict[tuple[int, str, str, str], Counter[str]] = {}
        """Ends by final state in each row of the daily sums."""
        self.ends: Counter[str] = Counter()
        """How often jobs reached each final state."""
        self.events: list[Event] = []
        self.pruned: list[Event] = []
        """Events that are no longer kept; the checks still know them."""
        self.oldest_cursor = 0
        self.retried: set[int] = set()
        """Jobs that were opened again after an end."""
        self.last_number = 0
        self.last_order = 0
        self.last_event_ms = 0
        self.added: dict[bytes, int] = {}
        """How often each id was ever added."""
        self.deleted: dict[bytes, list[StoredJob]] = {}
        """Ids that were ever deleted, with the jobs; they may be used again when their tombstone is forgotten."""

    @property
    def last_seq(self) -> int:
        return self.events[-1].seq if self.events else self.oldest_cursor

    def job(self, job_id: bytes) -> StoredJob | None:
        number = self.numbers.get(job_id)
        return None if number is None else self.jobs[number]

    def lives(self, job_id: bytes) -> list[StoredJob]:
        """Return all jobs that ever had an id, as they are or were last."""
        job = self.job(job_id)
        return [*self.deleted.get(job_id, ()), *([] if job is None else [job])]

    def apply(self, record: Record) -> None:
        """Take one record in."""
        match record:
            case JobAdded():
                self._add(record)
            case JobChanged():
                self._change(record.job)
            case ResultAdded():
                assert record.number not in self.results, f"job {record.number} has two results"
                assert self.jobs[record.number].state == State.DONE
                self.results[record.number] = record.result
            case ResultDropped():
                assert self.jobs[record.number].state != State.DONE, (
                    f"the result of {record.number} is dropped"
                )
                self.retried.add(record.number)
                self.results.pop(record.number, None)
                self._drop_texts(record.number)
            case TextAdded():
                pieces = _unpack.decode(record.packed)
                assert len(pieces) == record.last - record.first + 1
                attempt = self.texts.setdefault(record.number, {}).setdefault(record.attempt, {})
                for offset, piece in enumerate(pieces):
                    old = attempt.setdefault(record.first + offset, piece)
                    assert old == piece, f"two texts at {record.number}/{record.attempt}"
                rows = self.text_rows.setdefault((record.number, record.attempt), [])
                rows.append((record.first, pieces))
                rows.sort(key=lambda row: row[0])
            case JobsDeleted():
                for number in record.numbers:
                    self._delete(number, record.until_ms)
            case TombstonesDropped():
                gone = {job_id for job_id, until in self.tombstones.items() if until <= record.until_ms}
                for job_id in gone:
                    del self.tombstones[job_id]
                for name, key in list(self.keys.items()):
                    if key.job_id in gone:
                        del self.keys[name]
            case EventsAdded():
                for event in record.events:
                    assert event.seq == self.last_seq + 1, f"event {event.seq} follows {self.last_seq}"
                    self.events.append(event)
                    self.last_event_ms = event.at_ms
            case UsageAdded():
                row = (record.day, record.user, record.model, record.task_type)
                self.usage.setdefault(row, Counter()).update(record.ended)
            case UsageDropped():
                raise AssertionError("no simulation lasts for years")
            case MetaSet():
                if record.value:
                    self.meta[record.name] = record.value
                else:
                    self.meta.pop(record.name, None)

    def _add(self, record: JobAdded) -> None:
        job = record.job
        assert job.id not in self.numbers, f"job {job.number} is there already"
        assert job.id not in self.tombstones, f"job {job.number} was deleted before"
        assert job.number > self.last_number, "numbers of arrival grow"
        assert len(record.payload) == job.payload_bytes
        self.last_number = job.number
        self.last_order = max(self.last_order, job.order)
        self.jobs[job.number] = job
        self.numbers[job.id] = job.number
        self.payloads[job.number] = record.payload
        self.added[job.id] = self.added.get(job.id, 0) + 1
        if job.terms.key:
            assert (job.user, job.terms.key) not in self.keys, f"key {job.terms.key} is taken"
            self.keys[job.user, job.terms.key] = StoredKey(job.user, job.terms.key, job.id, job.terms.digest)

    def _change(self, job: StoredJob) -> None:
        old = self.jobs[job.number]
        before, after = State(old.state), State(job.state)
        # Two moves of one turn leave one image each; a job may also pass through a state without an image.
        assert before == after or may_move(before, after) or before not in FINAL, f"{before} -> {after}"
        assert before is not State.DONE, f"job {job.number} was done and is {after}"
        assert (job.id, job.user, job.payload_bytes) == (old.id, old.user, old.payload_bytes)
        assert job.attempt >= old.attempt, f"job {job.number} goes back from attempt {old.attempt}"
        if after is State.EXPIRED:
            assert not job.started_at_ms, f"job {job.number} expired though it had started"
        self.jobs[job.number] = job
        self.last_order = max(self.last_order, job.order)
        self.ended.pop(job.number, None)
        if after in FINAL:
            assert before not in FINAL, f"job {job.number} ended twice"
            self.ended[job.number] = None
            self.ends[after] += 1

    def _delete(self, number: int, until_ms: int) -> None:
        job = self.jobs.pop(number)
        assert job.state in FINAL, f"{number} is {job.state} and deleted"
        del self.numbers[job.id], self.payloads[number], self.ended[number]
        self.results.pop(number, None)
        self._drop_texts(number)
        self.tombstones[job.id] = until_ms
        self.deleted.setdefault(job.id, []).append(job)

    def _drop_texts(self, number: int) -> None:
        for attempt in self.texts.pop(number, {}):
            del self.text_rows[number, attempt]

    def prune_events(self, keep: int) -> None:
        """Forget old events."""
        gone = len(self.events) - keep
        if gone > 0:
            self.oldest_cursor = self.events[gone - 1].seq
            self.pruned += self.events[:gone]
            del self.events[:gone]

    def memory(self) -> Memory:
        """Return all that a broker that starts is given."""
        stored = {
            job.number: (job.attempt, max(self.texts[job.number][job.attempt]))
            for job in self.jobs.values()
            if job.state not in FINAL and job.attempt in self.texts.get(job.number, {})
        }
        return Memory(
            meta=dict(self.meta),
            open_jobs=[job for job in self.jobs.values() if job.state not in FINAL],
            finished=[
                (job.id, job.number, job.user, job.state, job.priority)
                for job in map(self.jobs.__getitem__, self.ended)
            ],
            keys=list(self.keys.values()),
            tombstones=sorted(self.tombstones.items(), key=lambda each: each[1]),
            stored_text=stored,
            last_number=self.last_number,
            last_order=self.last_order,
            last_seq=self.last_seq,
            oldest_cursor=self.oldest_cursor,
            last_event_ms=self.last_event_ms,
            usage_rows=sorted(self.usage),
            usage_oldest_day=min(self.usage, default=(0,))[0],
        )

    # --- reads ---

    def read(self, request: ReadRequest) -> ReadReply:
        """Answer a read."""
        match request:
            case ReadJobs():
                return JobsReply([job for each in request.ids if (job := self.job(each)) is not None])
            case ReadList():
                return self._list(request)
            case ReadEnds():
                return self._ends(request)
            case ReadPayload():
                job = self.job(request.id)
                return PayloadReply(job, b"" if job is None else self.payloads[job.number])
            case ReadText():
                return self._text(request)
            case ReadEvents():
                return self._events(request)
            case ReadDue():
                due = [
                    job
                    for number in self.ended
                    if (job := self.jobs[number]).deletes_at_ms <= request.wall_ms
                ]
                return JobsReply(due[: request.limit])
            case ReadUsage():
                return self._usage(request)
            case CopyJournal():
                return CopyReply(len(self.jobs), "")

    def _usage(self, request: ReadUsage) -> UsageSums:
        ends: Counter[str] = Counter()
        for (day, user, _, _), row in self.usage.items():
            if request.first <= day <= request.last and request.user in ("", user):
                ends += row
        total = UsageRow(
            done=ends["done"], dead=ends["dead"], cancelled=ends["cancelled"], expired=ends["expired"]
        )
        return UsageSums([], total, more=False)

    def _list(self, request: ReadList) -> ListReply:
        found = [
            job
            for _, job in sorted(self.jobs.items(), reverse=not request.oldest_first)
            if (not request.user or job.user == request.user)
            and (
                not request.after
                or (job.number > request.after if request.oldest_first else job.number < request.after)
            )
            and _fits(job, request.match)
        ]
        return ListReply(found[: request.limit], len(found) > request.limit)

    def _ends(self, request: ReadEnds) -> EndsReply:
        ends: list[StoredEnd] = []
        missing: list[bytes] = []
        size = 0
        for job_id in request.ids:
            job = self.job(job_id)
            if job is None:
                missing.append(job_id)
                continue
            result = self.results.get(job.number, b"")
            if ends and size + len(result) > request.limit_bytes:
                break
            size += len(result)
            ends.append(StoredEnd(job, result))
        return EndsReply(ends, missing)

    def _text(self, request: ReadText) -> TextReply:
        job = self.job(request.id)
        if job is None or not self.texts.get(job.number):
            return TextReply(job, [], more=False)
        attempt = max(self.texts[job.number])
        begin = request.piece if attempt == request.attempt else 0
        texts: list[StoredText] = []
        size = 0
        for first, pieces in self.text_rows[job.number, attempt]:
            if first + len(pieces) <= begin + 1:
                continue
            if texts and size >= request.limit_bytes:
                return TextReply(job, texts, more=True)
            size += sum(max(1, len(piece.text)) for piece in pieces)
            texts.append(StoredText(attempt, first, pieces))
        return TextReply(job, texts, more=False)

    def _events(self, request: ReadEvents) -> EventsReply:
        cursor = request.cursor
        if cursor < 0:
            later = [event.seq for event in self.events if event.at_ms >= request.since_ms]
            cursor = later[0] - 1 if later else self.last_seq
            return EventsReply([], self.oldest_cursor, cursor)
        found = [event for event in self.events if event.seq > cursor][: request.limit]
        return EventsReply(found, self.oldest_cursor, cursor)


def _fits(job: StoredJob, match: JobFilter) -> bool:
    return (
        (not match.states or job.state in match.states)
        and (not match.user or job.user == match.user)
        and (not match.queue or job.queue == match.queue)
        and (not match.task_type or job.task_type == match.task_type)
        and (not match.key or job.terms.key == match.key)
        and all(job.terms.labels.get(name) == value for name, value in match.labels.items())
        and (not match.id_ending or ends_with(job.id, suffix_bounds(match.id_ending)))
    )


class Disk:
    """The one writer: takes all that waits, syncs it, says up to which position it is durable."""

    def __init__(self, world: World, *, sync_ms: int, slow: float) -> None:
        self.world = world
        self.tables = Tables()
        self.sync_ms = sync_ms
        self.slow = slow
        """How likely a sync takes seconds."""
        self.is_full = False
        self.durable = 0
        self.syncs = 0
        self.on_durable: Callable[[], None] = lambda: None
        self.on_full: Callable[[bool], None] = lambda _: None
        self._waiting: list[tuple[int, list[Record]]] = []
        self._syncing: list[tuple[int, list[Record]]] = []
        self._told_full = False
        self._life = 0

    def append(self, position: int, records: list[Record]) -> None:
        """Take the records of one turn."""
        last = (self._waiting or self._syncing or [(self.durable, [])])[-1][0]
        assert position > last, f"position {position} follows {last}"
        self._waiting.append((position, records))
        self._begin()

    def crash(self) -> None:
        """Forget what was not synced; what was being synced may have made it."""
        if self._syncing and not self.is_full and self.world.chance(0.5):
            self._write()
        self._life += 1
        self._waiting, self._syncing = [], []
        self.durable = 0
        self._told_full = False

    def _begin(self) -> None:
        if self._syncing or not self._waiting:
            return
        self._syncing, self._waiting = self._waiting, []
        self._try()

    def _try(self) -> None:
        if self.is_full and not self._told_full:
            self._told_full = True
            self.on_full(True)
        random = self.world.random
        wait_ms = random.randint(0, self.sync_ms)
        if self.is_full:
            wait_ms = 1000
        elif self.slow and self.world.raging and random.random() < self.slow:
            wait_ms = random.randint(200, 5000)
        life = self._life
        self.world.after(wait_ms, lambda: self._synced(life))

    def _synced(self, life: int) -> None:
        if life != self._life:
            return
        if self.is_full:
            self._try()
            return
        if self._told_full:
            self._told_full = False
            self.on_full(False)
        self._write()
        self.on_durable()
        if life == self._life:
            self._begin()

    def _write(self) -> None:
        for position, records in self._syncing:
            for record in records:
                self.tables.apply(record)
            self.durable = position
            summed = sum(self.tables.usage.values(), Counter[str]())
            assert summed == self.tables.ends, f"the sums are {summed} and the ends {self.tables.ends}"
        self.syncs += 1
        self._syncing = []
