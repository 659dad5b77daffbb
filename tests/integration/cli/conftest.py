"""Real daemons for the command line: a broker and a worker for a simulated LM Studio, and `lmq` as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lmq.cli.demo.stage import Stage
from lmq.cli.root import daemons

LMQ = [sys.executable, "-P", "-m", "lmq.cli"]


@dataclass
class Lmq:
    """The command `lmq`, run against one broker, with folders of its own."""

    environment: Mapping[str, str]
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*LMQ, *words],
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command whose lines can be read as they come."""
        process = subprocess.Popen(
            [*LMQ, *words], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.running.append(process)
        return process

    def stop_all(self) -> None:
        """End what is still running."""
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)


def own_environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """Return an environment without this account's settings."""
    folders = {
        f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("STATE", "CONFIG", "DATA", "CACHE")
    }
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LMQ_")}
    return {**kept, **folders, "XDG_RUNTIME_DIR": str(runtime), "PYTHONUNBUFFERED": "1", **more}


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if not {"broker", "worker", "simulator"} <= daemons().keys():
        pytest.skip("the daemons are not installed: pip install -e .")


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A broker and a worker for a simulated LM Studio."""
    with Stage() as stage:
        stage.find_model_server(simulate=True)
        stage.start_broker()
        stage.start_worker()
        yield stage


@pytest.fixture
def lmq(stage: Stage, tmp_path: Path) -> Iterator[Lmq]:
    """The command, for the broker on the stage."""
    command = Lmq(own_environment(tmp_path, LMQ_URL=stage.broker_url))
    yield command
    command.stop_all()


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Lmq]:
    """The command, with no broker anywhere."""
    command = Lmq(own_environment(tmp_path))
    yield command
    command.stop_all()
