"""Bounded-locality fair queueing: who runs next, and on which model.

Bands are strict, with a least share for the lower ones. Within a band the user who has had least for their weight comes
first (`ledger`); within a user priority, then expiry, then order. The loaded model is preferred to the fair choice
within a budget of service and of time, and never further than a hard lead. A model that must go is drained first.

One decision looks at the head of each lane (jobs that can run in the same places) of each band, never at single jobs.
"""

from bisect import insort
from collections.abc import Iterable

import msgspec

from lmq_broker.core.limits import RATES, Bucket, Limits, Running
from lmq_broker.core.models import names_of
from lmq_broker.core.policies.arrivals import Arrivals
from lmq_broker.core.policies.base import Decision, Fleet, FlowKey, Spent, Start, WakeAt, sooner
from lmq_broker.core.policies.costs import Costs, prompt_cost, prompt_tokens
from lmq_broker.core.policies.crowd import Crowd
from lmq_broker.core.policies.engines import Engines, Run, RunKey
from lmq_broker.core.policies.foreseen import Parts
from lmq_broker.core.policies.groups import group_of
from lmq_broker.core.policies.lanes import (
    LLM_POOL,
    BandShare,
    Head,
    Lane,
    Pool,
    Share,
    band_of,
    pool_name,
    pool_name_of,
    standing_of,
)
from lmq_broker.core.policies.ledger import Band, Flow
from lmq_broker.core.policies.lines import JobLine, Line
from lmq_broker.core.policies.places import LaneKey, Places, is_open, lane_of, room
from lmq_broker.core.policies.placing import Placing
from lmq_broker.core.policies.pooled import PooledLine, pool as pool_users
from lmq_broker.core.settings import EMBEDDING_TASKS, ENGINE_TASKS, POOLED, Settings
from lmq_broker.core.state import Instance, Job, Lease, Worker
from lmq_broker.core.stimuli import Now

_SEPARATOR = "\t"
"""In the names of what is kept of the ledger: (pool, band, user), none of which may hold it."""
_SAMPLE = 4
"""Of so many jobs of a lane one is priced when it is queued."""
_SESSIONS = 10_000
"""Sessions of which the last endpoint is remembered; the one noted first goes."""


class Alike(msgspec.Struct):
    """The lane that the last start came from, where no other had jobs."""

    lane: Lane
    instance: Instance
    version: int
    """Of the fleet."""


