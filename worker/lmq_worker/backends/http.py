"""HTTP to one endpoint: one more try on a fresh connection, watchdogs for silence, streams as events."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import httpx

from lmq_worker import __version__
from lmq_worker.backends.errors_table import FIRST_ERROR_STATUS, ServerError, error_of_answer, read_error
from lmq_worker.backends.sse import EventTooLong, SseParser
from lmq_worker.failures import Stalled, StreamCut, Unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from lmq_worker.config import WorkerConfig

# Model servers close idle connections after 5 s; one that is reused later may be gone already.
KEEPALIVE_EXPIRY_S = 2.0
# More connections than any endpoint has slots; the broker bounds what is in flight.
CONNECTIONS = 1024
# How long the end of a body may take after its last event.
REST_TIMEOUT_S = 1.0
# How long a look at the endpoint (its models, its health) may take.
LOOK_TIMEOUT_S = 10.0
# The most of an answer that says an error.
ERROR_CHARS = 65_536


class Endpoint:
    """One model server. Everything it says wrong becomes an `AttemptFailed`."""

    def __init__(self, config: WorkerConfig) -> None:
        self.url = config.endpoint
        self._first_byte_s = config.first_byte_timeout_s
        self._between_s = config.between_chunks_timeout_s
        self._headers = {"Accept": "*/*", "User-Agent": f"lmq-worker/{__version__}"}
        if config.api_token:
            self._headers["Authorization"] = f"Bearer {config.api_token}"
        elif userinfo := httpx.URL(config.endpoint).userinfo:
            self._headers["Authorization"] = f"Basic {base64.b64encode(unquote_to_bytes(userinfo)).decode()}"
        timeout = httpx.Timeout(None, connect=config.connect_timeout_s, write=config.write_timeout_s)
        self._extensions = {"timeout": timeout.as_dict()}
        # The transports alone: what a client adds (redirects, cookies, proxies) nobody wants here, and it takes as long
        # as all of our own code for a request.
        self._transport = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=KEEPALIVE_EXPIRY_S),
            trust_env=False,
        )
        # Keeps no connection, so each of its requests has a new one.
        self._fresh = httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=0), trust_env=False
        )
        self._urls: dict[str, httpx.URL] = {}
        self.unfinished: set[asyncio.Task[None]] = set()
        """Bodies that are read to their end after their last event."""

    async def close(self) -> None:
        for rest in self.unfinished:
            rest.cancel()
        if self.unfinished:
            await asyncio.wait(self.unfinished)
        await self._transport.aclose()
        await self._fresh.aclose()

    async def get(self, path: str) -> Any:
        """Return the JSON that a GET answers.

        Raises:
            Unreachable: nobody answers, or not in time.
            ServerError: the answer is an error, or no JSON.
        """
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                return await self._json("GET", path, None)
        except TimeoutError as error:
            raise Unreachable(f"{path} did not answer within {LOOK_TIMEOUT_S:g} s") from error

    async def post(self, path: str, body: dict[str, Any], *, timeout_s: float | None = None) -> Any:
        """Return the JSON that a POST answers.

        Raises:
            Unreachable: nobody answers.
            Stalled: no answer within `timeout_s` (default: first_byte_timeout_s).
            ServerError: the answer is an error, or no JSON.
        """
        limit_s = timeout_s if timeout_s is not None else self._first_byte_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._json("POST", path, body)
        except TimeoutError as error:
            raise Stalled("first_byte_timeout", limit_s) from error

    async def _json(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        response = await self._send(method, path, body)
        try:
            text = (await response.aread()).decode("utf-8", "replace")
        except httpx.TransportError as error:
            raise StreamCut(_why(error)) from error
        finally:
            await response.aclose()
        if response.status_code != httpx.codes.OK:
            raise _refusal(method, path, text, response)
        try:
            answer = json.loads(text)
        except ValueError:
            raise ServerError(f"no JSON: {text[:200]!r}", status=response.status_code) from None
        failed = read_error(answer, status=response.status_code)
        if failed is not None:
            raise failed
        return answer

    @asynccontextmanager
    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Open a stream of events; leaving the block closes the connection, which is how a request is cancelled.

        Raises:
            Unreachable, ServerError: before the first event, or from the iterator later.
            Stalled, StreamCut: from the iterator.
        """
        try:
            async with asyncio.timeout(self._first_byte_s):
                response = await self._send("POST", path, body)
        except TimeoutError as error:
            raise Stalled("first_byte_timeout", self._first_byte_s) from error
        stream = _Stream(response, self._first_byte_s, self._between_s)
        try:
            whole = await self._unstreamed(path, response)
            yield stream.events() if whole is None else _only(whole)
        finally:
            if stream.is_done:
                # Closed as it is, the connection would be lost: what ends the body comes after `[DONE]`.
                rest = asyncio.create_task(stream.read_rest())
                self.unfinished.add(rest)
                rest.add_done_callback(self.unfinished.discard)
            else:
                await response.aclose()

    async def _unstreamed(self, path: str, response: httpx.Response) -> dict[str, Any] | None:
        """Return the answer of a server that does not stream, as the one event it amounts to; None: a stream follows.

        Raises:
            ServerError: the answer is an error.
            Stalled, StreamCut: it does not come to its end.
        """
        success = response.status_code == httpx.codes.OK
        if success and "json" not in response.headers.get("content-type", ""):
            return None
        # A server that sends the head first is silent until the whole answer is written.
        silent_s = self._first_byte_s if success else self._between_s
        try:
            async with asyncio.timeout(silent_s):
                text = (await response.aread()).decode("utf-8", "replace")
        except TimeoutError as error:
            raise Stalled("first_byte_timeout", silent_s) from error
        except httpx.TransportError as error:
            raise StreamCut(_why(error)) from error
        whole = _whole_answer(text) if success else None
        if whole is None:
            raise _refusal("POST", path, text[:ERROR_CHARS], response)
        return whole

    async def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """Send and return the answer's head; when not one byte of it came, try once more on a fresh connection."""
        try:
            return await self._send_by(self._transport, method, path, body)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreachable(_why(error)) from error
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError):
            try:
                return await self._send_by(self._fresh, method, path, body)
            except httpx.TransportError as error:
                raise Unreachable(_why(error)) from error
        except httpx.TransportError as error:
            raise Unreachable(_why(error)) from error

    async def _send_by(
        self, transport: httpx.AsyncHTTPTransport, method: str, path: str, body: dict[str, Any] | None
    ) -> httpx.Response:
        url = self._urls.get(path)
        if url is None:
            url = self._urls[path] = httpx.URL(self.url.rstrip("/") + path)
        content = None if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        return await transport.handle_async_request(
            httpx.Request(method, url, content=content, headers=headers, extensions=self._extensions)
        )


