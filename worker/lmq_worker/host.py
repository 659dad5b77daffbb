"""The load of this machine, for endpoints that are on it. Small changes are not worth a message."""

from __future__ import annotations

from urllib.parse import urlsplit

import psutil

from lmq_proto.messages import HostLoad
from lmq_worker.config import LOOPBACK

LOOK_EVERY_S = 5.0
CHANGE_RATIO = 0.05


class HostWatch:
    """Looks at most every 5 s and changes its mind when a number moved by more than 5 points."""

    def __init__(self, endpoint: str) -> None:
        self._local = urlsplit(endpoint).hostname in LOOPBACK
        self._told: HostLoad | None = None
        self._looked_s = -LOOK_EVERY_S
        if self._local:
            # The first call only sets the mark from which the next one measures.
            psutil.cpu_percent(interval=None)

    def load(self, now_s: float) -> HostLoad | None:
        """Return what to report; None where the endpoint is elsewhere."""
        if self._local and now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            memory = psutil.virtual_memory()
            seen = HostLoad(
                cpu_ratio=round(psutil.cpu_percent(interval=None) / 100, 2),
                memory_ratio=round(memory.percent / 100, 2),
                memory_bytes=memory.total,
            )
            if self._told is None or moved(self._told, seen):
                self._told = seen
        return self._told


def moved(before: HostLoad, after: HostLoad) -> bool:
    """Tell whether two loads differ enough to say so."""
    return (
        abs(before.cpu_ratio - after.cpu_ratio) > CHANGE_RATIO
        or abs(before.memory_ratio - after.memory_ratio) > CHANGE_RATIO
    )
