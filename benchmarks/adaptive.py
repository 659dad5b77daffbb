"""The command that judges the adaptive limit: `python -m benchmarks.adaptive`.

The worker's own `KneeFit` in front of modelled servers, on a clock of their own, beside every limit that stays as it
is. Nothing is timed, so the figures are the same on any machine.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from benchmarks.command import QUICK_RUN, Wishes, begin, finish, say, standing_options, typed
from benchmarks.modelled import DURATION_S, FIRST_TOKEN_S, GAP_S, Jobs, Run, Server, Static, run
from benchmarks.results import commit, markdown_table
from benchmarks.targets import Target, targets_table
from lmq_worker.concurrency import Bounds, KneeFit

SECTION = "adaptive"

# The settings of KneeFit were chosen beside these.
KNOWN = (
    Server("4 slots", 4, 20, 3),
    Server("16 slots", 16, 25, 4),
    Server("64 slots", 64, 15, 0.6, prefill_tokens_per_s=20_000),
    Server("serial engine", 1, 20, 1),
    Server("small cache, told", 32, 20, 1.5, cache_tokens=8000, cache_told=True),
    Server("small cache, not told", 32, 20, 1.5, cache_tokens=8000),
    Server("drift at half time", 48, 15, 1.5, prefill_tokens_per_s=12_000,
           later=Server("after the drift", 48, 30, 5, prefill_tokens_per_s=6000)),
)  # fmt: skip

# These were made up when it was done; nothing was changed because of them before they had their first figures (FIRST).
# They showed that prompts being read were taken for a thrashing cache, which was mended.
SEEN = (
    Server("preempts when full", 256, 12, 0.25, prefill_tokens_per_s=30_000, cache_tokens=40_000, preempts=True),
    Server("long prompts, short answers", 16, 15, 1, prefill_tokens_per_s=3000,
           jobs=Jobs(prompt_mean=3000, output_mean=120)),
    Server("jitter and stalls", 8, 45, 5, prefill_tokens_per_s=2000, jitter=0.35, stall_every_s=60),
    Server("flat, then steep", 128, 30, 8, free_streams=12),
)  # fmt: skip
FIRST = (0.97, 0.60, 0.74, 0.83)

# These were made up after that; nothing was changed because of them.
UNSEEN = (
    Server("lengths of all kinds", 12, 22, 2.5, prefill_tokens_per_s=6000, jobs=Jobs(spread=1.3)),
    Server("wide and slow", 32, 60, 1, prefill_tokens_per_s=1500),
    Server("twice as fast at half time", 24, 40, 6, prefill_tokens_per_s=4000,
           later=Server("twice as fast", 24, 20, 3, prefill_tokens_per_s=8000)),
    Server("hardly fast enough", 4, 70, 12, prefill_tokens_per_s=500),
)  # fmt: skip

RATIO_LEAST, RATIO_MEAN = 0.90, 0.95
WAITED_FROM_S = 60.0
SETTLED_S = 30.0
# A limit has settled once it stays so near to what it is in the end.
SETTLED_RATIO = 0.2


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is tried."""

    seeds: tuple[int, ...]
    # Each limit up to here, then some per cent more each time.
    each_limit_to: int


FULL = Effort(seeds=(1, 2, 3), each_limit_to=24)
QUICK = Effort(seeds=(1,), each_limit_to=4)
_LIMIT_STEP = 1.04
_QUICK_STEP = 1.25
_BEYOND_SLOTS = 8


@dataclass(frozen=True, slots=True)
class Drift:
    """How it went after the server had changed."""

    # Beside the best limit for what the server has become, from SETTLED_S on.
    ratio: float
    settled_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """One server: the best limit that stays, and the limit that adapts."""

    server: Server
    best_limit: int
    best: float
    adaptive: float
    # Of each seed.
    ratios: list[float]
    waited_p95: int
    limits: list[int]
    changes_per_min: float
    drift: Drift | None

    @property
    def ratio(self) -> float:
        return self.adaptive / self.best


