"""When jobs start and end: what the last look-out says, in ranges that are calibrated by what became of earlier ones.

A look-out is made at most once a second while somebody asks, more seldom while jobs wait and nobody does, and not at
all otherwise. It is made in slices, one at the end of a turn, and has no part in what is decided.
"""

from collections.abc import Iterator

import msgspec

from lmq_broker.core import leases
from lmq_broker.core.intervals import Interval
from lmq_broker.core.policies.base import Spent
from lmq_broker.core.policies.crowd import Crowd
from lmq_broker.core.policies.foreseen import Outlook
from lmq_broker.core.policies.outlook import look_out
from lmq_broker.core.policies.places import LaneKey
from lmq_broker.core.state import BrokerState, Job, Lease
from lmq_broker.core.stimuli import Now
from lmq_proto.states import FINAL, State

Seconds = tuple[float, float]
"""The shortest and the longest, of nine in ten."""

FRESH_MS = 1000
"""A look-out this young is not made anew."""
EVERY_MS = 2000
"""While jobs wait and nobody asks: so that ranges are known to hold when somebody does."""
WORK_PER_MS = 5
"""One made unasked costs no more than so much a millisecond of waiting for the next: half a percent of a core."""
STALE_MS = 10_000
"""An older one says nothing of now."""
SLICE = 400
"""Work on a look-out at the end of one turn: about a millisecond."""
SAMPLES = 500
"""Predictions that are followed up at one time."""


class Sample(msgspec.Struct):
    """What was first said of a job."""

    job: Job
    said_ms: int
    """Monotonic."""
    start_ms: float
    start_range_ms: tuple[float, float]
    end_ms: float
    end_range_ms: tuple[float, float]


class Running(msgspec.Struct):
    """What was said of a job that runs."""

    said_ms: int
    end_ms: float
    range_ms: tuple[float, float]


