"""How users stand in each band: what they want of the engines, and what they received of them in the last minute."""

from collections.abc import Iterable

import msgspec

from lmq_broker.core import users, views
from lmq_broker.core.chronicle import Out, inform
from lmq_broker.core.policies.base import FlowKey
from lmq_broker.core.policies.lanes import LLM_POOL, BandShare, band_of
from lmq_broker.core.settings import POOLED
from lmq_broker.core.state import BrokerState, Session
from lmq_broker.core.stimuli import Now
from lmq_proto.messages import BandView, ListUsers, Users, UserView

WINDOW_MS = 60_000
KEPT = 50_000
"""(second, user) entries of the window; where it would be more, the window is shorter."""
ROWS = 1000
"""Users with a row of their own in one reply."""


def sample(state: BrokerState, now: Now) -> None:
    """Take down what users received in the last second; forget what is older than the window."""
    window = state.charged_lately
    charged = state.policy.charged()
    if charged:
        window.append((now.mono_ms, charged))
    while window and window[0][0] <= now.mono_ms - WINDOW_MS:
        window.popleft()
    entries = sum(len(each) for _, each in window)
    while entries > KEPT and len(window) > 1:
        entries -= len(window.popleft()[1])


def list_users(state: BrokerState, out: Out, session: Session, command: ListUsers) -> None:
    """Answer with users and bands; those whom the asker may not see are summed up."""
    stand = state.policy.bands()
    # A policy may take each priority for a band of its own; people see those that are configured.
    names = {each.band: state.settings.bands[band_of(each.lowest, state.settings)].name for each in stand}
    rows = _rows(state, names)
    named = [row for row in rows if views.may_see(session, row.user)]
    named.sort(key=lambda row: (not row.queued and not row.running, -row.received_ratio, row.user))
    named = named[:ROWS]
    shown = {id(row) for row in named}
    named += _summed(msgspec.structs.replace(row, user="") for row in rows if id(row) not in shown)
    place = {band.name: number for number, band in enumerate(state.settings.bands)}
    named.sort(key=lambda row: (row.pool != LLM_POOL, row.pool, place[row.band], not row.user, row.user))
    inform(state, out, session.peer, Users(
        request_id=command.request_id, policy=state.settings.policy, has_shares=state.policy.has_shares,
        users=named, bands=_bands(state, stand),
        allowances=[each for each in users.allowances(state) if views.may_see(session, each.user)],
        each=sorted(app for app, how in state.settings.apps.items() if how != POOLED),
    ))  # fmt: skip


def _rows(state: BrokerState, names: dict[int, str]) -> list[UserView]:
    """Return all who wait, run, or received something lately; one row for each of their bands."""
    received: dict[FlowKey, float] = {}
    for _, charged in state.charged_lately:
        for key, cost in charged.items():
            received[key] = received.get(key, 0.0) + cost
    total: dict[tuple[str, str], float] = {}
    for (pool, index, _), cost in received.items():
        # A refund of what was charged before the window may outweigh what was charged in it.
        total[pool, names[index]] = total.get((pool, names[index]), 0.0) + max(0.0, cost)
    active = state.policy.shares(idle=False)
    weights: dict[tuple[str, int], float] = {}
    for share in active:
        weights[share.pool, share.band] = weights.get((share.pool, share.band), 0.0) + share.weight
    found = []
    for share in active:
        pool, band = share.pool, names[share.band]
        cost = received.pop((pool, share.band, share.user), 0.0)
        wanted = share.weight / weights[pool, share.band] if state.policy.has_shares else 0.0
        found.append(UserView(
            pool=pool, band=band, user=share.user, weight=share.weight, running=share.running, queued=share.queued,
            wanted_ratio=wanted, received_ratio=_part(cost, total.get((pool, band), 0.0)),
            service_ms=int(share.service), key_ms=int(share.key),
        ))  # fmt: skip
    for (pool, index, user), cost in received.items():
        if cost > 0:
            band = names[index]
            found.append(UserView(
                pool=pool, band=band, user=user, weight=users.weight_of(state, user),
                received_ratio=_part(cost, total[pool, band]),
            ))  # fmt: skip
    return found if state.policy.has_shares else _summed(found)


def _part(cost: float, total: float) -> float:
    return max(0.0, cost) / total if total > 0 else 0.0


def _summed(rows: Iterable[UserView]) -> list[UserView]:
    """Return one row for each name in each band; of those without a name, with how many they are."""
    found: dict[tuple[str, str, str], UserView] = {}
    for row in rows:
        key = row.pool, row.band, row.user
        known = found.get(key)
        if known is None:
            found[key] = row
        else:
            found[key] = UserView(
                pool=row.pool, band=row.band, user=row.user, users=1 if row.user else known.users + row.users,
                weight=row.weight if row.user else known.weight + row.weight,
                running=known.running + row.running, queued=known.queued + row.queued,
                wanted_ratio=known.wanted_ratio + row.wanted_ratio,
                received_ratio=known.received_ratio + row.received_ratio,
                service_ms=known.service_ms + row.service_ms, key_ms=min(known.key_ms, row.key_ms),
            )  # fmt: skip
    return list(found.values())


def _bands(state: BrokerState, stand: list[BandShare]) -> list[BandView]:
    """Return the configured bands of all pools."""
    found: dict[tuple[str, int], BandView] = {}
    for share in stand:
        index = band_of(share.lowest, state.settings)
        known = found.get((share.pool, index))
        band = state.settings.bands[index]
        found[share.pool, index] = BandView(
            pool=share.pool, name=band.name, lowest=band.lowest, share_ratio=share.least,
            queued=share.queued + (known.queued if known else 0),
            running=share.running + (known.running if known else 0),
            owed_ms=int(share.owed) + (known.owed_ms if known else 0),
        )  # fmt: skip
    return [found[key] for key in sorted(found, key=lambda key: (key[0] != LLM_POOL, key))]
