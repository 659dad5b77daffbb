"""Workers: enlisted, refused, back again, silent, dead; what they have loaded and are told to load."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Effect, Publish, Send
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Breaker,
    Bye,
    Enlisted,
    ErrorReply,
    Hello,
    InstanceInfo,
    ListWorkers,
    LoadEnded,
    LoadModel,
    Stop,
    UnloadModel,
    Welcome,
    Workers,
    WorkerState,
)
from lmq_proto.states import State
from unit.broker.builders import (
    EPOCH,
    Broker,
    a_broker,
    error,
    held,
    idle,
    instance,
    instance_of,
    job_id,
    leases,
    on_disk,
    only,
    ready,
    running,
    sent,
    started,
)


def enlisted(effects: list[Effect], name: str) -> Enlisted:
    return sent(effects, name, Enlisted)[0]


def altered(message: Any, **fields: Any) -> Any:
    """Return a message with some fields replaced."""
    return type(message)(**({each: getattr(message, each) for each in message.__struct_fields__} | fields))


# --- enlisted ---------------------------------------------------------------------------------------------------------


def test_a_worker_that_enlists_is_told_the_epoch_and_shown_to_all() -> None:
    broker = a_broker()
    effects = broker.worker(idle("w1", slots=3))
    answer = enlisted(effects, "w1")
    assert (answer.epoch, answer.broker_id, answer.stop) == (EPOCH, broker.state.broker_id, [])
    assert [each.topic for each in only(effects, Publish)] == ["worker/w1"]
    broker.turn()
    assert broker.last_event("worker_up").detail == {"endpoint": "http://w1", "backend": "echo", "host": ""}
    assert broker.last_event("model_loaded").model == "*"


def test_a_second_worker_for_an_endpoint_is_refused_while_the_first_lives() -> None:
    broker = a_broker(workers=[idle("w1", endpoint="http://gpu")])
    refused = error(broker.worker(idle("w2", endpoint="http://gpu")))
    assert (refused.code, refused.retryable) == ("endpoint_taken", True)
    assert (refused.fields["worker"], refused.fields["endpoint"]) == ("w1", "http://gpu")
    assert list(broker.state.workers) == ["w1"]


def test_a_second_worker_of_a_name_is_refused_while_the_first_lives() -> None:
    broker = a_broker(workers=[idle("w1")])
    again = idle("w1", life=2, endpoint="http://other")
    assert error(broker.worker(again, peer="other")).code == "endpoint_taken"


def test_who_replaces_a_dead_predecessor_takes_its_place_at_once() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    again = idle("w1", life=2, replaces=instance_of("w1", 1))
    assert enlisted(broker.worker(again, peer="w1-again"), "w1-again").epoch == EPOCH
    assert broker.job("a").lease is None
    assert broker.at("w1").instance == instance_of("w1", 2)
    broker.turn()
    assert broker.last_event("worker_up").seq > broker.last_event("worker_down").seq


def test_a_new_process_may_enlist_once_the_connection_of_the_old_one_is_gone() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.breaks("w1")
    assert enlisted(broker.worker(idle("w1", life=2), peer="again"), "again").epoch == EPOCH
    assert broker.job("a").lease is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"), ({"name": "x" * 129}, "name"), ({"endpoint": ""}, "endpoint"),
        ({"endpoint": "x" * 1025}, "endpoint"), ({"task_types": []}, "task_types"),
        ({"task_types": [""]}, "task_types"), ({"queues": ["q" * 129]}, "queues"), ({"queues": ["q"] * 1025}, "queues"),
        ({"instance": b""}, "instance"), ({"instance": bytes(17)}, "instance"),
    ],
)  # fmt: skip
def test_an_enlistment_out_of_bounds_is_refused(fields: dict[str, Any], field: str) -> None:
    broker = a_broker()
    refused = error(broker.worker(altered(idle("w1"), **fields), peer="w1"))
    assert (refused.code, refused.fields["field"]) == ("bad_field", field)
    assert not broker.state.workers


@pytest.mark.parametrize(
    ("instances", "field"),
    [
        ([instance("same"), instance("same")], "instances"),
        ([instance(slots=-1)], "slots"),
        ([instance(slots=5000)], "slots"),
        ([instance(f"i{number}") for number in range(257)], "instances"),
    ],
)
def test_a_capacity_out_of_bounds_is_refused(instances: list[InstanceInfo], field: str) -> None:
    broker = a_broker()
    assert error(broker.worker(idle("w1", instances=instances))).fields["field"] == field
    broker.worker(idle("w2"))
    assert error(broker.has_capacity("w2", *instances)).fields["field"] == field
    assert list(broker.at("w2").instances) == ["i1"]


def test_a_worker_of_another_protocol_is_told_to_upgrade() -> None:
    broker = a_broker()
    newer = altered(idle("w1"), protocol_oldest=2, protocol_newest=3)
    assert error(broker.worker(newer)).code == "upgrade_required"


# --- back again -------------------------------------------------------------------------------------------------------


def test_a_worker_back_within_the_grace_goes_on() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.breaks("w1")
    broker.pass_time(2000, hearing=["ann"])
    answer = enlisted(broker.worker(idle("w1", held=[held(broker, "a")]), peer="w1-new"), "w1-new")
    assert answer.stop == []
    broker.pass_time(5000, hearing=["w1-new", "ann"])
    assert (broker.job("a").state, broker.job("a").attempt) == (State.LEASED, 1)
    broker.reports("w1-new", "a", "complete", b"r")
    assert job_id("a") in broker.state.finished


def test_a_worker_heard_again_on_its_old_connection_goes_on() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1", slots=2)])
    broker.breaks("w1")
    assert not started(broker.turn(), "w1"), "nothing starts where nobody is heard"
    broker.pass_time(5000, hearing=["w1", "ann"])
    assert [broker.job(name).state for name in "ab"] == [State.LEASED, State.LEASED]


def test_leases_that_a_returning_worker_does_not_name_pass_on_uncharged() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    assert enlisted(broker.worker(idle("w1", request_id=2)), "w1").stop == []
    assert (broker.job("a").state, broker.job("a").failures) == (State.READY, 0)
    broker.turn(1)
    assert broker.last_event("released").detail["code"] == "lease_lost"


def test_the_same_enlistment_twice_is_answered_twice_and_takes_nothing_away() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    assert enlisted(broker.worker(idle("w1")), "w1").stop == []
    assert (broker.job("a").state, broker.job("a").attempt) == (State.LEASED, 1)


@pytest.mark.parametrize("fence", [{"attempt": 9}, {"epoch": 9}, {"job_id": job_id("z")}])
def test_leases_that_are_no_longer_its_own_it_must_stop(fence: dict[str, Any]) -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    lost = altered(held(broker, "a"), **fence)
    assert enlisted(broker.worker(idle("w1", held=[lost])), "w1").stop == [lost]


def test_a_job_given_back_too_early_is_taken_up_again_if_nobody_else_has_it() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    mine = held(broker, "a")
    broker.breaks("w1")
    broker.pass_time(4000, hearing=["ann"])
    assert broker.job("a").lease is None
    if broker.job("a").state is State.READY:
        assert enlisted(broker.worker(idle("w1", held=[mine])), "w1").stop == []
        assert (broker.job("a").state, broker.job("a").attempt) == (State.LEASED, 1)
        broker.reports("w1", "a", "complete", b"r")
        assert job_id("a") in broker.state.finished


def test_a_job_that_another_worker_has_by_then_is_not_given_back() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    mine = held(broker, "a")
    broker.worker(idle("w2"))
    broker.breaks("w1")
    broker.pass_time(6000, hearing=["w2", "ann"])
    assert broker.job("a").worker == "w2"
    assert enlisted(broker.worker(idle("w1", held=[mine])), "w1").stop == [mine]


def test_a_job_cancelled_meanwhile_is_to_be_stopped() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    mine = held(broker, "a")
    broker.breaks("w1")
    broker.cancel("ann", "a")
    effects = broker.worker(idle("w1", held=[mine]))
    told = enlisted(effects, "w1").stop
    assert told == [mine] or sent(effects, "w1", Stop)


# --- silent and dead --------------------------------------------------------------------------------------------------


def test_a_broken_connection_is_a_dead_worker_after_three_seconds() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    broker.breaks("w1")
    broker.pass_time(2000, hearing=["ann"])
    assert broker.job("a").state is State.LEASED
    broker.pass_time(3000, hearing=["ann"])
    assert [(broker.job(name).state, broker.job(name).failures) for name in "ab"] == [(State.READY, 0)] * 2
    assert broker.job("a").past.suspect
    assert broker.job("b").past.suspect
    assert "died" in str(broker.last_event("worker_down").detail["error"])
    assert b"w1" not in broker.state.sessions


def test_silence_is_a_dead_worker_after_fifteen_seconds() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    broker.pass_time(14_000, hearing=["ann"])
    assert broker.job("a").state is State.LEASED
    broker.pass_time(2000, hearing=["ann"])
    assert broker.job("a").state is State.READY
    assert "silent for 15 s" in str(broker.last_event("worker_down").detail["error"])


def test_a_long_prefill_is_no_silence() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.pass_time(300_000, hearing=["w1", "ann"])
    assert broker.job("a").attempt == 1


def test_a_job_alone_at_a_worker_that_dies_takes_a_strike() -> None:
    broker = a_broker(jobs=[running("a", failures=50)], workers=[idle("w1")])
    broker.breaks("w1")
    broker.pass_time(5000, hearing=["ann"])
    assert broker.job("a").past.strikes == 1
    broker.worker(idle("w1", life=2))
    broker.pass_time(2000, hearing=["w1", "ann"])
    broker.breaks("w1")
    broker.pass_time(5000, hearing=["ann"])
    assert broker.last_event("dead").detail["code"] == "worker_lost"


def test_a_worker_that_says_bye_blames_nobody() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    effects = broker.says("w1", Bye(reason="shutdown"))
    assert [
        each.message.state for each in only(effects, Publish) if isinstance(each.message, WorkerState)
    ] == ["gone"]
    for name in "ab":
        job = broker.job(name)
        assert (job.state, job.failures, job.past.suspect) == (State.READY, 0, False)
    broker.turn()
    assert "shutdown" in str(broker.last_event("worker_down").detail["error"])


def test_a_worker_that_was_stopped_is_told_from_one_that_is_lost() -> None:
    broker = a_broker(workers=[idle("w1"), idle("w2")], clients=["ann"])

    def stopped() -> list[tuple[str, bool]]:
        found = sent(broker.says("ann", ListWorkers(request_id=4)), "ann", Workers)[0].workers
        return [(worker.state, worker.stopped) for worker in found]

    broker.says("w1", Bye(reason="shutdown"))
    broker.breaks("w2")
    broker.pass_time(7000, hearing=["ann"])
    assert stopped() == [("gone", True), ("gone", False)]
    broker.worker(idle("w1"))
    assert stopped()[0] == ("up", False)


def test_what_was_stopping_at_a_dead_worker_holds_nothing_up() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    broker.cancel("ann", "a")
    broker.breaks("w1")
    broker.pass_time(5000, hearing=["ann"])
    assert not broker.at("w1").leases


def test_a_clients_and_a_workers_messages_are_not_mixed_up() -> None:
    broker = a_broker(workers=[idle("w1")], clients=["ann"])
    refusal = only(broker.submit("w1", ready("a").spec), Send)[0].message
    assert isinstance(refusal, ErrorReply)
    assert (refusal.error.code, refusal.request_id) == ("protocol_error", 2)
    effects = broker.says("ann", LoadEnded(command_id=1))
    assert not sent(effects, "ann", Welcome)
    assert not broker.state.jobs


# --- capacity ---------------------------------------------------------------------------------------------------------


def test_observed_state_beats_belief() -> None:
    broker = a_broker(jobs=[running("a"), ready("b"), ready("c")], workers=[idle("w1", slots=3)])
    broker.has_capacity("w1", instance("i2", slots=1))
    assert list(broker.at("w1").instances) == ["i2"]
    assert [lease.instance_id for lease in leases(broker.turn(), "w1")] == ["i2"]
    kinds = [event.kind for event in broker.events if event.worker == "w1"]
    assert kinds.count("model_unloaded") == 1
    broker.reports("w1", "a", "complete")


def test_fewer_slots_stop_nothing_but_start_no_more() -> None:
    broker = a_broker(jobs=[running("a"), running("b"), ready("c")], workers=[idle("w1", slots=2)])
    broker.has_capacity("w1", instance(slots=1))
    broker.reports("w1", "a", "complete")
    assert not started(broker.turn(), "w1")
    broker.reports("w1", "b", "complete")
    assert started(broker.turn(), "w1") == ["c"]


def test_nothing_starts_while_the_endpoint_fails() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    broker.has_capacity("w1", instance(), breaker=Breaker(since_ms=1, reason="connection refused"))
    assert not started(broker.turn(), "w1")
    assert broker.last_event("breaker_open").detail == {"reason": "connection refused"}
    broker.has_capacity("w1", instance())
    assert started(broker.turn(), "w1") == ["a"]
    assert broker.last_event("breaker_closed").worker == "w1"


# --- loads ------------------------------------------------------------------------------------------------------------


def a_loader(*jobs: Any, instances: tuple[InstanceInfo, ...] = (), **fields: Any) -> Broker:
    """A broker with a worker that may load two models."""
    worker = idle("w1", instances=list(instances), catalog=on_disk("big", "small"), may_load=True)
    return a_broker(jobs=jobs, workers=[worker], **fields)


def loads(effects: list[Effect]) -> list[str]:
    return [load.model for load in sent(effects, "w1", LoadModel)]


def load_ends(broker: Broker, code: str = "") -> None:
    failed = ErrorInfo(code, "it failed") if code else None
    broker.says("w1", LoadEnded(command_id=broker.at("w1").command_id, error=failed))


def test_an_idle_endpoint_loads_the_model_that_is_asked_for_and_then_runs_it() -> None:
    broker = a_loader(ready("a", task_type="chat", models=["big"]))
    assert loads(broker.turn()) == ["big"]
    assert broker.at("w1").loading == "big"
    assert not loads(broker.turn(1000)), "one load at a time"
    broker.has_capacity(
        "w1",
        instance("big", model="big", kind="llm", ours=True),
        catalog=on_disk("big", "small"),
        may_load=True,
    )
    load_ends(broker)
    assert [lease.instance_id for lease in leases(broker.turn(), "w1")] == ["big"]


def test_a_worker_that_may_not_load_is_not_told_to() -> None:
    broker = a_broker(
        jobs=[ready("a", models=["big"])], workers=[idle("w1", instances=[], catalog=on_disk("big"))]
    )
    assert not loads(broker.turn())


def test_a_model_that_did_not_load_is_left_alone_for_a_while() -> None:
    broker = a_loader(ready("a", task_type="chat", models=["big"]))
    broker.turn()
    load_ends(broker, "load_failed")
    assert not loads(broker.pass_time(29_000, hearing=["w1", "ann"]))
    assert broker.last_event("load_failed").detail == {"code": "load_failed", "error": "it failed"}
    assert loads(broker.pass_time(2000, hearing=["w1", "ann"])) == ["big"]


def test_a_model_that_is_not_there_is_not_tried_again() -> None:
    broker = a_loader(ready("a", task_type="chat", models=["big"]))
    broker.turn()
    load_ends(broker, "model_not_found")
    assert not loads(broker.pass_time(120_000, hearing=["w1", "ann"]))


def test_for_want_of_memory_what_lmq_loaded_and_is_idle_goes_first() -> None:
    ours = instance("small", model="small", kind="llm", ours=True)
    broker = a_loader(ready("a", task_type="chat", models=["big"]), instances=(ours,))
    assert loads(broker.turn()) == ["big"]
    load_ends(broker, "insufficient_memory")
    effects = broker.turn()
    assert [unload.instance_id for unload in sent(effects, "w1", UnloadModel)] == ["small"]
    broker.has_capacity("w1", catalog=on_disk("big", "small"), may_load=True)
    load_ends(broker)
    assert loads(broker.turn()) == ["big"]


def test_what_lmq_did_not_load_it_does_not_unload() -> None:
    theirs = instance("small", model="small", kind="llm", ours=False)
    broker = a_loader(ready("a", task_type="chat", models=["big"]), instances=(theirs,))
    broker.turn()
    load_ends(broker, "insufficient_memory")
    assert not sent(broker.pass_time(60_000, hearing=["w1", "ann"]), "w1", UnloadModel)


def test_an_end_of_a_load_that_nobody_waits_for_changes_nothing() -> None:
    broker = a_loader(ready("a", task_type="chat", models=["big"]))
    broker.turn()
    broker.says("w1", LoadEnded(command_id=99))
    assert broker.at("w1").loading == "big"


def test_a_hello_opens_a_session_of_its_own() -> None:
    broker = a_broker()
    effects = broker.says(
        "ann", Hello(request_id=1, instance=instance_of("ann"), protocol_oldest=1, protocol_newest=1)
    )
    assert sent(effects, "ann", Welcome)[0].user == "local"
