"""Each route of the simulator over real HTTP, and each shape an error takes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lmq_simulator import ModelSpec, ThreadedSimulator
from lmq_simulator.faults import FAULTS

Start = Callable[..., tuple[ThreadedSimulator, httpx.Client]]

MODEL = "qwen/qwen3-8b"
OTHER = "meta/llama-3.1-8b"
EMBEDDER = "text-embedding-nomic-embed-text-v1.5"
SMALL_MODELS = (ModelSpec(MODEL), ModelSpec(EMBEDDER, type="embeddings", dimensions=4))
TOKEN = "sk-lm-abcd1234:abcdefghij0123456789"
CHAT = "/v1/chat/completions"


def question(text: str = "What is the capital of France?", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def events(response: httpx.Response) -> list[tuple[str, Any]]:
    """Return the (event name, data) of a stream that was read to its end."""
    found = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def names(found: list[tuple[str, Any]]) -> list[str]:
    """Return the event names, each run of the same one once."""
    return [name for at, (name, _) in enumerate(found) if at == 0 or found[at - 1][0] != name]


# Finding out what there is.


def test_the_greeting_and_the_lists_agree_with_the_state(start: Start) -> None:
    _simulator, client = start(loaded=(MODEL,))
    assert client.get("/lmstudio-greeting").json() == {"lmstudio": True}
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert {"id": MODEL, "object": "model", "owned_by": "organization_owner"} in listed["data"]
    assert len(listed["data"]) == 4
    v0 = {entry["id"]: entry for entry in client.get("/api/v0/models").json()["data"]}
    assert (v0[MODEL]["state"], v0[MODEL]["loaded_context_length"]) == ("loaded", 8192)
    assert v0[OTHER]["state"] == "not-loaded"
    assert "loaded_context_length" not in v0[OTHER]
    assert client.get(f"/api/v0/models/{MODEL}").json() == v0[MODEL]
    v1 = {entry["key"]: entry for entry in client.get("/api/v1/models").json()["models"]}
    assert [one["id"] for one in v1[MODEL]["loaded_instances"]] == [MODEL]
    assert v1[MODEL]["loaded_instances"][0]["config"]["parallel"] == 4
    assert v1[OTHER]["loaded_instances"] == []
    assert v1[EMBEDDER]["type"] == "embedding"


def test_without_loading_on_demand_only_what_is_loaded_is_listed(start: Start) -> None:
    _simulator, client = start(loaded=(MODEL,), jit=False)
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == [MODEL]


def test_load_and_unload(start: Start) -> None:
    simulator, client = start(loaded=())
    asked = {"model": OTHER, "context_length": 2048, "echo_load_config": True}
    loaded = client.post("/api/v1/models/load", json=asked).json()
    assert (loaded["type"], loaded["instance_id"], loaded["status"]) == ("llm", OTHER, "loaded")
    assert loaded["load_config"]["context_length"] == 2048
    again = client.post("/api/v1/models/load", json={"model": OTHER}).json()
    assert again["instance_id"] == f"{OTHER}:2"
    gone = client.post("/api/v1/models/unload", json={"instance_id": OTHER})
    assert gone.json() == {"instance_id": OTHER}
    assert [one["id"] for one in simulator.state()["instances"]] == [f"{OTHER}:2"]


def test_download_says_that_it_is_there_or_unknown(start: Start) -> None:
    _simulator, client = start()
    assert (
        client.post("/api/v1/models/download", json={"model": MODEL}).json()["status"] == "already_downloaded"
    )
    missing = client.post("/api/v1/models/download", json={"model": "nobody"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    status = client.get("/api/v1/models/download/status/17")
    assert (status.status_code, status.json()["error"]["code"]) == (404, "job_not_found")


# Answers.


def test_a_chat_answer(start: Start) -> None:
    _simulator, client = start()
    response = client.post(CHAT, json=question())
    answer = response.json()
    assert (answer["object"], answer["model"], answer["system_fingerprint"]) == (
        "chat.completion",
        MODEL,
        MODEL,
    )
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "The capital of France is Paris.",
    }
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
    assert response.headers["x-powered-by"] == "Express"
    assert response.headers["keep-alive"] == "timeout=5"
    assert response.headers["connection"] == "keep-alive"


def test_a_streamed_chat_answer(start: Start) -> None:
    _simulator, client = start()
    response = client.post(CHAT, json=question(stream=True))
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    found = events(response)
    assert {name for name, _ in found} == {""}
    *chunks, finish, done = [data for _, data in found]
    assert done == "[DONE]"
    assert finish["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "The"}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:])
    said = "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
    assert said == "The capital of France is Paris."
    assert "usage" not in finish


def test_usage_is_streamed_only_if_asked_for(start: Start) -> None:
    _simulator, client = start()
    response = client.post(CHAT, json=question(stream=True, stream_options={"include_usage": True}))
    usage = events(response)[-2][1]
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 18)


def test_reasoning_comes_in_a_field_of_its_own(start: Start) -> None:
    _simulator, client = start(reasoning_tokens=5)
    assert client.post(CHAT, json=question()).json()["choices"][0]["message"]["reasoning_content"]
    first = events(client.post(CHAT, json=question(stream=True)))[0][1]
    assert set(first["choices"][0]["delta"]) == {"role", "reasoning_content"}
    silent = client.post(CHAT, json=question(reasoning_effort="none")).json()
    assert "reasoning_content" not in silent["choices"][0]["message"]


def test_a_json_schema_is_satisfied(start: Start) -> None:
    _simulator, client = start()
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "people": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema}}
    answer = client.post(CHAT, json=question(response_format=wanted)).json()
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert isinstance(value["city"], str)
    assert isinstance(value["people"], int)


def test_a_tool_is_called_whole_and_streamed(start: Start) -> None:
    _simulator, client = start()
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": parameters}}]
    choice = client.post(CHAT, json=question(tools=tools)).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    call = choice["message"]["tool_calls"][0]
    assert call["id"].isdigit()
    assert call["function"]["name"] == "get_weather"
    assert set(json.loads(call["function"]["arguments"])) == {"city"}
    found = [data for _, data in events(client.post(CHAT, json=question(tools=tools, stream=True)))[:-1]]
    deltas = [data["choices"][0]["delta"] for data in found]
    assert deltas[0]["tool_calls"][0]["function"]["name"] == "get_weather"
    pieces = [delta["tool_calls"][0]["function"]["arguments"] for delta in deltas[:-1]]
    assert "".join(pieces) == call["function"]["arguments"]
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_text_completion(start: Start) -> None:
    _simulator, client = start(answer_tokens=4)
    answer = client.post("/v1/completions", json={"model": MODEL, "prompt": "Once", "max_tokens": 2}).json()
    assert (answer["object"], answer["choices"][0]["finish_reason"]) == ("text_completion", "length")
    asked = {"model": MODEL, "prompt": "Once", "stream": True}
    *chunks, done = [data for _, data in events(client.post("/v1/completions", json=asked))]
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks).startswith(answer["choices"][0]["text"])


def test_v0_answers_carry_stats(start: Start) -> None:
    _simulator, client = start()
    answer = client.post("/api/v0/chat/completions", json=question()).json()
    assert answer["stats"]["stop_reason"] == "eosFound"
    assert answer["model_info"]["context_length"] == 8192
    assert answer["runtime"]["supported_formats"] == ["gguf"]


def test_embeddings_are_floats_of_unit_length_and_cost_no_tokens(start: Start) -> None:
    _simulator, client = start()
    asked = {"model": EMBEDDER, "input": ["a", "b"], "encoding_format": "base64"}
    answer = client.post("/v1/embeddings", json=asked).json()
    assert answer["model"] == f"{EMBEDDER}@q4_k_m"
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    assert [item["index"] for item in answer["data"]] == [0, 1]
    assert len(answer["data"][0]["embedding"]) == 768
    assert math.isclose(sum(value * value for value in answer["data"][0]["embedding"]), 1.0)
    alone = client.post("/api/v0/embeddings", json={"model": EMBEDDER, "input": "b"}).json()
    assert alone["data"][0]["embedding"] == answer["data"][1]["embedding"]


def test_a_long_text_is_cut_without_a_word_before_it_is_embedded(start: Start) -> None:
    _simulator, client = start()
    long = "x" * 8192
    answer = client.post("/v1/embeddings", json={"model": EMBEDDER, "input": [long, long + "more"]}).json()
    assert answer["data"][0]["embedding"] == answer["data"][1]["embedding"]


def test_responses_and_what_was_stored(start: Start) -> None:
    simulator, client = start()
    first = client.post(
        "/v1/responses", json={"model": MODEL, "input": "What is the capital of France?"}
    ).json()
    assert (first["object"], first["status"]) == ("response", "completed")
    assert first["output"][0]["content"][0]["text"] == "The capital of France is Paris."
    asked = {"model": MODEL, "input": "And of Italy?", "previous_response_id": first["id"], "stream": True}
    found = events(client.post("/v1/responses", json=asked))
    assert names(found) == ["response.created", "response.output_text.delta", "response.completed"]
    assert all(data["type"] == name for name, data in found)
    prompts = [ticket["prompt_tokens"] for ticket in simulator.requests()]
    assert prompts[1] > prompts[0]


def test_native_chat_tells_its_story_in_named_events(start: Start) -> None:
    _simulator, client = start(reasoning_tokens=3, loaded=())
    found = events(client.post("/api/v1/chat", json={"model": MODEL, "input": "hello", "stream": True}))
    assert names(found) == [
        "chat.start",
        "model_load.start",
        "model_load.progress",
        "model_load.end",
        "prompt_processing.start",
        "prompt_processing.progress",
        "prompt_processing.end",
        "reasoning.start",
        "reasoning.delta",
        "reasoning.end",
        "message.start",
        "message.delta",
        "message.end",
        "chat.end",
    ]
    result = found[-1][1]["result"]
    assert result["model_instance_id"] == MODEL
    assert [item["type"] for item in result["output"]] == ["reasoning", "message"]
    assert result["stats"]["reasoning_output_tokens"] == 3
    assert "model_load_time_seconds" in result["stats"]


def test_native_chat_goes_on_from_a_stored_response(start: Start) -> None:
    _simulator, client = start()
    first = client.post("/api/v1/chat", json={"model": MODEL, "input": "hello"}).json()
    assert first["output"] == [{"type": "message", "content": "Hello! How can I help you today?"}]
    asked = {"model": MODEL, "input": "again", "previous_response_id": first["response_id"], "store": False}
    second = client.post("/api/v1/chat", json=asked).json()
    assert "response_id" not in second
    assert second["stats"]["input_tokens"] > first["stats"]["input_tokens"]


# Errors.


def test_shape_a_a_string(start: Start) -> None:
    _simulator, client = start()
    for body, text in (
        (
            question(response_format={"type": "json_object"}),
            "'response_format.type' must be 'json_schema' or 'text'",
        ),
        ({"model": MODEL}, "'messages' field must be a non-empty array of objects"),
    ):
        response = client.post(CHAT, json=body)
        assert (response.status_code, response.json()) == (400, {"error": text})
    response = client.post("/v1/embeddings", json={"model": EMBEDDER, "input": [[1, 2]]})
    assert response.json() == {"error": "'input' field must be a string or an array of strings"}
    assert client.post(CHAT, content=b"{nonsense").status_code == 400
    assert client.post(CHAT, content=b"[]").status_code == 400


def test_shape_b_an_object_of_openai(start: Start) -> None:
    _simulator, client = start(loaded=(), jit=False)
    unknown = client.post(CHAT, json={**question(), "model": "nobody"})
    error = unknown.json()["error"]
    assert (unknown.status_code, error["code"], error["type"]) == (
        400,
        "model_not_found",
        "invalid_request_error",
    )
    assert error["message"].startswith(
        'Invalid model identifier "nobody". Please specify a valid downloaded model'
    )
    nothing = client.post(CHAT, json=question())
    assert nothing.status_code == 400
    assert nothing.json()["error"]["message"].startswith("No models loaded. Please load a model")


def test_shape_c_a_native_object(start: Start) -> None:
    _simulator, client = start()
    strict = client.post("/api/v1/chat", json={"model": MODEL, "input": "x", "seed": 1})
    assert strict.status_code == 400
    assert strict.json()["error"] == {
        "message": "Unrecognized key(s) in object: 'seed'",
        "type": "invalid_request",
        "code": "unrecognized_keys",
    }
    assert client.post("/api/v1/models/load", json={"model": MODEL, "parallel": 8}).status_code == 400
    unknown = client.post("/api/v1/models/load", json={"model": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_shape_d_an_error_inside_an_error(start: Start) -> None:
    _simulator, client = start(overflow="nested")
    response = client.post(CHAT, json=question("x" * 40_000, stream=True))
    assert response.status_code == 400
    text = response.json()["error"]
    assert text.startswith("Engine protocol predict request returned 400: {")
    inner = json.loads(text.partition(": ")[2])["error"]
    assert (inner["type"], inner["n_ctx"]) == ("exceed_context_size_error", 8192)
    assert inner["n_prompt_tokens"] > 8192


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/chat/completions"), ("GET", "/health"), ("PUT", "/v1/models")]
)
def test_shape_e_an_unknown_route_is_a_success_that_is_none(start: Start, method: str, path: str) -> None:
    _simulator, client = start()
    response = client.request(method, path)
    assert response.status_code == 200
    assert response.json() == {"error": f"Unexpected endpoint or method. ({method} {path})"}


def test_shape_f_an_error_in_the_stream(start: Start) -> None:
    _simulator, client = start(overflow="event")
    response = client.post(CHAT, json=question("x" * 40_000, stream=True))
    assert response.status_code == 200
    ((name, data),) = events(response)
    assert name == "error"
    assert data["error"]["message"] == data["message"]
    assert "greater than the context length" in data["message"]
    assert client.post(CHAT, json=question("x" * 40_000)).status_code == 400


def test_an_overflow_may_give_an_empty_answer(start: Start) -> None:
    _simulator, client = start(overflow="empty")
    response = client.post(CHAT, json=question("x" * 40_000))
    assert (response.status_code, response.json()["choices"][0]["message"]["content"]) == (200, "")


def test_an_error_in_a_native_stream_is_followed_by_the_end(start: Start) -> None:
    simulator, client = start()
    simulator.inject("channel_error", after_pieces=2)
    found = events(client.post("/api/v1/chat", json={"model": MODEL, "input": "hello", "stream": True}))
    assert names(found)[-3:] == ["message.end", "error", "chat.end"]
    assert found[-2][1]["error"]["message"] == "Channel Error"
    assert found[-1][1]["result"]["output"] == [{"type": "message", "content": "Hello! How"}]


def test_a_token_is_asked_for(start: Start) -> None:
    _simulator, client = start(api_token=TOKEN)

    def refusal(header: str | None) -> tuple[int, str, str]:
        headers = {} if header is None else {"Authorization": header}
        response = client.get("/v1/models", headers=headers)
        error = response.json().get("error", {"code": "", "message": ""})
        return response.status_code, error["code"], error["message"][:20]

    assert refusal(None) == (401, "invalid_api_key", "An LM Studio API tok")
    assert refusal("Bearer nonsense") == (401, "invalid_api_key", "Malformed LM Studio ")
    assert refusal("Bearer sk-lm-00000000:00000000000000000000")[:2] == (401, "invalid_api_key")
    assert refusal(f"Bearer {TOKEN}")[0] == 200
    assert client.get("/lmstudio-greeting").status_code == 200


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_every_fault_that_can_be_injected_fails_one_request(start: Start, name: str) -> None:
    simulator, client = start()
    simulator.inject(name, text="custom words" if name.startswith("custom") else None)
    if name == "stall":
        with client.stream("POST", CHAT, json=question(stream=True)) as response:
            received = response.iter_raw()
            assert next(received)
            assert simulator.state()["instances"][0]["active"]
    elif name in ("reset", "cut"):
        with pytest.raises(httpx.TransportError):
            client.post(CHAT, json=question(stream=True))
    else:
        response = client.post(CHAT, json=question(stream=True))
        text = response.text
        fault = FAULTS[name]
        assert '"finish_reason":"stop"' not in text or name == "empty"
        if name == "eof":
            assert "[DONE]" not in text
        elif name != "empty":
            assert fault.failure is not None
            assert (fault.failure.text or "custom words")[:20] in text.replace('\\"', '"')
            assert response.status_code == (200 if fault.where == "stream" else fault.failure.status)
    assert client.post(CHAT, json=question()).json()["choices"][0]["finish_reason"] == "stop"


NONSENSE: list[Any] = [None, True, 3, -1.5, "x", [], [1], [[]], {}, {"type": "json_schema"}, 10**30]
FIELDS = {
    CHAT: ("model", "messages", "max_tokens", "seed", "stop", "stream", "stream_options", "ttl", "tools",
           "tool_choice", "response_format", "reasoning_effort"),
    "/v1/completions": ("prompt", "stop"),
    "/v1/embeddings": ("input", "model"),
    "/v1/responses": ("input", "text", "tools", "reasoning", "previous_response_id", "max_output_tokens"),
    "/api/v1/chat": ("input", "system_prompt", "max_output_tokens", "previous_response_id", "context_length"),
    "/api/v1/models/load": ("model", "context_length"),
    "/api/v1/models/unload": ("instance_id",),
    "/simulator/inject": ("fault", "count", "after_pieces", "text", "status"),
    "/simulator/knobs": ("answer_tokens", "overflow", "api_token"),
}  # fmt: skip


@pytest.mark.parametrize("path", FIELDS)
def test_nonsense_in_any_field_gets_an_answer(start: Start, path: str) -> None:
    simulator, client = start(models=SMALL_MODELS, loaded=(MODEL, EMBEDDER))
    model = EMBEDDER if path == "/v1/embeddings" else MODEL
    whole = {**question(), "prompt": "x", "input": "x", "fault": "model_crashed", "instance_id": MODEL}
    for field in FIELDS[path]:
        for value in NONSENSE:
            body = {name: whole[name] for name in FIELDS[path] if name in whole} | {
                "model": model,
                field: value,
            }
            response = client.post(path, json=body)
            assert response.status_code in (200, 400, 404)
            simulator.reset()


@pytest.mark.parametrize(
    "schema",
    [None, 3, {"enum": 3}, {"type": "string", "minLength": "x"}, {"properties": 3}, {"$ref": "#/x/y"}],
)
def test_a_schema_that_is_none_gets_an_answer(start: Start, schema: Any) -> None:
    _simulator, client = start()
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert client.post(CHAT, json=question(response_format=wanted)).status_code in (200, 400)


# The control routes.


def test_the_control_routes_turn_inject_crash_and_reset(start: Start) -> None:
    _simulator, client = start()
    assert client.post("/simulator/knobs", json={"answer_tokens": 3}).json()["answer_tokens"] == 3
    assert client.post("/simulator/knobs", json={"nonsense": 3}).status_code == 400
    assert client.post("/simulator/inject", json={"fault": "model_crashed", "count": 2}).json() == {
        "waiting": 2
    }
    assert client.post("/simulator/inject", json={"fault": "nonsense"}).status_code == 400
    assert client.post(CHAT, json=question()).status_code == 400
    assert "model_crashed" in client.get("/simulator/faults").json()["faults"]
    crashed = client.post("/simulator/crash", json={"instance_id": MODEL}).json()
    assert crashed == {"crashed": [MODEL]}
    assert len(client.get("/simulator/state").json()["instances"]) == 1
    state = client.post("/simulator/reset").json()
    assert len(state["instances"]) == 2
    assert (state["config"]["answer_tokens"], state["injections"]) == (0, 0)
    assert client.post("/simulator/zero-latency").status_code == 200
    assert client.get("/simulator/requests").json() == {"requests": []}
