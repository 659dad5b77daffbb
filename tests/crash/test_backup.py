"""A backup under load, its restore as another broker's life, and a journal that an older version wrote."""

from __future__ import annotations

import gzip
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lmq
from conftest import eventually
from crash.audit import check_journal, wait_until_all_ended
from integration.broker.raw import RawPeer
from lmq_broker.journal.migrations import VERSION
from lmq_proto.ids import to_text
from lmq_proto.messages import (
    Acked,
    Ended,
    Held,
    Piece,
    Results,
    Text,
    TextReport,
    Work,
)

if TYPE_CHECKING:
    from crash.fleet import Fleet

PATIENCE_S = 45.0
JOURNAL = "journal.sqlite3"
DATA = Path(__file__).parent / "data"
SUMS_SINCE = 3
"""The version from which on a journal holds daily sums."""


def restore(fleet: Fleet, backup: Path) -> tuple[int, str]:
    """Run `lmq broker restore`; return its exit status and what it said."""
    said: list[str] = []
    program = fleet.start(
        "restore", "-m", "lmq_broker", "--data", str(fleet.data), "restore", str(backup), heard=said.append
    )
    program.ended_by_us = True
    status = program.wait()
    return status, "\n".join([*said, program.said()])


@pytest.mark.slow
def test_a_backup_under_load_holds_all_that_was_acknowledged_before_it(fleet: Fleet, tmp_path: Path) -> None:
    broker = fleet.ready_broker()
    fleet.worker("e1")
    copy = tmp_path / "monday.sqlite3"
    with lmq.Client(fleet.url, user="anna", timeout_s=PATIENCE_S) as q:
        with q.pipeline(window=200) as pipeline:
            before = [pipeline.submit("echo", {"n": n, "x": "x" * 2000}) for n in range(1500)]
            pipeline.flush()
            # More are on their way while the copy is made.
            during = [pipeline.submit("echo", {"n": n, "x": "x" * 2000}) for n in range(1500, 3000)]
            done = q.backup(str(copy))
        assert done.copied_bytes == copy.stat().st_size > 0
        assert not check_journal(copy)
        acknowledged = {job.id for job in before}
        life = q.health()
        wait_until_all_ended(q, fleet, PATIENCE_S)
    broker.terminate()

    status, said = restore(fleet, copy)
    assert status == 0, said
    assert "the old journal is" in said
    assert list(fleet.data.glob(f"{JOURNAL}.before-restore-*"))
    began_s = int(time.time()) - 100
    fleet.ready_broker()
    with lmq.Client(fleet.url, user="anna", timeout_s=PATIENCE_S) as q:
        # What had not ended in the copy runs (again) and ends.
        wait_until_all_ended(q, fleet, PATIENCE_S)
        restored = {job.id: job for job in q.jobs(limit=5000)}
        assert acknowledged <= restored.keys() <= acknowledged | {job.id for job in during}
        assert q.usage().total.done == len(restored)
        assert {job.state for job in restored.values()} == {"done"}
        health = q.health()
        assert health.broker_id != life.broker_id
        assert health.epoch > began_s > life.epoch
        for job in before[::100]:
            assert q.job(job.id).result(PATIENCE_S) is not None


def test_after_a_restore_no_result_or_text_of_the_old_life_counts(fleet: Fleet, tmp_path: Path) -> None:
    """A worker that slept through the restore offers the end of a lease that the new life never gave."""
    broker = fleet.ready_broker()
    copy = tmp_path / "copy"
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q, RawPeer(fleet.url) as worker:
        worker.enlist("sleeper", slots=2)
        leased_before = q.submit("echo", {"n": 1})
        first = worker.message(Work).groups[0].leases[0]
        eventually(lambda: leased_before.status().state == "leased", PATIENCE_S, "the lease")
        q.backup(str(copy))
        q.submit("echo", {"n": 2})
        lost = worker.message(Work).groups[0].leases[0]
    broker.kill()
    assert restore(fleet, copy)[0] == 0
    fleet.ready_broker()
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q, RawPeer(fleet.url) as worker:
        keys = [(first.job_id, first.epoch, first.attempt), (lost.job_id, lost.epoch, lost.attempt)]
        held = [Held(job_id=job, epoch=epoch, attempt=attempt, ended=True) for job, epoch, attempt in keys]
        enlisted = worker.enlist("sleeper", slots=1, held=held)
        # The first lease is in the copy, so the worker may go on with it; of the second nobody knows.
        assert to_text(lost.job_id) in {to_text(each.job_id) for each in enlisted.stop}
        pieces = [Piece(channel="content", text="of another life")]
        worker.send(
            TextReport(texts=[Text(job_id=lost.job_id, attempt=lost.attempt, first=1, pieces=pieces)])
        )
        ended = [
            Ended(job_id=job, epoch=epoch, attempt=attempt, outcome="complete", result_bytes=1)
            for job, epoch, attempt in keys
        ]
        stale_before = q.health().stale_results
        worker.send(Results(ended=ended), b"\x01\x02")
        acked = worker.message(Acked)
        assert {ref.job_id for ref in acked.leases} == {first.job_id, lost.job_id}
        assert q.health().stale_results > stale_before
        assert [job.id for job in q.jobs()] == [to_text(first.job_id)]


