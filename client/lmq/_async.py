"""The face for event loops: `AsyncClient`. The same names, arguments and errors as `Client` in `_sync`.

The sentences of `Client` also stand for the methods here. Nothing in it is bound to one loop: each call waits in the
loop that made it, and the conversation with the broker goes on in the I/O thread whatever the loop does.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Self, TypeVar, Unpack, cast

from lmq import _commands, _payloads
from lmq._async_job import Acceptance, AsyncEmbedJob, AsyncEventStream, AsyncJob, AsyncPipeline
from lmq._batch import BATCHES_IN_FLIGHT, Batch, follow_all, one_message
from lmq._commands import Ask
from lmq._face import Face, share_docs
from lmq._handle import Handle, Record
from lmq._inbox import AsyncInbox, Patience
from lmq._link import Engine, Watch
from lmq._payloads import ChatOptions, Draft, JobLike, JobMatch, JobOptions, Messages, Models, UpdateOptions
from lmq._sync import Client
from lmq.errors import LmqError, NotFound, WaitTimeout
from lmq.results import (
    Alias,
    ChatResult,
    DefaultModel,
    EmbedResult,
    HealthReply,
    JobStatus,
    Json,
    LimitView,
    ModelView,
    Outcome,
    Progress,
    QueueSize,
    QueueView,
    Tick,
    UsageReply,
    Users,
    WorkerState,
    WorkerView,
)
from lmq_proto.ids import from_text
from lmq_proto.messages import BackupDone

T = TypeVar("T")
J = TypeVar("J", bound="AsyncJob[object]")


class AsyncClient(Face):
    """A connection to a broker, as `Client`, for event loops.

    `chat`, `complete`, `embed` and `submit` hand out their job at once; `await` it to know that it was accepted.
    """

    # --- submit --------------------------------------------------------------------------------------------------

    def chat(
        self, prompt: Messages, *, model: Models = None, system: str = "", **options: Unpack[ChatOptions]
    ) -> AsyncJob[ChatResult]:
        draft = _payloads.chat(prompt, model=model, system=system, options=options)
        return cast("AsyncJob[ChatResult]", self._submit(draft))

    def complete(
        self, prompt: str, *, model: Models = None, **options: Unpack[ChatOptions]
    ) -> AsyncJob[ChatResult]:
        return cast(
            "AsyncJob[ChatResult]", self._submit(_payloads.complete(prompt, model=model, options=options))
        )

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: Models = None,
        extra: Mapping[str, Json] | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncEmbedJob:
        drafts = _payloads.embed(texts, model=model, extra=extra, options=options)
        return AsyncEmbedJob(self, [cast("AsyncJob[EmbedResult]", self._submit(draft)) for draft in drafts])

    def submit(
        self, task_type: str, payload: Json = None, *, model: Models = None, **options: Unpack[JobOptions]
    ) -> AsyncJob[Json]:
        draft = _payloads.draft(task_type, payload, model=model, options=options)
        return cast("AsyncJob[Json]", self._submit(draft))

    def submit_draft(self, draft: Draft) -> AsyncJob[object]:
        return self._submit(draft)

    async def submit_many(self, jobs: Iterable[JobLike], *, atomic: bool = False) -> list[AsyncJob[object]]:
        engine = self._engine()
        batch: Batch[AsyncJob[object]] = Batch(self._handle, atomic=atomic)
        flights: deque[tuple[list[Draft], AsyncInbox]] = deque()
        parts = _payloads.batches(jobs)
        for part in one_message(parts) if atomic else parts:
            inbox = AsyncInbox()
            specs = [draft.spec for draft in part]
            payloads = [draft.payload for draft in part]
            engine.post(engine.dialogue.begin_batch, inbox, specs, payloads, self._as_user, atomic)
            flights.append((part, inbox))
            if len(flights) >= BATCHES_IN_FLIGHT:
                await self._land(engine, batch, *flights.popleft())
        while flights:
            await self._land(engine, batch, *flights.popleft())
        return batch.handles()

    async def _land(
        self, engine: Engine, batch: Batch[AsyncJob[object]], part: list[Draft], inbox: AsyncInbox
    ) -> None:
        try:
            reply = await self._get(engine, inbox, self._patience("the submit", self._timeout_s))
        except LmqError as error:
            batch.refuse(part, error)
        else:
            batch.take(part, reply)

    def pipeline(self, window: int = 1000) -> AsyncPipeline:
        return AsyncPipeline(self, window)

    def _handle(self, draft: Draft, record: Record | None = None) -> AsyncJob[object]:
        return AsyncJob(self, draft.spec.id, draft.spec.task_type, record)

    def _submit(self, draft: Draft) -> AsyncJob[object]:
        engine = self._engine()
        inbox = AsyncInbox()
        acceptance = Acceptance(engine, inbox, self._patience("the submit", self._timeout_s))
        record = Record(engine)
        job: AsyncJob[object] = AsyncJob(self, draft.spec.id, draft.spec.task_type, record, acceptance)
        engine.post(engine.dialogue.begin_submit, inbox, draft.spec, draft.payload, self._as_user, record)
        return job

    # --- jobs ----------------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> AsyncJob[object]:
        return AsyncJob(self, from_text(job_id))

    async def find(self, ending: str) -> AsyncJob[object]:
        found = await self.jobs(id_ending=ending, limit=1)
        if not found:
            raise NotFound("job", ending)
        job = self.job(found[0].id)
        job._learn(found[0])
        return job

    async def jobs(
        self, *, limit: int = 100, after: int = 0, oldest_first: bool = False, **match: Unpack[JobMatch]
    ) -> list[JobStatus]:
        found: list[JobStatus] = []
        more = True
        while more and len(found) < limit:
            page, more = await self._ask(_commands.page(match, after, limit - len(found), oldest_first))
            found += page
            more = more and bool(page)
            after = page[-1].number if page else after
        return found

    async def statuses(self, jobs: Iterable[str | Handle[object]]) -> list[JobStatus]:
        return await self._ask(_commands.statuses([_payloads.id_of(job) for job in jobs]))

    async def as_completed(self, jobs: Iterable[J], timeout_s: float | None = None) -> AsyncIterator[J]:
        asked = list(jobs)
        patience = self._patience(f"{len(asked)} jobs", timeout_s)
        waiting = {(await job).job_id: job for job in asked}
        engine = self._engine()
        inbox = AsyncInbox()
        try:
            follow_all(waiting.values(), inbox, engine)
            for job in [job for job in waiting.values() if job._record.end is not None]:
                del waiting[job.job_id]
                yield job
            while waiting:
                record = await inbox.get(patience)
                assert isinstance(record, Record)
                assert record.end is not None
                ended = waiting.pop(record.end[0].job_id, None)
                if ended is not None:
                    yield ended
        finally:
            for job in waiting.values():
                job._leave(inbox)

    async def wait(self, jobs: Iterable[J], timeout_s: float | None = None) -> tuple[list[J], list[J]]:
        asked = list(jobs)
        try:
            async for _ in self.as_completed(asked, timeout_s):
                pass
        except WaitTimeout:
            pass
        return [job for job in asked if job.is_ended], [job for job in asked if not job.is_ended]

    async def cancel(
        self, *jobs: str | Handle[object], if_attempt: int | None = None, **match: Unpack[JobMatch]
    ) -> list[Outcome]:
        return await self._act_on(_commands.cancel(_commands.target(jobs, match), if_attempt))

    async def retry(
        self, *jobs: str | Handle[object], if_attempt: int | None = None, **match: Unpack[JobMatch]
    ) -> list[Outcome]:
        return await self._act_on(_commands.retry(_commands.target(jobs, match), if_attempt))

    async def delete(self, *jobs: str | Handle[object], **match: Unpack[JobMatch]) -> list[Outcome]:
        return await self._act_on(_commands.delete(_commands.target(jobs, match)))

    async def update(
        self, *jobs: str | Handle[object], match: JobMatch | None = None, **changes: Unpack[UpdateOptions]
    ) -> list[Outcome]:
        return await self._act_on(_commands.update(_commands.target(jobs, match or {}), changes))

    async def _act_on(self, ask: Ask[tuple[list[Outcome], bool]]) -> list[Outcome]:
        outcomes, more = await self._ask(ask)
        while more and any(outcome.outcome == "changed" for outcome in outcomes[-1000:]):
            further, more = await self._ask(ask)
            outcomes += further
        return outcomes

    # --- events and latest values --------------------------------------------------------------------------------

    def events(
        self,
        *,
        since: int | datetime | None = None,
        last: int = 0,
        kinds: Sequence[str] = (),
        user: str = "",
        queue: str = "",
        jobs: Sequence[str | Handle[object]] = (),
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncEventStream:
        match = _commands.event_filter(kinds, user, queue, jobs, labels)
        return AsyncEventStream(self, _commands.events_from(since, last), match, timeout_s)

    async def watch(
        self, *topics: str, timeout_s: float | None = None
    ) -> AsyncIterator[Tick | QueueSize | WorkerState | Progress]:
        inbox = AsyncInbox()
        engine = self._engine()
        watch = Watch(inbox, [topic.encode() for topic in topics] or _commands.PUB_ALL)
        engine.post(engine.watch, watch)
        # A greeting names the PUB socket; ask something, should there have been none yet.
        await self.health()
        try:
            while True:
                topic = await inbox.get(self._patience("a publication", timeout_s))
                yield watch.take(cast(bytes, topic))
        finally:
            engine.post_quietly(engine.unwatch, watch)

    # --- queues, workers, models, users, broker ------------------------------------------------------------------

    async def queues(self) -> list[QueueView]:
        return await self._ask(_commands.queues())

    async def workers(self) -> list[WorkerView]:
        return await self._ask(_commands.workers())

    async def models(self) -> list[ModelView]:
        return await self._ask(_commands.models())

    async def users(self) -> Users:
        return await self._ask(_commands.users())

    async def set_user(self, user: str, *, weight: float | None = None, ceiling: int | None = None) -> bool:
        return await self._ask(_commands.set_user(user, weight, ceiling))

    async def reset_user(self, user: str) -> bool:
        return await self._ask(_commands.reset_user(user))

    async def aliases(self) -> list[Alias]:
        return await self._ask(_commands.aliases())

    async def default_models(self) -> list[DefaultModel]:
        return await self._ask(_commands.default_models())

    async def set_alias(self, name: str, models: str | Sequence[str], *, reset: bool = False) -> bool:
        return await self._ask(_commands.set_alias(name, models, reset))

    async def set_default_model(self, task_type: str, model: str, *, reset: bool = False) -> bool:
        return await self._ask(_commands.set_default_model(task_type, model, reset))

    async def load_model(self, model: str, worker: str) -> bool:
        return await self._ask(_commands.order_model("load", model, worker))

    async def unload_model(self, model: str, worker: str = "") -> bool:
        return await self._ask(_commands.order_model("unload", model, worker))

    async def pin_model(self, model: str, worker: str, *, for_s: float | None = None) -> bool:
        return await self._ask(_commands.order_model("pin", model, worker, for_s))

    async def unpin_model(self, model: str, worker: str = "") -> bool:
        return await self._ask(_commands.order_model("unpin", model, worker))

    async def health(self) -> HealthReply:
        return await self._ask(_commands.health())

    async def usage(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | Sequence[str] = (),
        user: str = "",
    ) -> UsageReply:
        ask = _commands.usage(since, until, by, user)
        pages = [await self._ask(ask)]
        while pages[-1].more:
            pages.append(await self._ask(_commands.usage_after(ask, pages[-1])))
        return _commands.joined(pages)

    async def metrics(self, *, users: bool = False) -> str:
        return await self._ask(_commands.metrics(users))

    async def backup(self, path: str) -> BackupDone:
        return await self._ask(_commands.backup(path))

    async def pause(
        self,
        *,
        queue: str = "",
        worker: str = "",
        for_s: float | None = None,
        now: bool = False,
        reason: str = "",
    ) -> bool:
        return await self._ask(_commands.pause(queue, worker, for_s, now, reason))

    async def drain(self, *, queue: str = "", worker: str = "", reason: str = "") -> bool:
        return await self._ask(_commands.drain(queue, worker, reason))

    async def resume(self, *, queue: str = "", worker: str = "") -> bool:
        return await self._ask(_commands.resume(queue, worker))

    async def limits(self) -> list[LimitView]:
        return await self._ask(_commands.limits())

    async def set_limit(
        self,
        of: str,
        value: float,
        *,
        per_s: float = 0.0,
        burst: float = 0.0,
        refuse: bool = False,
        **names: str,
    ) -> bool:
        return await self._ask(_commands.set_limit(of, value, per_s, burst, refuse, names))

    async def reset_limits(self, name: str = "") -> bool:
        return await self._ask(_commands.reset_limits(name))

    # --- itself --------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._owns_link:
            # Off the loop, which goes on meanwhile.
            await asyncio.to_thread(self._link.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _ask(self, ask: Ask[T]) -> T:
        engine = self._engine()
        inbox = AsyncInbox()
        patience = self._patience(ask.what, self._timeout_s)
        engine.post(engine.dialogue.begin, inbox, ask.message)
        return ask.read(await self._get(engine, inbox, patience))

    async def _get(self, engine: Engine, inbox: AsyncInbox, patience: Patience) -> object:
        came = False
        try:
            reply = await inbox.get(patience)
            came = True
            return reply
        finally:
            if not came:
                engine.post_quietly(engine.dialogue.forget, inbox)


share_docs(AsyncClient, Client)
