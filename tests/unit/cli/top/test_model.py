"""What keys and answers make of the screen, and what is then asked of the broker. Nothing is done before a yes."""

from __future__ import annotations

import pytest

from lmq import BandView, Users
from lmq.cli.top.model import (
    AskWhy,
    CancelJob,
    Did,
    Happened,
    Leave,
    Look,
    Model,
    Passed,
    PauseIt,
    Prioritise,
    ResumeIt,
    Seen,
    Told,
)
from lmq.cli.top.panes import Pane
from unit.cli.fakes import an_event, health
from unit.cli.top.scenes import (
    FIRST,
    RUNNING,
    SECOND,
    a_model,
    a_user,
    a_view,
    after,
    footer,
    screen,
    waiting,
)


def test_q_leaves_and_ctrl_c_interrupts_whatever_is_open() -> None:
    assert after(a_model(), "q")[1] == [Leave()]
    for keys in ([], ["c"], ["/"], ["?"]):
        assert after(a_model(), *keys, "ctrl-c")[1] == [Leave(interrupted=True)]


def test_q_before_the_broker_has_answered_leaves_too() -> None:
    assert after(Model(), "j", "c", "s", "p", "q")[1] == [Leave()]


def test_tab_goes_round_the_panes() -> None:
    model = a_model()
    seen = []
    for _ in Pane:
        model, _ = after(model, "tab")
        seen.append(model.focus)
    assert seen == [Pane.USERS, Pane.QUEUES, Pane.WORKERS, Pane.RUNNING, Pane.WAITING]
    assert after(model, "backtab")[0].focus is Pane.RUNNING


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_is_cancelled_after_a_yes_and_by_its_name() -> None:
    model, wishes = after(a_model(), "j", "c")
    assert wishes == []
    assert footer(model) == "cancel JWWWW2, chat of ben?   y / n"
    assert after(model, "y")[1] == [CancelJob(SECOND)]


@pytest.mark.parametrize("key", ["n", "esc", "enter", "c", "q", "up"])
def test_anything_but_a_yes_does_nothing(key: str) -> None:
    model, wishes = after(a_model(), "c", key)
    assert wishes == []
    assert footer(model) == "nothing was done"


def test_the_question_stays_about_the_job_that_it_named_whatever_moves_meanwhile() -> None:
    model, _ = after(a_model(), "c")
    model, wishes = after(model, Seen(a_view(waiting=[waiting(SECOND, user="ben")]), 101.0), "y")
    assert wishes == [CancelJob(FIRST)]


def test_a_running_job_is_cancelled_in_its_own_pane() -> None:
    assert after(a_model(), "backtab", "c", "y")[1] == [CancelJob(RUNNING)]


def test_a_priority_is_raised_step_by_step_in_one_question() -> None:
    model, _ = after(a_model(), "+")
    assert footer(model) == "priority 6 instead of 5 for JWWWW1, chat of anna?   y / n"
    model, _ = after(model, "+", "+", "-")
    assert footer(model).startswith("priority 7 instead of 5")
    assert after(model, "y")[1] == [Prioritise(FIRST, 7)]


def test_a_priority_is_lowered_with_minus() -> None:
    assert after(a_model(), "-", "y")[1] == [Prioritise(FIRST, 4)]


def test_no_priority_is_beyond_the_ends() -> None:
    model, _ = after(a_model(a_view(waiting=[waiting(priority=9)])), "+")
    assert footer(model) == "priorities go from 0 to 9"
    assert after(model, "y")[1] == []


def test_why_is_asked_at_once_and_shown_when_it_comes() -> None:
    model, wishes = after(a_model(), "w")
    assert wishes == [AskWhy(FIRST)]
    assert any("asking the broker" in line for line in screen(model))
    model, _ = after(model, Told(FIRST, ("because   it is paused", "you can   wait")))
    assert any("because   it is paused" in line for line in screen(model))
    model, _ = after(model, "x")
    assert not any("because" in line for line in screen(model))


