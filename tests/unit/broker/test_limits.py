"""Limits, one story at a time; that none is ever exceeded is shown in tests/property/broker/test_limits.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmq_broker.core import eta, room
from lmq_broker.core.effects import WakeAt
from lmq_broker.core.floors import counts
from lmq_broker.core.limits import Bucket, Limits
from lmq_broker.core.records import MetaSet
from lmq_broker.core.recover import recover
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import Job
from lmq_broker.core.stimuli import Now, SettingsChanged
from lmq_proto.bounds import DURATION_MS
from lmq_proto.messages import (
    Done,
    ErrorReply,
    Limit,
    LimitsReply,
    ListLimits,
    Pause,
    ResetLimits,
    SetLimit,
    Status,
    Statuses,
    Why,
    WhyReply,
)
from unit.broker.builders import (
    MONO_MS,
    WALL_MS,
    a_broker,
    a_memory,
    drained,
    error,
    idle,
    instance,
    job_id,
    leases,
    only,
    outcomes,
    ready,
    running,
    sent,
    spec,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_proto.messages import Enlist
    from unit.broker.builders import Broker, Planned


def limited(*limits: Limit, policy: str = "blfq", **fields: Any) -> Settings:
    return Settings(policy=policy, limits=limits, **fields)


def sets(broker: Broker, of: str, value: float, **fields: Any) -> Done:
    effects = broker.says("ann", SetLimit(request_id=9, limit=Limit(of=of, value=value, **fields)))
    return sent(effects, "ann", Done)[0]


def names(broker: Broker, worker: str = "w1") -> list[str]:
    return started(broker.turn(), worker)


@pytest.mark.parametrize("policy", ["blfq", "strict"])
def test_so_many_of_a_task_type_run_at_once(policy: str) -> None:
    settings = limited(Limit(of="running", value=2, task_type="train"), policy=policy)
    jobs = [ready(f"t{number}", task_type="train") for number in range(4)]
    broker = a_broker(jobs=[*jobs, ready("e")], workers=[idle("w1", slots=8)], settings=settings)
    assert sorted(names(broker)) == ["e", "t0", "t1"]
    assert not names(broker)
    broker.reports("w1", "t0", "complete")
    assert names(broker) == ["t2"]


@pytest.mark.parametrize("policy", ["blfq", "strict"])
def test_each_user_by_itself_and_nobody_waits_for_another(policy: str) -> None:
    settings = limited(Limit(of="running", value=1, user="*"), policy=policy)
    jobs = [*(ready(f"a{number}") for number in range(3)), ready("t", user="tom")]
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=8)], settings=settings)
    assert sorted(names(broker)) == ["a0", "t"]
    broker.reports("w1", "t", "complete")
    assert not names(broker)
    broker.reports("w1", "a0", "complete")
    assert names(broker) == ["a1"]


def test_one_user_has_a_limit_of_its_own() -> None:
    settings = limited(Limit(of="running", value=1, user="tom"))
    jobs = [*(ready(f"a{n}") for n in range(2)), *(ready(f"t{n}", user="tom") for n in range(2))]
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=8)], settings=settings)
    assert sorted(names(broker)) == ["a0", "a1", "t0"]


def test_a_limit_earns_no_credit() -> None:
    settings = limited(Limit(of="running", value=0, user="tom"))
    jobs = [*(ready(f"a{n}") for n in range(6)), *(ready(f"t{n}", user="tom") for n in range(6))]
    broker = a_broker(jobs=jobs, workers=[idle("w1")], settings=settings)
    for number in range(3):
        assert names(broker) == [f"a{number}"]
        broker.reports("w1", f"a{number}", "complete")
    sets(broker, "running", 10, user="tom")
    order = drained(broker)
    assert [each[0] for each in order[:4]] in (["t", "a", "t", "a"], ["a", "t", "a", "t"])


def test_a_worker_and_a_model_have_limits() -> None:
    settings = limited(Limit(of="running", value=1, worker="w1"), Limit(of="running", value=1, model="big"))
    big = instance("big", model="big", kind="llm", slots=4)
    broker = a_broker(
        jobs=[ready(f"c{n}", task_type="chat", models=["big"]) for n in range(4)] + [ready("e0"), ready("e1")],
        workers=[idle("w1", slots=4), idle("w2", instances=[big])], settings=settings,
    )  # fmt: skip
    effects = broker.turn()
    assert len(started(effects, "w1")) == 1
    assert len(started(effects, "w2")) <= 1
    assert (
        sum(
            len([each for each in leases(effects, name) if each.task_type == "chat"]) for name in ("w1", "w2")
        )
        == 1
    )


def test_what_waits_has_a_bound_and_the_refusal_names_it() -> None:
    settings = limited(Limit(of="queued", value=2, user="*"))
    broker = a_broker(clients=["ann", "tom"], workers=[idle("w1")], settings=settings)
    broker.submit("tom", spec("x"))
    broker.turn()
    broker.reports("w1", "x", "complete")
    told = [each.outcome for each in outcomes(broker.submit("ann", spec("a"), spec("b"), spec("c")))]
    assert told == ["accepted", "accepted", "refused"]
    refused = outcomes(broker.submit("ann", spec("d")))[0].error
    assert refused is not None
    assert refused.code == "limit_reached"
    assert refused.fields["limit"] == "queued user=*"
    assert (refused.fields["value"], refused.fields["limit_value"]) == (2, 2)
    assert float(str(refused.fields["retry_after_s"])) > 0
    assert outcomes(broker.submit("tom", spec("e")))[0].outcome == "accepted"


def again_in(broker: Broker) -> object:
    """Return when a refused job may be submitted again."""
    refused = outcomes(broker.submit("ann", spec("z")))[0].error
    assert refused is not None
    return refused.fields["retry_after_s"]


def full_of(*jobs: Planned, workers: Sequence[Enlist] = ()) -> Broker:
    return a_broker(jobs=jobs, workers=workers, settings=limited(Limit(of="queued", value=len(jobs))))


def test_a_limit_that_delayed_jobs_fill_has_room_when_the_first_is_due() -> None:
    broker = full_of(ready("a", delay_ms=3_600_000), ready("b", delay_ms=1_800_000), workers=[idle("w1")])
    assert again_in(broker) == 1800.0


def test_what_a_pause_holds_is_not_said_to_go_soon() -> None:
    broker = full_of(ready("a"), ready("b"), workers=[idle("w1")])
    broker.says("ann", Pause(request_id=5, noun="queue", name="default"))
    assert again_in(broker) is None
    refused = outcomes(broker.submit("ann", spec("y")))[0].error
    assert refused is not None
    assert refused.message.endswith("until when is not known")


@pytest.mark.parametrize(("running_max", "is_known"), [(0, False), (1, True)])
def test_what_a_limit_holds_goes_soon_unless_that_lets_nothing_through(
    running_max: int, is_known: bool
) -> None:
    broker = a_broker(jobs=[running("y"), running("x"), ready("a")], workers=[idle("w1", slots=2)])
    broker.reports("w1", "y", "complete")
    sets(broker, "queued", 1)
    sets(broker, "running", running_max)
    assert (again_in(broker) is not None) is is_known


def test_what_no_worker_takes_is_not_said_to_go_soon_at_whatever_limit() -> None:
    broker = full_of(ready("a", task_type="paint"), workers=[idle("w1")])
    sets(broker, "running", 1)
    assert again_in(broker) is None


def test_what_waits_for_a_worker_is_not_said_to_go_soon_until_one_comes() -> None:
    broker = full_of(ready("a"), ready("b", delay_ms=60_000))
    assert again_in(broker) == 60.0, "a worker may have come for the second by then"
    broker.worker(idle("w1"))
    broker.turn(1000)
    broker.reports("w1", "a", "complete")
    broker.submit("ann", spec("c"))
    assert again_in(broker) == 30.0, "as fast as jobs end"


def test_a_flood_of_refusals_looks_at_the_jobs_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    look = room._look

    def counted(*given: Any) -> Any:
        looked.append(given)
        return look(*given)

    monkeypatch.setattr(room, "_look", counted)
    broker = full_of(ready("a", delay_ms=60_000))
    broker.submit("ann", *(spec(f"x{number}") for number in range(50)))
    assert len(looked) == 1
    broker.turn(1000)
    again_in(broker)
    assert len(looked) == 2


def test_what_runs_waits_no_more_and_what_comes_back_waits_again() -> None:
    settings = limited(Limit(of="queued", value=1))
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], settings=settings)
    assert outcomes(broker.submit("ann", spec("b")))[0].outcome == "accepted"
    assert outcomes(broker.submit("ann", spec("c")))[0].outcome == "refused"
    broker.cancel("ann", "b")
    assert outcomes(broker.submit("ann", spec("c")))[0].outcome == "accepted"


def test_payload_bytes_have_a_bound() -> None:
    broker = a_broker(clients=["ann"], settings=limited(Limit(of="bytes", value=10, queue="default")))
    assert (
        outcomes(broker.submit("ann", spec("a", payload=b"123456"), payloads=[b"123456"]))[0].outcome
        == "accepted"
    )
    refused = outcomes(broker.submit("ann", spec("b", payload=b"123456"), payloads=[b"123456"]))[0]
    assert refused.outcome == "refused"


def test_an_atomic_batch_that_is_too_many_is_refused_as_a_whole() -> None:
    broker = a_broker(clients=["ann"], settings=limited(Limit(of="queued", value=2)))
    told = outcomes(broker.submit("ann", spec("a"), spec("b"), spec("c"), atomic=True))
    assert [each.outcome for each in told] == ["refused"] * 3


@pytest.mark.parametrize("policy", ["blfq", "strict"])
def test_a_rate_parks_what_is_over_it(policy: str) -> None:
    rate = Limit(of="jobs", value=2, per_ms=10_000, queue="gmail")
    jobs: list[Planned] = [ready(f"g{number}", queue="gmail") for number in range(4)]
    broker = a_broker(
        jobs=[*jobs, ready("e")], workers=[idle("w1", slots=8)], settings=limited(rate, policy=policy)
    )
    assert sorted(names(broker)) == ["e", "g0", "g1"]
    assert not started(broker.turn(4_000), "w1")
    assert started(broker.turn(1_001), "w1") == ["g2"]
    assert not started(broker.turn(4_000), "w1")
    assert started(broker.turn(1_000), "w1") == ["g3"]


def test_the_broker_wakes_when_a_rate_has_room() -> None:
    rate = Limit(of="jobs", value=1, per_ms=300, user="*")
    broker = a_broker(jobs=[ready("a"), ready("b")], workers=[idle("w1", slots=8)], settings=limited(rate))
    effects = broker.turn()
    assert started(effects, "w1") == ["a"]
    assert only(effects, WakeAt)[0].mono_ms <= broker.mono_ms + 301
    assert started(broker.turn(301), "w1") == ["b"]


def test_a_rate_that_refuses_says_when_to_come_back() -> None:
    rate = Limit(of="jobs", value=1, per_ms=60_000, user="*", refuse=True)
    broker = a_broker(clients=["ann"], settings=limited(rate))
    told = outcomes(broker.submit("ann", spec("a"), spec("b")))
    assert [each.outcome for each in told] == ["accepted", "refused"]
    assert told[1].error is not None
    assert told[1].error.fields["retry_after_s"] == 60.0
    broker.pass_time(60_001, hearing=["ann"])
    assert outcomes(broker.submit("ann", spec("b")))[0].outcome == "accepted"


@pytest.mark.parametrize("another", [False, True], ids=["no other", "another set meanwhile"])
def test_tokens_have_a_rate_that_is_trued_up(*, another: bool) -> None:
    rate = Limit(of="tokens", value=1000, per_ms=1000, task_type="chat", burst=100)
    chat = instance("m", model="m", kind="llm", slots=8)
    jobs = [
        ready(f"c{number}", task_type="chat", prompt_tokens=400, output_tokens=600) for number in range(3)
    ]
    broker = a_broker(jobs=jobs, workers=[idle("w1", instances=[chat])], settings=limited(rate))
    assert names(broker) == ["c0"]
    assert not started(broker.turn(400), "w1")
    if another:
        sets(broker, "running", 5, user="eve")
    # It took a third of what was predicted: the next one may come sooner.
    broker.reports("w1", "c0", "complete", prompt_tokens=100, output_tokens=100)
    assert started(broker.turn(1), "w1") == ["c1"]


def test_a_limit_set_by_command_wins_until_it_is_reset() -> None:
    broker = a_broker(
        jobs=[ready(f"t{n}", task_type="train") for n in range(3)], workers=[idle("w1", slots=8)],
        settings=limited(Limit(of="running", value=1, task_type="train")),
    )  # fmt: skip
    assert names(broker) == ["t0"]
    assert sets(broker, "running", 2, task_type="train").changed
    assert not sets(broker, "running", 2, task_type="train").changed
    assert names(broker) == ["t1"]
    reset = broker.says("ann", ResetLimits(request_id=4, name="running task_type=train"))
    assert sent(reset, "ann", Done)[0].changed
    broker.reports("w1", "t0", "complete")
    assert not names(broker)
    assert [event.kind for event in broker.events if event.kind.startswith("limit")] == [
        "limit_set",
        "limit_reset",
    ]


def test_minus_one_lifts_a_limit_of_the_file() -> None:
    broker = a_broker(
        jobs=[ready(f"t{n}", task_type="train") for n in range(3)], workers=[idle("w1", slots=8)],
        settings=limited(Limit(of="running", value=1, task_type="train")),
    )  # fmt: skip
    sets(broker, "running", -1, task_type="train")
    assert names(broker) == ["t0", "t1", "t2"]


def test_a_limit_says_which_of_its_names_nothing_has() -> None:
    broker = a_broker(
        workers=[idle("w1", instances=[instance(model="pub/m1", kind="llm")], queues=["q"])], clients=["ann"]
    )
    for names in (
        {"worker": "w1", "model": "m1", "queue": "q"}, {"worker": "w9"}, {"model": "m9"}, {"queue": "r"},
        {"queue": "default"}, {"user": "zoe"},
    ):  # fmt: skip
        sets(broker, "running", 1, **names)
    found = sent(broker.says("ann", ListLimits(request_id=5)), "ann", LimitsReply)[0].limits
    assert [each.unknown for each in found if each.unknown] == [["model=m9"], ["queue=r"], ["worker=w9"]]


def test_limits_are_listed_with_what_is_used_of_them() -> None:
    settings = limited(Limit(of="running", value=4, user="*"), Limit(of="queued", value=100))
    broker = a_broker(jobs=[running("a"), running("b"), ready("c"), running("t", user="tom")],
                      workers=[idle("w1", slots=3)], settings=settings)  # fmt: skip
    sets(broker, "jobs", 5, per_ms=1000, queue="q")
    found = sent(broker.says("ann", ListLimits(request_id=5)), "ann", LimitsReply)[0].limits
    assert [(each.name, each.origin, each.used, each.used_by) for each in found] == [
        ("jobs queue=q", "command", 0.0, ""),
        ("queued", "file", 1.0, ""),
        ("running user=*", "file", 2.0, "ann"),
    ]


def test_limits_and_rates_outlive_the_broker() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")], workers=[idle("w1", slots=8)], clients=["ann"])
    sets(broker, "jobs", 1, per_ms=60_000)
    sets(broker, "running", 3, worker="w1")
    assert names(broker) == ["a"]
    meta = {each.name: each.value for each in only(broker.journal, MetaSet)}
    again = a_broker(
        jobs=[ready("c")],
        workers=[idle("w1", slots=8)],
        memory=a_memory(meta=meta),
        settings=Settings(policy="blfq"),
    )
    found = sent(again.says("ann", ListLimits(request_id=5)), "ann", LimitsReply)[0].limits
    assert {each.name for each in found} == {"jobs", "running worker=w1"}
    assert not names(again), "the rate was used up before"
    assert started(again.pass_time(60_001, hearing=["w1", "ann"]), "w1") == ["c"]
    assert (again.state.started_ms, again.state.started_at_ms) == (MONO_MS, WALL_MS)


@pytest.mark.parametrize(
    ("limit", "field"),
    [
        (Limit(of="speed", value=1), "of"),
        (Limit(of="running", value=-2), "value"),
        (Limit(of="jobs", value=1), "per_ms"),
        (Limit(of="jobs", value=0, per_ms=1000), "value"),
        (Limit(of="tokens", value=1e-296, per_ms=1000), "value"),
        (Limit(of="jobs", value=0.9, per_ms=DURATION_MS), "value"),
        (Limit(of="running", value=1, refuse=True), "per_ms"),
        (Limit(of="queued", value=1, worker="w1"), "worker"),
        (Limit(of="running", value=1, resource="gpu", user="ann"), "resource"),
        (Limit(of="depth", value=1, user="ann"), "user"),
        (Limit(of="running", value=1, user="a\nb"), "user"),
    ],
)
def test_a_limit_that_says_nothing_is_refused(limit: Limit, field: str) -> None:
    broker = a_broker(clients=["ann"])
    told = error(broker.says("ann", SetLimit(request_id=9, limit=limit)))
    assert (told.code, told.fields["field"]) == ("bad_field", field)


def test_a_rate_of_one_in_a_year_is_the_slowest() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")], workers=[idle("w1", slots=8)])
    slowest = Limit(of="jobs", value=1, per_ms=DURATION_MS)
    assert sent(broker.says("ann", SetLimit(request_id=9, limit=slowest)), "ann", Done)
    assert names(broker) == ["a"]
    assert told_of(broker, "b").fields["seconds"] == DURATION_MS / 1000


def test_users_may_look_at_limits_and_set_none() -> None:
    broker = a_broker(clients=["ann"])
    broker.role("ann", "user")
    assert sent(broker.says("ann", ListLimits(request_id=5)), "ann", LimitsReply)
    effects = broker.says("ann", SetLimit(request_id=9, limit=Limit(of="running", value=1)))
    assert sent(effects, "ann", ErrorReply)[0].error.code == "not_allowed"


def test_a_queue_that_grows_too_deep_is_told_once_until_it_is_well_below() -> None:
    settings = limited(Limit(of="depth", value=3, queue="default"))
    broker = a_broker(jobs=[ready(f"a{n}") for n in range(3)], settings=settings)

    def told() -> list[str]:
        return [event.kind for event in broker.events if event.kind.startswith("alert")]

    broker.turn(1000)
    broker.turn(1000)
    assert told() == ["alert_raised"]
    broker.cancel("ann", "a0")
    broker.turn(1000)
    assert told() == ["alert_raised", "alert_cleared"]
    assert broker.last_event("alert_raised").detail["now"] == 3.0


def test_a_wait_that_grows_too_long_is_told() -> None:
    broker = a_broker(jobs=[ready("a")], settings=limited(Limit(of="wait", value=5000)))
    broker.pass_time(6000, hearing=["ann"])
    assert broker.last_event("alert_raised").detail["limit"] == "wait"
    listed = sent(broker.says("ann", ListLimits(request_id=4)), "ann", LimitsReply)[0].limits
    assert [(view.used, view.raised) for view in listed] == [(6000.0, True)]


# --- named resources --------------------------------------------------------------------------------------------------


def test_a_resource_is_held_by_one_task_at_a_time() -> None:
    jobs = [ready(f"t{n}", task_type="train", uses=["gpu"]) for n in range(2)]
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=8)])
    assert names(broker) == ["t0"]
    broker.reports("w1", "t0", "complete")
    assert names(broker) == ["t1"]


def test_as_many_hold_a_resource_as_its_limit_says() -> None:
    jobs = [ready(f"t{n}", task_type="train", uses=["gpu"]) for n in range(3)]
    settings = limited(Limit(of="running", value=2, resource="gpu"))
    assert names(a_broker(jobs=jobs, workers=[idle("w1", slots=8)], settings=settings)) == ["t0", "t1"]


def test_a_task_that_uses_an_endpoint_lets_it_fall_idle_and_keeps_others_off() -> None:
    chats = [running("c0", task_type="chat"), *(ready(f"c{n}", task_type="chat") for n in range(1, 4))]
    gpu = idle("gpu-1", slots=1, task_types=["chat"])
    broker = a_broker(jobs=chats, workers=[gpu, idle("w1", task_types=["train"])], settings=limited())
    broker.submit("ann", spec("t", task_type="train", uses=["gpu-1"]))
    assert not names(broker)
    broker.pass_time(10_000, hearing=["ann", "gpu-1", "w1"])
    broker.reports("gpu-1", "c0", "complete")
    effects = broker.turn()
    assert (started(effects, "gpu-1"), started(effects, "w1")) == ([], ["t"])
    assert not started(broker.turn(1000), "gpu-1")
    broker.reports("w1", "t", "complete")
    assert started(broker.turn(), "gpu-1") == ["c1"]


def test_only_own_tasks_use_resources() -> None:
    broker = a_broker(clients=["ann"])
    told = outcomes(broker.submit("ann", spec("a", task_type="chat", uses=["gpu"])))[0].error
    assert told is not None
    assert told.fields["field"] == "uses"
    assert "task types of your own" in told.message


def test_a_file_read_again_brings_other_limits_and_a_command_still_wins() -> None:
    broker = a_broker(
        jobs=[ready(f"t{n}", task_type="train") for n in range(4)], workers=[idle("w1", slots=8)],
        settings=limited(Limit(of="running", value=1, task_type="train")),
    )  # fmt: skip
    assert names(broker) == ["t0"]
    broker.step(SettingsChanged(limited(Limit(of="running", value=2, task_type="train"))))
    assert names(broker) == ["t1"]
    sets(broker, "running", 3, task_type="train")
    broker.step(SettingsChanged(limited(Limit(of="running", value=1, task_type="train"))))
    assert names(broker) == ["t2"]


def test_what_users_who_are_gone_have_left_is_dropped_and_what_holds_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmq_broker.core.limits._BUCKETS", 10)
    rates = Limits([Limit(of="jobs", value=1, per_ms=1000, user="*")])
    for number in range(100):
        now_ms = 100 * number
        rates.due(now_ms)
        rates.start((f"user-{number}", "q", "t", "m", "w"), 0.0, now_ms)
    assert len(rates._buckets) <= 40
    assert all(rates.blocks(f"user-{number}", "q", "t", 9900) for number in range(95, 100)), (
        "these may not start yet"
    )


def test_rates_that_are_empty_again_leave_the_journal() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    sets(broker, "jobs", 1, per_ms=1000, user="*")
    broker.turn()
    meta = {each.name: each.value for each in only(broker.journal, MetaSet)}
    name = "rate/jobs user=*\tann"
    assert meta[name]
    later = Now(MONO_MS, WALL_MS + 60_000)
    _, effects = recover(
        a_memory(meta=meta), Settings(), later, software="test", seed=1, fresh_id=bytes(16), fresh_secret=b"s"
    )
    assert [each.value for each in only(effects, MetaSet) if each.name == name] == [b""]


@pytest.mark.parametrize(
    "limit",
    [
        Limit(of="bytes", value=5),
        Limit(of="queued", value=2),
        Limit(of="jobs", value=2, per_ms=60_000, refuse=True),
    ],
)
def test_an_atomic_batch_is_never_accepted_in_part(limit: Limit) -> None:
    broker = a_broker(clients=["ann"], settings=limited(limit))
    batch = [spec(name, payload=b"xx") for name in ("a", "b", "c")]
    told = [
        each.outcome for each in outcomes(broker.submit("ann", *batch, payloads=[b"xx"] * 3, atomic=True))
    ]
    assert told == (["accepted"] * 3 if limit.of == "jobs" else ["refused"] * 3)
    fewer = [spec(name, payload=b"xx") for name in ("d", "e")]
    told = [
        each.outcome for each in outcomes(broker.submit("ann", *fewer, payloads=[b"xx"] * 2, atomic=True))
    ]
    assert told == (["refused"] * 2 if limit.of == "jobs" else ["accepted"] * 2)


# --- why a job waits for one ------------------------------------------------------------------------------------------


def told_of(broker: Broker, name: str, code: str = "limit") -> Any:
    reply = sent(broker.says("ann", Why(request_id=8, job_id=job_id(name))), "ann", WhyReply)[0]
    return next((each for each in reply.reasons if each.code == code), None)


def test_a_job_says_which_limit_it_waits_for_and_how_full_it_is() -> None:
    jobs = [ready(f"t{number}", task_type="train") for number in range(3)]
    settings = limited(Limit(of="running", value=1, task_type="train"))
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=8)], settings=settings)
    assert names(broker) == ["t0"]
    told = told_of(broker, "t2")
    assert told.fields == {"limit": "running task_type=train", "value": 1.0, "subject": "", "used": 1.0}
    assert told.text == "as many jobs run as the limit running task_type=train allows (1)"


def test_a_job_says_how_far_away_a_rate_puts_it_behind_those_before_it() -> None:
    """The second job finds room, and the fourth none for a minute: it says so before the rate is used up."""
    jobs = [ready(f"m{number}") for number in range(4)]
    settings = limited(Limit(of="jobs", value=2, per_ms=60_000, user="*"))
    broker = a_broker(jobs=jobs, workers=[], settings=settings)
    assert told_of(broker, "m1") is None
    told = told_of(broker, "m3")
    assert told.fields == {"limit": "jobs user=*", "value": 2.0, "subject": "ann", "seconds": 60.0}
    assert told.text == "the rate jobs user=* (2 in 60 s) has room for it in 60 s"


def test_who_waits_for_a_resource_is_told_so() -> None:
    jobs = [ready(f"t{n}", task_type="train", uses=["gpu"]) for n in range(2)]
    chats = [running("c0", task_type="chat"), ready("t2", task_type="train", uses=["gpu-1"])]
    gpu = idle("gpu-1", task_types=["chat"])
    broker = a_broker(jobs=[*chats, *jobs], workers=[gpu, idle("w1", slots=8, task_types=["train"])])
    broker.turn()
    told = told_of(broker, "t1", "resource")
    assert told.text == "other tasks have gpu, which it uses"
    assert told.fields == {"resource": "gpu", "worker": ""}
    told = told_of(broker, "t2", "resource")
    assert told.text == "it uses gpu-1, which runs 1 job and has to fall idle first"
    assert told.fields == {"resource": "gpu-1", "worker": "gpu-1"}
    broker.reports("w1", "t0", "complete")
    assert told_of(broker, "t1", "resource") is None


def test_a_page_of_jobs_looks_at_what_runs_once_for_each_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [ready(f"j{number}") for number in range(60)]
    settings = limited(Limit(of="running", value=10, user="*"))
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=20)], settings=settings)
    assert len(names(broker)) == 10
    broker.turn(1500)
    status = Status(request_id=4, job_ids=[job_id(f"j{number}") for number in range(10, 60)])
    broker.says("ann", status)
    broker.turn(1500)
    looks: list[Job] = []

    def looked(bucket: Bucket, job: Job) -> bool:
        looks.append(job)
        return counts(bucket, job)

    monkeypatch.setattr(eta, "counts", looked)
    told = sent(broker.says("ann", status), "ann", Statuses)[0].jobs
    assert [each.ahead for each in told] == list(range(50))
    assert all(each.starts_in_s is not None for each in told)
    assert 0 < len(looks) <= 10
