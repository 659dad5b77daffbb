"""What `scale` found, as Markdown. Pure: figures in, text out."""

import statistics
from dataclasses import dataclass, field

from benchmarks.command import QUICK_RUN
from benchmarks.decisions import USERS, Decisions
from benchmarks.results import markdown_table, percentile
from benchmarks.targets import Target, targets_table

DECISION_P99_US = 50.0
DECISION_FLAT = 1.3
RATE_RATIO = 0.9
JOB_BYTES = 800.0
IDLE_MB = 60.0
RESTART_S = 10.0

# Targets are of these lengths; what a quick run saw of shorter ones reaches nothing and misses nothing.
LONG = 1_000_000
MANY_JOBS = 100_000

_MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Memory:
    """The broker's memory before and after `queued` jobs came; it kept no payloads."""

    what: str
    queued: int
    idle_bytes: int
    filled_bytes: int

    @property
    def job_bytes(self) -> float:
        """Bytes a queued job."""
        return (self.filled_bytes - self.idle_bytes) / self.queued


@dataclass(frozen=True, slots=True)
class Restart:
    """Seconds from the start of the process to what was seen of it."""

    queued: int
    ready_s: float
    dispatch_s: float


@dataclass(slots=True)
class Looks:
    """Milliseconds of each look at a job, or at all queues."""

    queued: int
    status_ms: list[float] = field(default_factory=list)
    why_ms: list[float] = field(default_factory=list)
    queues_ms: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Load:
    """Rates of each round with at least `queued` jobs queued, jobs a second."""

    queued: int
    accept_windowed_per_s: list[float] = field(default_factory=list)
    accept_bulk_per_s: list[float] = field(default_factory=list)
    drain_per_s: list[float] = field(default_factory=list)
    # How often the broker ended the submitter's session, which then sent its submits again.
    sessions_lost: int = 0

    def latest(self) -> str:
        """Return the last round in words."""
        return (
            f"accept {self.accept_windowed_per_s[-1]:,.0f}/s, bulk {self.accept_bulk_per_s[-1]:,.0f}/s, "
            f"drain {self.drain_per_s[-1]:,.0f}/s; sessions lost so far: {self.sessions_lost}"
        )


@dataclass(frozen=True, slots=True)
class Rates:
    """Rounds of the two took turns."""

    short: Load
    long: Load

    def rows(self) -> list[tuple[str, list[float], list[float]]]:
        """Return (what, rounds with the short queue, rounds with the long one)."""
        short, long = self.short, self.long
        return [
            (
                "accept, one job a message, window 1000",
                short.accept_windowed_per_s,
                long.accept_windowed_per_s,
            ),
            ("accept, 1000 jobs a message", short.accept_bulk_per_s, long.accept_bulk_per_s),
            ("drain, one worker of 64 slots", short.drain_per_s, long.drain_per_s),
        ]


@dataclass(slots=True)
class Found:
    """All that one run saw; a part that was left out is empty."""

    quick: bool = False
    decisions: dict[str, list[Decisions]] = field(default_factory=dict)
    by_users: list[Decisions] = field(default_factory=list)
    clock_us: float = 0.0
    memories: list[Memory] = field(default_factory=list)
    looks: Looks | None = None
    restart: Restart | None = None
    rates: Rates | None = None


def ratio(short: list[float], long: list[float]) -> float:
    """Return the median over rounds of long over short within a round: what drifts hits both."""
    return statistics.median(b / a for a, b in zip(short, long, strict=True))


def flatness(found: list[Decisions]) -> float:
    """Return the largest p50 of decisions that start something over the smallest."""
    p50s = [percentile(each.starts_us, 50) for each in found]
    return max(p50s) / min(p50s)


def decisions_table(found: dict[str, list[Decisions]]) -> str:
    """Return the cost of a decision by queue length."""
    rows = [
        [
            each.policy, f"{each.queued:,}", f"{len(each.taken_us):,}", f"{percentile(each.starts_us, 50):.1f}",
            f"{percentile(each.taken_us, 50):.1f}", f"{percentile(each.taken_us, 99):.1f}", f"{max(each.taken_us):.0f}",
        ]
        for several in found.values()
        for each in several
    ]  # fmt: skip
    return markdown_table(
        ["policy", "queued", "decisions", "starts, p50 (us)", "all, p50 (us)", "p99 (us)", "most (us)"], rows
    )


def users_table(found: list[Decisions]) -> str:
    """Return the cost of a decision by the number of users."""
    rows = [
        [
            f"{each.users:,}", f"{each.queued:,}", f"{percentile(each.starts_us, 50):.1f}",
            f"{percentile(each.taken_us, 50):.1f}", f"{percentile(each.taken_us, 99):.1f}",
        ]
        for each in found
    ]  # fmt: skip
    return markdown_table(
        ["users", "queued", "starts, p50 (us)", "all, p50 (us)", "p99 (us)"], rows, text_columns=0
    )


def rates_table(rates: Rates) -> str:
    """Return both sides of each rate, and their ratio."""
    rows = [
        [what, _spread(short), _spread(long), f"{ratio(short, long):.2f}"]
        for what, short, long in rates.rows()
    ]
    short, long = f"{rates.short.queued:,} queued", f"{rates.long.queued:,} queued"
    return markdown_table(["jobs/s", short, long, "ratio"], rows)


