"""What no place can do: make vectors with models that are known to make text only, or text with those for vectors."""

from collections.abc import Sequence

from lmq_broker.core import models
from lmq_broker.core.settings import EMBEDDING_TASKS, ENGINE_TASKS
from lmq_broker.core.state import BrokerState
from lmq_proto.errors import WrongKind

_MAKES = {"llm": "text", "embedding": "vectors"}
"""What models of a kind make; of other kinds nothing is known."""
_NAMED = 3
"""Models that are named instead."""


def wrong_kind(state: BrokerState, task_type: str, names: Sequence[str]) -> WrongKind | None:
    """Return an error if all models asked for are, wherever they are known, of a kind that cannot run this task type.

    Of a model that no endpoint has now, nothing is known. Looked up once for each list of models and each fleet.
    """
    if not names:
        return None
    if state.kinds_version != state.fleet_version or len(state.misfits) > state.settings.names:
        state.misfits.clear()
        state.kinds = _kinds(state)
        state.kinds_version = state.fleet_version
    key = (task_type, *names)
    if key not in state.misfits:
        state.misfits[key] = _misfit(state, task_type, models.expanded(names, state.aliases))
    return state.misfits[key]


def _kinds(state: BrokerState) -> dict[str, set[str]]:
    """Return the kinds of whatever answers to a name, at all endpoints; under `ANY` those of what answers to all."""
    found: dict[str, set[str]] = {}
    for worker in state.workers.values():
        places = [(models.catalog_names(entry), entry.kind) for entry in worker.capacity.catalog]
        places += [(each.names, each.kind) for each in worker.instances.values()]
        for answers_to, kind in places:
            for name in answers_to or (models.ANY,):
                found.setdefault(name, set()).add(kind)
    return found


def _misfit(state: BrokerState, task_type: str, wanted: Sequence[str]) -> WrongKind | None:
    if task_type not in ENGINE_TASKS:
        return None
    for model in wanted:
        kinds = state.kinds.get(models.normal(model), set()) | state.kinds.get(models.ANY, set())
        if not kinds or any(kind not in _MAKES or models.suits(kind, task_type) for kind in kinds):
            return None
    makes = "text" if task_type in EMBEDDING_TASKS else "vectors"
    return WrongKind(wanted[0], task_type, makes, _instead(state, task_type))


def _instead(state: BrokerState, task_type: str) -> list[str]:
    """Return some models that can run a task type, those that are loaded first."""
    connected = [worker for worker in state.workers.values() if worker.peer is not None]
    places = [(each.model, each.kind) for worker in connected for each in worker.instances.values()]
    places += [(entry.model, entry.kind) for worker in connected for entry in worker.capacity.catalog]
    found = dict.fromkeys(model for model, kind in places if kind in _MAKES and models.suits(kind, task_type))
    return list(found)[:_NAMED]
