"""The records of one commit, gathered so that each table is written once: the last image of a job wins."""

from sqlite3 import Connection
from typing import assert_never

import msgspec

from lmq_broker.core.records import (
    NO_PAST,
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
from lmq_broker.journal import usage
from lmq_broker.journal.rows import Rows
from lmq_proto.events import Event

_INSERT_JOB = Rows("INSERT INTO jobs VALUES {}", 27)
_INSERT_PAYLOAD = Rows("INSERT INTO payloads VALUES {}", 2)
_INSERT_RESULT = Rows("INSERT OR REPLACE INTO results VALUES {}", 2)
_MAY_CHANGE = (
    "queue", "priority", "state", "order", "models", "due_at_ms", "expires_at_ms", "started_at_ms", "finished_at_ms",
    "deletes_at_ms", "attempt", "epoch", "failures", "worker", "model", "result_bytes", "prompt_tokens",
    "output_tokens", "terms", "past",
)  # fmt: skip
_UPDATE_JOB = Rows(
    "UPDATE jobs SET "
    + ", ".join(f'"{column}"=new.column{at}' for at, column in enumerate(_MAY_CHANGE, 1))
    + f" FROM (VALUES {{}}) AS new WHERE jobs.number=new.column{len(_MAY_CHANGE) + 1}",
    len(_MAY_CHANGE) + 1,
)
_encode = msgspec.msgpack.Encoder().encode
_NO_PAST = _encode(NO_PAST)


class Batch:
    """Records on their way into one commit."""

    def __init__(self) -> None:
        self.position = 0
        self.records = 0
        self._added: dict[int, StoredJob] = {}
        self._payloads: list[tuple[int, bytes]] = []
        self._changed: dict[int, StoredJob] = {}
        self._results: dict[int, bytes] = {}
        self._dropped: list[tuple[int]] = []
        self._texts: list[tuple[int, int, int, int, bytes]] = []
        self._deleted: list[JobsDeleted] = []
        self._forgotten_ms = 0
        self._meta: dict[str, bytes] = {}
        self._events: list[Event] = []
        self._usage: list[UsageAdded] = []
        self._usage_dropped: list[tuple[int]] = []

    @property
    def last_seq(self) -> int:
        """The seq of the last event in here; 0 if there is none."""
        return self._events[-1].seq if self._events else 0

    def add(self, position: int, records: list[Record]) -> None:
        """Take in the records of one turn of the broker."""
        self.position = position
        self.records += len(records)
        for record in records:
            self._take(record)

    def _take(self, record: Record) -> None:
        match record:
            case JobChanged(job):
                known = self._added if job.number in self._added else self._changed
                known[job.number] = job
            case JobAdded(job, payload):
                self._added[job.number] = job
                self._payloads.append((job.number, payload))
            case EventsAdded(events):
                self._events.extend(events)
            case ResultAdded(number, result):
                self._results[number] = result
            case TextAdded(number, attempt, first, last, packed):
                self._texts.append((number, attempt, first, last, packed))
            case ResultDropped(number):
                self._results.pop(number, None)
                self._texts = [text for text in self._texts if text[0] != number]
                self._dropped.append((number,))
            case JobsDeleted():
                self._deleted.append(record)
            case TombstonesDropped(until_ms):
                self._forgotten_ms = max(self._forgotten_ms, until_ms)
            case MetaSet(name, value):
                self._meta[name] = value
            case UsageAdded():
                self._usage.append(record)
            case UsageDropped(day):
                self._usage_dropped.append((day,))
            case _:
                assert_never(record)

    def write(self, connection: Connection) -> None:
        """Put everything into the open transaction of a connection."""
        many = connection.executemany
        if self._added:
            # Jobs that ask for nothing special share their terms, which are encoded once.
            terms: dict[int, bytes] = {}
            _INSERT_JOB.write(connection, [_row(job, terms) for job in self._added.values()])
            _INSERT_PAYLOAD.write(connection, self._payloads)
            labelled = [job for job in self._added.values() if job.terms.labels]
            if labelled:
                many("INSERT OR IGNORE INTO labels VALUES (?,?,?)", _labels(labelled))
            keyed = [
                (job.user, job.terms.key, job.id, job.terms.digest)
                for job in self._added.values()
                if job.terms.key
            ]
            if keyed:
                many("INSERT OR REPLACE INTO keys VALUES (?,?,?,?)", keyed)
        if self._changed:
            _UPDATE_JOB.write(connection, [_changes(job) for job in self._changed.values()])
            labelled = [job for job in self._changed.values() if job.terms.labels]
            if labelled:
                many("INSERT OR IGNORE INTO labels VALUES (?,?,?)", _labels(labelled))
        if self._dropped:
            many("DELETE FROM results WHERE number=?", self._dropped)
            many("DELETE FROM texts WHERE number=?", self._dropped)
        if self._results:
            _INSERT_RESULT.write(connection, list(self._results.items()))
        if self._texts:
            many("INSERT OR REPLACE INTO texts VALUES (?,?,?,?,?)", self._texts)
        if self._usage:
            usage.add(connection, self._usage)
        self._write_rare(connection)
        if self._events:
            first, last = self._events[0], self._events[-1]
            row = (first.seq, last.seq, last.at_ms, _encode(self._events))
            connection.execute("INSERT INTO events VALUES (?,?,?,?)", row)

    def _write_rare(self, connection: Connection) -> None:
        for deleted in self._deleted:
            numbers = [(number,) for number in deleted.numbers]
            connection.executemany(
                "INSERT OR REPLACE INTO tombstones SELECT id, ? FROM jobs WHERE number=?",
                [(deleted.until_ms, number) for number in deleted.numbers],
            )
            for table in ("jobs", "payloads", "results", "texts", "labels"):
                connection.executemany(f"DELETE FROM {table} WHERE number=?", numbers)
        if self._forgotten_ms:
            old = (self._forgotten_ms,)
            connection.execute(
                "DELETE FROM keys WHERE job_id IN (SELECT job_id FROM tombstones WHERE until_ms<=?)", old
            )
            connection.execute("DELETE FROM tombstones WHERE until_ms<=?", old)
        if self._usage_dropped:
            connection.executemany("DELETE FROM usage WHERE day<=?", self._usage_dropped)
        for name, value in self._meta.items():
            if value:
                connection.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (name, value))
            else:
                connection.execute("DELETE FROM meta WHERE name=?", (name,))


