"""The attempts that run: a task each, their time limit, and stopping them. Knows no broker and no endpoint."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from lmq_proto.errors import ErrorInfo
from lmq_proto.ids import to_text
from lmq_proto.messages import PhaseReport
from lmq_worker.attempt import Attempt, Key, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmq_worker.backends.base import Backend

log = logging.getLogger(__name__)


class AttemptReport:
    """Where one attempt's run tells how far it is."""

    __slots__ = ("_key", "_phase", "_text")

    def __init__(
        self, key: Key, text: Callable[[Key, str, str], None], phase: Callable[[PhaseReport], None]
    ) -> None:
        self._key, self._text, self._phase = key, text, phase

    def text(self, channel: str, text: str) -> None:
        self._text(self._key, channel, text)

    def phase(
        self,
        phase: str,
        progress: float = 0.0,
        *,
        stage: str = "",
        tokens: int = 0,
        tokens_per_s: float = 0.0,
    ) -> None:
        self._phase(
            PhaseReport(
                job_id=self._key[0],
                attempt=self._key[2],
                phase=phase,
                progress=progress,
                stage=stage,
                tokens=tokens,
                tokens_per_s=tokens_per_s,
            )
        )


class Runs:
    """All groups that run now."""

    def __init__(
        self,
        backend: Backend,
        *,
        ended: Callable[[Key, Outcome], None],
        text: Callable[[Key, str, str], None],
        phase: Callable[[PhaseReport], None],
    ) -> None:
        self._backend = backend
        self._ended, self._text, self._phase = ended, text, phase
        self._tasks: dict[Key, asyncio.Task[Outcome]] = {}
        self._merged: dict[Key, tuple[asyncio.Task[list[Outcome]], set[Key]]] = {}
        self._sequences: set[asyncio.Task[None]] = set()
        self._stopped: set[Key] = set()

    def start(self, attempts: Sequence[Attempt]) -> None:
        """Run a group in its slot: as one request where the backend can, else one after another."""
        if len(attempts) == 1:
            outcome = self._backend.immediate(attempts[0])
            if outcome is not None:
                self._ended(attempts[0].key, outcome)
            else:
                self._begin(attempts[0])
        elif self._backend.merges(attempts):
            self._begin_merged(attempts)
        else:
            self._begin_sequence(attempts)

    def stop(self, key: Key) -> None:
        """End an attempt; its end is reported once its slot is free."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
            return
        if key in self._merged:
            merged, left = self._merged.pop(key)
            left.discard(key)
            if left:
                self._ended(key, Outcome("stopped"))
            else:
                self._merged[key] = (merged, left)
                merged.cancel()
            return
        if self._sequences:
            self._stopped.add(key)

    async def close(self, timeout_s: float) -> None:
        """Stop everything and wait until it has, or the time is over."""
        tasks: list[asyncio.Task[Outcome] | asyncio.Task[list[Outcome]] | asyncio.Task[None]] = [
            *self._sequences,
            *self._tasks.values(),
            *{task for task, _ in self._merged.values()},
        ]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    # --- one attempt ---

    def _begin(self, attempt: Attempt) -> asyncio.Task[Outcome]:
        task = asyncio.create_task(self._timed(attempt))
        self._tasks[attempt.key] = task
        began_s = time.monotonic()
        task.add_done_callback(lambda done: self._finished(attempt, done, began_s))
        return task

    async def _timed(self, attempt: Attempt) -> Outcome:
        report = AttemptReport(attempt.key, self._text, self._phase)
        async with asyncio.timeout(_timeout_s(attempt)):
            return await self._backend.run(attempt, report)

    def _finished(self, attempt: Attempt, task: asyncio.Task[Outcome], began_s: float) -> None:
        self._tasks.pop(attempt.key, None)
        self._ended(attempt.key, _outcome_of(attempt, task, _ms_since(began_s)))

    # --- one after another ---

    def _begin_sequence(self, attempts: Sequence[Attempt]) -> None:
        task = asyncio.create_task(self._run_sequence(attempts))
        self._sequences.add(task)
        task.add_done_callback(self._sequences.discard)

    async def _run_sequence(self, attempts: Sequence[Attempt]) -> None:
        for attempt in attempts:
            if not self._without_stopped([attempt]):
                continue
            outcome = self._backend.immediate(attempt)
            if outcome is not None:
                self._ended(attempt.key, outcome)
            else:
                await asyncio.wait([self._begin(attempt)])

    # --- as one request ---

    def _begin_merged(self, attempts: Sequence[Attempt]) -> None:
        task = asyncio.create_task(self._ride(attempts))
        self._sequences.add(task)
        task.add_done_callback(self._sequences.discard)

    async def _ride(self, attempts: Sequence[Attempt]) -> None:
        """Run attempts as one request; one bad input fails all of it, and is found by halves."""
        began_s = time.monotonic()
        task = asyncio.create_task(self._timed_merged(attempts))
        keys = {attempt.key for attempt in attempts}
        for attempt in attempts:
            self._merged[attempt.key] = (task, keys)
        await asyncio.wait([task])
        left = [attempt for attempt in attempts if self._merged.pop(attempt.key, None) is not None]
        if task.cancelled() or task.exception() is not None:
            share_ms = _ms_since(began_s) // len(attempts)
            for attempt in left:
                self._ended(attempt.key, _outcome_of(attempt, task, share_ms))
            return
        outcomes = {attempt.key: outcome for attempt, outcome in zip(attempts, task.result(), strict=True)}
        refused = [attempt for attempt in left if outcomes[attempt.key].permanent]
        for attempt in left:
            if not outcomes[attempt.key].permanent:
                self._ended(attempt.key, outcomes[attempt.key])
        middle = len(refused) // 2
        for half in (refused[:middle], refused[middle:]):
            going = self._without_stopped(half) if len(half) > 1 else half
            if len(going) > 1:
                await self._ride(going)
            else:
                await self._run_sequence(going)

    def _without_stopped(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """Report the attempts that were stopped while they waited for their turn; return the others."""
        going = []
        for attempt in attempts:
            if attempt.key in self._stopped:
                self._stopped.discard(attempt.key)
                self._ended(attempt.key, Outcome("stopped"))
            else:
                going.append(attempt)
        return going

    async def _timed_merged(self, attempts: Sequence[Attempt]) -> list[Outcome]:
        limits = [limit for limit in map(_timeout_s, attempts) if limit is not None]
        report = AttemptReport(attempts[0].key, self._text, self._phase)
        async with asyncio.timeout(max(limits) if len(limits) == len(attempts) else None):
            return await self._backend.run_merged(attempts, report)


def _timeout_s(attempt: Attempt) -> float | None:
    return attempt.lease.timeout_ms / 1000 if attempt.lease.timeout_ms else None


def _ms_since(began_s: float) -> int:
    return int((time.monotonic() - began_s) * 1000)


def _outcome_of(
    attempt: Attempt, task: asyncio.Task[Outcome] | asyncio.Task[list[Outcome]], engine_ms: int
) -> Outcome:
    """Return what a task that is over came to; a bug of ours fails the attempt and is logged in full.

    `engine_ms` is what it took where the backend did not come to say so itself.
    """
    if task.cancelled():
        return Outcome("stopped", engine_ms=engine_ms)
    error = task.exception()
    if error is None:
        result = task.result()
        assert isinstance(result, Outcome)
        return result
    if isinstance(error, TimeoutError):
        fields = {"timeout_s": attempt.lease.timeout_ms / 1000}
        told = ErrorInfo("attempt_timeout", "the attempt took too long", True, dict(fields))
        return Outcome("fail", error=told, engine_ms=engine_ms)
    log.error(
        "attempt_bug",
        extra={"job_id": to_text(attempt.lease.job_id), "attempt": attempt.lease.attempt},
        exc_info=error,
    )
    return Outcome("fail", error=ErrorInfo("worker_bug", f"{type(error).__name__}: {error}", retryable=True))
