"""kill -9 of broker, workers and clients under load, at moments that a seed chooses; then the books are audited."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest

import lmq
from conftest import eventually
from crash.audit import Audit, check_journal, last_cursor, standstill, wait_until_all_ended
from crash.ledger import Ledger
from crash.plans import Plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from crash.fleet import Fleet, Program

# How long the load may stand still after a kill, and all take to drain: generous, for a machine that is busy.
STILL_S = 90.0
DRAIN_S = 120.0

WORKERS = ("e1", "e2")
CLIENTS = ("anna", "ben")
SLOTS = "12"

# How many facts are told before the next kill: none at all, so that what has just begun is hit; or some, or many.
_GAPS = (0, 0, 1, 5, 30, 150, 500, 1500)
_WEIGHTS = {"broker": 50, "worker": 22, "client": 18, "tail": 6, "all": 4}


class Campaign:
    """A broker, two workers, two clients under load and a reader of events; and what is killed of them."""

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self.fleet = fleet
        self.chance = Random(seed)
        self.ledger = Ledger()
        self.epochs = 0
        self.worker_kills = 0
        self.deeds: list[str] = []
        self.broker = self.start_broker()
        self.broker.line("broker ready at")
        self.workers = {name: self.start_worker(name) for name in WORKERS}
        self.clients = {name: self.start_client(name) for name in CLIENTS}
        self.tail = self.start_tail()

    def start_broker(self) -> Program:
        self.epochs += 1
        return self.fleet.broker()

    def start_worker(self, name: str) -> Program:
        return self.fleet.worker(name, "--slots", SLOTS, heard=self.ledger.hear)

    def start_client(self, name: str) -> Program:
        again = [str(n) for n in self.ledger.unacknowledged(name) if self.has_key(name, n)]
        first = str(self.ledger.last_number(name) + 1)
        # One of them comes over TCP, the other over ipc, where the kernel says who it is.
        url = self.fleet.url if name == CLIENTS[0] else self.fleet.ipc
        return self.fleet.start(
            f"client {name}", "-m", "crash.client", url, name, first, *again, heard=self.ledger.hear
        )

    def start_tail(self) -> Program:
        cursor = str(self.ledger.last_seq())
        return self.fleet.start("tail", "-m", "crash.tail", self.fleet.url, cursor, heard=self.ledger.hear)

    @staticmethod
    def has_key(name: str, number: int) -> bool:
        return bool(Plan(name, number).key)

    def kill_one(self) -> None:
        """Wait for a moment, kill something, start it again."""
        gap = self.chance.choice(_GAPS)
        what = self.chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        which = self.chance.randrange(2)
        hit = self.chance.random() < 0.2
        self.deeds.append(f"after {gap} facts {what} {which}{' while it starts' if hit else ''}")
        self.go_on(gap)
        assert not (died := self.fleet.died()), "\n".join(died)
        if what in ("broker", "all"):
            self.kill_broker(while_it_starts=hit)
        if what in ("worker", "all"):
            name = WORKERS[which]
            self.workers[name].kill()
            self.worker_kills += 1
            self.workers[name] = self.start_worker(name)
        if what in ("client", "all"):
            name = CLIENTS[which]
            self.clients[name].kill()
            self.clients[name] = self.start_client(name)
        if what in ("tail", "all"):
            self.tail.kill()
            self.tail = self.start_tail()

    def go_on(self, facts: int) -> None:
        """Wait until so many more facts were told."""
        try:
            self.ledger.wait_for(facts, STILL_S)
        except pytest.fail.Exception as failure:
            assert not (died := self.fleet.died()), "\n".join([*self.deeds[-20:], *died])
            with lmq.Client(self.fleet.url, user="auditor", timeout_s=10) as q:
                deeds = "\n".join(self.deeds[-20:])
                pytest.fail(f"{failure}, at kill {len(self.deeds)}\n{standstill(q, self.fleet)}\n{deeds}")

    def kill_broker(self, *, while_it_starts: bool) -> None:
        self.broker.kill()
        self.broker = self.start_broker()
        if while_it_starts:
            # The lock names the process once the journal is open, and recovery comes next.
            lock = self.fleet.data / "broker.lock"
            broker = self.broker
            eventually(lambda: lock.read_text() == f"{broker.pid}\n", STILL_S, "the broker opens its journal")
            self.kill_broker(while_it_starts=False)

    def end(self) -> Audit:
        """Stop the faults and the load, let all drain, and hold what is there against what was told."""
        for client in self.clients.values():
            client.kill()
        ledger = self.ledger
        with lmq.Client(self.fleet.url, user="auditor") as q:
            wait_until_all_ended(q, self.fleet, DRAIN_S)
            last_seq = last_cursor(q)
            eventually(
                lambda: ledger.last_seq() >= last_seq, DRAIN_S, f"the reader of events to be at {last_seq}"
            )
            audit = Audit(ledger.book)
            audit.read(q)
            audit.every_acknowledged_job_has_one_final_state()
            audit.nothing_is_there_that_nobody_submitted_or_twice()
            audit.jobs_ended_as_they_should()
            audit.what_clients_were_told_stays_true()
            audit.every_result_is_that_of_its_payload(q)
            audit.sums_are_those_of_the_ends(q)
            assert q.health().epoch <= self.epochs
        audit.no_lease_was_given_twice()
        audit.events_are_gapless_and_tell_each_life_once(last_seq)
        audit.texts_are_never_spliced()
        if audit.cut_short > int(SLOTS) * self.worker_kills:
            audit.blame(f"{audit.cut_short} texts have no end, with {self.worker_kills} kills of workers")
        if died := self.fleet.died():
            audit.problems += died
        assert self.broker.terminate() == 0
        audit.problems += check_journal(self.fleet.data / "journal.sqlite3")
        return audit


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_whatever_is_killed(
    fleet: Fleet, kills: int, seed: int, record_property: Callable[[str, object], None]
) -> None:
    repeat = f"python -m pytest tests/crash/test_campaign.py --kills={kills} --seed={seed}"
    print(f"to repeat these kills: {repeat}")  # noqa: T201
    campaign = Campaign(fleet, seed)
    for _ in range(kills):
        campaign.kill_one()
    audit = campaign.end()
    record_property("jobs", len(audit.jobs))
    book = audit.book
    print(  # noqa: T201
        f"{kills} kills, {campaign.epochs} brokers, {len(audit.jobs)} jobs, {len(book.accepted)} acknowledged, "
        f"{len(book.leases)} leases, {len(book.events)} events, {len(book.texts)} texts read, "
        f"{audit.cut_short} of them cut short by the death of their worker"
    )
    assert not audit.problems, f"{audit.verdict()}\nto repeat: {repeat}\n" + "\n".join(campaign.deeds)
