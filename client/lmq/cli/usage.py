"""`lmq usage`: what jobs have used, summed by day, user, model or task type."""

from __future__ import annotations

import csv
import sys
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from lmq import config
from lmq.cli import session as cli, traces
from lmq.cli.errors import clean
from lmq.cli.humane import count, number, short_duration
from lmq.cli.params import UTC_DAY
from lmq.cli.tables import GAP, Cell, Row, cut, one_line, room, table, width_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq import UsageReply, UsageRow
    from lmq.cli.session import Session

EXAMPLE = """
lmq usage
lmq usage --since 30d --by user,model --price-hour 0.40
lmq usage --since 2026-11-01 --until 2026-11-30 --by day,user --csv
lmq usage --since 1d --trace > monday.csv
"""
COLUMNS = ("day", "user", "model", "task_type")
ENDS = ("done", "dead", "cancelled", "expired")
GIVE_WAY = ("EXP.", "CANC.", "WAIT", "RUN")
"""Columns that are left out where there is no room for all, in this order."""
ENDS_LEFT_OUT = {"EXP.", "CANC."}
NAME_CHARS = 14
"""So much of a name stands before a column of numbers is left out for it."""
LEAST_CHARS = 5
"""So much of a name stands in any case."""
FINE_DIGITS, FINE_BELOW = 4, 0.1
"""Digits of costs where one is so low that two would say nothing."""
MS_AN_HOUR = 3_600_000


def _columns(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    """Return what gets rows of its own."""
    names = ["task_type" if name.strip() == "type" else name.strip() for name in value.split(",")]
    if not set(names) <= set(COLUMNS) or len(set(names)) < len(names):
        raise click.BadParameter(
            f"{value!r}: name some of day, user, model, type, with commas between them", context, parameter
        )
    return names


@cli.command("usage", example=EXAMPLE)
@click.option(
    "--since",
    type=UTC_DAY,
    default="7d",
    show_default=True,
    metavar="TIME|DATE",
    help="From that day on, all of it (UTC).",
)
@click.option("--until", type=UTC_DAY, metavar="TIME|DATE", help="To that day, which is the last one.")
@click.option("--by", callback=_columns, default="user", show_default=True, metavar="COLUMNS",
              help="Rows by day, user, model, type.")  # fmt: skip
@click.option("--user", metavar="USER", default="", help="Of this user only.")
@click.option("--price-hour", type=click.FloatRange(min=0), metavar="PRICE",
              help="Of an hour of engine time; default: price_hour of the configuration.")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="Answer in CSV.")
@click.option("--trace", is_flag=True,
              help="Answer with each request that is still kept, as `lmq forecast` reads them.")  # fmt: skip
@cli.pass_session
def command(
    session: Session,
    since: datetime,
    until: datetime | None,
    by: list[str],
    user: str,
    price_hour: float | None,
    as_csv: bool,
    trace: bool,
) -> None:
    """Say what jobs have used: how many ended, their tokens, engine time, how long they waited and ran.

    The sums are kept for two years by days in UTC, though the jobs themselves are long deleted. Four jobs side by side
    for an hour took four hours of engine time.
    """
    if as_csv + trace + session.json > 1:
        raise click.UsageError("ask for one of --csv, --trace and --json")
    price = config.price_hour() if price_hour is None else price_hour
    # A day named as the last one is in.
    end = max(until, since) + timedelta(milliseconds=1) if until is not None else None
    if until is not None and day_of(until) < day_of(since):
        raise click.UsageError(f"--until {day_of(until)} is before --since {day_of(since)}")
    if trace:
        with session.client() as client:
            asked = traces.requests(client, since, end, user or session.as_user)
        traces.write(asked)
        session.note(f"({count(len(asked), 'request')})")
        return
    with session.client() as client:
        found = client.usage(since=since, until=end, by=by, user=user or session.as_user)
    if session.json:
        session.emit(as_json(found, by, price))
    elif as_csv:
        write_csv(found, by, price)
    elif found.rows:
        lines, left_out = usage_table(found, by, price)
        session.lines([period(found, by), *lines])
        if datetime.now(UTC) - since < timedelta(days=1) and since.astimezone(UTC).time() != time():
            session.note("(sums are kept by day: all of each day counts)")
        if "WAIT" not in left_out:
            session.note("(WAIT, RUN: half of the jobs took up to the first time, 95 % up to the second)")
        if left_out:
            alone = ", nor for rows with nothing else" if ENDS_LEFT_OUT & set(left_out) else ""
            session.note(f"(no room here for {', '.join(left_out)}{alone}; --csv has all)")
    else:
        session.note(f"nothing was used, {period(found, ())}")


def period(found: UsageReply, by: Sequence[str]) -> str:
    """Return the days in words."""
    first, last = (
        datetime.fromtimestamp(at_ms / 1000, UTC).date() for at_ms in (found.since_ms, found.until_ms - 1)
    )
    days = f"{first} to {last} (UTC)" if first < last else f"{first} (UTC)"
    return days + (f", by {', '.join(title_of(name).lower() for name in by)}" if by else "")


def day_of(at: datetime) -> date:
    """Return a time's day in UTC."""
    return at.astimezone(UTC).date()


class Column(NamedTuple):
    """A column of the table: its title, and the cells of all rows and of the total."""

    title: str
    cells: list[str]

    @property
    def width(self) -> int:
        """How wide it wants to be."""
        return max(width_of(text) for text in (self.title, *self.cells))


