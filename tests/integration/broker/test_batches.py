"""Commits of any number of jobs: each row is written as it was given, however many go in one statement."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest

from lmq_broker.core.chronicle import image
from lmq_broker.core.jobs import from_stored
from lmq_broker.core.records import JobAdded, JobChanged, Past, Record, ResultAdded, StoredJob, Terms
from lmq_broker.journal.errors import SqliteTooOld
from lmq_broker.journal.reader import payloads
from lmq_broker.journal.rows import Rows
from lmq_broker.journal.store import FILE, Journal

if TYPE_CHECKING:
    from pathlib import Path

WITHIN_S = 30.0
FIXED = (
    "number", "id", "user", "principal", "task_type", "created_at_ms", "payload_bytes",
)  # fmt: skip
"""What of a job never changes."""


def a_job(number: int, shift: int) -> StoredJob:
    """Return an open job in which no two whole numbers, and no two texts, are the same."""
    given: dict[str, object] = {}
    for at, field in enumerate(msgspec.structs.fields(StoredJob)):
        mark = 1000 * number + at + (0 if field.name in FIXED else shift)
        given[field.name] = f"{field.name}-{mark}" if field.type is str else mark
    given |= {
        "number": number,
        "id": number.to_bytes(16, "big"),
        "models": (f"m{number + shift}", "other"),
        "state": "ready" if shift else "delayed",
        "finished_at_ms": 0,
        "deletes_at_ms": 0,
        "result_bytes": 0,
        "terms": Terms(timeout_ms=number + shift, labels={"of": str(number)}),
        "past": Past(releases=number + shift),
    }
    return msgspec.convert(given, StoredJob)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 200])
def test_all_jobs_of_a_commit_come_back_as_they_were_last(tmp_path: Path, count: int) -> None:
    news = threading.Event()
    journal = Journal(tmp_path, news.set, events_kept=100)
    journal.start()
    numbers = range(1, count + 1)
    changed = [a_job(number, shift=500) for number in numbers]
    turns: list[list[Record]] = [
        [JobAdded(a_job(number, shift=0), b"payload %d" % number) for number in numbers],
        [*map(JobChanged, changed), *(ResultAdded(job.number, b"%d" % job.number) for job in changed)],
    ]
    for position, records in enumerate(turns, 1):
        journal.append(position, records)
        while journal.writer.durable < position:
            assert news.wait(WITHIN_S)
            news.clear()
    journal.close(WITHIN_S)
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        results = dict(connection.execute("SELECT number, result FROM results"))
        assert payloads(connection, list(numbers)) == {number: b"payload %d" % number for number in numbers}
    assert results == {number: b"%d" % number for number in numbers}
    again = Journal(tmp_path, news.set, events_kept=100)
    again.start()
    assert list(again.memory().open_jobs) == changed
    again.close(WITHIN_S)


def test_rows_are_written_in_their_order() -> None:
    """Of two with one key the later one stays, in one statement or in two."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v)")
        Rows("INSERT OR REPLACE INTO t VALUES {}", 2).write(connection, [(n % 7, n) for n in range(100)])
        assert sorted(connection.execute("SELECT v FROM t")) == [(n,) for n in range(93, 100)]


def test_an_image_has_each_field_of_its_job_in_its_place() -> None:
    """Both are made without naming the fields."""
    stored = a_job(7, shift=0)
    job = from_stored(stored)
    for name in set(StoredJob.__struct_fields__) & set(type(job).__struct_fields__):
        assert getattr(job, name) == getattr(stored, name), name
    ends = {"finished_at_ms": 8, "deletes_at_ms": 9, "result_bytes": 10}
    assert image(job, **ends) == msgspec.structs.replace(stored, **ends)


def test_a_sqlite_that_is_too_old_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.26.0")
    with pytest.raises(SqliteTooOld, match=r"SQLite 3\.26\.0, and 3\.33\.0 or later is needed"):
        Journal(tmp_path, lambda: None, events_kept=100)
