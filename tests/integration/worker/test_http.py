"""The worker's HTTP to one endpoint, against servers that keep their connections or do not."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from lmq_worker.backends.http import Endpoint
from lmq_worker.config import WorkerConfig
from lmq_worker.failures import Stalled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENTS = b'data: {"n": 1}\n\ndata: [DONE]\n\n'
END = b"0\r\n\r\n"


class Server:
    """Streams the same answer to every request on a connection that it keeps; counts connections."""

    def __init__(self, *, ends: bool, events: bytes = EVENTS) -> None:
        self.connections = 0
        self.heads: list[str] = []
        self.serving: set[asyncio.Task[None] | None] = set()
        self._ends, self._events = ends, events

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.serving.add(asyncio.current_task())
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heads.append(head)
                length = next(line for line in head.splitlines() if line.lower().startswith("content-length"))
                await reader.readexactly(int(length.partition(":")[2]))
                writer.write(HEAD + b"%x\r\n%s\r\n" % (len(self._events), self._events))
                await writer.drain()
                if self._ends:
                    writer.write(END)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()


@asynccontextmanager
async def a_server(*, ends: bool, events: bytes = EVENTS) -> AsyncIterator[tuple[Server, str]]:
    server = Server(ends=ends, events=events)
    listening = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    async with listening:
        # Each connection ends when the worker's end of it is closed.
        yield server, f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await asyncio.gather(*(task for task in server.serving if task is not None))


async def asked(endpoint: Endpoint, times: int) -> None:
    for _ in range(times):
        async with endpoint.stream("/v1/chat/completions", {}) as events:
            heard = [event async for event in events]
        assert heard == [{"n": 1}]
        await asyncio.gather(*endpoint.unfinished)


def test_one_connection_serves_one_stream_after_the_other() -> None:
    async def story() -> None:
        async with a_server(ends=True) as (server, address):
            endpoint = Endpoint(WorkerConfig(endpoint=f"http://{address}"))
            await asked(endpoint, 3)
            assert (server.connections, len(server.heads)) == (1, 3)
            await endpoint.close()

    asyncio.run(story())


def test_a_stream_whose_body_does_not_end_gives_its_connection_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmq_worker.backends.http.REST_TIMEOUT_S", 0.01)

    async def story() -> None:
        async with a_server(ends=False) as (server, address):
            endpoint = Endpoint(WorkerConfig(endpoint=f"http://{address}"))
            await asked(endpoint, 2)
            assert (server.connections, len(server.heads)) == (2, 2)
            await endpoint.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("begun", "code"),
    [
        (b": still there\n\n", "first_byte_timeout"),
        (b'data: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n', "first_byte_timeout"),
        (b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n', "first_byte_timeout"),
        (b'data: {"choices": [], "prompt_progress": {"processed": 9}}\n\n', "first_byte_timeout"),
        (b'data: {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm"}}]}\n\n', "chunk_timeout"),
        (b'data: {"choices": [{"index": 0, "text": "and"}]}\n\n', "chunk_timeout"),
    ],
)
def test_an_answer_has_begun_with_its_first_text(begun: bytes, code: str) -> None:
    """What is sent while the prompt is still being read leaves the patience for that as it is."""

    async def story() -> None:
        async with a_server(ends=False, events=begun) as (_, address):
            config = WorkerConfig(
                endpoint=f"http://{address}", first_byte_timeout_s=0.1, between_chunks_timeout_s=0.1
            )
            endpoint = Endpoint(config)
            with pytest.raises(Stalled) as stalled:
                await asked(endpoint, 1)
            assert stalled.value.verdict.code == code
            await endpoint.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("userinfo", "token", "header"),
    [
        ("", "", None),
        ("", "secret", "Authorization: Bearer secret"),
        ("anna:p%40ss@", "", "Authorization: Basic YW5uYTpwQHNz"),
    ],
)
def test_requests_carry_the_credentials_that_were_given(
    userinfo: str, token: str, header: str | None
) -> None:
    async def story() -> None:
        async with a_server(ends=True) as (server, address):
            endpoint = Endpoint(WorkerConfig(endpoint=f"http://{userinfo}{address}", api_token=token))
            await asked(endpoint, 1)
            credentials = [line for line in server.heads[0].splitlines() if line.startswith("Authorization")]
            assert credentials == ([] if header is None else [header])
            await endpoint.close()

    asyncio.run(story())
