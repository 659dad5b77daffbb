"""The knobs of the simulator and the models it offers: data only, no behaviour.

Every time, rate and size carries its unit in the name. A rate of 0 means "takes no time".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_type_hints

import msgspec

ModelType = Literal["llm", "vlm", "embeddings"]

# Slot count that the server gives an instance unless told otherwise.
DEFAULT_PARALLEL = 4
# Idle life of an instance that a request loaded, in seconds: 60 minutes.
DEFAULT_TTL_S = 3600.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One downloaded model, as it lies on the simulated disk."""

    key: str
    type: ModelType = "llm"
    publisher: str = "simulator"
    display_name: str = ""
    arch: str = "llama"
    format: Literal["gguf", "mlx"] = "gguf"
    quantization: str = "Q4_K_M"
    bits_per_weight: float = 4.5
    params: str = "8B"
    size_gb: float = 5.0
    max_context_length: int = 32768
    context_length: int = 8192
    dimensions: int = 0
    tool_use: bool = True
    vision: bool = False
    reasoning: bool = False
    # gpt-oss models put their thoughts into "reasoning", all others into "reasoning_content".
    reasoning_field: Literal["reasoning_content", "reasoning"] = "reasoning_content"

    @property
    def is_embedder(self) -> bool:
        return self.type == "embeddings"


