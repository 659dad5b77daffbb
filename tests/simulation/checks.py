"""What must hold in every world, looked at where it can be seen: as each message leaves the broker.

Safety, while faults rage: what is told is on disk; nothing told is undone by a crash; no accepted job is lost; one
result each; no lease is used twice or held by two within the grace; bounds are kept. The clients check what only a
reader can see: gapless events, texts that are never spliced.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from lmq_broker.core.chronicle import image
from lmq_broker.core.effects import SendWork
from lmq_broker.core.recover import EPOCH, recover
from lmq_broker.core.settings import ENGINE_TASKS
from lmq_broker.core.stimuli import Now
from lmq_proto.messages import (
    Acked,
    Enlisted,
    Events,
    Finished,
    Group,
    JobView,
    Listed,
    Payload,
    Statuses,
    Stop,
    Submitted,
    Text,
    TextDurable,
    Welcome,
    WhyReply,
    Work,
)
from lmq_proto.states import FINAL, State

if TYPE_CHECKING:
    from lmq_broker.core.effects import Effect, Publish
    from lmq_broker.core.state import BrokerState
    from lmq_proto.events import Event
    from lmq_proto.ids import PeerId
    from lmq_proto.messages import ToPeer
    from simulation.disk import Disk
    from simulation.network import Network, Port
    from simulation.world import World

Key = tuple[bytes, int, int]
"""(job id, epoch, attempt)."""


class Run:
    """An attempt that runs at a worker."""

    def __init__(self, key: Key, port: Port, instance_id: str, started_ms: int) -> None:
        self.key = key
        self.port = port
        self.instance_id = instance_id
        self.started_ms = started_ms


class Checks:
    """The record of all that was told, and the rules it is held to."""

    def __init__(self, world: World, network: Network, disk: Disk) -> None:
        self.world = world
        self.network = network
        self.disk = disk
        self.accepted: set[bytes] = set()
        """Jobs whose acceptance was told to anyone."""
        self.done: dict[tuple[bytes, int], bytes] = {}
        """Results that were told."""
        self.events: dict[int, Event] = {}
        self.leases: set[Key] = set()
        """Every lease that was ever sent."""
        self.forgotten: set[bytes] = set()
        """Deleted jobs whose tombstone was dropped."""
        self.stopped: set[Key] = set()
        self.lent: set[Key] = set()
        """Attempts that have lent their slot: afterwards they may run beside whoever is in it."""
        """Leases whose worker was told that they are over, or that a crash undid."""
        self.running: dict[bytes, list[Run]] = {}
        self.submitted: dict[bytes, bytes] = {}
        """Payload of each job that a client ever submitted."""
        self.text_cut: set[Key] = set()
        """Attempts whose process ended: the last of their text may have died with it."""
        self.started_at: dict[Key, Port] = {}
        self.epochs: list[int] = []
        self.state: BrokerState | None = None
        self.evil = bool(network.evil)
        self.counts: dict[str, int] = {}
        """How often each kind of message left: what a run has exercised."""
        self.rides: dict[Key, Key] = {}
        """Leases that share a slot -> the first of them."""

    # --- what leaves the broker ---

    def told(self, peer: PeerId, message: ToPeer, body: bytes, state: BrokerState) -> None:
        """Hold a message that leaves the broker against the disk."""
        kind = type(message).__name__
        self.counts[kind] = self.counts.get(kind, 0) + 1
        match message:
            case Submitted():
                self._submitted(message)
            case Finished():
                self._finished(message, body)
            case Events():
                for event in message.events:
                    self._event(event)
            case Work():
                self._work(message, body)
            case Acked():
                for ref in message.leases:
                    job = self.disk.tables.job(ref.job_id)
                    assert job is None or not (
                        job.state == State.LEASED and (job.epoch, job.attempt) == (ref.epoch, ref.attempt)
                    ), f"the end of {ref} was acknowledged and is not on disk"
            case TextDurable():
                self._text_durable(message)
            case Text():
                self._text(message)
            case Stop():
                self.stopped.update((ref.job_id, ref.epoch, ref.attempt) for ref in message.leases)
            case Enlisted():
                assert message.epoch == self._epoch_on_disk()
                self.stopped.update((held.job_id, held.epoch, held.attempt) for held in message.stop)
            case Welcome():
                assert message.epoch == self._epoch_on_disk()
                assert message.cursor <= self.disk.tables.last_seq
            case Statuses() | Listed():
                for view in message.jobs:
                    self._view(view)
            case Payload() | WhyReply():
                self._view(message.job)
            case _:
                pass

    def _epoch_on_disk(self) -> int:
        return int(self.disk.tables.meta[EPOCH])

    def _submitted(self, message: Submitted) -> None:
        for outcome in message.outcomes:
            if outcome.outcome != "refused":
                assert outcome.job_id in self.disk.tables.added, "accepted and not on disk"
                self.accepted.add(outcome.job_id)

    def _finished(self, message: Finished, body: bytes) -> None:
        tables = self.disk.tables
        at = 0
        for end in message.jobs:
            result = body[at : at + end.result_bytes]
            at += end.result_bytes
            assert end.state in FINAL or end.state == "deleted", f"ended as {end.state}"
            if end.state != State.DONE:
                continue
            # An id may be used again when its tombstone is forgotten: that is another job.
            life = (end.job_id, tables.added[end.job_id])
            assert self.done.setdefault(life, result) == result, "two results of one job were told"
            job = tables.job(end.job_id)
            if job is not None:
                assert job.state == State.DONE, f"told done, on disk {job.state}"
                assert tables.results.get(job.number, b"") == result

    def _event(self, event: Event) -> None:
        tables = self.disk.tables
        assert self.events.setdefault(event.seq, event) == event, f"two events {event.seq} were told"
        assert event.seq <= tables.last_seq, f"event {event.seq} is not on disk"
        if event.seq > tables.oldest_cursor:
            kept = tables.events[event.seq - tables.oldest_cursor - 1]
            assert kept == event, f"told {event}, kept {kept}"

    def _view(self, view: JobView) -> None:
        job = self.disk.tables.job(view.id)
        if job is not None:
            assert view.number == job.number
            assert view.attempt <= job.attempt, f"attempt {view.attempt} was told, on disk {job.attempt}"
            assert (view.state == State.DONE) <= (job.state == State.DONE)

    def _text(self, message: Text) -> None:
        job = self.disk.tables.job(message.job_id)
        if job is not None:
            assert message.attempt <= job.attempt, "text of an attempt that a crash can undo"

    def _text_durable(self, message: TextDurable) -> None:
        tables = self.disk.tables
        for mark in message.marks:
            job = tables.job(mark.job_id)
            if job is None or job.state != State.LEASED or job.attempt != mark.attempt:
                continue
            pieces = tables.texts[job.number][mark.attempt]
            missing = [number for number in range(1, mark.piece + 1) if number not in pieces]
            assert not missing or self.evil, f"text told durable, {missing} not on disk"

    def published(self, effect: Publish) -> None:
        assert not hasattr(effect.message, "user"), "nobody is named to all"

    # --- leases ---

    def _work(self, message: Work, body: bytes) -> None:
        at = 0
        for group in message.groups:
            for lease in group.leases:
                key = (lease.job_id, lease.epoch, lease.attempt)
                again = key[0] in self.disk.tables.deleted
                assert key not in self.leases or again, f"lease {key[1:]} was given twice"
                self.leases.add(key)
                at += lease.payload_bytes
                self._parents_done(lease.job_id)
                if lease.task_type not in ENGINE_TASKS:
                    job = self.disk.tables.job(lease.job_id)
                    # It may have been deleted while the work was held; its worker is told to stop.
                    assert job is None or job.attempt >= lease.attempt, (
                        "an own task began before it was on disk"
                    )
        assert at == len(body)

    def _parents_done(self, job_id: bytes) -> None:
        """A job starts once all its parents are done, and that is on disk; none starts with one that failed."""
        tables = self.disk.tables
        job = tables.job(job_id)
        if job is None:
            return
        for parent in job.terms.parents:
            # An id may be that of several jobs, one after the other: the parent came before the child.
            lives = [life for life in tables.lives(parent) if life.number < job.number]
            state = max(lives, key=lambda life: life.number).state
            assert state == State.DONE, f"job {job.number} starts and a parent is {state}"

    def started(self, key: Key, port: Port, instance_id: str, slots: int) -> None:
        """A worker begins to run an attempt: nobody else may, unless its worker was out of touch for long."""
        run = Run(key, port, instance_id, self.world.mono_ms)
        self.started_at[key] = port
        others = self.running.setdefault(key[0], [])
        for other in others:
            assert other.key != key, f"{key[1:]} runs twice"
            assert self.evil or self._is_excused(other) or self._is_excused(run), (
                f"attempt {key[1:]} runs at {port.name} and {other.key[1:]} at {other.port.name}"
            )
        others.append(run)
        if not self.evil and not port.disturbances:
            rides = {
                self.rides.get(each.key, each.key)
                for runs in self.running.values()
                for each in runs
                if each.port is port
                and each.instance_id == instance_id
                and each.key not in self.stopped
                and each.key not in self.lent
            }
            beside = len(rides)
            assert beside <= slots, f"{beside} jobs at {port.name}/{instance_id}, which has {slots} slots"

    def _is_excused(self, run: Run) -> bool:
        """Tell whether a lease may have passed on although its worker still runs it."""
        if run.key in self.stopped:
            return True
        job_id, epoch, attempt = run.key
        for worker in self.state.workers.values() if self.state is not None else ():
            lease = worker.leases.get((job_id, epoch, attempt))
            if lease is not None and lease.stopping:
                # Its `stop` is on the way.
                return True
        times = run.port.disturbances
        first = bisect_left(times, run.started_ms)
        grace_ms = 3000
        return first < len(times) and self.world.mono_ms - times[first] >= grace_ms

    def payload_arrived(self, job_id: bytes, payload: bytes) -> None:
        """Hold a payload that reached a worker against the one that was submitted."""
        assert self.submitted[job_id] == payload, "the payload of another job"

    def text_lost(self, port: Port) -> None:
        """Note that a process ends: text of its attempts that was not durable is gone."""
        self.text_cut.update(key for key, each in self.started_at.items() if each is port)

    def ended(self, key: Key) -> None:
        """A worker runs an attempt no more."""
        runs = self.running.get(key[0], [])
        runs[:] = [run for run in runs if run.key != key]

    # --- the broker's state ---

    def turn_ended(self, state: BrokerState, effects: list[Effect]) -> None:
        """Hold the broker's memory to its bounds."""
        self.state = state
        settings = state.settings
        for effect in effects:
            if isinstance(effect, SendWork):
                self._check_slots(state, effect)
        assert len(state.jobs) <= settings.jobs_open
        assert len(state.sessions) <= settings.sessions + len(state.workers)
        assert len(state.tombstones) <= settings.tombstones
        assert len(state.events) <= 2 * settings.events_in_memory + 1
        assert all(count <= settings.jobs_open_per_user for count in state.users_open.values())
        assert not state.fresh_text
        assert not state.fresh_ends
        assert not state.acks
        assert not state.turn_events
        for job_id in state.unstored_text:
            assert job_id in state.jobs

    def _check_slots(self, state: BrokerState, effect: SendWork) -> None:
        """No instance is given work beyond its slots; what it brought along when it enlisted may be more."""
        worker = next(worker for worker in state.workers.values() if worker.peer == effect.peer)
        for group in effect.message.groups:
            instance = worker.instances[group.leases[0].instance_id]
            keys = [(lease.job_id, lease.epoch, lease.attempt) for lease in group.leases]
            self.rides.update((key, keys[0]) for key in keys)
            if len(keys) > 1:
                self.counts["rides"] = self.counts.get("rides", 0) + 1
                self._check_group(state, group)
            assert instance.leased <= instance.slots, (
                f"{instance.leased} leases at {worker.name}/{instance.id}, which has {instance.slots} slots"
            )

    def _check_group(self, state: BrokerState, group: Group) -> None:
        """Only embeddings with one key ride together, and none that is suspect."""
        jobs = [state.jobs[lease.job_id] for lease in group.leases]
        alike = {(job.task_type, job.queue, job.models, job.terms.merge) for job in jobs}
        assert len(alike) == 1, alike
        assert all(job.terms.merge and not job.past.suspect for job in jobs)
        assert len({job.id for job in jobs}) == len(jobs)

    def crashed(self) -> None:
        """Excuse leases that were sent before they were on disk: the crash has undone them."""
        for job_id, runs in self.running.items():
            job = self.disk.tables.job(job_id)
            for run in runs:
                if job is None or (job.epoch, job.attempt) != run.key[1:]:
                    self.stopped.add(run.key)

    def opened(self) -> None:
        self.epochs.append(self._epoch_on_disk())
        assert self.epochs == sorted(set(self.epochs)), "the epoch grows with each start"

    def recovered(self, state: BrokerState) -> None:
        """Hold a recovered state against all that earlier lives told."""
        tables = self.disk.tables
        known = state.jobs.keys() | state.finished.keys() | state.tombstones.keys()
        self.forgotten |= tables.added.keys() - tables.numbers.keys() - tables.tombstones.keys()
        lost = self.accepted - known - self.forgotten
        assert not lost, f"{len(lost)} accepted jobs are gone after the restart"
        for job_id, job in state.jobs.items():
            assert (job_id, tables.added[job_id]) not in self.done, (
                f"job {job.number} was told done and is open again"
            )
            assert image(job) == tables.job(job_id)
        assert state.finished.keys() <= tables.numbers.keys()
        assert len(state.finished) + len(state.jobs) == len(tables.numbers)
        assert state.last_seq >= max(self.events, default=0)

    def kept_events(self) -> dict[int, Event]:
        """Return every event that is or was on disk, by number."""
        return {event.seq: event for event in (*self.disk.tables.pruned, *self.disk.tables.events)}

    def compare_with_disk(self, state: BrokerState) -> None:
        """Hold a state whose every record is durable against what a broker would recover now."""
        tables = self.disk.tables
        other, _ = recover(
            tables.memory(), state.settings, Now(0, self.world.wall_ms), software="", seed=0, fresh_id=b"",
            fresh_secret=b"",
        )  # fmt: skip
        assert state.jobs.keys() == other.jobs.keys()
        for job_id, job in state.jobs.items():
            mine, stored = image(job), image(other.jobs[job_id])
            if mine.state == State.LEASED and stored.state == State.READY:
                # Taken up again by its worker, which is not journaled: it can be taken up once more.
                assert (mine.epoch, mine.attempt) == (stored.epoch, stored.attempt)
            else:
                assert mine == stored, f"in memory {mine}\non disk {stored}"
        mine_ended, other_ended = list(state.finished.values()), list(other.finished.values())
        assert mine_ended == other_ended, f"ended {mine_ended}, on disk {other_ended}"
        assert other.tombstones.items() <= state.tombstones.items(), (
            f"in memory {state.tombstones}\non disk {other.tombstones}"
        )
        assert other.keys.items() <= state.keys.items(), f"in memory {state.keys}\non disk {other.keys}"
        assert other.keys_of_finished.items() <= state.keys_of_finished.items(), (
            f"in memory {state.keys_of_finished}\non disk {other.keys_of_finished}"
        )
        assert state.queue_holds == other.queue_holds, (
            f"in memory {state.queue_holds}\non disk {other.queue_holds}"
        )
        assert state.worker_holds == other.worker_holds, (
            f"in memory {state.worker_holds}\non disk {other.worker_holds}"
        )
        assert state.known_models == other.known_models, (
            f"in memory {state.known_models}\non disk {other.known_models}"
        )
        assert state.last_number == other.last_number
        assert state.last_seq + 1 == other.last_seq, "the other has told that it started"
        for each in (state, other):
            for name, queue in each.queues.items():
                for job_state, count in queue.counts.items():
                    if job_state not in (State.READY, State.LEASED):
                        twin = (other if each is state else state).queues.get(name)
                        assert count == (0 if twin is None else twin.counts[job_state])
