"""The reading thread: everything that is not in the broker's memory, over its own connection."""

import contextlib
import functools
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from peewee import SQL, SqliteDatabase, Value, fn

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
)
from lmq_broker.core.records import Past, StoredJob, Terms
from lmq_broker.journal import usage
from lmq_broker.journal.models import Jobs, Keys, Labels, connection_of
from lmq_proto import bounds
from lmq_proto.events import Event
from lmq_proto.ids import ends_with, suffix_bounds
from lmq_proto.messages import JobFilter, Piece

COLUMNS = (
    'number, id, user, principal, task_type, queue, priority, state, "order", created_at_ms, payload_bytes, models,'
    " prompt_tokens, output_tokens, due_at_ms, expires_at_ms, started_at_ms, finished_at_ms, deletes_at_ms, attempt,"
    " epoch, failures, worker, model, result_bytes, terms, past"
)
_FIELDS = tuple(getattr(Jobs, name.strip().strip('"')) for name in COLUMNS.split(","))
_decode_terms = msgspec.msgpack.Decoder(Terms).decode
_decode_past = msgspec.msgpack.Decoder(Past).decode
_pieces = msgspec.msgpack.Decoder(list[Piece]).decode
_events = msgspec.msgpack.Decoder(list[Event]).decode
_SQL_VARIABLES = 500
_SQL_INTEGER_MAX = 2**63 - 1
"""What peers send may be larger; nothing in the journal is."""

Row = tuple[Any, ...]
"""What SQLite gives: values of the columns' types, which no checker can see."""


class ReadPayloads(msgspec.Struct, frozen=True):
    """The shell's own question: payloads of jobs that are to be sent to a worker."""

    numbers: list[int]
    ticket: int = 0
    """By which the shell knows what it asked for."""


class PayloadsReply(msgspec.Struct, frozen=True):
    """Payloads by number."""

    payloads: dict[int, bytes]


class ReadFailed(msgspec.Struct, frozen=True):
    """The journal could not be read: the broker must exit and recover."""

    error: str


Question = ReadRequest | ReadPayloads
Answer = ReadReply | PayloadsReply | ReadFailed


