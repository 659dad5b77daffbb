"""A job is submitted: accepted, recognised, or refused with an error that says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.chronicle import channel
from lmq_broker.core.effects import Send
from lmq_broker.core.records import EventsAdded, JobAdded
from lmq_broker.core.settings import Settings, TaskDefaults
from lmq_broker.core.stimuli import DiskChanged, SettingsChanged, Stop
from lmq_proto import bounds
from lmq_proto.ids import PeerId
from lmq_proto.messages import Drain, Outcome, Submit, Submitted
from lmq_proto.states import State
from unit.broker.builders import (
    WALL_MS,
    a_broker,
    error,
    held,
    idle,
    instance,
    job_id,
    on_disk,
    only,
    outcomes,
    ready,
    running,
    sent,
    spec,
)


def test_an_accepted_job_is_journaled_with_its_payload_before_the_reply() -> None:
    broker = a_broker(clients=["ann"])
    position = broker.state.position
    effects = broker.submit("ann", spec("a", payload=b"hello", task_type="chat"), payloads=[b"hello"])
    added, reply = effects
    assert isinstance(added, JobAdded)
    assert (added.job.id, added.job.user, added.job.state, added.payload) == (
        job_id("a"),
        "ann",
        "ready",
        b"hello",
    )
    accepted = Outcome(job_id=job_id("a"), outcome="accepted", channel=channel(broker.state, job_id("a")))
    assert reply == Send(PeerId(b"ann"), Submitted(request_id=2, outcomes=[accepted]), after=position + 1)
    events = only(broker.turn(), EventsAdded)[0].events
    assert [(event.kind, event.job_id, event.user) for event in events] == [("accepted", job_id("a"), "ann")]


def test_what_is_absent_is_as_the_task_type_says() -> None:
    broker = a_broker(jobs=[ready("a", task_type="chat"), ready("b", task_type="bulk_embed"), ready("c")])
    told = {
        name: (
            broker.job(name).priority,
            broker.job(name).terms.failures_max,
            broker.job(name).terms.timeout_ms,
            broker.job(name).queue,
        )
        for name in "abc"
    }
    assert told == {
        "a": (5, 3, 600_000, "default"),
        "b": (2, 1, 3_600_000, "default"),
        "c": (5, 3, 600_000, "default"),
    }


def test_what_is_given_wins_over_the_defaults() -> None:
    given: dict[str, Any] = {
        "priority": 0,
        "failures": 7,
        "timeout_ms": 5,
        "keep_ms": 6,
        "queue": "night",
        "labels": {"a": "b"},
    }
    job = a_broker(jobs=[ready("a", **given)]).job("a")
    assert (job.priority, job.terms.failures_max, job.terms.timeout_ms) == (0, 7, 5)
    assert (job.terms.keep_ms, job.queue, job.terms.labels) == (6, "night", {"a": "b"})


def test_new_defaults_are_for_new_jobs() -> None:
    broker = a_broker(jobs=[ready("a")])
    fast = TaskDefaults(priority=9, failures=1, timeout_ms=1, queue="fast")
    broker.step(SettingsChanged(Settings(task_defaults={"echo": fast})))
    broker.submit("ann", spec("b"))
    assert (broker.job("a").priority, broker.job("a").terms.failures_max) == (5, 3)
    assert (broker.job("b").priority, broker.job("b").terms.failures_max, broker.job("b").queue) == (
        9,
        1,
        "fast",
    )


def test_payloads_of_a_batch_go_to_their_jobs() -> None:
    broker = a_broker(clients=["ann"])
    batch = [spec("a", payload=b"1"), spec("b"), spec("c", payload=b"333")]
    effects = broker.submit("ann", *batch, payloads=[b"1", b"", b"333"])
    assert [added.payload for added in only(effects, JobAdded)] == [b"1", b"", b"333"]
    assert [added.job.number for added in only(effects, JobAdded)] == [1, 2, 3]


# --- recognised -------------------------------------------------------------------------------------------------------


def test_the_same_id_again_is_a_duplicate() -> None:
    broker = a_broker(jobs=[ready("a")])
    effects = broker.submit("ann", spec("a"))
    assert outcomes(effects) == [
        Outcome(job_id=job_id("a"), outcome="duplicate", channel=channel(broker.state, job_id("a")))
    ]
    assert not only(effects, JobAdded)
    assert len(broker.state.jobs) == 1


def test_the_same_key_of_the_same_user_is_the_job_that_was_there_first() -> None:
    broker = a_broker(jobs=[ready("a", key="norms", payload=b"x")])
    found = outcomes(broker.submit("ann", spec("b", key="norms", payload=b"x"), payloads=[b"x"]))
    assert [(each.outcome, each.job_id) for each in found] == [("duplicate", job_id("a"))]


def test_the_same_key_of_another_user_is_another_job() -> None:
    broker = a_broker(jobs=[ready("a", key="norms")], clients=["tom"])
    assert outcomes(broker.submit("tom", spec("b", key="norms")))[0].outcome == "accepted"


def test_another_payload_under_the_same_key_is_a_conflict() -> None:
    broker = a_broker(jobs=[ready("a", key="norms", payload=b"x")])
    refused = outcomes(broker.submit("ann", spec("b", key="norms", payload=b"y"), payloads=[b"y"]))[0]
    assert refused.outcome == "refused"
    assert refused.error is not None
    assert refused.error.code == "idempotency_conflict"
    assert job_id("b") not in broker.state.jobs


def test_a_job_that_has_ended_is_recognised_by_id_and_key() -> None:
    broker = a_broker(jobs=[running("a", key="norms")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete")
    found = outcomes(broker.submit("ann", spec("a"), spec("b", key="norms")))
    assert [(each.outcome, each.job_id) for each in found] == [("duplicate", job_id("a"))] * 2


def test_an_id_twice_in_one_batch_is_one_job() -> None:
    broker = a_broker(clients=["ann"])
    assert [each.outcome for each in outcomes(broker.submit("ann", spec("a"), spec("a")))] == [
        "accepted",
        "duplicate",
    ]


# --- refused as a whole -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, bounds.BATCH_JOBS + 1])
def test_a_batch_has_one_to_a_thousand_jobs(count: int) -> None:
    broker = a_broker(clients=["ann"])
    refused = error(broker.submit("ann", *[spec(f"j{number}") for number in range(count)]))
    assert (refused.code, refused.fields["field"]) == ("bad_field", "jobs")
    assert not broker.state.jobs


@pytest.mark.parametrize("sizes", [(3,), (2, 3), (5, -1)])
def test_lengths_that_do_not_fit_the_body_refuse_all_of_it(sizes: tuple[int, ...]) -> None:
    broker = a_broker(clients=["ann"])
    specs = [spec(f"j{number}", payload_bytes=size) for number, size in enumerate(sizes)]
    assert error(broker.submit("ann", *specs, payloads=[b"1234"])).code == "protocol_error"
    assert not broker.state.jobs


def test_while_the_disk_is_full_submits_are_refused_and_reads_go_on() -> None:
    broker = a_broker(jobs=[ready("a")])
    broker.step(DiskChanged("full", 1000, 5000))
    refused = error(broker.submit("ann", spec("b")))
    assert (refused.code, refused.retryable) == ("disk_full", True)
    assert (refused.fields["free_bytes"], refused.fields["floor_bytes"]) == (1000, 5000)
    broker.step(DiskChanged("", 9000, 5000))
    assert outcomes(broker.submit("ann", spec("b")))[0].outcome == "accepted"


def test_a_broker_that_stops_takes_nothing_more() -> None:
    broker = a_broker(clients=["ann"])
    broker.step(Stop())
    assert error(broker.submit("ann", spec("a"))).code == "stopping"


def test_nobody_may_submit_for_another_user_but_an_admin_a_gateway_and_an_app_in_its_namespace() -> None:
    broker = a_broker(clients=["ann"])
    for role, principal, as_user, code in (
        ("user", "ann", "tom", "not_allowed"), ("user", "ann", "ann", ""), ("app", "shop", "tom", "not_allowed"),
        ("app", "shop", "shopper/tom", "not_allowed"), ("app", "shop", "shop/tom", ""), ("gateway", "web", "tom", ""),
        ("admin", "root", "tom", ""),
    ):  # fmt: skip
        broker.role("ann", role, principal=principal)
        effects = broker.submit("ann", spec(f"{role}{as_user}"), as_user=as_user)
        assert (error(effects).code if code else outcomes(effects)[0].outcome) == (code or "accepted"), role


def test_a_name_that_cannot_be_one_is_no_user() -> None:
    broker = a_broker(clients=["ann"])
    assert error(broker.submit("ann", spec("a"), as_user="tom\n")).fields["field"] == "as_user"


def test_a_session_follows_a_bounded_number_of_jobs() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(follows=1))
    broker.submit("ann", spec("a"), follow=True)
    refused = error(broker.submit("ann", spec("b"), follow=True))
    assert (refused.code, refused.fields["field"]) == ("bad_field", "follow")
    assert outcomes(broker.submit("ann", spec("b")))[0].outcome == "accepted"


# --- refused one by one -----------------------------------------------------------------------------------------------

LONG = "x" * (bounds.NAME_CHARS + 1)
BAD_FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("id", {"id": b""}), ("id", {"id": bytes(15)}), ("id", {"id": bytes(17)}),
    ("task_type", {"task_type": ""}), ("task_type", {"task_type": LONG}), ("task_type", {"task_type": "a\x00b"}),
    ("queue", {"queue": LONG}), ("queue", {"queue": "a\tb"}),
    ("priority", {"priority": -1}), ("priority", {"priority": bounds.PRIORITY_MAX + 1}),
    ("models", {"models": ["m"] * (bounds.MODELS + 1)}), ("model", {"models": [""]}), ("model", {"models": [LONG]}),
    ("labels", {"labels": {str(number): "" for number in range(bounds.LABELS + 1)}}),
    ("label name", {"labels": {"": "v"}}), ("label name", {"labels": {LONG: "v"}}),
    ("label chat", {"labels": {"chat": "v" * (bounds.LABEL_CHARS + 1)}}),
    ("key", {"key": "k" * (bounds.KEY_CHARS + 1)}), ("session", {"session": LONG}),
    ("delay_ms", {"delay_ms": -1}), ("delay_ms", {"delay_ms": bounds.DURATION_MS + 1}),
    ("expires_ms", {"expires_ms": -1}), ("expires_ms", {"expires_ms": bounds.DURATION_MS + 1}),
    ("timeout_ms", {"timeout_ms": -1}), ("timeout_ms", {"timeout_ms": bounds.DURATION_MS + 1}),
    ("keep_ms", {"keep_ms": -1}), ("keep_ms", {"keep_ms": bounds.DURATION_MS + 1}),
    ("at_ms", {"at_ms": -1}), ("at_ms", {"at_ms": 1 << 60}),
    ("failures", {"failures": -1}), ("failures", {"failures": bounds.FAILURES_MAX + 1}),
    ("prompt_tokens", {"prompt_tokens": -1}), ("output_tokens", {"output_tokens": (1 << 31) + 1}),
    ("parents", {"parents": [bytes(15)]}), ("parents", {"parents": [bytes(16), bytes(16)]}),
    ("parents", {"parents": [job_id("bad")]}),
    ("parents", {"parents": [bytes([number]) * 16 for number in range(bounds.PARENTS + 1)]}),
    ("root", {"root": bytes(15)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("field", "given"), BAD_FIELDS, ids=[str(number) for number in range(len(BAD_FIELDS))]
)
def test_a_field_out_of_its_bounds_is_named_and_the_others_are_accepted(
    field: str, given: dict[str, Any]
) -> None:
    broker = a_broker(clients=["ann"])
    bad, good = outcomes(broker.submit("ann", spec("bad", **given), spec("good")))
    assert (bad.outcome, good.outcome) == ("refused", "accepted")
    assert bad.error is not None
    assert (bad.error.code, bad.error.fields["field"]) == ("bad_field", field)
    assert list(broker.state.jobs) == [job_id("good")]
    assert broker.state.refused == {"bad_field": 1}


@pytest.mark.parametrize(
    "given",
    [
        {"priority": 0}, {"priority": bounds.PRIORITY_MAX}, {"models": ["m"] * bounds.MODELS},
        {"labels": {str(number): "v" * bounds.LABEL_CHARS for number in range(bounds.LABELS)}},
        {"key": "k" * bounds.KEY_CHARS}, {"delay_ms": bounds.DURATION_MS}, {"expires_ms": bounds.DURATION_MS},
        {"failures": bounds.FAILURES_MAX}, {"queue": "x" * bounds.NAME_CHARS}, {"task_type": "Überprüfung 検査"},
    ],
)  # fmt: skip
def test_a_field_at_its_bound_is_accepted(given: dict[str, Any]) -> None:
    broker = a_broker(clients=["ann"])
    assert outcomes(broker.submit("ann", spec("a", **given)))[0].outcome == "accepted"


def refusal(given: list[Outcome]) -> tuple[str, dict[str, Any]]:
    assert given[-1].error is not None
    return given[-1].error.code, dict(given[-1].error.fields)


def test_a_payload_over_its_size_is_too_large() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(payload_bytes=4))
    assert (
        outcomes(broker.submit("ann", spec("a", payload=b"1234"), payloads=[b"1234"]))[0].outcome
        == "accepted"
    )
    found = refusal(outcomes(broker.submit("ann", spec("b", payload=b"12345"), payloads=[b"12345"])))
    assert found == ("too_large", {"field": "payload", "value": 5, "limit": 4})


def test_a_full_broker_says_when_to_come_back() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")], settings=Settings(jobs_open=2))
    found = refusal(outcomes(broker.submit("ann", spec("c"))))
    assert found == (
        "limit_reached",
        {"limit": "jobs_open", "value": 2, "limit_value": 2, "retry_after_s": None},
    )


def test_the_wait_is_reckoned_from_how_fast_jobs_end() -> None:
    broker = a_broker(
        jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)], settings=Settings(jobs_open=2)
    )
    broker.reports("w1", "a", "complete")
    broker.submit("ann", spec("c"))
    assert refusal(outcomes(broker.submit("ann", spec("d"))))[1]["retry_after_s"] == 30.0


def test_a_user_has_a_bound_of_its_own() -> None:
    broker = a_broker(jobs=[ready("a")], clients=["tom"], settings=Settings(jobs_open_per_user=1))
    assert refusal(outcomes(broker.submit("ann", spec("b"))))[1]["limit"] == "jobs_open_per_user"
    assert outcomes(broker.submit("tom", spec("c")))[0].outcome == "accepted"


def test_a_duplicate_is_recognised_even_when_full() -> None:
    broker = a_broker(jobs=[ready("a")], settings=Settings(jobs_open=1))
    assert outcomes(broker.submit("ann", spec("a")))[0].outcome == "duplicate"


def test_a_batch_fills_up_to_the_bound_and_refuses_the_rest() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(jobs_open=2))
    found = outcomes(broker.submit("ann", spec("a"), spec("b"), spec("c")))
    assert [each.outcome for each in found] == ["accepted", "accepted", "refused"]


def test_a_draining_queue_takes_no_more() -> None:
    broker = a_broker(clients=["ann"])
    broker.says("ann", Drain(request_id=9, noun="queue", name="night"))
    assert refusal(outcomes(broker.submit("ann", spec("a", queue="night")))) == (
        "queue_draining",
        {"queue": "night"},
    )
    assert outcomes(broker.submit("ann", spec("b")))[0].outcome == "accepted"


def test_a_model_that_no_known_endpoint_has_is_refused_with_the_nearest() -> None:
    loaded = [instance(model="qwen/qwen3-8b", kind="llm")]
    broker = a_broker(clients=["ann"], workers=[idle("w1", instances=loaded, catalog=on_disk("llama-8b"))])
    code, fields = refusal(outcomes(broker.submit("ann", spec("a", models=["qwen3-9b"]))))
    assert (code, fields["model"]) == ("unknown_model", "qwen3-9b")
    assert "qwen/qwen3-8b" in fields["nearest"]
    for name in ("qwen3-8b", "QWEN/qwen3-8b", "qwen3-8b:2", "llama-8b"):
        assert outcomes(broker.submit("ann", spec(name, models=["nothing", name])))[0].outcome == "accepted"


def test_before_any_worker_came_any_model_is_taken() -> None:
    broker = a_broker(clients=["ann"])
    assert outcomes(broker.submit("ann", spec("a", models=["whatever"])))[0].outcome == "accepted"


def test_a_model_may_be_awaited_while_its_worker_is_away() -> None:
    broker = a_broker(clients=["ann"], workers=[idle("w1", instances=[instance(model="m1", kind="llm")])])
    broker.breaks("w1")
    broker.pass_time(5000, hearing=["ann"])
    assert broker.at("w1").peer is None
    assert outcomes(broker.submit("ann", spec("a", models=["m1"])))[0].outcome == "accepted"


# --- atomic -----------------------------------------------------------------------------------------------------------


def test_an_atomic_batch_is_refused_whole_for_one_bad_job() -> None:
    broker = a_broker(clients=["ann"])
    found = outcomes(broker.submit("ann", spec("a"), spec("b", priority=11), spec("c"), atomic=True))
    assert [each.outcome for each in found] == ["refused"] * 3
    assert {each.error.fields["field"] for each in found if each.error} == {"priority"}
    assert not broker.state.jobs


def test_an_atomic_batch_that_does_not_fit_as_a_whole_is_refused() -> None:
    broker = a_broker(jobs=[ready("a")], settings=Settings(jobs_open=2))
    found = outcomes(broker.submit("ann", spec("b"), spec("c"), atomic=True))
    assert [each.outcome for each in found] == ["refused"] * 2
    assert list(broker.state.jobs) == [job_id("a")]


def test_an_atomic_batch_in_order_is_accepted_and_its_repeat_recognised() -> None:
    broker = a_broker(clients=["ann"])
    for outcome in ("accepted", "duplicate"):
        found = outcomes(broker.submit("ann", spec("a", key="k1"), spec("b"), atomic=True))
        assert [each.outcome for each in found] == [outcome] * 2


def test_an_atomic_batch_with_a_conflict_is_refused_whole() -> None:
    broker = a_broker(jobs=[ready("a", key="k", payload=b"x")])
    found = outcomes(
        broker.submit("ann", spec("b"), spec("c", key="k", payload=b"y"), payloads=[b"y"], atomic=True)
    )
    assert {each.error.code for each in found if each.error} == {"idempotency_conflict"}
    assert job_id("b") not in broker.state.jobs


# --- later ------------------------------------------------------------------------------------------------------------


def test_a_delay_and_a_date_make_a_job_wait() -> None:
    broker = a_broker(
        jobs=[ready("a", delay_ms=5000), ready("b", at_ms=WALL_MS + 7000), ready("c", at_ms=WALL_MS - 1)]
    )
    assert [broker.job(name).state for name in "abc"] == [State.DELAYED, State.DELAYED, State.READY]
    assert [broker.job(name).due_at_ms - WALL_MS for name in "ab"] == [5000, 7000]


def test_a_date_wins_over_a_delay() -> None:
    broker = a_broker(jobs=[ready("a", delay_ms=5000, at_ms=WALL_MS + 1)])
    assert broker.job("a").due_at_ms == WALL_MS + 1


def test_a_submit_of_a_stranger_is_answered_with_who_and_not_carried_out() -> None:
    broker = a_broker()
    effects = broker.says("tom", Submit(request_id=1, jobs=[spec("a")]))
    assert [type(effect.message).__name__ for effect in only(effects, Send)] == ["Who"]
    assert not broker.state.jobs


def test_a_worker_that_submits_is_told_that_it_may_not() -> None:
    broker = a_broker(workers=[idle("w1")], jobs=[running("a")])
    assert error(broker.submit("w1", spec("b"))).code == "protocol_error"
    assert held(broker, "a").attempt == 1
    assert not sent(broker.turn(), "w1", Submitted)
