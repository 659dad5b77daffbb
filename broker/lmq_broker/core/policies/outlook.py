"""What comes next: the policy's next starts, played through on a copy of what it knows.

Engines serve their streams in equal shares of their time. A slot that falls free goes to whom the policy would give it
to: bands in their turn, within a band the flow with the smallest key, within a flow by place. Answers are as long as a
draw from earlier ones says, so that some end soon and some late, as they do; jobs come on as they came lately. A model
that must be loaded first comes once its turn has come, as `placing` has it; that one model comes to a second engine
because much waits for it is left out.

It is played in steps, between which the broker goes on: jobs are looked at when their turn comes, so that what has
changed meanwhile is seen. Nothing here changes what the policy knows.
"""

import heapq
from collections.abc import Iterator

from lmq_broker.core.policies.arrivals import Expected
from lmq_broker.core.policies.copies import (
    LAST,
    Ahead,
    EngineCopy,
    FlowCopy,
    Guest,
    HeadCopy,
    LaneCopy,
    LineCopy,
    SiteCopy,
    Stream,
    SwapCopy,
)
from lmq_broker.core.policies.foreseen import Foreseen, Group, Outlook, Parts
from lmq_broker.core.policies.lanes import Lane
from lmq_broker.core.policies.ledger import Flow
from lmq_broker.core.policies.lengths import Shape, even_draw
from lmq_broker.core.policies.lines import NEVER_MS, place_of
from lmq_broker.core.policies.places import LaneKey, is_reachable
from lmq_broker.core.settings import ENGINE_TASKS
from lmq_broker.core.state import Job, Lease

STARTS = 200
"""Of jobs that want the same places, in the first run: those beyond are reckoned, not played."""
FEWER_STARTS = 50
"""In the other runs: what is far away is an average by itself."""
RUNS = 4
"""With other draws each; what is said is their mean. On a public replay of chats four erred by a tenth less than one,
and sixteen no less than four."""
WORK = 10_000
"""Of one run: what has no end, or lanes without number, ends here. One is a look at the head of a lane, 1 to 3 us."""
_EVENT_WORK = 4
"""Of what happens, beside looks."""
LEAST_PROGRESS = 1e-6
"""Of a task's own word that is believed: less says no more of its end than nothing."""
LOADED_SLOTS = 4
"""Of a model that is loaded for jobs: what an endpoint gives one by default."""


def look_out(parts: Parts, found: Outlook) -> Iterator[int]:
    """Play the next starts and note what comes of it; yield, bit by bit, how much work it was."""
    expected = parts.arrivals.expected(parts.now_ms)
    yield parts.arrivals.size
    seen: dict[tuple[Flow, LaneKey], Ahead] = {}
    for number in range(RUNS):
        yield from _Run(parts, expected, found, number, seen).play()


