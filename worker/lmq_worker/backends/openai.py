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


class OpenAIBackend(EngineBackend):
    """Models as `/v1/models` lists them, slots by setting or as llama.cpp tells them."""

    name = "openai"

    def __init__(self, config: WorkerConfig, spool: Spool) -> None:
        super().__init__(config, spool)
        # None: not asked yet; False: this server knows no such route.
        self._has_props: bool | None = None

    async def look(self) -> Capacity:
        answer = await self.endpoint.get("/v1/models")
        names = model_names(answer)
        if names is None:
            raise ServerError("/v1/models does not list models; is this an OpenAI-compatible server?")
        slots, context_tokens = await self._slots()
        slots = self.config.slots or slots
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

    async def _slots(self) -> tuple[int, int]:
        """Return (slots, context of each) as llama.cpp's server tells them; (1, 0) where nobody does."""
        if self._has_props is False:
            return 1, 0
        try:
            props = await self.endpoint.get("/props")
        except AttemptFailed as failure:
            if failure.verdict.code == "endpoint_loading":
                # It lists its model while that loads; what it says then of slots would be a guess.
                raise
            self._has_props = False if failure.verdict.code == "wrong_endpoint" else None
            return 1, 0
        self._has_props = True
        return read_props(props)

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


def read_props(props: Any) -> tuple[int, int]:
    """Return (slots, context tokens) of llama.cpp's /props; (1, 0) where they are not said."""
    if not isinstance(props, dict):
        return 1, 0
    slots = props.get("total_slots")
    settings = props.get("default_generation_settings")
    context = settings.get("n_ctx") if isinstance(settings, dict) else None
    return (
        slots if isinstance(slots, int) and slots > 0 else 1,
        context if isinstance(context, int) and context > 0 else 0,
    )


def is_embedder(name: str) -> bool:
    """Guess from a model's name whether it makes vectors."""
    return any(part in name.lower() for part in _EMBEDDER_NAMES)
