"""LM Studio: its native API for models and loads, the OpenAI one for work. Never lets a request load a model."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from lmq_proto.messages import Capacity, CatalogModel, InstanceInfo
from lmq_worker.backends.engine import EngineBackend
from lmq_worker.backends.errors_table import ServerError
from lmq_worker.backends.openai import is_embedder, model_names
from lmq_worker.config import LOOPBACK
from lmq_worker.failures import AttemptFailed, Unreachable, Verdict

if TYPE_CHECKING:
    from lmq_proto.errors import ErrorInfo
    from lmq_worker.backends.http import Endpoint
    from lmq_worker.config import WorkerConfig
    from lmq_worker.spool import Spool

GREETING = "/lmstudio-greeting"
# Predictions at once on an instance whose configuration does not say.
DEFAULT_PARALLEL = 4
# Below this a chat with some history, or one document, no longer fits.
SMALL_CONTEXT_TOKENS = 4096

NOT_ON_NETWORK = (
    "LM Studio listens on this machine only, so its worker has to stay here; to serve the network, "
    "type: lms server start --bind 0.0.0.0"
)

TOO_OLD = "this LM Studio is older than 0.3.6: lmq cannot see which models are loaded; update it"
NOT_LM_STUDIO = (
    "this server does not say that it is LM Studio; for llama.cpp, vLLM, Ollama and others, start the worker with: "
    "--backend openai"
)

INSUFFICIENT_MEMORY = Verdict("insufficient_memory", action="free_memory")
_BUSY = Verdict("instance_busy", action="wait")
_NOT_ALLOWED = Verdict("load_not_allowed", permanent=True, action="none")


class LmStudioBackend(EngineBackend):
    """One LM Studio server, of any version."""

    name = "lm_studio"
    # Unless it was loaded otherwise, which it does not say.
    shares_cache = True

    def __init__(self, config: WorkerConfig, spool: Spool) -> None:
        super().__init__(config, spool)
        self._ours = spool.own_instances()
        # Instance -> the name it was loaded by, which may be a variant that the list of models does not tell.
        self._loaded_as: dict[str, str] = {}
        self._loading = 0
        self._loads = 0
        # Models whose load failed without a reason, and was called a lack of memory once.
        self._short_of_memory: set[str] = set()
        self._native = False
        self._network_notes: list[str] | None = None

    @property
    def discover_every_s(self) -> float:
        every_s = super().discover_every_s
        return min(every_s, self.config.loading_poll_s) if self._loading else every_s

    async def look(self) -> Capacity:
        """Ask the newest API that this version has."""
        capacity = await self._models()
        if self._network_notes is None:
            self._network_notes = await network_notes(self.config)
        return msgspec.structs.replace(capacity, notes=[*capacity.notes, *self._network_notes])

    async def _models(self) -> Capacity:
        loads = self._loads
        for path, read in (("/api/v1/models", self._read_v1), ("/api/v0/models", self._read_v0)):
            try:
                capacity = read(await self.endpoint.get(path))
            except ServerError as error:
                if error.verdict.code != "wrong_endpoint":
                    raise
                continue
            if capacity is not None:
                # Only now: a load that comes during a look is not to be refused.
                self._native = read == self._read_v1
                # An answer that was on its way while a load ended does not know of it yet.
                if self._native and not self._loading and loads == self._loads:
                    self._forget_others(capacity.instances)
                return capacity
        self._native = False
        capacity = self._read_openai(await self.endpoint.get("/v1/models"))
        note = TOO_OLD if await greets(self.endpoint) else NOT_LM_STUDIO
        return msgspec.structs.replace(capacity, notes=[note])

    def _forget_others(self, instances: list[InstanceInfo]) -> None:
        """Drop what is known of instances that are no more."""
        loaded = {instance.instance_id for instance in instances}
        self._loaded_as = {name: model for name, model in self._loaded_as.items() if name in loaded}
        self._keep_ours(self._ours & loaded)

    def answers_to(self, instance: InstanceInfo) -> frozenset[str]:
        if instance.kind == "embedding":
            return frozenset()
        return frozenset({instance.instance_id, instance.model, *instance.variants})

    # --- reading its three model lists ---

    def _read_v1(self, answer: Any) -> Capacity | None:
        models = answer.get("models") if isinstance(answer, dict) else None
        if not isinstance(models, list):
            return None
        instances: list[InstanceInfo] = []
        catalog: list[CatalogModel] = []
        for model in models:
            if isinstance(model, dict) and model.get("key"):
                instances += self._v1_instances(model)
                catalog.append(_v1_catalog(model))
        return Capacity(
            instances=instances,
            catalog=catalog,
            may_load=self.config.may_load,
            models_max=self.config.models_max or None,
            notes=_notes(instances),
        )

    def _v1_instances(self, model: dict[str, Any]) -> list[InstanceInfo]:
        key = str(model["key"])
        embedder = model.get("type") == "embedding"
        selected = model.get("selected_variant")
        found = []
        for loaded in _dicts(model.get("loaded_instances")):
            config = loaded["config"] if isinstance(loaded.get("config"), dict) else {}
            instance_id = str(loaded.get("id") or key)
            names = [str(name) for name in (selected, self._loaded_as.get(instance_id)) if name]
            found.append(
                InstanceInfo(
                    instance_id=instance_id,
                    model=key,
                    kind="embedding" if embedder else "llm",
                    slots=1 if embedder else self._slots(config.get("parallel")),
                    context_tokens=_count(config.get("context_length")),
                    budget_tokens=_count(config.get("context_length")) if not embedder else 0,
                    ours=instance_id in self._ours,
                    variants=[name for name in names if name != key],
                )
            )
        return found

    def _slots(self, parallel: Any) -> int:
        slots = _count(parallel) or DEFAULT_PARALLEL
        return min(slots, self.config.pinned) if self.config.pinned else slots

    def _read_v0(self, answer: Any) -> Capacity | None:
        """Read the list of 0.3.6 and later; these run one prediction at a time and queue the others unseen."""
        models = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(models, list):
            return None
        instances: list[InstanceInfo] = []
        catalog: list[CatalogModel] = []
        for model in _dicts(models):
            key = str(model.get("id") or "")
            kind = "embedding" if model.get("type") == "embeddings" else "llm"
            if not key:
                continue
            catalog.append(
                CatalogModel(model=key, kind=kind, context_tokens=_count(model.get("max_context_length")))
            )
            if model.get("state") == "loaded":
                context = _count(model.get("loaded_context_length"))
                slots = 1 if kind == "embedding" else self.config.pinned or 1
                instances.append(
                    InstanceInfo(instance_id=key, model=key, kind=kind, slots=slots, context_tokens=context)
                )
        old = "this LM Studio is older than 0.4: lmq cannot load models there, and runs one job per model at a time"
        return Capacity(instances=instances, catalog=catalog, notes=[*_notes(instances, parallel=False), old])

    def _read_openai(self, answer: Any) -> Capacity:
        names = model_names(answer)
        if names is None:
            raise ServerError(
                "no list of models at /api/v1/models, /api/v0/models or /v1/models; is this LM Studio?"
            )
        instances = [
            InstanceInfo(
                instance_id=name,
                model=name,
                kind="embedding" if is_embedder(name) else "llm",
                slots=self.config.pinned or 1,
            )
            for name in names
        ]
        return Capacity(instances=instances, slots=self.config.pinned or 1)

    # --- loading ---

    async def load(self, model: str, context_tokens: int) -> ErrorInfo | None:
        """Load a model, unless it is loaded already: a second load would make a second copy."""
        self._loading += 1
        self.wake.set()
        seen = Capacity()
        try:
            self._check_native()
            seen = await self.look()
            loaded = _loaded(seen.instances, model)
            if loaded is not None:
                return None
            body: dict[str, Any] = {"model": model, "echo_load_config": True}
            if context_tokens:
                body["context_length"] = context_tokens
            answer = await self.endpoint.post(
                "/api/v1/models/load", body, timeout_s=self.config.load_timeout_s
            )
            instance_id = answer.get("instance_id") if isinstance(answer, dict) else None
            if not instance_id:
                raise ServerError("the server did not say which instance it loaded")
            self._loaded_as[str(instance_id)] = model
            self._keep_ours(self._ours | {str(instance_id)})
            self._short_of_memory.discard(model)
        except AttemptFailed as failure:
            return self._load_failure(model, failure, seen).info()
        finally:
            self._loading -= 1
            self._loads += 1
        return None

    async def unload(self, instance_id: str) -> ErrorInfo | None:
        """Unload an instance that nothing runs on; one that is not loaded is no error."""
        try:
            self._check_native()
            if self.busy(instance_id):
                raise AttemptFailed(_BUSY, f"{instance_id!r} still has jobs", instance_id=instance_id)
            loaded = {instance.instance_id for instance in (await self.look()).instances}
            if instance_id in loaded:
                await self.endpoint.post(
                    "/api/v1/models/unload",
                    {"instance_id": instance_id},
                    timeout_s=self.config.load_timeout_s,
                )
            self._keep_ours(self._ours - {instance_id})
        except AttemptFailed as failure:
            return failure.info()
        return None

    def _load_failure(self, model: str, failure: AttemptFailed, seen: Capacity) -> AttemptFailed:
        """Return why a load failed. LM Studio hides a lack of memory behind a general failure: assume it once."""
        if failure.verdict.code == "load_failed" and self.instances and model not in self._short_of_memory:
            self._short_of_memory.add(model)
            failure = failure.judged(INSUFFICIENT_MEMORY)
        if failure.verdict.code == INSUFFICIENT_MEMORY.code:
            failure.message += _sizes(model, seen)
        return failure

    def _check_native(self) -> None:
        if not self.config.may_load:
            raise AttemptFailed(_NOT_ALLOWED, "this worker was started with --no-load")
        if not self._native:
            raise AttemptFailed(
                _NOT_ALLOWED, "this LM Studio has no API to load models; version 0.4 or later has"
            )

    def _keep_ours(self, instance_ids: set[str]) -> None:
        if instance_ids != self._ours:
            self._ours = instance_ids
            self.spool.keep_own_instances(instance_ids)


async def greets(endpoint: Endpoint) -> bool:
    """Tell whether a server says that it is LM Studio.

    Raises:
        Unreachable: nobody answers.
    """
    try:
        answer = await endpoint.get(GREETING)
    except Unreachable:
        raise
    except AttemptFailed:
        return False
    return isinstance(answer, dict) and answer.get("lmstudio") is True


def _v1_catalog(model: dict[str, Any]) -> CatalogModel:
    variants = model.get("variants")
    names = [_variant_name(one) for one in variants] if isinstance(variants, list) else []
    return CatalogModel(
        model=str(model["key"]),
        kind="embedding" if model.get("type") == "embedding" else "llm",
        size_bytes=_count(model.get("size_bytes")),
        context_tokens=_count(model.get("max_context_length")),
        variants=[name for name in names if name],
    )


def _sizes(model: str, seen: Capacity) -> str:
    """Return how large a model is that did not fit, and those that are loaded: LM Studio tells no more."""
    sizes = {one.model: one.size_bytes for one in seen.catalog if one.size_bytes}
    loaded = [_sized(one.model, sizes) for one in seen.instances]
    beside = f"loaded there: {', '.join(loaded)}" if loaded else "nothing else is loaded there"
    return f"; the model is {_sized(model, sizes)}, {beside}; a smaller variant may fit"


def _sized(model: str, sizes: dict[str, int]) -> str:
    return f"{model} ({sizes[model] / 1e9:.1f} GB)" if model in sizes else model


def _variant_name(variant: Any) -> str:
    if isinstance(variant, dict):
        return str(variant.get("key") or variant.get("name") or variant.get("id") or "")
    return str(variant)


def _loaded(instances: list[InstanceInfo], model: str) -> InstanceInfo | None:
    """Return an instance that a model's name already stands for."""
    for instance in instances:
        if model in (instance.instance_id, instance.model, *instance.variants):
            return instance
    return None


