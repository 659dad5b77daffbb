"""What a person sees on a terminal while a job waits: one line, also where it is narrow or the broker is gone."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from integration.cli.conftest import LMQ, Lmq
from integration.cli.terminal import Terminal
from lmq.cli.demo.stage import Stage

COLUMNS = 40


def rows(screen: str) -> list[str]:
    """Return what stands on a screen, row by row."""
    return [row for row in screen.splitlines() if row]


@pytest.fixture(params=["chat", "embed", "result"])
def waiting(lmq: Lmq, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    """A command on a narrow terminal whose job cannot start."""
    lmq.run("queues", "pause", "default", "--reason", "a reason that is longer than the line")
    words = [request.param, "Hello"]
    if request.param == "result":
        lmq.run("chat", "-d", "Hello")
        words = ["result", "@last"]
    terminal = Terminal([*LMQ, *words], lmq.environment, COLUMNS, 10)
    yield terminal
    terminal.close()


def test_a_line_says_why_a_job_waits_or_that_the_broker_is_gone(waiting: Terminal, stage: Stage) -> None:
    (row,) = rows(waiting.until("waits:"))
    assert len(row) < COLUMNS
    assert row.endswith("…")
    stage.kill_broker()
    assert rows(waiting.until("no word")) == ["(no word from the broker; waiting for …"]
    stage.start_broker()
    assert len(rows(waiting.until("waits:"))) == 1
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.ended() == 130
    assert len(rows(waiting.text())) <= 2
