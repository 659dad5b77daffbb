"""A small instance of a JSON schema: what a model constrained by that schema could have answered."""

from __future__ import annotations

from typing import Any

from lmq_simulator.text import digest

# A schema may refer to itself; below this depth only what is required is filled in, far below it nothing.
_MAX_DEPTH = 12

# No string or array is made longer than this, whatever the schema asks for.
_MAX_LENGTH = 10_000

_STRINGS_BY_FORMAT = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T12:00:00Z",
    "time": "12:00:00Z",
    "email": "anna@example.org",
    "uri": "https://example.org/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_WORDS = ("amber", "breeze", "cedar", "dawn", "ember", "fern", "grove", "harbour", "iris", "juniper")

Schema = Any  # a JSON schema as it came in: a mapping, true or false


def instance_of(schema: Schema, *, seed: int = 0) -> Any:
    """Return a value that satisfies the schema, as far as this reads schemas.

    Read are: type, properties, required, items, prefixItems, enum, const, default, anyOf, oneOf, allOf, local $ref,
    bounds of numbers, lengths of strings and arrays, and a few string formats. `pattern` is not.
    """
    return _Filler(schema, seed).fill(schema, "", 0)


class _Filler:
    """Walks one schema; the path to a value decides which word or number stands there."""

    def __init__(self, root: Schema, seed: int) -> None:
        self._root = root
        self._seed = seed

    def fill(self, schema: Schema, path: str, depth: int) -> Any:
        schema = self._resolved(schema)
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return None
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][digest(self._seed, path) % len(schema["enum"])]
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                return self.fill(schema[word][0], path, depth + 1)
        match _type_of(schema):
            case "object":
                return self._object(schema, path, depth)
            case "array":
                return self._array(schema, path, depth)
            case "string":
                return self._string(schema, path)
            case "integer":
                return self._integer(schema, path)
            case "number":
                return self._number(schema, path)
            case "boolean":
                return digest(self._seed, path) % 2 == 0
            case _:
                return None

    def _resolved(self, schema: Schema) -> Schema:
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict):
                return schema
            reference = schema.get("$ref")
            if isinstance(reference, str) and reference.startswith("#"):
                schema = self._at(reference)
            elif schema.get("allOf"):
                schema = self._merged(schema)
            else:
                return schema
        return schema

    def _at(self, reference: str) -> Schema:
        place: Schema = self._root
        for step in reference.lstrip("#/").split("/"):
            if step:
                name = step.replace("~1", "/").replace("~0", "~")
                place = place.get(name, {}) if isinstance(place, dict) else {}
        return place

    def _merged(self, schema: dict[str, Any]) -> dict[str, Any]:
        whole = {name: value for name, value in schema.items() if name != "allOf"}
        for part in schema["allOf"]:
            read = self._resolved(part)
            if isinstance(read, dict):
                properties = {**whole.get("properties", {}), **read.get("properties", {})}
                required = [*whole.get("required", []), *read.get("required", [])]
                whole = {**whole, **read, "properties": properties, "required": required}
        return whole

    def _object(self, schema: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        names = list(properties) if depth < 3 else [name for name in properties if name in required]
        names += [name for name in required if name not in properties]
        return {name: self.fill(properties.get(name, {}), f"{path}/{name}", depth + 1) for name in names}

    def _array(self, schema: dict[str, Any], path: str, depth: int) -> list[Any]:
        first = [
            self.fill(item, f"{path}/{at}", depth + 1)
            for at, item in enumerate(schema.get("prefixItems", []))
        ]
        wanted = max(int(schema.get("minItems", 0)), 1 if depth < 3 and "items" in schema else 0)
        wanted = min(wanted, int(schema.get("maxItems", wanted)), _MAX_LENGTH)
        rest = range(len(first), wanted)
        return first + [self.fill(schema.get("items", {}), f"{path}/{at}", depth + 1) for at in rest]

    def _string(self, schema: dict[str, Any], path: str) -> str:
        if schema.get("format") in _STRINGS_BY_FORMAT:
            return _STRINGS_BY_FORMAT[schema["format"]]
        word = _WORDS[digest(self._seed, path) % len(_WORDS)]
        while len(word) < min(int(schema.get("minLength", 0)), _MAX_LENGTH):
            word += " " + word
        return word[: int(schema["maxLength"])] if "maxLength" in schema else word

    def _number(self, schema: dict[str, Any], path: str) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None or high is None or "multipleOf" in schema:
            return float(self._integer(schema, path))
        return (float(low) + float(high)) / 2

    def _integer(self, schema: dict[str, Any], path: str) -> int:
        step = int(schema.get("multipleOf", 1)) or 1
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        if low is None:
            low = 1 if high is None else int(high) - 10 * step
        value = -(-int(low) // step) * step
        if value < low or value == schema.get("exclusiveMinimum"):
            value += step
        if high is None:
            value += digest(self._seed, path) % 10 * step
        return value


def _type_of(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        return next((str(one) for one in kind if one != "null"), "null")
    if kind is not None:
        return str(kind)
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema else "string"
