"""One world from one seed: who takes part, how small the bounds are, which faults rage, and the calm at the end."""

from __future__ import annotations

from contextlib import ExitStack
from random import Random
from typing import TYPE_CHECKING, NamedTuple
from unittest.mock import patch

from lmq_broker.core import leases, readers, settle
from lmq_broker.core.settings import TASK_DEFAULTS, Settings, TaskDefaults
from lmq_proto import bounds
from lmq_proto.states import FINAL
from simulation.broker import Broker
from simulation.checks import Checks
from simulation.clients import PlainLine
from simulation.disk import Disk
from simulation.network import Network
from simulation.people import UNHEARD_OF, Person
from simulation.real_clients import RealLine
from simulation.real_workers import RealProcess
from simulation.workers import MODELS, Endpoint, Host, PlainProcess
from simulation.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmq_broker.core.records import StoredJob

# Virtual time until all must have drained: backoffs of a minute, delays and timeouts of half a minute, some in a row.
_CALM_MS = 900_000
_LOOK_MS = 5000
_DEFAULTS = TASK_DEFAULTS | {"chat": TaskDefaults(model=MODELS[0])}


class Story(NamedTuple):
    """What a run came to."""

    digest: str
    happenings: int
    turns: int
    jobs: int
    epochs: int
    counts: dict[str, int]


