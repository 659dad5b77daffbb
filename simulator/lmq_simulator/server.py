"""The server: which route a request goes to, who may call it, and how a request is followed to its end."""

from __future__ import annotations

import asyncio
import random
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from lmq_simulator import failures, shapes
from lmq_simulator.config import SimulatorConfig
from lmq_simulator.driver import Driver
from lmq_simulator.faults import Injection, Injections
from lmq_simulator.planning import Prompt
from lmq_simulator.records import Failure, Kind, Piece, Plan, Refused, Ticket
from lmq_simulator.wire import Connection, Reply, Request

# Stored conversations, for requests that go on from an earlier answer.
MAX_STORED = 10_000

_TOKEN = re.compile(r"sk-lm-[A-Za-z0-9]{8}:[A-Za-z0-9]{20}")
_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way to a handler: who answers it, what was asked, where the answer goes."""

    server: Server
    request: Request
    reply: Reply


Handler = Callable[[Call], Awaitable[None]]


class Frames(Protocol):
    """How one kind of endpoint writes its stream."""

    def pieces(self, pieces: Sequence[Piece]) -> bytes: ...
    def ending(self, ticket: Ticket) -> bytes: ...


class Server:
    """One simulated server inside one event loop."""

    def __init__(
        self,
        config: SimulatorConfig,
        routes: Mapping[tuple[str, str], Handler],
        prefixes: Sequence[tuple[str, str, Handler]],
    ) -> None:
        self._routes = routes
        self._prefixes = prefixes
        self._first_config = config
        self.driver = Driver(config)
        self.chance = random.Random(config.seed)
        self.connections: set[Connection] = set()
        self.injections = Injections()
        self.stored: OrderedDict[str, Messages] = OrderedDict()

    @property
    def config(self) -> SimulatorConfig:
        return self.driver.engine.config

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        handler = self._handler(request)
        if handler is None:
            reply.json(shapes.no_such_route(request.method, request.path))
            return
        try:
            self._check_token(request)
            await handler(Call(self, request, reply))
        except Refused as refused:
            self.driver.engine.counters.refused += 1
            self.refuse(request, reply, refused.failure)

    def refuse(self, request: Request, reply: Reply, failure: Failure) -> None:
        """Send a failure as a whole answer, in the form of the API that was called."""
        if failure.at_once:
            reply.reset()
        elif request.path.startswith("/api/v1/"):
            status = 404 if failure.code == "model_not_found" else failure.status
            reply.json({"error": shapes.native_error(failure)}, status)
        else:
            reply.json(shapes.error_body(failure), failure.status)

    def client_left(self) -> None:
        self.driver.engine.counters.disconnects += 1

    def new_id(self, prefix: str) -> str:
        """Return an id like those of the server, never twice the same in practice."""
        return prefix + "".join(self.chance.choices(_ID_LETTERS, k=21))

    def store(self, response_id: str, messages: Messages) -> None:
        """Keep a conversation, so that a later request can go on from it."""
        self.stored[response_id] = messages
        while len(self.stored) > MAX_STORED:
            self.stored.popitem(last=False)

    def reset(self) -> None:
        """Go back to the configuration and the models of the start; whatever runs fails."""
        now_ms = self.driver.now_ms()
        engine = self.driver.engine
        engine.turn(self._first_config, now_ms)
        self.injections.clear()
        self.stored.clear()
        engine.restart(now_ms)
        self.driver.settle()

    async def stop(self) -> None:
        """Drop every connection and wait until the requests on them are given up."""
        self.driver.stop()
        tasks = [task for connection in list(self.connections) if (task := connection.drop()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self.driver.stop()

    # Inference.

    def submit(
        self,
        model: str | None,
        kind: Kind,
        *,
        prompt: Prompt | None = None,
        planned: Callable[[Ticket], Plan] | None = None,
        strings: int = 0,
        ttl_s: float | None = None,
        context_length: int | None = None,
        wants_pieces: bool = False,
    ) -> Ticket:
        """Hand an inference request to the engine, with the fault it was meant to meet, if any.

        Raises:
            Refused: the engine does not take it, or an injected fault answers instead.
        """
        injection = self.injections.take()
        if injection is not None:
            self.driver.engine.counters.injected += 1
            if injection.fault.where == "reply" and injection.fault.failure is not None:
                raise Refused(injection.fault.failure)
        ticket = self.driver.engine.submit(
            model,
            kind=kind,
            now_ms=self.driver.now_ms(),
            prompt_tokens=0 if prompt is None else prompt.tokens,
            prompt="" if prompt is None else prompt.whole,
            strings=strings,
            ttl_s=ttl_s,
            context_length=context_length,
            prepare=lambda ticket: _prepare(ticket, injection, planned, wants_pieces),
        )
        self.driver.settle()
        return ticket

    @contextmanager
    def following(self, ticket: Ticket) -> Iterator[None]:
        """Give the ticket up when this is left before its end: the client has gone."""
        try:
            yield
        finally:
            self.driver.abandon(ticket)

    async def ended(self, ticket: Ticket) -> None:
        """Wait until a ticket is final.

        Raises:
            Refused: it failed.
        """
        with self.following(ticket):
            seen = ticket.revision
            while not ticket.is_final:
                seen = await self.driver.changed(ticket, seen)
        if ticket.failure is not None:
            raise Refused(ticket.failure)

    async def stream(self, call: Call, ticket: Ticket, frames: Frames) -> None:
        """Stream a ticket's pieces to its client as they come, and end the stream the way the ticket ends.

        The head is sent when the request gets its slot: what fails before that fails with a plain status.
        """
        reply = call.reply
        taken = 0
        with self.following(ticket):
            while True:
                seen = ticket.revision
                if ticket.started_ms is not None and not reply.started:
                    reply.start_stream()
                if ticket.emitted > taken:
                    reply.write(frames.pieces(ticket.plan.pieces[taken : ticket.emitted]))
                    taken = ticket.emitted
                    await reply.drain()
                if ticket.is_final and ticket.revision == seen:
                    break
                await self.driver.changed(ticket, seen)
        failure = ticket.failure
        if failure is None:
            reply.write(frames.ending(ticket))
            reply.end()
        elif not reply.started:
            self.refuse(call.request, reply, failure)
        else:
            break_off(reply, failure)

    # Routing.

    def _handler(self, request: Request) -> Handler | None:
        handler = self._routes.get((request.method, request.path))
        if handler is not None:
            return handler
        for method, prefix, prefixed in self._prefixes:
            if (
                request.method == method
                and request.path.startswith(prefix)
                and len(request.path) > len(prefix)
            ):
                return prefixed
        return None

    def _check_token(self, request: Request) -> None:
        wanted = self.config.api_token
        if not wanted or request.path.startswith(("/simulator/", "/lmstudio-greeting")):
            return
        token = request.token()
        if not token:
            raise Refused(failures.token_missing())
        if token == wanted:
            return
        raise Refused(failures.token_wrong() if _TOKEN.fullmatch(token) else failures.token_malformed(token))


def body_of(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request.

    Raises:
        Refused: it holds none.
    """
    try:
        body = msgspec.json.decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(Failure(f"Invalid JSON in the request body: {error}")) from error
    if not isinstance(body, dict):
        raise Refused(Failure("The request body must be a JSON object"))
    return body


def break_off(reply: Reply, failure: Failure) -> None:
    """End a stream that has begun in the way its failure asks for."""
    match failure.ending:
        case "event":
            reply.write(shapes.error_event(failure))
            reply.end()
        case "eof":
            reply.end()
        case "abrupt":
            reply.cut()


def _prepare(
    ticket: Ticket, injection: Injection | None, planned: Callable[[Ticket], Plan] | None, wants_pieces: bool
) -> None:
    ticket.wants_pieces = wants_pieces
    if planned is not None:
        ticket.plan = planned(ticket)
    if injection is None:
        return
    if injection.fault.empty:
        ticket.plan = Plan(())
    else:
        ticket.fault = injection.fault.failure
        ticket.fault_after = min(injection.after_pieces, len(ticket.plan.pieces))
