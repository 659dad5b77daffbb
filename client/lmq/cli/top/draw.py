"""From the model to the lines of a screen of some size. Pure, so that tests read screens as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lmq.cli.humane import duration, size, time_of_day
from lmq.cli.tables import one_line, width_of
from lmq.cli.top.lines import (
    GAP,
    Line,
    apart,
    beside,
    fitted,
    part_of,
    plain,
    restyled,
    row_of,
    text_of,
    widths_of,
)
from lmq.cli.top.model import Confirm, Entry, Model, Popup
from lmq.cli.top.panes import Pane, Table

if TYPE_CHECKING:
    from lmq.cli.top.lines import Column
    from lmq.cli.top.view import View

WIDE = 120
"""From so many columns on, the jobs stand beside the rest."""
LEFT_RATIO = 0.45
DIVIDER = " │ "
LEAST_ROWS = 2
"""Rows that a pane keeps where there is too little room for all, beside its title."""
LEAST_WIDTH, LEAST_HEIGHT = 40, 10
BOX_WIDTH = 84
INDENT = 10
"""Of what goes on in the next row of a box, as the answer to why has it."""
LEFT = (Pane.USERS, Pane.QUEUES, Pane.WORKERS)
RIGHT = (Pane.RUNNING, Pane.WAITING)


def draw(model: Model, width: int, height: int) -> list[Line]:
    """Return the screen: as many lines as it is high, each as wide as it is wide."""
    if width < LEAST_WIDTH or height < LEAST_HEIGHT:
        lines = [plain(f"lmq top needs {LEAST_WIDTH} x {LEAST_HEIGHT}, here is {width} x {height}")]
    elif model.view is None:
        lines = [plain("asking the broker...")]
    else:
        lines = [*_header(model, model.view, width)]
        room = height - len(lines) - 1
        lines += _panes(model, width, room)
        lines = lines[: height - 1]
    lines += [()] * (height - 1 - len(lines))
    lines.append(_footer(model, width))
    if model.popup is not None:
        _put_box(lines, model.popup, width, height)
    # The last place of the screen stays free: to write there scrolls some terminals.
    return [fitted(line, width) for line in lines[:-1]] + [fitted(lines[-1], width - 1)]


# --- header and footer -----------------------------------------------------------------------------------------------


def _header(model: Model, view: View, width: int) -> list[Line]:
    """Return who the broker is and how it is; what is wrong stands out."""
    health = view.health
    ended = f"{health.ended_last_min:,} ended/min"
    policy = f"policy {view.users.policy}"
    first = apart(
        (("lmq ", "bold"), (f"  {one_line(view.url)}   up {duration(health.uptime_ms / 1000)}   {policy}", "")),
        plain(time_of_day(health.wall_ms).rpartition(" ")[2]), width,
    )  # fmt: skip
    counts = [
        (health.counts.get("leased", 0), "running", "cyan"),
        (health.counts.get("ready", 0), "waiting", "yellow"),
    ]
    later = sum(health.counts.get(state, 0) for state in ("delayed", "blocked"))
    counts += [(later, "later", ""), (health.counts.get("asking", 0), "asking", "magenta")]
    counts += [(health.ended.get("dead", 0), "dead", "red")]
    spans: list[tuple[str, str]] = []
    for number, word, color in counts:
        if number or word in ("running", "waiting"):
            spans += [(f"{number:,}", f"bold {color}".strip() if number else ""), (f" {word}   ", "")]
    disk = f"journal {size(health.journal_bytes)}"
    more = f", {size(health.journal_free_bytes)} free, commit {health.commit_p50_us / 1000:.1f} ms"
    facts = (*spans, (ended, ""))
    if width_of(text_of(facts)) + GAP + len(disk) + len(more) <= width:
        disk += more
    lines = [first, apart(facts, plain(disk, "dim"), width)]
    if model.is_old:
        away = f"no word from the broker for {duration(model.now_s - model.seen_s)}; what is shown is old"
        lines.append(plain(away, "bold red"))
    lines += [
        plain(one_line(each), "bold red") for each in (health.disk_trouble, health.clock_trouble) if each
    ]
    if model.user:
        lines.append((("only jobs of ", ""), (one_line(model.user), "bold"), ("   (esc: all)", "dim")))
    return lines


_HINTS = {
    Pane.USERS: (("/", "user"),),
    Pane.QUEUES: (("p", "pause"),),
    Pane.WORKERS: (("p", "pause"),),
    Pane.RUNNING: (("c", "cancel"), ("w", "why"), ("+-", "priority"), ("/", "user")),
    Pane.WAITING: (("c", "cancel"), ("w", "why"), ("+-", "priority"), ("/", "user")),
}


def _footer(model: Model, width: int) -> Line:
    """Return the question that is asked, what was said last, or what can be typed."""
    match model.prompt:
        case Confirm(question=question):
            answers = "   y / n"
            return (
                *fitted(plain(question, "bold"), min(width_of(question), width - len(answers) - 1)),
                (answers, ""),
            )
        case Entry(question=question, text=text, wrong=wrong):
            typed = one_line(text) + (" " if text.endswith(" ") else "")
            return ((wrong, "bold red") if wrong else (question, "bold")), (f" {typed}", ""), ("█", "")
    if model.said is not None:
        return plain(one_line(model.said.text), "bold red" if model.said.failed else "bold")
    spans: list[tuple[str, str]] = []
    for key, word in (("tab", "pane"), *_HINTS[model.focus], ("s", "sort"), ("?", "help"), ("q", "quit")):
        spans += [(key, "bold"), (f" {word}  ", "dim")]
    return tuple(spans)


# --- panes -----------------------------------------------------------------------------------------------------------


def _panes(model: Model, width: int, room: int) -> list[Line]:
    """Return the tables: below each other, or in two columns where there is width for it."""
    tables = {pane: model.table(pane) for pane in Pane}
    if width < WIDE:
        return _column(model, tables, tuple(Pane), width, room)
    left = int(width * LEFT_RATIO)
    return beside(
        _column(model, tables, LEFT, left, room),
        _column(model, tables, RIGHT, width - left - len(DIVIDER), room), left, DIVIDER,
    )  # fmt: skip


def _column(
    model: Model, tables: Mapping[Pane, Table], panes: Sequence[Pane], width: int, room: int
) -> list[Line]:
    """Return some panes below each other."""
    wanted = [max(1, len(tables[pane].rows)) for pane in panes]
    focus = panes.index(model.focus) if model.focus in panes else None
    heights = heights_of(wanted, room - len(panes), focus)
    lines: list[Line] = []
    for pane, height in zip(panes, heights, strict=True):
        lines += _pane(model, pane, tables[pane], width, height)
    return lines


def heights_of(wanted: Sequence[int], room: int, focus: int | None) -> list[int]:
    """Return how many rows each pane gets.

    Each gets what it wants up to `LEAST_ROWS`, then the pane in focus all that it wants, but for half of what is left;
    then they share the rest evenly. What nobody wants goes to the last.
    """
    heights = [0] * len(wanted)
    left = room

    def give(index: int, most: int) -> None:
        nonlocal left
        more = max(0, min(wanted[index] - heights[index], most, left))
        heights[index] += more
        left -= more

    for _ in range(LEAST_ROWS):
        for index in range(len(wanted)):
            give(index, 1)
    if focus is not None:
        give(focus, (left + 1) // 2)
    while left and any(have < want for have, want in zip(heights, wanted, strict=True)):
        for index in range(len(wanted)):
            give(index, 1)
    if left > 0:
        heights[-1] += left
    return heights


def _pane(model: Model, pane: Pane, table: Table, width: int, height: int) -> list[Line]:
    """Return a pane: its title with the names of its columns, and so many rows around the selected one."""
    has_focus = pane is model.focus
    rows = table.rows
    at = model.index(pane, rows)
    first = first_shown(at, len(rows), height)
    widths = widths_of(table.columns, [row.cells for row in rows if row.cells], width)
    above, below = first, max(0, len(rows) - first - height)
    title = table.title
    if above or below:
        title += f" {'↑' if above else ''}{'↓' if below else ''}"
    lines = [title_of(title, table.columns, widths, width, has_focus=has_focus)]
    if not rows:
        lines.append(plain(f"{table.nothing}", "dim"))
    for index, row in enumerate(rows[first : first + height], first):
        line = row.line or row_of(row.cells, table.columns, widths)
        is_selected = has_focus and index == at
        lines.append(restyled(fitted(line, width), "reverse") if is_selected else line)
    lines += [()] * (1 + height - len(lines))
    return lines[: 1 + height]


def first_shown(at: int, total: int, height: int) -> int:
    """Return the first row that is shown so that the selected one is in the middle, where the ends allow it."""
    return max(0, min(at - height // 2, total - height))


def title_of(
    title: str, columns: Sequence[Column], widths: Mapping[int, int], width: int, *, has_focus: bool
) -> Line:
    """Return a pane's title, with those names of columns that it leaves room for."""
    shown = f"{'▸' if has_focus else ' '}{title}"
    names: list[tuple[int, str]] = []
    place = 0
    for n, wide in widths.items():
        name = columns[n].title
        start = place + (wide - len(name) if columns[n].right else 0)
        if name and len(name) <= wide and start > width_of(shown):
            names.append((start, name))
        place += wide + GAP
    line = shown
    for start, name in names:
        line += " " * (start - width_of(line)) + name
    head = fitted(plain(line, "underline"), width)
    rest = "bold underline" if has_focus else "underline"
    cut_at = len(shown)
    text = text_of(head)
    return (text[:cut_at], rest), (text[cut_at:].ljust(width - cut_at), "dim underline")


