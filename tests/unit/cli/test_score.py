"""The demo's counting, and the children it starts."""

from __future__ import annotations

import sys

import pytest

from lmq.cli.children import Children
from lmq.cli.demo.score import Score
from lmq.cli.errors import Failure
from lmq.cli.top import Rate
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


def test_a_rate_begins_anew_with_the_broker() -> None:
    rate = Rate()
    assert rate.add(0.0, 0) is None
    assert rate.add(30.0, 15) == pytest.approx(30.0)
    assert rate.add(31.0, 0) is None


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def test_children_are_ended_in_any_case() -> None:
    with pytest.raises(KeyboardInterrupt), Children() as children:
        child = children.start(
            "sleeper", python("print('ready', flush=True); input() if 0 else __import__('signal').pause()")
        )
        children.await_ready(child, "ready")
        raise KeyboardInterrupt
    assert not child.is_running


def test_a_child_that_will_not_end_is_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    with Children() as children:
        child = children.start("stubborn", python(stubborn))
        children.await_ready(child, "ready")
        child.stop(within_s=0.1)
    assert not child.is_running


def test_a_child_that_ends_instead_of_being_ready_is_told_with_its_last_words() -> None:
    with Children() as children, pytest.raises(Failure) as failed:
        children.await_ready(children.start("broker", python("print('no room')")), "ready")
    assert failed.value.message == "broker did not start: no room"


def test_a_signal_during_a_start_comes_after_the_child_is_in_the_list() -> None:
    with pytest.raises(KeyboardInterrupt), Children() as children:
        children._deferring = True
        children._on_signal(2, None)
        children.start("sleeper", python("__import__('signal').pause()"))
    assert not any(child.is_running for child in children._children)
