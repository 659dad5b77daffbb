"""Real daemons and programs as processes: started, killed, started again. By process id alone, never by a name.

A `Fleet` owns a folder for all that its processes write and ends every one of them when it is left.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import pytest

from ports import a_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HOUSE = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join(
    str(HOUSE / root) for root in ("proto", "broker", "worker", "client", "simulator", "tests")
)

# How long a process may take to say a line, or to end: generous, for this waits and never measures.
WITHIN_S = 60.0

_LINES_KEPT = 2000


class Program:
    """One process. Its stderr is kept; each line of its stdout is handed to `heard`, whole lines only."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environment: dict[str, str],
        heard: Callable[[str], None] | None = None,
    ) -> None:
        self.name = name
        self.ended_by_us = False
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._news = threading.Condition()
        self._silent = False
        self._process = subprocess.Popen(
            [sys.executable, *arguments], env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE,
            stdout=subprocess.PIPE if heard else subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self._process.pid
        self._threads = [threading.Thread(target=self._keep, args=(self._process.stderr,), daemon=True)]
        if heard:
            self._threads.append(
                threading.Thread(target=_hand_on, args=(self._process.stdout, heard), daemon=True)
            )
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """Return the end of what it wrote to stderr."""
        with self._news:
            return "\n".join(self._lines)

    def line(self, holding: str, within_s: float = WITHIN_S) -> str:
        """Return the first line on stderr that holds a text, waiting for it."""
        deadline_s = time.monotonic() + within_s
        with self._news:
            while True:
                for line in self._lines:
                    if holding in line:
                        return line
                left_s = deadline_s - time.monotonic()
                if self._silent or left_s <= 0:
                    why = "it ended" if self._silent else f"nothing in {within_s} s"
                    pytest.fail(f"{self.name}: no line with {holding!r}, {why}:\n" + "\n".join(self._lines))
                self._news.wait(left_s)

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill -9 and wait until it is gone and all that it had said is heard."""
        self.ended_by_us = True
        self._process.kill()
        self.wait()

    def terminate(self) -> int:
        """Ask it to end, and return its exit status."""
        self.ended_by_us = True
        self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Return its exit status, waiting for the end."""
        try:
            status = self._process.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end in {WITHIN_S} s:\n{self.said()}")
        for thread in self._threads:
            thread.join(WITHIN_S)
        for stream in (self._process.stderr, self._process.stdout):
            if stream is not None:
                stream.close()
        return status

    def _keep(self, stream: IO[bytes]) -> None:
        for raw in stream:
            with self._news:
                self._lines.append(raw.decode("utf-8", "replace").rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._silent = True
            self._news.notify_all()


def _hand_on(stream: IO[bytes], heard: Callable[[str], None]) -> None:
    """Hand on whole lines; what a killed process left unfinished was never said."""
    for raw in stream:
        if raw.endswith(b"\n"):
            heard(raw.decode("utf-8", "replace").rstrip("\n"))


class Fleet:
    """The processes of one test: one broker at a time, workers, other programs. Use it with `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        # A socket's path has about 100 characters, and a test's own folder may use them up.
        self._sockets = Path(tempfile.mkdtemp(prefix="lmq-"))
        self.port = a_port()
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.ipc = f"ipc://{self._sockets / 'broker.sock'}"
        self.programs: list[Program] = []
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").touch()

    def environment(self, **extra: str) -> dict[str, str]:
        """Return what a process is told: nothing of this machine's own settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LMQ_", "XDG_"))}
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
            kept.pop(name, None)
        return kept | {
            "PYTHONPATH": SOURCES, "HOME": str(self.folder), "LMQ_CONFIG": str(self.folder / "config.toml"),
            "LMQ_WORKER_STATE_DIR": str(self.folder / "state"), "LMQ_WORKER_LOG_LEVEL": "warning",
        } | extra  # fmt: skip

    def start(
        self, name: str, *arguments: str, heard: Callable[[str], None] | None = None, **extra: str
    ) -> Program:
        """Start any program."""
        program = Program(name, arguments, self.environment(**extra), heard)
        self.programs.append(program)
        return program

    def broker(
        self, *options: str, module: str = "lmq_broker", arguments: Sequence[str] = (), **extra: str
    ) -> Program:
        """Start a broker; it may not be ready yet. `module` with `arguments` stands in for the real command."""
        return self.start(
            "broker", "-m", module, *arguments, "--data", str(self.data), "--listen", self.url, "--listen", self.ipc,
            "--events-listen", "tcp://127.0.0.1:*", "--log-level", "warning", *options,
            heard=None, **extra,
        )  # fmt: skip

    def ready_broker(self, *options: str, **extra: str) -> Program:
        """Start a broker and wait until it answers."""
        broker = self.broker(*options, **extra)
        broker.line("broker ready at")
        return broker

    def worker(self, name: str, *options: str, heard: Callable[[str], None] | None = None) -> Program:
        """Start a worker of echo jobs; told `heard`, one that notes each lease."""
        module = "crash.noting_worker" if heard else "lmq_worker"
        return self.start(
            f"worker {name}", "-m", module, "--backend", "echo", "--name", name, "--endpoint", f"echo://{name}",
            "--broker", self.url, *options, heard=heard,
        )  # fmt: skip

    def died(self) -> list[str]:
        """Return what those said that ended without being told to."""
        return [
            f"{program.name} (pid {program.pid}) died:\n{program.said()}"
            for program in self.programs
            if not program.is_alive and not program.ended_by_us
        ]

    def close(self) -> None:
        for program in self.programs:
            if program.is_alive:
                program.send_signal(signal.SIGCONT)
                program.kill()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
