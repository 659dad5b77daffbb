"""Which instance of which worker can run a job, and which has room. What every policy asks of the fleet."""

from typing import NamedTuple

from lmq_broker.core.models import catalog_names, normal, suits
from lmq_broker.core.policies.base import Fleet
from lmq_broker.core.state import Instance, Job, Worker


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
    return LaneKey(job.queue, job.task_type, job.models, job.past.suspect, terms.uses, terms.merge)


class Places:
    """Where the jobs of one lane can run; worked out once for each change of the fleet."""

    __slots__ = ("_found", "_homes", "_homes_version", "_version", "key", "names")

    def __init__(self, key: LaneKey) -> None:
        self.key = key
        self.names = frozenset(normal(model) for model in key.models)
        """Normal forms of the models asked for; empty: any."""
        self._version = -1
        self._found: list[Instance] = []
        self._homes_version = -1
        self._homes: list[tuple[Worker, str]] = []

    def loaded(self, fleet: Fleet) -> list[Instance]:
        """Return the instances that can run these jobs, busy or not."""
        if self._version != fleet.version:
            self._version = fleet.version
            self._found = [
                instance
                for worker in fleet.workers.values()
                if self.served_by(worker)
                for instance in worker.instances.values()
                if self._fits(instance)
            ]
        return self._found

    def homes(self, fleet: Fleet) -> list[tuple[Worker, str]]:
        """Return the workers that could load a model for these jobs, with its key there; not those that have it."""
        if self._homes_version != fleet.version:
            self._homes_version = fleet.version
            have = {each.worker.name for each in self.loaded(fleet)}
            self._homes = [
                (worker, model)
                for worker in fleet.workers.values()
                if worker.capacity.may_load and worker.name not in have and self.served_by(worker)
                if self.names and (model := self.on_disk(worker)) is not None
            ]
        return self._homes

    def served_by(self, worker: Worker) -> bool:
        """Tell whether a worker takes jobs of this queue and task type."""
        return self.key.task_type in worker.task_types and (
            not worker.queues or self.key.queue in worker.queues
        )

    def on_disk(self, worker: Worker) -> str | None:
        """Return the catalog's key of the first model at a worker that would do."""
        for entry in worker.capacity.catalog:
            if self.names & catalog_names(entry):
                return entry.model
        return None

    def _fits(self, instance: Instance) -> bool:
        named = not self.names or not instance.names or bool(self.names & instance.names)
        return named and suits(instance.kind, self.key.task_type)


def is_open(worker: Worker, fleet: Fleet) -> bool:
    """Tell whether a worker may be given anything: connected, not held, its endpoint answers, no suspect runs there."""
    return (
        worker.peer is not None
        and not worker.gone_ms
        and not worker.alone
        and worker.capacity.breaker is None
        and worker.name not in fleet.held_workers
    )


def room(instance: Instance) -> int:
    """Return how many slots are free at an instance, its worker's own limit kept."""
    free = instance.slots - instance.leased
    limit = instance.worker.capacity.slots
    return free if limit is None else min(free, limit - instance.worker.busy)
