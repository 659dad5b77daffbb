"""The worker's shell: one event loop that carries out what the core says. No thinking about jobs belongs here."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, assert_never

import zmq

from lmq_proto import bounds
from lmq_proto.codec import TO_PEER_TABLE
from lmq_proto.errors import ErrorInfo, LmqError, ProtocolError
from lmq_proto.ids import to_text
from lmq_proto.messages import Enlist
from lmq_worker import __version__
from lmq_worker.core import Pace, Session, WorkerCore
from lmq_worker.instructions import (
    Forget,
    GiveUp,
    Instruction,
    Load,
    Note,
    Persist,
    Reconnect,
    SendMessage,
    StartGroup,
    StopAttempt,
    Unload,
)
from lmq_worker.link import Link
from lmq_worker.notify import Supervisor
from lmq_worker.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from lmq_proto.messages import PhaseReport
    from lmq_worker.attempt import Key, Outcome
    from lmq_worker.backends.base import Backend
    from lmq_worker.config import WorkerConfig
    from lmq_worker.spool import Spool

log = logging.getLogger(__name__)

# How long stopped attempts may take to let go of their slots at the end.
CLOSE_S = 3.0
# How often the service manager is told what is under way, if that has changed.
STATUS_EVERY_S = 1.0
# However often a backend asks for it, the endpoint is looked at no more often than this.
LOOKS_APART_S = 0.1


def now_ms() -> int:
    """Return the monotonic clock in milliseconds."""
    return time.monotonic_ns() // 1_000_000


class WorkerBroken(LmqError):
    """The worker's own code failed; the log says where. Its leases pass on, its results lie in the spool."""

    code = "worker_broken"
    retryable = True

    def __init__(self, what: str) -> None:
        super().__init__(f"stopped by a fault of its own: {what}; start it again", what=what)
        self.what = what


