"""Numbers as people say them: durations, times of day, sizes, where a job is. Nothing is printed here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from lmq.cli.errors import clean

if TYPE_CHECKING:
    from lmq.results import Hold, JobStatus

SHORT_CHARS = 6

_STEPS = ((10, 1), (60, 5), (120, 10), (600, 60), (3600, 300), (21600, 1800))
"""Up to so many seconds the ends of an interval are multiples of so many."""
NOW_S = 1.5
"""What comes within it comes now."""
WITHIN = 10
"""An interval that begins so many times sooner than it ends begins at any moment."""


def now_ms() -> int:
    """Return the wall clock, Unix milliseconds."""
    return time.time_ns() // 1_000_000


def duration(seconds: float) -> str:
    """Return a duration in the unit that fits: `0.4 s`, `41 s`, `3 min`, `2 h 5 min`."""
    if seconds < 0.95:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(round(minutes / 60), 24)
    return f"{days} d {rest} h" if rest and days < 3 else f"{days} d"


def short_duration(seconds: float) -> str:
    """Return a duration for a narrow column: `0.4s`, `41s`, `3m`, `2h05m`, `4d`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    if seconds < 99.5:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, rest = divmod(minutes, 60)
    return f"{hours}h{rest:02}m" if hours < 100 else f"{hours:,}h"


def number(count: int) -> str:
    """Return a number for a narrow column: `512`, `1.4k`, `23M`."""
    value, units = float(count), iter(("", "k", "M", "G", "T", "P"))
    unit = next(units)
    while value >= 999.5 and unit != "P":
        value, unit = value / 1000, next(units)
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:,.0f}{unit}"


def span(bounds: tuple[float, float]) -> str:
    """Return an interval, no more exact than it is: `20-50 s`, `50 s to 4 min`; its ends are rounded outwards."""
    low, high = bounds
    last = _outwards(high, math.ceil)
    first = min(_outwards(low, math.floor), last)
    begins, ends = _whole(first), _whole(last)
    if first == last:
        return ends
    number, _, unit = ("1 min" if first == 60 and last >= 120 else begins).partition(" ")
    return f"{number}-{ends}" if unit == ends.partition(" ")[2] else f"{begins} to {ends}"


def when(bounds: tuple[float, float], verb: str) -> str:
    """Return when something comes about: `starts now`, `starts within 30 s`, `done in 60-110 s`."""
    low, high = bounds
    if high <= NOW_S:
        return f"{verb} now"
    if low * WITHIN < high:
        return f"{verb} within {_whole(_outwards(high, math.ceil))}"
    return f"{verb} in {span(bounds)}"


def _outwards(seconds: float, rounding: Callable[[float], int]) -> int:
    step = next((step for most, step in _STEPS if seconds < most), 3600)
    return rounding(seconds / step) * step


def _whole(seconds: int) -> str:
    """Return a rounded time: in seconds up to two minutes."""
    return f"{seconds} s" if seconds < 120 else duration(seconds)


def since(at_ms: int, now: int | None = None) -> str:
    """Return how long ago something was."""
    return duration(((now_ms() if now is None else now) - at_ms) / 1000)


def until(at_ms: int) -> str:
    """Return how long it is until something."""
    return duration((at_ms - now_ms()) / 1000)


def time_of_day(at_ms: int) -> str:
    """Return a local time: `18:04:05` for today, with the date in front otherwise."""
    at = datetime.fromtimestamp(at_ms / 1000).astimezone()
    today = datetime.now().astimezone().date()
    return at.strftime("%H:%M:%S" if at.date() == today else "%Y-%m-%d %H:%M:%S")


def size(count: int) -> str:
    """Return bytes in the unit that fits: `512 bytes`, `1.4 MB`."""
    if count < 1000:
        return f"{count} bytes"
    number = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 999.5 or unit == "TB":
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    raise AssertionError("the last unit takes all")


def count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 job`, `3 jobs`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short(job_id: str) -> str:
    """Return the last characters of an id, which are enough to name a job."""
    return job_id[-SHORT_CHARS:]


def model_of(status: JobStatus) -> str:
    """Return the model a job runs on, or those it asks for."""
    return clean(status.model or "/".join(status.models) or "any")


def where(status: JobStatus) -> str:
    """Return where a job is, as a table's last column says it."""
    if status.state == "ready":
        return _waiting(status)
    if status.state == "leased":
        return clean(_running(status))
    if status.state == "delayed":
        return f"starts in {until(status.due_at_ms)}" if status.due_at_ms else "waits to try again"
    if status.state == "blocked":
        return f"waits for {count(len(status.waits_for), 'job')}"
    if status.state == "done":
        started = status.started_at_ms or status.created_at_ms
        took = duration((status.finished_at_ms - started) / 1000)
        return f"took {took}" + (f", attempt {status.attempt}" if status.attempt > 1 else "")
    if status.error is not None:
        return clean(status.error.message or status.error.code)
    return ""


def held(hold: Hold) -> str:
    """Return a pause or drain in words: `paused by tom for 2 h (gaming)`."""
    text = "paused" if hold.kind == "pause" else "draining"
    text += f" by {hold.by}" if hold.by else ""
    text += f" for another {until(hold.until_ms)}" if hold.until_ms else ""
    return clean(text + (f" ({hold.reason})" if hold.reason else ""))


def place_of(status: JobStatus) -> str:
    """Return a ready job's place in line, or what keeps it from running whatever its place is."""
    return clean(status.hindrance) or (f"{status.ahead:,} ahead" if status.ahead else "next")


def _waiting(status: JobStatus) -> str:
    parts = [place_of(status)] if status.ahead is not None else []
    if status.starts_in_s is not None:
        parts.append(when(status.starts_in_s, "starts"))
    if status.attempt:
        parts.append(f"after attempt {status.attempt}")
    return ", ".join(parts)


def _running(status: JobStatus) -> str:
    parts = [status.stage or status.phase or "sent"]
    if status.progress:
        parts[0] += f" {status.progress:.0%}"
    if status.done_in_s is not None:
        parts.append(when(status.done_in_s, "done"))
    if status.tokens:
        parts.append(count(status.tokens, "token"))
    if status.tokens_per_s:
        parts.append(f"{status.tokens_per_s:.0f}/s")
    return ", ".join(parts)
