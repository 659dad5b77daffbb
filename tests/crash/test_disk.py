"""What a disk can do to a journal: a torn log, no room, too little room; a folder that is not for this broker."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import struct
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lmq
from conftest import eventually
from crash.audit import check_journal
from crash.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crash.fleet import Program

JOURNAL = "journal.sqlite3"
WAL = JOURNAL + "-wal"
PATIENCE_S = 45.0

_WAL_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


# --- a torn log -------------------------------------------------------------------------------------------------------


def commits_end_at(wal: Path) -> list[int]:
    """Return the offsets in SQLite's log behind each frame that ends a commit."""
    data = wal.read_bytes()
    page_bytes = struct.unpack_from(">I", data, 8)[0]
    ends = []
    at = _WAL_HEADER_BYTES
    while at + _FRAME_HEADER_BYTES + page_bytes <= len(data):
        pages_after = struct.unpack_from(">I", data, at + 4)[0]
        at += _FRAME_HEADER_BYTES + page_bytes
        if pages_after:
            ends.append(at)
    return ends


def job_numbers(journal: Path) -> list[int]:
    connection = sqlite3.connect(journal)
    try:
        return [row[0] for row in connection.execute("SELECT number FROM jobs ORDER BY number")]
    finally:
        connection.close()


def cut(wal: Path, at: int) -> None:
    os.truncate(wal, at)


def zero(wal: Path, at: int) -> None:
    data = wal.read_bytes()
    wal.write_bytes(data[:at] + bytes(len(data) - at))


def garble(wal: Path, at: int) -> None:
    data = wal.read_bytes()
    wal.write_bytes(data[:at] + bytes(byte ^ 0x5A for byte in data[at:]))


@pytest.fixture
def killed(fleet: Fleet) -> Fleet:
    """A fleet whose broker was killed with some commits in SQLite's log, none of them in the journal's own file."""
    broker = fleet.ready_broker()
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        for number in range(12):
            q.submit_many([("later", {"number": number, "x": "x" * 3000})] * 5)
    broker.kill()
    return fleet


