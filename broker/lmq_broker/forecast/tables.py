"""Figures as text: one column for each forecast, one row for each figure."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lmq_broker.forecast.figures import Figures, Waits

NONE = "-"


class Column(NamedTuple):
    """One forecast under its title."""

    endpoints: str
    policy: str
    figures: Figures


Values = Sequence[float | None]


class _Row(NamedTuple):
    label: str
    value: Callable[[Figures], float | None]
    shown: Callable[[Values], list[str]]


_LEGEND = (
    "light users   who ask for fewer tokens than the middle one",
    "service gap   what all together got less than the best served, as far as they",
    "              asked for more; tokens of answers count twice",
    "Jain's index  1 if all who waited were served alike, 1/n if one of n got it all",
)


def seconds(values: Values) -> list[str]:
    """Return seconds that are to be compared, all with the decimals that the smallest is worth: `4.6`, `61.0`."""
    decimals = 1 if any(value is not None and value < 19.95 for value in values) else 0
    return _figures(values, f",.{decimals}f")


def comparison(columns: Sequence[Column]) -> list[str]:
    """Return the lines of the table that compares forecasts, and what its words mean."""
    everyone = [column.figures for column in columns]
    bands = list(dict.fromkeys(name for figures in everyone for name in figures.bands))
    rows = [
        _Row("makespan (s)", lambda figures: figures.makespan_s, seconds),
        _Row("tokens/s, read and written", lambda figures: figures.tokens_per_s, _whole),
        _Row(
            "slots in use", lambda figures: figures.slots_used_ratio, lambda values: _figures(values, ".0%")
        ),
        _Row("swaps", lambda figures: figures.swaps, _whole),
        _Row("  seconds lost in loads", lambda figures: figures.loading_s, _whole),
    ]
    if any(figures.unanswered for figures in everyone):
        rows.append(_Row("without an answer", lambda figures: figures.unanswered, _whole))
    if any(figures.stranded for figures in everyone):
        rows.append(_Row("  which waited for ever", lambda figures: figures.stranded, _whole))
    rows += [_GAP, *_waits("wait (s)", lambda figures: figures.waits)]
    if len(bands) > 1:
        for name in bands:
            rows += _waits(f"  {name}", lambda figures, name=name: figures.bands.get(name))  # type: ignore[misc]
    has_light = any(figures.light is not None for figures in everyone)
    if has_light:
        rows += _waits("  light users", lambda figures: figures.light)
        rows += [
            _GAP,
            _Row("service gap (tokens/s), mean", lambda figures: figures.fairness.gap_mean, _whole),
            _Row("  in the worst minute", lambda figures: figures.fairness.gap_max, _whole),
            _Row("Jain's index of a minute, mean", lambda figures: figures.fairness.jain_mean, _ratio),
            _Row("  in the worst minute", lambda figures: figures.fairness.jain_least, _ratio),
        ]
    head = [["endpoints", *(column.endpoints for column in columns)]] if _differ(columns) else []
    head.append(["policy", *(column.policy for column in columns)])
    told = [[row.label, *row.shown([row.value(figures) for figures in everyone])] for row in rows]
    return [*aligned([*head, *told], len(head)), *(["", *_LEGEND] if has_light else [])]


def users_table(column: Column) -> list[str]:
    """Return the lines of a table of all users under one forecast."""
    total = sum(each.demand for each in column.figures.users) or 1
    users = column.figures.users
    waits = [
        seconds([getattr(each.waits, name, None) for each in users]) for name in ("p50_s", "p95_s", "p99_s")
    ]
    rows = [["user", "requests", "of all tokens", "wait p50 (s)", "p95", "p99", ""]]
    rows += [
        [each.user, f"{each.requests:,}", f"{each.demand / total:.1%}", *shown, "light" if each.light else ""]
        for each, *shown in zip(users, *waits, strict=True)
    ]
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
    indent = " " * (len(label) + 1)
    return [
        _Row(text, lambda figures, name=name: getattr(waits(figures), name, None), seconds)  # type: ignore[misc]
        for text, name in ((f"{label}, p50", "p50_s"), (f"{indent} p95", "p95_s"), (f"{indent} p99", "p99_s"))
    ]


def _differ(columns: Sequence[Column]) -> bool:
    return len({column.endpoints for column in columns}) > 1


def _figures(values: Values, form: str) -> list[str]:
    return [NONE if value is None else format(value, form) for value in values]


def _whole(values: Values) -> list[str]:
    return _figures(values, ",.0f")


def _ratio(values: Values) -> list[str]:
    return _figures(values, ".3f")


_GAP = _Row("", lambda _: None, lambda values: [""] * len(values))
