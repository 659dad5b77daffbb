"""Limits as commands set them: in the journal until reset; what they refuse; and the alerts of depth and wait."""

import msgspec

from lmq_broker.core import aliases, fields, models, waiting
from lmq_broker.core.chronicle import Out, inform, put, queue_names, refuse, reply, tell
from lmq_broker.core.limits import (
    ALERTS,
    COUNTED,
    EACH,
    RATES,
    UNLIMITED,
    Bucket,
    Limits,
    Set,
    name_of,
)
from lmq_broker.core.records import MetaSet
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import BrokerState, Session
from lmq_broker.core.stimuli import Now
from lmq_broker.core.words import in_words
from lmq_proto import bounds
from lmq_proto.errors import BadField, Field, LmqError, NotFound
from lmq_proto.events import Kind
from lmq_proto.messages import Done, Limit, LimitsReply, LimitView, ListLimits, ResetLimits, SetLimit

LIMIT = "limit/"
"""Prefix of the journal's names for limits that were set by command."""
RATE = "rate/"
"""The same for how full the buckets of rates are: `rate/NAME<tab>USER`."""
RULES = 1000
"""Limits that may be set."""
_NAMED = ("queue", "task_type", "model", "worker", "resource")
_ALERT_OVER = 0.8
"""An alert is over when it has fallen to this share of its value: one that trembles is told once."""
_VALUE_MAX = 1e12


# --- commands --------------------------------------------------------------------------------------------------------


def set_limit(state: BrokerState, out: Out, session: Session, command: SetLimit, now: Now) -> None:
    """Set a limit; the same again changes nothing."""
    limit = command.limit
    try:
        check(limit)
        if len(state.limits.by_command) >= RULES and name_of(limit) not in state.limits.by_command:
            raise BadField("limit", len(state.limits.by_command), f"at most {RULES} limits")
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    change = Set(limit, session.who.user, now.wall_ms)
    changed = state.limits.set(change)
    if changed:
        put(state, out, MetaSet(LIMIT + name_of(limit), msgspec.msgpack.encode(change)))
        tell(state, now, Kind.LIMIT_SET, queue=limit.queue, worker=limit.worker, model=limit.model,
             detail={"limit": name_of(limit), "value": limit.value, "by": session.who.user})  # fmt: skip
    reply(state, out, session.peer, Done(request_id=command.request_id, changed=changed))


def reset(state: BrokerState, out: Out, session: Session, command: ResetLimits, now: Now) -> None:
    """Take back what commands have set: one limit, or all."""
    names = [command.name] if command.name else list(state.limits.by_command)
    if command.name and not any(name == command.name for name, _ in state.limits.rules()):
        known = [name for name, _ in state.limits.rules()]
        error = NotFound("limit", command.name[: bounds.REASON_CHARS], known[:3])
        refuse(state, out, session.peer, command.request_id, error)
        return
    changed = False
    for name in names:
        if state.limits.reset(name):
            changed = True
            put(state, out, MetaSet(LIMIT + name, b""))
            tell(state, now, Kind.LIMIT_RESET, detail={"limit": name, "by": session.who.user})
    reply(state, out, session.peer, Done(request_id=command.request_id, changed=changed))


def list_limits(state: BrokerState, out: Out, session: Session, command: ListLimits, now: Now) -> None:
    """Answer with all limits and how much of each is used."""
    views = []
    for name, limit in state.limits.rules():
        change = state.limits.by_command.get(name)
        used, used_by = state.limits.fullest(name, limit, now.mono_ms)
        if limit.of == "wait":
            used = float(waiting.oldest_ms(state, limit, now))
        views.append(LimitView(
            name=name, limit=limit, origin="file" if change is None else "command",
            by="" if change is None else change.by, since_ms=0 if change is None else change.at_ms,
            used=round(used, 3), used_by=used_by if limit.user == EACH else "",
            raised=name in state.alerts, unknown=_unknown(state, limit),
        ))  # fmt: skip
    inform(state, out, session.peer, LimitsReply(request_id=command.request_id, limits=views))


def _unknown(state: BrokerState, limit: Limit) -> list[str]:
    """Return the names in a limit that nothing has now: it counts once something does, or has a typing error."""
    found = []
    if limit.queue and limit.queue not in queue_names(state):
        found.append(f"queue={limit.queue}")
    known = aliases.known_names(state) if limit.model else frozenset()
    if limit.model and models.ANY not in known and models.normal(limit.model) not in known:
        found.append(f"model={limit.model}")
    if limit.worker and limit.worker not in state.workers:
        found.append(f"worker={limit.worker}")
    return found


