"""The tables of `compare`: what was seen of each queue, as figures, as ratios, and against what lmq wants to reach.

Pure: samples in, Markdown out.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.peers.base import WINDOW, Facts
from benchmarks.results import markdown_table


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round saw of one queue. None: it has no such thing."""

    accept_windowed_per_s: float | None
    accept_bulk_per_s: float | None
    end_to_end_per_s: float | None
    one_p50_ms: float | None
    one_p99_ms: float | None


@dataclass(slots=True)
class Standing:
    """One queue in the run: its samples by round, or why there are none."""

    facts: Facts
    samples: list[Sample] = field(default_factory=list)
    # "not installed: apt install ..." or "failed: ..."; its figures are then left out.
    absent: str | None = None


Figure = Callable[[Sample], float | None]


@dataclass(frozen=True, slots=True)
class Column:
    """One thing that was measured."""

    title: str
    figure: Figure
    decimals: int
    # True for waits, false for rates.
    less_is_better: bool


ACCEPT_WINDOWED = Column(f"accept, window {WINDOW} (jobs/s)", lambda s: s.accept_windowed_per_s, 0, False)
ACCEPT_BULK = Column("accept, bulk (jobs/s)", lambda s: s.accept_bulk_per_s, 0, False)
END_TO_END = Column(f"end to end, window {WINDOW} (jobs/s)", lambda s: s.end_to_end_per_s, 0, False)
ONE_P50 = Column("one at a time, p50 (ms)", lambda s: s.one_p50_ms, 2, True)
ONE_P99 = Column("p99 (ms)", lambda s: s.one_p99_ms, 2, True)
COLUMNS = (ACCEPT_WINDOWED, ACCEPT_BULK, END_TO_END, ONE_P50, ONE_P99)

NONE = "-"


def ratio(ours: Standing, other: Standing, column: Column) -> float | None:
    """Return how many times better `ours` is: the median over rounds of the ratio within each round.

    Within a round the two ran minutes apart at most, so that a machine which slows down slows both.
    """
    ratios = []
    for mine, theirs in zip(ours.samples, other.samples, strict=False):
        top, bottom = column.figure(mine), column.figure(theirs)
        if column.less_is_better:
            top, bottom = bottom, top
        if top is not None and bottom:
            ratios.append(top / bottom)
    return statistics.median(ratios) if ratios else None


def figures_table(standings: Mapping[str, Standing]) -> str:
    """Return medians with the lowest and the highest round."""
    rows = []
    for standing in standings.values():
        if standing.absent is not None:
            rows.append([standing.facts.title, standing.absent, *[NONE] * len(COLUMNS)])
            continue
        cells = [_spread(standing.samples, column) for column in COLUMNS]
        rows.append([standing.facts.title, standing.facts.accepted_means, *cells])
    return markdown_table(
        ["queue", "accepted means", *[column.title for column in COLUMNS]], rows, text_columns=2
    )


def ratios_table(standings: Mapping[str, Standing], baseline: str) -> str:
    """Return every queue as multiples of `baseline`; more is better in every column. Empty without the baseline."""
    base = standings.get(baseline)
    if base is None or not base.samples:
        return ""
    columns = [column for column in COLUMNS if column is not ONE_P99]
    rows = []
    for standing in standings.values():
        if standing.absent is None:
            cells = [_times(ratio(standing, base, column)) for column in columns]
            rows.append([standing.facts.title, *cells])
    titles = [column.title.partition(" (")[0] for column in columns]
    return markdown_table([f"times {base.facts.title}", *titles], rows)


def targets_table(standings: Mapping[str, Standing], ours: str, baseline: str) -> str:
    """Return what lmq wants to reach beside what was seen. Empty without lmq in the run."""
    mine = standings.get(ours)
    if mine is None or not mine.samples:
        return ""
    others = {name: standing for name, standing in standings.items() if name != ours and standing.samples}
    syncing = [standing for standing in others.values() if standing.facts.fsync_before_ack]
    against_baseline = [others[baseline]] if baseline in others else []
    targets = [
        (ACCEPT_WINDOWED, against_baseline, 10),
        (ACCEPT_BULK, syncing, 3),
        (END_TO_END, against_baseline, 15),
        (END_TO_END, list(others.values()), 4),
    ]
    rows = []
    for column, field_of_peers, reach in targets:
        best = _best(field_of_peers, column)
        if best is not None:
            seen = ratio(mine, best, column)
            verdict = NONE if seen is None else "yes" if seen >= reach else "no"
            title = column.title.partition(" (")[0]
            rows.append([title, best.facts.title, f">= {reach}x", _times(seen), verdict])
    return markdown_table(["what", "against", "reach", "seen", "reached"], rows, text_columns=2)


def settings_list(standings: Mapping[str, Standing]) -> str:
    """Return how each queue was driven, one line each."""
    return "".join(
        f"- {standing.facts.title}: submitter {standing.facts.submitter}; worker {standing.facts.worker}.\n"
        for standing in standings.values()
        if standing.absent is None
    )


def _best(standings: Sequence[Standing], column: Column) -> Standing | None:
    medians = [(_median(standing.samples, column), standing) for standing in standings]
    known = [(median, standing) for median, standing in medians if median is not None]
    return max(known, key=lambda pair: pair[0])[1] if known else None


def _values(samples: Sequence[Sample], column: Column) -> list[float]:
    return [value for value in map(column.figure, samples) if value is not None]


def _median(samples: Sequence[Sample], column: Column) -> float | None:
    values = _values(samples, column)
    return statistics.median(values) if values else None


def _spread(samples: Sequence[Sample], column: Column) -> str:
    values = _values(samples, column)
    if not values:
        return NONE
    low, middle, high = (
        f"{value:,.{column.decimals}f}" for value in (min(values), statistics.median(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def _times(value: float | None) -> str:
    return NONE if value is None else f"{value:.1f}x"