class Scenario:
    """The whole world of one seed."""

    def __init__(self, seed: int, policy: str) -> None:
        self.policy = policy
        self.world = world = World(seed)
        random = world.random
        self.evil = random.choice((0.0, 0.0, 0.0, 0.03, 0.1))
        self.batch_max = random.choice((3, 5, 20))
        self.tight = random.random() < 0.5
        """Whether the bounds are so small that they are met."""
        kin = Random(seed + 1)
        self.kin = kin if kin.random() < 0.7 else None
        """Decides which jobs wait for which, in worlds where some do; apart, so that the others stay as they are."""
        rules = Random(seed + 2)
        self.rules = rules if rules.random() < 0.7 else None
        """Decides on limits, sessions, merge keys and resources, in worlds where there are some; apart, likewise."""
        self.network = Network(
            world, latency_ms=random.choice((0, 2, 50)), keeps=random.random() < 0.7, evil=self.evil
        )
        self.disk = Disk(world, sync_ms=random.choice((0, 5, 100)), slow=random.choice((0.0, 0.0, 0.02, 0.1)))
        self.checks = Checks(world, self.network, self.disk)
        self.broker = Broker(
            world, self.network, self.disk, self.checks, self._settings(), read_ms=random.choice((0, 5, 300))
        )
        self.hosts = self._hosts()
        self.people = self._people()
        self.broker.start()

    def _settings(self) -> Settings:
        random = self.world.random
        if not self.tight:
            return Settings(
                policy=self.policy, text_flush_bytes=random.choice((200, 16_384)), task_defaults=_DEFAULTS
            )
        return Settings(
            policy=self.policy, task_defaults=_DEFAULTS,
            jobs_open=random.choice((12, 1000)), jobs_open_per_user=random.choice((6, 1000)),
            jobs_kept=random.choice((3, 1000)), tombstones=random.choice((2, 1000)),
            tombstone_ms=random.choice((5000, 7 * bounds.DAY_MS)), events_in_memory=random.choice((3, 50)),
            events_per_push=random.choice((2, 500)), text_memory_bytes=random.choice((60, 500)),
            text_flush_bytes=random.choice((100, 16_384)), retention_step=random.choice((2, 500)),
            clock_hold_ms=20_000, strikes=random.choice((1, 2)), sessions=random.choice((8, 100)),
        )  # fmt: skip

    def _hosts(self) -> list[Host]:
        random = self.world.random
        kinds = random.choice(((PlainProcess,), (RealProcess,), (PlainProcess, RealProcess)))
        loads = random.random() < 0.4
        hosts = []
        for number in range(random.choice((1, 2, 2, 3))):
            slots = random.choice((1, 2, 4))
            endpoint = Endpoint(self.world, f"endpoint-{number}", serves_any=not loads, slots=slots)
            queues = () if number == 0 or random.random() < 0.6 else ("default", "queries")
            hosts.append(
                Host(
                    self.world,
                    self.network,
                    self.checks,
                    endpoint,
                    f"w{number}",
                    queues,
                    random.choice(kinds),
                )
            )
        return hosts

    def _people(self) -> list[Person]:
        random = self.world.random
        lines = random.choice(((PlainLine,), (PlainLine,), (RealLine,), (PlainLine, RealLine)))
        people = []
        for name in ("anna", "ben", "cleo")[: random.choice((1, 2, 3))]:
            person = Person(
                self.world, self.checks, name, batch_max=self.batch_max, kin=self.kin, rules=self.rules
            )
            kind = random.choice(lines)
            person.line = kind(self.world, self.network, person, bool(self.evil))
            people.append(person)
        return people

    def run(self) -> Story:
        """Let faults rage, then let them stop, and see all come to its end."""
        world = self.world
        random = world.random
        with ExitStack() as stack:
            for change in self._small_bounds():
                stack.enter_context(change)
            for host in self.hosts:
                world.after(random.choice((0, 0, 5000)), host.start)
            for person in self.people:
                person.actions_left = random.choice((10, 40, 120))
                world.after(random.randint(0, 1000), person.act)
            for fault, every_ms in self._faults():
                self._repeat(fault, every_ms)
            world.run_until(world.mono_ms + random.choice((5000, 30_000, 120_000)))
            self._calm()
        return Story(
            world.digest(), world.happenings, self.broker.turns, len(self.disk.tables.added),
            len(self.checks.epochs), self.checks.counts,
        )  # fmt: skip

    def _small_bounds(self) -> list[patch]:  # type: ignore[valid-type]  # what `patch.object` gives has no public name
        if not self.tight:
            return []
        return [
            patch.object(bounds, "BATCH_JOBS", self.batch_max + 1),
            patch.object(bounds, "CHILDREN", 3),
            patch.object(settle, "_MOVES", 1),
            patch.object(settle, "_LOOK_AT_JOBS", 3),
            patch.object(bounds, "RESULTS_CREDIT_BYTES", self.world.random.choice((300, 2000, 1 << 24))),
            patch.object(leases, "_WORK_LEASES", 2),
            patch.object(readers, "_PUSH_PIECES", 3),
            patch.object(readers, "_PUSH_BYTES", 500),
            patch.object(readers, "_FETCH_ENDS", 2),
            patch.object(readers, "_EMPTY_PUSH_AFTER", 5),
        ]

    # --- faults ---

    def _faults(self) -> list[tuple[Callable[[], None], int]]:
        """Return the faults of this world, each with how often it comes."""
        random = self.world.random
        all_faults: list[tuple[Callable[[], None], int]] = [
            (self._broker_dies, 12_000), (self._broker_stops, 30_000), (self._link_breaks, 3000),
            (self._link_stalls, 8000), (self._worker_dies, 8000), (self._worker_leaves, 15_000),
            (self._endpoint_changes, 4000), (self._disk_fills, 15_000), (self._wall_jumps, 15_000),
            (self._peer_clogs, 15_000),
        ]  # fmt: skip
        keen = random.choice((0.0, 0.5, 1.0, 2.0, 4.0))
        return [
            (fault, int(every_ms / keen) + 1)
            for fault, every_ms in all_faults
            if keen and random.random() < 0.6
        ]

    def _repeat(self, fault: Callable[[], None], every_ms: int) -> None:
        def happen() -> None:
            if self.world.raging:
                fault()
                self._repeat(fault, every_ms)

        self.world.after(int(self.world.random.expovariate(1 / every_ms)), happen)

    def _broker_dies(self) -> None:
        if self.broker.state is not None:
            self.broker.crash()
            self._broker_comes_back()

    def _broker_stops(self) -> None:
        if self.broker.state is not None:
            self.broker.stop()
            self.world.after(300, self._broker_dies)

    def _broker_comes_back(self) -> None:
        if self.world.chance(0.3):
            self.disk.tables.prune_events(self.world.random.choice((0, 5, 50)))
        self.world.after(self.world.random.choice((0, 100, 2000, 10_000)), self._start_broker)

    def _start_broker(self) -> None:
        if self.broker.state is None:
            self.broker.start()

    def _link_breaks(self) -> None:
        self.network.cut(self.world.random.choice(self.network.ports))

    def _link_stalls(self) -> None:
        port = self.world.random.choice(self.network.ports)
        self.network.stall(port, self.world.random.choice((300, 2500, 8000, 25_000)))

    def _worker_dies(self) -> None:
        host = self.world.random.choice(self.hosts)
        host.crash()
        self.world.after(self.world.random.choice((0, 500, 7000)), host.start)

    def _worker_leaves(self) -> None:
        host = self.world.random.choice(self.hosts)
        host.leave()
        self.world.after(self.world.random.choice((0, 500, 7000)), host.start)

    def _endpoint_changes(self) -> None:
        self.world.random.choice(self.hosts).happen()

    def _disk_fills(self) -> None:
        self.disk.is_full = True
        self.world.after(self.world.random.choice((500, 3000, 10_000)), self._disk_empties)

    def _disk_empties(self) -> None:
        self.disk.is_full = False

    def _wall_jumps(self) -> None:
        self.world.jump_wall(self.world.random.choice((-86_400_000, -30_000, -700, 700, 30_000, 86_400_000)))

    def _peer_clogs(self) -> None:
        port = self.world.random.choice(self.network.ports)
        if port.connected:
            self.network.disturb(port)
            self.broker.clog(port.peer)

    # --- calm ---

    def _calm(self) -> None:
        """Stop the faults; all that was accepted must end, and be told."""
        world = self.world
        world.raging = False
        # Whatever was dated while the clock was wrong is due by now.
        world.outrun_wall(bounds.DAY_MS)
        self._disk_empties()
        self._start_broker()
        for host in self.hosts:
            host.endpoint.recover()
            host.start()
            if host.process is not None:
                host.process.capacity_changed()
        self.network.heal()
        # A crash may have been under way: its restart, too, belongs to the faults.
        world.run_until(world.mono_ms + 3 * _LOOK_MS)
        for person in self.people:
            person.resume_all()
        self._wait_for_runnable()
        end_ms = world.mono_ms + _CALM_MS
        while self._unsettled() and world.mono_ms < end_ms:
            world.run_until(world.mono_ms + _LOOK_MS)
            for person in self.people:
                person.follow_open()
        left = self._unsettled()
        assert not left, f"after {_CALM_MS // 1000} s of calm: {left}"
        world.run_until(world.mono_ms + _LOOK_MS)
        self._wait_for_disk()
        self._check_end()

    def _wait_for_runnable(self) -> None:
        """Go on until only jobs are open whose model nobody has, and give those up."""
        end_ms = self.world.mono_ms + _CALM_MS
        while runnable := self._runnable():
            assert self.world.mono_ms < end_ms, f"after {_CALM_MS // 1000} s of calm {runnable[0]} is open"
            self.world.run_until(self.world.mono_ms + _LOOK_MS)
        for person in self.people:
            person.give_up()

    def _runnable(self) -> list[StoredJob]:
        """Return the open jobs that neither have a model that nobody has nor wait for such a job."""
        stuck: set[bytes] = set()
        found = []
        for _, job in sorted(self.disk.tables.jobs.items()):
            if job.state in FINAL:
                continue
            if job.models == (UNHEARD_OF,) or not stuck.isdisjoint(job.terms.parents):
                stuck.add(job.id)
            else:
                found.append(job)
        return found

    def _wait_for_disk(self) -> None:
        """Go on until nothing waits to be written."""
        assert self.broker.state is not None
        while self.disk.durable < self.broker.state.position:
            self.world.run_until(self.world.mono_ms + 1)

    def _unsettled(self) -> str:
        """Say what is still under way, or nothing."""
        open_jobs = [job for job in self.disk.tables.jobs.values() if job.state not in FINAL]
        if open_jobs:
            return f"{len(open_jobs)} jobs open, such as {open_jobs[0]}"
        for host in self.hosts:
            if host.process is not None and host.process.unsettled():
                return f"{host.name}: {host.process.unsettled()}"
        for person in self.people:
            if person.unsettled():
                return f"{person.name}: {person.unsettled()}"
        return ""

    def _check_end(self) -> None:
        state = self.broker.state
        assert state is not None
        self.checks.compare_with_disk(state)
        for person in self.people:
            person.check_end()
        assert not state.orphans
        for worker in state.workers.values():
            assert not worker.leases, f"{worker.name} still has {worker.leases}"
        assert not state.followers
        assert not state.text_readers


def simulate(seed: int, policy: str) -> Story:
    """Run the world of a seed, its broker under one policy, to its end."""
    return Scenario(seed, policy).run()
