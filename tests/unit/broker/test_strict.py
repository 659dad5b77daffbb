"""The strict policy: band, then priority, then arrival; each job where it can run."""

from __future__ import annotations

from unit.broker.builders import a_broker, drained, idle, instance, leases, ready, running, spec, started


def test_larger_priority_first_and_arrival_among_equals() -> None:
    priorities = {"a": 5, "b": 0, "c": 9, "d": 5, "e": 7, "f": 9}
    jobs = [ready(name, priority=priority) for name, priority in priorities.items()]
    assert drained(a_broker(jobs=jobs, workers=[idle("w1")])) == ["c", "f", "e", "a", "d", "b"]


def test_order_holds_over_queues_task_types_and_users() -> None:
    jobs = [
        ready("a", queue="q1", priority=4), ready("b", queue="q2", priority=5, user="tom"),
        ready("c", task_type="chat", priority=6), ready("d", queue="q1", priority=5),
    ]  # fmt: skip
    assert drained(a_broker(jobs=jobs, workers=[idle("w1")])) == ["c", "b", "d", "a"]


def test_a_job_goes_where_its_model_is_loaded() -> None:
    two = [instance("i1", model="m1", kind="llm"), instance("i2", model="m2", kind="llm")]
    broker = a_broker(
        jobs=[ready("a", task_type="chat", models=["m2"]), ready("b", task_type="chat", models=["m1"])],
        workers=[idle("w1", instances=two)],
    )
    told = {lease.job_id.rstrip(b"\0"): lease.instance_id for lease in leases(broker.turn(), "w1")}
    assert told == {b"a": "i2", b"b": "i1"}


def test_any_of_several_models_will_do() -> None:
    broker = a_broker(
        workers=[idle("w1", instances=[instance("i1", model="m1", kind="llm")])],
        jobs=[ready("a", task_type="chat", models=["m9", "m1"])],
    )
    assert started(broker.turn(), "w1") == ["a"]


def test_embeddings_go_to_embedding_models_and_chats_do_not() -> None:
    two = [instance("e", model="nomic", kind="embedding"), instance("l", model="qwen", kind="llm")]
    broker = a_broker(
        jobs=[ready("a", task_type="embed"), ready("b", task_type="chat")],
        workers=[idle("w1", instances=two)],
    )
    told = {lease.job_id.rstrip(b"\0"): lease.instance_id for lease in leases(broker.turn(), "w1")}
    assert told == {b"a": "e", b"b": "l"}


def test_a_job_that_cannot_run_anywhere_holds_up_nobody() -> None:
    broker = a_broker(
        jobs=[ready("a", queue="elsewhere", priority=9), ready("b")], workers=[idle("w1", queues=["default"])]
    )
    assert drained(broker) == ["b"]


def test_the_worker_with_most_room_comes_first() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1", slots=1), idle("w2", slots=3)])
    assert started(broker.turn(), "w2") == ["a"]


def test_a_job_that_arrives_late_with_a_larger_priority_overtakes() -> None:
    broker = a_broker(jobs=[running("x"), ready("a")], workers=[idle("w1")])
    broker.submit("ann", spec("b", priority=8))
    broker.reports("w1", "x", "complete")
    assert drained(broker) == ["b", "a"]
