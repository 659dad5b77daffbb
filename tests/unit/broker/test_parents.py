"""Jobs that wait for others: what they may wait for, when they start, and what becomes of them when a parent fails."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from lmq_broker.core import settle
from lmq_broker.core.effects import Read, SendWork, WakeAt
from lmq_broker.core.finished import Ended, Finished as FinishedJobs
from lmq_broker.core.reads import JobsReply, ReadDue
from lmq_broker.core.records import JobChanged, JobsDeleted, StoredJob
from lmq_broker.core.settings import Settings
from lmq_proto import bounds
from lmq_proto.errors import ErrorInfo
from lmq_proto.ids import short, to_text
from lmq_proto.messages import (
    Cancel,
    Delete,
    Finished,
    JobSpec,
    JobView,
    Limit,
    Reason,
    Retry,
    SetLimit,
    SetUser,
    Status,
    Statuses,
    Update,
    Why,
    WhyReply,
)
from lmq_proto.states import State
from unit.broker.builders import (
    Broker,
    a_broker,
    codes,
    idle,
    images,
    job_id,
    only,
    outcomes,
    ready,
    restarted,
    running,
    sent,
    spec,
    started,
    tell,
)

FAILED = ["dead", "cancelled", "expired"]


def after(name: str, *parents: str, **fields: Any) -> JobSpec:
    """A job that waits for these."""
    return spec(name, parents=[job_id(parent) for parent in parents], **fields)


def a_family(*specs: JobSpec, settings: Settings | None = None, atomic: bool = False) -> Broker:
    """A broker with one worker, where ann has submitted these jobs."""
    broker = a_broker(clients=["ann"], workers=[idle("w1")], settings=settings)
    assert set(codes(outcomes(broker.submit("ann", *specs, atomic=atomic)))) == {"accepted"}
    return broker


def end(broker: Broker, name: str, state: str) -> None:
    """Bring a job that waits or runs to an end; what it means to others comes when the turn ends."""
    if state == "done":
        broker.reports("w1", name, "complete", b"result")
    elif state == "dead":
        broker.reports("w1", name, "fail", error=ErrorInfo("e", "no"), permanent=True)
    elif state == "cancelled":
        tell(broker, Cancel, name)
    else:
        tell(broker, Update, name, expires_ms=1)
        broker.turn(1)


def a_failed(state: str, *specs: JobSpec) -> Broker:
    """A broker where a job `p`, for which these wait, has ended so, in the present turn."""
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("p", expires_ms=1 if state == "expired" else 0), *specs)
    if state == "dead":
        broker.worker(idle("w1"))
        broker.turn()
    if state != "expired":
        end(broker, "p", state)
        broker.turn()
    else:
        broker.turn(1)
    if state != "dead":
        broker.worker(idle("w1"))
    return broker


def states(broker: Broker) -> dict[str, str]:
    """Return the state of each open job."""
    return {id_.rstrip(b"\0").decode(): str(job.state) for id_, job in broker.state.jobs.items()}


def priorities(broker: Broker, *names: str) -> list[int]:
    return [broker.job(name).priority for name in names]


def image(broker: Broker, name: str) -> StoredJob:
    return next(job for job in images(broker) if job.id == job_id(name))


# --- until its parents are done ---------------------------------------------------------------------------------------


def test_a_job_starts_when_its_parent_is_done_and_not_before() -> None:
    broker = a_family(spec("p"), after("c", "p"))
    assert states(broker) == {"p": "ready", "c": "blocked"}
    broker.worker(idle("w2"))
    assert started(broker.turn(), "w1") == ["p"]
    assert not started(broker.pass_time(2000, hearing=["w1", "w2"]), "w2")
    end(broker, "p", "done")
    effects = broker.turn()
    assert started(effects, "w1") + started(effects, "w2") == ["c"]
    assert broker.kinds() == ["accepted", "accepted", "started", "done", "ready", "started"]


def test_all_parents_must_be_done() -> None:
    broker = a_family(spec("p"), spec("q"), after("c", "p", "q"))
    broker.turn()
    end(broker, "p", "done")
    assert started(broker.turn(), "w1") == ["q"]
    assert states(broker) == {"q": "leased", "c": "blocked"}
    end(broker, "q", "done")
    assert started(broker.turn(), "w1") == ["c"]


def test_a_chain_runs_in_its_order() -> None:
    broker = a_family(spec("a"), after("b", "a"), after("c", "b", priority=9), after("d", "a", "c"))
    order = []
    for _ in range(4):
        order += started(broker.turn(), "w1")
        end(broker, order[-1], "done")
    assert order == ["a", "b", "c", "d"]


def test_what_is_sent_of_a_job_with_parents_waits_for_the_disk() -> None:
    """A crash may not undo that a parent was done once a child has begun."""
    broker = a_broker(clients=["ann"], workers=[idle("w1")])
    broker.turn()
    broker.submit("ann", spec("p"), after("c", "p"))
    assert only(broker.turn(), SendWork)[0].after < broker.state.position
    end(broker, "p", "done")
    assert only(broker.turn(), SendWork)[0].after == broker.state.position


def test_a_done_parent_is_no_reason_to_wait() -> None:
    broker = a_family(spec("p"))
    broker.turn()
    end(broker, "p", "done")
    assert codes(outcomes(broker.submit("ann", after("c", "p")))) == ["accepted"]
    assert states(broker) == {"c": "ready"}
    assert started(broker.turn(), "w1") == ["c"]
    assert image(broker, "c").terms.parents == (job_id("p"),)


def test_a_blocked_job_takes_no_slot_and_is_in_no_count_of_what_runs() -> None:
    broker = a_family(spec("p", queue="night"), after("c", "p"), spec("b"))
    broker.says("ann", SetLimit(request_id=4, limit=Limit(of="running", user="*", queue="default", value=1)))
    broker.worker(idle("w2", slots=3))
    effects = broker.turn()
    assert sorted(started(effects, "w1") + started(effects, "w2")) == ["b", "p"]
    assert broker.state.queues["default"].counts[State.BLOCKED] == 1


@pytest.mark.parametrize(("took_ms", "then"), [(4000, "delayed"), (5000, "leased")])
def test_its_own_delay_runs_while_it_is_blocked(took_ms: int, then: str) -> None:
    broker = a_family(spec("p"), after("c", "p", delay_ms=5000))
    broker.turn()
    broker.pass_time(took_ms, hearing=["w1", "ann"])
    end(broker, "p", "done")
    broker.turn()
    assert states(broker) == {"c": then}
    if then == "delayed":
        assert image(broker, "c").state == "delayed"
        assert started(broker.pass_time(1000, hearing=["w1"]), "w1") == ["c"]
    assert broker.kinds().count("ready") == 1


def test_it_expires_while_it_is_blocked_and_its_parent_goes_on() -> None:
    broker = a_family(spec("p"), after("c", "p", expires_ms=1000), after("d", "c"))
    broker.turn()
    broker.pass_time(1000, hearing=["w1", "ann"])
    assert states(broker) == {"p": "leased"}
    assert (image(broker, "c").state, image(broker, "d").state) == ("expired", "cancelled")
    end(broker, "p", "done")
    broker.turn()
    assert not broker.state.jobs


# --- what it may wait for ---------------------------------------------------------------------------------------------


def test_parents_come_earlier_in_the_batch() -> None:
    broker = a_broker(clients=["ann"])
    found = outcomes(broker.submit("ann", after("c", "p"), spec("p"), after("d", "p")))
    assert codes(found) == ["not_found", "accepted", "accepted"]
    assert found[0].error is not None
    assert found[0].error.fields == {"what": "parent", "name": to_text(job_id("p")), "nearest": []}


def test_a_job_is_not_there_to_be_waited_for_if_it_was_refused() -> None:
    broker = a_broker(clients=["ann"])
    assert codes(outcomes(broker.submit("ann", spec("p", priority=10), after("c", "p")))) == [
        "bad_field",
        "not_found",
    ]


def test_an_atomic_batch_may_hold_a_family() -> None:
    broker = a_family(spec("p"), after("c", "p"), after("d", "c", "p"), atomic=True)
    assert states(broker) == {"p": "ready", "c": "blocked", "d": "blocked"}
    refused = outcomes(broker.submit("ann", after("x", "y"), spec("y"), atomic=True))
    assert codes(refused) == ["not_found", "not_found"]


@pytest.mark.parametrize("atomic", [False, True])
def test_an_id_whose_key_stood_for_another_job_means_that_job(atomic: bool) -> None:
    broker = a_family(spec("p", key="k"))
    found = outcomes(broker.submit("ann", spec("again", key="k"), after("c", "again", "p"), atomic=atomic))
    assert codes(found) == ["duplicate", "accepted"]
    assert broker.job("c").terms.parents == (job_id("p"),)


@pytest.mark.parametrize("state", FAILED)
def test_a_parent_that_failed_is_named_with_its_state(state: str) -> None:
    broker = a_failed(state)
    for again in (broker, restarted(broker)):
        (found,) = outcomes(again.submit("ann", after("c", "p")))
        assert found.error is not None
        assert (found.error.code, found.error.retryable) == ("parent_ended", False)
        assert found.error.fields == {"parent": to_text(job_id("p")), "state": state}


def test_a_deleted_parent_is_not_found() -> None:
    broker = a_family(spec("p"))
    broker.turn()
    end(broker, "p", "done")
    tell(broker, Delete, "p")
    assert codes(outcomes(broker.submit("ann", after("c", "p")))) == ["not_found"]


@pytest.mark.parametrize("ends", [False, True])
def test_another_users_job_is_not_there(ends: bool) -> None:
    broker = a_broker(jobs=[running("p")], workers=[idle("w1")], clients=["tom"])
    broker.role("tom", "user")
    if ends:
        end(broker, "p", "done")
    assert codes(outcomes(broker.submit("tom", after("c", "p")))) == ["not_found"]


def test_an_app_may_have_a_job_of_one_of_its_users_wait_for_that_of_another() -> None:
    broker = a_broker(jobs=[ready("p", user="shop/alice"), ready("q", user="bob")], clients=["shop"])
    broker.role("shop", "app", principal="shop")
    found = outcomes(broker.submit("shop", after("c", "p"), after("d", "q"), as_user="shop/carl"))
    assert codes(found) == ["accepted", "not_found"]


@pytest.mark.parametrize("atomic", [False, True])
def test_a_bounded_number_of_jobs_wait_for_one(monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    monkeypatch.setattr(bounds, "CHILDREN", 3)
    broker = a_family(spec("p"), after("c1", "p"), after("c2", "p"))
    found = outcomes(broker.submit("ann", after("c3", "p"), after("c4", "p"), atomic=atomic))
    assert codes(found) == (["limit_reached"] * 2 if atomic else ["accepted", "limit_reached"])
    assert found[1].error is not None
    assert found[1].error.fields["limit"] == "children"
    tell(broker, Cancel, "c1")
    assert codes(outcomes(broker.submit("ann", after("c5", "p")))) == ["accepted"]


def test_an_atomic_batch_counts_those_that_wait_in_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "CHILDREN", 2)
    broker = a_broker(clients=["ann"])
    family = [spec("p"), *(after(name, "p") for name in ("c1", "c2", "c3"))]
    assert codes(outcomes(broker.submit("ann", *family, atomic=True))) == ["limit_reached"] * 4
    assert codes(outcomes(broker.submit("ann", *family[:3], atomic=True))) == ["accepted"] * 3


# --- a parent that fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", FAILED)
def test_the_end_of_a_parent_cancels_all_that_wait_for_it_and_for_them(state: str) -> None:
    broker = a_failed(state, after("c", "p"), after("d", "c"), spec("b"))
    assert "c" not in states(broker)
    assert "d" not in states(broker)
    told = {"parent": to_text(job_id("p")), "state": state}
    assert image(broker, "c").state == "cancelled"
    error = image(broker, "c").past.error
    assert error is not None
    assert (error.code, error.fields) == ("parent_ended", told)
    error = image(broker, "d").past.error
    assert error is not None
    assert error.fields == {"parent": to_text(job_id("c")), "state": "cancelled"}
    event = next(each for each in broker.events if each.job_id == job_id("c") and each.kind == "cancelled")
    assert event.detail == {"code": "parent_ended", "error": f"its parent {short(job_id('p'))} is {state}"}
    assert not broker.state.children
    assert not broker.state.settling


def test_followers_of_a_child_are_told() -> None:
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("p"))
    broker.submit("ann", after("c", "p"), follow=True)
    tell(broker, Cancel, "p")
    (told,) = sent(broker.turn(), "ann", Finished)
    assert told.jobs[0].state == "cancelled"
    assert told.jobs[0].error is not None
    assert told.jobs[0].error.code == "parent_ended"


@pytest.mark.parametrize("names", [("p", "q"), ("q", "p")])
def test_one_parent_that_fails_outweighs_one_that_is_done_in_the_same_turn(names: tuple[str, str]) -> None:
    broker = a_broker(clients=["ann"], workers=[idle("w1", slots=2)])
    broker.submit("ann", spec("p"), spec("q"), after("c", *names))
    broker.turn()
    for name in names:
        end(broker, name, "done" if name == "p" else "dead")
    assert not started(broker.turn(), "w1")
    assert image(broker, "c").state == "cancelled"


def test_a_cancel_by_a_person_comes_before_that_of_a_parent() -> None:
    broker = a_family(spec("p"), after("c", "p"))
    tell(broker, Cancel, "p", "c")
    broker.turn()
    assert broker.last_event("cancelled").detail == {"by": "ann"}
    assert broker.kinds().count("cancelled") == 2


def a_crowd(monkeypatch: pytest.MonkeyPatch, state: str) -> Broker:
    """A broker that moves three jobs in a step, where one for which seven wait has just ended."""
    children = [after(f"c{number}", "p") for number in range(7)]
    broker = a_family(spec("p"), *children, after("d", "c6"))
    broker.turn()
    end(broker, "p", state)
    monkeypatch.setattr(settle, "_MOVES", 3)
    return broker


@pytest.mark.parametrize("state", ["cancelled", "done"])
def test_no_step_is_long_and_the_rest_comes_by_itself(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    broker = a_crowd(monkeypatch, state)
    left = []
    for _ in range(4):
        wake = only(broker.turn(), WakeAt)[-1]
        left.append(list(states(broker).values()).count("blocked"))
        if broker.state.settling:
            assert wake.mono_ms == broker.mono_ms, "again at once"
    assert left == ([5, 2, 0, 0] if state == "cancelled" else [5, 2, 1, 1])


@pytest.mark.parametrize("turns", range(5))
def test_whenever_the_broker_dies_no_child_of_a_failed_parent_starts(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    broker = a_crowd(monkeypatch, "dead")
    for _ in range(turns):
        broker.turn()
    again = restarted(broker)
    again.worker(idle("w1", slots=9))
    assert not started(again.pass_time(5000, hearing=["w1", "ann"]), "w1")
    assert not again.state.jobs


@pytest.mark.parametrize("turns", range(5))
def test_whenever_the_broker_dies_all_children_of_a_done_parent_start(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    broker = a_crowd(monkeypatch, "done")
    for _ in range(turns):
        broker.turn()
    again = restarted(broker)
    again.pass_time(20_000, hearing=["ann"])
    assert list(states(again).values()) == ["ready"] * 7 + ["blocked"]


def test_a_job_waits_for_the_same_parents_after_a_restart() -> None:
    broker = a_family(spec("p"), spec("q"), after("c", "p", "q"))
    broker.turn()
    end(broker, "p", "done")
    broker.turn()
    tell(broker, Delete, "p")
    again = restarted(broker)
    assert states(again) == {"q": "leased", "c": "blocked"}
    assert again.state.children == {job_id("q"): {job_id("c"): None}}


def test_while_children_have_not_been_told_their_parent_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = a_crowd(monkeypatch, "dead")
    broker.turn()
    assert codes(tell(broker, Retry, "p")) == ["wrong_state"]
    assert codes(tell(broker, Delete, "p")) == ["wrong_state"]
    for _ in range(3):
        broker.turn()
    assert codes(tell(broker, Retry, "p")) == ["changed"]


def test_retention_leaves_a_parent_until_its_children_have_been_told(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(retention_every_ms=1000)
    broker = a_family(spec("p", keep_ms=1), *(after(f"c{n}", "p") for n in range(9)), settings=settings)
    end(broker, "p", "cancelled")
    monkeypatch.setattr(settle, "_MOVES", 3)
    (read,) = (each for each in only(broker.turn(2000), Read) if isinstance(each.request, ReadDue))
    broker.reads(read.request, JobsReply([image(broker, "p")]))
    assert not only(broker.journal, JobsDeleted)
    for _ in range(3):
        broker.turn()
    (read,) = (each for each in only(broker.turn(2000), Read) if isinstance(each.request, ReadDue))
    broker.reads(read.request, JobsReply([image(broker, "p")]))
    assert [gone.numbers for gone in only(broker.journal, JobsDeleted)] == [[1]]


@pytest.mark.parametrize("ends", [False, True])
def test_a_younger_job_under_the_id_of_a_forgotten_parent_is_another_job(ends: bool) -> None:
    settings = Settings(tombstones=0)
    broker = a_family(spec("p"), spec("q"), after("c", "p", "q"), settings=settings)
    broker.turn()
    end(broker, "p", "done")
    broker.turn()
    assert codes(tell(broker, Delete, "p")) == ["changed"]
    assert codes(outcomes(broker.submit("ann", after("p", "c")))) == ["accepted"]
    if ends:
        tell(broker, Cancel, "p")
    again = restarted(broker)
    of_c = {} if ends else {job_id("c"): {job_id("p"): None}}
    assert again.state.children == {job_id("q"): {job_id("c"): None}} | of_c


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_blocked_job_can_be_cancelled() -> None:
    broker = a_family(spec("p"), after("c", "p"))
    broker.turn()
    assert codes(tell(broker, Cancel, "c")) == ["changed"]
    assert not broker.state.children
    end(broker, "p", "done")
    assert not started(broker.turn(), "w1")


def test_a_blocked_job_can_be_updated() -> None:
    broker = a_family(spec("p"), after("c", "p"))
    assert codes(tell(broker, Update, "c", priority=2, queue="night", models=["m"])) == ["changed"]
    job = broker.job("c")
    assert (job.state, job.priority, job.queue) == (State.BLOCKED, 2, "night")
    assert broker.state.queues["night"].counts[State.BLOCKED] == 1


def test_a_retried_child_runs_if_its_parent_is_done() -> None:
    broker = a_family(spec("p"), after("c", "p"))
    broker.turn()
    tell(broker, Cancel, "c")
    end(broker, "p", "done")
    assert codes(tell(broker, Retry, "c")) == ["changed"]
    assert started(broker.turn(), "w1") == ["c"]


def test_a_retried_child_waits_again_if_its_parent_is_open() -> None:
    broker = a_family(spec("p"), after("c", "p", delay_ms=1000, expires_ms=9000))
    tell(broker, Cancel, "c")
    assert codes(tell(broker, Retry, "c")) == ["changed"]
    assert states(broker) == {"p": "ready", "c": "blocked"}
    assert image(broker, "c").state == "blocked"
    broker.turn()
    end(broker, "p", "done")
    assert started(broker.turn(), "w1") == ["c"]


@pytest.mark.parametrize("state", FAILED)
def test_a_child_is_retried_after_its_parent_and_not_with_it(state: str) -> None:
    broker = a_failed(state, after("c", "p"))
    (refused,) = tell(broker, Retry, "c")
    assert refused.error is not None
    assert (refused.error.code, refused.error.fields["state"]) == ("parent_ended", state)
    assert codes(tell(broker, Retry, "p")) == ["changed"]
    broker.turn()
    assert "c" not in states(broker), "the retry of a parent is its own only"
    assert codes(tell(broker, Retry, "c")) == ["changed"]
    end(broker, "p", "done")
    assert started(broker.turn(1), "w1") == ["c"]


def test_parents_and_children_can_be_retried_with_one_command() -> None:
    broker = a_failed("dead", after("c", "p"))
    assert codes(tell(broker, Retry, "p", "c")) == ["changed", "changed"]
    assert states(broker) == {"p": "ready", "c": "blocked"}


def test_a_retried_child_whose_parent_was_deleted_is_refused_unless_it_had_started() -> None:
    broker = a_family(spec("p"), after("c", "p"), after("d", "p"))
    tell(broker, Cancel, "d")
    broker.turn()
    end(broker, "p", "done")
    broker.turn()
    end(broker, "c", "dead")
    tell(broker, Delete, "p")
    assert codes(tell(broker, Retry, "d", "c")) == ["not_found", "changed"]
    assert started(broker.turn(), "w1") == ["c"]


def test_a_retried_child_counts_among_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = a_family(spec("p"), after("c", "p"), after("d", "p"))
    tell(broker, Cancel, "c")
    monkeypatch.setattr(bounds, "CHILDREN", 1)
    assert codes(tell(broker, Retry, "c")) == ["limit_reached"]


def test_a_done_parent_can_be_deleted_while_its_child_runs() -> None:
    broker = a_family(spec("p"), after("c", "p"))
    broker.turn()
    end(broker, "p", "done")
    broker.turn()
    assert codes(tell(broker, Delete, "p")) == ["changed"]
    end(broker, "c", "done")
    assert image(broker, "c").state == "done"


# --- priority ---------------------------------------------------------------------------------------------------------


def test_a_child_inherits_the_highest_priority_of_its_users_parents() -> None:
    broker = a_broker(clients=["ann", "tom"], workers=[idle("w1")])
    broker.submit("tom", spec("t", priority=9))
    broker.submit("ann", spec("p", priority=3), spec("q", priority=6), spec("r"))
    broker.submit("ann", after("c", "p", "q", "t"), after("d", "p", priority=1), after("e", "t"))
    assert priorities(broker, "c", "d", "e") == [6, 1, 5]


def test_it_inherits_from_parents_that_are_done_and_not_what_they_were_lifted_to() -> None:
    broker = a_family(spec("p", priority=3), after("c", "p", priority=8))
    broker.turn()
    assert priorities(broker, "p") == [8]
    broker.submit("ann", after("d", "p"))
    end(broker, "p", "done")
    broker.submit("ann", after("e", "p"))
    again = restarted(broker)
    again.submit("ann", after("f", "p"))
    assert priorities(again, "d", "e", "f") == [3, 3, 3]


def test_what_is_inherited_is_within_the_users_ceiling() -> None:
    broker = a_family(spec("p", priority=8))
    broker.says("ann", SetUser(request_id=4, user="ann", ceiling=6))
    (accepted,) = outcomes(broker.submit("ann", after("c", "p")))
    assert (accepted.outcome, accepted.priority) == ("accepted", 6)
    assert priorities(broker, "c") == [6]


def test_ancestors_run_at_the_highest_priority_that_waits_for_them() -> None:
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("x", priority=7), spec("a", priority=1), after("b", "a", priority=2))
    broker.submit("ann", after("c", "b", priority=8), spec("y", priority=8))
    broker.turn()
    assert priorities(broker, "a", "b", "c") == [8, 8, 8]
    assert (image(broker, "a").priority, image(broker, "a").past.own_priority) == (8, 1)
    broker.worker(idle("w1"))
    order = []
    for _ in range(5):
        order += started(broker.turn(1), "w1")
        end(broker, order[-1], "done")
    assert order == ["a", "b", "c", "y", "x"]


def test_other_users_lift_nothing() -> None:
    broker = a_broker(clients=["ann", "tom"])
    broker.submit("ann", spec("a", priority=1))
    broker.submit("tom", after("b", "a", priority=6))
    broker.submit("ann", after("c", "b", priority=9))
    broker.turn()
    assert priorities(broker, "a", "b", "c") == [1, 6, 9]


@pytest.mark.parametrize("how", ["cancelled", "expired", "updated"])
def test_its_own_priority_counts_again_when_nobody_calls_for_more(how: str) -> None:
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("a", priority=1), after("b", "a", priority=1), after("c", "b", priority=8))
    broker.submit("ann", after("d", "a", priority=4), spec("x", priority=6))
    broker.turn()
    assert priorities(broker, "a", "b") == [8, 8]
    if how == "updated":
        tell(broker, Update, "c", priority=0)
    else:
        end(broker, "c", how)
    broker.turn()
    assert priorities(broker, "a", "b") == [4, 1]
    tell(broker, Cancel, "d")
    broker.turn()
    assert priorities(broker, "a", "b") == [1, 1]
    assert image(broker, "a").past.own_priority is None
    broker.worker(idle("w1"))
    assert started(broker.turn(), "w1") == ["x"]


def test_a_raised_child_raises_its_ancestors() -> None:
    broker = a_family(spec("x"), spec("a"), after("b", "a"), after("c", "b"))
    tell(broker, Update, "c", priority=9)
    assert started(broker.turn(), "w1") == ["a"]


@pytest.mark.parametrize(("given", "runs_at", "own"), [(3, 6, 3), (5, 6, 5), (6, 6, None), (8, 8, None)])
def test_an_ancestors_own_priority_can_be_changed(given: int, runs_at: int, own: int | None) -> None:
    broker = a_family(spec("a", priority=5), after("c", "a", priority=6), settings=Settings(policy="strict"))
    broker.breaks("w1")
    broker.turn()
    outcome = tell(broker, Update, "a", priority=given)
    broker.turn()
    assert codes(outcome) == ["unchanged" if given == 5 else "changed"]
    assert outcome[0].priority is None, "it was given what was asked for"
    assert given == 5 or broker.last_event("updated").detail == {"priority": given}
    assert (broker.job("a").priority, broker.job("a").past.own_priority) == (runs_at, own)
    tell(broker, Cancel, "c")
    broker.turn()
    assert priorities(broker, "a") == [given]


def test_an_ancestor_that_is_given_less_than_its_child_is_lifted() -> None:
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("a", priority=8), after("c", "a", priority=6))
    broker.turn()
    tell(broker, Update, "a", priority=3)
    broker.turn()
    assert (broker.job("a").priority, broker.job("a").past.own_priority) == (6, 3)


def test_a_running_ancestor_is_lifted_for_its_next_attempt() -> None:
    broker = a_family(spec("a", priority=1), spec("x", priority=6))
    end(broker, "x", "cancelled")
    broker.turn()
    broker.submit("ann", after("c", "a", priority=8), spec("y", priority=6))
    broker.turn()
    broker.reports("w1", "a", "release")
    assert started(broker.turn(), "w1") == ["a"]


def test_what_ended_has_the_priority_that_it_was_given() -> None:
    broker = a_family(spec("a", priority=2), after("c", "a", priority=8))
    broker.turn()
    end(broker, "a", "dead")
    assert (image(broker, "a").priority, image(broker, "a").past.own_priority) == (2, None)
    broker.turn()
    tell(broker, Retry, "a")
    assert priorities(broker, "a") == [2]


def test_a_restart_keeps_both_priorities() -> None:
    broker = a_family(spec("a", priority=2), after("c", "a", priority=8))
    broker.breaks("w1")
    broker.turn()
    again = restarted(broker)
    assert (again.job("a").priority, again.job("a").past.own_priority) == (8, 2)
    tell(again, Cancel, "c")
    again.turn()
    assert priorities(again, "a") == [2]


def test_what_was_to_be_lowered_is_lowered_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("a", priority=2), after("c", "a", priority=8))
    broker.turn()
    tell(broker, Cancel, "c")
    with monkeypatch.context() as short:
        short.setattr(settle, "_LOOK_AT_JOBS", 0)
        broker.turn()
    again = restarted(broker)
    again.turn()
    assert priorities(again, "a") == [2]


@pytest.mark.parametrize("what", ["raised", "lowered"])
@pytest.mark.parametrize("turns", range(4))
def test_long_chains_take_some_turns_over_a_restart_too(
    monkeypatch: pytest.MonkeyPatch, what: str, turns: int
) -> None:
    broker = a_broker(clients=["ann"])
    names = [f"j{number}" for number in range(8)]
    broker.submit("ann", spec("j0"), *(after(b, a) for a, b in pairwise(names)))
    if what == "lowered":
        tell(broker, Update, "j7", priority=9)
        broker.turn()
        assert priorities(broker, *names) == [9] * 8
    monkeypatch.setattr(settle, "_LOOK_AT_JOBS", 4)
    tell(broker, Update, "j7", priority=9 if what == "raised" else 0)
    for _ in range(turns):
        broker.turn()
    assert turns == 0 or len(set(priorities(broker, *names[:-1]))) == 2
    again = restarted(broker)
    for _ in range(9):
        again.turn()
    assert priorities(again, *names) == ([9] * 8 if what == "raised" else [5] * 7 + [0])


def test_one_move_at_a_time_where_steps_are_that_short(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = a_broker(clients=["ann"])
    broker.submit("ann", spec("a"), after("b", "a"), after("c", "b"))
    tell(broker, Update, "c", priority=9)
    monkeypatch.setattr(settle, "_MOVES", 1)
    found = []
    for _ in range(3):
        changed = only(broker.turn(), JobChanged)
        found.append([record.job.number for record in changed])
    assert found == [[2], [1], []]


# --- what people are shown --------------------------------------------------------------------------------------------


def view(broker: Broker, name: str) -> JobView:
    effects = broker.says("ann", Status(request_id=7, job_ids=[job_id(name)]))
    for read in only(effects, Read):
        effects = broker.reads(read.request, JobsReply([image(broker, name)]))
    return sent(effects, "ann", Statuses)[0].jobs[0]


def why(broker: Broker, name: str) -> WhyReply:
    effects = broker.says("ann", Why(request_id=8, job_id=job_id(name)))
    for read in only(effects, Read):
        effects = broker.reads(read.request, JobsReply([image(broker, name)]))
    return sent(effects, "ann", WhyReply)[0]


def test_a_view_names_the_parents_and_those_that_are_not_done() -> None:
    broker = a_family(spec("p"), spec("q"), after("c", "p", "q", priority=7, delay_ms=9000))
    broker.turn()
    end(broker, "p", "done")
    broker.turn()
    shown = view(broker, "c")
    assert (shown.parents, shown.waits_for) == ([job_id("p"), job_id("q")], [job_id("q")])
    assert (shown.state, shown.due_at_ms - broker.wall_ms, shown.ahead) == ("blocked", 9000, None)
    assert (view(broker, "q").priority, view(broker, "q").own_priority) == (7, 5)
    tell(broker, Cancel, "c")
    assert (view(broker, "c").parents, view(broker, "c").waits_for) == ([job_id("p"), job_id("q")], [])


def test_why_says_for_which_jobs_it_waits_and_how_far_they_are() -> None:
    broker = a_family(spec("p"), spec("q"), after("c", "p", "q"))
    broker.turn()
    p, q = job_id("p"), job_id("q")
    text = f"it waits for 2 jobs: {short(p)} (running), {short(q)} (ready)"
    fields: dict[str, Any] = {"jobs": [to_text(p), to_text(q)], "states": ["leased", "ready"]}
    answer = why(broker, "c")
    assert answer.reasons == [Reason(code="parents", text=text, fields=fields)]
    assert answer.hints == [f"lmq why {short(p)}", f"lmq cancel {short(job_id('c'))}"]
    end(broker, "p", "done")
    broker.turn()
    assert why(broker, "c").reasons[0].text == f"it waits for 1 job: {short(q)} (running)"


def test_why_does_not_name_dozens() -> None:
    names = [f"p{number}" for number in range(9)]
    broker = a_family(*map(spec, names), after("c", *names))
    reason = why(broker, "c").reasons[0]
    assert reason.text.count("(ready)") == 5
    assert reason.text.endswith(" and 4 more")
    assert reason.fields["states"] == ["ready"] * 9


def test_why_says_that_a_job_is_lifted() -> None:
    broker = a_family(spec("x", priority=9), spec("p", priority=2), after("c", "p", priority=8))
    broker.turn()
    reason = next(each for each in why(broker, "p").reasons if each.code == "lifted")
    assert reason.text == "a job that waits for it lifts it from priority 2 to 8"
    assert reason.fields == {"priority": 8, "own_priority": 2}


def test_why_says_which_parent_failed_and_to_retry_it_first() -> None:
    broker = a_failed("dead", after("c", "p"))
    answer = why(broker, "c")
    assert answer.reasons[0].text == f"it is cancelled: its parent {short(job_id('p'))} is dead"
    assert answer.hints == [f"lmq retry {short(job_id('p'))}", f"lmq retry {short(job_id('c'))}"]


# --- how ended jobs are remembered ------------------------------------------------------------------------------------


def test_of_an_ended_job_its_number_and_how_it_ended_are_known() -> None:
    finished = FinishedJobs()
    finished.add(b"a", 7, "ann", State.DONE, 5)
    finished.add(b"b", 1 << 40, "tom", State.DEAD, 0)
    finished.add(b"c", 9, "ann", State.DONE, 5)
    assert list(finished.items()) == [(b"a", 7), (b"b", 1 << 40), (b"c", 9)]
    assert finished.ended(b"b") == Ended("tom", State.DEAD, 0)
    assert finished.ended(b"a") is finished.ended(b"c")
    assert (finished.ended(b"x"), finished.get(b"x", 0), b"x" in finished, len(finished)) == (
        None,
        0,
        False,
        3,
    )


def test_kinds_of_ended_jobs_that_are_gone_leave_their_place_to_others() -> None:
    finished = FinishedJobs()
    for number in range(1, 1000):
        finished.add(b"%d" % number, number, f"user {number}", State.DONE, 5)
        finished.add(b"stays", 1000, "ann", State.DEAD, 1)
        assert finished.pop(b"%d" % number) == number
        assert finished.pop(b"stays") == 1000
    assert finished.pop(b"1") == 0
    finished.add(b"a", 1, "ann", State.DONE, 5)
    finished.add(b"b", 2, "tom", State.DEAD, 5)
    assert (finished.ended(b"a"), finished.ended(b"b")) == (
        Ended("ann", State.DONE, 5),
        Ended("tom", State.DEAD, 5),
    )
    assert len(finished._kinds) == 2
