"""A task that waits for jobs of its own lends its slot, and counts against nothing."""

from __future__ import annotations

from typing import Any

from lmq_broker.core.settings import Settings
from lmq_proto.messages import Limit, PhaseReport, Phases, Why, WhyReply
from unit.broker.builders import Broker, a_broker, idle, instance, job_id, ready, sent, started


def says_phase(broker: Broker, job: str, phase: str, worker: str = "w1") -> None:
    attempt = broker.job(job).attempt
    broker.says(worker, Phases(leases=[PhaseReport(job_id=job_id(job), attempt=attempt, phase=phase)]))


def names(broker: Broker, after_ms: int = 0, worker: str = "w1") -> list[str]:
    return started(broker.turn(after_ms), worker)


def tasks(*given: str, **fields: Any) -> list[Any]:
    return [ready(name, **({"task_type": "train"} | fields)) for name in given]


def test_its_slot_goes_to_whom_it_waits_for_and_comes_back() -> None:
    broker = a_broker(jobs=tasks("parent", "child", "other"), workers=[idle("w1", slots=1)])
    assert names(broker) == ["parent"]
    assert names(broker) == []
    says_phase(broker, "parent", "parked")
    assert names(broker) == ["child"]
    says_phase(broker, "parent", "parked")
    assert names(broker) == [], "one slot was lent, not two"
    why = sent(broker.says("ann", Why(request_id=8, job_id=job_id("parent"))), "ann", WhyReply)[0]
    assert "waits for jobs of its own, its slot lent" in why.reasons[0].text
    broker.reports("w1", "child", "complete")
    says_phase(broker, "parent", "writing")
    assert names(broker) == [], "it is taken again"
    broker.reports("w1", "parent", "complete")
    assert names(broker) == ["other"]


def test_it_goes_on_beside_whoever_is_in_its_slot() -> None:
    broker = a_broker(jobs=tasks("parent", "child", "other"), workers=[idle("w1", slots=1)])
    names(broker)
    says_phase(broker, "parent", "parked")
    assert names(broker) == ["child"]
    says_phase(broker, "parent", "writing")
    assert (broker.at("w1").busy, names(broker)) == (2, [])
    broker.reports("w1", "child", "complete")
    assert names(broker) == [], "the parent is in the slot"
    broker.reports("w1", "parent", "complete")
    assert names(broker) == ["other"]


def test_it_counts_against_no_limit_meanwhile() -> None:
    settings = Settings(limits=(Limit(of="running", value=1, task_type="train"),))
    broker = a_broker(
        jobs=tasks("parent", "child", "other"), workers=[idle("w1", slots=8)], settings=settings
    )
    assert names(broker) == ["parent"]
    says_phase(broker, "parent", "parked")
    assert names(broker) == ["child"]
    says_phase(broker, "parent", "writing")
    broker.reports("w1", "child", "complete")
    assert names(broker) == [], "the parent counts again"
    broker.reports("w1", "parent", "complete")
    assert names(broker) == ["other"]


def test_the_endpoint_that_it_uses_is_free_for_what_it_asks() -> None:
    gpu = idle("gpu-1", slots=1, task_types=["chat"], instances=[instance("m", model="m", kind="llm")])
    jobs = [*tasks("parent", uses=["gpu-1"]), ready("ask", task_type="chat", models=["m"], delay_ms=10)]
    broker = a_broker(jobs=jobs, workers=[gpu, idle("w1", task_types=["train"])])
    assert names(broker) == ["parent"]
    assert names(broker, 20, "gpu-1") == []
    says_phase(broker, "parent", "parked")
    assert names(broker, 0, "gpu-1") == ["ask"]
    broker.reports("gpu-1", "ask", "complete")
    says_phase(broker, "parent", "writing")
    broker.reports("w1", "parent", "complete")
    assert not broker.state.jobs


def test_its_user_is_not_charged_for_the_time() -> None:
    broker = a_broker(jobs=tasks("parent"), workers=[idle("w1", slots=1)])
    names(broker)
    broker.pass_time(1000, hearing=["w1"])
    says_phase(broker, "parent", "parked")
    broker.pass_time(60_000, hearing=["w1"])
    says_phase(broker, "parent", "writing")
    broker.pass_time(2000, hearing=["w1"])
    broker.reports("w1", "parent", "complete")
    [share] = broker.state.policy.shares()
    assert round(share.service / 1000) == 3


def test_one_that_ends_while_it_waits_leaves_no_trace() -> None:
    for outcome in ("complete", "error", "release"):
        settings = Settings(limits=(Limit(of="running", value=1, task_type="train"),))
        broker = a_broker(jobs=tasks("parent", failures=1), workers=[idle("w1", slots=1)], settings=settings)
        names(broker)
        says_phase(broker, "parent", "parked")
        broker.reports("w1", "parent", outcome)
        again = len(names(broker))
        assert broker.at("w1").busy == again == (outcome == "release")
        assert sum(share.running for share in broker.state.policy.shares()) == again


def test_a_fleet_that_changes_meanwhile_keeps_the_count() -> None:
    broker = a_broker(jobs=tasks("parent", "child"), workers=[idle("w1", slots=1)])
    names(broker)
    says_phase(broker, "parent", "parked")
    broker.has_capacity("w1", instance("echo", model="*", slots=2))
    assert broker.at("w1").busy == 0
    broker.breaks("w1")
    assert broker.at("w1").busy == 0


def test_what_an_engine_runs_lends_nothing() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")], workers=[idle("w1", slots=1)])
    assert names(broker) == ["a"]
    says_phase(broker, "a", "parked")
    assert names(broker) == []
