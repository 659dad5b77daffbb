"""A peer that speaks the protocol over a bare DEALER, so that a figure shows the broker and not lmq's own client.

It thinks as little as the protocol allows: submits go again when the broker asks who it is, and that is all.
"""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import click
import zmq

from lmq_proto import bounds
from lmq_proto.codec import TO_PEER_TABLE, encode
from lmq_proto.ids import job_id
from lmq_proto.messages import (
    Enlist,
    Enlisted,
    ErrorReply,
    FromPeer,
    Heartbeat,
    Hello,
    Submit,
    Submitted,
    ToPeer,
    Welcome,
    Who,
)
from lmq_proto.parts import Capacity, InstanceInfo, JobSpec

ANSWER_TIMEOUT_S = 60.0
HEARTBEAT_EVERY_S = 2.0
# Of the first submit; the hello before it has 1.
FIRST_REQUEST = 2


class RawPeerFailed(click.ClickException):
    """The broker did not answer, or not as a benchmark can go on with."""


class RawPeer:
    """One connection, used by one thread. Messages wait for the connection, so that it may be made before the broker.

    Args:
        url: of the broker.
        context: shared by many peers of one process.
        buffers: hold whatever comes; without, what is not read soon stays with the sender.
    """

    def __init__(self, url: str, context: "zmq.Context[zmq.Socket[bytes]]", *, buffers: bool = True) -> None:
        self.socket = context.socket(zmq.DEALER)
        for option, value in ((zmq.SNDHWM, 0), (zmq.LINGER, 0), (zmq.RECONNECT_IVL, 5)):
            self.socket.setsockopt(option, value)
        self.socket.setsockopt(zmq.RCVHWM, 0 if buffers else 1)
        if not buffers:
            self.socket.setsockopt(zmq.RCVBUF, 4096)
        self.socket.connect(url)
        self._instance = os.urandom(16)
        # How often the broker had forgotten the session of a submitter that reads all the time.
        self.sessions_lost = 0

    def say(self, message: FromPeer, body: bytes = b"") -> None:
        """Send a message."""
        self.socket.send_multipart(encode(message, body))

    def hear(self, timeout_s: float = ANSWER_TIMEOUT_S) -> ToPeer:
        """Return the next message.

        Raises:
            RawPeerFailed: none came within `timeout_s`.
        """
        if not self.socket.poll(int(timeout_s * 1000)):
            raise RawPeerFailed("the broker said nothing for too long")
        return TO_PEER_TABLE.decode(self.socket.recv_multipart())[0]

    def hello(self) -> None:
        """Begin a client's session.

        Raises:
            RawPeerFailed: the broker did not welcome it.
        """
        self.say_hello()
        answer = self.hear()
        if not isinstance(answer, Welcome):
            raise RawPeerFailed(f"said hello, heard {answer}")

    def say_hello(self) -> None:
        """Say hello, without waiting for the welcome."""
        self.say(Hello(request_id=1, instance=self._instance, protocol_oldest=1, protocol_newest=1))

    def enlist(self, worker: Enlist) -> None:
        """Begin a worker's session.

        Raises:
            RawPeerFailed: the broker did not enlist it.
        """
        self.say(worker)
        answer = self.hear()
        if not isinstance(answer, Enlisted):
            raise RawPeerFailed(f"enlisted, heard {answer}")

    def close(self) -> None:
        """Close the connection."""
        self.socket.close(0)


@contextmanager
def raw_peer(url: str) -> Iterator[RawPeer]:
    """Give one peer with a context of its own."""
    context = zmq.Context()
    peer = RawPeer(url, context)
    try:
        yield peer
    finally:
        peer.close()
        context.term()


def any_model(slots: int) -> Capacity:
    """Return the capacity of an endpoint that runs whatever comes."""
    return Capacity(instances=[InstanceInfo(instance_id="any", model="*", kind="any", slots=slots)])


def enlistment(
    name: str, capacity: Capacity, *, task_types: Sequence[str] = ("echo", "chat"), queues: Sequence[str] = ()
) -> Enlist:
    """Return what a raw worker says of itself."""
    return Enlist(
        request_id=1, instance=os.urandom(16), protocol_oldest=1, protocol_newest=1, name=name,
        endpoint=f"raw://{name}", backend="raw", capacity=capacity, task_types=list(task_types), queues=list(queues),
    )  # fmt: skip


def new_id() -> bytes:
    """Return a job id as any client makes them."""
    return job_id(time.time_ns() // 1_000_000, os.urandom(10))


def submits(
    specs: Sequence[JobSpec], payload: bytes, users: Sequence[str], jobs_each: int
) -> list[list[bytes]]:
    """Return encoded submits of `jobs_each` jobs, the users in turn; each job carries `payload`."""
    return [
        encode(
            Submit(
                request_id=number + FIRST_REQUEST, jobs=list(specs[start : start + jobs_each]), as_user=user
            ),
            payload * len(specs[start : start + jobs_each]),
        )
        for number, start in enumerate(range(0, len(specs), jobs_each))
        for user in [users[number % len(users)]]
    ]


def submit_windowed(peer: RawPeer, messages: Sequence[list[bytes]], window: int) -> float:
    """Send what `submits` made, at most `window` unanswered; return seconds to the last answer.

    Raises:
        RawPeerFailed: an answer did not come, or a job was not accepted.
    """
    waiting = deque(enumerate(messages, FIRST_REQUEST))
    unanswered: dict[int, list[bytes]] = {}
    socket = peer.socket
    is_known = True
    answered_s = time.monotonic()
    started_s = time.perf_counter()
    while waiting or unanswered:
        while is_known and waiting and len(unanswered) < window:
            request_id, frames = waiting.popleft()
            unanswered[request_id] = frames
            socket.send_multipart(frames)
        if time.monotonic() > answered_s + ANSWER_TIMEOUT_S:
            raise RawPeerFailed(f"{len(unanswered)} submits without an answer for {ANSWER_TIMEOUT_S:.0f} s")
        if not socket.poll(int(HEARTBEAT_EVERY_S * 1000)):
            # A broker that has forgotten the session says so.
            peer.say(Heartbeat())
            continue
        answer = peer.hear()
        if isinstance(answer, Submitted):
            answered_s = time.monotonic()
            unanswered.pop(answer.request_id, None)
            _check_outcomes(answer)
        elif isinstance(answer, Who) and is_known:
            is_known = False
            peer.sessions_lost += 1
            peer.say_hello()
        elif isinstance(answer, Welcome):
            is_known = True
            for frames in unanswered.values():
                socket.send_multipart(frames)
        elif isinstance(answer, ErrorReply):
            raise RawPeerFailed(f"a submit was refused: {answer.error.message}")
    return time.perf_counter() - started_s


def _check_outcomes(answer: Submitted) -> None:
    for each in answer.outcomes:
        # A submit that went again may find its job there.
        if each.outcome not in ("accepted", "duplicate"):
            raise RawPeerFailed(f"a job was {each.outcome}: {each.error}")


def preload(peer: RawPeer, specs: Iterator[JobSpec], payload: bytes, users: Sequence[str], jobs: int) -> None:
    """Submit `jobs` jobs as fast as they go, a thousand in a message."""
    done = 0
    while done < jobs:
        # Not all at once: a million encoded jobs would fill our own memory.
        part = [next(specs) for _ in range(min(20 * bounds.BATCH_JOBS, jobs - done))]
        submit_windowed(peer, submits(part, payload, users, bounds.BATCH_JOBS), window=8)
        done += len(part)