DEFAULT_MODELS = (
    ModelSpec(
        key="qwen/qwen3-8b", publisher="qwen", display_name="Qwen3 8B", arch="qwen3",
        size_gb=5.03, max_context_length=40960, reasoning=True,
    ),
    ModelSpec(
        key="meta/llama-3.1-8b", publisher="meta", display_name="Llama 3.1 8B", arch="llama",
        size_gb=4.92, max_context_length=131072,
    ),
    ModelSpec(
        key="qwen/qwen3-32b", publisher="qwen", display_name="Qwen3 32B", arch="qwen3", params="32B",
        size_gb=19.76, max_context_length=40960, reasoning=True,
    ),
    ModelSpec(
        key="text-embedding-nomic-embed-text-v1.5", type="embeddings", publisher="nomic-ai",
        display_name="Nomic Embed Text v1.5", arch="nomic-bert", params="137M", size_gb=0.084,
        max_context_length=2048, context_length=2048, dimensions=768, tool_use=False,
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """Every knob of one simulated server. Frozen: `turned` gives a changed copy."""

    # Where it listens. Port 0 lets the system choose.
    host: str = "127.0.0.1"
    port: int = 0

    # What is on its disk, what is in its memory at start, and how much fits there.
    models: tuple[ModelSpec, ...] = DEFAULT_MODELS
    loaded: tuple[str, ...] = ("qwen/qwen3-8b", "text-embedding-nomic-embed-text-v1.5")
    memory_gb: float = 48.0

    # Loading.
    jit: bool = True
    jit_race: bool = True
    auto_evict: bool = True
    evict_busy: bool = True
    ttl_s: float = DEFAULT_TTL_S
    load_gb_per_s: float = 1.0
    refuse_loads: bool = False

    # Slots and the KV cache.
    parallel: int = DEFAULT_PARALLEL
    unified_kv: bool = True
    overflow: Literal["nested", "event", "empty"] = "nested"

    # Speed. One decode step with n streams lasts itl_base_ms + itl_per_stream_ms * n.
    prefill_tokens_per_s: float = 2000.0
    itl_base_ms: float = 14.0
    itl_per_stream_ms: float = 2.0
    embed_ms_per_string: float = 12.0

    # What it says.
    seed: int = 7
    answer_tokens: int = 0
    reasoning_tokens: int = 0
    reasoning_style: Literal["field", "think_tags"] = "field"

    # How it fails.
    crash_on_text: str = ""
    crash_every_requests: int = 0
    broken_stream: Literal["abrupt", "event"] = "abrupt"
    embed_max_batch: int = 0
    stalled: bool = False

    # Connections and clients that leave.
    api_token: str = ""
    keep_alive_s: float = 5.0
    close_after_reply_ratio: float = 0.0
    disconnects_noticed: bool = True
    drop_abandoned_waiting: bool = False

    def __post_init__(self) -> None:
        keys = {model.key for model in self.models}
        missing = [key for key in self.loaded if key not in keys]
        if missing:
            raise ValueError(f"loaded names models that are not in models: {', '.join(missing)}")
        if self.parallel < 1:
            raise ValueError(f"parallel must be at least 1, got {self.parallel}")
        if not 0.0 <= self.close_after_reply_ratio <= 1.0:
            raise ValueError(f"close_after_reply_ratio must lie in 0..1, got {self.close_after_reply_ratio}")
        for name in _NEVER_NEGATIVE:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    @classmethod
    def instant(cls, **knobs: Any) -> SimulatorConfig:
        """Return a configuration in which nothing takes time, with `knobs` on top."""
        return cls(**{**ZERO_LATENCY, **knobs})

    def turned(self, knobs: dict[str, Any]) -> SimulatorConfig:
        """Return a copy with some knobs at other values, checked as if read from JSON.

        Raises:
            ValueError: a knob is unknown, cannot change at run time, or its value does not fit.
        """
        types = get_type_hints(type(self))
        checked: dict[str, Any] = {}
        for name, value in knobs.items():
            if name not in types:
                raise ValueError(f"unknown knob: {name}")
            if name in _FIXED_AT_START:
                raise ValueError(f"{name} can only be set at start")
            try:
                checked[name] = msgspec.convert(value, types[name])
            except msgspec.ValidationError as error:
                raise ValueError(f"{name}: {error}") from error
        return replace(self, **checked)


# These decide what exists at start; a running server cannot take them back.
_FIXED_AT_START = frozenset({"host", "port", "models", "loaded"})

_NEVER_NEGATIVE = (
    "memory_gb", "ttl_s", "load_gb_per_s", "prefill_tokens_per_s", "itl_base_ms", "itl_per_stream_ms",
    "embed_ms_per_string", "answer_tokens", "reasoning_tokens", "crash_every_requests", "embed_max_batch",
    "keep_alive_s",
)  # fmt: skip

ZERO_LATENCY: dict[str, float] = {
    "load_gb_per_s": 0.0,
    "prefill_tokens_per_s": 0.0,
    "itl_base_ms": 0.0,
    "itl_per_stream_ms": 0.0,
    "embed_ms_per_string": 0.0,
}

# One sentence for each knob; `--help` and the README show them.
KNOB_HELP = {
    "host": "Address to listen on.",
    "port": "Port to listen on; 0 lets the system choose.",
    "loaded": "Model in memory at start; may be given several times, or as: none.",
    "memory_gb": "Memory for models, in GB; what does not fit is refused.",
    "jit": "Load a model when a request names it.",
    "jit_race": "Simultaneous first requests each load a copy of the model, as the real server does.",
    "auto_evict": "Loading on demand first unloads the models that were loaded on demand before.",
    "evict_busy": "Eviction does not wait for requests to end.",
    "ttl_s": "Idle life, in seconds, of a model loaded on demand.",
    "load_gb_per_s": "Speed of loading, in GB per second.",
    "refuse_loads": "Every load fails.",
    "parallel": "Slots of an instance; more requests wait without a sign.",
    "unified_kv": "The slots share one KV cache; if it runs over, all requests in it fail.",
    "overflow": "A prompt longer than the context: 400 with an error inside an error, error event, or empty 200.",
    "prefill_tokens_per_s": "Speed of reading prompts, in tokens per second.",
    "itl_base_ms": "Time between two tokens of a stream, in milliseconds, without what each stream adds.",
    "itl_per_stream_ms": "What each stream that is written adds to that time, in milliseconds.",
    "embed_ms_per_string": "Time to embed one string, in milliseconds.",
    "seed": "The same seed and prompt give the same answer.",
    "answer_tokens": "Length of every answer in tokens; 0 leaves it to the answer.",
    "reasoning_tokens": "Tokens of reasoning before the answer of a reasoning model.",
    "reasoning_style": "Reasoning in a field of its own, or between think tags in the text.",
    "crash_on_text": "A prompt that holds this text crashes the model.",
    "crash_every_requests": "Every so many requests the model crashes; 0 never.",
    "broken_stream": "How a crash or an eviction ends a stream: cut off, or with an error event.",
    "embed_max_batch": "Most strings in one embedding request before it fails; 0 has no limit.",
    "stalled": "Accept requests and send nothing.",
    "api_token": "Token that clients must send; empty asks for none.",
    "keep_alive_s": "Close idle connections after so many seconds.",
    "close_after_reply_ratio": "Share of replies, 0 to 1, after which the connection is closed without notice.",
    "disconnects_noticed": "Stop working for clients that have left.",
    "drop_abandoned_waiting": "Forget a waiting request when its client leaves, instead of starting it in vain.",
}
