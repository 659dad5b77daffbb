"""`lmq limits`: what people type, and the table."""

from __future__ import annotations

import click
import msgspec
import pytest

from lmq.cli.limits import parse_value
from lmq_proto.messages import Limit, LimitView
from unit.cli.fakes import FakeBroker, run


def view(name: str, used: float = 0.0, used_by: str = "", origin: str = "file", **limit: object) -> LimitView:
    return LimitView(name=name, limit=Limit(**limit), origin=origin, used=used, used_by=used_by)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("of", "text", "value", "per_s"),
    [
        ("running", "2", 2, 0), ("bytes", "1.5 GB", 1_500_000_000, 0), ("bytes", "10MB", 10_000_000, 0),
        ("jobs", "10/min", 10, 60), ("tokens", "50k/h", 50_000, 3600), ("jobs", "1/30s", 1, 30),
        ("wait", "2min", 120_000, 0), ("running", "none", -1, 0), ("jobs", "none", -1, 1),
    ],
)  # fmt: skip
def test_values_as_people_type_them(of: str, text: str, value: float, per_s: float) -> None:
    assert parse_value(of, text) == (value, per_s)


@pytest.mark.parametrize(
    ("of", "text"), [("running", "2MB"), ("running", "x"), ("jobs", "10"), ("jobs", "1/soon"), ("wait", "x")]
)
def test_what_is_none_is_refused_with_an_example(of: str, text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"write|number"):
        parse_value(of, text)


@pytest.mark.parametrize(
    ("text", "value"), [("1k", 1e3), ("1kB", 1e3), ("2 M", 2e6), ("1.5GB", 1.5e9), ("7", 7)]
)
def test_sizes_are_written_with_or_without_their_unit(text: str, value: float) -> None:
    assert parse_value("bytes", text) == (value, 0.0)


def test_a_rate_is_used_in_whole_jobs_and_tokens() -> None:
    limit = view("tokens", 357.031, of="tokens", value=300, per_ms=60_000)
    text = run(FakeBroker(all_limits=[limit]), "limits").output
    assert ("357 " in text, "357.0" in text) == (True, False)


def test_a_number_below_0_is_told_as_such() -> None:
    ended = run(FakeBroker(), "limits", "set", "running", "-1")
    assert (ended.exit_code, "lmq: -1: numbers are 0 or more here" in ended.stderr) == (2, True)


def test_set_names_the_limit() -> None:
    broker = FakeBroker()
    result = run(broker, "limits", "set", "running", "2", "--type", "train", "--user", "*")
    assert result.exit_code == 0, result.output
    assert "running user=* task_type=train is now 2" in result.output
    assert broker.did[-1][1]["task_type"] == "train"


def test_the_table_shows_use_and_origin() -> None:
    broker = FakeBroker(all_limits=[
        view("running user=*", 3, "anna", of="running", value=4, user="*"),
        view("jobs queue=gmail", of="jobs", value=10, per_ms=60_000, queue="gmail"),
        view("running task_type=train", of="running", value=-1, task_type="train"),
    ])  # fmt: skip
    text = run(broker, "limits").output
    assert "3 (anna)" in text
    assert "10/min" in text
    assert "none" in text


def test_no_limit_says_how_to_set_one() -> None:
    assert "lmq limits set" in run(FakeBroker(), "limits").stderr


def test_a_limit_on_what_is_not_there_is_set_and_that_is_said() -> None:
    name = "running worker=gpu-9"
    listed = msgspec.structs.replace(
        view(name, of="running", value=1, worker="gpu-9"), unknown=["worker=gpu-9"]
    )
    broker = FakeBroker(all_limits=[listed])
    ended = run(broker, "limits", "set", "running", "1", "--worker", "gpu-9")
    assert (ended.exit_code, broker.did[0][0]) == (0, "set_limit")
    assert ended.stderr.strip() == "there is no worker gpu-9 now; it counts once there is one"
    assert run(broker, "limits", "set", "running", "1").stderr == ""


def test_a_limit_of_0_is_said_to_stop_all_it_covers() -> None:
    ended = run(FakeBroker(), "limits", "set", "running", "0", "--type", "train")
    assert "nothing that it covers starts any more" in ended.stderr
    assert "lmq limits reset 'running task_type=train'" in ended.stderr
    assert run(FakeBroker(), "limits", "set", "queued", "0").stderr == ""


def test_a_name_may_come_unquoted() -> None:
    broker = FakeBroker(
        all_limits=[view("running task_type=train", of="running", value=2, task_type="train")]
    )
    run(broker, "limits", "reset", "running", "task_type=train")
    assert broker.did[-1] == ("reset_limits", {"name": "running task_type=train"})


def test_reset_wants_a_name_or_all() -> None:
    assert run(FakeBroker(), "limits", "reset").exit_code == 2
