"""Which models are in memory: finding the instance for a name, loading on demand, evicting, the memory guardrail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmq_simulator import failures
from lmq_simulator.config import ModelSpec
from lmq_simulator.records import Instance, Refused, Status

if TYPE_CHECKING:
    from lmq_simulator.engine import Engine


class Memory:
    """The instances of one engine, in the order in which they were asked for."""

    def __init__(self, engine: Engine, now_ms: float) -> None:
        self._engine = engine
        self.instances: dict[str, Instance] = {}
        # Loads that wait for a busy instance to finish, with what they wait for.
        self._held_loads: dict[str, list[Instance]] = {}
        for key in engine.config.loaded:
            instance = self._new(self._model(key), jit=False, ttl_s=None, context_length=None, now_ms=now_ms)
            instance.status = Status.IDLE
            instance.load_progress = 1.0

    def instance_for(
        self, name: str | None, *, embed: bool, ttl_s: float | None, context_length: int | None, now_ms: float
    ) -> Instance:
        """Return the instance that answers for a name, loading one on demand.

        Raises:
            Refused: unknown model, nothing loaded and no loading on demand, wrong kind, or no memory.
        """
        if not name:
            return self._any_loaded(embed=embed)
        instance = self.instances.get(name)
        model = instance.model if instance is not None else self._known(name)
        if model is None:
            raise Refused(failures.unknown_model(name))
        if model.is_embedder is not embed:
            raise Refused(failures.wrong_kind(name, wanted="embedding" if embed else "llm"))
        if instance is None or not instance.is_loaded:
            instance = self._standing_in(model) or instance
        config = self._engine.config
        if instance is not None and (instance.is_loaded or not config.jit_race):
            return instance
        if not config.jit:
            raise Refused(failures.no_models_loaded())
        ttl_s = config.ttl_s if ttl_s is None else ttl_s
        return self._load(model, jit=True, ttl_s=ttl_s, context_length=context_length, now_ms=now_ms)

    def load(self, key: str, *, context_length: int | None, now_ms: float) -> Instance:
        """Start to load one more instance of a model, with no idle limit."""
        model = self._known(key)
        if model is None:
            raise Refused(failures.unknown_model(key))
        return self._load(model, jit=False, ttl_s=None, context_length=context_length, now_ms=now_ms)

    def forget(self, instance: Instance) -> None:
        """Take an instance off the books; its requests are the engine's business."""
        self.instances.pop(instance.id, None)
        self._held_loads.pop(instance.id, None)

    def room_made(self, now_ms: float) -> None:
        """Something was unloaded or came to rest: loads that waited for it may begin."""
        for instance_id, blockers in list(self._held_loads.items()):
            if instance_id not in self._held_loads:
                continue
            if not any(blocker.is_busy and blocker.id in self.instances for blocker in blockers):
                del self._held_loads[instance_id]
                self._evict([blocker for blocker in blockers if blocker.id in self.instances], now_ms)
                self._engine.begin_load(self.instances[instance_id], now_ms)

    def used_gb(self) -> float:
        """Return how much memory the instances take, those on their way in included."""
        return sum(instance.model.size_gb for instance in self.instances.values())

    def _load(
        self, model: ModelSpec, *, jit: bool, ttl_s: float | None, context_length: int | None, now_ms: float
    ) -> Instance:
        config = self._engine.config
        if config.refuse_loads:
            raise Refused(failures.load_failed(model.key))
        blockers: list[Instance] = []
        if jit and config.auto_evict:
            others = [one for one in self.instances.values() if one.jit and one.model.key != model.key]
            if config.evict_busy or not any(one.is_busy for one in others):
                self._evict(others, now_ms)
            else:
                blockers = others
        freed_gb = sum(blocker.model.size_gb for blocker in blockers)
        if self.used_gb() - freed_gb + model.size_gb > config.memory_gb:
            raise Refused(failures.no_memory(model.key))
        instance = self._new(model, jit=jit, ttl_s=ttl_s, context_length=context_length, now_ms=now_ms)
        if blockers:
            self._held_loads[instance.id] = blockers
        else:
            self._engine.begin_load(instance, now_ms)
        return instance

    def _evict(self, instances: list[Instance], now_ms: float) -> None:
        for instance in instances:
            self._engine.counters.evictions += 1
            self._engine.remove(instance, now_ms)

    def _new(
        self, model: ModelSpec, *, jit: bool, ttl_s: float | None, context_length: int | None, now_ms: float
    ) -> Instance:
        length = model.context_length if context_length is None else context_length
        instance = Instance(
            id=self._free_id(model.key),
            model=model,
            context_length=min(length, model.max_context_length),
            parallel=1 if model.is_embedder else self._engine.config.parallel,
            jit=jit,
            ttl_s=ttl_s,
            last_used_ms=now_ms,
        )
        self.instances[instance.id] = instance
        return instance

    def _free_id(self, key: str) -> str:
        taken = key
        number = 1
        while taken in self.instances:
            number += 1
            taken = f"{key}:{number}"
        return taken

    def _model(self, key: str) -> ModelSpec:
        return next(model for model in self._engine.config.models if model.key == key)

    def _known(self, name: str) -> ModelSpec | None:
        """Find a model by its key, or by key@quantization."""
        for model in self._engine.config.models:
            if name in (model.key, f"{model.key}@{model.quantization.lower()}"):
                return model
        return None

    def _standing_in(self, model: ModelSpec) -> Instance | None:
        """Return a loaded instance of a model, else one on its way in, else None."""
        same = [one for one in self.instances.values() if one.model.key == model.key]
        return next((one for one in same if one.is_loaded), same[0] if same else None)

    def _any_loaded(self, *, embed: bool) -> Instance:
        for instance in self.instances.values():
            if instance.is_loaded and instance.model.is_embedder is embed:
                return instance
        raise Refused(failures.no_models_loaded())
