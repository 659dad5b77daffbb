"""Foreign use: loads and unloads at an endpoint that were not ours, and how far it is trusted because of them.

Somebody who works at the machine, or another program, loads and unloads as they please. Each time that shows, an event
says so, and the endpoint looks slower than it is to whoever compares places, until it has been left alone for a while.
"""

import math

from lmq_broker.core import models
from lmq_broker.core.chronicle import tell
from lmq_broker.core.state import BrokerState, Instance, Worker
from lmq_broker.core.stimuli import Now
from lmq_proto.events import Kind

FLOOR = 0.25
"""Trust never sinks below: a place that is used by others is still a place."""
STEP = 0.8
"""What one foreign load or unload leaves of it."""
HALF_LIFE_MS = 3_600_000
"""In this time half of what is missing comes back."""
_CRASH_MS = 15_000
"""An instance that vanishes so soon after a crash there is gone because of it: workers look at once, or every 5 s."""
_WAIT_MS = 3000
"""How long the word of a crash may come later than the look that finds the instance gone."""


def trust_of(worker: Worker, now_ms: int) -> float:
    """Return how far an endpoint is trusted, from `FLOOR` to 1."""
    conduct = worker.conduct
    if conduct.trust == 1.0:
        return 1.0
    return 1.0 - (1.0 - conduct.trust) * math.exp2((conduct.trust_ms - now_ms) / HALF_LIFE_MS)


def judge(state: BrokerState, worker: Worker, before: dict[str, Instance], now: Now) -> None:
    """Compare what a worker reports with what was there and what it was told; tell of what others did."""
    conduct = worker.conduct
    loads = worker.loading if worker.loading_since_ms else ""
    for name, instance in worker.instances.items():
        if name in before or instance.ours or (loads and models.is_meant(loads, name, instance.names)):
            continue
        _tell(state, worker, instance.model, "loaded", now)
    for name, instance in before.items():
        if name in worker.instances or worker.loading:
            # What goes while we load or unload goes because of that: a server that makes room, or does as it was told.
            continue
        if now.mono_ms - conduct.crashes.pop(name, -_CRASH_MS) < _CRASH_MS:
            continue
        if instance.leased:
            conduct.missed[name] = (instance.model, now.mono_ms)
        else:
            _tell(state, worker, instance.model, "unloaded", now)


def crashed(worker: Worker, instance_id: str, now: Now) -> None:
    """An engine died under a job: that its instance is gone is nobody's doing."""
    if worker.conduct.missed.pop(instance_id, None) is None:
        worker.conduct.crashes[instance_id] = now.mono_ms


def tend(state: BrokerState, now: Now) -> None:
    """Tell of the instances that vanished under their jobs and have not crashed."""
    for worker in state.workers.values():
        conduct = worker.conduct
        for name, (model, at_ms) in list(conduct.missed.items()):
            if now.mono_ms - at_ms >= _WAIT_MS:
                del conduct.missed[name]
                _tell(state, worker, model, "unloaded", now)
        for name, at_ms in list(conduct.crashes.items()):
            if now.mono_ms - at_ms >= _CRASH_MS:
                del conduct.crashes[name]


def _tell(state: BrokerState, worker: Worker, model: str, what: str, now: Now) -> None:
    conduct = worker.conduct
    conduct.trust = max(FLOOR, trust_of(worker, now.mono_ms) * STEP)
    conduct.trust_ms = now.mono_ms
    tell(state, now, Kind.FOREIGN_USE, worker=worker.name, model=model,
         detail={"what": what, "trust": round(conduct.trust, 3)})  # fmt: skip
