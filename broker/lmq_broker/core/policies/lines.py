"""Ready jobs in the order in which whoever asked for them wants them. Who is served first is not said here.

New jobs come in order and wait in a line for each priority; those that come back into the middle, and those that
expire, wait in a heap. A line is some ten times cheaper than a heap, and does not grow dearer with its length.
"""

import heapq
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Protocol

from lmq_broker.core.policies.places import LaneKey
from lmq_broker.core.ranks import Ranks
from lmq_broker.core.state import Job
from lmq_proto.bounds import PRIORITY_MAX
from lmq_proto.states import State

NEVER_MS = 1 << 62
_SLACK = 64
"""Entries of jobs that left which a line may hold, beyond two for each that waits: who walks it passes them all."""
Place = tuple[int, int, int]
"""Where a job stands: (priority turned round, time at which it expires, order); the smallest is the first."""


def place_of(job: Job) -> Place:
    """Return where a job stands among others: by priority, then by expiry, then by order."""
    return PRIORITY_MAX - job.priority, job.expires_at_ms or NEVER_MS, job.order


class Line(Protocol):
    """Ready jobs of one flow that can run in the same places."""

    key: LaneKey
    size: int

    def add(self, job: Job) -> None:
        """Put a job in its place."""

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands; it must be as it was when it was put in."""

    def head(self) -> tuple[Place, Job]:
        """Return the first job and its place; there must be one."""

    def walk(self) -> Iterator[Job]:
        """Yield the jobs in order; nothing may be put in or taken out meanwhile."""

    def first(self, count: int) -> list[Job]:
        """Return the first jobs in order, as many as are wanted and there."""

    def before(self, job: Job) -> int:
        """Return how many jobs come before this one, which may wait in another line of its flow."""


class JobLine:
    """Jobs that wait. Those that leave are skipped when they come to the head."""

    __slots__ = ("_homes", "_left", "_lines", "_ranks", "_returned", "_returns", "key", "size")

    def __init__(self, key: LaneKey, homes: "dict[int, JobLine]") -> None:
        """Make an empty line.

        Args:
            key: what decides where these jobs can run.
            homes: job number -> the line in which it waits; shared by all lines of a policy, kept by them.
        """
        self.key = key
        self.size = 0
        self._homes = homes
        self._lines: dict[int, deque[tuple[int, Job]]] = {}
        """Priority -> (order, job) in order."""
        self._returned: list[tuple[Place, int, Job]] = []
        """Heap of (place, number of the return, job)."""
        self._ranks: dict[int, Ranks] = {}
        """Priority -> orders of the jobs that wait."""
        self._returns = 0
        self._left = 0
        """Jobs that left since it was last tidied."""

    @property
    def entries(self) -> int:
        """How many it holds, those of jobs that left among them."""
        return sum(map(len, self._lines.values())) + len(self._returned)

    def add(self, job: Job) -> None:
        """Put a job in its place."""
        line = self._lines.get(job.priority)
        if line is None:
            line = self._lines[job.priority] = deque()
        if not job.expires_at_ms and (not line or line[-1][0] < job.order):
            line.append((job.order, job))
        else:
            self._returns += 1
            place = place_of(job)
            heapq.heappush(self._returned, (place, self._returns, job))
        ranks = self._ranks.get(job.priority)
        if ranks is None:
            ranks = self._ranks[job.priority] = Ranks()
        ranks.add(job.order)
        self._homes[job.number] = self
        self.size += 1

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands; it must be as it was when it was put in."""
        del self._homes[job.number]
        self._ranks[job.priority].remove(job.order)
        self.size -= 1
        self._left += 1
        if self._left > 2 * self.size + _SLACK:
            self._tidy()

    def _tidy(self) -> None:
        """Drop the entries of jobs that left, if there are many of them: most have gone at the head already."""
        self._left = 0
        if self.entries <= 2 * self.size + _SLACK:
            return
        for priority, line in self._lines.items():
            self._lines[priority] = deque(
                entry for entry in line if self._stands(entry[1], priority, entry[0])
            )
        self._returned = [entry for entry in self._returned if self._waits(entry[2], entry[0])]
        heapq.heapify(self._returned)

    def head(self) -> tuple[Place, Job]:
        """Return the first job and its place; there must be one."""
        best: tuple[Place, Job] | None = None
        for priority in sorted(self._lines, reverse=True) if len(self._lines) > 1 else self._lines:
            line = self._lines[priority]
            while line and not self._stands(line[0][1], priority, line[0][0]):
                line.popleft()
            if line:
                best = (PRIORITY_MAX - priority, NEVER_MS, line[0][0]), line[0][1]
                break
        returned = self._returned
        while returned and not self._waits(returned[0][2], returned[0][0]):
            heapq.heappop(returned)
        if returned and (best is None or returned[0][0] < best[0]):
            return returned[0][0], returned[0][2]
        assert best is not None, "an empty line was asked for its head"
        return best

    def first(self, count: int) -> list[Job]:
        """Return the first jobs in order, as many as are wanted and there."""
        return list(islice(self.walk(), count))

    def walk(self) -> Iterator[Job]:
        """Yield the jobs in order; nothing may be put in or taken out meanwhile."""
        last = 0
        for place, _, job in heapq.merge(self._in_lines(), self._in_heap(), key=_place_of_entry):
            # One that was taken out and put back may stand here twice, at the same place.
            if job.number != last and self._waits(job, place):
                last = job.number
                yield job

    def _in_lines(self) -> Iterator[tuple[Place, int, Job]]:
        for priority in sorted(self._lines, reverse=True):
            for order, job in self._lines[priority]:
                yield (PRIORITY_MAX - priority, NEVER_MS, order), 0, job

    def _in_heap(self) -> Iterator[tuple[Place, int, Job]]:
        """Yield what came back in order, and leave the heap as it is."""
        heap = self._returned
        next_up = [(heap[0], 0)] if heap else []
        while next_up:
            entry, at = heapq.heappop(next_up)
            yield entry
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heapq.heappush(next_up, (heap[child], child))

    def before(self, job: Job) -> int:
        """Return how many jobs are of higher priority, or of the same and a smaller order."""
        total = 0
        for priority, ranks in self._ranks.items():
            if priority > job.priority:
                total += ranks.size
            elif priority == job.priority:
                total += ranks.below(job.order)
        return total

    def _stands(self, job: Job, priority: int, order: int) -> bool:
        """Tell the same as `_waits` of an entry in the line of a priority."""
        return (
            job.state is State.READY
            and self._homes.get(job.number) is self
            and job.order == order
            and job.priority == priority
            and not job.expires_at_ms
        )

    def _waits(self, job: Job, place: Place) -> bool:
        """Tell whether an entry still stands for a job that waits here, at this place.

        A job that was cancelled and retried is another object of the same number and place.
        """
        return job.state is State.READY and self._homes.get(job.number) is self and place_of(job) == place


def _place_of_entry(entry: tuple[Place, int, Job]) -> Place:
    return entry[0]
