"""Any server that speaks the OpenAI HTTP API: llama.cpp's server, vLLM, Ollama's /v1. It loads what it likes itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import Capacity, InstanceInfo
from lmq_worker.backends.engine import EngineBackend
from lmq_worker.backends.errors_table import ServerError
from lmq_worker.failures import AttemptFailed

if TYPE_CHECKING:
    from lmq_worker.config import WorkerConfig
    from lmq_worker.spool import Spool

# Parts of names by which embedding models are known; such servers do not say what a model is for.
_EMBEDDER_NAMES = ("embed", "bge-", "e5-", "gte-", "minilm")
# What llama.cpp's router says of a model without an engine.
_NOT_RUNNING = frozenset({"unloaded", "downloading", "downloaded"})


class OpenAIBackend(EngineBackend):
    """Models as `/v1/models` lists them, slots as set, as llama.cpp tells them, or as they are found."""

    name = "openai"

    def __init__(self, config: WorkerConfig, spool: Spool) -> None:
        super().__init__(config, spool)
        # None: not asked yet; False: this server knows no such route.
        self._has_props: bool | None = None
        self._stopped: frozenset[str] = frozenset()

    async def look(self) -> Capacity:
        answer = await self.endpoint.get("/v1/models")
        names = model_names(answer)
        if names is None:
            raise ServerError("/v1/models does not list models; is this an OpenAI-compatible server?")
        props = await self._props()
        self._stopped = stopped_models(answer)
        if props.get("models_autoload") is False:
            # A router that starts no engine by itself refuses what is not running.
            names = [name for name in names if name not in self._stopped]
        slots, context_tokens = read_props(props)
        slots = self.config.pinned or slots
        instances = [
            InstanceInfo(
                instance_id=name,
                model=name,
                kind="embedding" if is_embedder(name) else "any",
                slots=slots,
                context_tokens=context_tokens,
            )
            for name in names
        ]
        # However many models it lists, the machine behind it is one.
        return Capacity(instances=instances, slots=slots)

    def runs(self, instance_id: str) -> bool:
        return instance_id not in self._stopped

    async def _props(self) -> dict[str, Any]:
        """Return what llama.cpp's server tells of itself; nothing where nobody does."""
        if self._has_props is False:
            return {}
        try:
            props = await self.endpoint.get("/props")
        except AttemptFailed as failure:
            if failure.verdict.code == "endpoint_loading":
                # It lists its model while that loads; what it says then of slots would be a guess.
                raise
            self._has_props = False if failure.verdict.code == "wrong_endpoint" else None
            return {}
        self._has_props = True
        return props if isinstance(props, dict) else {}

    async def load(self, model: str, context_tokens: int) -> ErrorInfo | None:
        return ErrorInfo("load_not_allowed", "this server loads its models itself")

    async def unload(self, instance_id: str) -> ErrorInfo | None:
        return ErrorInfo("load_not_allowed", "this server unloads its models itself")


def model_names(answer: Any) -> list[str] | None:
    """Return the ids of an answer of /v1/models, or None if it is none."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if data is None and isinstance(answer, dict) and answer.get("object") == "list":
        data = []  # Ollama without models
    if not isinstance(data, list):
        return None
    return [str(one["id"]) for one in data if isinstance(one, dict) and one.get("id")]


def stopped_models(answer: Any) -> frozenset[str]:
    """Return the models that an answer of /v1/models calls not running, as llama.cpp's router does."""
    data = answer.get("data") if isinstance(answer, dict) else None
    return frozenset(
        str(one["id"])
        for one in (data if isinstance(data, list) else [])
        if isinstance(one, dict)
        and one.get("id")
        and isinstance(one.get("status"), dict)
        and one["status"].get("value") in _NOT_RUNNING
    )


def read_props(props: dict[str, Any]) -> tuple[int, int]:
    """Return (slots, context tokens) of llama.cpp's /props; 0 for what is not said."""
    slots = props.get("total_slots")
    settings = props.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    return (
        slots if isinstance(slots, int) and slots > 0 else 0,
        context if isinstance(context, int) and context > 0 else 0,
    )


def is_embedder(name: str) -> bool:
    """Guess from a model's name whether it makes vectors."""
    return any(part in name.lower() for part in _EMBEDDER_NAMES)
