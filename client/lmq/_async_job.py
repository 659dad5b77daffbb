"""What the face for event loops hands out: jobs, streams of events, pipelines. Made by `AsyncClient` in `_async`.

The same names, arguments and errors as in `_sync_job`, whose sentences also stand for the methods here. What differs:
a job is handed out before the broker has accepted it; `await job` waits for that, and so does all that needs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Sequence
from typing import TYPE_CHECKING, Generic, Literal, Self, TypeVar, Unpack, cast, overload

from lmq import _commands, _payloads
from lmq._batch import Outcomes, Slot
from lmq._commands import Ask
from lmq._face import share_docs
from lmq._handle import Handle, Pieces, Record
from lmq._inbox import AsyncInbox, Patience
from lmq._link import Engine, Watch
from lmq._payloads import Draft, JobOptions, Models, UpdateOptions
from lmq._streams import EventsPush
from lmq._sync_job import EmbedJob, EventStream, Job, Pipeline
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
from lmq_proto.messages import EventFilter, Outcome as WireOutcome
from lmq_proto.states import State

if TYPE_CHECKING:
    from types import TracebackType

    from lmq._async import AsyncClient

R_co = TypeVar("R_co", covariant=True)


class Acceptance:
    """The outcome of a submit that has not come yet; any number of coroutines may wait for it."""

    __slots__ = ("_engine", "_error", "_inbox", "_is_over", "_lock", "_patience")

    def __init__(self, engine: Engine, inbox: AsyncInbox, patience: Patience) -> None:
        self._engine = engine
        self._inbox = inbox
        self._patience = patience
        self._lock = asyncio.Lock()
        self._error: LmqError | None = None
        self._is_over = False

    async def settle(self, job: Handle[object]) -> None:
        """Wait for the outcome and have the job take it.

        Raises:
            LmqError: the job was refused, or nothing came in time.
        """
        async with self._lock:
            if not self._is_over:
                try:
                    job._settle(cast(WireOutcome, await self._inbox.get(self._patience)))
                except LmqError as error:
                    self._error = error
                    self._engine.post_quietly(self._engine.dialogue.forget, self._inbox)
                self._is_over = True
        if self._error is not None:
            raise self._error


class AsyncJob(Handle[R_co], Generic[R_co]):
    """A job that was submitted, as `Job`, for event loops. `await job` returns it once the broker has accepted it."""

    __slots__ = ("_acceptance", "_client")

    def __init__(
        self,
        client: AsyncClient,
        job_id: bytes,
        task_type: str = "",
        record: Record | None = None,
        acceptance: Acceptance | None = None,
    ) -> None:
        super().__init__(job_id, task_type, record)
        self._client = client
        self._acceptance = acceptance

    def __await__(self) -> Generator[object, None, Self]:
        return self._accepted().__await__()

    async def _accepted(self) -> Self:
        """Return this job once it is on the broker's disk.

        Raises:
            LmqError: it was refused.
        """
        if self._acceptance is not None:
            await self._acceptance.settle(self)
            self._acceptance = None
        return self

    async def status(self) -> JobStatus:
        await self._accepted()
        return self._learn(await self._client._ask(_commands.status(self.job_id)))

    async def why(self) -> Why:
        await self._accepted()
        return await self._client._ask(_commands.why(self.job_id))

    async def payload(self) -> Json:
        await self._accepted()
        return await self._client._ask(_commands.payload(self.job_id))

    async def wait(self, timeout_s: float | None = None) -> State:
        patience = self._client._patience(f"job {self.id}", timeout_s)
        await self._accepted()
        if self._record.end is None:
            inbox = AsyncInbox()
            engine = self._client._engine()
            try:
                self._await_by(inbox, engine)
                if self._record.end is None:
                    await inbox.get(patience)
            finally:
                self._leave(inbox)
        return self._state()

    async def result(self, timeout_s: float | None = None) -> R_co:
        await self.wait(timeout_s)
        if not self.task_type:
            await self.status()
        return self._read_result()

    @overload
    def stream(
        self, *, restart: Literal["raise"] = "raise", timeout_s: float | None = None
    ) -> AsyncIterator[str]: ...

    @overload
    def stream(
        self, *, restart: Literal["continue"], timeout_s: float | None = None
    ) -> AsyncIterator[str | Restart]: ...

    async def stream(
        self, *, restart: Literal["raise", "continue"] = "raise", timeout_s: float | None = None
    ) -> AsyncIterator[str | Restart]:
        async for piece in self._pieces(restart, timeout_s):
            if isinstance(piece, Restart):
                yield piece
            elif piece.channel == "content":
                yield piece.text

    def pieces(
        self, *, restart: Literal["raise", "continue"] = "raise", timeout_s: float | None = None
    ) -> AsyncIterator[Piece | Restart]:
        return self._pieces(restart, timeout_s)

    async def _pieces(self, restart: str, timeout_s: float | None) -> AsyncIterator[Piece | Restart]:
        await self._accepted()
        pieces = Pieces(self.id, restart)
        engine = self._client._engine()
        dialogue = engine.dialogue
        inbox = AsyncInbox()
        engine.post(dialogue.begin_text, inbox, self.job_id, 0, 0)
        try:
            while not pieces.is_final:
                push = await inbox.get(self._client._patience(f"text of job {self.id}", timeout_s))
                for piece in pieces.read(push):
                    yield piece
                due = pieces.due()
                if due:
                    engine.post(dialogue.text_taken, inbox, self.job_id, due)
        finally:
            if not pieces.is_final:
                engine.post_quietly(dialogue.end_text, inbox, self.job_id)
        await self.wait(timeout_s)
        self._raise_unless_done()

    async def progress(self) -> AsyncIterator[Progress]:
        client = self._client
        inbox = AsyncInbox()
        engine = client._engine()
        last = _commands.progress_of(await self.status())
        yield last
        watch = Watch(inbox, [_commands.job_topic(self.channel)] if self.channel else [])
        engine.post(engine.watch, watch)
        try:
            self._await_by(inbox, engine)
            while self._record.end is None:
                try:
                    item = await inbox.get(client._patience("progress", _commands.PROGRESS_LOOK_S))
                except WaitTimeout:
                    now = _commands.progress_of(await self.status())
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

    async def cancel(self, *, if_attempt: int | None = None) -> bool:
        await self._accepted()
        return await self._act(_commands.cancel(_commands.target([self], {}), if_attempt))

    async def retry(self, *, if_attempt: int | None = None) -> bool:
        await self._accepted()
        changed = await self._act(_commands.retry(_commands.target([self], {}), if_attempt))
        if changed:
            self._record = Record()
        return changed

    async def update(self, **changes: Unpack[UpdateOptions]) -> bool:
        await self._accepted()
        return await self._act(_commands.update(_commands.target([self], {}), changes))

    async def delete(self) -> bool:
        await self._accepted()
        return await self._act(_commands.delete(_commands.target([self], {})))

    async def _act(self, ask: Ask[tuple[list[Outcome], bool]]) -> bool:
        outcomes, _ = await self._client._ask(ask)
        return _commands.changed(outcomes)

    async def __aenter__(self) -> Self:
        return await self._accepted()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_ended:
            return
        try:
            await self.cancel()
        except LmqError:
            # It may have ended just now, or there is no broker: what made the caller leave matters more.
            pass


class AsyncEmbedJob(AsyncJob[EmbedResult]):
    """An embedding, perhaps in several jobs (`parts`), as `EmbedJob`, for event loops."""

    __slots__ = ("parts",)

    def __init__(self, client: AsyncClient, parts: Sequence[AsyncJob[EmbedResult]]) -> None:
        first = parts[0]
        super().__init__(client, first.job_id, first.task_type)
        self.parts = list(parts)

    @property
    def job_ids(self) -> list[bytes]:
        """The ids of its parts."""
        return [part.job_id for part in self.parts]

    async def _accepted(self) -> Self:
        for part in self.parts:
            await part._accepted()
        first = self.parts[0]
        self.job_id, self.channel, self.given_priority = first.job_id, first.channel, first.given_priority
        return self

    async def wait(self, timeout_s: float | None = None) -> State:
        patience = self._client._patience(f"job {self.id}", timeout_s)
        states = [await part.wait(patience.slice_s()) for part in self.parts]
        return next((state for state in states if state is not State.DONE), State.DONE)

    async def result(self, timeout_s: float | None = None) -> EmbedResult:
        await self.wait(timeout_s)
        return join_embeds([await part.result(timeout_s) for part in self.parts])

    @property
    def is_ended(self) -> bool:
        """Whether the end of every part is known here."""
        return all(part.is_ended for part in self.parts)

    async def progress(self) -> AsyncIterator[Progress]:
        for part in self.parts:
            async for progress in part.progress():
                yield progress

    async def _pieces(self, restart: str, timeout_s: float | None) -> AsyncIterator[Piece | Restart]:
        async for piece in self.parts[0]._pieces(restart, timeout_s):
            yield piece

    async def cancel(self, *, if_attempt: int | None = None) -> bool:
        return True in [await part.cancel(if_attempt=if_attempt) for part in self.parts if not part.is_ended]

    async def retry(self, *, if_attempt: int | None = None) -> bool:
        failed = [part for part in self.parts if await part.wait() != State.DONE]
        return True in [await part.retry(if_attempt=if_attempt) for part in failed]

    async def update(self, **changes: Unpack[UpdateOptions]) -> bool:
        return True in [await part.update(**changes) for part in self.parts if not part.is_ended]

    async def delete(self) -> bool:
        return True in [await part.delete() for part in self.parts]


class AsyncEventStream:
    """Durable events in order, each once, as `EventStream`: `async for`, `close`, or `async with`."""

    def __init__(
        self, client: AsyncClient, start: _commands.EventsFrom, match: EventFilter, timeout_s: float | None
    ) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._is_open = False
        self._inbox = AsyncInbox()
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

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._is_open:
            raise StopAsyncIteration
        while not self._buffer:
            push = await self._inbox.get(self._client._patience("events", self._timeout_s))
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
        if self._is_open:
            self._is_open = False
            self._engine.post_quietly(self._engine.dialogue.end_events, self._inbox)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncPipeline:
    """Submits from one coroutine, up to `window` of them without an acknowledgement; use it with `async with`."""

    def __init__(self, client: AsyncClient, window: int) -> None:
        if window < 1:
            raise ValueError("a window holds at least 1")
        self._client = client
        self._window = window
        self._inbox = AsyncInbox()
        self._outcomes = Outcomes()

    async def submit(
        self, task_type: str, payload: Json = None, *, model: Models = None, **options: Unpack[JobOptions]
    ) -> AsyncJob[object]:
        return await self.submit_draft(_payloads.draft(task_type, payload, model=model, options=options))

    async def submit_draft(self, draft: Draft) -> AsyncJob[object]:
        while self._inbox.items or len(self._outcomes.open) >= self._window:
            await self._take()
        client = self._client
        engine = client._engine()
        job = client._handle(draft, Record(engine))
        self._outcomes.add(job)
        begin = engine.dialogue.begin_submit
        slot = Slot(job, self._inbox)
        engine.post(begin, slot, draft.spec, draft.payload, client._as_user, job._record)
        return job

    async def flush(self) -> None:
        while self._outcomes.open:
            await self._take()
        self._outcomes.check()

    async def _take(self) -> None:
        patience = self._client._patience("the submits", self._client._timeout_s)
        self._outcomes.take(await self._inbox.get(patience))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.flush()


share_docs(AsyncJob, Job)
share_docs(AsyncEmbedJob, EmbedJob)
share_docs(AsyncEventStream, EventStream)
share_docs(AsyncPipeline, Pipeline)
