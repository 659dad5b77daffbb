"""What a client has under way with its broker, and what to do next about it: the thinking of the SDK.

Pure: no sockets, no threads, no clock, no chance. Whoever drives it brings the time and carries out the instructions;
the I/O thread in `_link` does so, and so may a simulation. A *token* is whatever the driver wants to be told about: it
comes back in `Resolve`, `Fail` or `Push` and is otherwise not looked at (it must be hashable).

The life of a connection: `start` -> `Connect` -> `connected` -> hello -> welcome -> up. Whatever breaks it
(`disconnected`, `who`, silence) leads back to hello, and then everything without a reply is sent again: commands under
their old number, follows, streams from their cursors. The broker carries each out once, so the caller notices nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from lmq._instructions import Connect, Connection, Fail, Instruction, Listen, Push, Resolve, Send, Token
from lmq._streams import Flow, Reader, Subscription, TextFollow
from lmq._submits import SUBMITS_IN_FLIGHT, Submits
from lmq_proto import bounds, messages
from lmq_proto.codec import cut
from lmq_proto.errors import (
    BadField,
    CursorExpired,
    LmqError,
    NotFound,
    ProtocolError,
    Stopping,
    from_info,
)
from lmq_proto.ids import to_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

SILENT_HEARTBEATS = 3
HELLO_WAIT_MS = 5000
"""A broker that is connected but does not greet: it may be reading its journal, or hang."""
CONNECT_WAIT_MS = 3000
"""An address that does not connect, where there are others to try."""
TURN_MS = 200
"""Before the next address is tried where nobody listens; keeps a round of dead addresses from spinning."""
REFUSED_WAIT_MS = 1000
"""Between two hellos to a broker that refused the first."""
HEARTBEAT_MS = 5000
"""Until the broker has said its own."""


@dataclass(slots=True)
class Request:
    """A command without a reply yet. `tokens` has one for each job of a merged submit, else one."""

    message: messages.FromPeer
    body: bytes
    tokens: Sequence[Token]
    merged: bool = False


class Dialogue:
    """One client's side of the conversation.

    Args:
        urls: broker addresses, tried in turn.
        instance: 16 random bytes, of this life of this client.
        user: the name claimed in hello.
        software: name and version, for the broker's lists.
    """

    def __init__(self, urls: Sequence[str], instance: bytes, user: str, software: str = "") -> None:
        self._urls = tuple(urls)
        self._at = 0
        self._instance = instance
        self._user = user
        self._software = software
        self._out: list[Instruction] = []

        self.connection = Connection.DOWN
        self.welcome: messages.Welcome | None = None
        self.welcomes = 0
        self._since_ms = 0
        """When the present `connection` began."""
        self._heard_ms = 0
        self._sent_ms = 0
        self._heartbeat_ms = HEARTBEAT_MS
        self._hello_id = 0
        self._was_pending = False

        self._last_id = 0
        self._requests: dict[int, Request] = {}
        self._submits = Submits()
        self._merged_in_flight = 0
        self._followed: dict[bytes, list[Token]] = {}
        self._to_follow: dict[bytes, None] = {}
        self._to_unfollow: list[bytes] = []
        self._results_flow = Flow(bounds.RESULTS_CREDIT_BYTES)
        self._texts: dict[bytes, TextFollow] = {}
        self._text_requests: dict[int, bytes] = {}
        self._subscriptions: dict[Token, Subscription] = {}
        self._subscribers: dict[int, Token] = {}

    # --- what the caller wants: queued here, sent by the next `tick` ---------------------------------------------

    def begin(self, token: Token, message: messages.FromPeer, body: bytes = b"") -> None:
        """Carry out a command; its `request_id` is filled in here. The token gets the reply."""
        request_id = self._next_id()
        numbered = msgspec.structs.replace(message, request_id=request_id)
        self._request(request_id, Request(numbered, body, (token,)))

    def begin_submit(
        self,
        token: Token,
        spec: messages.JobSpec,
        payload: bytes,
        as_user: str = "",
        follow: Token | None = None,
    ) -> None:
        """Submit a job, in one message with others.

        The token gets its `Outcome`; `follow`, if any, its end, as from `begin_follow`.
        """
        at_once = follow is not None and len(self._followed) < bounds.FOLLOWS
        if follow is not None:
            self._followed.setdefault(spec.id, []).append(follow)
        self._submits.add(token, spec, payload, as_user, at_once)

    def begin_batch(
        self,
        token: Token,
        specs: Sequence[messages.JobSpec],
        payloads: Sequence[bytes],
        as_user: str = "",
        atomic: bool = False,
        follows: Sequence[Token] = (),
    ) -> None:
        """Submit up to 1,000 jobs as one message.

        The token gets their outcomes, in order; `follows`, one each or none, their ends.
        """
        if len(specs) > bounds.BATCH_JOBS:
            self._out.append(Fail(token, BadField("jobs", len(specs), f"at most {bounds.BATCH_JOBS}")))
            return
        for spec, follow in zip(specs, follows, strict=bool(follows)):
            self._followed.setdefault(spec.id, []).append(follow)
        self._submit((token,), list(specs), payloads, as_user, atomic, follow=bool(follows), merged=False)

    def begin_follow(self, follows: Iterable[tuple[Token, bytes]]) -> None:
        """Learn how jobs end: each token gets (`JobEnd`, result bytes) once."""
        for token, job_id in follows:
            tokens = self._followed.setdefault(job_id, [])
            tokens.append(token)
            if len(tokens) == 1:
                self._to_follow[job_id] = None

    def end_follow(self, token: Token, job_id: bytes) -> None:
        """Stop wanting a job's end."""
        tokens = self._followed.get(job_id)
        if tokens is None or token not in tokens:
            return
        tokens.remove(token)
        if not tokens:
            del self._followed[job_id]
            if job_id in self._to_follow:
                del self._to_follow[job_id]
            elif job_id not in self._texts:
                self._to_unfollow.append(job_id)

    def begin_text(self, token: Token, job_id: bytes, attempt: int = 0, piece: int = 0) -> None:
        """Read a job's text after a cursor: the token is pushed `TextPush`es, the last one with `final`."""
        follow = self._texts.setdefault(job_id, TextFollow(job_id))
        follow.readers[token] = Reader(attempt, piece)
        self._follow_text(follow)

    def text_taken(self, token: Token, job_id: bytes, taken: int) -> None:
        """Say that a reader has read so much (`TextPush.cost`) of what it was given."""
        follow = self._texts.get(job_id)
        if follow is not None and token in follow.readers:
            follow.readers[token].unread -= taken
            self._credit_text(follow)

    def end_text(self, token: Token, job_id: bytes) -> None:
        """Stop reading."""
        follow = self._texts.get(job_id)
        if follow is None or follow.readers.pop(token, None) is None:
            return
        if follow.readers:
            self._credit_text(follow)
            return
        self._drop_text(follow)
        self._to_unfollow.append(job_id)
        if job_id in self._followed:
            # `unfollow` ends both; the result is still wanted.
            self._to_follow[job_id] = None

    def begin_events(
        self, token: Token, match: messages.EventFilter, cursor: int = -1, since_ms: int = 0, last: int = 0
    ) -> None:
        """Read events, as `subscribe` describes: the token is pushed `EventsPush`es."""
        subscription = Subscription(self._next_id(), match, cursor, since_ms, last)
        self._subscriptions[token] = subscription
        self._subscribers[subscription.subscription_id] = token
        self._subscribe(subscription)

    def events_taken(self, token: Token, count: int) -> None:
        """Say that so many of the events pushed have been read."""
        subscription = self._subscriptions.get(token)
        if subscription is not None:
            subscription.unread -= count
            self._credit_events(subscription)

    def end_events(self, token: Token) -> None:
        """Stop reading."""
        subscription = self._subscriptions.pop(token, None)
        if subscription is not None:
            del self._subscribers[subscription.subscription_id]
            self._requests.pop(subscription.awaited, None)
            self._send(messages.Unsubscribe(subscription_id=subscription.subscription_id))

    def forget(self, token: Token) -> None:
        """Stop waiting for a command. It is not sent again; whether it was carried out is not known."""
        for request_id, request in self._requests.items():
            if token in request.tokens:
                if request.merged:
                    request.tokens = [None if t is token else t for t in request.tokens]
                else:
                    del self._requests[request_id]
                return
        job_id = self._submits.forget(token)
        if job_id is not None:
            self._unwant(job_id)

    # --- what happens to the connection --------------------------------------------------------------------------

    def start(self, now_ms: int) -> list[Instruction]:
        """Begin; once, before everything else."""
        self._down(now_ms)
        self._out.append(Connect(self.url))
        return self._take()

    def connected(self, now_ms: int) -> list[Instruction]:
        """Take that the transport is there (again): say hello."""
        self._lost()
        self._greet(now_ms)
        return self._take()

    def disconnected(self, now_ms: int) -> list[Instruction]:
        """Take that the transport is gone; it comes back by itself, or `tick` tries elsewhere."""
        self._lost()
        self._down(now_ms)
        return self._take()

    def unreachable(self, now_ms: int) -> None:
        """Take that nobody listens at the address: where there are others, `tick` tries the next one soon."""
        if self.connection is Connection.DOWN and len(self._urls) > 1:
            self._since_ms = min(self._since_ms, now_ms - CONNECT_WAIT_MS + TURN_MS)

    def received(self, message: messages.ToPeer, body: bytes, now_ms: int) -> list[Instruction]:
        """Take a message of the broker."""
        self._heard_ms = now_ms
        match message:
            case messages.Submitted():
                self._submitted(message)
            case messages.Finished():
                self._finished(message, body)
            case messages.Text():
                self._text(message)
            case messages.Events():
                self._events(message)
            case messages.Heartbeat():
                pass
            case messages.Followed():
                self._followed_reply(message)
            case messages.Subscribed():
                self._subscribed(message)
            case messages.Welcome():
                self._welcomed(message, now_ms)
            case messages.ErrorReply():
                self._error(message, now_ms)
            case messages.Who():  # one for each message that was on its way
                if self.connection is not Connection.GREETING:
                    self._lost()
                    self._greet(now_ms)
            case messages.Bye():
                self._lost()
                self._greet(now_ms)
            case _:
                request_id = getattr(message, "request_id", 0)
                request = self._requests.pop(request_id, None)
                if request is not None:
                    value = (message, body) if body else message
                    self._resolve(request.tokens[0], value)
        return self._take()

    def tick(self, now_ms: int) -> list[Instruction]:
        """Do what is due: send what waits, heartbeats, credit; give up on a silent broker."""
        pending = self.is_pending
        if pending and not self._was_pending:
            # The silence before did not count: nothing was asked.
            self._heard_ms = now_ms
            self._since_ms = now_ms if self.connection is Connection.DOWN else self._since_ms
        self._was_pending = pending
        if self.connection is Connection.UP:
            self._flush()
            if any(isinstance(instruction, Send) for instruction in self._out):
                self._sent_ms = now_ms
            elif pending and now_ms - self._sent_ms >= self._heartbeat_ms:
                self._out.append(Send(messages.Heartbeat()))
                self._sent_ms = now_ms
        if pending and now_ms >= self._patience_end_ms():
            self._turn(now_ms)
        return self._take()

    def abort(self, error: LmqError) -> list[Instruction]:
        """Fail everything that waits: the client ends, or the broker refused it."""
        tokens: dict[Token, None] = {}
        for request in self._requests.values():
            tokens.update(dict.fromkeys(request.tokens))
        tokens.update(dict.fromkeys(self._submits.tokens()))
        for followers in self._followed.values():
            tokens.update(dict.fromkeys(followers))
        for text in self._texts.values():
            tokens.update(dict.fromkeys(text.readers))
        tokens.update(dict.fromkeys(self._subscriptions))
        tokens.pop(None, None)
        self._requests.clear()
        self._submits.clear()
        self._followed.clear()
        self._to_follow.clear()
        self._to_unfollow.clear()
        self._texts.clear()
        self._text_requests.clear()
        self._subscriptions.clear()
        self._subscribers.clear()
        self._merged_in_flight = 0
        self._out += [Fail(token, error) for token in tokens]
        return self._take()

    @property
    def url(self) -> str:
        """The address in use."""
        return self._urls[self._at]

    @property
    def is_pending(self) -> bool:
        """Whether anything is wanted from the broker."""
        return bool(
            self._requests or self._followed or self._texts or self._subscriptions
            or self._submits
        )  # fmt: skip

    @property
    def next_due_ms(self) -> int | None:
        """When `tick` has something to do that no message brings about; None for never."""
        if not self.is_pending:
            return None
        due_ms = self._patience_end_ms()
        if self.connection is Connection.UP:
            due_ms = min(due_ms, self._sent_ms + self._heartbeat_ms)
        return due_ms

    # --- the connection ------------------------------------------------------------------------------------------

    def _patience_end_ms(self) -> int:
        """Return until when the present connection may stay as it is."""
        if self.connection is Connection.UP:
            return self._heard_ms + SILENT_HEARTBEATS * self._heartbeat_ms
        if self.connection is Connection.GREETING:
            return self._since_ms + (HELLO_WAIT_MS if self._hello_id else REFUSED_WAIT_MS)
        # A lone address needs no turn: the transport itself tries it again, each time a little later.
        return self._since_ms + (CONNECT_WAIT_MS if len(self._urls) > 1 else 10 * CONNECT_WAIT_MS)

    def _turn(self, now_ms: int) -> None:
        """Give up on the present connection and make one to the next address."""
        if self.connection is Connection.GREETING and not self._hello_id:
            self._greet(now_ms)
            return
        self._lost()
        self._at = (self._at + 1) % len(self._urls)
        self._down(now_ms)
        self._out.append(Connect(self.url))

    def _down(self, now_ms: int) -> None:
        self.connection = Connection.DOWN
        self._since_ms = now_ms

    def _greet(self, now_ms: int) -> None:
        self.connection = Connection.GREETING
        self._since_ms = now_ms
        self._hello_id = self._next_id()
        self._out.append(
            Send(
                messages.Hello(
                    request_id=self._hello_id, instance=self._instance, protocol_oldest=bounds.PROTOCOL_OLDEST,
                    protocol_newest=bounds.PROTOCOL_NEWEST, software=self._software, user=self._user,
                )
            )
        )  # fmt: skip

    def _lost(self) -> None:
        """Drop what belonged to the session alone; what callers wait for stays and is sent again."""
        self._out = [instruction for instruction in self._out if not isinstance(instruction, Send)]
        for request_id, request in list(self._requests.items()):
            if isinstance(request.message, messages.Follow):
                del self._requests[request_id]
        for subscription in self._subscriptions.values():
            self._requests.pop(subscription.awaited, None)
        self._text_requests.clear()
        self._to_unfollow.clear()

    def _welcomed(self, welcome: messages.Welcome, now_ms: int) -> None:
        """Take up everything again, the oldest first."""
        if welcome.request_id != self._hello_id or self.connection is not Connection.GREETING:
            return
        self.connection = Connection.UP
        self._since_ms = self._sent_ms = now_ms
        self._hello_id = 0
        self.welcome = welcome
        self.welcomes += 1
        self._heartbeat_ms = welcome.heartbeat_ms or HEARTBEAT_MS
        self._results_flow = Flow(welcome.results_credit_bytes or bounds.RESULTS_CREDIT_BYTES)
        self._results_flow.open(0)
        self._out.append(Listen(self.url, welcome.events_port, welcome.events_path))
        followed = dict.fromkeys(self._followed)
        for request in self._requests.values():
            self._out.append(Send(request.message, request.body))
            if isinstance(request.message, messages.Submit):
                for spec in request.message.jobs:
                    followed.pop(spec.id, None)
        for job_id in self._submits.job_ids():
            followed.pop(job_id, None)
        self._to_follow = followed
        for text in self._texts.values():
            self._follow_text(text)
        for subscription in self._subscriptions.values():
            self._subscribe(subscription)

    def _error(self, reply: messages.ErrorReply, now_ms: int) -> None:
        error = from_info(reply.error)
        if reply.request_id == self._hello_id and self.connection is Connection.GREETING:
            self._hello_id = 0
            self._since_ms = now_ms
            if not error.retryable:
                self._out = self.abort(error)
            return
        if isinstance(error, Stopping):
            return  # not carried out: it goes to the broker that comes next
        job_id = self._text_requests.pop(reply.request_id, None)
        if job_id is not None:
            follow = self._texts.get(job_id)
            if follow is not None and follow.request_id == reply.request_id:
                self._drop_text(follow)
                self._out += [Fail(token, error) for token in follow.readers]
            return
        request = self._requests.get(reply.request_id)
        if request is None:
            return
        del self._requests[reply.request_id]
        if isinstance(request.message, messages.Submit):
            self._merged_in_flight -= request.merged
            for spec in request.message.jobs:
                self._unwant(spec.id)
        if isinstance(request.message, messages.Follow):
            for job_id in request.message.job_ids:
                self._fail_follow(job_id, error)
        for token in request.tokens:
            if token in self._subscriptions:
                subscription = self._subscriptions.pop(token)
                del self._subscribers[subscription.subscription_id]
            if token is not None:
                self._out.append(Fail(token, error))

    # --- commands and submits ------------------------------------------------------------------------------------

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _request(self, request_id: int, request: Request) -> None:
        self._requests[request_id] = request
        self._send(request.message, request.body)

    def _send(self, message: messages.FromPeer, body: bytes = b"") -> None:
        """Send if a broker listens; if not, the next welcome sends what still matters."""
        if self.connection is Connection.UP:
            self._out.append(Send(message, body))

    def _resolve(self, token: Token, value: object) -> None:
        if token is not None:
            self._out.append(Resolve(token, value))

    def _flush(self) -> None:
        """Send what was gathered: merged submits, follows, unfollows, credit for results."""
        while self._merged_in_flight < SUBMITS_IN_FLIGHT:
            merged = self._submits.take()
            if merged is None:
                break
            self._merged_in_flight += 1
            self._submit(
                merged.tokens, merged.specs, merged.payloads, merged.as_user, False, follow=merged.follow, merged=True
            )  # fmt: skip
        for part in _parts(self._to_unfollow):
            self._out.append(Send(messages.Unfollow(job_ids=part)))
        room = bounds.FOLLOWS - len(self._followed) + len(self._to_follow)
        wanted = list(islice(self._to_follow, max(0, room)))
        for part in _parts(wanted):
            request_id = self._next_id()
            self._request(
                request_id, Request(messages.Follow(request_id=request_id, job_ids=part), b"", (None,))
            )
        self._to_unfollow = []
        for job_id in wanted:
            del self._to_follow[job_id]
        owed = self._results_flow.window - self._results_flow.granted
        if owed >= self._results_flow.window // 4:
            self._results_flow.granted += owed
            self._out.append(Send(messages.Credit(results_bytes=owed)))

    def _submit(
        self,
        tokens: Sequence[Token],
        specs: list[messages.JobSpec],
        payloads: Sequence[bytes],
        as_user: str,
        atomic: bool,
        *,
        follow: bool,
        merged: bool,
    ) -> None:
        request_id = self._next_id()
        message = messages.Submit(
            request_id=request_id, jobs=specs, as_user=as_user, atomic=atomic, follow=follow
        )
        self._request(request_id, Request(message, b"".join(payloads), tokens, merged))

    def _submitted(self, reply: messages.Submitted) -> None:
        request = self._requests.pop(reply.request_id, None)
        if request is None or not isinstance(request.message, messages.Submit):
            return
        self._merged_in_flight -= request.merged
        specs = request.message.jobs
        if len(specs) != len(reply.outcomes):
            error = ProtocolError(f"{len(reply.outcomes)} outcomes for {len(specs)} jobs")
            self._out += [Fail(token, error) for token in request.tokens if token is not None]
            return
        for spec, outcome in zip(specs, reply.outcomes, strict=True):
            if outcome.outcome == "refused":
                self._unwant(spec.id)
            elif outcome.job_id != spec.id:
                self._move_follow(spec.id, outcome.job_id)
            elif not request.message.follow and spec.id in self._followed:
                self._to_follow[spec.id] = None
        if not request.merged:
            self._resolve(request.tokens[0], reply.outcomes)
            return
        for token, outcome in zip(request.tokens, reply.outcomes, strict=True):
            self._resolve(token, outcome)

    # --- ends of jobs --------------------------------------------------------------------------------------------

    def _unwant(self, job_id: bytes) -> None:
        """Drop the follow of a job that does not exist: whoever submitted it learns that from its outcome.

        If others follow this id, it may be there from before, and only have been submitted again: the broker is asked.
        """
        if len(self._followed.get(job_id, ())) > 1:
            self._to_follow[job_id] = None
            return
        self._followed.pop(job_id, None)
        self._to_follow.pop(job_id, None)

    def _move_follow(self, submitted: bytes, known: bytes) -> None:
        """Follow the job that an idempotency key stands for instead of the one that was submitted."""
        tokens = self._followed.pop(submitted, None)
        if tokens:
            self.begin_follow((token, known) for token in tokens)

    def _finished(self, push: messages.Finished, body: bytes) -> None:
        try:
            parts = cut(body, [job.result_bytes for job in push.jobs])
        except ProtocolError:
            # Not to be trusted; a new connection brings the ends again.
            self._since_ms = self._heard_ms = -SILENT_HEARTBEATS * self._heartbeat_ms
            return
        out = self._out
        followed = self._followed
        self._results_flow.granted -= len(body) + bounds.RESULT_OVERHEAD_BYTES * len(parts)
        for end, part in zip(push.jobs, parts, strict=True):
            tokens = followed.pop(end.job_id, None)
            if tokens:
                self._to_follow.pop(end.job_id, None)
                value = (end, part)
                for token in tokens:
                    out.append(Resolve(token, value))

    def _followed_reply(self, reply: messages.Followed) -> None:
        if self._requests.pop(reply.request_id, None) is None:
            return
        for outcome in reply.outcomes:
            if outcome.outcome == "refused":
                unknown = NotFound("job", to_text(outcome.job_id))
                self._fail_follow(outcome.job_id, from_info(outcome.error) if outcome.error else unknown)

    def _fail_follow(self, job_id: bytes, error: LmqError) -> None:
        for token in self._followed.pop(job_id, ()):
            self._out.append(Fail(token, error))

    # --- text ----------------------------------------------------------------------------------------------------

    def _follow_text(self, follow: TextFollow) -> None:
        if self.connection is not Connection.UP:
            return
        self._text_requests.pop(follow.request_id, None)
        follow.request_id = self._next_id()
        self._text_requests[follow.request_id] = follow.job_id
        attempt, piece = follow.rewind()
        self._send(
            messages.FollowText(
                request_id=follow.request_id, job_id=follow.job_id, attempt=attempt, piece=piece,
                credit_bytes=follow.flow.open(follow.unread()),
            )
        )  # fmt: skip

    def _drop_text(self, follow: TextFollow) -> None:
        del self._texts[follow.job_id]
        self._text_requests.pop(follow.request_id, None)

    def _credit_text(self, follow: TextFollow) -> None:
        more = follow.flow.due(follow.unread())
        if more:
            self._send(messages.Credit(job_id=follow.job_id, text_bytes=more))

    def _text(self, text: messages.Text) -> None:
        follow = self._texts.get(text.job_id)
        if follow is None:
            return
        if follow.leaves_gap(text):
            self._follow_text(follow)
            return
        for token, reader in follow.readers.items():
            push = reader.accept(text)
            if push is not None:
                self._out.append(Push(token, push))
        if text.final:
            self._drop_text(follow)
        else:
            self._credit_text(follow)

    # --- events --------------------------------------------------------------------------------------------------

    def _subscribe(self, subscription: Subscription) -> None:
        request_id = self._next_id()
        token = self._subscribers[subscription.subscription_id]
        self._request(request_id, Request(subscription.subscribe(request_id), b"", (token,)))

    def _subscribed(self, reply: messages.Subscribed) -> None:
        self._requests.pop(reply.request_id, None)
        token = self._subscribers.get(reply.subscription_id)
        subscription = self._subscriptions.get(token)
        if subscription is None or subscription.awaited != reply.request_id:
            return
        if not subscription.begun(reply):
            self._expire(subscription, reply.cursor)

    def _events(self, push: messages.Events) -> None:
        token = self._subscribers.get(push.subscription_id)
        subscription = self._subscriptions.get(token)
        if subscription is None or subscription.awaited:
            return
        if push.expired:
            self._expire(subscription, push.after)
            return
        new = subscription.accept(push)
        if new is None:
            self._subscribe(subscription)
            return
        if token is not None:
            self._out.append(Push(token, new))
        self._credit_events(subscription)

    def _expire(self, subscription: Subscription, oldest: int) -> None:
        token = self._subscribers[subscription.subscription_id]
        known = subscription.start_cursor if subscription.cursor is None else subscription.cursor
        self.end_events(token)
        self._out.append(Fail(token, CursorExpired(known, oldest)))

    def _credit_events(self, subscription: Subscription) -> None:
        more = subscription.flow.due(subscription.unread)
        if more:
            self._send(messages.Credit(subscription_id=subscription.subscription_id, events=more))

    def _take(self) -> list[Instruction]:
        out, self._out = self._out, []
        return out


def _parts(job_ids: list[bytes]) -> Iterator[list[bytes]]:
    """Cut ids into what one message may name."""
    return (job_ids[start : start + bounds.BATCH_JOBS] for start in range(0, len(job_ids), bounds.BATCH_JOBS))
