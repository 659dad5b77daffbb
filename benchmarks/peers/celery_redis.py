"""Celery with Redis as broker and result backend. Not here: the server itself (see `redis_server`).

Settings chosen, each a documented one:

- Worker: pool `solo`, the leanest for work that takes no time (prefork adds a pipe to a second process for every
  job); prefetch 1000, so that it never waits for the next message; no gossip, mingle, heartbeat, events.
  Early acks, which is Celery's default.
- Submitter, accept only: `ignore_result=True`, since nobody reads these results; THREADS threads on Celery's own
  connection pool.
- Submitter, bulk: `group(...)`, Celery's idiom for many; it still sends one message at a time, but on one connection.
- Submitter, end to end: results by the Redis backend's own publish/subscribe, which is its default.
- JSON, the default; redis-py with its C parser.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

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

# More threads only queue for the interpreter, except where each waits for a sync that Redis makes for all of them.
THREADS = {Appendfsync.EVERYSEC: 1, Appendfsync.ALWAYS: 4}

# Prefetch of the worker, in messages; the pool `solo` counts as one process.
PREFETCH_MESSAGES = 1000


def make_app(url: str) -> Any:
    """Return the Celery application, the same for submitter and worker; Celery has no types."""
    # Imported here, so that a machine without Celery still lists this peer as not installed.
    import celery

    app = celery.Celery("benchmark", broker=url, backend=url)
    app.conf.update(
        worker_prefetch_multiplier=PREFETCH_MESSAGES,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        result_expires=3600,
        broker_connection_retry_on_startup=True,
        # The server is on this machine: away means gone, and the default's 20 s of retries would hold up Ctrl-C.
        result_backend_transport_options={
            "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0}
        },
    )

    def noop(payload: str) -> str:
        return payload

    # Not shared: one process makes this application several times, once a session.
    app.task(name="noop", shared=False)(noop)
    return app


class CeleryRedis:
    """Celery on a Redis that syncs as told."""

    def __init__(self, appendfsync: Appendfsync) -> None:
        self._appendfsync = appendfsync
        self._children: Children | None = None
        self._url = ""
        self._app: Any = None
        self._noop: Any = None

    @property
    def facts(self) -> Facts:
        """What to print beside the figures."""
        return Facts(
            title=f"Celery + Redis ({self._appendfsync})",
            accepted_means=self._appendfsync.accepted_means,
            fsync_before_ack=self._appendfsync is Appendfsync.ALWAYS,
            submitter=f"{THREADS[self._appendfsync]} thread(s) for accept, with results ignored; bulk by `group`",
            worker=f"1 process, pool solo, prefetch {PREFETCH_MESSAGES}",
        )

    def missing(self) -> str | None:
        """Return what to install, None if nothing."""
        if importlib.util.find_spec("celery") is None or importlib.util.find_spec("redis") is None:
            return "pip install celery[redis]"
        return redis_missing()

    def start(self, directory: Path) -> None:
        """Start Redis and make the application."""
        self._children = Children(directory)
        self._url = start_redis(self._children, directory, self._appendfsync)
        self._app = make_app(self._url)
        self._noop = self._app.tasks["noop"]

    def start_worker(self) -> None:
        """Start the worker process."""
        assert self._children is not None, "start comes first"
        self._children.start_python("benchmarks.peers.celery_redis", self._url)

    def accept_windowed(self, jobs: int) -> float:
        """Submit from THREADS threads."""
        threads = THREADS[self._appendfsync]
        return submit_in_threads(
            lambda: self._noop.apply_async((PAYLOAD,), ignore_result=True), jobs, threads
        )

    def accept_bulk(self, jobs: int) -> float:
        """Submit as one group."""
        from celery import group

        signature = self._noop.s(PAYLOAD).set(ignore_result=True)
        return timed(lambda: group(signature.clone() for _ in range(jobs)).apply_async())

    def end_to_end(self, jobs: int, window: int) -> float:
        """Submit from one thread, which also collects the results."""
        return rolling(self._submit, self._wait, jobs, window)

    def one_at_a_time(self, jobs: int) -> list[float]:
        """Submit, wait, submit."""
        return latencies_ms(self._submit, self._wait, jobs)

    def stop(self) -> None:
        """Close the application's connections, end worker and Redis."""
        if self._app is not None:
            self._app.backend.result_consumer.stop()
            self._app.close()
            self._app = None
        if self._children is not None:
            self._children.stop()

    def _submit(self) -> Any:
        return self._noop.delay(PAYLOAD)

    def _wait(self, result: Any) -> None:
        from celery.exceptions import TimeoutError as NoResult

        try:
            result.get(timeout=WAIT_TIMEOUT_S)
        except NoResult as error:
            raise JobLost(self.facts.title, result.id) from error


def work(url: str) -> None:
    """Be the worker until told to end."""
    make_app(url).worker_main(
        "worker --pool solo --loglevel ERROR --without-gossip --without-mingle --without-heartbeat".split()
    )


if __name__ == "__main__":
    work(sys.argv[1])
