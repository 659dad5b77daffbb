"""A fake broker per test, and each test body once for either client."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import lmq
from integration.client.faces import LoopThread, blocking_client
from integration.client.fake_broker import FakeBroker

MakeClient = Callable[..., lmq.Client]


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    broker = FakeBroker()
    yield broker
    broker.kill()


@pytest.fixture
def manual() -> Iterator[FakeBroker]:
    """A broker whose jobs stay until the test ends them."""
    broker = FakeBroker(runs=False)
    yield broker
    broker.kill()


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Makes clients of one face; they are closed after the test."""
    made: list[lmq.Client] = []
    thread = LoopThread() if request.param == "async" else None

    def make(url: str, **options: object) -> lmq.Client:
        if thread is None:
            client = lmq.Client(url, user="anna", **options)  # type: ignore[arg-type]  # the tests name the options
        else:
            client = blocking_client(lmq.AsyncClient(url, user="anna", **options), thread)  # type: ignore[arg-type]  # as above
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()
    if thread is not None:
        thread.close()