# --- pop-ups ---------------------------------------------------------------------------------------------------------


def _put_box(lines: list[Line], popup: Popup, width: int, height: int) -> None:
    """Lay a box over the middle of the screen."""
    inner = min(
        BOX_WIDTH, width - 4, max(width_of(popup.title), *(width_of(line) for line in popup.lines)) + 2
    )
    rows = [row for line in popup.lines for row in _wrapped(line, inner - 1)]
    room = min(len(rows), height - 4)
    top = min(popup.top, max(0, len(rows) - room))
    shown = rows[top : top + room]
    hint = "any key closes" if room == len(rows) else f"{top + 1}-{top + room} of {len(rows)}"
    title = f"─ {one_line(popup.title)} "
    box = [f"┌{title}{'─' * (inner - width_of(title))}┐"]
    box += [f"│{text_of(fitted(plain(f' {line}'), inner))}│" for line in shown]
    box += [f"└{'─' * (inner - len(hint) - 3)} {hint} ─┘"]
    start_row, start = (height - len(box)) // 2, (width - inner - 2) // 2
    for number, text in enumerate(box, start_row):
        under = fitted(lines[number], width)
        lines[number] = (*part_of(under, 0, start), (text, ""), *part_of(under, start + inner + 2, width))


def _wrapped(line: str, width: int) -> list[str]:
    """Return the rows that a line takes; what goes on stands indented."""
    if width_of(line) <= width:
        return [line]
    return textwrap.wrap(line, width, subsequent_indent=" " * min(INDENT, width // 2))
