"""A trace through the real core: submits as they came, workers in front of modelled engines, nothing else.

Everything is decided by the trace, the engines and the policy: two runs are the same to the last start.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from lmq_broker.core.effects import Send, SendWork, WakeAt
from lmq_broker.core.machine import step
from lmq_broker.core.records import JobChanged
from lmq_broker.core.recover import Memory, recover
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import BrokerState
from lmq_broker.core.stimuli import Credential, Now, Received, TurnEnded
from lmq_broker.forecast.engines import Engine, EngineModel, Stream
from lmq_proto.ids import PeerId
from lmq_proto.messages import (
    Cancel,
    CapacityReport,
    Enlist,
    FromPeer,
    Heartbeat,
    Hello,
    LoadEnded,
    LoadModel,
    Phases,
    Results,
    Stop,
    Submit,
    Submitted,
    UnloadModel,
)
from lmq_proto.parts import Capacity, CatalogModel, Ended, InstanceInfo, JobSpec, PhaseReport, Target
from lmq_proto.states import FINAL, State

REPORT_EVERY_MS = 1000
"""How often workers say how many tokens their streams have."""
STILL_MS = 3_600_000
"""When for so long nothing runs, is loaded, or comes, nothing ever will: longer than any wait that the core grants."""
_BEAT_MS = 5000
_START_MS = 1_000_000
_WALL_MS = 1_800_000_000_000
_LOOPBACK = Credential("loopback")
_CLIENT = PeerId(b"client")
_RESULT = b"\x80"
_EMPTY = Memory(
    meta={}, open_jobs=[], finished=[], keys=[], tombstones=[], stored_text={}, last_number=0, last_order=0,
    last_seq=0, oldest_cursor=0, last_event_ms=0,
)  # fmt: skip


class Request(msgspec.Struct, frozen=True):
    """One request of a trace."""

    at_ms: int
    user: str
    prompt_tokens: int
    output_tokens: int
    model: str = "model"
    priority: int = 5
    task_type: str = "chat"
    output_tokens_told: int = 0
    """What its submitter said of the answer's length; 0: nothing."""
    expires_ms: int = 0
    """It must have started within this time; 0: whenever."""


class Served(msgspec.Struct):
    """What became of a request; times in milliseconds from the start of the trace."""

    request: Request
    started_ms: int = -1
    first_ms: int = -1
    """Of its first token."""
    ended_ms: int = -1
    worker: str = ""
    attempts: int = 0
    state: str = ""
    """A final state or `refused`; empty: it has not ended."""

    @property
    def wait_ms(self) -> int:
        """From its submit to its start."""
        return self.started_ms - self.request.at_ms

    @property
    def done(self) -> bool:
        """It was answered."""
        return self.state == State.DONE

    @property
    def cancelled(self) -> bool:
        """It was given up by whoever asked."""
        return self.state == State.CANCELLED


class _Worker:
    """A worker of the wire: one modelled engine, what is loaded, what was last said of it."""

    def __init__(self, number: int, model: EngineModel, loaded: Iterable[str]) -> None:
        self.name = model.name or f"gpu-{number + 1}"
        self.peer = PeerId(self.name.encode())
        self.engine = Engine(model)
        self.loaded = list(loaded)
        self.due: list[tuple[float, int, LoadModel | UnloadModel]] = []
        self.loading_ms = 0.0

    def capacity(self) -> Capacity:
        model = self.engine.model
        return Capacity(
            instances=[
                InstanceInfo(instance_id=name, model=name, slots=model.slots, ours=True, kind="llm")
                for name in self.loaded
            ],
            catalog=[CatalogModel(model=name, size_bytes=int(model.load_s * 1e9)) for name in model.models],
            may_load=True, models_max=model.models_max,
        )  # fmt: skip


