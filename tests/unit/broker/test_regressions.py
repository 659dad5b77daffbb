"""Bugs that were there once, each with the test that would have caught it."""

from __future__ import annotations

import pytest

from lmq_broker.core.effects import Read
from lmq_broker.core.reads import EventsReply, ReadEvents
from lmq_broker.core.settings import Settings
from lmq_proto.messages import Enlisted, Finished, HostLoad, LeaseRef, Stop, Subscribe, Target, Update
from lmq_proto.states import State
from unit.broker.builders import (
    EPOCH,
    a_broker,
    held,
    idle,
    instance,
    job_id,
    only,
    outcomes,
    ready,
    running,
    sent,
    spec,
    started,
)


def test_the_deadline_of_a_job_that_is_done_does_nothing() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    job = broker.job("a")
    broker.reports("w1", "a", "complete")
    assert job.lease is None, "a ring of job and lease would never be freed"
    broker.pass_time(611_000, hearing=["w1", "ann"])
    assert broker.kinds() == ["accepted", "started", "done"]


def test_a_job_is_released_and_starts_again_within_one_millisecond() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "release")
    assert started(broker.turn(), "w1") == ["a"]


def test_a_report_of_the_machines_load_alone_keeps_its_slots() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")], workers=[idle("w1")])
    broker.turn()
    broker.has_capacity("w1", instance(), host=HostLoad(cpu_ratio=0.5))
    broker.reports("w1", "a", "complete")
    assert started(broker.turn(), "w1") == ["b"]


def test_a_job_that_has_started_once_does_not_expire_in_its_backoff() -> None:
    broker = a_broker(jobs=[running("a", expires_ms=5000)], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", retry_after_ms=10_000)
    broker.pass_time(6000, hearing=["w1", "ann"])
    assert broker.job("a").state is State.DELAYED


def test_an_atomic_batch_that_contradicts_itself_is_refused_whole() -> None:
    broker = a_broker(clients=["ann"])
    batch = [spec("a", key="k", payload=b"1"), spec("b", key="k", payload=b"2")]
    found = outcomes(broker.submit("ann", *batch, payloads=[b"1", b"2"], atomic=True))
    assert [each.outcome for each in found] == ["refused", "refused"]
    assert not broker.state.jobs


def test_a_job_keeps_within_its_failures_when_they_are_lowered() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail")
    broker.says("ann", Update(request_id=1, target=Target(job_ids=[job_id("a")]), failures=1))
    broker.pass_time(2000, hearing=["w1", "ann"])


@pytest.mark.timeout(10)
def test_events_read_back_while_new_ones_wait_for_the_turns_end_do_not_spin() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(events_in_memory=1))
    for number in range(9):
        broker.submit("ann", spec(f"j{number}"))
        broker.turn()
    broker.says("ann", Subscribe(request_id=1, subscription_id=1, cursor=0))
    reads = [read.request for read in only(broker.turn(), Read) if isinstance(read.request, ReadEvents)]
    broker.submit("ann", spec("new"))
    broker.reads(reads[0], EventsReply(broker.events[:10], 0, 0))


def test_another_users_job_is_not_followed_by_its_id() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], clients=["tom"])
    broker.role("tom", "user")
    broker.submit("tom", spec("a"), follow=True)
    broker.reports("w1", "a", "complete", b"secret")
    assert not sent(broker.turn(), "tom", Finished)


def test_a_lease_that_was_stopping_when_its_worker_came_back_is_stopped_and_its_slot_freed() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    mine = held(broker, "a")
    broker.breaks("w1")
    broker.cancel("ann", "a")
    effects = broker.worker(idle("w1", held=[mine], request_id=2))
    assert sent(effects, "w1", Enlisted)[0].stop == []
    lease = LeaseRef(job_id=job_id("a"), epoch=EPOCH, attempt=1)
    assert [stop.leases for stop in sent(effects, "w1", Stop)] == [[lease]]
    assert not started(broker.turn(), "w1")
    broker.reports("w1", "a", "stopped", attempt=1, epoch=EPOCH)
    assert started(broker.turn(), "w1") == ["b"]
