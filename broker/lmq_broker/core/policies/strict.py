"""Strict order: band, then priority, then arrival; a job goes where its model is loaded, or an idle endpoint loads it.

Bands are ranges of priority, so that the order by priority is also the order by band. Ready jobs that can run in the
same places wait in one lane; a decision looks at the head of each lane, never at single jobs.
"""

import heapq
from collections import deque

import msgspec

from lmq_broker.core.models import catalog_names, names_of, normal, suits
from lmq_broker.core.policies.base import Decision, Fleet, Load, Start, Unload, WakeAt
from lmq_broker.core.ranks import Ranks
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import Instance, Job, Worker
from lmq_broker.core.stimuli import Now
from lmq_proto.bounds import PRIORITY_MAX
from lmq_proto.states import State

_ORDER_BITS = 50

LaneKey = tuple[str, str, tuple[str, ...], bool]
"""(queue, task type, models, suspect)."""


class Lane(msgspec.Struct):
    """Ready jobs that can run in the same places.

    New jobs come in order and wait in a line for each priority; those that come back into the middle wait in a heap.
    A line is some ten times cheaper than a heap, and does not grow dearer with its length.
    """

    key: LaneKey
    names: frozenset[str]
    """Normal forms of the models asked for; empty: any."""
    lines: dict[int, deque[tuple[int, Job]]] = msgspec.field(default_factory=dict)
    """Priority -> (order, job) in order."""
    returned: list[tuple[int, int, Job]] = msgspec.field(default_factory=list)
    """Heap of (sort key, number of the return, job)."""
    ranks: dict[int, Ranks] = msgspec.field(default_factory=dict)
    """Priority -> orders of the jobs that wait."""
    size: int = 0
    version: int = -1
    places: list[Instance] = msgspec.field(default_factory=list)
    """Instances that can run these jobs, as of fleet `version`."""


class Strict:
    """The trivial policy."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lanes: dict[LaneKey, Lane] = {}
        self._lane_of: dict[int, Lane] = {}
        self._returns = 0

    def queued(self, job: Job, now: Now) -> None:
        """Put a ready job into its lane."""
        key = (job.queue, job.task_type, job.models, job.past.suspect)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(
                key, frozenset(name for model in job.models for name in (normal(model),))
            )
        line = lane.lines.get(job.priority)
        if line is None:
            line = lane.lines[job.priority] = deque()
        if not line or line[-1][0] < job.order:
            line.append((job.order, job))
        else:
            self._returns += 1
            heapq.heappush(lane.returned, (_sort_key(job), self._returns, job))
        ranks = lane.ranks.get(job.priority)
        if ranks is None:
            ranks = lane.ranks[job.priority] = Ranks()
        ranks.add(job.order)
        lane.size += 1
        self._lane_of[job.number] = lane

    def withdrawn(self, job: Job) -> None:
        """Take a ready job out of its lane; its heap entry is skipped later."""
        lane = self._lane_of.pop(job.number)
        lane.ranks[job.priority].remove(job.order)
        lane.size -= 1
        if not lane.size:
            del self._lanes[lane.key]

    def started(self, job: Job, instance: Instance) -> None:
        """The job at a lane's head has left."""
        self.withdrawn(job)

    def served(self, job: Job, tokens: int) -> None:
        """Strict order keeps no account of service."""

    def ended(self, job: Job, engine_ms: int) -> None:
        """Strict order keeps no account of service."""

    def decide(self, fleet: Fleet, now: Now) -> Decision | None:
        """Start the first job that has room; before that, prepare a place for the first that has none."""
        heads = [
            (*self._head(lane), lane) for lane in self._lanes.values() if lane.key[0] not in fleet.held_queues
        ]
        homeless = [head for head in heads if head[2].names and not self._places(head[2], fleet)]
        reserved: tuple[int, Worker] | None = None
        waiting: WakeAt | None = None
        for key, job, lane in sorted(homeless, key=_by_key):
            preparation, busy = self._prepare(job, lane, fleet, now)
            if isinstance(preparation, Load | Unload):
                return preparation
            if preparation is not None and (waiting is None or preparation.mono_ms < waiting.mono_ms):
                waiting = preparation
            if busy is not None:
                reserved = (key, busy)
                break
        best: tuple[int, Job, Instance] | None = None
        for key, job, lane in heads:
            if best is None or key < best[0]:
                spared = reserved[1] if reserved is not None and key > reserved[0] else None
                room = _most_room(self._places(lane, fleet), fleet, alone=lane.key[3], spared=spared)
                if room is not None:
                    best = (key, job, room)
        return waiting if best is None else Start((best[1],), best[2])

    def ahead(self, job: Job, fleet: Fleet) -> int:
        """Count the jobs of all lanes that compete for the same places and come first by strict order."""
        own = self._lane_of[job.number]
        places = {id(place) for place in self._places(own, fleet)}
        total = 0
        for lane in self._lanes.values():
            if lane is not own and not _compete(lane, own, self._places(lane, fleet), places):
                continue
            for priority, ranks in lane.ranks.items():
                if priority > job.priority:
                    total += ranks.size
                elif priority == job.priority:
                    total += ranks.below(job.order)
        return total

    def waiting_for(self, model: str) -> int:
        """Sum the lanes that name the model."""
        wanted = names_of(model)
        return sum(lane.size for lane in self._lanes.values() if lane.names & wanted)

    def _head(self, lane: Lane) -> tuple[int, Job]:
        """Return the first job of a lane that is not empty, dropping entries of jobs that have left."""
        best: tuple[int, Job] | None = None
        for priority in sorted(lane.lines, reverse=True) if len(lane.lines) > 1 else lane.lines:
            line = lane.lines[priority]
            while line and not self._waits(lane, line[0][1], _key_of(priority, line[0][0])):
                line.popleft()
            if line:
                best = (_key_of(priority, line[0][0]), line[0][1])
                break
        returned = lane.returned
        while returned and not self._waits(lane, returned[0][2], returned[0][0]):
            heapq.heappop(returned)
        if returned and (best is None or returned[0][0] < best[0]):
            return returned[0][0], returned[0][2]
        assert best is not None, "a lane without jobs is no lane"
        return best

    def _waits(self, lane: Lane, job: Job, key: int) -> bool:
        """Tell whether an entry still stands for a job that waits in this lane, at this place."""
        return job.state is State.READY and _sort_key(job) == key and self._lane_of.get(job.number) is lane

    def _places(self, lane: Lane, fleet: Fleet) -> list[Instance]:
        """Return the instances that can run a lane's jobs, busy or not; worked out once per change of the fleet."""
        if lane.version != fleet.version:
            lane.version = fleet.version
            lane.places = [
                instance
                for worker in fleet.workers.values()
                if _serves(worker, lane.key)
                for instance in worker.instances.values()
                if _fits(instance, lane)
            ]
        return lane.places

    def _prepare(
        self, job: Job, lane: Lane, fleet: Fleet, now: Now
    ) -> tuple[Load | Unload | WakeAt | None, Worker | None]:
        """Return what brings a place to a job whose model is loaded nowhere, and the worker to fall idle for it."""
        wake = 0
        busy = None
        for worker in fleet.workers.values():
            if worker.name in fleet.held_workers or worker.peer is None or not _serves(worker, lane.key):
                continue
            model = _on_disk(worker, lane.names)
            if model is None or not worker.capacity.may_load or worker.capacity.breaker is not None:
                continue
            if worker.loading:
                return None, None
            again_ms = worker.refused_loads.get(model, 0)
            if again_ms > now.mono_ms:
                wake = min(wake or again_ms, again_ms)
                continue
            if worker.memory_full:
                victim = next((i for i in worker.instances.values() if i.ours and not i.leased), None)
                if victim is not None:
                    return Unload(worker, victim), None
            if not worker.leases:
                return Load(worker, model), None
            due = job.ready_since_ms + self._settings.swap_after_ms
            if due > now.mono_ms:
                wake = min(wake or due, due)
            elif busy is None or len(worker.leases) < len(busy.leases):
                busy = worker
        return (WakeAt(wake) if wake else None), busy


