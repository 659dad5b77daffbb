"""What can never fit: a job that needs more tokens than any endpoint can hold with the models it asks for."""

from collections.abc import Sequence

from lmq_broker.core import models
from lmq_broker.core.state import BrokerState
from lmq_proto.errors import NeverFits
from lmq_proto.messages import JobSpec

_ONE_TEXT = ("chat", "complete")
"""Task types whose tokens are all in one context; those of an embedding are of many texts, each in its own."""


def never_fits(state: BrokerState, spec: JobSpec, names: Sequence[str]) -> NeverFits | None:
    """Return an error if every place that is known for the models of a job has too small a context for it."""
    if not spec.prompt_tokens or spec.task_type not in _ONE_TEXT:
        return None
    model, context_tokens = _largest(state, spec.task_type, models.expanded(names, state.aliases))
    tokens = spec.prompt_tokens + spec.output_tokens
    return NeverFits(model, tokens, context_tokens) if 0 < context_tokens < tokens else None


def _largest(state: BrokerState, task_type: str, names: tuple[str, ...]) -> tuple[str, int]:
    """Return where the most tokens fit, of connected endpoints; 0 if there is none, or one does not say."""
    if state.contexts_version != state.fleet_version or len(state.contexts) > state.settings.names:
        state.contexts.clear()
        state.contexts_version = state.fleet_version
    key = (task_type, *names)
    found = state.contexts.get(key)
    if found is None:
        found = state.contexts[key] = _look(state, task_type, names)
    return found


def _look(state: BrokerState, task_type: str, names: tuple[str, ...]) -> tuple[str, int]:
    wanted = frozenset(models.normal(name) for name in names)
    largest = ("", 0)
    for worker in state.workers.values():
        if worker.peer is None:
            continue
        places = [
            (info.model, info.kind, info.context_tokens, models.instance_names(info))
            for info in worker.capacity.instances
        ] + [
            (entry.model, entry.kind, entry.context_tokens, models.catalog_names(entry))
            for entry in worker.capacity.catalog
        ]
        for model, kind, context_tokens, answers_to in places:
            is_wanted = not wanted or not answers_to or bool(wanted & answers_to)
            if not is_wanted or not models.suits(kind, task_type):
                continue
            if context_tokens <= 0:
                return ("", 0)
            if context_tokens > largest[1]:
                largest = (model, context_tokens)
    return largest
