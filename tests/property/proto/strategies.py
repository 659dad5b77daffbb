"""Messages of every kind, made from the annotations of their structs."""

from __future__ import annotations

import types
import typing

import msgspec
from hypothesis import strategies as st

Kind = type[msgspec.Struct]

_SCALARS: dict[type, st.SearchStrategy[object]] = {
    bool: st.booleans(),
    int: st.integers(-(1 << 63), (1 << 64) - 1),
    float: st.floats(allow_nan=False),
    str: st.text(max_size=12),
    bytes: st.binary(max_size=20),
    type(None): st.none(),
}
_made: dict[Kind, st.SearchStrategy[msgspec.Struct]] = {}


def values(annotation: object) -> st.SearchStrategy[object]:
    """Return values of an annotated field."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(values(each) for each in inner))
    if origin is list:
        return st.lists(values(inner[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(inner[0]), values(inner[1]), max_size=3)
    if origin is tuple:
        return st.tuples(*(values(each) for each in inner))
    assert isinstance(annotation, type)
    return structs(annotation) if issubclass(annotation, msgspec.Struct) else _SCALARS[annotation]


def structs(kind: Kind) -> st.SearchStrategy[msgspec.Struct]:
    """Return messages or parts of one kind; fields are left at their default about half of the time."""
    if kind not in _made:
        required: dict[str, st.SearchStrategy[object]] = {}
        optional: dict[str, st.SearchStrategy[object]] = {}
        for info in msgspec.structs.fields(kind):
            (required if info.required else optional)[info.name] = values(info.type)
        drawn = st.fixed_dictionaries(required, optional=optional)
        _made[kind] = drawn.map(lambda fields: kind(**fields))
    return _made[kind]
