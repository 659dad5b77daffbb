"""What servers say when they fail, and what becomes of the job: one row of a test per row of the table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lmq_worker.backends.errors_table import ROWS, Row, classify, error_of_answer, read_error

# (text as servers say it, status seen, code, outcome, permanent, action)
SAID = [
    ("The model has crashed without additional information. (Exit code: null)", 400,
     "engine_crashed", "crash", False, "reload"),
    ("Channel Error", 200, "engine_crashed", "crash", False, "reload"),
    ("Model is unloaded.", 500, "model_unloaded", "release", False, "load"),
    ("Model unloaded", 200, "model_unloaded", "release", False, "load"),
    ("stop_reason: modelUnloaded", 200, "model_unloaded", "release", False, "load"),
    ("No models loaded. Please load a model in the developer page.", 404, "model_not_loaded", "release", False, "load"),
    ("model is not loaded", 400, "model_not_loaded", "release", False, "load"),
    ('Failed to load model "x". Error: Operation canceled.', 400, "load_cancelled", "release", False, "load"),
    ('Failed to load model "x". Error: Failed to load model.', 400, "load_failed", "fail", False, "free_memory"),
    ("Error loading model. (Exit code: 18446744072635812000)", 400, "load_failed", "fail", False, "free_memory"),
    ("engine process exited before becoming healthy", 500, "load_failed", "fail", False, "free_memory"),
    ('Failed to load model "x". Error: Model loading was stopped due to insufficient system resources.', 404,
     "insufficient_memory", "fail", False, "free_memory"),
    ("Model loading aborted due to insufficient system resources.", 400,
     "insufficient_memory", "fail", False, "free_memory"),
    ("model_load_failed", 500, "load_failed", "fail", False, "free_memory"),
    ("model name=tiny failed to load", 500, "load_failed", "fail", False, "free_memory"),
    ("CUDA out of memory. Tried to allocate 224.00 MiB.", 500, "out_of_memory", "fail", False, "retry"),
    ("Engine protocol predict request failed: fetch failed", 500, "engine_unreachable", "fail", False, "retry"),
    ("received prediction-error", 500, "prediction_error", "fail", False, "reload"),
    ("llama_decode returned -1", 500, "batch_too_large", "fail", False, "smaller_batch"),
    ("Prediction history node abc not found in shard 3", 500, "server_history_damaged", "fail", True, "operator"),
    ("Context size has been exceeded.", 200, "kv_overflow", "release", False, "alone"),
    ("exceed_context_size_error", 400, "context_overflow", "fail", True, "none"),
    ("request (9000 tokens) exceeds the available context size (8192 tokens)", 400,
     "context_overflow", "fail", True, "none"),
    ("Input does not fit in context length. The input has 9000 tokens", 200, "context_overflow", "fail", True, "none"),
    ("The number of tokens to keep from the initial prompt is greater than the context length", 400,
     "context_overflow", "fail", True, "none"),
    ("Cannot truncate prompt with n_keep (9000) >= n_ctx (8192)", 200, "context_overflow", "fail", True, "none"),
    ("Trying to keep the first 9000 tokens when context the overflows.", 400, "context_overflow", "fail", True, "none"),
    ("This model's maximum context length is 4096 tokens", 400, "context_overflow", "fail", True, "none"),
    ("context_length_exceeded", 400, "context_overflow", "fail", True, "none"),
    ("proxy.ContextWindowExceededError: BadRequestError: too long", 400, "context_overflow", "fail", True, "none"),
    ("input (3602 tokens) is too large to process. increase the physical batch size (current batch size: 512)", 500,
     "context_overflow", "fail", True, "none"),
    ('Invalid model identifier "x". Please specify a valid downloaded model', 400,
     "model_not_found", "fail", True, "none"),
    ("model_not_found", 404, "model_not_found", "fail", True, "none"),
    ('model "x" not found, try pulling it first', 404, "model_not_found", "fail", True, "none"),
    ("/chat/completions: Invalid model name passed in model=nope.", 400, "model_not_found", "fail", True, "none"),
    ("model 'nope' not found", 400, "model_not_found", "fail", True, "none"),
    ("The model `nope` does not exist.", 404, "model_not_found", "fail", True, "none"),
    ('Failed to parse tools: Missing tool type: {"x":1}', 500, "bad_request", "fail", True, "none"),
    ("Failed to parse messages: Missing 'role' in message: {}", 500, "bad_request", "fail", True, "none"),
    ("Cannot use both json_schema and grammar", 500, "bad_request", "fail", True, "none"),
    ("image input is not supported - hint: if this is unexpected, you may need to provide the mmproj", 500,
     "bad_request", "fail", True, "none"),
    ("Failed to load image or audio file", 500, "bad_request", "fail", True, "none"),
    ("tools param requires --jinja flag", 500, "wrong_endpoint", "fail", True, "none"),
    ("'response_format.type' must be 'json_schema' or 'text'", 400, "bad_request", "fail", True, "none"),
    ("'input' field must be a string or an array of strings", 400, "bad_request", "fail", True, "none"),
    ("missing_required_parameter", 400, "bad_request", "fail", True, "none"),
    ("unrecognized_keys", 400, "bad_request", "fail", True, "none"),
    ("Invalid JSON in the body", 400, "bad_request", "fail", True, "none"),
    ("Unexpected token } in JSON at position 12", 400, "bad_request", "fail", True, "none"),
    ("failed to parse grammar", 400, "bad_schema", "fail", True, "none"),
    ("Unable to generate parser for this template. JSON schema error at #: unrecognized type thing", 400,
     "bad_schema", "fail", True, "none"),
    ("Engine protocol applyPromptTemplate request returned 500: Jinja Exception: roles must alternate", 500,
     "bad_prompt_template", "fail", True, "none"),
    ("applyPromptTemplate failed", 500, "bad_prompt_template", "fail", True, "none"),
    ("Error rendering prompt template", 500, "bad_prompt_template", "fail", True, "none"),
    ("[Server Error] _0x3f2a is not iterable", 500, "bad_request", "fail", True, "none"),
    ("Unexpected endpoint or method. (POST /chat/completions)", 200, "wrong_endpoint", "fail", True, "none"),
    ("invalid_api_key", 401, "endpoint_refuses_token", "release", False, "pause"),
    ("An LM Studio API token is required", 401, "endpoint_refuses_token", "release", False, "pause"),
    ("authentication_error", 401, "endpoint_refuses_token", "release", False, "pause"),
    ("server busy, please try again.  maximum pending requests exceeded", 503,
     "endpoint_busy", "release", False, "wait"),
    ("maximum pending requests exceeded", 503, "endpoint_busy", "release", False, "wait"),
    ("Loading model", 503, "endpoint_loading", "release", False, "wait"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "status", "code", "outcome", "permanent", "action"), SAID)
def test_what_a_server_says_decides_what_becomes_of_the_job(
    text: str, status: int, code: str, outcome: str, permanent: bool, action: str
) -> None:
    verdict = classify(text, status=status)
    assert (verdict.code, verdict.outcome, verdict.permanent, verdict.action) == (
        code,
        outcome,
        permanent,
        action,
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " + ".join(row.match))
def test_every_row_of_the_table_decides_about_something_that_a_server_said(row: Row) -> None:
    deciding = [
        next(one for one in ROWS if all(part in text.lower() for part in one.match)) for text, *_ in SAID
    ]
    assert row in deciding


SHAPES = [
    ("A: a string", {"error": "Channel Error"}, "Channel Error", "", "engine_crashed"),
    (
        "B: OpenAI's object",
        {
            "error": {
                "message": "no such",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        },
        "no such",
        "model_not_found",
        "model_not_found",
    ),
    (
        "C: the native object",
        {"error": {"type": "invalid_request", "code": "invalid_api_key", "message": "wrong"}},
        "wrong",
        "invalid_api_key",
        "endpoint_refuses_token",
    ),
    (
        "D: JSON inside a string",
        {
            "error": "Engine protocol predict request returned 400: "
            + json.dumps(
                {
                    "error": {
                        "code": 400,
                        "type": "exceed_context_size_error",
                        "n_prompt_tokens": 8810,
                        "n_ctx": 8192,
                        "message": "too long",
                    }
                }
            )
        },
        "Engine protocol predict request returned 400: too long",
        "400",
        "context_overflow",
    ),
    (
        "E: a success that is none",
        {"error": "Unexpected endpoint or method. (GET /health)"},
        "Unexpected endpoint or method. (GET /health)",
        "",
        "wrong_endpoint",
    ),
    (
        "F: in a stream",
        {
            "error": {"message": "Context size has been exceeded."},
            "message": "Context size has been exceeded.",
        },
        "Context size has been exceeded.",
        "",
        "kv_overflow",
    ),
    (
        "vLLM: the object is the error",
        {"object": "error", "message": "bad thing", "type": "BadRequestError", "code": 400},
        "bad thing",
        "400",
        "bad_request",
    ),
    ("a framework's detail", {"detail": "Not here"}, "Not here", "", "server_error"),
    (
        "a framework's detail of fields",
        {
            "detail": [
                {"type": "missing", "loc": ["body", "messages", 0], "msg": "Field required"},
                {"msg": "or so"},
            ]
        },
        "body.messages.0: Field required; or so",
        "",
        "server_error",
    ),
    (
        "an error in a detail",
        {"detail": {"message": "no such", "type": "invalid_request_error"}},
        "no such",
        "",
        "bad_request",
    ),
    ("a message alone", {"message": "Try later"}, "Try later", "", "server_error"),
    (
        "a title beside its sentence",
        {"error": "Bad Request", "message": "Cannot do that", "status": 400},
        "Bad Request: Cannot do that",
        "",
        "server_error",
    ),
]


@pytest.mark.parametrize(
    ("body", "message", "server_code", "code"), [shape[1:] for shape in SHAPES], ids=[s[0] for s in SHAPES]
)
def test_every_shape_of_an_error_is_read(
    body: dict[str, Any], message: str, server_code: str, code: str
) -> None:
    error = read_error(body, status=400)
    assert error is not None
    assert (error.message, error.fields["server_code"], error.verdict.code) == (message, server_code, code)


def test_the_sizes_of_an_overflow_are_kept() -> None:
    inner = json.dumps(
        {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 8810, "n_ctx": 8192}}
    )
    error = read_error({"error": f"Engine protocol predict request returned 400: {inner}"})
    assert error is not None
    assert (error.fields["n_prompt_tokens"], error.fields["n_ctx"]) == (8810, 8192)


@pytest.mark.parametrize(
    "body", [{}, {"choices": [], "error": None}, [], "error", None, {"object": "list"}, {"detail": "high"}]
)
def test_an_answer_without_an_error_is_none(body: object) -> None:
    assert read_error(body) is None


@pytest.mark.parametrize(
    ("status", "code", "outcome", "permanent"),
    [
        (400, "server_error", "fail", False),
        (401, "endpoint_refuses_token", "release", False),
        (403, "endpoint_refuses_token", "release", False),
        (404, "wrong_endpoint", "fail", True),
        (405, "wrong_endpoint", "fail", True),
        (413, "bad_request", "fail", True),
        (422, "bad_request", "fail", True),
        (429, "endpoint_busy", "release", False),
        (500, "server_error", "fail", False),
        (501, "wrong_endpoint", "fail", True),
        (502, "server_error", "fail", False),
        (503, "endpoint_busy", "release", False),
    ],
)
def test_without_a_known_text_the_status_decides(
    status: int, code: str, outcome: str, permanent: bool
) -> None:
    verdict = error_of_answer("<html>", status).verdict
    assert (verdict.code, verdict.outcome, verdict.permanent) == (code, outcome, permanent)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (
            "<html>\r\n<head><title>413 Request Entity Too Large</title></head>",
            "413 Request Entity Too Large",
        ),
        ("<html>no title", "<html>no title"),
        ("we have no <title>x</title>", "we have no <title>x</title>"),
    ],
)
def test_a_page_of_a_web_server_is_quoted_by_its_title(page: str, message: str) -> None:
    assert error_of_answer(page, 413).message == message


def test_the_patience_that_a_server_asks_for_reaches_the_broker() -> None:
    assert error_of_answer("busy", 503, retry_after_ms=7000).outcome().retry_after_ms == 7000


def test_a_400_that_calls_the_request_invalid_is_permanent() -> None:
    assert classify("who knows", kind="invalid_request_error", status=400).permanent
