"""How many jobs at once an instance bears: each rule of the limit, on a clock that the test turns."""

from __future__ import annotations

import itertools
import math

import pytest

from lmq_worker.concurrency import Bounds, KneeFit, LimitedBy, Request, gain_limit
from lmq_worker.gap_line import GapLine

SLO_S = 0.1


class Play:
    """An endpoint that writes as the test says, and a queue before it that never runs dry."""

    def __init__(self, **bounds: float) -> None:
        self.now_s = 1000.0
        self.fit = KneeFit(Bounds(**bounds), self.now_s)  # type: ignore[arg-type]  # ints and floats by name
        self.streams: list[Request] = []
        self.waiting: list[Request] = []

    def begin(self, count: int = 1) -> list[Request]:
        begun = [self.fit.begin(self.now_s) for _ in range(count)]
        self.waiting += begun
        return begun

    def answer(self, count: int) -> None:
        """Let the first of those that wait be streams."""
        for _ in range(count):
            request = self.waiting.pop(0)
            self.fit.piece(request, self.now_s)
            self.streams.append(request)

    def stream(self, count: int) -> None:
        """Have as many streams as this, none waiting."""
        while len(self.streams) > count:
            self.fit.end(self.streams.pop(), self.now_s)
        self.begin(count - len(self.streams))
        self.answer(len(self.waiting))

    def write(self, seconds: float, gap_s: float) -> None:
        """Write a token of each stream every `gap_s`."""
        began_s, steps = self.now_s, round(seconds / gap_s)
        for step in range(steps):
            self.now_s = began_s + seconds * (step + 1) / steps
            for request in self.streams:
                self.fit.piece(request, self.now_s)
        self.fit.tick(self.now_s)

    def saturate(self, windows: int, *, base_s: float, per_stream_s: float, slots: int = 1000) -> list[int]:
        """Use the limit up in each window of an engine with so many slots; return the limits."""
        limits = []
        for _ in range(windows):
            while len(self.streams) + len(self.waiting) < self.fit.limit:
                self.begin()
            self.answer(min(len(self.waiting), slots - len(self.streams)))
            self.write(2.0, base_s + per_stream_s * len(self.streams))
            limits.append(self.fit.limit)
            while len(self.streams) + len(self.waiting) > self.fit.limit and self.streams:
                self.fit.end(self.streams.pop(), self.now_s)
        return limits

    def line(self, base_s: float = 0.02, per_stream_s: float = 0.002) -> None:
        """Let it learn how fast the endpoint writes: 2 to 5 streams."""
        for streams in (2, 3, 4, 5):
            self.stream(streams)
            self.write(2.0, base_s + per_stream_s * streams)

    @property
    def said(self) -> tuple[int, LimitedBy]:
        return self.fit.limit, self.fit.limited_by


# --- start and growth ---


def test_it_starts_at_two_or_at_the_slots_that_the_endpoint_says() -> None:
    assert Play().said == (2, LimitedBy.PROBE)
    assert Play(most=1).fit.limit == 1
    assert Play(slots=7).said == (7, LimitedBy.SLOTS)


def test_it_grows_by_three_tenths_or_one_a_window() -> None:
    limits = [2, *Play().saturate(12, base_s=0.015, per_stream_s=0.0001)]
    assert limits == [2, 3, 4, 5, 6, 7, 9, 11, 14, 18, 23, 29, 37]


def test_it_does_not_grow_while_fewer_run_than_may() -> None:
    play = Play()
    play.saturate(4, base_s=0.02, per_stream_s=0.001)
    assert play.fit.limit == 6
    play.stream(5)
    play.write(20.0, 0.025)
    assert play.fit.limit == 6


def test_it_does_not_grow_while_some_only_wait() -> None:
    """Two of six are not answered yet: a seventh would wait as well."""
    play = Play()
    play.saturate(4, base_s=0.02, per_stream_s=0.001)
    play.stream(4)
    play.begin(2)
    play.write(4.0, 0.024)
    assert (play.fit.limit, play.fit.running) == (6, 6)


