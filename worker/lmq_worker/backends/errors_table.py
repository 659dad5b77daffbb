"""What model servers say when they fail, and what it means: a table of substrings, and a reader of error bodies.

A status code alone says little: LM Studio answers 400 when its engine crashed and 200 to unknown routes. The text
decides; the status only where no text is known.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from lmq_worker.failures import AttemptFailed, Verdict


@dataclass(frozen=True, slots=True)
class Row:
    """One known text. All of `match` must occur, in lower case, in message, code and type together."""

    match: tuple[str, ...]
    kind: str
    """T: transient. R: retry after `action`. P: permanent for this job."""
    verdict: Verdict


def _row(kind: str, code: str, *match: str, outcome: str = "fail", action: str = "") -> Row:
    action = action or {"T": "retry", "P": "none"}[kind]
    lowered = tuple(text.lower() for text in match)
    return Row(
        lowered, kind, Verdict(code, outcome, permanent=kind == "P" and outcome == "fail", action=action)
    )


# The first row that matches counts, so what is more exact stands above.
ROWS: tuple[Row, ...] = (
    _row("R", "engine_crashed", "the model has crashed without", outcome="crash", action="reload"),
    _row("R", "engine_crashed", "channel error", outcome="crash", action="reload"),
    _row("R", "model_unloaded", "model is unloaded", outcome="release", action="load"),
    _row("R", "model_unloaded", "model unloaded", outcome="release", action="load"),
    _row("R", "model_unloaded", "modelunloaded", outcome="release", action="load"),
    _row("R", "model_not_loaded", "no models loaded", outcome="release", action="load"),
    _row("R", "model_not_loaded", "model is not loaded", outcome="release", action="load"),
    _row("R", "load_cancelled", "failed to load model", "operation canceled", outcome="release", action="load"),
    _row("R", "insufficient_memory", "insufficient system resources", action="free_memory"),
    _row("R", "load_failed", "failed to load model", action="free_memory"),
    _row("R", "load_failed", "error loading model", action="free_memory"),
    _row("R", "load_failed", "exited before becoming healthy", action="free_memory"),
    _row("R", "load_failed", "model_load_failed", action="free_memory"),
    # llama.cpp's router, which names the model and never says why.
    _row("R", "load_failed", "model name=", "failed to load", action="free_memory"),
    _row("T", "out_of_memory", "out of memory"),
    _row("T", "engine_unreachable", "engine protocol predict request failed: fetch failed"),
    _row("R", "prediction_error", "received prediction-error", action="reload"),
    _row("R", "batch_too_large", "llama_decode returned -1", action="smaller_batch"),
    _row("P", "server_history_damaged", "prediction history node", "not found in shard", action="operator"),
    _row("R", "kv_overflow", "context size has been exceeded", outcome="release", action="alone"),
    _row("P", "context_overflow", "exceed_context_size_error"),
    _row("P", "context_overflow", "exceeds the available context size"),
    _row("P", "context_overflow", "input does not fit in context length"),
    _row("P", "context_overflow", "number of tokens to keep from the initial prompt is greater than"),
    _row("P", "context_overflow", "cannot truncate prompt with n_keep"),
    _row("P", "context_overflow", "trying to keep the first", "tokens when context the overflows"),
    _row("P", "context_overflow", "maximum context length is"),
    _row("P", "context_overflow", "context_length_exceeded"),
    _row("P", "context_overflow", "contextwindowexceedederror"),
    # One input of an embedding; a server that is asked for several names the one that is too long.
    _row("P", "context_overflow", "is too large to process", "physical batch size"),
    _row("P", "model_not_found", "invalid model identifier"),
    _row("P", "model_not_found", "model_not_found"),
    _row("P", "model_not_found", "not found, try pulling it first"),
    _row("P", "model_not_found", "invalid model name passed in model="),
    _row("P", "model_not_found", "model '", "' not found"),
    _row("P", "model_not_found", "the model `", "` does not exist"),
    _row("P", "bad_request", "'response_format.type' must be"),
    _row("P", "bad_request", "'input' field must be"),
    _row("P", "bad_request", "missing_required_parameter"),
    _row("P", "bad_request", "unrecognized_keys"),
    _row("P", "bad_request", "invalid json"),
    _row("P", "bad_request", "unexpected token", "json"),
    # llama.cpp's server answers 500 to these requests, as if another try could help.
    _row("P", "bad_request", "failed to parse tools:"),
    _row("P", "bad_request", "failed to parse messages:"),
    _row("P", "bad_request", "cannot use both json_schema and grammar"),
    _row("P", "bad_request", "input is not supported", "mmproj"),
    _row("P", "bad_request", "failed to load image or audio file"),
    _row("P", "wrong_endpoint", "param requires --jinja flag"),
    _row("P", "bad_schema", "failed to parse grammar"),
    _row("P", "bad_schema", "json schema error at"),
    _row("P", "bad_prompt_template", "jinja"),
    _row("P", "bad_prompt_template", "applyprompttemplate"),
    _row("P", "bad_prompt_template", "prompt template"),
    _row("P", "bad_request", "[server error]", "is not iterable"),
    _row("P", "wrong_endpoint", "unexpected endpoint or method"),
    # Wrong for every job, and the fault of none: the endpoint is held back until somebody mends the token.
    _row("P", "endpoint_refuses_token", "invalid_api_key", outcome="release", action="pause"),
    _row("P", "endpoint_refuses_token", "api token", outcome="release", action="pause"),
    _row("P", "endpoint_refuses_token", "authentication_error", outcome="release", action="pause"),
    _row("R", "endpoint_busy", "server busy, please try again", outcome="release", action="wait"),
    _row("R", "endpoint_busy", "maximum pending requests exceeded", outcome="release", action="wait"),
    _row("R", "endpoint_loading", "loading model", outcome="release", action="wait"),
)  # fmt: skip

# What a status means when no text is known.
_BY_STATUS = {
    401: Verdict("endpoint_refuses_token", "release", action="pause"),
    403: Verdict("endpoint_refuses_token", "release", action="pause"),
    404: Verdict("wrong_endpoint", permanent=True, action="none"),
    405: Verdict("wrong_endpoint", permanent=True, action="none"),
    413: Verdict("bad_request", permanent=True, action="none"),
    422: Verdict("bad_request", permanent=True, action="none"),
    429: Verdict("endpoint_busy", "release", action="wait"),
    501: Verdict("wrong_endpoint", permanent=True, action="none"),
    503: Verdict("endpoint_busy", "release", action="wait"),
}
_UNKNOWN = Verdict("server_error")
_INVALID = Verdict("bad_request", permanent=True, action="none")

# Codes of what happens when an endpoint has more to do than it can bear.
OVERLOADED = frozenset({
    "chunk_timeout", "endpoint_busy", "engine_crashed", "engine_unreachable", "first_byte_timeout",
    "insufficient_memory", "kv_overflow", "out_of_memory", "prediction_error", "stream_cut",
})  # fmt: skip

# Actions after which the whole endpoint is held back, not only the job.
HOLD_ENDPOINT = frozenset({"pause"})

FIRST_ERROR_STATUS = 400

_TITLE = re.compile(r"<title>([^<]+)</title>", re.IGNORECASE)
_NESTED = re.compile(r"returned \d{3}: (\{.*)", re.DOTALL)


class ServerError(AttemptFailed):
    """The server said, in one of its many shapes, that it failed."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        kind: str = "",
        status: int = 0,
        retry_after_ms: int = 0,
        **sizes: int,
    ) -> None:
        """Classify what was said.

        Args:
            message: the text for people.
            code: the server's own `code`, as text.
            kind: the server's own `type`.
            status: of the HTTP answer.
            retry_after_ms: from its header.
            sizes: numbers that came with it (`n_prompt_tokens`, `n_ctx`).
        """
        super().__init__(
            classify(message, code=code, kind=kind, status=status),
            message or f"HTTP {status}",
            retry_after_ms=retry_after_ms,
            status=status,
            server_code=code,
            server_type=kind,
            **sizes,
        )


