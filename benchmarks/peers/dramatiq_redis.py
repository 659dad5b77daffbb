"""Dramatiq with Redis as broker and result backend. Not here: the server itself (see `redis_server`).

Settings chosen, each a documented one:

- Worker: one process, built by `dramatiq.Worker` (what the command starts in each of its processes), THREADS threads,
  prefetch PREFETCH_MESSAGES; `worker_timeout` is how long an idle consumer may sleep between polls, and its default
  of 1 s is made for saving power.
- Middleware: Results alone. The default set (age and time limits, retries, callbacks) does work for every job that a
  no-op has no use for.
- Submitter: Redis answers each message before the next is sent, so threads are all there is; SUBMIT_THREADS of them.
  No bulk call: `group(...).run()` sends its messages one after another, and does more besides.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import (
    PAYLOAD,
    WAIT_TIMEOUT_S,
    Facts,
    JobLost,
    latencies_ms,
    rolling,
    submit_in_threads,
)
from benchmarks.peers.redis_server import Appendfsync, redis_missing, start_redis
from benchmarks.processes import Children

if TYPE_CHECKING:
    from dramatiq import Actor, Message

# Dramatiq's default; fewer were slower in a trial on two cores, even for a no-op.
THREADS = 8

# The fastest of 1, 2, 4, 8, 16 in the same trial.
SUBMIT_THREADS = {Appendfsync.EVERYSEC: 2, Appendfsync.ALWAYS: 8}

# The longest sleep between two polls of an idle worker. At the default one job at a time has a p50 of 8 ms.
WORKER_TIMEOUT_MS = 2

# Enough for the whole window; the default, twice the threads, makes the worker go back for more all the time.
PREFETCH_MESSAGES = 1000


def make_noop(url: str) -> "Actor[[str], str]":
    """Return the actor, with its broker, the same for submitter and worker."""
    # Imported here, so that a machine without Dramatiq still lists this peer as not installed.
    import dramatiq
    from dramatiq.brokers.redis import RedisBroker
    from dramatiq.results import Results
    from dramatiq.results.backends import RedisBackend

    broker = RedisBroker(url=url, middleware=[Results(backend=RedisBackend(url=url), store_results=True)])

    def noop(payload: str) -> str:
        return payload

    return dramatiq.actor(broker=broker, actor_name="noop")(noop)


class DramatiqRedis:
    """Dramatiq on a Redis that syncs as told."""

    def __init__(self, appendfsync: Appendfsync) -> None:
        self._appendfsync = appendfsync
        self._children: Children | None = None
        self._url = ""
        self._noop: Actor[[str], str] | None = None

    @property
    def facts(self) -> Facts:
        """What to print beside the figures."""
        return Facts(
            title=f"Dramatiq + Redis ({self._appendfsync})",
            accepted_means=self._appendfsync.accepted_means,
            fsync_before_ack=self._appendfsync is Appendfsync.ALWAYS,
            submitter=f"{SUBMIT_THREADS[self._appendfsync]} threads for accept; no bulk call",
            worker=f"1 process, {THREADS} threads, prefetch {PREFETCH_MESSAGES}, polls each {WORKER_TIMEOUT_MS} ms",
        )

    def missing(self) -> str | None:
        """Return what to install, None if nothing."""
        if importlib.util.find_spec("dramatiq") is None or importlib.util.find_spec("redis") is None:
            return "pip install dramatiq[redis]"
        return redis_missing()

    def start(self, directory: Path) -> None:
        """Start Redis and make the actor."""
        self._children = Children(directory)
        self._url = start_redis(self._children, directory, self._appendfsync)
        self._noop = make_noop(self._url)

    def start_worker(self) -> None:
        """Start the worker process."""
        assert self._children is not None, "start comes first"
        self._children.start_python("benchmarks.peers.dramatiq_redis", self._url)

    def accept_windowed(self, jobs: int) -> float:
        """Submit from threads."""
        return submit_in_threads(self._submit, jobs, SUBMIT_THREADS[self._appendfsync])

    def accept_bulk(self, jobs: int) -> None:
        """Dramatiq has no bulk call."""

    def end_to_end(self, jobs: int, window: int) -> float:
        """Submit from one thread, which also collects the results."""
        return rolling(self._submit, self._wait, jobs, window)

    def one_at_a_time(self, jobs: int) -> list[float]:
        """Submit, wait, submit."""
        return latencies_ms(self._submit, self._wait, jobs)

    def stop(self) -> None:
        """Close the connections, end worker and Redis."""
        if self._noop is not None:
            self._noop.broker.close()
            self._noop = None
        if self._children is not None:
            self._children.stop()

    def _submit(self) -> "Message[Any]":
        assert self._noop is not None, "start comes first"
        return self._noop.send(PAYLOAD)

    def _wait(self, message: "Message[Any]") -> None:
        from dramatiq.results import ResultTimeout

        try:
            message.get_result(backend=self._results(), block=True, timeout=WAIT_TIMEOUT_S * 1000)
        except ResultTimeout as error:
            raise JobLost(self.facts.title, message.message_id) from error

    def _results(self) -> Any:
        assert self._noop is not None, "start comes first"
        return self._noop.broker.get_results_backend()


def work(url: str) -> None:
    """Be the worker until told to end."""
    # Dramatiq reads this setting while it is imported, and has no other way to give it.
    os.environ["dramatiq_queue_prefetch"] = str(PREFETCH_MESSAGES)  # noqa: SIM112  its spelling is Dramatiq's
    from dramatiq import Worker

    worker = Worker(make_noop(url).broker, worker_threads=THREADS, worker_timeout=WORKER_TIMEOUT_MS)
    # Blocked before the threads start, so that all inherit it and the signal waits for sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    worker.start()
    signal.sigwait({signal.SIGTERM})
    worker.stop()


if __name__ == "__main__":
    work(sys.argv[1])
