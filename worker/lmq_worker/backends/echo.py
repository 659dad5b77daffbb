"""A backend without an engine: gives payloads back. For tests, demos and measuring the queue itself."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import Capacity, InstanceInfo
from lmq_worker.attempt import Attempt, Outcome
from lmq_worker.open_data import unpack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_worker.backends.base import Report
    from lmq_worker.config import WorkerConfig
    from lmq_worker.spool import Spool

# Characters in each piece of streamed text, about one token.
PIECE_CHARS = 4
# Exit status of a worker that a payload told to die, as of a process killed by SIGKILL.
CRASH_STATUS = 137

_EMPTY_MAP = b"\x80"
_RESULT_HEAD = b"\x81" + b"\xa4echo"


class EchoBackend:
    """One pseudo instance that serves any model name."""

    name = "echo"
    discover_every_s = 3600.0

    def __init__(self, config: WorkerConfig, spool: Spool) -> None:
        self._slots = config.pinned or config.echo_slots
        self._may_crash = config.echo_may_crash
        self.task_types = ["echo"]
        self.wake = asyncio.Event()

    async def discover(self) -> Capacity:
        self.wake.clear()
        return Capacity(
            instances=[InstanceInfo(instance_id="echo", model="*", kind="any", slots=self._slots)]
        )

    def immediate(self, attempt: Attempt) -> Outcome | None:
        if attempt.payload == _EMPTY_MAP:
            return _echoed(attempt)
        payload = unpack(attempt.payload)
        if payload is None:
            return _fail("bad_payload", "the payload of an echo job is a map", permanent=True)
        if payload.get("delay_s") or payload.get("text") or payload.get("crash"):
            return None
        return self._end(attempt, payload)

    async def run(self, attempt: Attempt, report: Report) -> Outcome:
        payload = unpack(attempt.payload) or {}
        if payload.get("crash"):
            return self._crash()
        text = str(payload.get("text") or "")
        pieces = [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)]
        pause_s = float(payload.get("delay_s") or 0.0) / max(len(pieces), 1)
        report.phase("writing" if pieces else "reading")
        for at, piece in enumerate(pieces, start=1):
            await asyncio.sleep(pause_s)
            report.text("content", piece)
            report.phase("writing", at / len(pieces), tokens=at)
        if not pieces:
            await asyncio.sleep(pause_s)
        else:
            report.text("end", "stop")
        return self._end(attempt, payload)

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        return False

    async def run_merged(self, attempts: Sequence[Attempt], report: Report) -> list[Outcome]:
        return [await self.run(attempt, report) for attempt in attempts]

    async def load(self, model: str, context_tokens: int) -> ErrorInfo | None:
        return ErrorInfo("load_not_allowed", "the echo backend has no models to load")

    async def unload(self, instance_id: str) -> ErrorInfo | None:
        return ErrorInfo("load_not_allowed", "the echo backend has no models to unload")

    async def close(self) -> None:
        return None

    def _crash(self) -> Outcome:
        if self._may_crash:
            os._exit(CRASH_STATUS)
        return _fail(
            "crash_not_allowed", "set echo_may_crash to let echo jobs end this worker", permanent=True
        )

    def _end(self, attempt: Attempt, payload: dict[Any, Any]) -> Outcome:
        failures = payload.get("failures")
        fails = payload.get("fail") or ("transient" if failures else None)
        if fails == "permanent":
            return _fail("echo_permanent", "the payload asked to fail for good", permanent=True)
        if fails == "transient" and (failures is None or attempt.lease.failures < int(failures)):
            return _fail("echo_transient", "the payload asked to fail", permanent=False)
        return _echoed(attempt)


def _echoed(attempt: Attempt) -> Outcome:
    # The payload is spliced in as it came: unpacking and packing again would be most of the work.
    return Outcome("complete", _RESULT_HEAD + (attempt.payload or _EMPTY_MAP), model="echo")


def _fail(code: str, message: str, *, permanent: bool) -> Outcome:
    return Outcome("fail", error=ErrorInfo(code, message, retryable=not permanent), permanent=permanent)
