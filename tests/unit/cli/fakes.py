"""A broker that is not there: it answers from lists, and remembers what it was asked to do."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from click.testing import CliRunner, Result

from lmq import (
    Alias,
    DefaultModel,
    Event,
    HealthReply,
    JobStatus,
    Outcome,
    Piece,
    QueueView,
    Restart,
    State,
    Tick,
    UsageReply,
    UsageRow,
    Users,
    Why,
    WorkerView,
)
from lmq.cli import eventlines, tables, usage
from lmq.cli.root import root
from lmq.cli.session import Session
from lmq.errors import LmqError, NotReachable, WaitTimeout

if TYPE_CHECKING:
    from lmq import LimitView, ModelView
    from lmq.cli.port import BrokerPort

URL = "tcp://127.0.0.1:7766"
DAY_MS = 86_400_000
ID_A = "01M811YGTS299ZZFYVR3JZ6EB6"
ID_B = "01M811YGTS299ZZFYVR37KQ2M9"


def a_job(job_id: str = ID_A, **fields: Any) -> JobStatus:
    told = {
        "number": 1, "user": "anna", "principal": "anna", "task_type": "chat", "queue": "default", "priority": 5,
        "state": "ready", "created_at_ms": 1_000, **fields,
    }  # fmt: skip
    return JobStatus(id=job_id, **told)


def an_event(seq: int, kind: str, **fields: Any) -> Event:
    return Event(seq=seq, at_ms=1_000 * seq, kind=kind, **fields)


def health(**fields: Any) -> HealthReply:
    told = {
        "request_id": 1, "software": "lmq-broker 0.1.0", "protocol": 1, "broker_id": b"b" * 16, "epoch": 3,
        "wall_ms": 0, "uptime_ms": 60_000, "counts": {"ready": 1}, "journal_free_bytes": 10**12,
        "journal_floor_bytes": 10**8, **fields,
    }  # fmt: skip
    return HealthReply(**told)


@dataclass
class FakeJob:
    """A handle."""

    id: str
    broker: FakeBroker
    task_type: str = "chat"
    given_priority: int | None = None

    def status(self) -> JobStatus:
        return next(job for job in self.broker.found if job.id == self.id)

    def why(self) -> Why:
        assert self.broker.reason is not None
        return self.broker.reason

    def payload(self) -> object:
        return {"body": {}}

    def wait(self, timeout_s: float | None = None) -> State:
        return next((State(job.state) for job in self.broker.found if job.id == self.id), State.DONE)

    def result(self, timeout_s: float | None = None) -> object:
        return self._given(self.broker.outcome)

    def pieces(self, *, restart: str = "raise", timeout_s: float | None = None) -> Iterator[Piece | Restart]:
        for item in self.broker.text:
            if isinstance(item, KeyboardInterrupt):
                # As a terminal would: the main thread gets it, whoever is here.
                signal.raise_signal(signal.SIGINT)
                threading.Event().wait(5)
                return
            yield self._given(item)

    def cancel(self, *, if_attempt: int | None = None) -> bool:
        self.broker.did.append(("cancel", self.id))
        return True

    @staticmethod
    def _given(item: Any) -> Any:
        if isinstance(item, BaseException):
            raise item
        return item


@dataclass
class FakeEvents:
    """Events, then what ends them."""

    items: Iterator[Event | LmqError]

    def __iter__(self) -> FakeEvents:
        return self

    def __next__(self) -> Event:
        item = next(self.items)
        if isinstance(item, LmqError):
            raise item
        return item

    def close(self) -> None:
        pass


@dataclass
class FakeBroker:
    """A client of it."""

    url: str = URL
    found: list[JobStatus] = field(default_factory=list)
    all_queues: list[QueueView] = field(default_factory=list)
    all_workers: list[WorkerView] = field(default_factory=list)
    all_models: list[ModelView] = field(default_factory=list)
    all_aliases: list[Alias] = field(default_factory=list)
    all_defaults: list[DefaultModel] = field(default_factory=list)
    changes: bool = True
    """What an alias, a default or an order is answered with."""
    all_limits: list[LimitView] = field(default_factory=list)
    sums: list[UsageRow] = field(default_factory=list)
    total: UsageRow = field(default_factory=UsageRow)
    outcomes: list[Outcome] = field(default_factory=list)
    text: list[Piece | Restart | BaseException] = field(default_factory=list)
    outcome: object = None
    reason: Why | None = None
    streams: list[list[Event | LmqError]] = field(default_factory=list)
    """One list for each call of `events`."""
    ticks: int = 0
    did: list[tuple[Any, ...]] = field(default_factory=list)
    is_closed: bool = False
    all_users: Users = field(
        default_factory=lambda: Users(request_id=1, policy="blfq", has_shares=True, users=[], bands=[])
    )
    ceiling: int | None = None
    """What jobs are given that ask for more."""
    refusal: LmqError | None = None
    """What a submit is answered with."""

    def close(self) -> None:
        self.is_closed = True

    def chat(self, prompt: object, **options: Any) -> FakeJob:
        return self._submitted("chat", prompt, options)

    def embed(self, texts: object, **options: Any) -> FakeJob:
        return self._submitted("embed", texts, options)

    def submit(self, task_type: str, payload: object = None, **options: Any) -> FakeJob:
        return self._submitted(task_type, payload, options)

    def submit_many(self, jobs: Sequence[Any], *, atomic: bool = False) -> list[FakeJob]:
        drafts = list(jobs)
        self.did.append(("submit_many", drafts, atomic))
        if self.refusal:
            raise self.refusal
        return [FakeJob(draft.id, self, given_priority=self.ceiling) for draft in drafts]

    def _submitted(self, kind: str, what: object, options: dict[str, Any]) -> FakeJob:
        self.did.append((kind, what, options))
        if self.refusal:
            raise self.refusal
        return FakeJob(ID_A, self, given_priority=self.ceiling)

    def job(self, job_id: str) -> FakeJob:
        return FakeJob(job_id, self)

    def jobs(
        self, *, limit: int = 100, after: int = 0, oldest_first: bool = False, **match: Any
    ) -> list[JobStatus]:
        ending = match.pop("id_ending", "").upper()
        if not ending:
            self.did.append(("jobs", match))
        states = match.get("states")
        fitting = [
            job for job in self.found if job.id.endswith(ending) and (not states or job.state in states)
        ]
        return fitting[:limit]

    def _act(self, verb: str, *jobs: str, **match: Any) -> list[Outcome]:
        self.did.append((verb, jobs, match))
        return self.outcomes

    def cancel(self, *jobs: str, **match: Any) -> list[Outcome]:
        return self._act("cancel", *jobs, **match)

    def retry(self, *jobs: str, **match: Any) -> list[Outcome]:
        return self._act("retry", *jobs, **match)

    def delete(self, *jobs: str, **match: Any) -> list[Outcome]:
        return self._act("delete", *jobs, **match)

    def update(self, *jobs: str, **changes: Any) -> list[Outcome]:
        return self._act("update", *jobs, **changes)

    def events(self, **wish: Any) -> FakeEvents:
        self.did.append(("events", wish))
        items = self.streams.pop(0) if self.streams else []
        end: list[Event | LmqError] = (
            [WaitTimeout("events", wish["timeout_s"])] if wish.get("timeout_s") else []
        )
        return FakeEvents(iter([*items, *end]))

    def watch(self, *topics: str, timeout_s: float | None = None) -> Iterator[Tick]:
        for number in range(self.ticks):
            yield Tick(wall_ms=number, counts={}, workers=1, cursor=number)

    def queues(self) -> list[QueueView]:
        return self.all_queues

    def workers(self) -> list[WorkerView]:
        return self.all_workers

    def models(self) -> list[ModelView]:
        return self.all_models

    def aliases(self) -> list[Alias]:
        return self.all_aliases

    def default_models(self) -> list[DefaultModel]:
        return self.all_defaults

    def _steered(self, *what: Any) -> bool:
        self.did.append(what)
        if self.refusal:
            raise self.refusal
        return self.changes

    def set_alias(self, name: str, models: Sequence[str], *, reset: bool = False) -> bool:
        return self._steered("alias", name, list(models), reset)

    def set_default_model(self, task_type: str, model: str, *, reset: bool = False) -> bool:
        return self._steered("default", task_type, model, reset)

    def load_model(self, model: str, worker: str) -> bool:
        return self._steered("load", model, worker)

    def unload_model(self, model: str, worker: str = "") -> bool:
        return self._steered("unload", model, worker)

    def pin_model(self, model: str, worker: str, *, for_s: float | None = None) -> bool:
        return self._steered("pin", model, worker, for_s)

    def unpin_model(self, model: str, worker: str = "") -> bool:
        return self._steered("unpin", model, worker)

    def limits(self) -> list[LimitView]:
        return self.all_limits

    def set_limit(self, of: str, value: float, **what: Any) -> bool:
        self.did.append(("set_limit", {"of": of, "value": value, **what}))
        return True

    def reset_limits(self, name: str = "") -> bool:
        self.did.append(("reset_limits", {"name": name}))
        return True

    def users(self) -> Users:
        return self.all_users

    def set_user(self, user: str, **what: Any) -> bool:
        self.did.append(("set_user", user, what))
        return True

    def reset_user(self, user: str) -> bool:
        self.did.append(("reset_user", user))
        return False

    def health(self) -> HealthReply:
        return health()

    def usage(self, **wish: Any) -> UsageReply:
        self.did.append(("usage", wish))
        return UsageReply(
            request_id=1, since_ms=20_780 * DAY_MS, until_ms=20_782 * DAY_MS, rows=self.sums, total=self.total
        )

    def metrics(self, *, users: bool = False) -> str:
        self.did.append(("metrics", users))
        return "lmq_sessions 1\n"

    def backup(self, path: str) -> Any:
        from lmq_proto.messages import BackupDone

        return BackupDone(request_id=1, path=path, copied_bytes=1_400_000)

    def pause(self, **what: Any) -> bool:
        self.did.append(("pause", what))
        return True

    def drain(self, **what: Any) -> bool:
        self.did.append(("drain", what))
        return True

    def resume(self, **what: Any) -> bool:
        self.did.append(("resume", what))
        return False


class NoBroker:
    """A client whose broker does not answer."""

    url = URL

    def close(self) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == "job":
            return lambda job_id: self

        def unreachable(*args: object, **options: object) -> object:
            raise NotReachable(URL)

        return unreachable


def run(client: FakeBroker | NoBroker, *words: str, given: str | None = None) -> Result:
    """Run a command line against a client, as on a pipe."""
    session = Session(connect=lambda _: cast("BrokerPort", client))
    return CliRunner().invoke(root, list(words), obj=session, input=given)


@contextmanager
def terminal() -> Iterator[None]:
    """What is printed goes to a terminal of 80 columns."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (tables, eventlines, usage):
            patch.setattr(module, "room", lambda: tables.WIDTH)
        yield
