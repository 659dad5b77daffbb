"""Who has had how much: weighted virtual service of each user in each band. No endpoints, no models, no time.

A flow is a user within a band. Its key K = V + P / weight is what it has received, plus what is predicted of its jobs
that run, both divided by its weight; the flow with the smallest key is served next. No credit is ever banked: a flow
that begins to wait is lifted to where the others are. Debt is kept.

Source: virtual token counters (Sheng et al., OSDI 2024) with prediction, and lifting on empty -> waiting.
"""

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lmq_broker.core.policies.costs import Quantiles
from lmq_broker.core.policies.lines import Line
from lmq_broker.core.policies.places import LaneKey

if TYPE_CHECKING:
    from lmq_broker.core.policies.pooled import Members

Rank = Any
"""What flows are ordered by: a key K, or the place of a job. One kind in one `Standing`."""
FLOWS = 100_000
"""Flows of a band that are remembered though they neither wait nor run; those with least debt are forgotten first."""


class Flow:
    """One user in one band."""

    __slots__ = (
        "band", "lines", "members", "number", "parked", "predicted", "queued", "running", "service", "unsettled",
        "user", "weight",
    )  # fmt: skip

    def __init__(self, user: str, band: int, weight: float, number: int) -> None:
        self.user = user
        self.band = band
        self.weight = weight
        self.number = number
        """Order of its first job among all flows: settles ties."""
        self.service = 0.0
        """V: cost received so far, over the weight."""
        self.predicted = 0.0
        """P: what running jobs are still predicted to cost."""
        self.unsettled = 0.0
        """Cost received by jobs that still run; part of `service`."""
        self.queued = 0
        self.running = 0
        self.parked = 0
        """Lanes in which a limit holds it."""
        self.lines: dict[LaneKey, Line] = {}
        self.members: Members | None = None
        """The users of an app who share as one; None: it is one user's."""

    @property
    def held(self) -> bool:
        """Whether a limit holds all that it has queued."""
        return 0 < self.parked == len(self.lines)

    @property
    def key(self) -> float:
        """K: the flow with the smallest is served next."""
        return self.service + self.predicted / self.weight

    @property
    def settled(self) -> float:
        """Service without what still runs, which is charged anew if the broker starts again."""
        return self.service - self.unsettled / self.weight


class Standing:
    """Which flow has the smallest key, when keys mostly grow.

    A key that has grown is looked at only when its flow comes to the head; one that has shrunk must be put again.
    """

    __slots__ = ("_heap", "_key", "noted")

    def __init__(self, key: Callable[[Flow], Rank]) -> None:
        self._key = key
        self.noted: dict[Flow, Rank] = {}
        """The flows that are in, with their keys as they were last looked at."""
        self._heap: list[tuple[Rank, int, Flow]] = []

    def __len__(self) -> int:
        return len(self.noted)

    def put(self, flow: Flow) -> None:
        """Put a flow in, or tell that its key may have become smaller."""
        key = self._key(flow)
        noted = self.noted.get(flow)
        if noted is None or key < noted:
            self.noted[flow] = key
            heapq.heappush(self._heap, (key, flow.number, flow))
            if len(self._heap) > 2 * len(self.noted) + 64:
                self._heap = [(noted, each.number, each) for each, noted in self.noted.items()]
                heapq.heapify(self._heap)

    def drop(self, flow: Flow) -> None:
        """Take a flow out; nothing if it is not in."""
        self.noted.pop(flow, None)

    def entries(self) -> list[tuple[Rank, int, Flow]]:
        """Return a copy of the heap of (key as it was last looked at, number, flow); stale ones are among them."""
        return self._heap.copy()

    def first(self) -> tuple[Rank, Flow] | None:
        """Return the smallest key with its flow."""
        heap = self._heap
        while heap:
            noted, _, flow = heap[0]
            if self.noted.get(flow) != noted:
                heapq.heappop(heap)
                continue
            key = self._key(flow)
            if key == noted:
                return key, flow
            self.noted[flow] = key
            heapq.heapreplace(heap, (key, flow.number, flow))
        return None


