"""What every queue under measurement must offer, and the loops that are the same for all of them.

The interface is here; which queues implement it is the table PEERS in `benchmarks.peers`. Nothing here starts a
process (see `benchmarks.processes`) or reckons a figure (see `benchmarks.results`).
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

# Every job of every peer carries this one argument and gives it back, so that all move the same bytes.
PAYLOAD = "x" * 100

# How many submits may be unanswered at once when a figure says "window 1000".
WINDOW = 1000

# Every wait for one job ends after this; a peer that needs longer has lost the job.
WAIT_TIMEOUT_S = 60

Submitted = TypeVar("Submitted")


@dataclass(frozen=True, slots=True)
class Facts:
    """What the reader of a table must know of a peer to judge its figures."""

    title: str
    # What has happened to a job when its submit returns, in a few words.
    accepted_means: str
    # True when an accepted job survives a power cut: it was synced before the submit returned.
    fsync_before_ack: bool
    # How the submitter keeps many submits outstanding, and how it submits in bulk.
    submitter: str
    # What the one worker is.
    worker: str


class PeerFailed(Exception):
    """A peer could not be measured to the end; the others still can."""


class JobLost(PeerFailed):
    """A peer did not bring back the result of a job it had accepted."""

    def __init__(self, peer: str, job: str) -> None:
        super().__init__(f"{peer}: no result of {job} within {WAIT_TIMEOUT_S} s")
        self.peer, self.job = peer, job


class Peer(Protocol):
    """A queue that can be measured. One object lives through one session: start, measure, stop."""

    @property
    def facts(self) -> Facts:
        """What to print beside the figures."""

    def missing(self) -> str | None:
        """Return what to install before this peer can run ("apt install redis-server"), None if it can."""

    def start(self, directory: Path) -> None:
        """Start the server, empty, on a free loopback port with all its files in `directory`; connect to it."""

    def start_worker(self) -> None:
        """Start the one worker process. The first job shows that it is up; the caller sends one and waits."""

    def accept_windowed(self, jobs: int) -> float | None:
        """Submit one job per call with up to WINDOW outstanding; return seconds to the last ack.

        None when the peer has no such way. No worker runs.
        """

    def accept_bulk(self, jobs: int) -> float | None:
        """Submit by the peer's own bulk call; return seconds to the last ack, None if it has none. No worker runs."""

    def end_to_end(self, jobs: int, window: int) -> float | None:
        """Submit `jobs` no-ops, at most `window` unfinished, until the submitter holds every result.

        Returns seconds, None when the peer keeps no results.

        Raises:
            JobLost: a result did not come within WAIT_TIMEOUT_S.
        """

    def one_at_a_time(self, jobs: int) -> list[float] | None:
        """Submit a no-op, wait for its result, and so on; return each one's milliseconds.

        None when the peer keeps no results.

        Raises:
            JobLost: a result did not come within WAIT_TIMEOUT_S.
        """

    def stop(self) -> None:
        """Close what `start` opened and end the processes it started. Safe after a failed start, and twice."""


def timed(call: Callable[[], object]) -> float:
    """Return how many seconds `call` took."""
    started_s = time.perf_counter()
    call()
    return time.perf_counter() - started_s


def submit_in_threads(submit: Callable[[], object], jobs: int, threads: int) -> float:
    """Call the blocking `submit` `jobs` times from `threads` threads; return seconds from the first to the last.

    What `submit` raises in any thread is raised here, and the other threads stop.
    """
    stop = threading.Event()

    def work(share: int) -> None:
        for _ in range(share):
            if stop.is_set():
                return
            submit()

    shares = [jobs // threads + (1 if index < jobs % threads else 0) for index in range(threads)]
    with ThreadPoolExecutor(threads) as crew:
        started_s = time.perf_counter()
        try:
            for share in [crew.submit(work, share) for share in shares]:
                share.result()
            return time.perf_counter() - started_s
        finally:
            # After an error or Ctrl-C, so that leaving does not wait for the other threads' shares.
            stop.set()


def rolling(
    submit: Callable[[], Submitted], wait: Callable[[Submitted], object], jobs: int, window: int
) -> float:
    """Submit `jobs` jobs and wait for each in order, at most `window` unfinished; return seconds for all."""

    def run() -> None:
        unfinished: deque[Submitted] = deque()
        try:
            for _ in range(jobs):
                if len(unfinished) == window:
                    wait(unfinished.popleft())
                unfinished.append(submit())
            while unfinished:
                wait(unfinished.popleft())
        finally:
            # After an error or Ctrl-C: some results take leave of their server when dropped, while it is still there.
            unfinished.clear()

    return timed(run)


def latencies_ms(
    submit: Callable[[], Submitted], wait: Callable[[Submitted], object], jobs: int
) -> list[float]:
    """Return the milliseconds from each submit to its result, one job at a time."""
    return [timed(lambda: wait(submit())) * 1000 for _ in range(jobs)]
