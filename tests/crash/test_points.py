"""The broker dies at named points; whatever was on disk then, each job ends once and nobody was lied to."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lmq
from crash.audit import Audit, check_journal, last_cursor, wait_until_all_ended
from crash.ledger import Intent, Ledger
from crash.noting_worker import SPENT
from crash.plans import Plan
from lmq.drafts import draft

if TYPE_CHECKING:
    from crash.fleet import Fleet, Program

NAME = "anna"
JOBS = 120
WAVES = 3
WINDOW = 16
PATIENCE_S = 60.0
# Below the time a test has, so that a failure tells what is left.
DRAIN_S = 40.0
# A checkpoint takes some milliseconds; a kill may come too late for it.
TRIES = 5

# Where the shared memory of SQLite's log says how far a checkpoint came: frames copied, frames that were to be.
_BACKFILLED_AT = 96
_ATTEMPTED_AT = 128


class Story:
    """A broker that will die, its worker, and a client in this process whose books are kept."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.ledger = Ledger()
        self.q = lmq.Client(fleet.url, user=NAME, timeout_s=PATIENCE_S)

    def armed(self, point: str, nth: int = 1) -> Program:
        """Start a broker that dies at a point."""
        return self.fleet.broker(module="crash.points", arguments=[point, str(nth)])

    def worker(self) -> Program:
        return self.fleet.worker("e1", "--slots", "8", heard=self.ledger.hear)

    def submit(self, first: int, count: int) -> None:
        """Submit jobs one by one, some at a time, and note those that were acknowledged; over the broker's death."""
        book = self.ledger.book
        with self.q.pipeline(window=WINDOW) as pipeline:
            jobs = []
            for number in range(first, first + count):
                plan = Plan(NAME, number)
                one = draft("echo", plan.payload, **plan.options)
                book.intents[one.id] = Intent(NAME, number)
                jobs.append(pipeline.submit_draft(one))
        book.accepted.update({job.id: book.intents[job.id] for job in jobs})

    def after_death(self, broker: Program) -> set[str]:
        """Wait until the broker is dead, and return the ids of the jobs on its disk."""
        assert broker.wait() == -signal.SIGKILL, broker.said()
        broker.ended_by_us = True
        copy = self.fleet.folder / f"copy-{broker.pid}"
        shutil.copytree(self.fleet.data, copy)
        connection = sqlite3.connect(copy / "journal.sqlite3")
        try:
            return {bytes(job_id).hex() for (job_id,) in connection.execute("SELECT id FROM jobs")}
        finally:
            connection.close()

    def ends_well(self, broker: Program) -> Audit:
        """Let all jobs end, audit the books, and stop the broker."""
        wait_until_all_ended(self.q, self.fleet, DRAIN_S)
        audit = Audit(self.ledger.book)
        audit.read(self.q)
        last_seq = last_cursor(self.q)
        with self.q.events(since=0, timeout_s=30) as events:
            for event in events:
                epoch = event.detail.get("epoch")
                facts = [event.seq, event.kind, event.job_id, event.attempt, event.state, epoch]
                audit.book.events.append(["event", *facts])
                if event.seq >= last_seq:
                    break
        audit.every_acknowledged_job_has_one_final_state()
        audit.nothing_is_there_that_nobody_submitted_or_twice()
        audit.jobs_ended_as_they_should()
        audit.every_result_is_that_of_its_payload(self.q)
        audit.sums_are_those_of_the_ends(self.q)
        audit.no_lease_was_given_twice()
        audit.events_are_gapless_and_tell_each_life_once(last_seq)
        audit.problems += self.fleet.died()
        self.q.close()
        assert broker.terminate() == 0
        audit.problems += check_journal(self.fleet.data / "journal.sqlite3")
        return audit


@pytest.fixture
def story(fleet: Fleet) -> Story:
    return Story(fleet)


