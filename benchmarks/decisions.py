"""What one decision of the scheduling policy costs, on the real core with a clock of its own: no sockets, no disk.

A `World` is a core with workers and a fixed number of jobs that wait: each job that ends is replaced by one like it.
"""

import gc
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.raw import new_id
from lmq_broker.core.effects import SendWork
from lmq_broker.core.machine import step
from lmq_broker.core.policies.base import Decision, Fleet, FlowKey, Policy, Spent, Start
from lmq_broker.core.policies.crowd import Crowd
from lmq_broker.core.policies.foreseen import Parts
from lmq_broker.core.policies.lanes import BandShare, Share
from lmq_broker.core.policies.places import LaneKey
from lmq_broker.core.recover import Memory, recover
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import Instance, Job, Lease as HeldLease, Worker
from lmq_broker.core.stimuli import Credential, Now, Received, TurnEnded
from lmq_proto.ids import PeerId
from lmq_proto.messages import Enlist, FromPeer, Hello, Results, Submit
from lmq_proto.parts import Capacity, Ended, InstanceInfo, JobSpec, Lease

# Jobs differ in what a policy may look at: a dozen kinds, so that each kind is there at a hundred jobs already.
MODELS = ("qwen3-8b", "llama-3.1-8b", "qwen3-32b")
PRIORITIES = (8, 5, 5, 2)
WORKERS = 4
SLOTS = 4
USERS = 1000

_LOOPBACK = Credential("loopback")
_CLIENT = PeerId(b"client")
_PAYLOAD = b"\x80"
_TURN_MS = 50
# A user submits so many in a row at most, then the next one does.
_USER_JOBS = 100


class Taken(NamedTuple):
    """What a decision took, and whether it started something."""

    ns: int
    starts: bool


