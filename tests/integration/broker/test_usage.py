"""The table of daily sums in a real journal: added up over commits and restarts, read by any columns, page by page."""

from __future__ import annotations

import gzip
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crash.test_backup import DATA
from lmq_broker.core.histograms import Counts, quantile
from lmq_broker.core.reads import Context, ReadUsage, UsageSums
from lmq_broker.core.records import Record, UsageAdded, UsageDropped
from lmq_broker.journal.migrations import VERSION
from lmq_broker.journal.reader import Answer, Question, copy_journal
from lmq_broker.journal.store import FILE, Journal
from lmq_proto.messages import UsageRow

WITHIN_S = 30.0
DAY = 20_000
"""2024-10-04."""


class Kept:
    """A journal and what it says."""

    def __init__(self, folder: Path) -> None:
        self._news = threading.Event()
        self.journal = Journal(folder, self._news.set, events_kept=100)
        memory = self.journal.memory()
        self.rows = list(memory.usage_rows)
        self.oldest_day = memory.usage_oldest_day
        self._position = 0
        self.journal.start()

    def commit(self, *records: Record) -> None:
        """Hand over one turn's records and wait until they are on disk."""
        self._position += 1
        self.journal.append(self._position, list(records))
        self._until(lambda: self.journal.writer.durable >= self._position)

    def read(self, *by: str, first: int = 0, last: int = 1 << 40, **fields: Any) -> UsageSums:
        given: dict[str, Any] = {"user": "", "after": (), "limit": 1000}
        question = ReadUsage(Context(), first, last, by, **given | fields)
        self.journal.ask(question, self._position)
        answers: list[tuple[Question, Answer]] = []

        def came() -> bool:
            answers.extend(self.journal.poll())
            return bool(answers)

        self._until(came)
        [(asked, answer)] = answers
        assert asked is question
        assert isinstance(answer, UsageSums), answer
        return answer

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            assert self._news.wait(WITHIN_S)
            self._news.clear()


@contextmanager
def kept(folder: Path) -> Iterator[Kept]:
    opened = Kept(folder)
    try:
        yield opened
    finally:
        assert opened.journal.close()


def added(
    user: str = "ann", model: str = "m", task_type: str = "chat", day: int = DAY, **sums: Any
) -> UsageAdded:
    return UsageAdded(day, user, model, task_type, **sums)


def test_what_turns_add_is_added_up_over_commits_and_restarts(tmp_path: Path) -> None:
    some: Counts = {3: 2, 30: 1}
    first = added(
        ended={"done": 2, "dead": 1},
        prompt_tokens=5,
        output_tokens=7,
        engine_ms=900,
        waits=some,
        runs={40: 3},
    )
    with kept(tmp_path) as journal:
        # Several turns may share a commit; here two records of one row do.
        journal.commit(first, added(ended={"cancelled": 1}))
        journal.commit(first)
    with kept(tmp_path) as journal:
        assert journal.rows == [(DAY, "ann", "m", "chat")]
        assert journal.oldest_day == DAY
        journal.commit(added(ended={"expired": 4}, waits={3: 9}))
        sums = journal.read("day", "user", "model", "task_type")
    waits, runs = {3: 13, 30: 2}, {40: 6}
    assert sums.rows == [
        UsageRow(
            day="2024-10-04", user="ann", model="m", task_type="chat", done=4, dead=2, cancelled=1, expired=4,
            prompt_tokens=10, output_tokens=14, engine_ms=1800, wait_p50_ms=quantile(waits, 0.5),
            wait_p95_ms=quantile(waits, 0.95), run_p50_ms=quantile(runs, 0.5), run_p95_ms=quantile(runs, 0.95),
        )
    ]  # fmt: skip
    assert not sums.more


