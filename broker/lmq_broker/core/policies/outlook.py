"""What comes next: the policy's next starts, played through on a copy of what it knows.

Engines serve their streams in equal shares of their time. A slot that falls free goes to whom the policy would give it
to: bands in their turn, within a band the flow with the smallest key, within a flow by place. Answers are as long as a
draw from earlier ones says, so that some end soon and some late, as they do; jobs come on as they came lately. A model
that must be loaded first comes when its turn has come. What else the policy looks at is left out.

It is played in steps, between which the broker goes on: jobs are looked at when their turn comes, so that what has
changed meanwhile is seen. Nothing here changes what the policy knows.
"""

import heapq
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from lmq_broker.core.policies.arrivals import Arrivals, Expected
from lmq_broker.core.policies.base import Fleet
from lmq_broker.core.policies.costs import Costs, prompt_cost, prompt_tokens
from lmq_broker.core.policies.lanes import Lane, Pool
from lmq_broker.core.policies.ledger import Flow
from lmq_broker.core.policies.lengths import UNMEASURED, Shape, even_draw
from lmq_broker.core.policies.lines import NEVER_MS, JobLine, Place
from lmq_broker.core.policies.places import LaneKey, is_reachable
from lmq_broker.core.policies.placing import Placing
from lmq_broker.core.settings import EMBEDDING_TASKS, ENGINE_TASKS, Rates, Settings
from lmq_broker.core.state import Job, Lease, Worker

STARTS = 200
"""Of jobs that want the same places, in the first run: those beyond are reckoned, not played."""
FEWER_STARTS = 50
"""In the other runs: what is far away is an average by itself."""
STARTS_IN_ALL = 600
"""In one run, of jobs that want different places."""
RUNS = 4
"""With other draws each; what is said is their mean."""
_ORDERS = 3000
"""Of things that are put on heaps, in one run: what has no end ends here."""
LOADED_SLOTS = 4
"""Of a model that is loaded for jobs: what an endpoint gives one by default."""
_FIRST_LOOK = 4
"""Jobs of one line that are looked at first; then twice as many, and so on."""
_PACED = 10
"""Starts from which their pace can be told."""
_LAST: Place = (1 << 62, NEVER_MS, 0)
"""Of jobs that are still to come."""


class Parts(msgspec.Struct, frozen=True):
    """What a policy knows, to look at."""

    settings: Settings
    pools: Mapping[str, Pool]
    costs: Costs
    placing: Placing
    arrivals: Arrivals
    fleet: Fleet
    now_ms: int


class Foreseen(msgspec.Struct):
    """When a job would start and end, in milliseconds from when it was looked at; means over several runs."""

    job: Job
    group: int
    """-1: it runs."""
    place: float
    """So many jobs that want the same places start before it."""
    start_ms: float
    end_ms: float = 0.0
    runs: int = 1

    def note_start(self, place: int, start_ms: float) -> None:
        """It started in one more run."""
        self.runs += 1
        self.place += (place - self.place) / self.runs
        self.start_ms += (start_ms - self.start_ms) / self.runs

    def note_end(self, end_ms: float) -> None:
        """It ended in the run in which it started last."""
        self.end_ms += (end_ms - self.end_ms) / self.runs


class Group(msgspec.Struct):
    """Jobs that want the same places: how soon one after the other starts."""

    jobs: int = 0
    starts: int = 0
    first_ms: float = 0.0
    last_ms: float = 0.0
    runs_ms: float = 0.0
    """For how long those that started run, in sum."""
    slots: int = 0

    @property
    def pace_ms(self) -> float:
        """Return the time from one start to the next."""
        if self.starts >= _PACED:
            return (self.last_ms - self.first_ms) / (self.starts - 1)
        return self.runs_ms / self.starts / max(self.slots, 1) if self.starts else 0.0


class Outlook(msgspec.Struct):
    """What was found."""

    made_ms: int
    """Monotonic."""
    jobs: dict[int, Foreseen] = msgspec.field(default_factory=dict)
    """By number."""
    groups: list[Group] = msgspec.field(default_factory=list)
    """As the first run has them."""
    group_of: dict[tuple[str, int, LaneKey], int] = msgspec.field(default_factory=dict)
    """(pool, band, lane) -> its group."""

    def group_at(self, lane: tuple[str, int, LaneKey]) -> Group | None:
        """Return the group of a lane; None: no job of it waited."""
        number = self.group_of.get(lane)
        return None if number is None else self.groups[number]


