"""Traces: who asked for how much, and when. From a CSV file to requests, and what may be varied in them.

Two shapes are known by their first line: `t_s,user,in_tokens,out_tokens` with `model` and `priority` if there are any,
and Azure's public traces, `TIMESTAMP,ContextTokens,GeneratedTokens`. Other columns are passed over.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import TypeVar

import msgspec

from lmq_broker.core.fields import check_name
from lmq_broker.forecast.replay import Request
from lmq_proto.bounds import PRIORITY_MAX, TOKENS
from lmq_proto.errors import BadField

ROWS_MAX = 1_000_000
SPAN_MAX_S = 366 * 86400
"""Between the first request and the last."""
NO_USER = "all"
"""Whose requests they are where the trace does not tell."""
PRIORITIES = {"interactive": 8, "normal": 5, "background": 2}

_OURS = ("t_s", "user", "in_tokens", "out_tokens")
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")

_Value = TypeVar("_Value")


class BadTrace(Exception):
    """A trace cannot be used; the text says where, what stands there and what may."""

    def __init__(self, line: int, column: str, value: str, limit: str) -> None:
        shown = value if len(value) <= 40 else f"{value[:37]}..."
        super().__init__(f"line {line}, {column} = {shown!r}: allowed is {limit}")
        self.line, self.column, self.value, self.limit = line, column, value, limit


def read(lines: Iterable[str]) -> list[Request]:
    """Return the requests of a CSV file in the order of their times; the first is at 0.

    Raises:
        BadTrace: of the first row that is wrong.
    """
    rows = csv.DictReader(lines)
    try:
        names = tuple(rows.fieldnames or ())
        if set(_OURS) <= set(names):
            found = [_ours(_Row(row, rows.line_num)) for row in _bounded(rows)]
        elif set(_AZURE) <= set(names):
            found = [_azures(_Row(row, rows.line_num)) for row in _bounded(rows)]
        else:
            raise BadTrace(
                1, "header", ",".join(names), f"{','.join(_OURS)}[,model,priority] or {','.join(_AZURE)}"
            )
    except csv.Error as error:
        raise BadTrace(rows.line_num + 1, "row", str(error), "a row of a CSV file") from error
    if not found:
        raise BadTrace(2, "row", "", "one request at least")
    first_s = min(at_s for at_s, _, _ in found)
    for at_s, line, _ in found:
        if at_s - first_s > SPAN_MAX_S:
            raise BadTrace(
                line, "time", f"{at_s - first_s:.0f} s", f"up to {SPAN_MAX_S} s after the first request"
            )
    requests = [
        msgspec.structs.replace(request, at_ms=round((at_s - first_s) * 1000)) for at_s, _, request in found
    ]
    return sorted(requests, key=lambda each: each.at_ms)


def stretched(requests: Iterable[Request], factor: float) -> list[Request]:
    """Return the same requests with all times longer by a factor: 2 is half the load."""
    return [msgspec.structs.replace(each, at_ms=round(each.at_ms * factor)) for each in requests]


def dealt(requests: Sequence[Request], models: int, seed: int) -> list[Request]:
    """Return the same requests with a model for each user, dealt like cards: shuffled by the seed, then in turn."""
    users = sorted({each.user for each in requests})
    Random(seed).shuffle(users)
    model = {user: f"model-{number % models + 1}" for number, user in enumerate(users)}
    return [msgspec.structs.replace(each, model=model[each.user]) for each in requests]


class _Row:
    """A row whose cells are read one by one; each knows where it stands."""

    def __init__(self, cells: dict[str, str | None], line: int) -> None:
        self.line = line
        self._cells = cells

    def __contains__(self, column: str) -> bool:
        return bool(self._cells.get(column))

    def read(self, column: str, convert: Callable[[str], _Value], limit: str) -> _Value:
        """Return a cell as it is meant.

        Raises:
            BadTrace: it is not what it should be.
        """
        text = (self._cells.get(column) or "").strip()
        try:
            return convert(text)
        except (ValueError, BadField) as error:
            raise BadTrace(self.line, column, text, limit) from error

    def name(self, column: str) -> str:
        """Return a cell that is a name."""
        return self.read(column, _name, "1 to 128 printable characters")

    def tokens(self, column: str) -> int:
        """Return a cell that is a number of tokens."""
        return self.read(
            column, lambda text: _within(int(text), 0, TOKENS), f"a whole number from 0 to {TOKENS}"
        )


_Found = tuple[float, int, Request]
"""(seconds, line, request)."""


def _ours(row: _Row) -> _Found:
    at_s = row.read("t_s", lambda text: _within(float(text), 0.0, 1e11), "seconds, 0 or more")
    request = Request(
        0, row.name("user"), row.tokens("in_tokens"), row.tokens("out_tokens"),
        model=row.name("model") if "model" in row else "model",
        priority=row.read("priority", _priority, f"0 to {PRIORITY_MAX}, or {', '.join(PRIORITIES)}")
        if "priority" in row
        else PRIORITIES["normal"],
    )  # fmt: skip
    return at_s, row.line, request


def _azures(row: _Row) -> _Found:
    at_s = row.read("TIMESTAMP", _seconds, "a time as 2023-11-16 18:15:46.6805900")
    request = Request(0, NO_USER, row.tokens("ContextTokens"), row.tokens("GeneratedTokens"))
    return at_s, row.line, request


def _bounded(rows: "csv.DictReader[str]") -> Iterable[dict[str, str | None]]:
    for number, row in enumerate(rows, 1):
        if number > ROWS_MAX:
            raise BadTrace(
                rows.line_num, "row", f"{number}", f"up to {ROWS_MAX} rows; take a part of the trace"
            )
        yield row


def _name(text: str) -> str:
    check_name("name", text)
    return text


def _priority(text: str) -> int:
    return PRIORITIES[text] if text in PRIORITIES else _within(int(text), 0, PRIORITY_MAX)


def _seconds(text: str) -> float:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


_Number = TypeVar("_Number", int, float)


def _within(value: _Number, low: _Number, high: _Number) -> _Number:
    if not low <= value <= high:
        raise ValueError(value)
    return value
