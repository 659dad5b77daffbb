"""`lmq doctor`: one fault planted in each test; it is found, alone, with what to type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from lmq import InstanceInfo, LimitView, ModelView, QueueView, WorkerView
from lmq.cli import humane
from lmq.cli.diagnosis import TOLD_ELSEWHERE, Facts, Finding, diagnose
from lmq.cli.endpoint import Endpoint
from lmq_broker.core import briefly
from lmq_proto.messages import Breaker, Capacity, Hold, Limit
from unit.cli.fakes import FakeBroker, NoBroker, a_job, health, run

URL = "tcp://127.0.0.1:7766"
LOADED = InstanceInfo(instance_id="qwen3-8b", model="qwen3-8b", slots=4, context_tokens=8192)


def a_worker(**fields: Any) -> WorkerView:
    told = {
        "name": "gpu-1", "endpoint": "http://127.0.0.1:1234", "backend": "lm_studio", "host": "box", "state": "up",
        "software": "lmq-worker 0.1.0", "capacity": Capacity(instances=[LOADED]), **fields,
    }  # fmt: skip
    return WorkerView(**told)


def loaded(**fields: Any) -> WorkerView:
    return a_worker(capacity=Capacity(instances=[msgspec.structs.replace(LOADED, **fields)]))


WELL = Facts(
    url=URL, health=health(), workers=[a_worker()], models=[ModelView(model="qwen3-8b", kind="llm")], version="0.1.0",
    local=Endpoint("http://127.0.0.1:1234", "lm_studio", llms=["qwen3-8b"]),
)  # fmt: skip


def wrong(facts: Facts) -> list[Finding]:
    return [one for one in diagnose(facts) if one.level != "ok"]


def only(facts: Facts) -> Finding:
    found = wrong(facts)
    assert len(found) == 1, found
    return found[0]


def test_nothing_is_wrong_where_nothing_is_planted() -> None:
    assert wrong(WELL) == []


def test_no_broker() -> None:
    found = only(replace(WELL, health=None, trouble="no broker"))
    assert (found.level, found.text, found.cure) == ("fault", f"no broker at {URL}", "lmq up")


def test_a_second_broker() -> None:
    found = only(replace(WELL, other_brokers=["ipc:///run/x.sock"]))
    assert found.level == "fault"
    assert "second broker answers at ipc:///run/x.sock" in found.text
    assert "LMQ_URL" in found.cure


@pytest.mark.parametrize("workers", [[], [a_worker(state="gone")]])
def test_no_worker(workers: list[WorkerView]) -> None:
    found = wrong(replace(WELL, workers=workers, waiting=[a_job()]))
    assert found[0] == Finding("fault", "no worker is connected; 1 job waits", "lmq up")


def test_the_endpoint_is_down() -> None:
    worker = a_worker(capacity=Capacity(breaker=Breaker(since_ms=0, reason="connection refused")))
    found = only(replace(WELL, workers=[worker]))
    assert "http://127.0.0.1:1234 of worker gpu-1 is down: connection refused" in found.text
    assert found.cure == "on box: start LM Studio's server, or: lms server start"


def test_lm_studio_does_not_serve_the_network() -> None:
    breaker = Breaker(since_ms=0, reason="connection refused")
    worker = a_worker(endpoint="http://gpu-2:1234", capacity=Capacity(breaker=breaker))
    found = only(replace(WELL, workers=[worker], local=None))
    assert "may not serve the network" in found.text
    assert found.cure.startswith("on gpu-2:")
    assert "--bind 0.0.0.0" in found.cure


def test_a_note_of_the_worker_is_passed_on() -> None:
    note = "LM Studio listens on this machine only; type: lms server start --bind 0.0.0.0"
    worker = a_worker(capacity=Capacity(instances=[LOADED], notes=[note]))
    found = only(replace(WELL, workers=[worker]))
    assert found.cure == "lms server start --bind 0.0.0.0"


def test_a_small_context() -> None:
    found = only(replace(WELL, workers=[loaded(context_tokens=2048)]))
    assert "context of 2,048 tokens" in found.text
    assert found.cure == "on box: lms load qwen3-8b --context-length 8192"
    assert wrong(replace(WELL, workers=[loaded(context_tokens=4096)])) == []


def test_a_model_that_no_endpoint_has() -> None:
    jobs = [a_job(models=["qwen3-32b"]), a_job(models=["qwen3-32b"]), a_job(models=["qwen3-8b"])]
    found = only(replace(WELL, waiting=jobs))
    assert found.text == "2 jobs wait for qwen3-32b, which no endpoint has"
    assert found.cure == "lms get qwen3-32b, or: lmq models"


def test_parallel_is_one() -> None:
    found = only(replace(WELL, workers=[loaded(slots=1)]))
    assert (found.level, found.cure) == ("advice", "on box: lms load qwen3-8b --parallel 4")


def test_one_job_at_a_time_for_another_reason_is_not_cured_by_loading_it_again() -> None:
    assert wrong(replace(WELL, workers=[loaded(slots=1, limit_by="errors")])) == []
    only(replace(WELL, workers=[loaded(slots=1, limit_by="slots")]))


def test_a_note_that_says_the_same_is_not_told_twice() -> None:
    note = "qwen3-8b runs one job at a time; type: lms load qwen3-8b --parallel 4"
    worker = a_worker(capacity=Capacity(instances=[msgspec.structs.replace(LOADED, slots=1)], notes=[note]))
    only(replace(WELL, workers=[worker]))


def test_versions_differ() -> None:
    assert (
        "broker is version 0.2.0" in wrong(replace(WELL, health=health(software="lmq-broker 0.2.0")))[0].text
    )
    found = only(replace(WELL, workers=[a_worker(software="lmq-worker 0.0.9")]))
    assert "worker gpu-1 is version 0.0.9" in found.text
    assert "pip install --upgrade lmq" in found.cure


def test_no_protocol_in_common() -> None:
    found = only(replace(WELL, health=None, needs_upgrade=True, trouble="protocol 3 is newer"))
    assert found.cure.startswith("pip install --upgrade lmq")


def test_the_clocks_differ() -> None:
    found = only(replace(WELL, health=health(wall_ms=63_000), now_ms=3_000))
    assert found.text == "the broker's clock is 1 min ahead of this machine's"
    assert "set-ntp" in found.cure
    assert "behind" in only(replace(WELL, health=health(wall_ms=0), now_ms=60_000)).text


def test_the_clock_is_in_trouble() -> None:
    assert "held: it jumped" in only(replace(WELL, health=health(clock_trouble="it jumped"))).text


def test_the_disk_is_low() -> None:
    low = health(journal_free_bytes=15 * 10**7, journal_floor_bytes=10**8, journal_path="/var/lib/lmq")
    found = only(replace(WELL, health=low))
    assert found.text == "the journal's disk has 150 MB free; under 100 MB submits are refused"
    assert "/var/lib/lmq" in found.cure
    assert "disk is full" in only(replace(WELL, health=health(disk_trouble="disk is full"))).text


def test_a_paused_worker_is_named_with_the_one_who_paused_it() -> None:
    worker = a_worker(state="paused", hold=Hold(kind="pause", by="tom", since_ms=0))
    found = only(replace(WELL, workers=[worker]))
    assert (found.text, found.cure) == ("worker gpu-1 is paused by tom", "lmq workers resume gpu-1")


def test_a_paused_queue_with_jobs_is_named() -> None:
    hold = Hold(kind="pause", by="tom", since_ms=0, reason="new data")
    paused = QueueView(name="night", ready=2, hold=hold)
    found = only(replace(WELL, queues=[paused]))
    assert found.text == "queue night is paused by tom (new data); 2 jobs wait there"
    assert found.cure == "lmq queues resume night"
    assert wrong(replace(WELL, queues=[QueueView(name="night", hold=hold)])) == []


def test_a_worker_that_is_silent_or_a_queue_that_is_full() -> None:
    assert (
        "silent for 12 s" in wrong(replace(WELL, workers=[a_worker(state="silent", heard_ms=12_000)]))[1].text
    )
    assert "99 of 100 jobs" in only(replace(WELL, health=health(jobs_open=99, jobs_open_max=100))).text


NOWHERE = "http://127.0.0.1:9"


def test_the_command_ends_with_69_without_a_broker() -> None:
    ended = run(NoBroker(), "doctor", "--endpoint", NOWHERE)
    assert ended.exit_code == 69
    assert f"fault   no broker at {URL}\n        type: lmq up" in ended.stdout


def test_the_command_ends_with_1_if_something_is_wrong() -> None:
    ended = run(FakeBroker(), "doctor", "--endpoint", NOWHERE)
    assert ended.exit_code == 1
    assert "no worker is connected" in ended.stdout


def test_the_command_looks_for_a_second_broker_at_the_usual_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from click.testing import CliRunner

    from lmq.cli.root import root
    from lmq.cli.session import Session

    def connect(session: Session) -> Any:
        broker = FakeBroker(url=session.url or "tcp://127.0.0.1:9999")
        other = health(broker_id=b"o" * 16) if session.url else health()
        monkeypatch.setattr(broker, "health", lambda: other)
        return broker

    ended = CliRunner().invoke(root, ["doctor", "--endpoint", NOWHERE], obj=Session(connect=connect))
    assert f"a second broker answers at {URL}" in ended.stdout.replace("\n        ", " ")


def test_a_worker_that_is_gone_is_a_fault_with_how_to_start_it_again() -> None:
    now_ms = 1_800_000_000_000
    gone = a_worker(name="vm-1", endpoint="http://gpu:1234", state="gone", heard_ms=60_000)
    found = only(replace(WELL, workers=[a_worker(), gone], health=health(wall_ms=now_ms), now_ms=now_ms))
    assert (found.level, found.cure) == ("fault", "on box: lmq worker --endpoint http://gpu:1234")
    assert found.text == f"worker vm-1 is gone since {humane.time_of_day(now_ms - 60_000)}"
    here = replace(WELL, workers=[a_worker(), gone], host="box")
    assert only(here).cure == "lmq worker --endpoint http://gpu:1234"


def test_a_worker_whose_endpoint_another_serves_is_no_fault() -> None:
    assert wrong(replace(WELL, workers=[a_worker(), a_worker(name="old", state="gone")])) == []


def test_a_worker_that_was_stopped_is_told_of_only_while_jobs_wait_for_it() -> None:
    stopped = a_worker(name="vm-1", endpoint="http://gpu:1234", state="gone", stopped=True)
    facts = replace(WELL, workers=[a_worker(), stopped])
    assert wrong(facts) == []
    found = only(replace(facts, waiting=[a_job(hindrance="worker gone")]))
    assert (found.level, "was stopped, and jobs wait for it" in found.text) == ("advice", True)


@pytest.mark.parametrize(
    ("limit", "used", "text", "cure"),
    [
        (Limit(of="depth", value=3, queue="mail"), 12.0, "alert depth queue=mail: 12 jobs wait, over 3",
         "lmq list --state ready --queue mail"),
        (Limit(of="wait", value=3000), 8000.0, "alert wait: the oldest job waits 8 s, over 3 s",
         "lmq list --state ready"),
    ],
)  # fmt: skip
def test_an_alert_that_is_raised(limit: Limit, used: float, text: str, cure: str) -> None:
    name = "depth queue=mail" if limit.queue else "wait"
    view = LimitView(name=name, limit=limit, origin="command", used=used, raised=True)
    assert only(replace(WELL, limits=[view])) == Finding("fault", text, cure)
    assert wrong(replace(WELL, limits=[msgspec.structs.replace(view, raised=False)])) == []


def test_jobs_whose_model_cannot_do_it_or_does_not_load() -> None:
    jobs = [a_job(models=["qwen3-8b"], task_type="embed", hindrance="wrong kind of model") for _ in range(2)]
    told = a_worker(task_types=["chat", "embed"])
    found = only(
        replace(WELL, workers=[told], waiting=[*jobs, a_job(models=["qwen3-8b"], hindrance="limit reached")])
    )
    assert (found.level, found.cure) == ("fault", f"lmq why {jobs[0].id[-6:]}")
    assert found.text == "2 jobs of type embed for qwen3-8b wait: wrong kind of model"


def test_what_other_findings_tell_are_hindrances_that_there_are() -> None:
    assert set(TOLD_ELSEWHERE) <= {*briefly.WORDS.values(), "queue paused", "disk trouble"}


def test_a_task_type_that_no_worker_takes() -> None:
    told = replace(
        WELL, workers=[a_worker(task_types=["embed", "chat"])], waiting=[a_job(task_type="paint x")]
    )
    found = only(told)
    assert (found.level, found.text) == (
        "advice",
        "1 job of type paint x waits; the workers take chat, embed",
    )
    assert found.cure == "lmq cancel --type 'paint x', or start a worker that takes it"


@pytest.mark.parametrize(
    ("worker", "last"),
    [(a_worker(), "all is well"), (a_worker(state="paused"), "nothing is broken; 1 hint")],
)
def test_the_last_word_is_all_is_well_only_where_there_is_no_advice(
    monkeypatch: pytest.MonkeyPatch, worker: WorkerView, last: str
) -> None:
    found = replace(WELL, workers=[worker])
    monkeypatch.setattr("lmq.cli.doctor.gather", lambda session, endpoint: (found, None))
    ended = run(FakeBroker(), "doctor")
    assert (ended.exit_code, ended.stderr.strip()) == (0, last)
