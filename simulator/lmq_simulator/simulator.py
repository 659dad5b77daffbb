"""The simulator as Python code sees it: start it inside an event loop, or in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from lmq_simulator import control_api
from lmq_simulator.config import SimulatorConfig
from lmq_simulator.routes import PREFIXES, ROUTES
from lmq_simulator.server import Server
from lmq_simulator.wire import Connection

_T = TypeVar("_T")


class Simulator:
    """A simulated LM Studio server.

    ```
    async with Simulator(SimulatorConfig.instant()).start() as simulator:
        ... simulator.url ...
    ```
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()
        self._server: Server | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where it listens, without a path: http://127.0.0.1:PORT."""
        return self._url

    @asynccontextmanager
    async def start(self) -> AsyncIterator[Simulator]:
        """Listen until the block is left; then drop every connection.

        Raises:
            OSError: the address is taken or not ours.
        """
        server = Server(self.config, ROUTES, PREFIXES)
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(lambda: Connection(server), self.config.host, self.config.port)
        host, port = listener.sockets[0].getsockname()[:2]
        self._server = server
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        try:
            yield self
        finally:
            self._server = None
            listener.close()
            await server.stop()
            await listener.wait_closed()

    # The control routes, as methods. To be called in the simulator's own event loop.

    def state(self) -> dict[str, Any]:
        """Return what GET /simulator/state answers."""
        return control_api.state_of(self._running())

    def requests(self) -> list[dict[str, Any]]:
        """Return what GET /simulator/requests lists."""
        return control_api.requests_of(self._running())

    def turn(self, **knobs: Any) -> None:
        """Turn some knobs while it runs.

        Raises:
            ValueError: a knob is unknown, fixed at start, or its value does not fit.
        """
        control_api.turn(self._running(), knobs)

    def crash(self, instance_id: str | None = None) -> list[str]:
        """Let one instance die, or all; return the ids of those that did."""
        return control_api.crash_now(self._running(), instance_id)

    def inject(
        self,
        fault: str,
        *,
        count: int = 1,
        after_pieces: int = control_api.AFTER_PIECES,
        text: str | None = None,
        status: int | None = None,
    ) -> None:
        """Let the next `count` inference requests fail in the named way; see `faults.FAULTS`.

        Raises:
            ValueError: there is no such fault.
        """
        control_api.inject_fault(
            self._running(), fault, count=count, after_pieces=after_pieces, text=text, status=status
        )

    def reset(self) -> None:
        """Go back to the knobs, models and counters of the start."""
        self._running().reset()

    def _running(self) -> Server:
        if self._server is None:
            raise RuntimeError("the simulator is not running; use it inside `async with simulator.start()`")
        return self._server


class ThreadedSimulator:
    """A simulator that runs in a thread; its methods may be called from any other."""

    def __init__(self, simulator: Simulator, loop: asyncio.AbstractEventLoop) -> None:
        self._simulator = simulator
        self._loop = loop

    @property
    def url(self) -> str:
        """Where it listens, without a path: http://127.0.0.1:PORT."""
        return self._simulator.url

    def state(self) -> dict[str, Any]:
        """See `Simulator.state`."""
        return self._call(self._simulator.state)

    def requests(self) -> list[dict[str, Any]]:
        """See `Simulator.requests`."""
        return self._call(self._simulator.requests)

    def turn(self, **knobs: Any) -> None:
        """See `Simulator.turn`."""
        self._call(lambda: self._simulator.turn(**knobs))

    def crash(self, instance_id: str | None = None) -> list[str]:
        """See `Simulator.crash`."""
        return self._call(lambda: self._simulator.crash(instance_id))

    def inject(
        self,
        fault: str,
        *,
        count: int = 1,
        after_pieces: int = control_api.AFTER_PIECES,
        text: str | None = None,
        status: int | None = None,
    ) -> None:
        """See `Simulator.inject`."""
        self._call(
            lambda: self._simulator.inject(
                fault, count=count, after_pieces=after_pieces, text=text, status=status
            )
        )

    def reset(self) -> None:
        """See `Simulator.reset`."""
        self._call(self._simulator.reset)

    def _call(self, function: Callable[[], _T]) -> _T:
        async def run() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()


@contextmanager
def run_in_thread(config: SimulatorConfig | None = None) -> Iterator[ThreadedSimulator]:
    """Run a simulator in a thread of its own for as long as the block lasts.

    Raises:
        OSError: the address is taken or not ours.
    """
    simulator = Simulator(config)
    ready: list[ThreadedSimulator] = []
    failed: list[OSError] = []
    started = threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        async with simulator.start():
            ready.append(ThreadedSimulator(simulator, asyncio.get_running_loop()))
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        except OSError as error:
            failed.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="lmq-simulator", daemon=True)
    thread.start()
    started.wait()
    if failed:
        thread.join()
        raise failed[0]
    handle = ready[0]
    try:
        yield handle
    finally:
        handle._loop.call_soon_threadsafe(stop.set)
        thread.join()
