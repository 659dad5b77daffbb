"""The command that measures what lmq adds to one LLM call: `python -m benchmarks.added`.

The same chat goes to a simulated LM Studio directly and through lmq, one call at a time, in turn (A B A B), over warm
connections on loopback. Each pair gives one difference, so that what drifts on the machine hits both alike.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import httpx

import lmq
from benchmarks.command import QUICK_RUN, Wishes, begin, finish, say, standing_options, typed
from benchmarks.own import session
from benchmarks.results import (
    describe_machine,
    fsync_latencies_ms,
    markdown_table,
    percentile,
    provenance,
)
from benchmarks.targets import Target, targets_table

SECTION = "added"

MODEL = "qwen/qwen3-8b"
PROMPT = "Tell me about the sea."
CALL_TIMEOUT_S = 60.0

FIRST_TARGET_MS = 2.0
DONE_TARGET_MS = 2.0

_FSYNC_WRITES = 200
_WARM_UP_CALLS = 3
# The broker looks at its own figures once a second.
_FACTS_S = 1.2


@dataclass(frozen=True, slots=True)
class Setting:
    """How fast the simulated server is."""

    name: str
    options: tuple[str, ...]
    pairs: int
    quick_pairs: int
    in_words: str


SETTINGS = (
    Setting("paced", ("--answer-tokens", "30"), 150, 5, "30 tokens, one every 16 ms"),
    Setting("instant", ("--instant", "--answer-tokens", "20"), 1000, 20, "20 tokens, nothing takes time"),
)


@dataclass(frozen=True, slots=True)
class Call:
    """One chat: milliseconds from asking to the first piece of text, and to its end."""

    first_ms: float
    done_ms: float


@dataclass(slots=True)
class Pairs:
    """The calls of one setting; those at the same place of the two lists ran one after the other."""

    direct: list[Call] = field(default_factory=list)
    through: list[Call] = field(default_factory=list)

    def added_first_ms(self) -> list[float]:
        """Return the difference of each pair, to the first piece."""
        return [b.first_ms - a.first_ms for a, b in zip(self.direct, self.through, strict=True)]

    def added_done_ms(self) -> list[float]:
        """Return the difference of each pair, to the end."""
        return [b.done_ms - a.done_ms for a, b in zip(self.direct, self.through, strict=True)]


@dataclass(frozen=True, slots=True)
class Commits:
    """What durability cost in the same run."""

    broker_p50_ms: float
    broker_p99_ms: float
    fsync_ms: list[float]


class NoText(click.ClickException):
    """A call gave no text: the two would not be comparable."""


def call_directly(client: httpx.Client) -> Call:
    """Chat with the server itself.

    Raises:
        NoText: it said nothing.
    """
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
    first_s = None
    started_s = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if first_s is None and line.startswith("data: {") and _has_text(line):
                first_s = time.perf_counter()
    return _call(started_s, first_s)


def call_through(client: lmq.Client) -> Call:
    """Chat through lmq.

    Raises:
        NoText: nothing was said.
    """
    first_s = None
    started_s = time.perf_counter()
    for _ in client.chat(PROMPT, model=MODEL).stream(timeout_s=CALL_TIMEOUT_S):
        first_s = first_s or time.perf_counter()
    return _call(started_s, first_s)


def measure(setting: Setting, pairs: int, base: Path) -> tuple[Pairs, Commits]:
    """Measure one setting with a server, a broker and a worker of its own."""
    with session(base) as own:
        url = own.simulator(*setting.options)
        broker = own.broker()
        own.worker(broker, "lm_studio", url)
        found = Pairs()
        fsync_ms = fsync_latencies_ms(own.directory, _FSYNC_WRITES)
        with (
            httpx.Client(base_url=url, timeout=CALL_TIMEOUT_S) as direct,
            lmq.Client(broker.url, timeout_s=CALL_TIMEOUT_S) as client,
        ):
            for _ in range(_WARM_UP_CALLS):
                call_through(client)
                call_directly(direct)
            for _ in range(pairs):
                found.direct.append(call_directly(direct))
                found.through.append(call_through(client))
            time.sleep(_FACTS_S)
            health = client.health()
        fsync_ms += fsync_latencies_ms(own.directory, _FSYNC_WRITES)
    return found, Commits(health.commit_p50_us / 1000, health.commit_p99_us / 1000, fsync_ms)


def calls_table(measured: Sequence[tuple[Setting, Pairs]]) -> str:
    """Return p50 and p99 of both ways and of the paired differences."""
    rows = []
    for setting, pairs in measured:
        for what, direct, through, added in (
            ("first piece", [c.first_ms for c in pairs.direct], [c.first_ms for c in pairs.through],
             pairs.added_first_ms()),
            ("done", [c.done_ms for c in pairs.direct], [c.done_ms for c in pairs.through],
             pairs.added_done_ms()),
        ):  # fmt: skip
            figures = [
                f"{percentile(each, hundredths):.2f}"
                for each in (direct, through, added)
                for hundredths in (50, 99)
            ]
            rows.append([setting.name, what, str(len(added)), *figures])
    head = [
        "server", "to", "pairs", "direct p50 (ms)", "p99", "through lmq p50 (ms)", "p99", "added p50 (ms)", "p99",
    ]  # fmt: skip
    return markdown_table(head, rows, text_columns=2)


def targets(measured: Sequence[tuple[Setting, Pairs, Commits]]) -> list[Target]:
    """Return what was to be reached, for each setting."""
    found = []
    for setting, pairs, commits in measured:
        first_ms = percentile(pairs.added_first_ms(), 50)
        done_ms = percentile(pairs.added_done_ms(), 50)
        limit_ms = DONE_TARGET_MS + commits.broker_p50_ms
        found += [
            Target(
                f"added to the first piece, p50, {setting.name}", f"<= {FIRST_TARGET_MS:.0f} ms", f"{first_ms:.2f} ms",
                first_ms <= FIRST_TARGET_MS,
            ),
            Target(
                f"added to done, p50, {setting.name}",
                f"<= {DONE_TARGET_MS:.0f} ms + one commit = {limit_ms:.2f} ms", f"{done_ms:.2f} ms",
                done_ms <= limit_ms,
            ),
        ]  # fmt: skip
    return found


def report(
    measured: Sequence[tuple[Setting, Pairs, Commits]], where_and_when: str, *, quick: bool = False
) -> str:
    """Return the section of the document."""
    how = (
        "One chat at a time on loopback, in turn: directly (httpx, streaming, connection kept) and through lmq\n"
        "(broker, LM Studio worker, `lmq.Client`, streaming). Added is of the differences within each pair.\n"
    )
    servers = "".join(f"- {setting.name}: {setting.in_words}.\n" for setting, _, _ in measured)
    commits = "".join(
        f"- The broker's commits, {setting.name}: median {commits.broker_p50_ms:.2f} ms, "
        f"p99 {commits.broker_p99_ms:.2f} ms.\n"
        for setting, _, commits in measured
    )
    parts = [
        "## Added to an LLM call\n",
        where_and_when,
        QUICK_RUN if quick else "",
        how,
        servers + commits,
        calls_table([(setting, pairs) for setting, pairs, _ in measured]),
        targets_table(targets(measured)),
    ]
    return "\n".join(part for part in parts if part)


def _has_text(line: str) -> bool:
    delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
    return bool(delta.get("content"))


def _call(started_s: float, first_s: float | None) -> Call:
    done_s = time.perf_counter()
    if first_s is None:
        raise NoText("a call ended without any text")
    return Call((first_s - started_s) * 1000, (done_s - started_s) * 1000)


@click.command(epilog="\b\nExample:\n  python -m benchmarks.added --quick --no-write")
@standing_options
def main(quick: bool, no_write: bool, output: Path, directory: Path) -> None:
    """Measure what lmq adds to one LLM call, to the first piece of text and to its end.

    Starts a simulated LM Studio, a broker and a worker on free loopback ports, in a temporary directory, and stops them
    again. Progress goes to stderr, tables in Markdown to stdout and into their section of docs/benchmarks.md.
    """
    wishes = Wishes(quick, no_write, output, directory)
    begin(wishes)
    measured = []
    for setting in SETTINGS:
        count = setting.quick_pairs if quick else setting.pairs
        say(f"{setting.name}: {count} pairs of calls ...")
        pairs, commits = measure(setting, count, directory)
        added_ms = percentile(pairs.added_first_ms(), 50), percentile(pairs.added_done_ms(), 50)
        say(f"{setting.name}: added {added_ms[0]:.2f} ms to the first piece, {added_ms[1]:.2f} ms to done")
        measured.append((setting, pairs, commits))
    fsync_ms = [each for _, _, commits in measured for each in commits.fsync_ms]
    where_and_when = provenance(describe_machine(directory), fsync_ms, typed("added", wishes))
    finish(SECTION, report(measured, where_and_when, quick=quick), wishes)


if __name__ == "__main__":
    main()
