"""The demo's counting, and the children it starts."""

from __future__ import annotations

import signal
import sys

import pytest

from lmq.cli.children import Child, Children
from lmq.cli.demo.score import Score
from lmq.cli.errors import Failure
from unit.cli.fakes import ID_A, ID_B, an_event


def test_a_job_is_answered_once_and_its_wait_counted_to_its_first_start() -> None:
    score = Score()
    for event in (
        an_event(1, "accepted", job_id=ID_A, user="anna", state="ready"),
        an_event(2, "accepted", job_id=ID_B, user="ben", state="ready"),
        an_event(4, "started", job_id=ID_A, user="anna", state="leased", attempt=1),
        an_event(5, "broker_started"),
        an_event(6, "released", job_id=ID_A, user="anna", state="ready", attempt=1),
        an_event(7, "started", job_id=ID_A, user="anna", state="leased", attempt=2),
        an_event(9, "done", job_id=ID_A, user="anna", state="done", attempt=2),
    ):
        score.take(event)
    job = score.jobs[ID_A]
    assert (job.waited_s, job.total_s, job.attempts, job.answers) == (3.0, 8.0, 2, 1)
    assert (score.ended, score.gaps, score.broker_starts) == (1, 0, 1)


def test_an_event_that_comes_twice_is_noticed() -> None:
    score = Score()
    for seq in (1, 2, 2):
        score.take(an_event(seq, "worker_up"))
    assert score.gaps == 1


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


SLEEPS = "import signal; print('ready', flush=True); signal.pause()"
IGNORES = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
)


def interrupted() -> None:
    """Start a child and be interrupted while it runs."""
    with Children() as children:
        child = children.start("sleeper", python(SLEEPS))
        children.await_ready(child, "ready")
        STARTED.append(child)
        raise KeyboardInterrupt


STARTED: list[Child] = []


def test_children_are_ended_in_any_case() -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not STARTED[-1].is_running


def test_a_child_that_will_not_end_is_made_to() -> None:
    with Children() as children:
        child = children.start("stubborn", python(IGNORES))
        children.await_ready(child, "ready")
        child.stop(within_s=0.1)
    assert not child.is_running


def test_a_child_that_ends_instead_of_being_ready_is_told_with_its_last_words() -> None:
    with Children() as children:
        child = children.start("broker", python("print('no room')"))
        with pytest.raises(Failure) as failed:
            children.await_ready(child, "ready")
    assert failed.value.message == "broker did not start: no room"


def test_a_signal_during_a_start_comes_when_the_child_is_in_the_list() -> None:
    made = Children()
    made._deferring = True
    made._on_signal(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        made.start("sleeper", python(SLEEPS))
    assert len(made._children) == 1
    made._children[0].stop()
