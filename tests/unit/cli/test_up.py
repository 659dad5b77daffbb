"""`lmq up`: which of the daemons' lines a person sees, and the line that sums up the others."""

from __future__ import annotations

import pytest

from lmq.cli.up import Digest

ENDED = "12:00:01 info job_ended job_id=01M89N state={} user=anna queued_ms=0"


@pytest.mark.parametrize(
    ("text", "is_shown"),
    [
        (ENDED.format("dead"), False),
        ("12:00:01 info broker_stopping", False),
        ("INFO limit_changed slots=4", False),
        ("12:00:01 warning peer_refused frames=3", True),
        ("ERROR worker_broken why=disk", True),
        ("Traceback (most recent call last):", True),
        ("Error: no such file; the old settings stay", True),
    ],
)
def test_what_is_no_routine_is_shown_and_verbose_shows_all(text: str, is_shown: bool) -> None:
    assert Digest(verbose=False).is_shown(text) is is_shown
    assert Digest(verbose=True).is_shown(text)


def test_jobs_that_have_ended_are_summed_up_once() -> None:
    digest = Digest(verbose=False)
    for state in ("done", "dead", "done"):
        digest.is_shown(ENDED.format(state))
    assert digest.sum_up() == "3 jobs ended in the last minute: 2 done, 1 dead"
    assert digest.sum_up() == ""
    digest.is_shown(ENDED.format("done"))
    assert digest.sum_up() == "1 job ended in the last minute: 1 done"


def test_verbose_needs_no_sum() -> None:
    digest = Digest(verbose=True)
    digest.is_shown(ENDED.format("done"))
    assert digest.sum_up() == ""
