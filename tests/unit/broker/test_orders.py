"""Orders: models loaded, unloaded and pinned because somebody said so; how they are done, end, and are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmq_broker.core.effects import Effect, Send
from lmq_broker.core.records import MetaSet
from lmq_broker.core.settings import Settings
from lmq_proto import bounds
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Breaker,
    Done,
    Drain,
    ListModels,
    LoadEnded,
    LoadModel,
    Models,
    Order,
    OrderModel,
    Resume,
    UnloadModel,
    Why,
    WhyReply,
)
from unit.broker.builders import (
    Broker,
    a_broker,
    a_memory,
    error,
    idle,
    instance,
    job_id,
    on_disk,
    only,
    ready,
    running,
    sent,
    spec,
    started,
)

if TYPE_CHECKING:
    from lmq_proto.messages import CatalogModel, InstanceInfo

CATALOG = on_disk("m1", "m2", "m3")


def loaded(model: str, *, ours: bool = True, slots: int = 1, name: str = "") -> InstanceInfo:
    return instance(name or model, model=model, kind="llm", slots=slots, ours=ours)


def a_fleet(
    *instances: InstanceInfo,
    jobs: Any = (),
    room: int | None = 1,
    policy: str = "blfq",
    catalog: list[CatalogModel] | None = None,
    **fields: Any,
) -> Broker:
    """A broker with one worker that holds so many models at once."""
    worker = idle(
        "w1", instances=list(instances), catalog=catalog or CATALOG, may_load=True, models_max=room, **fields
    )
    return a_broker(jobs=jobs, workers=[worker], clients=["ann"], settings=Settings(policy=policy))


def order(broker: Broker, kind: str, model: str, worker: str = "w1", **fields: Any) -> list[Effect]:
    return broker.says("ann", OrderModel(request_id=5, kind=kind, model=model, worker=worker, **fields))


def changed(effects: list[Effect]) -> bool:
    return sent(effects, "ann", Done)[0].changed


def told(effects: list[Effect], worker: str = "w1") -> list[str]:
    """Return the loads and unloads that a worker was told."""
    found = []
    for effect in effects:
        if isinstance(effect, Send) and effect.peer == worker.encode():
            match effect.message:
                case LoadModel(model=model):
                    found.append(f"load {model}")
                case UnloadModel(instance_id=instance_id):
                    found.append(f"unload {instance_id}")
    return found


def has(broker: Broker, *instances: InstanceInfo, room: int | None = 1, **fields: Any) -> None:
    broker.has_capacity("w1", *instances, catalog=CATALOG, may_load=True, models_max=room, **fields)


def done(broker: Broker, *instances: InstanceInfo, code: str = "", room: int | None = 1) -> None:
    """Let a worker end what it was told: this is loaded now."""
    if not code:
        has(broker, *instances, room=room)
    failed = ErrorInfo(code, "it failed") if code else None
    broker.says("w1", LoadEnded(command_id=broker.at("w1").command_id, error=failed))


def shown(broker: Broker) -> list[Order]:
    models = sent(broker.says("ann", ListModels(request_id=7)), "ann", Models)[0].models
    return [order for model in models for order in model.orders]


def ended(broker: Broker) -> tuple[object, ...]:
    broker.turn()
    detail = broker.last_event("order_ended").detail
    return detail["order"], detail["why"], detail["error"]


# --- load ---


@pytest.mark.parametrize("policy", ["blfq", "strict", "vtc"])
def test_a_model_is_loaded_once_where_it_is_ordered(policy: str) -> None:
    broker = a_fleet(policy=policy)
    effects = order(broker, "load", "M1")
    assert changed(effects)
    assert [record.name for record in only(effects, MetaSet)] == ["order/w1\tm1"]
    assert told(broker.turn()) == ["load m1"]
    assert broker.last_event("model_ordered").detail == {"order": "load", "by": "ann", "until_ms": 0}
    assert told(broker.turn(1000)) == []
    done(broker, loaded("m1"))
    assert ended(broker) == ("load", "done", "")
    assert not broker.state.orders
    has(broker)
    assert told(broker.turn(1000)) == [], "once is once"


def test_a_model_that_is_there_needs_no_load() -> None:
    broker = a_fleet(loaded("m1"))
    assert not changed(order(broker, "load", "m1"))
    assert not broker.state.orders


def test_the_same_load_again_changes_nothing() -> None:
    broker = a_fleet()
    order(broker, "load", "m1")
    assert not changed(order(broker, "load", "m1"))


def test_room_is_made_as_for_a_job_and_no_running_job_is_killed() -> None:
    jobs = [
        running("a", task_type="chat", models=["m1"]),
        *(ready(name, task_type="chat", models=["m1"], priority=9) for name in ("b", "c")),
    ]
    broker = a_fleet(loaded("m1"), jobs=jobs)
    order(broker, "load", "m2")
    effects = broker.turn(1)
    assert (told(effects), started(effects, "w1")) == ([], [])
    assert shown(broker)[0].note == "waits for room; 1 job runs there"
    broker.reports("w1", "a", "complete")
    effects = broker.turn(1)
    assert (told(effects), started(effects, "w1")) == (["unload m1"], []), "what is ordered comes before jobs"
    done(broker)
    assert told(broker.turn(1)) == ["load m2"]
    done(broker, loaded("m2"))
    assert ended(broker) == ("load", "done", "")


def test_what_is_drained_for_an_order_stays_the_same_while_all_are_busy() -> None:
    jobs = [running(name, task_type="chat", models=["m1"]) for name in ("a", "b", "c")]
    jobs += [running(name, task_type="chat", models=["m2"]) for name in ("d", "e")]
    broker = a_fleet(loaded("m1", slots=4), loaded("m2", slots=4), jobs=jobs, room=2)
    order(broker, "load", "m3")
    broker.turn()
    for name in ("a", "b"):
        broker.reports("w1", name, "complete")
    broker.submit("ann", *(spec(name, task_type="chat", models=["m1", "m2"]) for name in ("f", "g")))
    broker.turn()
    assert {broker.job(name).model for name in ("f", "g")} == {"m1"}, "m2 is drained though m1 has run less"
    broker.reports("w1", "d", "complete")
    assert told(broker.turn()) == []
    for name in ("c", "f", "g"):
        broker.reports("w1", name, "complete")
    assert told(broker.turn()) == ["unload m1"], "it is idle, and m2 is not"


def test_a_load_that_fails_ends_and_is_told() -> None:
    broker = a_fleet()
    order(broker, "load", "m1")
    broker.turn()
    done(broker, code="load_failed")
    assert ended(broker) == ("load", "failed", "it failed")
    assert broker.last_event("load_failed").detail["code"] == "load_failed"
    assert told(broker.pass_time(60_000, hearing=["w1", "ann"])) == []


def test_a_load_for_want_of_memory_makes_room_first_and_only_then_fails() -> None:
    broker = a_fleet(loaded("m2"), room=None)
    order(broker, "load", "m1")
    assert told(broker.turn()) == ["load m1"]
    done(broker, code="insufficient_memory")
    assert told(broker.turn()) == ["unload m2"]
    done(broker, room=None)
    assert told(broker.turn()) == ["load m1"]
    done(broker, code="insufficient_memory")
    assert ended(broker) == ("load", "failed", "it failed")


def test_whoever_orders_a_load_does_not_wait_for_the_backoff_of_an_earlier_one() -> None:
    broker = a_fleet(jobs=[ready("a", task_type="chat", models=["m1"])])
    assert told(broker.turn()) == ["load m1"]
    done(broker, code="model_not_found")
    assert told(broker.turn(1000)) == []
    order(broker, "load", "m1")
    assert told(broker.turn(1)) == ["load m1"]


def test_a_variant_is_loaded_by_its_own_name() -> None:
    from lmq_proto.messages import CatalogModel

    catalog = [CatalogModel(model="qwen/qwen3-8b", variants=["qwen/qwen3-8b@q4_k_m", "qwen/qwen3-8b@q8_0"])]
    broker = a_fleet(catalog=catalog)
    order(broker, "load", "qwen3-8b@q8_0")
    assert told(broker.turn()) == ["load qwen/qwen3-8b@q8_0"]
    other = a_fleet(catalog=catalog)
    order(other, "load", "Qwen3-8B")
    assert told(other.turn()) == ["load qwen/qwen3-8b"]


def test_a_job_that_asks_for_a_variant_has_that_variant_loaded() -> None:
    from lmq_proto.messages import CatalogModel

    catalog = [CatalogModel(model="q/m", variants=["q/m@q4", "q/m@q8"])]
    broker = a_fleet(catalog=catalog, jobs=[ready("a", task_type="chat", models=["m@q8"])])
    assert told(broker.turn()) == ["load q/m@q8"]


def test_an_alias_is_loaded_as_the_first_of_its_models_that_the_worker_has() -> None:
    broker = a_fleet()
    broker.state.aliases["fast"] = ("m9", "m2")
    order(broker, "load", "fast")
    assert told(broker.turn()) == ["load m2"]


def test_an_endpoint_that_says_it_loaded_and_did_not_is_left_alone_for_a_while() -> None:
    broker = a_fleet(jobs=[ready("a", task_type="chat", models=["m1"])])
    assert told(broker.turn()) == ["load m1"]
    done(broker, loaded("m3"))
    assert told(broker.turn()) == []
    broker.turn()
    assert broker.last_event("load_failed").detail["code"] == "not_loaded"
    has(broker)
    assert told(broker.pass_time(29_000, hearing=["w1", "ann"])) == []
    assert told(broker.pass_time(2000, hearing=["w1", "ann"])) == ["load m1"]


# --- unload ---


def test_a_model_is_drained_then_unloaded_also_if_lmq_did_not_load_it() -> None:
    jobs = [
        running("a", task_type="chat", models=["m1"]),
        ready("b", task_type="chat", models=["m1"], priority=9),
    ]
    broker = a_fleet(loaded("m1", ours=False, slots=2), jobs=[])
    broker.submit("ann", jobs[0].spec)
    broker.turn()
    order(broker, "unload", "m1")
    broker.submit("ann", jobs[1].spec)
    effects = broker.turn(1)
    assert (told(effects), started(effects, "w1")) == ([], [])
    assert shown(broker)[0].note == "waits for 1 job to end"
    reply = sent(broker.says("ann", Why(request_id=8, job_id=job_id("b"))), "ann", WhyReply)[0]
    assert (reply.reasons[0].code, reply.reasons[0].text) == ("unloading", "w1 unloads m1, as ann ordered")
    broker.reports("w1", "a", "complete")
    effects = broker.turn(1)
    assert (told(effects), started(effects, "w1")) == (["unload m1"], [])
    done(broker)
    assert ended(broker) == ("unload", "done", "")
    assert not [event for event in broker.events if event.kind == "foreign_use"]


def test_without_a_worker_it_is_unloaded_wherever_it_is() -> None:
    broker = a_fleet(loaded("m1"))
    broker.worker(idle("w2", instances=[loaded("m1"), loaded("m2")], catalog=CATALOG, may_load=True))
    broker.worker(idle("w3", instances=[loaded("m1", ours=False)], catalog=CATALOG))
    assert changed(order(broker, "unload", "m1", worker=""))
    effects = broker.turn()
    assert (told(effects), told(effects, "w2"), told(effects, "w3")) == (["unload m1"], ["unload m1"], [])


def test_an_instance_is_unloaded_by_its_number_and_the_other_stays() -> None:
    broker = a_fleet(loaded("m1"), loaded("m1", name="m1:2"), room=None)
    order(broker, "unload", "m1:2")
    assert told(broker.turn()) == ["unload m1:2"]
    done(broker, loaded("m1"), room=None)
    assert ended(broker) == ("unload", "done", "")
    assert told(broker.turn()) == []


def test_a_model_without_a_number_is_all_its_instances() -> None:
    broker = a_fleet(loaded("m1"), loaded("m1", name="m1:2"), room=None)
    order(broker, "unload", "m1")
    assert told(broker.turn()) == ["unload m1"]
    done(broker, loaded("m1", name="m1:2"), room=None)
    assert told(broker.turn()) == ["unload m1:2"]
    assert broker.state.orders
    done(broker, room=None)
    assert ended(broker) == ("unload", "done", "")


def test_what_is_not_loaded_needs_no_unload() -> None:
    broker = a_fleet()
    assert not changed(order(broker, "unload", "m1"))


def test_an_unload_that_fails_ends_and_gives_the_slots_back() -> None:
    broker = a_fleet(loaded("m1"))
    order(broker, "unload", "m1")
    assert told(broker.turn()) == ["unload m1"]
    done(broker, code="unload_failed")
    assert ended(broker) == ("unload", "failed", "it failed")
    broker.submit("ann", spec("a", task_type="chat", models=["m1"]))
    assert started(broker.turn(), "w1") == ["a"]


def test_an_instance_that_is_busy_after_all_is_tried_again_later() -> None:
    broker = a_fleet(loaded("m1"))
    order(broker, "unload", "m1")
    broker.turn()
    done(broker, code="instance_busy")
    assert told(broker.pass_time(29_000, hearing=["w1", "ann"])) == []
    assert told(broker.pass_time(2000, hearing=["w1", "ann"])) == ["unload m1"]


def test_an_endpoint_that_says_it_unloaded_and_did_not_is_not_asked_again_and_again() -> None:
    broker = a_fleet(loaded("m1"))
    order(broker, "unload", "m1")
    assert told(broker.turn()) == ["unload m1"]
    done(broker, loaded("m1"))
    assert ended(broker)[:2] == ("unload", "failed")
    assert broker.last_event("load_failed").detail["code"] == "not_unloaded"


def test_an_instance_that_does_not_go_for_a_swap_is_left_alone_for_a_while() -> None:
    broker = a_fleet(loaded("m1"), jobs=[ready("a", task_type="chat", models=["m2"])])
    assert told(broker.pass_time(60_000, hearing=["w1", "ann"])) == ["unload m1"]
    done(broker, code="unload_failed")
    assert told(broker.pass_time(29_000, hearing=["w1", "ann"])) == []
    assert told(broker.pass_time(2000, hearing=["w1", "ann"])) == ["unload m1"]


def test_a_held_worker_loads_and_unloads_what_is_ordered_but_brings_back_no_pin() -> None:
    broker = a_fleet(loaded("m1"))
    broker.says("ann", Drain(request_id=8, noun="worker", name="w1"))
    order(broker, "unload", "m1")
    assert told(broker.turn()) == ["unload m1"]
    done(broker)
    order(broker, "pin", "m1")
    assert told(broker.turn()) == []
    assert shown(broker)[0].note == "the worker is held"
    broker.says("ann", Resume(request_id=9, noun="worker", name="w1"))
    assert told(broker.turn()) == ["load m1"]


# --- pin ---


def test_a_pinned_model_is_never_evicted_and_why_says_so() -> None:
    jobs = [ready("a", task_type="chat", models=["m2"])]
    broker = a_fleet(loaded("m1"), jobs=jobs)
    assert changed(order(broker, "pin", "m1", for_ms=4 * 3_600_000))
    assert told(broker.pass_time(120_000, hearing=["w1", "ann"])) == []
    reply = sent(broker.says("ann", Why(request_id=8, job_id=job_id("a"))), "ann", WhyReply)[0]
    assert (reply.reasons[0].code, reply.reasons[0].fields["by"]) == ("pinned", "ann")
    assert "keeps m1, which ann pinned there for another 3 h 58 min" in reply.reasons[0].text
    assert changed(order(broker, "unpin", "m1"))
    assert told(broker.turn()) == ["unload m1"]
    assert ended(broker) == ("pin", "taken_back", "")


def test_a_pinned_model_is_brought_there_and_again_when_it_is_gone() -> None:
    broker = a_fleet(loaded("m1"))
    order(broker, "pin", "m2")
    assert told(broker.turn()) == ["unload m1"]
    done(broker)
    assert told(broker.turn()) == ["load m2"]
    done(broker, loaded("m2"))
    assert told(broker.turn()) == []
    assert [(each.kind, each.by, each.note) for each in shown(broker)] == [("pin", "ann", "")]
    has(broker)
    assert told(broker.turn()) == ["load m2"]


def test_a_pin_ends_the_drain_that_was_to_evict_its_model() -> None:
    jobs = [
        running("a", task_type="chat", models=["m1"]),
        ready("b", user="tom", task_type="chat", models=["m2"]),
    ]
    broker = a_fleet(loaded("m1", slots=2), jobs=jobs)
    broker.pass_time(60_000, hearing=["w1", "ann", "tom"])
    broker.submit("ann", spec("c", task_type="chat", models=["m1"]))
    assert not started(broker.turn(), "w1"), "m1 is drained for m2"
    order(broker, "pin", "m1")
    assert started(broker.turn(), "w1") == ["c"]
    for name in ("a", "c"):
        broker.reports("w1", name, "complete")
    assert told(broker.pass_time(60_000, hearing=["w1", "ann", "tom"])) == []


def test_of_two_models_the_one_that_is_not_pinned_makes_room() -> None:
    broker = a_fleet(loaded("m1"), loaded("m2"), room=2)
    order(broker, "pin", "m1")
    order(broker, "load", "m3")
    assert told(broker.turn()) == ["unload m2"]


def test_a_pin_is_over_after_its_time() -> None:
    broker = a_fleet(loaded("m1"))
    order(broker, "pin", "m1", for_ms=5000)
    broker.pass_time(4000, hearing=["w1", "ann"])
    assert shown(broker)[0].until_ms == broker.wall_ms + 1000
    broker.pass_time(2000, hearing=["w1", "ann"])
    assert ended(broker) == ("pin", "over", "")
    assert not broker.state.orders


def test_the_same_pin_again_replaces_its_time() -> None:
    broker = a_fleet(loaded("m1"))
    order(broker, "pin", "m1", for_ms=5000)
    assert changed(order(broker, "pin", "m1"))
    assert [(each.kind, each.until_ms) for each in shown(broker)] == [("pin", 0)]


def test_a_pin_that_does_not_load_stands_and_is_tried_again() -> None:
    broker = a_fleet()
    order(broker, "pin", "m1")
    assert told(broker.turn()) == ["load m1"]
    done(broker, code="load_failed")
    assert shown(broker)[0].note == "it could not be loaded; next try in 30 s"
    assert told(broker.pass_time(29_000, hearing=["w1", "ann"])) == []
    assert told(broker.pass_time(2000, hearing=["w1", "ann"])) == ["load m1"]


def test_while_a_pin_cannot_be_loaded_nobody_waits_for_it() -> None:
    jobs = [ready(name, task_type="chat", models=["m1"]) for name in ("a", "b")]
    broker = a_fleet(loaded("m1", slots=1), jobs=jobs, room=None)
    order(broker, "pin", "m2")
    effects = broker.turn()
    assert (told(effects), started(effects, "w1")) == (["load m2"], ["a"])
    done(broker, code="insufficient_memory")
    assert not started(broker.turn(1), "w1"), "m1 is to go"
    broker.at("w1").refused_loads["m2"] = broker.mono_ms + 30_000
    broker.reports("w1", "a", "complete")
    assert started(broker.turn(1), "w1") == ["b"]


def test_a_worker_that_came_back_without_loading_says_so() -> None:
    broker = a_fleet(loaded("m1"))
    order(broker, "pin", "m1")
    broker.worker(idle("w1", instances=[], catalog=CATALOG, request_id=2))
    assert told(broker.turn()) == []
    assert shown(broker)[0].note == "the worker loads and unloads no models any more"


def test_a_model_that_was_ruled_out_may_be_loaded_again_once_it_was_seen() -> None:
    broker = a_fleet(jobs=[ready("a", task_type="chat", models=["m1"], delay_ms=9000)])
    broker.submit("ann", spec("b", task_type="chat", models=["m1"]))
    assert told(broker.turn()) == ["load m1"]
    done(broker, code="model_not_found")
    has(broker, loaded("m1", ours=False))
    assert started(broker.turn(), "w1") == ["b"]
    broker.reports("w1", "b", "complete")
    has(broker)
    assert told(broker.pass_time(10_000, hearing=["w1", "ann"])) == ["load m1"]


def test_a_pinned_copy_that_somebody_else_loaded_will_do() -> None:
    broker = a_fleet(loaded("m1", ours=False))
    assert changed(order(broker, "pin", "m1"))
    assert told(broker.turn()) == []
    assert shown(broker)[0].note == ""


# --- the latest order counts ---


def test_an_unload_takes_the_place_of_a_pin_and_the_other_way_round() -> None:
    broker = a_fleet(loaded("m1"))
    order(broker, "pin", "m1")
    order(broker, "unload", "m1")
    assert ended(broker) == ("pin", "replaced", "")
    assert [each.kind for each in broker.state.orders.values()] == ["unload"]
    order(broker, "pin", "m1")
    assert [each.kind for each in broker.state.orders.values()] == ["pin"]


def test_an_order_that_is_not_done_yet_can_be_taken_back_everywhere() -> None:
    broker = a_fleet(loaded("m1", slots=2), jobs=[running("a", task_type="chat", models=["m1"])])
    order(broker, "unload", "m1")
    broker.submit("ann", spec("b", task_type="chat", models=["m1"]))
    assert not started(broker.turn(), "w1")
    assert changed(order(broker, "unpin", "m1", worker=""))
    assert started(broker.turn(), "w1") == ["b"]
    assert not changed(order(broker, "unpin", "m1", worker=""))


def test_orders_outlive_a_restart_and_a_worker_that_is_away() -> None:
    broker = a_fleet()
    order(broker, "pin", "m1", for_ms=9_000_000)
    meta = {record.name: record.value for record in only(broker.journal, MetaSet) if record.value}
    again = a_broker(memory=a_memory(meta=meta), clients=["ann"])
    assert again.state.orders == broker.state.orders
    assert shown(again)[0].note == "the worker is not connected"
    again.worker(idle("w1", instances=[], catalog=CATALOG, may_load=True))
    assert told(again.turn()) == ["load m1"]


def test_a_command_that_was_lost_with_the_connection_is_given_again() -> None:
    broker = a_fleet()
    order(broker, "load", "m1")
    assert told(broker.turn()) == ["load m1"]
    broker.worker(idle("w1", instances=[], catalog=CATALOG, may_load=True, request_id=2))
    assert told(broker.turn()) == ["load m1"]


def test_nothing_is_loaded_while_the_endpoint_fails() -> None:
    broker = a_fleet()
    has(broker, breaker=Breaker(since_ms=1, reason="connection refused"))
    order(broker, "load", "m1")
    assert told(broker.turn()) == []
    assert shown(broker)[0].note == "its endpoint fails: connection refused"
    has(broker)
    assert told(broker.turn()) == ["load m1"]


# --- refused ---


@pytest.mark.parametrize(
    ("given", "code", "field"),
    [
        ({"kind": "keep"}, "bad_field", "kind"), ({"model": ""}, "bad_field", "model"),
        ({"model": "x" * (bounds.NAME_CHARS + 1)}, "bad_field", "model"),
        ({"worker": ""}, "bad_field", "worker"), ({"kind": "pin", "for_ms": -1}, "bad_field", "for_ms"),
        ({"kind": "pin", "for_ms": bounds.DURATION_MS + 1}, "bad_field", "for_ms"),
    ],
)  # fmt: skip
def test_an_order_out_of_bounds_is_refused(given: dict[str, Any], code: str, field: str) -> None:
    broker = a_fleet()
    refused = error(order(broker, **({"kind": "load", "model": "m1", "worker": "w1"} | given)))
    assert (refused.code, refused.fields["field"]) == (code, field)
    assert not broker.state.orders


@pytest.mark.parametrize("kind", ["load", "unload", "pin", "unpin"])
def test_a_worker_that_nobody_knows_is_refused_with_the_nearest(kind: str) -> None:
    refused = error(order(a_fleet(), kind, "m1", worker="w2"))
    assert (refused.code, refused.fields["what"], refused.fields["nearest"]) == (
        "not_found",
        "worker",
        ["w1"],
    )


@pytest.mark.parametrize(
    ("kind", "worker"), [("load", "w1"), ("pin", "w1"), ("unload", "w1"), ("unload", "")]
)
def test_a_model_that_the_worker_does_not_have_is_refused_with_the_nearest(kind: str, worker: str) -> None:
    refused = error(order(a_fleet(), kind, "m12", worker=worker))
    assert (refused.code, refused.fields["what"]) == ("not_found", "model")
    assert "m1" in str(refused.fields["nearest"])


@pytest.mark.parametrize("kind", ["load", "pin", "unload"])
def test_a_worker_that_may_not_load_takes_no_orders(kind: str) -> None:
    broker = a_broker(workers=[idle("w1", instances=[loaded("m1")], catalog=CATALOG)], clients=["ann"])
    refused = error(order(broker, kind, "m1"))
    assert (refused.code, refused.fields["worker"]) == ("may_not_load", "w1")


@pytest.mark.parametrize("kind", ["load", "pin"])
def test_what_cannot_fit_beside_what_stays_is_refused_with_names(kind: str) -> None:
    broker = a_fleet(loaded("m1", ours=False), room=2)
    order(broker, "pin", "m2")
    refused = error(order(broker, kind, "m3"))
    assert refused.code == "no_room"
    assert (refused.fields["models_max"], refused.fields["staying"]) == (2, ["m2", "m1"])
    order(broker, "unload", "m1")
    assert changed(order(broker, kind, "m3")), "what is ordered to go does not stay"


def test_there_is_a_bound_on_orders() -> None:
    broker = a_broker(
        workers=[idle("w1", instances=[], catalog=CATALOG, may_load=True)], clients=["ann"],
        settings=Settings(orders=1),
    )  # fmt: skip
    order(broker, "load", "m1")
    assert error(order(broker, "load", "m2")).code == "limit_reached"
    assert changed(order(broker, "pin", "m1"))


@pytest.mark.parametrize("role", ["user", "app", "observer", "gateway"])
def test_only_an_admin_orders(role: str) -> None:
    broker = a_fleet()
    broker.role("ann", role)
    assert error(order(broker, "load", "m1")).code == "not_allowed"


def test_a_drain_whose_victim_turns_out_not_to_be_ours_is_given_up() -> None:
    jobs = [
        running("a", task_type="chat", models=["m1"]),
        ready("b", user="tom", task_type="chat", models=["m2"]),
    ]
    broker = a_fleet(loaded("m1", slots=2), jobs=jobs)
    broker.pass_time(60_000, hearing=["w1", "ann", "tom"])
    broker.submit("ann", spec("c", task_type="chat", models=["m1"]))
    assert not started(broker.turn(), "w1"), "m1 is drained for m2"
    has(broker, loaded("m1", slots=2, ours=False))
    broker.turn()
    broker.turn(1000)
    assert broker.job("c").lease is not None
