"""People: what they do at random, and the ledger of what they were told.

A `Person` talks over a `Line`: the plain one in `clients`, or the SDK's own thinking in `real_clients`. What a reader
is promised is checked here: texts without a hole or a splice, events without a gap, results of the right attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from lmq_proto.errors import ErrorInfo
from lmq_proto.ids import job_id as new_job_id, short
from lmq_proto.messages import (
    Cancel,
    Changed,
    Delete,
    Drain,
    EventFilter,
    FromPeer,
    GetPayload,
    Health,
    JobEnd,
    JobFilter,
    JobSpec,
    Limit,
    ListJobs,
    ListModels,
    ListQueues,
    ListWorkers,
    OrderModel,
    Outcome,
    Pause,
    Payload,
    Piece,
    ResetLimits,
    Resume,
    Retry,
    SetAlias,
    SetDefaultModel,
    SetLimit,
    Status,
    Submit,
    Target,
    Update,
    Why,
)
from lmq_proto.states import FINAL, State
from simulation.workers import EMBEDDERS, MODELS, TASK_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from lmq_proto.events import Event
    from simulation.checks import Checks
    from simulation.world import World

QUEUES = ("default", "slow", "queries")
WORKERS = ("w0", "w1", "w2")
UNHEARD_OF = "unheard-of"
ALIAS = "fast"


class TextRead:
    """What one reader was shown of a job's text."""

    def __init__(self) -> None:
        self.attempt = 0
        self.pieces = 0
        self.shown = ""
        self.final = False
        self.refused = False
        """There was no such job, when it was asked for."""
        self.is_over = False
        """The channel `end` came."""

    def begin(self, attempt: int) -> None:
        self.attempt, self.pieces, self.shown, self.is_over = attempt, 0, "", False

    def add(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            assert not self.is_over, "text after the end of an attempt"
            if piece.channel == "end":
                self.is_over = True
            else:
                self.shown += piece.text
        self.pieces += len(pieces)

    def check(self, job_id: bytes) -> int:
        """Return how many tokens were shown, all of one lease, none missing or twice."""
        tokens = self.shown.split(";")[:-1]
        if not tokens:
            return 0
        name, epoch, attempt, _ = tokens[0].split(":")
        assert name == job_id.hex()[-8:], "text of another job"
        assert int(attempt) == self.attempt, f"text of attempt {attempt} shown as of {self.attempt}"
        expected = [f"{name}:{epoch}:{attempt}:{number}" for number in range(1, len(tokens) + 1)]
        assert tokens == expected, f"spliced: {self.shown}"
        return len(tokens)


class EventRead:
    """What one subscription was told."""

    def __init__(self, match: EventFilter) -> None:
        self.match = match
        self.begin: int | None = None
        self.cursor = 0
        self.events: list[Event] = []
        self.expired = False


class Line(Protocol):
    """How a person talks to the broker."""

    def command(self, message: FromPeer, body: bytes, answered: Callable[[object, bytes], None]) -> None: ...

    def submit(
        self, message: Submit, payloads: list[bytes], answered: Callable[[list[Outcome] | None], None]
    ) -> None: ...

    def follow(self, job_ids: list[bytes]) -> None: ...

    def read_text(self, job_id: bytes, read: TextRead) -> None: ...

    def read_events(self, read: EventRead, cursor: int) -> None: ...

    def leave_ends(self, job_ids: list[bytes]) -> None: ...

    def leave_text(self, job_id: bytes) -> None: ...

    def leave_events(self, read: EventRead) -> None: ...

    def unsettled(self) -> str: ...


class Person:
    """Someone who submits jobs, looks, acts, reads, and remembers all that it was told."""

    def __init__(
        self,
        world: World,
        checks: Checks,
        name: str,
        *,
        batch_max: int,
        kin: Random | None,
        rules: Random | None,
    ) -> None:
        self.world = world
        self.checks = checks
        self.name = name
        self.line: Line | None = None
        self.batch_max = batch_max
        self.kin = kin
        """Chooses for which jobs others wait; None: for none."""
        self.rules = rules
        """Chooses limits, sessions, merge keys and resources; None: there are none."""
        self.specs: dict[bytes, JobSpec] = {}
        self.mine: dict[bytes, bool | None] = {}
        """Jobs submitted: accepted, refused, not known yet."""
        self.ends: dict[bytes, tuple[JobEnd, bytes]] = {}
        self.deleted: set[bytes] = set()
        self.texts: dict[bytes, TextRead] = {}
        self.reads: list[EventRead] = []
        self.keys: dict[str, bytes] = {}
        self.actions_left = 0

    # --- acting ---

    def act(self) -> None:
        """Do something, if there is anything left to do; then again a while later."""
        if not self.world.raging or not self.actions_left:
            return
        self.actions_left -= 1
        random = self.world.random
        action = random.choices(
            (self.submit, self.change, self.look, self.read, self.leave, self.hold, self.steer),
            (30, 20, 10, 25, 5, 5, 8),
        )[0]
        action()
        if self.rules is not None and self.rules.random() < 0.15:
            self.limit(self.rules)
        self.world.after(random.choice((0, 20, 300, 2000, 6000)), self.act)

    @property
    def talk(self) -> Line:
        assert self.line is not None
        return self.line

    def submit(self) -> None:
        """Submit one job or some."""
        random = self.world.random
        count = random.choice((1, 1, 2, self.batch_max))
        specs: list[JobSpec] = []
        payloads: list[bytes] = []
        for _ in range(count):
            spec, payload = self._new_spec()
            specs.append(spec)
            payloads.append(payload)
            self.specs[spec.id] = spec
            self.mine[spec.id] = None
            self.checks.submitted[spec.id] = payload
        for spec, payload in self._more_like(specs, payloads):
            specs.append(spec)
            payloads.append(payload)
            self.specs[spec.id] = spec
            self.mine[spec.id] = None
            self.checks.submitted[spec.id] = payload
        if self.specs and random.random() < 0.1:
            # The same job once more, from another thread of the same program.
            again = random.choice(list(self.specs.values()))
            if again.id not in [spec.id for spec in specs]:
                specs.append(again)
                payloads.append(self.checks.submitted[again.id])
        atomic = len(specs) > 1 and random.random() < 0.3
        message = Submit(request_id=0, jobs=specs, atomic=atomic, follow=random.random() < 0.5)
        if message.follow:
            self.wanted(spec.id for spec in specs)
        self.talk.submit(message, payloads, lambda outcomes: self._submitted(message, outcomes))

    def wanted(self, job_ids: object) -> None:
        """Note that the ends of jobs are asked for."""

    def _new_spec(self) -> tuple[JobSpec, bytes]:
        random = self.world.random
        payload = random.randbytes(random.choice((0, 8, 40)))
        key = ""
        if random.random() < 0.2:
            key = f"key-{random.randrange(6)}"
            if key in self.keys and random.random() < 0.8:
                payload = self.checks.submitted[self.keys[key]]
        task_type = random.choice(TASK_TYPES)
        models = [random.choice(EMBEDDERS if task_type == "embed" else MODELS)]
        if random.random() < 0.2:
            models = [random.choice(EMBEDDERS), *models] if task_type == "embed" else list(MODELS)
        elif random.random() < 0.2 and task_type != "embed":
            models = random.choice(([ALIAS], [ALIAS, *models]))
        elif random.random() < 0.2 and task_type == "chat":
            models = []
        job = JobSpec(
            id=new_job_id(self.world.wall_ms, random.randbytes(10)),
            task_type=task_type,
            payload_bytes=len(payload),
            queue=random.choice(("", *QUEUES)),
            priority=random.choice((None, None, *range(10))),
            models=[UNHEARD_OF] if random.random() < 0.06 else models,
            labels={"chat": str(random.randrange(3))} if random.random() < 0.3 else {},
            key=key,
            delay_ms=random.choice((0, 0, 0, 0, 400, 5000, 20_000)),
            expires_ms=random.choice((0, 0, 0, 500, 8000, 30_000)),
            timeout_ms=random.choice((0, 2000, 6000, 30_000)),
            failures=random.choice((0, 0, 1, 5)),
            keep_ms=random.choice((0, 0, 0, 1000, 10_000)),
            parents=self._parents(),
            **self._wishes(task_type),
        )
        if key:
            self.keys.setdefault(key, job.id)
        return job, payload

    def _wishes(self, task_type: str) -> dict[str, Any]:
        """Return what a job may say of where and with whom it runs."""
        rules = self.rules
        if rules is None:
            return {}
        wishes: dict[str, Any] = {"session": rules.choice(("", "", "s1", "s2"))}
        if task_type == "embed":
            wishes["merge"] = rules.choice(("", "one", "one", "two"))
        if task_type == "train":
            wishes["uses"] = rules.choice(([], [], ["disk"], [rules.choice(WORKERS)], ["disk", WORKERS[0]]))
        return wishes

    def _more_like(self, specs: list[JobSpec], payloads: list[bytes]) -> list[tuple[JobSpec, bytes]]:
        """Return more embeddings like the last one, that may ride with it."""
        rules = self.rules
        if rules is None or not specs[-1].merge or specs[-1].key:
            return []
        room = min(self.batch_max - len(specs), rules.randint(0, 6))
        return [
            (
                msgspec.structs.replace(
                    specs[-1], id=new_job_id(self.world.wall_ms, rules.randbytes(10)), parents=[]
                ),
                payloads[-1],
            )
            for _ in range(room)
        ]

    def limit(self, rules: Random) -> None:
        """Set a limit under which all comes to its end some day, or take limits back."""
        if rules.random() < 0.2:
            self.talk.command(ResetLimits(request_id=0), b"", _ignore)
            return
        of = rules.choice(("running", "running", "queued", "bytes", "jobs", "tokens", "depth", "wait"))
        value = float(rules.randint(1, 5) * (100 if of in ("bytes", "tokens", "wait") else 1))
        names: dict[str, Any] = {
            "queue": rules.choice(("", *QUEUES)),
            "task_type": rules.choice(("", *TASK_TYPES)),
        }
        if of not in ("depth", "wait"):
            names["user"] = rules.choice(("", "*", self.name))
        if of == "running" and rules.random() < 0.3:
            names["worker"] = rules.choice(WORKERS)
        rate: dict[str, Any] = {}
        if of in ("jobs", "tokens"):
            rate = {"per_ms": rules.choice((200, 1000)), "refuse": rules.random() < 0.3}
        limit = Limit(of=of, value=value, **names, **rate)
        self.talk.command(SetLimit(request_id=0, limit=limit), b"", _ignore)

    def _parents(self) -> list[bytes]:
        """Return some jobs that are to be done first: mostly the latest of my own, whatever became of them."""
        kin = self.kin
        if kin is None or kin.random() < 0.5:
            return []
        known = list(self.specs)[-kin.choice((1, 3, 30)) :]
        if self.checks.accepted and kin.random() < 0.1:
            known.append(kin.choice(sorted(self.checks.accepted)))
        found = kin.sample(known, min(len(known), kin.choice((1, 1, 2, 3))))
        return list(dict.fromkeys(found))

    def _submitted(self, message: Submit, outcomes: list[Outcome] | None) -> None:
        specs = message.jobs
        if outcomes is None:
            for spec in specs:
                if self.mine.get(spec.id) is None:
                    self.mine[spec.id] = False
            return
        assert len(outcomes) == len(specs)
        refused = [outcome for outcome in outcomes if outcome.outcome == "refused"]
        if message.atomic:
            assert len(refused) in (0, len(specs)), "an atomic batch was accepted in part"
        for spec, outcome in zip(specs, outcomes, strict=True):
            if outcome.outcome == "refused":
                if self.mine.get(spec.id) is None:
                    self.mine[spec.id] = False
            else:
                if outcome.job_id != spec.id:
                    assert spec.key, "another job without a key"
                    assert self.checks.submitted[outcome.job_id] == self.checks.submitted[spec.id]
                    self.mine[spec.id] = False
                self.mine[outcome.job_id] = True
                assert outcome.channel

    def _some(self) -> list[bytes]:
        """Return some jobs, mostly my own."""
        random = self.world.random
        known = [job_id for job_id, accepted in self.mine.items() if accepted]
        found = random.sample(known, min(len(known), random.choice((1, 1, 3))))
        if self.checks.accepted and random.random() < 0.2:
            found.append(random.choice(sorted(self.checks.accepted)))
        if random.random() < 0.03:
            found.append(random.randbytes(16))
        return list(dict.fromkeys(found))

    def change(self) -> None:
        """Cancel, retry, update or delete jobs, by id or by filter."""
        random = self.world.random
        target = Target(job_ids=self._some())
        if random.random() < 0.1:
            target = Target(match=self._filter())
        if not target.job_ids and target.match is None:
            return
        if_attempt = random.choice((None, None, None, 1))
        what = random.choices(("cancel", "retry", "delete", "update"), (25, 40, 15, 20))[0]
        message: FromPeer
        if what == "cancel":
            message = Cancel(request_id=0, target=target, if_attempt=if_attempt)
        elif what == "retry":
            message = Retry(request_id=0, target=target, if_attempt=if_attempt)
        elif what == "delete":
            message = Delete(request_id=0, target=target)
        else:
            message = Update(
                request_id=0,
                target=target,
                priority=random.choice((None, 0, 9)),
                queue=random.choice((None, *QUEUES)),
                labels=random.choice((None, {"chat": "1"})),
                expires_ms=random.choice((None, None, 0, 3000)),
                timeout_ms=random.choice((None, 0, 3000)),
                failures=random.choice((None, 1, 4)),
                if_attempt=if_attempt,
            )
        self.talk.command(message, b"", lambda reply, _: self._changed(what, reply))

    def _filter(self) -> JobFilter:
        random = self.world.random
        return JobFilter(
            user=random.choice(("", self.name)), queue=random.choice(("", *QUEUES)),
            labels=random.choice(({}, {"chat": "1"})),
            states=random.choice(([], ["ready", "delayed"], ["dead", "done"])),
        )  # fmt: skip

    def _changed(self, what: str, reply: object) -> None:
        if not isinstance(reply, Changed):
            assert isinstance(reply, ErrorInfo), reply
            return
        for outcome in reply.outcomes:
            if outcome.outcome == "changed" and what == "delete":
                self.deleted.add(outcome.job_id)
            elif outcome.outcome == "changed" and what == "retry":
                self.ends.pop(outcome.job_id, None)

    def look(self) -> None:
        """Ask for something and be satisfied with any answer that fits."""
        random = self.world.random
        some = self._some() or [random.randbytes(16)]
        ending = short(some[0]) if random.random() < 0.3 else ""
        match = msgspec.structs.replace(self._filter(), id_ending=ending)
        message: FromPeer = random.choice(
            (
                Status(request_id=0, job_ids=some), ListJobs(request_id=0, match=match, limit=3),
                GetPayload(request_id=0, job_id=some[0]), Why(request_id=0, job_id=some[0]),
                ListQueues(request_id=0), ListWorkers(request_id=0), ListModels(request_id=0), Health(request_id=0),
            )
        )  # fmt: skip
        self.talk.command(message, b"", self._looked)

    def _looked(self, reply: object, body: bytes) -> None:
        if isinstance(reply, Payload):
            assert self.checks.submitted[reply.job.id] == body

    def read(self) -> None:
        """Begin to follow ends, a text, or events."""
        random = self.world.random
        some = self._some()
        what = random.randrange(3)
        if what == 0 and some:
            self.talk.follow(some)
        elif what == 1 and some and some[0] not in self.texts:
            # The newest are the likeliest to be written just now.
            newest = [job_id for job_id in self.mine if job_id not in self.texts][-3:]
            for job_id in (some[0], *newest):
                self.texts[job_id] = TextRead()
                self.talk.read_text(job_id, self.texts[job_id])
        elif what == 2 and len(self.reads) < 4:
            match = EventFilter()
            if random.random() < 0.4:
                match = EventFilter(
                    user=random.choice(("", self.name)), queue=random.choice(("", QUEUES[0])),
                    kinds=random.choice(([], ["done", "started"])),
                )  # fmt: skip
            read = EventRead(match)
            self.reads.append(read)
            self.talk.read_events(read, random.choice((-1, -1, 0, 5)))

    def leave(self) -> None:
        """Stop reading something."""
        random = self.world.random
        what = random.randrange(3)
        reading = [job_id for job_id, read in self.texts.items() if not read.final]
        if what == 0 and reading:
            job_id = random.choice(reading)
            del self.texts[job_id]
            self.talk.leave_text(job_id)
        elif what == 1 and self.reads:
            read = self.reads.pop(random.randrange(len(self.reads)))
            self.talk.leave_events(read)
            self._check_events(read)
        else:
            self.talk.leave_ends(self._some())

    def hold(self) -> None:
        """Pause, drain or resume a queue or a worker."""
        random = self.world.random
        noun, name = random.choice((("queue", random.choice(QUEUES)), ("worker", "w0"), ("worker", "w1")))
        message: FromPeer = random.choice(
            (
                Pause(
                    request_id=0, noun=noun, name=name, for_ms=random.choice((0, 2000)), now=random.random() < 0.5
                ),
                Drain(request_id=0, noun=noun, name=name),
                Resume(request_id=0, noun=noun, name=name),
                Resume(request_id=0, noun=noun, name=name),
            )
        )  # fmt: skip
        self.talk.command(message, b"", _ignore)

    def steer(self) -> None:
        """Order a model somewhere, or say what names stand for."""
        random = self.world.random
        model = random.choice((*MODELS, *EMBEDDERS, ALIAS, UNHEARD_OF))
        kind = random.choice(("load", "unload", "pin", "unpin"))
        worker = random.choice(WORKERS)
        if kind in ("unload", "unpin") and random.random() < 0.3:
            worker = ""
        stands_for = random.choice(([], [MODELS[0]], list(MODELS)))
        message: FromPeer = random.choice(
            (
                OrderModel(
                    request_id=0, kind=kind, model=model, worker=worker, for_ms=random.choice((0, 0, 3000))
                ),
                SetAlias(request_id=0, name=ALIAS, models=stands_for, reset=random.random() < 0.2),
                SetDefaultModel(request_id=0, task_type="chat", model=random.choice((*MODELS, ALIAS))),
            )
        )  # fmt: skip
        self.talk.command(message, b"", _ignore)

    def resume_all(self) -> None:
        """Let everything go on, and ask for the end of every job of mine that was accepted."""
        for noun, names in (("queue", QUEUES), ("worker", WORKERS)):
            for name in names:
                self.talk.command(Resume(request_id=0, noun=noun, name=name), b"", _ignore)
        for model in (*MODELS, *EMBEDDERS):
            self.talk.command(OrderModel(request_id=0, kind="unpin", model=model), b"", _ignore)
        self.talk.command(SetAlias(request_id=0, name=ALIAS, models=list(MODELS)), b"", _ignore)
        self.follow_open()

    def give_up(self) -> None:
        """Cancel the jobs whose model nobody has: they would wait for ever."""
        for job_id, spec in self.specs.items():
            if spec.models == [UNHEARD_OF]:
                self.talk.command(Cancel(request_id=0, target=Target(job_ids=[job_id])), b"", _ignore)

    def follow_open(self) -> None:
        """Follow all jobs of mine whose end is not known."""
        wanted = [job_id for job_id, accepted in self.mine.items() if accepted and job_id not in self.ends]
        for start in range(0, len(wanted), self.batch_max):
            self.talk.follow(wanted[start : start + self.batch_max])

    # --- being told ---

    def job_ended(self, end: JobEnd, result: bytes) -> None:
        """Take the end of a job that was followed."""
        if end.state == State.DONE:
            self._check_result(end, result)
        self.ends[end.job_id] = (end, result)

    def _check_result(self, end: JobEnd, result: bytes) -> None:
        if result:
            name, _, attempt, _ = result.rstrip(b".").decode().split(":")
            assert name == end.job_id.hex()[-8:], "the result of another job"
            assert int(attempt) == end.attempt, "the result of another attempt"

    def text_came(self, job_id: bytes, read: TextRead) -> None:
        """Check a text each time it grows."""
        read.check(job_id)

    def events_came(self, read: EventRead) -> None:
        """Check a subscription each time it grows."""
        seqs = [event.seq for event in read.events[-200:]]
        assert seqs == sorted(set(seqs)), "events twice, or out of order"

    # --- the end of the world ---

    def unsettled(self) -> str:
        """Say what this person still waits for."""
        unknown = sum(accepted is None for accepted in self.mine.values())
        if unknown:
            return f"{unknown} submits without an outcome"
        waiting = sum(accepted is True and job_id not in self.ends for job_id, accepted in self.mine.items())
        if waiting:
            return f"{waiting} jobs whose end was not told"
        reading = sum(not read.final for read in self.texts.values())
        if reading:
            return f"{reading} texts without an end"
        return self.talk.unsettled()

    def check_end(self) -> None:
        """Hold what was told against what the journal keeps, now that all is still."""
        tables = self.checks.disk.tables
        for job_id, accepted in self.mine.items():
            if accepted:
                assert job_id in tables.added
                job = tables.job(job_id)
                assert job is None or job.state in FINAL
        for job_id, read in self.texts.items():
            self._check_text(job_id, read)
        for events_read in self.reads:
            self._check_events(events_read)

    def _check_events(self, read: EventRead) -> None:
        """Compare what a subscription was told with all there was to tell."""
        if read.begin is None or read.expired:
            return
        match = read.match
        wanted = [
            event.seq
            for seq, event in sorted(self.checks.kept_events().items())
            if read.begin < seq <= read.cursor
            and (not match.user or event.user == match.user)
            and (not match.queue or event.queue == match.queue)
            and (not match.kinds or event.kind in match.kinds)
        ]
        assert [event.seq for event in read.events] == wanted, "events are missing"

    def _check_text(self, job_id: bytes, read: TextRead) -> None:
        job = self.checks.disk.tables.job(job_id)
        shown = read.check(job_id)
        if job is None or job.state != State.DONE or self.checks.evil or read.refused:
            return
        tables = self.checks.disk.tables
        if job.number in tables.retried or job_id in tables.deleted:
            # The last word may have been of an earlier end, or of an earlier job of this id.
            return
        result = self.checks.disk.tables.results.get(job.number, b"")
        key = (job_id, job.epoch, job.attempt)
        if result and key not in self.checks.text_cut:
            tokens = int(result.rstrip(b".").rsplit(b":", 1)[1])
            if tokens:
                assert read.attempt == job.attempt, f"attempt {read.attempt} shown, {job.attempt} was done"
            assert shown == (tokens if read.attempt == job.attempt else shown), (
                f"{shown} tokens shown, {tokens} written"
            )


def _ignore(reply: object, body: bytes) -> None:
    """Be satisfied with any answer."""
