"""What people read: durations, tables, a job's situation, an event, why."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest
from hypothesis import given, strategies as st
from msgspec import structs

from lmq import ErrorInfo, InstanceInfo, Reason, Why, WorkerView
from lmq.cli import humane, show, tables, workers
from lmq.cli.eventlines import event_line
from lmq.cli.list import job_table
from lmq.cli.why import why_lines
from lmq_proto.messages import Breaker, Capacity
from lmq_proto.states import State
from lmq_worker.concurrency import LimitedBy
from unit.cli.fakes import ID_A, ID_B, a_job, an_event, terminal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.4, "0.4 s"), (0.97, "1 s"), (41.2, "41 s"), (60, "1 min"), (170, "3 min"), (3600, "1 h"),
     (7500, "2 h 5 min"), (90_000, "1 d 1 h"), (864_000, "10 d"), (-3, "0.0 s")],
)  # fmt: skip
def test_durations_are_said_in_the_unit_that_fits(seconds: float, text: str) -> None:
    assert humane.duration(seconds) == text


@pytest.mark.parametrize(
    ("bounds", "text"),
    [((20, 50), "20-50 s"), ((23.4, 47.1), "20-50 s"), ((41, 41.2), "40-45 s"), ((3.2, 8.7), "3-9 s"), ((5, 5), "5 s"),
     ((50, 200), "50 s to 4 min"), ((60, 300), "1-5 min"), ((60, 110), "60-110 s"), ((131, 1300), "2-25 min"),
     ((1500, 5000), "25 min to 1 h 30 min"), ((7300, 40_000), "2-12 h")],
)  # fmt: skip
def test_intervals_are_no_more_exact_than_they_can_be(bounds: tuple[float, float], text: str) -> None:
    assert humane.span(bounds) == text


@pytest.mark.parametrize(
    ("bounds", "text"),
    [((0, 0.4), "starts now"), ((0, 22), "starts within 25 s"), ((1, 400), "starts within 7 min"),
     ((20, 50), "starts in 20-50 s")],
)  # fmt: skip
def test_when_something_comes_about(bounds: tuple[float, float], text: str) -> None:
    assert humane.when(bounds, "starts") == text


@given(st.floats(0, 1e7), st.floats(0, 1e7))
def test_an_interval_as_it_is_said_is_one_line_without_a_sign(low: float, width: float) -> None:
    text = humane.span((low, low + width))
    assert "--" not in text
    assert not text.startswith("-")
    assert text[-1] in "sndh"


def test_sizes() -> None:
    assert [humane.size(n) for n in (0, 999, 1000, 1_400_000, 85 * 10**9)] == [
        "0 bytes", "999 bytes", "1.0 kB", "1.4 MB", "85 GB",
    ]  # fmt: skip


class Screen(io.StringIO):
    """A terminal that takes what is printed."""

    def isatty(self) -> bool:
        return True


def test_there_is_as_much_room_as_the_terminal_has_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "123")
    monkeypatch.setattr("sys.stdout", Screen())
    assert tables.room() == 123


@given(st.lists(st.lists(st.text(), min_size=4, max_size=4), max_size=5))
def test_a_table_fits_a_terminal_and_holds_no_control_characters(rows: list[list[str]]) -> None:
    told: list[tables.Row] = [list(row) for row in rows]
    with terminal():
        lines = tables.table(["A", "B", "C", "D"], told, right=(1,))
    assert len(lines) == len(rows) + 1
    for line in map(click.unstyle, lines):
        assert tables.width_of(line) <= tables.WIDTH
        assert "\x1b" not in line
        assert "\n" not in line


LONG_JOB = a_job(
    user="somebody",
    models=["a-vendor/a-model-with-a-name-that-goes-on@q4_k_m"],
    ahead=49,
    starts_in_s=(0.5, 22),
)


def test_on_a_terminal_the_model_gives_way_before_when_a_job_starts() -> None:
    with terminal():
        _, row = map(click.unstyle, job_table([structs.replace(LONG_JOB, created_at_ms=humane.now_ms())]))
    assert row.startswith("JZ6EB6  waiting  chat  somebody  a-vendor/…")
    assert row.endswith("  49 ahead, starts within 25 s")
    assert tables.width_of(row) <= tables.WIDTH


def test_on_a_pipe_nothing_is_cut() -> None:
    _, row = map(click.unstyle, job_table([LONG_JOB]))
    assert "a-vendor/a-model-with-a-name-that-goes-on@q4_k_m" in row
    assert "…" not in row
    long = an_event(1, "refused", user="anna", detail={"reason": "word " * 40})
    assert click.unstyle(event_line(long)).count("word") == 40


def test_columns_stay_aligned_beside_wide_letters() -> None:
    lines = [click.unstyle(line) for line in tables.table(["NAME", "N"], [["日本", "1"], ["ann", "22"]])]
    assert [
        tables.width_of(line[: line.index(end)]) for line, end in zip(lines, ("N", "1", "22"), strict=True)
    ][1:] == [6, 6]


@pytest.mark.parametrize("limit_by", [*LimitedBy, "something new", ""])
def test_it_is_said_what_bounds_the_jobs_at_once(limit_by: str) -> None:
    instance = InstanceInfo(instance_id="q", model="qwen3-8b", slots=12, limit_by=limit_by)
    worker = WorkerView(
        name="gpu-1", endpoint="http://gpu-1:1234", backend="openai", host="gpu-1", state="up",
        capacity=Capacity(instances=[instance]),
    )  # fmt: skip
    why = f" ({workers.LIMITS.get(limit_by, limit_by)})" if limit_by else ""
    assert ("loaded", f"qwen3-8b (llm), 12 at once{why}") in workers.facts(worker)
    held_back = limit_by in ("errors", "guard")
    assert workers.note_of(worker) == (f"only 12 at once: {workers.LIMITS[limit_by]}" if held_back else "")


def test_slots_that_are_taken_are_told_and_a_worker_whose_endpoint_fails_is_down() -> None:
    told: dict[str, Any] = {
        "name": "gpu-1", "endpoint": "http://gpu-1:1234", "backend": "openai", "host": "gpu-1", "leased": 8,
        "instances_leased": {"nomic": 3},
    }  # fmt: skip
    instance = InstanceInfo(instance_id="nomic", model="nomic", slots=3)
    broken = Capacity(instances=[instance], breaker=Breaker(since_ms=0, reason="no answer"))
    head, *rows = workers.worker_table(
        [
            WorkerView(**told, state="up", capacity=Capacity(instances=[instance])),
            WorkerView(**told, state="up", capacity=broken),
            WorkerView(**told, state="gone", capacity=broken),
            WorkerView(**told, state="paused"),
        ]
    )
    assert click.unstyle(head).split() == ["WORKER", "STATE", "SLOTS", "ENDPOINT", "MODELS"]
    assert [click.unstyle(row).split()[1:3] for row in rows] == [
        ["up", "3/3"], ["down", "3/3"], ["gone", "3/3"], ["paused", "8"],
    ]  # fmt: skip


def test_states_are_shown_as_people_call_them() -> None:
    shown = {state: tables.state_cell(state).text for state in State}
    assert {state: word for state, word in shown.items() if state != word} == {
        "ready": "waiting",
        "leased": "running",
    }
    assert "running" in click.unstyle(dict(show.facts(a_job(state="leased", phase="writing")))["state"])


def test_each_reason_of_a_limit_has_its_words() -> None:
    assert set(workers.LIMITS) == set(LimitedBy)


def test_a_job_is_shown_with_its_parents_and_its_own_priority() -> None:
    shown = dict(show.facts(a_job(state="blocked", parents=[ID_A, ID_B], waits_for=[ID_B])))
    assert shown["parents"] == "JZ6EB6, 7KQ2M9; waits for 7KQ2M9"
    assert shown["queue"] == "default, priority 5"
    assert "parents" not in dict(show.facts(a_job()))
    lifted = dict(show.facts(a_job(priority=8, own_priority=5)))["queue"]
    assert lifted == "default, priority 8 (its own is 5, a job that waits for it has more)"


def test_where_a_job_is() -> None:
    assert humane.where(a_job(ahead=2, starts_in_s=(20.0, 50.0))) == "2 ahead, starts in 20-50 s"
    assert humane.where(a_job(ahead=0)) == "next"
    assert humane.where(a_job(ahead=0, hindrance="queue paused")) == "queue paused"
    assert humane.where(a_job(ahead=9, hindrance="endpoint away")) == "endpoint away"
    running = a_job(state="leased", phase="writing", tokens=120, tokens_per_s=43.2)
    assert humane.where(running) == "writing, 120 tokens, 43/s"
    running = a_job(state="leased", phase="reading", done_in_s=(12.0, 31.0))
    assert humane.where(running) == "reading, done in 10-35 s"
    loading = a_job(state="leased", phase="loading", progress=0.45)
    assert humane.where(loading) == "loading 45%"
    assert humane.where(a_job(state="blocked", waits_for=[ID_A, ID_B])) == "waits for 2 jobs"
    done = a_job(state="done", started_at_ms=1_000, finished_at_ms=13_000, attempt=2)
    assert humane.where(done) == "took 12 s, attempt 2"
    assert humane.where(a_job(state="dead", error=ErrorInfo("x", "no\x1b[2J room"))) == "no[2J room"


def test_why_says_the_weightiest_cause_first_and_what_to_type() -> None:
    reasons = [
        Reason(code="a", text="gpu-1 finishes 2 jobs, then loads it"),
        Reason(code="b", text="gpu-3 is paused"),
    ]
    job = a_job(models=["qwen3-32b"], ahead=2, starts_in_s=(20.0, 50.0), done_in_s=(60.0, 110.0))
    lines = why_lines(Why(job, reasons, ["lmq update JZ6EB6 --model llama-8b", "lmq cancel JZ6EB6"]))
    assert lines[0].startswith("JZ6EB6 chat anna qwen3-32b   waiting ")
    assert lines[0].endswith("2 ahead, starts in 20-50 s, done in 60-110 s")
    assert lines[1:] == [
        "because   gpu-1 finishes 2 jobs, then loads it",
        "also      gpu-3 is paused",
        "you can   lmq update JZ6EB6 --model llama-8b    lmq cancel JZ6EB6",
    ]


@given(st.builds(an_event, st.integers(1, 10**9), st.text(), job_id=st.sampled_from(["", ID_A]), user=st.text(),
                 queue=st.text(), worker=st.text(), model=st.text(), task_type=st.text(), attempt=st.integers(0, 99),
                 detail=st.dictionaries(st.sampled_from(["error", "by", "reason", "epoch"]), st.text())))  # fmt: skip
def test_an_event_of_any_kind_is_one_line_that_fits(event: object) -> None:
    from lmq import Event

    assert isinstance(event, Event)
    with terminal():
        line = click.unstyle(event_line(event))
    assert tables.width_of(line) <= tables.WIDTH + len("2026-11-22 ")
    assert "\n" not in line
    assert "\x1b" not in line
