"""Payloads that are no longer in memory when their jobs are dispatched are read from the journal first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

import lmq
from crash.fleet import Fleet
from lmq_broker.core.effects import SendWork
from lmq_broker.core.records import JobAdded, JobChanged, Record, StoredJob
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import BrokerState
from lmq_broker.journal.reader import PayloadsReply, Question, ReadPayloads
from lmq_broker.journal.store import Journal
from lmq_broker.shell.door import Door
from lmq_broker.shell.notify import Notifier
from lmq_broker.shell.server import Server
from lmq_proto.codec import TO_PEER_TABLE
from lmq_proto.ids import PeerId
from lmq_proto.messages import Group, Lease, Work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

PATIENCE_S = 45.0
JOBS = 1500


@pytest.mark.parametrize("cache_bytes", [1, 2000, 50_000])
def test_each_job_gets_its_own_payload_wherever_it_was_kept(tmp_path: Path, cache_bytes: int) -> None:
    """With so little room some are here, some have to be read, and some of their jobs are cancelled meanwhile."""
    with Fleet(tmp_path) as fleet:
        broker = fleet.ready_broker(LMQ_BROKER_PAYLOAD_CACHE_BYTES=str(cache_bytes))
        fleet.worker("e1", "--slots", "8")
        fleet.worker("e2", "--slots", "8")
        with lmq.Client(fleet.url, user="anna", timeout_s=PATIENCE_S) as q:
            jobs = []
            with q.pipeline(window=50) as pipeline:
                for number in range(JOBS):
                    payload: lmq.Json = {
                        "number": number,
                        "x": "x" * (number % 97),
                        "delay_s": 0.001 * (number % 3),
                    }
                    jobs.append((payload, pipeline.submit("echo", payload)))
                    if number % 50 == 49:
                        q.cancel(*(job for _, job in jobs[-10:]))
            cancelled = 0
            for payload, job in jobs:
                try:
                    assert job.result(PATIENCE_S) == {"echo": payload}
                except lmq.JobCancelled:
                    cancelled += 1
            assert cancelled <= JOBS // 50 * 10
            assert not fleet.died()
        assert broker.terminate() == 0, broker.said()


# --- the shell alone --------------------------------------------------------------------------------------------------


class Shell:
    """A server without sockets and without a disk: what it asks and sends is kept, what it hears is said here."""

    def __init__(self) -> None:
        self.asked: list[ReadPayloads] = []
        self.answers: list[tuple[Question, PayloadsReply]] = []
        self.sent: list[tuple[list[bytes], bytes]] = []
        door = SimpleNamespace(send=self._sent)
        journal = SimpleNamespace(ask=lambda question, after: self.asked.append(question), poll=self._poll)
        self.server = Server(
            cast(Door, door), cast(Journal, journal), cast(BrokerState, SimpleNamespace(position=1)), Notifier("", 0),
            0, free_floor_bytes=0, payload_cache_bytes=1000, reread_settings=Settings, announce=print,
        )  # fmt: skip

    def knows(self, *records: Record) -> None:
        self.server._bodies.take_in(records)

    def dispatches(self, *numbers: int) -> None:
        groups = [Group(leases=[a_lease(number)]) for number in numbers]
        self.server._send_work(SendWork(PeerId(b"peer"), Work(groups=groups), list(numbers)))

    def reads(self, question: ReadPayloads, *gone: int) -> None:
        """Answer a question, but for the payloads of jobs that are gone."""
        found = {number: a_payload(number) for number in question.numbers if number not in gone}
        self.answers.append((question, PayloadsReply(found)))
        self.server._take_answers(now=None)  # type: ignore[arg-type]  # no answer here looks at the time

    def _poll(self) -> list[tuple[Question, PayloadsReply]]:
        answers, self.answers = self.answers, []
        return answers

    def _sent(self, peer: PeerId, frames: Sequence[bytes]) -> None:
        work, body = TO_PEER_TABLE.decode(frames)
        assert isinstance(work, Work)
        self.sent.append(([lease.job_id for group in work.groups for lease in group.leases], body))


def a_payload(number: int) -> bytes:
    return f"<{number}>".encode()


def a_job(number: int, state: str = "ready") -> StoredJob:
    return StoredJob(number, bytes([number]), "anna", "anna", "echo", "default", 5, state, number, 0, 3)


def a_lease(number: int) -> Lease:
    return Lease(job_id=bytes([number]), epoch=1, attempt=1, task_type="echo", payload_bytes=3)


def test_a_job_that_ends_while_another_payload_is_read_takes_nothing_from_the_message() -> None:
    shell = Shell()
    shell.knows(JobAdded(a_job(1), a_payload(1)))
    shell.dispatches(1, 2)
    assert [question.numbers for question in shell.asked] == [[2]]
    shell.knows(JobChanged(a_job(1, "cancelled")))
    shell.reads(shell.asked[0])
    assert shell.sent == [([b"\1", b"\2"], b"<1><2>")]


def test_answers_go_to_the_work_they_were_read_for_in_whatever_order_they_come() -> None:
    shell = Shell()
    shell.dispatches(1)
    shell.dispatches(2, 3)
    shell.reads(shell.asked[1])
    shell.reads(shell.asked[0])
    assert shell.sent == [([b"\2", b"\3"], b"<2><3>"), ([b"\1"], b"<1>")]


def test_the_lease_of_a_job_that_was_deleted_meanwhile_is_left_out() -> None:
    shell = Shell()
    shell.dispatches(1, 2)
    shell.reads(shell.asked[0], 1)
    assert shell.sent == [([b"\2"], b"<2>")]
    shell.dispatches(3)
    shell.reads(shell.asked[1], 3)
    assert len(shell.sent) == 1
