"""Which instance of which worker can run a job, and which has room. What every policy asks of the fleet."""

from collections.abc import Mapping
from typing import NamedTuple

from lmq_broker.core.models import catalog_names, expanded, normal, on_disk, suits
from lmq_broker.core.policies.base import Fleet
from lmq_broker.core.state import Instance, Job, Worker

_make = tuple.__new__


class LaneKey(NamedTuple):
    """Jobs that are alike in these can run in the same places, and in the same request."""

    queue: str
    task_type: str
    models: tuple[str, ...]
    suspect: bool
    uses: tuple[str, ...] = ()
    merge: str = ""


def lane_of(job: Job) -> LaneKey:
    """Return what decides where a job can run."""
    terms = job.terms
    # Half as dear as by the class, and each job comes by here.
    return _make(LaneKey, (job.queue, job.task_type, job.models, job.past.suspect, terms.uses, terms.merge))


class Places:
    """Where the jobs of one lane can run; worked out once for each change of the fleet."""

    __slots__ = ("_found", "_homes", "_homes_version", "_ranks", "_version", "key", "names")

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self._ranks: dict[str, int] = {}
        """Normal forms of the models asked for, each with its place among them."""
        self._version = -1
        self._found: list[Instance] = []
        self._homes_version = -1
        self._homes: list[tuple[Worker, str]] = []
        self._call({})

    def _call(self, aliases: Mapping[str, tuple[str, ...]]) -> None:
        """Take in what the names asked for stand for now."""
        self._ranks = {}
        for model in expanded(self.key.models, aliases):
            self._ranks.setdefault(normal(model), len(self._ranks))
        self.names = frozenset(self._ranks)
        """Normal forms of the models asked for; empty: any."""

    def loaded(self, fleet: Fleet) -> list[Instance]:
        """Return the instances that can run these jobs, busy or not."""
        if self._version != fleet.version:
            self._version = fleet.version
            self._call(fleet.aliases)
            self._found = [
                instance
                for worker in fleet.workers.values()
                if self.served_by(worker)
                for instance in worker.instances.values()
                if self._fits(instance)
            ]
        return self._found

    def homes(self, fleet: Fleet) -> list[tuple[Worker, str]]:
        """Return which workers could load what for these jobs, at each the best first; not those that have a model."""
        if self._homes_version != fleet.version:
            self._homes_version = fleet.version
            have = {each.worker.name for each in self.loaded(fleet)}
            self._homes = [
                (worker, model)
                for worker in fleet.workers.values()
                if worker.capacity.may_load and worker.name not in have and self.served_by(worker)
                for model in self._on_disk(worker)
            ]
        return self._homes

    def served_by(self, worker: Worker) -> bool:
        """Tell whether a worker takes jobs of this queue and task type."""
        return self.key.task_type in worker.task_types and (
            not worker.queues or self.key.queue in worker.queues
        )

    def _on_disk(self, worker: Worker) -> list[str]:
        """Return what of a worker's catalog would do, as a load names it, in the order asked for."""
        found = [
            (self._ranks[name], on_disk(entry, name))
            for entry in worker.capacity.catalog
            if suits(entry.kind, self.key.task_type)
            for name in self.names & catalog_names(entry)
        ]
        return list(dict.fromkeys(model for _, model in sorted(found)))

    def _fits(self, instance: Instance) -> bool:
        named = not self.names or not instance.names or bool(self.names & instance.names)
        return named and suits(instance.kind, self.key.task_type)


def is_open(worker: Worker, fleet: Fleet) -> bool:
    """Tell whether a worker may be given anything: it can be reached, and no suspect runs there."""
    return not worker.alone and is_reachable(worker, fleet)


def is_reachable(worker: Worker, fleet: Fleet) -> bool:
    """Tell whether a worker takes jobs: connected, not held, its endpoint answers."""
    return (
        worker.peer is not None
        and not worker.gone_ms
        and worker.capacity.breaker is None
        and worker.name not in fleet.held_workers
    )


def room(instance: Instance) -> int:
    """Return how many slots are free at an instance, its worker's own limit kept."""
    free = instance.slots - instance.leased
    limit = instance.worker.capacity.slots
    return free if limit is None else min(free, limit - instance.worker.busy)