def judge(server: Server, effort: Effort) -> Verdict:
    """Run one server under all limits and under the one that adapts."""
    fixed = {limit: _static(server, limit, effort) for limit in _limits(server, effort)}
    best_limit = max(fixed, key=lambda limit: statistics.fmean(each.goodput() for each in fixed[limit]))
    best = [each.goodput() for each in fixed[best_limit]]
    adaptive = [adapt(server, seed) for seed in effort.seeds]
    return Verdict(
        server=server,
        best_limit=best_limit,
        best=statistics.fmean(best),
        adaptive=statistics.fmean(each.goodput() for each in adaptive),
        ratios=[each.goodput() / of for each, of in zip(adaptive, best, strict=True)],
        waited_p95=max(each.waited(95, WAITED_FROM_S) for each in adaptive),
        limits=[each.limits[-1][1] for each in adaptive],
        changes_per_min=statistics.fmean(len(each.limits) - 1 for each in adaptive) / (DURATION_S / 60),
        drift=_drift(server, adaptive, effort),
    )


def adapt(server: Server, seed: int) -> Run:
    """Run one server under the limit that the worker would have reported."""
    cache_tokens = server.cache_tokens if server.cache_told else 0
    return run(server, KneeFit(Bounds(gap_s=GAP_S, cache_tokens=cache_tokens), 0.0), seed)


def _static(server: Server, limit: int, effort: Effort) -> list[Run]:
    return [run(server, Static(limit), seed) for seed in effort.seeds]


def _limits(server: Server, effort: Effort) -> list[int]:
    limits, limit = [], 1
    step = _LIMIT_STEP if effort.each_limit_to > QUICK.each_limit_to else _QUICK_STEP
    while limit <= server.slots + _BEYOND_SLOTS:
        limits.append(limit)
        limit = limit + 1 if limit < effort.each_limit_to else max(limit + 1, round(limit * step))
    return limits


def _drift(server: Server, adaptive: Sequence[Run], effort: Effort) -> Drift | None:
    if server.later is None:
        return None
    begin_s = DURATION_S / 2 + SETTLED_S
    best = max(
        statistics.fmean(each.goodput(begin_s) for each in _static(server.later, limit, effort))
        for limit in _limits(server.later, effort)
    )
    seen = statistics.fmean(each.goodput(begin_s) for each in adaptive)
    return Drift(seen / best, max(_settled_s(each, DURATION_S / 2) for each in adaptive))


def _settled_s(found: Run, since_s: float) -> float:
    """Return how long after `since_s` the limit came near its last value for good."""
    last = found.limits[-1][1]
    away = [at_s for at_s, limit in found.limits if abs(limit - last) > SETTLED_RATIO * last]
    # It stays away until the change after the last one that took it there.
    back = [at_s for at_s, _ in found.limits if at_s > max(away, default=-1.0)]
    return max(back[0] - since_s, 0.0)


_ABOUT = f"""\
Goodput is the text of jobs whose first token came within {FIRST_TOKEN_S:g} s of the request and whose mean gap between
tokens was at most {GAP_S * 1000:g} ms, in tokens a second over {DURATION_S:g} s, the start included. The queue before
the server never runs dry, and no server says how many slots it has. Beside the worker's own `KneeFit` stand all limits
that stay as they are: the best of them, known only afterwards, is 1. A mean counts no ratio as more than 1.
"""

_KNOWN = "Its settings were chosen beside these:\n"
_SEEN = """\
These were made up when it was done. At first sight the ratios were {first}: prompts being read
were taken for a thrashing cache. That was mended, so these are no test of it any more:
"""
_UNSEEN = "These were made up after that, and nothing was changed because of them:\n"


