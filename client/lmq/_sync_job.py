"""What the face for threads hands out: jobs, streams of events, pipelines. Made by `Client` in `_sync`.

Every method waits on an inbox; the thinking is in `_dialogue`. `_async_job` has the same names, arguments and errors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar, Unpack, cast, overload

from lmq import _commands, _payloads
from lmq._batch import Outcomes, Slot
from lmq._commands import Ask
from lmq._handle import Handle, Pieces, Record
from lmq._inbox import SyncInbox
from lmq._link import Watch
from lmq._payloads import Draft, JobOptions, Models, UpdateOptions
from lmq._streams import EventsPush
from lmq.errors import LmqError, WaitTimeout
from lmq.results import (
    EmbedResult,
    Event,
    JobStatus,
    Json,
    Outcome,
    Piece,
    Progress,
    Restart,
    Why,
    join_embeds,
)
from lmq_proto.messages import EventFilter
from lmq_proto.states import State

if TYPE_CHECKING:
    from types import TracebackType

    from lmq._sync import Client

R_co = TypeVar("R_co", covariant=True)


class Job(Handle[R_co], Generic[R_co]):
    """A job that was submitted: look at it, read its text and result, act on it.

    `result` and `stream` never cancel. As a context manager it cancels when left before the job has ended,
    and only then.
    """

    __slots__ = ("_client",)

    def __init__(
        self, client: Client, job_id: bytes, task_type: str = "", record: Record | None = None
    ) -> None:
        super().__init__(job_id, task_type, record)
        self._client = client

    def status(self) -> JobStatus:
        """Return the job as it is now.

        Raises:
            NotFound: it was deleted, or is not for this user to see.
        """
        return self._learn(self._client._ask(_commands.status(self.job_id)))

    def why(self) -> Why:
        """Return why it waits, or what became of it."""
        return self._client._ask(_commands.why(self.job_id))

    def payload(self) -> Json:
        """Return what was submitted."""
        return self._client._ask(_commands.payload(self.job_id))

    def wait(self, timeout_s: float | None = None) -> State:
        """Wait for the job's end and return its final state, whichever it is.

        Raises:
            WaitTimeout: it has not ended; it goes on.
        """
        if self._record.end is None:
            inbox = SyncInbox()
            engine = self._client._engine()
            patience = self._client._patience(f"job {self.id}", timeout_s)
            try:
                self._await_by(inbox, engine)
                if self._record.end is None:
                    inbox.get(patience)
            finally:
                self._leave(inbox)
        return self._state()

    def result(self, timeout_s: float | None = None) -> R_co:
        """Wait for the job's end and return its result.

        Raises:
            JobDead, JobCancelled, JobExpired: it ended without one.
            WaitTimeout: it has not ended; it goes on.
        """
        self.wait(timeout_s)
        if not self.task_type:
            self.status()
        return self._read_result()

    @overload
    def stream(
        self, *, restart: Literal["raise"] = "raise", timeout_s: float | None = None
    ) -> Iterator[str]: ...

    @overload
    def stream(
        self, *, restart: Literal["continue"], timeout_s: float | None = None
    ) -> Iterator[str | Restart]: ...

    def stream(
        self, *, restart: Literal["raise", "continue"] = "raise", timeout_s: float | None = None
    ) -> Iterator[str | Restart]:
        """Give the answer's text as it is written, from the start of the present attempt, until the job has ended.

        Args:
            restart: when a new attempt voids what was given: raise, or give a `Restart` and go on.
            timeout_s: bound on the wait for each next piece.

        Raises:
            StreamRestarted: a new attempt began; call this again to read it.
            JobDead, JobCancelled, JobExpired: the job ended that way, after the text there was.
            WaitTimeout: nothing came in time; the job goes on.
        """
        for piece in self._pieces(restart, timeout_s):
            if isinstance(piece, Restart):
                yield piece
            elif piece.channel == "content":
                yield piece.text

    def pieces(
        self, *, restart: Literal["raise", "continue"] = "raise", timeout_s: float | None = None
    ) -> Iterator[Piece | Restart]:
        """Give the pieces of all channels as they are written; otherwise as `stream`."""
        return self._pieces(restart, timeout_s)

    def _pieces(self, restart: str, timeout_s: float | None) -> Iterator[Piece | Restart]:
        pieces = Pieces(self.id, restart)
        engine = self._client._engine()
        dialogue = engine.dialogue
        inbox = SyncInbox()
        engine.post(dialogue.begin_text, inbox, self.job_id, 0, 0)
        try:
            while not pieces.is_final:
                yield from pieces.read(inbox.get(self._client._patience(f"text of job {self.id}", timeout_s)))
                due = pieces.due()
                if due:
                    engine.post(dialogue.text_taken, inbox, self.job_id, due)
        finally:
            if not pieces.is_final:
                engine.post_quietly(dialogue.end_text, inbox, self.job_id)
        self.wait(timeout_s)
        self._raise_unless_done()

    def progress(self) -> Iterator[Progress]:
        """Give the job's latest progress whenever it changed, until the job has ended. Steps may be left out."""
        client = self._client
        inbox = SyncInbox()
        engine = client._engine()
        last = _commands.progress_of(self.status())
        yield last
        watch = Watch(inbox, [_commands.job_topic(self.channel)] if self.channel else [])
        engine.post(engine.watch, watch)
        try:
            self._await_by(inbox, engine)
            while self._record.end is None:
                try:
                    item = inbox.get(client._patience("progress", _commands.PROGRESS_LOOK_S))
                except WaitTimeout:
                    now = _commands.progress_of(self.status())
                else:
                    if not isinstance(item, bytes):
                        break
                    now = cast(Progress, watch.take(item))
                if now != last:
                    yield now
                    last = now
        finally:
            self._leave(inbox)
            engine.post_quietly(engine.unwatch, watch)

    def cancel(self, *, if_attempt: int | None = None) -> bool:
        """Cancel the job; tell whether that changed anything, which it does not for a job that has ended.

        Raises:
            AttemptMoved: it is at another attempt than `if_attempt`.
        """
        return self._act(_commands.cancel(_commands.target([self], {}), if_attempt))

    def retry(self, *, if_attempt: int | None = None) -> bool:
        """Open a dead, cancelled or expired job again, with no failures."""
        changed = self._act(_commands.retry(_commands.target([self], {}), if_attempt))
        if changed:
            self._record = Record()
        return changed

    def update(self, **changes: Unpack[UpdateOptions]) -> bool:
        """Change what may still change of a job that has not ended."""
        return self._act(_commands.update(_commands.target([self], {}), changes))

    def delete(self) -> bool:
        """Remove the job, which has ended, and its result."""
        return self._act(_commands.delete(_commands.target([self], {})))

    def _act(self, ask: Ask[tuple[list[Outcome], bool]]) -> bool:
        return _commands.changed(self._client._ask(ask)[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_ended:
            return
        try:
            self.cancel()
        except LmqError:
            # It may have ended just now, or there is no broker: what made the caller leave matters more.
            pass


class EmbedJob(Job[EmbedResult]):
    """An embedding, perhaps in several jobs (`parts`): id and status are the first one's, the result is all of it."""

    __slots__ = ("parts",)

    def __init__(self, client: Client, parts: Sequence[Job[EmbedResult]]) -> None:
        first = parts[0]
        super().__init__(client, first.job_id, first.task_type)
        self.channel, self.given_priority = first.channel, first.given_priority
        self.parts = list(parts)

    @property
    def job_ids(self) -> list[bytes]:
        """The ids of its parts."""
        return [part.job_id for part in self.parts]

    def wait(self, timeout_s: float | None = None) -> State:
        """Wait for the end of all parts; the state is `done`, or that of the first part that is not."""
        patience = self._client._patience(f"job {self.id}", timeout_s)
        states = [part.wait(patience.slice_s()) for part in self.parts]
        return next((state for state in states if state is not State.DONE), State.DONE)

    def result(self, timeout_s: float | None = None) -> EmbedResult:
        """Wait for all parts and return their vectors in the order of the texts."""
        self.wait(timeout_s)
        return join_embeds([part.result(timeout_s) for part in self.parts])

    @property
    def is_ended(self) -> bool:
        """Whether the end of every part is known here."""
        return all(part.is_ended for part in self.parts)

    def progress(self) -> Iterator[Progress]:
        """Give the progress of one part after the other."""
        for part in self.parts:
            yield from part.progress()

    def _pieces(self, restart: str, timeout_s: float | None) -> Iterator[Piece | Restart]:
        return self.parts[0]._pieces(restart, timeout_s)

    def cancel(self, *, if_attempt: int | None = None) -> bool:
        """Cancel all parts that have not ended."""
        return True in [part.cancel(if_attempt=if_attempt) for part in self.parts if not part.is_ended]

    def retry(self, *, if_attempt: int | None = None) -> bool:
        """Open all parts again that ended without a result."""
        return True in [part.retry(if_attempt=if_attempt) for part in self.parts if part.wait() != State.DONE]

    def update(self, **changes: Unpack[UpdateOptions]) -> bool:
        """Change all parts that have not ended."""
        return True in [part.update(**changes) for part in self.parts if not part.is_ended]

    def delete(self) -> bool:
        """Remove all parts."""
        return True in [part.delete() for part in self.parts]


class EventStream:
    """Durable events in order, each once, over any number of reconnects. Iterate over it; close it, or use `with`.

    It has begun when it is made: what happens afterwards is not missed.
    """

    def __init__(
        self, client: Client, start: _commands.EventsFrom, match: EventFilter, timeout_s: float | None
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._is_open = False
        self._inbox = SyncInbox()
        self._engine = client._engine()
        self._buffer: list[Event] = []
        self._cursor = start.cursor
        begin = self._engine.dialogue.begin_events
        self._engine.post(begin, self._inbox, match, start.cursor, start.since_ms, start.last)
        self._is_open = True

    @property
    def cursor(self) -> int:
        """Where a later `events(since=...)` goes on after what was read here; -1 before the first event."""
        return self._cursor

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        """Return the next event, waiting for it.

        Raises:
            CursorExpired: the events after the cursor are no longer kept; begin anew at its `oldest`.
            WaitTimeout: nothing came in time; call again to go on.
        """
        if not self._is_open:
            raise StopIteration
        while not self._buffer:
            push = self._inbox.get(self._client._patience("events", self._timeout_s))
            assert isinstance(push, EventsPush)
            self._buffer = [_commands.event(wire) for wire in reversed(push.events)]
            if push.events:
                self._engine.post_quietly(self._engine.dialogue.events_taken, self._inbox, len(push.events))
            else:
                self._cursor = push.after
        event = self._buffer.pop()
        self._cursor = event.seq
        return event

    def close(self) -> None:
        """Stop reading."""
        if self._is_open:
            self._is_open = False
            self._engine.post_quietly(self._engine.dialogue.end_events, self._inbox)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Pipeline:
    """Submits from one thread, up to `window` of them without an acknowledgement; use it with `with`.

    Leaving waits until all are acknowledged. It belongs to one thread.
    """

    def __init__(self, client: Client, window: int) -> None:
        if window < 1:
            raise ValueError("a window holds at least 1")
        self._client = client
        self._window = window
        self._inbox = SyncInbox()
        self._outcomes = Outcomes()

    def submit(
        self, task_type: str, payload: Json = None, *, model: Models = None, **options: Unpack[JobOptions]
    ) -> Job[object]:
        """Send a job and return its handle at once; wait only while the window is full.

        The handle of a job that is refused later raises `NotFound`; leaving the pipeline raises `PartlyRefused`.
        """
        return self.submit_draft(_payloads.draft(task_type, payload, model=model, options=options))

    def submit_draft(self, draft: Draft) -> Job[object]:
        """Send what `lmq.draft` or `lmq.chat_draft` made."""
        while self._inbox.items or len(self._outcomes.open) >= self._window:
            self._take()
        client = self._client
        engine = client._engine()
        job = client._handle(draft, Record(engine))
        self._outcomes.add(job)
        begin = engine.dialogue.begin_submit
        slot = Slot(job, self._inbox)
        engine.post(begin, slot, draft.spec, draft.payload, client._as_user, job._record)
        return job

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged.

        Raises:
            PartlyRefused: some were refused.
        """
        while self._outcomes.open:
            self._take()
        self._outcomes.check()

    def _take(self) -> None:
        patience = self._client._patience("the submits", self._client._timeout_s)
        self._outcomes.take(self._inbox.get(patience))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()
