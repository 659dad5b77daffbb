"""lmq as anyone runs it: broker and echo worker as processes, one `lmq.Client`, the journal synced before each ack.

The submitter uses one client in one thread. Singly: a `pipeline`, up to 1,000 submits without an acknowledgement. In
bulk: `submit_many`. End to end: jobs through the pipeline, results awaited in order. The broker logs warnings only, as
the other queues' workers do.
"""

import sys
import time
from pathlib import Path

import lmq
from benchmarks.peers.base import (
    PAYLOAD,
    WAIT_TIMEOUT_S,
    WINDOW,
    Facts,
    JobLost,
    latencies_ms,
    rolling,
    timed,
)
from benchmarks.processes import HOST, Children, accepts_connections, free_port

_PAYLOAD: lmq.Json = {"padding": PAYLOAD}


class LmqItself:
    """The queue this repository is about."""

    def __init__(self) -> None:
        self._children: Children | None = None
        self._client: lmq.Client | None = None
        self._url = ""

    @property
    def facts(self) -> Facts:
        """Return what the report says about this run."""
        return Facts(
            title="lmq",
            accepted_means="in the journal, synced",
            fsync_before_ack=True,
            submitter="one client, one thread",
            worker="echo backend, 64 slots",
        )

    def missing(self) -> str | None:
        """Nothing is: this is the repository's own code."""
        return None

    def start(self, directory: Path) -> None:
        """Start a broker on an empty folder and connect."""
        self._children = Children(directory)
        port = free_port()
        self._url = f"tcp://{HOST}:{port}"
        command = [
            sys.executable, "-m", "lmq_broker", "--data", str(directory / "data"), "--listen", self._url,
            "--events-listen", f"tcp://{HOST}:0", "--log-level", "warning",
        ]  # fmt: skip
        self._children.start_server(command, accepts_connections(port))
        self._client = lmq.Client(self._url, timeout_s=WAIT_TIMEOUT_S)

    def start_worker(self) -> None:
        """Start one worker process."""
        assert self._children is not None
        self._children.start_python(
            "lmq_worker",
            "--backend",
            "echo",
            "--name",
            "bench",
            "--endpoint",
            "echo://bench",
            "--broker",
            self._url,
        )

    def accept_windowed(self, jobs: int) -> float | None:
        """Submit one by one, up to 1,000 without an acknowledgement."""
        client = self._connected()

        def run() -> None:
            with client.pipeline(window=WINDOW) as pipeline:
                for _ in range(jobs):
                    pipeline.submit("echo", _PAYLOAD)

        return timed(run)

    def accept_bulk(self, jobs: int) -> float | None:
        """Submit all in one call."""
        client = self._connected()
        drafts = [("echo", _PAYLOAD)] * jobs
        return timed(lambda: client.submit_many(drafts))

    def end_to_end(self, jobs: int, window: int) -> float | None:
        """Submit and wait for each result, at most `window` unfinished."""
        client = self._connected()
        with client.pipeline(window=window) as pipeline:
            return rolling(lambda: pipeline.submit("echo", _PAYLOAD), self._result, jobs, window)

    def one_at_a_time(self, jobs: int) -> list[float] | None:
        """Submit a job, wait for its result, then the next."""
        client = self._connected()
        return latencies_ms(lambda: client.submit("echo", _PAYLOAD), self._result, jobs)

    def stop(self) -> None:
        """End what was started."""
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._children is not None:
            self._children.stop()
            self._children = None

    def _connected(self) -> lmq.Client:
        assert self._client is not None
        return self._client

    def _result(self, job: "lmq.Job[object]") -> object:
        try:
            return job.result(timeout_s=WAIT_TIMEOUT_S)
        except lmq.LmqError as error:
            raise JobLost(self.facts.title, f"{job.id} at {time.monotonic():.0f} s: {error}") from error
