"""Routes for tests and demos under /simulator/. They are no part of LM Studio; no real server has them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lmq_simulator.config import ZERO_LATENCY
from lmq_simulator.faults import FAULTS
from lmq_simulator.records import Failure, Instance, Refused, Ticket
from lmq_simulator.server import Call, Server, body_of

# How far an injected fault lets a stream go, in pieces, unless told otherwise.
AFTER_PIECES = 3


async def state(call: Call) -> None:
    """GET /simulator/state: everything there is to see, without the requests that have ended."""
    call.reply.json(state_of(call.server))


async def requests(call: Call) -> None:
    """GET /simulator/requests: the latest requests, oldest first, with when each came, started and ended."""
    call.reply.json({"requests": requests_of(call.server)})


async def knobs(call: Call) -> None:
    """POST /simulator/knobs: turn some knobs; the answer is the whole configuration."""
    try:
        turn(call.server, body_of(call.request))
    except ValueError as error:
        raise Refused(Failure(str(error))) from error
    call.reply.json(asdict(call.server.config))


async def zero_latency(call: Call) -> None:
    """POST /simulator/zero-latency: from now on nothing takes time."""
    turn(call.server, dict(ZERO_LATENCY))
    call.reply.json(asdict(call.server.config))


async def crash(call: Call) -> None:
    """POST /simulator/crash {"instance_id"?}: let one instance die now, or all of them."""
    body = body_of(call.request) if call.request.body else {}
    call.reply.json({"crashed": crash_now(call.server, body.get("instance_id"))})


async def inject(call: Call) -> None:
    """POST /simulator/inject {"fault", "count"?, "after_pieces"?, "text"?, "status"?}: fail the next requests."""
    body = body_of(call.request)
    text, status = body.get("text"), body.get("status")
    if not isinstance(text, str | None) or not isinstance(status, int | None):
        raise Refused(Failure("'text' must be a string, 'status' an integer"))
    try:
        inject_fault(
            call.server,
            str(body.get("fault")),
            count=int(body.get("count", 1)),
            after_pieces=int(body.get("after_pieces", AFTER_PIECES)),
            text=text,
            status=status,
        )
    except (TypeError, ValueError) as error:
        raise Refused(Failure(str(error))) from error
    call.reply.json({"waiting": call.server.injections.waiting})


async def faults(call: Call) -> None:
    """GET /simulator/faults: the names that /simulator/inject knows."""
    call.reply.json(
        {"faults": {name: fault.failure.text if fault.failure else "" for name, fault in FAULTS.items()}}
    )


async def reset(call: Call) -> None:
    """POST /simulator/reset: the knobs, models and counters of the start."""
    call.server.reset()
    call.reply.json(state_of(call.server))


def turn(server: Server, changed: dict[str, Any]) -> None:
    """Turn some knobs.

    Raises:
        ValueError: a knob is unknown, fixed at start, or its value does not fit.
    """
    server.driver.engine.turn(server.config.turned(changed), server.driver.now_ms())
    server.driver.settle()


def crash_now(server: Server, instance_id: str | None) -> list[str]:
    """Let one instance die, or all; return the ids of those that did."""
    engine = server.driver.engine
    now_ms = server.driver.now_ms()
    dying = [one for one in engine.memory.instances.values() if instance_id in (None, one.id)]
    for instance in dying:
        engine.crash(instance, now_ms)
    server.driver.settle()
    return [instance.id for instance in dying]


def inject_fault(
    server: Server,
    name: str,
    *,
    count: int,
    after_pieces: int,
    text: str | None = None,
    status: int | None = None,
) -> None:
    """Let the next `count` inference requests fail in the named way.

    Raises:
        ValueError: there is no such fault.
    """
    if name not in FAULTS:
        raise ValueError(f"unknown fault: {name}; known are {', '.join(sorted(FAULTS))}")
    server.injections.add(name, count=count, after_pieces=after_pieces, text=text, status=status)


def state_of(server: Server) -> dict[str, Any]:
    """Return what GET /simulator/state answers."""
    engine = server.driver.engine
    return {
        "now_ms": server.driver.now_ms(),
        "instances": [_instance(instance) for instance in engine.memory.instances.values()],
        "memory_used_gb": engine.memory.used_gb(),
        "counters": asdict(engine.counters),
        "injections": server.injections.waiting,
        "connections": len(server.connections),
        "config": asdict(server.config),
    }


def requests_of(server: Server) -> list[dict[str, Any]]:
    """Return what GET /simulator/requests lists."""
    return [_ticket(ticket) for ticket in server.driver.engine.recent]


def _instance(instance: Instance) -> dict[str, Any]:
    return {
        "id": instance.id,
        "key": instance.model.key,
        "type": instance.model.type,
        "status": instance.status,
        "load_progress": instance.load_progress,
        "context_length": instance.context_length,
        "parallel": instance.parallel,
        "kv_used": instance.kv_used,
        "ttl_s": instance.ttl_s,
        "jit": instance.jit,
        "last_used_ms": instance.last_used_ms,
        "active": [ticket.number for ticket in instance.active],
        "waiting": [ticket.number for ticket in instance.waiting],
    }


def _ticket(ticket: Ticket) -> dict[str, Any]:
    return {
        "number": ticket.number,
        "kind": ticket.kind,
        "instance_id": ticket.instance.id,
        "phase": ticket.phase,
        "prompt_tokens": ticket.prompt_tokens,
        "prefilled": ticket.prefilled,
        "generated_tokens": ticket.emitted,
        "strings": ticket.strings,
        "client_left": ticket.client_left,
        "arrived_ms": ticket.arrived_ms,
        "started_ms": ticket.started_ms,
        "first_piece_ms": ticket.first_piece_ms,
        "ended_ms": ticket.ended_ms,
        "failure": None if ticket.failure is None else ticket.failure.text,
    }
