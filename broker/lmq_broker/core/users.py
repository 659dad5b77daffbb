"""What users are given: weights in the fair share and ceilings of priority; by command, in the journal, until reset.

The settings hold what counts where no command said anything. How users stand with it is in `shares`.
"""

import msgspec

from lmq_broker.core import fields
from lmq_broker.core.chronicle import Out, full, keep_ledger, put, refuse, reply, tell
from lmq_broker.core.records import MetaSet
from lmq_broker.core.state import BrokerState, Session
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import BadField, LmqError
from lmq_proto.events import Kind
from lmq_proto.messages import Allowance, Done, ResetUser, SetUser

ALLOWANCE = "allowance/"
"""Prefix of the journal's names for what commands gave a user."""
_NOTHING = Allowance(user="")


def set_user(state: BrokerState, out: Out, session: Session, command: SetUser, now: Now) -> None:
    """Give a user a weight or a ceiling; what is not said stays as earlier commands left it."""
    old = state.allowances.get(command.user, _NOTHING)
    try:
        _check(command)
        if old is _NOTHING and len(state.allowances) >= state.settings.allowances:
            raise full(state, now, "allowances", len(state.allowances), state.settings.allowances)
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    given = Allowance(
        user=command.user, weight=old.weight if command.weight is None else command.weight,
        ceiling=old.ceiling if command.ceiling is None else command.ceiling, by=session.who.user,
        since_ms=now.wall_ms,
    )  # fmt: skip
    changed = (given.weight, given.ceiling) != (old.weight, old.ceiling)
    if changed:
        put(state, out, MetaSet(ALLOWANCE + command.user, msgspec.msgpack.encode(given)))
        state.allowances[command.user] = given
        apply(state, command.user)
        keep_ledger(state, out)
        tell(state, now, Kind.USER_SET, user=command.user, detail={
            "weight": given.weight, "ceiling": given.ceiling, "by": given.by,
        })  # fmt: skip
    reply(state, out, session.peer, Done(request_id=command.request_id, changed=changed))


def reset_user(state: BrokerState, out: Out, session: Session, command: ResetUser, now: Now) -> None:
    """Take back what commands gave a user."""
    try:
        fields.check_name("user", command.user)
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    changed = state.allowances.pop(command.user, None) is not None
    if changed:
        put(state, out, MetaSet(ALLOWANCE + command.user, b""))
        apply(state, command.user)
        keep_ledger(state, out)
        tell(state, now, Kind.USER_RESET, user=command.user, detail={"by": session.who.user})
    reply(state, out, session.peer, Done(request_id=command.request_id, changed=changed))


def apply(state: BrokerState, user: str) -> None:
    """Let what a user is given count from now on."""
    given = state.allowances.get(user, _NOTHING)
    ceiling = state.settings.ceilings.get(user) if given.ceiling is None else given.ceiling
    if ceiling is None:
        state.ceilings.pop(user, None)
    else:
        state.ceilings[user] = ceiling
    state.policy.weigh(user, weight_of(state, user))


def weight_of(state: BrokerState, user: str) -> float:
    """Return a user's weight in the fair share."""
    given = state.allowances.get(user, _NOTHING)
    return state.settings.weights.get(user, 1.0) if given.weight is None else given.weight


def allowed(state: BrokerState, user: str, priority: int) -> int:
    """Return the priority that a user's job is given when this one is asked for.

    A user of an app (`shop/alice`) without a ceiling of its own has the app's.
    """
    ceilings = state.ceilings
    if not ceilings:
        return priority
    ceiling = ceilings.get(user)
    if ceiling is None:
        ceiling = ceilings.get(user.partition("/")[0], priority)
    return min(priority, ceiling)


def allowances(state: BrokerState) -> list[Allowance]:
    """Return what users are given, by name, whoever said so."""
    said = {*state.allowances, *state.settings.weights, *state.settings.ceilings}
    found = []
    for user in sorted(said):
        given = state.allowances.get(user, _NOTHING)
        found.append(
            Allowance(user=user, weight=weight_of(state, user), ceiling=state.ceilings.get(user), by=given.by,
                      since_ms=given.since_ms)
        )  # fmt: skip
    return found


def _check(command: SetUser) -> None:
    """Refuse what cannot be given."""
    fields.check_name("user", command.user)
    if command.weight is None and command.ceiling is None:
        raise BadField("weight", "", "a weight, a ceiling or both")
    # Written so that what is no number is refused too.
    if command.weight is not None and not 1 / bounds.WEIGHT_MAX <= command.weight <= bounds.WEIGHT_MAX:
        raise BadField("weight", command.weight, f"{1 / bounds.WEIGHT_MAX:g} to {bounds.WEIGHT_MAX}")
    if command.ceiling is not None:
        fields.check_within("ceiling", command.ceiling, 0, bounds.PRIORITY_MAX)
