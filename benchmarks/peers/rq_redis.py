"""RQ with Redis. Not here: the server itself (see `redis_server`).

Settings chosen, each a documented one:

- Worker: `SimpleWorker`, which runs jobs in its own process; the default forks for every job, which a no-op cannot pay.
- Submitter: `enqueue` from SUBMIT_THREADS threads; bulk by `enqueue_many` in one Redis pipeline per BULK_JOBS.
- Results are awaited on the job's result stream (`latest_result(timeout)`), which blocks and does not poll.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers.base import (
    PAYLOAD,
    WAIT_TIMEOUT_S,
    Facts,
    JobLost,
    latencies_ms,
    rolling,
    submit_in_threads,
    timed,
)
from benchmarks.peers.redis_server import Appendfsync, redis_missing, start_redis
from benchmarks.processes import Children

if TYPE_CHECKING:
    from redis import Redis
    from rq import Queue
    from rq.job import Job

# The fastest of 1, 2, 4, 8, 16 in a trial on two cores, for both ways to sync.
SUBMIT_THREADS = 4

# Jobs in one pipeline; 100 and 5000 were no faster in the same trial.
BULK_JOBS = 1000


def noop(payload: str) -> str:
    """Be the job; RQ imports it by this module's name."""
    return payload


def connect(url: str) -> "Redis":
    """Return a connection pool to the server."""
    # Imported here, so that a machine without RQ still lists this peer as not installed.
    from redis import Redis

    return Redis.from_url(url)


def make_queue(connection: "Redis") -> "Queue":
    """Return the one queue, the same for submitter and worker."""
    from rq import Queue

    return Queue("bench", connection=connection)


class RqRedis:
    """RQ on a Redis that syncs as told."""

    def __init__(self, appendfsync: Appendfsync) -> None:
        self._appendfsync = appendfsync
        self._children: Children | None = None
        self._url = ""
        self._connection: Redis | None = None
        self._queue: Queue | None = None

    @property
    def facts(self) -> Facts:
        """What to print beside the figures."""
        return Facts(
            title=f"RQ + Redis ({self._appendfsync})",
            accepted_means=self._appendfsync.accepted_means,
            fsync_before_ack=self._appendfsync is Appendfsync.ALWAYS,
            submitter=f"{SUBMIT_THREADS} threads for accept; bulk by `enqueue_many` of {BULK_JOBS}",
            worker="1 process, SimpleWorker (no fork per job)",
        )

    def missing(self) -> str | None:
        """Return what to install, None if nothing."""
        if importlib.util.find_spec("rq") is None:
            return "pip install rq"
        return redis_missing()

    def start(self, directory: Path) -> None:
        """Start Redis and make the queue."""
        self._children = Children(directory)
        self._url = start_redis(self._children, directory, self._appendfsync)
        self._connection = connect(self._url)
        self._queue = make_queue(self._connection)

    def start_worker(self) -> None:
        """Start the worker process."""
        assert self._children is not None, "start comes first"
        self._children.start_python("benchmarks.peers.rq_redis", self._url)

    def accept_windowed(self, jobs: int) -> float:
        """Submit from threads."""
        return submit_in_threads(self._submit, jobs, SUBMIT_THREADS)

    def accept_bulk(self, jobs: int) -> float:
        """Submit by pipelines of BULK_JOBS."""
        queue = self._queue
        assert queue is not None, "start comes first"

        def run() -> None:
            for done in range(0, jobs, BULK_JOBS):
                count = min(BULK_JOBS, jobs - done)
                queue.enqueue_many([queue.prepare_data(noop, args=(PAYLOAD,)) for _ in range(count)])

        return timed(run)

    def end_to_end(self, jobs: int, window: int) -> float:
        """Submit from one thread, which also collects the results."""
        return rolling(self._submit, self._wait, jobs, window)

    def one_at_a_time(self, jobs: int) -> list[float]:
        """Submit, wait, submit."""
        return latencies_ms(self._submit, self._wait, jobs)

    def stop(self) -> None:
        """Close the connections, end worker and Redis."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._children is not None:
            self._children.stop()

    def _submit(self) -> "Job":
        assert self._queue is not None, "start comes first"
        return self._queue.enqueue(noop, PAYLOAD)

    def _wait(self, job: "Job") -> None:
        if job.latest_result(timeout=WAIT_TIMEOUT_S) is None:
            raise JobLost(self.facts.title, job.id)


def work(url: str) -> None:
    """Be the worker until told to end."""
    from rq import SimpleWorker

    connection = connect(url)
    SimpleWorker([make_queue(connection)], connection=connection).work(logging_level="ERROR")


if __name__ == "__main__":
    work(sys.argv[1])
