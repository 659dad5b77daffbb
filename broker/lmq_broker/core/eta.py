"""When jobs start and end: what the last look-out says, in ranges that are calibrated by what became of earlier ones.

A look-out is made at most once a second while somebody asks, more seldom while jobs wait and nobody does, and not at
all otherwise. It is made in slices, one at the end of a turn, and has no part in what is decided.
"""

from collections.abc import Iterator

import msgspec

from lmq_broker.core import leases
from lmq_broker.core.chronicle import Out
from lmq_broker.core.floors import NO_FLOOR, Floor, counts, floor_of
from lmq_broker.core.intervals import Interval, Range
from lmq_broker.core.limits import Bucket
from lmq_broker.core.policies.base import Spent
from lmq_broker.core.policies.crowd import Crowd
from lmq_broker.core.policies.foreseen import Foreseen, Outlook
from lmq_broker.core.policies.outlook import look_out
from lmq_broker.core.policies.places import LaneKey
from lmq_broker.core.state import BrokerState, Job, Lease
from lmq_broker.core.stimuli import Now
from lmq_proto.states import FINAL, State

Seconds = tuple[float, float]
"""The shortest and the longest, of nine in ten."""

FRESH_MS = 1000
"""A look-out this young is not made anew."""
WORK_PER_MS = 5
"""One made unasked costs no more than so much a millisecond of waiting for the next: a hundredth of a core."""
STALE_MS = 10_000
"""An older one says nothing of now."""
OLD = 0.7
"""Weight of what was said before beside what is found now."""
SLICE = 400
"""Work on a look-out at the end of one turn: about a millisecond."""
SAMPLES = 500
"""Predictions of one kind that are followed up at one time."""
DEFAULT = (0.2, 3.0)
"""Until twenty are known. Nine in ten waits of a public replay of chats, and of its answers, fell between these parts
of what was foreseen; too wide a range costs less trust than one that does not hold."""


class Said(msgspec.Struct):
    """A prediction, and the range that was told."""

    at_ms: int
    """Monotonic."""
    ms: float
    range_ms: Range


