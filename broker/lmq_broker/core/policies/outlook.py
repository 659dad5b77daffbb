"""What comes next if nothing else comes: the policy's next starts, played through on a copy of what it knows.

Each engine serves its streams in equal shares of its time; a slot that falls free goes to whom the policy would give it
to: bands in their turn, within a band the flow with the smallest key, within a flow by place. Answers are drawn from
the shape of earlier ones, evenly, so that some end soon and some late, as they do. Models that must be loaded first
come when their turn has come; what else is loaded meanwhile is not asked.

It is played in steps, between which the broker goes on: jobs are looked at when their turn comes, so that what has
changed meanwhile is seen, and nothing that is taken here changes anything there.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from lmq_broker.core.policies.base import Fleet
from lmq_broker.core.policies.costs import Costs
from lmq_broker.core.policies.engines import Engines
from lmq_broker.core.policies.lanes import Lane, Pool
from lmq_broker.core.policies.ledger import Flow
from lmq_broker.core.policies.lengths import even_draw
from lmq_broker.core.policies.lines import JobLine, Place
from lmq_broker.core.policies.places import Places
from lmq_broker.core.policies.placing import Placing
from lmq_broker.core.settings import ENGINE_TASKS, Settings
from lmq_broker.core.state import Instance, Job, Lease, Worker

STARTS = 200
"""Of each group of jobs that want the same places: what lies beyond is reckoned, not played."""
STARTS_IN_ALL = 800
_CHUNK = 4
"""Jobs of one line that are looked at first; then twice as many, and so on."""
LOADED_SLOTS = 4
"""Of a model that is loaded for jobs: what an endpoint gives one by default."""


class Foreseen(msgspec.Struct, frozen=True):
    """When a job would start and end, in milliseconds from when it was looked at."""

    group: int
    place: int
    """So many jobs that want the same places start before it."""
    start_ms: float
    end_ms: float


class Outlook(msgspec.Struct):
    """What was found."""

    made_ms: int
    """Monotonic."""
    jobs: dict[int, Foreseen] = msgspec.field(default_factory=dict)
    """By number."""
    groups: list["Group"] = msgspec.field(default_factory=list)


class Group(msgspec.Struct):
    """Jobs that want the same places."""

    starts: int = 0
    work_ms: float = 0.0
    """Cost of those that were started."""
    last_ms: float = 0.0
    is_whole: bool = True
    """None of its jobs are left out."""


class _Flow:
    """A user's key as it grows."""

    __slots__ = ("flow", "key", "weight")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.key = flow.key
        self.weight = flow.weight


class _Line:
    """The jobs of one flow in one lane, a few at a time."""

    __slots__ = ("_found", "_line", "_next", "_size")

    def __init__(self, line: JobLine) -> None:
        self._line = line
        self._found: list[tuple[Place, Job]] = []
        self._next = 0
        self._size = _CHUNK

    def head(self) -> tuple[Place, Job] | None:
        """Return the first job that is left."""
        if self._next == len(self._found):
            last = self._found[-1][0] if self._found else None
            self._found = self._line.first(self._size, last)
            self._size *= 2
            self._next = 0
            if not self._found:
                return None
        return self._found[self._next]

    def take(self) -> None:
        """Its head has started."""
        self._next += 1


class _Lane:
    """A lane: its flows by key, its jobs, how many engines serve it."""

    __slots__ = ("band", "group", "heap", "homes", "jobs", "key", "lines", "places", "pool", "served")

    def __init__(self, pool: str, band: int, lane: Lane) -> None:
        self.pool = pool
        self.band = band
        self.key = lane.key
        self.places = lane.places
        self.jobs = lane.jobs
        self.heap = lane.standing.entries()
        self.lines: dict[Flow, _Line] = {}
        self.served = 0
        self.homes: list[tuple[_Site, str]] = []
        self.group = -1


class _Site:
    """A worker: the room that its engines share, and the change of models that is to come."""

    __slots__ = ("alone", "free", "number", "swap", "worker")

    def __init__(self, number: int, worker: Worker, free: int) -> None:
        self.number = number
        self.worker = worker
        self.free = free
        self.alone = worker.alone
        self.swap: _Swap | None = None


