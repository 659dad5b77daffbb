"""What changing models costs each endpoint: drains, unloads and loads of the last hour, and a word when it is much."""

from lmq_broker.core.chronicle import tell
from lmq_broker.core.state import BrokerState, Change, Worker
from lmq_broker.core.stimuli import Now
from lmq_proto.events import Kind

WINDOW_MS = 600_000
COSTLY = 0.2
"""Share of the window above which an event says so, at most once a window."""
_KEPT_MS = 3_600_000
_CHANGES = 1000
"""Kept at most."""
_NAMED = 20
"""Models and users that the event names at most."""


def note(state: BrokerState, worker: Worker, model: str, now: Now, *, loaded: bool) -> None:
    """Take in that a load or unload is over, and tell if they have eaten too much of the last ten minutes."""
    conduct = worker.conduct
    began_ms = worker.draining_since_ms
    if conduct.changes:
        # One drain makes room for several unloads; its time counts once.
        began_ms = max(began_ms, conduct.changes[-1].ended_ms)
    conduct.changes.append(Change(began_ms, now.mono_ms, model, worker.loading_for, loaded))
    while len(conduct.changes) > _CHANGES or conduct.changes[0].ended_ms <= now.mono_ms - _KEPT_MS:
        conduct.changes.popleft()
    lost = lost_ms(worker, now.mono_ms)
    is_told = conduct.told_ms >= 0 and now.mono_ms - conduct.told_ms < WINDOW_MS
    if lost <= COSTLY * WINDOW_MS or is_told:
        return
    conduct.told_ms = now.mono_ms
    lately = [each for each in conduct.changes if each.ended_ms > now.mono_ms - WINDOW_MS]
    tell(state, now, Kind.SWAPS_COSTLY, worker=worker.name, detail={
        "models": sorted({each.model for each in lately})[:_NAMED],
        "users": sorted({each.user for each in lately if each.user})[:_NAMED],
        "lost_s": lost // 1000, "of_s": WINDOW_MS // 1000,
    })  # fmt: skip


def lost_ms(worker: Worker, now_ms: int) -> int:
    """Return how much of the last ten minutes went into drains, unloads and loads that are over."""
    since_ms = now_ms - WINDOW_MS
    return sum(
        each.ended_ms - max(each.began_ms, since_ms)
        for each in worker.conduct.changes
        if each.ended_ms > since_ms
    )


def loads(worker: Worker, now_ms: int) -> int:
    """Return how many models were loaded within the last hour."""
    return sum(each.loaded and each.ended_ms > now_ms - _KEPT_MS for each in worker.conduct.changes)