def look_out(parts: Parts, found: Outlook) -> Iterator[None]:
    """Play the next starts and note what comes of it; each step is a bounded piece of work."""
    expected = parts.arrivals.expected(parts.now_ms)
    yield
    for number in range(RUNS):
        yield from _Run(parts, expected, found, number).steps()


class _Flow:
    """A user's key as it grows, and jobs that came on meanwhile."""

    __slots__ = ("coming", "cost", "flow", "key", "weight")

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.key = flow.key
        self.weight = flow.weight
        self.coming = 0
        self.cost = 0.0


class _Line:
    """The jobs of one flow in one lane, a few at a time."""

    __slots__ = ("_found", "_line", "_next", "_size")

    def __init__(self, line: JobLine | None) -> None:
        self._line = line
        self._found: list[tuple[Place, Job]] = []
        self._next = 0
        self._size = _FIRST_LOOK

    def head(self) -> tuple[Place, Job] | None:
        """Return the first job that is left."""
        if self._next == len(self._found):
            if self._line is None:
                return None
            self._found = self._line.first(self._size, self._found[-1][0] if self._found else None)
            self._size *= 2
            self._next = 0
            if not self._found:
                self._line = None
                return None
        return self._found[self._next]

    def take(self) -> None:
        """Its head has started."""
        self._next += 1


class _Lane:
    """A lane: its flows by key, its jobs, how many engines serve it."""

    __slots__ = ("band", "group", "heap", "homes", "jobs", "key", "lines", "pool", "served", "takes_any")

    def __init__(self, pool: str, band: int, lane: Lane) -> None:
        self.pool = pool
        self.band = band
        self.key = lane.key
        self.jobs = lane.jobs
        self.takes_any = not lane.places.names
        self.heap = lane.standing.entries()
        self.lines: dict[Flow, _Line] = {}
        self.served = 0
        self.homes: list[tuple[_Site, str]] = []
        """Workers that could load a model for it, and the model's key there."""
        self.group = -1


class _Site:
    """A worker: the room that its engines share."""

    __slots__ = ("alone", "free", "number", "worker")

    def __init__(self, number: int, worker: Worker) -> None:
        self.number = number
        self.worker = worker
        limit = worker.capacity.slots
        self.free = (1 << 30 if limit is None else limit) - len(worker.leases)
        self.alone = worker.alone


class _Swap:
    """A model that comes at a site, and the engines that go for it."""

    __slots__ = ("band", "begun", "cost", "due_ms", "load_ms", "loading", "model", "most_cost", "victims")

    def __init__(self, model: str, victims: "list[_Engine]", load_ms: float, due_ms: float) -> None:
        self.model = model
        self.victims = victims
        self.load_ms = load_ms
        self.due_ms = due_ms
        self.band = -1
        self.cost = 0.0
        """Of what starts on its victims meanwhile."""
        self.most_cost = 0.0
        self.begun = False
        self.loading = False


class _Stream(NamedTuple):
    """A job on an engine: when it started, and what it takes of the engine's time, as drawn and on average."""

    job: Job
    start_ms: float
    drawn_ms: float
    mean_ms: float


class _Engine:
    """An instance: streams in equal shares of its time."""

    __slots__ = (
        "at_ms", "clock", "ends", "free", "gone", "group", "id", "lanes", "loaded_ms", "model", "rates", "shares", "site", "slots",
    )  # fmt: skip

    def __init__(self, site: _Site, name: str, model: str, slots: int, at_ms: float) -> None:
        self.site = site
        self.id = name
        self.model = model
        self.slots = slots
        self.free = slots
        self.at_ms = at_ms
        self.loaded_ms = at_ms
        self.clock = 0.0
        """Engine time that each stream has had."""
        self.ends: list[tuple[float, int, _Stream | None]] = []
        """Heap of (reading of the clock at which a stream ends, order, stream)."""
        self.lanes: list[_Lane] = []
        self.rates: dict[str, Rates] = {}
        self.shares = True
        """What runs here shares one engine; own tasks do not."""
        self.group = -1
        self.gone = False

    def advance(self, at_ms: float) -> None:
        """Let time pass."""
        if self.ends:
            passed_ms = at_ms - self.at_ms
            self.clock += passed_ms / len(self.ends) if self.shares else passed_ms
        self.at_ms = at_ms

    def next_ms(self) -> float:
        """Return when the next stream ends if none comes to it."""
        left_ms = max(0.0, self.ends[0][0] - self.clock)
        return self.at_ms + (left_ms * len(self.ends) if self.shares else left_ms)

    def left_ms(self) -> float:
        """Return for how long it is busy with what it has."""
        lefts = [end - self.clock for end, _, _ in self.ends]
        return (sum(lefts) if self.shares else max(lefts)) if lefts else 0.0