def test_it_never_grows_beyond_the_most() -> None:
    play = Play(most=5)
    assert play.saturate(8, base_s=0.015, per_stream_s=0.0001)[-1] == 5
    assert play.fit.limited_by is LimitedBy.MOST


def test_nothing_is_learnt_and_nothing_grows_where_no_text_is_streamed() -> None:
    play = Play()
    for _ in range(20):
        for request in play.begin(2):
            play.now_s += 3.0
            play.fit.piece(request, play.now_s)
            play.fit.end(request, play.now_s, tokens=100)
    assert play.said == (2, LimitedBy.PROBE)


def test_as_long_as_no_line_is_known_it_tries_more_while_gaps_are_well_below_the_longest() -> None:
    fast, slow = Play(), Play()
    for play, gap_s in ((fast, 0.069), (slow, 0.071)):
        play.stream(2)
        play.write(2.0, gap_s)
    assert (fast.fit.line.is_known, fast.fit.limit) == (False, 3)
    assert (slow.fit.line.is_known, slow.fit.limit) == (False, 2)


# --- the line ---


@pytest.mark.parametrize(("base_s", "per_stream_s"), [(0.02, 0.003), (0.0, 0.005), (0.03, 0.0)])
def test_the_line_is_found(base_s: float, per_stream_s: float) -> None:
    line = GapLine()
    for streams in (1, 2, 4):
        line.add(streams, base_s + per_stream_s * streams)
    assert line.base_s == pytest.approx(base_s, abs=1e-9)
    assert line.per_stream_s == pytest.approx(per_stream_s, abs=1e-9)


def test_neither_part_of_the_line_is_negative() -> None:
    falling, steep = GapLine(), GapLine()
    for streams in (1, 2, 3):
        falling.add(streams, 0.1 - 0.02 * streams)
        steep.add(streams, 0.02 * streams**3)
    assert falling.base_s == pytest.approx(0.06, abs=0.001)
    assert falling.per_stream_s == 0.0
    assert steep.base_s == 0.0
    assert steep.per_stream_s > 0.0


def test_a_line_is_not_drawn_through_one_point() -> None:
    line = GapLine()
    for _ in range(10):
        line.add(3, 0.05)
    assert not line.is_known


def test_where_the_number_of_streams_has_not_varied_lately_the_line_keeps_its_shape() -> None:
    line = GapLine()
    for streams in (1, 2, 3, 4):
        line.add(streams, 0.02 + 0.005 * streams)
    for _ in range(400):
        line.add(4, 0.04)
    for _ in range(400):
        line.add(4, 0.08)
    assert line.at(4) == pytest.approx(0.08, rel=0.01)
    assert line.base_s / line.per_stream_s == pytest.approx(4, rel=0.1)


def test_older_windows_count_less() -> None:
    line = GapLine()
    for _ in range(200):
        for streams in (2, 4):
            line.add(streams, 0.01 * streams)
    for _ in range(200):
        for streams in (2, 4):
            line.add(streams, 0.03 + 0.01 * streams)
    assert line.base_s == pytest.approx(0.03, abs=0.0001)


@pytest.mark.parametrize("base_s", [0.001, 0.015, 0.1])
@pytest.mark.parametrize("per_stream_s", [0.0001, 0.0006, 0.004, 0.05])
def test_the_gain_of_one_more_ends_where_the_definition_says(base_s: float, per_stream_s: float) -> None:
    def text(streams: int) -> float:
        return streams / (base_s + per_stream_s * streams)

    most = 1
    while text(most + 1) / text(most) - 1 >= 0.005:
        most += 1
    assert int(gain_limit(base_s, per_stream_s)) == most


def test_an_engine_that_only_shares_its_time_gains_nothing_and_one_that_never_slows_down_gains_long() -> None:
    assert gain_limit(0.0, 0.01) == 1
    assert gain_limit(0.01, 0.0) == 201


def test_the_limit_ends_where_text_would_get_too_slow() -> None:
    play = Play()
    assert play.saturate(20, base_s=0.025, per_stream_s=0.004)[-1] == 16
    assert play.fit.limited_by is LimitedBy.SLO


