"""The openai backend against a hand-made server that answers as other people's servers were seen to answer."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from integration.worker.fake_broker import a_broker, a_worker, chat, settings
from lmq_worker.backends import NoEndpoint, detected
from lmq_worker.backends.lm_studio import NOT_LM_STUDIO, TOO_OLD
from lmq_worker.config import WorkerConfig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Answer = tuple[int, Any]
"""(status, JSON) or (status, text of a stream)."""

MODELS: Answer = (200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})
NO_ROUTE: Answer = (404, {"detail": "Not Found"})


class Server:
    """Gives each path its answer, closes each connection, and remembers what was asked."""

    def __init__(self, routes: dict[str, Answer]) -> None:
        self.routes = {"/v1/models": MODELS, **routes}
        self.asked: list[tuple[str, Any]] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lengths = [line for line in head.splitlines() if line.lower().startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0].partition(":")[2])) if lengths else b"null"
        path = head.split()[1]
        self.asked.append((path, json.loads(body)))
        status, answer = self.routes.get(path, NO_ROUTE)
        kind = "text/event-stream" if isinstance(answer, str) else "application/json"
        text = answer if isinstance(answer, str) else json.dumps(answer)
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n{text}".encode()
        )
        await writer.drain()
        writer.close()

    def requests(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked == path]


@asynccontextmanager
async def a_server(routes: dict[str, Answer] | None = None) -> AsyncIterator[tuple[Server, str]]:
    server = Server(routes or {})
    listening = await asyncio.start_server(server.connected, "127.0.0.1", 0)
    async with listening:
        yield server, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def run_one(
    tmp_path: Path, routes: dict[str, Answer], payload: dict[str, Any], task_type: str = "chat"
) -> tuple[Any, dict[str, Any], str, Server]:
    """Return the end, the result and the text of one job, and the server."""

    async def run() -> tuple[Any, dict[str, Any], str, Server]:
        async with a_server(routes) as (server, url), a_broker() as broker:
            config = settings(broker.url, tmp_path, backend="openai", endpoint=url)
            async with a_worker(config):
                await broker.with_instance("tiny")
                lease = await broker.give(payload, task_type=task_type, instance_id="tiny")
                ended, result = await broker.end(lease)
                return ended, result, broker.text(lease), server

    return asyncio.run(run())


def test_an_answer_that_was_not_streamed_is_an_answer(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"n": 1}'}}
    message = {"role": "assistant", "content": "All at once.", "tool_calls": [call]}
    whole = {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    ended, result, text, server = run_one(
        tmp_path, {"/v1/chat/completions": (200, whole)}, chat("hi", tools=[call])
    )
    assert (ended.outcome, ended.output_tokens, text) == ("complete", 4, "All at once.")
    assert (result["text"], result["tool_calls"], result["finish_reason"]) == ("All at once.", [call], "stop")
    assert [body["tools"] for body in server.requests("/v1/chat/completions")] == [[call]]


def test_an_unstreamed_completion_is_one_too(tmp_path: Path) -> None:
    whole = {"choices": [{"text": "and so on", "index": 0, "finish_reason": "length"}]}
    ended, result, text, _ = run_one(
        tmp_path, {"/v1/completions": (200, whole)}, {"body": {"prompt": "once"}}, "complete"
    )
    assert (ended.outcome, result["text"], text) == ("complete", "and so on", "and so on")


def test_several_answers_to_one_job_are_refused_before_they_are_asked_for(tmp_path: Path) -> None:
    """Asked for two, llama.cpp's server streams them interleaved and counts the tokens of one."""
    ended, _, _, server = run_one(tmp_path, {}, chat("hi", n=2))
    assert (ended.error.code, ended.permanent) == ("bad_payload", True)
    assert ended.error.fields["field"] == "body.n"
    assert server.requests("/v1/chat/completions") == []


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"error": "Channel Error"}, "engine_crashed"),
        ({"choices": [], "error": {"message": "Channel Error"}}, "engine_crashed"),
        ({"choices": []}, "stream_cut"),
        ({"hello": 1}, "server_error"),
        (["choices"], "server_error"),
    ],
)
def test_json_in_place_of_a_stream_that_is_no_answer_is_a_failure(
    tmp_path: Path, answer: Any, code: str
) -> None:
    ended, _, _, _ = run_one(tmp_path, {"/v1/chat/completions": (200, answer)}, chat("hi"))
    assert (ended.error.code, ended.outcome != "complete") == (code, True)


