"""The worker's socket where nobody listens."""

import asyncio
import threading

import zmq

from lmq_proto.messages import Heartbeat
from lmq_worker.link import Link


def test_a_worker_without_a_broker_waits_instead_of_spinning() -> None:
    """Rounds of the loop are counted, not time: between two tries to send there is nothing to look at."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    blocked = threading.Event()
    looks = 0

    async def rounds() -> int:
        nonlocal looks
        link = Link(
            context, ["tcp://127.0.0.1:9"], received=lambda _: None, drained=lambda: None,
            blocked=blocked.set, unblocked=lambda: None,
        )  # fmt: skip
        link.connect()
        link.send(Heartbeat())
        tried = link._try_send

        def counted(frames: list[bytes]) -> bool:
            nonlocal looks
            looks += 1
            return tried(frames)

        link._try_send = counted  # type: ignore[method-assign]  # to count
        for _ in range(200):
            await asyncio.sleep(0)
        link.close(linger_ms=0)
        return looks

    try:
        assert asyncio.run(rounds()) <= 3
        assert blocked.is_set()
    finally:
        context.destroy(linger=0)
