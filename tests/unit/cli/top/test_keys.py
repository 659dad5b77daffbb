"""From what terminals send to names of keys, in whatever pieces it comes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from lmq.cli.top.keys import Decoder


def decoded(*pieces: bytes) -> list[str]:
    decoder = Decoder()
    return [key for piece in pieces for key in decoder.feed(piece)]


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"jk", ["j", "k"]), (b"\x1b[A\x1b[B", ["up", "down"]), (b"\x1bOA", ["up"]), (b"\x1b[Z", ["backtab"]),
        (b"\x1b[5~\x1b[6~", ["pageup", "pagedown"]), (b"\x1b[1~\x1b[F", ["home", "end"]), (b"\r\n", ["enter"] * 2),
        (b"\t", ["tab"]), (b"\x7f\x08", ["backspace"] * 2), (b"\x03", ["ctrl-c"]), ("ü☃".encode(), ["ü", "☃"]),
        (b"\x1b[1;5A", []), (b"\x1b[3~x", ["x"]), (b"\x00\x01", []), (b"\xff", ["\N{REPLACEMENT CHARACTER}"]),
        (b" ", [" "]),
    ],
)  # fmt: skip
def test_keys_have_names(data: bytes, keys: list[str]) -> None:
    assert decoded(data) == keys


def test_an_escape_that_nothing_follows_is_the_key() -> None:
    decoder = Decoder()
    assert (decoder.feed(b"\x1b"), decoder.is_waiting) == ([], True)
    assert (decoder.flush(), decoder.is_waiting) == (["esc"], False)
    assert decoder.feed(b"j") == ["j"]


def test_escape_twice_is_one_key_and_the_next_waits() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\x1b\x1b") == ["esc"]
    assert decoder.flush() == ["esc"]


def test_a_sequence_that_breaks_off_means_nothing() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\x1b[") == []
    assert decoder.flush() == []
    assert decoder.feed(b"A") == ["A"]


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=6))
def test_it_does_not_matter_in_which_pieces_bytes_come(data: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert decoded(*pieces) == decoded(data)
