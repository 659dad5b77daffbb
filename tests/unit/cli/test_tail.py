"""`lmq tail` against a stand-in: order, text, silence, expired cursors, the end of named jobs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from lmq import Piece
from lmq.cli import tail
from lmq.cli.feeds import Item
from lmq.cli.livefoot import Foot
from lmq.cli.session import Session
from lmq.errors import CursorExpired, NotReachable
from unit.cli.fakes import ID_A, ID_B, FakeBroker, a_job, an_event, run


def life(job_id: str, first: int, end: str = "done") -> list[object]:
    return [
        an_event(first, "accepted", job_id=job_id, state="ready"),
        an_event(first + 1, "started", job_id=job_id, state="leased", worker="gpu-1"),
        an_event(first + 2, end, job_id=job_id, state=end),
    ]


def test_a_named_job_is_followed_from_its_beginning_to_its_end() -> None:
    broker = FakeBroker(found=[a_job()], streams=[life(ID_A, 1)])  # type: ignore[list-item]  # events
    ended = run(broker, "tail", "--job", "JZ6EB6")
    assert ended.exit_code == 0
    assert [line.split()[3] for line in ended.stdout.splitlines()] == ["accepted", "started", "done"]
    asked = next(did[1] for did in broker.did if did[0] == "events")
    assert (asked["since"], asked["jobs"]) == (0, [ID_A])


def test_a_named_job_that_dies_is_status_1() -> None:
    broker = FakeBroker(found=[a_job()], streams=[life(ID_A, 1, "dead")])  # type: ignore[list-item]  # events
    ended = run(broker, "tail", "--job", ID_A)
    assert ended.exit_code == 1
    assert "JZ6EB6 is dead; type: lmq why JZ6EB6" in ended.stderr


def test_json_gives_one_event_a_line_with_its_cursor() -> None:
    broker = FakeBroker(streams=[life(ID_A, 5)])  # type: ignore[list-item]  # events
    lines = run(broker, "--json", "tail", "--no-follow", "-n", "3").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [5, 6, 7]


def test_only_the_wanted_kinds_are_shown_of_a_named_job() -> None:
    broker = FakeBroker(streams=[life(ID_A, 1)])  # type: ignore[list-item]  # events
    ended = run(broker, "tail", "--job", ID_A, "--event", "done")
    assert [line.split()[3] for line in ended.stdout.splitlines()] == ["done"]


def test_filters_reach_the_broker() -> None:
    broker = FakeBroker(streams=[[]])
    run(
        broker,
        "tail",
        "--no-follow",
        "--user",
        "anna",
        "--queue",
        "q",
        "--event",
        "done",
        "--event",
        "worker_down",
    )
    asked = next(did[1] for did in broker.did if did[0] == "events")
    assert (asked["user"], asked["queue"], asked["kinds"]) == ("anna", "q", ["done", "worker_down"])
    assert asked["last"] == 10


def test_a_cursor_that_is_no_longer_kept_goes_on_at_the_oldest_and_says_so() -> None:
    broker = FakeBroker(streams=[[CursorExpired(3, 40)], life(ID_A, 41)])  # type: ignore[list-item]  # events
    ended = run(broker, "tail", "--job", ID_A, "--since", "3")
    assert ended.exit_code == 0
    assert [did[1]["since"] for did in broker.did if did[0] == "events"] == [3, 40]
    assert "events up to 40 are no longer kept" in ended.stderr


def test_text_is_shown_in_lines_beside_the_name_of_its_job() -> None:
    words = [
        Piece("content", word, 1, n) for n, word in enumerate(["one ", "two\nthree ", "four" * 20, " end"], 1)
    ]
    broker = FakeBroker(found=[a_job(state="leased")], streams=[life(ID_A, 1)], text=list(words))  # type: ignore[list-item]  # events
    ended = run(broker, "tail", "--job", ID_A, "--text")
    shown = [line.split("| ")[1] for line in ended.stdout.splitlines() if "|" in line]
    assert " ".join(shown).replace("\n", " ").split() == ["one", "two", "three", "four" * 20, "end"]


def test_the_end_of_a_job_is_told_after_its_text_and_events_keep_their_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = tail.Tail(session=_session(), client=FakeBroker(), wish=_wish())  # type: ignore[arg-type]  # the stand-in
    made.texts[ID_A] = "the last words"
    events = [
        an_event(1, "done", job_id=ID_A, state="done"),
        an_event(2, "accepted", job_id=ID_B, state="ready"),
    ]
    for event in events:
        made._take(Item("events", event), Foot(_session()))
    assert capsys.readouterr().out == ""
    made._ended(Item(ID_A, None, is_end=True))
    text, done, accepted = capsys.readouterr().out.splitlines()
    assert "| the last words" in text
    assert " done " in done
    assert " accepted " in accepted


def test_a_look_from_before_the_end_of_a_text_does_not_have_it_read_again() -> None:
    wish = replace(_wish(), text=True)
    made = tail.Tail(session=_session(), client=FakeBroker(), wish=wish)  # type: ignore[arg-type]  # the stand-in
    made.texts[ID_A] = ""
    made._ended(Item(ID_A, None, is_end=True))
    made._now([a_job(state="leased")], Foot(_session()))
    assert made.texts == {}


def test_phases_of_what_runs_are_told_once_each() -> None:
    broker = FakeBroker(
        found=[a_job(state="leased", phase="writing")], ticks=3, streams=[[NotReachable("x")]]
    )
    made = tail.Tail(session=_session(), client=broker, wish=_wish())  # type: ignore[arg-type]  # the stand-in
    looks = list(made._running())
    assert [job.phase for look in looks for job in look] == ["writing"] * 3


def test_silence_is_told_once_and_the_return_too(capsys: pytest.CaptureFixture[str]) -> None:
    made = tail.Tail(session=_session(), client=FakeBroker(), wish=_wish())  # type: ignore[arg-type]  # the stand-in
    made._tell_away()
    made._tell_away()
    assert capsys.readouterr().err.count("no word from the broker") == 1
    made._now([a_job(ID_B)], Foot(_session()))
    assert "the broker is back" in capsys.readouterr().err


def test_since_and_n_contradict_each_other() -> None:
    assert run(FakeBroker(), "tail", "--since", "10m", "-n", "3").exit_code == 2


def test_text_and_no_follow_contradict_each_other() -> None:
    ended = run(FakeBroker(), "tail", "--text", "--no-follow")
    assert ended.exit_code == 2
    assert "lmq stream" in ended.stderr


def _session() -> Session:
    return Session()


def _wish() -> tail.Wish:
    return tail.Wish(jobs=[], user="", queue="", kinds=[], since=None, last=0, text=False)
