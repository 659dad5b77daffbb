"""What jobs have used: sums by day, user, model and task type. They stay when the jobs are long gone.

Jobs and leases tell here that they ended; the journal gets one record for each row that a turn touched, in the same
commit as the ends themselves, so that over any crash each end is counted once.
"""

from lmq_broker.core import fields, models
from lmq_broker.core.chronicle import Out, inform, put, read_position, refuse
from lmq_broker.core.effects import Read
from lmq_broker.core.histograms import bucket_of
from lmq_broker.core.policies.base import Spent
from lmq_broker.core.reads import Context, ReadUsage, UsageSums
from lmq_broker.core.records import UsageAdded, UsageDropped
from lmq_broker.core.rights import SEES_ALL, may_act_for
from lmq_broker.core.state import BrokerState, Job, Lease, Session, Times
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import BadField, LmqError, NotAllowed
from lmq_proto.messages import Usage, UsageReply
from lmq_proto.states import State

COLUMNS = ("day", "user", "model", "task_type")
OTHERS = "(others)"
"""Name of the row for all that comes when a day has as many rows as it may have; also of a metric's last series."""
METERED = 1000
"""Models, and users, that are metered by name."""
_DAYS_AT_HAND = 2
"""Whose rows are known: today's, and yesterday's for a clock that is set back a little."""


# --- counted ---------------------------------------------------------------------------------------------------------


def job_ended(state: BrokerState, job: Job, target: State, now: Now) -> None:
    """Count the end of a job, and how long it waited and ran if it ever started.

    A delay that its submitter wished is no waiting. Of a job that a person opened again only the new end is counted:
    its times would tell how long that person was away.
    """
    row = _row(state, job.user, job.model or (job.models[0] if job.models else ""), job.task_type, now)
    row.ended[target] = row.ended.get(target, 0) + 1
    if not job.started_at_ms or job.id in state.reopened:
        return
    wait_ms = max(0, job.started_at_ms - max(job.created_at_ms, job.due_at_ms))
    run_ms = max(0, now.wall_ms - job.started_at_ms)
    wait, run = bucket_of(wait_ms), bucket_of(run_ms)
    row.waits[wait] = row.waits.get(wait, 0) + 1
    row.runs[run] = row.runs.get(run, 0) + 1
    meters = state.meters
    band = 0
    while job.priority < state.settings.bands[band].lowest:
        band += 1
    while len(meters.bands) <= band:
        meters.bands.append((Times(), Times()))
    waits, runs = meters.bands[band]
    waits.counts[wait] = waits.counts.get(wait, 0) + 1
    waits.total_ms += wait_ms
    runs.counts[run] = runs.counts.get(run, 0) + 1
    runs.total_ms += run_ms


def lease_ended(state: BrokerState, lease: Lease, model: str, spent: Spent, now: Now) -> None:
    """Count what an attempt took, as its worker said: whoever is to blame for its end, the engine worked.

    Of one that was cut short the worker may know no more than it reported on the way.
    """
    output_tokens = spent.output_tokens if spent.complete else max(spent.output_tokens, lease.tokens)
    if not (spent.prompt_tokens or output_tokens or spent.engine_ms):
        return
    job = lease.job
    row = _row(state, job.user, model or job.model, job.task_type, now)
    row.prompt_tokens += spent.prompt_tokens
    row.output_tokens += output_tokens
    row.engine_ms += spent.engine_ms
    meters = state.meters
    _meter(meters.prompt_tokens, row.model, spent.prompt_tokens)
    _meter(meters.output_tokens, row.model, output_tokens)
    _meter(meters.engine_ms, row.model, spent.engine_ms)
    _meter(meters.users_engine_ms, job.user, spent.engine_ms)


def _meter(table: dict[str, int], name: str, more: int) -> None:
    if name not in table and len(table) >= METERED:
        name = OTHERS
    table[name] = table.get(name, 0) + more


