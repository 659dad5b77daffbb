"""Aliases and default models: by file and by command, what a job that names one runs on, what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Effect
from lmq_broker.core.records import MetaSet
from lmq_broker.core.settings import TASK_DEFAULTS, Settings, TaskDefaults
from lmq_broker.core.stimuli import SettingsChanged
from lmq_proto import bounds
from lmq_proto.messages import (
    Done,
    ListModels,
    LoadModel,
    Models,
    SetAlias,
    SetDefaultModel,
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
    leases,
    on_disk,
    only,
    outcomes,
    ready,
    sent,
    spec,
    started,
)

WITH_FILE = Settings(aliases={"fast": ("m1",)})


def alias(broker: Broker, name: str, *models: str, **fields: Any) -> list[Effect]:
    return broker.says("ann", SetAlias(request_id=5, name=name, models=list(models), **fields))


def default(broker: Broker, task_type: str, model: str = "", **fields: Any) -> list[Effect]:
    return broker.says("ann", SetDefaultModel(request_id=6, task_type=task_type, model=model, **fields))


def changed(effects: list[Effect]) -> bool:
    return sent(effects, "ann", Done)[0].changed


def listed(broker: Broker) -> Models:
    return sent(broker.says("ann", ListModels(request_id=7)), "ann", Models)[0]


def in_force(broker: Broker) -> dict[str, list[str]]:
    return {each.name: each.models for each in listed(broker).aliases}


def a_fleet(*loaded: str, jobs: Any = (), **fields: Any) -> Broker:
    """A broker whose worker has some models loaded and m1 to m4 on disk."""
    instances = [instance(each, model=each, kind="llm", slots=4) for each in loaded]
    worker = idle("w1", instances=instances, catalog=on_disk("m1", "m2", "m3", "m4"))
    return a_broker(jobs=jobs, workers=[worker], clients=["ann"], **fields)


# --- what it does ---


def test_a_job_runs_on_any_of_an_aliass_models_and_keeps_the_name_it_asked_for() -> None:
    broker = a_fleet("m2")
    effects = alias(broker, "fast", "m1", "m2")
    assert changed(effects)
    assert [record.name for record in only(effects, MetaSet)] == ["alias/fast"]
    broker.submit("ann", spec("a", task_type="chat", models=["Fast"]))
    (lease,) = leases(broker.turn(), "w1")
    assert (lease.instance_id, lease.models) == ("m2", ["m1", "m2"])
    assert (broker.job("a").models, broker.job("a").model) == (("Fast",), "m2")
    assert broker.last_event("alias_set").detail == {"alias": "fast", "models": ["m1", "m2"], "by": "ann"}


def test_jobs_that_wait_follow_an_alias_that_changes() -> None:
    broker = a_fleet("m2", settings=WITH_FILE, jobs=[ready("a", task_type="chat", models=["fast"])])
    assert not started(broker.turn(), "w1")
    alias(broker, "fast", "m2")
    assert started(broker.turn(), "w1") == ["a"]


def test_aliases_and_models_are_mixed_in_one_list() -> None:
    broker = a_fleet("m3", settings=WITH_FILE)
    broker.submit("ann", spec("a", task_type="chat", models=["fast", "m3", "m1"]))
    assert leases(broker.turn(), "w1")[0].models == ["m1", "m3"]


def test_where_any_model_is_served_the_first_of_an_alias_is_asked_for() -> None:
    broker = a_broker(workers=[idle("w1")], clients=["ann"], settings=WITH_FILE)
    broker.submit("ann", spec("a", task_type="chat", models=["fast"]))
    assert leases(broker.turn(), "w1")[0].models == ["m1"]
    assert broker.job("a").model == "m1"


def test_the_best_of_an_alias_is_loaded_and_the_next_where_that_fails() -> None:
    broker = a_broker(
        workers=[idle("w1", instances=[], catalog=on_disk("m1", "m2"), may_load=True)], clients=["ann"]
    )
    alias(broker, "fast", "m2", "m1")
    broker.submit("ann", spec("a", task_type="chat", models=["fast"]))
    assert [load.model for load in sent(broker.turn(), "w1", LoadModel)] == ["m2"]
    broker.at("w1").loading = ""
    broker.at("w1").refused_loads["m2"] = broker.mono_ms + 60_000
    assert [load.model for load in sent(broker.turn(), "w1", LoadModel)] == ["m1"]


def test_a_command_wins_over_the_file_until_it_is_reset() -> None:
    broker = a_fleet("m1", settings=WITH_FILE)
    assert in_force(broker) == {"fast": ["m1"]}
    assert changed(alias(broker, "fast"))
    assert in_force(broker) == {}
    assert changed(alias(broker, "FAST", "m2"))
    assert in_force(broker) == {"FAST": ["m2"]}
    effects = alias(broker, "fast", reset=True)
    assert [(record.name, record.value) for record in only(effects, MetaSet)] == [("alias/fast", b"")]
    assert in_force(broker) == {"fast": ["m1"]}
    assert not changed(alias(broker, "fast", reset=True))


def test_an_alias_that_only_a_command_made_is_gone_without_a_trace() -> None:
    broker = a_fleet("m1")
    alias(broker, "fast", "m1")
    assert changed(alias(broker, "fast"))
    assert not broker.state.aliases_set
    assert not changed(alias(broker, "fast"))


def test_aliases_and_defaults_outlive_a_restart() -> None:
    broker = a_fleet("m1", settings=WITH_FILE)
    alias(broker, "fast")
    alias(broker, "big", "m2")
    default(broker, "chat", "big")
    meta = {record.name: record.value for record in only(broker.journal, MetaSet) if record.value}
    again = a_broker(memory=a_memory(meta=meta), clients=["ann"], settings=WITH_FILE)
    assert (listed(again).aliases, listed(again).defaults) == (
        listed(broker).aliases,
        listed(broker).defaults,
    )
    assert again.state.aliases == {"big": ("m2",)}


def test_a_file_that_is_read_again_changes_what_no_command_did() -> None:
    broker = a_fleet("m1", settings=WITH_FILE)
    alias(broker, "big", "m2")
    broker.step(
        SettingsChanged(
            Settings(task_defaults=dict(TASK_DEFAULTS), aliases={"fast": ("m4",), "big": ("m4",)})
        )
    )
    assert in_force(broker) == {"fast": ["m4"], "big": ["m2"]}


def test_a_listed_model_says_which_aliases_stand_for_it() -> None:
    broker = a_fleet("m1", settings=WITH_FILE)
    alias(broker, "big", "m2", "m1")
    names = {each.model: each.aliases for each in listed(broker).models}
    assert names == {"m1": ["big", "fast"], "m2": ["big"], "m3": [], "m4": []}


# --- what is refused ---


@pytest.mark.parametrize(
    ("name", "models", "field"),
    [
        ("", ["m1"], "name"), ("x" * (bounds.NAME_CHARS + 1), ["m1"], "name"), ("*", ["m1"], "name"),
        ("m2", ["m1"], "name"), ("M2", ["m1"], "name"), ("m1", ["m2"], "name"),
        ("new", ["fast"], "models"), ("new", ["new"], "models"), ("new", [""], "models"),
        ("new", ["m1"] * (bounds.MODELS + 1), "models"),
    ],
)  # fmt: skip
def test_an_alias_that_hides_a_model_or_stands_for_an_alias_is_refused(
    name: str, models: list[str], field: str
) -> None:
    broker = a_fleet("m1", settings=WITH_FILE)
    refused = error(alias(broker, name, *models))
    assert (refused.code, refused.fields["field"]) == ("bad_field", field)
    assert in_force(broker) == {"fast": ["m1"]}


def test_a_name_that_an_alias_stands_for_is_not_made_one() -> None:
    broker = a_broker(clients=["ann"])
    alias(broker, "fast", "m1")
    assert "alias fast" in str(error(alias(broker, "m1", "m2")).message)


def test_an_alias_for_what_nobody_has_is_refused_with_the_nearest() -> None:
    broker = a_fleet("m1")
    refused = error(alias(broker, "fast", "m1", "m9"))
    assert (refused.code, refused.fields["model"]) == ("unknown_model", "m9")
    assert refused.fields["nearest"]


def test_before_any_worker_came_an_alias_may_stand_for_anything() -> None:
    broker = a_broker(clients=["ann"])
    assert changed(alias(broker, "fast", "m1"))


def test_there_is_a_bound_on_aliases() -> None:
    broker = a_fleet("m1", settings=Settings(aliases_set=1))
    alias(broker, "one", "m1")
    assert error(alias(broker, "two", "m1")).code == "limit_reached"
    assert changed(alias(broker, "one", "m2"))


def test_a_near_miss_of_an_alias_is_told() -> None:
    broker = a_fleet("m1", settings=Settings(aliases={"quickest": ("m1",)}))
    (outcome,) = outcomes(broker.submit("ann", spec("a", task_type="chat", models=["quicket"])))
    assert outcome.error is not None
    assert outcome.error.code == "unknown_model"
    assert outcome.error.fields["nearest"] == ["quickest"]


def test_an_alias_whose_models_are_all_gone_says_which() -> None:
    broker = a_fleet("m1", settings=Settings(aliases={"fast": ("m8", "m9")}))
    (outcome,) = outcomes(broker.submit("ann", spec("a", task_type="chat", models=["fast"])))
    assert outcome.error is not None
    assert (outcome.error.code, outcome.error.fields["model"]) == ("unknown_model", "m8")


def test_why_says_what_an_alias_stands_for() -> None:
    broker = a_fleet("m1", jobs=[ready("a", task_type="chat", models=["m2"])])
    broker.has_capacity("w1", instance("m1", model="m1", kind="llm"))
    alias(broker, "fast", "m2")
    broker.submit("ann", spec("b", task_type="chat", models=["fast"]))
    reply = sent(broker.says("ann", Why(request_id=8, job_id=job_id("b"))), "ann", WhyReply)[0]
    assert "no connected endpoint has fast (m2)" in reply.reasons[0].text


@pytest.mark.parametrize("role", ["user", "app", "observer", "gateway"])
def test_only_an_admin_renames(role: str) -> None:
    broker = a_fleet("m1")
    broker.role("ann", role)
    assert error(alias(broker, "fast", "m1")).code == "not_allowed"
    assert error(default(broker, "chat", "m1")).code == "not_allowed"


# --- default models ---


def asked(broker: Broker, task_type: str, name: str) -> tuple[str, ...]:
    (outcome,) = outcomes(broker.submit("ann", spec(name, task_type=task_type)))
    assert outcome.outcome == "accepted", outcome
    return broker.job(name).models


def test_a_job_without_a_model_gets_the_default_of_its_task_type() -> None:
    broker = a_fleet("m1")
    assert changed(default(broker, "chat", "m2"))
    broker.turn()
    event = broker.last_event("default_set")
    assert (event.model, event.detail) == ("m2", {"task_type": "chat", "by": "ann"})
    assert asked(broker, "chat", "a") == ("m2",)
    assert asked(broker, "complete", "b") == ("m2",), "as a chat, unless it has its own"
    assert asked(broker, "embed", "c") == ()
    assert asked(broker, "train", "d") == ()
    default(broker, "complete")
    assert asked(broker, "complete", "e") == ()
    broker.submit("ann", spec("f", task_type="chat", models=["m3"]))
    assert broker.job("f").models == ("m3",)


def test_a_default_by_command_wins_over_the_file_until_it_is_reset() -> None:
    terms = TASK_DEFAULTS | {"chat": TaskDefaults(model="m1")}
    broker = a_fleet("m1", settings=Settings(task_defaults=terms))
    assert asked(broker, "chat", "a") == ("m1",)
    default(broker, "chat", "m2")
    assert asked(broker, "chat", "b") == ("m2",)
    default(broker, "chat")
    assert asked(broker, "chat", "c") == ()
    assert changed(default(broker, "chat", reset=True))
    assert asked(broker, "chat", "d") == ("m1",)
    assert not changed(default(broker, "chat", reset=True))
    assert [(each.task_type, each.model, each.by) for each in listed(broker).defaults] == [
        ("chat", "m1", ""), ("complete", "m1", ""),
    ]  # fmt: skip


def test_a_default_may_be_an_alias() -> None:
    broker = a_fleet("m1", settings=WITH_FILE)
    default(broker, "chat", "fast")
    asked(broker, "chat", "a")
    assert [lease.instance_id for lease in leases(broker.turn(), "w1")] == ["m1"]


@pytest.mark.parametrize(
    ("task_type", "model", "code"),
    [("train", "m1", "bad_field"), ("", "m1", "bad_field"), ("chat", "x" * 129, "bad_field"),
     ("chat", "m9", "unknown_model")],
)  # fmt: skip
def test_a_default_of_no_use_is_refused(task_type: str, model: str, code: str) -> None:
    assert error(default(a_fleet("m1"), task_type, model)).code == code
