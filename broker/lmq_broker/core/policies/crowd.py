"""How many ready jobs start before one, as fair shares flow: worked out once for a lane, asked for any of its jobs.

A job's turn comes when its flow's key has grown to its tag. Until then another flow starts as many jobs as its own key
takes to come there, or all it has: a straight line over the tag that begins and ends somewhere. The sum over all flows
is kept as its bends.
"""

from bisect import bisect_right

from lmq_broker.core.policies.base import Fleet
from lmq_broker.core.policies.lanes import Pool
from lmq_broker.core.policies.ledger import Flow
from lmq_broker.core.policies.lengths import even_draw
from lmq_broker.core.policies.places import LaneKey, Places
from lmq_broker.core.state import Job

FLOWS = 500
"""Flows that are looked at: of more, as many, evenly among all, which stand for the others."""
_SLACK = 1e-6
"""For what rounding takes from a whole job."""


class Crowd:
    """Who stands before the jobs of one lane."""

    __slots__ = (
        "_at",
        "_each_is",
        "_flows",
        "_rates",
        "_rises",
        "_seen",
        "_shares",
        "_standing",
        "_wanting",
        "cost",
        "stricter",
    )

    def __init__(
        self,
        pool: Pool,
        index: int,
        own: LaneKey,
        places: dict[LaneKey, Places],
        fleet: Fleet,
        *,
        shares: bool,
    ) -> None:
        self._shares = shares
        wanted = {id(place) for place in places[own].loaded(fleet)}
        self._standing = pool.lanes[index][own].standing
        self._wanting = {
            key for key, each in places.items() if key == own or _compete(each, own, wanted, fleet)
        }
        self.stricter = sum(
            lane.jobs for lanes in pool.lanes[:index] for key, lane in lanes.items() if key in self._wanting
        )
        self.cost = max(pool.lanes[index][own].mean_cost, 1.0)
        self._flows = pool.bands[index].flows
        flows = list(self._flows.values())
        if len(flows) > FLOWS:
            count = len(flows)
            flows = [flows[at] for at in {int(even_draw(number, 0) * count): None for number in range(FLOWS)}]
            self._each_is = count / len(flows)
        else:
            self._each_is = 1.0
        self._seen = set(flows)
        bends: list[tuple[float, float]] = []
        for flow in flows:
            waiting = sum(line.size for key, line in flow.lines.items() if key in self._wanting)
            if waiting:
                per_job = self.cost / flow.weight
                bends.append((flow.key - per_job, 1 / per_job))
                bends.append((flow.key + (waiting - 1) * per_job, -1 / per_job))
        bends.sort()
        self._at = [at for at, _ in bends]
        self._rises: list[float] = []
        """At each bend: how many jobs have started by then."""
        self._rates: list[float] = []
        """From each bend on: how many more for each unit of the tag."""
        started = rate = last = 0.0
        for at, change in bends:
            started += rate * (at - last)
            rate += change
            last = at
            self._rises.append(started)
            self._rates.append(rate)

    def ahead_of(self, job: Job) -> int:
        """Return how many jobs start before this one of the lane, if nothing else came."""
        if not self._shares:
            before = sum(self._before(flow, job) for flow in self._seen)
            return self.stricter + int(before * self._each_is + _SLACK)
        flow = self._flow(job)
        mine = self._before(flow, job)
        others = self._started(flow.key + mine * self.cost / flow.weight)
        if flow in self._seen:
            others -= mine + 1
        return self.stricter + mine + max(0, int(others * self._each_is + _SLACK))

    def own_before(self, job: Job) -> int:
        """Return how many jobs of the same user, or of the same app, come before a job."""
        return self._before(self._flow(job), job)

    def _flow(self, job: Job) -> Flow:
        """Return a job's flow: its user's, or of all users of its app."""
        found = self._flows.get(job.user)
        return found if found is not None and found.queued else self._flows[job.user.partition("/")[0]]

    def _before(self, flow: Flow, job: Job) -> int:
        return sum(line.before(job) for key, line in flow.lines.items() if key in self._wanting)

    def had_less(self, job: Job) -> tuple[int, list[str]]:
        """Return who of those that wait in the lane comes before a job's user, three at most, the first one first.

        With it how much more the job's user has had than the first, in milliseconds of engine time for their weight.
        """
        if not self._shares:
            return 0, []
        own = self._flow(job)
        # The first three of a heap are among its first seven, but for those that are there no more.
        here = self._standing.noted
        found = {
            (flow.key, flow.number, flow.user) for _, _, flow in self._standing.entries()[:7] if flow in here
        }
        before = sorted(entry for entry in found if entry[0] < own.key)[:3]
        if not before:
            return 0, []
        return int((own.key - before[0][0]) * own.weight), [user for _, _, user in before]

    def _started(self, tag: float) -> float:
        """Return how many jobs the flows have started by when keys have grown to a tag, its own among them."""
        bend = bisect_right(self._at, tag) - 1
        return self._rises[bend] + self._rates[bend] * (tag - self._at[bend]) if bend >= 0 else 0.0


def _compete(other: Places, own: LaneKey, own_places: set[int], fleet: Fleet) -> bool:
    """Tell whether two lanes want the same places; where neither has one, the same queue."""
    loaded = other.loaded(fleet)
    if loaded and own_places:
        return any(id(place) in own_places for place in loaded)
    return other.key.queue == own.queue
