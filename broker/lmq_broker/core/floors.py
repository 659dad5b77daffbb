"""How limits put a job off: the earliest start that they allow it, whoever's turn it is."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from lmq_broker.core.limits import RATES, Bucket, covers
from lmq_broker.core.state import Job


class Floor(NamedTuple):
    """No sooner than this, in milliseconds from now."""

    likely_ms: float
    sure_ms: float
    """What no early end of another job changes."""


NO_FLOOR = Floor(0.0, 0.0)


def floor_of(
    buckets: Iterable[Bucket],
    own: int,
    ahead: int,
    running: Callable[[Bucket], list[float]],
    takes_ms: float,
    now_ms: int,
) -> Floor | None:
    """Return the floor under a job's start; None: the limits let it never start.

    Args:
        buckets: what its start would be taken from.
        own: jobs of its user that come before it.
        ahead: jobs of anybody that do.
        running: for how many milliseconds each job still runs that a bucket counts, the shortest first.
        takes_ms: how long such a job runs.
        now_ms: monotonic.
    """
    likely_ms = sure_ms = 0.0
    for bucket in buckets:
        limit = bucket.limit
        if limit.value <= 0:
            return None
        before = own if bucket.subject else ahead
        if limit.of in RATES:
            sure_ms = max(sure_ms, bucket.room_in_ms(now_ms, before))
        elif (turn := before - int(limit.value - bucket.used)) >= 0:
            ends_ms = running(bucket) or [takes_ms]
            likely_ms = max(likely_ms, ends_ms[turn % len(ends_ms)] + turn // len(ends_ms) * takes_ms)
    return Floor(max(likely_ms, sure_ms), sure_ms)


def counts(bucket: Bucket, job: Job) -> bool:
    """Tell whether a bucket counts a job that runs."""
    return covers(bucket.limit, bucket.subject, (job.user, job.queue, job.task_type, "", ""))
