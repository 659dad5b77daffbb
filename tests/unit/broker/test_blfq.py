"""The fair policy, one story at a time; its bounds are in tests/property/broker/test_fair_share.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmq_broker.core.effects import Effect, Send
from lmq_broker.core.policies.lanes import Share
from lmq_broker.core.settings import BandSettings, Settings, TaskDefaults
from lmq_proto.messages import Enlist, LoadModel, UnloadModel
from unit.broker.builders import a_broker, drained, idle, instance, on_disk, ready, running, spec, started

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unit.broker.builders import Planned

FAIR = Settings(policy="blfq")


def asked(effects: Sequence[Effect]) -> list[str]:
    """Return the loads and unloads that a worker was told."""
    found = []
    for effect in effects:
        match effect:
            case Send(message=LoadModel(model=model)):
                found.append(f"load {model}")
            case Send(message=UnloadModel(instance_id=instance_id)):
                found.append(f"unload {instance_id}")
    return found


def many(user: str, count: int, **fields: Any) -> list[Planned]:
    return [ready(f"{user}{number}", user=user, **fields) for number in range(count)]


def one_model_at_a_time(*, loaded: str = "m1", ours: bool = True, slots: int = 1) -> Enlist:
    return idle(
        "w1", instances=[instance(loaded, model=loaded, kind="llm", slots=slots, ours=ours)],
        catalog=on_disk("m1", "m2"), may_load=True, models_max=1,
    )  # fmt: skip


def test_users_take_turns_however_much_one_has_queued() -> None:
    broker = a_broker(jobs=[*many("ann", 4), *many("tom", 2)], workers=[idle("w1")], settings=FAIR)
    assert drained(broker) == ["ann0", "tom0", "ann1", "tom1", "ann2", "ann3"]


def test_twice_the_weight_is_twice_the_turns() -> None:
    fair = Settings(policy="blfq", weights={"tom": 2.0})
    broker = a_broker(jobs=[*many("ann", 3), *many("tom", 6)], workers=[idle("w1")], settings=fair)
    order = drained(broker)
    assert [sum(name.startswith("tom") for name in order[:count]) for count in (3, 6)] == [2, 4]


def test_within_a_user_priority_then_expiry_then_order() -> None:
    jobs = [
        ready("a", priority=5), ready("b", priority=6), ready("c", priority=5, expires_ms=60_000),
        ready("d", priority=5, expires_ms=30_000), ready("e", priority=4),
    ]  # fmt: skip
    assert drained(a_broker(jobs=jobs, workers=[idle("w1")], settings=FAIR)) == ["b", "d", "c", "a", "e"]


def test_a_stricter_band_goes_first_whoever_has_had_more() -> None:
    bands = (BandSettings("interactive", 7), BandSettings("normal", 0))
    fair = Settings(policy="blfq", bands=bands)
    broker = a_broker(
        jobs=[*many("ann", 3, priority=8), *many("tom", 2, priority=6)], workers=[idle("w1")], settings=fair
    )
    assert drained(broker) == ["ann0", "ann1", "ann2", "tom0", "tom1"]


def test_who_has_waited_for_nothing_comes_back_with_no_credit() -> None:
    broker = a_broker(jobs=many("ann", 6), workers=[idle("w1")], settings=FAIR)
    for name in ("ann0", "ann1", "ann2"):
        assert started(broker.turn(1), "w1") == [name]
        broker.reports("w1", name, "complete")
    broker.client("tom")
    broker.submit("tom", *(spec(f"tom{number}") for number in range(4)))
    order = drained(broker)
    assert order[:4] in (["ann3", "tom0", "ann4", "tom1"], ["tom0", "ann3", "tom1", "ann4"])


def test_the_loaded_model_goes_on_until_patience_is_over_then_it_drains_and_goes() -> None:
    jobs = [
        *many("ann", 4, task_type="chat", models=["m1"]),
        *many("tom", 1, task_type="chat", models=["m2"]),
    ]
    broker = a_broker(jobs=jobs, workers=[one_model_at_a_time(slots=1)], settings=FAIR)
    assert started(broker.turn(1), "w1") == ["ann0"]
    broker.reports("w1", "ann0", "complete")
    # Tom has had nothing, but what ann wants is loaded.
    effects = broker.turn(1)
    assert (started(effects, "w1"), asked(effects)) == (["ann1"], [])
    assert asked(broker.pass_time(40_000, hearing=["w1"])) == []
    broker.reports("w1", "ann1", "complete")
    effects = broker.turn(1)
    assert (started(effects, "w1"), asked(effects)) == ([], ["unload m1"])


def test_a_model_that_lmq_did_not_load_stays() -> None:
    jobs = [ready("a", task_type="chat", models=["m2"])]
    broker = a_broker(jobs=jobs, workers=[one_model_at_a_time(ours=False)], settings=FAIR)
    assert asked(broker.pass_time(600_000, hearing=["w1"])) == []


def test_a_second_model_is_loaded_beside_the_first_where_memory_allows() -> None:
    worker = idle(
        "w1",
        instances=[instance("m1", model="m1", kind="llm", ours=True)],
        catalog=on_disk("m1", "m2"),
        may_load=True,
    )
    jobs = [
        running("b", task_type="chat", models=["m1"]),
        ready("a", user="tom", task_type="chat", models=["m2"]),
    ]
    broker = a_broker(jobs=jobs, workers=[worker], settings=FAIR)
    assert asked(broker.turn(1)) == ["load m2"]


def test_one_load_serves_all_who_wait_for_it() -> None:
    broker = a_broker(
        jobs=[*many("ann", 2, task_type="chat", models=["m2"]), *many("tom", 2, task_type="chat", models=["m2"])],
        workers=[idle("w1", instances=[], catalog=on_disk("m2"), may_load=True)], settings=FAIR,
    )  # fmt: skip
    assert asked(broker.turn(1)) == ["load m2"]
    assert asked(broker.turn(1)) == []


def test_a_suspect_gets_an_idle_worker_though_others_come_without_end() -> None:
    broker = a_broker(jobs=many("ann", 40), workers=[idle("w1", slots=2)], settings=FAIR)
    first = started(broker.turn(1), "w1")
    broker.reports("w1", first[0], "crash", shared=True)
    left = [first[1]]
    for _ in range(30):
        names = started(broker.turn(2000), "w1")
        if first[0] in names:
            assert left == []
            return
        left += names
        broker.reports("w1", left.pop(0), "complete")
    raise AssertionError("the suspect never ran")


def test_own_tasks_cost_the_time_they_take_and_are_expected_to_take_what_they_took() -> None:
    settings = Settings(policy="blfq", task_defaults={"train": TaskDefaults(expected_ms=3_600_000)})
    jobs = [*many("ann", 3, task_type="train"), *many("tom", 3, task_type="train")]
    broker = a_broker(jobs=jobs, workers=[idle("w1")], settings=settings)
    policy = broker.state.policy

    def share_of(user: str) -> Share:
        found: Share = next(share for share in policy.shares() if share.user == user)
        return found

    assert started(broker.turn(1), "w1") == ["ann0"]
    assert share_of("ann").predicted == pytest.approx(3_600_000, rel=0.01)
    broker.reports("w1", "ann0", "complete", engine_ms=10_000)
    assert share_of("ann").service == pytest.approx(10_000, rel=0.01)
    assert started(broker.turn(1), "w1") == ["tom0"]
    assert share_of("tom").predicted == pytest.approx(10_000, rel=0.01)


def test_a_training_hour_costs_its_owner_no_chat() -> None:
    broker = a_broker(
        jobs=[ready("t", task_type="train"), *many("ann", 2, task_type="chat"), *many("tom", 2, task_type="chat")],
        workers=[idle("w1", task_types=["train"]), idle("w2", task_types=["chat"])], settings=FAIR,
    )  # fmt: skip
    effects = broker.turn()
    assert (started(effects, "w1"), started(effects, "w2")) == (["t"], ["ann0"])
    broker.reports("w1", "t", "complete", engine_ms=3_600_000)
    broker.reports("w2", "ann0", "complete", prompt_tokens=1, output_tokens=100)
    assert drained(broker, "w2")[:3] in (["tom0", "ann1", "tom1"], ["tom0", "tom1", "ann1"])
