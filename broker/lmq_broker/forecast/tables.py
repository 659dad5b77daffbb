"""Figures as text: one column for each forecast, one row for each figure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmq_broker.forecast.figures import Figures, UserFigures, Waits

NONE = "-"


class Column(NamedTuple):
    """One forecast under its title."""

    endpoints: str
    policy: str
    figures: Figures


class _Row(NamedTuple):
    label: str
    cell: Callable[[Figures], str]


_GAP = _Row("", lambda _: "")


def seconds(value: float) -> str:
    """Return seconds with as many decimals as are worth reading: `0.05`, `4.6`, `61`, `1,583`."""
    if value < 0.1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 19.95 else f"{value:,.0f}"


def comparison(columns: Sequence[Column]) -> list[str]:
    """Return the lines of the table that compares forecasts."""
    everyone = [column.figures for column in columns]
    bands = list(dict.fromkeys(name for figures in everyone for name in figures.bands))
    rows = [
        _Row("makespan (s)", lambda figures: seconds(figures.makespan_s)),
        _Row("tokens/s, read and written", lambda figures: f"{figures.tokens_per_s:,.0f}"),
        _Row("slots in use", lambda figures: f"{figures.slots_used_ratio:.0%}"),
        _Row("swaps", lambda figures: f"{figures.swaps:,}"),
        _Row("  seconds lost in loads", lambda figures: seconds(figures.loading_s) if figures.swaps else "0"),
    ]
    if any(figures.unanswered for figures in everyone):
        rows.append(_Row("without an answer", lambda figures: f"{figures.unanswered:,}"))
    if any(figures.stranded for figures in everyone):
        rows.append(_Row("  which waited for ever", lambda figures: f"{figures.stranded:,}"))
    rows += [_GAP, *_waits("wait (s)", lambda figures: figures.waits)]
    if len(bands) > 1:
        for name in bands:
            rows += _waits(f"  {name}", lambda figures, name=name: figures.bands.get(name))  # type: ignore[misc]
    if any(figures.light is not None for figures in everyone):
        rows += _waits("  light users", lambda figures: figures.light)
        rows += [
            _GAP,
            _Row("service gap (tokens/s), mean", lambda figures: f"{figures.fairness.gap_mean:,.0f}"),
            _Row("  in the worst minute", lambda figures: f"{figures.fairness.gap_max:,.0f}"),
            _Row("Jain's index of a minute, mean", lambda figures: _ratio(figures.fairness.jain_mean)),
            _Row("  in the worst minute", lambda figures: _ratio(figures.fairness.jain_least)),
        ]
    head = [["endpoints", *(column.endpoints for column in columns)]] if _differ(columns) else []
    head.append(["policy", *(column.policy for column in columns)])
    return aligned([*head, *([row.label, *(row.cell(each) for each in everyone)] for row in rows)], len(head))


def users_table(column: Column) -> list[str]:
    """Return the lines of a table of all users under one forecast."""
    total = sum(each.demand for each in column.figures.users) or 1
    rows = [["user", "requests", "of all tokens", "wait p50 (s)", "p95", "p99", ""]]
    rows += [_user_row(each, total) for each in column.figures.users]
    return aligned(rows, 1)


def aligned(rows: Sequence[Sequence[str]], heads: int) -> list[str]:
    """Return rows as lines: the first column to the left, figures to the right, a rule under the heads."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(heads, "-" * max(len(line) for line in lines))
    return lines


def _waits(label: str, waits: Callable[[Figures], Waits | None]) -> list[_Row]:
    def cell(figures: Figures, name: str) -> str:
        found = waits(figures)
        return NONE if found is None else seconds(getattr(found, name))

    return [
        _Row(f"{label}, p50", lambda figures: cell(figures, "p50_s")),
        _Row(f"{' ' * (len(label) + 1)} p95", lambda figures: cell(figures, "p95_s")),
        _Row(f"{' ' * (len(label) + 1)} p99", lambda figures: cell(figures, "p99_s")),
    ]


def _user_row(user: UserFigures, total: int) -> list[str]:
    waits = user.waits
    shown = (
        [NONE] * 3 if waits is None else [seconds(each) for each in (waits.p50_s, waits.p95_s, waits.p99_s)]
    )
    return [
        user.user,
        f"{user.requests:,}",
        f"{user.demand / total:.1%}",
        *shown,
        "light" if user.light else "",
    ]


def _differ(columns: Sequence[Column]) -> bool:
    return len({column.endpoints for column in columns}) > 1


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"