class Blfq:
    """The fair policy."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self._settings = settings
        self._weights = dict(settings.weights)
        self._limits = limits
        limits.running = self._running
        self._limits_version = limits.version
        self._pools: dict[str, Pool] = {}
        self._in_use: dict[str, Pool] = {}
        """Those of which jobs are ready: a decision looks at no others."""
        self._homes: dict[int, JobLine] = {}
        self._places: dict[LaneKey, Places] = {}
        self._runs: dict[RunKey, Run] = {}
        self._engines = Engines()
        self._costs = Costs(settings.rates, settings.task_defaults)
        self._placing = Placing(settings, self._costs, self._engines, limits)
        self._arrivals = Arrivals()
        self._band_of = [band_of(priority, settings) for priority in range(10)]
        self._fleet_version = -1
        self._may_load = False
        self._instances: list[Instance] = []
        """All of the present fleet."""
        self._now_ms = 0
        self._alike: Alike | None = None
        self._uses: dict[str, int] = {}
        """Resource -> own tasks that hold it."""

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
            lane = pool.lanes[index][key] = Lane(key, places, shares=self._settings.shares)
            self._in_use[pool.name] = pool
        line = flow.lines.get(key)
        band.enter(flow)
        if line is None:
            if flow.held:
                band.return_(flow)
            line = flow.lines[key] = self._line(flow, key)
        line.add(job)
        lane.jobs += 1
        if not lane.mean_cost or lane.jobs % _SAMPLE == 0:
            cost = self._costs.predict(job, _first(job.models))
            lane.mean_cost += (cost - lane.mean_cost) * (0.3 if lane.mean_cost else 1.0)
        self._arrivals.note((pool.name, index, flow.user), key, lane.mean_cost, now.mono_ms)
        if flow not in lane.parked:
            lane.standing.put(flow)
        elif isinstance(line, PooledLine) and not line.is_held:
            # A user has come whom the limit does not hold.
            self._unpark([(lane, flow)])

    def withdrawn(self, job: Job) -> None:
        """Take a ready job out of its line."""
        self._withdraw(job)

    def _withdraw(self, job: Job) -> tuple[Pool, int, Flow]:
        """Take a ready job out of its line; return where that was."""
        pool, index = self._pool(job), self._band_of[job.priority]
        flow = pool.bands[index].flows[self._name(job.user)]
        line = flow.lines[self._homes[job.number].key]
        line.remove(job)
        lane = pool.lanes[index][line.key]
        lane.jobs -= 1
        if not line.size:
            del flow.lines[line.key]
            lane.standing.drop(flow)
            if flow in lane.parked:
                del lane.parked[flow]
                flow.parked -= 1
            if flow.held:
                pool.bands[index].rest(flow)
        if not lane.jobs:
            del pool.lanes[index][line.key]
            if not any(line.key in lanes for lanes in pool.lanes):
                del self._places[line.key]
            if not any(pool.lanes):
                del self._in_use[pool.name]
        pool.bands[index].leave(flow)
        return pool, index, flow

    def started(self, lease: Lease, instance: Instance, now: Now) -> None:
        """Charge what a job is predicted to cost."""
        pool, index, flow = self._withdraw(lease.job)
        self._charge(lease, instance, pool, index, flow, now.mono_ms)

    def resumed(self, lease: Lease) -> None:
        """Charge a job that goes on; which engine's time it takes is not known."""
        job = lease.job
        pool, index = self._pool(job), self._band_of[job.priority]
        self._charge(lease, None, pool, index, self._flow(pool.bands[index], job.user), self._now_ms)

    def lend(self, lease: Lease) -> None:
        """Let others have what a run counts against."""
        run = self._runs.get(_run_key(lease))
        if run is not None and not run.is_lent:
            run.is_lent = True
            self._use(run, -1)
            self._unpark(self._limits.lend(run.group))

    def take_back(self, lease: Lease) -> None:
        """Count a run again."""
        run = self._runs.get(_run_key(lease))
        if run is not None and run.is_lent:
            run.is_lent = False
            self._use(run, 1)
            self._limits.take_back(run.group)

    def _use(self, run: Run, more: int) -> None:
        """Count who holds the resources of a run."""
        for resource in run.uses:
            held = self._uses.get(resource, 0) + more
            if held:
                self._uses[resource] = held
            else:
                self._uses.pop(resource, None)

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
        tokens = spent.prompt_tokens + spent.output_tokens
        self._use(run, -1)
        if self._limits.active:
            used = 0.0 if spent.innocent else tokens or run.tokens
            self._unpark(self._limits.end(run.group, run.taken, used))
        if spent.innocent:
            actual = 0.0
        elif tokens and job.task_type in ENGINE_TASKS:
            counted = spent.prompt_tokens
            actual = prompt_cost(counted, run.rates) if counted else run.prompt_cost
            actual += spent.output_tokens * run.rates.output_ms
        elif job.task_type not in ENGINE_TASKS:
            actual = float(spent.engine_ms or max(0, now.mono_ms - lease.granted_ms - lease.parked_ms))
        else:
            actual = max(run.received, run.prompt_cost) if spent.complete else run.received
        if spent.complete:
            if job.task_type not in ENGINE_TASKS:
                self._costs.learn_length(job, job.model, int(actual))
            elif spent.output_tokens:
                self._costs.learn_length(job, job.model, spent.output_tokens)
            if share_ms > 0 and tokens and job.model:
                self._costs.learn_rate(
                    job.model, lease.worker, spent.prompt_tokens, spent.output_tokens, share_ms, now.mono_ms
                )
        pool = self._pools[run.pool]
        pool.bands[run.band].end(run.flow, actual, run.received, run.left)
        if actual < run.received + run.left:
            self._put_again(run.flow, pool.lanes[run.band])

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
            pool = self._pools.setdefault(name, Pool(name, self._settings))
            if int(index) < len(pool.bands):
                weight = self._weights.get(user, 1.0)
                pool.bands[int(index)].restore(user, msgspec.msgpack.decode(value, type=float), weight)

    # --- asked -------------------------------------------------------------------------------------------------------

    def decide(self, fleet: Fleet, now: Now) -> Decision | None:
        """Start the head of the fairest flow that has room; prepare room for those that have none."""
        alike = self._next_alike(fleet, now)
        if alike is not None:
            return alike
        self._now_ms = now.mono_ms
        if fleet.version != self._fleet_version:
            self._fleet_version = fleet.version
            self._may_load = any(worker.capacity.may_load for worker in fleet.workers.values())
            self._instances = [
                instance for worker in fleet.workers.values() for instance in worker.instances.values()
            ]
            self._placing.look_at(fleet, now.mono_ms)
            self._engines.forget_others(fleet)
        taken = self._taken() if self._uses else ()
        roomy = {
            id(each)
            for each in self._instances
            if each.leased < each.slots
            and room(each) > 0
            and is_open(each.worker, fleet)
            and each.worker.name not in taken
        }
        if not roomy and not self._may_load:
            return None
        self._look_at_limits(now)
        self._placing.begin(now.mono_ms)
        decision = self._placing.carry_out(fleet)
        if decision is not None and not isinstance(decision, WakeAt):
            return decision
        waiting = decision
        pools: Iterable[Pool] = self._in_use.values()
        if len(self._in_use) > 1:
            # Own tasks first: for what they use they may have an endpoint fall idle.
            pools = sorted(pools, key=_serves_engines)
        for pool in pools:
            for band in self._in_turn(pool):
                decision = self._decide_band(pool, band, fleet, roomy)
                if isinstance(decision, WakeAt):
                    waiting = sooner(waiting, decision)
                elif decision is not None:
                    return decision
        self._placing.end()
        timer_ms = self._limits.next_ms()
        return waiting if timer_ms is None else sooner(waiting, WakeAt(timer_ms))

    def lane_of(self, job: Job) -> tuple[str, int, LaneKey]:
        """Return where a job waits: pool, band, lane."""
        return pool_name(job), self._band_of[job.priority], lane_of(job)

    def parts(self, fleet: Fleet, now: Now) -> Parts:
        """Return what is known, for who looks out."""
        return Parts(
            self._settings,
            self._pools,
            self._costs,
            self._placing,
            self._arrivals,
            fleet,
            self._limits,
            self._taken(),
            now.mono_ms,
        )

    def crowd(self, job: Job, fleet: Fleet) -> Crowd:
        """Return who stands before the jobs of a ready job's lane."""
        shares = self._settings.shares
        return Crowd(
            self._pool(job), self._band_of[job.priority], lane_of(job), self._places, fleet, shares=shares
        )

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

    def weigh(self, user: str, weight: float) -> None:
        """Give a user's flows another weight."""
        self._weights[user] = weight
        self._placing.least_weight = min(1.0, *self._weights.values())
        for pool in self._pools.values():
            for band, lanes in zip(pool.bands, pool.lanes, strict=True):
                flow = band.flows.get(user)
                if flow is not None:
                    band.weigh(flow, weight)
                    self._put_again(flow, lanes)

    def shares(self, *, idle: bool = True) -> list[Share]:
        """Return how flows stand."""
        return [
            Share(name, band.index, flow.user, flow.weight, flow.service * flow.weight, flow.predicted, flow.key,
                  flow.queued, flow.running)
            for name, pool in self._pools.items()
            for band in pool.bands
            for flow in band.flows.values()
            if idle or flow.queued or flow.running
        ]  # fmt: skip

    def bands(self) -> list[BandShare]:
        """Return how bands stand."""
        return [
            BandShare(name, band.index, each.lowest, band.share, sum(lane.jobs for lane in lanes.values()),
                      band.running, band.owed)
            for name, pool in self._pools.items()
            for each, band, lanes in zip(self._settings.bands, pool.bands, pool.lanes, strict=True)
        ]  # fmt: skip

    @property
    def has_shares(self) -> bool:
        """Whether it is the fair policy, or the strict one."""
        return self._settings.shares

    def charged(self) -> dict[FlowKey, float]:
        """Return what flows have received since it was last asked."""
        found: dict[FlowKey, float] = {}
        for name, pool in self._pools.items():
            for band in pool.bands:
                for user, cost in band.charged.items():
                    found[name, band.index, user] = cost
                band.charged.clear()
        return found

    def virtual_times(self) -> dict[int, float]:
        """Return where a newcomer begins in each band of the engines' pool."""
        pool = self._pools.get(LLM_POOL)
        return {} if pool is None else {band.index: band.virtual for band in pool.bands}

    # --- the ledger --------------------------------------------------------------------------------------------------

    def _pool(self, job: Job) -> Pool:
        name = pool_name(job)
        pool = self._pools.get(name)
        if pool is None:
            pool = self._pools[name] = Pool(name, self._settings)
        return pool

    def _flow(self, band: Band, user: str) -> Flow:
        name = self._name(user)
        flow = band.flow(name, self._weights.get(name, 1.0))
        if flow.members is None and name != user:
            pool_users(flow, self._homes)
        return flow

    def _name(self, user: str) -> str:
        """Return whose flow a user's jobs are in: the app's, if it shares as one for all of its users."""
        app, is_of_app, _ = user.partition("/")
        if is_of_app and self._settings.shares and self._settings.apps.get(app, POOLED) == POOLED:
            return app
        return user

    def _line(self, flow: Flow, key: LaneKey) -> Line:
        if flow.members is None:
            return JobLine(key, self._homes)
        return PooledLine(key, self._homes, flow.members)

    def _put_again(self, flow: Flow, lanes: dict[LaneKey, Lane]) -> None:
        """A flow's key may have become smaller: tell the lanes of its band where it waits and no limit holds it."""
        for key in flow.lines:
            lane = lanes[key]
            if flow not in lane.parked:
                lane.standing.put(flow)

    def _charge(
        self, lease: Lease, instance: Instance | None, pool: Pool, index: int, flow: Flow, now_ms: int
    ) -> None:
        job = lease.job
        rates = self._costs.rates(job.task_type, job.model)
        prompt = prompt_tokens(job)
        output = self._costs.output_tokens(job, job.model) if job.task_type not in EMBEDDING_TASKS else 0.0
        at_prompt = prompt_cost(prompt, rates)
        cost = at_prompt + output * rates.output_ms if self._settings.foresees else at_prompt
        for other in pool.bands[index + 1 :]:
            if other.waits:
                other.owe(cost)
        pool.bands[index].start(flow, cost)
        if flow.members is not None:
            flow.members.take_turn(job.user)
        run = Run(
            pool=pool.name, band=index, flow=flow, rates=rates, prompt_cost=at_prompt, left=cost,
            weight=1.0 / lease.slot.leases, uses=job.terms.uses,
            tokens=prompt + (output if job.task_type in ENGINE_TASKS else job.output_tokens),
        )  # fmt: skip
        key = _run_key(lease)
        self._runs[key] = run
        self._use(run, 1)
        run.group = job.user, job.queue, job.task_type, job.model, lease.worker
        run.taken = self._limits.start(run.group, run.tokens, now_ms, resumed=instance is None)
        if job.terms.session:
            sessions = self._placing.sessions
            if len(sessions) >= _SESSIONS:
                del sessions[next(iter(sessions))]
            sessions[job.user, job.terms.session] = lease.worker
        self._placing.note_strict(index)
        if instance is not None:
            self._engines.join(key, run, instance, now_ms)

    def _running(self) -> list[Running]:
        return [run.group for run in self._runs.values() if not run.is_lent]

    def _receive(self, run: Run, received: float) -> None:
        more = received - run.received
        if more <= 0:
            return
        foreseen = min(run.left, more)
        run.received = received
        run.left -= foreseen
        self._pools[run.pool].bands[run.band].serve(run.flow, more, foreseen)

    # --- decisions ---------------------------------------------------------------------------------------------------

    def _in_turn(self, pool: Pool) -> list[Band]:
        """Return the bands in which somebody waits: those to whom their least share is owed, then in strict order."""
        bands = [band for band in pool.bands if band.waits]
        owed = [band for band in bands if band.owed and band.owed >= band.turn_cost]
        return owed + [band for band in bands if band not in owed] if owed else bands

    def _taken(self) -> set[str]:
        """Return the resources, and so the endpoints, that own tasks hold altogether."""
        return {name for name, count in self._uses.items() if count >= self._limits.resource(name)}

    def _look_at_limits(self, now: Now) -> None:
        """Put back into line those whose limit has room again, or is another."""
        if self._limits.version == self._limits_version:
            self._unpark(self._limits.due(now.mono_ms))
            return
        self._limits_version = self._limits.version
        for pool in self._pools.values():
            for lanes in pool.lanes:
                for lane in lanes.values():
                    self._unpark([(lane, flow) for flow in (*lane.parked, *lane.standing.noted)])

    def _park(self, lane: Lane, flow: Flow, user: str, band: Band, bucket: Bucket) -> None:
        """A limit holds a user's jobs of one lane: nobody looks at them until there is room."""
        self._limits.park(bucket, (lane, flow), self._now_ms)
        line = flow.lines[lane.key]
        if isinstance(line, PooledLine):
            line.set_aside(user)
            if not line.is_held:
                return
        self._rest(lane, flow, band)

    def _rest(self, lane: Lane, flow: Flow, band: Band) -> None:
        """Nobody of a flow may start in a lane."""
        lane.standing.drop(flow)
        lane.parked[flow] = None
        flow.parked += 1
        if flow.held:
            band.rest(flow)

    def _unpark(self, parked: list[tuple[Lane, Flow]]) -> None:
        for lane, flow in parked:
            line = flow.lines.get(lane.key)
            if isinstance(line, PooledLine):
                line.bring_back()
            if flow not in lane.parked:
                continue
            del lane.parked[flow]
            pool = self._pools[pool_name_of(lane.key.task_type, lane.key.queue)]
            if flow.held:
                pool.bands[flow.band].return_(flow)
            flow.parked -= 1
            lane.standing.put(flow)

    def _first(self, lane: Lane, band: Band) -> tuple[float, Flow] | None:
        """Return the flow of a lane whose turn it is, with its key; those that a limit holds are parked."""
        key = lane.key
        while True:
            first = lane.standing.first()
            if first is None:
                return None
            flow, user = first[1], first[1].user
            line = flow.lines[key]
            if isinstance(line, PooledLine):
                if line.is_held:
                    self._rest(lane, flow, band)
                    continue
                user = line.head()[1].user
            bucket = self._limits.blocks(user, key.queue, key.task_type, self._now_ms)
            if bucket is None:
                return (first[0] if self._settings.shares else 0.0), flow
            self._park(lane, flow, user, band, bucket)

    def _decide_band(self, pool: Pool, band: Band, fleet: Fleet, roomy: set[int]) -> Decision | None:
        """Go through the lanes by the standing of their heads; the first that can be helped is."""
        heads: list[Head] = []
        waiting: WakeAt | None = None
        limits = self._limits
        for key, lane in pool.lanes[band.index].items():
            if key.queue in fleet.held_queues or not self._placing.may_help(lane, pool, fleet, roomy):
                continue
            bucket = limits.blocks(None, key.queue, key.task_type, self._now_ms) if limits.active else None
            if bucket is not None:
                if bucket.limit.of in RATES:
                    waiting = sooner(waiting, WakeAt(int(bucket.opens_ms(self._now_ms)) + 1))
                continue
            head = self._head_of(lane, band)
            if head is not None:
                heads.append(head)
        if len(heads) > 1:
            heads.sort(key=standing_of)
        placing = self._placing
        at = 0
        while at < len(heads):
            head = heads[at]
            at += 1
            lane = head[2]
            if lane.key.uses and not self._may_use(lane, head, band, fleet):
                continue
            instance, bucket = placing.room_for(head, band, fleet, roomy)
            if instance is not None:
                placing.note_start(head, band, instance)
                self._alike = (
                    Alike(lane, instance, fleet.version) if self._is_alone(lane, band, fleet) else None
                )
                return Start(
                    group_of(
                        head, instance, self._limits, self._costs, self._now_ms, shares=self._settings.shares
                    ),
                    instance,
                )
            if bucket is not None:
                # The next user of the lane may have room.
                self._park(lane, head[3], head[4].user, band, bucket)
                other = self._head_of(lane, band)
                if other is not None:
                    insort(heads, other, lo=at, key=standing_of)
                continue
            if lane.key.suspect:
                placing.clear_for_suspect(head, band, fleet)
            decision = placing.prepare(head, heads, pool, band, fleet)
            if isinstance(decision, WakeAt):
                waiting = sooner(waiting, decision)
            elif decision is not None:
                return decision
        return waiting

    def _is_alone(self, lane: Lane, band: Band, fleet: Fleet) -> bool:
        """Tell whether the jobs of one lane are all there is to choose from, in one place, with nothing to weigh."""
        key = lane.key
        if (
            len(self._in_use) > 1
            or self._uses
            or self._limits.active
            or fleet.orders
            or self._placing.is_changing
        ):
            return False
        if key.merge or key.suspect or key.uses or self._settings.bands[band.index].reserve:
            return False
        loaded = lane.places.loaded(fleet)
        return len(loaded) == 1 and not loaded[0].budget_tokens

    def _next_alike(self, fleet: Fleet, now: Now) -> Start | None:
        """Return the start of the next job of a lane that is alone; None: all is to be looked at.

        It says what the long way would, in a third of the time: floods of one kind of job are where the rate counts.
        """
        alike = self._alike
        if alike is None:
            return None
        lane, instance = alike.lane, alike.instance
        pool = next(iter(self._in_use.values()), None)
        if (
            pool is not None
            and len(self._in_use) == 1
            and sum(map(len, pool.lanes)) == 1
            and lane.jobs
            and now.mono_ms == self._now_ms
            and fleet.version == alike.version
            and lane.key.queue not in fleet.held_queues
            and not self._limits.active
            and room(instance) > 0
            and is_open(instance.worker, fleet)
            and (first := lane.standing.first()) is not None
        ):
            job = first[1].lines[lane.key].head()[1]
            if not job.terms.session:
                return Start((job,), instance)
        self._alike = None
        return None

    def _head_of(self, lane: Lane, band: Band) -> Head | None:
        first = self._first(lane, band)
        if first is None:
            return None
        place, job = first[1].lines[lane.key].head()
        return first[0], place, lane, first[1], job

    def _may_use(self, lane: Lane, head: Head, band: Band, fleet: Fleet) -> bool:
        """Tell whether all that a task uses is free; an endpoint that it wants for itself is let fall idle."""
        is_free = True
        for name in lane.key.uses:
            most = self._limits.resource(name)
            held = self._uses.get(name, 0)
            worker = fleet.workers.get(name)
            is_busy = worker is not None and bool(worker.busy or worker.loading)
            if held + is_busy >= most:
                is_free = False
                if worker is not None and held < most:
                    self._placing.clear(worker, head, band)
        return is_free


def _run_key(lease: Lease) -> RunKey:
    return lease.job.number, lease.epoch, lease.attempt


def _first(models: tuple[str, ...]) -> str:
    return models[0] if models else ""


def _serves_engines(pool: Pool) -> bool:
    return pool.name == LLM_POOL
