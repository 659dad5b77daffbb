"""A client of our own, as PROTOCOL.md has it and no cleverer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from lmq_proto import bounds
from lmq_proto.codec import cut
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Bye,
    Credit,
    ErrorReply,
    EventFilter,
    Events,
    Finished,
    Follow,
    Followed,
    FollowText,
    FromPeer,
    Heartbeat,
    Hello,
    JobEnd,
    Outcome,
    Piece,
    Submit,
    Submitted,
    Subscribe,
    Subscribed,
    Text,
    ToPeer,
    Unfollow,
    Unsubscribe,
    Welcome,
    Who,
)
from simulation.people import EventRead, Person, TextRead

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.network import Network
    from simulation.world import World

_TICK_MS = 500
_RESEND_MS = 3000


class PlainLine:
    """The conversation of one client with the broker."""

    def __init__(self, world: World, network: Network, person: Person, evil: bool) -> None:
        self.world = world
        self.person = person
        self.evil = evil
        """Single messages may be lost: ask again without waiting for a new connection."""
        self.instance = world.random.randbytes(16)
        self.port = network.open(person.name, self.take)
        self.up = False
        self.hello_id = 0
        self.last_id = 0
        self.heard_ms = self.sent_ms = self.greeted_ms = self.asked_ms = world.mono_ms
        self.heartbeat_ms = 2000
        self.requests: dict[int, tuple[FromPeer, bytes, Callable[[object, bytes], None]]] = {}
        self.followed: dict[bytes, None] = {}
        self.texts: dict[bytes, TextRead] = {}
        self.text_credit: dict[bytes, int] = {}
        self.text_ids: dict[int, bytes] = {}
        self.text_begun: set[bytes] = set()
        self.text_twice: set[bytes] = set()
        """Texts asked for more than once in this session: pushes for the first may still come."""
        self.reads: dict[int, EventRead] = {}
        self.last_subscription = 0
        self.awaited: dict[int, int] = {}
        """Subscription -> request id of its `subscribe`."""
        self.event_credit: dict[int, int] = {}
        self.wishes: dict[int, int] = {}
        self.results_credit = 0
        self.results_owed = 0
        self.finished_ms = -1
        self._greet()
        world.after(_TICK_MS, self._beat)

    # --- session ---

    def _greet(self) -> None:
        self.up = False
        self.last_id += 1
        self.hello_id = self.last_id
        self.heard_ms = self.greeted_ms = self.world.mono_ms
        self.port.send(
            Hello(
                request_id=self.hello_id, instance=self.instance, protocol_oldest=bounds.PROTOCOL_OLDEST,
                protocol_newest=bounds.PROTOCOL_NEWEST, user=self.person.name,
            )
        )  # fmt: skip

    def _beat(self) -> None:
        now = self.world.mono_ms
        if now - self.heard_ms >= 3 * self.heartbeat_ms:
            self.port.reconnect()
            self._greet()
        elif self.up:
            if now - self.sent_ms >= self.heartbeat_ms:
                self._send(Heartbeat())
            if self.evil and now - self.asked_ms >= _RESEND_MS:
                self._ask_again()
            self._give_credit()
        elif now - self.greeted_ms >= _RESEND_MS:
            self._greet()
        self.world.after(_TICK_MS, self._beat)

    def _send(self, message: FromPeer, body: bytes = b"") -> None:
        if self.up:
            self.sent_ms = self.world.mono_ms
            self.port.send(message, body)

    def _welcome(self, message: Welcome) -> None:
        if self.up or message.request_id != self.hello_id:
            return
        self.up = True
        self.heartbeat_ms = message.heartbeat_ms
        self.results_credit = message.results_credit_bytes
        self.results_owed = 0
        self.text_begun.clear()
        self.text_twice.clear()
        self._ask_again()

    def _ask_again(self) -> None:
        self.asked_ms = self.world.mono_ms
        for message, body, _ in list(self.requests.values()):
            self._send(message, body)
        self._follow(list(self.followed))
        for job_id in self.texts:
            self._follow_text(job_id)
        for subscription_id in list(self.reads):
            self._subscribe(subscription_id)

    # --- what the person wants ---

    def _next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def command(self, message: FromPeer, body: bytes, answered: Callable[[object, bytes], None]) -> None:
        request_id = self._next_id()
        message = msgspec.structs.replace(message, request_id=request_id)
        self.requests[request_id] = (message, body, answered)
        self._send(message, body)

    def submit(
        self, message: Submit, payloads: list[bytes], answered: Callable[[list[Outcome] | None], None]
    ) -> None:
        def reply(value: object, _: bytes) -> None:
            assert isinstance(value, Submitted | ErrorInfo)
            if isinstance(value, ErrorInfo):
                for spec in message.jobs:
                    self.followed.pop(spec.id, None)
                answered(None)
                return
            for spec, outcome in zip(message.jobs, value.outcomes, strict=True):
                if outcome.outcome == "refused" or outcome.job_id != spec.id:
                    self.followed.pop(spec.id, None)
                if message.follow and outcome.outcome != "refused":
                    self.followed[outcome.job_id] = None
            answered(value.outcomes)

        self.command(message, b"".join(payloads), reply)

    def follow(self, job_ids: list[bytes]) -> None:
        self.followed.update(dict.fromkeys(job_ids))
        self._follow(job_ids)

    def _follow(self, job_ids: list[bytes]) -> None:
        size = self.person.batch_max
        for start in range(0, len(job_ids), size):
            self._send(Follow(request_id=self._next_id(), job_ids=job_ids[start : start + size]))

    def read_text(self, job_id: bytes, read: TextRead) -> None:
        self.texts[job_id] = read
        self._follow_text(job_id)

    def _follow_text(self, job_id: bytes) -> None:
        read = self.texts[job_id]
        request_id = self._next_id()
        self.text_ids[request_id] = job_id
        if job_id in self.text_begun:
            self.text_twice.add(job_id)
        self.text_begun.add(job_id)
        credit = self.world.random.choice((1, 50, 5000))
        self.text_credit[job_id] = credit
        attempt, piece = read.attempt, read.pieces
        self._send(
            FollowText(
                request_id=request_id, job_id=job_id, attempt=attempt, piece=piece, credit_bytes=credit
            )
        )

    def read_events(self, read: EventRead, cursor: int) -> None:
        self.last_subscription += 1
        subscription_id = self.last_subscription
        self.reads[subscription_id] = read
        self.wishes[subscription_id] = cursor
        self._subscribe(subscription_id)

    def _subscribe(self, subscription_id: int) -> None:
        read = self.reads[subscription_id]
        cursor = self.wishes[subscription_id] if read.begin is None else read.cursor
        request_id = self._next_id()
        self.awaited[subscription_id] = request_id
        credit = self.world.random.choice((1, 3, 1000))
        self.event_credit[subscription_id] = credit
        since_ms = self.world.wall_ms - 3000 if cursor < 0 and self.world.chance(0.3) else 0
        self._send(
            Subscribe(
                request_id=request_id, subscription_id=subscription_id, cursor=cursor, since_ms=since_ms,
                match=read.match, credit=credit, last=3 if cursor < 0 and self.world.chance(0.3) else 0,
            )
        )  # fmt: skip

    def leave_ends(self, job_ids: list[bytes]) -> None:
        # `unfollow` ends texts, too: those that are still read are followed anew.
        for job_id in job_ids:
            self.followed.pop(job_id, None)
        self._send(Unfollow(job_ids=job_ids))
        for job_id in job_ids:
            if job_id in self.texts:
                self._follow_text(job_id)

    def leave_text(self, job_id: bytes) -> None:
        del self.texts[job_id]
        self._send(Unfollow(job_ids=[job_id]))
        if job_id in self.followed:
            self._follow([job_id])

    def leave_events(self, read: EventRead) -> None:
        for subscription_id, each in list(self.reads.items()):
            if each is read:
                del self.reads[subscription_id]
                self._send(Unsubscribe(subscription_id=subscription_id))

    def _give_credit(self) -> None:
        """Give back what was consumed, sooner or later."""
        lazy = 0.5 if self.world.raging else 0.0
        if self.results_owed and not self.world.chance(lazy):
            self._send(Credit(results_bytes=self.results_owed))
            self.results_credit += self.results_owed
            self.results_owed = 0
        for job_id in self.texts:
            if self.text_credit[job_id] <= 0 and not self.world.chance(lazy):
                more = self.world.random.choice((1, 200))
                self.text_credit[job_id] += more
                self._send(Credit(job_id=job_id, text_bytes=more))
        for subscription_id in self.reads:
            if self.event_credit[subscription_id] <= 0 and not self.world.chance(lazy):
                more = self.world.random.choice((1, 50))
                self.event_credit[subscription_id] += more
                self._send(Credit(subscription_id=subscription_id, events=more))

    # --- what the broker says ---

    def take(self, message: ToPeer, body: bytes) -> None:
        self.heard_ms = self.world.mono_ms
        match message:
            case Welcome():
                self._welcome(message)
            case Who():
                if self.up:
                    self._greet()
            case Bye():
                if self.up:
                    self.port.reconnect()
                    self._greet()
            case Heartbeat():
                pass
            case Finished():
                self._finished(message, body)
            case Text():
                self._text(message)
            case Subscribed():
                self._subscribed(message)
            case Events():
                self._events(message)
            case Followed():
                for outcome in message.outcomes:
                    if outcome.outcome == "refused":
                        self._gone(outcome.job_id)
            case ErrorReply():
                self._error(message)
            case _:
                request_id = getattr(message, "request_id", None)
                assert request_id is not None, f"a client was sent {message}"
                request = self.requests.pop(request_id, None)
                if request is not None:
                    request[2](message, body)

    def _error(self, message: ErrorReply) -> None:
        error = message.error
        if error.code == "stopping" or message.request_id == self.hello_id:
            return
        assert error.code != "protocol_error", error
        job_id = self.text_ids.get(message.request_id)
        if job_id is not None:
            if job_id in self.texts:
                read = self.texts.pop(job_id)
                read.final = read.refused = True
            return
        request = self.requests.pop(message.request_id, None)
        if request is not None:
            request[2](error, b"")

    def _gone(self, job_id: bytes) -> None:
        """A job that was followed is not there any more."""
        if job_id in self.followed:
            self.followed.pop(job_id, None)
            self.person.job_ended(JobEnd(job_id=job_id, state="deleted"), b"")

    def _finished(self, message: Finished, body: bytes) -> None:
        # What one read brings is sent whole, in as many messages as it takes.
        at_once = self.finished_ms == self.port.taken_sent_ms
        assert self.evil or at_once or self.results_credit > 0, "results were pushed beyond the credit"
        self.finished_ms = self.port.taken_sent_ms
        parts = cut(body, [end.result_bytes for end in message.jobs])
        for end, part in zip(message.jobs, parts, strict=True):
            self.results_credit -= len(part) + bounds.RESULT_OVERHEAD_BYTES
            self.results_owed += len(part) + bounds.RESULT_OVERHEAD_BYTES
            self.followed.pop(end.job_id, None)
            self.person.job_ended(end, part)

    def _text(self, message: Text) -> None:
        read = self.texts.get(message.job_id)
        if read is None:
            return
        loose = self.evil or message.job_id in self.text_twice
        begins = message.attempt > read.attempt
        if message.attempt < read.attempt:
            assert message.final or loose, f"back from attempt {read.attempt} to {message.attempt}"
            pieces: list[Piece] = []
        else:
            have = 0 if begins else read.pieces
            if message.first > have + 1:
                assert loose, f"a hole: piece {message.first} follows {have}"
                self._follow_text(message.job_id)
                return
            pieces = message.pieces[have + 1 - message.first :]
            assert loose or len(pieces) == len(message.pieces), "pieces were sent twice"
        if pieces:
            assert loose or self.text_credit[message.job_id] > 0, "text was pushed beyond the credit"
        self.text_credit[message.job_id] -= sum(max(1, len(piece.text)) for piece in message.pieces)
        if begins and (pieces or message.restart):
            assert loose or message.restart or not read.attempt, "a new attempt without a word of restart"
            read.begin(message.attempt)
        read.add(pieces)
        if message.final:
            read.final = True
            del self.texts[message.job_id]
        self.person.text_came(message.job_id, read)

    def _subscribed(self, message: Subscribed) -> None:
        read = self.reads.get(message.subscription_id)
        if read is None or self.awaited.get(message.subscription_id) != message.request_id:
            return
        self.awaited.pop(message.subscription_id)
        if read.begin is None:
            read.begin = read.cursor = message.cursor
        assert message.cursor == read.cursor, "a subscription begins elsewhere than asked"

    def _events(self, message: Events) -> None:
        read = self.reads.get(message.subscription_id)
        if read is None or message.subscription_id in self.awaited:
            return
        if message.before != read.cursor:
            assert self.evil, f"events after {message.before} follow {read.cursor}"
            if message.before > read.cursor:
                self._subscribe(message.subscription_id)
            return
        left = self.event_credit[message.subscription_id]
        assert self.evil or message.expired or left >= len(message.events), "events beyond the credit"
        self.event_credit[message.subscription_id] -= max(1, len(message.events))
        read.expired = read.expired or message.expired
        read.cursor = message.after
        read.events += message.events
        self.person.events_came(read)

    def unsettled(self) -> str:
        """Say what has no answer yet."""
        if self.requests:
            return f"{len(self.requests)} commands without a reply: {next(iter(self.requests.values()))[0]}"
        newest = self.person.checks.disk.tables.last_seq
        behind = [read for read in self.reads.values() if not read.match.kinds and read.cursor < newest]
        plain = [read for read in behind if read.match == EventFilter()]
        return f"{len(plain)} subscriptions behind {newest}" if plain else ""
