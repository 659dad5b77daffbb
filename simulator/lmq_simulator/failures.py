"""Every failure the simulator can show, in the server's own words: what the engine meets, and what tests inject."""

from __future__ import annotations

from typing import Literal

import msgspec

from lmq_simulator.records import Failure

Ending = Literal["event", "abrupt"]


def unknown_model(name: str) -> Failure:
    """No downloaded model has this name."""
    text = f'Invalid model identifier "{name}". Please specify a valid downloaded model (e.g. qwen/qwen3-8b).'
    return Failure(text, shape="openai", param="model", code="model_not_found")


def unknown_instance(instance_id: str) -> Failure:
    """No instance in memory has this id."""
    text = f"No loaded instance has the id '{instance_id}'."
    return Failure(
        text, status=404, shape="native", type="model_not_found", code="model_not_found", param="instance_id"
    )


def wrong_kind(name: str, *, wanted: str) -> Failure:
    """A chat was sent to an embedder, or texts to embed to a chat model."""
    text = f'Model "{name}" cannot be used here: this endpoint needs a model of type {wanted}.'
    return Failure(text, shape="openai", param="model", code="model_type_mismatch")


def no_models_loaded() -> Failure:
    """Nothing is in memory, and loading on demand is off."""
    text = "No models loaded. Please load a model in the developer page or with the 'lms load' command."
    return Failure(text, shape="openai", param="model", code="model_not_found")


def load_failed(key: str) -> Failure:
    """A load failed for no reason that is told."""
    return Failure(f'Failed to load model "{key}". Error: Failed to load model.')


def load_cancelled(key: str) -> Failure:
    """A load was overtaken by another one."""
    return Failure(f'Failed to load model "{key}". Error: Operation canceled.')


def no_memory(key: str) -> Failure:
    """The guardrail: the model would not fit."""
    text = f'Failed to load model "{key}". Error: Model loading was stopped due to insufficient system resources.'
    return Failure(text)


def crashed(ending: Ending) -> Failure:
    """The engine process died."""
    text = "The model has crashed without additional information. (Exit code: null)"
    return Failure(text, ending=ending)


def unloaded(ending: Ending) -> Failure:
    """The model was taken out of memory while it worked."""
    return Failure("Model unloaded.", ending=ending)


def context_exceeded() -> Failure:
    """The shared KV cache ran over."""
    return Failure("Context size has been exceeded.")


def prompt_too_long(model_format: str, tokens: int) -> Failure:
    """One prompt alone is longer than the context, as older engines say it."""
    if model_format == "mlx":
        return Failure(f"Input does not fit in context length. The input has {tokens} tokens.")
    return Failure(
        "The number of tokens to keep from the initial prompt is greater than the context length "
        f"(n_keep: {tokens}). Try a larger context length, or a shorter input."
    )


def prompt_too_long_nested(tokens: int, context_length: int) -> Failure:
    """One prompt alone is longer than the context, as newer engines say it (shape D)."""
    inner = {
        "error": {
            "code": 400,
            "message": f"request ({tokens} tokens) exceeds the available context size ({context_length} tokens)",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": tokens,
            "n_ctx": context_length,
        }
    }
    return Failure(f"Engine protocol predict request returned 400: {msgspec.json.encode(inner).decode()}")


def embed_batch_too_large() -> Failure:
    """An embedder was given more texts at once than it takes."""
    return Failure("Failed to embed: llama_decode returned -1", status=500)


def bad_grammar() -> Failure:
    """The schema of an answer cannot be turned into a grammar."""
    return Failure("failed to parse grammar")


def token_missing() -> Failure:
    """A token is required and none came."""
    text = "An LM Studio API token is required for this server; send it in the Authorization header."
    return Failure(text, status=401, shape="native", type="invalid_request", code="invalid_api_key")


def token_malformed(token: str) -> Failure:
    """What came does not look like a token."""
    text = f"Malformed LM Studio API token provided: {token}"
    return Failure(text, status=401, shape="native", type="invalid_request", code="invalid_api_key")


def token_wrong() -> Failure:
    """What came looks like a token but is not ours."""
    text = "The LM Studio API token provided is not valid."
    return Failure(text, status=401, shape="native", type="invalid_request", code="invalid_api_key")