class Band:
    """All flows of one band and what they have had."""

    def __init__(self, index: int, share: float) -> None:
        self.index = index
        self.share = share
        """Least share of what stricter bands get."""
        self.flows: dict[str, Flow] = {}
        self.virtual = 0.0
        """vt: where a flow begins. Never goes back."""
        self.owed = 0.0
        """Of its least share, in cost."""
        self.running = 0
        self.costs = Quantiles()
        self._most = 0.0
        self._waiting = Standing(_service)
        self._flows_made = 0
        self.charged: dict[str, float] = {}
        """User -> cost received since it was last asked for; unlike `service` it knows no lifts."""
        self.changed: set[str] = set()
        """Users whose settled service is another than was last noted; the empty name stands for `virtual`."""

    @property
    def waits(self) -> bool:
        """Whether any job of the band is queued."""
        return bool(self._waiting.noted)

    @property
    def turn_cost(self) -> float:
        """Cost of a middling job: when as much is owed, the band's turn has come."""
        return self.costs.at(0.5, 1000.0)

    def flow(self, user: str, weight: float) -> Flow:
        """Return a user's flow, made when it is new."""
        flow = self.flows.get(user)
        if flow is None:
            if len(self.flows) >= FLOWS:
                self._forget()
            self._flows_made += 1
            flow = self.flows[user] = Flow(user, self.index, weight, self._flows_made)
        return flow

    def enter(self, flow: Flow) -> None:
        """A job of this flow is queued; the first lifts it to where the others are."""
        if not flow.queued:
            first = self._waiting.first()
            if first is not None:
                self.virtual = max(self.virtual, first[0])
            elif not self.running:
                # Nobody waits and nothing runs: what was is forgiven.
                self.virtual = max(self.virtual, self._most)
            self.changed.add("")
            flow.service = max(flow.service, self.virtual)
            self._note(flow)
            self._waiting.put(flow)
        flow.queued += 1

    def rest(self, flow: Flow) -> None:
        """A limit holds all that this flow has queued: nobody waits for it."""
        self._waiting.drop(flow)

    def return_(self, flow: Flow) -> None:
        """Nothing holds this flow any more: it begins where the others are, a limit earns no credit."""
        first = self._waiting.first()
        if first is not None:
            self.virtual = max(self.virtual, first[0])
            self.changed.add("")
        flow.service = max(flow.service, self.virtual)
        self._note(flow)
        self._waiting.put(flow)

    def leave(self, flow: Flow) -> None:
        """A job of this flow is queued no more."""
        flow.queued -= 1
        if not flow.queued:
            self._waiting.drop(flow)

    def start(self, flow: Flow, cost: float) -> None:
        """Charge what a job will cost."""
        flow.predicted += cost
        flow.running += 1
        self.running += 1
        self.costs.learn(cost)
        self.owed = max(0.0, self.owed - cost)

    def serve(self, flow: Flow, received: float, foreseen: float) -> None:
        """Charge what was received; `foreseen` of it was predicted, which leaves the key as it is."""
        flow.predicted = max(0.0, flow.predicted - foreseen)
        flow.service += received / flow.weight
        flow.unsettled += received
        self.charged[flow.user] = self.charged.get(flow.user, 0.0) + received
        self._note(flow)

    def end(self, flow: Flow, actual: float, received: float, unused: float) -> None:
        """Settle a job: charge or refund the difference to what was received, forget what is left of its prediction."""
        flow.running -= 1
        self.running -= 1
        # With nothing left to run nothing is predicted, whatever rounding has left over.
        flow.predicted = max(0.0, flow.predicted - unused) if flow.running else 0.0
        flow.service += (actual - received) / flow.weight
        self.charged[flow.user] = self.charged.get(flow.user, 0.0) + actual - received
        flow.unsettled = max(0.0, flow.unsettled - received) if flow.running else 0.0
        self._note(flow)
        self.changed.add(flow.user)
        if flow.queued:
            if actual < received and not flow.held:
                self._waiting.put(flow)
        elif not flow.running and flow.service <= self.virtual:
            # It would be lifted to here in any case.
            del self.flows[flow.user]

    def weigh(self, flow: Flow, weight: float) -> None:
        """Give a flow another weight. What it owes to the others stays the same in cost.

        Owed is what it has received beyond where a newcomer begins; no weight puts it before that, or before where it
        stood. What running jobs have received is taken at the new weight, as it may yet be refunded at that.
        """
        first = self._waiting.first()
        start = self.virtual if first is None else max(self.virtual, first[0])
        settled = flow.settled
        if settled > start:
            settled = start + (settled - start) * flow.weight / weight
        flow.service = max(min(flow.service, start), settled + flow.unsettled / weight)
        flow.weight = weight
        self._note(flow)
        self.changed.add(flow.user)
        if flow.queued and not flow.held:
            self._waiting.put(flow)

    def restore(self, user: str, service: float, weight: float) -> None:
        """Bring back what was noted of a user, or of where newcomers begin."""
        if user:
            flow = self.flow(user, weight)
            flow.service = service
            self._note(flow)
        else:
            self.virtual = service
            self._most = max(self._most, service)

    def noted(self) -> dict[str, float | None]:
        """Return what has changed since it was last asked: user -> settled service, None: nothing worth keeping."""
        found: dict[str, float | None] = {}
        for user in sorted(self.changed):
            flow = self.flows.get(user)
            found[user] = self.virtual if not user else None if flow is None else flow.settled
        self.changed.clear()
        return found

    def owe(self, cost: float) -> None:
        """A stricter band was served while this one waits."""
        self.owed = min(self.owed + self.share * cost, 4 * self.turn_cost)

    def _note(self, flow: Flow) -> None:
        self._most = max(self._most, flow.service)

    def _forget(self) -> None:
        """Forget a tenth of the flows that neither wait nor run: those with least debt."""
        idle = sorted(
            (flow for flow in self.flows.values() if not flow.queued and not flow.running), key=_service
        )
        for flow in idle[: FLOWS // 10]:
            del self.flows[flow.user]


def _service(flow: Flow) -> float:
    return flow.service
