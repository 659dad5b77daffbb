"""What one side encodes, the other decodes to the same message."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from lmq_proto import codec, ids
from lmq_proto.errors import ErrorInfo, ProtocolError
from lmq_proto.events import Event
from lmq_proto.messages import FROM_PEER, ON_PUB, TO_PEER
from property.proto.strategies import structs

TABLES: list[tuple[codec.Table[Any], dict[str, Any]]] = [
    (codec.FROM_PEER_TABLE, dict(FROM_PEER)),
    (codec.TO_PEER_TABLE, dict(TO_PEER)),
    (codec.ON_PUB_TABLE, dict(ON_PUB)),
]
CASES = [(table, kind) for table, kinds in TABLES for kind in kinds.values()]


@pytest.mark.parametrize(("table", "kind"), CASES, ids=lambda each: getattr(each, "__name__", ""))
@settings(max_examples=12, deadline=None)
@given(data=st.data(), body=st.binary(max_size=64))
def test_every_message_comes_back_as_it_went(
    table: codec.Table[Any], kind: type[Any], data: st.DataObject, body: bytes
) -> None:
    message = data.draw(structs(kind))
    frames = codec.encode(message, body)  # type: ignore[arg-type]  # a message of the tables
    back, same_body = table.decode(frames)
    assert back == message
    assert type(back) is kind
    assert same_body == body
    assert codec.encode(back, body) == frames


@settings(max_examples=50, deadline=None)
@given(structs(Event))
def test_an_event_comes_back_as_it_went(event: Event) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Event) == event


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=16, max_size=16))
def test_an_id_comes_back_from_its_text(value: bytes) -> None:
    text = ids.to_text(value)
    assert ids.from_text(text) == value
    assert ids.from_text(text.lower()) == value
    assert text.endswith(ids.short(value))


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_texts_of_ids_sort_as_the_ids(one: bytes, other: bytes) -> None:
    assert (one < other) == (ids.to_text(one) < ids.to_text(other))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, (1 << 48) - 2), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10)
)
def test_an_id_made_later_sorts_later(wall_ms: int, chance: bytes, other: bytes) -> None:
    assert ids.job_id(wall_ms, chance) < ids.job_id(wall_ms + 1, other)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.integers(1, 26))
def test_an_ending_finds_just_the_ids_whose_text_ends_so(value: bytes, other: bytes, count: int) -> None:
    ending = ids.to_text(value)[-count:]
    found = ids.suffix_bounds(ending)
    assert ids.ends_with(value, found)
    assert ids.ends_with(other, found) == ids.to_text(other).endswith(ending)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=8), max_size=8))
def test_cut_undoes_joining(parts: list[bytes]) -> None:
    assert codec.cut(b"".join(parts), [len(part) for part in parts]) == parts


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=32), st.lists(st.integers(-40, 40), max_size=6))
def test_cut_gives_all_of_the_body_or_refuses(body: bytes, lengths: list[int]) -> None:
    fits = all(length >= 0 for length in lengths) and sum(lengths) == len(body)
    if not fits:
        with pytest.raises(ProtocolError):
            codec.cut(body, lengths)
        return
    parts = codec.cut(body, lengths)
    assert b"".join(parts) == body
    assert [len(part) for part in parts] == lengths


@settings(max_examples=100, deadline=None)
@given(structs(ErrorInfo))
def test_an_error_info_comes_back_as_it_went(info: ErrorInfo) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(info), type=ErrorInfo) == info
