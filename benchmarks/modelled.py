"""Modelled model servers on a clock of their own: how much good text comes out under which limit. Nothing here waits.

A server takes requests in order into its slots, reads prompts in chunks between two decode steps (so that reading
slows writing), and writes a token of each stream in each step. The queue before it never runs dry, as in a broker with
a backlog: whenever there is room under the limit, the next request arrives a moment later.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from lmq_worker.concurrency import KneeFit, Request

DURATION_S = 600.0
# Good text is that of jobs which are no slower than this.
FIRST_TOKEN_S = 3.0
GAP_S = 0.1

# What an engine reads of prompts between two steps.
CHUNK_TOKENS = 512
# From the end of a job to the arrival of the next one in its place: to the broker and back.
ROUND_TRIP_S = 0.005


@dataclass(frozen=True, slots=True)
class Jobs:
    """Lengths of prompts and answers in tokens: lognormal, by mean and by the spread of the logarithm."""

    prompt_mean: float = 400.0
    output_mean: float = 200.0
    spread: float = 0.6
    output_most: int = 1200

    def draw(self, chance: random.Random) -> tuple[int, int]:
        """Return the lengths of one prompt and its answer."""
        shift = -self.spread * self.spread / 2
        prompt = self.prompt_mean * chance.lognormvariate(shift, self.spread)
        output = self.output_mean * chance.lognormvariate(shift, self.spread)
        return max(int(prompt), 1), min(max(int(output), 8), self.output_most)


@dataclass(frozen=True, slots=True)
class Server:
    """What one server bears, and how fast it is."""

    name: str
    slots: int
    base_ms: float
    per_stream_ms: float
    """A step with n streams takes base_ms + per_stream_ms * n."""
    free_streams: int = 0
    """So many streams add nothing to a step: what bounds the engine is reading its weights."""
    prefill_tokens_per_s: float = 8000.0
    cache_tokens: int = 0
    """What all jobs may hold together; 0: room for all."""
    cache_told: bool = False
    """Whether the server says how much that is."""
    thrash: float = 4.0
    """By how much more of itself a step takes longer when twice as much is held as there is room for."""
    preempts: bool = False
    """Instead of that, the youngest job loses what it holds, and is read again when there is room for it."""
    jitter: float = 0.0
    """The spread of the logarithm of how long steps take."""
    stall_every_s: float = 0.0
    """Mean time between two stalls of `stall_s`, in which nothing moves; 0: none."""
    stall_s: float = 2.0
    jobs: Jobs = field(default_factory=Jobs)
    later: "Server | None" = None
    """What it becomes at half time."""

    def step_s(self, streams: int, chunk_tokens: int, held_tokens: int, chance: random.Random) -> float:
        """Return how long a step takes."""
        taken_s = chunk_tokens / self.prefill_tokens_per_s
        if streams:
            taken_s += (self.base_ms + self.per_stream_ms * max(streams - self.free_streams, 0)) / 1000
        if self.cache_tokens and held_tokens > self.cache_tokens and not self.preempts:
            taken_s *= 1.0 + self.thrash * (held_tokens / self.cache_tokens - 1.0)
        if self.jitter:
            taken_s *= chance.lognormvariate(-self.jitter * self.jitter / 2, self.jitter)
        if self.stall_every_s and chance.random() < taken_s / self.stall_every_s:
            taken_s += self.stall_s
        return taken_s

    def has_room(self, tokens: int, held_tokens: int) -> bool:
        """Tell whether a job may begin that takes so many tokens at once."""
        return not self.preempts or held_tokens + tokens <= self.cache_tokens or not held_tokens


@dataclass(frozen=True, slots=True)
class Static:
    """A limit that stays as it is."""

    limit: int


@dataclass(slots=True)
class Run:
    """What came of one run."""

    good: list[tuple[float, int]] = field(default_factory=list)
    """(when it ended, tokens of its answer) of each job that was fast enough."""
    waiting: list[tuple[float, int, float]] = field(default_factory=list)
    """(since when, how many requests waited for a slot, how long) of each step."""
    limits: list[tuple[float, int]] = field(default_factory=list)
    """(since when, limit)."""

    def goodput(self, begin_s: float = 0.0, end_s: float = DURATION_S) -> float:
        """Return the good text of jobs that ended within a span, in tokens a second."""
        return sum(tokens for at_s, tokens in self.good if begin_s <= at_s < end_s) / (end_s - begin_s)

    def waited(self, hundredths: int, begin_s: float) -> int:
        """Return the percentile, over the time from `begin_s` on, of how many requests waited for a slot."""
        spans = sorted((count, span_s) for at_s, count, span_s in self.waiting if at_s >= begin_s)
        left_s = sum(span_s for _, span_s in spans) * hundredths / 100
        for count, span_s in spans:
            left_s -= span_s
            if left_s <= 0.0:
                return count
        return 0


@dataclass(slots=True)
class _Job:
    prompt: int
    output: int
    sent_s: float
    request: Request
    unread: int
    unwritten: int
    first_s: float = -1.0

    @property
    def held(self) -> int:
        """What it holds in the cache once it is read."""
        return self.prompt + self.output - self.unwritten


# What stands for a job where nobody looks.
_UNSEEN = Request(0.0)


class _Engine:
    """A server at work: its queue, its slots, its steps."""

    def __init__(self, server: Server, fit: KneeFit | None, seed: int) -> None:
        self.server, self._fit = server, fit
        self._lengths, self._chance = random.Random(seed), random.Random(-seed)
        self._queue: deque[_Job] = deque()
        self._reading: deque[_Job] = deque()
        # By the step that writes its last token, then by age.
        self._writing: list[tuple[int, int, _Job]] = []
        self._begun = 0
        self._steps = 0
        self._held = 0
        self.found = Run()

    @property
    def under_way(self) -> int:
        return len(self._queue) + len(self._reading) + len(self._writing)

    def take(self, now_s: float) -> None:
        """Take a request in."""
        prompt, output = self.server.jobs.draw(self._lengths)
        request = self._fit.begin(now_s) if self._fit else _UNSEEN
        self._queue.append(_Job(prompt, output, now_s, request, prompt, output))

    def step(self, now_s: float) -> float:
        """Read a chunk, write a token of each stream; return the time after it."""
        self._fill_slots()
        chunk, read = self._read()
        step_s = self.server.step_s(len(self._writing), chunk, self._held, self._chance)
        self.found.waiting.append((now_s, len(self._queue), step_s))
        now_s += step_s
        self._steps += 1
        self._held += len(self._writing) + chunk
        if self._fit:
            for _, _, job in self._writing:
                self._fit.piece(job.request, now_s)
        while self._writing and self._writing[0][0] <= self._steps:
            self._end(heappop(self._writing)[2], now_s)
        for job in read:
            # Reading a prompt gives a token.
            self._held += 1
            job.unwritten -= 1
            if job.first_s < 0.0:
                job.first_s = now_s
            self._begun += 1
            heappush(self._writing, (self._steps + job.unwritten, self._begun, job))
            if self._fit:
                self._fit.piece(job.request, now_s)
        if self.server.preempts:
            self._make_room()
        return now_s

    def _fill_slots(self) -> None:
        to_come = sum(job.unread for job in self._reading)
        while self._queue and len(self._reading) + len(self._writing) < self.server.slots:
            if not self.server.has_room(self._queue[0].unread, self._held + to_come):
                return
            to_come += self._queue[0].unread
            self._reading.append(self._queue.popleft())

    def _read(self) -> tuple[int, list[_Job]]:
        """Return how many tokens are read in this step, and the jobs whose prompts are read by its end."""
        chunk = 0
        read = []
        while self._reading and chunk < CHUNK_TOKENS:
            part = min(self._reading[0].unread, CHUNK_TOKENS - chunk)
            chunk += part
            self._reading[0].unread -= part
            if not self._reading[0].unread:
                read.append(self._reading.popleft())
        return chunk, read

    def _make_room(self) -> None:
        while self._held > self.server.cache_tokens and len(self._writing) > 1:
            youngest = max(self._writing, key=lambda entry: entry[1])
            self._writing.remove(youngest)
            heapify(self._writing)
            job = youngest[2]
            job.unwritten = max(youngest[0] - self._steps, 1)
            self._held -= job.held
            job.unread = job.held
            self._queue.appendleft(job)

    def _end(self, job: _Job, now_s: float) -> None:
        job.unwritten = 0
        self._held -= job.held
        if self._fit:
            self._fit.end(job.request, now_s, tokens=job.held)
        gap_s = (now_s - job.first_s) / (job.output - 1)
        if job.first_s - job.sent_s <= FIRST_TOKEN_S and gap_s <= GAP_S:
            self.found.good.append((now_s, job.output))


def run(server: Server, control: Static | KneeFit, seed: int, duration_s: float = DURATION_S) -> Run:
    """Run a server under a limit."""
    engine = _Engine(server, control if isinstance(control, KneeFit) else None, seed)
    limits = engine.found.limits
    now_s = 0.0
    arrivals: deque[float] = deque()
    while now_s < duration_s:
        if server.later is not None and now_s >= duration_s / 2:
            server = engine.server = server.later
        if not limits or control.limit != limits[-1][1]:
            limits.append((now_s, control.limit))
        arrivals.extend([now_s + ROUND_TRIP_S] * (control.limit - len(arrivals) - engine.under_way))
        if not engine.under_way:
            now_s = max(now_s, arrivals[0])
        while arrivals and arrivals[0] <= now_s:
            arrivals.popleft()
            engine.take(now_s)
        now_s = engine.step(now_s)
    return engine.found
