"""Takes the thoughts of a model apart from its answer where the server leaves both in one text. Pure."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"

Piece = tuple[str, str]
"""(channel, text): channel `content` or `reasoning`."""


class ThinkSplitter:
    """Text in, in any pieces; pieces of `reasoning` and `content` out.

    Only a `<think>` at the very start counts (after blanks): later ones are the model's words about something else.
    """

    __slots__ = ("_held", "_state")

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""

    def feed(self, text: str) -> list[Piece]:
        """Return what is certain by now; the beginning of a tag is held back until it is one or not."""
        if self._state == "content":
            return [("content", text)] if text else []
        text = self._held + text
        self._held = ""
        if self._state == "start":
            begun = text.lstrip()
            if OPEN.startswith(begun):
                if begun == OPEN:
                    self._state = "reasoning"
                else:
                    self._held = text
                return []
            if not begun.startswith(OPEN):
                self._state = "content"
                return [("content", text)]
            self._state = "reasoning"
            text = begun.removeprefix(OPEN)
        if self._state == "answer":
            return self._answer(text)
        thought, closed, rest = text.partition(CLOSE)
        if closed:
            self._state = "answer"
            return _some(("reasoning", thought)) + self._answer(rest)
        kept = _possible_tag(text)
        self._held = text[len(text) - kept :]
        return _some(("reasoning", text[: len(text) - kept]))

    def end(self) -> list[Piece]:
        """Return what was held back."""
        held, self._held = self._held, ""
        channel = "reasoning" if self._state == "reasoning" else "content"
        return _some((channel, held))

    def _answer(self, text: str) -> list[Piece]:
        """Return the answer's beginning without the blank lines that part it from the thoughts."""
        begun = text.lstrip("\r\n")
        if begun:
            self._state = "content"
        return _some(("content", begun))


def _possible_tag(text: str) -> int:
    """Return how many characters at the end may be the beginning of the closing tag."""
    for length in range(min(len(CLOSE) - 1, len(text)), 0, -1):
        if text.endswith(CLOSE[:length]):
            return length
    return 0


def _some(piece: Piece) -> list[Piece]:
    return [piece] if piece[1] else []