def usage_table(found: UsageReply, by: Sequence[str], price: float | None) -> tuple[list[str], list[str]]:
    """Return the table and the titles of columns that it has no room for.

    What used most stands at the top unless it is sorted by day; the last line is the total.
    """
    rows = list(found.rows if "day" in by else sorted(found.rows, key=lambda row: -row.engine_ms))
    names = [Column(title_of(name), [one_line(getattr(row, name)) or "-" for row in rows]) for name in by]
    if len(rows) > 1:
        for column in names:
            column.cells.append("" if column is not names[0] else "total")
        rows.append(found.total)
    numbers, left_out = _fitting(_numbers(rows, price), names)
    told = [number for number, row in enumerate(rows) if row is found.total or _tells(row, left_out)]
    columns = [Column(title, [cells[number] for number in told or range(len(rows))])
               for title, cells in (*_narrowed(names, numbers), *numbers)]  # fmt: skip
    shown: list[Row] = [
        [
            Cell(text, "red" if column.title == "DEAD" and text != "0" else "")
            for column, text in zip(columns, texts, strict=True)
        ]
        for texts in zip(*(column.cells for column in columns), strict=True)
    ]
    lines = table([column.title for column in columns], shown, right=range(len(names), len(columns)))
    if len(rows) > len(found.rows):
        lines[-1] = click.style(click.unstyle(lines[-1]), bold=True)
    return lines, left_out


def _tells(row: UsageRow, left_out: Sequence[str]) -> bool:
    """Tell whether a row has a number that is no 0 in a column that has room."""
    counts = ["done", "dead", "prompt_tokens", "output_tokens", "engine_ms"]
    counts += [name for name in ("cancelled", "expired") if title_of(name) not in left_out]
    return any(getattr(row, name) for name in counts)


def title_of(name: str) -> str:
    """Return the title of a column that has a name on the wire."""
    return {"task_type": "TYPE", "cancelled": "CANC.", "expired": "EXP."}.get(name, name.upper())


def _numbers(rows: list[UsageRow], price: float | None) -> list[Column]:
    """Return all columns of numbers; of ends that nobody met with, none."""
    columns = [
        Column(title_of(name), [_count(getattr(row, name)) for row in rows])
        for name in ENDS
        if name == "done" or any(getattr(row, name) for row in rows)
    ]
    columns += [
        Column("PROMPT", [number(row.prompt_tokens) for row in rows]),
        Column("OUTPUT", [number(row.output_tokens) for row in rows]),
        Column("ENGINE", [short_duration(row.engine_ms / 1000) for row in rows]),
        Column("WAIT", [_both(row.wait_p50_ms, row.wait_p95_ms) for row in rows]),
        Column("RUN", [_both(row.run_p50_ms, row.run_p95_ms) for row in rows]),
    ]
    if price is not None:
        columns.append(Column("COST", _costs([cost_of(row, price) for row in rows])))
    return columns


def _costs(costs: list[float]) -> list[str]:
    """Return costs with the decimals that the smallest one is worth, as long as all are small."""
    decimals = 4 if 0 < min(filter(None, costs), default=0.0) < 0.1 and max(costs) < 100 else 2
    return [f"{cost:,.{decimals}f}" for cost in costs]


def _fitting(numbers: list[Column], names: list[Column]) -> tuple[list[Column], list[str]]:
    """Return the columns of numbers that fit beside the names, and the titles of the others."""
    left = room() - sum(min(column.width, NAME_CHARS) + len(GAP) for column in names) + len(GAP)
    left_out: list[str] = []
    for title in GIVE_WAY:
        if sum(column.width + len(GAP) for column in numbers) <= left:
            break
        left_out += [column.title for column in numbers if column.title == title]
        numbers = [column for column in numbers if column.title != title]
    return numbers, left_out


def _narrowed(names: list[Column], numbers: list[Column]) -> list[Column]:
    """Return the names cut so that no number has to be; the widest columns give way first."""
    left = room() - sum(column.width + len(GAP) for column in numbers) - len(GAP) * (len(names) - 1)
    widths = [column.width for column in names]
    while sum(widths) > left and max(widths) > LEAST_CHARS:
        widths[widths.index(max(widths))] -= 1
    return [
        Column(column.title, [cut(text, width) for text in column.cells])
        for column, width in zip(names, widths, strict=True)
    ]


def _count(count: int) -> str:
    return f"{count:,}" if count < 100_000 else number(count)


def _both(p50_ms: int | None, p95_ms: int | None) -> str:
    if p50_ms is None or p95_ms is None:
        return "-"
    return f"{short_duration(p50_ms / 1000)}/{short_duration(p95_ms / 1000)}"


def cost_of(row: UsageRow, price: float) -> float:
    """Return what its engine time costs."""
    return row.engine_ms / MS_AN_HOUR * price


def figures(row: UsageRow, price: float | None) -> dict[str, Any]:
    """Return the numbers of a row for programs, times in seconds; None where there are none."""
    told: dict[str, Any] = {name: getattr(row, name) for name in (*ENDS, "prompt_tokens", "output_tokens")}
    for name in ("engine", "wait_p50", "wait_p95", "run_p50", "run_p95"):
        ms = getattr(row, f"{name}_ms")
        told[f"{name}_s"] = None if ms is None else ms / 1000
    if price is not None:
        told["cost"] = round(cost_of(row, price), 4)
    return told


def as_json(found: UsageReply, by: Sequence[str], price: float | None) -> dict[str, Any]:
    """Return the answer as JSON has it."""
    return {
        "since_ms": found.since_ms,
        "until_ms": found.until_ms,
        "rows": [{name: getattr(row, name) for name in by} | figures(row, price) for row in found.rows],
        "total": figures(found.total, price),
    }


def write_csv(found: UsageReply, by: Sequence[str], price: float | None) -> None:
    """Print the rows as CSV, without a total: a sheet makes its own."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*by, *figures(found.total, price)])
    for row in found.rows:
        names = [clean(getattr(row, name)) for name in by]
        writer.writerow([*names, *figures(row, price).values()])
