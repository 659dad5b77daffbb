"""A journal in memory: applies the core's records, answers its reads, and gives back what a restart finds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from lmq_broker.core.reads import (
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
    ResultAdded,
    ResultDropped,
    StoredJob,
    TextAdded,
    TombstonesDropped,
    UsageAdded,
    UsageDropped,
)
from lmq_broker.core.recover import Memory, StoredKey
from lmq_proto.messages import Piece, UsageRow
from lmq_proto.states import FINAL

if TYPE_CHECKING:
    from lmq_broker.core.reads import ReadReply, ReadRequest
    from lmq_proto.events import Event


class FakeJournal:
    """All that was ever journaled, in plain dictionaries."""

    def __init__(self) -> None:
        self.jobs: dict[int, StoredJob] = {}
        self.payloads: dict[int, bytes] = {}
        self.results: dict[int, bytes] = {}
        self.texts: dict[int, dict[int, list[Piece]]] = {}
        self.events: list[Event] = []
        self.meta: dict[str, bytes] = {}
        self.tombstones: dict[bytes, int] = {}
        self.keys: dict[tuple[str, str], StoredKey] = {}
        self.usage: dict[tuple[int, str, str, str], Counter[str]] = {}
        """Ends by final state, and `waits` and `runs`, of each row of the daily sums."""
        self.last_number = 0
        self.last_order = 0

    def apply(self, record: Any) -> None:
        """Keep one record."""
        match record:
            case JobAdded():
                assert record.job.number not in self.jobs
                self.payloads[record.job.number] = record.payload
                self._keep(record.job)
                terms = record.job.terms
                if terms.key:
                    key = StoredKey(record.job.user, terms.key, record.job.id, terms.digest)
                    self.keys[record.job.user, terms.key] = key
            case JobChanged():
                self._keep(record.job)
            case ResultAdded():
                assert record.number not in self.results, "two results of one job"
                self.results[record.number] = record.result
            case ResultDropped():
                self.results.pop(record.number, None)
                self.texts.pop(record.number, None)
            case TextAdded():
                pieces = self.texts.setdefault(record.number, {}).setdefault(record.attempt, [])
                assert record.first == len(pieces) + 1, "a hole in the text"
                pieces += msgspec.msgpack.decode(record.packed, type=list[Piece])
                assert record.last == len(pieces)
            case JobsDeleted():
                for number in record.numbers:
                    self.tombstones[self.jobs.pop(number).id] = record.until_ms
                    self.results.pop(number, None)
                    self.texts.pop(number, None)
            case TombstonesDropped():
                self.tombstones = {
                    key: until for key, until in self.tombstones.items() if until > record.until_ms
                }
            case EventsAdded():
                for event in record.events:
                    assert event.seq == len(self.events) + 1
                    self.events.append(event)
            case UsageAdded():
                row = self.usage.setdefault(
                    (record.day, record.user, record.model, record.task_type), Counter()
                )
                row += Counter(record.ended)
                row["waits"] += sum(record.waits.values())
                row["runs"] += sum(record.runs.values())
            case UsageDropped():
                self.usage = {key: row for key, row in self.usage.items() if key[0] > record.day}
            case MetaSet():
                if record.value:
                    self.meta[record.name] = record.value
                else:
                    self.meta.pop(record.name, None)
            case _:
                raise AssertionError(f"not a record: {record}")

    def _keep(self, job: StoredJob) -> None:
        self.jobs[job.number] = job
        self.last_number = max(self.last_number, job.number)
        self.last_order = max(self.last_order, job.order)

    def answer(self, request: ReadRequest) -> ReadReply:
        """Return what the reading thread would."""
        by_id = {job.id: job for job in self.jobs.values()}
        match request:
            case ReadJobs():
                return JobsReply([by_id[job_id] for job_id in request.ids if job_id in by_id])
            case ReadList():
                found = [job for _, job in sorted(self.jobs.items()) if job.state in request.match.states]
                found = [job for job in found if not request.user or job.user == request.user]
                return ListReply(found[: request.limit], more=len(found) > request.limit)
            case ReadEnds():
                there = [by_id[job_id] for job_id in request.ids if job_id in by_id]
                missing = [job_id for job_id in request.ids if job_id not in by_id]
                return EndsReply(
                    [StoredEnd(job, self.results.get(job.number, b"")) for job in there], missing
                )
            case ReadPayload():
                job = by_id.get(request.id)
                return PayloadReply(job, self.payloads[job.number] if job is not None else b"")
            case ReadText():
                job = by_id.get(request.id)
                texts = self.texts.get(job.number, {}) if job is not None else {}
                last = max(texts, default=0)
                given = [StoredText(last, 1, texts[last])] if last >= request.attempt and last else []
                return TextReply(job, given, more=False)
            case ReadEvents():
                cursor = request.cursor
                if cursor < 0:
                    cursor = sum(event.at_ms < request.since_ms for event in self.events)
                    return EventsReply([], 0, cursor)
                return EventsReply(self.events[cursor : cursor + request.limit], 0, cursor)
            case ReadDue():
                due = [
                    job
                    for job in self.jobs.values()
                    if job.state in FINAL and job.deletes_at_ms <= request.wall_ms
                ]
                return JobsReply(due[: request.limit])
            case ReadUsage():
                total = sum(self.usage.values(), Counter())
                return UsageSums([], UsageRow(done=total["done"], dead=total["dead"]), more=False)
            case _:
                return CopyReply(1, "")

    def memory(self, wall_ms: int) -> Memory:
        """Return what a broker that starts now finds."""
        open_jobs = [job for _, job in sorted(self.jobs.items()) if job.state not in FINAL]
        stored = {
            job.number: (job.attempt, len(self.texts.get(job.number, {}).get(job.attempt, [])))
            for job in open_jobs
        }
        return Memory(
            meta=dict(self.meta), open_jobs=open_jobs,
            finished=[
                (job.id, job.number, job.user, job.state, job.priority)
                for job in self.jobs.values()
                if job.state in FINAL
            ],
            keys=list(self.keys.values()), tombstones=list(self.tombstones.items()), stored_text=stored,
            last_number=self.last_number, last_order=self.last_order, last_seq=len(self.events),
            oldest_cursor=0, last_event_ms=self.events[-1].at_ms if self.events else 0,
            usage_rows=sorted(self.usage)[-3:], usage_oldest_day=min(self.usage, default=(0,))[0],
        )  # fmt: skip
