"""The face for threads: `Client` and its `Job`. Every method waits on an inbox; the thinking is in `_dialogue`.

`_async` has the same names, arguments and errors. What both say once stands in `_commands`, `_payloads`, `_handle`.
A client may be used from any number of threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Self, TypeVar, Unpack, cast

from lmq import _commands, _payloads
from lmq._batch import BATCHES_IN_FLIGHT, Batch, follow_all, one_message
from lmq._commands import Ask
from lmq._face import Face
from lmq._handle import Handle, Record
from lmq._inbox import Patience, SyncInbox
from lmq._link import Engine, Watch
from lmq._payloads import (
    ChatOptions,
    Draft,
    JobLike,
    JobMatch,
    JobOptions,
    Messages,
    Models,
    UpdateOptions,
)
from lmq._sync_job import EmbedJob, EventStream, Job, Pipeline
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
from lmq_proto.messages import BackupDone, Outcome as WireOutcome

T = TypeVar("T")
J = TypeVar("J", bound="Job[object]")


class Client(Face):
    """A connection to a broker, made on first use, kept over broker restarts, usable from any thread.

    Arguments as `Face` says: `url`, `user`, `as_user`, `timeout_s`, `connect_timeout_s`.
    """

    # --- submit --------------------------------------------------------------------------------------------------

    def chat(
        self, prompt: Messages, *, model: Models = None, system: str = "", **options: Unpack[ChatOptions]
    ) -> Job[ChatResult]:
        """Submit a chat: a prompt, or messages in OpenAI's form.

        Args:
            prompt: text, or a list of `{"role", "content"}`.
            model: a name, an alias, or several of which any will do; None: the default model, or any.
            system: text of a first message of role `system`.
            options: see `ChatOptions` and `JobOptions`.

        Raises:
            BadPayload: it cannot be built; nothing was submitted.
            LimitReached, QueueDraining, UnknownModel, ...: it was refused.
        """
        draft = _payloads.chat(prompt, model=model, system=system, options=options)
        return cast("Job[ChatResult]", self._submit(draft))

    def complete(
        self, prompt: str, *, model: Models = None, **options: Unpack[ChatOptions]
    ) -> Job[ChatResult]:
        """Submit a text to be continued."""
        return cast("Job[ChatResult]", self._submit(_payloads.complete(prompt, model=model, options=options)))

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        model: Models = None,
        extra: Mapping[str, Json] | None = None,
        **options: Unpack[JobOptions],
    ) -> EmbedJob:
        """Submit texts to be embedded; many or long ones become several jobs under one handle.

        Args:
            texts: one text or several.
            model: as for `chat`.
            extra: options of the engine, as they stand.
            options: see `JobOptions`.
        """
        drafts = _payloads.embed(texts, model=model, extra=extra, options=options)
        jobs = [self._submit(drafts[0])] if len(drafts) == 1 else self.submit_many(drafts)
        return EmbedJob(self, cast("list[Job[EmbedResult]]", jobs))

    def submit(
        self, task_type: str, payload: Json = None, *, model: Models = None, **options: Unpack[JobOptions]
    ) -> Job[Json]:
        """Submit a job of any task type and return when it is on the broker's disk."""
        return cast(
            "Job[Json]", self._submit(_payloads.draft(task_type, payload, model=model, options=options))
        )

    def submit_draft(self, draft: Draft) -> Job[object]:
        """Submit what `lmq.draft` or `lmq.chat_draft` made; twice is once."""
        return self._submit(draft)

    def submit_many(self, jobs: Iterable[JobLike], *, atomic: bool = False) -> list[Job[object]]:
        """Submit many jobs, a thousand in a message, and return their handles in order.

        Args:
            jobs: drafts, or (task type, payload) pairs.
            atomic: all or nothing; at most 1,000 then.

        Raises:
            PartlyRefused: some were refused; it holds the handles of the others.
        """
        engine = self._engine()
        batch: Batch[Job[object]] = Batch(self._handle, atomic=atomic)
        flights: deque[tuple[list[Draft], SyncInbox]] = deque()
        parts = _payloads.batches(jobs)
        for part in one_message(parts) if atomic else parts:
            inbox = SyncInbox()
            specs = [draft.spec for draft in part]
            payloads = [draft.payload for draft in part]
            engine.post(engine.dialogue.begin_batch, inbox, specs, payloads, self._as_user, atomic)
            flights.append((part, inbox))
            if len(flights) >= BATCHES_IN_FLIGHT:
                self._land(engine, batch, *flights.popleft())
        while flights:
            self._land(engine, batch, *flights.popleft())
        return batch.handles()

    def _land(self, engine: Engine, batch: Batch[Job[object]], part: list[Draft], inbox: SyncInbox) -> None:
        try:
            reply = self._get(engine, inbox, self._patience("the submit", self._timeout_s))
        except LmqError as error:
            batch.refuse(part, error)
        else:
            batch.take(part, reply)

    def pipeline(self, window: int = 1000) -> Pipeline:
        """Return a way to submit one by one from one thread without waiting for each, `window` at a time."""
        return Pipeline(self, window)

    def _handle(self, draft: Draft, record: Record | None = None) -> Job[object]:
        return Job(self, draft.spec.id, draft.spec.task_type, record)

    def _submit(self, draft: Draft) -> Job[object]:
        engine = self._engine()
        job = self._handle(draft, Record(engine))
        inbox = SyncInbox()
        patience = self._patience("the submit", self._timeout_s)
        begin = engine.dialogue.begin_submit
        engine.post(begin, inbox, draft.spec, draft.payload, self._as_user, job._record)
        job._settle(cast(WireOutcome, self._get(engine, inbox, patience)))
        return job

    # --- jobs ----------------------------------------------------------------------------------------------------

    def job(self, job_id: str) -> Job[object]:
        """Return a handle of a job by its whole id; asks nobody yet.

        Raises:
            BadField: the text is no whole id; `find` takes an ending.
        """
        return Job(self, from_text(job_id))

    def find(self, ending: str) -> Job[object]:
        """Return the newest job whose id ends so.

        Raises:
            NotFound: there is none.
        """
        found = self.jobs(id_ending=ending, limit=1)
        if not found:
            raise NotFound("job", ending)
        job = self.job(found[0].id)
        job._learn(found[0])
        return job

    def jobs(
        self, *, limit: int = 100, after: int = 0, oldest_first: bool = False, **match: Unpack[JobMatch]
    ) -> list[JobStatus]:
        """Return jobs that match, newest first unless told otherwise.

        Args:
            limit: at most so many.
            after: the `number` of the last job of the page before.
            oldest_first: turn the order.
            match: see `JobMatch`.
        """
        found: list[JobStatus] = []
        more = True
        while more and len(found) < limit:
            page, more = self._ask(_commands.page(match, after, limit - len(found), oldest_first))
            found += page
            more = more and bool(page)
            after = page[-1].number if page else after
        return found

    def statuses(self, jobs: Iterable[str | Handle[object]]) -> list[JobStatus]:
        """Return the status of up to 1,000 jobs, in order, without those that are gone."""
        return self._ask(_commands.statuses([_payloads.id_of(job) for job in jobs]))

    def as_completed(self, jobs: Iterable[J], timeout_s: float | None = None) -> Iterator[J]:
        """Give the jobs as they end, whichever way.

        Raises:
            WaitTimeout: some have not ended after `timeout_s` in all; they go on.
        """
        waiting = {job.job_id: job for job in jobs}
        engine = self._engine()
        inbox = SyncInbox()
        patience = self._patience(f"{len(waiting)} jobs", timeout_s)
        try:
            follow_all(waiting.values(), inbox, engine)
            for job in [job for job in waiting.values() if job._record.end is not None]:
                del waiting[job.job_id]
                yield job
            while waiting:
                record = inbox.get(patience)
                assert isinstance(record, Record)
                assert record.end is not None
                ended = waiting.pop(record.end[0].job_id, None)
                if ended is not None:
                    yield ended
        finally:
            for job in waiting.values():
                job._leave(inbox)

    def wait(self, jobs: Iterable[J], timeout_s: float | None = None) -> tuple[list[J], list[J]]:
        """Wait for all jobs, or until the time is over; return (ended, still open), each in the order given."""
        asked = list(jobs)
        try:
            for _ in self.as_completed(asked, timeout_s):
                pass
        except WaitTimeout:
            pass
        return [job for job in asked if job.is_ended], [job for job in asked if not job.is_ended]

    def cancel(
        self, *jobs: str | Handle[object], if_attempt: int | None = None, **match: Unpack[JobMatch]
    ) -> list[Outcome]:
        """Cancel jobs by name, or all open ones that match; one outcome each."""
        return self._act_on(_commands.cancel(_commands.target(jobs, match), if_attempt))

    def retry(
        self, *jobs: str | Handle[object], if_attempt: int | None = None, **match: Unpack[JobMatch]
    ) -> list[Outcome]:
        """Open ended jobs again, by name, or all that match; one outcome each."""
        return self._act_on(_commands.retry(_commands.target(jobs, match), if_attempt))

    def delete(self, *jobs: str | Handle[object], **match: Unpack[JobMatch]) -> list[Outcome]:
        """Remove ended jobs by name, or all that match; one outcome each."""
        return self._act_on(_commands.delete(_commands.target(jobs, match)))

    def update(
        self,
        *jobs: str | Handle[object],
        match: JobMatch | None = None,
        **changes: Unpack[UpdateOptions],
    ) -> list[Outcome]:
        """Change open jobs by name, or all that match; one outcome each."""
        return self._act_on(_commands.update(_commands.target(jobs, match or {}), changes))

    def _act_on(self, ask: Ask[tuple[list[Outcome], bool]]) -> list[Outcome]:
        """Act until a filter matches no more; each round moves at most 1,000 jobs."""
        outcomes, more = self._ask(ask)
        while more and any(outcome.outcome == "changed" for outcome in outcomes[-1000:]):
            further, more = self._ask(ask)
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
    ) -> EventStream:
        """Read durable events, each exactly once and in order.

        Args:
            since: a cursor (the `seq` of the last event read), or a time; None: from now on.
            last: begin with about so many past events.
            kinds: only these kinds of event; none means all, as with the filters after it.
            user: only of this user's jobs.
            queue: only of this queue.
            jobs: only of these jobs.
            labels: only of jobs with these labels.
            timeout_s: bound on the wait for each next event.
        """
        match = _commands.event_filter(kinds, user, queue, jobs, labels)
        return EventStream(self, _commands.events_from(since, last), match, timeout_s)

    def watch(
        self, *topics: str, timeout_s: float | None = None
    ) -> Iterator[Tick | QueueSize | WorkerState | Progress]:
        """Give the latest values of topics as they change: `tick`, `queue/NAME`, `worker/NAME`; none means all."""
        inbox = SyncInbox()
        engine = self._engine()
        watch = Watch(inbox, [topic.encode() for topic in topics] or _commands.PUB_ALL)
        engine.post(engine.watch, watch)
        # A greeting names the PUB socket; ask something, should there have been none yet.
        self.health()
        try:
            while True:
                topic = inbox.get(self._patience("a publication", timeout_s))
                yield watch.take(cast(bytes, topic))
        finally:
            engine.post_quietly(engine.unwatch, watch)

    # --- queues, workers, models, users, broker ------------------------------------------------------------------

    def queues(self) -> list[QueueView]:
        """Return all queues with their counts."""
        return self._ask(_commands.queues())

    def workers(self) -> list[WorkerView]:
        """Return all workers, the lately gone too."""
        return self._ask(_commands.workers())

    def models(self) -> list[ModelView]:
        """Return all models of all endpoints."""
        return self._ask(_commands.models())

    def users(self) -> Users:
        """Return how users and bands stand, and what users are given."""
        return self._ask(_commands.users())

    def set_user(self, user: str, *, weight: float | None = None, ceiling: int | None = None) -> bool:
        """Give a user a weight, a ceiling or both, until it is reset; tell whether that changed anything.

        Args:
            user: a name, seen before or not.
            weight: shares follow it; 1 is what others have. None: as it is.
            ceiling: the highest priority that its jobs may be given. None: as it is.
        """
        return self._ask(_commands.set_user(user, weight, ceiling))

    def reset_user(self, user: str) -> bool:
        """Take back what `set_user` gave; tell whether there was anything."""
        return self._ask(_commands.reset_user(user))

    def aliases(self) -> list[Alias]:
        """Return the aliases in force, by name: by command, or from the broker's configuration file."""
        return self._ask(_commands.aliases())

    def default_models(self) -> list[DefaultModel]:
        """Return what jobs run on that name no model, by task type; for what is not there any model will do."""
        return self._ask(_commands.default_models())

    def set_alias(self, name: str, models: str | Sequence[str], *, reset: bool = False) -> bool:
        """Make a name stand for any of some models; tell whether that changed anything.

        Jobs that wait follow it. It wins over the broker's configuration file, over restarts too.

        Args:
            name: what jobs may ask for.
            models: best first; none: the name is no alias.
            reset: let the configuration file say again what it stands for.
        """
        return self._ask(_commands.set_alias(name, models, reset))

    def set_default_model(self, task_type: str, model: str, *, reset: bool = False) -> bool:
        """Say which model or alias jobs get from now on that name none; tell whether that changed anything.

        Args:
            task_type: `chat` (and `complete`, unless it has its own), or `embed` (and `bulk_embed`).
            model: empty: any of the right kind.
            reset: let the configuration file say again.
        """
        return self._ask(_commands.set_default_model(task_type, model, reset))

    def load_model(self, model: str, worker: str) -> bool:
        """Have a worker load a model once; tell whether that is still to be done.

        It returns at once. The events `order_ended` and `load_failed` tell how it went.
        """
        return self._ask(_commands.order_model("load", model, worker))

    def unload_model(self, model: str, worker: str = "") -> bool:
        """Have a worker, or all, finish what runs on a model and unload it; tell whether that is still to be done."""
        return self._ask(_commands.order_model("unload", model, worker))

    def pin_model(self, model: str, worker: str, *, for_s: float | None = None) -> bool:
        """Keep a model at a worker: it is loaded when it is not there, and never evicted.

        Args:
            model: a model, variant or alias that the worker has.
            worker: where.
            for_s: None: until it is taken back.
        """
        return self._ask(_commands.order_model("pin", model, worker, for_s))

    def unpin_model(self, model: str, worker: str = "") -> bool:
        """Take back pins of a model, and loads and unloads that are not done yet; tell whether there were any."""
        return self._ask(_commands.order_model("unpin", model, worker))

    def health(self) -> HealthReply:
        """Return how the broker is."""
        return self._ask(_commands.health())

    def usage(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        by: str | Sequence[str] = (),
        user: str = "",
    ) -> UsageReply:
        """Return what jobs have used, summed by UTC day; the sums stay when the jobs are deleted.

        Args:
            since: from the day that holds this time; None: from the first day that is kept.
            until: days that begin before this time; None: up to today.
            by: what has rows of its own, in the order to sort by: `day`, `user`, `model`, `task_type`; none: one row.
            user: only this user's; empty: those one may see, all or one's own.

        Raises:
            NotAllowed: the user is another, and one may not see others.
        """
        ask = _commands.usage(since, until, by, user)
        pages = [self._ask(ask)]
        while pages[-1].more:
            pages.append(self._ask(_commands.usage_after(ask, pages[-1])))
        return _commands.joined(pages)

    def metrics(self, *, users: bool = False) -> str:
        """Return the broker's own measurements in Prometheus' text format; with `users` (admins) those of each user."""
        return self._ask(_commands.metrics(users))

    def backup(self, path: str) -> BackupDone:
        """Copy the journal to a path on the broker's machine."""
        return self._ask(_commands.backup(path))

    def pause(
        self,
        *,
        queue: str = "",
        worker: str = "",
        for_s: float | None = None,
        now: bool = False,
        reason: str = "",
    ) -> bool:
        """Hold a queue or a worker; tell whether that changed anything.

        Args:
            queue: nothing of it starts.
            worker: nothing starts there.
            for_s: None: until resumed.
            now: the worker also gives back what it runs, uncharged.
            reason: for people.
        """
        return self._ask(_commands.pause(queue, worker, for_s, now, reason))

    def drain(self, *, queue: str = "", worker: str = "", reason: str = "") -> bool:
        """Have a queue or a worker finish what it holds and take no more; tell whether that changed anything."""
        return self._ask(_commands.drain(queue, worker, reason))

    def resume(self, *, queue: str = "", worker: str = "") -> bool:
        """End a pause or drain; tell whether there was one."""
        return self._ask(_commands.resume(queue, worker))

    def limits(self) -> list[LimitView]:
        """Return all limits and how much of each is used."""
        return self._ask(_commands.limits())

    def set_limit(
        self,
        of: str,
        value: float,
        *,
        per_s: float = 0.0,
        burst: float = 0.0,
        refuse: bool = False,
        **names: str,
    ) -> bool:
        """Set a limit until it is reset; tell whether it was another before.

        Args:
            of: `running`, `queued`, `bytes`, the rates `jobs` and `tokens`, or the alerts `depth` and `wait`.
            value: jobs, bytes, tokens, or for `wait` milliseconds; -1: none, where the broker's file has one.
            per_s: of a rate: `value` in so many seconds.
            burst: of a rate: so much at once; 0: `value`.
            refuse: of a rate: what is over it is refused at submit; otherwise it waits.
            names: whose jobs it is about: `user` (`*`: each by itself), `queue`, `task_type`, `model`, `worker`,
                `resource`.
        """
        return self._ask(_commands.set_limit(of, value, per_s, burst, refuse, names))

    def reset_limits(self, name: str = "") -> bool:
        """Go back to what the broker's file says of a limit, or of all; tell whether that changed anything."""
        return self._ask(_commands.reset_limits(name))

    # --- itself --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the connection; what waits in other threads gets `ClientClosed`. Jobs go on."""
        if self._owns_link:
            self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ask(self, ask: Ask[T]) -> T:
        engine = self._engine()
        inbox = SyncInbox()
        patience = self._patience(ask.what, self._timeout_s)
        engine.post(engine.dialogue.begin, inbox, ask.message)
        return ask.read(self._get(engine, inbox, patience))

    def _get(self, engine: Engine, inbox: SyncInbox, patience: Patience) -> object:
        """Return the one reply; whoever does not stay for it makes the dialogue forget the command."""
        came = False
        try:
            reply = inbox.get(patience)
            came = True
            return reply
        finally:
            if not came:
                engine.post_quietly(engine.dialogue.forget, inbox)
