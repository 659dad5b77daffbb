"""Which model goes where, and who waits meanwhile: between the flow whose turn it is and the model that is loaded.

The loaded model is preferred to the fair choice within a budget of service and of time, and never further than a hard
lead. A model that must go is drained first; one that something runs on, that is pinned, or that lmq did not load, is
never evicted. What people ordered comes before all that.
"""

import math

import msgspec

from lmq_broker.core.limits import Bucket, Limits
from lmq_broker.core.models import names_of
from lmq_broker.core.policies.base import Decision, Fleet, Load, Unload, WakeAt, sooner
from lmq_broker.core.policies.costs import Costs
from lmq_broker.core.policies.engines import Engines
from lmq_broker.core.policies.lanes import Head, Lane, Pool
from lmq_broker.core.policies.ledger import Band
from lmq_broker.core.policies.ordered import Ordered, meant
from lmq_broker.core.policies.places import Places, is_open, room
from lmq_broker.core.policies.swaps import LEAST_LOAD_MS, LOAD_MS, Bypass, Memory, Swap
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import Instance, Job, OrderKey, Worker
from lmq_broker.core.trust import trust_of
from lmq_proto.messages import Order

BUDGET_RATIO = 0.9
"""Of an instance's tokens that jobs may be predicted to take: predictions err."""
_RESERVE_SLOTS = 3
"""An instance of fewer slots keeps none free."""
_RESERVE_MS = 600_000
"""For how long room is kept after a job of a stricter band."""
_HOT_LOADS = 1.5
"""More than so many loads' time of work waits for a model: one more engine gets it."""


class Contest(msgspec.Struct, frozen=True):
    """A flow whose turn it is wants another model at this worker."""

    band: int
    key: float
    bypass: Bypass | None
    """None: a suspect waits for the worker to fall idle, and nothing else of its band or a lower one starts there."""


