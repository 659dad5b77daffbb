"""A broker small enough to read, on a real ROUTER socket, that can be killed and started again at the same address.

What a real one keeps on disk lives in `Disk`; sessions, follows, credit and subscriptions die with `kill`. Jobs of
type `echo` and `chat` run at once unless `runs` is off; tests may also write text and end jobs by hand. It knows no
scheduling, no limits and no rights; replies can be made to vanish (`lose`), as when a broker dies after its commit.
"""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import msgpack  # type: ignore[import-untyped]  # it ships no types
import zmq

from lmq_proto import errors, events, messages
from lmq_proto.codec import FROM_PEER_TABLE, cut, encode, verb_of
from lmq_proto.states import FINAL
from ports import a_port, bind

T = TypeVar("T")

USAGE_PAGE = 2
"""Rows of usage in one reply."""


@dataclass
class FakeJob:
    spec: messages.JobSpec
    payload: bytes
    number: int
    user: str
    state: str = "ready"
    attempt: int = 1
    pieces: list[messages.Piece] = field(default_factory=list)
    result: bytes = b""
    story: list[errors.ErrorInfo] = field(default_factory=list)
    restart: str = ""

    def view(self) -> messages.JobView:
        spec = self.spec
        return messages.JobView(
            id=spec.id, number=self.number, user=self.user, principal=self.user, task_type=spec.task_type,
            queue=spec.queue or "default", priority=5 if spec.priority is None else spec.priority, state=self.state,
            created_at_ms=1_000 + self.number, models=spec.models, attempt=self.attempt, labels=spec.labels,
            key=spec.key, payload_bytes=len(self.payload), result_bytes=len(self.result),
            channel=spec.id[::-1], story=self.story, timeout_ms=spec.timeout_ms, tokens=len(self.pieces),
        )  # fmt: skip

    def end(self) -> messages.JobEnd:
        return messages.JobEnd(
            job_id=self.spec.id,
            state=self.state,
            attempt=self.attempt,
            result_bytes=len(self.result),
            story=self.story,
        )


@dataclass
class Disk:
    """What survives."""

    jobs: dict[bytes, FakeJob] = field(default_factory=dict)
    events: list[events.Event] = field(default_factory=list)
    oldest_cursor: int = 0
    epoch: int = 0
    submits: Counter[bytes] = field(default_factory=Counter)
    """How often each job id arrived."""
    holds: set[tuple[str, str]] = field(default_factory=set)
    allowances: dict[str, tuple[float | None, int | None]] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    orders: list[tuple[str, str, str, int]] = field(default_factory=list)


@dataclass
class Subscribed:
    message: messages.Subscribe
    cursor: int
    credit: int


@dataclass
class ReadingText:
    attempt: int
    piece: int
    credit: int
    told_final: bool = False


@dataclass
class Session:
    user: str
    results_credit: int = 16 * 1024 * 1024
    followed: set[bytes] = field(default_factory=set)
    ended: deque[bytes] = field(default_factory=deque)
    texts: dict[bytes, ReadingText] = field(default_factory=dict)
    subscriptions: dict[int, Subscribed] = field(default_factory=dict)


