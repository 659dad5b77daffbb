"""Whatever happens at an endpoint, in whatever order: the limit is within bounds, grows slowly, falls at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lmq_worker.concurrency import Bounds, KneeFit, LimitedBy, Request

T = TypeVar("T")

WINDOW_S = 2.0
# A silence is any length of time; most events follow each other closely.
PAUSES = st.one_of(st.floats(0, 0.2), st.floats(0, 5), st.floats(0, 4000))


class Endpoint(RuleBasedStateMachine):
    """Jobs come, write, end and fail at random."""

    @initialize(
        most=st.integers(1, 40),
        slots=st.sampled_from([0, 0, 1, 4, 20]),
        cache_tokens=st.sampled_from([0, 0, 1, 5000]),
        gap_s=st.sampled_from([0.1, 0.3, 1.0]),
        at_s=st.floats(0, 1e7),
    )
    def start(self, most: int, slots: int, cache_tokens: int, gap_s: float, at_s: float) -> None:
        self.most = slots or most
        self.gap_s = gap_s
        self.now_s = self.began_s = at_s
        self.fit = KneeFit(Bounds(gap_s=gap_s, most=most, slots=slots, cache_tokens=cache_tokens), at_s)
        self.jobs: list[Request] = []
        self.cut_s = self.failed_s = -math.inf

    # --- what happens ---

    @rule(pause_s=PAUSES)
    def pass_time(self, pause_s: float) -> None:
        before = self.fit.limit
        self.now_s += pause_s
        self.fit.tick(self.now_s)
        # Windows that end in this time, one of them begun before; a little more for what does not add up in floats.
        most = before
        for _ in range(min(int(pause_s / WINDOW_S) + 1, 20)):
            most += max(1, int(0.3 * most))
        assert self.fit.limit <= most
        if self.now_s < self.failed_s + 30.0:
            assert self.fit.limit <= before

    @rule(count=st.integers(1, 8))
    def begin(self, count: int) -> None:
        for _ in range(count):
            self.jobs.append(self._unchanged(lambda: self.fit.begin(self.now_s)))

    @rule(windows=st.integers(1, 8), share=st.floats(0.1, 2.0))
    def use_it_up(self, windows: int, share: float) -> None:
        """Keep as many jobs as may be, written at a share of the longest gap."""
        for _ in range(windows):
            while len(self.jobs) < self.fit.limit:
                self.jobs.append(self.fit.begin(self.now_s))
            gap_s = share * self.gap_s
            self.write(gap_s, int(WINDOW_S / gap_s) + 1, len(self.jobs))

    @precondition(lambda self: self.jobs)
    @rule(
        gap_s=st.one_of(st.just(0.0), st.floats(0.0005, 0.5)),
        steps=st.integers(1, 60),
        writing=st.integers(1, 40),
    )
    def write(self, gap_s: float, steps: int, writing: int) -> None:
        for _ in range(steps):
            self.pass_time(gap_s)
            for job in self.jobs[:writing]:
                self.fit.piece(job, self.now_s)

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, 1000), tokens=st.integers(0, 10_000))
    def end(self, which: int, tokens: int) -> None:
        job = self.jobs.pop(which % len(self.jobs))
        self._unchanged(lambda: self.fit.end(job, self.now_s, tokens=tokens))

    @precondition(lambda self: self.jobs)
    @rule(which=st.integers(0, 1000), together=st.integers(1, 5))
    def fail(self, which: int, together: int) -> None:
        for _ in range(min(together, len(self.jobs))):
            job = self.jobs.pop(which % len(self.jobs))
            before = self.fit.limit
            self.fit.fail(job, self.now_s)
            self.failed_s = self.now_s
            if job.began_s > self.cut_s:
                self.cut_s = self.now_s
                assert self.fit.limit == max(1, int(before * 0.7))
                assert self.fit.limited_by is LimitedBy.ERRORS
            else:
                assert self.fit.limit == before

    def _unchanged(self, event: Callable[[], T]) -> T:
        """Return what an event gives; between windows nothing but an error moves the limit."""
        before = self.fit.limit
        given = event()
        assert self.fit.limit == before
        return given

    # --- what always holds ---

    @invariant()
    def the_limit_is_within_its_bounds(self) -> None:
        if hasattr(self, "fit"):
            assert 1 <= self.fit.limit <= self.most

    @invariant()
    def what_runs_is_counted(self) -> None:
        if hasattr(self, "fit"):
            assert self.fit.running == len(self.jobs)

    @invariant()
    def the_line_is_one(self) -> None:
        if hasattr(self, "fit"):
            line = self.fit.line
            assert 0.0 <= line.base_s < math.inf
            assert 0.0 <= line.per_stream_s < math.inf


TestEndpoint = Endpoint.TestCase
TestEndpoint.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