def test_the_limit_ends_where_one_more_would_bring_hardly_more() -> None:
    play = Play()
    limit = play.saturate(40, base_s=0.01, per_stream_s=0.001)[-1]
    assert limit == pytest.approx(gain_limit(0.01, 0.001), rel=0.06)
    assert play.fit.limited_by is LimitedBy.GAIN


def test_a_limit_that_the_line_puts_near_the_present_one_is_the_same() -> None:
    play = Play()
    play.saturate(20, base_s=0.01, per_stream_s=0.0016)
    settled = play.fit.limit
    play.saturate(20, base_s=0.0102, per_stream_s=0.00163)
    assert play.fit.limit == settled > 20


def test_a_server_that_cannot_keep_the_pace_at_all_gets_one_job_at_a_time() -> None:
    play = Play()
    for streams in (1, 2, 1, 2):
        play.stream(streams)
        play.write(4.0, 0.15 + 0.05 * streams)
    assert play.said == (1, LimitedBy.SLO)


def test_reading_prompts_counts_for_each_stream_that_stands_for_one() -> None:
    """Written at 20 + 3n ms; but every fourth step takes 100 ms more, because a prompt is read in it."""
    play = Play()
    play.saturate(25, base_s=0.02, per_stream_s=0.003)
    assert play.fit.limit == 23
    for step in range(8000):
        play.stream(play.fit.limit)
        prompt = play.fit.begin(play.now_s) if step % 4 == 0 else None
        play.now_s += 0.02 + 0.003 * len(play.streams) + (0.1 if prompt else 0.0)
        for request in play.streams:
            play.fit.piece(request, play.now_s)
        if prompt:
            play.fit.end(prompt, play.now_s)
    # 20 + 3n + 25 is 90 where n is 15.
    assert play.fit.limit == pytest.approx(15, abs=1)
    assert play.fit.line.base_s == pytest.approx(0.02, rel=0.1)


# --- slots ---


def test_slots_are_found_when_some_always_wait_while_others_are_written() -> None:
    play = Play()
    limits = play.saturate(12, base_s=0.02, per_stream_s=0.001, slots=5)
    assert max(limits) == 6
    assert play.said == (5, LimitedBy.SLOTS)


def test_of_few_slots_three_seconds_are_enough() -> None:
    play = Play()
    play.begin(2)
    play.answer(1)
    play.write(2.0, 0.02)
    assert play.fit.limit == 2
    play.write(2.0, 0.02)
    assert play.said == (1, LimitedBy.SLOTS)


def test_a_place_that_is_free_for_a_moment_hides_no_slots() -> None:
    """Between an end and the next request there is a way to the broker and back."""
    play = Play()
    play.saturate(3, base_s=0.02, per_stream_s=0.001)
    play.stream(4)
    play.begin(1)
    for _ in range(12):
        play.write(0.98, 0.02)
        play.fit.end(play.streams.pop(0), play.now_s)
        play.now_s += 0.005
        play.begin(1)
        play.answer(1)
    assert play.said == (4, LimitedBy.SLOTS)


def test_prompts_that_are_read_one_after_another_are_no_lack_of_slots() -> None:
    play = Play()
    play.saturate(6, base_s=0.02, per_stream_s=0.001)
    limit = play.fit.limit
    for _ in range(10):
        play.fit.end(play.streams.pop(0), play.now_s)
        play.begin(1)
        play.write(1.5, 0.028)
        play.answer(1)
        play.write(0.5, 0.028)
    assert play.fit.limit >= limit


def test_a_silent_engine_says_nothing_about_slots() -> None:
    """Loading a model: requests wait, and nothing is written."""
    play = Play()
    play.stream(1)
    play.begin(1)
    for _ in range(60):
        play.now_s += 0.5
        play.fit.tick(play.now_s)
    assert play.fit.limit == 2


def test_one_more_slot_is_tried_after_five_minutes_then_ever_more_seldom() -> None:
    play = Play()
    tried_s: list[float] = []
    for _ in range(1500):
        before = play.fit.limit
        play.saturate(1, base_s=0.02, per_stream_s=0.001, slots=4)
        if play.fit.limit == 5 and before == 4:
            tried_s.append(play.now_s)
    # The first is the growth that finds the slots.
    assert [round(later - sooner, -2) for sooner, later in itertools.pairwise(tried_s)] == [300, 600, 1200]
    assert play.said == (4, LimitedBy.SLOTS)