def test_a_stream_without_usage_in_one_chunk_is_an_answer(tmp_path: Path) -> None:
    chunk = {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": {"content": "a b", "role": "assistant"}, "finish_reason": "stop"}],
    }
    stream = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    ended, result, text, _ = run_one(tmp_path, {"/v1/chat/completions": (200, stream)}, chat("hi"))
    assert (ended.outcome, result["text"], text, result["usage"]) == ("complete", "a b", "a b", {})


@pytest.mark.parametrize(
    ("answer", "code", "permanent", "message"),
    [
        (NO_ROUTE, "wrong_endpoint", True, "/v1/embeddings: Not Found (HTTP 404)"),
        (
            (404, {"error": "Not Found", "message": "Cannot POST /v1/embeddings", "status": 404}),
            "wrong_endpoint",
            True,
            "/v1/embeddings: Not Found: Cannot POST /v1/embeddings (HTTP 404)",
        ),
        (
            (
                501,
                {
                    "error": {
                        "code": 501,
                        "message": "does not support embeddings",
                        "type": "not_supported_error",
                    }
                },
            ),
            "wrong_endpoint",
            True,
            "/v1/embeddings: does not support embeddings (HTTP 501)",
        ),
        ((429, {"error": {"message": "slow down", "code": "429"}}), "endpoint_busy", False, "slow down"),
    ],
)
def test_a_refusal_says_what_is_missing_where(
    tmp_path: Path, answer: Answer, code: str, permanent: bool, message: str
) -> None:
    ended, _, _, _ = run_one(tmp_path, {"/v1/embeddings": answer}, {"input": ["x"]}, "embed")
    assert (ended.error.code, ended.permanent, ended.error.message) == (code, permanent, message)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (NO_ROUTE, "/v1/models: Not Found (HTTP 404)"),
        ((500, "Internal Server Error"), "/v1/models: Internal Server Error (HTTP 500)"),
    ],
)
def test_an_endpoint_that_lists_no_models_is_down_and_says_why(
    tmp_path: Path, answer: Answer, reason: str
) -> None:
    async def run() -> None:
        async with (
            a_server({"/v1/models": answer}) as (_, url),
            a_broker() as broker,
            a_worker(settings(broker.url, tmp_path, backend="openai", endpoint=url)),
        ):
            await broker.until(lambda: broker.capacity, "capacity")
            assert broker.capacity is not None
            assert broker.capacity.breaker is not None
            assert broker.capacity.breaker.reason == reason

    asyncio.run(run())


def test_slots_are_asked_for_again_once_a_model_is_loaded(tmp_path: Path) -> None:
    """llama.cpp's server may list its model while that still loads."""
    loading = (503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}})

    async def run() -> None:
        async with (
            a_server({"/props": loading}) as (server, url),
            a_broker() as broker,
            a_worker(settings(broker.url, tmp_path, backend="openai", endpoint=url)),
        ):
            await broker.until(lambda: broker.capacity and broker.capacity.breaker, "a breaker")
            server.routes["/props"] = (200, {"total_slots": 2, "default_generation_settings": {"n_ctx": 512}})
            await broker.until(lambda: broker.capacity and broker.capacity.slots == 2, "two slots")
            assert broker.capacity is not None
            assert [one.context_tokens for one in broker.capacity.instances] == [512]

    asyncio.run(run())


PAGE: Answer = (502, "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>nginx</body></html>")


def test_jobs_are_not_charged_while_a_proxy_finds_nobody_behind_it(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            a_server({"/v1/chat/completions": PAGE}) as (server, url),
            a_broker() as broker,
            a_worker(settings(broker.url, tmp_path, backend="openai", endpoint=url)),
        ):
            await broker.with_instance("tiny")
            server.routes["/v1/models"] = PAGE
            ended, _ = await broker.end(await broker.give(chat("hi"), task_type="chat", instance_id="tiny"))
            assert ended.error is not None
            assert (ended.outcome, ended.error.code) == ("release", "endpoint_unreachable")
            assert ended.error.message == "502 Bad Gateway; /v1/models: 502 Bad Gateway (HTTP 502)"

    asyncio.run(run())