POINTS = [
    ("before:submit", 1),
    ("before:submit", 3),
    ("inside:submit", 2),
    ("after:submit", 1),
    ("after:submit", 4),
    ("before:text", 1),
    ("after:text", 1),
    ("before:result", 2),
    ("inside:result", 1),
    ("after:result", 3),
    ("reply:submitted", 1),
    ("told:submitted", 2),
    ("reply:work", 2),
    ("told:work", 1),
    ("reply:acked", 2),
    ("told:acked", 1),
    ("reply:finished", 1),
    ("reply:enlisted", 1),
    ("reply:welcome", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("point", "nth"), POINTS, ids=lambda value: str(value))
def test_each_job_ends_once_wherever_the_broker_dies(story: Story, point: str, nth: int) -> None:
    dying = story.armed(point, nth)
    story.worker()
    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(story.submit, 1, JOBS)
        story.after_death(dying)
        broker = story.fleet.ready_broker()
        submitting.result(PATIENCE_S)
    audit = story.ends_well(broker)
    assert len(audit.jobs) == JOBS
    assert not audit.problems, audit.verdict()


SUMMED_POINTS = [
    ("before:usage", 1),
    ("inside:usage", 1),
    ("inside:usage", 3),
    ("after:usage", 1),
    ("after:usage", 3),
    ("reply:acked", 2),
    ("told:acked", 1),
]


@pytest.mark.slow
@pytest.mark.parametrize(("point", "nth"), SUMMED_POINTS, ids=lambda value: str(value))
def test_each_end_and_its_tokens_are_summed_up_once_wherever_the_broker_dies(
    story: Story, point: str, nth: int
) -> None:
    dying = story.armed(point, nth)
    story.worker()

    def in_waves() -> None:
        """However many jobs share a commit, each wave has one of its own."""
        for wave in range(WAVES):
            numbers = range(wave, JOBS, WAVES)
            for job in story.q.submit_many([("echo", {"number": number}) for number in numbers]):
                assert job.wait(PATIENCE_S) == "done"

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(in_waves)
        story.after_death(dying)
        broker = story.fleet.ready_broker()
        working.result(PATIENCE_S)
    [row] = story.q.usage(by=["user", "task_type"]).rows
    assert (row.user, row.task_type) == (NAME, "echo")
    assert (row.done, row.dead, row.cancelled, row.expired) == (JOBS, 0, 0, 0)
    assert {name: getattr(row, name) for name in SPENT} == {name: JOBS * each for name, each in SPENT.items()}
    assert row.wait_p95_ms is not None
    story.q.close()
    assert broker.terminate() == 0


@pytest.mark.parametrize(("point", "is_there"), [("before", False), ("inside", False), ("after", True)])
def test_what_nobody_was_told_is_on_disk_whole_or_not_at_all(
    story: Story, point: str, is_there: bool
) -> None:
    dying = story.armed(f"{point}:submit")
    drafts = [draft("echo", {"number": number}) for number in range(40)]
    ids = {each.spec.id.hex() for each in drafts}
    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(story.q.submit_many, drafts)
        assert story.after_death(dying) == (ids if is_there else set())
        assert not submitting.done(), "a submit was acknowledged that a crash could undo"
        story.fleet.ready_broker()
        # The SDK sends it again, under the same ids: the same jobs, whether they were there or not.
        jobs = submitting.result(PATIENCE_S)
    assert {job.job_id.hex() for job in jobs} == ids
    assert story.q.health().jobs_open == len(ids)
    story.worker()
    for number, job in enumerate(jobs):
        assert job.result(timeout_s=PATIENCE_S) == {"echo": {"number": number}}
    story.q.close()


@pytest.mark.slow
def test_a_broker_that_dies_while_it_recovers_recovers_next_time(story: Story) -> None:
    broker = story.fleet.ready_broker()
    story.worker()
    story.submit(1, JOBS)
    broker.kill()
    first_epoch = story.q.health
    for point in ("recovered", "before:any", "inside:any", "after:any"):
        dying = story.armed(point)
        assert len(story.after_death(dying)) == JOBS
        assert "broker ready" not in dying.said()
    broker = story.fleet.ready_broker()
    # The first one and the one that died after its opening commit; the others left nothing behind.
    assert first_epoch().epoch == 3
    audit = story.ends_well(broker)
    assert not audit.problems, audit.verdict()


@pytest.mark.slow
def test_a_kill_during_a_checkpoint_loses_nothing(story: Story) -> None:
    acknowledged: dict[str, int] = {}
    filler = "x" * 500_000
    for _ in range(TRIES):
        dying = story.armed("checkpoint")
        dying.line("broker ready at")
        with ThreadPoolExecutor(1) as pool:
            submitting = pool.submit(_fill, story.q, filler, acknowledged)
            story.after_death(dying)
            caught = _is_in_checkpoint(story.fleet.data / "journal.sqlite3-shm")
            broker = story.fleet.ready_broker()
            submitting.result(PATIENCE_S)
        if caught:
            break
        broker.kill()
    else:
        pytest.fail(f"no kill out of {TRIES} fell into a checkpoint")
    jobs = {job_id: story.q.job(job_id) for job_id in acknowledged}
    assert len(story.q.jobs(limit=10_000)) == len(jobs)
    for job_id, size in acknowledged.items():
        payload = jobs[job_id].payload()
        assert isinstance(payload, dict)
        assert len(payload["x"]) == size
    story.q.close()
    assert broker.terminate() == 0
    assert not check_journal(story.fleet.data / "journal.sqlite3")


def _fill(q: lmq.Client, filler: str, acknowledged: dict[str, int]) -> None:
    """Submit more than the log holds before SQLite copies it into the journal, 32 MB."""
    for _ in range(10):
        for job in q.submit_many([("later", {"x": filler})] * 8):
            acknowledged[job.id] = len(filler)


def _is_in_checkpoint(shared: Path) -> bool:
    """Tell whether a checkpoint had begun to copy frames and had not ended."""
    data = shared.read_bytes()
    done, attempted = (struct.unpack_from("=I", data, at)[0] for at in (_BACKFILLED_AT, _ATTEMPTED_AT))
    return bool(attempted > done)
