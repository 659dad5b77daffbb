"""A broker as a worker sees one: a real ROUTER socket that answers by rule and remembers all it heard."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import zmq
import zmq.asyncio

from lmq_proto.codec import FROM_PEER_TABLE, cut, encode
from lmq_proto.messages import (
    Acked,
    CapacityReport,
    Ended,
    Enlist,
    Enlisted,
    FromPeer,
    Group,
    Heartbeat,
    Held,
    Lease,
    LeaseRef,
    Piece,
    Results,
    TextDurable,
    TextMark,
    TextReport,
    ToPeer,
    Who,
    Work,
)
from lmq_worker.agent import Agent
from lmq_worker.backends import BACKENDS
from lmq_worker.config import WorkerConfig, complete
from lmq_worker.logs import start_logs
from lmq_worker.open_data import pack, unpack
from lmq_worker.spool import Spool
from ports import a_port, bind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from lmq_proto.messages import Capacity

M = TypeVar("M")

# Waiting for anything ends here; a test that gets there has failed.
WITHIN_S = 15.0


class FakeBroker:
    """Answers `enlist`, acknowledges results and text, unless told not to."""

    def __init__(self, context: zmq.asyncio.Context, port: int = 0, epoch: int = 1) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.port = port or a_port()
        bind(self.socket, self.port)
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.epoch = epoch
        self.acks = True
        self.text_durable = True
        self.heartbeats = True
        self.enlists = True
        self.heartbeat_ms = 500
        self.stop: list[Held] = []
        self.heard: list[FromPeer] = []
        self.results: dict[tuple[bytes, int, int], tuple[Ended, bytes]] = {}
        self.results_heard = 0
        self.pieces: dict[tuple[bytes, int], list[Piece]] = {}
        self.peer = b""
        self.capacity: Capacity | None = None
        self._changed = asyncio.Event()
        self._next_job = 0
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._beat())]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        self.socket.close(linger=0)

    async def _listen(self) -> None:
        while True:
            peer, *frames = await self.socket.recv_multipart()
            message, body = FROM_PEER_TABLE.decode(frames)
            await self._heard(peer, message, body)
            self._changed.set()

    async def _heard(self, peer: bytes, message: FromPeer, body: bytes) -> None:
        if not isinstance(message, Enlist) and peer != self.peer:
            await self._send(peer, Who())
            return
        self.heard.append(message)
        match message:
            case Enlist():
                self.peer = peer
                self.capacity = message.capacity
                if self.enlists:
                    await self.send(self.enlisted_reply(message))
            case CapacityReport():
                self.capacity = message.capacity
            case TextReport():
                await self._take_text(message)
            case Results():
                parts = cut(body, [one.result_bytes for one in message.ended])
                for one, result in zip(message.ended, parts, strict=True):
                    self.results_heard += 1
                    self.results.setdefault((one.job_id, one.epoch, one.attempt), (one, result))
                if self.acks:
                    refs = [
                        LeaseRef(job_id=o.job_id, epoch=o.epoch, attempt=o.attempt) for o in message.ended
                    ]
                    await self.send(Acked(leases=refs))

    def enlisted_reply(self, message: Enlist) -> Enlisted:
        return Enlisted(
            request_id=message.request_id,
            protocol=1,
            software="fake",
            broker_id=b"b" * 16,
            epoch=self.epoch,
            wall_ms=0,
            heartbeat_ms=self.heartbeat_ms,
            stop=self.stop,
        )

    async def _take_text(self, message: TextReport) -> None:
        marks = []
        for text in message.texts:
            pieces = self.pieces.setdefault((text.job_id, text.attempt), [])
            assert text.first <= len(pieces) + 1, f"a gap: {len(pieces)} pieces, then number {text.first}"
            for at, piece in enumerate(text.pieces, start=text.first):
                if at <= len(pieces):
                    assert pieces[at - 1] == piece, f"piece {at} changed"
                else:
                    pieces.append(piece)
            marks.append(TextMark(job_id=text.job_id, attempt=text.attempt, piece=len(pieces)))
        if self.text_durable:
            await self.send(TextDurable(marks=marks))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.heartbeat_ms / 2000)
            if self.peer and self.heartbeats:
                await self.send(Heartbeat())

    async def send(self, message: ToPeer, body: bytes = b"") -> None:
        await self._send(self.peer, message, body)

    async def _send(self, peer: bytes, message: ToPeer, body: bytes = b"") -> None:
        try:
            await self.socket.send_multipart([peer, *encode(message, body)])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise

    # --- for tests ---

    async def until(self, predicate: Callable[[], Any], what: str) -> Any:
        """Return the first true value of the predicate, which is asked after each message."""
        try:
            async with asyncio.timeout(WITHIN_S):
                while not (value := predicate()):
                    self._changed.clear()
                    await self._changed.wait()
                return value
        except TimeoutError:
            pytest.fail(
                f"waited {WITHIN_S} s for: {what}; heard: {[type(m).__name__ for m in self.heard][-20:]}"
            )

    async def message(self, kind: type[M], number: int = 1, what: Callable[[M], bool] = lambda _: True) -> M:
        """Return the nth message of a kind that fits."""

        def find() -> M | None:
            found = [one for one in self.heard if isinstance(one, kind) and what(one)]
            return found[number - 1] if len(found) >= number else None

        found: M = await self.until(find, f"{kind.__name__} number {number}")
        return found

    async def with_instance(self, model: str) -> str:
        """Return the id of a loaded instance of a model, once the worker has one."""

        def find() -> str | None:
            instances = self.capacity.instances if self.capacity else []
            return next((i.instance_id for i in instances if i.model == model), None)

        found: str = await self.until(find, f"an instance of {model}")
        return found

    async def give(
        self,
        payload: dict[str, Any] | bytes,
        *,
        task_type: str = "echo",
        instance_id: str = "echo",
        **lease: Any,
    ) -> Lease:
        """Lease one job to the worker."""
        return (await self.give_group([payload], task_type=task_type, instance_id=instance_id, **lease))[0]

    async def give_group(
        self,
        payloads: Sequence[dict[str, Any] | bytes],
        *,
        task_type: str = "echo",
        instance_id: str = "echo",
        **lease: Any,
    ) -> list[Lease]:
        """Lease several jobs in one slot."""
        bodies = [payload if isinstance(payload, bytes) else pack(payload) for payload in payloads]
        leases = []
        for body in bodies:
            self._next_job += 1
            fields = {
                "job_id": self._next_job.to_bytes(16, "big"),
                "epoch": self.epoch,
                "attempt": 1,
                "task_type": task_type,
                "payload_bytes": len(body),
                "instance_id": instance_id,
                **lease,
            }
            leases.append(Lease(**fields))
        await self.send(Work(groups=[Group(leases=leases)]), b"".join(bodies))
        return leases

    async def end(self, lease: Lease) -> tuple[Ended, dict[str, Any]]:
        """Return how a lease ended, with its result."""
        key = (lease.job_id, lease.epoch, lease.attempt)
        ended, result = await self.until(lambda: self.results.get(key), f"the end of {lease.task_type}")
        return ended, unpack(result) or {}

    def text(self, lease: Lease, channel: str = "content") -> str:
        """Return the text that came so far."""
        pieces = self.pieces.get((lease.job_id, lease.attempt), [])
        return "".join(piece.text for piece in pieces if piece.channel == channel)


@asynccontextmanager
async def a_broker(port: int = 0, epoch: int = 1) -> AsyncIterator[FakeBroker]:
    context = zmq.asyncio.Context()
    broker = FakeBroker(context, port, epoch)
    try:
        yield broker
    finally:
        await broker.close()
        context.term()


def settings(broker_url: str, state_dir: Path, **fields: Any) -> WorkerConfig:
    """Return settings of a worker in a test: quick to look, quick to stop."""
    config = WorkerConfig(
        name="w1",
        backend="echo",
        broker=[broker_url],
        state_dir=str(state_dir),
        reach_timeout_s=1.0,
        poll_s=0.2,
        loading_poll_s=0.1,
        cancel_grace_s=0.05,
        drain_timeout_s=0.2,
        ack_timeout_s=1.0,
        breaker_probe_s=0.05,
        breaker_probe_max_s=0.2,
    )
    return complete(replace(config, **fields))


@asynccontextmanager
async def a_worker(config: WorkerConfig) -> AsyncIterator[Agent]:
    """Run a worker in this loop until the block is left."""
    start_logs(level="warning", form="plain")
    spool = Spool(config.spool_dir, limit_bytes=config.spool_bytes)
    agent = Agent(config, BACKENDS[config.backend](config, spool), spool)
    run = asyncio.create_task(agent.run())
    try:
        yield agent
    finally:
        agent.stop()
        await run
        spool.close()


def chat(text: str, **body: Any) -> dict[str, Any]:
    """Return a chat payload."""
    return {"body": {"messages": [{"role": "user", "content": text}], **body}}


def environment(**extra: str) -> dict[str, str]:
    """Return an environment for a worker process: this one's import path."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **extra}
