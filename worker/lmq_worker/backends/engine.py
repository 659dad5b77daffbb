"""What all backends that speak HTTP share: running attempts, their verdicts, the breaker, looking at the endpoint."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from lmq_proto.messages import Breaker, Capacity
from lmq_worker.attempt import Outcome
from lmq_worker.backends.breaker import EndpointBreaker
from lmq_worker.backends.errors_table import HOLD_ENDPOINT, OVERLOADED
from lmq_worker.backends.http import Endpoint
from lmq_worker.failures import AttemptFailed, BadPayload, InstanceGone, StreamCut, Verdict
from lmq_worker.host import HostWatch
from lmq_worker.limits import Limits
from lmq_worker.prompts import longer_than_told
from lmq_worker.slices import SliceStore
from lmq_worker.tasks import STREAMED, TASKS
from lmq_worker.tasks.base import Engine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from lmq_proto.errors import ErrorInfo
    from lmq_proto.messages import InstanceInfo
    from lmq_worker.attempt import Attempt
    from lmq_worker.backends.base import Report
    from lmq_worker.config import WorkerConfig
    from lmq_worker.limits import Watch
    from lmq_worker.spool import Spool
    from lmq_worker.tasks.base import Task

log = logging.getLogger(__name__)

ENGINE_CRASHED = Verdict("engine_crashed", "crash", action="reload")
# What a proxy says when the server behind it does not answer: only a look tells for how long.
GATEWAY_STATUSES = (502, 504)
CONTEXT_OVERFLOW = Verdict("context_overflow", permanent=True, action="none")


# The bounds of a capacity report.
INSTANCES, CATALOG_MODELS = 256, 4096


def bounded(capacity: Capacity) -> Capacity:
    """Return what of a capacity may be reported."""
    if len(capacity.instances) <= INSTANCES and len(capacity.catalog) <= CATALOG_MODELS:
        return capacity
    return msgspec.structs.replace(
        capacity, instances=capacity.instances[:INSTANCES], catalog=capacity.catalog[:CATALOG_MODELS]
    )


class _Usage:
    """Who uses one instance now, and when its shared cache last overflowed."""

    __slots__ = ("lock", "overflowed_s", "running")

    def __init__(self) -> None:
        self.running = 0
        self.overflowed_s = -1.0
        self.lock = asyncio.Lock()


class _HeardReport:
    """Passes reports on, remembers whether the server has begun to answer, and tells how fast it writes."""

    __slots__ = ("_report", "_watch", "answered")

    def __init__(self, report: Report, watch: Watch | None) -> None:
        self._report, self._watch = report, watch
        self.answered = False

    def text(self, channel: str, text: str) -> None:
        self.answered = True
        if self._watch is not None and channel != "end":
            self._watch.piece(time.monotonic())
        self._report.text(channel, text)

    def phase(
        self,
        phase: str,
        progress: float = 0.0,
        *,
        stage: str = "",
        tokens: int = 0,
        tokens_per_s: float = 0.0,
    ) -> None:
        self._report.phase(phase, progress, stage=stage, tokens=tokens, tokens_per_s=tokens_per_s)


class EngineBackend(ABC):
    """A backend for one HTTP endpoint. What a product does its own way is in the subclass."""

    name: str
    shares_cache = False
    """Whether the jobs of an instance share its context."""

    def __init__(self, config: WorkerConfig, spool: Spool) -> None:
        self.config = config
        self.spool = spool
        self.task_types = list(TASKS)
        self.wake = asyncio.Event()
        self.endpoint = Endpoint(config)
        self.instances: dict[str, InstanceInfo] = {}
        self._slices = SliceStore(spool.path / "slices", limit_bytes=config.slices_bytes)
        self._usage: dict[str, _Usage] = {}
        self._host = HostWatch(config.endpoint)
        self._capacity = Capacity()
        self._limits = Limits(config, shares_cache=self.shares_cache, changed=self.wake.set)
        self._breaker = EndpointBreaker(
            failures=config.breaker_failures,
            probe_s=config.breaker_probe_s,
            probe_max_s=config.breaker_probe_max_s,
            jitter=random.random,
        )
        self._look_lock = asyncio.Lock()

    # --- what a product does its own way ---

    @abstractmethod
    async def look(self) -> Capacity:
        """Ask the endpoint what it has; raise `AttemptFailed` if it does not say."""

    def answers_to(self, instance: InstanceInfo) -> frozenset[str]:
        """Return the names that an answer of this instance may carry; empty: any."""
        return frozenset()

    def runs(self, instance_id: str) -> bool:
        """Tell whether an instance that the last look found has an engine now; without one it would be started."""
        return True

    async def slot_free(self, instance: InstanceInfo, *, answered: bool) -> None:
        """Return when the slot of a request that was cut off is free again."""
        if not answered:
            # The server reads the prompt to its end before it notices.
            await asyncio.sleep(self.config.cancel_grace_s)

    @abstractmethod
    async def load(self, model: str, context_tokens: int) -> ErrorInfo | None:
        """Load a model; return what went wrong."""

    @abstractmethod
    async def unload(self, instance_id: str) -> ErrorInfo | None:
        """Unload an instance; return what went wrong."""

    async def close(self) -> None:
        await self.endpoint.close()

    # --- looking ---

    @property
    def discover_every_s(self) -> float:
        if self._breaker.is_open:
            return max(self._breaker.probe_at_s - time.monotonic(), 0.01)
        return self.config.poll_s

    async def discover(self) -> Capacity:
        self.wake.clear()
        async with self._look_lock:
            if self._breaker.may_probe(time.monotonic()):
                await self._probe()
        breaker = None
        if self._breaker.opened_s is not None:
            wall_s, now_s = time.time(), time.monotonic()
            breaker = Breaker(
                since_ms=int((wall_s - now_s + self._breaker.opened_s) * 1000),
                reason=self._breaker.reason,
                probe_at_ms=int((wall_s - now_s + self._breaker.probe_at_s) * 1000),
            )
        capacity = self._limits.bounded(self._capacity, time.monotonic())
        return msgspec.structs.replace(
            capacity,
            breaker=breaker,
            slots=0 if breaker is not None else capacity.slots,
            host=self._host.load(time.monotonic()),
        )

    async def _probe(self) -> None:
        """Look once; an endpoint that does not answer, or says that it is not ready, opens the breaker."""
        was_open = self._breaker.is_open
        try:
            self._capacity = bounded(await self.look())
        except AttemptFailed as failure:
            self._breaker.probe_failed(time.monotonic(), failure.message)
            if not was_open:
                log.warning("breaker_open", extra={"endpoint": self.config.endpoint, "why": failure.message})
            return
        self._breaker.succeeded()
        self.instances = {instance.instance_id: instance for instance in self._capacity.instances}
        if was_open:
            log.info("breaker_closed", extra={"endpoint": self.config.endpoint})

    async def _is_loaded(self, instance_id: str) -> bool | None:
        """Look now and tell whether an instance is loaded; None when the endpoint does not answer."""
        async with self._look_lock:
            await self._probe()
        self.wake.set()
        return None if self._breaker.is_open else instance_id in self.instances

    def busy(self, instance_id: str) -> bool:
        """Tell whether an attempt runs on an instance."""
        return instance_id in self._usage and self._usage[instance_id].running > 0

    # --- running ---

    def immediate(self, attempt: Attempt) -> Outcome | None:
        return longer_than_told(attempt)

    def merges(self, attempts: Sequence[Attempt]) -> bool:
        types = {attempt.lease.task_type for attempt in attempts}
        if len(types) > 1:
            return False
        task = TASKS.get(types.pop())
        return task is not None and task.merges(attempts)

    async def run(self, attempt: Attempt, report: Report) -> Outcome:
        async def work(task: Task, engine: Engine, heard: _HeardReport) -> list[Outcome]:
            return [await task.run(engine, attempt, heard)]

        return (await self._run([attempt], report, work))[0]

    async def run_merged(self, attempts: Sequence[Attempt], report: Report) -> list[Outcome]:
        async def work(task: Task, engine: Engine, heard: _HeardReport) -> list[Outcome]:
            return await task.run_merged(engine, attempts, heard)

        return await self._run(attempts, report, work)

    async def _run(
        self,
        attempts: Sequence[Attempt],
        report: Report,
        work: Callable[[Task, Engine, _HeardReport], Awaitable[list[Outcome]]],
    ) -> list[Outcome]:
        """Do the work of one slot and turn what goes wrong into outcomes."""
        lease = attempts[0].lease
        started_s = time.monotonic()
        usage = self._usage.setdefault(lease.instance_id, _Usage())
        usage.running += 1
        watch = self._limits.watch(lease.instance_id, started_s) if lease.task_type in STREAMED else None
        heard = _HeardReport(report, watch)
        overloaded, tokens = False, 0
        try:
            outcomes = await self._in_slot(attempts, usage, heard, work)
            self._breaker.succeeded()
            tokens = sum(one.prompt_tokens + one.output_tokens for one in outcomes if one.prompt_tokens)
        except AttemptFailed as failure:
            verdict = await self._judged(failure, attempts, usage, started_s)
            self._count(verdict)
            outcomes = [verdict.outcome()] * len(attempts)
            overloaded = verdict.verdict.code in OVERLOADED
        finally:
            usage.running -= 1
            if watch is not None:
                watch.over(time.monotonic(), overloaded=overloaded, tokens=tokens)
        # Those that ride together share the time that their request took.
        engine_ms = int((time.monotonic() - started_s) * 1000 / len(attempts))
        return [replace(one, engine_ms=engine_ms, model=one.model or lease.instance_id) for one in outcomes]

    async def _in_slot(
        self,
        attempts: Sequence[Attempt],
        usage: _Usage,
        heard: _HeardReport,
        work: Callable[[Task, Engine, _HeardReport], Awaitable[list[Outcome]]],
    ) -> list[Outcome]:
        lease = attempts[0].lease
        task = TASKS.get(lease.task_type)
        if task is None:
            raise BadPayload("task_type", f"{lease.task_type!r} is not among {', '.join(TASKS)}")
        instance = self.instances.get(lease.instance_id)
        if instance is None:
            # Asking for what is not loaded would make the server load it behind the broker's back.
            self.wake.set()
            raise InstanceGone(lease.instance_id)
        engine = Engine(
            self.endpoint,
            self.request_model(instance, lease.models),
            self.answers_to(instance),
            self.config.embed_slice,
            self._slices,
        )
        try:
            if instance.kind != "embedding":
                return await work(task, engine, heard)
            # Embedders crash on parallel requests, whatever the broker was told of their slots.
            async with usage.lock:
                return await work(task, engine, heard)
        except asyncio.CancelledError:
            await self.slot_free(instance, answered=heard.answered)
            raise

    def request_model(self, instance: InstanceInfo, models: Sequence[str]) -> str:
        """Return what a request names."""
        if instance.model == "*":
            return models[0] if models else instance.instance_id
        return instance.instance_id

    async def _judged(
        self, failure: AttemptFailed, attempts: Sequence[Attempt], usage: _Usage, started_s: float
    ) -> AttemptFailed:
        """Return the failure as it looks once the endpoint was looked at and the neighbours are counted."""
        lease = attempts[0].lease
        code = failure.verdict.code
        if code == "kv_overflow":
            shared = usage.running > 1 or usage.overflowed_s >= started_s
            usage.overflowed_s = time.monotonic()
            if lease.alone or not shared:
                return failure.judged(CONTEXT_OVERFLOW)
        elif code == "engine_crashed":
            self.wake.set()
        elif (
            isinstance(failure, StreamCut)
            or code in ("model_not_found", "model_not_loaded")
            or failure.fields.get("status") in GATEWAY_STATUSES
        ):
            loaded = await self._is_loaded(lease.instance_id)
            if loaded is None:
                return AttemptFailed(
                    Verdict("endpoint_unreachable", "release", action="wait"),
                    f"{failure.message}; {self._breaker.reason}",
                )
            if isinstance(failure, StreamCut) and not (loaded and self.runs(lease.instance_id)):
                return AttemptFailed(ENGINE_CRASHED, f"{failure.message}; the model is no longer loaded")
            if not loaded:
                return InstanceGone(lease.instance_id)
        return failure

    def _count(self, failure: AttemptFailed) -> None:
        """Tell the breaker, and have the endpoint looked at when something there has changed."""
        now_s = time.monotonic()
        action = failure.verdict.action
        if not failure.reached_endpoint:
            self._breaker.failed(now_s, failure.message)
            self.wake.set()
        elif action in HOLD_ENDPOINT or failure.verdict.code == "endpoint_loading":
            self._breaker.probe_failed(now_s, failure.message)
            self.wake.set()
        elif action in ("load", "reload"):
            self.wake.set()
