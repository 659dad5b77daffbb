"""Tables as text: aligned; cut to the width of a terminal, whole on a pipe."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import click

from lmq.cli.errors import clean

WIDTH = 80
"""Columns of a text that is wrapped: what fits every terminal, and a mail."""
GAP = "  "
MIN_WIDTH = 6
"""A column that must give way keeps this much."""
NAME_WIDTH = 10
"""A column gives way down to this before the last one, which says what is going on, has to."""
SHORT = 6
"""Characters of an id as people name it."""

STATE_WORDS = {"ready": "waiting", "leased": "running"}
"""What people call a state that has another name on the wire and in JSON."""
STATE_COLORS = {
    "ready": "yellow",
    "leased": "cyan",
    "asking": "magenta",
    "delayed": "blue",
    "blocked": "blue",
    "done": "green",
    "dead": "red",
    "expired": "red",
    "up": "green",
    "silent": "yellow",
    "gone": "red",
    "down": "red",
    "paused": "yellow",
    "draining": "yellow",
}


class Cell(NamedTuple):
    """A text with a colour, which may be none."""

    text: str
    color: str = ""


Row = list[str | Cell]


def state_word(state: str) -> str:
    """Return a state as people call it."""
    return STATE_WORDS.get(state, str(state))


def state_cell(state: str) -> Cell:
    """Return a state as people call it, in its colour."""
    return Cell(state_word(state), STATE_COLORS.get(state, ""))


def table(titles: Sequence[str], rows: Sequence[Row], *, right: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table with its titles.

    Args:
        titles: of the columns, in capitals.
        rows: as many cells each.
        right: columns of numbers, by index.
    """
    cells = [[Cell(title) for title in titles]]
    cells += [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    cells = [[Cell(one_line(cell.text), cell.color) for cell in row] for row in cells]
    widths = _fitted([max(width_of(row[n].text) for row in cells) for n in range(len(titles))])
    return [_line(row, widths, right, bold=index == 0) for index, row in enumerate(cells)]


def room() -> int:
    """Return how many columns a line may take: those of the terminal; on a pipe as many as it likes."""
    if sys.stdout is None or not sys.stdout.isatty():
        return sys.maxsize
    return shutil.get_terminal_size((WIDTH, 24)).columns


def width_of(text: str) -> int:
    """Return how many columns a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def cut(text: str, width: int) -> str:
    """Return a text that takes at most so many columns, its end marked where something was cut off."""
    if width_of(text) <= width:
        return text
    taken, used = [], 0
    for char in text:
        used += _char_width(char)
        if used > width - 1:
            break
        taken.append(char)
    return "".join(taken) + "…"


def one_line(text: str) -> str:
    """Return a text without line breaks, tabs and control characters."""
    return " ".join(clean(text).split())


def padded(text: str, width: int) -> str:
    """Return a text that takes exactly so many columns."""
    shown = cut(one_line(text), width)
    return shown + " " * (width - width_of(shown))


def bar(ratio: float, width: int) -> str:
    """Return a bar of progress."""
    full = round(min(max(ratio, 0.0), 1.0) * width)
    return "█" * full + "░" * (width - full)


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _fitted(widths: list[int]) -> list[int]:
    """Return widths that fit: the widest column gives way first, the last one only when all others have."""
    over = sum(widths) + len(GAP) * (len(widths) - 1) - room()
    for kept, columns in ((NAME_WIDTH, len(widths) - 1), (MIN_WIDTH, len(widths))):
        while over > 0 and columns:
            widest = max(range(columns), key=lambda n: (widths[n], n))
            if widths[widest] <= kept:
                break
            widths[widest] -= 1
            over -= 1
    return widths


def _line(row: Sequence[Cell], widths: Sequence[int], right: Sequence[int], *, bold: bool) -> str:
    parts = []
    for n, (cell, width) in enumerate(zip(row, widths, strict=True)):
        text = cut(cell.text, width)
        padding = " " * (width - width_of(text))
        if n == len(row) - 1 and n not in right:
            padding = ""
        shown = click.style(text, fg=cell.color or None, bold=bold or None) if text else ""
        parts.append(padding + shown if n in right else shown + padding)
    return GAP.join(parts).rstrip()