class Placing:
    """What is loaded where, what is about to change, and who may start in between."""

    def __init__(self, settings: Settings, costs: Costs, engines: Engines, limits: Limits) -> None:
        self._settings = settings
        self.least_weight = settings.least_weight
        self._limits = limits
        self._costs = costs
        self._engines = engines
        self.memory = Memory()
        self._ordered = Ordered()
        self._bypasses: dict[tuple[int, frozenset[str]], Bypass] = {}
        self._swaps: dict[str, Swap] = {}
        self._contests: dict[str, Contest] = {}
        """Those of the decision that is being made."""
        self._passed_over: set[int] = set()
        """Bypasses that go on in it."""
        self._driven: set[str] = set()
        """Workers whose swap somebody has asked for in it."""
        self._strict_until_ms: dict[int, int] = {}
        """Band -> monotonic time until which it leaves its reserve free."""
        self.sessions: dict[tuple[str, str], str] = {}
        """(user, session) -> the worker that ran the last of its jobs."""
        self._now_ms = 0
        self.widest_lead = 0.0
        """The largest H that was allowed so far: the bounds follow from it."""

    @property
    def is_changing(self) -> bool:
        """Whether an endpoint is being drained, or somebody waits for one to be."""
        return bool(self._swaps or self._bypasses or self._contests)

    def swap_at(self, worker: str) -> Swap | None:
        """Return what a worker drains for; None: it does not."""
        return self._swaps.get(worker)

    def bypass_of(self, band: int, names: frozenset[str]) -> Bypass | None:
        """Return since when a flow of a band that wants these models is passed over; None: it is not."""
        return self._bypasses.get((band, names))

    def victims(self, worker: Worker, model: str) -> list[Instance] | None:
        """Return the instances that must go before a model can be loaded; None: it cannot be."""
        return self.memory.victims(worker, model, {}, self._ordered.pinned(worker))

    def begin(self, now_ms: int) -> None:
        """A decision begins: nobody has been passed over in it yet."""
        self._now_ms = now_ms
        self._contests.clear()
        self._passed_over.clear()
        self._driven.clear()

    def end(self) -> None:
        """All were looked at and nothing is to be done: whoever is passed over no more has lost no patience."""
        for key in [key for key, bypass in self._bypasses.items() if id(bypass) not in self._passed_over]:
            del self._bypasses[key]
        # A swap that nobody asks for any more, as its model has come up elsewhere, would keep the endpoint for ever.
        for name, swap in list(self._swaps.items()):
            if swap.order is None and name not in self._driven:
                del self._swaps[name]

    def look_at(self, fleet: Fleet, now_ms: int) -> None:
        """Take in that workers, their models, or what is asked of them have changed."""
        for worker in fleet.workers.values():
            self.memory.note(worker, now_ms)
        self._ordered.look_at(fleet)
        for name in list(self._swaps):
            worker_or_none = fleet.workers.get(name)
            swap = self._swaps[name]
            if worker_or_none is None or worker_or_none.peer is None:
                del self._swaps[name]
            elif swap.order is not None:
                if not self._ordered.is_unmet(swap.order):
                    del self._swaps[name]
            elif swap.victims & self._ordered.pinned(worker_or_none):
                # What was to go stays after all, and works meanwhile.
                self._end_swap(name)
            elif any(each.names & swap.names for each in worker_or_none.instances.values()):
                self._end_swap(name)
        self._engines.forget_others(fleet)

    def carry_out(self, fleet: Fleet) -> Decision | None:
        """Load what is ordered to be there, unload what is ordered to go; at each worker one thing after another."""
        if not self._ordered.has_unmet:
            return None
        waiting: WakeAt | None = None
        begun: set[str] = set()
        for key, order, worker in self._ordered.unmet(fleet):
            if worker.name in begun:
                continue
            decision = self._carry_out(key, order, worker)
            if isinstance(decision, WakeAt):
                waiting = sooner(waiting, decision)
            elif decision is not None:
                return decision
            swap = self._swaps.get(worker.name)
            if swap is not None and swap.order == key:
                begun.add(worker.name)
        return waiting

    def _carry_out(self, key: OrderKey, order: Order, worker: Worker) -> Decision | None:
        """Take the next step of an order."""
        swap = self._swaps.get(worker.name)
        if swap is not None and swap.order != key:
            swap = None
        if order.kind == "unload":
            return self._drain_for(key, order, worker, swap, meant(worker, order))
        again_ms = worker.refused_loads.get(order.model, 0)
        victims = self.memory.victims(worker, order.model, {}, self._ordered.pinned(worker))
        if victims is None or again_ms > self._now_ms:
            if swap is not None:
                # Nobody is to wait for what cannot be done now.
                del self._swaps[worker.name]
            return WakeAt(again_ms) if again_ms > self._now_ms else None
        if not victims:
            return Load(worker, order.model, order.by, swap.since_ms if swap is not None else 0)
        if swap is not None and any(each.leased for each in victims):
            # What runs least changes from moment to moment: whoever is being drained goes, unless another is idle.
            chosen = [each for each in worker.instances.values() if each.id in swap.victims]
            victims = chosen or victims
        return self._drain_for(key, order, worker, swap, victims)

    def _drain_for(
        self, key: OrderKey, order: Order, worker: Worker, swap: Swap | None, victims: list[Instance]
    ) -> Decision | None:
        """Let nothing more start on what has to go for an order, and unload what has fallen idle."""
        ids = frozenset(each.id for each in victims)
        if swap is None or swap.victims != ids:
            since_ms = self._now_ms if swap is None else swap.since_ms
            self._swaps[worker.name] = Swap(
                ids, order.model, frozenset(), -1, -math.inf, since_ms, order.by, key
            )
        return self._go_on(worker, victims)

    def _end_swap(self, worker: str) -> None:
        swap = self._swaps.pop(worker)
        self._bypasses.pop((swap.band, swap.names), None)

    def may_help(self, lane: Lane, pool: Pool, fleet: Fleet, roomy: set[int]) -> bool:
        """Tell whether anything can be done for a lane: it has room somewhere, or wants a model brought in."""
        loaded = lane.places.loaded(fleet)
        for each in loaded:
            if id(each) in roomy:
                return True
        if lane.key.suspect or lane.key.uses:
            return True
        return bool(lane.places.homes(fleet)) and (not loaded or self._is_hot(pool, lane, loaded, fleet))

    def _is_hot(self, pool: Pool, lane: Lane, loaded: list[Instance], fleet: Fleet) -> bool:
        """Tell whether so much waits for a model that one more load of it may be worth while."""
        here = [each for each in loaded if is_open(each.worker, fleet) or each.worker.alone]
        return not here or self._wait_ms(pool, lane, here) > _HOT_LOADS * LEAST_LOAD_MS

    def room_for(
        self, head: Head, band: Band, fleet: Fleet, roomy: set[int]
    ) -> tuple[Instance | None, Bucket | None]:
        """Return where a head may start: where its session was, or where most room is; or which limit holds its user.

        A suspect needs a worker that is idle.
        """
        best = None
        most = 0
        holds = None
        _, _, lane, _, job = head
        key = lane.key
        wanted = self.sessions.get((job.user, job.terms.session)) if job.terms.session else None
        for instance in lane.places.loaded(fleet):
            if id(instance) not in roomy:
                continue
            worker = instance.worker
            free = room(instance) - self._reserved(band, instance)
            if (free <= most and worker.name != wanted) or free <= 0 or (key.suspect and worker.leases):
                continue
            if worker.name in self._swaps and not self._may_fill_in(head, band, instance):
                continue
            contest = self._contests.get(worker.name)
            if contest is not None and not self._may_pass(head, band, instance, contest):
                continue
            if self.lacks_tokens(job, instance):
                continue
            bucket = self._limits.blocks_at(job, instance)
            if bucket is not None:
                holds = bucket if bucket.limit.user else holds
                continue
            best, most = instance, free
            if worker.name == wanted:
                break
        return best, holds if best is None else None

    def lacks_tokens(self, job: Job, instance: Instance) -> tuple[int, int] | None:
        """Return the tokens that what runs may come to and those that a job needs, if both are too many together.

        One that overflows a shared cache ends all the others too.
        """
        if not instance.budget_tokens:
            return None
        taken = self._engines.tokens(instance)
        need = self._costs.tokens(job, instance.model)
        if not taken or taken + need <= BUDGET_RATIO * instance.budget_tokens:
            return None
        return int(taken), int(need)

    def _reserved(self, band: Band, instance: Instance) -> int:
        """Return the slots that a band leaves free for stricter ones that have come lately."""
        reserve = self._settings.bands[band.index].reserve
        if not reserve or instance.slots < _RESERVE_SLOTS:
            return 0
        return reserve if self._now_ms < self._strict_until_ms.get(band.index, 0) else 0

    def note_strict(self, band: int) -> None:
        """A job of a band has started: lower ones leave room for the next of them for a while."""
        for index in range(band + 1, len(self._settings.bands)):
            if self._settings.bands[index].reserve:
                self._strict_until_ms[index] = self._now_ms + _RESERVE_MS

    def note_start(self, head: Head, band: Band, instance: Instance) -> None:
        """Charge a start to the patience of the flow that it passes over; its own start ends that."""
        contest = self._contests.get(instance.worker.name)
        if contest is None or contest.band != band.index or contest.bypass is None:
            return
        cost = self._costs.predict(head[4], instance.model)
        contest.bypass.cost += cost / head[3].weight

    def clear_for_suspect(self, head: Head, band: Band, fleet: Fleet) -> None:
        """Let the least busy worker that a suspect can run on fall idle."""
        open_here = [each.worker for each in head[2].places.loaded(fleet) if is_open(each.worker, fleet)]
        if open_here:
            self.clear(min(open_here, key=lambda each: (len(each.leases), each.name)), head, band)

    def clear(self, worker: Worker, head: Head, band: Band) -> None:
        """Let a worker fall idle for a head, once it has waited as long as for a load."""
        if self._now_ms >= head[4].ready_since_ms + LOAD_MS:
            self._contests.setdefault(worker.name, Contest(band.index, head[0], None))

    def prepare(
        self,
        head: Head,
        heads: list[Head],
        pool: Pool,
        band: Band,
        fleet: Fleet,
    ) -> Decision | None:
        """Bring a place to a head that has none, where that is soonest; or say who waits for what meanwhile."""
        lane = head[2]
        places = lane.places
        homes = places.homes(fleet)
        if not homes:
            return None
        here = [each for each in places.loaded(fleet) if is_open(each.worker, fleet) or each.worker.alone]
        wait_ms = self._wait_ms(pool, lane, here) if here else 0.0
        if here and wait_ms <= _HOT_LOADS * LEAST_LOAD_MS:
            return None
        best: tuple[float, Worker, str, list[Instance]] | None = None
        wake_ms = 0
        begun = self._begun_for(places, homes)
        looked_at = ""
        for worker, model in homes:
            if not is_open(worker, fleet) or worker.name == looked_at:
                continue
            swap = self._swaps.get(worker.name)
            coming = swap.model if swap is not None and swap.order is not None else worker.loading
            if coming:
                if names_of(coming) & places.names:
                    self._driven.add(worker.name)
                    return None
                continue
            again_ms = worker.refused_loads.get(model, 0)
            if again_ms > self._now_ms:
                wake_ms = min(wake_ms or again_ms, again_ms)
                continue
            pinned = self._ordered.pinned(worker)
            victims = self.memory.victims(worker, model, self._demand(pool, worker, fleet), pinned)
            if victims is None:
                if swap is not None and swap.names & places.names:
                    self._end_swap(worker.name)
                continue
            # The best of what would do there; the others are for when it cannot be loaded.
            looked_at = worker.name
            start_ms = self.memory.load_ms(worker, model) + max(
                (self._drain_ms(each) for each in victims), default=0.0
            )
            start_ms /= trust_of(worker, self._now_ms)
            if worker is begun:
                best = (start_ms, worker, model, victims)
                break
            if best is None or start_ms < best[0]:
                best = (start_ms, worker, model, victims)
        if begun is not None and (swap := self._swaps.get(begun.name)) is not None:
            load_ms = self.memory.load_ms(begun, swap.model)
            if not here or wait_ms > _HOT_LOADS * load_ms:
                self._driven.add(begun.name)
        if best is None:
            return WakeAt(wake_ms) if wake_ms else None
        start_ms, worker, model, victims = best
        load_ms = self.memory.load_ms(worker, model)
        if here and (wait_ms <= _HOT_LOADS * load_ms or wait_ms <= start_ms):
            return None
        swap = self._swaps.get(worker.name)
        if not victims:
            if swap is None:
                return Load(worker, model, head[4].user)
            return Load(worker, model, swap.user, swap.since_ms) if swap.names & places.names else None
        if swap is not None and (swap.order is not None or swap.band <= band.index):
            return self._go_on(worker, victims)
        return self._contest(head, heads, band, worker, model, victims, load_ms, fleet)

    def _begun_for(self, places: Places, homes: list[tuple[Worker, str]]) -> Worker | None:
        """Return the worker that is already being drained for these jobs."""
        for worker, _ in homes if self._swaps else ():
            swap = self._swaps.get(worker.name)
            if swap is not None and swap.names & places.names:
                return worker
        return None

    def _contest(
        self,
        head: Head,
        heads: list[Head],
        band: Band,
        worker: Worker,
        model: str,
        victims: list[Instance],
        load_ms: float,
        fleet: Fleet,
    ) -> Decision | None:
        """Settle between the flow whose turn it is and the model that is loaded: let it wait, or begin a swap."""
        names = head[2].places.names
        bypass = self._bypasses.get((band.index, names))
        holder = self._contests.get(worker.name)
        if holder is not None and holder.band <= band.index:
            if bypass is not None:
                # Its turn has come already: that another goes first here does not begin it anew.
                self._passed_over.add(id(bypass))
            return None
        if self._is_turn_of_others(head, heads, victims, fleet):
            return None
        patience_ms = self._patience_ms(band, load_ms)
        if bypass is None:
            bypass = self._bypasses[band.index, names] = Bypass(self._now_ms)
        resident_ms = min(self.memory.resident_ms(each, self._now_ms) for each in victims)
        due_ms = bypass.since_ms + patience_ms
        if band.index > 0:
            due_ms = max(due_ms, self._now_ms + load_ms - resident_ms)
        is_over = bypass.cost >= patience_ms or self._now_ms >= due_ms
        lead = self._lead(band, victims[0])
        is_wanted = self._is_wanted(head, heads, victims, lead, fleet)
        is_busy = any(each.leased for each in victims)
        if not is_over and (is_wanted or is_busy):
            self._contests[worker.name] = Contest(band.index, head[0], bypass)
            self._passed_over.add(id(bypass))
            return WakeAt(int(due_ms) + 1)
        self._swaps[worker.name] = Swap(
            frozenset(each.id for each in victims),
            model,
            head[2].places.names,
            band.index,
            head[0],
            self._now_ms,
            head[4].user,
        )
        self._driven.add(worker.name)
        return self._go_on(worker, victims)

    def _is_turn_of_others(
        self, head: Head, heads: list[Head], victims: list[Instance], fleet: Fleet
    ) -> bool:
        """Tell whether one that comes before a head waits for what would be evicted: then nobody is passed over."""
        for other in heads:
            if other is head:
                return False
            if any(each in victims for each in other[2].places.loaded(fleet)):
                return True
        return False

    def _is_wanted(
        self, head: Head, heads: list[Head], victims: list[Instance], lead: float, fleet: Fleet
    ) -> bool:
        """Tell whether another lane of the band has work for what would be evicted, within the lead."""
        return any(
            other is not head
            and other[0] <= head[0] + lead
            and any(each in victims for each in other[2].places.loaded(fleet))
            for other in heads
        )

    def _go_on(self, worker: Worker, victims: list[Instance]) -> Decision | None:
        """Unload what has fallen idle for a swap; what did not go when it was told to is left alone for a while."""
        if worker.loading:
            return None
        swap = self._swaps[worker.name]
        waiting: WakeAt | None = None
        for each in victims:
            again_ms = worker.refused_loads.get(each.id, 0)
            if each.leased:
                continue
            if again_ms <= self._now_ms:
                return Unload(worker, each, swap.user, swap.since_ms, swap.order is not None)
            waiting = sooner(waiting, WakeAt(again_ms))
        return waiting

    def _may_pass(self, head: Head, band: Band, instance: Instance, contest: Contest) -> bool:
        """Tell whether a job may start though a flow whose turn it is waits for another model here."""
        if contest.band > band.index:
            return True
        if contest.bypass is None:
            return False
        if contest.band < band.index:
            # The next band keeps busy what is busy anyway.
            return self._is_soon_over(head, instance)
        return head[0] <= contest.key + self._lead(band, instance)

    def _may_fill_in(self, head: Head, band: Band, instance: Instance) -> bool:
        """Tell whether a job may still start on an instance that is drained: stricter ones, and those soon over."""
        swap = self._swaps[instance.worker.name]
        if instance.id not in swap.victims or band.index < swap.band:
            return True
        if head[0] > swap.key + self._lead(band, instance):
            return False
        return self._is_soon_over(head, instance)

    def _is_soon_over(self, head: Head, instance: Instance) -> bool:
        """Tell whether a job that starts now is thought to end before the last of those that run there."""
        cost = self._costs.predict(head[4], instance.model)
        shared_ms = cost * (self._engines.streams(instance) + 1)
        return self._now_ms + shared_ms <= self._engines.ends_ms(instance)

    def _patience_ms(self, band: Band, load_ms: float) -> float:
        """Return T, how long a flow is passed over for the loaded model; Q too, since cost is engine time."""
        return self._settings.bands[band.index].patience * load_ms

    def lead(self, band: Band, worker: Worker, model: str, slots: int) -> float:
        """Return H: how far beyond the flow whose turn it is another may get."""
        load_ms = self.memory.load_ms(worker, model)
        biggest = 2 * slots * band.costs.at(0.99, 0.0) / self.least_weight
        return max(4 * self._patience_ms(band, load_ms), biggest)

    def _lead(self, band: Band, instance: Instance) -> float:
        """Return H, and note the largest."""
        lead = self.lead(band, instance.worker, instance.model, instance.slots)
        self.widest_lead = max(self.widest_lead, lead)
        return lead

    def _wait_ms(self, pool: Pool, lane: Lane, here: list[Instance]) -> float:
        """Return how long the engines that have a model need for all that waits for it."""
        queued_ms = sum(
            other.jobs * other.mean_cost
            for lanes in pool.lanes
            for other in lanes.values()
            if other.places.names & lane.places.names
        )
        return queued_ms / len({each.worker.name for each in here})

    def _demand(self, pool: Pool, worker: Worker, fleet: Fleet) -> dict[str, float]:
        """Return what waits for each instance of a worker, in cost; stricter bands weigh more."""
        demand: dict[str, float] = {}
        for index, lanes in enumerate(pool.lanes):
            for lane in lanes.values():
                for each in lane.places.loaded(fleet):
                    if each.worker is worker:
                        demand[each.id] = demand.get(each.id, 0.0) + lane.jobs * lane.mean_cost / 4**index
        return demand

    def _drain_ms(self, instance: Instance) -> float:
        return max(0.0, self._engines.ends_ms(instance) - self._now_ms)
