"""What a worker reports of its endpoint, and what becomes of its slots."""

from lmq_proto.messages import HostLoad
from unit.broker.builders import a_broker, idle, instance, ready, started


def test_slots_fall_free_after_a_report_of_load_alone() -> None:
    broker = a_broker(
        jobs=[ready("a"), ready("b")], workers=[idle("w1", instances=[instance("i1", slots=1)])]
    )
    assert started(broker.turn(), "w1") == ["a"]
    broker.has_capacity("w1", instance("i1", slots=1), host=HostLoad(cpu_ratio=0.5))
    broker.reports("w1", "a", "complete")
    assert started(broker.turn(), "w1") == ["b"]


def test_more_slots_are_used_at_once() -> None:
    broker = a_broker(
        jobs=[ready("a"), ready("b")], workers=[idle("w1", instances=[instance("i1", slots=1)])]
    )
    assert started(broker.turn(), "w1") == ["a"]
    broker.has_capacity("w1", instance("i1", slots=2))
    assert started(broker.turn(), "w1") == ["b"]