def test_a_lease_of_the_new_life_is_not_taken_for_one_of_the_old(fleet: Fleet, tmp_path: Path) -> None:
    """A copy from before the lease: the same job gets attempt 1 again, under another epoch."""
    broker = fleet.ready_broker()
    copy = tmp_path / "copy"
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q, RawPeer(fleet.url) as worker:
        job = q.submit("echo", {"n": 1})
        q.backup(str(copy))
        worker.enlist("early", slots=1)
        old = worker.message(Work).groups[0].leases[0]
    broker.kill()
    assert restore(fleet, copy)[0] == 0
    fleet.ready_broker()
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q, RawPeer(fleet.url) as worker:
        held = [Held(job_id=old.job_id, epoch=old.epoch, attempt=old.attempt)]
        enlisted = worker.enlist("early", slots=1, held=held)
        assert [each.epoch for each in enlisted.stop] == [old.epoch]
        new = worker.message(Work).groups[0].leases[0]
        assert (new.job_id, new.attempt) == (old.job_id, old.attempt)
        assert new.epoch > old.epoch
        late = Ended(job_id=old.job_id, epoch=old.epoch, attempt=old.attempt, outcome="complete")
        worker.send(Results(ended=[late]))
        worker.message(Acked)
        assert q.job(job.id).status().state == "leased"
        true = Ended(
            job_id=new.job_id, epoch=new.epoch, attempt=new.attempt, outcome="complete", result_bytes=1
        )
        worker.send(Results(ended=[true]), b"\x07")
        assert q.job(job.id).result(PATIENCE_S) == 7


def test_a_backup_that_cannot_be_written_is_refused_and_leaves_nothing(fleet: Fleet, tmp_path: Path) -> None:
    fleet.ready_broker()
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        q.submit("later")
        for path in (str(tmp_path / "no" / "such" / "folder"), str(tmp_path), "/" + "x" * 3000, "/nul\0byte"):
            with pytest.raises((lmq.BackupFailed, lmq.BadField)):
                q.backup(path)
        assert q.health().jobs_open == 1
    assert not list(tmp_path.glob("*.partial"))


def test_a_restore_is_refused_while_a_broker_runs_or_of_what_is_no_backup(
    fleet: Fleet, tmp_path: Path
) -> None:
    broker = fleet.ready_broker()
    copy = tmp_path / "copy"
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        q.submit("later")
        q.backup(str(copy))
    status, said = restore(fleet, copy)
    assert status == 1
    assert f"another broker (pid {broker.pid})" in said
    broker.terminate()
    before = (fleet.data / JOURNAL).read_bytes()

    garbage, newer, empty = tmp_path / "garbage", tmp_path / "newer", tmp_path / "empty"
    garbage.write_bytes(b"garbage" * 1000)
    empty.touch()
    newer.write_bytes(copy.read_bytes())
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    wrong = {
        garbage: "cannot be read",
        newer: "install a newer lmq",
        empty: "not a journal",
        tmp_path / "no": "no such",
    }
    for backup, word in wrong.items():
        status, said = restore(fleet, backup)
        assert status == 1
        assert word in said, said
        assert "Traceback" not in said
    assert (fleet.data / JOURNAL).read_bytes() == before
    fleet.ready_broker()
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        assert q.health().jobs_open == 1


# --- older versions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_a_journal_that_this_or_an_older_version_wrote_is_opened(fleet: Fleet, version: int) -> None:
    """A failure for the newest version means that its format has changed: that needs a new version and a migration.

    Before the first release, make the file anew: `python -m crash.make_journal tests/crash/data/journal-v1.sqlite3.gz`.
    """
    fleet.data.mkdir()
    packed = DATA / f"journal-v{version}.sqlite3.gz"
    (fleet.data / JOURNAL).write_bytes(gzip.decompress(packed.read_bytes()))
    broker = fleet.ready_broker()
    with lmq.Client(fleet.url, user="anna", timeout_s=PATIENCE_S) as q:
        jobs = {job.key: job for job in q.jobs()}
        summed = q.usage(by="user")
        if version >= SUMS_SINCE:
            [row] = summed.rows
            assert (row.user, row.done, row.dead, row.cancelled, row.expired) == ("anna", 2, 1, 1, 0)
            assert (row.prompt_tokens, row.output_tokens, row.engine_ms) == (30, 9, 2100)
            assert row.run_p95_ms is not None
        else:
            assert not summed.rows
        states = {key: job.state for key, job in jobs.items()}
        expected = {key: key for key in ("done", "dead", "cancelled", "leased", "ready", "delayed")}
        assert states == expected | {"paused": "ready"}
        assert q.job(jobs["done"].id).result(PATIENCE_S) == {"echo": {"n": 1}}
        assert "".join(q.job(jobs["done"].id).stream(timeout_s=PATIENCE_S)) == "Hello world"
        assert jobs["done"].labels == {"chat": "42"}
        assert len(jobs["dead"].story) == 1
        assert (jobs["ready"].priority, jobs["ready"].models) == (7, ["qwen3-8b", "llama"])
        assert q.job(jobs["leased"].id).payload() == {"n": 5}
        assert [queue.name for queue in q.queues() if queue.hold is not None] == ["paused"]
        # Keys are still known, that of the deleted job too.
        again = q.submit("echo", {"n": 6}, idempotency_key="ready")
        assert again.id == jobs["ready"].id
        with pytest.raises(lmq.IdempotencyConflict):
            q.submit("echo", {"n": "other"}, idempotency_key="deleted")
        with q.events(since=0, timeout_s=PATIENCE_S) as events:
            kinds = [next(events).kind for _ in range(3)]
        assert kinds[0] == "broker_started"
        # Its worker comes back as another process and knows nothing of the lease.
        fleet.worker("raw")
        q.resume(queue="paused")
        for key in ("leased", "ready", "paused"):
            assert q.job(jobs[key].id).wait(PATIENCE_S) == "done"
        assert q.usage().total.done == summed.total.done + 3
        assert q.job(jobs["leased"].id).status().attempt == 2
    assert broker.terminate() == 0
    assert not check_journal(fleet.data / JOURNAL)
    connection = sqlite3.connect(fleet.data / JOURNAL)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == VERSION
    connection.close()
