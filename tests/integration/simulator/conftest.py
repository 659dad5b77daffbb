"""A simulator in a thread, and clients for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from lmq_simulator import SimulatorConfig, ThreadedSimulator, run_in_thread

Start = Callable[..., tuple[ThreadedSimulator, httpx.Client]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a simulator in which nothing takes time, but for the knobs given; and a client for it."""
    with ExitStack() as stack:

        def begin(**knobs: Any) -> tuple[ThreadedSimulator, httpx.Client]:
            simulator = stack.enter_context(run_in_thread(SimulatorConfig.instant(**knobs)))
            client = httpx.Client(base_url=simulator.url, timeout=20)
            return simulator, stack.enter_context(client)

        yield begin