def classify(message: str, *, code: str = "", kind: str = "", status: int = 0) -> Verdict:
    """Return what an error of a server means for the job."""
    said = f"{message} {code} {kind}".lower()
    for row in ROWS:
        if all(text in said for text in row.match):
            return row.verdict
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if kind.lower() in ("invalid_request", "invalid_request_error", "badrequesterror"):
        return _INVALID
    return _UNKNOWN


def read_error(body: object, *, status: int = 0, retry_after_ms: int = 0) -> ServerError | None:
    """Return the error that a decoded answer or event carries, or None if it carries none.

    Shapes: `error` a string (A), an object (B, C), a string with JSON inside (D), any of them under status 200 (E) or
    in a stream (F); an object that is itself the error (`"object": "error"`); under a status that is no success also
    `detail`, as web frameworks have it, or a bare `message`.
    """
    if not isinstance(body, dict):
        return None
    error = body.get("error")
    if error is None and body.get("object") == "error":
        error = body
    if error is None and status >= FIRST_ERROR_STATUS:
        error = _detail(body.get("detail")) or _text(body.get("message"))
    if not error:
        return None
    message, code, kind, sizes = _read(error)
    more = body.get("message")
    if isinstance(error, str) and isinstance(more, str) and more not in message:
        # A short title beside the sentence that says which route, which field.
        message = f"{message}: {more}"
    return ServerError(message, code=code, kind=kind, status=status, retry_after_ms=retry_after_ms, **sizes)


