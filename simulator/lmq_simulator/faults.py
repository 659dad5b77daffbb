"""Failures that tests inject by name: the error table of the server, one word for each line."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from lmq_simulator import failures
from lmq_simulator.records import Failure


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to fail.

    Attributes:
        failure: what the client sees; None means silence: the request is stuck in its slot.
        where: "reply" answers at once and leaves the engine alone; "stream" lets the request run for a few pieces.
    """

    failure: Failure | None
    where: Literal["reply", "stream"] = "reply"
    empty: bool = False


_ENGINE = "Engine protocol "
FAULTS: dict[str, Fault] = {
    # Connections and streams.
    "reset": Fault(Failure("", at_once=True)),
    "cut": Fault(Failure("", ending="abrupt"), "stream"),
    "eof": Fault(Failure("", ending="eof"), "stream"),
    "stall": Fault(None, "stream"),
    "empty": Fault(None, empty=True),
    # The model is gone.
    "model_crashed": Fault(failures.crashed("event")),
    "model_crashed_in_stream": Fault(failures.crashed("event"), "stream"),
    "channel_error": Fault(Failure("Channel Error"), "stream"),
    "model_unloaded": Fault(failures.unloaded("event"), "stream"),
    "no_models_loaded": Fault(failures.no_models_loaded()),
    # Loading.
    "load_cancelled": Fault(failures.load_cancelled("model")),
    "load_failed": Fault(failures.load_failed("model")),
    "load_exit_code": Fault(Failure("Error loading model. (Exit code: 6)")),
    "unhealthy": Fault(Failure("The engine exited before becoming healthy.")),
    "insufficient_resources": Fault(failures.no_memory("model")),
    "model_load_failed": Fault(
        Failure("Failed to load model", 500, "native", "internal_error", "model_load_failed")
    ),
    # The engine.
    "fetch_failed": Fault(
        Failure(_ENGINE + "predict request failed: fetch failed", 500, "openai", "internal_error", "unknown")
    ),
    "prediction_error": Fault(Failure("received prediction-error"), "stream"),
    "llama_decode": Fault(failures.embed_batch_too_large()),
    "history_not_found": Fault(Failure("Prediction history node 1 not found in shard 0", 500)),
    # Sizes.
    "context_exceeded": Fault(failures.context_exceeded(), "stream"),
    "exceed_context_size": Fault(failures.prompt_too_long_nested(8810, 8192)),
    "input_too_long": Fault(failures.prompt_too_long("mlx", 8810), "stream"),
    "keep_too_long": Fault(failures.prompt_too_long("gguf", 8810)),
    "cannot_truncate": Fault(Failure("Cannot truncate prompt with n_keep (8810) >= n_ctx (8192)"), "stream"),
    "keep_overflows": Fault(Failure("Trying to keep the first 8810 tokens when context the overflows.")),
    # What the request itself got wrong.
    "unknown_model": Fault(failures.unknown_model("model")),
    "bad_response_format": Fault(Failure("'response_format.type' must be 'json_schema' or 'text'")),
    "bad_grammar": Fault(failures.bad_grammar()),
    "template": Fault(
        Failure(
            _ENGINE + "applyPromptTemplate request returned 500: Jinja Exception: roles must alternate", 500
        )
    ),
    "not_iterable": Fault(Failure("[Server Error] _0x1a2b3c is not iterable", 500)),
    "invalid_api_key": Fault(failures.token_malformed("nonsense")),
    # Any text: give `text`, and `status` if it is not 400.
    "custom": Fault(Failure("")),
    "custom_in_stream": Fault(Failure(""), "stream"),
}


@dataclass(slots=True)
class Injection:
    """A fault that the next few inference requests fall into."""

    fault: Fault
    count: int
    after_pieces: int


class Injections:
    """The faults that wait for requests, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._waiting: deque[Injection] = deque()

    def add(self, name: str, *, count: int, after_pieces: int, text: str | None, status: int | None) -> None:
        """Let the next `count` requests fail in the named way.

        Raises:
            KeyError: there is no such fault.
        """
        fault = FAULTS[name]
        failure = fault.failure
        if failure is not None and text is not None:
            failure = replace(failure, text=text)
        if failure is not None and status is not None:
            failure = replace(failure, status=status)
        self._waiting.append(Injection(replace(fault, failure=failure), count, after_pieces))

    def take(self) -> Injection | None:
        """Return what the request that just came in falls into; None lets it pass."""
        if not self._waiting:
            return None
        injection = self._waiting[0]
        injection.count -= 1
        if injection.count <= 0:
            self._waiting.popleft()
        return injection

    def clear(self) -> None:
        self._waiting.clear()

    @property
    def waiting(self) -> int:
        return sum(injection.count for injection in self._waiting)