class _Stream:
    """The events of one answer, and what comes after them."""

    def __init__(self, response: httpx.Response, first_byte_s: float, between_s: float) -> None:
        self._response = response
        self._chunks = response.aiter_bytes()
        self._first_byte_s, self._between_s = first_byte_s, between_s
        self.is_done = False
        """`[DONE]` was seen."""

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the JSON of each event until `[DONE]` or the end of the stream; raise what an event says went wrong."""
        parser = SseParser()
        silent_s, code = self._first_byte_s, "first_byte_timeout"
        ended = False
        while not ended:
            try:
                async with asyncio.timeout(silent_s):
                    chunk = await anext(self._chunks, None)
                events = parser.end() if chunk is None else parser.feed(chunk)
            except TimeoutError as error:
                raise Stalled(code, silent_s) from error
            except httpx.TransportError as error:
                raise StreamCut(_why(error)) from error
            except EventTooLong as error:
                raise ServerError(str(error)) from error
            ended = chunk is None
            for name, data in events:
                if data.strip() == "[DONE]":
                    self.is_done = True
                    return
                event = _event(name, data)
                if _speaks(event):
                    silent_s, code = self._between_s, "chunk_timeout"
                yield event

    async def read_rest(self) -> None:
        """Read to the end of the body, so that the connection can be used again; close it if the end does not come."""
        try:
            async with asyncio.timeout(REST_TIMEOUT_S):
                async for _ in self._chunks:
                    pass
        except (TimeoutError, httpx.TransportError):
            pass
        finally:
            await self._response.aclose()


def _event(name: str, data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        raise ServerError(f"an event that is no JSON: {data[:200]!r}") from None
    failed = read_error(event)
    if failed is None and name == "error":
        failed = ServerError(str(event.get("message", data) if isinstance(event, dict) else data))
    if failed is not None:
        raise failed
    return event if isinstance(event, dict) else {}


def _speaks(event: dict[str, Any]) -> bool:
    """Tell whether an event holds some of the answer. Some servers say the role first and read the prompt then."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return False
    delta = choice.get("delta")
    said = [value for key, value in delta.items() if key != "role"] if isinstance(delta, dict) else []
    return any(said) or bool(choice.get("text") or choice.get("finish_reason"))


async def _only(event: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield event


def _whole_answer(text: str) -> dict[str, Any] | None:
    """Return an answer that has choices and no error; None if it is another."""
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    if not isinstance(answer, dict) or not isinstance(answer.get("choices"), list):
        return None
    return answer if read_error(answer) is None else None


def _refusal(method: str, path: str, text: str, response: httpx.Response) -> ServerError:
    """Return the error of an answer; it names the path where that, and no job, is what is wrong."""
    status = response.status_code
    error = error_of_answer(text, status, _retry_after_ms(response))
    if status >= FIRST_ERROR_STATUS and (method == "GET" or error.verdict.code == "wrong_endpoint"):
        error.message = f"{path}: {error.message} (HTTP {status})"
    return error


def _retry_after_ms(response: httpx.Response) -> int:
    """Return the patience that the server asks for; a date or nonsense counts as none."""
    text = response.headers.get("retry-after", "")
    return int(text) * 1000 if text.isdigit() and len(text) < 7 else 0


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
