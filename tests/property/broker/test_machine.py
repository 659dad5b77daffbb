"""Anything may happen in any order: after every step the invariants hold, and no promise to anyone is broken."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from lmq_broker.core import invariants, settle
from lmq_broker.core.effects import Effect, Log, Publish, Read, Send, SendWork, WakeAt
from lmq_broker.core.records import JobAdded
from lmq_broker.core.recover import recover
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import DiskChanged, Now, PeerClogged
from lmq_proto.errors import ErrorInfo
from lmq_proto.ids import PeerId
from lmq_proto.messages import (
    Breaker,
    Bye,
    Cancel,
    CapacityReport,
    Credit,
    Delete,
    Drain,
    Ended,
    EventFilter,
    Events,
    Finished,
    Follow,
    FollowText,
    Health,
    Heartbeat,
    Held,
    HostLoad,
    JobFilter,
    JobSpec,
    ListModels,
    ListQueues,
    ListUsers,
    ListWorkers,
    LoadEnded,
    LoadModel,
    Metrics,
    OrderModel,
    Pause,
    PhaseReport,
    Phases,
    Piece,
    ResetUser,
    Results,
    Resume,
    Retry,
    SetAlias,
    SetDefaultModel,
    SetUser,
    Status,
    Submit,
    Subscribe,
    Subscribed,
    Target,
    Text,
    TextReport,
    Unfollow,
    UnloadModel,
    Unsubscribe,
    Update,
    Usage,
    Why,
)
from lmq_proto.states import FINAL
from property.broker.fake_journal import FakeJournal
from unit.broker.builders import MONO_MS, WALL_MS, Broker, a_memory, idle, instance, job_id, on_disk, spec

NAMES = [f"j{number}" for number in range(10)]
CLIENTS = ["ann", "tom"]
WORKERS = ["w1", "w2"]
SETTINGS = Settings(
    jobs_open=8, jobs_open_per_user=6, jobs_kept=3, tombstones=3, events_in_memory=4, events_per_push=3,
    text_memory_bytes=8, text_flush_bytes=6, retention_every_ms=1000, clock_hold_ms=20_000, usage_rows=3,
    aliases={"fast": ("m1",)}, orders=3, load_retry_ms=3000,
)  # fmt: skip
LeaseKey = tuple[bytes, int, int]

names = st.sampled_from(NAMES)
some_names = st.lists(names, min_size=1, max_size=3)
clients = st.sampled_from(CLIENTS)
workers = st.sampled_from(WORKERS)
models = st.sampled_from([[], ["m1"], ["m2"], ["m1", "m2"], ["fast"], ["fast", "m2"]])
moments = st.sampled_from([0, 1, 100, 1000, 3500, 16_000])


class AnyOrder(RuleBasedStateMachine):
    """Two users, two workers, a journal that answers when it likes, and clocks."""

    broker_settings = SETTINGS

    def __init__(self) -> None:
        super().__init__()
        self.short_steps = patch.object(settle, "_MOVES", 1)
        self.short_steps.start()
        self.journal = FakeJournal()
        self.reads: list[Read] = []
        self.granted: set[LeaseKey] = set()
        self.held: dict[str, list[LeaseKey]] = {name: [] for name in WORKERS}
        """What each worker believes that it runs."""
        self.written: dict[LeaseKey, int] = {}
        self.lives = dict.fromkeys(WORKERS, 1)
        self.commands: list[tuple[str, LoadModel | UnloadModel]] = []
        self.numbers = 0
        self.said = 0
        self.cursors: dict[tuple[str, int], int] = {}
        self.texts: dict[tuple[str, bytes], tuple[int, int]] = {}
        self.starts(MONO_MS)

    def starts(self, mono_ms: int, wall_ms: int = WALL_MS) -> None:
        """Begin a life of the broker from what the journal holds."""
        memory = self.journal.memory(wall_ms) if self.journal.meta else a_memory()
        state, effects = recover(
            memory, self.broker_settings, Now(mono_ms, wall_ms), software="test", seed=7,
            fresh_id=b"i" * 16, fresh_secret=b"s",
        )  # fmt: skip
        self.broker = Broker(state)
        self.reads, self.commands, self.cursors, self.texts = [], [], {}, {}
        invariants.check(state)
        self.follows_up(effects)
        self.follows_up(self.broker.turn())

    # --- what comes of it

    def follows_up(self, effects: list[Effect]) -> None:
        """Do what the core asks for; check what it tells the peers."""
        for effect in effects:
            match effect:
                case Send():
                    self.hears(effect.peer.decode(), effect.message)
                case SendWork():
                    self.gets_work(effect)
                case Read():
                    self.reads.append(effect)
                case Publish() | WakeAt() | Log():
                    pass
                case _:
                    if isinstance(effect, JobAdded):
                        # An id that has been forgotten is that of another job, whose attempts begin at 1.
                        self.granted = {key for key in self.granted if key[0] != effect.job.id}
                    self.journal.apply(effect)

    def gets_work(self, work: SendWork) -> None:
        worker = work.peer.decode()
        sent = [lease for group in work.message.groups for lease in group.leases]
        assert len(sent) == len(work.numbers)
        for lease in sent:
            key = (lease.job_id, lease.epoch, lease.attempt)
            assert key not in self.granted, "an attempt number was used twice"
            self.granted.add(key)
            self.held[worker].append(key)
            here = self.broker.at(worker).instances[lease.instance_id]
            assert here.leased <= here.slots, "more leases than slots"
            assert not lease.alone or here.leased == 1, "a suspect in company"
            self.started(lease.job_id)

    def started(self, job_id: bytes) -> None:
        """A job starts when all its parents are done, and not before."""
        by_id = {job.id: job for job in self.journal.jobs.values()}
        job = by_id[job_id]
        for parent in job.terms.parents:
            found = by_id.get(parent)
            # It may be deleted since, and its id that of a younger job.
            if found is not None and found.number < job.number:
                assert found.state == "done", f"{job.number} starts and {found} is not done"

    def hears(self, peer: str, message: Any) -> None:
        if isinstance(message, LoadModel | UnloadModel):
            self.commands.append((peer, message))
            if isinstance(message, UnloadModel):
                self.unloads(peer, message.instance_id)
        elif isinstance(message, Subscribed):
            self.cursors[peer, message.subscription_id] = message.cursor
        elif isinstance(message, Events):
            place = (peer, message.subscription_id)
            assert message.before == self.cursors.get(place, message.before), "a gap in the events"
            self.cursors[place] = message.after
            assert [event.seq for event in message.events] == sorted({event.seq for event in message.events})
            assert all(message.before < event.seq <= message.after for event in message.events)
        elif isinstance(message, Text):
            place_of = (peer, message.job_id)
            attempt, piece = self.texts.get(place_of, (message.attempt, message.first - 1))
            assert message.first == (piece + 1 if message.attempt == attempt else 1), "a gap in the text"
            assert bool(message.restart) <= (message.attempt != attempt)
            self.texts[place_of] = (message.attempt, message.first + len(message.pieces) - 1)
        elif isinstance(message, Finished):
            assert len({end.job_id for end in message.jobs}) == len(message.jobs)
            assert all(end.state in FINAL or end.state == "deleted" for end in message.jobs)

    def unloads(self, name: str, instance_id: str) -> None:
        """Hold an unload against what was ordered."""
        worker, orders = self.broker.at(name), self.broker.state.orders
        here = worker.instances[instance_id]
        mine = [each for each in orders.values() if each.worker == name and each.model in here.names]
        assert here.leased == 0, "unloaded under a job"
        assert not any(each.kind == "pin" for each in mine), "a pinned model was unloaded"
        assert here.ours or any(each.kind == "unload" for each in mine), (
            "it is not ours, and nobody asked for it"
        )

    def says(self, name: str, message: Any, body: bytes = b"") -> None:
        """Let a message come in; every other time the turn ends behind it."""
        if name.encode() in self.broker.state.sessions:
            self.follows_up(self.broker.says(name, message, body))
            self.said += 1
            if self.said % 2:
                self.follows_up(self.broker.turn())

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    # --- rules

    @initialize()
    def people_come(self) -> None:
        for name in CLIENTS:
            self.follows_up(self.broker.client(name))
        self.comes_to_work("w1", 2, held=True)

    @rule(name=clients)
    def comes(self, name: str) -> None:
        for place in [place for place in self.cursors if place[0] == name]:
            del self.cursors[place]
        for reader in [reader for reader in self.texts if reader[0] == name]:
            del self.texts[reader]
        self.follows_up(self.broker.client(name))

    @rule(
        who=clients, batch=some_names, priority=st.integers(0, 9), wanted=models, follow=st.booleans(),
        atomic=st.booleans(), failures=st.integers(0, 3), wait=st.sampled_from([0, 0, 500, 4000]),
        expires=st.sampled_from([0, 0, 900, 9000]), key=st.sampled_from(["", "", "k1", "k2"]),
        task_type=st.sampled_from(["echo", "chat", "train"]), payload=st.sampled_from([b"", b"x", b"yy"]),
        parents=st.just([]) | st.lists(names, max_size=2),
    )  # fmt: skip
    def submit(
        self, who: str, batch: list[str], priority: int, wanted: list[str], follow: bool, atomic: bool, failures: int,
        wait: int, expires: int, key: str, task_type: str, payload: bytes, parents: list[str],
    ) -> None:  # fmt: skip
        jobs = [
            spec(
                name, payload=payload, task_type=task_type, priority=priority, models=wanted, failures=failures,
                delay_ms=wait, expires_ms=expires, key=key, timeout_ms=5000, keep_ms=3000,
                parents=[job_id(parent) for parent in parents],
            )
            for name in batch
        ]  # fmt: skip
        message = Submit(request_id=self.number(), jobs=jobs, follow=follow, atomic=atomic)
        self.says(who, message, payload * len(jobs))

    @rule(who=clients, batch=st.lists(names, min_size=2, max_size=5, unique=True), after=st.data(),
          priority=st.none() | st.integers(0, 9), atomic=st.booleans(), wait=st.sampled_from([0, 0, 2000]))  # fmt: skip
    def submits_a_family(
        self, who: str, batch: list[str], after: st.DataObject, priority: int | None, atomic: bool, wait: int
    ) -> None:
        """Each job waits for some of those before it."""
        jobs = []
        for at, name in enumerate(batch):
            parents = [batch[0]] if at else []
            if at > 1:
                parents = after.draw(st.lists(st.sampled_from(batch[:at]), min_size=1, unique=True))
            jobs.append(
                spec(
                    name, priority=priority if at % 2 else None, delay_ms=wait, keep_ms=3000,
                    parents=[job_id(parent) for parent in parents],
                )
            )  # fmt: skip
        self.says(who, Submit(request_id=self.number(), jobs=jobs, atomic=atomic))

    @rule(name=workers, slots=st.integers(0, 3), held=st.booleans())
    def comes_to_work(self, name: str, slots: int, held: bool) -> None:
        """A worker comes: for the first time, again after a moment, or as a new process."""
        if not held:
            self.follows_up(self.broker.breaks(name))
            self.lives[name] += 1
            self.held[name] = []
        mine = [
            Held(job_id=key[0], epoch=key[1], attempt=key[2], instance_id="i1") for key in self.held[name]
        ]
        loaded = [instance("i1", slots=slots), instance("i2", model="m1", kind="llm", slots=1)]
        enlist = idle(
            name, life=self.lives[name], instances=loaded, held=mine, catalog=on_disk("m1", "m2"), may_load=True,
            request_id=self.number(), task_types=["echo", "chat", "train"],
        )  # fmt: skip
        effects = self.broker.worker(enlist)
        for effect in effects:
            message = effect.message if isinstance(effect, Send) else None
            for lost in getattr(message, "stop", []):
                self.held[name].remove((lost.job_id, lost.epoch, lost.attempt))
        self.follows_up(effects)

    @rule(name=workers, at=st.integers(0, 9), again=st.booleans(), wait=st.sampled_from([0, 0, 2000]),
          outcome=st.sampled_from(["complete", "complete", "fail", "release", "crash", "stopped", "odd"]),
          shared=st.booleans(), permanent=st.booleans(), result=st.sampled_from([b"", b"result"]))  # fmt: skip
    def ends(
        self,
        name: str,
        at: int,
        again: bool,
        wait: int,
        outcome: str,
        shared: bool,
        permanent: bool,
        result: bytes,
    ) -> None:
        """A worker ends one of its leases; it may say so twice."""
        if not self.held[name]:
            return
        key = self.held[name][at % len(self.held[name])]
        end = Ended(
            job_id=key[0], epoch=key[1], attempt=key[2], outcome=outcome, result_bytes=len(result), shared=shared,
            permanent=permanent, retry_after_ms=wait, error=ErrorInfo("e", "it went wrong"), model="m1",
        )  # fmt: skip
        self.says(name, Results(ended=[end]), result)
        if not again:
            self.held[name].remove(key)

    @rule(name=workers, at=st.integers(0, 9), count=st.integers(1, 3), back=st.integers(0, 2))
    def writes(self, name: str, at: int, count: int, back: int) -> None:
        """A worker reports text, and some of it again."""
        if not self.held[name]:
            return
        key = self.held[name][at % len(self.held[name])]
        first = max(1, self.written.get(key, 0) + 1 - back)
        pieces = [Piece(channel="content", text=f"piece {first + number}") for number in range(count)]
        self.written[key] = max(self.written.get(key, 0), first + count - 1)
        report = Text(job_id=key[0], attempt=key[2], first=first, pieces=pieces)
        if name.encode() in self.broker.state.sessions:
            self.says(name, TextReport(texts=[report]))
        else:
            self.written[key] = first - 1

    @rule(
        name=workers,
        at=st.integers(0, 9),
        tokens=st.integers(0, 99),
        phase=st.sampled_from(["reading", "writing", "?"]),
    )
    def progresses(self, name: str, at: int, tokens: int, phase: str) -> None:
        if self.held[name]:
            key = self.held[name][at % len(self.held[name])]
            report = PhaseReport(job_id=key[0], attempt=key[2], phase=phase, tokens=tokens)
            self.says(name, Phases(leases=[report]))

    @rule(
        name=workers, slots=st.integers(0, 3), fails=st.booleans(), other=st.booleans(), busy=st.floats(0, 1)
    )
    def changes(self, name: str, slots: int, fails: bool, other: bool, busy: float) -> None:
        """A worker's endpoint changes."""
        if name.encode() in self.broker.state.sessions:
            loaded = [instance("i1", slots=slots)] if slots else []
            if other:
                loaded.append(instance("i3", model="m2", kind="llm", slots=2, ours=True))
            breaker = Breaker(since_ms=1, reason="down") if fails else None
            self.follows_up(self.broker.has_capacity(
                name, *loaded, breaker=breaker, catalog=on_disk("m1", "m2"), may_load=True,
                host=HostLoad(cpu_ratio=busy),
            ))  # fmt: skip

    @precondition(lambda self: self.commands)
    @rule(
        code=st.sampled_from(["", "", "insufficient_memory", "model_not_found", "load_failed"]), obeys=st.booleans()
    )  # fmt: skip
    def loaded(self, code: str, obeys: bool) -> None:
        """An endpoint has done what it was told; or says so; or could not."""
        name, command = self.commands.pop(0)
        if not code and obeys and name.encode() in self.broker.state.sessions:
            self.shows(name, command)
        failed = ErrorInfo(code, "no") if code else None
        self.says(name, LoadEnded(command_id=command.command_id, error=failed))

    def shows(self, name: str, command: LoadModel | UnloadModel) -> None:
        """Report what is loaded after a load or unload."""
        before = self.broker.at(name).capacity
        loaded = list(before.instances)
        if isinstance(command, LoadModel):
            loaded.append(
                instance(f"{command.model}:{self.number()}", model=command.model, kind="llm", ours=True)
            )
        else:
            loaded = [each for each in loaded if each.instance_id != command.instance_id]
        self.follows_up(self.broker.says(name, CapacityReport(
            capacity=msgspec.structs.replace(before, instances=loaded),
        )))  # fmt: skip

    @rule(who=clients, name=workers, kind=st.sampled_from(["load", "pin", "unload"]),
          model=st.sampled_from(["m1", "m2"]), pinned=st.booleans(), ours=st.booleans())  # fmt: skip
    def gets_its_way(self, who: str, name: str, kind: str, model: str, pinned: bool, ours: bool) -> None:
        """The ordinary case: an endpoint that holds one model, and is busy, is told, and obeys until all is done."""
        if name.encode() not in self.broker.state.sessions or who.encode() not in self.broker.state.sessions:
            return
        there = instance("i3", model="m2", kind="llm", slots=1, ours=ours)
        self.follows_up(self.broker.has_capacity(
            name, there, catalog=on_disk("m1", "m2"), may_load=True, models_max=1,
        ))  # fmt: skip
        self.says(who, Submit(request_id=self.number(), jobs=[self.a_chat("m2")]))
        self.follows_up(self.broker.turn())
        if pinned:
            self.says(who, OrderModel(request_id=self.number(), kind="pin", model="m2", worker=name))
        self.says(who, OrderModel(request_id=self.number(), kind=kind, model=model, worker=name))
        self.says(who, Submit(request_id=self.number(), jobs=[self.a_chat("m1")]))
        for seconds in range(60):
            self.says(who, Heartbeat())
            self.says(name, Heartbeat())
            self.follows_up(self.broker.turn(1000))
            while self.commands:
                self.loaded("", True)
            if seconds == 40:
                self.works(name, "complete")

    def a_chat(self, model: str) -> JobSpec:
        """Return a job that is not there yet, if one of its names is free."""
        free = [name for name in NAMES if job_id(name) not in self.broker.state.jobs]
        return spec((free or NAMES)[0], task_type="chat", models=[model], priority=9)

    @rule(name=st.sampled_from([*CLIENTS, *WORKERS]), how=st.sampled_from(["breaks", "clogged", "bye"]))
    def leaves(self, name: str, how: str) -> None:
        if how == "breaks":
            self.follows_up(self.broker.breaks(name))
        elif how == "clogged":
            self.follows_up(self.broker.step(PeerClogged(PeerId(name.encode()))))
        else:
            self.says(name, Bye())
            if name in WORKERS:
                self.held[name] = []

    @rule(after_ms=moments, heard=st.lists(st.sampled_from([*CLIENTS, *WORKERS]), max_size=4))
    def time_passes(self, after_ms: int, heard: list[str]) -> None:
        for name in heard:
            self.says(name, Heartbeat())
        self.follows_up(self.broker.turn(after_ms))

    @rule(by_ms=st.sampled_from([-3_600_000, -100, 100, 3_600_000]))
    def the_wall_clock_jumps(self, by_ms: int) -> None:
        self.broker.wall_ms += by_ms

    @rule(full=st.booleans())
    def the_disk_fills(self, full: bool) -> None:
        self.follows_up(self.broker.step(DiskChanged("full" if full else "", 1, 2)))

    @precondition(lambda self: self.reads)
    @rule(count=st.integers(1, 5))
    def the_disk_answers(self, count: int) -> None:
        for _ in range(min(count, len(self.reads))):
            request = self.reads.pop(0).request
            self.follows_up(self.broker.reads(request, self.journal.answer(request)))

    @rule(
        who=clients, batch=some_names, kind=st.sampled_from([Cancel, Retry, Delete]), by_filter=st.booleans()
    )
    def acts(self, who: str, batch: list[str], kind: Any, by_filter: bool) -> None:
        match = JobFilter(queue="default")
        target = Target(match=match) if by_filter else Target(job_ids=[job_id(name) for name in batch])
        self.says(who, kind(request_id=self.number(), target=target))

    @rule(who=clients, name=names, priority=st.none() | st.integers(0, 9), expires=st.sampled_from([None, 0, 2000]),
          queue=st.sampled_from([None, "default", "night"]), wanted=st.none() | models,
          labels=st.sampled_from([None, {}, {"a": "b"}]))  # fmt: skip
    def updates(self, who: str, name: str, **fields: Any) -> None:
        fields["models"] = fields.pop("wanted")
        fields["expires_ms"] = fields.pop("expires")
        self.says(who, Update(request_id=self.number(), target=Target(job_ids=[job_id(name)]), **fields))

    @rule(
        who=clients,
        batch=some_names,
        what=st.sampled_from(["follow", "text", "unfollow"]),
        credit=st.integers(0, 20),
    )
    def follows(self, who: str, batch: list[str], what: str, credit: int) -> None:
        ids = [job_id(name) for name in batch]
        if what == "follow":
            self.says(who, Follow(request_id=self.number(), job_ids=ids))
        elif what == "un":
            self.says(who, Unfollow(job_ids=ids))
        else:
            self.texts.pop((who, ids[0]), None)
            self.says(who, FollowText(request_id=self.number(), job_id=ids[0], credit_bytes=credit))

    @rule(who=clients, number=st.integers(1, 2), cursor=st.integers(-1, 30), credit=st.integers(0, 5),
          since=st.booleans(), kinds=st.sampled_from([[], ["done"], ["accepted", "started"]]))  # fmt: skip
    def subscribes(
        self, who: str, number: int, cursor: int, credit: int, since: bool, kinds: list[str]
    ) -> None:
        self.cursors.pop((who, number), None)
        self.says(who, Subscribe(
            request_id=self.number(), subscription_id=number, cursor=cursor, credit=credit,
            since_ms=WALL_MS + 2000 if since else 0, match=EventFilter(kinds=kinds),
        ))  # fmt: skip

    @rule(who=clients, name=names, amount=st.integers(1, 600), number=st.integers(1, 2), stop=st.booleans())
    def grants(self, who: str, name: str, amount: int, number: int, stop: bool) -> None:
        if stop:
            self.says(who, Unsubscribe(subscription_id=number))
        else:
            self.says(who, Credit(results_bytes=amount, subscription_id=number, events=amount,
                                  job_id=job_id(name), text_bytes=amount))  # fmt: skip

    @rule(
        who=clients,
        noun=st.sampled_from(["queue", "worker"]),
        what=st.sampled_from(["pause", "now", "drain", "resume"]),
    )
    def steers(self, who: str, noun: str, what: str) -> None:
        name = "default" if noun == "queue" else "w1"
        if what == "resume":
            self.says(who, Resume(request_id=self.number(), noun=noun, name=name))
        elif what == "drain":
            self.says(who, Drain(request_id=self.number(), noun=noun, name=name))
        else:
            self.says(
                who, Pause(request_id=self.number(), noun=noun, name=name, for_ms=3000, now=what == "now")
            )

    @rule(who=clients, user=clients, weight=st.sampled_from([None, 0.5, 4.0]),
          ceiling=st.sampled_from([None, 0, 6]), takes_back=st.booleans())  # fmt: skip
    def gives(self, who: str, user: str, weight: float | None, ceiling: int | None, takes_back: bool) -> None:
        """Somebody gives a user a weight or a ceiling, or takes both back."""
        if takes_back:
            self.says(who, ResetUser(request_id=self.number(), user=user))
        else:
            self.says(who, SetUser(request_id=self.number(), user=user, weight=weight, ceiling=ceiling))

    @rule(who=clients, name=workers, kind=st.sampled_from(["load", "unload", "pin", "pin", "unpin"]),
          model=st.sampled_from(["m1", "m2", "fast", "i3"]), everywhere=st.booleans(),
          for_ms=st.sampled_from([0, 0, 2000]))  # fmt: skip
    def orders(self, who: str, name: str, kind: str, model: str, everywhere: bool, for_ms: int) -> None:
        """Somebody wants a model loaded, unloaded or kept."""
        where = "" if everywhere and kind in ("unload", "unpin") else name
        self.says(
            who, OrderModel(request_id=self.number(), kind=kind, model=model, worker=where, for_ms=for_ms)
        )

    @rule(who=clients, stands_for=st.sampled_from([[], ["m1"], ["m2"], ["m2", "m1"]]), reset=st.booleans(),
          default=st.sampled_from([None, "", "m1", "fast"]))  # fmt: skip
    def renames(self, who: str, stands_for: list[str], reset: bool, default: str | None) -> None:
        """Somebody changes what names stand for."""
        if default is None:
            self.says(who, SetAlias(request_id=self.number(), name="fast", models=stands_for, reset=reset))
        else:
            self.says(
                who,
                SetDefaultModel(request_id=self.number(), task_type="chat", model=default, reset=reset),
            )

    @rule(who=clients, name=names)
    def looks(self, who: str, name: str) -> None:
        for message in (
            Status(request_id=self.number(), job_ids=[job_id(name)]),
            Why(request_id=self.number(), job_id=job_id(name)),
            ListQueues(request_id=self.number()),
            ListWorkers(request_id=self.number()),
            ListUsers(request_id=self.number()),
            ListModels(request_id=self.number()),
            Health(request_id=self.number()),
            Usage(request_id=self.number(), by=["user"]),
            Metrics(request_id=self.number(), users=True),
        ):
            self.says(who, message)

    @rule(who=clients, batch=st.lists(names, min_size=1, max_size=4, unique=True))
    def submits_and_watches(self, who: str, batch: list[str]) -> None:
        """The ordinary case, so that there is always something to break."""
        self.says(who, Subscribe(request_id=self.number(), subscription_id=3, credit=50))
        self.says(who, Submit(request_id=self.number(), jobs=[spec(name) for name in batch], follow=True))
        for name in batch:
            self.texts.pop((who, job_id(name)), None)
            self.says(who, FollowText(request_id=self.number(), job_id=job_id(name)))

    @rule(name=workers, outcome=st.sampled_from(["complete", "fail", "release"]))
    def works(self, name: str, outcome: str) -> None:
        """A worker writes and ends all that it has."""
        for at in range(len(self.held[name])):
            self.writes(name, at, 2, 0)
        while self.held[name]:
            self.ends(name, 0, False, 0, outcome, False, False, b"result" if outcome == "complete" else b"")

    @rule(chance=st.integers(0, 3))
    def the_broker_starts_again(self, chance: int) -> None:
        """All that was journaled is there again; all sessions are gone, but their owners come back."""
        if chance:
            return
        self.follows_up(self.broker.turn())
        self.starts_again()

    def starts_again(self) -> None:
        self.starts(self.broker.mono_ms, self.broker.wall_ms)
        for name in CLIENTS:
            self.follows_up(self.broker.client(name))

    @precondition(lambda self: self.much_waited_for())
    @rule(dies=st.booleans())
    def one_for_which_several_wait_is_cancelled(self, dies: bool) -> None:
        """The broker may die while not all of them have been told."""
        target = Target(job_ids=self.much_waited_for()[:1])
        self.follows_up(self.broker.says("ann", Cancel(request_id=self.number(), target=target)))
        self.follows_up(self.broker.turn())
        if dies:
            self.starts_again()

    def much_waited_for(self) -> list[bytes]:
        """Return the open jobs for which several wait, while ann is there to cancel them."""
        state = self.broker.state
        many = [id_ for id_, children in state.children.items() if len(children) > 1 and id_ in state.jobs]
        return many if b"ann" in state.sessions else []

    # --- at the end

    def teardown(self) -> None:
        """Once faults stop, all that is open comes to its end."""
        try:
            self.all_ends()
        finally:
            self.short_steps.stop()

    def all_ends(self) -> None:
        broker = self.broker
        self.follows_up(broker.step(DiskChanged("", 9, 1)))
        self.follows_up(broker.client("ann"))
        for noun, held in (("queue", broker.state.queue_holds), ("worker", broker.state.worker_holds)):
            for name in list(held):
                self.says("ann", Resume(request_id=self.number(), noun=noun, name=name))
        # However far the wall clock went back, it comes forward again.
        broker.wall_ms = max([broker.wall_ms, *(job.due_at_ms for job in broker.state.jobs.values())])
        self.says("w1", Bye())
        self.says("w2", Bye())
        self.held = {name: [] for name in WORKERS}
        self.lives["w1"] += 1
        loaded = [instance("i1", slots=2)]
        enlist = idle("w1", life=self.lives["w1"], instances=loaded, request_id=self.number())
        for _ in range(500):
            if "w1" not in broker.state.workers or broker.at("w1").instance != enlist.instance:
                self.follows_up(broker.worker(enlist))
            while self.held["w1"]:
                self.ends("w1", 0, False, 0, "complete", False, False, b"")
            self.says("ann", Heartbeat())
            self.says("w1", Heartbeat())
            self.follows_up(broker.turn(1000))
            while self.reads:
                self.the_disk_answers(1)
            if not broker.state.jobs:
                break
        assert not broker.state.jobs, "it does not come to an end"
        known = {job.id for job in self.journal.jobs.values()}
        assert set(broker.state.finished) == known
        ended = Counter(str(event.kind) for event in self.journal.events if event.kind in FINAL)
        counted = sum(self.journal.usage.values(), Counter())
        assert {state: counted[state] for state in FINAL} == {state: ended[state] for state in FINAL}
        for number, job in self.journal.jobs.items():
            assert job.state in FINAL
            assert job.state == "done" or number not in self.journal.results


class AnyOrderFair(AnyOrder):
    """The same under the fair policy."""

    broker_settings = msgspec.structs.replace(SETTINGS, policy="blfq")


TestAnyOrder = AnyOrder.TestCase
TestAnyOrderFair = AnyOrderFair.TestCase
TestAnyOrder.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestAnyOrderFair.settings = TestAnyOrder.settings
