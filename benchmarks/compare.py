"""The command that measures lmq and its peers side by side: `python -m benchmarks.compare`.

Rounds go through all queues in turn, each with a server started for it alone, so that what drifts on the machine
hits all alike and no idle server takes time from the one under measurement.
"""

import gc
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.command import Wishes, begin, finish, standing_options, typed
from benchmarks.peers import BASELINE, OURS, PEERS
from benchmarks.peers.base import PAYLOAD, WINDOW, Peer, PeerFailed
from benchmarks.processes import ServerFailed
from benchmarks.results import describe_machine, fsync_latencies_ms, percentile, provenance
from benchmarks.tables import (
    Sample,
    Standing,
    figures_table,
    ratios_table,
    settings_list,
    targets_table,
)

SECTION = "peers"

# A first few jobs open connections and load code; a second lot tells how many jobs fill the time wanted.
WARM_UP_JOBS = 20
TRIAL_JOBS = 300

# One figure comes from so many jobs at most: queues may bound how many they hold.
MAX_JOBS = 50_000

FSYNC_WRITES = 200


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a run takes."""

    rounds: int
    # What one rate is measured over, about.
    seconds: float
    # Fewest jobs of one rate; end to end, the window should have filled and moved on.
    least_accept_jobs: int
    least_end_to_end_jobs: int
    one_at_a_time_jobs: int


FULL = Effort(
    rounds=3, seconds=5, least_accept_jobs=WINDOW, least_end_to_end_jobs=2 * WINDOW, one_at_a_time_jobs=1000
)
QUICK = Effort(
    rounds=1, seconds=1, least_accept_jobs=WINDOW, least_end_to_end_jobs=WINDOW, one_at_a_time_jobs=100
)


def rate_per_s(call: Callable[[int], float | None], least_jobs: int, seconds: float) -> float | None:
    """Return jobs per second of `call`, over about `seconds`; None when the peer has no such way."""
    call(WARM_UP_JOBS)
    trial_s = call(TRIAL_JOBS)
    if trial_s is None:
        return None
    jobs = min(max(int(TRIAL_JOBS / trial_s * seconds), least_jobs), MAX_JOBS)
    # What earlier peers left behind is not for this one to clean up.
    gc.collect()
    elapsed_s = call(jobs)
    assert elapsed_s is not None, "a peer has a way or it has not"
    return jobs / elapsed_s


@contextmanager
def session(make: Callable[[], Peer], base: Path) -> Iterator[Peer]:
    """Start a peer in a directory of its own, and stop it whatever happens."""
    with tempfile.TemporaryDirectory(prefix="lmq-bench-", dir=base) as directory:
        peer = make()
        try:
            peer.start(Path(directory))
            yield peer
        finally:
            peer.stop()


def measure(make: Callable[[], Peer], base: Path, effort: Effort) -> Sample:
    """Measure one peer once: accepting with no worker, then, from empty again, with one.

    Raises:
        PeerFailed: a job was lost.
        ServerFailed: its server did not start.
    """
    with session(make, base) as peer:
        windowed_per_s = rate_per_s(peer.accept_windowed, effort.least_accept_jobs, effort.seconds)
        bulk_per_s = rate_per_s(peer.accept_bulk, effort.least_accept_jobs, effort.seconds)
    with session(make, base) as peer:
        peer.start_worker()
        end_to_end_per_s = rate_per_s(
            lambda jobs: peer.end_to_end(jobs, WINDOW), effort.least_end_to_end_jobs, effort.seconds
        )
        waits_ms = peer.one_at_a_time(effort.one_at_a_time_jobs)
    return Sample(
        accept_windowed_per_s=windowed_per_s,
        accept_bulk_per_s=bulk_per_s,
        end_to_end_per_s=end_to_end_per_s,
        one_p50_ms=statistics.median(waits_ms) if waits_ms else None,
        one_p99_ms=percentile(waits_ms, 99) if waits_ms else None,
    )


def run(names: list[str], base: Path, effort: Effort) -> tuple[dict[str, Standing], list[float]]:
    """Measure the named peers, interleaved; return their standings and the fsync latencies seen between them."""
    standings: dict[str, Standing] = {}
    for name in names:
        peer = PEERS[name]()
        missing = peer.missing()
        absent = None if missing is None else f"not installed: {missing}"
        standings[name] = Standing(peer.facts, absent=absent)
        if absent is not None:
            click.echo(f"{name}: {absent}", err=True)
    fsync_ms: list[float] = []
    for number in range(1, effort.rounds + 1):
        fsync_ms += fsync_latencies_ms(base, FSYNC_WRITES)
        for name in names:
            standing = standings[name]
            if standing.absent is not None:
                continue
            click.echo(f"round {number} of {effort.rounds}: {name} ... ", nl=False, err=True)
            try:
                sample = measure(PEERS[name], base, effort)
            except (PeerFailed, ServerFailed) as error:
                click.echo(f"failed: {error}", err=True)
                standing.absent = f"failed: {type(error).__name__}"
                standing.samples.clear()
                continue
            standing.samples.append(sample)
            click.echo(_brief(sample), err=True)
    return standings, fsync_ms


def report(standings: dict[str, Standing], where_and_when: str, effort: Effort) -> str:
    """Return the section of the document."""
    how = (
        f"Medians of {effort.rounds} round(s), queues interleaved; in brackets the lowest and the highest round.\n"
        f"One submitting process, one worker process, all on loopback; every job carries {len(PAYLOAD)} bytes "
        "and gives them back.\n"
    )
    parts = [
        "## Beside other queues\n",
        where_and_when,
        how,
        figures_table(standings),
        "The same as ratios (more is better, for waits too), each the median of the ratios within a round.\n"
        if ratios_table(standings, BASELINE)
        else "",
        ratios_table(standings, BASELINE),
        targets_table(standings, OURS, BASELINE),
        "How each was driven:\n",
        settings_list(standings),
    ]
    return "\n".join(part for part in parts if part)


def _brief(sample: Sample) -> str:
    rates = (sample.accept_windowed_per_s, sample.accept_bulk_per_s, sample.end_to_end_per_s)
    words = ["-" if rate is None else f"{rate:,.0f}/s" for rate in rates]
    words.append("-" if sample.one_p50_ms is None else f"p50 {sample.one_p50_ms:.2f} ms")
    return "accept {}, bulk {}, end to end {}, one {}".format(*words)


@click.command(
    epilog="\b\nExample:\n  python -m benchmarks.compare --quick --only celery --only beanstalkd --no-write"
)
@standing_options
@click.option(
    "--only", metavar="NAME", multiple=True, type=click.Choice(list(PEERS)), help="Measure only this one."
)
def main(only: tuple[str, ...], quick: bool, no_write: bool, output: Path, directory: Path) -> None:
    """Measure lmq and other queues side by side, on this machine.

    Starts each queue's own server on a free loopback port, in a temporary directory, and stops it again. Progress goes
    to stderr, tables in Markdown to stdout and into their section of docs/benchmarks.md.
    """
    wishes = Wishes(quick, no_write, output, directory)
    begin(wishes)
    effort = QUICK if quick else FULL
    names = [name for name in PEERS if not only or name in only]
    standings, fsync_ms = run(names, directory, effort)
    chosen = [word for name in only for word in ("--only", name)]
    where_and_when = provenance(describe_machine(directory), fsync_ms, typed("compare", wishes, *chosen))
    finish(SECTION, report(standings, where_and_when, effort), wishes)


if __name__ == "__main__":
    main()
