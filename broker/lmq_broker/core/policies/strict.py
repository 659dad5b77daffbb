"""Strict order: band, then priority, then arrival; a job goes where its model is loaded, or an idle endpoint loads it.

Bands are ranges of priority, so that the order by priority is also the order by band. Ready jobs that can run in the
same places wait in one lane; a decision looks at the head of each lane, never at single jobs.
"""

from lmq_broker.core.models import names_of
from lmq_broker.core.policies.base import Decision, Fleet, Load, Spent, Start, Unload, WakeAt
from lmq_broker.core.policies.lines import JobLine, Place
from lmq_broker.core.policies.places import LaneKey, Places, is_open, lane_of, room
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import Instance, Job, Lease, Worker
from lmq_broker.core.stimuli import Now


class Lane:
    """Ready jobs that can run in the same places."""

    __slots__ = ("line", "places")

    def __init__(self, key: LaneKey, homes: dict[int, JobLine]) -> None:
        self.places = Places(key)
        self.line = JobLine(key, homes, by_expiry=False)


class Strict:
    """The trivial policy."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lanes: dict[LaneKey, Lane] = {}
        self._homes: dict[int, JobLine] = {}

    def queued(self, job: Job, now: Now) -> None:
        """Put a ready job into its lane."""
        key = lane_of(job)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, self._homes)
        lane.line.add(job)

    def withdrawn(self, job: Job) -> None:
        """Take a ready job out of its lane."""
        line = self._homes[job.number]
        line.remove(job)
        if not line.size:
            del self._lanes[line.key]

    def started(self, lease: Lease, instance: Instance, now: Now) -> None:
        """The job at a lane's head has left."""
        self.withdrawn(lease.job)

    def resumed(self, lease: Lease) -> None:
        """Strict order keeps no account of what runs."""

    def served(self, lease: Lease, tokens: int) -> None:
        """Strict order keeps no account of service."""

    def ended(self, lease: Lease, spent: Spent, now: Now) -> None:
        """Strict order keeps no account of service."""

    def loaded(self, worker: Worker, model: str, took_ms: int, *, no_memory: bool) -> None:
        """Strict order knows no cost of loads."""

    def changes(self) -> dict[str, bytes]:
        """Strict order keeps no ledger."""
        return {}

    def restore(self, kept: dict[str, bytes]) -> None:
        """Strict order keeps no ledger."""

    def decide(self, fleet: Fleet, now: Now) -> Decision | None:
        """Start the first job that has room; before that, prepare a place for the first that has none."""
        heads = [
            (*lane.line.head(), lane) for key, lane in self._lanes.items() if key[0] not in fleet.held_queues
        ]
        homeless = [head for head in heads if head[2].places.names and not head[2].places.loaded(fleet)]
        reserved: tuple[Place, Worker] | None = None
        waiting: WakeAt | None = None
        for place, job, lane in sorted(homeless, key=_by_place):
            preparation, busy = self._prepare(job, lane.places, fleet, now)
            if isinstance(preparation, Load | Unload):
                return preparation
            if preparation is not None and (waiting is None or preparation.mono_ms < waiting.mono_ms):
                waiting = preparation
            if busy is not None:
                reserved = (place, busy)
                break
        best: tuple[Place, Job, Instance] | None = None
        for place, job, lane in heads:
            if best is None or place < best[0]:
                spared = reserved[1] if reserved is not None and place > reserved[0] else None
                found = _most_room(lane.places, fleet, spared=spared)
                if found is not None:
                    best = (place, job, found)
        return waiting if best is None else Start((best[1],), best[2])

    def ahead(self, job: Job, fleet: Fleet) -> int:
        """Count the jobs of all lanes that compete for the same places and come first by strict order."""
        own = self._lanes[self._homes[job.number].key]
        places = {id(place) for place in own.places.loaded(fleet)}
        total = 0
        for lane in self._lanes.values():
            if lane is own or _compete(lane.places, own.places, places, fleet):
                total += lane.line.before(job.priority, job.order)
        return total

    def waiting_for(self, model: str) -> int:
        """Sum the lanes that name the model."""
        wanted = names_of(model)
        return sum(lane.line.size for lane in self._lanes.values() if lane.places.names & wanted)

    def _prepare(
        self, job: Job, places: Places, fleet: Fleet, now: Now
    ) -> tuple[Load | Unload | WakeAt | None, Worker | None]:
        """Return what brings a place to a job whose model is loaded nowhere, and the worker to fall idle for it."""
        wake = 0
        busy = None
        for worker in fleet.workers.values():
            if worker.name in fleet.held_workers or worker.peer is None or not places.served_by(worker):
                continue
            model = places.on_disk(worker)
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


def _by_place(head: tuple[Place, Job, Lane]) -> Place:
    return head[0]


def _most_room(places: Places, fleet: Fleet, *, spared: Worker | None) -> Instance | None:
    """Return the instance with most free slots, or None; a suspect needs a worker at which nothing runs."""
    best = None
    most = 0
    for instance in places.loaded(fleet):
        worker = instance.worker
        if worker is spared or not is_open(worker, fleet) or (places.key[3] and worker.leases):
            continue
        free = room(instance)
        if free > most:
            best, most = instance, free
    return best


def _compete(other: Places, own: Places, own_places: set[int], fleet: Fleet) -> bool:
    """Tell whether two lanes want the same places; where neither has one, the same queue."""
    loaded = other.loaded(fleet)
    if loaded and own_places:
        return any(id(place) in own_places for place in loaded)
    return other.key[0] == own.key[0]
