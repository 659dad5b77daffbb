"""Broker, workers and simulator of this repository as processes of a benchmark, shielded from the user's settings."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

from benchmarks.processes import HOST, Children, free_port

# A broker that reads a million jobs back is given this long, far more than it may take.
BROKER_TIMEOUT_S = 120.0


class Own:
    """What one session started, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Settings in the user's file or environment would make another benchmark of it.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LMQ_")}
        self._empty_config = directory / "lmq.toml"
        self._empty_config.touch()
        environment |= {
            "LMQ_CONFIG": str(self._empty_config),
            "LMQ_WORKER_STATE_DIR": str(directory / "state"),
        }
        self.children = Children(directory, environment)

    def broker(self, name: str = "broker", **settings: int | str) -> "Broker":
        """Start a broker on its own folder and wait until it is ready; `settings` as its configuration has them."""
        broker = Broker(self, name, settings)
        broker.start()
        return broker

    def worker(
        self, broker: "Broker", backend: str, endpoint: str, name: str = "bench", *, slots: int = 0
    ) -> None:
        """Start a worker; 0 slots: as many as it has by default."""
        pinned = ("--slots", str(slots)) if slots else ()
        self.children.start_python(
            "lmq_worker",
            "--backend",
            backend,
            "--name",
            name,
            "--endpoint",
            endpoint,
            "--broker",
            broker.url,
            *pinned,
        )

    def simulator(self, *options: str) -> str:
        """Start a simulated LM Studio; return its URL once it listens."""
        port = free_port()
        child = self.children.start_python("lmq_simulator", "--port", str(port), *options)
        self.children.await_line(child, "simulator ready")
        return f"http://{HOST}:{port}"

    def stop(self) -> None:
        """End all that was started."""
        self.children.stop()


class Broker:
    """A broker that may be killed and started again on the same folder and port."""

    def __init__(self, own: Own, name: str, settings: dict[str, int | str]) -> None:
        self._own = own
        self._port = free_port()
        self._folder = own.directory / name
        self._settings = settings
        self._child: Popen[bytes] | None = None
        self.url = f"tcp://{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        """The process id of the broker that runs."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start and wait until it says that it is ready."""
        self._own.children.await_line(self.launch(), "broker ready", BROKER_TIMEOUT_S)

    def launch(self) -> Popen[bytes]:
        """Start without waiting."""
        config = self._own.directory / f"{self._folder.name}.toml"
        lines = [f"{name} = {value!r}" for name, value in self._settings.items()]
        config.write_text("\n".join(["[broker]", *lines, ""]))
        self._child = self._own.children.start([
            sys.executable, "-m", "lmq_broker", "--config", config, "--data", self._folder, "--listen", self.url,
            "--events-listen", f"tcp://{HOST}:0", "--log-level", "warning",
        ])  # fmt: skip
        return self._child

    def is_ready(self) -> bool:
        """Tell whether it has said so."""
        assert self._child is not None
        return self._own.children.has_line(self._child, "broker ready")

    def kill(self) -> None:
        """End it as a crash would: kill -9."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()


@contextmanager
def session(base: Path) -> Iterator[Own]:
    """Give a directory and the processes in it, and leave neither behind."""
    with tempfile.TemporaryDirectory(prefix="lmq-bench-", dir=base) as directory:
        own = Own(Path(directory))
        try:
            yield own
        finally:
            own.stop()
