"""Bounded-locality fair queueing: who runs next, and on which model.

Bands are strict, with a least share for the lower ones. Within a band the user who has had least for their weight comes
first (`ledger`); within a user priority, then expiry, then order. The loaded model is preferred to the fair choice
within a budget of service and of time, and never further than a hard lead. A model that must go is drained first.

One decision looks at the head of each lane (jobs that can run in the same places) of each band, never at single jobs.
"""

from collections.abc import Iterator

import msgspec

from lmq_broker.core.models import names_of
from lmq_broker.core.policies.base import Decision, Fleet, Load, Spent, Start, Unload, WakeAt
from lmq_broker.core.policies.costs import Costs, prompt_cost, prompt_tokens
from lmq_broker.core.policies.engines import Engines, Run, RunKey
from lmq_broker.core.policies.ledger import Band, Flow, Standing
from lmq_broker.core.policies.lines import JobLine, Place
from lmq_broker.core.policies.places import LaneKey, Places, is_open, lane_of, room
from lmq_broker.core.policies.swaps import LEAST_LOAD_MS, LOAD_MS, Bypass, Memory, Swap
from lmq_broker.core.settings import ENGINE_TASKS, Settings
from lmq_broker.core.state import Instance, Job, Lease, Worker
from lmq_broker.core.stimuli import Now

LLM_POOL = "llm"
_SEPARATOR = "\t"
"""In the names of what is kept of the ledger: (pool, band, user), none of which may hold it."""
_HOT_LOADS = 2.5
"""More than so many loads' time of work waits for a model: one more engine gets it. One and a half to be worth a load,
one that a model stays at least."""
Head = tuple[float, Place, "Lane", Flow, Job]


class Lane:
    """Ready jobs of one band that can run in the same places, and whose they are."""

    __slots__ = ("jobs", "key", "mean_cost", "places", "standing")

    def __init__(self, key: LaneKey, places: Places) -> None:
        self.key = key
        self.places = places
        self.jobs = 0
        self.mean_cost = 0.0
        """Of those that were queued lately."""
        self.standing = Standing(_key)


class Pool:
    """What is shared by one kind of work: engines are one pool, each queue of own tasks another."""

    __slots__ = ("bands", "lanes")

    def __init__(self, settings: Settings) -> None:
        self.bands = [Band(index, each.share) for index, each in enumerate(settings.bands)]
        self.lanes: list[dict[LaneKey, Lane]] = [{} for _ in settings.bands]


class Share(msgspec.Struct, frozen=True):
    """How one user stands in one band of a pool; costs in milliseconds of engine time."""

    pool: str
    band: int
    user: str
    weight: float
    service: float
    """Received, or forgiven when it was lifted."""
    predicted: float
    key: float
    queued: int
    running: int


class Contest(msgspec.Struct, frozen=True):
    """A flow whose turn it is wants another model at this worker."""

    band: int
    key: float
    bypass: Bypass | None
    """None: a suspect waits for the worker to fall idle, and nothing else of its band or a lower one starts there."""


