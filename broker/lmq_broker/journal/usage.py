"""The table of daily sums: added to in the commit that ends the jobs, summed up further when somebody asks."""

import datetime as dt
from collections.abc import Iterable
from sqlite3 import Connection
from typing import Any

import msgspec

from lmq_broker.core import histograms
from lmq_broker.core.histograms import Counts, quantile
from lmq_broker.core.reads import ReadUsage, UsageSums
from lmq_broker.core.records import UsageAdded
from lmq_proto.messages import UsageRow

SUMS = ("done", "dead", "cancelled", "expired", "prompt_tokens", "output_tokens", "engine_ms")
_KEY = ("day", "user", "model", "task_type")
_TIMES = ("waits", "runs")
_ADD = (
    f"INSERT INTO usage VALUES ({','.join('?' * (len(_KEY) + len(SUMS) + len(_TIMES)))})"
    f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET "
    + ", ".join([f"{name}={name}+excluded.{name}" for name in SUMS])
    + "".join([f", {name}=add_counts({name}, excluded.{name})" for name in _TIMES])
)
_EPOCH_ORDINAL = dt.date(1970, 1, 1).toordinal()

_encode = msgspec.msgpack.Encoder().encode
_counts = msgspec.msgpack.Decoder(Counts).decode


def prepare(connection: Connection) -> None:
    """Teach a connection to add up counts; before the first `add`."""
    connection.create_function("add_counts", 2, _added, deterministic=True)


def _added(old: bytes, more: bytes) -> bytes:
    counts = _counts(old)
    histograms.add(counts, _counts(more))
    return _encode(counts)


def add(connection: Connection, rows: Iterable[UsageAdded]) -> None:
    """Add what turns added, in the open transaction."""
    connection.executemany(_ADD, [
        (
            row.day, row.user, row.model, row.task_type, row.ended.get("done", 0), row.ended.get("dead", 0),
            row.ended.get("cancelled", 0), row.ended.get("expired", 0), row.prompt_tokens, row.output_tokens,
            row.engine_ms, _encode(row.waits), _encode(row.runs),
        )
        for row in rows
    ])  # fmt: skip


class _Sum:
    """What some rows come to."""

    __slots__ = ("_sums", "_times")

    def __init__(self) -> None:
        self._sums = [0] * len(SUMS)
        self._times: tuple[Counts, Counts] = ({}, {})

    def add(self, sums: tuple[int, ...], times: tuple[Counts, Counts]) -> None:
        self._sums = [mine + more for mine, more in zip(self._sums, sums, strict=True)]
        for mine, more in zip(self._times, times, strict=True):
            histograms.add(mine, more)

    def row(self, names: dict[str, str]) -> UsageRow:
        """Return it as people see it, under the names that it is of."""
        waits, runs = self._times
        fields: dict[str, Any] = names | dict(zip(SUMS, self._sums, strict=True))
        return UsageRow(
            wait_p50_ms=quantile(waits, 0.5), wait_p95_ms=quantile(waits, 0.95),
            run_p50_ms=quantile(runs, 0.5), run_p95_ms=quantile(runs, 0.95), **fields,
        )  # fmt: skip


def read(connection: Connection, question: ReadUsage) -> UsageSums:
    """Return a page of sums and the sum of all.

    Whatever there is on disk, hardly more than two pages of it are in memory: what can no longer be on this page is
    dropped on the way.
    """
    sql = "SELECT * FROM usage WHERE day BETWEEN ? AND ?" + (" AND user=?" if question.user else "")
    given: list[Any] = [question.first, question.last, *([question.user] if question.user else [])]
    places = [_KEY.index(name) for name in question.by]
    total = _Sum()
    page: dict[tuple[str, ...], _Sum] = {}
    beyond: tuple[str, ...] | None = None
    for day, *rest in connection.execute(sql, given):
        names = (_date(day), *rest[:3])
        sums, times = tuple(rest[3:-2]), (_counts(rest[-2]), _counts(rest[-1]))
        total.add(sums, times)
        key = tuple([names[place] for place in places])
        if (question.after and key <= question.after) or (beyond is not None and key > beyond):
            continue
        page.setdefault(key, _Sum()).add(sums, times)
        if len(page) > 2 * question.limit:
            kept = sorted(page)[: question.limit + 1]
            beyond = kept[-1]
            page = {key: page[key] for key in kept}
    keys = sorted(page)
    rows = [page[key].row(dict(zip(question.by, key, strict=True))) for key in keys[: question.limit]]
    return UsageSums(rows, total.row({}), len(keys) > question.limit)


def _date(day: int) -> str:
    """Return a day as `2026-11-23`; one that no calendar has as the nearest."""
    ordinal = min(max(day + _EPOCH_ORDINAL, 1), dt.date.max.toordinal())
    return dt.date.fromordinal(ordinal).isoformat()
