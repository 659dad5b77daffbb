"""The engine on real time: a timer that advances it when something is due, and wakes who waits for a ticket."""

from __future__ import annotations

import asyncio

from lmq_simulator.config import SimulatorConfig
from lmq_simulator.engine import Engine
from lmq_simulator.records import Ticket


class Driver:
    """Owns the engine inside one event loop. After each call that may change it, call `settle`."""

    def __init__(self, config: SimulatorConfig) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_ms = 0.0
        self._waiters: dict[Ticket, asyncio.Future[None]] = {}
        self.engine = Engine(config, self.now_ms())

    def now_ms(self) -> float:
        return self._loop.time() * 1000.0

    def settle(self) -> None:
        """Advance the engine to now, wake the waiters, and set the timer for what is due next."""
        now_ms = self.now_ms()
        self.engine.advance(now_ms)
        touched, self.engine.touched = self.engine.touched, []
        for ticket in touched:
            waiter = self._waiters.get(ticket)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
        due_ms = self.engine.next_due_ms()
        if self._timer is not None:
            if due_ms == self._timer_due_ms:
                return
            self._timer.cancel()
            self._timer = None
        if due_ms is not None:
            self._timer_due_ms = due_ms
            self._timer = self._loop.call_at(due_ms / 1000.0, self._ring)

    async def changed(self, ticket: Ticket, seen: int) -> int:
        """Wait until the ticket's revision differs from the one seen; return the new one."""
        while ticket.revision == seen:
            waiter = self._waiters[ticket] = self._loop.create_future()
            try:
                await waiter
            finally:
                del self._waiters[ticket]
        return ticket.revision

    def abandon(self, ticket: Ticket) -> None:
        """The client of this ticket has left."""
        if not ticket.is_final:
            self.engine.abandon(ticket, self.now_ms())
            self.settle()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self.settle()
