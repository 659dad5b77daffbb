"""The pure parts of the benchmarks: percentiles, ratios, verdicts, tables. Nothing here is timed."""

from pathlib import Path

import pytest
from benchmarks import added, scale_report, text
from benchmarks.added import Call, Commits, Pairs
from benchmarks.command import Wishes, typed
from benchmarks.decisions import Decisions, World, measure
from benchmarks.results import DOCUMENT, ROOT, BrokenSection, markdown_table, percentile, write_section
from benchmarks.scale_report import Found, Load, Looks, Memory, Rates, Restart
from benchmarks.targets import Target, targets_table
from benchmarks.text import Run


def a_run(
    *,
    pieces: int = 1000,
    written: int = 10,
    gaps: int = 0,
    cut_off: int = 0,
    seconds: float = 1.0,
    p99_ms: float = 1.0,
) -> Run:
    """A run with 100 readers that wrote for one second."""
    return Run(
        pace_per_s=1, readers=100, written=written, writing_s=1.0, pieces=pieces, messages=pieces, reading_s=seconds,
        gaps=gaps, cut_off=cut_off, delays_ms=[p99_ms] * 10, stalled_cut_off=None,
    )  # fmt: skip


@pytest.mark.parametrize(("hundredths", "expected"), [(0, 1), (50, 50), (99, 99), (100, 100)])
def test_a_percentile_is_the_value_of_the_nearest_rank(hundredths: int, expected: float) -> None:
    assert percentile(list(range(100, 0, -1)), hundredths) == expected


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_figures_stand_to_the_right_of_a_table_and_words_to_the_left() -> None:
    assert markdown_table(["what", "ms"], [["a", "1"]]) == "| what | ms |\n| --- | ---: |\n| a | 1 |\n"


def test_a_target_is_reached_missed_or_not_told_by_this_run() -> None:
    targets = [
        Target("a", "<= 1", "1", True),
        Target("b", "<= 1", "2", False),
        Target("c", "<= 1", "3", None),
    ]
    rows = targets_table(targets).splitlines()[2:]
    assert [row.split(" | ")[-1] for row in rows] == ["yes |", "**missed** |", "not at this size |"]