class Eta:
    """The last look-out, the one that is being made, and how well earlier ones held."""

    def __init__(self) -> None:
        self.outlook = Outlook(-STALE_MS)
        self._draft = self.outlook
        self._steps: Iterator[int] | None = None
        self._work = 0
        """Of the last one."""
        self._asked = False
        self._waiting: list[bytearray] = []
        """Of each group, by rank: 1 for each job that has not started since."""
        self._ranks: dict[int, tuple[int, int]] = {}
        """Job -> (group, rank)."""
        self._crowds: dict[tuple[str, int, LaneKey], Crowd] = {}
        """Of this turn, by lane: a page of jobs asks for each of them again."""
        # Until twenty of each are known. Waits of a public replay of chats fell between these in nine of ten cases, and
        # so did its answers; too wide a range costs less trust than one that does not hold.
        self.starts = Interval((0.2, 3.0))
        self.ends = Interval((0.2, 3.0))
        self.runs = Interval((0.2, 3.0))
        self._samples: dict[int, Sample] = {}
        self._running: dict[int, Running] = {}

    # --- asked -------------------------------------------------------------------------------------------------------

    def ahead(self, state: BrokerState, job: Job, now: Now) -> int:
        """Return how many jobs start before a ready one: as last seen, or as shares stand."""
        self._asked = True
        rank = self._ranks.get(job.number) if self._is_of_now(now) else None
        if rank is None:
            return self._reckoned_ahead(state, job)
        return sum(self._waiting[rank[0]][: rank[1]])

    def waits(self, state: BrokerState, job: Job, ahead: int, now: Now) -> tuple[Seconds, Seconds] | None:
        """Return when a ready job starts and when it is done; None if nothing says so."""
        self._asked = True
        hold = state.queue_holds.get(job.queue)
        if not self._is_of_now(now) or (hold is not None and hold.kind == "pause"):
            return None
        times = self._times_ms(state, job, ahead, now)
        if times is None:
            return None
        start, end = self.starts.around_ms(times[0]), self.ends.around_ms(times[1])
        # It cannot be done before it starts.
        return _seconds(start), _seconds((max(start[0], end[0]), max(start[1], end[1])))

    def runs_for(self, lease: Lease, now: Now) -> Seconds | None:
        """Return when a running job is done; None if nothing says so."""
        self._asked = True
        left_ms = self._left_ms(lease, now)
        return None if left_ms is None else _seconds(self.runs.around_ms(left_ms))

    def room_in_ms(self, count: int, user: str, now: Now) -> float | None:
        """Return when so many jobs have ended, of one user or (empty) of all; None if nothing says so."""
        self._asked = True
        if not self._is_of_now(now):
            return None
        ends_ms = sorted(
            each.end_ms for each in self.outlook.jobs.values() if not user or each.job.user == user
        )
        return max(0.0, ends_ms[count - 1] - self._age_ms(now)) if count <= len(ends_ms) else None

    def _reckoned_ahead(self, state: BrokerState, job: Job) -> int:
        lane = state.policy.lane_of(job)
        crowd = self._crowds.get(lane)
        if crowd is None:
            crowd = self._crowds[lane] = state.policy.crowd(job, leases.fleet(state))
        return crowd.ahead_of(job)

    def _times_ms(self, state: BrokerState, job: Job, ahead: int, now: Now) -> tuple[float, float] | None:
        """Return when a ready job would start and end, from now on."""
        age_ms = self._age_ms(now)
        known = self.outlook.jobs.get(job.number)
        if known is not None and known.group >= 0:
            return max(0.0, known.start_ms - age_ms), max(0.0, known.end_ms - age_ms)
        group = self.outlook.group_at(state.policy.lane_of(job))
        if group is None or not group.starts:
            return None
        start_ms = max(0.0, group.first_ms + ahead * group.pace_ms - age_ms)
        return start_ms, start_ms + group.runs_ms / group.starts

    def _left_ms(self, lease: Lease, now: Now) -> float | None:
        known = self.outlook.jobs.get(lease.job.number) if self._is_of_now(now) else None
        if known is None:
            return None
        if known.group < 0:
            return max(0.0, known.end_ms - self._age_ms(now))
        return max(0.0, known.end_ms - known.start_ms - (now.mono_ms - lease.granted_ms))

    def _age_ms(self, now: Now) -> int:
        return now.mono_ms - self.outlook.made_ms

    def _is_of_now(self, now: Now) -> bool:
        return self._age_ms(now) < STALE_MS

    # --- told --------------------------------------------------------------------------------------------------------

    def started(self, job: Job, now: Now) -> None:
        """A ready job starts: was it so far away as was said?"""
        rank = self._ranks.get(job.number)
        if rank is not None:
            self._waiting[rank[0]][rank[1]] = 0
        sample = self._samples.get(job.number)
        if sample is not None and sample.start_ms >= 0:
            self.starts.learn(sample.start_ms, sample.start_range_ms, now.mono_ms - sample.said_ms)
            sample.start_ms = -1.0

    def closed(self, lease: Lease, spent: Spent, now: Now) -> None:
        """A lease is over: did it take as long as was said? One that was broken off says nothing of that."""
        sample = self._samples.pop(lease.job.number, None)
        running = self._running.pop(lease.job.number, None)
        if not spent.complete:
            return
        if sample is not None:
            self.ends.learn(sample.end_ms, sample.end_range_ms, now.mono_ms - sample.said_ms)
        if running is not None:
            self.runs.learn(running.end_ms, running.range_ms, now.mono_ms - running.said_ms)

    # --- looking out -------------------------------------------------------------------------------------------------

    def look_out(self, state: BrokerState, now: Now) -> bool:
        """Go on looking out, or begin, if there is cause to; return whether more is to be done."""
        self._crowds.clear()
        if self._steps is None:
            if not self._is_due(state, now):
                return False
            self._asked = False
            self._work = 0
            self._draft = Outlook(now.mono_ms)
            self._steps = look_out(state.policy.parts(leases.fleet(state), now), self._draft)
        before = self._work
        for work in self._steps:
            self._work += work
            if self._work - before >= SLICE:
                return True
        self._steps = None
        self._take_over(state, now)
        return False

    def _is_due(self, state: BrokerState, now: Now) -> bool:
        age_ms = self._age_ms(now)
        if age_ms < FRESH_MS:
            return False
        if self._asked:
            return True
        is_time = age_ms >= max(EVERY_MS, self._work // WORK_PER_MS)
        return is_time and any(queue.counts[State.READY] for queue in state.queues.values())

    def _take_over(self, state: BrokerState, now: Now) -> None:
        """Take what was found for what is known, and note some of it to learn from."""
        outlook = self.outlook = self._draft
        ranked: list[list[tuple[float, int]]] = [[] for _ in outlook.groups]
        for number, each in outlook.jobs.items():
            if each.group >= 0:
                ranked[each.group].append((each.place, number))
        self._ranks = {}
        self._waiting = []
        for group, places in enumerate(ranked):
            places.sort()
            self._waiting.append(bytearray(b"\1") * len(places))
            for rank, (_, number) in enumerate(places):
                self._ranks[number] = group, rank
                if outlook.jobs[number].job.state is not State.READY:
                    self._waiting[group][rank] = 0
        self._follow_up(now)

    def _follow_up(self, now: Now) -> None:
        """Note what is said of jobs of which nothing was said yet; forget those that ended before their start."""
        for number in [number for number, sample in self._samples.items() if sample.job.state in FINAL]:
            del self._samples[number]
        age_ms = self._age_ms(now)
        for number, each in self.outlook.jobs.items():
            end_ms = max(0.0, each.end_ms - age_ms)
            if each.group < 0:
                if (
                    number not in self._running
                    and len(self._running) < SAMPLES
                    and each.job.lease is not None
                ):
                    self._running[number] = Running(now.mono_ms, end_ms, self.runs.around_ms(end_ms))
            elif (
                each.job.state is State.READY and number not in self._samples and len(self._samples) < SAMPLES
            ):
                start_ms = max(0.0, each.start_ms - age_ms)
                start_range_ms = self.starts.around_ms(start_ms)
                self._samples[number] = Sample(
                    each.job, now.mono_ms, start_ms, start_range_ms, end_ms, self.ends.around_ms(end_ms)
                )


def _seconds(times_ms: tuple[float, float]) -> Seconds:
    return round(times_ms[0] / 1000, 1), round(times_ms[1] / 1000, 1)
