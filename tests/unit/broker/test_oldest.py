"""How long the oldest job waits: what queues, metrics and alerts say of it, over a restart too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lmq_broker.core.records import JobAdded
from lmq_proto.messages import Limit, ListQueues, Queues, Retry, SetLimit
from unit.broker.builders import (
    WALL_MS,
    a_broker,
    idle,
    job_id,
    only,
    ready,
    restarted,
    running,
    sent,
    tell,
)

if TYPE_CHECKING:
    from unit.broker.builders import Broker


def oldest(broker: Broker) -> int:
    """Return how long the oldest job of the queue `default` waits."""
    found = sent(broker.says("ann", ListQueues(request_id=4)), "ann", Queues)[0].queues
    return next(queue.oldest_ready_ms for queue in found if queue.name == "default")


def a_restart_after(wait_ms: int, broker: Broker) -> Broker:
    """Return a broker that starts so long after the jobs of this one came."""
    images = [
        msgspec.structs.replace(record.job, created_at_ms=WALL_MS - wait_ms)
        for record in only(broker.journal, JobAdded)
    ]
    return restarted(broker, open_jobs=images)


def test_a_wait_goes_on_over_a_restart() -> None:
    again = a_restart_after(60_000, a_broker(jobs=[ready("a")]))
    again.turn(2000)
    assert oldest(again) == 62_000


def test_the_alert_of_a_wait_counts_over_a_restart() -> None:
    broker = a_broker(jobs=[ready("a")])
    broker.says("ann", SetLimit(request_id=4, limit=Limit(of="wait", value=30_000)))
    again = a_restart_after(60_000, broker)
    again.turn(1000)
    assert again.last_event("alert_raised").detail["now"] == 60_000


def test_a_delayed_job_waits_from_when_it_is_due() -> None:
    broker = a_broker(jobs=[ready("a", delay_ms=5000)])
    broker.turn(5000)
    broker.turn(3000)
    assert oldest(broker) == 3000


def test_a_job_that_lost_its_worker_waits_since_it_was_accepted() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.turn(4000)
    broker.reports("w1", "a", "release")
    assert oldest(broker) == 4000


def test_a_child_waits_from_when_its_parent_is_done() -> None:
    broker = a_broker(jobs=[running("a"), ready("b", parents=[job_id("a")])], workers=[idle("w1", slots=1)])
    broker.turn(9000)
    broker.reports("w1", "a", "complete")
    assert oldest(broker) == 0


def test_a_job_that_is_retried_waits_from_then() -> None:
    broker = a_broker(jobs=[ready("a")])
    broker.turn(9000)
    broker.cancel("ann", "a")
    tell(broker, Retry, "a")
    broker.turn(1000)
    assert oldest(broker) == 1000


def test_a_wall_clock_that_was_set_back_makes_no_wait_negative() -> None:
    broker = a_broker(jobs=[ready("a")])
    broker.wall_ms -= 60_000
    assert oldest(broker) == 0