class Timed:
    """A policy that notes the thread CPU time of each decision; otherwise the policy it wraps."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.taken: list[Taken] = []

    def queued(self, job: Job, now: Now) -> None:
        self._policy.queued(job, now)

    def withdrawn(self, job: Job) -> None:
        self._policy.withdrawn(job)

    def started(self, lease: HeldLease, instance: Instance, now: Now) -> None:
        self._policy.started(lease, instance, now)

    def lend(self, lease: HeldLease) -> None:
        self._policy.lend(lease)

    def take_back(self, lease: HeldLease) -> None:
        self._policy.take_back(lease)

    def resumed(self, lease: HeldLease) -> None:
        self._policy.resumed(lease)

    def served(self, lease: HeldLease, tokens: int) -> None:
        self._policy.served(lease, tokens)

    def ended(self, lease: HeldLease, spent: Spent, now: Now) -> None:
        self._policy.ended(lease, spent, now)

    def loaded(self, worker: Worker, model: str, took_ms: int, *, no_memory: bool) -> None:
        self._policy.loaded(worker, model, took_ms, no_memory=no_memory)

    def changes(self) -> dict[str, bytes]:
        return self._policy.changes()

    def restore(self, kept: dict[str, bytes]) -> None:
        self._policy.restore(kept)

    def lane_of(self, job: Job) -> tuple[str, int, LaneKey]:
        return self._policy.lane_of(job)

    def parts(self, fleet: Fleet, now: Now) -> Parts:
        return self._policy.parts(fleet, now)

    def crowd(self, job: Job, fleet: Fleet) -> Crowd:
        return self._policy.crowd(job, fleet)

    def waiting_for(self, model: str) -> int:
        return self._policy.waiting_for(model)

    def weigh(self, user: str, weight: float) -> None:
        self._policy.weigh(user, weight)

    def shares(self, *, idle: bool = True) -> list[Share]:
        return self._policy.shares(idle=idle)

    def bands(self) -> list[BandShare]:
        return self._policy.bands()

    @property
    def has_shares(self) -> bool:
        return self._policy.has_shares

    def charged(self) -> dict[FlowKey, float]:
        return self._policy.charged()

    def decide(self, fleet: Fleet, now: Now) -> Decision | None:
        """Decide, and note what it cost."""
        began_ns = time.thread_time_ns()
        decision = self._policy.decide(fleet, now)
        self.taken.append(Taken(time.thread_time_ns() - began_ns, isinstance(decision, Start)))
        return decision


class World:
    """A core in which `jobs` jobs of `users` users wait, and all slots are taken."""

    def __init__(self, policy: str, jobs: int, users: int = USERS) -> None:
        most = 2 * jobs + 1000
        settings = Settings(policy=policy, jobs_open=most, jobs_open_per_user=most, jobs_kept=1000)
        self._now = Now(1_000_000, 1_800_000_000_000)
        self._state, _ = recover(
            _EMPTY, settings, self._now, software="benchmark", seed=1, fresh_id=bytes(16), fresh_secret=bytes(32)
        )  # fmt: skip
        self._timed = Timed(self._state.policy)
        self._state.policy = self._timed
        self._running: list[tuple[PeerId, Lease]] = []
        self._next_running = 0
        self._users = users
        self._kinds: dict[bytes, int] = {}
        self._requests = 1
        self._say(
            _CLIENT, Hello(request_id=1, instance=_CLIENT.ljust(16), protocol_oldest=1, protocol_newest=1)
        )
        for number in range(WORKERS):
            self._say(PeerId(f"worker-{number}".encode()), _enlist(number))
        self._fill(jobs + WORKERS * SLOTS)
        for _ in range(3):
            self._running += self._turn()
        self._timed.taken.clear()

    def decide(self, ends: int) -> list[Taken]:
        """Let `ends` jobs end and be replaced, one after the other; return the cost of each decision this took."""
        for _ in range(ends):
            place = self._next_running % len(self._running)
            peer, lease = self._running[place]
            ended = Ended(
                job_id=lease.job_id, epoch=lease.epoch, attempt=lease.attempt, outcome="complete",
                result_bytes=len(_PAYLOAD), engine_ms=_TURN_MS, output_tokens=20,
            )  # fmt: skip
            kind = self._kinds[lease.job_id]
            del self._kinds[lease.job_id]
            self._say(peer, Results(ended=[ended]), _PAYLOAD)
            self._submit([kind])
            # The slot is taken again: its new lease ends when its turn comes.
            self._running[place : place + 1] = self._turn()
            self._next_running += 1
        taken = list(self._timed.taken)
        self._timed.taken.clear()
        return taken

    @property
    def policy(self) -> Timed:
        """The policy that decides."""
        return self._timed

    @property
    def waiting(self) -> int:
        """How many jobs are there that do not run."""
        return len(self._state.jobs) - len(self._running)

    def _fill(self, jobs: int) -> None:
        each = min(max(jobs // self._users, 1), _USER_JOBS)
        for start in range(0, jobs, each):
            self._submit(range(start, min(start + each, jobs)))

    def _submit(self, kinds: Sequence[int]) -> None:
        """Submit a job of each kind for the user whose turn it is."""
        self._requests += 1
        specs = []
        for kind in kinds:
            spec = JobSpec(
                id=new_id(), task_type="chat", payload_bytes=len(_PAYLOAD), priority=PRIORITIES[kind % 4],
                models=[MODELS[kind % 3]], prompt_tokens=100, output_tokens=200,
            )  # fmt: skip
            self._kinds[spec.id] = kind
            specs.append(spec)
        user = f"user-{self._requests % self._users}"
        submit = Submit(request_id=self._requests, jobs=specs, as_user=user)
        self._say(_CLIENT, submit, _PAYLOAD * len(specs))

    def _say(self, peer: PeerId, message: FromPeer, body: bytes = b"") -> None:
        step(self._state, Received(peer, _LOOPBACK, message, body), self._now)

    def _turn(self) -> list[tuple[PeerId, Lease]]:
        """Let time pass and the turn end; return the leases it granted."""
        self._now = Now(self._now.mono_ms + 1, self._now.wall_ms + 1)
        for session in self._state.sessions.values():
            # Nobody falls silent in a world whose peers say nothing but what they must.
            session.heard_ms = self._now.mono_ms
        for worker in self._state.workers.values():
            worker.heard_ms = self._now.mono_ms
        return [
            (effect.peer, lease)
            for effect in step(self._state, TurnEnded(), self._now)
            if isinstance(effect, SendWork)
            for group in effect.message.groups
            for lease in group.leases
        ]


@dataclass(frozen=True, slots=True)
class Decisions:
    """What decisions cost in one world."""

    policy: str
    queued: int
    taken_us: list[float]
    starts_us: list[float]
    """Of those among them that started something: the others had nothing to do, and are the cheaper the fewer wait."""
    users: int = USERS


def measure(policy: str, sizes: list[tuple[int, int]], rounds: int, ends: int) -> list[Decisions]:
    """Measure a policy at several sizes, in turn (A B C, A B C), so that what drifts hits all alike.

    A size is so many jobs of so many users.
    """
    worlds = [World(policy, jobs, users) for jobs, users in sizes]
    taken: list[list[Taken]] = [[] for _ in sizes]
    with _as_in_the_broker():
        for _ in range(rounds):
            for world, found in zip(worlds, taken, strict=True):
                found.extend(world.decide(ends))
    return [
        Decisions(
            policy,
            jobs,
            [each.ns / 1000 for each in found],
            [each.ns / 1000 for each in found if each.starts],
            users,
        )
        for (jobs, users), found in zip(sizes, taken, strict=True)
    ]


def clock_us() -> float:
    """Return what reading the thread's clock twice costs: it is part of every figure."""
    taken_ns = []
    for _ in range(1000):
        began_ns = time.thread_time_ns()
        taken_ns.append(time.thread_time_ns() - began_ns)
    return sorted(taken_ns)[len(taken_ns) // 2] / 1000


_EMPTY = Memory(
    meta={}, open_jobs=[], finished=[], keys=[], tombstones=[], stored_text={}, last_number=0, last_order=0,
    last_seq=0, oldest_cursor=0, last_event_ms=0,
)  # fmt: skip


def _enlist(number: int) -> Enlist:
    """Return a worker that has two of the models, so that places differ by kind of job."""
    models = [MODELS[number % len(MODELS)], MODELS[(number + 1) % len(MODELS)]]
    loaded = [InstanceInfo(instance_id=model, model=model, slots=SLOTS // 2, kind="llm") for model in models]
    return Enlist(
        request_id=1, instance=os.urandom(16), protocol_oldest=1, protocol_newest=1, name=f"worker-{number}",
        endpoint=f"http://worker-{number}", backend="raw", task_types=["chat"],
        capacity=Capacity(instances=loaded),
    )  # fmt: skip


@contextmanager
def _as_in_the_broker() -> Iterator[None]:
    """Keep the cyclic garbage collector away, as the broker does."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
