"""The five tables of the screen: which rows each has for a view, what a row stands for, how it is sorted. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from lmq.cli.humane import duration, held, model_of, short, span, time_of_day, where
from lmq.cli.tables import STATE_COLORS, one_line
from lmq.cli.top.lines import Bar, Cell, Column, Line, plain
from lmq.cli.users import is_short, name_of
from lmq.cli.workers import HELD_BACK, LIMITS, state_of, taken_of
from lmq_proto.bounds import PRIORITY_MAX

if TYPE_CHECKING:
    from lmq import BandView, InstanceInfo, JobStatus, QueueView, UserView, WorkerView
    from lmq.cli.top.view import Swaps, View


class Pane(StrEnum):
    """The tables, in the order in which tab goes through them."""

    USERS = "users"
    QUEUES = "queues"
    WORKERS = "workers"
    RUNNING = "running"
    WAITING = "waiting"


SORTS: dict[Pane, tuple[str, ...]] = {
    Pane.USERS: ("name", "received", "waits"),
    Pane.QUEUES: ("name", "waits"),
    Pane.WORKERS: ("name", "busy"),
    Pane.RUNNING: ("oldest", "user", "worker", "priority"),
    Pane.WAITING: ("next", "user", "oldest", "priority"),
}
"""How a pane may be sorted; the first is the way it is until told otherwise."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a pane: cells for its columns, or one line across them."""

    key: str
    cells: tuple[Cell, ...] = ()
    line: Line = ()
    job: JobStatus | None = None
    queue: QueueView | None = None
    worker: WorkerView | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A pane with all its rows."""

    title: str
    columns: tuple[Column, ...]
    rows: list[Row]
    nothing: str
    """What is said where there are no rows."""


def table_of(pane: Pane, view: View, sort: str, swaps: Swaps) -> Table:
    """Return a pane's table."""
    match pane:
        case Pane.USERS:
            return _users(view, sort)
        case Pane.QUEUES:
            return _queues(view, sort)
        case Pane.WORKERS:
            return _workers(view, sort, swaps)
        case Pane.RUNNING:
            return _running(view, sort)
        case Pane.WAITING:
            return _waiting(view, sort)


def _titled(title: str, pane: Pane, sort: str) -> str:
    return title if sort == SORTS[pane][0] else f"{title} by {sort}"


# --- users and bands -------------------------------------------------------------------------------------------------

_POOLS = {"llm": "models"}
"""How a pool is called on the screen, where it is not by its own name: what runs on endpoints."""
_USER_COLUMNS = (
    Column("", least=15, most=28, worth=9),
    Column("WEIGHT", least=6, right=True, worth=2),
    Column("RUNS", least=4, right=True, worth=6),
    Column("WAITS", least=5, right=True, worth=6),
    Column("WANTED", least=6, right=True, worth=3),
    Column("RECEIVED", least=8, right=True, worth=8),
    Column("", least=8, worth=4, grows=True),
)


def _users(view: View, sort: str) -> Table:
    """Bands with anything in them, each with its users; who neither waits nor runs stands below who does."""
    rows: list[Row] = []
    users = view.users
    several = len({band.pool for band in users.bands}) > 1
    order: dict[str, Callable[[UserView], tuple[float, str]]] = {
        "name": lambda row: (not row.user, row.user),
        "received": lambda row: (-row.received_ratio, row.user),
        "waits": lambda row: (-row.queued, row.user),
    }
    above: dict[str, int] = {}
    idle: list[Row] = []
    for band in users.bands:
        found = [row for row in users.users if (row.pool, row.band) == (band.pool, band.name)]
        top = above.get(band.pool, PRIORITY_MAX)
        above[band.pool] = band.lowest - 1
        if not (found or band.queued or band.running):
            continue
        # A user of an app may stand in its row.
        shown = [row for row in found if f"{view.user}/".startswith(f"{row.user}/") or not view.user]
        shown.sort(key=lambda row: (not (row.queued or row.running), order[sort](row)))
        place = rows if band.queued or band.running else idle
        place += [_band_row(band, top, name_pool=several), *map(_user_row, shown)]
    rows += idle
    if rows and not users.has_shares:
        words = f"  users have no shares: policy {users.policy} goes by priority, then arrival"
        rows.append(Row("no-shares", line=plain(words, "dim")))
    title = _titled("USERS", Pane.USERS, sort)
    return Table(title, _USER_COLUMNS, rows, "nobody waits or runs")


