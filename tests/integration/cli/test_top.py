"""`lmq top` on a terminal, against real daemons: it opens, shows, acts after a yes, and leaves all in order."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator

import pytest

from integration.cli.conftest import LMQ, Lmq
from integration.cli.terminal import Terminal

Open = Callable[..., Terminal]


@pytest.fixture
def top(lmq: Lmq) -> Iterator[Open]:
    """Opens `lmq top` on a terminal of a size."""
    opened: list[Terminal] = []

    def start(*words: str, columns: int = 100, lines: int = 30) -> Terminal:
        opened.append(Terminal([*LMQ, "top", *words], lmq.environment, columns, lines))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


def waiting_job(lmq: Lmq, user: str = "anna") -> str:
    """Submit a job that waits as long as nobody lets it start."""
    lmq.run("queues", "pause", "night")
    return lmq.run("--as", user, "chat", "-d", "--queue", "night", "--priority", "5", "Hello").stdout.strip()


def assert_restored(terminal: Terminal) -> None:
    assert not terminal.is_other_screen
    assert terminal.has_cursor
    assert terminal.settings() == terminal.before


def test_a_job_is_seen_and_cancelled_after_a_yes_and_the_terminal_is_as_before(lmq: Lmq, top: Open) -> None:
    job_id = waiting_job(lmq)
    name = job_id[-6:]
    terminal = top()
    shown = terminal.until(name)
    assert terminal.is_other_screen
    assert not terminal.has_cursor
    assert "gpu-1" in shown
    assert "qwen/qwen3-8b" in shown
    terminal.press("c")
    terminal.until(f"cancel {name}, chat of anna?")
    terminal.press("n")
    terminal.until("nothing was done")
    assert json.loads(lmq.run("--json", "show", job_id).stdout)["state"] == "ready"
    terminal.press("cy")
    terminal.until(f"{name} cancelled")
    terminal.until("nothing waits")
    assert json.loads(lmq.run("--json", "show", job_id).stdout)["state"] == "cancelled"
    terminal.press("q")
    assert terminal.ended() == 0
    assert_restored(terminal)


def test_a_priority_and_a_pause_are_changed_and_a_reason_is_shown(lmq: Lmq, top: Open) -> None:
    job_id = waiting_job(lmq)
    name = job_id[-6:]
    lmq.run("users", "set", "anna", "--ceiling", "6")
    terminal = top()
    terminal.until(name)
    terminal.press("w")
    terminal.until("queue night is paused")
    terminal.press("x+++y")
    terminal.until(f"{name} has priority 6 (ceiling of anna), asked 8")
    terminal.press("\x1b[Z\x1b[Z")
    terminal.until("▸WORKERS")
    terminal.press("p30m\r")
    terminal.until("pause worker gpu-1 for 30 min")
    terminal.press("y")
    terminal.until("gpu-1 paused")
    told = json.loads(lmq.run("--json", "workers").stdout)
    assert told[0]["state"] == "paused"
    terminal.press("py")
    terminal.until("gpu-1 goes on")
    terminal.press("q")
    assert terminal.ended() == 0


def test_a_filter_shows_the_jobs_of_one_user(lmq: Lmq, top: Open) -> None:
    anna, ben = waiting_job(lmq), waiting_job(lmq, "ben")
    terminal = top()
    terminal.until(lambda text: anna[-6:] in text and ben[-6:] in text)
    terminal.press("/be\r")
    terminal.until(lambda text: "only jobs of ben" in text and anna[-6:] not in text and ben[-6:] in text)
    terminal.press("\x1b")
    terminal.until(lambda text: anna[-6:] in text and "only jobs of" not in text)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)])
def test_a_new_size_is_filled(lmq: Lmq, top: Open, size: tuple[int, int]) -> None:
    terminal = top(columns=100, lines=30)
    terminal.until("q quit")
    terminal.resize(*size)
    # A screen may be read while it is being drawn: it is waited for as a whole, and nothing of the old one stays.
    terminal.until(
        lambda text: (
            text.splitlines()[-1].endswith("q quit")
            and "USERS" in text
            and ("│  RUNNING" in text) == (size[0] >= 120)
        )
    )


def test_ctrl_c_leaves_with_130_and_says_so(top: Open) -> None:
    terminal = top()
    terminal.until("q quit")
    terminal.press("\x03")
    assert terminal.ended() == 130
    assert "lmq: left" in terminal.text()
    assert_restored(terminal)


def test_a_process_that_is_told_to_end_leaves_the_terminal_in_order(top: Open) -> None:
    terminal = top()
    terminal.until("q quit")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.ended()
    assert_restored(terminal)


def test_no_color_has_no_colors(lmq: Lmq, top: Open) -> None:
    waiting_job(lmq)
    terminal = top("--no-color")
    terminal.until("paused by")
    assert not terminal.ever_colored
    colored = top()
    colored.until("paused by")
    assert colored.ever_colored