def _end_of(entry: tuple[float, int, _Stream | None]) -> float:
    return entry[0]


class _Guest(NamedTuple):
    """Jobs that come on, and where they wait."""

    expected: Expected
    lane: _Lane
    flow: _Flow


class _Run:
    """One run with its draws."""

    def __init__(self, parts: Parts, expected: list[Expected], found: Outlook, number: int) -> None:
        self._parts = parts
        self._costs = parts.costs
        self._expected = expected
        self._found = found
        self._number = number
        self._most_starts = FEWER_STARTS if number else STARTS
        self._sites: list[_Site] = []
        self._engines: list[_Engine] = []
        self._swaps: dict[int, _Swap] = {}
        """Site -> what is to change there."""
        self._lanes: list[_Lane] = []
        self._flows: dict[Flow, _Flow] = {}
        self._owed: dict[tuple[str, int], float] = {}
        self._groups: list[Group] = []
        self._events: list[tuple[float, int, _Engine | _Site | _Guest]] = []
        """Heap of (time, order, where something happens)."""
        self._order = 0
        self._started: set[int] = set()

    def steps(self) -> Iterator[None]:
        """Play."""
        yield from self._look_at_workers()
        yield from self._look_at_lanes()
        self._join()
        for site in self._sites:
            self._resume_swap(site)
        for lane in self._lanes:
            self._seek(lane, 0.0)
        yield
        for engine in list(self._engines):
            self._fill(engine, 0.0)
            yield
        self._invite()
        while self._events and not self._is_over():
            at_ms, _, thing = heapq.heappop(self._events)
            if isinstance(thing, _Engine):
                if thing.gone or not thing.ends:
                    continue
                self._end_next(thing, at_ms)
            elif isinstance(thing, _Site):
                self._change(thing, at_ms)
            else:
                self._arrive(thing, at_ms)
            yield
        self._close()

    def _is_over(self) -> bool:
        """Tell whether no more starts are to be played; whoever runs then ends in their own time."""
        if self._order >= _ORDERS or len(self._started) >= STARTS_IN_ALL:
            return True
        return not any(group.starts < min(self._most_starts, group.jobs) for group in self._groups)

    # --- what there is

    def _look_at_workers(self) -> Iterator[None]:
        fleet = self._parts.fleet
        for worker in list(fleet.workers.values()):
            if not is_reachable(worker, fleet):
                continue
            site = _Site(len(self._sites), worker)
            self._sites.append(site)
            engines = {
                each.id: _Engine(site, each.id, each.model, each.slots, 0.0)
                for each in worker.instances.values()
            }
            for each in worker.instances.values():
                engines[each.id].loaded_ms = -float(self._parts.placing.memory.resident_ms(each, self._parts.now_ms))
            self._engines += engines.values()
            for lease in list(worker.leases.values()):
                engine = engines.get(lease.instance_id)
                if engine is not None:
                    self._resume(engine, lease)
            yield
            for engine in engines.values():
                if engine.ends:
                    self._await(engine)

    def _resume(self, engine: _Engine, lease: Lease) -> None:
        """Let a job go on that runs."""
        job = lease.job
        engine.free -= 1
        engine.shares = job.task_type in ENGINE_TASKS
        prompt_ms, output_ms, tokens, shape = self._needs(engine, job)
        had = lease.tokens / tokens if tokens else 0.0
        most = max(0.0, job.output_tokens - lease.tokens) if job.output_tokens else float("inf")
        drawn = min(shape.draw_left(had, even_draw(job.number, self._number)) * tokens, most)
        mean = min(shape.mean_left(had) * tokens, most)
        at_prompt_ms = 0.0 if lease.tokens else prompt_ms
        stream = _Stream(job, 0.0, at_prompt_ms + drawn * output_ms, at_prompt_ms + mean * output_ms)
        self._note_start(job, -1, 0, 0.0)
        self._order += 1
        heapq.heappush(engine.ends, (stream.drawn_ms, self._order, stream))

    def _look_at_lanes(self) -> Iterator[None]:
        fleet = self._parts.fleet
        for name, pool in list(self._parts.pools.items()):
            for index, lanes in enumerate(pool.lanes):
                for lane in list(lanes.values()):
                    if lane.key[0] not in fleet.held_queues:
                        self._lanes.append(self._lane(name, index, lane))
                        yield

    def _lane(self, pool: str, band: int, lane: Lane) -> _Lane:
        found = _Lane(pool, band, lane)
        here = {(each.worker.name, each.id) for each in lane.places.loaded(self._parts.fleet)}
        for engine in self._engines:
            if (engine.site.worker.name, engine.id) in here:
                engine.lanes.append(found)
                found.served += 1
        if not found.takes_any:
            for site in self._sites:
                if site.worker.capacity.may_load and lane.places.served_by(site.worker):
                    model = lane.places.on_disk(site.worker)
                    if model is not None:
                        found.homes.append((site, model))
        return found

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
            for site, _ in () if lane.served else lane.homes:
                join(lane, site)
                for engine in self._engines:
                    if engine.site is site:
                        join(site, engine)
        numbers: dict[object, int] = {}
        for lane in self._lanes:
            lane.group = numbers.setdefault(root(lane), len(numbers))
        for engine in self._engines:
            engine.group = numbers.setdefault(root(engine), len(numbers))
        self._groups = [Group() for _ in numbers]
        for lane in self._lanes:
            if lane.served or lane.homes:
                self._groups[lane.group].jobs += lane.jobs
        for engine in self._engines:
            self._groups[engine.group].slots += engine.slots
        if not self._number:
            self._found.groups = self._groups
            self._found.group_of = {(lane.pool, lane.band, lane.key): lane.group for lane in self._lanes}

    def _needs(self, engine: _Engine, job: Job) -> tuple[float, float, float, Shape]:
        """Return what of an engine's time a prompt takes, and each token; how many there will be, and their shape."""
        task_type = job.task_type
        rates = engine.rates.get(task_type)
        if rates is None:
            rates = self._costs.rates_at(task_type, engine.model, engine.site.worker.name)
            engine.rates[task_type] = rates
        prompt_ms = prompt_cost(prompt_tokens(job), rates)
        if not rates.output_ms or task_type in EMBEDDING_TASKS:
            return prompt_ms, 0.0, 0.0, UNMEASURED
        return (
            prompt_ms,
            rates.output_ms,
            self._costs.output_tokens(job, engine.model),
            self._costs.shape(task_type, engine.model),
        )

    # --- starts

    def _fill(self, engine: _Engine, at_ms: float) -> None:
        """Give an engine's free slots away."""
        site = engine.site
        swap = self._swaps.get(site.number)
        if swap is not None and engine not in swap.victims:
            swap = None
        if swap is not None and swap.begun:
            return
        while engine.free > 0 and site.free > 0 and not site.alone:
            if self._groups[engine.group].starts >= self._most_starts:
                return
            chosen = self._choose(engine)
            if chosen is None:
                if swap is not None and not engine.ends:
                    self._begin(site, swap, at_ms)
                return
            lane, flow, line, job = chosen
            if job is None:
                flow.coming -= 1
                self._run(engine, lane, flow, flow.cost, flow.cost * self._pace(engine), None, at_ms)
                continue
            line.take()
            if job.number not in self._started:
                self._start(engine, lane, flow, job, at_ms)

    def _choose(self, engine: _Engine) -> "tuple[_Lane, _Flow, _Line, Job | None] | None":
        """Return whose turn it is on an engine."""
        best: tuple[int, float, Place] | None = None
        found = None
        for lane in engine.lanes:
            rank = self._rank(lane)
            if best is not None and rank > best[0]:
                continue
            head = self._head(lane)
            if head is None:
                continue
            standing = rank, head[0], head[1]
            if best is None or standing < best:
                best = standing
                found = lane, head[2], head[3], head[4]
        return found

    def _rank(self, lane: _Lane) -> int:
        """Return when a lane's band has its turn: those to whom their share is owed come first."""
        band = self._parts.pools[lane.pool].bands[lane.band]
        owed = self._owed.get((lane.pool, lane.band), band.owed)
        return lane.band - len(self._parts.settings.bands) if owed and owed >= band.turn_cost else lane.band

    def _head(self, lane: _Lane) -> "tuple[float, Place, _Flow, _Line, Job | None] | None":
        """Return a lane's first job with its flow; None as the job: one that came on meanwhile."""
        heap = lane.heap
        while heap:
            noted, number, flow = heap[0]
            mine = self._flow(flow)
            if noted != mine.key:
                heapq.heapreplace(heap, (mine.key, number, flow))
                continue
            line = lane.lines.get(flow)
            if line is None:
                line = lane.lines[flow] = _Line(flow.lines.get(lane.key))
            head = line.head()
            if head is not None:
                return noted, head[0], mine, line, head[1]
            if mine.coming:
                return noted, _LAST, mine, line, None
            heapq.heappop(heap)
        return None

    def _flow(self, flow: Flow) -> _Flow:
        found = self._flows.get(flow)
        if found is None:
            found = self._flows[flow] = _Flow(flow)
        return found

    def _start(self, engine: _Engine, lane: _Lane, flow: _Flow, job: Job, at_ms: float) -> None:
        """Start a job and note when."""
        self._started.add(job.number)
        prompt_ms, output_ms, tokens, shape = self._needs(engine, job)
        drawn = shape.draw_left(0.0, even_draw(job.number, self._number)) * tokens
        mean = shape.mean * tokens
        if job.output_tokens:
            drawn, mean = min(drawn, job.output_tokens), min(mean, job.output_tokens)
        stream = _Stream(job, at_ms, prompt_ms + drawn * output_ms, prompt_ms + mean * output_ms)
        cost = self._costs.predict(job, engine.model)
        self._run(engine, lane, flow, cost, stream.drawn_ms, stream, at_ms)
        group = self._groups[engine.group]
        if not group.starts:
            group.first_ms = at_ms
        self._note_start(job, engine.group, group.starts, at_ms)
        group.starts += 1
        group.last_ms = at_ms

    def _run(
        self,
        engine: _Engine,
        lane: _Lane,
        flow: _Flow,
        cost: float,
        takes_ms: float,
        stream: _Stream | None,
        at_ms: float,
    ) -> None:
        """Take a slot and charge for it."""
        flow.key += cost / flow.weight
        owed = self._owed
        for band in self._parts.pools[lane.pool].bands[lane.band :]:
            key = lane.pool, band.index
            if band.index == lane.band:
                if owed.get(key, band.owed):
                    owed[key] = max(0.0, owed.get(key, band.owed) - cost)
            elif band.waits and band.share:
                owed[key] = min(owed.get(key, band.owed) + band.share * cost, 4 * band.turn_cost)
        engine.advance(at_ms)
        self._order += 1
        heapq.heappush(engine.ends, (engine.clock + takes_ms, self._order, stream))
        engine.free -= 1
        engine.site.free -= 1
        self._await(engine)
        swap = self._swaps.get(engine.site.number)
        if swap is not None and not swap.begun and swap.band == lane.band and engine in swap.victims:
            swap.cost += cost / flow.weight
            if swap.cost >= swap.most_cost:
                self._expect(at_ms, engine.site)

    def _pace(self, engine: _Engine) -> float:
        """Return how much longer this engine takes than costs say."""
        rates = engine.rates.get("chat")
        if rates is None:
            rates = engine.rates["chat"] = self._costs.rates_at("chat", engine.model, engine.site.worker.name)
        told = self._costs.rates("chat", engine.model)
        return rates.output_ms / told.output_ms if told.output_ms and rates.output_ms else 1.0

    def _await(self, engine: _Engine) -> None:
        self._expect(engine.next_ms(), engine)

    def _expect(self, at_ms: float, thing: "_Engine | _Site | _Guest") -> None:
        self._order += 1
        heapq.heappush(self._events, (at_ms, self._order, thing))

    def _end_next(self, engine: _Engine, at_ms: float) -> None:
        """End the stream of an engine that is due, if none has come to it meanwhile."""
        engine.advance(at_ms)
        if engine.ends[0][0] > engine.clock + 1e-6:
            return
        stream = heapq.heappop(engine.ends)[2]
        if stream is not None:
            self._note_end(stream, at_ms)
        engine.free += 1
        site = engine.site
        site.free += 1
        site.alone = False
        swap = self._swaps.get(site.number)
        if (
            swap is not None
            and swap.begun
            and not swap.loading
            and not any(each.ends for each in swap.victims)
        ):
            self._load(site, swap, at_ms)
        for each in list(self._engines):
            if each.site is site:
                self._fill(each, at_ms)
        if engine.ends:
            self._await(engine)

    def _note_start(self, job: Job, group: int, place: int, start_ms: float) -> None:
        known = self._found.jobs.get(job.number)
        if known is None:
            self._found.jobs[job.number] = Foreseen(job, group, place, start_ms)
        else:
            known.note_start(place, start_ms)

    def _note_end(self, stream: _Stream, at_ms: float) -> None:
        """Note when a job of middling length would have ended where the drawn one ends at this time."""
        took_ms = (at_ms - stream.start_ms) * stream.mean_ms / max(stream.drawn_ms, 1.0)
        known = self._found.jobs[stream.job.number]
        known.note_end(stream.start_ms + took_ms)
        if known.group >= 0:
            self._groups[known.group].runs_ms += took_ms

    def _close(self) -> None:
        """Note when those end that still run: slots stay taken while jobs wait; where none wait, it grows quicker."""
        for engine in self._engines:
            group = self._groups[engine.group]
            streams = len(engine.ends)
            at_ms, had_ms = engine.at_ms, engine.clock
            for end, _, stream in sorted(engine.ends, key=_end_of):
                at_ms += (end - had_ms) * (streams if engine.shares else 1)
                had_ms = end
                if group.starts == group.jobs:
                    streams -= 1
                if stream is not None:
                    self._note_end(stream, at_ms)

    # --- jobs that come on

    def _invite(self) -> None:
        """Let jobs come on as they came."""
        lanes = {(lane.pool, lane.band, lane.key): lane for lane in self._lanes}
        for expected in self._expected:
            lane = lanes.get((expected.pool, expected.band, expected.lane))
            if lane is None or not lane.served:
                continue
            band = self._parts.pools[expected.pool].bands[expected.band]
            flow = band.flows.get(expected.user) if expected.user is not None else None
            if flow is None:
                flow = Flow("", expected.band, 1.0, NEVER_MS + self._order)
                flow.service = band.virtual
            mine = self._flow(flow)
            mine.cost = expected.cost
            self._order += 1
            first_ms = expected.every_ms * even_draw(self._order, self._number)
            self._expect(first_ms, _Guest(expected, lane, mine))

    def _arrive(self, guest: _Guest, at_ms: float) -> None:
        """A job comes on: its flow begins where the others are."""
        self._expect(at_ms + guest.expected.every_ms, guest)
        lane, flow = guest.lane, guest.flow
        if self._groups[lane.group].starts >= self._most_starts:
            return
        if not flow.coming:
            first = self._head(lane)
            if first is not None:
                # A stranger has had nothing yet: where the others are is where it begins.
                flow.key = first[0] if guest.expected.user is None else max(flow.key, first[0])
            heapq.heappush(lane.heap, (flow.key, flow.flow.number, flow.flow))
        flow.coming += 1
        for engine in self._engines:
            if engine.free > 0 and lane in engine.lanes:
                self._fill(engine, at_ms)

    # --- models

    def _seek(self, lane: _Lane, at_ms: float) -> None:
        """Have a model come for a lane that no engine serves, where that is soonest."""
        group = self._groups[lane.group]
        if lane.served or group.starts >= self._most_starts or self._head(lane) is None:
            return
        best: tuple[float, _Site, _Swap] | None = None
        for site, model in lane.homes:
            swap = self._swaps.get(site.number)
            if swap is not None:
                if swap.model == model:
                    return
                continue
            load_ms = self._parts.placing.memory.load_ms(site.worker, model)
            victims = self._victims(site, model)
            if victims is None:
                continue
            swap = _Swap(model, victims, load_ms, at_ms)
            if victims:
                self._have_patience(swap, site, lane, at_ms)
            drained_ms = at_ms + max((each.left_ms() for each in victims), default=0.0)
            start_ms = load_ms + max(swap.due_ms, drained_ms)
            if best is None or start_ms < best[0]:
                best = start_ms, site, swap
        if best is not None:
            _, site, swap = best
            self._swaps[site.number] = swap
            self._expect(swap.due_ms, site)

    def _resume_swap(self, site: _Site) -> None:
        """Let go on what is under way at a worker: a load, or a drain."""
        worker = site.worker
        placing = self._parts.placing
        if worker.loading_since_ms:
            load_ms = placing.memory.load_ms(worker, worker.loading)
            swap = self._swaps[site.number] = _Swap(worker.loading, [], load_ms, 0.0)
            swap.begun = swap.loading = True
            self._expect(max(0.0, worker.loading_since_ms + load_ms - self._parts.now_ms), site)
            return
        known = placing.swap_at(worker.name)
        if known is not None:
            victims = [each for each in self._engines if each.site is site and each.id in known.victims]
            load_ms = placing.memory.load_ms(worker, known.model)
            swap = self._swaps[site.number] = _Swap(known.model, victims, load_ms, 0.0)
            self._begin(site, swap, 0.0)

    def _victims(self, site: _Site, model: str) -> "list[_Engine] | None":
        """Return the engines that must go for a model; None: it cannot be loaded there."""
        here = [each for each in self._engines if each.site is site]
        known = self._parts.placing.memory.victims(site.worker, model, {})
        if not known:
            return None if known is None else []
        ids = {each.id for each in known}
        return [each for each in here if each.id in ids] or here[:1]

    def _have_patience(self, swap: _Swap, site: _Site, lane: _Lane, at_ms: float) -> None:
        """Say for how long, and for how much, the loaded model is still preferred to a flow whose turn has come."""
        parts = self._parts
        swap.band = lane.band
        swap.most_cost = parts.settings.bands[lane.band].patience * swap.load_ms
        swap.due_ms = at_ms + swap.most_cost
        bypass = None if at_ms else parts.placing.bypass_at(site.worker.name, lane.band)
        if bypass is not None:
            swap.due_ms = max(0.0, bypass.since_ms + swap.most_cost - parts.now_ms)
            swap.cost = bypass.cost
        if lane.band:
            swap.due_ms = max(swap.due_ms, max(each.loaded_ms for each in swap.victims) + swap.load_ms)

    def _change(self, site: _Site, at_ms: float) -> None:
        """A site's swap goes on: it is due, or its model is there."""
        swap = self._swaps.get(site.number)
        if swap is None:
            return
        if swap.loading:
            self._arrive_model(site, swap, at_ms)
        elif not swap.begun:
            self._begin(site, swap, at_ms)

    def _begin(self, site: _Site, swap: _Swap, at_ms: float) -> None:
        swap.begun = True
        if not any(each.ends for each in swap.victims):
            self._load(site, swap, at_ms)

    def _load(self, site: _Site, swap: _Swap, at_ms: float) -> None:
        swap.loading = True
        self._expect(at_ms + swap.load_ms, site)

    def _arrive_model(self, site: _Site, swap: _Swap, at_ms: float) -> None:
        """A model is there, and those that went for it are gone."""
        del self._swaps[site.number]
        for victim in swap.victims:
            victim.gone = True
            for lane in victim.lanes:
                lane.served -= 1
        self._engines = [each for each in self._engines if not each.gone]
        slots = swap.victims[0].slots if swap.victims else LOADED_SLOTS
        engine = _Engine(site, "", swap.model, slots, at_ms)
        for lane in self._lanes:
            if lane.takes_any or any(home is site and model == swap.model for home, model in lane.homes):
                engine.lanes.append(lane)
                engine.group = lane.group
                lane.served += 1
        if engine.lanes:
            self._engines.append(engine)
            self._fill(engine, at_ms)
        for lane in self._lanes:
            self._seek(lane, at_ms)