def test_rows_are_summed_by_any_columns_in_their_order(tmp_path: Path) -> None:
    with kept(tmp_path) as journal:
        assert journal.read("user") == UsageSums([], UsageRow(), more=False)
        journal.commit(
            added("tom", "a", engine_ms=1), added("ann", "b", engine_ms=2), added("ann", "a", day=DAY + 1, engine_ms=4),
            added("ann", "a", "embed", engine_ms=8),
        )  # fmt: skip

        def told(*by: str, **fields: Any) -> dict[tuple[str, ...], int]:
            rows = journal.read(*by, **fields).rows
            found = {tuple(getattr(row, name) for name in by): row.engine_ms for row in rows}
            assert len(found) == len(rows)
            assert list(found) == sorted(found)
            return found

        assert told("user") == {("ann",): 14, ("tom",): 1}
        assert told("model", "user") == {("a", "ann"): 12, ("a", "tom"): 1, ("b", "ann"): 2}
        assert told("day") == {("2024-10-04",): 11, ("2024-10-05",): 4}
        assert told() == {(): 15}
        assert told("task_type", user="ann") == {("chat",): 6, ("embed",): 8}
        assert told("day", first=DAY + 1) == {("2024-10-05",): 4}
        assert told("day", last=DAY) == {("2024-10-04",): 11}
        assert journal.read("user", user="nobody").rows == []
        assert journal.read("user", last=DAY).total == UsageRow(engine_ms=11)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
def test_pages_hold_every_row_once_and_the_same_total(tmp_path: Path, limit: int) -> None:
    users = [f"u{number:02}" for number in range(23)]
    with kept(tmp_path) as journal:
        # Not in the order of the users on disk: later days come last.
        for day, user in enumerate(reversed(users)):
            journal.commit(
                added(user, day=DAY + day, engine_ms=1), added(users[day], "n", day=DAY + day, engine_ms=1)
            )
        seen: list[str] = []
        after: tuple[str, ...] = ()
        more = True
        while more:
            page = journal.read("user", limit=limit, after=after)
            seen += [row.user for row in page.rows]
            assert all(row.engine_ms == 2 for row in page.rows)
            assert page.total.engine_ms == 46
            assert len(page.rows) <= limit
            more, after = page.more, (seen[-1],)
    assert seen == users


def test_days_are_dropped_and_the_rows_of_the_last_two_are_told_at_the_start(tmp_path: Path) -> None:
    with kept(tmp_path) as journal:
        journal.commit(*(added(day=DAY + number) for number in range(5)))
        journal.commit(UsageDropped(DAY + 1))
        assert [row.day for row in journal.read("day").rows] == ["2024-10-06", "2024-10-07", "2024-10-08"]
    with kept(tmp_path) as journal:
        assert journal.oldest_day == DAY + 2
        assert [day for day, *_ in journal.rows] == [DAY + 3, DAY + 4]


def test_a_copy_has_the_sums_too(tmp_path: Path) -> None:
    with kept(tmp_path / "a") as journal:
        journal.commit(added(engine_ms=7, waits={1: 2}))
        before = journal.read("user")
        connection = sqlite3.connect(tmp_path / "a" / FILE)
        (tmp_path / "b").mkdir()
        assert not copy_journal(connection, tmp_path / "b" / FILE).error
        connection.close()
    with kept(tmp_path / "b") as journal:
        assert journal.read("user") == before
        journal.commit(added(engine_ms=3))
        assert journal.read().total.engine_ms == 10


def schema(path: Path) -> dict[str, str]:
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == VERSION
        return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    finally:
        connection.close()


@pytest.mark.parametrize("version", range(1, VERSION))
def test_an_older_journal_gets_the_tables_of_a_new_one(tmp_path: Path, version: int) -> None:
    old = tmp_path / "old"
    old.mkdir()
    with gzip.open(DATA / f"journal-v{version}.sqlite3.gz") as packed, (old / FILE).open("wb") as file:
        shutil.copyfileobj(packed, file)
    with kept(old) as journal:
        assert journal.rows == []
        journal.commit(added(engine_ms=7))
        assert journal.read().total.engine_ms == 7
    with kept(tmp_path / "new"):
        pass
    assert schema(old / FILE) == schema(tmp_path / "new" / FILE)
    assert (old / f"{FILE}.v{version}").exists(), "a copy of the old one is kept"