def test_a_slot_more_that_is_there_lifts_the_limit() -> None:
    play = Play()
    play.saturate(12, base_s=0.02, per_stream_s=0.001, slots=4)
    assert play.fit.limit == 4
    limits = play.saturate(170, base_s=0.02, per_stream_s=0.001, slots=9)
    assert max(limits) >= 9
    assert play.fit.limit in (9, 10)


def test_more_streams_than_slots_were_found_refute_them_at_once() -> None:
    play = Play()
    play.begin(2)
    play.answer(1)
    play.write(4.0, 0.02)
    assert play.said == (1, LimitedBy.SLOTS)
    play.answer(1)
    play.write(2.0, 0.022)
    assert play.fit.limit == 2


def test_slots_that_the_endpoint_says_are_not_looked_for() -> None:
    play = Play(slots=4)
    play.begin(4)
    play.answer(1)
    play.write(60.0, 0.02)
    assert play.said == (4, LimitedBy.SLOTS)


def test_slots_that_the_endpoint_says_are_used_however_slow_it_is() -> None:
    play = Play(slots=4)
    play.line(0.3, 0.1)
    assert play.said == (4, LimitedBy.SLOTS)


# --- the guard ---


def test_a_thrashing_cache_takes_a_fifth_of_the_streams_at_once() -> None:
    play = Play(slots=8)
    play.line(0.03, 0.004)
    play.write(2.0, 1.4 * 0.05)
    assert play.said == (4, LimitedBy.GUARD)


@pytest.mark.parametrize(
    ("gap_s", "why"),
    [(1.3 * 0.05, "not so much longer"), (0.05, "as the line says")],
)
def test_gaps_near_the_line_are_no_thrashing(gap_s: float, why: str) -> None:
    play = Play(slots=8)
    play.line(0.03, 0.004)
    play.write(20.0, gap_s)
    assert play.fit.limit == 8, why


def test_gaps_below_half_the_longest_are_no_thrashing() -> None:
    play = Play(slots=8)
    play.line(0.01, 0.001)
    play.write(20.0, 0.045)
    assert play.fit.limit == 8


def test_the_guard_holds_for_half_a_minute_then_gives_back_a_half_a_window() -> None:
    play = Play(slots=8)
    play.line(0.03, 0.004)
    play.write(2.0, 0.08)
    cut_s = play.now_s
    assert play.fit.limit == 4
    seen: dict[int, float] = {}
    while play.fit.limit < 8:
        play.stream(play.fit.limit)
        play.write(1.0, 0.03 + 0.004 * len(play.streams))
        seen.setdefault(play.fit.limit, play.now_s - cut_s)
    assert seen[5] == pytest.approx(34, abs=2)
    assert [seen[limit] - seen[5] for limit in (6, 7, 8)] == pytest.approx([4, 8, 12], abs=2)


def test_a_stall_is_no_thrashing() -> None:
    play = Play(slots=8)
    play.line(0.03, 0.004)
    for _ in range(5):
        play.write(4.0, 0.05)
        play.write(3.0, 3.0)
    assert play.said == (8, LimitedBy.SLOTS)


def test_reading_a_prompt_is_no_thrashing() -> None:
    play = Play(slots=8)
    play.line(0.03, 0.004)
    for _ in range(5):
        prompt = play.begin()[0]
        play.write(6.0, 0.3)
        play.waiting.remove(prompt)
        play.fit.end(prompt, play.now_s)
    assert play.said == (8, LimitedBy.SLOTS)


# --- drift ---


