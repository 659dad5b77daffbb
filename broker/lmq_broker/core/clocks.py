"""What time does: waits that are over, jumps of the wall clock, heartbeats, retention, the tick of each second."""

import msgspec

from lmq_broker.core import (
    aliases,
    holds,
    jobs,
    leases,
    limiting,
    orders,
    sessions,
    settle,
    shares,
    trust,
    usage,
    users,
    views,
    workers,
)
from lmq_broker.core.chronicle import Out, keep_ledger, numbers_of
from lmq_broker.core.effects import Log, Read
from lmq_broker.core.reads import Context, JobsReply, ReadDue, ReadJobs
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import BrokerState
from lmq_broker.core.stimuli import Now
from lmq_proto.ids import PeerId

_TICK_MS = 1000


def tend(state: BrokerState, out: Out, now: Now) -> bool:
    """Do what is due; return whether some of it is left over for the next turn."""
    _watch_clock(state, out, now)
    unfinished = not jobs.wake_due(state, out, now)
    leases.end_overdue(state, out, now)
    if now.mono_ms >= state.next_tick_ms:
        state.next_tick_ms = now.mono_ms + _TICK_MS
        workers.check_all(state, out, now)
        sessions.beat(state, out, now)
        holds.end_over(state, out, now)
        orders.end_over(state, out, now)
        trust.tend(state, now)
        views.publish_tick(state, out, now)
        keep_ledger(state, out)
        shares.sample(state, now)
        limiting.watch(state, now)
        if state.recovery_until_ms and now.mono_ms >= state.recovery_until_ms:
            state.recovery_until_ms = 0
            leases.end_recovery(state, out, now)
    if now.mono_ms >= state.next_retention_ms:
        state.next_retention_ms = now.mono_ms + state.settings.retention_every_ms
        _ask_for_due(state, out, now)
    # Last of all, so that it is told of every end of this turn, and before the turn's dispatch.
    unfinished |= not settle.settle(state, out, now)
    return unfinished


def next_wake(state: BrokerState, now: Now) -> int:
    """Return the monotonic time of the next thing that time alone brings about."""
    wake_ms = state.next_tick_ms
    if state.backoffs:
        wake_ms = min(wake_ms, state.backoffs[0][0])
    if state.due:
        wake_ms = min(wake_ms, now.mono_ms + max(0, state.due[0][0] - now.wall_ms))
    if state.expiries and not state.clock_trouble:
        wake_ms = min(wake_ms, now.mono_ms + max(0, state.expiries[0][0] - now.wall_ms))
    if state.deadlines:
        wake_ms = min(wake_ms, state.deadlines[0][0])
    return wake_ms


def change_settings(state: BrokerState, settings: Settings) -> None:
    """Take over what may change at run time: defaults of jobs to come, aliases, limits, weights, ceilings."""
    old = state.settings
    state.settings = msgspec.structs.replace(
        old, task_defaults=settings.task_defaults, aliases=settings.aliases, limits=settings.limits,
        weights=settings.weights, ceilings=settings.ceilings,
    )  # fmt: skip
    aliases.refresh(state)
    state.limits.change_baseline(settings.limits)
    for user in {**old.weights, **old.ceilings, **settings.weights, **settings.ceilings}:
        users.apply(state, user)


def _watch_clock(state: BrokerState, out: Out, now: Now) -> None:
    """Hold expiry and retention after a jump of the wall clock, until it has been steady for a while."""
    offset_ms = now.wall_ms - now.mono_ms
    jump_ms = offset_ms - state.wall_offset_ms
    if abs(jump_ms) >= state.settings.clock_jump_ms:
        state.wall_offset_ms = offset_ms
        state.clock_trouble = f"the wall clock jumped by {jump_ms / 1000:+.0f} s"
        state.clock_held_until_ms = now.mono_ms + state.settings.clock_hold_ms
        out.append(Log("clock_jumped", {"jump_ms": jump_ms}, warning=True))
    elif state.clock_trouble and now.mono_ms >= state.clock_held_until_ms:
        state.clock_trouble = ""
    elif abs(jump_ms) < state.settings.clock_jump_ms // 10:
        # Slow drift (NTP slewing) is followed; a jump in several pieces is not mistaken for it.
        state.wall_offset_ms = offset_ms


def _ask_for_due(state: BrokerState, out: Out, now: Now) -> None:
    """Have the journal say which final jobs have been kept long enough."""
    if state.clock_trouble or state.retention_reading or state.disk.trouble == "io":
        return
    jobs.drop_tombstones(state, out, now)
    usage.drop_old(state, out, now)
    over = len(state.finished) - state.settings.jobs_kept
    if state.host.journal_bytes > state.settings.journal_bytes:
        over = max(over, min(len(state.finished), state.settings.retention_step))
    nobody = Context(PeerId(b""), None, state.position)
    if over > 0:
        oldest = iter(state.finished)
        ids = [next(oldest) for _ in range(min(over, state.settings.retention_step))]
        out.append(Read(ReadJobs(nobody, ids, numbers_of(state, ids)), state.position))
    else:
        out.append(Read(ReadDue(nobody, now.wall_ms, state.settings.retention_step), state.position))
    state.retention_reading = True


def retire(state: BrokerState, out: Out, answer: JobsReply, position: int, now: Now) -> None:
    """Delete final jobs whose time is over; go on at once while there are more."""
    state.retention_reading = False
    gone = [
        job
        for job in answer.jobs
        if state.reopened.get(job.id, 0) <= position and job.id not in state.settling
    ]
    jobs.delete(state, out, gone, now, by="retention")
    if len(answer.jobs) >= state.settings.retention_step:
        state.next_retention_ms = now.mono_ms
