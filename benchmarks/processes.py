"""Own child processes: started in a temporary directory, reachable on loopback only, stopped by their pid.

Which servers there are is the peers' business; this file knows only how to start, await and end one.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

HOST = "127.0.0.1"

# A server that is not up by then will not come up.
START_TIMEOUT_S = 20.0

# What a process gets to end in peace before it is killed; workers finish the job in hand.
STOP_TIMEOUT_S = 5.0

# How much of a log an error shows.
_TAIL_CHARS = 2000

# benchmarks/ is a package of the repository root, and workers import it from there.
ROOT = Path(__file__).resolve().parent.parent


class ServerFailed(click.ClickException):
    """A child process ended, or said nothing, before it had done what it was started for."""

    def __init__(self, command: str, log_tail: str) -> None:
        super().__init__(f"{command} did not do its part; the end of its log:\n{log_tail}")
        self.command, self.log_tail = command, log_tail


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def which(name: str, *also: Path) -> Path | None:
    """Return the program `name` from PATH, from the sbin folders daemons live in, or from `also`."""
    folders = [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", *map(str, also)]
    found = shutil.which(name, path=os.pathsep.join(folders))
    return Path(found) if found else None


class Children:
    """The processes of one session, ended in the reverse order of their start.

    Args:
        directory: where their logs go.
        environment: theirs; None: as ours.
    """

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._environment = environment
        self._running: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, Path] = {}

    def start(self, command: Sequence[str | Path], *, account: str | None = None) -> subprocess.Popen[bytes]:
        """Start `command` with its output in a log file of the directory.

        Args:
            command: program and arguments.
            account: the system account to run as, None for our own.
        """
        words = [str(word) for word in command]
        # The child outlives nothing: when this process is killed outright, the kernel ends the child too.
        keeper = shutil.which("setpriv")
        if keeper is not None:
            words = [keeper, "--pdeathsig", "TERM", "--", *words]
        user = pwd.getpwnam(account) if account else None
        path = self._directory / f"child-{len(self._logs)}.log"
        with path.open("wb") as log:
            # A session of its own, so that Ctrl-C reaches us alone and we end the children in order.
            child = subprocess.Popen(
                words,
                cwd=self._directory if user else ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        self._running.append(child)
        self._logs[child.pid] = path
        return child

    def start_python(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `python -m module arguments` with the interpreter that runs us."""
        return self.start([sys.executable, "-m", module, *arguments])

    def start_server(
        self, command: Sequence[str | Path], ready: Callable[[], bool], *, account: str | None = None
    ) -> None:
        """Start `command` and return when `ready` says so.

        Raises:
            ServerFailed: it ended first, or was not ready within START_TIMEOUT_S.
        """
        child = self.start(command, account=account)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        # Only polling is left: not one of these servers can be told to announce itself on a pipe.
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline_s:
                raise ServerFailed(str(command[0]), self.log_of(child)[-_TAIL_CHARS:])
            time.sleep(0.01)

    def await_line(
        self, child: subprocess.Popen[bytes], beginning: str, timeout_s: float = START_TIMEOUT_S
    ) -> None:
        """Return when a child has written a line that begins so.

        Raises:
            ServerFailed: it ended first, or did not within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self.has_line(child, beginning):
            if child.poll() is not None or time.monotonic() > deadline_s:
                raise ServerFailed(_name(child), self.log_of(child)[-_TAIL_CHARS:])
            time.sleep(0.002)

    def await_end(self, child: subprocess.Popen[bytes], timeout_s: float) -> str:
        """Return all that a child has written when it has ended well.

        Raises:
            ServerFailed: it ended badly, or did not within `timeout_s`.
        """
        try:
            code = child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ServerFailed(_name(child), self.log_of(child)[-_TAIL_CHARS:]) from error
        written = self.log_of(child)
        if code:
            raise ServerFailed(_name(child), written[-_TAIL_CHARS:])
        return written

    def has_line(self, child: subprocess.Popen[bytes], beginning: str) -> bool:
        """Tell whether a child has written a line that begins so."""
        return any(line.startswith(beginning) for line in self.log_of(child).splitlines())

    def log_of(self, child: subprocess.Popen[bytes]) -> str:
        """Return what a child has written so far."""
        return self._logs[child.pid].read_text(errors="replace")

    def stop(self) -> None:
        """End all children: asked first, killed after STOP_TIMEOUT_S."""
        while self._running:
            child = self._running.pop()
            if child.poll() is not None:
                continue
            child.terminate()
            try:
                child.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                # The whole session of the child, so that none of its own children is left.
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _name(child: subprocess.Popen[bytes]) -> str:
    words = child.args
    return " ".join(map(str, words)) if isinstance(words, list) else str(words)


def accepts_connections(port: int) -> Callable[[], bool]:
    """Return a check whether something listens on the loopback port."""

    def check() -> bool:
        try:
            with socket.create_connection((HOST, port), timeout=1):
                return True
        except OSError:
            return False

    return check