def test_a_proxy_that_fails_one_job_of_a_server_that_answers_is_a_failure(tmp_path: Path) -> None:
    ended, _, _, _ = run_one(tmp_path, {"/v1/chat/completions": PAGE}, chat("hi"))
    assert (ended.outcome, ended.error.code, ended.error.message) == (
        "fail",
        "server_error",
        "502 Bad Gateway",
    )


def listed(**status: str) -> Answer:
    """Return a list of models as llama.cpp's router gives it: all that it could run."""
    return (200, {"object": "list", "data": [{"id": n, "status": {"value": v}} for n, v in status.items()]})


def test_a_stream_that_ends_with_its_engine_is_a_crash(tmp_path: Path) -> None:
    """llama.cpp's router ends the stream of an engine that was killed as if nothing was wrong, and lists it still."""
    routes: dict[str, Answer] = {
        "/v1/models": listed(tiny="unloaded"),
        "/v1/chat/completions": (200, 'data: {"choices": [{"index": 0, "delta": {"content": "Once"}}]}\n\n'),
    }
    ended, _, _, _ = run_one(tmp_path, routes, chat("hi"))
    assert (ended.outcome, ended.error.code) == ("crash", "engine_crashed")


def test_a_stream_that_is_cut_while_its_engine_runs_is_a_failure(tmp_path: Path) -> None:
    routes: dict[str, Answer] = {
        "/v1/models": listed(tiny="loaded"),
        "/v1/chat/completions": (200, 'data: {"choices": [{"index": 0, "delta": {"content": "Once"}}]}\n\n'),
    }
    ended, _, _, _ = run_one(tmp_path, routes, chat("hi"))
    assert (ended.outcome, ended.error.code) == ("fail", "stream_cut")


@pytest.mark.parametrize(("autoload", "models"), [(True, ["idle", "tiny"]), (False, ["tiny"])])
def test_a_router_has_the_models_that_it_would_run(tmp_path: Path, autoload: bool, models: list[str]) -> None:
    async def run() -> None:
        routes: dict[str, Answer] = {
            "/v1/models": listed(idle="unloaded", tiny="sleeping"),
            "/props": (200, {"role": "router", "models_autoload": autoload}),
        }
        async with (
            a_server(routes) as (_, url),
            a_broker() as broker,
            a_worker(settings(broker.url, tmp_path, backend="openai", endpoint=url)),
        ):
            await broker.with_instance("tiny")
            assert broker.capacity is not None
            assert [one.model for one in broker.capacity.instances] == models

    asyncio.run(run())


@pytest.mark.parametrize(
    ("routes", "note"),
    [({}, NOT_LM_STUDIO), ({"/lmstudio-greeting": (200, {"lmstudio": True})}, TOO_OLD)],
)
def test_the_lm_studio_backend_says_what_it_is_pointed_at(
    tmp_path: Path, routes: dict[str, Answer], note: str
) -> None:
    async def run() -> None:
        async with (
            a_server(routes) as (_, url),
            a_broker() as broker,
            a_worker(settings(broker.url, tmp_path, backend="lm_studio", endpoint=url)),
        ):
            await broker.with_instance("tiny")
            assert broker.capacity is not None
            assert broker.capacity.notes[:1] == [note]

    asyncio.run(run())


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_lm_studio_is_recognized_by_any_url_of_it(ending: str) -> None:
    async def run() -> None:
        async with a_server({"/lmstudio-greeting": (200, {"lmstudio": True})}) as (_, url):
            found = await detected(WorkerConfig(endpoint=url + ending))
        assert found.backend == "lm_studio"

    asyncio.run(run())


def test_nobody_at_the_endpoint_that_was_named() -> None:
    with pytest.raises(
        NoEndpoint, match=r"server at http://127\.0\.0\.1:9; no connection: .*; start it .*, or wait"
    ):
        asyncio.run(detected(WorkerConfig(endpoint="http://127.0.0.1:9")))
