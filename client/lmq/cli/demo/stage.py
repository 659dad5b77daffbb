"""The daemons of the demo: real ones, in a folder and on ports of their own; the broker can be killed and come back."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lmq.cli.children import Child, Children, daemon_words, needs_daemon
from lmq.cli.endpoint import LOCAL_URL, Endpoint, look
from lmq.cli.up import BROKER_READY, SIMULATOR_READY, WORKER_READY

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

SIMULATOR_OPTIONS = ("--port", "0", "--parallel", "2", "--itl-base-ms", "45", "--answer-tokens", "40")
"""Two slots at the pace of a middling graphics card: slow enough to watch a queue form."""


@dataclass(slots=True)
class Stage:
    """The running daemons. Leaving it ends them and removes their folder."""

    children: Children = field(default_factory=Children)
    endpoint: Endpoint = field(default_factory=lambda: Endpoint(""))
    broker_url: str = ""
    worker_name: str = ""
    is_simulated: bool = False
    kills: int = 0
    _broker: Child | None = None
    _folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        for name in ("broker", "worker", "simulator"):
            needs_daemon(name)
        self._folder = tempfile.TemporaryDirectory(prefix="lmq-demo-", ignore_cleanup_errors=True)
        self.children.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.children.__exit__(kind, error, trace)
        assert self._folder is not None
        self._folder.cleanup()

    @property
    def broker_pid(self) -> int:
        """The broker's process id."""
        assert self._broker is not None
        return self._broker.pid

    def find_model_server(self, *, simulate: bool) -> None:
        """Use LM Studio if it answers and has a chat model loaded, else start the simulator."""
        found = Endpoint(LOCAL_URL) if simulate else look(LOCAL_URL)
        if found.kind == "lm_studio" and found.llms:
            self.endpoint = found
            return
        self.is_simulated = True
        child = self.children.start("simulator", [*daemon_words("simulator"), *SIMULATOR_OPTIONS])
        self.endpoint = look(self.children.await_ready(child, SIMULATOR_READY)[1])

    def start_broker(self) -> None:
        """Start the broker: on a port that the system gives, and on the same one after a kill."""
        listen = self.broker_url or "tcp://127.0.0.1:0"
        words = [*daemon_words("broker"), "--data", str(self._path("broker")), "--listen", listen]
        self._broker = self.children.start("broker", words, self._environment())
        self.broker_url = self.children.await_ready(self._broker, BROKER_READY)[1]

    def kill_broker(self) -> None:
        """End the broker as a power cut would end its process."""
        assert self._broker is not None
        self.kills += 1
        self._broker.kill()

    def start_worker(self) -> None:
        """Start the worker; it may neither load nor unload."""
        words = [*daemon_words("worker"), "--broker", self.broker_url, "--endpoint", self.endpoint.url,
                 "--backend", "lm_studio", "--no-load", "--name", "gpu-1"]  # fmt: skip
        child = self.children.start("worker", words, self._environment())
        self.worker_name = self.children.await_ready(child, WORKER_READY)[1]

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / name

    def _environment(self) -> dict[str, str]:
        """Return variables that keep this account's own settings and files out of the demo."""
        empty = self._path("config.toml")
        empty.touch()
        return {"LMQ_CONFIG": str(empty), "LMQ_URL": "", "LMQ_WORKER_STATE_DIR": str(self._path("state"))}
