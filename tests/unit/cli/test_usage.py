"""`lmq usage` and `lmq metrics`: what is asked, the table that fits, JSON, CSV, prices."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, strategies as st

from lmq import UsageReply, UsageRow
from lmq.cli import humane, tables
from lmq.cli.usage import usage_table
from unit.cli.fakes import DAY_MS, FakeBroker, run, terminal

HOUR_MS = 3_600_000


def a_row(user: str = "", **sums: Any) -> UsageRow:
    told: dict[str, Any] = {
        "done": 1203, "prompt_tokens": 1_234_567, "output_tokens": 340_400, "engine_ms": 3 * HOUR_MS,
        "wait_p50_ms": 400, "wait_p95_ms": 12_300, "run_p50_ms": 8200, "run_p95_ms": 130_000,
    }  # fmt: skip
    return UsageRow(user=user, **told | sums)


def two_users() -> FakeBroker:
    rows = [a_row("ann", engine_ms=HOUR_MS), a_row("tom", dead=2)]
    return FakeBroker(sums=rows, total=a_row(done=2406, dead=2, engine_ms=4 * HOUR_MS))


def asked(*words: str) -> dict[str, Any]:
    broker = two_users()
    ended = run(broker, "usage", *words)
    assert ended.exit_code == 0, ended.output
    wish = broker.did[0][1]
    assert isinstance(wish, dict)
    return wish


# --- what is asked ----------------------------------------------------------------------------------------------------


def test_a_week_by_user_is_asked_unless_told_otherwise() -> None:
    wish = asked()
    assert (wish["by"], wish["user"], wish["until"]) == (["user"], "", None)
    age = datetime.now().astimezone() - wish["since"]
    assert timedelta(days=7) <= age < timedelta(days=7, minutes=5)


def test_a_date_is_a_day_in_utc_and_the_last_one_is_in() -> None:
    wish = asked("--since", "2026-11-01", "--until", "2026-11-30", "--by", "type, model", "--user", "ann")
    assert wish["since"] == datetime(2026, 11, 1, tzinfo=UTC)
    assert wish["until"] > datetime(2026, 11, 30, tzinfo=UTC), "the day begins before it"
    assert wish["until"] < datetime(2026, 12, 1, tzinfo=UTC)
    assert (wish["by"], wish["user"]) == (["task_type", "model"], "ann")
    assert asked("--as", "shop/alice")["user"] == "shop/alice"


@pytest.mark.parametrize(
    "words",
    [["--by", "queue"], ["--by", ""], ["--by", "user,user"], ["--since", "yesterday"], ["--until", "2026-13-01"],
     ["--price-hour", "-1"], ["--csv", "--json"]],
    ids=" ".join,
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_anyone_is_asked(words: list[str]) -> None:
    broker = two_users()
    ended = run(broker, "usage", *words)
    assert (ended.exit_code, broker.did) == (2, [])


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_what_used_most_at_the_top_and_a_total() -> None:
    ended = run(two_users(), "usage")
    assert ended.stdout.splitlines() == [
        "2026-11-23 to 2026-11-24 (UTC), by user",
        "USER    DONE  DEAD  PROMPT  OUTPUT  ENGINE      WAIT      RUN",
        "tom    1,203     2    1.2M    340k   3h00m  0.4s/12s  8.2s/2m",
        "ann    1,203     0    1.2M    340k   1h00m  0.4s/12s  8.2s/2m",
        "total  2,406     2    1.2M    340k   4h00m  0.4s/12s  8.2s/2m",
    ]
    assert "95 % up to the second" in ended.stderr


def test_by_day_it_is_in_the_order_of_days_and_one_row_needs_no_total() -> None:
    days = [UsageRow(day="2026-11-23", engine_ms=1), UsageRow(day="2026-11-24", engine_ms=HOUR_MS)]
    shown = run(FakeBroker(sums=days), "usage", "--by", "day").stdout.splitlines()
    assert [line.split()[0] for line in shown[2:]] == ["2026-11-23", "2026-11-24", "total"]
    assert len(run(FakeBroker(sums=days[:1]), "usage", "--by", "day").stdout.splitlines()) == 3


def test_what_nobody_did_has_no_column_and_times_of_nothing_are_a_dash() -> None:
    row = UsageRow(model="", cancelled=1)
    shown = run(FakeBroker(sums=[row], total=row), "usage", "--by", "model").stdout.splitlines()
    assert shown[1].split() == ["MODEL", "DONE", "CANC.", "PROMPT", "OUTPUT", "ENGINE", "WAIT", "RUN"]
    assert shown[2].split() == ["-", "0", "1", "0", "0", "0.0s", "-", "-"]


def test_an_hour_has_a_price_if_somebody_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "COST" not in run(two_users(), "usage").stdout
    assert [line.split()[-1] for line in run(two_users(), "usage", "--price-hour", "0.4").stdout.splitlines()[1:]] == [
        "COST", "1.20", "0.40", "1.60",
    ]  # fmt: skip
    folder = tmp_path / "config" / "lmq"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[client]\nprice_hour = 2\n", "utf-8")
    assert run(two_users(), "usage").stdout.splitlines()[-1].endswith("8.00")
    assert run(two_users(), "config", "check").exit_code == 0
    assert "price_hour" in run(two_users(), "config").stdout
    monkeypatch.setenv("LMQ_PRICE_HOUR", "3")
    assert run(two_users(), "usage").stdout.splitlines()[-1].endswith("12.00")
    monkeypatch.setenv("LMQ_PRICE_HOUR", "much")
    ended = run(two_users(), "usage")
    assert (ended.exit_code, "price_hour = 'much' must be a number" in ended.stderr) == (2, True)
    (folder / "config.toml").write_text("[client]\nprice_hour = [1]\n", "utf-8")
    monkeypatch.delenv("LMQ_PRICE_HOUR")
    assert run(two_users(), "config", "check").exit_code == 2


def test_small_costs_have_more_digits_than_large_ones() -> None:
    def shown(price: str) -> list[str]:
        return [
            line.split()[-1]
            for line in run(two_users(), "usage", "--price-hour", price).stdout.splitlines()[2:]
        ]

    assert shown("0.02") == ["0.0600", "0.0200", "0.0800"]
    assert shown("50") == ["150.00", "50.00", "200.00"]
    assert shown("0") == ["0.00", "0.00", "0.00"]


def test_a_row_whose_only_number_has_no_room_is_left_out() -> None:
    busy = a_row("ann", model="m" * 30, task_type="t" * 30, done=10**5)
    gone = UsageRow(user="root", model="fast", task_type="chat", cancelled=1)
    total = a_row(done=10**5, cancelled=10**6, expired=10**6)
    broker = FakeBroker(sums=[busy, gone], total=total)
    with terminal():
        ended = run(broker, "usage", "--by", "user,model,type", "--price-hour", "1")
    assert "root" not in ended.stdout
    assert (
        "(no room here for EXP., CANC., WAIT, RUN, nor for rows with nothing else; --csv has all)"
        in ended.stderr
    )
    assert "root" in run(broker, "usage", "--by", "user").stdout
    assert "root" in run(broker, "usage", "--by", "user,model,type", "--csv").stdout


def test_where_nothing_was_used_it_says_so() -> None:
    ended = run(FakeBroker(), "usage")
    assert (ended.stdout, ended.stderr) == ("", "nothing was used, 2026-11-23 to 2026-11-24 (UTC)\n")


names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40)
counts = st.integers(0, 10**9)
some_times = st.none() | st.integers(0, 10**9)
any_rows = st.builds(
    UsageRow, day=st.just("2026-11-23"), user=names, model=names, task_type=names, done=counts, dead=counts,
    cancelled=counts, expired=counts, prompt_tokens=st.integers(0, 10**15), output_tokens=counts, engine_ms=counts,
    wait_p50_ms=some_times, wait_p95_ms=some_times, run_p50_ms=some_times, run_p95_ms=some_times,
)  # fmt: skip


@given(st.lists(any_rows, min_size=1, max_size=4), st.permutations(["day", "user", "model", "task_type"]),
       st.integers(1, 3), st.none() | st.floats(0, 100))  # fmt: skip
def test_whatever_was_used_the_table_fits_and_no_number_is_cut(
    rows: list[UsageRow], order: list[str], columns: int, price: float | None
) -> None:
    by = order[:columns]
    reply = UsageReply(request_id=1, since_ms=0, until_ms=DAY_MS, rows=rows, total=rows[0])
    with terminal():
        lines, _ = usage_table(reply, by, price)
    head, *shown = [click.unstyle(line) for line in lines]
    numbers = len(head) - head.index("DONE") - len("DONE")
    for line in [head, *shown]:
        assert tables.width_of(line) <= tables.WIDTH
        assert "…" not in line[-numbers:]


def test_columns_that_have_no_room_are_named() -> None:
    row = UsageRow(
        user="u" * 30, model="m" * 30, task_type="t" * 30, done=10**5, cancelled=10**6, expired=10**6
    )
    words = ["usage", "--by", "user,model,type", "--price-hour", "1"]
    assert "no room" not in run(FakeBroker(sums=[row], total=row), *words).stderr
    with terminal():
        ended = run(FakeBroker(sums=[row], total=row), *words)
    assert (
        "(no room here for EXP., CANC., WAIT, RUN, nor for rows with nothing else; --csv has all)"
        in ended.stderr
    )
    assert ended.stdout.splitlines()[1].split() == [
        "USER", "MODEL", "TYPE", "DONE", "PROMPT", "OUTPUT", "ENGINE", "COST",
    ]  # fmt: skip


def test_a_row_that_would_be_zeros_for_want_of_room_is_left_to_the_csv() -> None:
    row = a_row("u" * 14, model="m" * 14, task_type="t" * 14, expired=1)
    gone = UsageRow(user="root", model="fast", task_type="chat", cancelled=1)
    broker = FakeBroker(sums=[row, row, gone], total=row)
    with terminal():
        ended = run(broker, "usage", "--by", "user,model,type")
    assert "CANC." in ended.stderr
    assert "root" not in ended.stdout
    assert "root" in run(broker, "usage", "--by", "user,model,type").stdout


def test_low_costs_have_more_digits() -> None:
    rows = [a_row("ann", engine_ms=HOUR_MS // 100), a_row("tom", engine_ms=HOUR_MS)]
    shown = run(FakeBroker(sums=rows, total=rows[1]), "usage", "--price-hour", "0.4").stdout.splitlines()
    assert [line.split()[-1] for line in shown[2:4]] == ["0.4000", "0.0040"]


def test_an_end_before_the_beginning_is_told_in_days() -> None:
    ended = run(FakeBroker(), "usage", "--since", "2026-11-18", "--until", "2026-01-01")
    assert (ended.exit_code, "--until 2026-01-01 is before --since 2026-11-18" in ended.stderr) == (2, True)
    same = asked("--since", "2026-11-18T12:00+00:00", "--until", "2026-11-18")
    assert same["since"] < same["until"] < datetime(2026, 11, 19, tzinfo=UTC)


def test_hours_are_told_to_be_a_whole_day() -> None:
    assert "all of each day" in run(two_users(), "usage", "--since", "1s").stderr
    assert "all of each day" not in run(two_users(), "usage", "--since", "7d").stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0s"), (0.44, "0.4s"), (9.96, "10s"), (99, "99s"), (100, "2m"), (3599, "1h00m"), (11_520, "3h12m"),
     (360_000, "100h"), (36_000_000, "10,000h")],
)  # fmt: skip
def test_durations_for_narrow_columns(seconds: float, text: str) -> None:
    assert humane.short_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (9950, "10k"), (340_400, "340k"), (999_600, "1.0M"), (10**9, "1.0G"),
     (10**19, "10,000P")],
)  # fmt: skip
def test_numbers_for_narrow_columns(count: int, text: str) -> None:
    assert humane.number(count) == text


# --- for programs -----------------------------------------------------------------------------------------------------


def test_json_has_the_columns_asked_for_and_times_in_seconds() -> None:
    told = json.loads(run(two_users(), "--json", "usage", "--price-hour", "0.4").stdout)
    assert (told["since_ms"], told["until_ms"]) == (20_780 * DAY_MS, 20_782 * DAY_MS)
    assert told["rows"][0] == {
        "user": "ann", "done": 1203, "dead": 0, "cancelled": 0, "expired": 0, "prompt_tokens": 1_234_567,
        "output_tokens": 340_400, "engine_s": 3600.0, "wait_p50_s": 0.4, "wait_p95_s": 12.3, "run_p50_s": 8.2,
        "run_p95_s": 130.0, "cost": 0.4,
    }  # fmt: skip
    assert told["total"]["cost"] == 1.6


def test_csv_reads_back_whatever_the_names_are() -> None:
    names = ['a "b", c', "line\nend", "ünïcödé"]
    broker = FakeBroker(sums=[UsageRow(user=name, done=number) for number, name in enumerate(names)])
    ended = run(broker, "usage", "--csv")
    assert ended.stderr == ""
    read = list(csv.DictReader(ended.stdout.splitlines(keepends=True)))
    assert [(row["user"], row["done"], row["wait_p50_s"]) for row in read] == [
        (name, str(number), "") for number, name in enumerate(names)
    ]
    assert "cost" not in read[0]
    assert run(FakeBroker(), "usage", "--csv").stdout.startswith("user,done,dead,")


def test_metrics_are_printed_as_they_are() -> None:
    broker = FakeBroker()
    assert run(broker, "metrics").stdout == "lmq_sessions 1\n"
    assert run(broker, "--json", "metrics", "--users").stdout == '{"text": "lmq_sessions 1\\n"}\n'
    assert broker.did == [("metrics", False), ("metrics", True)]
