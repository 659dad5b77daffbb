"""`lmq forecast` as it is typed: found by the client's command line, no broker anywhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from lmq.cli.root import daemons

if TYPE_CHECKING:
    from pathlib import Path

    from integration.cli.conftest import Lmq

pytestmark = pytest.mark.skipif(
    "forecast" not in daemons(), reason="lmq forecast is not installed: pip install -e ."
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two users, two models, one of them in a hurry."""
    rows = [f"{number / 10},user-{number % 2},50,60,model-{number % 2},5" for number in range(60)]
    rows += [f"{number},user-2,50,20,model-0,interactive" for number in range(6)]
    file = tmp_path / "trace.csv"
    file.write_text(
        "\n".join(["t_s,user,in_tokens,out_tokens,model,priority", *rows]) + "\n", encoding="utf-8"
    )
    return file


def test_a_second_endpoint_is_compared_with_one(lone: Lmq, trace: Path) -> None:
    shown = lone.run("forecast", str(trace), "--endpoints", "1", "--endpoints", "2", "--load-s", "5")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("66 requests of 3 users for 2 models within 6 s\n")
    assert "  interactive, p50" in shown.stdout
    assert shown.stderr == ""
    told = json.loads(
        lone.run(
            "--json", "forecast", str(trace), "--endpoints", "1", "--endpoints", "2", "--load-s", "5"
        ).stdout
    )
    one, two = told["forecasts"]
    assert one["answered"] == two["answered"] == 66
    assert two["makespan_s"] < one["makespan_s"]
    assert (one["swaps"] > 0, two["swaps"]) == (True, 0)


def test_the_same_trace_comes_in_by_a_pipe_and_gives_the_same(lone: Lmq, trace: Path) -> None:
    text = trace.read_text(encoding="utf-8")
    assert lone.run("forecast", "-", given=text).stdout == lone.run("forecast", str(trace)).stdout


def test_a_wrong_row_ends_with_its_line_and_status_2(lone: Lmq, trace: Path) -> None:
    with trace.open("a", encoding="utf-8") as file:
        file.write("7,user-9,many,1,model-0,5\n")
    ended = lone.run("forecast", str(trace))
    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{trace}: line 68, in_tokens = 'many': allowed is a whole number" in ended.stderr


def test_a_trace_that_is_not_there_is_named(lone: Lmq) -> None:
    ended = lone.run("forecast", "nowhere.csv")
    assert ended.returncode == 2
    assert "nowhere.csv" in ended.stderr