class FakeBroker:
    """Runs in a thread of its own. Methods without an underscore may be called from any thread."""

    def __init__(self, disk: Disk | None = None, *, heartbeat_ms: int = 200, runs: bool = True) -> None:
        self.disk = disk or Disk()
        self.heartbeat_ms = heartbeat_ms
        self.runs = runs
        self.submit_messages = 0
        self.received: Counter[str] = Counter()
        self.heard: list[messages.FromPeer] = []
        self._lose: set[str] = set()
        self._deaf = False
        self._port = 0
        self._pub_port = 0
        self._thread: threading.Thread | None = None
        self.start()

    # --- from tests ----------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Begin, or come back at the same address."""
        self._acts: deque[Callable[[], None]] = deque()
        self._hear, self._ring = socket.socketpair()
        self._hear.setblocking(False)
        self._sessions: dict[bytes, Session] = {}
        self._lose = set()
        self._deaf = False
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="fake-broker", daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def kill(self) -> None:
        """Stop as `kill -9` does: nothing is said, sessions are gone."""
        if self._thread is not None:
            self._alive = False
            self._ring.send(b"\0")
            self._thread.join(10)
            self._thread = None
            self._ring.close()
            self._hear.close()

    def restart(self) -> None:
        self.kill()
        self.start()

    def do(self, act: Callable[[], T]) -> T:
        """Run something inside the broker's thread and return what it gives."""
        done = threading.Event()
        box: list[T] = []

        def run() -> None:
            box.append(act())
            done.set()

        self._acts.append(run)
        self._ring.send(b"\0")
        assert done.wait(10)
        return box[0]

    def lose(self, *verbs: str) -> None:
        """Carry commands out but say nothing of these verbs, until the next start."""
        self.do(lambda: self._lose.update(verbs))

    def go_deaf(self) -> None:
        """Stay connected, read nothing, say nothing, until the next start."""
        self.do(lambda: setattr(self, "_deaf", True))

    def forget_sessions(self) -> None:
        """As if the broker had restarted without a break of the connection."""
        self.do(self._sessions.clear)

    def write(self, job_id: bytes, *texts: str, channel: str = "content") -> None:
        self.do(lambda: self._write(job_id, texts, channel))

    def finish(self, job_id: bytes, result: object = None, state: str = "done") -> None:
        self.do(lambda: self._finish(job_id, msgpack.packb(result), state))

    def begin_attempt(self, job_id: bytes, reason: str = "engine crashed") -> None:
        self.do(lambda: self._begin_attempt(job_id, reason))

    def publish(self, topic: str, message: messages.OnPub) -> None:
        self.do(lambda: self._pub.send_multipart([topic.encode(), *encode(message)]))

    def happen(self, kind: str) -> None:
        self.do(lambda: self._event(kind))

    # --- the loop ------------------------------------------------------------------------------------------------

    def _run(self, ready: threading.Event) -> None:
        context = zmq.Context()
        self._alive = True
        self._router = context.socket(zmq.ROUTER)
        self._pub = context.socket(zmq.PUB)
        for each in (self._router, self._pub):
            each.setsockopt(zmq.LINGER, 0)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._port = self._port or a_port()
        bind(self._router, self._port)
        self._pub_port = self._pub_port or a_port()
        bind(self._pub, self._pub_port)
        self.disk.epoch += 1
        self._event("broker_started")
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._hear.fileno(), zmq.POLLIN)
        ready.set()
        beat_s = 0.0
        try:
            while self._alive:
                polled = dict(poller.poll(self.heartbeat_ms // 2))
                if self._hear.fileno() in polled:
                    self._hear.recv(4096)
                while self._acts:
                    self._acts.popleft()()
                if self._deaf:
                    poller.modify(self._router, 0)
                    continue
                if self._router in polled:
                    self._drain()
                if time.monotonic() - beat_s >= self.heartbeat_ms / 1000:
                    beat_s = time.monotonic()
                    for peer in list(self._sessions):
                        self._send(peer, messages.Heartbeat())
                self._pump()
        finally:
            context.destroy(linger=0)

    def _drain(self) -> None:
        for _ in range(200):
            try:
                peer, *frames = self._router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message, body = FROM_PEER_TABLE.decode(frames)
            self.received[verb_of(message)] += 1
            if len(self.heard) < 10_000:
                self.heard.append(message)
            try:
                self._take(peer, message, body)
            except errors.LmqError as error:
                reply = messages.ErrorReply(request_id=getattr(message, "request_id", 0), error=error.info())
                self._send(peer, reply)

    def _send(self, peer: bytes, message: messages.ToPeer, body: bytes = b"") -> None:
        if verb_of(message) in self._lose:
            return
        try:
            self._router.send_multipart([peer, *encode(message, body)], zmq.NOBLOCK)
        except zmq.ZMQError:
            self._sessions.pop(peer, None)

    def _take(self, peer: bytes, message: messages.FromPeer, body: bytes) -> None:
        if isinstance(message, messages.Hello):
            self._sessions[peer] = Session(message.user or "nobody")
            self._send(
                peer,
                messages.Welcome(
                    request_id=message.request_id, protocol=1, software="fake", broker_id=b"f" * 16,
                    epoch=self.disk.epoch, user=message.user, role="user", wall_ms=1, heartbeat_ms=self.heartbeat_ms,
                    events_port=self._pub_port, payload_bytes=8 << 20, results_credit_bytes=16 << 20,
                    cursor=len(self.disk.events),
                ),
            )  # fmt: skip
            return
        session = self._sessions.get(peer)
        if session is None:
            self._send(peer, messages.Who())
            return
        match message:
            case messages.Submit():
                self._submit(peer, session, message, body)
            case messages.Follow():
                outcomes = []
                for job_id in message.job_ids:
                    if job_id in self.disk.jobs:
                        self._follow(session, job_id)
                        outcomes.append(messages.Outcome(job_id=job_id, outcome="unchanged"))
                    else:
                        error = errors.NotFound("job", job_id.hex()).info()
                        outcomes.append(messages.Outcome(job_id=job_id, outcome="refused", error=error))
                self._send(peer, messages.Followed(request_id=message.request_id, outcomes=outcomes))
            case messages.Unfollow():
                for job_id in message.job_ids:
                    session.followed.discard(job_id)
                    session.texts.pop(job_id, None)
            case messages.FollowText():
                self._job(message.job_id)
                session.texts[message.job_id] = ReadingText(
                    message.attempt, message.piece, message.credit_bytes
                )
            case messages.Credit():
                session.results_credit += message.results_bytes
                if message.subscription_id in session.subscriptions:
                    session.subscriptions[message.subscription_id].credit += message.events
                if message.job_id in session.texts:
                    session.texts[message.job_id].credit += message.text_bytes
            case messages.Subscribe():
                cursor = message.cursor
                if cursor < 0:
                    cursor = len(self.disk.events) - message.last
                    if message.since_ms:
                        cursor = next(
                            (e.seq - 1 for e in self.disk.events if e.at_ms >= message.since_ms), cursor
                        )
                session.subscriptions[message.subscription_id] = Subscribed(message, cursor, message.credit)
                self._send(
                    peer,
                    messages.Subscribed(
                        request_id=message.request_id, subscription_id=message.subscription_id, cursor=cursor
                    ),
                )
            case messages.Unsubscribe():
                session.subscriptions.pop(message.subscription_id, None)
            case messages.Bye():
                self._sessions.pop(peer, None)
            case messages.Heartbeat():
                pass
            case _:
                self._send(peer, *self._answer(message))

    def _answer(self, message: messages.FromPeer) -> tuple[messages.ToPeer, bytes]:
        jobs = self.disk.jobs
        match message:
            case messages.Status(request_id=number, job_ids=job_ids):
                found = [jobs[job_id].view() for job_id in job_ids if job_id in jobs]
                missing = [job_id for job_id in job_ids if job_id not in jobs]
                return messages.Statuses(request_id=number, jobs=found, missing=missing), b""
            case messages.ListJobs(request_id=number):
                views = [job.view() for job in self._matching(message.match)]
                views.sort(key=lambda view: view.number, reverse=not message.oldest_first)
                if message.after:
                    keep = message.oldest_first
                    views = [view for view in views if (view.number > message.after) == keep != 0]
                    views = [view for view in views if view.number != message.after]
                page = views[: message.limit]
                return messages.Listed(request_id=number, jobs=page, more=len(views) > len(page)), b""
            case messages.GetPayload(request_id=number, job_id=job_id):
                job = self._job(job_id)
                return messages.Payload(request_id=number, job=job.view()), job.payload
            case messages.Why(request_id=number, job_id=job_id):
                reasons = [messages.Reason(code="no_worker", text="no worker serves this")]
                return messages.WhyReply(
                    request_id=number, job=self._job(job_id).view(), reasons=reasons
                ), b""
            case messages.Cancel(request_id=number, target=target):
                return self._change(number, target, self._cancel), b""
            case messages.Retry(request_id=number, target=target):
                return self._change(number, target, self._retry), b""
            case messages.Delete(request_id=number, target=target):
                return self._change(number, target, self._delete), b""
            case messages.Update(request_id=number, target=target):

                def update(job: FakeJob) -> bool:
                    if message.labels is not None:
                        job.spec = _with(job.spec, labels=message.labels)
                    if message.priority is not None:
                        job.spec = _with(job.spec, priority=message.priority)
                    return True

                return self._change(number, target, update), b""
            case messages.Pause(request_id=number) | messages.Drain(request_id=number):
                held = (message.noun, message.name)
                fresh = held not in self.disk.holds
                self.disk.holds.add(held)
                return messages.Done(request_id=number, changed=fresh), b""
            case messages.Resume(request_id=number):
                held = (message.noun, message.name)
                known = held in self.disk.holds
                self.disk.holds.discard(held)
                return messages.Done(request_id=number, changed=known), b""
            case messages.ListQueues(request_id=number):
                return messages.Queues(request_id=number, queues=[messages.QueueView(name="default")]), b""
            case messages.ListWorkers(request_id=number):
                return messages.Workers(request_id=number, workers=[]), b""
            case messages.ListModels(request_id=number):
                aliases = [messages.Alias(name=name, models=each) for name, each in self.disk.aliases.items()]
                defaults = [
                    messages.DefaultModel(task_type=task_type, model=model)
                    for task_type, model in self.disk.defaults.items()
                ]
                return messages.Models(request_id=number, models=[], aliases=aliases, defaults=defaults), b""
            case messages.ListUsers(request_id=number):
                told = [messages.Allowance(user=name, weight=weight, ceiling=ceiling)
                        for name, (weight, ceiling) in self.disk.allowances.items()]  # fmt: skip
                return messages.Users(
                    request_id=number, policy="fake", has_shares=True, users=[], bands=[], allowances=told
                ), b""
            case messages.SetUser(request_id=number):
                given = (message.weight, message.ceiling)
                fresh = self.disk.allowances.get(message.user) != given
                self.disk.allowances[message.user] = given
                return messages.Done(request_id=number, changed=fresh), b""
            case messages.ResetUser(request_id=number):
                known = self.disk.allowances.pop(message.user, None) is not None
                return messages.Done(request_id=number, changed=known), b""
            case messages.SetAlias(request_id=number, name=name):
                if message.reset or not message.models:
                    changed = self.disk.aliases.pop(name, None) is not None
                else:
                    changed = self.disk.aliases.get(name) != message.models
                    self.disk.aliases[name] = message.models
                return messages.Done(request_id=number, changed=changed), b""
            case messages.SetDefaultModel(request_id=number, task_type=task_type):
                if message.reset or not message.model:
                    changed = self.disk.defaults.pop(task_type, None) is not None
                else:
                    changed = self.disk.defaults.get(task_type) != message.model
                    self.disk.defaults[task_type] = message.model
                return messages.Done(request_id=number, changed=changed), b""
            case messages.OrderModel(request_id=number):
                order = (message.kind, message.model, message.worker, message.for_ms)
                fresh = order not in self.disk.orders
                self.disk.orders.append(order)
                return messages.Done(request_id=number, changed=fresh), b""
            case messages.Health(request_id=number):
                return messages.HealthReply(
                    request_id=number, software="fake", protocol=1, broker_id=b"f" * 16, epoch=self.disk.epoch,
                    wall_ms=1, uptime_ms=1, counts={}, jobs_open=len(jobs),
                ), b""  # fmt: skip
            case messages.Usage():
                return self._usage(message), b""
            case messages.Metrics(request_id=number):
                text = f"lmq_jobs_kept {len(jobs)}\n" + "lmq_user_jobs 1\n" * message.users
                return messages.MetricsReply(request_id=number), text.encode()
            case messages.Backup(request_id=number, path=path):
                return messages.BackupDone(request_id=number, path=path, copied_bytes=1), b""
            case _:
                raise errors.ProtocolError(f"the fake knows no {verb_of(message)}")

    def _usage(self, message: messages.Usage) -> messages.UsageReply:
        """Return the ends of jobs by the columns asked for, `USAGE_PAGE` rows at a time."""
        done: Counter[tuple[str, ...]] = Counter()
        for job in self.disk.jobs.values():
            known = {"day": "2026-11-23", "user": job.user, "model": "", "task_type": job.spec.task_type}
            if job.state == "done" and message.user in ("", job.user):
                done[tuple(known[name] for name in message.by)] += 1
        rows = [
            messages.UsageRow(**dict(zip(message.by, key, strict=True)), done=count)  # type: ignore[arg-type]  # names
            for key, count in sorted(done.items())
            if not message.after or key > tuple(message.after)
        ]
        return messages.UsageReply(
            request_id=message.request_id, since_ms=message.since_ms, until_ms=message.until_ms,
            rows=rows[:USAGE_PAGE], total=messages.UsageRow(done=done.total()), more=len(rows) > USAGE_PAGE,
        )  # fmt: skip

    # --- jobs ----------------------------------------------------------------------------------------------------

    def _submit(self, peer: bytes, session: Session, message: messages.Submit, body: bytes) -> None:
        self.submit_messages += 1
        outcomes: list[messages.Outcome] = []
        payloads = cut(body, [spec.payload_bytes for spec in message.jobs])
        refused = any(spec.task_type == "refuse" for spec in message.jobs)
        for spec, payload in zip(message.jobs, payloads, strict=True):
            self.disk.submits[spec.id] += 1
            if spec.task_type == "refuse" or (refused and message.atomic):
                error = errors.LimitReached("jobs", 1, 1, 2.5).info()
                outcomes.append(messages.Outcome(job_id=spec.id, outcome="refused", error=error))
                continue
            known = self._known(spec)
            if known is None:
                job = FakeJob(spec, payload, len(self.disk.jobs) + 1, message.as_user or session.user)
                self.disk.jobs[spec.id] = job
                self._event(
                    "accepted", job_id=spec.id, user=job.user, task_type=spec.task_type, state="ready"
                )
                _, ceiling = self.disk.allowances.get(message.as_user or session.user, (None, None))
                is_over = ceiling is not None and (spec.priority or 0) > ceiling
                outcomes.append(
                    messages.Outcome(job_id=spec.id, outcome="accepted", channel=spec.id[::-1],
                                     priority=ceiling if is_over else None)
                )  # fmt: skip
            else:
                outcomes.append(messages.Outcome(job_id=known, outcome="duplicate", channel=known[::-1]))
            if message.follow:
                self._follow(session, spec.id if known is None else known)
        self._send(peer, messages.Submitted(request_id=message.request_id, outcomes=outcomes))
        if self.runs:
            for outcome in outcomes:
                if outcome.outcome == "accepted":
                    self._run_job(self.disk.jobs[outcome.job_id])

    def _known(self, spec: messages.JobSpec) -> bytes | None:
        if spec.id in self.disk.jobs:
            return spec.id
        return next((j.spec.id for j in self.disk.jobs.values() if spec.key and j.spec.key == spec.key), None)

    def _run_job(self, job: FakeJob) -> None:
        job_id = job.spec.id
        match job.spec.task_type:
            case "echo":
                payload = msgpack.unpackb(job.payload)
                if isinstance(payload, dict) and "text" in payload:
                    self._write(job_id, tuple(re.findall(r"\S+\s*", payload["text"])), "content")
                self._finish(job_id, msgpack.packb({"echo": payload}), "done")
            case "chat" | "complete":
                self._write(job_id, ("Hello", ", ", "world"), "content")
                result = {
                    "text": "Hello, world", "finish_reason": "stop", "model": "fake", "reasoning": None,
                    "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
                }  # fmt: skip
                self._finish(job_id, msgpack.packb(result), "done")
            case "embed" | "bulk_embed":
                texts = msgpack.unpackb(job.payload)["input"]
                vectors = b"".join(_vector(text) for text in texts)
                self._finish(
                    job_id,
                    msgpack.packb({"vectors": vectors, "count": len(texts), "dims": 2, "model": "fake"}),
                    "done",
                )
            case "die":
                job.story = [
                    errors.ErrorInfo("engine", "it broke"),
                    errors.ErrorInfo("engine", "it broke again"),
                ]
                self._finish(job_id, b"", "dead")

    def _follow(self, session: Session, job_id: bytes) -> None:
        if self.disk.jobs[job_id].state in FINAL:
            session.ended.append(job_id)
        else:
            session.followed.add(job_id)

    def _finish(self, job_id: bytes, result: bytes, state: str) -> None:
        job = self.disk.jobs[job_id]
        job.state, job.result = state, result
        self._event(state, job_id=job_id, user=job.user, state=state)
        for session in self._sessions.values():
            if job_id in session.followed:
                session.followed.discard(job_id)
                session.ended.append(job_id)

    def _write(self, job_id: bytes, texts: tuple[str, ...], channel: str) -> None:
        self.disk.jobs[job_id].pieces += [messages.Piece(channel=channel, text=text) for text in texts]

    def _begin_attempt(self, job_id: bytes, reason: str) -> None:
        job = self.disk.jobs[job_id]
        job.attempt += 1
        job.pieces = []
        job.restart = reason

    def _cancel(self, job: FakeJob) -> bool:
        if job.state in FINAL:
            return False
        self._finish(job.spec.id, b"", "cancelled")
        return True

    def _retry(self, job: FakeJob) -> bool:
        job.state = "ready"
        job.attempt += 1
        job.pieces = []
        return True

    def _delete(self, job: FakeJob) -> bool:
        if job.state not in FINAL:
            raise errors.WrongState(job.spec.id.hex(), job.state, "an ended job")
        del self.disk.jobs[job.spec.id]
        return True

    def _change(
        self, number: int, target: messages.Target, act: Callable[[FakeJob], bool]
    ) -> messages.Changed:
        outcomes = []
        chosen = target.job_ids
        if target.match is not None:
            chosen = [job.spec.id for job in self._matching(target.match)]
        for job_id in chosen:
            try:
                changed = act(self._job(job_id))
                outcomes.append(
                    messages.Outcome(job_id=job_id, outcome="changed" if changed else "unchanged")
                )
            except errors.LmqError as error:
                outcomes.append(messages.Outcome(job_id=job_id, outcome="refused", error=error.info()))
        return messages.Changed(request_id=number, outcomes=outcomes)

    def _matching(self, match: messages.JobFilter) -> list[FakeJob]:
        from lmq_proto import ids

        return [
            job
            for job in self.disk.jobs.values()
            if (not match.states or job.state in match.states)
            and (not match.user or job.user == match.user)
            and (not match.task_type or job.spec.task_type == match.task_type)
            and (not match.labels or match.labels.items() <= job.spec.labels.items())
            and (not match.id_ending or ids.to_text(job.spec.id).endswith(match.id_ending.upper()))
        ]

    def _job(self, job_id: bytes) -> FakeJob:
        job = self.disk.jobs.get(job_id)
        if job is None:
            raise errors.NotFound("job", job_id.hex())
        return job

    def _event(
        self, kind: str, job_id: bytes = b"", user: str = "", task_type: str = "", state: str = ""
    ) -> None:
        number = len(self.disk.events) + 1
        self.disk.events.append(
            events.Event(
                seq=number, at_ms=number, kind=kind, job_id=job_id, user=user, task_type=task_type, state=state
            )
        )  # fmt: skip

    # --- pushes --------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        for peer, session in list(self._sessions.items()):
            self._push_ends(peer, session)
            for job_id in list(session.texts):
                self._push_text(peer, session, job_id)
            for number, subscription in session.subscriptions.items():
                self._push_events(peer, number, subscription)

    def _push_ends(self, peer: bytes, session: Session) -> None:
        while session.ended and session.results_credit > 0:
            ends: list[messages.JobEnd] = []
            bodies: list[bytes] = []
            while session.ended and session.results_credit > 0 and len(ends) < 1000:
                job = self.disk.jobs[session.ended.popleft()]
                session.results_credit -= len(job.result) + 256
                ends.append(job.end())
                bodies.append(job.result)
            self._send(peer, messages.Finished(jobs=ends), b"".join(bodies))

    def _push_text(self, peer: bytes, session: Session, job_id: bytes) -> None:
        reading = session.texts[job_id]
        job = self.disk.jobs[job_id]
        restart = ""
        if reading.attempt != job.attempt:
            restart = (job.restart or "new attempt") if reading.attempt else ""
            reading.attempt, reading.piece = job.attempt, 0
        while reading.credit > 0:
            pieces = job.pieces[reading.piece : reading.piece + 8]
            final = job.state in FINAL and reading.piece + len(pieces) == len(job.pieces)
            if not pieces and not restart and not final:
                return
            first = reading.piece + 1
            reading.piece += len(pieces)
            reading.credit -= sum(max(1, len(piece.text)) for piece in pieces)
            self._send(
                peer,
                messages.Text(
                    job_id=job_id,
                    attempt=job.attempt,
                    first=first,
                    pieces=pieces,
                    restart=restart,
                    final=final,
                ),
            )
            restart = ""
            if final:
                session.texts.pop(job_id, None)
                return

    def _push_events(self, peer: bytes, number: int, subscription: Subscribed) -> None:
        match = subscription.message.match
        if subscription.cursor < self.disk.oldest_cursor:
            oldest = self.disk.oldest_cursor
            push = messages.Events(
                subscription_id=number, before=oldest, after=oldest, events=[], expired=True
            )
            subscription.cursor = oldest
            self._send(peer, push)
            return
        while subscription.credit > 0 and subscription.cursor < len(self.disk.events):
            batch = list(itertools.islice(self.disk.events, subscription.cursor, subscription.cursor + 7))
            batch = batch[: subscription.credit]
            chosen = [
                event
                for event in batch
                if (not match.kinds or event.kind in match.kinds)
                and (not match.job_ids or event.job_id in match.job_ids)
                and (not match.user or event.user == match.user)
            ]
            before, subscription.cursor = subscription.cursor, batch[-1].seq
            subscription.credit -= max(1, len(chosen))
            self._send(
                peer,
                messages.Events(
                    subscription_id=number, before=before, after=subscription.cursor, events=chosen
                ),
            )


def _with(spec: messages.JobSpec, **changes: object) -> messages.JobSpec:
    import msgspec

    return msgspec.structs.replace(spec, **changes)


def _vector(text: str) -> bytes:
    import struct

    return struct.pack("<2f", float(len(text)), 1.0)