@pytest.mark.parametrize(("base_s", "per_stream_s", "limit"), [(0.031, 0.01, 5), (0.01, 0.002, 29)])
def test_an_engine_that_is_not_what_it_was_gets_a_line_of_its_own_within_half_a_minute(
    base_s: float, per_stream_s: float, limit: int
) -> None:
    play = Play()
    play.saturate(40, base_s=0.022, per_stream_s=0.005)
    assert play.said == (13, LimitedBy.SLO)
    play.saturate(15, base_s=base_s, per_stream_s=per_stream_s)
    assert play.fit.limit == pytest.approx(limit, rel=0.1)
    assert play.fit.line.per_stream_s == pytest.approx(per_stream_s, rel=0.1)


# --- errors ---


def test_an_error_takes_three_tenths_at_once_and_holds_for_half_a_minute() -> None:
    play = Play(slots=10)
    play.stream(10)
    failed_s = play.now_s
    play.fit.fail(play.streams.pop(), play.now_s)
    assert play.said == (7, LimitedBy.ERRORS)
    while play.now_s < failed_s + 28:
        play.stream(play.fit.limit)
        play.write(2.0, 0.02)
        assert play.said == (7, LimitedBy.ERRORS)
    for _ in range(4):
        play.stream(play.fit.limit)
        play.write(2.0, 0.02)
    assert play.said == (10, LimitedBy.SLOTS)


def test_what_fails_together_counts_once_and_what_fails_later_counts_again() -> None:
    play = Play(slots=10)
    play.stream(10)
    for request in play.streams:
        play.fit.fail(request, play.now_s)
    assert play.said == (7, LimitedBy.ERRORS)
    play.streams.clear()
    play.now_s += 1.0
    play.stream(7)
    play.now_s += 1.0
    play.fit.fail(play.streams.pop(), play.now_s)
    assert play.said == (4, LimitedBy.ERRORS)


def test_errors_never_take_the_last_job() -> None:
    play = Play()
    for _ in range(5):
        play.now_s += 1.0
        play.fit.fail(play.begin()[0], play.now_s)
    assert play.said == (1, LimitedBy.ERRORS)


def test_after_errors_an_idle_endpoint_gets_its_limit_back_only_with_work() -> None:
    play = Play(slots=4)
    play.stream(4)
    play.fit.fail(play.streams.pop(), play.now_s)
    play.stream(0)
    play.now_s += 3600.0
    play.fit.tick(play.now_s)
    assert play.fit.limit == 2
    play.stream(2)
    play.write(2.0, 0.02)
    assert play.fit.limit == 3


# --- the cache ---


def test_of_jobs_of_the_usual_size_no_more_are_taken_than_fit() -> None:
    play = Play(slots=8, cache_tokens=8192)
    for size in (2000, 1800, 2200, 2000, 2000):
        assert play.fit.limit == 8
        play.fit.end(play.begin()[0], play.now_s, tokens=size)
    play.write(2.0, 2.0)
    assert play.said == (int(0.9 * 8192 / 2000), LimitedBy.CACHE) == (3, LimitedBy.CACHE)
    for _ in range(300):
        play.fit.end(play.begin()[0], play.now_s, tokens=500)
    play.streams.clear()
    play.stream(3)
    play.write(2.0, 0.02)
    assert play.fit.limit == 4


def test_ends_of_unknown_size_say_nothing_about_it() -> None:
    play = Play(slots=8, cache_tokens=100)
    for _ in range(20):
        play.fit.end(play.begin()[0], play.now_s)
    play.write(4.0, 2.0)
    assert play.fit.limit == 8


# --- time ---


def test_a_limit_below_what_runs_cancels_nothing_and_lets_nothing_in() -> None:
    play = Play(slots=8)
    play.stream(8)
    play.fit.fail(play.streams.pop(), play.now_s)
    play.write(10.0, 0.05)
    assert (play.fit.limit, play.fit.running) == (5, 7)


@pytest.mark.parametrize("silent_s", [1.0, 17.0, 1e6])
def test_a_silence_of_any_length_is_passed_over(silent_s: float) -> None:
    play = Play()
    play.line()
    limit = play.fit.limit
    play.stream(0)
    play.now_s += silent_s
    play.fit.tick(play.now_s)
    assert play.fit.limit == limit
    play.stream(2)
    play.write(4.0, 0.024)
    assert play.fit.limit >= limit
    assert math.isfinite(play.fit.line.base_s)
