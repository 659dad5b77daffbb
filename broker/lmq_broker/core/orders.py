"""Orders: what people want loaded, unloaded or kept where. Given by command, in the journal, carried out by the policy.

A pin stands until it is taken back or its time is over. A load or unload is done once: it ends when the model is there,
or gone, or could not be brought there. The latest order of a model at a worker is the one that counts.
"""

import msgspec

from lmq_broker.core import fields, models
from lmq_broker.core.chronicle import Out, full, put, refuse, reply, tell
from lmq_broker.core.records import MetaSet
from lmq_broker.core.state import BrokerState, Instance, OrderKey, Session, Worker
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import BadField, ErrorInfo, LmqError, MayNotLoad, NoRoom, NotFound
from lmq_proto.events import Kind
from lmq_proto.messages import Done, Order, OrderModel

ORDER = "order/"
"""Prefix of the journal's names for orders: `order/WORKER` TAB `MODEL`."""
KINDS = ("load", "unload", "pin", "unpin")


def order(state: BrokerState, out: Out, session: Session, command: OrderModel, now: Now) -> None:
    """Take an order, or take orders back; the same again changes nothing but the time of a pin."""
    try:
        _check(command)
        if command.kind == "unpin":
            changed = _take_back(state, out, command, now)
        elif command.kind == "unload":
            changed = _order_unload(state, out, session, command, now)
        else:
            changed = _order_load(state, out, session, command, now)
    except LmqError as error:
        refuse(state, out, session.peer, command.request_id, error)
        return
    reply(state, out, session.peer, Done(request_id=command.request_id, changed=changed))


def _check(command: OrderModel) -> None:
    """Refuse an order that is out of bounds."""
    if command.kind not in KINDS:
        raise BadField("kind", command.kind, ", ".join(KINDS))
    fields.check_name("model", command.model)
    fields.check_within("for_ms", command.for_ms, 0, bounds.DURATION_MS)
    if not command.worker and command.kind in ("load", "pin"):
        raise BadField("worker", "", "the worker that is to have it")


def _order_load(state: BrokerState, out: Out, session: Session, command: OrderModel, now: Now) -> bool:
    """Have a model loaded at a worker, once or for as long as it is pinned."""
    worker = _worker(state, command.worker)
    if not worker.capacity.may_load:
        raise MayNotLoad(worker.name)
    model = _model_at(state, worker, command.model)
    is_there = _is_loaded(worker, model)
    known = state.orders.get((worker.name, model))
    if command.kind == "load" and (is_there or (known is not None and known.kind != "unload")):
        return False
    if not is_there:
        _check_room(state, worker, model)
    # Somebody wants it now: what failed before is tried again.
    worker.refused_loads.pop(model, None)
    until_ms = now.wall_ms + command.for_ms if command.for_ms and command.kind == "pin" else 0
    _give(state, out, session, command.kind, worker.name, model, until_ms, now)
    return True


def _order_unload(state: BrokerState, out: Out, session: Session, command: OrderModel, now: Now) -> bool:
    """Have a model unloaded at one worker, or wherever it is."""
    if command.worker:
        places = [_worker(state, command.worker)]
        if not places[0].capacity.may_load:
            raise MayNotLoad(command.worker)
    else:
        places = [worker for worker in state.workers.values() if worker.capacity.may_load]
    changed = False
    refused: LmqError | None = None
    is_known = False
    for worker in places:
        try:
            model = _model_at(state, worker, command.model)
            if models.is_numbered(command.model) and command.model in worker.instances:
                model = command.model
        except NotFound as error:
            refused = refused or error
            continue
        is_known = True
        if _is_loaded(worker, model):
            known = state.orders.get((worker.name, model))
            if known is None or known.kind != "unload":
                _give(state, out, session, "unload", worker.name, model, 0, now)
                changed = True
        else:
            changed = _end_related(state, out, worker.name, model, now, "replaced") or changed
    if not is_known:
        raise refused or NotFound("model", command.model)
    return changed


