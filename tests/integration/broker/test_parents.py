"""Jobs that wait for others, beside a real broker that is killed and reads its journal, and an echo worker."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest

import lmq
from conftest import eventually
from crash.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 45.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose broker the test starts and ends."""
    with Fleet(tmp_path) as fleet:
        yield fleet


def killed(fleet: Fleet) -> None:
    """Kill the broker and start it again."""
    broker = next(each for each in fleet.programs if each.name == "broker" and each.is_alive)
    broker.kill()
    fleet.ready_broker()


def test_a_blocked_job_waits_over_a_kill_and_starts_after_its_parents(fleet: Fleet) -> None:
    fleet.ready_broker()
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        first = lmq.draft("echo", {"n": 1}, queue="a")
        second = lmq.draft("echo", {"n": 2}, queue="b", depends_on=[first])
        jobs = q.submit_many([first, second, lmq.draft("echo", {"n": 3}, depends_on=[first, second])])
        killed(fleet)
        assert [job.status().state for job in jobs] == ["ready", "blocked", "blocked"]
        assert jobs[2].status().waits_for == [jobs[0].id, jobs[1].id]
        assert jobs[2].why().reasons[0].code == "parents"
        fleet.worker("e1")
        assert jobs[2].result(PATIENCE_S) == {"echo": {"n": 3}}
        kinds = ("started", "done", "ready")
        found = (event for event in q.events(since=0) if event.kind in kinds)
        told = [(event.kind, event.job_id) for event in islice(found, 8)]
        a, b, c = (job.id for job in jobs)
        assert told == [
            ("started", a), ("done", a), ("ready", b), ("started", b), ("done", b), ("ready", c), ("started", c),
            ("done", c),
        ]  # fmt: skip


def test_how_a_parent_ended_is_known_after_a_kill(fleet: Fleet) -> None:
    fleet.ready_broker()
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        fleet.worker("e1")
        done, dead = q.submit("echo", {"n": 1}), q.submit("echo", {"fail": "permanent"})
        waits = q.submit("echo", {"n": 2}, depends_on=[dead])
        with pytest.raises(lmq.JobCancelled, match="is dead"):
            waits.result(PATIENCE_S)
        done.wait(PATIENCE_S)
        killed(fleet)
        with pytest.raises(lmq.ParentEnded) as refused:
            q.submit("echo", depends_on=[dead])
        assert (refused.value.parent, refused.value.state) == (dead.id, "dead")
        with pytest.raises(lmq.NotFound):
            q.submit("echo", depends_on=["0" * 26])
        assert q.submit("echo", {"n": 3}, depends_on=[done]).result(PATIENCE_S) == {"echo": {"n": 3}}


def test_the_priority_of_a_child_is_that_of_its_parent_over_a_kill(fleet: Fleet) -> None:
    fleet.ready_broker()
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        parent = q.submit("echo", priority=2)
        child = q.submit("echo", priority=8, depends_on=[parent])
        assert q.submit("echo", depends_on=[parent]).status().priority == 2
        eventually(lambda: parent.status().priority == 8, PATIENCE_S, "the priority of the child")
        killed(fleet)
        assert (parent.status().priority, parent.status().own_priority) == (8, 2)
        child.cancel()
        eventually(lambda: parent.status().priority == 2, PATIENCE_S, "its own priority")