class Agent:
    """One worker process: a backend on one side, a broker on the other."""

    def __init__(self, config: WorkerConfig, backend: Backend, spool: Spool) -> None:
        self._config, self._backend, self._spool = config, backend, spool
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._supervisor = Supervisor(config.notify_socket)
        self._runs = Runs(
            backend, ended=self._attempt_ended, text=self._attempt_text, phase=self._attempt_phase
        )
        self._link = Link(
            self._context,
            config.broker,
            received=self._received,
            drained=self._turn_over,
            blocked=self._block,
            unblocked=lambda: self._carry_out(self._core.send_unblocked(now_ms())),
        )
        self._todo: deque[Instruction] = deque()
        self._carrying_out = False
        self._turn_planned = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ms = 0
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._load_turn = asyncio.Lock()
        self._loads: set[asyncio.Task[None]] = set()
        self._ready_told = False
        self._status = ""
        self._status_timer: asyncio.TimerHandle | None = None
        self._gave_up: ErrorInfo | None = None
        self._core: WorkerCore
        self._broken: asyncio.Future[str]

    async def run(self) -> ErrorInfo | None:
        """Work until told to stop; return why the broker did not want this worker, if so.

        Raises:
            WorkerBroken: our own code failed. What runs on would be neither alive nor dead.
        """
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._broken = loop.create_future()
        loop.set_exception_handler(self._callback_failed)
        self._listen_to_signals()
        self._feed_watchdog()
        instance = os.urandom(16)
        replaces = self._spool.take_over(instance)
        capacity = await self._backend.discover()
        config = self._config
        enlist = Enlist(
            request_id=0,
            instance=instance,
            protocol_oldest=bounds.PROTOCOL_OLDEST,
            protocol_newest=bounds.PROTOCOL_NEWEST,
            name=config.name,
            endpoint=config.endpoint,
            backend=self._backend.name,
            capacity=capacity,
            software=f"lmq-worker {__version__}",
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=config.queues,
            task_types=self._backend.task_types,
            replaces=replaces,
        )
        pace = Pace(reach_ms=int(config.reach_timeout_s * 1000))
        self._core = WorkerCore(enlist, spooled=self._spool.results(), pace=pace)
        self._link.connect()
        self._carry_out(self._core.start(now_ms()))
        self._set_timer()
        self._supervisor.ready(f"looking for a broker at {self._link.address}")
        watch = asyncio.create_task(self._watch_endpoint())
        stop = asyncio.create_task(self._stop.wait())
        try:
            over: list[asyncio.Future[Any]] = [stop, watch, self._broken]
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
            error = watch.exception() if watch.done() else None
            if error is not None:
                log.error("worker_broken", extra={"why": str(error)}, exc_info=error)
                raise WorkerBroken(f"{type(error).__name__}: {error}") from error
            if self._broken.done():
                raise WorkerBroken(self._broken.result())
            await self._wind_down()
        finally:
            stop.cancel()
            watch.cancel()
            await asyncio.wait([watch])
            await self._close()
        return self._gave_up

    def stop(self) -> None:
        """Finish: the first call drains, the second does not wait for running jobs."""
        if self._stop.is_set():
            self._hurry.set()
            self._plan_turn()
        self._stop.set()

    def _callback_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take an exception that a callback of the loop let through: after one of ours nothing is certain."""
        error = context.get("exception")
        if "handle" not in context or error is None:
            loop.default_exception_handler(context)
            return
        log.error("worker_broken", extra={"why": str(error)}, exc_info=error)
        if not self._broken.done():
            self._broken.set_result(f"{type(error).__name__}: {error}")

    # --- the loop ---

    def _received(self, frames: list[bytes]) -> None:
        try:
            message, body = TO_PEER_TABLE.decode(frames)
            todo = self._core.received(message, body, now_ms())
        except ProtocolError as error:
            log.warning("bad_message", extra={"why": error.what})
            return
        self._carry_out(todo)

    def _block(self) -> None:
        self._core.send_blocked()

    def _plan_turn(self) -> None:
        """Have what gathers in this turn of the loop sent at its end, in one go."""
        if not self._turn_planned:
            self._turn_planned = True
            asyncio.get_running_loop().call_soon(self._turn_over)

    def _turn_over(self) -> None:
        self._turn_planned = False
        self._carry_out(self._core.flush(now_ms()))
        self._set_timer()
        if self._waiting:
            for predicate, future in self._waiting:
                if not future.done() and predicate():
                    future.set_result(None)

    def _set_timer(self) -> None:
        """Wake when the core is due. A timer that comes too early only looks again; one too late is replaced."""
        due_ms = self._core.next_due_ms
        if self._timer is not None:
            if self._timer_due_ms <= due_ms:
                return
            self._timer.cancel()
        self._timer_due_ms = due_ms
        wait_s = min(max(due_ms - now_ms(), 0) / 1000, 3600.0)
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._carry_out(self._core.tick(now_ms()))
        self._turn_over()

    async def _until(self, predicate: Callable[[], bool], timeout_s: float) -> None:
        """Return when the predicate holds, the time is over, or there is no time to lose."""
        if predicate():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((predicate, future))
        self._waiting.append((self._hurry.is_set, future))
        await asyncio.wait([future], timeout=timeout_s)
        self._waiting = [(other, waits) for other, waits in self._waiting if waits is not future]

    # --- from attempts ---

    def _attempt_ended(self, key: Key, outcome: Outcome) -> None:
        if outcome.outcome != "complete" or log.isEnabledFor(logging.DEBUG):
            log.log(
                logging.DEBUG if outcome.outcome in ("complete", "stopped") else logging.WARNING,
                "attempt_ended",
                extra={
                    "job_id": to_text(key[0]),
                    "attempt": key[2],
                    "outcome": outcome.outcome,
                    "code": outcome.error.code if outcome.error else "",
                    "model": outcome.model,
                    "engine_ms": outcome.engine_ms,
                },
            )
        self._carry_out(self._core.attempt_ended(key, outcome, now_ms()))
        self._plan_turn()

    def _attempt_text(self, key: Key, channel: str, text: str) -> None:
        self._carry_out(self._core.attempt_text(key, channel, text))
        self._plan_turn()

    def _attempt_phase(self, report: PhaseReport) -> None:
        self._carry_out(self._core.attempt_phase(report))
        self._plan_turn()

    # --- carrying out ---

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        """Do what the core says, in order; what it says meanwhile comes after."""
        self._todo.extend(instructions)
        if self._carrying_out:
            return
        self._carrying_out = True
        while self._todo:
            self._do(self._todo.popleft())
        self._carrying_out = False

    def _do(self, instruction: Instruction) -> None:
        match instruction:
            case StartGroup():
                self._runs.start(instruction.attempts)
            case SendMessage():
                self._link.send(instruction.message, instruction.body)
            case StopAttempt():
                self._runs.stop(instruction.key)
            case Persist():
                self._spool.persist(instruction.ended, instruction.result)
            case Forget():
                self._spool.forget(instruction.key)
            case Reconnect():
                self._link.connect()
                self._status = f"looking for a broker at {self._link.address}"
                self._supervisor.status(self._status)
            case Load():
                self._spawn(self._load(instruction))
            case Unload():
                self._spawn(self._unload(instruction))
            case GiveUp():
                self._gave_up = instruction.error
                self.stop()
            case Note():
                self._note(instruction)
            case _:
                assert_never(instruction)

    def _note(self, note: Note) -> None:
        if note.event != "enlisted":
            log.warning(note.event, extra=note.fields)
            return
        text = f"worker {self._config.name} ready at {self._config.endpoint}"
        self._tell_status()
        fields = {**note.fields, "worker": self._config.name, "endpoint": self._config.endpoint}
        if self._ready_told:
            log.info("enlisted", extra=fields)
        else:
            self._ready_told = True
            log.info("worker_ready", extra={**fields, "broker": self._link.address, "text": text})

    # --- the endpoint ---

    async def _watch_endpoint(self) -> None:
        while True:
            wake = asyncio.ensure_future(self._backend.wake.wait())
            await asyncio.wait([wake], timeout=self._backend.discover_every_s)
            wake.cancel()
            await self._look_at_endpoint()
            await asyncio.sleep(LOOKS_APART_S)

    async def _look_at_endpoint(self) -> None:
        capacity = await self._backend.discover()
        self._carry_out(self._core.capacity_changed(capacity))
        self._plan_turn()

    def _spawn(self, load: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(load)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _load(self, load: Load) -> None:
        async with self._load_turn:
            started_ms = now_ms()
            error = await self._backend.load(load.model, load.context_tokens)
            await self._load_over(load.command_id, started_ms, error)

    async def _unload(self, unload: Unload) -> None:
        async with self._load_turn:
            started_ms = now_ms()
            error = await self._backend.unload(unload.instance_id)
            await self._load_over(unload.command_id, started_ms, error)

    async def _load_over(self, command_id: int, started_ms: int, error: ErrorInfo | None) -> None:
        seconds = (now_ms() - started_ms) / 1000
        log.info("load_ended", extra={"seconds": seconds, "code": error.code if error else ""})
        await self._look_at_endpoint()
        self._carry_out(self._core.load_ended(command_id, seconds, error))
        self._plan_turn()

    # --- the end ---

    async def _wind_down(self) -> None:
        """Take no more, let running jobs finish for a while, give back the rest, wait for acknowledgements."""
        self._supervisor.stopping()
        log.info("worker_stops", extra={"running": len(self._core.held)})
        self._carry_out(self._core.drain(now_ms()))
        await self._until(lambda: self._core.idle, self._config.drain_timeout_s)
        self._carry_out(self._core.release_all(now_ms()))
        await self._runs.close(CLOSE_S)
        if self._core.session is Session.ENLISTED:
            self._plan_turn()
            await self._until(lambda: self._core.settled, self._config.ack_timeout_s)
        known = self._core.session is Session.ENLISTED
        self._carry_out(self._core.leave(now_ms()))
        if known:
            self._spool.said_goodbye()
        log.info("worker_stopped", extra={"spooled": len(self._core.unacked)})

    async def _close(self) -> None:
        for load in list(self._loads):
            load.cancel()
        if self._loads:
            await asyncio.wait(list(self._loads))
        await self._runs.close(CLOSE_S)
        if self._timer is not None:
            self._timer.cancel()
        if self._status_timer is not None:
            self._status_timer.cancel()
        self._link.close(linger_ms=1000)
        await self._backend.close()
        self._context.term()
        self._supervisor.close()

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        if sys.platform != "win32":
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.stop)
        else:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGBREAK):
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self.stop))

    def _tell_status(self) -> None:
        """Tell the service manager what is under way, once a second while it changes."""
        running, unacked = len(self._core.held), len(self._core.unacked)
        text = f"worker {self._config.name} ready at {self._config.endpoint}, {running} running"
        if unacked:
            text += f", {unacked} ended and not yet acknowledged"
        if text != self._status and self._core.is_enlisted:
            self._status = text
            self._supervisor.status(text)
        if self._status_timer is not None:
            self._status_timer.cancel()
        self._status_timer = asyncio.get_running_loop().call_later(STATUS_EVERY_S, self._tell_status)

    def _feed_watchdog(self) -> None:
        if self._config.watchdog_usec:
            self._supervisor.watchdog()
            asyncio.get_running_loop().call_later(self._config.watchdog_usec / 2e6, self._feed_watchdog)