class _Swap:
    """A model that is to be loaded at a site, and the engines that go for it."""

    __slots__ = ("begun", "lane", "load_ms", "loading", "model", "slots", "victims")

    def __init__(self, model: str, victims: "list[_Engine]", load_ms: float) -> None:
        self.model = model
        self.victims = victims
        self.load_ms = load_ms
        self.slots = victims[0].slots if victims else LOADED_SLOTS
        self.begun = False
        self.loading = False


class _Engine:
    """An instance: streams in equal shares of its time."""

    __slots__ = (
        "at_ms", "clock", "ends", "free", "gone", "group", "id", "lanes", "model", "shares", "site", "slots",
    )  # fmt: skip

    def __init__(self, site: _Site, id_: str, model: str, slots: int, at_ms: float) -> None:
        self.site = site
        self.id = id_
        self.model = model
        self.slots = slots
        self.free = slots
        self.at_ms = at_ms
        self.clock = 0.0
        """Engine time that each stream has had."""
        self.ends: list[tuple[float, int, _Stream | None]] = []
        """Heap of (reading of the clock at which a stream ends, number, stream)."""
        self.lanes: list[_Lane] = []
        self.shares = True
        self.group = -1
        self.gone = False

    def advance(self, at_ms: float) -> None:
        """Let time pass."""
        if self.ends:
            passed_ms = at_ms - self.at_ms
            self.clock += passed_ms / len(self.ends) if self.shares else passed_ms
        self.at_ms = at_ms

    def next_ms(self) -> float:
        """Return when the next stream ends."""
        left = max(0.0, self.ends[0][0] - self.clock)
        return self.at_ms + (left * len(self.ends) if self.shares else left)

    def left_ms(self) -> float:
        """Return for how long it is busy with what it has."""
        lefts = [end - self.clock for end, _, _ in self.ends]
        return (sum(lefts) if self.shares else max(lefts)) if lefts else 0.0


class _Stream:
    """A job that was started."""

    __slots__ = ("drawn_ms", "job", "mean_ms", "start_ms")

    def __init__(self, job: Job, start_ms: float, drawn_ms: float, mean_ms: float) -> None:
        self.job = job
        self.start_ms = start_ms
        self.drawn_ms = drawn_ms
        self.mean_ms = mean_ms


