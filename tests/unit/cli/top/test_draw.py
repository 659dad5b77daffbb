"""The screen as text at given sizes: what is on it, that it fits, and that names of others cannot break it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from lmq import BandView, InstanceInfo, Users
from lmq.cli.tables import width_of
from lmq.cli.top.draw import draw, first_shown, heights_of
from lmq.cli.top.lines import Bar, Column, apart, fitted, part_of, plain, row_of, text_of, widths_of
from lmq.cli.top.model import HELP, Model, Popup
from lmq.cli.top.panes import Pane
from lmq_proto.messages import Breaker, Hold
from unit.cli.fakes import health
from unit.cli.top.scenes import (
    FIRST,
    NOW_MS,
    a_model,
    a_user,
    a_view,
    a_worker,
    after,
    an_instance,
    running,
    screen,
    waiting,
)

SIZES = [(80, 24), (120, 40), (200, 50)]
ODD_NAMES = ["", "日本語の名前がとても長い", "a\x1b[31mred\nline\ttab", "é" * 200, "\u202eright to left"]


def line_with(model: Model, start: str, width: int = 100, height: int = 40) -> str:
    return next(line for line in screen(model, width, height) if line.strip(" ▸").startswith(start))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_pane_is_on_the_screen_with_its_rows(width: int, height: int) -> None:
    text = "\n".join(screen(a_model(), width, height))
    for word in ("USERS", "QUEUES", "WORKERS", "RUNNING 1", "WAITING 3", "anna", "night", "gpu-2", "qwen3-8b",
                 "JRRRR1", "JWWWW2", "q quit"):  # fmt: skip
        assert word in text, word


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (119, 24), (120, 40), (200, 50), (20, 4)])
def test_every_line_is_as_wide_as_the_screen_and_the_last_place_stays_free(width: int, height: int) -> None:
    for keys in ([], ["?"], ["c"], ["/"], ["w"]):
        for view in (a_view(), a_view(waiting=[], running=[], workers=[], queues=[])):
            lines = screen(after(a_model(view), *keys)[0], width, height)
            assert [width_of(line) for line in lines] == [*[width] * (height - 1), width - 1]


def test_before_the_broker_has_answered_it_says_so() -> None:
    assert "asking the broker" in screen(Model())[0]


def test_wide_screens_have_the_jobs_beside_the_rest() -> None:
    assert any("USERS" in line and "RUNNING" in line for line in screen(a_model(), 120, 40))
    assert not any("USERS" in line and "RUNNING" in line for line in screen(a_model(), 119, 40))


def test_the_header_tells_of_broker_counts_and_disk() -> None:
    first, second = screen(a_model(), 120)[:2]
    assert first.split()[:1] == ["lmq"]
    assert "up 1 h" in first
    assert "policy blfq" in first
    assert second.startswith("1 running   2 waiting   1 later   1 dead")
    assert second.rstrip().endswith("journal 12 MB, 1.0 TB free, commit 1.4 ms")


def test_trouble_of_the_disk_and_the_clock_stands_under_the_header() -> None:
    sick = health(counts={}, disk_trouble="the disk is full", clock_trouble="the wall clock jumped by +60 s")
    lines = screen(a_model(a_view(health=sick)))
    assert lines[2].startswith("the disk is full")
    assert lines[3].startswith("the wall clock jumped")
    assert draw(a_model(a_view(health=sick)), 80, 24)[2][0][1] == "bold red"


def test_bands_say_what_they_have_and_users_what_they_want_and_got() -> None:
    model = a_model()
    assert line_with(model, "normal 4-6").split() == ["normal", "4-6", "1", "2", "≥10%", "owed", "3", "s"]
    anna = line_with(model, "anna").split()
    assert anna[:6] == ["anna", "2", "1", "1", "67%", "70%"]
    assert line_with(model, "cleo").split()[:5] == ["cleo", "1", "0", "0", "20%"]
    assert not any(line.startswith("interactive") for line in screen(model))


def test_a_band_of_one_priority_and_several_pools_are_named() -> None:
    bands = [
        BandView(pool="llm", name="now", lowest=9, queued=1),
        BandView(pool="tasks/training", name="now", lowest=9),
    ]
    users = Users(
        request_id=1,
        policy="blfq",
        has_shares=True,
        bands=bands,
        users=[a_user("anna", pool="tasks/training", band="now")],
    )
    model = a_model(a_view(users=users))
    assert line_with(model, "now 9 of models")
    assert line_with(model, "now 9 of tasks/training")


def test_who_neither_waits_nor_runs_stands_below_who_does() -> None:
    bands = [
        BandView(pool="llm", name="interactive", lowest=7),
        BandView(pool="llm", name="normal", lowest=0, queued=82),
    ]
    idle = [a_user(f"idle{n}", band="interactive", received_ratio=0.1) for n in range(9)]
    rows = [*idle, a_user("anna", received_ratio=0.2), a_user("ben", queued=82)]
    users = Users(request_id=1, policy="blfq", has_shares=True, bands=bands, users=rows)
    keys = [row.key for row in a_model(a_view(users=users)).table(Pane.USERS).rows]
    assert keys[:4] == [
        "band/llm/normal", "user/llm/normal/ben", "user/llm/normal/anna", "band/llm/interactive",
    ]  # fmt: skip
    assert any(line.startswith("  ben") for line in screen(a_model(a_view(users=users)), 80, 24))


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("pane", Pane)
def test_which_columns_are_shown_does_not_change_with_what_is_in_them(pane: Pane, width: int) -> None:
    columns = a_model().table(pane).columns
    short, long = ([("x" * length, "")] * len(columns) for length in (1, 60))
    shown = [widths_of(columns, rows, width) for rows in ([], [short], [long])]
    assert shown[0].keys() == shown[1].keys() == shown[2].keys()
    assert shown[0] == shown[1]


def test_where_users_have_no_shares_that_is_said() -> None:
    bands = [BandView(pool="llm", name="normal", lowest=0, queued=2)]
    users = Users(
        request_id=1, policy="strict", has_shares=False, bands=bands, users=[a_user("anna", queued=2)]
    )
    model = a_model(a_view(users=users))
    assert line_with(model, "users have no shares: policy strict")
    assert line_with(model, "anna").split()[:4] == ["anna", "1", "0", "2"]


def test_who_waits_and_got_less_than_half_of_its_share_stands_out() -> None:
    styles = {
        text.strip(): style
        for line in draw(a_model(), 100, 40)
        for text, style in line
        if text.strip() in ("10%", "70%")
    }
    assert styles == {"10%": "yellow", "70%": ""}


def test_workers_say_what_holds_them_first() -> None:
    hold = Hold(kind="pause", by="tom", since_ms=0, until_ms=NOW_MS, reason="gaming")
    workers = [
        a_worker("w-hold", state="paused", hold=hold),
        a_worker("w-down", breaker=Breaker(since_ms=0, reason="connection refused")),
        a_worker("w-load", loading="llama-8b", loading_ms=12_000),
        a_worker("w-fine", an_instance("qwen3-8b"), leased=3, instances_leased={"qwen3-8b": 3}),
    ]
    model = a_model(a_view(workers=workers), focus=Pane.WORKERS)
    assert "by tom until" in line_with(model, "w-hold")
    assert "(gaming)" in line_with(model, "w-hold")
    assert "endpoint down: connection refused" in line_with(model, "w-down")
    assert "loads llama-8b, 12 s so far" in line_with(model, "w-load")
    assert line_with(model, "w-fine").split() == ["w-fine", "up", "3/4", "w-fine:1234"]
    assert line_with(model, "qwen3-8b").split()[:4] == ["qwen3-8b", "3/4", "2", "llm,"]


def test_an_instance_says_what_keeps_it_from_taking_more() -> None:
    full = InstanceInfo(instance_id="a", model="a-model", slots=2, limit_by="guard")
    slow = InstanceInfo(instance_id="b", model="b-model", slots=2, limit_by="slo")
    model = a_model(a_view(workers=[a_worker("gpu-1", full, slow)]), focus=Pane.WORKERS)
    assert "only 2 at once: its cache ran full" in line_with(model, "a-model", 119)
    assert "more would make text too slow" in line_with(model, "b-model", 119)


def test_running_jobs_say_their_phase_speed_and_end() -> None:
    loading = "01M811YGTS299ZZFYVR3JRRRR2"
    jobs = [
        running(done_in_s=(3.0, 9.0)), running(loading, phase="loading", progress=0.4, tokens=0, tokens_per_s=0.0)
    ]  # fmt: skip
    model = a_model(a_view(running=jobs))
    assert "writing, done in 3-9 s, 42 tokens, 19/s" in line_with(model, "JRRRR1", 119)
    assert "loading 40%" in line_with(model, "JRRRR2")
    assert " 7 s " in line_with(model, "JRRRR1")


def test_waiting_jobs_say_who_is_ahead_and_when_they_start() -> None:
    jobs = [
        waiting(starts_in_s=(20.0, 50.0), ahead=2),
        waiting("01M811YGTS299ZZFYVR3JWWWW9", state="asking", ahead=None),
    ]
    model = a_model(a_view(waiting=jobs))
    assert line_with(model, "JWWWW1", 80).split()[-3:] == ["2", "20-50", "s"]
    assert "asks a person" in line_with(model, "JWWWW9", 80)


def test_a_waiting_job_that_something_keeps_from_running_says_what_and_not_next() -> None:
    model = a_model(a_view(waiting=[waiting(ahead=0, hindrance="queue paused")]))
    line = line_with(model, FIRST[-6:])
    assert "queue paused" in line
    assert "next" not in line


def test_a_title_says_how_many_there_are_where_not_all_are_shown() -> None:
    many = health(counts={"ready": 1234, "leased": 1}, wall_ms=NOW_MS)
    assert line_with(a_model(a_view(health=many)), "WAITING 3 of 1,234")


def test_the_selected_row_is_turned_round_and_in_sight() -> None:
    jobs = [waiting(f"01M811YGTS299ZZFYVR3J{number:05}", ahead=number, number=number) for number in range(60)]
    model, _ = after(a_model(a_view(waiting=jobs)), *["j"] * 40)
    turned = [
        text_of(line) for line in draw(model, 80, 24) if line and all("reverse" in style for _, style in line)
    ]
    assert [line[:6] for line in turned] == ["J00040"]
    assert any("↑↓" in line for line in screen(model))


def test_help_names_every_key() -> None:
    model, _ = after(a_model(), "?")
    text = "\n".join(screen(model))
    assert all(line.strip() in text for line in HELP)


def test_a_long_answer_is_scrolled_in_its_box() -> None:
    from lmq.cli.top.model import Told

    model, _ = after(
        a_model(), "w", Told("01M811YGTS299ZZFYVR3JWWWW1", tuple(f"line {n}" for n in range(50)))
    )
    assert any("1-20 of 50" in line for line in screen(model))
    model, _ = after(model, "pagedown", "j")
    assert any("12-31 of 50" in line for line in screen(model))


def test_a_line_longer_than_its_box_goes_on_in_the_next_row() -> None:
    answer = f"JZ6EB6 chat anna {'m' * 50}   waiting 5 s, 49 ahead, starts within 25 s"
    model = replace(a_model(), popup=Popup("why", (answer,)))
    box = [line[line.index("│ ") : line.rindex("│")] for line in screen(model, 80, 24) if line.count("│ ")]
    rows = [row.strip("│ ") for row in box if row]
    assert " ".join(rows).split() == answer.split()


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_names_of_others_cannot_break_the_screen(name: str, width: int, height: int) -> None:
    fields: dict[str, Any] = {"user": name, "task_type": name, "model": name, "worker": name}
    bands = [BandView(pool="llm", name=name, lowest=0, queued=1)]
    users = Users(request_id=1, policy=name, has_shares=True, bands=bands, users=[a_user(name, band=name)])
    view = a_view(users=users, workers=[a_worker(name, an_instance(name))], running=[running(**fields)],
                  waiting=[waiting(**fields | {"models": [name]})])  # fmt: skip
    for keys in ([], ["c"], ["w"]):
        lines = screen(after(a_model(view), *keys)[0], width, height)
        assert all(width_of(line) in (width, width - 1) for line in lines)
        assert all(line.isprintable() for line in lines)


# --- its parts --------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(0, 80), st.none() | st.integers(0, 4)
)
def test_panes_share_the_room_and_none_is_left_out(wanted: list[int], room: int, focus: int | None) -> None:
    focus = None if focus is None else focus % len(wanted)
    heights = heights_of(wanted, room, focus)
    assert sum(heights) == max(room, 0)
    if room >= 2 * len(wanted):
        assert all(height >= min(want, 2) for height, want in zip(heights, wanted, strict=True))
    if room >= sum(wanted):
        assert all(height >= want for height, want in zip(heights, wanted, strict=True))
    if focus is not None:
        assert heights[focus] >= min(wanted[focus], heights_of(wanted, room, None)[focus])


@given(st.integers(0, 99), st.integers(1, 100), st.integers(1, 30))
def test_the_selected_row_is_always_shown(at: int, total: int, height: int) -> None:
    at = min(at, total - 1)
    first = first_shown(at, total, height)
    assert first <= at < first + height
    assert first + height <= max(total, height)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9), st.booleans(), st.booleans()), min_size=1, max_size=8),
    st.lists(st.text(alphabet="ab日", max_size=30), max_size=3), st.integers(1, 120),
)  # fmt: skip
def test_a_table_fits_its_width_if_one_column_does(
    shapes: list[tuple[int, int, bool, bool]], texts: list[str], width: int
) -> None:
    columns = [
        Column("T", least=least, worth=worth, right=right, grows=grows)
        for least, worth, right, grows in shapes
    ]
    rows = [[(text, "")] * len(columns) for text in texts]
    widths = widths_of(columns, rows, width)
    assert widths
    if width >= 20:
        assert sum(widths.values()) + 2 * (len(widths) - 1) <= width
    for row in rows:
        assert width_of(text_of(row_of(row, columns, widths))) == sum(widths.values()) + 2 * (len(widths) - 1)


@given(st.floats(0, 1.5), st.none() | st.floats(0, 1.5), st.integers(0, 60))
def test_a_bar_is_as_wide_as_it_should_be_and_has_its_mark(
    ratio: float, mark: float | None, width: int
) -> None:
    text = text_of(Bar(ratio, mark).spans(width))
    assert len(text) == width
    assert text.count("│") == (1 if mark is not None and width else 0)


@given(st.lists(st.text(alphabet="ab日é", max_size=8), max_size=4), st.integers(0, 30), st.integers(0, 30))
def test_a_part_of_a_line_is_as_wide_as_was_asked(texts: list[str], start: int, length: int) -> None:
    line = fitted(tuple((text, "") for text in texts), 30)
    end = min(start + length, 30)
    assert width_of(text_of(part_of(line, start, end))) == max(0, end - start)


def test_the_right_part_gives_way_where_both_do_not_fit() -> None:
    assert text_of(apart(plain("left"), plain("right"), 20)) == "left           right"
    assert text_of(apart(plain("left"), plain("right"), 10)) == "left      "
