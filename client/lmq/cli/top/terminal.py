"""The terminal as the screen needs it: its size, and lines put where they changed. By rich, which knows terminals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.control import Control
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq.cli.top.lines import Line


class Terminal:
    """The other screen of a terminal, while it is entered; what was there before is back afterwards."""

    def __init__(self, *, color: bool) -> None:
        self._console = Console(highlight=False, no_color=None if color else True)
        self._shown: list[Line] = []
        self._size = (0, 0)

    def __enter__(self) -> Self:
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)
        return self

    def __exit__(self, *exc: object) -> None:
        # Some terminals keep lines of this screen on the other one if their size has changed meanwhile.
        self._console.clear()
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as of now."""
        return self._console.width, self._console.height

    def paint(self, lines: Sequence[Line], size: tuple[int, int]) -> None:
        """Put lines on the screen: those that are not there yet, all of them after a change of size."""
        if size != self._size:
            self._size = size
            self._shown = []
            self._console.clear()
        changed = [
            number for number, line in enumerate(lines)
            if number >= len(self._shown) or self._shown[number] != line
        ]  # fmt: skip
        # One write for all of it: nobody sees half a screen.
        with self._console:
            for number in changed:
                self._console.control(Control.move_to(0, number))
                text = Text.assemble(*lines[number])
                self._console.print(text, end="", no_wrap=True, overflow="crop", crop=True)
        self._shown = list(lines)
