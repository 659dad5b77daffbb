"""Traces: what is read, and which words a wrong row gets."""

from __future__ import annotations

import pytest

from lmq_broker.forecast.replay import Request
from lmq_broker.forecast.traces import BadTrace, dealt, read, stretched

HEAD = "t_s,user,in_tokens,out_tokens"


def test_a_trace_begins_with_its_first_request_and_is_in_order_of_time() -> None:
    found = read([HEAD, "1700000002.5,tom,7,9", "1700000000.0,anna,12,34"])
    assert found == [Request(0, "anna", 12, 34), Request(2500, "tom", 7, 9)]


def test_model_and_priority_may_be_given_by_number_or_by_name_or_left_out() -> None:
    found = read([f"{HEAD},model,priority", "0,a,1,1,qwen,8", "1,a,1,1,qwen,background", "2,a,1,1,,"])
    assert [(each.model, each.priority) for each in found] == [("qwen", 8), ("qwen", 2), ("model", 5)]


def test_columns_may_stand_in_any_order_among_others() -> None:
    found = read(["out_tokens,note,user,in_tokens,t_s", "9,hello,anna,7,0"])
    assert found == [Request(0, "anna", 7, 9)]


def test_azures_traces_are_read_as_they_are() -> None:
    found = read([
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16 18:15:50.9951690,396,109",
    ])  # fmt: skip
    assert found == [Request(0, "all", 374, 44), Request(4315, "all", 396, 109)]


@pytest.mark.parametrize(
    ("lines", "line", "column", "value"),
    [
        ([], 1, "header", ""),
        (["time,user", "0,anna"], 1, "header", "time,user"),
        ([HEAD], 2, "row", ""),
        ([HEAD, "0,anna,1,1", "soon,anna,1,1"], 3, "t_s", "soon"),
        ([HEAD, "-1,anna,1,1"], 2, "t_s", "-1"),
        ([HEAD, "nan,anna,1,1"], 2, "t_s", "nan"),
        ([HEAD, "0,,1,1"], 2, "user", ""),
        ([HEAD, f"0,{'a' * 129},1,1"], 2, "user", "a" * 129),
        ([HEAD, "0,an\x1bna,1,1"], 2, "user", "an\x1bna"),
        ([HEAD, "0,anna,1.5,1"], 2, "in_tokens", "1.5"),
        ([HEAD, "0,anna,1"], 2, "out_tokens", ""),
        ([HEAD, "0,anna,1,-4"], 2, "out_tokens", "-4"),
        ([HEAD, f"0,anna,1,{1 << 40}"], 2, "out_tokens", str(1 << 40)),
        ([f"{HEAD},priority", "0,anna,1,1,10"], 2, "priority", "10"),
        ([f"{HEAD},priority", "0,anna,1,1,urgent"], 2, "priority", "urgent"),
        (["TIMESTAMP,ContextTokens,GeneratedTokens", "noon,1,1"], 2, "TIMESTAMP", "noon"),
        ([HEAD, "0,anna,1,1", "40000000,anna,1,1"], 3, "time", "40000000 s"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_with_line_column_value_and_what_is_allowed(
    lines: list[str], line: int, column: str, value: str
) -> None:
    with pytest.raises(BadTrace) as caught:
        read(lines)
    error = caught.value
    assert (error.line, error.column, error.value) == (line, column, value)
    assert error.limit
    assert str(error).startswith(f"line {line}, {column} = ")
    assert len(str(error)) < 200


def test_what_is_no_csv_is_a_bad_trace_too() -> None:
    with pytest.raises(BadTrace) as caught:
        read([HEAD, f'0,"{"a" * 200_000}",1,1'])
    assert (caught.value.line, caught.value.column) == (2, "row")


def test_stretching_changes_times_alone() -> None:
    assert stretched([Request(1000, "anna", 1, 2)], 2.2) == [Request(2200, "anna", 1, 2)]


def test_users_are_dealt_over_models_evenly_and_the_same_way_for_a_seed() -> None:
    requests = [Request(number, f"user-{number % 9}", 1, 1) for number in range(90)]
    by_user = {each.user: each.model for each in dealt(requests, 3, seed=4)}
    assert sorted(by_user.values()) == sorted(["model-1", "model-2", "model-3"] * 3)
    assert {each.user: each.model for each in dealt(requests, 3, seed=4)} == by_user
    assert {each.user: each.model for each in dealt(requests, 3, seed=5)} != by_user