class Replay:
    """One run. `served` holds what became of every request, in the order of their submits, once `run` has ended."""

    def __init__(
        self, requests: Sequence[Request], engines: Sequence[EngineModel], settings: Settings
    ) -> None:
        self.requests = sorted(requests, key=lambda each: each.at_ms)
        self.engines = engines
        self.served: dict[bytes, Served] = {}
        self.swaps = 0
        self.now_ms = 0
        self.state: BrokerState
        self._workers = [_Worker(number, model, model.models[:1]) for number, model in enumerate(engines)]
        self._by_peer = {worker.peer: worker for worker in self._workers}
        # Nobody asks here when a job starts, unless somebody does.
        settings = msgspec.structs.replace(settings, outlook_every_ms=0)
        self.state, _ = recover(
            _EMPTY, settings, self.now, software="forecast", seed=1, fresh_id=bytes(16), fresh_secret=bytes(32)
        )  # fmt: skip
        self._wake_ms = 0
        self._commands = 0
        self.left = len(self.requests)
        """Requests that have not ended; above 0 after the run: they wait for ever."""
        self._moved_ms = 0

    def run(self, until_ms: int | None = None) -> None:
        """Go on until every request has ended, or to a time."""
        for _ in self.turns():
            if until_ms is not None and self.now_ms >= until_ms:
                return

    def turns(self) -> Iterator[None]:
        """Take one turn of the broker after the other until every request has ended, or none of them ever will."""
        self._say(
            _CLIENT, Hello(request_id=1, instance=_CLIENT.ljust(16), protocol_oldest=1, protocol_newest=1)
        )
        for worker in self._workers:
            self._say(worker.peer, _enlist(worker))
        waiting = iter(self.requests)
        coming = next(waiting, None)
        beat_ms, report_ms = 0, REPORT_EVERY_MS
        while self.left and self.now_ms < self._moved_ms + STILL_MS:
            while coming is not None and coming.at_ms <= self.now_ms:
                self._submit(coming)
                coming = next(waiting, None)
            if self.now_ms >= beat_ms:
                beat_ms = self.now_ms + _BEAT_MS
                for peer in (_CLIENT, *self._by_peer):
                    self._say(peer, Heartbeat())
            for worker in self._workers:
                self._work(worker)
            if self.now_ms >= report_ms:
                report_ms = self.now_ms + REPORT_EVERY_MS
                self._report()
            self._wake_ms = self.now_ms + _BEAT_MS
            self._carry_out(step(self.state, TurnEnded(), self.now))
            if coming is not None or any(worker.due or worker.engine.streams for worker in self._workers):
                self._moved_ms = self.now_ms
            yield
            times = [float(beat_ms), float(report_ms), float(self._wake_ms)]
            times += [] if coming is None else [float(coming.at_ms)]
            for worker in self._workers:
                times += [worker.due[0][0]] if worker.due else []
                next_ms = worker.engine.next_ms()
                times += [] if next_ms is None else [next_ms]
            self.now_ms = max(self.now_ms + 1, int(min(times) + 0.999))

    def cancel(self, job_id: bytes) -> None:
        """Cancel a job that has not ended, between two turns."""
        self._commands += 1
        self._say(_CLIENT, Cancel(request_id=1_000_000_000 + self._commands, target=Target(job_ids=[job_id])))

    @property
    def running(self) -> dict[str, int]:
        """How many streams each endpoint has."""
        return {worker.name: len(worker.engine.streams) for worker in self._workers}

    @property
    def loading_ms(self) -> float:
        """For how long endpoints have loaded models, all together."""
        return sum(worker.loading_ms for worker in self._workers)

    # --- peers -------------------------------------------------------------------------------------------------------

    def _submit(self, request: Request) -> None:
        number = len(self.served) + 1
        job_id = number.to_bytes(16, "big")
        self.served[job_id] = Served(request)
        spec = JobSpec(
            id=job_id, task_type=request.task_type, payload_bytes=1, priority=request.priority,
            models=[request.model], prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens_told,
            expires_ms=request.expires_ms,
        )  # fmt: skip
        self._say(_CLIENT, Submit(request_id=number + 1, jobs=[spec], as_user=request.user), b"\x80")

    def _work(self, worker: _Worker) -> None:
        """Tell what a worker's engine has done up to now."""
        for stream in worker.engine.advance(self.now_ms):
            job_id, epoch, attempt = stream.key
            ended = Ended(
                job_id=job_id, epoch=epoch, attempt=attempt, outcome="complete", result_bytes=len(_RESULT),
                model=stream.instance_id, prompt_tokens=stream.prompt_tokens, output_tokens=stream.output_tokens,
            )  # fmt: skip
            self._say(worker.peer, Results(ended=[ended]), _RESULT)
        while worker.due and worker.due[0][0] <= self.now_ms:
            _, _, command = heapq.heappop(worker.due)
            if isinstance(command, LoadModel):
                worker.loaded.append(command.model)
                self.swaps += 1
            else:
                worker.loaded.remove(command.instance_id)
            self._say(worker.peer, CapacityReport(capacity=worker.capacity()))
            self._say(worker.peer, LoadEnded(command_id=command.command_id))

    def _report(self) -> None:
        """Tell how many tokens the running streams have."""
        for worker in self._workers:
            reports = [
                PhaseReport(job_id=stream.key[0], attempt=stream.key[2], phase="writing", tokens=tokens)
                for stream in worker.engine.streams.values()
                if (tokens := worker.engine.tokens(stream))
            ]
            if reports:
                self._say(worker.peer, Phases(leases=reports))

    # --- the broker --------------------------------------------------------------------------------------------------

    @property
    def now(self) -> Now:
        """The broker's clocks."""
        return Now(_START_MS + self.now_ms, _WALL_MS + self.now_ms)

    def _say(self, peer: PeerId, message: FromPeer, body: bytes = b"") -> None:
        self._carry_out(step(self.state, Received(peer, _LOOPBACK, message, body), self.now))

    def _carry_out(self, effects: Iterable[object]) -> None:
        for effect in effects:
            match effect:
                case SendWork():
                    for group in effect.message.groups:
                        for lease in group.leases:
                            self._start(self._by_peer[effect.peer], lease.job_id, lease.epoch, lease.attempt,
                                        lease.instance_id)  # fmt: skip
                case Send(peer=peer, message=LoadModel() | UnloadModel() as command):
                    worker = self._by_peer[peer]
                    takes_ms = worker.engine.model.load_s * 1000 if isinstance(command, LoadModel) else 0.0
                    worker.loading_ms += takes_ms
                    self._commands += 1
                    heapq.heappush(worker.due, (self.now_ms + takes_ms, self._commands, command))
                case Send(peer=peer, message=Stop() as command):
                    self._stop(self._by_peer[peer], command)
                case Send(message=Submitted(outcomes=outcomes)):
                    for outcome in outcomes:
                        if outcome.outcome == "refused":
                            self._end(outcome.job_id, "refused")
                case JobChanged(job=job) if job.state in FINAL:
                    self._end(job.id, job.state)
                case WakeAt():
                    self._wake_ms = min(self._wake_ms, effect.mono_ms - _START_MS)
                case _:
                    pass

    def _start(self, worker: _Worker, job_id: bytes, epoch: int, attempt: int, instance_id: str) -> None:
        served = self.served[job_id]
        request = served.request
        stream = Stream(
            (job_id, epoch, attempt), instance_id, request.prompt_tokens, request.output_tokens, 0.0
        )
        worker.engine.begin(stream, self.now_ms)
        served.started_ms, served.worker = self.now_ms, worker.name
        served.first_ms = int(stream.reads_until_ms)
        served.attempts += 1

    def _end(self, job_id: bytes, state: str) -> None:
        served = self.served[job_id]
        if not served.state:
            served.state, served.ended_ms = state, self.now_ms
            self.left -= 1

    def _stop(self, worker: _Worker, command: Stop) -> None:
        for lease in command.leases:
            key = lease.job_id, lease.epoch, lease.attempt
            if worker.engine.stop(key, self.now_ms):
                ended = Ended(job_id=key[0], epoch=key[1], attempt=key[2], outcome="stopped")
                self._say(worker.peer, Results(ended=[ended]))


def _enlist(worker: _Worker) -> Enlist:
    return Enlist(
        request_id=1, instance=worker.peer.ljust(16), protocol_oldest=1, protocol_newest=1, name=worker.name,
        endpoint=f"http://{worker.name}", backend="forecast", task_types=["chat", "complete", "embed"],
        capacity=worker.capacity(),
    )  # fmt: skip