class Blfq:
    """The fair policy."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pools: dict[str, Pool] = {}
        self._homes: dict[int, JobLine] = {}
        self._places: dict[LaneKey, Places] = {}
        self._runs: dict[RunKey, Run] = {}
        self._engines = Engines()
        self._costs = Costs(settings.rates)
        self._memory = Memory()
        self._bypasses: dict[tuple[str, int], Bypass] = {}
        self._swaps: dict[str, Swap] = {}
        self._band_of = [_band_of(priority, settings) for priority in range(10)]
        self._fleet_version = -1
        self._may_load = False
        self._now_ms = 0
        self.widest_lead = 0.0
        """The largest H that was allowed so far: the bounds follow from it."""

    # --- told --------------------------------------------------------------------------------------------------------

    def queued(self, job: Job, now: Now) -> None:
        """Put a ready job into its user's line."""
        pool, index = self._pool(job), self._band_of[job.priority]
        band = pool.bands[index]
        flow = band.flow(job.user, self._settings.weights.get(job.user, 1.0))
        key = lane_of(job)
        lane = pool.lanes[index].get(key)
        if lane is None:
            places = self._places.get(key)
            if places is None:
                places = self._places[key] = Places(key)
            lane = pool.lanes[index][key] = Lane(key, places)
        line = flow.lines.get(key)
        if line is None:
            line = flow.lines[key] = JobLine(key, self._homes, by_expiry=True)
        band.enter(flow)
        line.add(job)
        lane.jobs += 1
        cost = self._costs.predict(job, _first(job.models))
        lane.mean_cost += (cost - lane.mean_cost) * (0.1 if lane.mean_cost else 1.0)
        lane.standing.put(flow)

    def withdrawn(self, job: Job) -> None:
        """Take a ready job out of its line."""
        pool, index = self._pool(job), self._band_of[job.priority]
        flow = pool.bands[index].flows[job.user]
        line = self._homes[job.number]
        line.remove(job)
        lane = pool.lanes[index][line.key]
        lane.jobs -= 1
        if not line.size:
            del flow.lines[line.key]
            lane.standing.drop(flow)
        if not lane.jobs:
            del pool.lanes[index][line.key]
            if not any(line.key in lanes for each in self._pools.values() for lanes in each.lanes):
                del self._places[line.key]
        pool.bands[index].leave(flow)

    def started(self, lease: Lease, instance: Instance, now: Now) -> None:
        """Charge what a job is predicted to cost."""
        self.withdrawn(lease.job)
        self._charge(lease, instance, now.mono_ms)

    def resumed(self, lease: Lease) -> None:
        """Charge a job that goes on; which engine's time it takes is not known."""
        self._charge(lease, None, self._now_ms)

    def served(self, lease: Lease, tokens: int) -> None:
        """Charge what was received."""
        run = self._runs.get(_run_key(lease))
        if run is not None:
            self._receive(run, run.prompt_cost + tokens * run.rates.output_ms)

    def ended(self, lease: Lease, spent: Spent, now: Now) -> None:
        """Settle a job: what the worker counted, or nothing if it is innocent."""
        key = _run_key(lease)
        run = self._runs.pop(key, None)
        if run is None:
            return
        job = lease.job
        share_ms = self._engines.leave(key, run, now.mono_ms)
        tokens = spent.prompt_tokens or spent.output_tokens
        if spent.innocent:
            actual = 0.0
        elif tokens:
            counted = spent.prompt_tokens
            actual = prompt_cost(counted, run.rates) if counted else run.prompt_cost
            actual += spent.output_tokens * run.rates.output_ms
        elif job.task_type not in ENGINE_TASKS:
            actual = float(spent.engine_ms)
        else:
            actual = max(run.received, run.prompt_cost) if spent.complete else run.received
        if spent.complete:
            if spent.output_tokens:
                self._costs.learn_length(job, job.model, spent.output_tokens)
            if share_ms > 0 and tokens and job.model:
                self._costs.learn_rate(
                    job.model, lease.worker, spent.prompt_tokens, spent.output_tokens, share_ms, now.mono_ms
                )
        pool = self._pools[run.pool]
        pool.bands[run.band].end(run.flow, actual, run.received, run.left)
        for lane_key in run.flow.lines:
            pool.lanes[run.band][lane_key].standing.put(run.flow)

    def loaded(self, worker: Worker, model: str, took_ms: int, *, no_memory: bool) -> None:
        """Learn what loads cost and what memory holds."""
        self._memory.learn(worker, model, took_ms, no_memory=no_memory)

    def changes(self) -> dict[str, bytes]:
        """Return what of the ledger is to be kept, by name; empty: no longer."""
        found = {}
        for name, pool in self._pools.items():
            for band in pool.bands:
                for user, service in band.noted().items():
                    value = b"" if service is None else msgspec.msgpack.encode(service)
                    found[_SEPARATOR.join((name, str(band.index), user))] = value
        return found

    def restore(self, kept: dict[str, bytes]) -> None:
        """Bring the ledger back; what it says of bands that are no more is dropped."""
        for key, value in kept.items():
            name, index, user = key.split(_SEPARATOR)
            pool = self._pools.setdefault(name, Pool(self._settings))
            if int(index) < len(pool.bands):
                weight = self._settings.weights.get(user, 1.0)
                pool.bands[int(index)].restore(user, msgspec.msgpack.decode(value, type=float), weight)

    # --- asked -------------------------------------------------------------------------------------------------------

    def decide(self, fleet: Fleet, now: Now) -> Decision | None:
        """Start the head of the fairest flow that has room; prepare room for those that have none."""
        self._now_ms = now.mono_ms
        if fleet.version != self._fleet_version:
            self._look_at(fleet)
        roomy = {
            id(instance)
            for worker in fleet.workers.values()
            if is_open(worker, fleet)
            for instance in worker.instances.values()
            if room(instance) > 0
        }
        if not roomy and not self._may_load:
            return None
        contests: dict[str, Contest] = {}
        waiting: WakeAt | None = None
        for pool in self._pools.values():
            for band in self._in_turn(pool):
                if not band.waits:
                    continue
                decision = self._decide_band(pool, band, fleet, roomy, contests)
                if isinstance(decision, WakeAt):
                    waiting = decision if waiting is None or decision.mono_ms < waiting.mono_ms else waiting
                elif decision is not None:
                    return decision
        # All were looked at: whoever is passed over no more has lost no patience.
        passed_over = {(name, contest.band) for name, contest in contests.items()}
        for key in [key for key in self._bypasses if key not in passed_over]:
            del self._bypasses[key]
        for name in [name for name, swap in self._swaps.items() if not self._waits_for(swap)]:
            del self._swaps[name]
        return waiting

    def ahead(self, job: Job, fleet: Fleet) -> int:
        """Estimate how many ready jobs start before this one: as fair shares flow, if nothing else came."""
        pool, index = self._pool(job), self._band_of[job.priority]
        own = self._homes[job.number]
        places = {id(place) for place in self._places[own.key].loaded(fleet)}
        competing = {
            key
            for key, each in self._places.items()
            if key == own.key or self._compete(each, own.key, places, fleet)
        }
        stricter = sum(
            lane.jobs for lanes in pool.lanes[:index] for key, lane in lanes.items() if key in competing
        )
        band = pool.bands[index]
        flow = band.flows[job.user]
        mine = sum(
            line.before(job.priority, job.order) for key, line in flow.lines.items() if key in competing
        )
        cost = max(pool.lanes[index][own.key].mean_cost, 1.0)
        tag = flow.key + mine * cost / flow.weight
        others = 0.0
        for other in band.flows.values():
            if other is flow or not other.queued:
                continue
            waiting = sum(line.size for key, line in other.lines.items() if key in competing)
            others += min(float(waiting), max(0.0, (tag - other.key) * other.weight / cost + 1.0))
        return stricter + mine + int(others)

    def waiting_for(self, model: str) -> int:
        """Sum the lanes that name the model."""
        wanted = names_of(model)
        return sum(
            lane.jobs
            for pool in self._pools.values()
            for lanes in pool.lanes
            for lane in lanes.values()
            if lane.places.names & wanted
        )

    def shares(self) -> list[Share]:
        """Return how all flows stand."""
        return [
            Share(name, band.index, flow.user, flow.weight, flow.service * flow.weight, flow.predicted, flow.key,
                  flow.queued, flow.running)
            for name, pool in self._pools.items()
            for band in pool.bands
            for flow in band.flows.values()
        ]  # fmt: skip

    def virtual_times(self) -> dict[int, float]:
        """Return where a newcomer begins in each band of the engines' pool."""
        pool = self._pools.get(LLM_POOL)
        return {} if pool is None else {band.index: band.virtual for band in pool.bands}

    # --- the ledger --------------------------------------------------------------------------------------------------

    def _pool(self, job: Job) -> Pool:
        name = _pool_name(job)
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = Pool(self._settings)
        return pool

    def _charge(self, lease: Lease, instance: Instance | None, now_ms: int) -> None:
        job = lease.job
        pool, index = self._pool(job), self._band_of[job.priority]
        band = pool.bands[index]
        flow = band.flow(job.user, self._settings.weights.get(job.user, 1.0))
        cost = self._costs.predict(job, job.model)
        rates = self._costs.rates(job.task_type, job.model)
        for other in pool.bands:
            if other.index > index and other.waits:
                other.owe(cost)
        band.start(flow, cost)
        run = Run(
            pool=_pool_name(job), band=index, flow=flow, rates=rates,
            prompt_cost=prompt_cost(prompt_tokens(job), rates), left=cost,
        )  # fmt: skip
        key = _run_key(lease)
        self._runs[key] = run
        if instance is not None:
            self._engines.join(key, run, instance, now_ms)

    def _receive(self, run: Run, received: float) -> None:
        more = received - run.received
        if more <= 0:
            return
        foreseen = min(run.left, more)
        run.received = received
        run.left -= foreseen
        self._pools[run.pool].bands[run.band].serve(run.flow, more, foreseen)

    # --- decisions ---------------------------------------------------------------------------------------------------

    def _look_at(self, fleet: Fleet) -> None:
        """Take in that workers, their models, or what is asked of them have changed."""
        self._fleet_version = fleet.version
        self._may_load = any(worker.capacity.may_load for worker in fleet.workers.values())
        for worker in fleet.workers.values():
            self._memory.note(worker, self._now_ms)
        for name in list(self._swaps):
            worker_or_none = fleet.workers.get(name)
            swap = self._swaps[name]
            if worker_or_none is None or worker_or_none.peer is None:
                del self._swaps[name]
            elif any(each.names & swap.names for each in worker_or_none.instances.values()):
                self._end_swap(name)
        self._engines.forget_others(fleet)

    def _waits_for(self, swap: Swap) -> bool:
        return any(places.names & swap.names for places in self._places.values())

    def _end_swap(self, worker: str) -> None:
        swap = self._swaps.pop(worker)
        self._bypasses.pop((worker, swap.band), None)

    def _in_turn(self, pool: Pool) -> Iterator[Band]:
        """Yield the bands: those to whom their least share is owed, then in strict order."""
        owed = [band for band in pool.bands if band.owed and band.waits and band.owed >= band.turn_cost]
        yield from owed
        yield from (band for band in pool.bands if band not in owed)

    def _decide_band(
        self, pool: Pool, band: Band, fleet: Fleet, roomy: set[int], contests: dict[str, Contest]
    ) -> Decision | None:
        """Go through the lanes by the standing of their heads; the first that can be helped is."""
        heads: list[Head] = []
        for key, lane in pool.lanes[band.index].items():
            if key[0] in fleet.held_queues:
                continue
            first = lane.standing.first()
            assert first is not None, "a lane without jobs is no lane"
            flow_key, flow = first
            place, job = flow.lines[key].head()
            heads.append((flow_key, place, lane, flow, job))
        heads.sort(key=_standing_of)
        waiting: WakeAt | None = None
        for head in heads:
            instance = self._room_for(head, band, fleet, roomy, contests)
            if instance is not None:
                self._note_start(head, band, instance, contests)
                return Start((head[4],), instance)
            if head[2].key[3]:
                self._clear_for_suspect(head, band, fleet, contests)
            decision = self._prepare(head, heads, pool, band, fleet, contests)
            if isinstance(decision, WakeAt):
                waiting = decision if waiting is None or decision.mono_ms < waiting.mono_ms else waiting
            elif decision is not None:
                return decision
        return waiting

    def _room_for(
        self, head: Head, band: Band, fleet: Fleet, roomy: set[int], contests: dict[str, Contest]
    ) -> Instance | None:
        """Return the instance with most room where this head may start; a suspect needs a worker that is idle."""
        best = None
        most = 0
        lane = head[2]
        for instance in lane.places.loaded(fleet):
            if id(instance) not in roomy:
                continue
            worker = instance.worker
            free = room(instance)
            if free <= most or (lane.key[3] and worker.leases):
                continue
            if worker.name in self._swaps and not self._may_fill_in(head, band, instance):
                continue
            contest = contests.get(worker.name)
            if contest is not None and not self._may_pass(head, band, instance, contest):
                continue
            best, most = instance, free
        return best

    def _clear_for_suspect(self, head: Head, band: Band, fleet: Fleet, contests: dict[str, Contest]) -> None:
        """Let the least busy worker that a suspect can run on fall idle, once it has waited as long as for a load."""
        open_here = [each.worker for each in head[2].places.loaded(fleet) if is_open(each.worker, fleet)]
        if not open_here or self._now_ms < head[4].ready_since_ms + LOAD_MS:
            return
        worker = min(open_here, key=lambda each: (len(each.leases), each.name))
        contests.setdefault(worker.name, Contest(band.index, head[0], None))

    def _may_pass(self, head: Head, band: Band, instance: Instance, contest: Contest) -> bool:
        """Tell whether a job may start though a flow whose turn it is waits for another model here."""
        if contest.band > band.index:
            return True
        if contest.bypass is None:
            return False
        if contest.band < band.index:
            # The next band keeps busy what is busy anyway.
            return instance.leased > 0
        return head[0] <= contest.key + self._lead(band, instance)

    def _may_fill_in(self, head: Head, band: Band, instance: Instance) -> bool:
        """Tell whether a job may still start on an instance that is drained: stricter ones, and those soon over."""
        swap = self._swaps[instance.worker.name]
        if instance.id not in swap.victims or band.index < swap.band:
            return True
        if head[0] > swap.key + self._lead(band, instance):
            return False
        cost = self._costs.predict(head[4], instance.model)
        shared_ms = cost * (self._engines.streams(instance) + 1)
        return self._now_ms + shared_ms <= self._engines.ends_ms(instance)

    def _note_start(self, head: Head, band: Band, instance: Instance, contests: dict[str, Contest]) -> None:
        """Charge a start to the patience of the flow that it passes over; its own start ends that."""
        contest = contests.get(instance.worker.name)
        if contest is None or contest.band != band.index or contest.bypass is None:
            return
        cost = self._costs.predict(head[4], instance.model)
        contest.bypass.cost += cost / head[3].weight

    def _patience_ms(self, band: Band, load_ms: float) -> float:
        """Return T, how long a flow is passed over for the loaded model; Q too, since cost is engine time."""
        return self._settings.bands[band.index].patience * load_ms

    def _lead(self, band: Band, instance: Instance) -> float:
        """Return H: how far beyond the flow whose turn it is another may get."""
        load_ms = self._memory.load_ms(instance.worker, instance.model)
        biggest = 2 * instance.slots * band.costs.at(0.99, 0.0) / min(1.0, self._settings.least_weight)
        lead = max(4 * self._patience_ms(band, load_ms), biggest)
        self.widest_lead = max(self.widest_lead, lead)
        return lead

    def _prepare(
        self,
        head: Head,
        heads: list[Head],
        pool: Pool,
        band: Band,
        fleet: Fleet,
        contests: dict[str, Contest],
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
        for worker, model in homes:
            if not is_open(worker, fleet):
                continue
            if worker.loading:
                if names_of(worker.loading) & places.names:
                    return None
                continue
            again_ms = worker.refused_loads.get(model, 0)
            if again_ms > self._now_ms:
                wake_ms = min(wake_ms or again_ms, again_ms)
                continue
            victims = self._memory.victims(worker, model, self._demand(pool, worker, fleet))
            if victims is None:
                continue
            start_ms = self._memory.load_ms(worker, model) + max(
                (self._drain_ms(each) for each in victims), default=0.0
            )
            if best is None or start_ms < best[0]:
                best = (start_ms, worker, model, victims)
        if best is None:
            return WakeAt(wake_ms) if wake_ms else None
        start_ms, worker, model, victims = best
        load_ms = self._memory.load_ms(worker, model)
        if here and (wait_ms <= _HOT_LOADS * load_ms or wait_ms <= start_ms):
            return None
        swap = self._swaps.get(worker.name)
        if not victims:
            return Load(worker, model) if swap is None or swap.names & places.names else None
        if swap is not None:
            return self._go_on(worker, victims)
        return self._contest(head, heads, band, worker, model, victims, load_ms, fleet, contests)

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
        contests: dict[str, Contest],
    ) -> Decision | None:
        """Settle between the flow whose turn it is and the model that is loaded: let it wait, or begin a swap."""
        if worker.name in contests:
            return None
        patience_ms = self._patience_ms(band, load_ms)
        bypass = self._bypasses.get((worker.name, band.index))
        if bypass is None:
            bypass = self._bypasses[worker.name, band.index] = Bypass(self._now_ms)
        resident_ms = min(self._memory.resident_ms(each, self._now_ms) for each in victims)
        due_ms = bypass.since_ms + patience_ms
        if band.index > 0:
            due_ms = max(due_ms, self._now_ms + load_ms - resident_ms)
        is_over = bypass.cost >= patience_ms or self._now_ms >= due_ms
        lead = self._lead(band, victims[0])
        is_wanted = self._is_wanted(head, heads, victims, lead, fleet)
        is_busy = any(each.leased for each in victims)
        if not is_over and (is_wanted or is_busy):
            contests[worker.name] = Contest(band.index, head[0], bypass)
            return WakeAt(int(due_ms) + 1)
        self._swaps[worker.name] = Swap(
            frozenset(each.id for each in victims),
            model,
            head[2].places.names,
            band.index,
            head[0],
            self._now_ms,
        )
        return self._go_on(worker, victims)

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
        """Unload what has fallen idle for a swap."""
        if worker.loading:
            return None
        idle = next((each for each in victims if not each.leased), None)
        return None if idle is None else Unload(worker, idle)

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

    def _compete(self, other: Places, own: LaneKey, own_places: set[int], fleet: Fleet) -> bool:
        """Tell whether two lanes want the same places; where neither has one, the same queue."""
        loaded = other.loaded(fleet)
        if loaded and own_places:
            return any(id(place) in own_places for place in loaded)
        return other.key[0] == own[0]


def _key(flow: Flow) -> float:
    return flow.service + flow.predicted / flow.weight


def _standing_of(head: Head) -> tuple[float, Place]:
    return head[0], head[1]


def _run_key(lease: Lease) -> RunKey:
    return lease.job.number, lease.epoch, lease.attempt


def _pool_name(job: Job) -> str:
    return LLM_POOL if job.task_type in ENGINE_TASKS else f"tasks/{job.queue}"


def _first(models: tuple[str, ...]) -> str:
    return models[0] if models else ""


def _band_of(priority: int, settings: Settings) -> int:
    """Return the index of the band that a priority falls in; bands are in settings from the strictest on."""
    for index, band in enumerate(settings.bands):
        if priority >= band.lowest:
            return index
    return len(settings.bands) - 1
