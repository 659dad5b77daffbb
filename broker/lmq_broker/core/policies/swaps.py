"""What another model in an endpoint's memory costs, and how long those who want the present one may go on.

Loads are explicit and one at a time; a model that something runs on, or that lmq did not load, is never evicted.
"""

import msgspec

from lmq_broker.core.models import catalog_names, names_of
from lmq_broker.core.state import Instance, OrderKey, Worker

LOAD_MS = 10_000
"""Of a model whose load nobody has measured and whose size is not known."""
LEAST_LOAD_MS = 1000
LOAD_BYTES_PER_MS = 1_000_000
LOAD_WEIGHT = 0.3
"""Of the newest load among the earlier ones of the same model at the same endpoint."""


class Bypass(msgspec.Struct):
    """At one worker, for one band: the flow whose turn it is is passed over in favour of the loaded model."""

    since_ms: int
    cost: float = 0.0
    """What was started meanwhile, over the weights of those who had it."""


class Swap(msgspec.Struct):
    """A worker drains an instance for another model."""

    victims: frozenset[str]
    """Instances to be unloaded."""
    model: str
    names: frozenset[str]
    """Of the model, as jobs name it."""
    band: int
    """Stricter ones go on; -1: an order, for which nothing more starts on the victims."""
    key: float
    """Of the flow it is done for: others may fill in until they are this far beyond it."""
    since_ms: int
    user: str
    """Whose job it is done for, or who ordered it."""
    order: OrderKey | None = None
    """The order that it carries out."""


class Memory:
    """What is known of the room for models at each worker, and of how long loads take."""

    def __init__(self) -> None:
        self._load_ms: dict[tuple[str, str], float] = {}
        self._too_much_bytes: dict[str, int] = {}
        """Worker -> the least total at which a load found no memory."""
        self._loaded_ms: dict[tuple[str, str], int] = {}
        """(worker, instance) -> monotonic time since which it is known to be loaded."""
        self._sizes: dict[tuple[str, str], int] = {}
        """(worker, model) -> bytes, for the present fleet."""

    def learn(self, worker: Worker, model: str, took_ms: int, *, no_memory: bool) -> None:
        """Take in how a load went."""
        if not no_memory:
            known = self._load_ms.get((worker.name, model))
            self._load_ms[worker.name, model] = (
                float(took_ms) if known is None else known + LOAD_WEIGHT * (took_ms - known)
            )
            return
        total = self._used_bytes(worker) + self._size_bytes(worker, model)
        if total and worker.instances:
            known_bytes = self._too_much_bytes.get(worker.name, total)
            self._too_much_bytes[worker.name] = min(known_bytes, total)

    def load_ms(self, worker: Worker, model: str) -> float:
        """Return how long a load takes (S)."""
        known = self._load_ms.get((worker.name, model))
        if known is not None:
            return max(known, LEAST_LOAD_MS)
        size_bytes = self._size_bytes(worker, model)
        return max(size_bytes / LOAD_BYTES_PER_MS, LEAST_LOAD_MS) if size_bytes else LOAD_MS

    def note(self, worker: Worker, now_ms: int) -> None:
        """Take in what a worker has now: since when instances are loaded, how large models are."""
        for known in [known for known in self._sizes if known[0] == worker.name]:
            del self._sizes[known]
        for instance_id in worker.instances:
            self._loaded_ms.setdefault((worker.name, instance_id), now_ms)
        for key in [
            key for key in self._loaded_ms if key[0] == worker.name and key[1] not in worker.instances
        ]:
            del self._loaded_ms[key]

    def resident_ms(self, instance: Instance, now_ms: int) -> int:
        """Return for how long an instance has been loaded."""
        return now_ms - self._loaded_ms.get((instance.worker.name, instance.id), now_ms)

    def victims(
        self, worker: Worker, model: str, demand: dict[str, float], pinned: frozenset[str] = frozenset()
    ) -> list[Instance] | None:
        """Return the instances that must go before a model can be loaded; None if too much is pinned or not ours.

        Those with least demand go first; of equal demand, those that run least.
        """
        limit = worker.capacity.models_max
        too_much_bytes = self._too_much_bytes.get(worker.name, 0)
        count = len(worker.instances)
        used_bytes = self._used_bytes(worker) + self._size_bytes(worker, model)
        must_free = worker.memory_full and count > 0

        def fits() -> bool:
            return not (
                (limit is not None and count >= limit)
                or (too_much_bytes and used_bytes >= too_much_bytes)
                or must_free
            )

        if fits():
            return []
        chosen = []
        ours = [each for each in worker.instances.values() if each.ours and each.id not in pinned]
        for instance in sorted(ours, key=lambda each: (demand.get(each.id, 0.0), each.leased, each.id)):
            chosen.append(instance)
            count -= 1
            used_bytes -= self._size_bytes(worker, instance.model)
            must_free = False
            if fits():
                return chosen
        return None

    def _used_bytes(self, worker: Worker) -> int:
        return sum(self._size_bytes(worker, instance.model) for instance in worker.instances.values())

    def _size_bytes(self, worker: Worker, model: str) -> int:
        key = worker.name, model
        if key not in self._sizes:
            wanted = names_of(model)
            self._sizes[key] = next(
                (each.size_bytes for each in worker.capacity.catalog if wanted & catalog_names(each)), 0
            )
        return self._sizes[key]
