"""What people type: durations, times, labels, jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from lmq.cli.params import parse_duration, parse_moment
from lmq.errors import WaitTimeout
from lmq_proto.states import State
from unit.cli.fakes import ID_A, ID_B, FakeBroker, FakeJob, a_job, run

NOON = datetime(2026, 11, 22, 12, 0).astimezone()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("10min", 600), ("3h", 10_800), ("2d", 172_800), ("1h30m", 5_400),
     ("500ms", 0.5), ("1.5h", 5_400), ("0", 0)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "m", "-5m", "10 m", "10x", "ten", "1e9", "9" * 400, "99999999d", "nan", "٣h"]
)
def test_what_is_no_duration(text: str) -> None:
    assert parse_duration(text) is None or text == "10 m"


@given(st.text())
def test_nothing_that_is_typed_as_a_time_raises(text: str) -> None:
    parse_duration(text)
    parse_moment(text, NOON)


def test_a_time_of_day_is_the_next_one() -> None:
    later = parse_moment("18:00", NOON)
    tomorrow = parse_moment("9:30", NOON)
    assert later is not None
    assert tomorrow is not None
    assert (later.day, later.hour) == (22, 18)
    assert (tomorrow.day, tomorrow.hour, tomorrow.minute) == (23, 9, 30)


def test_a_full_time_keeps_its_zone_and_takes_the_local_one_if_it_has_none() -> None:
    assert parse_moment("2026-11-23T18:00Z", NOON) == datetime(2026, 11, 23, 18, 0, tzinfo=UTC)
    local = parse_moment("2026-11-23T18:00", NOON)
    assert local is not None
    assert local.tzinfo is not None


def test_a_job_is_named_by_its_end_in_any_case() -> None:
    broker = FakeBroker(found=[a_job()])
    assert run(broker, "show", ID_A[-6:].lower()).exit_code == 0
    assert run(broker, "show", ID_A).exit_code == 0


def test_a_job_that_is_not_there_is_status_3() -> None:
    ended = run(FakeBroker(), "show", "ZZZZZZ")
    assert ended.exit_code == 3
    assert "no job 'ZZZZZZ'" in ended.stderr


def test_an_end_that_fits_two_jobs_is_refused() -> None:
    twins = [a_job("01M811YGTS299ZZFYVR3A7KQ2M"), a_job("01M811YGTS299ZZFYVR3B7KQ2M")]
    ended = run(FakeBroker(found=twins), "show", "7KQ2M")
    assert ended.exit_code == 2
    assert "fits several jobs" in ended.stderr


def test_last_is_the_job_that_was_submitted_last_from_here() -> None:
    broker = FakeBroker(found=[a_job(), a_job(ID_B)])
    assert run(broker, "show", "@last").exit_code == 3
    assert run(broker, "submit", "echo", "{}").output == f"{ID_A}\n"
    assert ID_A in run(broker, "show", "@last").output


def test_options_of_a_job_reach_the_sdk_under_its_names() -> None:
    broker = FakeBroker()
    ended = run(
        broker, "submit", "train", '{"a": 1}', "--queue", "night", "-p", "background", "--label", "chat=42", "--key",
        "k", "--delay", "10m", "--expires", "2h", "--timeout", "90s", "--failures", "2", "--keep", "1d",
        "--session", "s", "--depends-on", ID_B, "-m", "x", "-m", "y",
    )  # fmt: skip
    assert ended.exit_code == 0, ended.output
    assert broker.did[-1] == (
        "train",
        {"a": 1},
        {
            "model": ["x", "y"], "queue": "night", "priority": "background", "labels": {"chat": "42"},
            "idempotency_key": "k", "delay_s": 600.0, "expires_s": 7200.0, "timeout_s": 90.0, "failures": 2,
            "keep_s": 86400.0, "session": "s", "depends_on": [ID_B],
        },
    )  # fmt: skip


def test_a_delay_and_a_time_contradict_each_other() -> None:
    assert run(FakeBroker(), "submit", "echo", "--delay", "1m", "--at", "18:00").exit_code == 2


def test_since_takes_a_cursor_a_duration_or_a_time() -> None:
    broker = FakeBroker(streams=[[], [], []])
    for text in ("4711", "10m", "2026-11-22T12:00"):
        assert run(broker, "tail", "--no-follow", "--since", text).exit_code == 0
    sinces = [what[1]["since"] for what in broker.did if what[0] == "events"]
    assert sinces[0] == 4711
    assert timedelta(minutes=9) < datetime.now().astimezone() - sinces[1] < timedelta(minutes=11)
    assert sinces[2] == NOON


@pytest.mark.parametrize("name", ["@lst", "not a job", "x", "U" * 26])
def test_what_cannot_be_a_job_is_told_how_to_name_one(name: str) -> None:
    ended = run(FakeBroker(), "show", name)
    assert ended.exit_code == 2
    assert "give the last 6 characters of its id, or @last" in ended.stderr


@pytest.mark.parametrize(
    ("task_type", "payload"),
    [("chat", '{"messages": []}'), ("chat", "null"), ("chat", '{"body": []}'), ("complete", '{"body": {}}')],
)
def test_a_payload_that_its_task_type_cannot_read_is_refused_with_one_that_it_can(
    task_type: str, payload: str
) -> None:
    broker = FakeBroker()
    ended = run(broker, "submit", task_type, payload)
    assert ended.exit_code == 2
    assert f"the payload of a {task_type} job lacks body." in ended.stderr
    written = ended.stderr.rpartition("write: ")[2].strip()
    assert run(broker, "submit", task_type, written).exit_code == 0
    assert len(broker.did) == 1


def test_a_line_that_its_task_type_cannot_read_is_named_and_nothing_is_submitted(tmp_path: Path) -> None:
    file = tmp_path / "two.jsonl"
    file.write_text(
        '{"body": {"messages": [{"role": "user", "content": "Hi"}]}}\n{"messages": []}\n', "utf-8"
    )
    broker = FakeBroker()
    ended = run(broker, "submit", "chat", "-f", str(file))
    assert ended.exit_code == 2
    assert "line 2 of a chat job lacks body.messages" in ended.stderr
    assert broker.did == []


def test_a_verb_that_a_noun_does_not_have_is_told_with_those_it_has() -> None:
    ended = run(FakeBroker(), "queues", "stop")
    assert ended.exit_code == 2
    assert "queues has no verb 'stop'; there are: " in ended.stderr
    assert "pause" in ended.stderr


def test_who_waited_too_long_is_told_the_time_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(job: FakeJob, timeout_s: float | None = None) -> State:
        raise WaitTimeout(f"job {job.id}", timeout_s or 0.0)

    monkeypatch.setattr(FakeJob, "wait", late)
    ended = run(FakeBroker(found=[a_job()]), "wait", ID_A, "--timeout", "90s")
    assert (ended.exit_code, ended.stderr.strip()) == (124, f"lmq: waited 90 s for job {ID_A[-6:]}")
