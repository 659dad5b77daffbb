"""A broker that a test can tell a story about: who is there, what happens, what it then asks the shell for.

`a_broker(jobs=[ready("a", user="ann")], workers=[idle("w1")])` is a state with its clock. Every step checks the
invariants, and that each durable event, and each reason, says what PROTOCOL.md promises of its kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from lmq_broker.core import invariants
from lmq_broker.core.effects import Effect, Log, Publish, Read, Send, SendWork, WakeAt
from lmq_broker.core.machine import step
from lmq_broker.core.reads import JobsReply, ReadJobs
from lmq_broker.core.records import EventsAdded, JobAdded, JobChanged, JobsDeleted, MetaSet, StoredJob
from lmq_broker.core.recover import Memory, recover
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import BrokerState, Job, Worker
from lmq_broker.core.stimuli import Credential, Loaded, Now, PeerGone, Received, Stimulus, TurnEnded
from lmq_proto.errors import ErrorInfo
from lmq_proto.ids import PeerId
from lmq_proto.messages import (
    Cancel,
    Capacity,
    CapacityReport,
    CatalogModel,
    Changed,
    Delete,
    Ended,
    Enlist,
    ErrorReply,
    Heartbeat,
    Held,
    Hello,
    InstanceInfo,
    JobSpec,
    Lease as LeaseMessage,
    Piece,
    Results,
    Retry,
    Submit,
    Submitted,
    Target,
    Text,
    TextReport,
    Update,
    WhyReply,
)
from lmq_proto.states import FINAL
from unit.proto.protocol_text import table_with, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lmq_broker.core.reads import ReadReply, ReadRequest
    from lmq_broker.core.records import Record
    from lmq_proto.events import Event
    from lmq_proto.messages import FromPeer, Outcome

E = TypeVar("E")

WALL_MS = 1_800_000_000_000
"""The wall clock when a story begins."""
MONO_MS = 1_000_000
"""The monotonic clock when a story begins."""
LOOPBACK = Credential("loopback")
EPOCH = 1

_DETAIL = {
    words(row[0])[0]: set(words(row[3])) for row in table_with("Kind", "Of", "When", "`detail`")
}  # fmt: skip
_REASONS = {
    code: set(words(row[2])) for row in table_with("Code", "The job", "Fields") for code in words(row[0])
}  # fmt: skip
_MAY_MISS = {"failures", "queued_ms", "leased_ms"}
_ENDS = ("dead", "cancelled")
"""That tell a code and an error, or who did it."""


def job_id(name: str) -> bytes:
    """Return the id of the job that a story calls by this name."""
    return name.encode().ljust(16, b"\0")


def instance_of(name: str, life: int = 1) -> bytes:
    """Return the instance id of one life of a client or worker."""
    return name.encode().ljust(15, b"\0") + bytes([life])


def spec(name: str, *, task_type: str = "echo", payload: bytes = b"", **fields: Any) -> JobSpec:
    """Return a job as it is submitted."""
    given: dict[str, Any] = {"id": job_id(name), "task_type": task_type, "payload_bytes": len(payload)}
    return JobSpec(**(given | fields))


class Planned(msgspec.Struct):
    """A job that is there when a story begins."""

    spec: JobSpec
    user: str
    payload: bytes
    running: bool


def ready(name: str, *, user: str = "ann", payload: bytes = b"", **fields: Any) -> Planned:
    """A job that waits for its turn; with `delay_ms` one that starts later."""
    return Planned(spec(name, payload=payload, **fields), user, payload, running=False)


def running(name: str, *, user: str = "ann", payload: bytes = b"", **fields: Any) -> Planned:
    """A job whose first attempt has been dispatched."""
    return Planned(spec(name, payload=payload, **fields), user, payload, running=True)


def instance(
    name: str = "i1", *, model: str = "*", kind: str = "any", slots: int = 1, **fields: Any
) -> InstanceInfo:
    """A loaded model; any model by default."""
    return InstanceInfo(instance_id=name, model=model, kind=kind, slots=slots, **fields)


def on_disk(*models: str, kind: str = "llm") -> list[CatalogModel]:
    """A catalog of these models."""
    return [CatalogModel(model=model, kind=kind) for model in models]


def idle(
    name: str,
    *,
    slots: int = 1,
    life: int = 1,
    instances: Sequence[InstanceInfo] | None = None,
    task_types: Sequence[str] = ("echo", "chat", "embed", "train"),
    held: Sequence[Held] = (),
    queues: Sequence[str] = (),
    endpoint: str = "",
    replaces: bytes = b"",
    request_id: int = 1,
    **capacity: Any,
) -> Enlist:
    """A worker that has come, with room for so many jobs of any model."""
    loaded = [instance(slots=slots)] if instances is None else list(instances)
    return Enlist(
        request_id=request_id, instance=instance_of(name, life), protocol_oldest=1, protocol_newest=1, name=name,
        endpoint=endpoint or f"http://{name}", backend="echo", task_types=list(task_types), held=list(held),
        queues=list(queues), capacity=Capacity(instances=loaded, **capacity), replaces=replaces,
    )  # fmt: skip


class Broker:
    """A broker's state with its clock and its peers; a peer is called by the name of its user or worker."""

    def __init__(self, state: BrokerState) -> None:
        self.state = state
        self.mono_ms = state.started_ms
        self.wall_ms = state.started_at_ms
        self.events: list[Event] = []
        """Every durable event so far."""
        self.journal: list[Record] = []
        """Every record so far."""

    # --- what happens

    @property
    def now(self) -> Now:
        return Now(self.mono_ms, self.wall_ms)

    def step(self, stimulus: Stimulus) -> list[Effect]:
        """Let one thing happen now."""
        effects = step(self.state, stimulus, self.now)
        invariants.check(self.state)
        for effect in effects:
            if not isinstance(effect, Send | SendWork | Publish | Read | WakeAt | Log):
                self.journal.append(effect)
            if isinstance(effect, EventsAdded):
                self.events += effect.events
                for event in effect.events:
                    told = set(event.detail)
                    assert told <= _DETAIL[event.kind], event
                    assert _DETAIL[event.kind] - told <= _MAY_MISS or event.kind in _ENDS, event
            if isinstance(effect, Send) and isinstance(effect.message, WhyReply):
                for reason in effect.message.reasons:
                    assert set(reason.fields) <= _REASONS[reason.code], reason
        return effects

    def turn(self, after_ms: int = 0) -> list[Effect]:
        """Let some time pass and end the turn."""
        self.mono_ms += after_ms
        self.wall_ms += after_ms
        return self.step(TurnEnded())

    def pass_time(self, total_ms: int, *, hearing: Iterable[str] = ()) -> list[Effect]:
        """Let time pass in steps of a second, in which these peers are heard."""
        effects = []
        for _ in range(total_ms // 1000):
            for name in hearing:
                self.says(name, Heartbeat())
            effects += self.turn(1000)
        return effects + self.turn(total_ms % 1000)

    def says(
        self, name: str, message: FromPeer, body: bytes = b"", credential: Credential = LOOPBACK
    ) -> list[Effect]:
        """Let a peer's message come in."""
        return self.step(Received(PeerId(name.encode()), credential, message, body))

    def client(self, name: str, *, user: str = "", life: int = 1) -> list[Effect]:
        """Let a client come."""
        return self.says(
            name,
            Hello(
                request_id=1, instance=instance_of(name, life), protocol_oldest=1, protocol_newest=1,
                user=user or name,
            ),
        )  # fmt: skip

    def worker(self, enlist: Enlist, *, peer: str = "") -> list[Effect]:
        """Let a worker come."""
        return self.says(peer or enlist.name, enlist)

    def breaks(self, name: str) -> list[Effect]:
        """Let a peer's connection break."""
        return self.step(PeerGone(PeerId(name.encode())))

    def role(self, name: str, role: str, *, user: str = "", principal: str = "") -> None:
        """Give a session a role, as keys will once they are there."""
        session = self.state.sessions[name.encode()]
        session.who = type(session.who)(principal or session.who.principal, user or session.who.user, role)

    def submit(
        self, name: str, *specs: JobSpec, payloads: Sequence[bytes] = (), **fields: Any
    ) -> list[Effect]:
        """Let a client submit jobs."""
        return self.says(name, Submit(request_id=2, jobs=list(specs), **fields), b"".join(payloads))

    def reports(self, name: str, job: str, outcome: str, result: bytes = b"", **fields: Any) -> list[Effect]:
        """Let a worker end its lease of a job's current attempt, unless others are named."""
        known = self.state.jobs.get(job_id(job))
        lease: dict[str, Any] = {"epoch": known.epoch, "attempt": known.attempt} if known is not None else {}
        given: dict[str, Any] = {"job_id": job_id(job), "outcome": outcome, "result_bytes": len(result)}
        return self.says(name, Results(ended=[Ended(**(lease | given | fields))]), result)

    def writes(self, name: str, job: str, first: int, *texts: str, attempt: int = 0) -> list[Effect]:
        """Let a worker report text of a job."""
        pieces = [Piece(channel="content", text=text) for text in texts]
        attempt = attempt or self.job(job).attempt
        report = Text(job_id=job_id(job), attempt=attempt, first=first, pieces=pieces)
        return self.says(name, TextReport(texts=[report]))

    def has_capacity(self, name: str, *instances: InstanceInfo, **fields: Any) -> list[Effect]:
        """Let a worker report its capacity."""
        return self.says(name, CapacityReport(capacity=Capacity(instances=list(instances), **fields)))

    def cancel(self, name: str, *jobs: str, **fields: Any) -> list[Effect]:
        """Let a client cancel jobs."""
        return self.says(
            name, Cancel(request_id=3, target=Target(job_ids=[job_id(job) for job in jobs]), **fields)
        )

    def reads(self, request: ReadRequest, reply: ReadReply) -> list[Effect]:
        """Let the reading thread answer."""
        return self.step(Loaded(request, reply))

    # --- what is there

    def job(self, name: str) -> Job:
        return self.state.jobs[job_id(name)]

    def at(self, name: str) -> Worker:
        """Return the worker of this name."""
        return self.state.workers[name]

    def kinds(self) -> list[str]:
        """Return the kinds of all events of jobs so far."""
        return [str(event.kind) for event in self.events if event.job_id]

    def last_event(self, kind: str) -> Event:
        return next(event for event in reversed(self.events) if event.kind == kind)


def a_memory(**fields: Any) -> Memory:
    """What an empty journal holds, but for these."""
    empty: dict[str, Any] = {
        "meta": {}, "open_jobs": [], "finished": [], "keys": [], "tombstones": [], "stored_text": {},
        "last_number": 0, "last_order": 0, "last_seq": 0, "oldest_cursor": 0, "last_event_ms": 0,
    }  # fmt: skip
    return Memory(**(empty | fields))


def a_broker(
    *,
    jobs: Iterable[Planned] = (),
    workers: Iterable[Enlist] = (),
    clients: Iterable[str] = (),
    settings: Settings | None = None,
    memory: Memory | None = None,
) -> Broker:
    """A broker as it is when a story begins; the users of its jobs are connected, all roles are admin."""
    state, _ = recover(
        memory or a_memory(), settings or Settings(), Now(MONO_MS, WALL_MS), software="test", seed=1,
        fresh_id=b"broker-id-of-16b", fresh_secret=b"secret",
    )  # fmt: skip
    broker = Broker(state)
    broker.turn()
    planned = sorted(jobs, key=lambda job: not job.running)
    for user in dict.fromkeys([*clients, *(job.user for job in planned)]):
        broker.client(user)
    for enlist in workers:
        broker.worker(enlist)
    for job in planned:
        effects = broker.submit(job.user, job.spec, payloads=[job.payload])
        assert outcomes(effects)[0].outcome == "accepted", outcomes(effects)
        if job.running:
            broker.turn()
            assert broker.state.jobs[job.spec.id].lease is not None, "no worker has room for it"
    return broker


def restarted(broker: Broker, **memory: Any) -> Broker:
    """Return a broker that starts from what this one has journaled, but for keys and tombstones."""
    latest: dict[bytes, StoredJob] = {}
    for record in broker.journal:
        if isinstance(record, JobAdded | JobChanged):
            latest[record.job.id] = record.job
        elif isinstance(record, JobsDeleted):
            latest = {id_: job for id_, job in latest.items() if job.number not in record.numbers}
    meta = {record.name: record.value for record in only(broker.journal, MetaSet) if record.value}
    found: dict[str, Any] = {
        "open_jobs": [job for job in latest.values() if job.state not in FINAL],
        "finished": [
            (job.id, job.number, job.user, job.state, job.priority)
            for job in latest.values()
            if job.state in FINAL
        ],
        "last_number": broker.state.last_number,
        "last_order": broker.state.last_order,
        "last_seq": broker.state.last_seq,
        "meta": {"epoch": b"1"} | meta,
    }
    return a_broker(memory=a_memory(**(found | memory)), clients=["ann"])


# --- commands on jobs -------------------------------------------------------------------------------------------------

Command = type[Cancel] | type[Retry] | type[Delete] | type[Update]


def tell(broker: Broker, kind: Command, *names: str, by: str = "ann", **fields: Any) -> list[Outcome]:
    """Let a command come, answer what it reads from what was journaled, and return its outcomes."""
    effects = broker.says(
        by, kind(request_id=5, target=Target(job_ids=[job_id(name) for name in names]), **fields)
    )
    for read in only(effects, Read):
        assert isinstance(read.request, ReadJobs)
        found = [image for image in images(broker) if image.id in read.request.ids]
        effects = broker.reads(read.request, JobsReply(found))
    return sent(effects, by, Changed)[0].outcomes


def images(broker: Broker) -> list[StoredJob]:
    """Return the latest image of each job that was journaled as changed."""
    return list({record.job.id: record.job for record in only(broker.journal, JobChanged)}.values())


def codes(found: Iterable[Outcome]) -> list[str]:
    """Return each outcome, or the code of the error with which it was refused."""
    return [each.error.code if each.error is not None else each.outcome for each in found]


# --- what the effects say ---------------------------------------------------------------------------------------------


def only(effects: Iterable[object], kind: type[E]) -> list[E]:
    """Return the effects of one kind: records, publishes, reads."""
    return [effect for effect in effects if isinstance(effect, kind)]


def sent(effects: Iterable[Effect], name: str, kind: type[E]) -> list[E]:
    """Return the messages of one kind that go to a peer."""
    return [
        effect.message
        for effect in effects
        if isinstance(effect, Send | SendWork)
        and effect.peer == name.encode()
        and isinstance(effect.message, kind)
    ]


def body_for(effects: Iterable[Effect], name: str, kind: type[Any]) -> bytes:
    """Return the body of the one message of a kind that goes to a peer."""
    found = [
        each for each in effects
        if isinstance(each, Send) and each.peer == name.encode() and isinstance(each.message, kind)
    ]  # fmt: skip
    assert len(found) == 1
    return found[0].body


def outcomes(effects: Iterable[Effect]) -> list[Outcome]:
    """Return the outcomes of the one `submitted` among the effects."""
    found = [
        each.message for each in effects if isinstance(each, Send) and isinstance(each.message, Submitted)
    ]
    assert len(found) == 1, effects
    return found[0].outcomes


def error(effects: Iterable[Effect]) -> ErrorInfo:
    """Return the error of the one refusal among the effects."""
    found = [
        each.message for each in effects if isinstance(each, Send) and isinstance(each.message, ErrorReply)
    ]
    assert len(found) == 1, effects
    return found[0].error


def leases(effects: Iterable[Effect], name: str) -> list[LeaseMessage]:
    """Return the leases that go to a worker."""
    return [
        lease
        for effect in effects
        if isinstance(effect, SendWork) and effect.peer == name.encode()
        for group in effect.message.groups
        for lease in group.leases
    ]


def started(effects: Iterable[Effect], name: str) -> list[str]:
    """Return the names of the jobs that go to a worker."""
    return [lease.job_id.rstrip(b"\0").decode() for lease in leases(effects, name)]


def drained(broker: Broker, worker: str = "w1") -> list[str]:
    """Run all jobs one after another and return the order in which they started."""
    order: list[str] = []
    while names := started(broker.turn(1), worker):
        order += names
        for name in names:
            broker.reports(worker, name, "complete")
    return order


def held(broker: Broker, job: str, *, ended: bool = False) -> Held:
    """Return what a worker says of a lease that it still holds."""
    known = broker.job(job)
    return Held(job_id=known.id, epoch=known.epoch, attempt=known.attempt, ended=ended)
