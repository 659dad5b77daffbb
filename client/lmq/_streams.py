"""Gapless streams as one client sees them: text of a job, events of a subscription. Pure; part of `_dialogue`.

Each keeps a cursor, so that it can go on after any break, and reckons credit, so that what lies unread here is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from lmq_proto.events import Event
from lmq_proto.messages import EventFilter, Events, Piece, Subscribe, Subscribed, Text

TEXT_WINDOW = 256 * 1024
"""Characters of one job's text that may lie unread in this process: some minutes of a fast model."""
EVENTS_WINDOW = 1000
"""Events of one subscription that may lie unread."""


class TextPush(msgspec.Struct, frozen=True):
    """Pieces `first`, `first` + 1, ... of one attempt, for one reader."""

    attempt: int
    first: int
    pieces: list[Piece]
    restart: bool
    """The attempt is new, and the reader was given pieces of an earlier one."""
    reason: str
    final: bool

    @property
    def cost(self) -> int:
        """What its reader takes off its credit by reading it."""
        return text_cost(self.pieces)


class EventsPush(msgspec.Struct, frozen=True):
    """Events up to cursor `after`."""

    events: list[Event]
    after: int


def text_cost(pieces: list[Piece]) -> int:
    """Return what a push of these pieces costs: their characters, at least 1 a piece."""
    return sum(max(1, len(piece.text)) for piece in pieces)


@dataclass(slots=True)
class Flow:
    """Credit of one stream: what the sender may still send, and what is due to it."""

    window: int
    granted: int = 0

    def open(self, unread: int) -> int:
        """Return the credit to begin (again) with, while so much lies unread."""
        self.granted = max(1, self.window - unread)
        return self.granted

    def due(self, unread: int) -> int:
        """Return the credit to give now: nothing, or at least half a window, so that few messages are needed."""
        more = self.window - unread - self.granted
        if more < self.window // 2:
            return 0
        self.granted += more
        return more


@dataclass(slots=True)
class Reader:
    """One reader of a job's text: how far it was given, and how much of that it has not read."""

    attempt: int
    piece: int
    unread: int = 0

    def accept(self, text: Text) -> TextPush | None:
        """Return what of a push is new to this reader, if anything."""
        if text.attempt < self.attempt and not text.final:
            return None
        restart = text.attempt > self.attempt
        shown = self.piece > 0
        if restart:
            self.attempt, self.piece = text.attempt, 0
        pieces: list[Piece] = []
        if text.attempt == self.attempt:
            pieces = text.pieces[max(0, self.piece + 1 - text.first) :]
        if not pieces and not (restart and shown) and not text.final:
            return None
        first = self.piece + 1
        self.piece += len(pieces)
        self.unread += text_cost(pieces)
        return TextPush(self.attempt, first, pieces, restart and shown, text.restart, text.final)


@dataclass(slots=True)
class TextFollow:
    """The text of one job: one stream on the wire, any number of readers here.

    A reader that joins makes the stream begin anew; each reader is then given only what it has not had.
    """

    job_id: bytes
    flow: Flow = field(default_factory=lambda: Flow(TEXT_WINDOW))
    readers: dict[object, Reader] = field(default_factory=dict)
    request_id: int = 0
    attempt: int = 0
    piece: int = 0

    def rewind(self) -> tuple[int, int]:
        """Set the wire's cursor to where the hindmost reader stands, and return it."""
        self.attempt, self.piece = min((r.attempt, r.piece) for r in self.readers.values())
        return self.attempt, self.piece

    def unread(self) -> int:
        return max((reader.unread for reader in self.readers.values()), default=0)

    def leaves_gap(self, text: Text) -> bool:
        """Tell whether pieces before this push are missing; move the cursor if not."""
        if text.attempt < self.attempt or not text.pieces:
            return False
        expected = self.piece + 1 if text.attempt == self.attempt else 1
        if text.first > expected:
            return True
        self.flow.granted -= text_cost(text.pieces)
        end = text.first + len(text.pieces) - 1
        self.piece = max(self.piece, end) if text.attempt == self.attempt else end
        self.attempt = text.attempt
        return False


@dataclass(slots=True)
class Subscription:
    """One subscription to events. `cursor` is known once the broker has named it."""

    subscription_id: int
    match: EventFilter
    start_cursor: int
    since_ms: int
    last: int
    cursor: int | None = None
    unread: int = 0
    awaited: int = 0
    """Request id of the `subscribe` whose reply has not come; pushes before that belong to an older one."""
    flow: Flow = field(default_factory=lambda: Flow(EVENTS_WINDOW))

    def subscribe(self, request_id: int) -> Subscribe:
        """Return the command that begins it, or goes on after the last push."""
        self.awaited = request_id
        known = self.cursor is not None
        return Subscribe(
            request_id=request_id,
            subscription_id=self.subscription_id,
            cursor=self.start_cursor if self.cursor is None else self.cursor,
            since_ms=0 if known else self.since_ms,
            last=0 if known else self.last,
            match=self.match,
            credit=self.flow.open(self.unread),
        )

    def begun(self, reply: Subscribed) -> bool:
        """Take the reply; tell whether the stream goes on without a hole."""
        self.awaited = 0
        if self.cursor is None:
            self.cursor = reply.cursor
        return reply.cursor <= self.cursor

    def accept(self, push: Events) -> EventsPush | None:
        """Return what is new of a push, or None when there is a hole before it."""
        assert self.cursor is not None
        if push.before > self.cursor:
            return None
        events = push.events
        if push.before < self.cursor:
            cursor = self.cursor
            events = [event for event in events if event.seq > cursor]
        self.cursor = max(self.cursor, push.after)
        self.flow.granted -= max(1, len(push.events))
        self.unread += len(events)
        return EventsPush(events, self.cursor)
