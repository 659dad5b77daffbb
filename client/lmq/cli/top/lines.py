"""Lines of styled text and tables of them, cut to a width. Pure: what a style looks like is the terminal's business."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from lmq.cli.tables import cut, width_of

Span = tuple[str, str]
"""(text, style in rich's words, which may be none)."""
Line = tuple[Span, ...]
GAP = 2
BLANK: Line = ()
FULL, EMPTY, MARK = "█", "░", "│"


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of a ratio, 0..1, with a mark where it should be; it is as wide as its column."""

    ratio: float
    mark: float | None = None
    style: str = ""

    def spans(self, width: int) -> Line:
        """Return it in so many columns."""
        full = round(min(max(self.ratio, 0.0), 1.0) * width)
        if self.mark is None or not width:
            return (FULL * full, self.style), (EMPTY * (width - full), "dim")
        at = min(round(min(max(self.mark, 0.0), 1.0) * width), width - 1)
        return (
            (FULL * min(full, at), self.style), (EMPTY * (at - min(full, at)), "dim"), (MARK, "bold"),
            (FULL * max(0, full - at - 1), self.style), (EMPTY * (width - max(full, at + 1)), "dim"),
        )  # fmt: skip


Cell = Span | Bar


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    least: int = 4
    """Columns below which it is of no use."""
    most: int = 100
    worth: int = 5
    """What is worth most is shown first, the rest where there is room left."""
    right: bool = False
    grows: bool = False
    """It takes what is left over."""


def text_of(line: Line) -> str:
    """Return a line without its styles."""
    return "".join(text for text, _ in line)


def plain(text: str, style: str = "") -> Line:
    """Return a line of one style."""
    return ((text, style),)


def fitted(line: Line, width: int) -> Line:
    """Return a line that takes exactly so many columns; what could disturb a terminal becomes a space."""
    taken: list[Span] = []
    left = width
    for text, style in line:
        if left <= 0:
            break
        safe = text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)
        shown = cut(safe, left)
        taken.append((shown, style))
        left -= width_of(shown)
        if shown != safe:
            break
    if left > 0:
        taken.append((" " * left, taken[-1][1] if taken and "reverse" in taken[-1][1] else ""))
    return tuple(taken)


def part_of(line: Line, start: int, end: int) -> Line:
    """Return what a line has from one column up to another; a character that lies across an edge becomes a space."""
    spans: list[Span] = []
    place = 0
    for text, style in line:
        kept = ""
        for char in text:
            wide = width_of(char)
            if start <= place and place + wide <= end:
                kept += char
            else:
                kept += " " * max(0, min(place + wide, end) - max(place, start))
            place += wide
        if kept:
            spans.append((kept, style))
    return tuple(spans)


def restyled(line: Line, style: str) -> Line:
    """Return a line with a style on top of those it has."""
    return tuple((text, f"{own} {style}".strip()) for text, own in line)


def apart(left: Line, right: Line, width: int) -> Line:
    """Return a line with one part at each end; the right one gives way where both do not fit."""
    taken, wanted = width_of(text_of(left)), width_of(text_of(right))
    if taken + GAP + wanted > width:
        return fitted(left, width)
    return (*left, (" " * (width - taken - wanted), ""), *right)


def beside(left: Sequence[Line], right: Sequence[Line], width: int, divider: str) -> list[Line]:
    """Return lines side by side; the left ones take so many columns."""
    return [
        (*fitted(one, width), (divider, "dim"), *other)
        for one, other in zip_longest(left, right, fillvalue=BLANK)
    ]


def widths_of(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> dict[int, int]:
    """Return which columns are shown, by index, and how wide.

    Which are shown goes by the width alone, so that none comes and goes with what is in the rows.
    """
    wanted = [
        max(
            each.least,
            min(max([width_of(each.title), *(_width_of_cell(row[n], each) for row in rows)]), each.most),
        )
        for n, each in enumerate(columns)
    ]

    def over(widths: dict[int, int]) -> int:
        return sum(widths.values()) + GAP * (len(widths) - 1) - width

    shown: list[int] = []
    for index in sorted(range(len(columns)), key=lambda n: (-columns[n].worth, n)):
        if not shown or over({n: columns[n].least for n in (*shown, index)}) <= 0:
            shown.append(index)
    shown.sort()
    widths = {n: wanted[n] for n in shown}
    while (too_many := over(widths)) > 0:
        spare = {n: widths[n] - columns[n].least for n in shown if widths[n] > columns[n].least}
        if not spare:
            break
        widest = max(spare, key=lambda n: (spare[n], n))
        widths[widest] -= min(too_many, spare[widest], max(1, spare[widest] // 2))
    growing = [n for n in shown if columns[n].grows]
    if growing and over(widths) < 0:
        widths[growing[0]] -= over(widths)
    return widths


def row_of(cells: Sequence[Cell], columns: Sequence[Column], widths: dict[int, int]) -> Line:
    """Return one row of a table."""
    spans: list[Span] = []
    for n, width in widths.items():
        if spans:
            spans.append((" " * GAP, ""))
        cell = cells[n]
        if isinstance(cell, Bar):
            spans += cell.spans(width)
            continue
        text, style = cell
        shown = cut(text, width)
        padding = " " * (width - width_of(shown))
        spans += [(padding, ""), (shown, style)] if columns[n].right else [(shown, style), (padding, "")]
    return tuple(span for span in spans if span[0])


def _width_of_cell(cell: Cell, column: Column) -> int:
    return column.least if isinstance(cell, Bar) else width_of(cell[0])
