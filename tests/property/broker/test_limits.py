"""No limit is ever exceeded, whatever comes, ends, fails, or starts again: P7 of scheduling's fact sheet."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random
from typing import TYPE_CHECKING

from hypothesis import example, given, settings, strategies as st

from lmq_broker.core import invariants
from lmq_broker.core.limits import burst_of, name_of
from lmq_broker.core.settings import Settings
from lmq_proto.messages import Heartbeat, Limit
from lmq_proto.states import State
from unit.broker.builders import Broker, a_broker, a_memory, idle, instance, spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lmq_broker.core.state import Job

USERS = ("ann", "tom", "shop", "shop/alice", "shop/bob")
QUEUES = ("q1", "q2")
TYPES = ("echo", "train", "embed")
WORKERS = ("w1", "w2")
seeds = st.integers(0, 1 << 32)


def some_limits(random: Random) -> list[Limit]:
    """Return rules of every kind, each about some of the jobs."""
    found = []
    for _ in range(random.randint(1, 5)):
        of = random.choice(("running", "running", "queued", "bytes", "jobs"))
        names = {
            "user": random.choice(("", "*", *USERS)),
            "queue": random.choice(("", *QUEUES)),
            "task_type": random.choice(("", *TYPES)),
        }
        if of == "running" and random.random() < 0.3:
            names["worker"] = random.choice(WORKERS)
        if of == "jobs":
            rate = {"per_ms": random.choice((500, 5000)), "burst": float(random.randint(1, 3))}
            found.append(Limit(of=of, value=float(random.randint(1, 5)), **rate, **names))  # type: ignore[arg-type]
        else:
            found.append(Limit(of=of, value=float(random.randint(0, 6)), **names))  # type: ignore[arg-type]
    return found


def subjects(limit: Limit, jobs: Iterable[Job]) -> Counter[str]:
    """Return how many of these jobs a rule counts, by user where it counts each."""
    counted: Counter[str] = Counter()
    for job in jobs:
        if (
            limit.user in ("", "*", job.user)
            and limit.queue in ("", job.queue)
            and limit.task_type in ("", job.task_type)
            and limit.worker in ("", job.worker)
        ):
            counted[job.user if limit.user else ""] += job.payload_bytes if limit.of == "bytes" else 1
    return counted


class World:
    """A broker under rules, and what has started when."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.limits = list({name_of(limit): limit for limit in some_limits(random)}.values())
        policy = random.choice(("blfq", "strict", "vtc"))
        self.settings = Settings(policy=policy, limits=tuple(self.limits))
        self.starts: dict[tuple[int, str], list[int]] = defaultdict(list)
        self.number = 0
        self.broker: Broker
        self.begin({})

    def begin(self, meta: dict[str, bytes]) -> None:
        """Let a broker start, with what the journal has of the one before it."""
        any_model = [instance(slots=4)]
        workers = [
            idle(name, instances=any_model, task_types=TYPES, endpoint=f"http://{name}") for name in WORKERS
        ]
        self.broker = a_broker(
            workers=workers, clients=USERS, settings=self.settings, memory=a_memory(meta=meta)
        )

    def act(self) -> None:
        """Do one thing that people or workers do."""
        random, broker = self.random, self.broker
        held = [lease for worker in broker.state.workers.values() for lease in worker.leases.values()]
        what = random.random()
        if what < 0.5:
            user = random.choice(USERS)
            self.number += 1
            merge = {"merge": "m"} if random.random() < 0.5 else {}
            task_type = random.choice(TYPES)
            broker.submit(
                user,
                spec(
                    f"j{self.number}", task_type=task_type, queue=random.choice(QUEUES), payload=b"x",
                    priority=random.choice((1, 5, 8)), **(merge if task_type == "embed" else {}),
                ),
                payloads=[b"x"],
            )  # fmt: skip
        elif what < 0.85 and held:
            lease = random.choice(held)
            outcome = random.choice(("complete", "complete", "release", "fail", "crash"))
            broker.reports(
                lease.worker, lease.job.id.rstrip(b"\0").decode(), "stopped" if lease.stopping else outcome,
                epoch=lease.epoch, attempt=lease.attempt,
            )  # fmt: skip
        elif broker.state.jobs:
            job = random.choice(list(broker.state.jobs.values()))
            broker.cancel(job.user, job.id.rstrip(b"\0").decode())

    def check(self) -> None:
        """Count anew what runs and what waits, and hold it against every rule."""
        state = self.broker.state
        invariants.check(state)
        running = [lease.job for worker in state.workers.values() for lease in worker.leases.values()]
        for number, limit in enumerate(self.limits):
            if limit.of == "running":
                for subject, count in subjects(limit, running).items():
                    assert count <= limit.value, (limit, subject, count)
            elif limit.of in ("queued", "bytes"):
                waiting = [job for job in state.jobs.values() if job.state is not State.LEASED]
                fresh = [job for job in waiting if not job.attempt]
                # What was accepted and comes back is not thrown away: only new jobs are refused.
                for subject, count in subjects(limit, fresh).items():
                    assert count <= limit.value, (limit, subject, count)
            else:
                self.check_rate(number, limit)

    def check_rate(self, number: int, limit: Limit) -> None:
        """Hold the starts of any span of time against burst and rate."""
        now_ms = self.broker.wall_ms
        for event in self.broker.events:
            if (
                event.kind == "started"
                and limit.user in ("", "*", event.user)
                and limit.queue in ("", event.queue)
                and limit.task_type in ("", event.task_type)
            ):
                self.starts[number, event.user if limit.user else ""].append(event.at_ms)
        for (of, _), times in self.starts.items():
            for first in times if of == number else ():
                within = sum(first <= at_ms for at_ms in times)
                assert within <= burst_of(limit) + (now_ms - first) * limit.value / limit.per_ms + 1e-6


@settings(max_examples=60, deadline=None)
@example(5829)
@given(seeds)
def test_no_limit_is_ever_exceeded(seed: int) -> None:
    random = Random(seed)
    world = World(random)
    for _ in range(150):
        world.act()
        if random.random() < 0.6:
            world.broker.turn(random.choice((0, 0, 10, 400)))
            world.check()
            world.broker.events.clear()
    if not any(limit.value == 0 for limit in world.limits):
        for _ in range(600):
            for name in (*USERS, *WORKERS):
                world.broker.says(name, Heartbeat())
            world.broker.turn(1000)
            world.check()
            world.broker.events.clear()
            for worker in world.broker.state.workers.values():
                for lease in list(worker.leases.values()):
                    world.broker.reports(
                        worker.name, lease.job.id.rstrip(b"\0").decode(),
                        "stopped" if lease.stopping else "complete", epoch=lease.epoch, attempt=lease.attempt,
                    )  # fmt: skip
        assert not world.broker.state.jobs, "a limit let somebody wait for ever"


def test_a_group_always_has_the_job_whose_turn_it_is() -> None:
    """Of this seed a group had nobody in it, and took a slot for ever."""
    test_no_limit_is_ever_exceeded.hypothesis.inner_test(311513)  # type: ignore[attr-defined]
