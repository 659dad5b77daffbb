"""Aliases and default models: what the configuration file says, and the commands that win over it until reset.

A job keeps the names it was submitted with. What they stand for is looked up whenever it is looked for a place, so that
jobs that wait follow an alias that changes.
"""

from collections.abc import Sequence

import msgspec

from lmq_broker.core import fields, kinds, models
from lmq_broker.core.chronicle import Out, full, put, refuse, reply, tell
from lmq_broker.core.records import MetaSet
from lmq_broker.core.settings import TASKS_WITH_DEFAULT
from lmq_broker.core.state import BrokerState, Session
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import BadField, LmqError, UnknownModel
from lmq_proto.events import Kind
from lmq_proto.messages import Alias, DefaultModel, Done, SetAlias, SetDefaultModel

ALIAS = "alias/"
"""Prefix of the journal's names for aliases that commands made or unmade."""
DEFAULT = "default_model/"
"""Prefix of the journal's names for default models, by task type."""

_LIKE = {"complete": "chat", "bulk_embed": "embed"}
"""Task types that have the default model of another unless they have their own."""


def refresh(state: BrokerState) -> None:
    """Work out anew which aliases are in force."""
    found = {models.normal(name): names for name, names in state.settings.aliases.items()}
    for name, alias in state.aliases_set.items():
        found[name] = tuple(alias.models)
    state.aliases = {name: names for name, names in found.items() if names}
    state.fleet_version += 1


def models_asked(state: BrokerState, task_type: str, names: Sequence[str]) -> Sequence[str]:
    """Return the names that a job is submitted with: its own, or the default of its task type."""
    if names:
        return names
    model = default_of(state, task_type)
    return (model,) if model else ()


def default_of(state: BrokerState, task_type: str) -> str:
    """Return the default model of a task type; empty: any will do."""
    while task_type:
        word = state.defaults_set.get(task_type)
        if word is not None:
            return word.model
        terms = state.settings.task_defaults.get(task_type)
        if terms is not None and terms.model:
            return terms.model
        task_type = _LIKE.get(task_type, "")
    return ""


def listed(state: BrokerState) -> list[Alias]:
    """Return the aliases in force, by name."""
    found = {
        models.normal(name): Alias(name=name, models=list(names))
        for name, names in state.settings.aliases.items()
    }
    return [alias for _, alias in sorted({**found, **state.aliases_set}.items()) if alias.models]


def defaults(state: BrokerState) -> list[DefaultModel]:
    """Return the default models in force."""
    return [
        state.defaults_set.get(task_type) or DefaultModel(task_type=task_type, model=model)
        for task_type in TASKS_WITH_DEFAULT
        if (model := default_of(state, task_type))
    ]


# --- commands --------------------------------------------------------------------------------------------------------


def set_alias(state: BrokerState, out: Out, session: Session, command: SetAlias, now: Now) -> None:
    """Make a name stand for models, or for none, or for what the file says."""
    key = models.normal(command.name)
    try:
        fields.check_name("name", command.name)
        if command.models and not command.reset:
            _check_alias(state, key, command, now)
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    before = state.aliases.get(key)
    if command.reset or (not command.models and key not in _in_file(state)):
        word = state.aliases_set.pop(key, None)
        if word is not None:
            put(state, out, MetaSet(ALIAS + key, b""))
    else:
        alias = Alias(name=command.name, models=command.models, by=session.who.user, since_ms=now.wall_ms)
        state.aliases_set[key] = alias
        put(state, out, MetaSet(ALIAS + key, msgspec.msgpack.encode(alias)))
    refresh(state)
    after = state.aliases.get(key)
    if after != before:
        tell(state, now, Kind.ALIAS_SET,
             detail={"alias": command.name, "models": list(after or ()), "by": session.who.user})  # fmt: skip
    reply(state, out, session.peer, Done(request_id=command.request_id, changed=after != before))


def _in_file(state: BrokerState) -> set[str]:
    return {models.normal(name) for name in state.settings.aliases}


def _check_alias(state: BrokerState, key: str, command: SetAlias, now: Now) -> None:
    """Raise the error of an alias that would be of no use, or hide something."""
    if key in ("", models.ANY):
        raise BadField("name", command.name, "a name of its own")
    if len(command.models) > bounds.MODELS:
        raise BadField("models", len(command.models), f"at most {bounds.MODELS}")
    known = known_names(state)
    if key in known:
        raise BadField("name", command.name, "a name that no model answers to")
    for model in command.models:
        fields.check_name("models", model)
        if models.normal(model) == key or models.normal(model) in state.aliases:
            raise BadField("models", model, "a model, no other alias")
        if known and models.ANY not in known and models.normal(model) not in known:
            raise UnknownModel(model, models.nearest(model, all_known(state)))
    for alias in listed(state):
        if key in map(models.normal, alias.models):
            raise BadField("name", command.name, f"a name that alias {alias.name} does not stand for")
    if key not in state.aliases_set and len(state.aliases_set) >= state.settings.aliases_set:
        raise full(state, now, "aliases_set", len(state.aliases_set), state.settings.aliases_set)


def set_default(state: BrokerState, out: Out, session: Session, command: SetDefaultModel, now: Now) -> None:
    """Say which model jobs of a task type get that name none."""
    task_type = command.task_type
    try:
        if task_type not in TASKS_WITH_DEFAULT:
            raise BadField("task_type", task_type, ", ".join(TASKS_WITH_DEFAULT))
        if command.model and not command.reset:
            fields.check_name("model", command.model)
            problem = unknown_model(state, (command.model,)) or kinds.wrong_kind(
                state, task_type, (command.model,)
            )
            if problem is not None:
                raise problem
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    before = default_of(state, task_type)
    if command.reset:
        if state.defaults_set.pop(task_type, None) is not None:
            put(state, out, MetaSet(DEFAULT + task_type, b""))
    else:
        word = DefaultModel(
            task_type=task_type, model=command.model, by=session.who.user, since_ms=now.wall_ms
        )
        state.defaults_set[task_type] = word
        put(state, out, MetaSet(DEFAULT + task_type, msgspec.msgpack.encode(word)))
    after = default_of(state, task_type)
    if after != before:
        tell(state, now, Kind.DEFAULT_SET, model=after,
             detail={"task_type": task_type, "by": session.who.user})  # fmt: skip
    reply(state, out, session.peer, Done(request_id=command.request_id, changed=after != before))


# --- which models there are ------------------------------------------------------------------------------------------


def known_names(state: BrokerState) -> frozenset[str]:
    """Return every name that a model which a worker ever announced answers to."""
    if state.known_names is None:
        state.known_names = frozenset(
            name
            for worker in state.known_models.values()
            for model in worker
            for name in models.names_of(model)
        )
    return state.known_names


def all_known(state: BrokerState) -> list[str]:
    """Return all that a job may name, as it is written: models and aliases."""
    known = [name for worker in state.known_models.values() for name in worker]
    return known + [alias.name for alias in listed(state)]


def unknown_model(state: BrokerState, names: Sequence[str]) -> UnknownModel | None:
    """Return an error if endpoints are known and none has any of the models that are asked for."""
    if not names or not state.known_models:
        return None
    known = known_names(state)
    wanted = models.expanded(names, state.aliases)
    if models.ANY in known or any(models.normal(model) in known for model in wanted):
        return None
    return UnknownModel(wanted[0], models.nearest(wanted[0], all_known(state)))
