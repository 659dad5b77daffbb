"""A broker as a data structure, and a network that loses and delays: what a `Dialogue` talks to in these tests.

What is on disk survives `restart`. Messages travel in two queues that the test empties by hand; a break of the
connection loses both. Nothing here keeps time or chance of its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from lmq_proto import errors, events, messages
from lmq_proto.codec import FROM_PEER_TABLE, TO_PEER_TABLE, cut, encode

RESULTS_CREDIT_BYTES = 2000
"""So small that every run needs more."""


@dataclass
class ModelJob:
    result: bytes | None = None
    attempt: int = 1
    pieces: list[str] = field(default_factory=list)


@dataclass
class ModelSession:
    followed: set[bytes] = field(default_factory=set)
    ended: deque[bytes] = field(default_factory=deque)
    texts: dict[bytes, list[int]] = field(default_factory=dict)
    """Job to [attempt, piece, credit]."""
    subscriptions: dict[int, list[int]] = field(default_factory=dict)
    """Subscription to [cursor, credit]."""
    results_credit: int = RESULTS_CREDIT_BYTES


class ModelBroker:
    """One broker with at most one client."""

    def __init__(self) -> None:
        self.jobs: dict[bytes, ModelJob] = {}
        self.events: list[events.Event] = []
        self.session: ModelSession | None = None
        self.to_broker: deque[list[bytes]] = deque()
        self.to_client: deque[list[bytes]] = deque()
        self.carried_out = 0

    # --- what the test does ---------------------------------------------------------------------------------------

    def cut_off(self) -> None:
        self.to_broker.clear()
        self.to_client.clear()
        self.session = None

    def forget(self) -> None:
        self.session = None

    def happen(self, kind: str) -> None:
        self.events.append(events.Event(seq=len(self.events) + 1, at_ms=0, kind=kind))

    def write(self, job_id: bytes, text: str) -> None:
        job = self.jobs[job_id]
        if job.result is None:
            job.pieces.append(text)

    def begin_attempt(self, job_id: bytes) -> None:
        job = self.jobs[job_id]
        if job.result is None:
            job.attempt += 1
            job.pieces = []

    def finish(self, job_id: bytes) -> None:
        job = self.jobs[job_id]
        if job.result is None:
            job.result = b"result of " + job_id
            self.happen("done")
            if self.session is not None and job_id in self.session.followed:
                self.session.followed.discard(job_id)
                self.session.ended.append(job_id)

    def hear(self) -> bool:
        """Take one message of the client, if any."""
        if not self.to_broker:
            return False
        message, body = FROM_PEER_TABLE.decode(self.to_broker.popleft())
        self._take(message, body)
        return True

    def push(self) -> None:
        """Send what the session's follows and credit allow."""
        session = self.session
        if session is None:
            return
        while session.ended and session.results_credit > 0:
            job_id = session.ended.popleft()
            result = self.jobs[job_id].result or b""
            end = messages.JobEnd(job_id=job_id, state="done", result_bytes=len(result))
            session.results_credit -= len(result) + 256
            self._say(messages.Finished(jobs=[end]), result)
        for job_id in list(session.texts):
            self._push_text(session, job_id)
        for number, (cursor, credit) in list(session.subscriptions.items()):
            batch = self.events[cursor : cursor + min(credit, 3)]
            if batch:
                after = batch[-1].seq
                self._say(messages.Events(subscription_id=number, before=cursor, after=after, events=batch))
                session.subscriptions[number] = [after, credit - len(batch)]

    # --- the broker's side ----------------------------------------------------------------------------------------

    def _say(self, message: messages.ToPeer, body: bytes = b"") -> None:
        self.to_client.append(encode(message, body))

    def _take(self, message: messages.FromPeer, body: bytes) -> None:
        if isinstance(message, messages.Hello):
            self.session = ModelSession()
            self._say(
                messages.Welcome(
                    request_id=message.request_id, protocol=1, software="model", broker_id=b"", epoch=1, user="",
                    role="user", wall_ms=0, heartbeat_ms=1000, results_credit_bytes=RESULTS_CREDIT_BYTES,
                )
            )  # fmt: skip
            return
        session = self.session
        if session is None:
            self._say(messages.Who())
            return
        match message:
            case messages.Submit():
                outcomes = []
                for spec, _ in zip(
                    message.jobs, cut(body, [s.payload_bytes for s in message.jobs]), strict=True
                ):
                    if spec.task_type == "refuse":
                        refused = errors.LimitReached("jobs", 1, 1, 1).info()
                        outcomes.append(messages.Outcome(job_id=spec.id, outcome="refused", error=refused))
                        continue
                    known = spec.id in self.jobs
                    if not known:
                        self.jobs[spec.id] = ModelJob()
                        self.happen("accepted")
                    outcomes.append(
                        messages.Outcome(job_id=spec.id, outcome="duplicate" if known else "accepted")
                    )
                    if message.follow:
                        self._follow(session, spec.id)
                self._say(messages.Submitted(request_id=message.request_id, outcomes=outcomes))
            case messages.Follow():
                outcomes = []
                for job_id in message.job_ids:
                    outcome = "unchanged" if job_id in self.jobs else "refused"
                    outcomes.append(messages.Outcome(job_id=job_id, outcome=outcome))
                    if job_id in self.jobs:
                        self._follow(session, job_id)
                self._say(messages.Followed(request_id=message.request_id, outcomes=outcomes))
            case messages.Unfollow():
                for job_id in message.job_ids:
                    session.followed.discard(job_id)
                    session.texts.pop(job_id, None)
            case messages.FollowText():
                session.texts[message.job_id] = [message.attempt, message.piece, message.credit_bytes]
            case messages.Subscribe():
                cursor = len(self.events) if message.cursor < 0 else message.cursor
                session.subscriptions[message.subscription_id] = [cursor, message.credit]
                number = message.subscription_id
                self._say(
                    messages.Subscribed(request_id=message.request_id, subscription_id=number, cursor=cursor)
                )
            case messages.Unsubscribe():
                session.subscriptions.pop(message.subscription_id, None)
            case messages.Credit():
                session.results_credit += message.results_bytes
                assert session.results_credit <= RESULTS_CREDIT_BYTES, "more credit than there is room"
                if message.job_id in session.texts:
                    session.texts[message.job_id][2] += message.text_bytes
                if message.subscription_id in session.subscriptions:
                    session.subscriptions[message.subscription_id][1] += message.events
            case messages.Resume():
                self.carried_out += 1
                self._say(messages.Done(request_id=message.request_id))
            case messages.Heartbeat():
                self._say(messages.Heartbeat())

    def _follow(self, session: ModelSession, job_id: bytes) -> None:
        if self.jobs[job_id].result is None:
            session.followed.add(job_id)
        else:
            session.ended.append(job_id)

    def _push_text(self, session: ModelSession, job_id: bytes) -> None:
        job = self.jobs.get(job_id)
        if job is None:
            return
        attempt, piece, credit = session.texts[job_id]
        restart = ""
        if attempt != job.attempt:
            restart = "new attempt" if attempt else ""
            attempt, piece = job.attempt, 0
        pieces = [messages.Piece(channel="content", text=text) for text in job.pieces[piece : piece + 2]]
        final = job.result is not None and piece + len(pieces) == len(job.pieces)
        if credit > 0 and (pieces or restart or final):
            self._say(
                messages.Text(
                    job_id=job_id,
                    attempt=attempt,
                    first=piece + 1,
                    pieces=pieces,
                    restart=restart,
                    final=final,
                )
            )
            cost = sum(max(1, len(part.text)) for part in pieces)
            session.texts[job_id] = [attempt, piece + len(pieces), credit - cost]
            if final:
                del session.texts[job_id]


def to_client(frames: list[bytes]) -> tuple[messages.ToPeer, bytes]:
    """Return the message of four frames, as a client reads it."""
    return TO_PEER_TABLE.decode(frames)
