"""The command that measures lmq when much is queued: `python -m benchmarks.scale`.

Decisions of the policy by queue length, accept and drain rates beside a short and a long queue, the broker's memory,
its restart after kill -9, and looking at jobs. Peers are raw, so that the figures are the broker's.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

import lmq
from benchmarks import decisions, scale_report
from benchmarks.command import Wishes, begin, finish, say, standing_options, typed
from benchmarks.own import BROKER_TIMEOUT_S, Broker, Own, session
from benchmarks.processes import ServerFailed
from benchmarks.raw import (
    RawPeerFailed,
    any_model,
    enlistment,
    new_id,
    preload,
    raw_peer,
    submit_windowed,
    submits,
)
from benchmarks.results import describe_machine, fsync_latencies_ms, provenance
from benchmarks.scale_report import Load, Looks, Memory, Rates, Restart
from lmq_broker.core.policies import POLICIES
from lmq_proto.codec import TO_PEER_TABLE
from lmq_proto.messages import Work
from lmq_proto.parts import Capacity, InstanceInfo, JobSpec

SECTION = "scale"

USERS = [f"user-{number}" for number in range(1000)]
WINDOW = 1000
BATCH = 1000
BATCHES_IN_FLIGHT = 8
SLOTS = 64
PAYLOAD = b"\x81\xa7padding\xd9\x64" + b"x" * 100

_FSYNC_WRITES = 200
_SETTLE_S = 2.0
_DRAIN_TIMEOUT_S = 120.0
_COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is queued, and how often each figure is taken."""

    long: int
    short: int
    look_at: int
    decision_sizes: tuple[int, ...]
    decision_rounds: int
    decision_ends: int
    rounds: int
    # Accepted, then drained, in one round.
    moved: int
    looks: int


FULL = Effort(
    long=1_000_000, short=1000, look_at=100_000, decision_sizes=(100, 1000, 10_000, 100_000, 1_000_000),
    decision_rounds=10, decision_ends=500, rounds=5, moved=20_000, looks=300,
)  # fmt: skip
QUICK = Effort(
    long=20_000, short=1000, look_at=10_000, decision_sizes=(100, 1000, 10_000), decision_rounds=2, decision_ends=100,
    rounds=1, moved=3000, looks=30,
)  # fmt: skip


def chats() -> Iterator[JobSpec]:
    """Give chats without end, as `Client.chat` submits them: three models, three priorities, estimates that differ."""
    for number in itertools.count():
        yield JobSpec(
            id=new_id(), task_type="chat", payload_bytes=len(PAYLOAD), models=[decisions.MODELS[number % 3]],
            priority=decisions.PRIORITIES[number % 4], prompt_tokens=20 + number % 1000, output_tokens=200,
        )  # fmt: skip


def echoes() -> Iterator[JobSpec]:
    """Give jobs that say nothing special, without end."""
    while True:
        yield JobSpec(id=new_id(), task_type="echo", payload_bytes=len(PAYLOAD))


def rss_bytes(broker: Broker) -> int:
    """Return the memory that a broker's process takes."""
    return int(psutil.Process(broker.pid).memory_info().rss)


def measure_memory_and_restart(effort: Effort, base: Path) -> tuple[list[Memory], Looks, Restart]:
    """Fill a broker that keeps no payloads in memory, look at jobs on the way, kill it, and start it again."""
    memories = []
    with session(base) as own:
        broker = own.broker("plain", payload_cache_bytes=0)
        time.sleep(_SETTLE_S)
        idle_bytes = rss_bytes(broker)
        with raw_peer(broker.url) as peer:
            peer.hello()
            preload(peer, echoes(), PAYLOAD, USERS, effort.long)
        time.sleep(_SETTLE_S)
        memories.append(Memory("jobs that say nothing special", effort.long, idle_bytes, rss_bytes(broker)))
    with session(base) as own:
        broker = own.broker("chats", payload_cache_bytes=0)
        time.sleep(_SETTLE_S)
        idle_bytes = rss_bytes(broker)
        specs = chats()
        with raw_peer(broker.url) as peer:
            peer.hello()
            preload(peer, specs, PAYLOAD, USERS, effort.look_at)
            looks = measure_looks(broker, effort)
            preload(peer, specs, PAYLOAD, USERS, effort.long - effort.look_at)
        time.sleep(_SETTLE_S)
        memories.append(Memory("chats", effort.long, idle_bytes, rss_bytes(broker)))
        restart = measure_restart(own, broker, effort.long)
        time.sleep(_SETTLE_S)
        memories.append(Memory("chats, after the restart", effort.long, idle_bytes, rss_bytes(broker)))
    return memories, looks, restart