def _row(job: StoredJob, encoded: dict[int, bytes]) -> tuple[object, ...]:
    """Return a job as a row of its table; `encoded` holds the terms of earlier rows, by identity."""
    terms = encoded.get(id(job.terms))
    if terms is None:
        terms = encoded[id(job.terms)] = _encode(job.terms)
    return (
        job.number, job.id, job.user, job.principal, job.task_type, job.queue, job.priority, job.state, job.order,
        job.created_at_ms, job.payload_bytes, _lines(job.models), job.prompt_tokens,
        job.output_tokens, job.due_at_ms, job.expires_at_ms, job.started_at_ms, job.finished_at_ms,
        job.deletes_at_ms, job.attempt, job.epoch, job.failures, job.worker, job.model, job.result_bytes,
        terms, _past(job),
    )  # fmt: skip


def _lines(models: tuple[str, ...]) -> str:
    return "".join([model + "\n" for model in models]) if models else ""


def _changes(job: StoredJob) -> tuple[object, ...]:
    """Return the columns of a job that may change."""
    return (
        job.queue, job.priority, job.state, job.order, _lines(job.models), job.due_at_ms,
        job.expires_at_ms, job.started_at_ms, job.finished_at_ms, job.deletes_at_ms, job.attempt, job.epoch,
        job.failures, job.worker, job.model, job.result_bytes, job.prompt_tokens, job.output_tokens,
        _encode(job.terms), _past(job), job.number,
    )  # fmt: skip


def _past(job: StoredJob) -> bytes:
    past = job.past
    return _NO_PAST if past is NO_PAST or past == NO_PAST else _encode(past)


def _labels(jobs: list[StoredJob]) -> list[tuple[str, str, int]]:
    return [(name, value, job.number) for job in jobs for name, value in job.terms.labels.items()]