class Reader:
    """Answers questions one after the other; `deliver` is called from the reading thread."""

    def __init__(
        self, database: SqliteDatabase, path: Path, deliver: Callable[[Question, Answer], None]
    ) -> None:
        self._database = database
        self._path = path
        self._deliver = deliver
        self._questions: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal-reader", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def ask(self, question: Question) -> None:
        """Put a question in line. All that the answer must show has to be durable by now."""
        self._questions.put(question)

    def close(self, within_s: float) -> bool:
        """End the thread after the present question; False if it did not end in time."""
        self._questions.put(None)
        if self._thread.ident is not None:
            self._thread.join(within_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        connection = connection_of(self._database)
        connection.create_function("id_ends", 3, _id_ends, deterministic=True)
        while (question := self._questions.get()) is not None:
            try:
                answer = self._answer(connection, question)
            except Exception as error:  # noqa: BLE001  # whatever it is: who asked would wait in vain for a dead thread
                answer = ReadFailed(f"{type(error).__name__}: {error}")
            self._deliver(question, answer)
        self._database.close()

    def _answer(self, connection: sqlite3.Connection, question: Question) -> Answer:
        match question:
            case ReadPayloads():
                return PayloadsReply(payloads(connection, question.numbers))
            case ReadJobs():
                return JobsReply(list(_jobs(connection, question.numbers)))
            case ReadList():
                return _page(connection, question)
            case ReadEnds():
                return _ends(connection, question)
            case ReadPayload():
                job = next(_jobs(connection, [question.number]), None)
                found = {} if job is None else payloads(connection, [job.number])
                return PayloadReply(job, found.get(job.number, b"") if job is not None else b"")
            case ReadText():
                return _text(connection, question)
            case ReadEvents():
                return _read_events(connection, question)
            case ReadDue():
                sql = f"SELECT {COLUMNS} FROM jobs WHERE deletes_at_ms > 0 AND deletes_at_ms <= ? LIMIT ?"
                rows = connection.execute(sql, (question.wall_ms, question.limit))
                return JobsReply([stored(row) for row in rows])
            case ReadUsage():
                return usage.read(connection, question)
            case CopyJournal():
                return copy_journal(connection, Path(question.path))


@functools.lru_cache(maxsize=4096)
def _terms(packed: bytes) -> Terms:
    """Return terms; jobs that asked for the same share one object, as they did before they were stored."""
    return _decode_terms(packed)


@functools.lru_cache(maxsize=256)
def _past(packed: bytes) -> Past:
    """Return a past; most jobs have none, and share it."""
    return _decode_past(packed)


def stored(row: Row) -> StoredJob:
    """Return the image that a row of `COLUMNS` holds."""
    head, models, tail = row[:11], row[11], row[12:25]
    names = tuple(models.split("\n")[:-1]) if models else ()
    values = (*head, names, *tail, _terms(row[25]), _past(row[26]))
    return StoredJob(*values)


def _jobs(connection: sqlite3.Connection, numbers: list[int]) -> Iterator[StoredJob]:
    """Yield the jobs that are there."""
    for start in range(0, len(numbers), _SQL_VARIABLES):
        part = numbers[start : start + _SQL_VARIABLES]
        marks = ",".join("?" * len(part))
        for row in connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE number IN ({marks})", part):
            yield stored(row)


def payloads(connection: sqlite3.Connection, numbers: list[int]) -> dict[int, bytes]:
    """Return payloads by number."""
    found: dict[int, bytes] = {}
    for start in range(0, len(numbers), _SQL_VARIABLES):
        part = numbers[start : start + _SQL_VARIABLES]
        marks = ",".join("?" * len(part))
        found.update(
            connection.execute(f"SELECT number, payload FROM payloads WHERE number IN ({marks})", part)
        )
    return found


def _page(connection: sqlite3.Connection, question: ReadList) -> ListReply:
    """Return a page of jobs by filter, and whether there are more."""
    query = Jobs.select(*_FIELDS)
    for condition in _conditions(question.match, question.user):
        query = query.where(condition)
    if question.after:
        after = min(question.after, _SQL_INTEGER_MAX)
        is_next = Jobs.number > after if question.oldest_first else Jobs.number < after
        query = query.where(is_next)
    query = query.order_by(Jobs.number if question.oldest_first else Jobs.number.desc()).limit(
        question.limit + 1
    )
    sql, values = query.sql()
    rows = connection.execute(sql, values).fetchall()
    return ListReply([stored(row) for row in rows[: question.limit]], len(rows) > question.limit)


def _conditions(match: JobFilter, user: str) -> Iterator[object]:
    """Yield what a filter asks for, as peewee conditions."""
    if user:
        yield Jobs.user == user
    if match.user:
        yield Jobs.user == match.user
    if match.states:
        yield Jobs.state.in_(match.states)
    if match.queue:
        yield Jobs.queue == match.queue
    if match.task_type:
        yield Jobs.task_type == match.task_type
    if match.worker:
        yield Jobs.worker == match.worker
    if match.model:
        # Line ends on both sides: a name is found as a whole, whatever its characters mean to LIKE.
        listed = fn.INSTR(Value("\n").concat(Jobs.models), f"\n{match.model}\n") > 0
        yield (Jobs.model == match.model) | listed
    if match.key:
        yield Jobs.id.in_(Keys.select(Keys.job_id).where(Keys.key == match.key))
    if len(match.labels) > bounds.LABELS:
        yield SQL("0")  # no job has so many, and SQLite's parser cannot take any number of conditions
        return
    for name, value in match.labels.items():
        yield fn.EXISTS(_sql_label(name, value))
    if match.id_ending:
        bits, ending = suffix_bounds(match.id_ending)
        yield fn.id_ends(Jobs.id, bits, str(ending))


def _sql_label(name: str, value: str) -> object:
    wanted = (Labels.name == name) & (Labels.value == value) & (Labels.number == Jobs.number)
    return Labels.select(Labels.number).where(wanted)


def _id_ends(job_id: bytes, bits: int, ending: str) -> bool:
    """Tell whether an id ends as typed; the ending is text because it may be longer than SQLite's integers."""
    return ends_with(job_id, (bits, int(ending)))


def _ends(connection: sqlite3.Connection, question: ReadEnds) -> EndsReply:
    """Return ended jobs with results, in the order asked, until the bytes are used up."""
    found = {job.id: job for job in _jobs(connection, question.numbers)}
    ends: list[StoredEnd] = []
    missing: list[bytes] = []
    used = 0
    for job_id in question.ids:
        job = found.get(job_id)
        if job is None:
            missing.append(job_id)
            continue
        if ends and used + job.result_bytes > question.limit_bytes:
            break
        used += job.result_bytes
        row = connection.execute("SELECT result FROM results WHERE number=?", (job.number,)).fetchone()
        ends.append(StoredEnd(job, row[0] if row is not None else b""))
    return EndsReply(ends, missing)


def _text(connection: sqlite3.Connection, question: ReadText) -> TextReply:
    """Return text after a cursor, of the latest attempt that has any."""
    job = next(_jobs(connection, [question.number]), None)
    if job is None:
        return TextReply(None, [], False)
    latest = connection.execute("SELECT max(attempt) FROM texts WHERE number=?", (job.number,)).fetchone()[0]
    if latest is None:
        return TextReply(job, [], False)
    piece = question.piece if latest == question.attempt else 0
    texts: list[StoredText] = []
    used = 0
    rows = connection.execute(
        "SELECT first, packed FROM texts WHERE number=? AND attempt=? AND last>? ORDER BY first",
        (job.number, latest, piece),
    )
    for first, packed in rows:
        if texts and used + len(packed) > question.limit_bytes:
            return TextReply(job, texts, True)
        used += len(packed)
        texts.append(StoredText(latest, first, _pieces(packed)))
    return TextReply(job, texts, False)


def _read_events(connection: sqlite3.Connection, question: ReadEvents) -> EventsReply:
    """Return events after a cursor, or the cursor that stands just before a time."""
    first = connection.execute("SELECT min(first) FROM events").fetchone()[0]
    oldest = first - 1 if first is not None else 0
    if question.cursor < 0:
        before = connection.execute(
            "SELECT max(last) FROM events WHERE at_ms<?", (min(question.since_ms, _SQL_INTEGER_MAX),)
        ).fetchone()[0]
        return EventsReply([], oldest, max(oldest, before or 0))
    found: list[Event] = []
    rows = connection.execute("SELECT packed FROM events WHERE last>? ORDER BY first", (question.cursor,))
    for (packed,) in rows:
        found.extend(event for event in _events(packed) if event.seq > question.cursor)
        if len(found) >= question.limit:
            break
    return EventsReply(found[: question.limit], oldest, question.cursor)


def copy_journal(connection: sqlite3.Connection, path: Path) -> CopyReply:
    """Write a whole copy beside the target, check it, and put it in place."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)
        target = sqlite3.connect(partial)
        try:
            connection.backup(target, pages=2048)
            verdict = target.execute("PRAGMA quick_check").fetchone()[0]
        finally:
            target.close()
        if verdict != "ok":
            return CopyReply(0, f"the copy is damaged: {verdict}")
        partial.replace(path)
        return CopyReply(path.stat().st_size, "")
    except (OSError, ValueError, sqlite3.Error) as error:
        # ValueError: a path that no file can have.
        with contextlib.suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)
        return CopyReply(0, str(error))