def _row(state: BrokerState, user: str, model: str, task_type: str, now: Now) -> UsageAdded:
    """Return what this turn adds to a row."""
    day = now.wall_ms // bounds.DAY_MS
    row = state.fresh_usage.get((day, user, model, task_type))
    if row is not None:
        return row
    names = (user, models.unnumbered(model), task_type)
    known = state.usage_rows.get(day)
    if known is None:
        known = _begin_day(state, day)
    if names not in known and len(known) >= state.settings.usage_rows:
        names = (OTHERS, OTHERS, OTHERS)
    known.add(names)
    row = state.fresh_usage.get((day, *names))
    if row is None:
        row = state.fresh_usage[(day, *names)] = UsageAdded(day, *names)
    return row


def _begin_day(state: BrokerState, day: int) -> set[tuple[str, str, str]]:
    if len(state.usage_rows) >= _DAYS_AT_HAND:
        del state.usage_rows[next(iter(state.usage_rows))]
    state.usage_rows[day] = set()
    state.usage_oldest_day = min(state.usage_oldest_day or day, day)
    return state.usage_rows[day]


# --- kept ------------------------------------------------------------------------------------------------------------


def keep(state: BrokerState, out: Out) -> None:
    """Note in the journal what the turn has added."""
    if state.fresh_usage:
        for row in state.fresh_usage.values():
            put(state, out, row)
        state.fresh_usage = {}


def drop_old(state: BrokerState, out: Out, now: Now) -> None:
    """Forget a day that has been kept long enough; one at a time, so that no commit is long."""
    oldest = state.usage_oldest_day
    if oldest and oldest < now.wall_ms // bounds.DAY_MS - state.settings.usage_days:
        put(state, out, UsageDropped(oldest))
        state.usage_oldest_day = oldest + 1


# --- told ------------------------------------------------------------------------------------------------------------


def usage(state: BrokerState, out: Out, session: Session, command: Usage, now: Now) -> None:
    """Have a page of sums read: of all users for who sees all, else of one's own and those one may act for."""
    who = session.who
    user = command.user
    try:
        _check(command)
        if who.role not in SEES_ALL:
            user = user or who.user
            if not may_act_for(who.principal, who.role, who.user, user):
                raise NotAllowed("usage", who.role, f"of {user}")
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    today = now.wall_ms // bounds.DAY_MS
    last = (command.until_ms - 1) // bounds.DAY_MS if command.until_ms else today
    first = (
        command.since_ms // bounds.DAY_MS if command.since_ms else min(state.usage_oldest_day or today, last)
    )
    last = max(first, last)
    request = ReadUsage(
        Context(session.peer, command), first, last, tuple(command.by), user, tuple(command.after), bounds.USAGE_ROWS
    )  # fmt: skip
    out.append(Read(request, read_position(state)))


def _check(command: Usage) -> None:
    """Raise BadField for what cannot be asked."""
    for field, value in (("since_ms", command.since_ms), ("until_ms", command.until_ms)):
        fields.check_within(field, value, 0, 1 << 62)
    if command.until_ms and command.until_ms <= command.since_ms:
        raise BadField("until_ms", command.until_ms, "later than since_ms")
    odd = [name for name in command.by if name not in COLUMNS]
    if odd or len(set(command.by)) < len(command.by):
        raise BadField("by", ",".join(odd or command.by), f"each of {', '.join(COLUMNS)} at most once")
    if command.after and len(command.after) != len(command.by):
        raise BadField("after", len(command.after), f"as many as in by, {len(command.by)}")


def loaded(
    state: BrokerState, out: Out, session: Session, command: Usage, request: ReadUsage, answer: UsageSums
) -> None:
    """Answer with the sums that were read."""
    inform(state, out, session.peer, UsageReply(
        request_id=command.request_id, since_ms=request.first * bounds.DAY_MS,
        until_ms=(request.last + 1) * bounds.DAY_MS, rows=answer.rows, total=answer.total, more=answer.more,
    ))  # fmt: skip
