"""How endpoints behave: what others load and unload there, what changing models costs, what can never fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmq_broker.core import swapcosts
from lmq_broker.core.settings import Settings
from lmq_broker.core.trust import FLOOR, trust_of
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Breaker,
    CatalogModel,
    ListWorkers,
    LoadEnded,
    LoadModel,
    OrderModel,
    UnloadModel,
    Workers,
    WorkerView,
)
from unit.broker.builders import (
    Broker,
    a_broker,
    idle,
    instance,
    on_disk,
    outcomes,
    ready,
    running,
    sent,
    spec,
)

if TYPE_CHECKING:
    from lmq_proto.messages import InstanceInfo

CATALOG = on_disk("m1", "m2", "m3")
HOUR_MS = 3_600_000


def loaded(model: str, *, ours: bool = False, **fields: Any) -> InstanceInfo:
    return instance(model, model=model, kind="llm", ours=ours, **fields)


def a_fleet(*instances: InstanceInfo, jobs: Any = (), policy: str = "blfq", **fields: Any) -> Broker:
    worker = idle("w1", instances=list(instances), catalog=CATALOG, may_load=True, **fields)
    return a_broker(jobs=jobs, workers=[worker], clients=["ann"], settings=Settings(policy=policy))


def has(broker: Broker, *instances: InstanceInfo, **fields: Any) -> None:
    broker.has_capacity("w1", *instances, catalog=CATALOG, may_load=True, **fields)
    broker.turn()


def foreign(broker: Broker) -> list[tuple[str, object]]:
    return [(event.model, event.detail["what"]) for event in broker.events if event.kind == "foreign_use"]


def trust(broker: Broker) -> float:
    return trust_of(broker.at("w1"), broker.mono_ms)


def view(broker: Broker, name: str = "w1") -> WorkerView:
    workers = sent(broker.says("ann", ListWorkers(request_id=9)), "ann", Workers)[0].workers
    return next(worker for worker in workers if worker.name == name)


def load_ends(broker: Broker, *instances: InstanceInfo, code: str = "", **fields: Any) -> None:
    if not code:
        broker.has_capacity("w1", *instances, catalog=CATALOG, may_load=True, **fields)
    failed = ErrorInfo(code, "it failed") if code else None
    broker.says("w1", LoadEnded(command_id=broker.at("w1").command_id, error=failed))


# --- foreign use ---


def test_what_others_load_and_unload_is_told_and_lowers_trust() -> None:
    broker = a_fleet()
    assert (trust(broker), foreign(broker)) == (1.0, [])
    has(broker, loaded("m1"))
    assert foreign(broker) == [("m1", "loaded")]
    assert broker.last_event("foreign_use").detail == {"what": "loaded", "trust": 0.8}
    has(broker)
    assert foreign(broker)[1:] == [("m1", "unloaded")]
    assert trust(broker) == pytest.approx(0.64)
    assert view(broker).trust == 0.64


def test_trust_comes_back_by_half_in_an_hour_and_never_sinks_below_its_floor() -> None:
    broker = a_fleet()
    for _ in range(20):
        has(broker, loaded("m1"))
        has(broker)
    assert trust(broker) == FLOOR
    broker.mono_ms += HOUR_MS
    assert trust(broker) == pytest.approx(1 - (1 - FLOOR) / 2)
    broker.mono_ms += 20 * HOUR_MS
    assert trust(broker) > 0.999


def test_what_we_load_and_unload_is_no_foreign_use() -> None:
    broker = a_fleet(jobs=[ready("a", task_type="chat", models=["m1"])])
    assert sent(broker.turn(), "w1", LoadModel)
    # A look during the load may find it before the worker knows that it is its own.
    has(broker, loaded("m1"))
    load_ends(broker, loaded("m1", ours=True))
    broker.reports("w1", "a", "complete")
    broker.says("ann", OrderModel(request_id=5, kind="unload", model="m1", worker="w1"))
    assert sent(broker.turn(), "w1", UnloadModel)
    load_ends(broker)
    broker.turn()
    assert foreign(broker) == []


def test_another_model_that_comes_while_we_load_is_foreign_and_one_that_makes_room_for_ours_is_not() -> None:
    broker = a_fleet(loaded("m2"), jobs=[ready("a", task_type="chat", models=["m1"])])
    assert sent(broker.turn(), "w1", LoadModel)
    has(broker, loaded("m3"))
    assert foreign(broker) == [("m3", "loaded")]


def test_what_is_there_when_a_worker_comes_or_comes_back_is_there() -> None:
    broker = a_fleet(loaded("m1"))
    broker.worker(idle("w1", instances=[loaded("m2")], catalog=CATALOG, may_load=True, request_id=2))
    broker.worker(
        idle(
            "w1",
            life=2,
            instances=[],
            catalog=CATALOG,
            may_load=True,
            replaces=b"w1".ljust(15, b"\0") + b"\1",
        )
    )
    broker.turn()
    assert foreign(broker) == []


def test_an_endpoint_that_was_away_comes_back_with_what_it_likes() -> None:
    broker = a_fleet(loaded("m1"))
    has(broker, loaded("m1"), breaker=Breaker(since_ms=1, reason="connection refused"))
    has(broker, loaded("m2"))
    assert foreign(broker) == []


def test_a_server_that_loads_its_own_models_is_not_judged() -> None:
    broker = a_broker(workers=[idle("w1", instances=[])], clients=["ann"])
    broker.has_capacity("w1", loaded("m1"))
    broker.turn()
    assert foreign(broker) == []


@pytest.mark.parametrize("crash_first", [True, False])
def test_an_instance_that_crashed_under_its_job_is_nobodys_doing(crash_first: bool) -> None:
    broker = a_fleet(loaded("m1"), jobs=[running("a", task_type="chat", models=["m1"])])
    if crash_first:
        broker.reports("w1", "a", "crash")
        has(broker)
    else:
        has(broker)
        broker.reports("w1", "a", "crash")
    broker.pass_time(10_000, hearing=["w1", "ann"])
    assert foreign(broker) == []


def test_an_instance_that_was_taken_from_under_its_job_is_told_a_little_later() -> None:
    broker = a_fleet(loaded("m1"), jobs=[running("a", task_type="chat", models=["m1"])])
    has(broker)
    broker.reports("w1", "a", "release")
    assert foreign(broker) == []
    broker.pass_time(4000, hearing=["w1", "ann"])
    assert foreign(broker) == [("m1", "unloaded")]


def test_trust_outlives_the_process_of_a_worker() -> None:
    broker = a_fleet()
    has(broker, loaded("m1"))
    broker.breaks("w1")
    broker.worker(idle("w1", life=2, instances=[], catalog=CATALOG, may_load=True), peer="again")
    assert trust(broker) == 0.8


def test_of_two_places_the_trusted_one_gets_the_load() -> None:
    broker = a_fleet()
    has(broker, loaded("m3"))
    has(broker)
    broker.worker(idle("w2", instances=[], catalog=CATALOG, may_load=True))
    broker.submit("ann", spec("a", task_type="chat", models=["m1"]))
    effects = broker.turn()
    assert (len(sent(effects, "w1", LoadModel)), len(sent(effects, "w2", LoadModel))) == (0, 1)


# --- what changing models costs ---


def swap_back_and_forth(broker: Broker, seconds: int, user: str = "tom") -> None:
    """Let a load end after so long, with a model that was not there."""
    other = "m2" if "m1" in broker.at("w1").instances else "m1"
    broker.submit(user, spec(f"{user}-{broker.mono_ms}", task_type="chat", models=[other]))
    assert sent(broker.turn(), "w1", LoadModel)
    broker.pass_time(seconds * 1000, hearing=["w1", "ann", "tom"])
    load_ends(broker, loaded(other, ours=True))
    broker.turn()
    for job, _, _ in list(broker.at("w1").leases):
        broker.reports("w1", job.rstrip(b"\0").decode(), "complete")


def costly(broker: Broker) -> list[object]:
    return [event.detail for event in broker.events if event.kind == "swaps_costly"]


def test_swaps_that_eat_a_fifth_of_ten_minutes_are_told_once_with_models_users_and_seconds() -> None:
    broker = a_fleet()
    broker.client("tom")
    swap_back_and_forth(broker, 60)
    swap_back_and_forth(broker, 60)
    assert costly(broker) == []
    assert (view(broker).loads, view(broker).lost_ms) == (2, 120_000)
    swap_back_and_forth(broker, 30, "ann")
    assert costly(broker) == [
        {"models": ["m1", "m2"], "users": ["ann", "tom"], "lost_s": 150, "of_s": 600}
    ]  # fmt: skip
    swap_back_and_forth(broker, 30)
    assert len(costly(broker)) == 1, "at most once in ten minutes"
    broker.pass_time(600_000, hearing=["w1", "ann", "tom"])
    assert (view(broker).loads, view(broker).lost_ms) == (4, 0)
    for _ in range(3):
        swap_back_and_forth(broker, 60)
    assert len(costly(broker)) == 2
    broker.mono_ms += HOUR_MS
    assert view(broker).loads == 0


def test_a_drain_and_the_unload_after_it_count_and_one_drain_counts_once() -> None:
    jobs = [running("a", task_type="chat", models=["m1"])]
    broker = a_fleet(loaded("m1", ours=True), loaded("m2", ours=True), jobs=jobs, models_max=1)
    broker.says("ann", OrderModel(request_id=5, kind="load", model="m3", worker="w1"))
    assert [each.instance_id for each in sent(broker.turn(), "w1", UnloadModel)] == ["m2"]
    broker.pass_time(2000, hearing=["w1", "ann"])
    load_ends(broker, loaded("m1", ours=True), models_max=1)
    broker.pass_time(10_000, hearing=["w1", "ann"])
    broker.reports("w1", "a", "complete")
    assert [each.instance_id for each in sent(broker.turn(), "w1", UnloadModel)] == ["m1"]
    broker.pass_time(3000, hearing=["w1", "ann"])
    load_ends(broker, models_max=1)
    assert sent(broker.turn(), "w1", LoadModel)
    broker.pass_time(5000, hearing=["w1", "ann"])
    load_ends(broker, loaded("m3", ours=True), models_max=1)
    assert swapcosts.lost_ms(broker.at("w1"), broker.mono_ms) == 20_000
    assert [each.user for each in broker.at("w1").conduct.changes] == ["ann"] * 3
    assert view(broker).loads == 1


def test_a_load_that_failed_costs_time_and_is_no_load() -> None:
    broker = a_fleet(jobs=[ready("a", task_type="chat", models=["m1"])])
    broker.turn()
    broker.pass_time(7000, hearing=["w1", "ann"])
    load_ends(broker, code="load_failed")
    assert (view(broker).loads, view(broker).lost_ms) == (0, 7000)


# --- what can never fit ---


def a_catalog(**context_tokens: int) -> list[CatalogModel]:
    return [CatalogModel(model=name, context_tokens=tokens) for name, tokens in context_tokens.items()]


def submitted(broker: Broker, **fields: Any) -> ErrorInfo | None:
    fields = {"task_type": "chat", "models": ["m1"]} | fields
    (outcome,) = outcomes(broker.submit("ann", spec("a", **fields)))
    return outcome.error


def test_a_job_that_fits_nowhere_is_refused_with_the_numbers() -> None:
    worker = idle("w1", instances=[loaded("m1", context_tokens=4096)], catalog=a_catalog(m1=8192, m2=32_768))
    broker = a_broker(workers=[worker], clients=["ann"])
    assert submitted(broker, prompt_tokens=8192) is None
    refused = submitted(broker, id=b"2" * 16, prompt_tokens=8000, output_tokens=193)
    assert refused is not None
    assert (refused.code, refused.retryable) == ("never_fits", False)
    assert refused.fields == {"model": "m1", "tokens": 8193, "context_tokens": 8192}
    assert submitted(broker, id=b"3" * 16, prompt_tokens=9000, models=["m1", "m2"]) is None


@pytest.mark.parametrize("models", [[], ["small"]])
def test_the_largest_of_all_that_would_do_counts(models: list[str]) -> None:
    worker = idle("w1", instances=[], catalog=a_catalog(m1=1000, m2=2000), may_load=True)
    broker = a_broker(workers=[worker], clients=["ann"], settings=Settings(aliases={"small": ("m1", "m2")}))
    refused = submitted(broker, models=models, prompt_tokens=2001)
    assert refused is not None
    assert refused.fields == {"model": "m2", "tokens": 2001, "context_tokens": 2000}


@pytest.mark.parametrize(
    ("fields", "instances"),
    [
        ({"prompt_tokens": 0, "output_tokens": 9999}, []),
        ({"prompt_tokens": 9999, "task_type": "embed", "models": []}, []),
        ({"prompt_tokens": 9999, "task_type": "train"}, []),
        ({"prompt_tokens": 9999}, [loaded("m1", context_tokens=0)]),
        ({"prompt_tokens": 9999}, [instance("any")]),
        ({"prompt_tokens": 9999}, [loaded("m1", context_tokens=10_000)]),
    ],
)  # fmt: skip
def test_where_it_is_not_known_to_be_too_much_it_is_accepted(
    fields: dict[str, Any], instances: list[InstanceInfo]
) -> None:
    worker = idle("w1", instances=instances, catalog=a_catalog(m1=1000))
    assert submitted(a_broker(workers=[worker], clients=["ann"]), **fields) is None


def test_what_a_worker_that_is_away_could_hold_is_not_known() -> None:
    broker = a_broker(workers=[idle("w1", instances=[], catalog=a_catalog(m1=1000))], clients=["ann"])
    assert submitted(broker, prompt_tokens=1001) is not None
    broker.breaks("w1")
    broker.pass_time(5000, hearing=["ann"])
    assert submitted(broker, prompt_tokens=1001) is None


def test_a_larger_context_that_comes_is_known_at_once() -> None:
    broker = a_broker(workers=[idle("w1", instances=[], catalog=a_catalog(m1=1000))], clients=["ann"])
    assert submitted(broker, prompt_tokens=1001) is not None
    broker.has_capacity("w1", loaded("m1", context_tokens=2000))
    assert submitted(broker, prompt_tokens=1001) is None


def test_an_atomic_batch_with_a_job_that_never_fits_is_refused_whole() -> None:
    broker = a_broker(workers=[idle("w1", instances=[], catalog=a_catalog(m1=1000))], clients=["ann"])
    jobs = [
        spec(name, task_type="chat", models=["m1"], prompt_tokens=size)
        for name, size in (("a", 1), ("b", 2000))
    ]
    assert [each.outcome for each in outcomes(broker.submit("ann", *jobs, atomic=True))] == ["refused"] * 2
