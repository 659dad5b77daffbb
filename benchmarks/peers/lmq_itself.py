"""lmq as anyone runs it: broker and echo worker as processes, one `lmq.Client`, the journal synced before each ack.

The submitter uses one client in one thread. Singly: a `pipeline`, up to 1,000 submits without an acknowledgement. In
bulk: `submit_many`. End to end: jobs through the pipeline, results awaited in order. The broker logs warnings only, as
the other queues' workers do.
"""

import time
from pathlib import Path

import lmq
from benchmarks.own import Broker, Own
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

_PAYLOAD: lmq.Json = {"padding": PAYLOAD}


SLOTS = 256
"""A quarter of the window, so that broker and worker need not wait for each other; others fetch all of it ahead."""


class LmqItself:
    """The queue this repository is about."""

    def __init__(self) -> None:
        self._own: Own | None = None
        self._broker: Broker | None = None
        self._client: lmq.Client | None = None

    @property
    def facts(self) -> Facts:
        """Return what the report says about this run."""
        return Facts(
            title="lmq",
            accepted_means="in the journal, synced",
            fsync_before_ack=True,
            submitter="one client, one thread",
            worker=f"echo backend, {SLOTS} slots",
        )

    def missing(self) -> str | None:
        """Nothing is: this is the repository's own code."""
        return None

    def start(self, directory: Path) -> None:
        """Start a broker on an empty folder and connect."""
        self._own = Own(directory)
        self._broker = self._own.broker()
        self._client = lmq.Client(self._broker.url, timeout_s=WAIT_TIMEOUT_S)

    def start_worker(self) -> None:
        """Start one worker process."""
        assert self._own is not None
        assert self._broker is not None
        self._own.worker(self._broker, "echo", "echo://bench", slots=SLOTS)

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
        if self._own is not None:
            self._own.stop()
            self._own = None

    def _connected(self) -> lmq.Client:
        assert self._client is not None
        return self._client

    def _result(self, job: "lmq.Job[object]") -> object:
        try:
            return job.result(timeout_s=WAIT_TIMEOUT_S)
        except lmq.LmqError as error:
            raise JobLost(self.facts.title, f"{job.id} at {time.monotonic():.0f} s: {error}") from error