class Play:
    """One run."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        costs: Costs,
        placing: Placing,
        settings: Settings,
        fleet: Fleet,
        now_ms: int,
    ) -> None:
        self._pools = pools
        self._costs = costs
        self._placing = placing
        self._settings = settings
        self._fleet = fleet
        self.found = Outlook(now_ms)
        self._sites: dict[str, _Site] = {}
        self._engines: list[_Engine] = []
        self._lanes: list[_Lane] = []
        self._flows: dict[Flow, _Flow] = {}
        self._owed: dict[tuple[str, int], float] = {}
        self._events: list[tuple[float, int, _Engine | _Site]] = []
        self._count = 0
        self._places: dict[int, tuple[int, int, float]] = {}
        self.starts = 0

    def steps(self) -> Iterator[None]:
        """Play; each step is a bounded piece of work."""
        for worker in list(self._fleet.workers.values()):
            yield from self._look_at_worker(worker)
        for name, pool in list(self._pools.items()):
            for index, lanes in enumerate(pool.lanes):
                for lane in list(lanes.values()):
                    if lane.jobs and lane.key[0] not in self._fleet.held_queues:
                        self._look_at_lane(name, index, lane)
                        yield
        self._join()
        for lane in self._lanes:
            self._seek(lane, 0.0)
        for engine in self._engines:
            yield from self._fill(engine, 0.0)
        while self._events and self.starts < STARTS_IN_ALL:
            at_ms, _, thing = heapq.heappop(self._events)
            if isinstance(thing, _Site):
                yield from self._change(thing, at_ms)
                continue
            if thing.gone or not thing.ends:
                continue
            yield from self._end(thing, at_ms)

    # --- what there is

    def _look_at_worker(self, worker: Worker) -> Iterator[None]:
        fleet = self._fleet
        if (
            worker.peer is None or worker.gone_ms or worker.capacity.breaker is not None
            or worker.name in fleet.held_workers
        ):  # fmt: skip
            return
        limit = worker.capacity.slots
        site = _Site(len(self._sites), worker, (1 << 30 if limit is None else limit) - len(worker.leases))
        self._sites[worker.name] = site
        by_id: dict[str, _Engine] = {}
        for instance in worker.instances.values():
            engine = by_id[instance.id] = _Engine(site, instance.id, instance.model, instance.slots, 0.0)
            engine.free -= instance.leased
            self._engines.append(engine)
        for lease in list(worker.leases.values()):
            engine_or_none = by_id.get(lease.instance_id)
            if engine_or_none is not None:
                self._count += 1
                left_ms = self.drawn_left_ms(lease)
                engine_or_none.shares = lease.job.task_type in ENGINE_TASKS
                heapq.heappush(engine_or_none.ends, (left_ms, self._count, None))
                yield
        for engine in by_id.values():
            if engine.ends:
                self._await(engine)

    def _look_at_lane(self, pool: str, band: int, lane: Lane) -> None:
        mine = _Lane(pool, band, lane)
        self._lanes.append(mine)
        here = {(each.worker.name, each.id) for each in lane.places.loaded(self._fleet)}
        for engine in self._engines:
            if (engine.site.worker.name, engine.id) in here:
                engine.lanes.append(mine)
                mine.served += 1
        if lane.places.names:
            for site in self._sites.values():
                worker = site.worker
                if worker.capacity.may_load and lane.places.served_by(worker):
                    model = lane.places.on_disk(worker)
                    if model is not None:
                        mine.homes.append((site, model))

    def _join(self) -> None:
        """Find which lanes want the same places."""
        parents: dict[object, object] = {}

        def root(thing: object) -> object:
            while thing in parents:
                thing = parents[thing]
            return thing

        def join(one: object, other: object) -> None:
            first, second = root(one), root(other)
            if first is not second:
                parents[second] = first

        for engine in self._engines:
            for lane in engine.lanes:
                join(engine, lane)
        for lane in self._lanes:
            if not lane.served:
                for site, _ in lane.homes:
                    join(lane, site)
                    for engine in self._engines:
                        if engine.site is site:
                            join(site, engine)
        numbers: dict[object, int] = {}
        for thing in (*self._lanes, *self._engines):
            thing.group = numbers.setdefault(root(thing), len(numbers))
        self.found.groups = [Group() for _ in numbers]

    # --- how long things take

    def drawn_left_ms(self, lease: Lease) -> float:
        """Return what of an engine's time a running job may still take."""
        job = lease.job
        prompt_ms, output_ms, tokens, shape = self._costs.foresee(job, job.model, lease.worker)
        had = lease.tokens / tokens if tokens else 0.0
        left = shape.draw_left(had, even_draw(job.number)) * tokens
        if job.output_tokens:
            left = min(left, max(0.0, job.output_tokens - lease.tokens))
        return (0.0 if lease.tokens else prompt_ms) + left * output_ms

    # --- starts

    def _fill(self, engine: _Engine, at_ms: float) -> Iterator[None]:
        """Give an engine's free slots away."""
        site = engine.site
        group = self.found.groups[engine.group]
        while engine.free > 0 and site.free > 0 and not site.alone and not engine.gone:
            if site.swap is not None and site.swap.begun and engine in site.swap.victims:
                return
            if group.starts >= STARTS:
                group.is_whole = False
                return
            chosen = self._choose(engine)
            if chosen is None:
                if not engine.ends and site.swap is not None and engine in site.swap.victims:
                    self._begin(site, at_ms)
                return
            lane, flow, line, job = chosen
            line.take()
            if job.number not in self._places:
                self._start(engine, lane, flow, job, at_ms)
            yield
        return

    def _choose(self, engine: _Engine) -> "tuple[_Lane, _Flow, _Line, Job] | None":
        """Return whose turn it is on an engine."""
        best: tuple[float, Place] | None = None
        best_rank = -1
        found = None
        for lane in engine.lanes:
            rank = self._rank(lane)
            if found is not None and rank > best_rank:
                continue
            head = self._head(lane)
            if head is None:
                continue
            standing = head[0], head[1]
            if found is None or rank < best_rank or standing < best:
                best, best_rank = standing, rank
                found = lane, head[2], head[3], head[4]
        return found

    def _rank(self, lane: _Lane) -> int:
        """Return when a lane's band has its turn: those to whom their share is owed come first."""
        band = self._pools[lane.pool].bands[lane.band]
        owed = self._owed.get((lane.pool, lane.band), band.owed)
        return lane.band if not (owed and owed >= band.turn_cost) else lane.band - 100

    def _head(self, lane: _Lane) -> "tuple[float, Place, _Flow, _Line, Job] | None":
        heap = lane.heap
        while heap:
            noted, number, flow = heap[0]
            mine = self._flows.get(flow)
            if mine is None:
                mine = self._flows[flow] = _Flow(flow)
            if noted != mine.key:
                heapq.heapreplace(heap, (mine.key, number, flow))
                continue
            line = lane.lines.get(flow)
            if line is None:
                theirs = flow.lines.get(lane.key)
                if theirs is None:
                    heapq.heappop(heap)
                    continue
                line = lane.lines[flow] = _Line(theirs)
            head = line.head()
            if head is None:
                heapq.heappop(heap)
                continue
            return mine.key, head[0], mine, line, head[1]
        return None

    def _start(self, engine: _Engine, lane: _Lane, flow: _Flow, job: Job, at_ms: float) -> None:
        group = self.found.groups[engine.group]
        self._places[job.number] = engine.group, group.starts, at_ms
        cost = self._costs.predict(job, engine.model)
        flow.key += cost / flow.weight
        pool = self._pools[lane.pool]
        for band in pool.bands:
            if band.index > lane.band and band.waits:
                key = lane.pool, band.index
                self._owed[key] = min(self._owed.get(key, band.owed) + band.share * cost, 4 * band.turn_cost)
        key = lane.pool, lane.band
        self._owed[key] = max(0.0, self._owed.get(key, pool.bands[lane.band].owed) - cost)
        prompt_ms, output_ms, tokens, shape = self._costs.foresee(job, engine.model, engine.site.worker.name)
        drawn = shape.draw_left(0.0, even_draw(job.number)) * tokens
        mean = shape.mean_left(0.0) * tokens
        if job.output_tokens:
            drawn, mean = min(drawn, job.output_tokens), min(mean, job.output_tokens)
        drawn_ms, mean_ms = prompt_ms + drawn * output_ms, prompt_ms + mean * output_ms
        engine.advance(at_ms)
        engine.shares = job.task_type in ENGINE_TASKS
        self._count += 1
        heapq.heappush(
            engine.ends, (engine.clock + drawn_ms, self._count, _Stream(job, at_ms, drawn_ms, mean_ms))
        )
        engine.free -= 1
        engine.site.free -= 1
        group.starts += 1
        group.work_ms += cost
        group.last_ms = at_ms
        self.starts += 1
        self.found.jobs[job.number] = Foreseen(
            engine.group, group.starts - 1, at_ms, at_ms + mean_ms * (len(engine.ends) if engine.shares else 1)
        )
        self._await(engine)

    def _await(self, engine: _Engine) -> None:
        self._count += 1
        heapq.heappush(self._events, (engine.next_ms(), self._count, engine))

    def _end(self, engine: _Engine, at_ms: float) -> Iterator[None]:
        """End the streams of an engine that are due."""
        engine.advance(at_ms)
        if engine.ends[0][0] > engine.clock + 1e-6:
            return
        _, _, stream = heapq.heappop(engine.ends)
        engine.free += 1
        site = engine.site
        site.free += 1
        site.alone = False
        if stream is not None:
            known = self.found.jobs[stream.job.number]
            took_ms = (at_ms - stream.start_ms) * stream.mean_ms / max(stream.drawn_ms, 1e-9)
            self.found.jobs[stream.job.number] = Foreseen(
                known.group, known.place, known.start_ms, stream.start_ms + took_ms
            )
        swap = site.swap
        if swap is not None and swap.begun and not any(each.ends for each in swap.victims):
            self._load(site, at_ms)
        for each in self._engines:
            if each.site is site:
                yield from self._fill(each, at_ms)
        if engine.ends:
            self._await(engine)
        yield

    # --- models

    def _seek(self, lane: _Lane, at_ms: float) -> None:
        """Have a model loaded for a lane that no engine serves, where that is soonest."""
        if lane.served or self._head(lane) is None:
            return
        best: tuple[float, _Site, _Swap, float] | None = None
        for site, model in lane.homes:
            worker = site.worker
            if site.swap is not None:
                if site.swap.model == model:
                    return
                continue
            load_ms = self._placing.memory.load_ms(worker, model)
            if at_ms == 0.0 and worker.loading:
                if worker.loading != model:
                    continue
                swap = _Swap(model, [], load_ms)
                swap.begun = swap.loading = True
                site.swap = swap
                left_ms = max(load_ms - (self.found.made_ms - worker.loading_since_ms), 1000.0)
                self._count += 1
                heapq.heappush(self._events, (left_ms, self._count, site))
                return
            mine = [each for each in self._engines if each.site is site and not each.gone]
            victims_or_none = self._placing.memory.victims(worker, model, {})
            if victims_or_none is None:
                continue
            ids = {each.id for each in victims_or_none}
            victims = [each for each in mine if each.id in ids]
            if victims_or_none and not victims:
                victims = mine[:1]
            swap = _Swap(model, victims, load_ms)
            due_ms = at_ms
            known = self._placing.swap_at(worker.name) if at_ms == 0.0 else None
            if victims and not (known is not None and known.model == model):
                patience_ms = self._settings.bands[lane.band].patience * load_ms
                since_ms = self._placing.passed_over_since(worker.name, lane.band) if at_ms == 0.0 else None
                due_ms += patience_ms if since_ms is None else max(0.0, since_ms + patience_ms - self.found.made_ms)
            start_ms = load_ms + max(due_ms, at_ms + max((each.left_ms() for each in victims), default=0.0))
            if best is None or start_ms < best[0]:
                best = start_ms, site, swap, due_ms
        if best is not None:
            _, site, swap, due_ms = best
            site.swap = swap
            self._count += 1
            heapq.heappush(self._events, (due_ms, self._count, site))

    def _change(self, site: _Site, at_ms: float) -> Iterator[None]:
        """A site's swap goes on: it is due, or its model is there."""
        swap = site.swap
        if swap is None:
            return
        if swap.loading:
            yield from self._loaded(site, swap, at_ms)
        elif not swap.begun:
            self._begin(site, at_ms)

    def _begin(self, site: _Site, at_ms: float) -> None:
        swap = site.swap
        assert swap is not None
        swap.begun = True
        if not any(each.ends for each in swap.victims):
            self._load(site, at_ms)

    def _load(self, site: _Site, at_ms: float) -> None:
        swap = site.swap
        assert swap is not None
        swap.loading = True
        self._count += 1
        heapq.heappush(self._events, (at_ms + swap.load_ms, self._count, site))

    def _loaded(self, site: _Site, swap: _Swap, at_ms: float) -> Iterator[None]:
        site.swap = None
        for victim in swap.victims:
            victim.gone = True
            for lane in victim.lanes:
                lane.served -= 1
        self._engines = [each for each in self._engines if not each.gone]
        engine = _Engine(site, "", swap.model, swap.slots, at_ms)
        for lane in self._lanes:
            if not lane.places.names or any(home is site and model == swap.model for home, model in lane.homes):
                engine.lanes.append(lane)
                engine.group = lane.group
                lane.served += 1
        self._engines.append(engine)
        yield from self._fill(engine, at_ms)
        for lane in self._lanes:
            self._seek(lane, at_ms)
            yield