def memory_table(memories: list[Memory]) -> str:
    """Return the broker's memory, empty and full."""
    rows = [
        [
            each.what, f"{each.queued:,}", f"{each.idle_bytes / _MB:.1f}", f"{each.filled_bytes / _MB:.1f}",
            f"{each.job_bytes:.0f}",
        ]
        for each in memories
    ]  # fmt: skip
    return markdown_table(["memory of the broker", "queued", "idle (MB)", "filled (MB)", "bytes a job"], rows)


def looks_table(looks: Looks) -> str:
    """Return how long a look takes."""
    rows = [
        [what, f"{percentile(taken_ms, 50):.2f}", f"{percentile(taken_ms, 99):.2f}"]
        for what, taken_ms in (
            ("status with `ahead`", looks.status_ms), ("`why`", looks.why_ms), ("all queues", looks.queues_ms),
        )
    ]  # fmt: skip
    return markdown_table([f"looking, {looks.queued:,} queued", "p50 (ms)", "p99 (ms)"], rows)


def targets(found: Found) -> list[Target]:
    """Return what was to be reached."""
    reached: list[Target] = []
    for policy, several in found.decisions.items():
        for each in several:
            if each.queued == MANY_JOBS:
                p99_us = percentile(each.taken_us, 99)
                what = f"decision, p99, {USERS:,} users x {each.queued // USERS} jobs ({policy})"
                reached.append(Target(
                    what, f"<= {DECISION_P99_US:.0f} us", f"{p99_us:.1f} us", p99_us <= DECISION_P99_US
                ))  # fmt: skip
        flat = flatness(several)
        is_long = several[-1].queued >= LONG
        sizes = f"{several[0].queued:,} to {several[-1].queued:,} queued"
        what = f"decision that starts a job, p50 flat, {sizes} ({policy})"
        reached.append(
            _at_length(what, f"<= {DECISION_FLAT}x", f"{flat:.2f}x", is_long, flat <= DECISION_FLAT)
        )
    if found.rates is not None:
        is_long = found.rates.long.queued >= LONG
        for what, short, long in found.rates.rows():
            seen = ratio(short, long)
            reached.append(_at_length(what, f">= {RATE_RATIO}", f"{seen:.2f}", is_long, seen >= RATE_RATIO))
    if found.memories:
        idle_mb = max(each.idle_bytes for each in found.memories) / _MB
        reached.append(
            Target("memory, idle", f"<= {IDLE_MB:.0f} MB", f"{idle_mb:.1f} MB", idle_mb <= IDLE_MB)
        )
    for memory in found.memories:
        seen = memory.job_bytes
        reached.append(_at_length(
            f"memory a queued job, {memory.what}", f"<= {JOB_BYTES:.0f} bytes", f"{seen:.0f} bytes",
            memory.queued >= LONG, seen <= JOB_BYTES,
        ))  # fmt: skip
    if found.restart is not None:
        seen = found.restart.dispatch_s
        what = f"first dispatch after kill -9, {found.restart.queued:,} queued"
        is_long = found.restart.queued >= LONG
        reached.append(_at_length(what, f"<= {RESTART_S:.0f} s", f"{seen:.1f} s", is_long, seen <= RESTART_S))
    return reached


def report(found: Found, where_and_when: str) -> str:
    """Return the section of the document."""
    parts = ["## With much queued\n", where_and_when, QUICK_RUN if found.quick else ""]
    if found.decisions:
        about = (
            f"Thread CPU time of each `decide` on the real core with a virtual clock: {USERS:,} users, 12 kinds of\n"
            f"job, 4 workers. Reading the clock, {found.clock_us:.1f} us, is in it. Decisions that start something\n"
            "stand apart: that there is nothing to do is seen the quicker the fewer wait.\n"
        )
        parts += [about, decisions_table(found.decisions)]
    if found.by_users:
        parts += [f"The same of {found.by_users[0].policy} by how many users have submitted them.\n"]
        parts += [users_table(found.by_users)]
    if found.rates is not None:
        about = (
            "Raw peers, so that the broker is what limits; rounds with the two queues take turns. In brackets the\n"
            "lowest and the highest round; the ratio is the median of those within rounds.\n"
        )
        lost = found.rates.short.sessions_lost + found.rates.long.sessions_lost
        parts += [about, rates_table(found.rates)]
        if lost:
            parts.append(
                f"{lost} times the broker ended the session of a submitter that was reading; it submitted again.\n"
            )
    if found.memories:
        parts += ["Payloads stay on disk (`payload_cache_bytes = 0`).\n", memory_table(found.memories)]
    if found.restart is not None:
        restart = found.restart
        parts.append(
            f"After kill -9 with {restart.queued:,} queued: ready {restart.ready_s:.1f} s after its start, "
            f"first dispatch seen by a worker\nafter {restart.dispatch_s:.1f} s.\n"
        )
    if found.looks is not None:
        parts.append(looks_table(found.looks))
    parts.append(targets_table(targets(found)))
    return "\n".join(part for part in parts if part)


def _at_length(what: str, reach: str, seen: str, is_long: bool, reached: bool) -> Target:
    return Target(what, reach, seen, reached if is_long else None)


def _spread(values: list[float]) -> str:
    middle = f"{statistics.median(values):,.0f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.0f} to {max(values):,.0f})"
