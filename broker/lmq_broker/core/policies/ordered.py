"""What people ordered, as a policy sees it: what is still to be done, where it can be done, and what has to stay."""

from collections.abc import Iterator

from lmq_broker.core.models import is_meant
from lmq_broker.core.policies.base import Fleet
from lmq_broker.core.state import Instance, OrderKey, Worker
from lmq_proto.messages import Order


class Ordered:
    """The orders of the present fleet; worked out once for each change of it."""

    def __init__(self) -> None:
        self._unmet: dict[OrderKey, Order] = {}
        self._pinned: dict[str, frozenset[str]] = {}

    def look_at(self, fleet: Fleet) -> None:
        """Take in what is ordered, and what of it is there already."""
        self._unmet = {}
        pinned: dict[str, set[str]] = {}
        for key, order in fleet.orders.items():
            worker = fleet.workers.get(order.worker)
            if worker is None or worker.peer is None:
                continue
            found = meant(worker, order)
            if order.kind == "pin":
                pinned.setdefault(worker.name, set()).update(each.id for each in found)
            if bool(found) == (order.kind == "unload"):
                self._unmet[key] = order
        self._pinned = {name: frozenset(instances) for name, instances in pinned.items()}

    def pinned(self, worker: Worker) -> frozenset[str]:
        """Return the instances of a worker that are pinned there."""
        return self._pinned.get(worker.name, frozenset())

    @property
    def has_unmet(self) -> bool:
        """Tell whether there is anything to be carried out."""
        return bool(self._unmet)

    def is_unmet(self, key: OrderKey) -> bool:
        """Tell whether an order is still to be carried out."""
        return key in self._unmet

    def unmet(self, fleet: Fleet) -> Iterator[tuple[OrderKey, Order, Worker]]:
        """Yield what can be worked on now, in the order it was said.

        What is ordered once is done at a held worker too, to free its memory perhaps; a pin waits until it goes on.
        """
        for key, order in self._unmet.items():
            worker = fleet.workers[order.worker]
            is_free = not worker.gone_ms and not worker.alone and not worker.loading
            if not is_free or worker.capacity.breaker is not None or not worker.capacity.may_load:
                continue
            if order.kind != "pin" or worker.name not in fleet.held_workers:
                yield key, order, worker


def meant(worker: Worker, order: Order) -> list[Instance]:
    """Return the instances that an order is about."""
    return [each for each in worker.instances.values() if is_meant(order.model, each.id, each.names)]