def _take_back(state: BrokerState, out: Out, command: OrderModel, now: Now) -> bool:
    """End the orders of a model, at one worker or at all."""
    if command.worker and not any(key[0] == command.worker for key in state.orders):
        _worker(state, command.worker)
    wanted = models.expanded((command.model,), state.aliases)
    places = sorted({key[0] for key in state.orders if command.worker in ("", key[0])})
    found = [
        _end_related(state, out, worker, model, now, "taken_back") for worker in places for model in wanted
    ]
    return any(found)


def _worker(state: BrokerState, name: str) -> Worker:
    worker = state.workers.get(name)
    if worker is None:
        raise NotFound("worker", name, models.nearest(name, state.workers))
    return worker


def _model_at(state: BrokerState, worker: Worker, name: str) -> str:
    """Return what a load would name of what a worker has under a name: its key, or a variant.

    Raises:
        NotFound: it has nothing of that name, loaded or on disk.
    """
    catalog = worker.capacity.catalog
    for wanted in models.expanded((name,), state.aliases):
        plain = models.normal(wanted)
        for entry in catalog:
            if plain in models.catalog_names(entry):
                return models.on_disk(entry, plain)
        for instance in worker.instances.values():
            if plain in instance.names:
                return instance.model
    known = [entry.model for entry in catalog] + [each.model for each in worker.instances.values()]
    raise NotFound("model", name, models.nearest(name, known))


def meant(worker: Worker, model: str) -> list[Instance]:
    """Return the instances at a worker that an order is about."""
    return [each for each in worker.instances.values() if models.is_meant(model, each.id, each.names)]


def _is_loaded(worker: Worker, model: str) -> bool:
    return bool(meant(worker, model))


def pinned(state: BrokerState, worker: Worker) -> set[str]:
    """Return the instances of a worker that pins keep there."""
    return {
        each.id
        for order in state.orders.values()
        if order.kind == "pin" and order.worker == worker.name
        for each in meant(worker, order.model)
    }


def in_the_way(state: BrokerState, worker: Worker) -> Order | None:
    """Return a pin at a worker where pins take all the room there is; None: they do not."""
    pins = [each for each in state.orders.values() if each.kind == "pin" and each.worker == worker.name]
    limit = worker.capacity.models_max
    return pins[0] if pins and limit is not None and len(pins) >= limit else None


def unloading(state: BrokerState, worker: Worker, instances: list[Instance]) -> Order | None:
    """Return an order by which all of these are to go; None: one of them stays."""
    found = None
    for each in instances:
        found = next(
            (
                order
                for order in state.orders.values()
                if order.kind == "unload"
                and order.worker == worker.name
                and each in meant(worker, order.model)
            ),
            None,
        )
        if found is None:
            return None
    return found


def _check_room(state: BrokerState, worker: Worker, model: str) -> None:
    """Raise NoRoom if what has to stay at a worker fills it: other pins, and what lmq did not load."""
    limit = worker.capacity.models_max
    if limit is None:
        return
    staying = {
        order.model: None
        for order in state.orders.values()
        if order.kind == "pin" and order.worker == worker.name and not _related(order.model, model)
    }
    kept = pinned(state, worker)
    for each in worker.instances.values():
        if not each.ours and each.id not in kept and unloading(state, worker, [each]) is None:
            staying[each.id] = None
    if len(staying) >= limit:
        raise NoRoom(model, worker.name, limit, list(staying))


# --- given and ended -------------------------------------------------------------------------------------------------


def _give(
    state: BrokerState,
    out: Out,
    session: Session,
    kind: str,
    worker: str,
    model: str,
    until_ms: int,
    now: Now,
) -> None:
    """Put an order in the place of all that were about the same."""
    if (worker, model) not in state.orders and len(state.orders) >= state.settings.orders:
        raise full(state, now, "orders", len(state.orders), state.settings.orders)
    _end_related(state, out, worker, model, now, "replaced")
    by = session.who.user
    given = Order(kind=kind, worker=worker, model=model, by=by, since_ms=now.wall_ms, until_ms=until_ms)
    state.orders[worker, model] = given
    state.fleet_version += 1
    put(state, out, MetaSet(_name((worker, model)), msgspec.msgpack.encode(given)))
    tell(state, now, Kind.MODEL_ORDERED, worker=worker, model=model,
         detail={"order": kind, "by": by, "until_ms": until_ms})  # fmt: skip