def report(found: dict[str, Verdict], command: str, *, quick: bool) -> str:
    """Return the section of the document, of what was found of servers by name."""
    day = datetime.now(UTC).date().isoformat()
    known, seen, unseen = (
        [found[each.name] for each in servers if each.name in found] for servers in (KNOWN, SEEN, UNSEEN)
    )
    parts = [
        "## Adaptive concurrency\n",
        f"Computed {day} at commit {commit()} by `{command}`, on a virtual clock: the same on any machine.\n",
        QUICK_RUN if quick else "",
        _ABOUT,
    ]
    first = ", ".join(f"{ratio:.2f}" for ratio in FIRST)
    for words, verdicts in ((_KNOWN, known), (_SEEN.format(first=first), seen), (_UNSEEN, unseen)):
        parts += [words, _table(verdicts)] if verdicts else []
    parts.append(targets_table(targets([("known", known), ("once unseen", seen), ("unseen", unseen)])))
    return "\n".join(part for part in parts if part)


def _table(verdicts: Sequence[Verdict]) -> str:
    head = [
        "server", "best static limit", "its goodput", "adaptive", "ratio", "of each seed", "limit at the end",
        "changes a minute", "waiting inside, p95",
    ]  # fmt: skip
    rows = [
        [
            each.server.name,
            str(each.best_limit),
            f"{each.best:.1f}",
            f"{each.adaptive:.1f}",
            f"{each.ratio:.2f}",
            " ".join(f"{ratio:.2f}" for ratio in each.ratios),
            " ".join(map(str, each.limits)),
            f"{each.changes_per_min:.1f}",
            str(each.waited_p95),
        ]
        for each in verdicts
    ]
    return markdown_table(head, rows)


def targets(groups: Sequence[tuple[str, Sequence[Verdict]]]) -> list[Target]:
    """Return what was to be reached."""
    found = []
    for name, verdicts in groups:
        if verdicts:
            least = min(each.ratio for each in verdicts)
            mean = statistics.fmean(min(each.ratio, 1.0) for each in verdicts)
            waited = max(each.waited_p95 for each in verdicts)
            found += [
                _target(f"{name}, least ratio", RATIO_LEAST, least),
                _target(f"{name}, mean ratio", RATIO_MEAN, mean),
                Target(
                    f"{name}, waiting inside after {WAITED_FROM_S:g} s, p95", "< 1", str(waited), waited < 1
                ),
            ]
    for each in (each for _, verdicts in groups for each in verdicts):
        if each.drift is not None:
            settled_s = each.drift.settled_s
            found += [
                Target(f"{each.server.name}, settled after", f"<= {SETTLED_S:g} s", f"{settled_s:.0f} s",
                       settled_s <= SETTLED_S),
                _target(f"{each.server.name}, ratio from then on", RATIO_LEAST, each.drift.ratio),
            ]  # fmt: skip
    return found


def _target(what: str, reach: float, seen: float) -> Target:
    return Target(what, f">= {reach:.2f}", f"{seen:.3f}", seen >= reach)


@click.command(epilog='\b\nExample:\n  python -m benchmarks.adaptive --only "4 slots" --no-write')
@standing_options
@click.option(
    "--only",
    metavar="SERVER",
    multiple=True,
    type=click.Choice([each.name for each in (*KNOWN, *SEEN, *UNSEEN)]),
    help="Run only this server; the document is left alone.",
)
def main(only: tuple[str, ...], quick: bool, no_write: bool, output: Path, directory: Path) -> None:
    """Compare the limit that adapts with every limit that does not, on modelled servers.

    Takes some minutes of one core; how busy the machine is makes no difference to the figures.
    """
    wishes = Wishes(quick, no_write or bool(only), output.resolve(), directory.resolve())
    begin(wishes)
    found: dict[str, Verdict] = {}
    for server in (*KNOWN, *SEEN, *UNSEEN):
        if not only or server.name in only:
            say(server.name)
            found[server.name] = judge(server, QUICK if quick else FULL)
    finish(SECTION, report(found, typed(SECTION, wishes), quick=quick), wishes)


if __name__ == "__main__":
    main()