def check(limit: Limit) -> None:
    """Refuse a limit that says nothing, or too much.

    Raises:
        BadField: names the field, its value and what is allowed.
    """
    kinds = (*COUNTED, *RATES, *ALERTS)
    if limit.of not in kinds:
        raise BadField("of", limit.of, ", ".join(kinds))
    if limit.value != UNLIMITED and not 0 <= limit.value <= _VALUE_MAX:
        raise BadField("value", limit.value, f"0 to {_VALUE_MAX:g}, or -1: none")
    for field in ("user", *_NAMED):
        value = getattr(limit, field)
        if value:
            fields.check_name(field, value)
    if limit.of != "running" and (limit.model or limit.worker or limit.resource):
        field = "model" if limit.model else "worker" if limit.worker else "resource"
        raise BadField(field, getattr(limit, field), "nothing but for `running`")
    if limit.resource and (limit.user or limit.queue or limit.task_type or limit.model or limit.worker):
        raise BadField("resource", limit.resource, "no other name beside it")
    if limit.of in RATES:
        fields.check_within("per_ms", limit.per_ms, 1, bounds.DURATION_MS)
        if limit.value != UNLIMITED and not limit.value * bounds.DURATION_MS >= limit.per_ms:
            wanted = f"a rate of at least one in {bounds.DURATION_MS} ms; a pause of the queue holds all"
            raise BadField("value", limit.value, wanted)
        if not 0 <= limit.burst <= _VALUE_MAX:
            raise BadField("burst", limit.burst, f"0 to {_VALUE_MAX:g}")
    elif limit.per_ms or limit.burst or limit.refuse:
        raise BadField("per_ms", limit.per_ms, "0, and no burst or refuse, but for `jobs` and `tokens`")
    if limit.of in ALERTS and limit.user:
        raise BadField("user", limit.user, "nothing for an alert")


# --- in words --------------------------------------------------------------------------------------------------------


def sentence_of(bucket: Bucket, now: Now, before: int = 0) -> tuple[str, dict[str, Field]]:
    """Return what a limit that holds a job back is, in words and in structure; so many others start before it."""
    limit = bucket.limit
    details: dict[str, Field] = {"limit": bucket.name, "value": limit.value, "subject": bucket.subject}
    if limit.of in RATES:
        wait_ms = bucket.room_in_ms(now.mono_ms, before)
        details["seconds"] = round(wait_ms / 1000, 1)
        rate = f"{limit.value:g} in {in_words(limit.per_ms)}"
        return f"the rate {bucket.name} ({rate}) has room for it in {in_words(int(wait_ms) + 999)}", details
    details["used"] = bucket.used
    whose = f" of {bucket.subject}" if bucket.subject else ""
    return f"as many jobs{whose} run as the limit {bucket.name} allows ({limit.value:g})", details


# --- time ------------------------------------------------------------------------------------------------------------


def keep(state: BrokerState, out: Out, now: Now) -> None:
    """Note in the journal how full the buckets of rates are that this turn has taken from."""
    for (name, subject), empty_at_ms in state.limits.changes(now.mono_ms, now.wall_ms).items():
        value = b"" if empty_at_ms is None else msgspec.msgpack.encode(empty_at_ms)
        put(state, out, MetaSet(f"{RATE}{name}\t{subject}", value))


def watch(state: BrokerState, now: Now) -> None:
    """Tell of queues that have grown too deep or waited too long, and when that is over."""
    for name, limit in state.limits.rules():
        if limit.of not in ALERTS or limit.value == UNLIMITED:
            state.alerts.discard(name)
            continue
        used = (
            state.limits.fullest(name, limit, now.mono_ms)[0]
            if limit.of == "depth"
            else float(waiting.oldest_ms(state, limit, now))
        )
        is_raised = name in state.alerts
        if not is_raised and used >= limit.value:
            state.alerts.add(name)
        elif is_raised and used <= _ALERT_OVER * limit.value:
            state.alerts.discard(name)
        else:
            continue
        kind = Kind.ALERT_CLEARED if is_raised else Kind.ALERT_RAISED
        tell(state, now, kind, queue=limit.queue, detail={"limit": name, "value": limit.value, "now": used})
    known = {name for name, _ in state.limits.rules()}
    state.alerts &= known


def empty_again(meta: dict[str, bytes], now: Now) -> list[str]:
    """Return the journal's names of rates that have emptied since they were noted: nothing need be kept of them."""
    return [
        name
        for name, value in meta.items()
        if name.startswith(RATE) and value and msgspec.msgpack.decode(value, type=float) <= now.wall_ms
    ]


def restored(settings: Settings, meta: dict[str, bytes], now: Now) -> Limits:
    """Return the limits of the file, those that commands had set, and how full the rates were."""
    limits = Limits(settings.limits)
    for name, value in meta.items():
        if name.startswith(LIMIT) and value:
            limits.set(msgspec.msgpack.decode(value, type=Set))
    for name, value in meta.items():
        if name.startswith(RATE) and value:
            rule, _, subject = name.removeprefix(RATE).partition("\t")
            empty_at_ms = msgspec.msgpack.decode(value, type=float)
            limits.restore(rule, subject, empty_at_ms, now.mono_ms, now.wall_ms)
    return limits
