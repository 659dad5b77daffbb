"""The benchmark of who runs next: its measures on cases that can be worked out by hand, and small runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from benchmarks import fair_bands, fair_pictures, fair_traffic, fairness
from benchmarks.fair_models import pressed
from benchmarks.fair_pictures import Canvas, Plot
from benchmarks.fair_runs import (
    UNBOUNDED,
    Part,
    Plan,
    changed_bands,
    cumulative,
    patient,
    prose,
    run,
    two_endpoints,
)
from benchmarks.fair_shares import gap_of
from benchmarks.fair_traffic import FOLDER, NoTrace
from benchmarks.targets import Target

from lmq_broker.core.settings import BANDS, Settings
from lmq_broker.forecast.engines import EngineModel
from lmq_broker.forecast.replay import Request, Served

if TYPE_CHECKING:
    from pathlib import Path


def served(
    user: str, at_ms: int, started_ms: int, ended_ms: int, *, priority: int = 5, model: str = "m"
) -> Served:
    """Return a request of 100 tokens that was answered."""
    request = Request(at_ms, user, 0, 50, model=model, priority=priority)
    return Served(request, started_ms, started_ms, ended_ms, "gpu-1", 1, "done")


def test_the_arena_trace_is_here_and_as_published() -> None:
    requests = fair_traffic.trace(fair_traffic.ARENA, FOLDER)
    assert (len(requests), len({each.user for each in requests})) == (1500, 27)


def test_a_trace_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        NoTrace, match=r"no azure2023_conv\.csv in .*; name its folder with --traces or LMQ_TRACES"
    ):
        fair_traffic.trace(fair_traffic.AZURE, tmp_path)


def test_traffic_is_the_same_for_a_seed() -> None:
    assert fair_traffic.flood(3) == fair_traffic.flood(3) != fair_traffic.flood(4)
    assert fair_traffic.two_users("half", 1) != fair_traffic.two_users("half", 2)


def test_users_are_put_into_bands_as_a_whole_and_one_in_five_is_interactive() -> None:
    requests = [Request(number, f"user-{number % 10}", 1, 1) for number in range(100)]
    priorities = {each.user: each.priority for each in fair_traffic.in_bands(requests, 1)}
    assert sorted(priorities.values()) == [2, 2, 5, 5, 5, 5, 5, 5, 8, 8]


def test_requests_are_dealt_by_zipf() -> None:
    requests = [Request(number, "all", 1, 1) for number in range(11_000)]
    counts: dict[str, int] = {}
    for each in fair_traffic.among_users(requests, 3, 1):
        counts[each.user] = counts.get(each.user, 0) + 1
    assert counts["user-01"] == pytest.approx(6000, rel=0.05)
    assert counts["user-03"] == pytest.approx(2000, rel=0.1)


def test_a_trace_over_and_over_keeps_its_gaps() -> None:
    again = fair_traffic.repeated([Request(0, "a", 1, 1), Request(10, "a", 1, 1)], 2)
    assert [each.at_ms for each in again] == [0, 10, 11, 21]


def test_service_adds_up_by_the_second() -> None:
    curve = cumulative([served("ann", 0, 1000, 3000)], 4)["ann"]
    assert curve == [0, 0, 50, 100, 100]


def test_inversion_is_slot_time_that_went_below_while_a_stricter_one_waited_for_the_same_model() -> None:
    low = served("flood", 0, 1000, 9000, priority=2)
    assert fair_bands.inversion_s([low, served("ann", 500, 4000, 5000, priority=8)], Settings()) == 3.0
    assert fair_bands.inversion_s([low, served("ann", 500, 20_000, 21_000, priority=8)], Settings()) == 8.0
    assert fair_bands.inversion_s([low, served("ann", 1500, 4000, 5000, priority=8)], Settings()) == 0.0
    assert (
        fair_bands.inversion_s([low, served("ann", 500, 4000, 5000, priority=8, model="n")], Settings())
        == 0.0
    )
    assert fair_bands.inversion_s([low, served("ann", 500, 4000, 5000, priority=2)], Settings()) == 0.0


def test_endless_patience_is_of_the_bands_that_are_named() -> None:
    settings = patient(9.0, bands=(0,))
    assert [band.patience for band in settings.bands] == [9.0, *(band.patience for band in BANDS[1:])]
    assert changed_bands(Settings(), share=0.0).bands[1].share == 0.0


def test_with_endless_patience_a_static_batch_swaps_as_often_as_models_are_not_loaded() -> None:
    batch = [
        Request(0, f"user-{number % 5}", 20, 20, model=f"model-{number % 3 + 1}") for number in range(60)
    ]
    assert run(UNBOUNDED, batch, two_endpoints(3, 5.0)[:1]).figures.swaps == 2


def test_users_who_always_wait_stay_within_the_bound_under_the_fair_policy_alone() -> None:
    requests = fair_traffic.two_users("truth", 0)
    fair, fifo = gap_of("blfq", requests), gap_of("fifo", requests)
    assert fair.widest <= fair.bound
    assert fair.accumulated < 1000 < fifo.accumulated
    assert fair.jain_least == pytest.approx(1.0, abs=0.01)
    assert fifo.jain_least == pytest.approx(0.9, abs=0.01)


def test_too_much_is_refused_and_expires_and_nothing_runs_twice() -> None:
    requests = [
        Request(number * 10, f"user-{number % 3}", number % 3, 100, expires_ms=20_000)
        for number in range(300)
    ]
    found = pressed(requests, Settings(jobs_open=50), [EngineModel()])
    assert found.most_open == 50
    assert found.answered + found.refused + found.expired == 300
    assert found.refused > 0
    assert found.expired > 0
    assert found.attempts == found.answered


def test_the_report_holds_targets_parts_and_what_was_left_out() -> None:
    part = Part("### One\n\ntext\n", [Target("a", "<= 1", "2", False)])
    section = fairness.report(
        [part], "python -m x", "abc1234", ["Left out: azure."], quick=True, pictures=True
    )
    for expected in (
        "## Who runs next\n", "commit abc1234 by `python -m x`", "A quick run", "| a | <= 1 | 2 | **missed** |",
        "### One", "Left out: azure.", f"]({fair_pictures.SERVICE})", f"]({fair_pictures.TRADE})",
    ):  # fmt: skip
        assert expected in section


def test_a_part_whose_trace_is_missing_is_left_out_unless_it_was_asked_for(tmp_path: Path) -> None:
    from click.testing import CliRunner

    asked = CliRunner().invoke(
        fairness.main, ["--no-write", "--quick", "--only", "azure", "--traces", str(tmp_path)]
    )
    assert asked.exit_code == 1
    assert "no azure2023_conv.csv" in asked.stderr


def test_prose_is_one_paragraph() -> None:
    assert prose("\n   a\n   b ") == "a b\n\n"


def test_marks_that_would_lie_on_each_other_share_a_text() -> None:
    plot = Plot(Canvas(100, 100, ""), 0, 0, 100, 100, 0, 100, 100)
    marks = {"T = 5": (50.0, 50.0), "T = 8": (51.0, 51.0), "far": (50.0, 90.0)}
    assert fair_pictures._together(plot, marks) == [("T = 5, 8", (50.0, 50.0)), ("far", (50.0, 90.0))]


def test_a_picture_is_well_formed_and_says_what_it_shows(tmp_path: Path) -> None:
    from xml.etree import ElementTree as ET

    canvas = Canvas(100, 50, "what <it> shows")
    canvas.text(1, 2, "a & b")
    canvas.line([(0, 0), (1, 1)], "light")
    canvas.write(tmp_path / "x.svg")
    root = ET.fromstring((tmp_path / "x.svg").read_text(encoding="utf-8"))
    assert root[0].text == "what <it> shows"


def test_a_plan_is_what_parts_are_made_from() -> None:
    said: list[str] = []
    part = fairness.PARTS["weights"](Plan(1, FOLDER, said.append))
    assert part.targets[0].reached
    assert said == ["weights 1:2:3:4, seed 0"]