def _band_row(band: BandView, top: int, *, name_pool: bool) -> Row:
    priorities = f"{band.lowest}-{top}" if top > band.lowest else str(top)
    pool = f" of {_POOLS.get(band.pool, band.pool)}" if name_pool else ""
    owed = f"owed {duration(band.owed_ms / 1000)}" if band.owed_ms >= 1000 else ""
    return Row(
        f"band/{band.pool}/{band.name}",
        ((one_line(f"{band.name} {priorities}{pool}"), "bold"), ("", ""), (f"{band.running:,}", "bold"),
         (f"{band.queued:,}", "bold"),
         (f"≥{band.share_ratio:.0%}" if band.share_ratio else "", "dim"), (owed, "dim"), ("", "")),
    )  # fmt: skip


def _user_row(row: UserView) -> Row:
    style = "yellow" if is_short(row) else ""
    wanted = f"{row.wanted_ratio:.0%}" if row.wanted_ratio else ""
    return Row(
        f"user/{row.pool}/{row.band}/{row.user}",
        ((f"  {one_line(name_of(row))}", "" if row.queued or row.running else "dim"),
         (f"{row.weight:g}", ""), (f"{row.running:,}", ""), (f"{row.queued:,}", ""), (wanted, ""),
         (f"{row.received_ratio:.0%}", style), Bar(row.received_ratio, row.wanted_ratio or None, style)),
    )  # fmt: skip


# --- queues ----------------------------------------------------------------------------------------------------------

_QUEUE_COLUMNS = (
    Column("", least=10, most=28, worth=9),
    Column("RUNS", least=4, right=True, worth=6),
    Column("WAITS", least=5, right=True, worth=6),
    Column("LATER", least=5, right=True, worth=3),
    Column("OLDEST", least=6, right=True, worth=4),
    Column("", least=10, worth=8, grows=True),
)


def _queues(view: View, sort: str) -> Table:
    rows = []
    order: dict[str, Callable[[QueueView], tuple[int, str]]] = {
        "name": lambda queue: (0, queue.name),
        "waits": lambda queue: (-queue.ready, queue.name),
    }
    for queue in sorted(view.queues, key=order[sort]):
        later = queue.delayed + queue.blocked + queue.asking
        note = held(queue.hold) if queue.hold else "" if queue.workers or not queue.ready else "no worker"
        rows.append(Row(
            f"queue/{queue.name}",
            ((one_line(queue.name), ""), (f"{queue.leased:,}", ""), (f"{queue.ready:,}", ""),
             (f"{later:,}" if later else "", ""),
             (duration(queue.oldest_ready_ms / 1000) if queue.ready else "", ""), (note, "yellow")),
            queue=queue,
        ))  # fmt: skip
    return Table(_titled("QUEUES", Pane.QUEUES, sort), _QUEUE_COLUMNS, rows, "no queue yet")


# --- workers and models ----------------------------------------------------------------------------------------------

_WORKER_COLUMNS = (
    Column("", least=18, most=36, worth=9),
    Column("STATE", least=8, most=10, worth=7),
    Column("SLOTS", least=5, right=True, worth=8),
    Column("WAITS", least=5, right=True, worth=4),
    Column("SWAPS/H", least=7, right=True, worth=3),
    Column("", least=16, worth=6, grows=True),
)