def test_an_answer_that_comes_too_late_is_shown_nowhere() -> None:
    model, _ = after(a_model(), "w", "x", Told(FIRST, ("because",)))
    assert model.popup is None
    model, _ = after(a_model(), "w", "x", "?", Told(FIRST, ("because",)))
    assert not any("because" in line for line in screen(model))


def test_keys_for_jobs_say_so_where_no_job_is_selected() -> None:
    for keys in (["tab"], ["tab", "tab"], ["tab", "tab", "tab"]):
        model, wishes = after(a_model(), *keys, "c")
        assert wishes == []
        assert footer(model).startswith("select a job first")


# --- queues and workers -----------------------------------------------------------------------------------------------


def test_a_worker_is_paused_for_a_while_after_a_yes() -> None:
    model, _ = after(a_model(focus=Pane.WORKERS), "p")
    assert footer(model) == "pause worker gpu-1 for how long (30m, 2h; nothing: until resumed): █"
    model, _ = after(model, "3", "0", "m", "enter")
    assert footer(model) == "pause worker gpu-1 for 30 min; what runs there finishes?   y / n"
    assert after(model, "y")[1] == [PauseIt("worker", "gpu-1", 1800.0)]
    assert after(model, "n")[1] == []


def test_a_queue_is_paused_until_it_is_resumed() -> None:
    model, _ = after(a_model(focus=Pane.QUEUES), "p", "enter")
    assert footer(model) == "pause queue default until resumed; what runs goes on?   y / n"
    assert after(model, "y")[1] == [PauseIt("queue", "default", None)]


def test_what_is_held_is_resumed() -> None:
    model, _ = after(a_model(focus=Pane.QUEUES), "j", "p")
    assert footer(model) == "resume queue night, paused by tom (gaming)?   y / n"
    assert after(model, "y")[1] == [ResumeIt("queue", "night")]


def test_what_is_no_duration_is_asked_for_again() -> None:
    model, _ = after(a_model(focus=Pane.WORKERS), "p", "3", "x", "enter")
    assert footer(model).startswith("no duration; write 30m")
    model, _ = after(model, "backspace", "0", "s", "enter", "y")
    assert model.prompt is None


def test_escape_leaves_what_is_typed() -> None:
    model, wishes = after(a_model(focus=Pane.WORKERS), "p", "3", "esc")
    assert (model.prompt, wishes) == (None, [])


def test_a_model_under_a_worker_stands_for_its_worker() -> None:
    model, _ = after(a_model(focus=Pane.WORKERS), "j", "p", "enter", "y")
    assert model.focus is Pane.WORKERS
    assert after(a_model(focus=Pane.WORKERS), "j", "p", "enter", "y")[1] == [PauseIt("worker", "gpu-1", None)]


def test_p_says_so_where_nothing_can_be_paused() -> None:
    model, _ = after(a_model(), "p")
    assert footer(model).startswith("select a queue or a worker first")


# --- filter and sort --------------------------------------------------------------------------------------------------


def test_a_filter_takes_the_name_that_begins_so_and_asks_anew() -> None:
    model, wishes = after(a_model(), "/", "b", "enter")
    assert wishes == [Look("ben")]
    assert model.user == "ben"
    model, wishes = after(model, "esc")
    assert (model.user, wishes) == ("", [Look("")])


def test_tab_completes_a_name() -> None:
    model, _ = after(a_model(), "/", "a", "tab")
    assert footer(model) == "only jobs of user: anna█"


def test_a_view_of_another_user_than_asked_for_is_not_shown() -> None:
    model, _ = after(a_model(), "/", "b", "e", "n", "enter", Seen(a_view(), 101.0))
    assert not any("only jobs of ben" in line and "RUNNING" in line for line in screen(model))
    view = a_view(user="ben", running=[], waiting=[waiting(SECOND, user="ben")])
    model, _ = after(model, Seen(view, 102.0))
    assert any("WAITING 1 of ben" in line for line in screen(model))
    assert any("only jobs of ben" in line for line in screen(model))
    assert not any("JWWWW1" in line for line in screen(model))


