"""One broker with a worker for the tests of a file, and somebody who behaves well all the while."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

import pytest

import lmq
from crash.fleet import WITHIN_S, Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator


class Steady:
    """A client in a thread that submits a job and reads its result, again and again."""

    def __init__(self, url: str) -> None:
        self._client = lmq.Client(url, user="steady", timeout_s=WITHIN_S)
        self._rounds = 0
        self._error: BaseException | None = None
        self._news = threading.Condition()
        self._leaving = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def goes_on(self, rounds: int = 5) -> None:
        """Return once it has had so many more results; fail if it got an error or nothing."""
        with self._news:
            wanted = self._rounds + rounds
            came = self._news.wait_for(lambda: self._rounds >= wanted or self._error is not None, WITHIN_S)
            assert self._error is None, f"a client that behaves well got {self._error!r}"
            assert came, "a client that behaves well gets no results"

    def _run(self) -> None:
        try:
            while not self._leaving:
                payload = {"round": self._rounds}
                result = self._client.submit("echo", payload).result(WITHIN_S)
                assert result == {"echo": payload}, result
                with self._news:
                    self._rounds += 1
                    self._news.notify_all()
        except BaseException as error:  # noqa: BLE001  # it is the test's, and raised there
            with self._news:
                self._error = error
                self._news.notify_all()

    def __enter__(self) -> Self:
        self.goes_on(1)
        return self

    def __exit__(self, *exc: object) -> None:
        self._leaving = True
        self._thread.join(WITHIN_S)
        self._client.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A broker and a worker, which must both outlive all that is done to them."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        broker = fleet.ready_broker()
        fleet.worker("e1")
        yield fleet
        assert not fleet.died()
        assert broker.terminate() == 0, broker.said()
        assert "Traceback" not in broker.said()


@pytest.fixture
def steady(fleet: Fleet) -> Iterator[Steady]:
    """Somebody who behaves well; it must still be served when the test ends."""
    with Steady(fleet.url) as steady:
        yield steady
        steady.goes_on()
        assert not fleet.died()