def test_a_section_is_replaced_where_it_stands_and_the_rest_stays(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    write_section(document, "one", "first\n")
    write_section(document, "two", "second\n")
    write_section(document, "one", "third\n")
    text_of_it = document.read_text()
    assert "first" not in text_of_it
    assert text_of_it.index("third") < text_of_it.index("second")


def test_a_section_with_one_mark_is_left_for_a_person(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    document.write_text("<!-- begin:one -->\n")
    with pytest.raises(BrokenSection):
        write_section(document, "one", "text")


def test_the_command_in_a_section_names_no_path_of_this_machine() -> None:
    wishes = Wishes(quick=True, no_write=False, output=DOCUMENT, directory=ROOT)
    assert typed("scale", wishes, "--only", "rates") == "python -m benchmarks.scale --quick --only rates"


def test_what_lmq_adds_is_the_difference_within_each_pair() -> None:
    pairs = Pairs([Call(10, 100), Call(20, 200)], [Call(11, 103), Call(23, 205)])
    assert pairs.added_first_ms() == [1, 3]
    assert pairs.added_done_ms() == [3, 5]


def test_done_may_take_one_commit_more() -> None:
    pairs = Pairs([Call(1, 10)], [Call(4, 14.5)])
    commits = Commits(broker_p50_ms=3.0, broker_p99_ms=5.0, fsync_ms=[1.0])
    first, done = added.targets([(added.SETTINGS[0], pairs, commits)])
    assert (first.reached, done.reached) == (False, True)
    assert done.reach == "<= 2 ms + one commit = 5.00 ms"


def test_the_report_of_added_holds_each_setting_and_its_targets() -> None:
    pairs = Pairs([Call(1, 10)] * 3, [Call(2, 12)] * 3)
    measured = [(setting, pairs, Commits(1.0, 2.0, [0.5])) for setting in added.SETTINGS]
    section = added.report(measured, "Measured today.\n")
    for setting in added.SETTINGS:
        assert f"| {setting.name} | first piece | 3 | 1.00 | 1.00 | 2.00 | 2.00 | 1.00 | 1.00 |" in section
    assert section.count("| yes |") == 4


def test_the_ratio_of_rates_is_the_median_of_those_within_rounds() -> None:
    # Both halved in the second round: the machine was busy, the queue's length changed nothing.
    assert scale_report.ratio([100, 50, 100], [100, 50, 90]) == 1.0


def test_flatness_is_the_dearest_size_over_the_cheapest() -> None:
    sizes = [
        Decisions("p", 100, [1.0, 1.0, 2.0], [2.0]),
        Decisions("p", 1000, [3.0], [3.0]),
        Decisions("p", 10_000, [2.5], [2.5]),
    ]
    assert scale_report.flatness(sizes) == 1.5


def test_bytes_a_job_are_what_came_with_the_jobs() -> None:
    assert Memory("chats", 1000, 50_000_000, 50_700_000).job_bytes == 700


def test_a_short_queue_neither_reaches_nor_misses_the_targets_of_a_long_one() -> None:
    found = Found(
        decisions={
            "strict": [Decisions("strict", 100, [1.0], [1.0]), Decisions("strict", 1000, [9.0], [9.0])]
        },
        memories=[Memory("chats", 1000, 70_000_000, 80_000_000)],
        restart=Restart(1000, 1.0, 1.1),
        rates=Rates(Load(10, [1.0], [1.0], [1.0]), Load(20, [0.1], [0.1], [0.1])),
    )
    verdicts = {target.what: target.reached for target in scale_report.targets(found)}
    assert verdicts.pop("memory, idle") is False
    assert set(verdicts.values()) == {None}


def test_a_long_queue_is_held_to_its_targets() -> None:
    found = Found(
        decisions={
            "strict": [
                Decisions("strict", 100_000, [10.0] * 98 + [60.0] * 2, [10.0]),
                Decisions("strict", 1_000_000, [10.0], [10.0]),
            ]
        },
        memories=[Memory("chats", 1_000_000, 50_000_000, 750_000_000)],
        restart=Restart(1_000_000, 9.0, 11.0),
        rates=Rates(Load(1000, [1.0], [1.0], [1.0]), Load(1_000_000, [0.95], [0.8], [1.0])),
    )  # fmt: skip
    assert [target.reached for target in scale_report.targets(found)] == [
        False, True, True, False, True, True, True, False,
    ]  # fmt: skip


def test_the_report_of_scale_holds_what_was_measured_and_leaves_out_the_rest() -> None:
    looks = Looks(100, [1.0], [2.0], [3.0])
    section = scale_report.report(Found(quick=True, looks=looks), "Measured today.\n")
    assert "| status with `ahead` | 1.00 | 1.00 |" in section
    assert "quick run" in section
    assert "bytes a job" not in section


def test_a_pace_is_held_only_if_every_piece_came_in_order_and_in_time() -> None:
    assert a_run().is_held
    assert not a_run(pieces=999).is_held
    assert not a_run(gaps=1).is_held
    assert not a_run(cut_off=1).is_held
    assert not a_run(seconds=1.2).is_held


def test_the_best_pace_is_of_those_that_were_held() -> None:
    held, lost = a_run(), a_run(written=100, pieces=9000)
    assert text.best([held, lost]) is held
    assert text.best([lost]) is None


def test_a_stalled_reader_is_judged_by_the_pairs() -> None:
    pairs = [
        (a_run(p99_ms=10), a_run(p99_ms=11)),
        (a_run(p99_ms=40), a_run(p99_ms=40)),
        (a_run(), a_run(p99_ms=9)),
    ]
    assert text.p99_ratio(pairs) == pytest.approx(1.1)
    assert [target.reached for target in text.targets([a_run()], pairs)] == [False, True]


def test_the_report_of_text_has_a_row_for_each_pace_and_pair() -> None:
    section = text.report([a_run()], [(a_run(), a_run())], "Measured today.\n")
    assert "| 1 | 1,000 | 1,000 | 1,000 | 1.0 | 1.0 | 0 | yes |" in section
    assert "| 1 | 1.0 | 1.0 | 1.0 | 1.0 | no |" in section


def test_a_world_stays_as_long_as_it_was_and_every_end_costs_a_decision() -> None:
    world = World("strict", 200, users=20)
    assert world.waiting == 200
    taken = world.decide(50)
    assert sum(each.starts for each in taken) == 50 <= len(taken)
    assert world.waiting == 200


def test_decisions_are_measured_beside_few_and_many_users() -> None:
    found = measure("blfq", [(200, 1), (200, 50)], rounds=1, ends=20)
    assert [each.users for each in found] == [1, 50]
    assert all(len(each.starts_us) == 20 for each in found)
    table = scale_report.users_table(found)
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == ["1", "50"]