def _related(one: str, other: str) -> bool:
    """Tell whether two orders are about the same model: a key and its variant are, two variants are not."""
    if models.is_numbered(one) or models.is_numbered(other):
        return one == other
    return models.normal(one) in models.names_of(other) or models.normal(other) in models.names_of(one)


def _end_related(state: BrokerState, out: Out, worker: str, model: str, now: Now, why: str) -> bool:
    """End the orders at a worker that are about a model; tell whether there were any."""
    found = [key for key in state.orders if key[0] == worker and _related(key[1], model)]
    for key in found:
        _end(state, out, key, now, why)
    return bool(found)


def _end(state: BrokerState, out: Out, key: OrderKey, now: Now, why: str, error: str = "") -> None:
    ended = state.orders.pop(key)
    state.fleet_version += 1
    put(state, out, MetaSet(_name(key), b""))
    tell(state, now, Kind.ORDER_ENDED, worker=ended.worker, model=ended.model,
         detail={"order": ended.kind, "by": ended.by, "why": why, "error": error})  # fmt: skip


def _name(key: OrderKey) -> str:
    return f"{ORDER}{key[0]}\t{key[1]}"


def end_over(state: BrokerState, out: Out, now: Now) -> None:
    """End the pins whose time is over."""
    for key in [key for key, each in state.orders.items() if 0 < each.until_ms <= now.wall_ms]:
        _end(state, out, key, now, "over")


def settle(state: BrokerState, out: Out, worker: Worker, now: Now) -> None:
    """End the loads and unloads of a worker that are done."""
    for key in [key for key, each in state.orders.items() if each.worker == worker.name]:
        kind = state.orders[key].kind
        if kind != "pin" and _is_loaded(worker, key[1]) == (kind == "load"):
            _end(state, out, key, now, "done")


def failed(state: BrokerState, out: Out, worker: Worker, model: str, error: ErrorInfo, now: Now) -> None:
    """End the load or unload that has just failed for good; a pin stands, and is tried again."""
    load = state.orders.get((worker.name, model))
    if load is not None and load.kind == "load" and not worker.memory_full:
        _end(state, out, (worker.name, model), now, "failed", error.message)
    instance = worker.instances.get(model)
    if instance is None or error.code == "instance_busy":
        return
    for key in [key for key, each in state.orders.items() if each.worker == worker.name]:
        if state.orders[key].kind == "unload" and instance in meant(worker, key[1]):
            _end(state, out, key, now, "failed", error.message)


# --- shown -----------------------------------------------------------------------------------------------------------


def shown(state: BrokerState, given: Order, now: Now) -> Order:
    """Return an order as people see it: with why it is not carried out yet."""
    return msgspec.structs.replace(given, note=_why_not(state, given, now))


def _why_not(state: BrokerState, given: Order, now: Now) -> str:
    worker = state.workers.get(given.worker)
    if worker is None or worker.peer is None:
        return "the worker is not connected"
    there = meant(worker, given.model)
    if there and given.kind != "unload":
        return ""
    if not worker.capacity.may_load:
        return "the worker loads and unloads no models any more"
    if worker.capacity.breaker is not None:
        return f"its endpoint fails: {worker.capacity.breaker.reason}"
    if worker.loading:
        return f"{'loads' if worker.loading_since_ms else 'unloads'} {worker.loading}"
    if given.kind == "pin" and worker.name in state.worker_holds:
        return "the worker is held"
    if given.kind == "unload":
        busy = sum(each.leased for each in there)
        return f"waits for {busy} job{'s' if busy != 1 else ''} to end"
    again_ms = worker.refused_loads.get(given.model, 0) - now.mono_ms
    if again_ms > 0:
        return "it could not be loaded" + (
            f"; next try in {again_ms // 1000} s" if again_ms < bounds.DAY_MS else ""
        )
    busy = len(worker.leases)
    return f"waits for room; {busy} job{'s run' if busy != 1 else ' runs'} there"
