"""Huey on a SQLite file. No server: submitter and worker open the same file.

Settings chosen, each a documented one:

- `fsync=True` (synchronous=FULL) in WAL mode, so that accepted means on disk.
- Worker: one thread of one process, no scheduler of periodic tasks. It polls; POLL_S is the shortest sane wait,
  where the default of 0.1 s is made for saving power.
- Submitter: one thread. SQLite has one writer at a time, so more threads only fight for the lock
  (two and four were slower in a trial). No bulk call.
- Results by `get(blocking=True)`, which polls as well; its longest wait is POLL_S too.
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
)
from benchmarks.processes import Children

# Wait between two looks of an idle worker, and of a submitter at its result.
POLL_S = 0.001


def make_huey(file: Path) -> tuple[Any, Any]:
    """Return the queue and its no-op, the same for submitter and worker; Huey has no types."""
    # Imported here, so that a machine without Huey still lists this peer as not installed.
    from huey import SqliteHuey

    queue = SqliteHuey("bench", filename=str(file), fsync=True)

    def noop(payload: str) -> str:
        return payload

    return queue, queue.task()(noop)


class HueySqlite:
    """Huey in one SQLite file, every commit synced."""

    def __init__(self) -> None:
        self._children: Children | None = None
        self._file = Path()
        self._queue: Any = None
        self._noop: Any = None

    @property
    def facts(self) -> Facts:
        """What to print beside the figures."""
        return Facts(
            title="Huey + SQLite (fsync)",
            accepted_means="fsync before the ack",
            fsync_before_ack=True,
            submitter="1 thread; no bulk call",
            worker=f"1 process, 1 thread, polls each {POLL_S * 1000:g} ms",
        )

    def missing(self) -> str | None:
        """Return what to install, None if nothing."""
        return "pip install huey" if importlib.util.find_spec("huey") is None else None

    def start(self, directory: Path) -> None:
        """Create the file."""
        self._children = Children(directory)
        self._file = directory / "huey.db"
        self._queue, self._noop = make_huey(self._file)

    def start_worker(self) -> None:
        """Start the worker process."""
        assert self._children is not None, "start comes first"
        self._children.start_python("benchmarks.peers.huey_sqlite", str(self._file))

    def accept_windowed(self, jobs: int) -> float:
        """Submit from one thread."""
        return submit_in_threads(lambda: self._noop(PAYLOAD), jobs, threads=1)

    def accept_bulk(self, jobs: int) -> None:
        """Huey has no bulk call."""

    def end_to_end(self, jobs: int, window: int) -> float:
        """Submit from one thread, which also collects the results."""
        return rolling(lambda: self._noop(PAYLOAD), self._wait, jobs, window)

    def one_at_a_time(self, jobs: int) -> list[float]:
        """Submit, wait, submit."""
        return latencies_ms(lambda: self._noop(PAYLOAD), self._wait, jobs)

    def stop(self) -> None:
        """Close the file, end the worker."""
        if self._queue is not None:
            self._queue.storage.close()
            self._queue = None
        if self._children is not None:
            self._children.stop()

    def _wait(self, result: Any) -> None:
        from huey.exceptions import ResultTimeout

        try:
            result.get(blocking=True, timeout=WAIT_TIMEOUT_S, max_delay=POLL_S)
        except ResultTimeout as error:
            raise JobLost(self.facts.title, result.id) from error


def work(file: Path) -> None:
    """Be the worker until told to end."""
    queue, _ = make_huey(file)
    queue.create_consumer(
        workers=1, periodic=False, initial_delay=POLL_S, max_delay=POLL_S, backoff=1.01
    ).run()


if __name__ == "__main__":
    # Huey finds a task by its module's name, which for this file run as a program would be `__main__`.
    from benchmarks.peers import huey_sqlite  # noqa: PLW0406  on purpose, see above

    huey_sqlite.work(Path(sys.argv[1]))