def _workers(view: View, sort: str, swaps: Swaps) -> Table:
    """Workers, each with the models that are loaded at its endpoint."""
    rows = []
    order: dict[str, Callable[[WorkerView], tuple[int, str]]] = {
        "name": lambda worker: (0, worker.name),
        "busy": lambda worker: (-worker.leased, worker.name),
    }
    waiting = {model.model: model.waiting for model in view.models}
    for worker in sorted(view.workers, key=order[sort]):
        made = swaps.lately(worker.name, view.health.wall_ms)
        rows.append(Row(
            f"worker/{worker.name}",
            ((one_line(worker.name), "bold"), (state_of(worker), STATE_COLORS.get(state_of(worker), "")),
             (taken_of(worker), ""), ("", ""),
             (f"{made}" if made else "", ""), _worker_note(worker)),
            worker=worker,
        ))  # fmt: skip
        if worker.capacity is not None:
            rows += [_instance_row(worker, each, waiting) for each in worker.capacity.instances]
    title = _titled("WORKERS", Pane.WORKERS, sort)
    return Table(title, _WORKER_COLUMNS, rows, "no worker; type: lmq up")


def _worker_note(worker: WorkerView) -> Cell:
    """Return what people should know first about a worker; its endpoint, if nothing."""
    if worker.hold is not None:
        hold = worker.hold
        until = f" until {time_of_day(hold.until_ms)[:-3]}" if hold.until_ms else ""
        return one_line(f"by {hold.by}{until}{f' ({hold.reason})' if hold.reason else ''}"), "yellow"
    breaker = worker.capacity.breaker if worker.capacity is not None else None
    if breaker is not None:
        return one_line(f"endpoint down: {breaker.reason}"), "red"
    if worker.loading:
        took = f", {duration(worker.loading_ms / 1000)} so far" if worker.loading_ms else ""
        return one_line(f"loads {worker.loading}{took}"), "cyan"
    return one_line(worker.endpoint.removeprefix("http://")), "dim"


def _instance_row(worker: WorkerView, instance: InstanceInfo, waiting: dict[str, int]) -> Row:
    """Return the row of a model loaded at an endpoint."""
    used = worker.instances_leased.get(instance.instance_id, 0)
    waits = waiting.get(instance.model, 0)
    facts = [instance.kind] if instance.kind != "any" else []
    facts += [f"context {instance.context_tokens:,}"] if instance.context_tokens else []
    facts += [LIMITS.get(instance.limit_by, instance.limit_by)] if instance.limit_by else []
    note: Cell = (one_line(", ".join(facts)), "dim")
    if instance.limit_by in HELD_BACK:
        note = (f"only {instance.slots} at once: {LIMITS[instance.limit_by]}", "yellow")
    return Row(
        f"worker/{worker.name}/{instance.instance_id}",
        ((f"  {one_line('any model' if instance.model == '*' else instance.model)}", ""), ("", ""),
         (f"{used}/{instance.slots}", ""), (f"{waits:,}" if waits else "", ""), ("", ""), note),
        worker=worker,
    )  # fmt: skip


# --- jobs ------------------------------------------------------------------------------------------------------------

_RUNNING_COLUMNS = (
    Column("", least=6, most=6, worth=9),
    Column("USER", least=8, most=20, worth=8),
    Column("TYPE", least=5, most=12, worth=3),
    Column("MODEL", least=13, most=28, worth=5),
    Column("WORKER", least=6, most=16, worth=4),
    Column("PRIO", least=4, right=True, worth=2),
    Column("FOR", least=5, right=True, worth=6),
    Column("PHASE", least=25, worth=7, grows=True),
)
_WAITING_COLUMNS = (
    Column("", least=6, most=6, worth=9),
    Column("USER", least=8, most=20, worth=8),
    Column("TYPE", least=5, most=12, worth=4),
    Column("MODEL", least=13, most=28, worth=5),
    Column("PRIO", least=4, right=True, worth=6),
    Column("AGE", least=5, right=True, worth=3),
    Column("AHEAD", least=5, right=True, worth=7),
    Column("STARTS IN", least=8, worth=7, grows=True),
)


