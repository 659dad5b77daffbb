"""A terminal of a given size that a test can look at: a pseudo-terminal, and what a program has put on its screen."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_TOKEN = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([^\x1b]+)")


class Terminal:
    """A program on a terminal of its own.

    It knows as much of the language of terminals as the program uses: moves, clearing, the other screen, the cursor.
    """

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], columns: int, lines: int
    ) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, lines)
        self.before = self.settings()
        self.process = subprocess.Popen(
            words, env={**environment, "TERM": "xterm-256color"}, stdin=self._slave, stdout=self._slave,
            stderr=self._slave, start_new_session=True,
        )  # fmt: skip
        self._rows: dict[int, str] = {}
        self._at = [0, 0]
        self._rest = ""
        # A read may end in the middle of a character.
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.is_other_screen = False
        self.has_cursor = True
        self.ever_colored = False

    def settings(self) -> list[Any]:
        """Return how the terminal treats what is typed."""
        return termios.tcgetattr(self._slave)

    def resize(self, columns: int, lines: int) -> None:
        """Give it another size, as a window does that is pulled."""
        self.columns, self.lines = columns, lines
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def text(self) -> str:
        """Return what is on the screen now."""
        while select.select([self._master], [], [], 0)[0]:
            self._take(self._decoder.decode(os.read(self._master, 65536)))
        return "\n".join(self._rows.get(row, "").rstrip() for row in range(self.lines))

    def until(self, wanted: str | Callable[[str], bool], within_s: float = 20.0) -> str:
        """Wait until something is on the screen, and return all of it."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            text = self.text()
            if wanted in text if isinstance(wanted, str) else wanted(text):
                return text
            select.select([self._master], [], [], 0.1)
        raise AssertionError(f"not seen within {within_s} s: {wanted}; there is:\n{self.text()}")

    def ended(self, within_s: float = 20.0) -> int:
        """Wait for the program's end and return its status."""
        deadline_s = time.monotonic() + within_s
        while self.process.poll() is None and time.monotonic() < deadline_s:
            self.text()
            select.select([self._master], [], [], 0.1)
        self.text()
        return self.process.wait(timeout=1)

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(timeout=10)
        os.close(self._master)
        os.close(self._slave)

    def _take(self, data: str) -> None:
        data = self._rest + data
        cut = data.rfind("\x1b")
        is_whole = cut < 0 or re.match(r"\x1b\[[?0-9;]*[A-Za-z]", data[cut:])
        self._rest, data = ("", data) if is_whole else (data[cut:], data[:cut])
        for numbers, command, text in _TOKEN.findall(data):
            if command == "H":
                row, _, column = numbers.partition(";")
                self._at = [int(row or 1) - 1, int(column or 1) - 1]
            elif command == "J":
                self._rows.clear()
            elif command == "K":
                self._rows.pop(self._at[0], None)
            elif command == "m":
                self.ever_colored = self.ever_colored or any(
                    30 <= int(n or 0) <= 37 for n in numbers.split(";")
                )
            elif numbers == "?1049":
                self.is_other_screen = command == "h"
                self._rows.clear()
            elif numbers == "?25":
                self.has_cursor = command == "h"
            for char in text:
                self._write(char)

    def _write(self, char: str) -> None:
        row, column = self._at
        if char == "\r":
            self._at = [row, 0]
            return
        if char == "\n":
            self._at = [row + 1, 0]
            return
        if column == self.columns:
            row, column = row + 1, 0
        old = self._rows.get(row, "").ljust(column)
        self._rows[row] = old[:column] + char + old[column + 1 :]
        self._at = [row, column + 1]
