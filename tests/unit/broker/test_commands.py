"""Commands on jobs: cancel, retry, update, delete, in each state, by whom, by filter."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Read, Send
from lmq_broker.core.policies import POLICIES
from lmq_broker.core.reads import JobsReply, ListReply, ReadList
from lmq_broker.core.records import JobsDeleted, ResultDropped
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import Stop as StopBroker
from lmq_proto import bounds
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Cancel,
    Changed,
    Delete,
    Finished,
    JobFilter,
    LeaseRef,
    Retry,
    Stop,
    Target,
    Update,
)
from lmq_proto.states import State
from unit.broker.builders import (
    EPOCH,
    Broker,
    Command,
    a_broker,
    codes,
    error,
    idle,
    images,
    job_id,
    only,
    ready,
    running,
    sent,
    spec,
    started,
    tell,
)


def an_ended(state: str, **fields: Any) -> Broker:
    """A broker with a job `a` that has ended so."""
    broker = a_broker(jobs=[running("a", **fields)], workers=[idle("w1")])
    if state == "done":
        broker.reports("w1", "a", "complete", b"result")
    elif state == "dead":
        broker.reports("w1", "a", "fail", error=ErrorInfo("e", "no"), permanent=True)
    elif state == "cancelled":
        broker.cancel("ann", "a")
        broker.reports("w1", "a", "stopped", attempt=1, epoch=EPOCH)
    else:
        broker.cancel("ann", "a")
        broker.reports("w1", "a", "stopped", attempt=1, epoch=EPOCH)
        broker.submit("ann", spec("b", expires_ms=1))
        broker.turn(1)
    return broker


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"delay_ms": 5000}])
def test_a_waiting_job_is_cancelled_at_once(fields: dict[str, Any]) -> None:
    broker = a_broker(jobs=[ready("a", **fields)])
    assert codes(tell(broker, Cancel, "a")) == ["changed"]
    assert job_id("a") not in broker.state.jobs
    broker.worker(idle("w1"))
    assert not started(broker.pass_time(6000, hearing=["w1"]), "w1")
    assert broker.last_event("cancelled").detail == {"by": "ann"}


def test_a_job_in_backoff_is_cancelled_with_its_failures() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail")
    tell(broker, Cancel, "a")
    assert not started(broker.pass_time(3000, hearing=["w1"]), "w1")
    assert broker.last_event("cancelled").detail == {
        "by": "ann",
        "failures": 1,
        "queued_ms": 0,
        "leased_ms": 0,
    }


def test_a_running_job_is_cancelled_at_once_and_keeps_its_slot_until_it_stopped() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    effects = broker.cancel("ann", "a")
    stop = Stop(leases=[LeaseRef(job_id=job_id("a"), epoch=EPOCH, attempt=1)], reason="cancelled")
    sends = [effect for effect in only(effects, Send) if isinstance(effect.message, Stop)]
    assert [(send.message, send.after) for send in sends] == [(stop, broker.state.position)]
    assert job_id("a") in broker.state.finished
    assert not started(broker.turn(), "w1")
    broker.reports("w1", "a", "stopped", attempt=1, epoch=EPOCH)
    assert started(broker.turn(), "w1") == ["b"]


def test_a_result_that_was_there_already_frees_the_slot_and_is_dropped() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    broker.cancel("ann", "a")
    broker.reports("w1", "a", "complete", b"late", attempt=1, epoch=EPOCH)
    assert images(broker)[0].state == "cancelled"
    assert started(broker.turn(), "w1") == ["b"]


def test_first_commit_wins_a_job_that_ended_is_not_cancelled() -> None:
    broker = an_ended("done")
    assert codes(tell(broker, Cancel, "a")) == ["unchanged"]
    assert images(broker)[0].state == "done"


def test_followers_are_told_of_a_cancel() -> None:
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("a"), follow=True)
    broker.cancel("ann", "a")
    assert sent(broker.turn(), "ann", Finished)[0].jobs[0].state == "cancelled"


def test_a_cancel_for_another_attempt_changes_nothing() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    assert codes(tell(broker, Cancel, "a", if_attempt=2)) == ["attempt_moved"]
    assert codes(tell(broker, Cancel, "a", if_attempt=1)) == ["changed"]


# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["dead", "cancelled"])
def test_a_retried_job_is_ready_with_no_failures_and_without_its_result(state: str) -> None:
    broker = an_ended(state, key="k")
    assert codes(tell(broker, Retry, "a")) == ["changed"]
    job = broker.job("a")
    assert (job.state, job.failures, job.attempt, job.past.strikes) == (State.READY, 0, 1, 0)
    assert only(broker.journal, ResultDropped) == [ResultDropped(1)]
    assert started(broker.turn(1), "w1") == ["a"]
    assert broker.job("a").attempt == 2, "no attempt number is used twice"
    assert broker.last_event("retried").detail == {"by": "ann"}


def test_an_expired_job_can_be_retried_and_does_not_expire_again() -> None:
    broker = a_broker(jobs=[ready("a", expires_ms=1000)])
    broker.turn(1000)
    assert codes(tell(broker, Retry, "a")) == ["changed"]
    broker.pass_time(5000, hearing=["ann"])
    assert broker.job("a").state is State.READY


def test_a_retried_job_goes_behind_its_equals_and_keeps_its_story() -> None:
    broker = an_ended("dead")
    broker.submit("ann", spec("b"))
    tell(broker, Retry, "a")
    assert started(broker.turn(1), "w1") == ["b"]
    assert [entry.message for entry in broker.job("a").past.story] == ["no"]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_job_that_was_cancelled_and_retried_before_its_turn_starts_once(policy: str) -> None:
    """Its first life still stands in the line, with the number of its second."""
    broker = a_broker(jobs=[ready("a"), ready("b")], settings=Settings(policy=policy))
    assert codes(tell(broker, Cancel, "a")) == ["changed"]
    assert codes(tell(broker, Retry, "a")) == ["changed"]
    broker.worker(idle("w1", slots=4))
    assert started(broker.turn(1), "w1") == ["b", "a"]
    assert codes(tell(broker, Cancel, "a")) == ["changed"]


def test_a_done_or_open_job_cannot_be_retried() -> None:
    assert codes(tell(an_ended("done"), Retry, "a")) == ["wrong_state"]
    assert codes(tell(a_broker(jobs=[ready("a")]), Retry, "a")) == ["wrong_state"]


def test_a_retry_for_another_attempt_changes_nothing() -> None:
    broker = an_ended("dead")
    assert codes(tell(broker, Retry, "a", if_attempt=2)) == ["attempt_moved"]
    assert codes(tell(broker, Retry, "a", if_attempt=1)) == ["changed"]


# --- update -----------------------------------------------------------------------------------------------------------


def test_a_waiting_job_moves_to_where_its_new_priority_puts_it() -> None:
    broker = a_broker(jobs=[running("x"), ready("a"), ready("b"), ready("c")], workers=[idle("w1")])
    assert codes(tell(broker, Update, "c", priority=9)) == ["changed"]
    broker.reports("w1", "x", "complete")
    assert started(broker.turn(), "w1") == ["c"]
    assert broker.last_event("updated").detail == {"priority": 9}


def test_all_that_may_change_changes() -> None:
    broker = a_broker(jobs=[ready("a", queue="q1")])
    tell(
        broker, Update, "a",
        queue="q2", models=["m"], labels={"x": "y"}, expires_ms=7000, timeout_ms=8000, keep_ms=9000, failures=9,
    )  # fmt: skip
    job = broker.job("a")
    assert (job.queue, job.models, job.expires_at_ms - broker.wall_ms) == ("q2", ("m",), 7000)
    terms = job.terms
    assert (terms.labels, terms.timeout_ms, terms.keep_ms, terms.failures_max) == ({"x": "y"}, 8000, 9000, 9)
    assert [sum(broker.state.queues[name].counts.values()) for name in ("q1", "q2")] == [0, 1]


def test_an_update_that_changes_nothing_says_so_and_journals_nothing() -> None:
    broker = a_broker(jobs=[ready("a", priority=4)])
    records = len(broker.journal)
    assert codes(tell(broker, Update, "a", priority=4)) == ["unchanged"]
    assert len(broker.journal) == records


def test_an_updated_job_does_not_change_its_equals() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")])
    tell(broker, Update, "a", failures=9)
    assert (broker.job("a").terms.failures_max, broker.job("b").terms.failures_max) == (9, 3)


def test_a_running_job_may_be_updated_and_runs_on() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    assert codes(tell(broker, Update, "a", labels={"x": "y"})) == ["changed"]
    assert broker.job("a").state is State.LEASED


@pytest.mark.parametrize("state", ["done", "dead", "cancelled"])
def test_a_job_that_ended_cannot_be_updated(state: str) -> None:
    assert codes(tell(an_ended(state), Update, "a", priority=1)) == ["wrong_state"]


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("priority", {"priority": 10}), ("priority", {"priority": -1}), ("queue", {"queue": ""}),
        ("models", {"models": ["m"] * 17}),
        ("model", {"models": [""]}), ("labels", {"labels": dict.fromkeys("abcdefghijklmnopq", "")}),
        ("expires_ms", {"expires_ms": -1}), ("timeout_ms", {"timeout_ms": bounds.DURATION_MS + 1}),
        ("keep_ms", {"keep_ms": -1}), ("failures", {"failures": 0}), ("failures", {"failures": 101}),
    ],
)  # fmt: skip
def test_an_update_out_of_bounds_is_refused_whole(field: str, given: dict[str, Any]) -> None:
    broker = a_broker(jobs=[ready("a")])
    refused = error(broker.says("ann", Update(request_id=5, target=Target(job_ids=[job_id("a")]), **given)))
    assert (refused.code, refused.fields["field"]) == ("bad_field", field)


def test_an_update_for_another_attempt_changes_nothing() -> None:
    broker = a_broker(jobs=[ready("a")])
    assert codes(tell(broker, Update, "a", priority=1, if_attempt=1)) == ["attempt_moved"]


# --- delete -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["done", "dead", "cancelled"])
def test_a_job_that_ended_is_removed_with_all_it_had(state: str) -> None:
    broker = an_ended(state)
    assert codes(tell(broker, Delete, "a")) == ["changed"]
    assert [gone.numbers for gone in only(broker.journal, JobsDeleted)] == [[1]]
    assert not broker.state.finished
    broker.turn()
    assert broker.last_event("deleted").detail == {"by": "ann"}


def test_an_open_job_cannot_be_deleted() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    assert codes(tell(broker, Delete, "a")) == ["wrong_state"]
    assert codes(tell(broker, Delete, "b")) == ["wrong_state"]


def test_a_deleted_job_is_not_found() -> None:
    broker = an_ended("done")
    tell(broker, Delete, "a")
    for kind in (Delete, Retry, Cancel):
        assert codes(tell(broker, kind, "a")) == ["not_found"]


def test_a_job_named_twice_is_deleted_once() -> None:
    broker = an_ended("done")
    tell(broker, Delete, "a", "a")
    assert [gone.numbers for gone in only(broker.journal, JobsDeleted)] == [[1]]


# --- whose, and which -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Cancel, Retry, Delete, Update])
def test_another_users_job_is_not_found(kind: Command) -> None:
    broker = a_broker(jobs=[ready("a")], clients=["tom"])
    broker.role("tom", "user")
    assert codes(tell(broker, kind, "a", by="tom")) == ["not_found"]
    assert broker.job("a").state is State.READY


def test_an_app_may_act_for_users_of_its_namespace_only() -> None:
    broker = a_broker(jobs=[ready("a", user="shop/alice"), ready("b", user="bob")], clients=["shop"])
    broker.role("shop", "app", principal="shop")
    assert codes(tell(broker, Cancel, "a", "b", by="shop")) == ["changed", "not_found"]


def test_each_job_has_its_outcome_in_the_order_asked() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")])
    assert codes(tell(broker, Cancel, "b", "z", "a")) == ["changed", "not_found", "changed"]


@pytest.mark.parametrize("target", [Target(), Target(job_ids=[bytes(16)], match=JobFilter())])
def test_a_target_is_ids_or_a_filter(target: Target) -> None:
    broker = a_broker(clients=["ann"])
    assert error(broker.says("ann", Cancel(request_id=5, target=target))).fields["field"] == "target"


def test_a_target_names_a_bounded_number_of_jobs() -> None:
    broker = a_broker(clients=["ann"])
    target = Target(job_ids=[bytes(16)] * (bounds.BATCH_JOBS + 1))
    assert error(broker.says("ann", Delete(request_id=5, target=target))).fields["field"] == "job_ids"


def test_a_broker_that_stops_carries_out_no_command() -> None:
    broker = a_broker(jobs=[ready("a")])
    broker.step(StopBroker())
    assert error(broker.cancel("ann", "a")).code == "stopping"


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        (Cancel, {"delayed", "blocked", "ready", "leased", "asking"}),
        (Update, {"delayed", "blocked", "ready", "leased", "asking"}),
        (Retry, {"done", "dead", "cancelled", "expired"}),
        (Delete, {"done", "dead", "cancelled", "expired"}),
    ],
)
def test_a_filter_means_the_jobs_that_the_command_is_for(kind: Command, states: set[str]) -> None:
    broker = a_broker(clients=["ann"])
    broker.role("ann", "user")
    effects = broker.says("ann", kind(request_id=5, target=Target(match=JobFilter(queue="q"))))
    request = only(effects, Read)[0].request
    assert isinstance(request, ReadList)
    assert (set(request.match.states), request.match.queue) == (states, "q")
    assert (request.user, request.limit) == ("ann", bounds.BATCH_JOBS), "only its own"


def test_a_filter_that_matches_more_than_a_thousand_says_so() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    effects = broker.says("ann", Cancel(request_id=5, target=Target(match=JobFilter(queue="default"))))
    answer = broker.reads(only(effects, Read)[0].request, ListReply([images(broker)[0]], more=True))
    changed = sent(answer, "ann", Changed)[0]
    assert (codes(changed.outcomes), changed.more) == (["changed"], True)
    assert job_id("a") in broker.state.finished


def test_a_job_that_ended_while_the_journal_was_read_is_judged_as_it_is_now() -> None:
    broker = a_broker(jobs=[ready("a")])
    effects = broker.says("ann", Cancel(request_id=5, target=Target(job_ids=[job_id("a"), job_id("z")])))
    broker.cancel("ann", "a")
    again = only(broker.reads(only(effects, Read)[0].request, JobsReply([])), Read)[0].request
    answer = broker.reads(again, JobsReply(images(broker)))
    assert codes(sent(answer, "ann", Changed)[0].outcomes) == ["unchanged", "not_found"]
    assert broker.kinds().count("cancelled") == 0
    broker.turn()
    assert broker.kinds().count("cancelled") == 1
