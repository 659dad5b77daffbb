"""PROTOCOL.md, and texts like it, read as data: sections and tables. What they say is judged by the tests."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lmq_proto import errors, events, messages
from lmq_proto.messages import FROM_PEER, ON_PUB, TO_PEER

TEXT = (Path(__file__).resolve().parents[3] / "proto" / "PROTOCOL.md").read_text(encoding="utf-8")
MESSAGES: dict[str, type[msgspec.Struct]] = {**FROM_PEER, **TO_PEER, **ON_PUB}


@dataclass
class Section:
    """What stands under one heading, up to the next."""

    heading: str
    prose: str = ""
    tables: list[list[list[str]]] = field(default_factory=list)
    """Rows of cells, the header first."""
    code: list[str] = field(default_factory=list)


def read_sections(text: str) -> list[Section]:
    """Return the sections of a text in Markdown; the first is what stands before any heading."""
    found = [Section("")]
    table: list[list[str]] | None = None
    in_code = False
    for line in text.splitlines():
        heading = re.fullmatch(r"#+ (.*)", line)
        if line.startswith("```"):
            in_code = not in_code
        elif in_code:
            found[-1].code.append(line)
        elif heading:
            found.append(Section(heading[1].strip("`")))
        elif line.startswith("|---"):
            pass
        elif line.startswith("|"):
            if table is None:
                table = []
                found[-1].tables.append(table)
            table.append([cell.strip() for cell in line.strip("|").split("|")])
        else:
            found[-1].prose += line + "\n"
        if not line.startswith("|"):
            table = None
    return found


SECTIONS = read_sections(TEXT)


def table_with(*header: str) -> list[list[str]]:
    """Return the rows, without the header, of the one table that has this header."""
    found = [table for section in SECTIONS for table in section.tables if table[0] == list(header)]
    assert len(found) == 1, f"{len(found)} tables with header {header}"
    return found[0][1:]


def words(cell: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]*)`", cell)


def struct_named(heading: str) -> type[msgspec.Struct] | None:
    """Return the struct that a heading describes: a verb's header, or a part by its own name."""
    if heading in MESSAGES:
        return MESSAGES[heading]
    for module in (messages, events, errors):
        found = getattr(module, heading, None)
        if isinstance(found, type) and issubclass(found, msgspec.Struct):
            return found
    return None


DESCRIBED = {section.heading: section for section in SECTIONS if struct_named(section.heading) is not None}


def type_name(annotation: object) -> str:
    """Return how PROTOCOL.md names a field's type."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        names = [type_name(each) for each in inner if each is not type(None)]
        return f"{names[0]}?" if len(names) == 1 else "value"
    if origin is list:
        return f"[{type_name(inner[0])}]"
    if origin is dict:
        return f"{{{type_name(inner[0])}: {type_name(inner[1])}}}"
    if origin is tuple:
        return f"({', '.join(type_name(each) for each in inner)})"
    assert isinstance(annotation, type)
    return {"str": "text"}.get(annotation.__name__, annotation.__name__)


def default_name(info: msgspec.structs.FieldInfo) -> str:
    """Return how PROTOCOL.md writes a field's default."""
    value = info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory()
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | bytes):
        return f'"{value if isinstance(value, str) else ""}"'
    return "{}" if isinstance(value, msgspec.Struct) else str(value)
