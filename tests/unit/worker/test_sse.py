"""Server-sent events in any pieces, and the thoughts taken apart from the answer."""

from __future__ import annotations

import pytest

from lmq_worker.backends import sse
from lmq_worker.backends.sse import EventTooLong, SseParser
from lmq_worker.tasks.base import clean
from lmq_worker.tasks.think import ThinkSplitter

STREAM = (
    b': hello\r\ndata: {"a":1}\r\n\r\nevent: error\ndata: {"b":2}\ndata: more\n\nid: 3\n\ndata: [DONE]\n\n'
)
EVENTS = [("", '{"a":1}'), ("error", '{"b":2}\nmore'), ("", "[DONE]")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_stream_gives_the_same_events_however_it_is_cut(size: int) -> None:
    parser = SseParser()
    events = [event for at in range(0, len(STREAM), size) for event in parser.feed(STREAM[at : at + size])]
    assert events + parser.end() == EVENTS


def test_a_character_may_lie_in_two_chunks() -> None:
    data = "data: grün\n\n".encode()
    parser = SseParser()
    cut = data.index(b"\xc3") + 1
    assert parser.feed(data[:cut]) + parser.feed(data[cut:]) == [("", "grün")]


def test_an_event_without_its_blank_line_counts_at_the_end() -> None:
    parser = SseParser()
    assert parser.feed(b'data: {"error":"x"}') == []
    assert parser.end() == [("", '{"error":"x"}')]


def test_a_bare_error_line_is_an_error_event() -> None:
    assert SseParser().feed(b'error: {"message":"x"}\n\n') == [("error", '{"message":"x"}')]


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_BYTES", 10)
    with pytest.raises(EventTooLong):
        SseParser().feed(b"data: 0123456789")


def test_an_event_of_too_many_lines_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_BYTES", 10)
    with pytest.raises(EventTooLong):
        SseParser().feed(b"data: 012345\ndata: 012345\n")


def split(text: str, size: int) -> tuple[str, str]:
    """Return (reasoning, content)."""
    splitter = ThinkSplitter()
    pieces = [piece for at in range(0, len(text), size) for piece in splitter.feed(text[at : at + size])]
    pieces += splitter.end()
    said = {"reasoning": "", "content": ""}
    for channel, piece in pieces:
        assert piece
        said[channel] += piece
    return said["reasoning"], said["content"]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>so, a < b</think>\n\nPlain <b>", "so, a < b", "Plain <b>"),
        ("\n<think>\nhm</think>yes", "\nhm", "yes"),
        ("plain <think>no</think>", "", "plain <think>no</think>"),
        ("<thin ice", "", "<thin ice"),
        ("<th", "", "<th"),
        ("<think>never closed </th", "never closed </th", ""),
        ("<think></think>yes", "", "yes"),
        ("  leading blanks stay", "", "  leading blanks stay"),
        ("", "", ""),
    ],
)
def test_thoughts_are_taken_apart_however_they_are_cut(
    size: int, text: str, reasoning: str, content: str
) -> None:
    assert split(text, size) == (reasoning, content)


def test_halves_of_a_character_are_joined_and_lonely_ones_replaced() -> None:
    assert clean("\ud83d\ude00") == "\U0001f600"
    assert clean("a\ud83d") == "a\ufffd"
