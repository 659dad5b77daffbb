"""How many jobs at once an instance of a model server bears, found from the pace of its streams.

Pure: no clock, no chance, no I/O. What happens is told with its time in seconds of any monotonic clock; nothing is ever
cancelled, for a limit below what runs only keeps more from coming. How many tokens one job may take is the broker's
business: here is only how many jobs of the usual size fit.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from lmq_worker.gap_line import GapLine

START = 2
# A window is two slices of one second; one in which fewer gaps were seen says nothing.
WINDOW_SLICES = 2
GAPS_LEAST = 4

# One more job at once has to bring so much more text in all.
GAIN_LEAST = 0.005
# Share of the longest gap that the line may use up; the rest is for what it does not foresee.
SLO_RATIO = 0.9
# While no line is known, more is tried as long as gaps stay below this share of the longest.
TRY_RATIO = 0.7
GROWTH_RATIO = 0.3
# Growth needs so many of the jobs allowed to be written at the same time: who only waits needs no company.
BUSY_RATIO = 0.9
# The line is never exact: a limit that is so near the present one counts as the same.
STEADY_RATIO = 0.05

# Seconds in which never all jobs were written at once, after which the others are taken to wait for a slot; the second
# where the limit is at most FEW.
QUEUED_S, QUEUED_FEW_S, FEW = 8, 3, 3
# How long until one more slot is tried: first, and at most.
SLOT_TRY_S, SLOT_TRY_MAX_S = 300.0, 3600.0

# Most gaps being so much longer than the line says means that the cache thrashes; a few very long ones are a stall.
# Gaps that stay so far off it, longer or shorter, mean that the engine is not what it was: after so many windows the
# line is drawn anew, from them alone.
OFF_RATIO, OFF_WINDOWS = 1.35, 5
GUARD_SHARE, GUARD_SLO_RATIO = 0.5, 0.5
GUARD_CUT, GUARD_HOLD_S, GUARD_PER_WINDOW = 0.8, 30.0, 0.5
ERROR_CUT, ERROR_HOLD_S = 0.7, 30.0

# Share of the cache that jobs of the usual size may fill; how many must have ended before that size is known.
CACHE_RATIO, SIZES_LEAST = 0.9, 5
# What the latest job counts in that size, and the latest window in how much reading prompts slows writing.
SIZE_SHARE = READING_SHARE = 0.02


class LimitedBy(StrEnum):
    """What keeps a limit from being higher."""

    SETTING = "setting"
    """A person said so."""
    SLOTS = "slots"
    """The endpoint has no more: as it says, or as it was found."""
    GAIN = "gain"
    """One more would bring hardly more text."""
    SLO = "slo"
    """Text would come too slowly."""
    CACHE = "cache"
    """No more jobs of the usual size fit."""
    GUARD = "guard"
    """The cache thrashed."""
    ERRORS = "errors"
    """Jobs failed as they do when there are too many."""
    MOST = "most"
    """The setting that bounds every limit."""
    PROBE = "probe"
    """Nothing so far: more is tried when there is work for it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known of an instance, and asked of it, from the start."""

    gap_s: float = 0.1
    """Longest mean gap between two tokens of a stream."""
    most: int = 256
    slots: int = 0
    """As the endpoint says; 0: it does not, they are to be found."""
    cache_tokens: int = 0
    """Tokens that all jobs at the instance may hold together; 0: not known."""


class Request:
    """One job at the instance, from its request to its end."""

    __slots__ = ("began_s", "heard_s")

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.heard_s = -math.inf
        """When its latest piece came."""

    @property
    def is_stream(self) -> bool:
        """Tell whether any of its text has come."""
        return self.heard_s > -math.inf


class KneeFit:
    """The limit of one instance.

    Where the endpoint says how many slots it has, that is the limit, less what errors, a thrashing cache or the size of
    the jobs take away. Where it does not, the limit grows from START to the knee of the line `gap = a + b * streams`.
    """

    def __init__(self, bounds: Bounds, now_s: float) -> None:
        self._bounds = bounds
        self.limit = bounds.slots or min(START, bounds.most)
        self.limited_by = LimitedBy.SLOTS if bounds.slots else LimitedBy.PROBE
        self.line = GapLine()
        """Of gaps in which no prompt was read: those say how the engine writes."""
        self._other_line: GapLine | None = None
        self._reading_s = 0.0
        self._readings = 0

        self._running = 0
        self._streams = 0
        # The slice that is under way, up to the latest event.
        self._slice_s = now_s
        self._event_s = now_s
        self._running_s = 0.0
        self._slice_peak = 0
        self._slices: deque[_Slice] = deque(maxlen=QUEUED_S)
        # The window that is under way.
        self._window_slices = 0
        self._window_peak = 0
        self._running_peak = 0
        self._gaps = _Gaps()
        self._pure_gaps = _Gaps()
        self._pure_since_s = now_s

        self._slots_found = 0
        self._slot_tried = False
        self._slot_wait_s = SLOT_TRY_S
        self._slot_try_s = 0.0
        self._guarded = math.inf
        self._guarded_until_s = 0.0
        self._cut_s = -math.inf
        self._held_until_s = -math.inf
        self._sizes = 0
        self._size = 0.0

    @property
    def running(self) -> int:
        """How many requests are under way."""
        return self._running

    # --- what happens ---

    def begin(self, now_s: float) -> Request:
        """Take note of a request; what becomes of it is told with what this returns."""
        self.tick(now_s)
        self._running += 1
        self._running_peak = max(self._running_peak, self._running)
        return Request(now_s)

    def piece(self, request: Request, now_s: float, tokens: int = 1) -> None:
        """Take note of some text of a request."""
        self.tick(now_s)
        if request.is_stream:
            gap_s = now_s - request.heard_s
            long_s = OFF_RATIO * self.line.at(self._streams)
            self._gaps.add(gap_s, tokens, self._streams, long_s)
            if self._running == self._streams and request.heard_s >= self._pure_since_s:
                self._pure_gaps.add(gap_s, tokens, self._streams, long_s)
        else:
            self._streams += 1
            self._pure_since_s = now_s
            self._slice_peak = max(self._slice_peak, self._streams)
            self._window_peak = max(self._window_peak, self._streams)
        request.heard_s = now_s

    def end(self, request: Request, now_s: float, *, tokens: int = 0) -> None:
        """Take note of an end that says nothing against the endpoint.

        Args:
            request: what `begin` returned.
            now_s: the time.
            tokens: of its prompt and its answer; 0 where that is not known.
        """
        self._leave(request, now_s)
        if tokens:
            self._sizes += 1
            self._size += (tokens - self._size) * max(SIZE_SHARE, 1 / self._sizes)

    def fail(self, request: Request, now_s: float) -> None:
        """Take note of an error, a timeout, a lack of memory: the limit falls at once.

        What fails together counts once: a request from before the latest cut only prolongs the wait after it.
        """
        self._leave(request, now_s)
        self._held_until_s = now_s + ERROR_HOLD_S
        if request.began_s > self._cut_s:
            self._cut_s = now_s
            self.limit = max(1, int(self.limit * ERROR_CUT))
            self.limited_by = LimitedBy.ERRORS

    def tick(self, now_s: float) -> None:
        """Let time pass. Every event does so; this is for when there are none."""
        if now_s - self._slice_s > 2 * QUEUED_S:
            # Of a long silence the latest slices are enough: nothing changed in it.
            self._slice_s = self._event_s = now_s - QUEUED_S
            self._running_s = 0.0
            self._begin_window()
        while now_s >= self._slice_s + 1.0:
            self._slice_s += 1.0
            self._running_s += self._running * (self._slice_s - self._event_s)
            self._event_s = self._slice_s
            self._close_slice()
        self._running_s += self._running * (now_s - self._event_s)
        self._event_s = now_s

    def _leave(self, request: Request, now_s: float) -> None:
        self.tick(now_s)
        self._running -= 1
        if request.is_stream:
            self._streams -= 1
        else:
            self._pure_since_s = now_s

    # --- slices and windows ---

    def _close_slice(self) -> None:
        self._slices.append(_Slice(self._slice_peak, round(self._running_s)))
        self._running_s = 0.0
        self._slice_peak = self._streams
        self._window_slices += 1
        if self._window_slices == WINDOW_SLICES:
            self._close_window(self._slice_s)

    def _close_window(self, now_s: float) -> None:
        gaps = self._gaps
        is_off = self._pure_gaps.count >= GAPS_LEAST and self._fit(self._pure_gaps, now_s)
        if gaps.count >= GAPS_LEAST and self.line.is_known and not is_off:
            self._readings += 1
            reading_s = (gaps.mean_s - self.line.at(gaps.streams)) / gaps.streams
            self._reading_s += (reading_s - self._reading_s) * max(READING_SHARE, 1 / self._readings)
        if not self._bounds.slots:
            self._find_slots(now_s)
        self._set_limit(now_s)
        self._begin_window()

    def _begin_window(self) -> None:
        self._window_slices = 0
        self._gaps, self._pure_gaps = _Gaps(), _Gaps()
        self._window_peak, self._running_peak = self._streams, self._running

    def _fit(self, gaps: _Gaps, now_s: float) -> bool:
        """Take a window into the line, unless it is far off: enough of those in a row make a line of their own.

        Returns:
            Whether it was off.
        """
        line, expected_s = self.line, self.line.at(gaps.streams)
        if not line.is_known or expected_s / OFF_RATIO <= gaps.mean_s <= expected_s * OFF_RATIO:
            self._other_line = None
            line.add(gaps.streams, gaps.mean_s)
            return False
        self._guard(gaps, now_s)
        other = self._other_line
        if other is None:
            other = self._other_line = GapLine(line.base_s, line.per_stream_s)
        other.add(gaps.streams, gaps.mean_s)
        if other.windows >= OFF_WINDOWS:
            # What was found of the engine that it was holds no longer.
            self.line, self._other_line = other, None
            self._reading_s, self._readings = 0.0, 0
            self._guarded = math.inf
        return True

    def _guard(self, gaps: _Gaps, now_s: float) -> None:
        """Notice a cache that thrashes: gaps are far longer than the line says, and long."""
        if (
            gaps.mean_s > OFF_RATIO * self.line.at(gaps.streams)
            and gaps.mean_s > GUARD_SLO_RATIO * self._bounds.gap_s
            and gaps.long_count > GUARD_SHARE * gaps.count
        ):
            self._guarded = GUARD_CUT * gaps.streams
            self._guarded_until_s = now_s + GUARD_HOLD_S

    def _find_slots(self, now_s: float) -> None:
        """Notice how many slots there are, some jobs always waiting while others are written; try one more at times."""
        if self._slots_found and self._window_peak > self._slots_found:
            self._slots_found, self._slot_tried, self._slot_wait_s = 0, False, SLOT_TRY_S
        span = QUEUED_FEW_S if self.limit <= FEW else QUEUED_S
        seen = list(self._slices)[-span:]
        most, least = max(one.streams for one in seen), min(one.running for one in seen)
        if len(seen) == span and 0 < most < least and self._gaps.count:
            if self._slot_tried:
                self._slot_wait_s = min(2 * self._slot_wait_s, SLOT_TRY_MAX_S)
            self._slots_found, self._slot_tried = most, False
            self._slot_try_s = now_s + self._slot_wait_s
            self._slices.clear()
        elif self._slots_found and not self._slot_tried and now_s >= self._slot_try_s:
            self._slot_tried = True
            self._slices.clear()

    # --- the limit ---

    def _set_limit(self, now_s: float) -> None:
        target, by = min(self._limits(now_s))
        if target < self.limit:
            self.limit, self.limited_by = target, by
        elif now_s >= self._held_until_s:
            if target > self.limit and self._may_grow():
                self.limit = min(target, self.limit + max(1, int(self.limit * GROWTH_RATIO)))
            self.limited_by = by if self.limit == target else LimitedBy.PROBE

    def _may_grow(self) -> bool:
        if self._running_peak < self.limit:
            return False
        if self._bounds.slots:
            return True
        if self._window_peak < BUSY_RATIO * self.limit:
            return False
        return self.line.is_known or 0.0 < self._gaps.mean_s < TRY_RATIO * self._bounds.gap_s

    def _limits(self, now_s: float) -> list[tuple[int, LimitedBy]]:
        """Return all that bounds the limit now."""
        bounds, line = self._bounds, self.line
        found = [(float(bounds.most), LimitedBy.MOST)]
        if bounds.slots:
            found = [(bounds.slots, LimitedBy.SLOTS)]
        elif self._slots_found:
            found.append((self._slots_found + self._slot_tried, LimitedBy.SLOTS))
        if line.is_known and not bounds.slots:
            # Each stream stands for its share of the prompts that are read meanwhile, too.
            per_stream_s = line.per_stream_s + max(self._reading_s, 0.0)
            found.append((self._steady(gain_limit(line.base_s, per_stream_s)), LimitedBy.GAIN))
            if per_stream_s > 0.0:
                room_s = SLO_RATIO * bounds.gap_s - line.base_s
                found.append((self._steady(room_s / per_stream_s), LimitedBy.SLO))
        if self._guarded < math.inf:
            windows = max(now_s - self._guarded_until_s, 0.0) // WINDOW_SLICES
            found.append((self._guarded + GUARD_PER_WINDOW * windows, LimitedBy.GUARD))
        if bounds.cache_tokens and self._sizes >= SIZES_LEAST:
            found.append((CACHE_RATIO * bounds.cache_tokens / self._size, LimitedBy.CACHE))
        return [(max(1, int(limit)), by) for limit, by in found]

    def _steady(self, limit: float) -> float:
        return self.limit if abs(int(limit) - self.limit) <= STEADY_RATIO * self.limit else limit


def gain_limit(base_s: float, per_stream_s: float) -> float:
    """Return how many streams there may be before one more brings less than GAIN_LEAST more text.

    n streams bring n / (a + b*n) tokens a second, which is a / ((n - 1) * (a + b*n)) more than n - 1 of them.
    """
    a, b, most = base_s, per_stream_s, 1.0 / GAIN_LEAST
    if a <= 0.0:
        return 1.0
    if b <= 0.0:
        return 1.0 + most
    half = (a - b) / (2 * b)
    return math.sqrt(half * half + a * (1.0 + most) / b) - half


@dataclass(slots=True)
class _Gaps:
    """The gaps between tokens of all streams in a window."""

    count: int = 0
    sum_s: float = 0.0
    streams_sum: int = 0
    long_count: int = 0

    def add(self, gap_s: float, tokens: int, streams: int, long_s: float) -> None:
        self.count += tokens
        self.sum_s += gap_s
        self.streams_sum += tokens * streams
        if gap_s > tokens * long_s:
            self.long_count += tokens

    @property
    def mean_s(self) -> float:
        return self.sum_s / self.count if self.count else 0.0

    @property
    def streams(self) -> float:
        """How many streams there were, as the mean gap saw it."""
        return self.streams_sum / self.count


@dataclass(frozen=True, slots=True)
class _Slice:
    """One second: most streams at once, and how many requests were under way in the mean."""

    streams: int
    running: int
