"""The command that measures how text fans out: `python -m benchmarks.text`.

100 streams, each read by 100 readers, over raw sockets: one worker process writes pieces at an even pace, a few reader
processes note when each piece comes. First at rising paces, for the deliveries a second; then, at one pace, with and
without a reader that stops reading.
"""

import array
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import click

import lmq
from benchmarks.command import QUICK_RUN, Wishes, begin, finish, say, standing_options, typed
from benchmarks.own import Own, session
from benchmarks.results import (
    describe_machine,
    fsync_latencies_ms,
    markdown_table,
    percentile,
    provenance,
)
from benchmarks.targets import Target, targets_table

SECTION = "text"

STREAMS = 100
READERS = 100
READER_PROCESSES = 2

DELIVERIES_PER_S = 50_000
STALLED_RATIO = 1.2

# Of what was offered, so much must arrive in the time it was written in, or the pace is not held.
HELD_RATIO = 0.95

_FSYNC_WRITES = 200
_GRACE_S = 60.0
# A stalled reader wakes when the writing is over: the writer takes a moment to start.
_WORKER_START_S = 2.0
_FOLLOWING_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much text is written."""

    # Of each stream.
    paces_per_s: tuple[float, ...]
    seconds: float
    stalled_pace_per_s: float
    stalled_seconds: float
    pairs: int


FULL = Effort(paces_per_s=(2, 4, 6, 8, 10, 20), seconds=10, stalled_pace_per_s=3, stalled_seconds=15, pairs=5)
QUICK = Effort(paces_per_s=(2, 10), seconds=3, stalled_pace_per_s=2, stalled_seconds=3, pairs=1)


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one pace."""

    pace_per_s: float
    readers: int
    # Pieces written into all streams, and for how long.
    written: int
    writing_s: float
    # What reached the readers that read, from the first piece to the last.
    pieces: int
    messages: int
    reading_s: float
    gaps: int
    cut_off: int
    delays_ms: list[float]
    # Whether the broker ended the session of the reader that did not read; None: there was none.
    stalled_cut_off: bool | None

    @property
    def offered_per_s(self) -> float:
        """Deliveries a second, had all come at once."""
        return self.written * self.readers / self.writing_s

    @property
    def delivered_per_s(self) -> float:
        """Pieces that reached a reader, a second."""
        return self.pieces / self.reading_s

    @property
    def is_held(self) -> bool:
        """Whether all came, in order, and as fast as it was written."""
        whole = self.pieces == self.written * self.readers and not self.gaps and not self.cut_off
        return whole and self.delivered_per_s >= HELD_RATIO * self.offered_per_s


def measure(pace_per_s: float, seconds: float, base: Path, *, stalled: bool) -> Run:
    """Write at one pace, with a broker of its own; with `stalled` one of the readers never reads."""
    with session(base) as own:
        broker = own.broker()
        with lmq.Client(broker.url) as client:
            jobs = [job.id for job in client.submit_many([("echo", None)] * STREAMS)]
        reading = READERS - 1 if stalled else READERS
        sleeper = None
        if stalled:
            sleeper = _start_readers(own, broker.url, 1, jobs, "--stalled-s", str(seconds + _WORKER_START_S))
        shares = [
            reading // READER_PROCESSES + (1 if index < reading % READER_PROCESSES else 0)
            for index in range(READER_PROCESSES)
        ]
        files = [own.directory / f"delays-{index}" for index in range(READER_PROCESSES)]
        readers = [
            _start_readers(own, broker.url, share, jobs, "--delays", str(file))
            for share, file in zip(shares, files, strict=True)
        ]
        writer = own.children.start_python(
            "benchmarks.raw_worker", "stream", "--broker", broker.url, "--streams", str(STREAMS),
            "--pieces-per-s", str(pace_per_s), "--seconds", str(seconds),
        )  # fmt: skip
        written = json.loads(own.children.await_end(writer, seconds + _GRACE_S))
        found = [json.loads(own.children.await_end(child, _GRACE_S).splitlines()[-1]) for child in readers]
        woken = json.loads(own.children.await_end(sleeper, _GRACE_S).splitlines()[-1]) if sleeper else None
        delays_us = array.array("I")
        for file in files:
            delays_us.frombytes(file.read_bytes())
    return Run(
        pace_per_s=pace_per_s, readers=reading, written=int(written["pieces"]),
        writing_s=written["seconds"], pieces=sum(each["pieces"] for each in found),
        messages=sum(each["messages"] for each in found), gaps=sum(each["gaps"] for each in found),
        reading_s=max(each["last_s"] for each in found) - min(each["first_s"] for each in found),
        cut_off=sum(each["cut_off"] for each in found), delays_ms=[each / 1000 for each in delays_us],
        stalled_cut_off=bool(woken["cut_off"]) if woken else None,
    )  # fmt: skip


def best(runs: Sequence[Run]) -> Run | None:
    """Return the run with most deliveries a second of those whose pace was held."""
    return max((run for run in runs if run.is_held), key=lambda run: run.delivered_per_s, default=None)


def p99_ratio(pairs: Sequence[tuple[Run, Run]]) -> float:
    """Return the median, over pairs, of the p99 with a stalled reader over the p99 without."""
    return statistics.median(
        percentile(stalled.delays_ms, 99) / percentile(without.delays_ms, 99) for without, stalled in pairs
    )