def _by_key(head: tuple[int, Job, Lane]) -> int:
    return head[0]


def _sort_key(job: Job) -> int:
    return _key_of(job.priority, job.order)


def _key_of(priority: int, order: int) -> int:
    return (PRIORITY_MAX - priority) << _ORDER_BITS | order


def _serves(worker: Worker, key: LaneKey) -> bool:
    """Tell whether a worker takes jobs of this queue and task type."""
    return key[1] in worker.task_types and (not worker.queues or key[0] in worker.queues)


def _fits(instance: Instance, lane: Lane) -> bool:
    """Tell whether an instance's model and kind suit a lane."""
    named = not lane.names or not instance.names or bool(lane.names & instance.names)
    return named and suits(instance.kind, lane.key[1])


def _most_room(
    places: list[Instance], fleet: Fleet, *, alone: bool, spared: Worker | None
) -> Instance | None:
    """Return the instance with most free slots, or None; a suspect needs a worker at which nothing runs."""
    best = None
    most = 0
    for instance in places:
        worker = instance.worker
        if worker.alone or worker is spared or worker.peer is None or worker.name in fleet.held_workers:
            continue
        if alone and worker.leases:
            continue
        free = instance.slots - instance.leased
        limit = worker.capacity.slots
        if limit is not None:
            free = min(free, limit - len(worker.leases))
        if free > most and worker.capacity.breaker is None and not worker.gone_ms:
            best, most = instance, free
    return best


def _on_disk(worker: Worker, names: frozenset[str]) -> str | None:
    """Return the catalog's key of the first model that answers to one of the names."""
    for entry in worker.capacity.catalog:
        if names & catalog_names(entry):
            return entry.model
    return None


def _compete(lane: Lane, own: Lane, places: list[Instance], own_places: set[int]) -> bool:
    """Tell whether two lanes want the same places; where neither has one, the same queue."""
    if places and own_places:
        return any(id(place) in own_places for place in places)
    return lane.key[0] == own.key[0]
