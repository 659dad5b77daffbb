"""What lists say of a ready job that nothing runs, in a few words; a page of jobs costs one look for each lane."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmq_broker.core import briefly, hindrances
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import DiskChanged
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import Breaker, Limit, LoadEnded, Pause, Status, Statuses
from unit.broker.builders import a_broker, idle, instance, job_id, on_disk, ready, running, sent
from unit.proto.protocol_text import table_with, words

if TYPE_CHECKING:
    from unit.broker.builders import Broker

CHAT: dict[str, Any] = {"task_type": "chat", "models": ["m1"]}
M1 = instance(model="m1", kind="llm")


def said(broker: Broker, *names: str) -> list[str]:
    """Return what is said of some jobs on one page."""
    ids = [job_id(name) for name in names or ("a",)]
    page = sent(broker.says("ann", Status(request_id=4, job_ids=ids)), "ann", Statuses)[0]
    return [view.hindrance for view in page.jobs]


def limited(*limits: Limit) -> Settings:
    return Settings(limits=limits)


def test_who_waits_for_others_only_is_not_hindered() -> None:
    broker = a_broker(jobs=[running("x"), ready("a"), ready("b")], workers=[idle("w1")])
    assert said(broker, "x", "a", "b") == ["", "", ""]


def test_a_delayed_job_is_not_hindered_however_paused_its_queue() -> None:
    broker = a_broker(jobs=[ready("a", delay_ms=5000)])
    broker.says("ann", Pause(request_id=4, noun="queue", name="default"))
    assert said(broker) == [""]


def test_no_worker_and_none_that_takes_it() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b", task_type="nosuch")])
    assert said(broker, "a", "b") == ["no worker", "no worker"]
    broker.worker(idle("w1"))
    assert said(broker, "a", "b") == ["", "no worker takes it"]


def test_a_paused_queue_and_paused_workers() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b", queue="q")], workers=[idle("w1"), idle("w2")])
    broker.says("ann", Pause(request_id=4, noun="queue", name="q"))
    broker.says("ann", Pause(request_id=4, noun="worker", name="w1"))
    assert said(broker, "a", "b") == ["", "queue paused"]
    broker.says("ann", Pause(request_id=4, noun="worker", name="w2"))
    assert said(broker, "a", "b") == ["workers paused", "queue paused"]


def test_an_endpoint_that_is_away_and_a_worker_that_is_gone() -> None:
    broker = a_broker(
        jobs=[ready("a", **CHAT)], workers=[idle("w1", instances=[M1]), idle("w2", instances=[])]
    )
    broker.has_capacity("w1", M1, breaker=Breaker(since_ms=broker.wall_ms, reason="refused"))
    assert said(broker) == ["endpoint away"]
    broker.breaks("w1")
    broker.pass_time(7000, hearing=["w2", "ann"])
    assert said(broker) == ["worker gone"]


def test_a_model_of_another_kind() -> None:
    broker = a_broker(jobs=[ready("a", **CHAT)])
    broker.worker(idle("w1", instances=[instance(model="m1", kind="embedding")]))
    assert said(broker) == ["wrong kind of model"]


def test_a_model_that_nobody_has_any_more() -> None:
    broker = a_broker(jobs=[ready("a", **CHAT)])
    broker.worker(idle("w1", instances=[instance(model="m2", kind="llm")]))
    assert said(broker) == ["no endpoint has it"]


def test_a_model_that_is_loaded_next_is_no_hindrance_until_its_load_fails() -> None:
    broker = a_broker(
        jobs=[ready("a", **CHAT)], workers=[idle("w1", instances=[], catalog=on_disk("m1"), may_load=True)]
    )
    assert said(broker) == [""]
    broker.turn()
    assert said(broker) == [""], "it is being loaded"
    broker.says("w1", LoadEnded(command_id=broker.at("w1").command_id, error=ErrorInfo("load_failed", "no")))
    assert said(broker) == ["model load failed"]


def test_a_model_on_the_disk_of_a_worker_that_loads_none() -> None:
    worker = idle("w1", instances=[], catalog=on_disk("m1"))
    assert said(a_broker(jobs=[ready("a", **CHAT)], workers=[worker])) == ["model not loaded"]


def test_a_limit_of_one_user_is_said_of_that_users_jobs_only() -> None:
    jobs = [running("x"), ready("a"), ready("b", user="ben")]
    broker = a_broker(
        jobs=jobs, workers=[idle("w1", slots=1)], settings=limited(Limit(of="running", value=1, user="ann"))
    )
    assert said(broker, "a", "b") == ["limit reached", ""]


def test_a_rate_is_said_once_it_holds_for_a_second() -> None:
    broker = a_broker(
        jobs=[running("x"), ready("a")], workers=[idle("w1", slots=2)],
        settings=limited(Limit(of="jobs", value=1, per_ms=10_000)),
    )  # fmt: skip
    assert said(broker) == ["limit reached"]
    broker.turn(9500)
    assert said(broker) == [""]


def test_a_limit_of_a_place_is_said_where_there_is_no_other() -> None:
    broker = a_broker(
        jobs=[ready("a", **CHAT)], workers=[idle("w1", instances=[M1])],
        settings=limited(Limit(of="running", value=0, model="m1")),
    )  # fmt: skip
    assert said(broker) == ["limit reached"]


def test_a_full_disk_comes_first() -> None:
    broker = a_broker(jobs=[ready("a", user="ann")])
    broker.step(DiskChanged("readonly", 100, 200))
    assert said(broker) == ["disk trouble"]


def test_jobs_that_can_run_in_the_same_places_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []

    def counted(*given: Any) -> hindrances.Hindrances:
        looked.append(given)
        return hindrances.hindrances(*given)

    monkeypatch.setattr(briefly, "hindrances", counted)
    jobs = [ready(f"a{n}", user=f"u{n % 7}", task_type="nosuch" if n % 2 else "echo") for n in range(40)]
    broker = a_broker(jobs=[*jobs, ready("h", priority=8)], clients=["ann"])
    assert said(broker, *(job.spec.id.rstrip(b"\0").decode() for job in jobs), "h") == ["no worker"] * 41
    assert len(looked) == 2


def test_a_page_of_jobs_that_are_all_different_is_looked_at_in_part() -> None:
    jobs = [ready(f"a{n}", task_type=f"t{n}") for n in range(120)]
    found = said(a_broker(jobs=jobs), *(f"a{n}" for n in range(120)))
    assert found == ["no worker"] * 100 + [""] * 20


def test_words_are_for_reasons_that_there_are() -> None:
    known = {code for row in table_with("Code", "The job", "Fields") for code in words(row[0])}
    assert set(briefly.WORDS) <= known
