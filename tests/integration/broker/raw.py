"""A bare peer on a DEALER socket: says what it is told to, well formed or not, and reads what comes back."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec
import pytest
import zmq

from lmq_proto import bounds, codec, ids
from lmq_proto.messages import (
    Capacity,
    Enlist,
    Enlisted,
    ErrorReply,
    Hello,
    InstanceInfo,
    JobSpec,
    Submit,
    Submitted,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_proto.messages import FromPeer, Message

M = TypeVar("M", bound="Message")

# How long an answer may take on a machine that is busy.
WITHIN_S = 30.0


class RawPeer:
    """One connection. Use it with `with`."""

    def __init__(self, url: str, *, routing_id: bytes = b"", **options: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            self.socket.setsockopt(getattr(zmq, name), value)
        if routing_id:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self.socket.connect(url)
        self.instance = os.urandom(16)
        self._request_id = 0
        self._unread: list[tuple[Message, bytes]] = []

    # --- out ---

    def frames(self, *frames: bytes) -> None:
        """Send frames as they stand."""
        self.socket.send_multipart(frames)

    def header(self, verb: str, header: dict[str, Any], body: bytes = b"") -> None:
        """Send a header that no message class would make."""
        self.frames(codec.VERSION_FRAME, verb.encode(), msgspec.msgpack.encode(header), body)

    def send(self, message: FromPeer, body: bytes = b"") -> None:
        self.socket.send_multipart(codec.encode(message, body))

    def next_id(self) -> int:
        self._request_id += 1
        return self._request_id

    # --- in ---

    def receive(self, kind: type[M], within_s: float = WITHIN_S) -> tuple[M, bytes]:
        """Return the next message of a kind; others that come before it are kept for later."""
        for index, (message, body) in enumerate(self._unread):
            if isinstance(message, kind):
                del self._unread[index]
                return message, body
        deadline_s = time.monotonic() + within_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            if self.socket.poll(int(left_s * 1000) + 1):
                came = codec.TO_PEER_TABLE.decode(self.socket.recv_multipart())
                if isinstance(came[0], kind):
                    return came[0], came[1]
                self._unread.append(came)
        pytest.fail(
            f"no {kind.__name__} in {within_s} s; there was {[type(m).__name__ for m, _ in self._unread]}"
        )

    def message(self, kind: type[M], within_s: float = WITHIN_S) -> M:
        return self.receive(kind, within_s)[0]

    def has(self, kind: type[Message]) -> bool:
        """Tell whether a message of a kind came before what was last waited for."""
        return any(isinstance(message, kind) for message, _ in self._unread)

    def answer(self, request_id: int) -> Message:
        """Return what answers a command, be it an error."""
        deadline_s = time.monotonic() + WITHIN_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            if self.socket.poll(int(left_s * 1000) + 1):
                came = codec.TO_PEER_TABLE.decode(self.socket.recv_multipart())
                if getattr(came[0], "request_id", None) == request_id:
                    return came[0]
                self._unread.append(came)
        pytest.fail(f"no answer to {request_id} in {WITHIN_S} s")

    def error(self) -> ErrorReply:
        return self.message(ErrorReply)

    # --- the usual beginnings ---

    def hello(
        self, user: str = "raw", *, oldest: int = 1, newest: int = 1, within_s: float = WITHIN_S
    ) -> Welcome:
        self.send(Hello(
            request_id=self.next_id(), instance=self.instance, protocol_oldest=oldest, protocol_newest=newest,
            user=user,
        ))  # fmt: skip
        return self.message(Welcome, within_s)

    def enlist(self, name: str, *, slots: int = 1, **fields: Any) -> Enlisted:
        """Enlist as a worker of `echo` jobs that runs nothing by itself."""
        instance = InstanceInfo(instance_id="i", model="*", kind="any", slots=slots)
        defaults: dict[str, Any] = {
            "request_id": self.next_id(), "instance": self.instance, "protocol_oldest": bounds.PROTOCOL_OLDEST,
            "protocol_newest": bounds.PROTOCOL_NEWEST, "name": name, "endpoint": f"raw://{name}", "backend": "raw",
            "capacity": Capacity(instances=[instance]), "task_types": ["echo"],
        }  # fmt: skip
        self.send(Enlist(**defaults | fields))
        return self.message(Enlisted)

    def submit(self, payloads: Sequence[bytes], *, follow: bool = False, **fields: Any) -> list[bytes]:
        """Submit jobs and return their ids once they are accepted."""
        job_ids = [ids.job_id(time.time_ns() // 1_000_000, os.urandom(10)) for _ in payloads]
        defaults: dict[str, Any] = {"task_type": "echo"}
        jobs = [
            JobSpec(id=job_id, payload_bytes=len(payload), **defaults | fields)
            for job_id, payload in zip(job_ids, payloads, strict=True)
        ]
        self.send(Submit(request_id=self.next_id(), jobs=jobs, follow=follow), b"".join(payloads))
        outcomes = self.message(Submitted).outcomes
        assert [outcome.outcome for outcome in outcomes] == ["accepted"] * len(jobs)
        return [bytes(job_id) for job_id in job_ids]

    def close(self) -> None:
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
