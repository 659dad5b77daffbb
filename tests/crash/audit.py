"""After the faults: what the broker holds against what its clients, readers and workers were told."""

from __future__ import annotations

import signal
import sqlite3
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

import lmq
from conftest import eventually
from crash.plans import Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from crash.fleet import Fleet
    from crash.ledger import Book

# How a job of any kind may be killed by kills: its worker died under it twice while it ran alone.
_STRIKES = {"worker_died", "worker_lost"}

_ENDINGS = {"done", "dead", "cancelled", "expired"}
_PAGE = 1000
_SHOWN = 20


class Audit:
    """The books of one campaign, and what is wrong with them."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.problems: list[str] = []
        self.jobs: dict[str, lmq.JobStatus] = {}
        self.cut_short = 0
        """Texts of done jobs without their end: results outlive their worker in its spool, text does not."""

    def blame(self, what: str) -> None:
        self.problems.append(what)

    def verdict(self) -> str:
        """Return all that is wrong, or nothing."""
        more = len(self.problems) - _SHOWN
        return "\n".join([*self.problems[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])

    def read(self, q: lmq.Client) -> None:
        """Take in every job that the broker has."""
        self.jobs = {job.id: job for job in all_jobs(q)}

    # --- jobs ---

    def every_acknowledged_job_has_one_final_state(self) -> None:
        for job_id, intent in self.book.accepted.items():
            job = self.jobs.get(job_id)
            if job is None:
                self.blame(f"{job_id} was acknowledged to {intent.name} and is lost")
        for job in self.jobs.values():
            if not job.is_final:
                self.blame(f"{job.id} is {job.state} and will not end")

    def nothing_is_there_that_nobody_submitted_or_twice(self) -> None:
        for job_id in self.jobs:
            if job_id not in self.book.intents:
                self.blame(f"{job_id} was never submitted")
        keys = Counter((job.user, job.key) for job in self.jobs.values() if job.key)
        for (user, key), count in keys.items():
            if count > 1:
                self.blame(f"key {key} of {user} stands for {count} jobs")
        numbers = Counter(job.number for job in self.jobs.values())
        if max(numbers.values(), default=1) > 1:
            self.blame("two jobs have one arrival number")
        for fact in self.book.refused + self.book.trouble:
            self.blame(f"a client was told {fact}")

    def jobs_ended_as_they_should(self) -> None:
        for job_id, job in self.jobs.items():
            plan = self.plan(job_id)
            struck = sum(error.code in _STRIKES for error in job.story)
            if not plan.may_end(job.state) and not (job.state == "dead" and struck):
                codes = [error.code for error in job.story]
                self.blame(f"{job_id} ({plan.kind}) is {job.state}, its story is {codes}")
            # The first strike is told and not charged.
            if not len(job.story) - struck <= job.failures <= len(job.story):
                self.blame(f"{job_id} counts {job.failures} failures and tells of {len(job.story)}")
        for job_id in self.book.cancelled:
            if job_id in self.jobs and self.jobs[job_id].state != "cancelled":
                self.blame(f"{job_id} was said to be cancelled and is {self.jobs[job_id].state}")

    def what_clients_were_told_stays_true(self) -> None:
        for job_id, ends in self.book.ends.items():
            for state, result in ends:
                job = self.jobs.get(job_id)
                if job is None or job.state != state:
                    self.blame(f"{job_id} was told to be {state} and is {job.state if job else 'lost'}")
                if state == "done":
                    self.check_result(job_id, result)

    def every_result_is_that_of_its_payload(self, q: lmq.Client) -> None:
        """Fetch the results of all jobs that are done; a result is pushed once to each follower."""
        done = [job_id for job_id, job in self.jobs.items() if job.state == "done"]
        for start in range(0, len(done), _PAGE):
            handles = [q.job(job_id) for job_id in done[start : start + _PAGE]]
            for handle in q.as_completed(handles, timeout_s=60):
                handle.task_type = "echo"
                self.check_result(handle.id, handle.result())

    def check_result(self, job_id: str, result: object) -> None:
        wanted = {"echo": self.plan(job_id).payload}
        if result != wanted:
            self.blame(f"{job_id} has the result {result!r} instead of {wanted!r}")

    def plan(self, job_id: str) -> Plan:
        intent = self.book.intents.get(job_id) or self.book.accepted[job_id]
        return Plan(intent.name, intent.number)

    # --- sums ---

    def sums_are_those_of_the_ends(self, q: lmq.Client) -> None:
        """The daily sums of each user count each end that was told as an event, once."""
        told: dict[str, Counter[str]] = defaultdict(Counter)
        for _, _, kind, job_id, *_ in self.book.events:
            if kind in _ENDINGS and job_id in self.jobs:
                told[self.jobs[job_id].user][kind] += 1
        for row in q.usage(by="user").rows:
            summed = {state: getattr(row, state) for state in _ENDINGS}
            ends = told.pop(row.user, Counter())
            if summed != {state: ends[state] for state in _ENDINGS}:
                self.blame(f"the sums of {row.user} are {summed}, the ends {dict(ends)}")
        if told:
            self.blame(f"no sums of {', '.join(told)}")

    # --- leases ---

    def no_lease_was_given_twice(self) -> None:
        for (job_id, epoch, attempt), count in self.book.leases.items():
            if count > 1:
                self.blame(f"{job_id}: lease (epoch {epoch}, attempt {attempt}) was given {count} times")

    # --- events ---

    def events_are_gapless_and_tell_each_life_once(self, last_seq: int) -> None:
        expected = 1
        lives: dict[str, list[tuple[str, int]]] = defaultdict(list)
        epochs: list[int] = []
        for _, seq, kind, job_id, attempt, _state, epoch in self.book.events:
            if seq != expected:
                self.blame(f"event {seq} came where {expected} was due")
            expected = seq + 1
            if job_id:
                lives[job_id].append((kind, attempt))
            if kind == "broker_started":
                epochs.append(epoch)
        if expected - 1 != last_seq:
            self.blame(f"the events end at {expected - 1} instead of {last_seq}")
        if epochs != sorted(set(epochs)):
            self.blame(f"the epochs were {epochs}")
        if lives.keys() != self.jobs.keys():
            self.blame(f"events tell of {len(lives)} jobs, the broker has {len(self.jobs)}")
        for job_id, life in lives.items():
            kinds = Counter(kind for kind, _ in life)
            endings = [kind for kind, _ in life if kind in _ENDINGS]
            job = self.jobs.get(job_id)
            if kinds["accepted"] != 1 or life[0][0] != "accepted":
                self.blame(f"{job_id} was accepted {kinds['accepted']} times: {life}")
            if len(endings) != 1 or life[-1][0] != endings[0] or (job and job.state != endings[0]):
                self.blame(f"{job_id} ended as {endings}: {life}")
            attempts = [attempt for kind, attempt in life if kind == "started"]
            if attempts != list(range(1, len(attempts) + 1)):
                self.blame(f"{job_id} had the attempts {attempts}")

    # --- text ---

    def texts_are_never_spliced(self) -> None:
        """Pieces of an attempt come without gaps, of one lease only; a new attempt is announced."""
        for (job_id, reading), facts in self.book.texts.items():
            try:
                self.read_text(job_id, facts)
            except AssertionError as error:
                self.blame(f"text of {job_id} (reading {reading}): {error}; seen: {facts}")

    def read_text(self, job_id: str, facts: list[list[Any]]) -> None:
        attempt, number, content, is_over = 0, 0, "", False
        for fact in facts:
            match fact:
                case ["restart", new]:
                    assert new > attempt, f"restart from attempt {attempt} to {new}"
                    attempt, number, content, is_over = new, 0, "", False
                case ["final"]:
                    job = self.jobs.get(job_id)
                    if job is not None and job.state == "done":
                        pieces = self.plan(job_id).payload["pieces"]
                        self.cut_short += not is_over
                        assert not is_over or len(content.split()) == pieces, f"not {pieces} pieces"
                        assert attempt in (0, job.attempt), f"of attempt {attempt} instead of {job.attempt}"
                case [channel, of, count, text]:
                    assert number == 0 or of == attempt, f"attempt {of} follows {attempt} unannounced"
                    assert count == number + 1, f"piece {count} follows {number}"
                    attempt, number = of, count
                    is_over = channel == "end"
                    content += "" if is_over else text
        words = [tuple(map(int, word.split("."))) for word in content.split()]
        leases = {(epoch, of) for epoch, of, _ in words}
        assert len(leases) <= 1, f"of the leases {leases}"
        assert all(of == attempt for _, of in leases), f"of {leases}, said to be of attempt {attempt}"
        assert [word[2] for word in words] == list(range(1, len(words) + 1)), "words are missing or double"


def all_jobs(q: lmq.Client) -> Iterator[lmq.JobStatus]:
    """Give every job of the broker, oldest first."""
    after = 0
    while page := q.jobs(limit=_PAGE, after=after, oldest_first=True):
        yield from page
        after = page[-1].number


def open_jobs(q: lmq.Client) -> int:
    """Return how many jobs have not ended."""
    return sum(q.health().counts.values())


def wait_until_all_ended(q: lmq.Client, fleet: Fleet, within_s: float) -> None:
    """Return once no job is open; a failure says what is, who could run it, and what the processes said."""
    try:
        eventually(lambda: not open_jobs(q), within_s, "every job to end")
    except pytest.fail.Exception as failure:
        pytest.fail(f"{failure}\n{standstill(q, fleet)}")


def standstill(q: lmq.Client, fleet: Fleet) -> str:
    """Return how things stand when nothing goes on any more: jobs, workers, and what each process says."""
    lines = [repr(q.health())]
    left = [job for job in all_jobs(q) if not job.is_final]
    lines += [f"{len(left)} jobs are open, such as:", *(repr(job) for job in left[:5])]
    lines += [repr(worker) for worker in q.workers()]
    for program in fleet.programs:
        if program.is_alive:
            if program.name.startswith(("client", "tail")):
                program.send_signal(signal.SIGUSR1)
                program.line("most recent call first", 10)
            lines.append(f"{program.name} (pid {program.pid}) said: {program.said()[-3000:]}")
    return "\n".join(lines)


def last_cursor(q: lmq.Client) -> int:
    """Return the number of the newest event."""
    with q.events(last=1, timeout_s=30) as events:
        return next(events).seq


def check_journal(path: Path) -> list[str]:
    """Return what is wrong with a journal that no broker has open: SQLite's verdict, and rows that belong to none."""
    connection = sqlite3.connect(path)
    try:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
        for table in ("payloads", "results", "texts", "labels"):
            sql = f"SELECT count(*) FROM {table} WHERE number NOT IN (SELECT number FROM jobs)"
            found += _count(connection, f"rows of {table} without a job", sql)
        found += _count(
            connection, "results of jobs that are not done",
            "SELECT count(*) FROM results JOIN jobs USING (number) WHERE state != 'done'",
        )  # fmt: skip
        found += _count(
            connection, "done jobs without a result",
            "SELECT count(*) FROM jobs WHERE state = 'done' AND number NOT IN (SELECT number FROM results)",
        )  # fmt: skip
        found += _count(
            connection, "jobs without a payload",
            "SELECT count(*) FROM jobs WHERE number NOT IN (SELECT number FROM payloads)",
        )  # fmt: skip
    finally:
        connection.close()
    return found


def _count(connection: sqlite3.Connection, what: str, sql: str) -> Iterable[str]:
    count = connection.execute(sql).fetchone()[0]
    return [f"{count} {what}"] if count else []