def _running(view: View, sort: str) -> Table:
    order: dict[str, Callable[[JobStatus], tuple[object, ...]]] = {
        "oldest": lambda job: (job.started_at_ms, job.number),
        "user": lambda job: (job.user, job.number),
        "worker": lambda job: (job.worker, job.model, job.number),
        "priority": lambda job: (-job.priority, job.number),
    }
    now_ms = view.health.wall_ms
    rows = [
        Row(f"job/{job.id}",
            ((short(job.id), ""), (one_line(job.user), ""), (one_line(job.task_type), ""), (model_of(job), ""),
             (one_line(job.worker), ""), (str(job.priority), ""),
             (duration(max(0, now_ms - job.started_at_ms) / 1000) if job.started_at_ms else "", ""),
             (where(job), "yellow" if job.phase == "stopping" else "")),
            job=job)
        for job in _sorted(view.running, order[sort])
    ]  # fmt: skip
    total = view.health.counts.get("leased", 0)
    title = _titled(_counted("RUNNING", len(rows), total, view.user), Pane.RUNNING, sort)
    return Table(title, _RUNNING_COLUMNS, rows, "nothing runs")


def _waiting(view: View, sort: str) -> Table:
    order: dict[str, Callable[[JobStatus], tuple[object, ...]]] = {
        "next": lambda job: (job.state != "ready", job.ahead or 0, -job.priority, job.number),
        "user": lambda job: (job.user, job.number),
        "oldest": lambda job: (job.created_at_ms, job.number),
        "priority": lambda job: (-job.priority, job.ahead or 0, job.number),
    }
    now_ms = view.health.wall_ms
    rows = [
        Row(f"job/{job.id}",
            ((short(job.id), ""), (one_line(job.user), ""), (one_line(job.task_type), ""), (model_of(job), ""),
             (str(job.priority), ""), (duration(max(0, now_ms - job.created_at_ms) / 1000), ""),
             (_ahead(job), ""), _start(job)),
            job=job)
        for job in _sorted(view.waiting, order[sort])
    ]  # fmt: skip
    title = _titled(_counted("WAITING", len(rows), view.waiting_count, view.user), Pane.WAITING, sort)
    return Table(title, _WAITING_COLUMNS, rows, "nothing waits")


def _ahead(job: JobStatus) -> str:
    """Return how many come before a job; none do of the next, unless something else keeps it from running."""
    if job.ahead is None or (not job.ahead and job.hindrance):
        return ""
    return f"{job.ahead:,}" if job.ahead else "next"


def _start(job: JobStatus) -> Cell:
    """Return when a job is thought to start, or what else it waits for than its turn."""
    if job.state == "asking":
        return "asks a person", STATE_COLORS["asking"]
    if job.state != "ready":
        return where(job) or job.state, STATE_COLORS.get(job.state, "")
    parts = [one_line(job.hindrance)] if job.hindrance else []
    parts += [span(job.starts_in_s)] if job.starts_in_s is not None else []
    parts += [f"after attempt {job.attempt}"] if job.attempt else []
    parts += ["suspect: runs alone"] if job.suspect else []
    return ", ".join(parts), "yellow" if job.hindrance else ""


def _sorted(jobs: Sequence[JobStatus], key: Callable[[JobStatus], tuple[object, ...]]) -> list[JobStatus]:
    return sorted(jobs, key=key)


def _counted(title: str, shown: int, total: int, user: str) -> str:
    """Return a title with how many there are; of how many, where not all of them were asked for."""
    if user:
        return f"{title} {shown:,} of {one_line(user)}"
    return f"{title} {total:,}" if shown >= total else f"{title} {shown:,} of {total:,}"


def named(row: Row) -> str:
    """Return what a row stands for, as a question names it."""
    if row.job is not None:
        return f"{short(row.job.id)}, {one_line(row.job.task_type)} of {one_line(row.job.user)}"
    if row.queue is not None:
        return f"queue {one_line(row.queue.name)}"
    if row.worker is not None:
        return f"worker {one_line(row.worker.name)}"
    return ""