def paces_table(runs: Sequence[Run]) -> str:
    """Return deliveries and delays by pace."""
    rows = [
        [
            f"{run.pace_per_s:g}", f"{run.offered_per_s:,.0f}", f"{run.delivered_per_s:,.0f}",
            f"{run.messages / run.reading_s:,.0f}", f"{percentile(run.delays_ms, 50):.1f}",
            f"{percentile(run.delays_ms, 99):.1f}", str(run.cut_off), "yes" if run.is_held else "no",
        ]
        for run in runs
    ]  # fmt: skip
    head = [
        "pieces/s of a stream", "offered (deliveries/s)", "delivered (deliveries/s)", "messages/s", "delay p50 (ms)",
        "p99 (ms)", "readers cut off", "held",
    ]  # fmt: skip
    return markdown_table(head, rows)


def stalled_table(pairs: Sequence[tuple[Run, Run]]) -> str:
    """Return the delays of those who read, without and with a reader that does not."""
    rows = []
    for number, (without, stalled) in enumerate(pairs, 1):
        each = [f"{percentile(run.delays_ms, part):.1f}" for part in (50, 99) for run in (without, stalled)]
        rows.append([str(number), *each, "yes" if stalled.stalled_cut_off else "no"])
    head = [
        "pair", "p50 without (ms)", "p50 with one stalled (ms)", "p99 without (ms)", "p99 with one stalled (ms)",
        "its session ended",
    ]  # fmt: skip
    return markdown_table(head, rows)


def targets(runs: Sequence[Run], pairs: Sequence[tuple[Run, Run]]) -> list[Target]:
    """Return what was to be reached."""
    top = best(runs)
    deliveries_per_s = 0.0 if top is None else top.delivered_per_s
    seen = p99_ratio(pairs)
    return [
        Target(
            f"{STREAMS} streams x {READERS} readers, best pace held", f">= {DELIVERIES_PER_S:,} deliveries/s",
            f"{deliveries_per_s:,.0f}/s", deliveries_per_s >= DELIVERIES_PER_S,
        ),
        Target(
            "p99 of healthy readers, one stalled over none", f"<= {STALLED_RATIO}x", f"{seen:.2f}x",
            seen <= STALLED_RATIO,
        ),
    ]  # fmt: skip


def report(
    runs: Sequence[Run], pairs: Sequence[tuple[Run, Run]], where_and_when: str, *, quick: bool = False
) -> str:
    """Return the section of the document."""
    how = (
        f"{STREAMS} streams, each read by {READERS} readers, each reader on all streams over one raw connection.\n"
        f"One process writes, {READER_PROCESSES} processes read, all on this machine. A delivery is one piece that\n"
        "reached one reader; pieces that wait together travel in one message. The delay is from the worker's send\n"
        "to the reader's decoded message. A pace is held if every piece came, in order, at "
        f"{HELD_RATIO:.0%} of it or more.\n"
    )
    stalled = (
        f"One of the {READERS} readers follows all streams, then neither reads nor gives credit back; the delays\n"
        f"are of the others, at {pairs[0][0].pace_per_s:g} pieces/s of a stream. The broker may end its session.\n"
    )
    parts = [
        "## Text to many readers\n",
        where_and_when,
        QUICK_RUN if quick else "",
        how,
        paces_table(runs),
        stalled,
        stalled_table(pairs),
        targets_table(targets(runs, pairs)),
    ]
    return "\n".join(part for part in parts if part)


def _start_readers(own: Own, url: str, readers: int, jobs: Sequence[str], *options: str) -> Popen[bytes]:
    child = own.children.start_python(
        "benchmarks.raw_readers", "--broker", url, "--readers", str(readers), *options, *jobs
    )
    own.children.await_line(child, "following", _FOLLOWING_TIMEOUT_S)
    return child


@click.command(epilog="\b\nExample:\n  python -m benchmarks.text --quick --no-write")
@standing_options
def main(quick: bool, no_write: bool, output: Path, directory: Path) -> None:
    """Measure how many pieces of text reach their readers, how late, and what one stalled reader does to the others.

    Starts brokers, a raw worker and raw readers on free loopback ports, in a temporary directory, and stops them again.
    Progress goes to stderr, tables in Markdown to stdout and into their section of docs/benchmarks.md.
    """
    wishes = Wishes(quick, no_write, output, directory)
    begin(wishes)
    effort = QUICK if quick else FULL
    fsync_ms = fsync_latencies_ms(directory, _FSYNC_WRITES)
    runs = []
    for pace_per_s in effort.paces_per_s:
        run = measure(pace_per_s, effort.seconds, directory, stalled=False)
        say(_brief(run))
        runs.append(run)
    pairs = []
    for _ in range(effort.pairs):
        without, stalled = (
            measure(effort.stalled_pace_per_s, effort.stalled_seconds, directory, stalled=one_stalled)
            for one_stalled in (False, True)
        )
        say(f"without: {_brief(without)}")
        say(f"one stalled: {_brief(stalled)}")
        pairs.append((without, stalled))
    fsync_ms += fsync_latencies_ms(directory, _FSYNC_WRITES)
    where_and_when = provenance(describe_machine(directory), fsync_ms, typed("text", wishes))
    finish(SECTION, report(runs, pairs, where_and_when, quick=quick), wishes)


def _brief(run: Run) -> str:
    return (
        f"{run.pace_per_s:g} pieces/s of a stream: {run.delivered_per_s:,.0f} of {run.offered_per_s:,.0f} "
        f"deliveries/s, {run.messages / run.reading_s:,.0f} messages/s, delay p50 "
        f"{percentile(run.delays_ms, 50):.1f} ms, p99 {percentile(run.delays_ms, 99):.1f} ms, "
        f"{run.cut_off} cut off, {run.gaps} gaps"
    )


if __name__ == "__main__":
    main()