def _notes(instances: list[InstanceInfo], *, parallel: bool = True) -> list[str]:
    """Return what an operator should know about what is loaded."""
    notes = []
    for instance in instances:
        if instance.kind == "embedding":
            continue
        if 0 < instance.context_tokens < SMALL_CONTEXT_TOKENS:
            notes.append(
                f"{instance.instance_id} has a context of {instance.context_tokens} tokens only; "
                f"type: lms load {instance.model} --context-length 8192"
            )
        if parallel and instance.slots == 1:
            notes.append(
                f"{instance.instance_id} runs one job at a time; type: lms load {instance.model} --parallel 4"
            )
    return notes


async def network_notes(config: WorkerConfig) -> list[str]:
    """Return what to say when the broker is on another machine and LM Studio listens on this one only."""
    endpoint = urlsplit(config.endpoint)
    brokers = [urlsplit(address) for address in config.broker]
    remote = [one for one in brokers if one.scheme == "tcp" and one.hostname not in LOOPBACK]
    if endpoint.hostname not in LOOPBACK or not remote:
        return []
    # Connecting a datagram socket sends nothing; it only makes the system choose an address of ours.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((remote[0].hostname, remote[0].port or 9))
        except OSError:
            return []
        address = str(probe.getsockname()[0])
    try:
        async with asyncio.timeout(config.connect_timeout_s):
            _, writer = await asyncio.open_connection(address, endpoint.port or 80)
    except (OSError, TimeoutError):
        return [NOT_ON_NETWORK]
    writer.close()
    return []


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