class _Run:
    """One run with its draws."""

    def __init__(
        self,
        parts: Parts,
        expected: list[Expected],
        found: Outlook,
        number: int,
        seen: dict[tuple[Flow, LaneKey], Ahead],
    ) -> None:
        self._parts = parts
        self._shares = parts.settings.shares
        self._expected = expected
        self._found = found
        self._number = number
        self._seen = seen
        self._most_starts = FEWER_STARTS if number else STARTS
        self._sites: list[SiteCopy] = []
        self._at: list[list[EngineCopy]] = []
        """Engines by site."""
        self._swaps: dict[int, SwapCopy] = {}
        """Site -> what is to change there."""
        self._lanes: list[LaneCopy] = []
        self._serving: list[list[EngineCopy]] = []
        """Engines by lane."""
        self._flows: dict[Flow, FlowCopy] = {}
        self._owed: dict[tuple[str, int], float] = {}
        """(pool, band) -> of its least share, where that is another by now."""
        self._groups: list[Group] = []
        self._unfinished = 0
        """Groups of which more starts are to be played."""
        self._turn_costs: dict[tuple[str, int], float] = {}
        self._events: list[tuple[float, int, EngineCopy | SiteCopy | Guest]] = []
        """Heap of (time, order, where something happens)."""
        self._order = 0
        self._started: set[int] = set()
        self._work = 0

    def play(self) -> Iterator[int]:
        """Play until enough has started, or nothing is left to start."""
        done = 0
        for _ in self._steps():
            self._work += _EVENT_WORK
            yield self._work - done
            done = self._work

    def _steps(self) -> Iterator[None]:
        yield from self._look_at_workers()
        yield from self._look_at_lanes()
        yield from self._join()
        for site in self._sites:
            self._resume_swap(site)
        for lane in self._lanes:
            self._seek(lane, 0.0)
            yield
        for engines in list(self._at):
            for engine in engines:
                self._fill(engine, 0.0)
            yield
        self._invite()
        while self._events and not self._is_over():
            at_ms, order, thing = heapq.heappop(self._events)
            if isinstance(thing, EngineCopy):
                if order != thing.awaited:
                    continue
                self._end_next(thing, at_ms)
            elif isinstance(thing, SiteCopy):
                self._change(thing, at_ms)
            else:
                self._arrive(thing, at_ms)
            yield
        self._close()

    def _is_over(self) -> bool:
        """Tell whether no more starts are to be played."""
        return self._work >= WORK or not self._unfinished

    def _await(self, engine: EngineCopy) -> None:
        """Wait for the next end on an engine, instead of what was waited for there."""
        engine.awaited = self._order + 1
        self._expect(engine.next_ms(), engine)

    def _expect(self, at_ms: float, thing: EngineCopy | SiteCopy | Guest) -> None:
        self._order += 1
        heapq.heappush(self._events, (at_ms, self._order, thing))

    # --- what there is -----------------------------------------------------------------------------------------------

    def _look_at_workers(self) -> Iterator[None]:
        fleet = self._parts.fleet
        for worker in list(fleet.workers.values()):
            if not is_reachable(worker, fleet) or worker.name in self._parts.taken:
                continue
            site = SiteCopy(len(self._sites), worker)
            engines = {}
            for each in worker.instances.values():
                model = each.model if each.names else ""
                engine = engines[each.id] = EngineCopy(site, each.id, model, each.slots, 0.0, each.leased)
                engine.loaded_ms = -float(self._parts.placing.memory.resident_ms(each, self._parts.now_ms))
            self._sites.append(site)
            self._at.append(list(engines.values()))
            slots: set[int] = set()
            for lease in list(worker.leases.values()):
                if lease.instance_id in engines:
                    self._resume(engines[lease.instance_id], lease, id(lease.slot) not in slots)
                    slots.add(id(lease.slot))
                    self._work += _EVENT_WORK
            for engine in engines.values():
                if engine.ends:
                    self._await(engine)
            yield

    def _resume(self, engine: EngineCopy, lease: Lease, frees: bool) -> None:
        """Let a job go on that runs."""
        job = lease.job
        engine.shares = job.task_type in ENGINE_TASKS
        if lease.progress >= LEAST_PROGRESS and not engine.shares:
            # Its own word, which is of the whole job.
            gone_ms = self._parts.now_ms - lease.granted_ms
            drawn_ms = mean_ms = gone_ms * (1 - lease.progress) / lease.progress
        else:
            prompt_ms, output_ms, tokens, shape = self._needs(engine, job)
            had = lease.tokens / tokens
            most = max(0.0, job.output_tokens - lease.tokens) if job.output_tokens else float("inf")
            drawn = min(shape.draw_left(had, even_draw(job.number, self._number)) * tokens, most)
            mean = min(shape.mean_left(had) * tokens, most)
            at_prompt_ms = 0.0 if lease.tokens else prompt_ms
            drawn_ms, mean_ms = at_prompt_ms + drawn * output_ms, at_prompt_ms + mean * output_ms
        self._note_start(job, None, 0, 0.0)
        self._order += 1
        heapq.heappush(engine.ends, (drawn_ms, self._order, Stream(job, 0.0, drawn_ms, mean_ms, -1, frees)))

    def _look_at_lanes(self) -> Iterator[None]:
        held, limits = self._parts.fleet.held_queues, self._parts.limits
        for name, pool in list(self._parts.pools.items()):
            for index, lanes in enumerate(pool.lanes):
                for lane in list(lanes.values()):
                    # What tasks use is not played.
                    if lane.key.queue not in held and not lane.key.uses:
                        mine = LaneCopy(len(self._lanes), name, index, lane)
                        if limits.blocks(None, lane.key.queue, lane.key.task_type, self._parts.now_ms):
                            mine.hold()
                        self._look_at_lane(mine, lane)
                        self._work += len(self._sites)
                        yield

    def _look_at_lane(self, mine: LaneCopy, lane: Lane) -> None:
        here = {(each.worker.name, each.id) for each in lane.places.loaded(self._parts.fleet)}
        homes: dict[str, str] = {}
        for home, loads in lane.places.homes(self._parts.fleet):
            homes.setdefault(home.name, loads)
        self._lanes.append(mine)
        self._serving.append([])
        for site in self._sites:
            worker = site.worker
            for engine in self._at[site.number]:
                if (worker.name, engine.id) in here:
                    self._serve(engine, mine)
            model = homes.get(worker.name)
            if model is not None:
                mine.homes.append((site, model))

    def _serve(self, engine: EngineCopy, lane: LaneCopy) -> None:
        engine.lanes.append(lane)
        self._serving[lane.number].append(engine)

    def _join(self) -> Iterator[None]:
        """Find which lanes want the same places."""
        parents: dict[object, object] = {}

        def root(thing: object) -> object:
            above = parents.get(thing)
            while above is not None:
                # What is looked up again and again comes nearer to its root each time.
                beyond = parents.get(above)
                if beyond is None:
                    return above
                parents[thing] = beyond
                thing, above = beyond, parents.get(beyond)
            return thing

        def join(one: object, other: object) -> None:
            first, second = root(one), root(other)
            if first is not second:
                parents[second] = first

        for lane, serving in zip(self._lanes, self._serving, strict=True):
            for engine in serving:
                join(engine, lane)
            for site, _ in () if serving else lane.homes:
                join(site, lane)
                for engine in self._at[site.number]:
                    join(site, engine)
                self._work += len(self._at[site.number])
            self._work += len(serving) + len(lane.homes)
            yield
        numbers: dict[object, int] = {}
        for lane, serving in zip(self._lanes, self._serving, strict=True):
            lane.group = numbers.setdefault(root(lane), len(numbers))
            if lane.group == len(self._groups):
                self._groups.append(Group())
            if serving or lane.homes:
                self._groups[lane.group].jobs += lane.jobs
        for engines in self._at:
            for engine in engines:
                engine.group = numbers.get(root(engine), -1)
                if engine.group >= 0:
                    self._groups[engine.group].slots += engine.slots
        self._unfinished = sum(group.jobs > 0 for group in self._groups)
        if not self._number:
            self._found.groups = self._groups
            self._found.group_of = {(lane.pool, lane.band, lane.key): lane.group for lane in self._lanes}

    def _needs(self, engine: EngineCopy, job: Job) -> tuple[float, float, float, Shape]:
        """Return what of an engine's time a prompt takes, and each token; how many there will be, and their shape."""
        costs = self._parts.costs
        model = _model(engine, job)
        key = job.task_type, model
        rates = engine.rates.get(key)
        if rates is None:
            rates = engine.rates[key] = costs.rates_at(job.task_type, model, engine.site.worker.name)
        return costs.needs(job, model, rates)

    # --- starts ------------------------------------------------------------------------------------------------------

    def _fill(self, engine: EngineCopy, at_ms: float) -> None:
        """Give an engine's free slots away."""
        site = engine.site
        while engine.group >= 0 and engine.free > 0 and site.free > 0 and not site.alone:
            if self._groups[engine.group].starts >= self._most_starts:
                return
            chosen = self._choose(engine, at_ms)
            if chosen is None:
                swap = self._swaps.get(site.number)
                if swap is not None and not swap.begun and not engine.ends and engine in swap.victims:
                    self._begin(site, swap, at_ms)
                return
            lane, head = chosen
            if head.job is None:
                head.flow.coming -= 1
                cost = head.flow.cost
                self._occupy(engine, lane, head.flow, cost, cost * self._slowness(engine, lane), None, at_ms)
                continue
            head.line.take()
            if head.job.number not in self._started:
                self._start(engine, lane, head.flow, head.job, at_ms)

    def _choose(self, engine: EngineCopy, at_ms: float) -> tuple[LaneCopy, HeadCopy] | None:
        """Return whose turn it is on an engine."""
        swap = self._swaps.get(engine.site.number)
        best: tuple[int, float, tuple[int, int, int]] | None = None
        found = None
        self._work += len(engine.lanes)
        for lane in engine.lanes:
            rank = self._rank(lane)
            if best is not None and rank > best[0]:
                continue
            head = self._head(lane)
            if head is None or (swap is not None and not self._may_pass(engine, swap, lane, head, at_ms)):
                continue
            standing = rank, head.key, head.place
            if best is None or standing < best:
                best = standing
                found = lane, head
        return found

    def _rank(self, lane: LaneCopy) -> int:
        """Return when a lane's band has its turn: those to whom their share is owed come first."""
        key = lane.pool, lane.band
        owed = self._owed.get(key)
        if owed is None:
            owed = self._parts.pools[lane.pool].bands[lane.band].owed
        is_its_turn = owed and owed >= self._turn_cost(key)
        return lane.band - len(self._parts.settings.bands) if is_its_turn else lane.band

    def _turn_cost(self, key: tuple[str, int]) -> float:
        found = self._turn_costs.get(key)
        if found is None:
            found = self._turn_costs[key] = self._parts.pools[key[0]].bands[key[1]].turn_cost
        return found

    def _head(self, lane: LaneCopy) -> HeadCopy | None:
        """Return what stands first in a lane."""
        heap = lane.heap
        while heap:
            noted, number, flow = heap[0]
            mine = self._flow(flow)
            if self._shares and noted != mine.key:
                heapq.heapreplace(heap, (mine.key, number, flow))
                continue
            line = lane.lines.get(flow)
            if line is None:
                line = lane.lines[flow] = LineCopy(self._ahead(flow, lane))
            job = line.head()
            if job is None and not mine.coming:
                heapq.heappop(heap)
                continue
            place = LAST if job is None else place_of(job)
            if not self._shares and noted != place:
                heapq.heapreplace(heap, (place, number, flow))
                continue
            return HeadCopy(mine.key if self._shares else 0.0, place, mine, line, job)
        return None

    def _ahead(self, flow: Flow, lane: LaneCopy) -> Ahead:
        found = self._seen.get((flow, lane.key))
        if found is None:
            line = flow.lines.get(lane.key) if flow in lane.startable else None
            found = self._seen[flow, lane.key] = Ahead(line)
        return found

    def _flow(self, flow: Flow) -> FlowCopy:
        found = self._flows.get(flow)
        if found is None:
            found = self._flows[flow] = FlowCopy(flow)
        return found

    def _start(self, engine: EngineCopy, lane: LaneCopy, flow: FlowCopy, job: Job, at_ms: float) -> None:
        """Start a job and note when."""
        self._started.add(job.number)
        prompt_ms, output_ms, tokens, shape = self._needs(engine, job)
        most = float(job.output_tokens) if job.output_tokens else float("inf")
        drawn = min(shape.draw_left(0.0, even_draw(job.number, self._number)) * tokens, most)
        mean = min(shape.mean * tokens, most)
        stream = Stream(job, at_ms, prompt_ms + drawn * output_ms, prompt_ms + mean * output_ms, engine.group)
        cost = self._parts.costs.predict(job, _model(engine, job))
        self._occupy(engine, lane, flow, cost, stream.drawn_ms, stream, at_ms)
        group = self._groups[engine.group]
        if not group.starts:
            group.first_ms = at_ms
        self._note_start(job, lane, group.starts, at_ms)
        group.starts += 1
        group.last_ms = at_ms
        if group.starts == min(self._most_starts, group.jobs):
            self._unfinished -= 1

    def _occupy(
        self,
        engine: EngineCopy,
        lane: LaneCopy,
        flow: FlowCopy,
        cost: float,
        takes_ms: float,
        stream: Stream | None,
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
            elif band.share and band.waits:
                owed[key] = min(owed.get(key, band.owed) + band.share * cost, 4 * self._turn_cost(key))
        engine.advance(at_ms)
        engine.shares = lane.key.task_type in ENGINE_TASKS
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

    def _slowness(self, engine: EngineCopy, lane: LaneCopy) -> float:
        """Return how much longer this engine takes than costs say."""
        costs = self._parts.costs
        task_type = lane.key.task_type
        here = costs.rates_at(task_type, engine.model, engine.site.worker.name).output_ms
        told = costs.rates(task_type, engine.model).output_ms
        return here / told if here and told else 1.0

    def _end_next(self, engine: EngineCopy, at_ms: float) -> None:
        """End the stream of an engine that is due."""
        engine.advance(at_ms)
        stream = heapq.heappop(engine.ends)[2]
        if stream is not None:
            self._note_end(stream, at_ms)
        site = engine.site
        if stream is None or stream.frees:
            engine.free += 1
            site.free += 1
        site.alone = False
        swap = self._swaps.get(site.number)
        if swap is not None and swap.begun and not swap.loading and swap.is_drained:
            self._load(site, swap, at_ms)
        if engine.ends:
            self._await(engine)
        for each in list(self._at[site.number]):
            self._fill(each, at_ms)

    def _note_start(self, job: Job, lane: LaneCopy | None, place: int, start_ms: float) -> None:
        """Note when a job starts; no lane: it runs already."""
        known = self._found.jobs.get(job.number)
        if known is not None:
            known.note_start(place, start_ms)
            return
        # Lanes that came since the first run are in none of its groups.
        group = -1 if lane is None else self._found.group_of.get((lane.pool, lane.band, lane.key))
        if group is not None:
            self._found.jobs[job.number] = Foreseen(job, group, place, start_ms)

    def _note_end(self, stream: Stream, at_ms: float) -> None:
        """Note when a job of middling length would have ended where the drawn one ends at this time."""
        took_ms = (at_ms - stream.start_ms) * stream.mean_ms / max(stream.drawn_ms, 1.0)
        known = self._found.jobs.get(stream.job.number)
        if known is not None:
            known.note_end(stream.start_ms + took_ms)
        if stream.group >= 0:
            self._groups[stream.group].runs_ms += took_ms

    def _close(self) -> None:
        """Note when those end that still run: slots stay taken while jobs wait, and it grows quicker when none do."""
        for engine in (each for engines in self._at for each in engines):
            group = self._groups[engine.group] if engine.group >= 0 else None
            is_sought = group is not None and group.starts < group.jobs
            streams = len(engine.ends)
            at_ms, had_ms = engine.at_ms, engine.clock
            for end, _, stream in engine.in_order():
                at_ms += (end - had_ms) * (streams if engine.shares else 1)
                had_ms = end
                if not is_sought:
                    streams -= 1
                if stream is not None:
                    self._note_end(stream, at_ms)

    # --- jobs that come on -------------------------------------------------------------------------------------------

    def _invite(self) -> None:
        """Let jobs come on as they came; where no job of a lane waits, they find their slots themselves."""
        lanes = {(lane.pool, lane.band, lane.key): lane for lane in self._lanes}
        for expected in self._expected:
            lane = lanes.get((expected.pool, expected.band, expected.lane))
            if lane is None or not self._serving[lane.number]:
                continue
            band = self._parts.pools[expected.pool].bands[expected.band]
            flow = band.flows.get(expected.user) if expected.user is not None else None
            self._order += 1
            if flow is None:
                flow = Flow("", expected.band, 1.0, NEVER_MS + self._order)
                flow.service = band.virtual
            mine = self._flow(flow)
            mine.cost = expected.cost
            first_ms = expected.every_ms * even_draw(self._order, self._number)
            self._expect(first_ms, Guest(expected, lane, mine))

    def _arrive(self, guest: Guest, at_ms: float) -> None:
        """A job comes on: its flow begins where the others are."""
        self._expect(at_ms + guest.expected.every_ms, guest)
        lane, flow = guest.lane, guest.flow
        if self._groups[lane.group].starts >= self._most_starts:
            return
        if not flow.coming:
            first = self._head(lane)
            if first is not None:
                # A stranger has had nothing yet: where the others are is where it begins.
                flow.key = first.key if guest.expected.user is None else max(flow.key, first.key)
            rank = flow.key if self._shares else LAST
            heapq.heappush(lane.heap, (rank, flow.flow.number, flow.flow))
        flow.coming += 1
        for engine in self._serving[lane.number]:
            if engine.free > 0:
                self._fill(engine, at_ms)

    # --- models ------------------------------------------------------------------------------------------------------

    def _seek(self, lane: LaneCopy, at_ms: float) -> None:
        """Have a model come for a lane that no engine serves, where that is soonest."""
        if self._serving[lane.number] or self._groups[lane.group].starts >= self._most_starts:
            return
        head = self._head(lane)
        if head is None:
            return
        memory = self._parts.placing.memory
        best: tuple[float, SiteCopy, SwapCopy] | None = None
        self._work += len(lane.homes)
        for site, model in lane.homes:
            under_way = self._swaps.get(site.number)
            if under_way is not None:
                if under_way.model == model:
                    return
                continue
            victims = self._victims(site, model)
            if victims is None:
                continue
            swap = SwapCopy(model, victims, memory.load_ms(site.worker, model), at_ms)
            swap.band, swap.key = lane.band, head.key
            if victims:
                self._have_patience(swap, lane.names, at_ms)
            again_ms = site.worker.refused_loads.get(model, 0) - self._parts.now_ms
            swap.due_ms = max(swap.due_ms, float(again_ms))
            drained_ms = max((each.last_ms() for each in victims), default=at_ms)
            start_ms = max(swap.due_ms, drained_ms) + swap.load_ms
            if best is None or start_ms < best[0]:
                best = start_ms, site, swap
        if best is not None:
            _, site, swap = best
            self._swaps[site.number] = swap
            self._expect(swap.due_ms, site)

    def _victims(self, site: SiteCopy, model: str) -> list[EngineCopy] | None:
        """Return the engines that must go for a model; None: it cannot be loaded there."""
        known = self._parts.placing.victims(site.worker, model)
        if not known:
            return None if known is None else []
        ids = {each.id for each in known}
        here = self._at[site.number]
        return [each for each in here if each.id in ids] or here[:1]

    def _have_patience(self, swap: SwapCopy, names: frozenset[str], at_ms: float) -> None:
        """Say for how long, and for how much, the loaded model is still preferred to the flow whose turn has come."""
        parts = self._parts
        swap.most_cost = parts.settings.bands[swap.band].patience * swap.load_ms
        swap.due_ms = at_ms + swap.most_cost
        bypass = None if at_ms else parts.placing.bypass_of(swap.band, names)
        if bypass is not None:
            swap.due_ms = max(0.0, bypass.since_ms + swap.most_cost - parts.now_ms)
            swap.cost = bypass.cost
        if swap.band:
            swap.due_ms = max(swap.due_ms, max(each.loaded_ms for each in swap.victims) + swap.load_ms)

    def _may_pass(
        self, engine: EngineCopy, swap: SwapCopy, lane: LaneCopy, head: HeadCopy, at_ms: float
    ) -> bool:
        """Tell whether a job may still start at a site where another model's turn has come."""
        if lane.band < swap.band:
            return True
        if lane.band > swap.band and not swap.begun:
            return self._is_soon_over(engine, head, at_ms)
        if swap.begun and engine not in swap.victims:
            return True
        is_within = head.key <= swap.key + self._lead(engine, lane)
        if not swap.begun:
            return is_within
        return lane.band == swap.band and is_within and self._is_soon_over(engine, head, at_ms)

    def _is_soon_over(self, engine: EngineCopy, head: HeadCopy, at_ms: float) -> bool:
        """Tell whether a job that starts now is thought to end before the last of those that run there."""
        if head.job is None:
            cost = head.flow.cost
        else:
            cost = self._parts.costs.predict(head.job, _model(engine, head.job))
        return at_ms + cost * (len(engine.ends) + 1) <= engine.last_ms()

    def _lead(self, engine: EngineCopy, lane: LaneCopy) -> float:
        """Return how far beyond the flow whose turn it is another may get."""
        found = engine.leads.get(lane.band)
        if found is None:
            band = self._parts.pools[lane.pool].bands[lane.band]
            found = self._parts.placing.lead(band, engine.site.worker, engine.model, engine.slots)
            engine.leads[lane.band] = found
        return found

    def _resume_swap(self, site: SiteCopy) -> None:
        """Let go on what is under way at a worker: a load, or a drain."""
        worker = site.worker
        placing = self._parts.placing
        if worker.loading_since_ms:
            load_ms = placing.memory.load_ms(worker, worker.loading)
            swap = self._swaps[site.number] = SwapCopy(worker.loading, [], load_ms)
            swap.begun = swap.loading = True
            swap.ready_ms = max(0.0, worker.loading_since_ms + load_ms - self._parts.now_ms)
            self._expect(swap.ready_ms, site)
            return
        known = placing.swap_at(worker.name)
        if known is not None:
            victims = [each for each in self._at[site.number] if each.id in known.victims]
            swap = SwapCopy(known.model, victims, placing.memory.load_ms(worker, known.model))
            swap.band, swap.key = known.band, known.key
            self._swaps[site.number] = swap
            self._begin(site, swap, 0.0)

    def _change(self, site: SiteCopy, at_ms: float) -> None:
        """A site's swap goes on: it is due, or its model is there."""
        swap = self._swaps.get(site.number)
        if swap is None:
            return
        if not swap.begun:
            self._begin(site, swap, at_ms)
        elif swap.loading and at_ms >= swap.ready_ms:
            self._receive(site, swap, at_ms)

    def _begin(self, site: SiteCopy, swap: SwapCopy, at_ms: float) -> None:
        swap.begun = True
        if swap.is_drained:
            self._load(site, swap, at_ms)

    def _load(self, site: SiteCopy, swap: SwapCopy, at_ms: float) -> None:
        swap.loading = True
        swap.ready_ms = at_ms + swap.load_ms
        self._expect(swap.ready_ms, site)

    def _receive(self, site: SiteCopy, swap: SwapCopy, at_ms: float) -> None:
        """A model is there, and those that went for it are gone."""
        del self._swaps[site.number]
        for victim in swap.victims:
            self._at[site.number].remove(victim)
            for lane in victim.lanes:
                self._serving[lane.number].remove(victim)
        slots = swap.victims[0].slots if swap.victims else LOADED_SLOTS
        engine = EngineCopy(site, "", swap.model, slots, at_ms)
        for lane in self._lanes:
            if not lane.names or (site, swap.model) in lane.homes:
                self._serve(engine, lane)
                engine.group = lane.group
        self._at[site.number].append(engine)
        self._fill(engine, at_ms)
        self._work += len(self._lanes)
        for lane in self._lanes:
            self._seek(lane, at_ms)


def _model(engine: EngineCopy, job: Job) -> str:
    """Return by which model's name a job is reckoned on an engine."""
    return engine.model or (job.models[0] if job.models else "")