@pytest.mark.parametrize("tear", [cut, zero, garble])
@pytest.mark.parametrize("commit", [-9, -4, -1])
def test_of_a_torn_log_all_is_kept_that_lies_before_the_tear(
    killed: Fleet, tear: Callable[[Path, int], None], commit: int, tmp_path: Path
) -> None:
    ends = commits_end_at(killed.data / WAL)
    whole = ends[commit]
    before = tmp_path / "before"
    shutil.copytree(killed.data, before)
    cut(before / WAL, whole)
    expected = job_numbers(before / JOURNAL)
    assert expected == list(range(1, len(expected) + 1))
    assert expected

    # Into the frames of the next commit, or, after the last, behind all that counts.
    following = ends[commit + 1] if commit != -1 else whole
    with (killed.data / WAL).open("ab") as log:
        log.write(bytes(5000))
    tear(killed.data / WAL, (whole + following) // 2 + 100)

    broker = killed.ready_broker()
    with lmq.Client(killed.url, timeout_s=PATIENCE_S) as q:
        assert [job.number for job in q.jobs(limit=1000, oldest_first=True)] == expected
        assert q.submit("later").status().number == len(expected) + 1
    assert broker.terminate() == 0
    assert not check_journal(killed.data / JOURNAL)


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "lmq-test", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount a tmpfs here: that needs root")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def cramped(small_disk: Path, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose journal lies on the small disk, with a ballast of 3 MB beside it."""
    (small_disk / "ballast").write_bytes(bytes(3_000_000))
    with Fleet(tmp_path / "fleet") as fleet:
        fleet.data = small_disk / "data"
        yield fleet


def is_answered_or_full(submit: Future[lmq.Job[lmq.Json]], broker: Program) -> bool:
    return submit.done() or "trouble=full" in broker.said()


def fill(
    broker: Program, q: lmq.Client, pool: ThreadPoolExecutor
) -> tuple[list[str], Future[lmq.Job[lmq.Json]]]:
    """Submit until the disk is full; return the ids of what was acknowledged, and the submit that was not."""
    acknowledged: list[str] = []
    while True:
        submit = pool.submit(q.submit, "later", {"x": "x" * 400_000})
        eventually(partial(is_answered_or_full, submit, broker), PATIENCE_S, "an answer, or a full disk")
        if not submit.done():
            return acknowledged, submit
        acknowledged.append(submit.result().id)


@pytest.mark.slow
def test_a_full_disk_loses_nothing_and_heals_by_itself(cramped: Fleet) -> None:
    broker = cramped.ready_broker(LMQ_BROKER_FREE_FLOOR_BYTES="0")
    with ThreadPoolExecutor(1) as pool, lmq.Client(cramped.url, timeout_s=PATIENCE_S) as q:
        acknowledged, held = fill(broker, q, pool)
        broker.line("trouble=full")
        assert broker.is_alive
        (cramped.data.parent / "ballast").unlink()
        # The batch that found no room was kept: its submit is acknowledged now, late but truly.
        acknowledged.append(held.result(PATIENCE_S).id)
        broker.line("trouble=none")
        acknowledged.append(q.submit("later", {"x": "small"}).id)
        assert sorted(job.id for job in q.jobs(limit=1000)) == sorted(acknowledged)
        assert q.health().disk_trouble == ""
    assert broker.terminate() == 0
    assert not check_journal(cramped.data / JOURNAL)


@pytest.mark.slow
def test_a_broker_killed_on_a_full_disk_and_started_there_has_all_that_it_acknowledged(
    cramped: Fleet,
) -> None:
    broker = cramped.ready_broker(LMQ_BROKER_FREE_FLOOR_BYTES="0")
    with ThreadPoolExecutor(1) as pool, lmq.Client(cramped.url, timeout_s=PATIENCE_S) as q:
        acknowledged, held = fill(broker, q, pool)
        broker.kill()
        broker = cramped.ready_broker(LMQ_BROKER_FREE_FLOOR_BYTES="0")
        (cramped.data.parent / "ballast").unlink()
        acknowledged.append(held.result(PATIENCE_S).id)
        assert sorted(job.id for job in q.jobs(limit=1000)) == sorted(acknowledged)


@pytest.mark.slow
def test_on_a_full_disk_submits_are_refused_and_reads_go_on(cramped: Fleet) -> None:
    broker = cramped.ready_broker(LMQ_BROKER_FREE_FLOOR_BYTES="0")
    with ThreadPoolExecutor(1) as pool, lmq.Client(cramped.url, timeout_s=PATIENCE_S) as q:
        acknowledged, held = fill(broker, q, pool)
        broker.line("trouble=full")
        health = q.health()
        assert health.disk_trouble == "full"
        assert health.journal_free_bytes < 1_000_000
        with pytest.raises(lmq.DiskFull) as refusal:
            q.submit("later", {})
        assert refusal.value.free_bytes < 1_000_000
        assert q.job(acknowledged[0]).status().state == "ready"
        assert q.job(acknowledged[0]).payload() == {"x": "x" * 400_000}
        assert set(acknowledged) <= {job.id for job in q.jobs(limit=1000)}
        (cramped.data.parent / "ballast").unlink()
        with contextlib.suppress(
            lmq.WaitTimeout
        ):  # it gave up before there was room again, or was accepted then
            held.result(PATIENCE_S)


@pytest.mark.slow
def test_under_the_floor_submits_are_refused_early_and_all_else_goes_on(cramped: Fleet) -> None:
    broker = cramped.ready_broker(LMQ_BROKER_FREE_FLOOR_BYTES="4000000")
    cramped.worker("e1")
    with lmq.Client(cramped.url, timeout_s=PATIENCE_S) as q:
        first = q.submit("echo", {"n": 1})
        assert first.result(PATIENCE_S) == {"echo": {"n": 1}}
        running = q.submit("echo", {"delay_s": 3.0})
        eventually(lambda: running.status().state == "leased", PATIENCE_S, "a job to run")
        (cramped.data.parent / "more").write_bytes(bytes(1_500_000))
        broker.line("trouble=low")
        with pytest.raises(lmq.DiskFull) as refusal:
            q.submit("echo", {"n": 2})
        assert refusal.value.free_bytes < refusal.value.floor_bytes == 4_000_000
        assert refusal.value.retry_after_s > 0
        assert q.health().disk_trouble == "low"
        assert first.status().state == "done"
        # What runs may end: its result is small, and the floor is there for it.
        assert running.result(PATIENCE_S) == {"echo": {"delay_s": 3.0}}
        (cramped.data.parent / "more").unlink()
        broker.line("trouble=none")
        assert q.submit("echo", {"n": 3}).result(PATIENCE_S) == {"echo": {"n": 3}}


# --- a folder that is not for this broker -----------------------------------------------------------------------------


def refused(fleet: Fleet) -> str:
    """Start a broker that must not start; return what it said."""
    broker = fleet.broker()
    assert broker.wait() == 75
    assert "Traceback" not in broker.said()
    return broker.said()


def test_a_second_broker_on_the_same_folder_is_refused(fleet: Fleet) -> None:
    first = fleet.ready_broker()
    with Fleet(fleet.folder / "second") as second:
        second.data = fleet.data
        said = refused(second)
        assert f"another broker (pid {first.pid})" in said
        assert "--data" in said
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        q.submit("later")


def test_a_broker_that_was_killed_does_not_keep_its_folder(fleet: Fleet) -> None:
    fleet.ready_broker().kill()
    fleet.ready_broker()


def test_a_journal_of_a_newer_lmq_is_refused_and_left_as_it_is(fleet: Fleet) -> None:
    fleet.ready_broker().terminate()
    connection = sqlite3.connect(fleet.data / JOURNAL)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = (fleet.data / JOURNAL).read_bytes()
    said = refused(fleet)
    assert "format 99" in said
    assert "install a newer lmq" in said
    assert (fleet.data / JOURNAL).read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database at all\n" * 500, b"SQLite format 3\0" + bytes(8176)])
def test_a_file_that_is_no_journal_is_refused_and_left_as_it_is(fleet: Fleet, content: bytes) -> None:
    fleet.data.mkdir()
    (fleet.data / JOURNAL).write_bytes(content)
    assert "cannot be read" in refused(fleet)
    assert (fleet.data / JOURNAL).read_bytes() == content


def test_a_database_of_something_else_is_refused_and_left_as_it_is(fleet: Fleet) -> None:
    fleet.data.mkdir()
    connection = sqlite3.connect(fleet.data / JOURNAL)
    connection.execute("CREATE TABLE recipes (name)")
    connection.commit()
    connection.close()
    assert "not a journal of lmq" in refused(fleet)
    connection = sqlite3.connect(fleet.data / JOURNAL)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    connection.close()


def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(fleet: Fleet) -> None:
    fleet.data.write_text("a file stands where the folder should be")
    assert str(fleet.data) in refused(fleet)
