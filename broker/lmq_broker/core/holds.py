"""Pauses and drains of queues and workers: by command, in the journal, until resumed or for a while."""

import msgspec

from lmq_broker.core import leases, models, workers
from lmq_broker.core.chronicle import Out, put, refuse, reply, tell
from lmq_broker.core.records import MetaSet
from lmq_broker.core.state import BrokerState, Session
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import BadField, LmqError, NotFound
from lmq_proto.events import Kind
from lmq_proto.messages import Done, Drain, Hold, Pause, Resume

HOLD = "hold/"
"""Prefix of the journal's names for holds: `hold/queue/NAME`, `hold/worker/NAME`."""
NOUNS = ("queue", "worker")


def hold(state: BrokerState, out: Out, session: Session, command: Pause | Drain, now: Now) -> None:
    """Pause or drain a queue or a worker; the same again changes nothing but its reason and time."""
    kind = "pause" if isinstance(command, Pause) else "drain"
    for_ms = command.for_ms if isinstance(command, Pause) else 0
    try:
        _check(state, command.noun, command.name, for_ms, command.reason)
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    until_ms = now.wall_ms + for_ms if for_ms else 0
    held = Hold(
        kind=kind, by=session.who.user, since_ms=now.wall_ms, until_ms=until_ms, reason=command.reason
    )
    _set(state, out, command.noun, command.name, held, now)
    if isinstance(command, Pause) and command.now and command.noun == "worker":
        worker = state.workers.get(command.name)
        for lease in [] if worker is None else list(worker.leases.values()):
            if not lease.stopping:
                reason = command.reason or f"{session.who.user} paused {command.name}"
                leases.give_back(state, out, lease, reason, now)
    reply(state, out, session.peer, Done(request_id=command.request_id))


def resume(state: BrokerState, out: Out, session: Session, command: Resume, now: Now) -> None:
    """End a hold."""
    try:
        _check(state, command.noun, command.name, 0, "")
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    changed = _end(state, out, command.noun, command.name, now, by=session.who.user)
    reply(state, out, session.peer, Done(request_id=command.request_id, changed=changed))


def end_over(state: BrokerState, out: Out, now: Now) -> None:
    """End the holds whose time is over."""
    for noun, holds in (("queue", state.queue_holds), ("worker", state.worker_holds)):
        for name in [name for name, held in holds.items() if 0 < held.until_ms <= now.wall_ms]:
            _end(state, out, noun, name, now, by="")


def _check(state: BrokerState, noun: str, name: str, for_ms: int, reason: str) -> None:
    """Refuse a hold on what is not there, or out of bounds."""
    if noun not in NOUNS:
        raise BadField("noun", noun, " or ".join(NOUNS))
    if not 0 <= for_ms <= bounds.DURATION_MS:
        raise BadField("for_ms", for_ms, f"0 to {bounds.DURATION_MS}")
    if len(reason) > bounds.REASON_CHARS:
        raise BadField("reason", reason, f"at most {bounds.REASON_CHARS} characters")
    if noun == "worker" and name not in state.workers and name not in state.worker_holds:
        raise NotFound("worker", name, models.nearest(name, state.workers))
    if noun == "queue" and not 0 < len(name) <= bounds.NAME_CHARS:
        raise BadField("name", name, f"1 to {bounds.NAME_CHARS} characters")


def _set(state: BrokerState, out: Out, noun: str, name: str, held: Hold, now: Now) -> None:
    holds = state.queue_holds if noun == "queue" else state.worker_holds
    holds[name] = held
    put(state, out, MetaSet(f"{HOLD}{noun}/{name}", msgspec.msgpack.encode(held)))
    detail: dict[str, str | int | float | bool | list[str] | None] = {
        "hold": held.kind, "by": held.by, "reason": held.reason, "until_ms": held.until_ms,
    }  # fmt: skip
    if noun == "queue":
        tell(state, now, Kind.QUEUE_HELD, queue=name, detail=detail)
    else:
        tell(state, now, Kind.WORKER_HELD, worker=name, detail=detail)
    _show(state, out, noun, name)


def _end(state: BrokerState, out: Out, noun: str, name: str, now: Now, *, by: str) -> bool:
    holds = state.queue_holds if noun == "queue" else state.worker_holds
    if holds.pop(name, None) is None:
        return False
    put(state, out, MetaSet(f"{HOLD}{noun}/{name}", b""))
    if noun == "queue":
        tell(state, now, Kind.QUEUE_RESUMED, queue=name, detail={"by": by})
    else:
        tell(state, now, Kind.WORKER_RESUMED, worker=name, detail={"by": by})
    _show(state, out, noun, name)
    return True


def _show(state: BrokerState, out: Out, noun: str, name: str) -> None:
    """Publish the new state of what was held or resumed."""
    if noun == "worker" and name in state.workers:
        workers.publish(state, out, state.workers[name])
    elif noun == "queue" and name in state.queues:
        state.queues[name].changed = True
