"""What time brings about: delays that are over, expiry, retention, and clocks that jump."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Log, Read, WakeAt
from lmq_broker.core.reads import JobsReply, ReadDue, ReadJobs
from lmq_broker.core.records import JobChanged, JobsDeleted, TombstonesDropped
from lmq_broker.core.settings import Settings
from lmq_proto import bounds
from lmq_proto.messages import Finished, Health, HealthReply, Target, Update
from lmq_proto.states import State
from unit.broker.builders import (
    WALL_MS,
    Broker,
    a_broker,
    a_memory,
    idle,
    job_id,
    only,
    outcomes,
    ready,
    running,
    sent,
    spec,
    started,
)

HOUR_MS = 3_600_000


def wake_ms(broker: Broker, after_ms: int = 0) -> int:
    """Return in how many milliseconds the broker wants to be woken."""
    return only(broker.turn(after_ms), WakeAt)[-1].mono_ms - broker.mono_ms


# --- delayed ----------------------------------------------------------------------------------------------------------


def test_a_delayed_job_becomes_ready_in_its_time() -> None:
    broker = a_broker(jobs=[ready("a", delay_ms=5000)], workers=[idle("w1")])
    assert not started(broker.pass_time(4999, hearing=["w1"]), "w1")
    assert started(broker.turn(1), "w1") == ["a"]
    assert broker.kinds() == ["accepted", "ready", "started"]


def test_the_broker_wakes_for_what_comes_first() -> None:
    broker = a_broker(
        jobs=[ready("a", delay_ms=700), ready("b", expires_ms=400), ready("c", delay_ms=90_000)]
    )
    assert wake_ms(broker) == 400
    assert wake_ms(broker, 400) == 300
    assert 0 < wake_ms(broker, 300) <= 1000, "the tick of each second"


def test_delays_follow_the_wall_clock() -> None:
    broker = a_broker(jobs=[ready("a", delay_ms=HOUR_MS)], workers=[idle("w1")])
    broker.wall_ms += HOUR_MS
    assert started(broker.turn(), "w1") == ["a"]


def test_backoff_follows_the_monotonic_clock() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", retry_after_ms=5000)
    broker.wall_ms += HOUR_MS
    assert not started(broker.turn(), "w1")
    assert started(broker.pass_time(5000, hearing=["w1"]), "w1") == ["a"]


def test_a_step_makes_no_more_than_a_thousand_jobs_ready() -> None:
    broker = a_broker(clients=["ann"])
    for batch in range(2):
        jobs = [spec(f"{batch}-{number}", delay_ms=1000) for number in range(bounds.BATCH_JOBS)]
        broker.submit("ann", *jobs)
    counts = broker.state.queues["default"].counts
    effects = broker.turn(1000)
    assert counts[State.READY] == bounds.BATCH_JOBS
    assert only(effects, WakeAt)[-1].mono_ms == broker.mono_ms, "it goes on at once"
    broker.turn()
    assert counts[State.READY] == 2 * bounds.BATCH_JOBS


# --- expiring ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"delay_ms": 90_000}])
def test_a_job_that_has_not_started_in_time_expires(fields: dict[str, Any]) -> None:
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("a", expires_ms=5000, **fields), follow=True)
    broker.turn(4999)
    assert job_id("a") in broker.state.jobs
    effects = broker.turn(1)
    assert [change.job.state for change in only(effects, JobChanged)] == ["expired"]
    assert [end.state for push in sent(effects, "ann", Finished) for end in push.jobs] == ["expired"]
    assert broker.last_event("expired").job_id == job_id("a")


def test_a_job_that_started_in_time_does_not_expire() -> None:
    broker = a_broker(jobs=[running("a", expires_ms=5000)], workers=[idle("w1")])
    broker.pass_time(6000, hearing=["w1"])
    assert broker.job("a").state is State.LEASED


def test_expiry_can_be_taken_back_and_moved() -> None:
    broker = a_broker(jobs=[ready("a", expires_ms=5000), ready("b", expires_ms=5000)])
    for name, expires_ms in (("a", 0), ("b", 9000)):
        broker.says("ann", Update(request_id=3, target=Target(job_ids=[job_id(name)]), expires_ms=expires_ms))
    broker.pass_time(8000, hearing=["ann"])
    assert len(broker.state.jobs) == 2
    broker.pass_time(2000, hearing=["ann"])
    assert list(broker.state.jobs) == [job_id("a")]


# --- clocks that jump -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_ms", [HOUR_MS, -HOUR_MS])
def test_a_jump_of_the_wall_clock_holds_expiry_and_health_says_so(jump_ms: int) -> None:
    broker = a_broker(jobs=[ready("a", expires_ms=60_000)])
    broker.wall_ms += jump_ms
    effects = broker.turn()
    assert [log.name for log in only(effects, Log)] == ["clock_jumped"]
    assert job_id("a") in broker.state.jobs
    health = sent(broker.says("ann", Health(request_id=1)), "ann", HealthReply)[0]
    assert f"{jump_ms // 1000:+d} s" in health.clock_trouble


def test_after_ten_steady_minutes_expiry_goes_on() -> None:
    broker = a_broker(jobs=[ready("a", expires_ms=60_000)])
    broker.wall_ms += HOUR_MS
    broker.pass_time(599_000, hearing=["ann"])
    assert job_id("a") in broker.state.jobs
    broker.pass_time(2000, hearing=["ann"])
    assert job_id("a") not in broker.state.jobs
    assert not broker.state.clock_trouble


def test_slow_drift_is_no_jump() -> None:
    broker = a_broker()
    for _ in range(100):
        broker.wall_ms += 400
        assert not only(broker.turn(1000), Log)


def test_a_clock_behind_the_journal_holds_expiry_from_the_start() -> None:
    broker = a_broker(memory=a_memory(last_event_ms=WALL_MS + HOUR_MS), clients=["ann"])
    assert "behind the journal" in broker.state.clock_trouble
    broker.submit("ann", spec("a", expires_ms=1000))
    broker.pass_time(3000, hearing=["ann"])
    assert job_id("a") in broker.state.jobs


# --- retention --------------------------------------------------------------------------------------------------------


def due(broker: Broker, after_ms: int = 5000) -> list[Read]:
    broker.pass_time(after_ms - after_ms % 1000 - 1000, hearing=["ann", "w1"])
    return [read for read in only(broker.turn(1000), Read) if isinstance(read.request, ReadDue | ReadJobs)]


def test_jobs_kept_long_enough_are_deleted_and_remembered_for_a_week() -> None:
    broker = a_broker(jobs=[running("a", keep_ms=1000, key="k")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete")
    image = only(broker.journal, JobChanged)[-1].job
    asked = due(broker)
    assert [read.request for read in asked if isinstance(read.request, ReadDue)]
    effects = broker.reads(asked[0].request, JobsReply([image]))
    gone = only(effects, JobsDeleted)[0]
    assert (gone.numbers, gone.until_ms) == ([1], broker.wall_ms + 7 * bounds.DAY_MS)
    broker.turn()
    assert broker.last_event("deleted").detail == {"by": "retention"}
    for name, key in (("a", ""), ("b", "k")):
        assert outcomes(broker.submit("ann", spec(name, key=key)))[0].outcome == "duplicate"


def test_after_a_week_the_id_and_the_key_are_free_again() -> None:
    broker = a_broker(jobs=[running("a", keep_ms=1000, key="k")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete")
    image = only(broker.journal, JobChanged)[-1].job
    broker.reads(due(broker)[0].request, JobsReply([image]))
    assert broker.state.tombstones
    week_ms = 7 * bounds.DAY_MS
    broker.mono_ms += week_ms
    broker.wall_ms += week_ms
    effects = broker.turn()
    assert only(effects, TombstonesDropped)
    assert not broker.state.tombstones
    assert not broker.state.keys


def test_retention_is_held_after_a_jump_of_the_wall_clock() -> None:
    broker = a_broker(clients=["ann"])
    broker.wall_ms += HOUR_MS
    assert not due(broker, 20_000)


def test_over_the_bound_of_kept_jobs_the_oldest_go_first() -> None:
    broker = a_broker(
        jobs=[running(name) for name in "abc"],
        workers=[idle("w1", slots=3)],
        settings=Settings(jobs_kept=1),
    )
    for name in "bca":
        broker.reports("w1", name, "complete")
    requests = [read.request for read in due(broker)]
    assert [request.ids for request in requests if isinstance(request, ReadJobs)] == [
        [job_id("b"), job_id("c")]
    ]
