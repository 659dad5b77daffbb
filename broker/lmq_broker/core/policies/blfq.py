"""Bounded-locality fair queueing: who runs next, and on which model.

Bands are strict, with a least share for the lower ones. Within a band the user who has had least for their weight comes
first (`ledger`); within a user priority, then expiry, then order. The loaded model is preferred to the fair choice
within a budget of service and of time, and never further than a hard lead. A model that must go is drained first.

One decision looks at the head of each lane (jobs that can run in the same places) of each band, never at single jobs.
"""

from collections.abc import Iterator

import msgspec

from lmq_broker.core.models import names_of
from lmq_broker.core.policies.base import Decision, Fleet, Spent, Start, WakeAt, sooner
from lmq_broker.core.policies.costs import Costs, prompt_cost, prompt_tokens
from lmq_broker.core.policies.engines import Engines, Run, RunKey
from lmq_broker.core.policies.lanes import LLM_POOL, Head, Lane, Pool, Share, band_of, pool_name, standing_of
from lmq_broker.core.policies.ledger import Band, Flow
from lmq_broker.core.policies.lines import JobLine
from lmq_broker.core.policies.places import LaneKey, Places, is_open, lane_of, room
from lmq_broker.core.policies.placing import Placing
from lmq_broker.core.settings import ENGINE_TASKS, Settings
from lmq_broker.core.state import Instance, Job, Lease, Worker
from lmq_broker.core.stimuli import Now

_SEPARATOR = "\t"
"""In the names of what is kept of the ledger: (pool, band, user), none of which may hold it."""
_ALL = ""
"""The one flow of everybody, where users do not share."""


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
        self._placing = Placing(settings, self._costs, self._engines)
        self._band_of = [band_of(priority, settings) for priority in range(10)]
        self._fleet_version = -1
        self._may_load = False
        self._now_ms = 0

    @property
    def widest_lead(self) -> float:
        """The largest H that was allowed so far: the bounds follow from it."""
        return self._placing.widest_lead

    # --- told --------------------------------------------------------------------------------------------------------

    def queued(self, job: Job, now: Now) -> None:
        """Put a ready job into its user's line."""
        pool, index = self._pool(job), self._band_of[job.priority]
        band = pool.bands[index]
        flow = self._flow(band, job.user)
        key = lane_of(job)
        lane = pool.lanes[index].get(key)
        if lane is None:
            places = self._places.get(key)
            if places is None:
                places = self._places[key] = Places(key)
            lane = pool.lanes[index][key] = Lane(key, places)
        line = flow.lines.get(key)
        if line is None:
            line = flow.lines[key] = JobLine(key, self._homes)
        band.enter(flow)
        line.add(job)
        lane.jobs += 1
        cost = self._costs.predict(job, _first(job.models))
        lane.mean_cost += (cost - lane.mean_cost) * (0.1 if lane.mean_cost else 1.0)
        lane.standing.put(flow)

    def withdrawn(self, job: Job) -> None:
        """Take a ready job out of its line."""
        pool, index = self._pool(job), self._band_of[job.priority]
        flow = pool.bands[index].flows[job.user if self._settings.shares else _ALL]
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
        self._placing.memory.learn(worker, model, took_ms, no_memory=no_memory)

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
            self._fleet_version = fleet.version
            self._may_load = any(worker.capacity.may_load for worker in fleet.workers.values())
            self._placing.look_at(fleet, now.mono_ms)
            self._engines.forget_others(fleet)
        roomy = {
            id(instance)
            for worker in fleet.workers.values()
            if is_open(worker, fleet)
            for instance in worker.instances.values()
            if room(instance) > 0
        }
        if not roomy and not self._may_load:
            return None
        self._placing.begin(now.mono_ms)
        decision = self._placing.carry_out(fleet)
        if decision is not None and not isinstance(decision, WakeAt):
            return decision
        waiting = decision
        for pool in self._pools.values():
            for band in self._in_turn(pool):
                if not band.waits:
                    continue
                decision = self._decide_band(pool, band, fleet, roomy)
                if isinstance(decision, WakeAt):
                    waiting = sooner(waiting, decision)
                elif decision is not None:
                    return decision
        self._placing.end(self._places.values())
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
        flow = band.flows[job.user if self._settings.shares else _ALL]
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
        name = pool_name(job)
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = Pool(self._settings)
        return pool

    def _flow(self, band: Band, user: str) -> Flow:
        if not self._settings.shares:
            return band.flow(_ALL, 1.0)
        return band.flow(user, self._settings.weights.get(user, 1.0))

    def _charge(self, lease: Lease, instance: Instance | None, now_ms: int) -> None:
        job = lease.job
        pool, index = self._pool(job), self._band_of[job.priority]
        band = pool.bands[index]
        flow = self._flow(band, job.user)
        rates = self._costs.rates(job.task_type, job.model)
        at_prompt = prompt_cost(prompt_tokens(job), rates)
        cost = self._costs.predict(job, job.model) if self._settings.foresees else at_prompt
        for other in pool.bands:
            if other.index > index and other.waits:
                other.owe(cost)
        band.start(flow, cost)
        run = Run(
            pool=pool_name(job), band=index, flow=flow, rates=rates, prompt_cost=at_prompt, left=cost,
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

    def _in_turn(self, pool: Pool) -> Iterator[Band]:
        """Yield the bands: those to whom their least share is owed, then in strict order."""
        owed = [band for band in pool.bands if band.owed and band.waits and band.owed >= band.turn_cost]
        yield from owed
        yield from (band for band in pool.bands if band not in owed)

    def _decide_band(self, pool: Pool, band: Band, fleet: Fleet, roomy: set[int]) -> Decision | None:
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
        heads.sort(key=standing_of)
        waiting: WakeAt | None = None
        placing = self._placing
        for head in heads:
            instance = placing.room_for(head, band, fleet, roomy)
            if instance is not None:
                placing.note_start(head, band, instance)
                return Start((head[4],), instance)
            if head[2].key[3]:
                placing.clear_for_suspect(head, band, fleet)
            decision = placing.prepare(head, heads, pool, band, fleet)
            if isinstance(decision, WakeAt):
                waiting = sooner(waiting, decision)
            elif decision is not None:
                return decision
        return waiting

    def _compete(self, other: Places, own: LaneKey, own_places: set[int], fleet: Fleet) -> bool:
        """Tell whether two lanes want the same places; where neither has one, the same queue."""
        loaded = other.loaded(fleet)
        if loaded and own_places:
            return any(id(place) in own_places for place in loaded)
        return other.key[0] == own[0]


def _run_key(lease: Lease) -> RunKey:
    return lease.job.number, lease.epoch, lease.attempt


def _first(models: tuple[str, ...]) -> str:
    return models[0] if models else ""
