"""Modelled model servers on a clock of their own: how much good text comes out under which limit. Nothing here waits.

A server takes requests in order into its slots, reads prompts in chunks between two decode steps (so that reading
slows writing), and writes a token of each stream in each step. The queue before it never runs dry, as in a broker with
a backlog: whenever there is room under the limit, the next request arrives a moment later.
"""

import random
from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush

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
    prefill_tokens_per_s: float = 8000.0
    cache_tokens: int = 0
    """What all jobs may hold together; 0: room for all."""
    cache_told: bool = False
    """Whether the server says how much that is."""
    thrash: float = 4.0
    """By how much more of itself a step takes longer when twice as much is held as there is room for."""
    jobs: Jobs = field(default_factory=Jobs)
    later: "Server | None" = None
    """What it becomes at half time."""

    def step_s(self, streams: int, chunk_tokens: int, held_tokens: int) -> float:
        """Return how long a step takes."""
        taken_s = chunk_tokens / self.prefill_tokens_per_s
        if streams:
            taken_s += (self.base_ms + self.per_stream_ms * streams) / 1000
        if self.cache_tokens and held_tokens > self.cache_tokens:
            taken_s *= 1.0 + self.thrash * (held_tokens / self.cache_tokens - 1.0)
        return taken_s


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
    first_s: float = 0.0


# What stands for a job where nobody looks.
_UNSEEN = Request(0.0)


def run(server: Server, control: Static | KneeFit, seed: int, duration_s: float = DURATION_S) -> Run:
    """Run a server under a limit."""
    fit = control if isinstance(control, KneeFit) else None
    chance = random.Random(seed)
    found = Run(limits=[(0.0, control.limit)])
    now_s, steps, held = 0.0, 0, 0
    arrivals: deque[float] = deque()
    queue: deque[_Job] = deque()
    reading: deque[_Job] = deque()
    # By the step that writes its last token, then by age.
    writing: list[tuple[int, float, int, _Job]] = []
    begun = 0
    later = server.later
    while now_s < duration_s:
        if later is not None and now_s >= duration_s / 2:
            server, later = later, None
        under_way = len(arrivals) + len(queue) + len(reading) + len(writing)
        arrivals.extend([now_s + ROUND_TRIP_S] * (control.limit - under_way))
        while arrivals and arrivals[0] <= now_s:
            arrivals.popleft()
            prompt, output = server.jobs.draw(chance)
            queue.append(_Job(prompt, output, now_s, fit.begin(now_s) if fit else _UNSEEN, prompt))
        while queue and len(reading) + len(writing) < server.slots:
            reading.append(queue.popleft())
        if not reading and not writing:
            now_s = arrivals[0]
            continue

        chunk = 0
        read: list[_Job] = []
        while reading and chunk < CHUNK_TOKENS:
            part = min(reading[0].unread, CHUNK_TOKENS - chunk)
            chunk += part
            reading[0].unread -= part
            if not reading[0].unread:
                read.append(reading.popleft())
        step_s = server.step_s(len(writing), chunk, held)
        found.waiting.append((now_s, len(queue), step_s))
        now_s += step_s
        steps += 1
        held += len(writing) + chunk

        if fit:
            for _, _, _, job in writing:
                fit.piece(job.request, now_s)
        while writing and writing[0][0] == steps:
            job = heappop(writing)[3]
            held -= job.prompt + job.output
            if fit:
                fit.end(job.request, now_s, tokens=job.prompt + job.output)
            gap_s = (now_s - job.first_s) / (job.output - 1)
            if job.first_s - job.sent_s <= FIRST_TOKEN_S and gap_s <= GAP_S:
                found.good.append((now_s, job.output))
        for job in read:
            # Reading the prompt gives the first token.
            begun += 1
            held += 1
            job.first_s = now_s
            heappush(writing, (steps + job.output - 1, job.sent_s, begun, job))
            if fit:
                fit.piece(job.request, now_s)
        if control.limit != found.limits[-1][1]:
            found.limits.append((now_s, control.limit))
    return found
