"""Names of models: which name a job used, which names an instance answers to, which are near. Pure text."""

import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache

from lmq_broker.core.settings import EMBEDDING_TASKS, ENGINE_TASKS
from lmq_proto.messages import CatalogModel, InstanceInfo

ANY = "*"
_EMBEDDING_PREFIX = "text-embedding-"
"""LM Studio puts it before the key of every embedding model."""


def normal(name: str) -> str:
    """Return a model name in lower case and without an instance number."""
    return unnumbered(name.strip().lower())


def unnumbered(name: str) -> str:
    """Return a model name without an instance number (`key:2` is `key`)."""
    head, colon, tail = name.rpartition(":")
    return head if colon and tail.isdigit() else name


def names_of(model: str, others: Iterable[str] = ()) -> frozenset[str]:
    """Return every name a job may use for a model: with and without publisher, variant, and embedding prefix."""
    return _names_of((model, *others))


@lru_cache(maxsize=10_000)
def _names_of(models: tuple[str, ...]) -> frozenset[str]:
    names = set()
    for name in map(normal, models):
        bare = name.partition("@")[0]
        for form in (name, bare):
            short = form.rpartition("/")[2]
            names |= {form, short, short.removeprefix(_EMBEDDING_PREFIX)}
    names.discard("")
    return frozenset(names)


def expanded(names: Iterable[str], aliases: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the models that these names stand for, in order and each once; `aliases` has normal forms as its keys."""
    if not aliases:
        return tuple(names)
    return tuple(dict.fromkeys(model for name in names for model in aliases.get(normal(name), (name,))))


def is_numbered(name: str) -> bool:
    """Tell whether a name has an instance number (`key:2`): it means that instance alone."""
    return normal(name) != name.strip().lower()


def is_meant(name: str, instance_id: str, names: frozenset[str]) -> bool:
    """Tell whether a name means an instance."""
    return name == instance_id if is_numbered(name) else normal(name) in names


def instance_names(info: InstanceInfo) -> frozenset[str]:
    """Return the names of a loaded instance; empty for one that serves any model."""
    if info.model == ANY:
        return frozenset()
    return names_of(info.model, (info.instance_id, *info.variants))


def catalog_names(entry: CatalogModel) -> frozenset[str]:
    """Return the names of a model on disk."""
    return names_of(entry.model, entry.variants)


def on_disk(entry: CatalogModel, name: str) -> str:
    """Return how a load names what a model on disk has under a name: a variant where one is meant, else its key."""
    if "@" in name:
        return next((each for each in entry.variants if name in names_of(each)), entry.model)
    return entry.model


def suits(kind: str, task_type: str) -> bool:
    """Tell whether an instance of this kind can run this type of task, whatever model it has."""
    if kind == "any" or task_type not in ENGINE_TASKS:
        return True
    return kind == ("embedding" if task_type in EMBEDDING_TASKS else "llm")


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the known names that look most like this one."""
    wanted = normal(name)
    by_form = {form: full for full in known for form in (normal(full), normal(full).rpartition("/")[2])}
    found = difflib.get_close_matches(wanted, by_form, n=count * 2, cutoff=0.4)
    found += [form for form in by_form if wanted and (wanted in form or form in wanted)]
    return list(dict.fromkeys(by_form[form] for form in found))[:count]