class Record:
    """What was first said of jobs in one respect, and how well such words held."""

    __slots__ = ("_interval", "said")

    def __init__(self) -> None:
        self._interval = Interval(DEFAULT)
        self.said: dict[int, tuple[Job, Said]] = {}
        """Of jobs of which it is not known yet what became of them."""

    def around_ms(self, predicted_ms: float) -> Range:
        """Return the range that holds nine times in ten."""
        return self._interval.around_ms(predicted_ms)

    def follow(self, job: Job, predicted_ms: float, now: Now) -> None:
        """Note what is said of a job of which nothing was said yet, as far as there is room.

        Those that are followed stay: to give way to newer ones would forget those that wait longest.
        """
        if job.number not in self.said and len(self.said) < SAMPLES:
            self.said[job.number] = job, Said(now.mono_ms, predicted_ms, self.around_ms(predicted_ms))

    def came(self, job: Job, now: Now) -> None:
        """It has come about."""
        found = self.said.pop(job.number, None)
        if found is not None:
            said = found[1]
            self._interval.learn(said.ms, said.range_ms, now.mono_ms - said.at_ms)

    def drop(self, job: Job) -> None:
        """It will not come about, or not as it was foreseen."""
        self.said.pop(job.number, None)

    def drop_ended(self) -> None:
        """Forget jobs that ended without it: cancelled before their start."""
        for number in [number for number, (job, _) in self.said.items() if job.state in FINAL]:
            del self.said[number]


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
        self._ends_ms: dict[tuple[str, str], list[float]] = {}
        """The same of limits, by rule and user: when those end that they count, the next one first."""
        self._told_ahead: dict[int, int] = {}
        """Job -> what its followers were last told."""
        self._starts = Record()
        self._reckoned_starts = Record()
        """Of jobs that were not played: they came since, or are too far away."""
        self._ends = Record()
        self._runs = Record()
        """Ends of jobs that run already."""

    # --- asked -------------------------------------------------------------------------------------------------------

    def ahead(self, state: BrokerState, job: Job, now: Now) -> int:
        """Return how many jobs start before a ready one: as last seen, or as shares stand."""
        self._asked = True
        if self._is_of_now(now) and job.number in self._ranks:
            return self._seen_ahead(job.number)
        return self.crowd(state, job).ahead_of(job)

    def waits(self, state: BrokerState, job: Job, ahead: int, now: Now) -> tuple[Seconds, Seconds] | None:
        """Return when a ready job starts and when it is done; None if nothing says so."""
        self._asked = True
        found = self.foreseen(state, job, ahead, now)
        if found is None:
            return None
        start_ms, end_ms, sure_ms = found
        if self._is_played(job):
            start = self._starts.around_ms(start_ms)
        else:
            start = self._reckoned_starts.around_ms(start_ms)
            if _is_asked_for(job, now):
                self._reckoned_starts.follow(job, start_ms, now)
        start = max(start[0], sure_ms), max(start[1], sure_ms)
        end = self._ends.around_ms(end_ms)
        # It cannot be done before it starts.
        return _seconds(start), _seconds((max(start[0], end[0]), max(start[1], end[1])))

    def _is_played(self, job: Job) -> bool:
        known = self.outlook.jobs.get(job.number)
        return known is not None and known.group >= 0

    def crowd(self, state: BrokerState, job: Job) -> Crowd:
        """Return who stands before the jobs of a ready job's lane, as of this turn."""
        lane = state.policy.lane_of(job)
        crowd = self._crowds.get(lane)
        if crowd is None:
            crowd = self._crowds[lane] = state.policy.crowd(job, leases.fleet(state))
        return crowd

    def foreseen(
        self, state: BrokerState, job: Job, ahead: int, now: Now
    ) -> tuple[float, float, float] | None:
        """Return the milliseconds to a ready job's start and end, one number each, and those to its start at least."""
        hold = state.queue_holds.get(job.queue)
        if not self._is_of_now(now) or (hold is not None and hold.kind == "pause"):
            return None
        group = self.outlook.group_at(state.policy.lane_of(job))
        if group is None:
            return None
        takes_ms = group.runs_ms / group.starts if group.starts else 0.0
        floor = self._floor(state, job, ahead, takes_ms, now)
        if floor is None:
            return None
        if self._is_played(job):
            start_ms, end_ms = self._left_ms(self.outlook.jobs[job.number], now)
        elif group.starts:
            start_ms = max(0.0, group.first_ms + ahead * group.pace_ms - self._age_ms(now))
            end_ms = start_ms + takes_ms
        elif floor is not NO_FLOOR and group.slots:
            # Nobody of those who wait may start yet.
            start_ms, end_ms = 0.0, self.crowd(state, job).cost
        else:
            return None
        later_ms = max(0.0, floor.likely_ms - start_ms)
        return start_ms + later_ms, end_ms + later_ms, floor.sure_ms

    def _floor(self, state: BrokerState, job: Job, ahead: int, takes_ms: float, now: Now) -> Floor | None:
        """Return the earliest start that limits allow; None: none."""
        buckets = list(state.limits.taken_by(job.user, job.queue, job.task_type))
        if not buckets:
            return NO_FLOOR
        crowd = self.crowd(state, job)

        def ends_ms(bucket: Bucket) -> list[float]:
            found = self._ends_ms.get((bucket.name, bucket.subject))
            if found is None:
                jobs = (each for each in self.outlook.jobs.values() if each.job.lease)
                found = sorted(self._left_ms(each, now)[1] for each in jobs if counts(bucket, each.job))
                self._ends_ms[bucket.name, bucket.subject] = found
            return found

        return floor_of(buckets, crowd.own_before(job), ahead, ends_ms, takes_ms or crowd.cost, now.mono_ms)

    def runs_for(self, lease: Lease, now: Now) -> Seconds | None:
        """Return when a running job is done; None if nothing says so."""
        self._asked = True
        known = self.outlook.jobs.get(lease.job.number)
        if known is None or not self._is_of_now(now):
            return None
        if known.group < 0:
            left_ms = self._left_ms(known, now)[1]
        else:
            left_ms = max(0.0, known.end_ms - known.start_ms - (now.mono_ms - lease.granted_ms))
        return _seconds(self._runs.around_ms(left_ms))

    def ends_in_ms(self, count: int, user: str, now: Now) -> float | None:
        """Return when so many jobs have ended, of one user or (empty) of all; None if nothing says so."""
        self._asked = True
        if not self._is_of_now(now):
            return None
        ends_ms = sorted(
            each.end_ms for each in self.outlook.jobs.values() if not user or each.job.user == user
        )
        return max(0.0, ends_ms[count - 1] - self._age_ms(now)) if count <= len(ends_ms) else None

    def _seen_ahead(self, number: int) -> int:
        group, rank = self._ranks[number]
        return sum(self._waiting[group][:rank])

    def _left_ms(self, known: Foreseen, now: Now) -> tuple[float, float]:
        """Return how long it still is to a job's start and end."""
        age_ms = self._age_ms(now)
        return max(0.0, known.start_ms - age_ms), max(0.0, known.end_ms - age_ms)

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
        for record in (self._starts, self._reckoned_starts):
            if record.said:
                record.came(job, now)

    def closed(self, lease: Lease, spent: Spent, now: Now) -> None:
        """A lease is over: did it take as long as was said? One that was broken off says nothing of that."""
        for record in (self._ends, self._runs):
            if not record.said:
                continue
            if spent.complete:
                record.came(lease.job, now)
            else:
                record.drop(lease.job)

    # --- looking out -------------------------------------------------------------------------------------------------

    def look_out(self, state: BrokerState, out: Out, now: Now) -> bool:
        """Go on looking out, or begin, if there is cause to; return whether more is to be done."""
        self._crowds.clear()
        self._ends_ms.clear()
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
        self._blend()
        self.outlook = self._draft
        self._rank()
        self._follow_up(now)
        self._tell_followers(state, out)
        return False

    def _is_due(self, state: BrokerState, now: Now) -> bool:
        age_ms = self._age_ms(now)
        if age_ms < FRESH_MS:
            return False
        if self._asked:
            return True
        every_ms = state.settings.outlook_every_ms
        if not every_ms or age_ms < max(every_ms, self._work // WORK_PER_MS):
            return False
        return any(queue.counts[State.READY] for queue in state.queues.values())

    def _blend(self) -> None:
        """Let what was said before count as well: it was found with other lengths, and what people see moves less."""
        since_ms = self._draft.made_ms - self.outlook.made_ms
        if since_ms >= STALE_MS:
            return
        for number, each in self._draft.jobs.items():
            before = self.outlook.jobs.get(number)
            if before is not None and before.group >= 0 and each.group >= 0:
                start_ms, end_ms = max(0.0, before.start_ms - since_ms), max(0.0, before.end_ms - since_ms)
                each.start_ms += OLD * (start_ms - each.start_ms)
                each.end_ms += OLD * (end_ms - each.end_ms)

    def _rank(self) -> None:
        """Put the jobs of each group in the order of their starts."""
        ranked: list[list[tuple[float, int]]] = [[] for _ in self.outlook.groups]
        for number, each in self.outlook.jobs.items():
            if each.group >= 0 and each.job.state is State.READY:
                ranked[each.group].append((each.place, number))
        self._ranks = {}
        for group, places in enumerate(ranked):
            places.sort()
            for rank, (_, number) in enumerate(places):
                self._ranks[number] = group, rank
        self._waiting = [bytearray(b"\1") * len(places) for places in ranked]

    def _follow_up(self, now: Now) -> None:
        """Note what is said now of jobs of which nothing was said yet."""
        for record in (self._starts, self._reckoned_starts, self._ends):
            record.drop_ended()
        for each in self.outlook.jobs.values():
            start_ms, end_ms = self._left_ms(each, now)
            if each.group >= 0 and _is_asked_for(each.job, now):
                self._starts.follow(each.job, start_ms, now)
                self._ends.follow(each.job, end_ms, now)
            elif each.job.lease is not None and each.group < 0:
                self._runs.follow(each.job, end_ms, now)

    def _tell_followers(self, state: BrokerState, out: Out) -> None:
        """Put on the channels of jobs that somebody follows how many are ahead, where that has changed."""
        told = {}
        for number in self._ranks:
            job = self.outlook.jobs[number].job
            if job.id in state.followers:
                told[number] = ahead = self._seen_ahead(number)
                if self._told_ahead.get(number) != ahead:
                    leases.publish_progress(state, out, job, ahead)
        self._told_ahead = told


def _is_asked_for(job: Job, now: Now) -> bool:
    """Tell whether somebody may ask for it: what starts at once would teach ranges that those who look do not need."""
    return job.state is State.READY and now.mono_ms - job.ready_since_ms >= FRESH_MS


def _seconds(times_ms: Range) -> Seconds:
    return round(times_ms[0] / 1000, 1), round(times_ms[1] / 1000, 1)
