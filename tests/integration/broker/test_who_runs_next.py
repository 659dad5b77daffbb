"""Who runs next over kill -9 of a real broker, and over the wire: limits, rates, the ledger, slots that are lent."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest

import lmq
from conftest import eventually
from crash.fleet import Fleet
from integration.broker.raw import RawPeer
from lmq_proto.messages import Acked, Ended, Heartbeat, Lease, PhaseReport, Phases, Results, Work

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crash.fleet import Program

PATIENCE_S = 45.0


class Tasks(RawPeer):
    """A worker of own tasks that runs none by itself: it says of each what the test says."""

    def leased(self, count: int) -> list[Lease]:
        """Return the next leases, so many; more of them at once is an error."""
        found: list[Lease] = []
        while len(found) < count:
            found += [lease for group in self.message(Work).groups for lease in group.leases]
        assert len(found) == count, [lease.task_type for lease in found]
        return found

    def ends(self, lease: Lease, *, engine_ms: int = 10) -> None:
        """Say that a task is done, and wait until that is on disk."""
        ended = Ended(
            job_id=lease.job_id,
            epoch=lease.epoch,
            attempt=lease.attempt,
            outcome="complete",
            engine_ms=engine_ms,
        )
        self.send(Results(ended=[ended]))
        self.message(Acked)

    def says(self, lease: Lease, phase: str) -> None:
        self.send(Phases(leases=[PhaseReport(job_id=lease.job_id, attempt=lease.attempt, phase=phase)]))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose broker the test starts and ends."""
    with Fleet(tmp_path) as fleet:
        yield fleet


def killed(own: Fleet, broker: Program) -> None:
    """Kill the broker and start it again."""
    broker.kill()
    own.ready_broker()


def test_limits_and_what_rates_have_given_hold_over_a_kill(own: Fleet) -> None:
    broker = own.ready_broker()
    with lmq.Client(own.url, timeout_s=PATIENCE_S) as q:
        q.set_limit("running", 2, task_type="train")
        q.set_limit("jobs", 3, per_s=3600, queue="gmail")
        for _ in range(5):
            q.submit("train", {})
            q.submit("mail", {}, queue="gmail")
        with Tasks(own.url) as worker:
            worker.enlist("w", slots=9, task_types=["train", "mail"])
            given = worker.leased(5)
        killed(own, broker)
        assert sorted(lease.task_type for lease in given) == ["mail"] * 3 + ["train"] * 2
        with Tasks(own.url) as worker:
            # It has nothing of what it was given: all of that is ready again, and what the rate gave is spent.
            worker.enlist("w", slots=9, task_types=["train", "mail"])
            again = worker.leased(2)
            assert [lease.task_type for lease in again] == ["train"] * 2
            worker.ends(again[0])
            assert [lease.task_type for lease in worker.leased(1)] == ["train"]
        told = {view.name: view.used for view in q.limits()}
        assert told["jobs queue=gmail"] == pytest.approx(3, abs=0.2)


def test_who_has_had_more_comes_later_over_a_kill(own: Fleet) -> None:
    broker = own.ready_broker()
    with (
        lmq.Client(own.url, user="ann", timeout_s=PATIENCE_S) as ann,
        lmq.Client(own.url, user="tom", timeout_s=PATIENCE_S) as tom,
        Tasks(own.url) as worker,
    ):
        worker.enlist("w", task_types=["train"])
        ann.submit("train", {})
        [long] = worker.leased(1)
        for _ in range(3):
            tom.submit("train", {})
        worker.ends(long, engine_ms=60_000)
        assert [lease.user for lease in worker.leased(1)] == ["tom"]
        for _ in range(3):
            ann.submit("train", {})

        def is_kept() -> bool:
            worker.send(Heartbeat())
            return ledger(own).get("ann", 0.0) >= 60_000

        eventually(is_kept, what="the ledger of ann on disk")
    killed(own, broker)
    with Tasks(own.url) as worker:
        worker.enlist("w", task_types=["train"])
        order = []
        for _ in range(6):
            [lease] = worker.leased(1)
            order.append(lease.user)
            worker.ends(lease)
    assert order == ["tom"] * 3 + ["ann"] * 3


def ledger(own: Fleet) -> dict[str, float]:
    """Return what the journal keeps of users' service, by user."""
    with closing(sqlite3.connect(f"file:{own.data / 'journal.sqlite3'}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT name, value FROM meta WHERE name LIKE 'ledger/tasks%'").fetchall()
    return {name.split("\t")[-1]: msgspec.msgpack.decode(value, type=float) for name, value in rows}


def test_a_task_that_waits_for_its_own_job_lends_it_the_slot(own: Fleet) -> None:
    own.ready_broker()
    with lmq.Client(own.url, timeout_s=PATIENCE_S) as q, Tasks(own.url) as worker:
        worker.enlist("w", task_types=["train"])
        q.submit("train", {})
        [parent] = worker.leased(1)
        child, other = (q.submit("train", {}) for _ in range(2))
        assert {each.status().state for each in (child, other)} == {"ready"}
        worker.says(parent, "parked")
        [given] = worker.leased(1)
        worker.says(parent, "writing")
        worker.ends(given)
        assert (child.status().state, other.status().state) == ("done", "ready"), "the slot is its own again"
        worker.ends(parent)
        assert [lease.job_id for lease in worker.leased(1)] != [given.job_id]
        assert other.status().state == "leased"
