"""Whatever bytes come, a decoder gives a message or `ProtocolError`, and nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from lmq_proto import codec
from lmq_proto.errors import ProtocolError
from lmq_proto.messages import FROM_PEER, ON_PUB, TO_PEER
from property.proto.strategies import structs

TABLES: dict[str, codec.Table[Any]] = {
    "from_peer": codec.FROM_PEER_TABLE,
    "to_peer": codec.TO_PEER_TABLE,
    "on_pub": codec.ON_PUB_TABLE,
}
KINDS: dict[str, type[Any]] = {**FROM_PEER, **TO_PEER, **ON_PUB}
VERBS = sorted(KINDS)

verbs = st.sampled_from([verb.encode() for verb in VERBS])
open_data = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=8)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


def survives(frames: list[bytes]) -> None:
    """Decode by every table; anything but a message or a ProtocolError is a failure."""
    for table in TABLES.values():
        try:
            message, body = table.decode(frames)
        except ProtocolError:
            continue
        else:
            assert isinstance(message, msgspec.Struct)
            assert body == frames[3]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_random_frames(frames: list[bytes]) -> None:
    survives(frames)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=12))
def test_random_version_frames(version: bytes) -> None:
    survives([version, b"heartbeat", b"\x80", b""])
    survives([b"LMQ" + version, b"heartbeat", b"\x80", b""])


@settings(max_examples=400, deadline=None)
@given(verbs, st.binary(max_size=200), st.binary(max_size=20))
def test_random_headers_of_known_verbs(verb: bytes, header: bytes, body: bytes) -> None:
    survives([codec.VERSION_FRAME, verb, header, body])


@settings(max_examples=300, deadline=None)
@given(verbs, open_data)
def test_headers_of_any_shape(verb: bytes, data: object) -> None:
    survives([codec.VERSION_FRAME, verb, msgspec.msgpack.encode(data), b""])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_valid_messages_with_some_bytes_changed_cut_or_added(data: st.DataObject) -> None:
    kind = KINDS[data.draw(st.sampled_from(VERBS))]
    frames = codec.encode(data.draw(structs(kind)))  # type: ignore[arg-type]  # a message of the tables
    header = bytearray(frames[2])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(header)))
        length = data.draw(st.integers(0, 4))
        header[at : at + length] = data.draw(st.binary(max_size=4))
    survives([frames[0], frames[1], bytes(header), b""])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_valid_messages_with_one_field_of_another_type(data: st.DataObject) -> None:
    verb = data.draw(st.sampled_from(VERBS))
    frames = codec.encode(data.draw(structs(KINDS[verb])))  # type: ignore[arg-type]  # a message of the tables
    fields = msgspec.msgpack.decode(frames[2])
    names = [info.name for info in msgspec.structs.fields(KINDS[verb])]
    fields[data.draw(st.sampled_from(names)) if names else "more"] = data.draw(open_data)
    survives([*frames[:2], msgspec.msgpack.encode(fields), b""])


HEADS = {
    "a list that claims four thousand million entries": b"\xdd\xff\xff\xff\xff",
    "a map that claims four thousand million entries": b"\xdf\xff\xff\xff\xff",
    "a text that claims four gigabytes": b"\xdb\xff\xff\xff\xff",
    "bytes that claim four gigabytes": b"\xc6\xff\xff\xff\xff",
    "an extension that claims four gigabytes": b"\xc9\xff\xff\xff\xff\x01",
    "text that is no UTF-8": b"\xa3\xff\xfe\x80",
    "text with half of a surrogate pair": b"\xa3\xed\xa0\x80",
    "the byte that MessagePack never uses": b"\xc1",
    "a date": b"\xd6\xff\x00\x00\x00\x00",
    "lists in lists, 100,000 deep": b"\x91" * 100_000 + b"\x90",
    "maps in maps, 100,000 deep": b"\x81\xa1a" * 100_000 + b"\x80",
    "keys that are maps": b"\x81" * 100_000,
    "not a number": b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "a number of 64 bits": b"\xcf" + b"\xff" * 8,
    "nil": b"\xc0",
    "nothing": b"",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("verb", VERBS)
def test_hostile_values_as_header_as_a_known_field_and_as_an_unknown_one(verb: str, head: bytes) -> None:
    names = [info.name for info in msgspec.structs.fields(KINDS[verb])]
    headers = [head]
    headers += [b"\x81" + msgspec.msgpack.encode(name) + head for name in [*names, "unknown"]]
    headers += [b"\x81" + msgspec.msgpack.encode(name) + b"\x91" + head for name in names]
    headers += [b"\x81" + head + b"\x01"]
    for header in headers:
        survives([codec.VERSION_FRAME, verb.encode(), header, b""])
