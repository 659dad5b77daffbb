"""HTTP/1.1 on asyncio: one connection at a time through h11, with the manners of LM Studio's Node server.

What is asked and answered is not this file's business: it reads a whole request, calls the application with it and a
`Reply` to write to, and cancels that call when the client hangs up.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Protocol

import h11
import msgspec

from lmq_simulator.config import SimulatorConfig

# Largest request body taken, in bytes: far above any prompt, far below what would hurt.
MAX_BODY_BYTES = 64 * 1024 * 1024

_REASONS = {200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 404: b"Not Found", 413: b"Payload Too Large",
            500: b"Internal Server Error"}  # fmt: skip
# The two fields of SO_LINGER: shorts on Windows, ints elsewhere.
_LINGER = "hh" if sys.platform == "win32" else "ii"
_JSON = b"application/json; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, read to its end."""

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes

    def token(self) -> str | None:
        """Return what stands in the Authorization header after "Bearer", None without such a header."""
        value = self.headers.get(b"authorization")
        if value is None:
            return None
        return value.decode("latin-1").removeprefix("Bearer ").strip()


class ServerSide(Protocol):
    """What a connection needs from the server it belongs to."""

    @property
    def config(self) -> SimulatorConfig: ...
    @property
    def chance(self) -> random.Random: ...
    @property
    def connections(self) -> set[Connection]: ...
    async def answer(self, request: Request, reply: Reply) -> None: ...
    def client_left(self) -> None: ...


class Reply:
    """The writing end of one exchange: either one `json`, or `start_stream`, `write`s and `end`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.started = False

    def json(self, body: Any, status: int = 200) -> None:
        """Send a whole answer."""
        data = msgspec.json.encode(body)
        self._connection.send_head(status, _JSON, len(data))
        self.started = True
        self._connection.send_data(data)
        self._connection.finish()

    def start_stream(self) -> None:
        """Send the head of a stream of server-sent events."""
        if not self.started:
            self._connection.send_head(200, b"text/event-stream", None)
            self._connection.flush()
            self.started = True

    def write(self, data: bytes) -> None:
        """Send a part of a stream, at once."""
        self._connection.send_data(data)
        self._connection.flush()

    async def drain(self) -> None:
        """Wait while the client reads more slowly than we write."""
        await self._connection.writable()

    def end(self) -> None:
        """End a stream in good order."""
        self._connection.finish()

    def cut(self) -> None:
        """Close the connection after what was written, without ending the answer."""
        self._connection.close()

    def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        self._connection.reset()


class Connection(asyncio.Protocol):
    """One client's connection. Requests on it are answered one after the other."""

    def __init__(self, server: ServerSide) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER)
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._head: h11.Request | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._paused: asyncio.Future[None] | None = None

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)
        peer = transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._stay_awake()
        try:
            self._http.receive_data(data)
            self._read()
        except h11.RemoteProtocolError:
            self._refuse(400)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)
        self._stay_awake()
        self.resume_writing()
        if self._task is not None:
            self._server.client_left()
            if self._server.config.disconnects_noticed:
                self._task.cancel()

    def pause_writing(self) -> None:
        self._paused = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._paused is not None and not self._paused.done():
            self._paused.set_result(None)
        self._paused = None

    # Reading.

    def _read(self) -> None:
        while self._task is None:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
                    self.flush()
                return
            if isinstance(event, h11.Request):
                self._head = event
                self._body, self._body_bytes = [], 0
            elif isinstance(event, h11.Data):
                self._body.append(bytes(event.data))
                self._body_bytes += len(event.data)
                if self._body_bytes > MAX_BODY_BYTES:
                    self._refuse(413)
                    return
            elif isinstance(event, h11.EndOfMessage):
                self._begin()
            else:
                return

    def _begin(self) -> None:
        head = self._head
        assert head is not None
        request = Request(
            method=head.method.decode("ascii"),
            path=head.target.decode("latin-1").partition("?")[0],
            headers=dict(head.headers),
            body=b"".join(self._body),
        )
        self._head, self._body = None, []
        self._task = asyncio.get_running_loop().create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            await self._server.answer(request, Reply(self))
        finally:
            self._task = None
            if not self._is_answered():
                self.close()
        if self._transport is None or not self._is_answered():
            return
        config = self._server.config
        if config.close_after_reply_ratio and self._server.chance.random() < config.close_after_reply_ratio:
            self.close()
            return
        self._http.start_next_cycle()
        self._idle = asyncio.get_running_loop().call_later(config.keep_alive_s, self.close)
        try:
            self._read()
        except h11.RemoteProtocolError:
            self._refuse(400)
        if self._is_answering():
            self._stay_awake()

    def _is_answered(self) -> bool:
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def _is_answering(self) -> bool:
        return self._task is not None

    def _stay_awake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _refuse(self, status: int) -> None:
        """Answer something that is not a request we take, and close."""
        if self._task is None and self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            with contextlib.suppress(h11.LocalProtocolError):
                self.send_head(status, b"text/plain", 0, close=True)
                self.finish()
        self.close()

    # Writing; called by Reply. After the client has left everything here does nothing.

    def send_head(self, status: int, content_type: bytes, length: int | None, *, close: bool = False) -> None:
        headers = [(b"X-Powered-By", b"Express"), (b"Content-Type", content_type)]
        if length is None:
            headers += [(b"Cache-Control", b"no-cache"), (b"Transfer-Encoding", b"chunked")]
        else:
            headers.append((b"Content-Length", b"%d" % length))
        headers.append((b"Date", formatdate(usegmt=True).encode("ascii")))
        if close:
            headers.append((b"Connection", b"close"))
        else:
            headers.append((b"Connection", b"keep-alive"))
            headers.append(
                (b"Keep-Alive", b"timeout=%s" % f"{self._server.config.keep_alive_s:g}".encode("ascii"))
            )
        self._send(h11.Response(status_code=status, headers=headers, reason=_REASONS.get(status, b"")))

    def send_data(self, data: bytes) -> None:
        self._send(h11.Data(data=data))

    def finish(self) -> None:
        self._send(h11.EndOfMessage())
        self.flush()

    def flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _send(self, event: h11.Response | h11.InformationalResponse | h11.Data | h11.EndOfMessage) -> None:
        if self._transport is not None:
            data = self._http.send(event)
            if data:
                self._out.append(data)

    async def writable(self) -> None:
        if self._paused is not None:
            await self._paused

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def drop(self) -> asyncio.Task[None] | None:
        """Close without regard for what is under way; return the task that was, cancelled."""
        self._stay_awake()
        if self._transport is not None:
            self._transport.abort()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def reset(self) -> None:
        if self._transport is not None:
            peer = self._transport.get_extra_info("socket")
            if peer is not None:
                # Lingering for zero seconds turns the close into a reset.
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))
            self._transport.abort()
