"""Pauses and drains of queues and workers: by whom, for how long, what they hold, and over a restart."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Effect, Publish
from lmq_broker.core.records import MetaSet
from lmq_proto import bounds
from lmq_proto.messages import Done, Drain, LeaseRef, ListQueues, Pause, Queues, Resume, Stop, WorkerState
from lmq_proto.states import State
from unit.broker.builders import (
    EPOCH,
    Broker,
    a_broker,
    a_memory,
    error,
    idle,
    job_id,
    only,
    ready,
    running,
    sent,
    started,
)


def pause(broker: Broker, noun: str, name: str, **fields: Any) -> list[Effect]:
    return broker.says("ann", Pause(request_id=5, noun=noun, name=name, **fields))


def drain(broker: Broker, noun: str, name: str) -> list[Effect]:
    return broker.says("ann", Drain(request_id=5, noun=noun, name=name))


def resume(broker: Broker, noun: str, name: str) -> list[Effect]:
    return broker.says("ann", Resume(request_id=6, noun=noun, name=name))


def shown(effects: list[Effect]) -> list[str]:
    """Return the states of workers that are published."""
    return [each.message.state for each in only(effects, Publish) if isinstance(each.message, WorkerState)]


# --- queues -----------------------------------------------------------------------------------------------------------


def test_nothing_of_a_paused_queue_starts_until_it_is_resumed() -> None:
    broker = a_broker(jobs=[ready("a", queue="night"), ready("b")], workers=[idle("w1", slots=2)])
    effects = pause(broker, "queue", "night", reason="gaming")
    assert sent(effects, "ann", Done) == [Done(request_id=5)]
    assert [record.name for record in only(effects, MetaSet)] == ["hold/queue/night"]
    assert started(broker.turn(), "w1") == ["b"]
    assert broker.last_event("queue_held").detail == {
        "hold": "pause", "by": "ann", "reason": "gaming", "until_ms": 0,
    }  # fmt: skip
    effects = resume(broker, "queue", "night")
    assert sent(effects, "ann", Done) == [Done(request_id=6)]
    assert [(record.name, record.value) for record in only(effects, MetaSet)] == [("hold/queue/night", b"")]
    assert started(broker.turn(), "w1") == ["a"]
    assert broker.last_event("queue_resumed").detail == {"by": "ann"}


def test_what_runs_of_a_paused_queue_runs_on() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    effects = pause(broker, "queue", "default")
    assert not sent(effects, "w1", Stop)
    assert broker.job("a").state is State.LEASED


def test_a_pause_ends_by_itself_after_its_time() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    pause(broker, "queue", "default", for_ms=5000)
    assert not started(broker.pass_time(4000, hearing=["w1", "ann"]), "w1")
    broker.pass_time(2000, hearing=["w1", "ann"])
    assert started(broker.turn(), "w1") == ["a"] or broker.job("a").state is State.LEASED
    assert broker.last_event("queue_resumed").detail == {"by": ""}


def test_a_queue_may_be_held_before_it_has_jobs_and_is_listed() -> None:
    broker = a_broker(clients=["ann"])
    pause(broker, "queue", "future")
    listed = sent(broker.says("ann", ListQueues(request_id=7)), "ann", Queues)[0].queues
    hold = {queue.name: queue.hold for queue in listed}["future"]
    assert hold is not None
    assert (hold.kind, hold.by, hold.since_ms) == ("pause", "ann", broker.wall_ms)


def test_the_same_again_replaces_reason_and_time() -> None:
    broker = a_broker(clients=["ann"])
    pause(broker, "queue", "q", reason="one")
    pause(broker, "queue", "q", reason="two", for_ms=9)
    hold = broker.state.queue_holds["q"]
    assert (hold.reason, hold.until_ms - broker.wall_ms) == ("two", 9)


def test_a_resume_of_what_is_not_held_changes_nothing() -> None:
    broker = a_broker(clients=["ann"])
    effects = resume(broker, "queue", "q")
    assert sent(effects, "ann", Done) == [Done(request_id=6, changed=False)]
    assert not only(effects, MetaSet)


def test_holds_outlive_a_restart() -> None:
    broker = a_broker(clients=["ann"], workers=[idle("w1")])
    pause(broker, "queue", "q", reason="r")
    drain(broker, "worker", "w1")
    meta = {record.name: record.value for record in only(broker.journal, MetaSet)}
    again = a_broker(memory=a_memory(meta=meta))
    assert again.state.queue_holds == broker.state.queue_holds
    assert again.state.worker_holds == broker.state.worker_holds


# --- workers ----------------------------------------------------------------------------------------------------------


def test_nothing_starts_at_a_paused_worker_and_what_runs_there_runs_on() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1", slots=2)])
    effects = pause(broker, "worker", "w1")
    assert shown(effects) == ["paused"]
    broker.submit("ann", ready("c").spec)
    assert not started(broker.turn(), "w1")
    assert broker.job("a").state is State.LEASED
    resume(broker, "worker", "w1")
    assert started(broker.turn(), "w1") == ["b"]


def test_a_pause_that_is_meant_now_takes_back_what_runs_uncharged() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.worker(idle("w2"))
    effects = pause(broker, "worker", "w1", now=True, reason="gaming")
    lease = LeaseRef(job_id=job_id("a"), epoch=EPOCH, attempt=1)
    assert sent(effects, "w1", Stop) == [Stop(leases=[lease], reason="gaming")]
    assert (broker.job("a").state, broker.job("a").failures) == (State.READY, 0)
    assert started(broker.turn(1), "w2") == ["a"]
    assert broker.at("w1").instances["i1"].leased == 1, "its slot is taken until it says stopped"
    broker.reports("w1", "a", "stopped", attempt=1, epoch=EPOCH)
    assert broker.at("w1").instances["i1"].leased == 0


def test_a_draining_worker_finishes_what_it_runs_and_takes_no_more() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    assert shown(drain(broker, "worker", "w1")) == ["draining"]
    broker.reports("w1", "a", "complete")
    assert not started(broker.turn(), "w1")


def test_a_held_worker_is_held_when_it_comes_back() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    pause(broker, "worker", "w1")
    broker.breaks("w1")
    broker.pass_time(5000, hearing=["ann"])
    broker.worker(idle("w1", life=2))
    assert not started(broker.turn(), "w1")
    resume(broker, "worker", "w1")
    assert started(broker.turn(), "w1") == ["a"]


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noun", "name", "fields", "code", "field"),
    [
        ("user", "ann", {}, "bad_field", "noun"),
        ("queue", "", {}, "bad_field", "name"),
        ("queue", "q" * (bounds.NAME_CHARS + 1), {}, "bad_field", "name"),
        ("queue", "q", {"for_ms": -1}, "bad_field", "for_ms"),
        ("queue", "q", {"for_ms": bounds.DURATION_MS + 1}, "bad_field", "for_ms"),
        ("queue", "q", {"reason": "r" * (bounds.REASON_CHARS + 1)}, "bad_field", "reason"),
    ],
)
def test_a_hold_out_of_bounds_is_refused(
    noun: str, name: str, fields: dict[str, Any], code: str, field: str
) -> None:
    broker = a_broker(clients=["ann"])
    refused = error(pause(broker, noun, name, **fields))
    assert (refused.code, refused.fields["field"]) == (code, field)
    assert not broker.state.queue_holds


def test_a_worker_that_nobody_knows_cannot_be_held_and_the_nearest_is_named() -> None:
    broker = a_broker(clients=["ann"], workers=[idle("gpu-1")])
    for command in (pause, drain):
        refused = error(command(broker, "worker", "gpu-2"))
        assert (refused.code, refused.fields["nearest"]) == ("not_found", ["gpu-1"])
    assert error(resume(broker, "worker", "gpu-2")).code == "not_found"


@pytest.mark.parametrize("role", ["user", "app", "observer", "gateway"])
def test_only_an_admin_steers(role: str) -> None:
    broker = a_broker(clients=["ann"])
    broker.role("ann", role)
    for command in (pause, drain, resume):
        assert error(command(broker, "queue", "q")).code == "not_allowed"
    assert not broker.state.queue_holds