def measure_looks(broker: Broker, effort: Effort) -> Looks:
    """Ask for the status of single jobs and why they wait, through `lmq.Client`, with a worker that has no room."""
    looks = Looks(effort.look_at)
    places = [InstanceInfo(instance_id=model, model=model, kind="llm", slots=0) for model in decisions.MODELS]
    with raw_peer(broker.url) as worker, lmq.Client(broker.url, timeout_s=_COMMAND_TIMEOUT_S) as client:
        worker.enlist(enlistment("full", Capacity(instances=places)))
        page = client.jobs(limit=1000)
        jobs = [client.job(status.id) for status in page[:: max(1, len(page) // 100)]]
        for number in range(effort.looks):
            job = jobs[number % len(jobs)]
            began_s = time.perf_counter()
            status = job.status()
            looked_s = time.perf_counter()
            job.why()
            why_s = time.perf_counter()
            client.queues()
            looks.status_ms.append((looked_s - began_s) * 1000)
            looks.why_ms.append((why_s - looked_s) * 1000)
            looks.queues_ms.append((time.perf_counter() - why_s) * 1000)
            assert status.ahead is not None, "a ready job knows how many are ahead of it"
    return looks


def measure_restart(own: Own, broker: Broker, queued: int) -> Restart:
    """Kill a broker and start it again, with a worker that waits for it."""
    broker.kill()
    with raw_peer(broker.url) as worker:
        began_s = time.monotonic()
        child = broker.launch()
        worker.say(enlistment("waits", any_model(1)))
        ready_s = dispatch_s = None
        while ready_s is None or dispatch_s is None:
            now_s = time.monotonic() - began_s
            if ready_s is None and broker.is_ready():
                ready_s = now_s
            if worker.socket.poll(5) and dispatch_s is None:
                message = TO_PEER_TABLE.decode(worker.socket.recv_multipart())[0]
                if isinstance(message, Work):
                    dispatch_s = time.monotonic() - began_s
            if child.poll() is not None or now_s > BROKER_TIMEOUT_S:
                raise ServerFailed("the broker, restarted,", own.children.log_of(child)[-2000:])
    return Restart(queued, ready_s, dispatch_s)


@dataclass(frozen=True, slots=True)
class Side:
    """A broker with a queue of one length, and the client that holds its worker back."""

    name: str
    broker: Broker
    client: lmq.Client
    load: Load


def measure_rates(effort: Effort, base: Path) -> Rates:
    """Accept and drain beside a short and beside a long queue, in turn."""
    with ExitStack() as stack:
        own = stack.enter_context(session(base))
        sides = []
        for name, queued in (("short", effort.short), ("long", effort.long)):
            broker = own.broker(name)
            client = stack.enter_context(lmq.Client(broker.url, timeout_s=_COMMAND_TIMEOUT_S))
            worker = own.children.start_python(
                "benchmarks.raw_worker", "drain", "--broker", broker.url, "--name", name, "--slots", str(SLOTS)
            )  # fmt: skip
            own.children.await_line(worker, "enlisted")
            client.pause(worker=name)
            with raw_peer(broker.url) as peer:
                peer.hello()
                preload(peer, echoes(), PAYLOAD, USERS, queued)
            sides.append(Side(name, broker, client, Load(queued)))
        for number in range(effort.rounds):
            for side in sides:
                one_round(side, effort.moved)
                say(
                    f"round {number + 1} of {effort.rounds}, {side.load.queued:,} queued: {side.load.latest()}"
                )
    return Rates(*(side.load for side in sides))


def one_round(side: Side, moved: int) -> None:
    """Accept `moved` jobs singly and as many in bulk, then drain them all; the queue never falls below its length."""
    specs = echoes()
    load = side.load
    for jobs_each, window, found in (
        (1, WINDOW, load.accept_windowed_per_s),
        (BATCH, BATCHES_IN_FLIGHT, load.accept_bulk_per_s),
    ):
        messages = submits([next(specs) for _ in range(moved)], PAYLOAD, USERS, jobs_each)
        # A session of its own: an older one may have ended in the silence since.
        with raw_peer(side.broker.url) as peer:
            peer.hello()
            found.append(moved / submit_windowed(peer, messages, window))
            load.sessions_lost += peer.sessions_lost
    load.drain_per_s.append(drain_rate_per_s(side.client, side.name, 2 * moved))


def drain_rate_per_s(client: lmq.Client, worker: str, jobs: int) -> float:
    """Let the worker end `jobs` jobs; return how many of them a second.

    Raises:
        RawPeerFailed: it took too long.
    """

    def ended() -> tuple[int, float]:
        return client.health().ended.get("done", 0), time.perf_counter()

    before, began_s = ended()
    client.resume(worker=worker)
    count, now_s = before, began_s
    while count - before < jobs:
        if now_s - began_s > _DRAIN_TIMEOUT_S:
            raise RawPeerFailed(f"{count - before} of {jobs} jobs drained after {_DRAIN_TIMEOUT_S:.0f} s")
        time.sleep(0.02)
        count, now_s = ended()
    client.pause(worker=worker)
    return (count - before) / (now_s - began_s)


def _part(name: str, call: Callable[[], object]) -> None:
    """Say what is under way, do it, and say how long it took."""
    say(f"{name} ...")
    began_s = time.monotonic()
    call()
    say(f"{name}: {time.monotonic() - began_s:.0f} s")


PARTS = ("decisions", "memory", "rates")
HOW_MANY_USERS = (1, 10, 100, 1000, 10_000)
"""Beside how many a decision is measured, with the same number of jobs queued."""


@click.command(epilog="\b\nExample:\n  python -m benchmarks.scale --quick --only decisions --no-write")
@standing_options
@click.option(
    "--only",
    metavar="PART",
    multiple=True,
    type=click.Choice(PARTS),
    help=f"Only {', '.join(PARTS)}; no write.",
)
def main(only: tuple[str, ...], quick: bool, no_write: bool, output: Path, directory: Path) -> None:
    """Measure lmq with up to a million jobs queued: decisions, rates, memory, restart, looking at jobs.

    Starts brokers and raw workers on free loopback ports, in a temporary directory, and stops them again. Progress goes
    to stderr, tables in Markdown to stdout and into their section of docs/benchmarks.md.
    """
    # A section with parts missing would replace a whole one.
    wishes = Wishes(quick, no_write or bool(only), output, directory)
    begin(wishes)
    effort = QUICK if quick else FULL
    parts = only or PARTS
    found = scale_report.Found(quick=quick)

    def decide() -> None:
        for policy in POLICIES:
            found.decisions[policy] = decisions.measure(
                policy, [(jobs, decisions.USERS) for jobs in effort.decision_sizes], effort.decision_rounds,
                effort.decision_ends,
            )  # fmt: skip
        found.by_users = decisions.measure(
            "blfq", [(effort.look_at, users) for users in HOW_MANY_USERS], effort.decision_rounds,
            effort.decision_ends,
        )  # fmt: skip
        found.clock_us = decisions.clock_us()

    def fill() -> None:
        found.memories, found.looks, found.restart = measure_memory_and_restart(effort, directory)

    def move() -> None:
        found.rates = measure_rates(effort, directory)

    fsync_ms = fsync_latencies_ms(directory, _FSYNC_WRITES)
    for name, call in zip(PARTS, (decide, fill, move), strict=True):
        if name in parts:
            _part(name, call)
            fsync_ms += fsync_latencies_ms(directory, _FSYNC_WRITES)
    chosen = [word for name in only for word in ("--only", name)]
    where_and_when = provenance(describe_machine(directory), fsync_ms, typed("scale", wishes, *chosen))
    finish(SECTION, scale_report.report(found, where_and_when), wishes)


if __name__ == "__main__":
    main()
