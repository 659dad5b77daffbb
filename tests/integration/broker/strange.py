"""Well-formed messages with strange content: each field in turn gets each strange value of its type."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STRANGE: dict[type, list[Any]] = {
    int: [-1, 0, 2**31, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)],
    str: ["", "\0", "x" * 5000, "ǅ\u202e\n", "../../etc", "'; DROP TABLE jobs; --", "%", "\U0001f4a9" * 200],
    bytes: [b"", b"\0" * 16, b"\xff" * 16, b"short", b"x" * 100_000],
    bool: [True, False],
    float: [-1.0, float("inf"), float("nan"), 1e308],
}
_USUAL: dict[type, Any] = {int: 7, str: "echo", bytes: b"0123456789abcdef", bool: False, float: 0.5}

_DEEPEST = 3
_MANY = 1001


def headers(kind: type, known: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield headers of a message, each with one strange value; `known` are the usual values of fields by name."""
    yield from _strange_struct(kind, known, 0)


def _usual(of: Any, known: Mapping[str, Any], name: str = "") -> Any:
    """Return a value that fits a type."""
    if name in known:
        return known[name]
    if isinstance(of, type) and issubclass(of, msgspec.Struct):
        fields = msgspec.structs.fields(of)
        needed = [field for field in fields if field.required or field.encode_name in known]
        return {field.encode_name: _usual(field.type, known, field.encode_name) for field in needed}
    if of in _USUAL:
        return _USUAL[of]
    if get_origin(of) is list:
        return [_usual(get_args(of)[0], known)]
    return {} if get_origin(of) is dict else None


def _strange(of: Any, known: Mapping[str, Any], depth: int) -> Iterator[Any]:
    """Yield values of the right type and of strange content."""
    origin, arguments = get_origin(of), get_args(of)
    if of in _STRANGE:
        yield from _STRANGE[of]
    elif isinstance(of, type) and issubclass(of, msgspec.Struct):
        yield from _strange_struct(of, known, depth)
    elif origin is list:
        yield []
        yield [_usual(arguments[0], known)] * _MANY
        if depth < _DEEPEST:
            for value in _strange(arguments[0], known, depth + 1):
                yield [value]
    elif origin is dict:
        for value in _STRANGE[str]:
            yield {value: value}
        yield {str(number): "x" for number in range(_MANY)}
    elif origin in (Union, types.UnionType):
        yield None
        for part in arguments:
            yield from _strange(part, known, depth)


def _strange_struct(of: type, known: Mapping[str, Any], depth: int) -> Iterator[dict[str, Any]]:
    whole = _usual(of, known)
    for field in msgspec.structs.fields(of):
        for value in _strange(field.type, known, depth + 1):
            yield whole | {field.encode_name: value}
