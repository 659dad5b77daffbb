"""The clocks of the machine, read once per turn."""

import time

from lmq_broker.core.stimuli import Now


def now() -> Now:
    """Return the monotonic and the wall time, in milliseconds."""
    return Now(time.monotonic_ns() // 1_000_000, time.time_ns() // 1_000_000)
