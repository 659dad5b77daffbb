"""How much may run, wait, or begin in a while: by user, queue, task type, model, worker. Counts and rates, no jobs.

A rule counts in buckets: one for all together, or one for each user. What runs or waits is counted whether a rule asks
for it or not, in groups of jobs that no rule can tell apart, so that a new rule knows at once what it limits.

Rates are a GCRA: a bucket keeps the one time at which it will be empty (TAT).
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from lmq_broker.core.models import names_of, normal
from lmq_proto.messages import Limit

if TYPE_CHECKING:
    from lmq_broker.core.state import Instance, Job

COUNTED = ("running", "queued", "bytes")
RATES = ("jobs", "tokens")
ALERTS = ("depth", "wait")
EACH = "*"
"""As the user of a rule: each user by itself."""
UNLIMITED = -1.0
Waiting = tuple[str, str, str]
"""(user, queue, task type): jobs that wait and are alike to all rules."""
Running = tuple[str, str, str, str, str]
"""(user, queue, task type, model, worker): the same for jobs that run."""
_BUCKETS = 100_000
"""Buckets, and kinds of jobs whose rules are known, beyond which those that say nothing are dropped."""


class Set(msgspec.Struct, frozen=True):
    """A rule set by command."""

    limit: Limit
    by: str
    at_ms: int
    """Wall time."""


class Bucket:
    """What one rule counts for one user, or for all together."""

    __slots__ = ("limit", "name", "parked", "subject", "tat_ms", "used")

    def __init__(self, limit: Limit, name: str, subject: str) -> None:
        self.limit = limit
        self.name = name
        self.subject = subject
        self.used = 0.0
        self.tat_ms = 0.0
        """Of a rate: monotonic time at which it is empty again."""
        self.parked: dict[Any, None] = {}
        """What waits for it, in order; only whoever parks knows what that is."""

    def add(self, amount: float, now_ms: int) -> None:
        """Take something out of a rate."""
        self.tat_ms = max(float(now_ms), self.tat_ms) + amount * self.limit.per_ms / self.limit.value

    def opens_ms(self, now_ms: int, jobs: int = 1) -> float:
        """Return when a rate lets the next one through, or so many together; a time that is past: now."""
        limit = self.limit
        if limit.value <= 0:
            return float(1 << 62)
        every_ms = limit.per_ms / limit.value
        # One job needs room for itself; of tokens some must be left, and the last job may take more: it is paid off.
        # More than go at once go together when nothing is missing.
        need = every_ms * min(jobs, burst_of(limit)) if limit.of == "jobs" else 1.0
        return max(self.tat_ms, float(now_ms)) + need - burst_of(limit) * every_ms

    def room_in_ms(self, now_ms: int, before: int) -> float:
        """Return how long it is at least until a rate lets a job through that comes after so many others."""
        every_ms = self.limit.per_ms / self.limit.value if self.limit.of == "jobs" else 0.0
        return max(0.0, self.opens_ms(now_ms) + before * every_ms - now_ms)


def name_of(limit: Limit) -> str:
    """Return the name of a rule, by which it is set again, reset, and told of in refusals."""
    told = [limit.of]
    for field in ("user", "queue", "task_type", "model", "worker", "resource"):
        value = getattr(limit, field)
        if value:
            told.append(f"{field}={value}")
    return " ".join(told)


def burst_of(limit: Limit) -> float:
    """Return how much of a rate may go at once: all of one period, unless told otherwise."""
    return max(limit.burst or limit.value, 1.0)


Taken = tuple[tuple[Bucket, float], ...]
"""The token buckets that a run has taken from, with how much."""


class Limits:
    """All rules and what they count."""

    def __init__(self, baseline: Iterable[Limit] = ()) -> None:
        self._baseline = {name_of(limit): limit for limit in baseline}
        self.by_command: dict[str, Set] = {}
        self._rules: dict[str, Limit] = {}
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._waiting: dict[Waiting, list[int]] = {}
        """-> [jobs, bytes]."""
        self.running: Callable[[], Iterable[Running]] = tuple
        """What runs, as the policy knows it; asked for when a rule begins to count."""
        self._matching: dict[tuple[str, str, str, str | None], list[tuple[str, Limit]]] = {}
        self._at_place: list[tuple[str, Limit]] = []
        self._timed: list[tuple[int, int, Bucket]] = []
        self._timers = 0
        self._dirty: dict[tuple[str, str], None] = {}
        self._tidy_at = _BUCKETS
        self._now_ms = 0
        """As was last told."""
        self.active = False
        """Whether there is any rule."""
        self.version = 0
        """Another number whenever a rule is another."""
        self._apply()

    # --- rules -------------------------------------------------------------------------------------------------------

    def set(self, change: Set) -> bool:
        """Set a rule; tell whether it was another before."""
        name = name_of(change.limit)
        before = self._rules.get(name)
        self.by_command[name] = change
        self._apply()
        return before != change.limit

    def reset(self, name: str) -> bool:
        """Go back to what the file says of a rule; tell whether a command had set it."""
        known = self.by_command.pop(name, None)
        if known is not None:
            self._apply()
        return known is not None

    def rules(self) -> Iterator[tuple[str, Limit]]:
        """Yield all rules by name, those that were lifted by command too."""
        for name in sorted(self._baseline.keys() | self.by_command.keys()):
            change = self.by_command.get(name)
            yield name, self._baseline[name] if change is None else change.limit

    def change_baseline(self, baseline: Iterable[Limit]) -> None:
        """Take other rules from the file."""
        self._baseline = {name_of(limit): limit for limit in baseline}
        self._apply()

    def _apply(self) -> None:
        kept = self._buckets
        self._rules = {name: limit for name, limit in self.rules() if limit.value != UNLIMITED}
        self._matching.clear()
        self._at_place = [
            (name, limit)
            for name, limit in self._rules.items()
            if limit.of == "running" and (limit.model or limit.worker)
        ]
        self._buckets = {}
        for key, bucket in kept.items():
            limit = self._rules.get(key[0])
            if limit is not None and limit.of in RATES:
                fresh = self._buckets[key] = Bucket(limit, *key)
                fresh.tat_ms = bucket.tat_ms
        self._timed = []
        self.active = bool(self._rules)
        self.version += 1

    def _for(self, kind: str, queue: str, task_type: str, user: str | None) -> list[tuple[str, Limit]]:
        """Return the rules of one kind that a user's jobs of a queue and task type fall under, wherever they run.

        None: those that say nothing of users.
        """
        key = kind, queue, task_type, user
        found = self._matching.get(key)
        if found is None:
            if len(self._matching) > _BUCKETS:
                self._matching.clear()
            found = self._matching[key] = [
                (name, limit)
                for name, limit in self._rules.items()
                if limit.of == kind
                and (not limit.user or (user is not None and limit.user in (EACH, user)))
                and limit.queue in ("", queue)
                and limit.task_type in ("", task_type)
                and not (limit.model or limit.worker or limit.resource)
            ]
        return found

    def _bucket(self, name: str, limit: Limit, user: str) -> Bucket | None:
        """Return the bucket of a rule for a user; None if the rule is about another."""
        if limit.user and limit.user not in (EACH, user):
            return None
        subject = user if limit.user else ""
        bucket = self._buckets.get((name, subject))
        if bucket is None:
            bucket = self._buckets[name, subject] = Bucket(limit, name, subject)
            if limit.of in COUNTED:
                bucket.used = self._count(limit, subject)
            if len(self._buckets) > self._tidy_at:
                self._drop_unused()
        return bucket

    def _drop_unused(self) -> None:
        """Drop the buckets that say nothing: of counts that are 0, and of rates that are empty again."""
        self._buckets = {
            key: each
            for key, each in self._buckets.items()
            if each.used or each.parked or each.tat_ms > self._now_ms
        }
        self._tidy_at = max(_BUCKETS, 2 * len(self._buckets))

    def _count(self, limit: Limit, subject: str) -> float:
        """Count what is there for a bucket that is new."""
        if limit.of == "running":
            return float(sum(covers(limit, subject, group) for group in self.running()))
        index = 1 if limit.of == "bytes" else 0
        return float(sum(
            counts[index] for group, counts in self._waiting.items() if covers(limit, subject, (*group, "", ""))
        ))  # fmt: skip

    # --- what waits --------------------------------------------------------------------------------------------------

    def entered(self, user: str, queue: str, task_type: str, payload_bytes: int) -> None:
        """A job waits."""
        self._tally(user, queue, task_type, 1, payload_bytes)

    def left(self, user: str, queue: str, task_type: str, payload_bytes: int) -> None:
        """A job waits no more."""
        self._tally(user, queue, task_type, -1, -payload_bytes)

    def _tally(self, user: str, queue: str, task_type: str, jobs: int, payload_bytes: int) -> None:
        group = user, queue, task_type
        counts = self._waiting.get(group)
        if counts is None:
            counts = self._waiting[group] = [0, 0]
        counts[0] += jobs
        counts[1] += payload_bytes
        if not counts[0]:
            del self._waiting[group]
        if self.active:
            for kind, amount in (("queued", jobs), ("bytes", payload_bytes)):
                for name, limit in self._for(kind, queue, task_type, user):
                    bucket = self._buckets.get((name, user if limit.user else ""))
                    if bucket is not None:
                        bucket.used += amount

    def full(
        self, user: str, queue: str, task_type: str, adding: tuple[int, int], now_ms: int
    ) -> tuple[Bucket, float] | None:
        """Return the bucket that has no room for so many jobs with so many bytes, and the seconds until it has.

        0: that is not known.
        """
        jobs, payload_bytes = adding
        if not self.active:
            return None
        for kind, amount in (("queued", jobs), ("bytes", payload_bytes)):
            for name, limit in self._for(kind, queue, task_type, user):
                bucket = self._bucket(name, limit, user)
                if bucket is not None and bucket.used + amount > limit.value:
                    return bucket, 0.0
        for kind in RATES:
            for name, limit in self._for(kind, queue, task_type, user):
                bucket = self._bucket(name, limit, user) if limit.refuse else None
                if bucket is not None and (opens_ms := bucket.opens_ms(now_ms, jobs)) > now_ms:
                    return bucket, (opens_ms - now_ms) / 1000
        return None

    def submitted(self, user: str, queue: str, task_type: str, tokens: int, now_ms: int) -> None:
        """A job was accepted: take it out of the rates that refuse."""
        for kind in RATES if self.active else ():
            for name, limit in self._for(kind, queue, task_type, user):
                bucket = self._bucket(name, limit, user) if limit.refuse else None
                if bucket is not None and limit.value > 0:
                    bucket.add(tokens if kind == "tokens" else 1, now_ms)
                    self._dirty[name, bucket.subject] = None

    # --- what runs ---------------------------------------------------------------------------------------------------

    def taken_by(self, user: str, queue: str, task_type: str) -> Iterator[Bucket]:
        """Yield the buckets that the start of a user's job is taken from, wherever it starts."""
        for kind in ("running", *RATES) if self._rules else ():
            for name, limit in self._for(kind, queue, task_type, user):
                bucket = None if limit.refuse else self._bucket(name, limit, user)
                if bucket is not None:
                    yield bucket

    def blocks(self, user: str | None, queue: str, task_type: str, now_ms: int) -> Bucket | None:
        """Return the bucket that lets no more jobs start: of a user, or with None, of all together."""
        if not self.active:
            return None
        for name, limit in self._for("running", queue, task_type, user):
            bucket = self._of(name, limit, user)
            if bucket is not None and bucket.used >= limit.value:
                return bucket
        for kind in RATES:
            for name, limit in self._for(kind, queue, task_type, user):
                bucket = None if limit.refuse else self._of(name, limit, user)
                if bucket is not None and bucket.opens_ms(now_ms) > now_ms:
                    return bucket
        return None

    def most(self, user: str | None, queue: str, task_type: str, now_ms: int) -> int:
        """Return how many more jobs may start at once: of a user, or with None, of all together."""
        most = 1 << 30
        for name, limit in self._for("running", queue, task_type, user) if self.active else ():
            bucket = self._of(name, limit, user)
            if bucket is not None:
                most = min(most, int(limit.value - bucket.used))
        for kind in RATES if self.active else ():
            for name, limit in self._for(kind, queue, task_type, user):
                bucket = None if limit.refuse else self._of(name, limit, user)
                if bucket is not None:
                    # One by one: how much each takes is known once it has started.
                    most = min(most, int(bucket.opens_ms(now_ms) <= now_ms))
        return max(0, most)

    def _of(self, name: str, limit: Limit, user: str | None) -> Bucket | None:
        if bool(limit.user) is (user is None):
            return None
        return self._bucket(name, limit, user or "")

    def blocks_at(self, job: "Job", instance: "Instance") -> Bucket | None:
        """Return the bucket that lets a job not start on an instance."""
        for bucket in self._at(job, instance) if self._at_place else ():
            if bucket.used >= bucket.limit.value:
                return bucket
        return None

    def most_at(self, job: "Job", instance: "Instance") -> int:
        """Return how many jobs like this one may start on an instance at once."""
        found = self._at(job, instance) if self._at_place else ()
        return min((int(bucket.limit.value - bucket.used) for bucket in found), default=1 << 30)

    def _at(self, job: "Job", instance: "Instance") -> Iterator[Bucket]:
        """Yield the buckets that count what an instance, its model or its worker runs."""
        names = instance.names or names_of(job.models[0] if job.models else "")
        for name, limit in self._at_place:
            if (
                limit.worker in ("", instance.worker.name)
                and limit.queue in ("", job.queue)
                and limit.task_type in ("", job.task_type)
                and (not limit.model or normal(limit.model) in names)
            ):
                bucket = self._bucket(name, limit, job.user)
                if bucket is not None:
                    yield bucket

    def resource(self, name: str) -> int:
        """Return how many may hold a resource at once: one, unless a rule says otherwise."""
        limit = self._rules.get(name_of(Limit(of="running", value=0, resource=name)))
        return 1 if limit is None else int(limit.value)

    def start(self, group: Running, tokens: float, now_ms: int, *, resumed: bool = False) -> Taken:
        """A job runs; `resumed`: it was taken out of the rates before. Return what `end` is to be handed."""
        if not self.active:
            return ()
        for bucket in self._running_buckets(group):
            bucket.used += 1
        taken: list[tuple[Bucket, float]] = []
        user, queue, task_type, _, _ = group
        for kind in RATES if not resumed else ():
            for name, limit in self._for(kind, queue, task_type, user):
                bucket_or_none = None if limit.refuse else self._bucket(name, limit, user)
                if bucket_or_none is not None and limit.value > 0:
                    bucket_or_none.add(tokens if kind == "tokens" else 1, now_ms)
                    self._dirty[name, bucket_or_none.subject] = None
                    if kind == "tokens":
                        taken.append((bucket_or_none, tokens))
        return tuple(taken)

    def end(self, group: Running, taken: Taken, tokens: float) -> list[Any]:
        """A job runs no more, and used so many tokens; return what was parked for want of its place."""
        freed: list[Any] = []
        for bucket in self._running_buckets(group):
            bucket.used -= 1
            freed += bucket.parked
            bucket.parked.clear()
        for then, predicted in taken:
            # Rules may have been set since: whoever counts by this name now has what was taken.
            now = self._buckets.get((then.name, then.subject))
            if now is not None:
                now.tat_ms += (tokens - predicted) * now.limit.per_ms / now.limit.value
                self._dirty[now.name, now.subject] = None
        return freed

    def lend(self, group: Running) -> list[Any]:
        """A job that runs counts no more for a while; return what was parked for want of its place."""
        return self.end(group, (), 0.0)

    def take_back(self, group: Running) -> None:
        """It counts again, over the limit if need be."""
        for bucket in self._running_buckets(group):
            bucket.used += 1

    def _running_buckets(self, group: Running) -> Iterator[Bucket]:
        """Yield the buckets that are in use and count a group that runs."""
        user = group[0]
        for name, limit in self._for("running", group[1], group[2], user):
            bucket = self._buckets.get((name, user if limit.user else ""))
            if bucket is not None:
                yield bucket
        for name, limit in self._at_place:
            bucket = self._buckets.get((name, user if limit.user else ""))
            if bucket is not None and covers(limit, bucket.subject, group):
                yield bucket

    # --- parked ------------------------------------------------------------------------------------------------------

    def park(self, bucket: Bucket, what: object, now_ms: int) -> None:
        """Let something wait until a bucket has room; whoever asks `due` or ends a run is handed it back."""
        bucket.parked[what] = None
        if bucket.limit.of in RATES:
            self._timers += 1
            heapq.heappush(self._timed, (int(bucket.opens_ms(now_ms)) + 1, self._timers, bucket))

    def due(self, now_ms: int) -> list[Any]:
        """Return what was parked at rates that have room again."""
        self._now_ms = now_ms
        freed: list[Any] = []
        while self._timed and self._timed[0][0] <= now_ms:
            bucket = heapq.heappop(self._timed)[2]
            freed += bucket.parked
            bucket.parked.clear()
        return freed

    def next_ms(self) -> int | None:
        """Return when a rate has room again for what is parked there."""
        return self._timed[0][0] if self._timed else None

    # --- kept over a restart -----------------------------------------------------------------------------------------

    def changes(self, now_ms: int, wall_ms: int) -> dict[tuple[str, str], float | None]:
        """Return (rule, user) -> wall time at which a rate is empty, for those that changed; None: it is empty."""
        found: dict[tuple[str, str], float | None] = {}
        for key in self._dirty:
            bucket = self._buckets.get(key)
            is_empty = bucket is None or bucket.tat_ms <= now_ms
            found[key] = None if bucket is None or is_empty else bucket.tat_ms - now_ms + wall_ms
        self._dirty.clear()
        return found

    def restore(self, name: str, subject: str, empty_at_ms: float, now_ms: int, wall_ms: int) -> None:
        """Bring back a rate's bucket, whatever the wall clock has done: at most two bursts full."""
        limit = self._rules.get(name)
        if limit is None or limit.of not in RATES or limit.value <= 0:
            return
        most_ms = 2 * burst_of(limit) * limit.per_ms / limit.value
        bucket = self._buckets[name, subject] = Bucket(limit, name, subject)
        bucket.tat_ms = now_ms + min(max(0.0, empty_at_ms - wall_ms), most_ms)

    # --- shown -------------------------------------------------------------------------------------------------------

    def fullest(self, name: str, limit: Limit, now_ms: int) -> tuple[float, str]:
        """Return how much of a rule is used, by whom most of all."""
        if limit.of in RATES:
            every_ms = limit.per_ms / limit.value if limit.value > 0 else 0.0
            spent = [
                (max(0.0, each.tat_ms - now_ms) / every_ms, each.subject)
                for (rule, _), each in self._buckets.items()
                if rule == name and every_ms
            ]
            return max(spent, default=(0.0, ""))
        if limit.of not in COUNTED and limit.of != "depth":
            return 0.0, ""
        counted = limit if limit.of != "depth" else msgspec.structs.replace(limit, of="queued")
        if limit.user != EACH:
            return self._count(counted, limit.user), limit.user
        users = {group[0] for group in (self.running() if limit.of == "running" else self._waiting)}
        return max(((self._count(counted, user), user) for user in users), default=(0.0, ""))


def covers(limit: Limit, subject: str, group: Running) -> bool:
    """Tell whether a rule counts a group; its user is `subject`, empty: all."""
    user, queue, task_type, model, worker = group
    return (
        subject in ("", user)
        and limit.queue in ("", queue)
        and limit.task_type in ("", task_type)
        and limit.worker in ("", worker)
        and (not limit.model or normal(limit.model) in names_of(model))
    )
