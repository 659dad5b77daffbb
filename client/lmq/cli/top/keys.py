"""Keys as they are pressed: from what a terminal sends to names, and reading it without waiting for a line's end.

The standard library is enough for this: `termios` where there is a terminal device, `msvcrt` on Windows.
"""

from __future__ import annotations

import codecs
import os
import select
import sys
import threading
from collections.abc import Iterator
from typing import Any, Self

LOOK_UP_S = 0.1
"""How long the reading thread waits for a key before it looks whether it is still wanted."""
ESCAPE_S = 0.05
"""An escape that nothing follows for so long was the key itself."""

_SEQUENCES = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left", "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[H": "home", "[F": "end", "OH": "home", "OF": "end", "[1~": "home", "[4~": "end", "[7~": "home", "[8~": "end",
    "[5~": "pageup", "[6~": "pagedown", "[Z": "backtab",
}  # fmt: skip
_NAMES = {
    "\r": "enter", "\n": "enter", "\t": "tab", "\x7f": "backspace", "\x08": "backspace", "\x03": "ctrl-c",
    "\x04": "ctrl-c",
}  # fmt: skip
_WINDOWS = {
    "H": "up", "P": "down", "K": "left", "M": "right", "G": "home", "O": "end", "I": "pageup", "Q": "pagedown",
    "\x0f": "backtab",
}  # fmt: skip
"""What follows the mark of a special key there."""


class Decoder:
    """Turns what comes in, in whatever pieces, into names of keys."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._escape = ""
        """An escape sequence that has begun."""

    @property
    def is_waiting(self) -> bool:
        """Whether an escape has come and it is open what it begins."""
        return bool(self._escape)

    def feed(self, data: bytes) -> list[str]:
        """Take bytes; return the keys that are complete."""
        keys: list[str] = []
        for char in self._utf8.decode(data):
            if self._escape:
                keys += self._in_escape(char)
            elif char == "\x1b":
                self._escape = char
            elif char in _NAMES:
                keys.append(_NAMES[char])
            elif char.isprintable():
                keys.append(char)
        return keys

    def flush(self) -> list[str]:
        """Nothing more has come: an escape alone was the key."""
        was_alone = self._escape == "\x1b"
        self._escape = ""
        return ["esc"] if was_alone else []

    def _in_escape(self, char: str) -> list[str]:
        """Take the next character of a sequence; one that nobody knows means nothing."""
        begun = self._escape
        if begun == "\x1b" and char == "\x1b":
            return ["esc"]
        self._escape += char
        if begun == "\x1b" and char in "[O":
            return []
        if len(begun) > 1 and (char.isdigit() or char == ";"):
            return []
        name = _SEQUENCES.get(self._escape[1:])
        self._escape = ""
        return [name] if name else []


class Keys:
    """The keyboard, while it is entered: every key comes at once and none is shown."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if sys.platform != "win32":
            import termios

            fd = sys.stdin.fileno()
            self._before = termios.tcgetattr(fd)
            now = termios.tcgetattr(fd)
            # Ctrl-C and ctrl-z come as keys too: a screen that is stopped half way leaves the terminal in disorder.
            now[3] &= ~(termios.ICANON | termios.ECHO | termios.ISIG | termios.IEXTEN)
            now[6][termios.VMIN], now[6][termios.VTIME] = 1, 0
            termios.tcsetattr(fd, termios.TCSADRAIN, now)
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if sys.platform != "win32":
            import termios

            if self._before is not None:
                # What was typed and not read is dropped: it was meant for the screen.
                termios.tcsetattr(sys.stdin.fileno(), termios.TCSAFLUSH, self._before)

    def pressed(self) -> Iterator[str]:
        """Give the keys as they are pressed, until it is left or the terminal is gone."""
        if sys.platform == "win32":
            import msvcrt

            while not self._over.wait(0.02):
                while msvcrt.kbhit():
                    char = msvcrt.getwch()
                    if char in ("\x00", "\xe0"):
                        name = _WINDOWS.get(msvcrt.getwch())
                    else:
                        name = (
                            "esc"
                            if char == "\x1b"
                            else _NAMES.get(char, char if char.isprintable() else None)
                        )
                    if name:
                        yield name
        else:
            fd = sys.stdin.fileno()
            decoder = Decoder()
            while not self._over.is_set():
                wait_s = ESCAPE_S if decoder.is_waiting else LOOK_UP_S
                can_read, _, _ = select.select([fd], [], [], wait_s)
                if not can_read:
                    yield from decoder.flush()
                    continue
                data = os.read(fd, 1024)
                if not data:
                    return
                yield from decoder.feed(data)
