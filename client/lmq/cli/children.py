"""Daemons started from here as child processes: their lines, their readiness, their clean end, whatever happens.

Used by `lmq up` and the demo. Only processes started here are ever signalled, each by its own handle.
"""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from lmq.cli.config import child_environment
from lmq.cli.errors import Failure, Status, clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

READY_WITHIN_S = 30.0
"""A daemon's start on a busy laptop: Python, its imports, opening the journal."""
STOP_WITHIN_S = 10.0
"""A worker drains for 5 s by default, and waits 2 s for acknowledgements."""
LOOK_UP_S = 0.2
LINES_KEPT = 20


class Line(NamedTuple):
    """A line that a child wrote, or its end."""

    child: Child
    text: str
    is_end: bool = False


class Child:
    """One running daemon. Its lines go to `sink` until it ends."""

    def __init__(
        self, name: str, words: Sequence[str], environment: Mapping[str, str], sink: queue.SimpleQueue[Line]
    ) -> None:
        self.name = name
        self.last_lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._sink = sink
        # A session of its own: Ctrl-C in the terminal reaches us alone, and we end our children in order.
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding="utf-8", errors="replace", env=child_environment(environment), start_new_session=True,
        )  # fmt: skip
        self._pump = threading.Thread(target=self._read, name=f"lines-of-{name}", daemon=True)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def last_line(self) -> str:
        """The last thing it said."""
        return self.last_lines[-1] if self.last_lines else "it said nothing"

    @property
    def how_it_ended(self) -> str:
        """How it ended: by which signal, or with which status and last words."""
        status = self._process.poll()
        if status is None:
            return "still runs"
        if status >= 0:
            return f"ended with status {status}: {self.last_line}"
        try:
            return f"was killed ({signal.Signals(-status).name})"
        except ValueError:
            return f"was killed (signal {-status})"

    def listen(self) -> None:
        """Begin to read its lines."""
        self._pump.start()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self._process.wait()

    def ask_to_stop(self) -> None:
        """Ask it to end."""
        if self.is_running:
            self._process.terminate()

    def stop(self, within_s: float = STOP_WITHIN_S) -> None:
        """Have it end: asked first, made to afterwards."""
        self.ask_to_stop()
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._pump.is_alive():
            self._pump.join(1.0)
        if self._process.stdout is not None and not self._pump.is_alive():
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            text = clean(line.rstrip("\n"))
            self.last_lines.append(text)
            self._sink.put(Line(self, text))
        self._process.wait()
        self._sink.put(Line(self, "", is_end=True))


class Children:
    """All children of one command; leaving it ends them, last started first.

    SIGTERM and a closed terminal count as Ctrl-C. None of the three can come between a child's birth and its entry
    in the list, nor break off the ending of the others.
    """

    def __init__(self) -> None:
        self.lines: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._children: list[Child] = []
        self._deferring = False
        self._interrupted = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        for name in names:
            number = getattr(signal, name)
            self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        self._deferring = True
        for child in reversed(self._children):
            child.stop()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def start(self, name: str, words: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start a daemon.

        Raises:
            Failure: it cannot be started.
        """
        self._deferring = True
        try:
            child = Child(name, words, environment or {}, self.lines)
            self._children.append(child)
            child.listen()
        except OSError as error:
            raise Failure(f"{name} cannot be started: {error}", Status.FAILED) from error
        finally:
            self._deferring = False
        if self._interrupted:
            raise KeyboardInterrupt
        return child

    def next_line(self, timeout_s: float) -> Line | None:
        """Return what some child says next, or None when none does in time."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            left_s = deadline_s - time.monotonic()
            try:
                return self.lines.get(timeout=max(0.0, min(LOOK_UP_S, left_s)))
            except queue.Empty:
                if left_s <= 0:
                    return None

    def await_ready(self, child: Child, pattern: str, within_s: float = READY_WITHIN_S) -> re.Match[str]:
        """Wait for the line that says that a child is ready; what others say meanwhile is dropped.

        Raises:
            Failure: it ended, or said nothing of the kind in time.
        """
        deadline_s = time.monotonic() + within_s
        while True:
            line = self.next_line(deadline_s - time.monotonic())
            if line is None:
                raise Failure(
                    f"{child.name} was not ready within {within_s:g} s: {child.last_line}", Status.FAILED
                )
            if line.child is not child:
                continue
            found = re.search(pattern, line.text)
            if found:
                return found
            if line.is_end:
                raise Failure(f"{child.name} did not start: {child.last_line}", Status.FAILED)

    def _on_signal(self, number: int, frame: object) -> None:
        self._interrupted = True
        if not self._deferring:
            raise KeyboardInterrupt


def daemon_words(name: str) -> list[str]:
    """Return the command line of a daemon, in the environment that this command runs in."""
    return [sys.executable, "-P", "-m", "lmq.cli", name]


def needs_daemon(name: str) -> None:
    """Raise Failure if a daemon is not installed beside this client."""
    from lmq.cli.root import daemons

    if name not in daemons():
        raise Failure(
            f"the {name} is not installed beside this command; type: pip install lmq", Status.FAILED
        )