def test_a_filter_for_a_user_of_an_app_keeps_the_row_of_the_app() -> None:
    bands = [BandView(pool="llm", name="normal", lowest=4, queued=2)]
    rows = [a_user("shop", queued=2), a_user("shopper", queued=1)]
    users = Users(request_id=1, policy="blfq", has_shares=True, users=rows, bands=bands)
    lines = screen(a_model(a_view(user="shop/alice", users=users), user="shop/alice"))
    assert any(line.startswith("  shop ") for line in lines)
    assert not any("shopper" in line for line in lines)


def test_s_sorts_a_pane_in_the_next_way_and_its_title_says_how() -> None:
    model, _ = after(a_model(), "s")
    assert any("WAITING 3 by user" in line for line in screen(model))
    model, _ = after(model, "s", "s")
    assert any("WAITING 3 by priority" in line for line in screen(model))
    rows = [line[:6] for line in screen(model) if line[:5] == "JWWWW"]
    assert rows == ["JWWWW2", "JWWWW1"]
    assert any("WAITING 3 " in line and " by " not in line for line in screen(after(model, "s")[0]))


# --- what moves -------------------------------------------------------------------------------------------------------


def test_the_selected_job_stays_selected_where_it_moves() -> None:
    model, _ = after(a_model(), "j")
    moved = a_view(waiting=[waiting(SECOND, user="ben", ahead=0), waiting(FIRST, user="anna", ahead=1)])
    model, _ = after(model, Seen(moved, 101.0), "c")
    assert "JWWWW2" in footer(model)


def test_where_the_selected_job_is_gone_its_neighbour_is_selected() -> None:
    model, _ = after(a_model(), "j")
    model, _ = after(model, Seen(a_view(waiting=[waiting(FIRST, user="anna")]), 101.0), "c")
    assert "JWWWW1" in footer(model)


def test_moves_stop_at_the_ends_and_an_empty_pane_bears_them() -> None:
    model, _ = after(a_model(), "end", "j", "c")
    assert "JDDDD1" in footer(model)
    model, _ = after(a_model(), "j", "home", "k", "c")
    assert "JWWWW1" in footer(model)
    empty = a_view(waiting=[], running=[], queues=[], workers=[])
    for pane in Pane:
        model, wishes = after(a_model(empty, focus=pane), "j", "pagedown", "k", "c", "p", "w", "+", "y")
        assert wishes == []


def test_a_message_goes_after_a_while_or_with_the_next_key() -> None:
    model, wishes = after(a_model(), Did("JWWWW1 cancelled"))
    assert wishes == [Look("")]
    assert footer(model) == "JWWWW1 cancelled"
    assert footer(after(model, Passed(103.0))[0]) == "JWWWW1 cancelled"
    assert footer(after(model, Passed(110.0))[0]).startswith("tab pane")
    assert footer(after(model, "j")[0]).startswith("tab pane")


def test_a_silent_broker_is_told_of_and_forgotten_when_it_answers() -> None:
    model, _ = after(a_model(), Passed(102.0))
    assert not any("no word" in line for line in screen(model))
    model, _ = after(model, Passed(105.0))
    assert any("no word from the broker for 5 s" in line for line in screen(model))
    model, _ = after(model, Seen(a_view(), 106.0))
    assert not any("no word" in line for line in screen(model))


def test_jobs_that_ended_in_the_last_minute_are_the_brokers_count_from_the_first_look_on() -> None:
    model = a_model(a_view(health=health(ended_last_min=1234)))
    assert any("1,234 ended/min" in line for line in screen(model))


def test_swaps_of_the_last_hour_are_shown_at_their_worker() -> None:
    model = a_model(a_view())
    for seq, kind in ((999_000, "model_unloaded"), (999_010, "model_loaded")):
        model, _ = after(model, Happened(an_event(seq, kind, worker="gpu-1")))
    line = next(line for line in screen(model, 100) if line.startswith("gpu-1"))
    assert line.split()[:4] == ["gpu-1", "up", "1/4", "1"]