def _detail(detail: object) -> object:
    """Return what a `detail` says: a text, an object like any error, or a list of the fields that do not fit."""
    if not isinstance(detail, list):
        return detail
    said = []
    for one in detail:
        where = one.get("loc") if isinstance(one, dict) else None
        what = _text(one.get("msg") if isinstance(one, dict) and one.get("msg") else one)
        said.append(f"{'.'.join(map(str, where))}: {what}" if isinstance(where, list) and where else what)
    return "; ".join(said)


def error_of_answer(text: str, status: int, retry_after_ms: int = 0) -> ServerError:
    """Return the error of an answer that cannot be a success: not 200, or JSON where a stream was asked."""
    try:
        body: object = json.loads(text)
    except ValueError:
        body = None
    error = read_error(body, status=status, retry_after_ms=retry_after_ms)
    return error or ServerError(_plain(text)[:500], status=status, retry_after_ms=retry_after_ms)


def _plain(text: str) -> str:
    """Return what a page of a web server says, its title; any other text as it is."""
    title = _TITLE.search(text) if text.lstrip()[:1] == "<" else None
    return (title[1] if title else text).strip()


def _read(error: Any) -> tuple[str, str, str, dict[str, int]]:
    """Return (message, code, type, sizes) of an `error` value."""
    if isinstance(error, dict):
        message = error.get("message")
        sizes = {
            name: error[name] for name in ("n_prompt_tokens", "n_ctx") if isinstance(error.get(name), int)
        }
        own = (_text(message), _text(error.get("code")), _text(error.get("type")), sizes)
        return _unnested(own[0], own)
    return _unnested(_text(error), (_text(error), "", "", {}))


def _unnested(
    message: str, own: tuple[str, str, str, dict[str, int]]
) -> tuple[str, str, str, dict[str, int]]:
    """Return what the JSON inside a message says, if there is any; else what was read so far."""
    found = _NESTED.search(message)
    if found is None:
        return own
    try:
        inner, _ = json.JSONDecoder().raw_decode(found[1])
    except ValueError:
        return own
    if not isinstance(inner, dict) or not inner.get("error"):
        return own
    text, code, kind, sizes = _read(inner["error"])
    # The outer words stay in the message: they may be the ones that the table knows.
    return f"{message[: found.start(1)]}{text}", code or own[1], kind or own[2], sizes or own[3]


def _text(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
