"""A worker process with the real `WorkerCore` in it; what its agent does with sockets and threads is done here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmq_worker.attempt import Outcome
from lmq_worker.core import Session, WorkerCore
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
from simulation.workers import Process

if TYPE_CHECKING:
    from lmq_proto.errors import ErrorInfo
    from lmq_proto.messages import Ended, PhaseReport, ToPeer
    from simulation.checks import Key


class RealProcess(Process):
    """The real core, driven by virtual time."""

    def begin(self) -> None:
        self.core = WorkerCore(self.enlist(0, ()), spooled=list(self.host.spool.values()))
        self._do(self.core.start(self.world.mono_ms))

    def _do(self, instructions: list[Instruction]) -> None:
        """Carry out what the core says; what it then has to say at once, too."""
        for instruction in instructions:
            match instruction:
                case SendMessage():
                    self.port.send(instruction.message, instruction.body)
                case Reconnect():
                    self.port.reconnect()
                case StartGroup():
                    for attempt in instruction.attempts:
                        self.run(attempt.lease, attempt.payload)
                case StopAttempt():
                    if instruction.key in self.core.held:
                        self.engine.stop(instruction.key)
                    else:
                        # Lost, or given back: whatever it comes to, nobody will ask.
                        self.engine.kill(instruction.key)
                case Load():
                    self.load_later(instruction.command_id, instruction.model, "")
                case Unload():
                    self.load_later(instruction.command_id, "", instruction.instance_id)
                case Persist():
                    ended = instruction.ended
                    self.host.spool[ended.job_id, ended.epoch, ended.attempt] = (ended, instruction.result)
                case Forget():
                    self.host.spool.pop(instruction.key, None)
                case GiveUp():
                    raise AssertionError(f"the worker gives up: {instruction.error}")
                case Note():
                    self.world.note("worker", self.host.name, instruction.event)

    def take(self, message: ToPeer, body: bytes) -> None:
        if not self.engine.dead:
            self._do(self.core.received(message, body, self.world.mono_ms))
            self._do(self.core.flush(self.world.mono_ms))

    def tick(self) -> None:
        self._do(self.core.tick(self.world.mono_ms))

    def leave(self) -> None:
        now_ms = self.world.mono_ms
        self._do(self.core.drain(now_ms))
        self._do(self.core.release_all(now_ms))
        self._do(self.core.leave(now_ms))

    def capacity_changed(self) -> None:
        self._do(self.core.capacity_changed(self.host.endpoint.capacity()))
        self._do(self.core.flush(self.world.mono_ms))

    def load_ended(self, command_id: int, error: ErrorInfo | None) -> None:
        self._do(self.core.load_ended(command_id, 1.0, error))
        self._do(self.core.flush(self.world.mono_ms))

    def attempt_text(self, key: Key, text: str) -> None:
        self._do(self.core.attempt_text(key, "content", text))
        self._flush_sometimes()

    def attempt_phase(self, report: PhaseReport) -> None:
        self._do(self.core.attempt_phase(report))

    def attempt_ended(self, ended: Ended, result: bytes) -> None:
        outcome = Outcome(
            ended.outcome, result, ended.error, permanent=ended.permanent, retry_after_ms=ended.retry_after_ms
        )
        key = (ended.job_id, ended.epoch, ended.attempt)
        self._do(self.core.attempt_ended(key, outcome, self.world.mono_ms))
        self._flush_sometimes()

    def _flush_sometimes(self) -> None:
        if self.world.chance(0.7):
            self._do(self.core.flush(self.world.mono_ms))

    def unsettled(self) -> str:
        if self.core.settled and self.core.session is Session.ENLISTED:
            return ""
        return f"{self.core.session}: {len(self.core.held)} held, {len(self.core.unacked)} unacked"
