"""Why a job waits, cause by cause: those that need more than one thing to happen first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import DiskChanged
from lmq_proto.messages import Limit, Pause, SetLimit, Why, WhyReply
from unit.broker.builders import a_broker, idle, instance, job_id, on_disk, ready, running, sent, spec
from unit.broker.test_blfq import one_model_at_a_time
from unit.broker.test_outlook import asks, chats, engine, settings

if TYPE_CHECKING:
    from lmq_proto.messages import Reason
    from unit.broker.builders import Broker

LONG = 1000
"""Tokens of an answer of which 256 are foreseen: by the rates of `settings` 2.6 s of engine time."""


def reasons(broker: Broker, name: str, *, by: str = "ann") -> dict[str, Reason]:
    """Return why a job waits, by code, the weightiest first."""
    answer = sent(broker.says(by, Why(request_id=5, job_id=job_id(name))), by, WhyReply)[0]
    return {reason.code: reason for reason in answer.reasons}


def test_a_full_disk_comes_before_all_else() -> None:
    broker = a_broker(jobs=[running("x", **asks()), *chats("a")], workers=[engine()], settings=settings())
    broker.step(DiskChanged("full", 100, 200))
    found = reasons(broker, "a")
    assert next(iter(found)) == "disk"
    assert found["disk"].fields == {"free_bytes": 100}


def test_stricter_jobs_are_counted_among_those_ahead() -> None:
    jobs = [running("x", **asks()), *chats("a"), *(ready(f"i{n}", **asks(priority=8)) for n in range(2))]
    broker = a_broker(jobs=jobs, workers=[engine()], settings=settings())
    found = reasons(broker, "a")
    assert list(found) == ["ahead", "band"]
    assert (found["ahead"].fields, found["band"].fields) == ({"ahead": 2}, {"jobs": 2})


def test_who_has_had_more_is_told_of_whom_if_they_may_see_them() -> None:
    jobs = [running("x", **asks(output_tokens=LONG)), *chats("a"), ready("b", user="ben", **asks())]
    broker = a_broker(jobs=jobs, workers=[engine()], settings=settings())
    share = reasons(broker, "a")["share"]
    assert share.fields == {"seconds": 2, "users": 1}
    assert share.text == "you have had 2 s more of engine time than ben, who comes first"
    broker.role("ann", "user")
    assert "than others, who come first" in reasons(broker, "a")["share"].text
    assert "share" not in reasons(broker, "b", by="ben")


def test_who_waits_elsewhere_only_has_not_had_less_here() -> None:
    """Ben's job for this model is gone; what he still waits for is another model, at another worker."""
    big = idle("w2", instances=[instance(model="big", kind="llm", slots=1)])
    jobs = [
        running("x", **asks(output_tokens=LONG)), running("y", user="zoe", **asks("big")), *chats("a"),
        ready("b", user="ben", **asks()), ready("c", user="cid", **asks()), ready("d", user="ben", **asks("big")),
    ]  # fmt: skip
    broker = a_broker(jobs=jobs, workers=[engine(), big], settings=settings())
    assert "ben and cid" in reasons(broker, "a")["share"].text
    broker.cancel("ben", "b")
    broker.turn()
    found = reasons(broker, "a")["share"]
    assert (found.fields["users"], "ben" in found.text) == (1, False)


def test_a_worker_that_had_the_model_and_is_gone_is_told_of() -> None:
    other = idle("w2", instances=[instance(model="small", kind="llm")])
    broker = a_broker(jobs=chats("a"), workers=[engine(), other], settings=settings())
    broker.breaks("w1")
    broker.pass_time(7000, hearing=["w2", "ann"])
    found = reasons(broker, "a")
    assert next(iter(found)) == "worker_gone"
    assert found["worker_gone"].fields == {"worker": "w1", "since_s": 7}


def test_a_model_that_is_given_up_for_another_says_for_which() -> None:
    jobs = [ready(f"a{n}", task_type="chat", models=["m1"]) for n in range(4)]
    jobs += [ready("b", user="tom", task_type="chat", models=["m2"])]
    broker = a_broker(jobs=jobs, workers=[one_model_at_a_time(slots=1)], settings=Settings(policy="blfq"))
    broker.turn(1)
    broker.reports("w1", "a0", "complete")
    broker.turn(1)
    broker.pass_time(40_000, hearing=["w1", "ann"])
    found = reasons(broker, "a2")
    assert found["drained"].fields == {"worker": "w1", "model": "m2"}


def test_a_worker_that_a_task_has_for_itself_is_why() -> None:
    gpu = idle("gpu-1", slots=1, task_types=["chat"])
    broker = a_broker(workers=[gpu, idle("w1", task_types=["train"])], clients=["ann"])
    broker.submit("ann", spec("t", task_type="train", uses=["gpu-1"]))
    broker.turn()
    broker.submit("ann", spec("a", task_type="chat"))
    broker.turn(1000)
    found = reasons(broker, "a")
    assert next(iter(found)) == "resource"
    assert found["resource"].fields == {"resource": "gpu-1", "worker": "gpu-1"}


def test_a_suspect_is_told_that_it_runs_alone() -> None:
    broker = a_broker(
        jobs=[running("x", **asks()), running("y", **asks())], workers=[engine(2)], settings=settings()
    )
    broker.reports("w1", "x", "crash", shared=True)
    broker.turn()
    assert "alone" in reasons(broker, "x")


# --- what is typed against it -----------------------------------------------------------------------------------------


def hints(broker: Broker, name: str) -> list[str]:
    return sent(broker.says("ann", Why(request_id=5, job_id=job_id(name))), "ann", WhyReply)[0].hints


def is_hurried(broker: Broker, name: str) -> bool:
    return any("--priority" in hint for hint in hints(broker, name))


def test_another_priority_is_hinted_at_where_others_are_all_that_is_in_the_way() -> None:
    broker = a_broker(jobs=[running("x"), ready("a"), ready("b")], workers=[idle("w1")])
    assert is_hurried(broker, "b")
    broker.says("ann", Pause(request_id=4, noun="worker", name="w1"))
    assert not is_hurried(broker, "b")
    assert hints(broker, "b")[0] == "lmq workers resume w1"


@pytest.mark.parametrize("noun", ["worker", "queue"])
def test_nobody_is_told_to_hurry_what_is_paused(noun: str) -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")], workers=[idle("w1")])
    broker.says("ann", Pause(request_id=4, noun=noun, name="w1" if noun == "worker" else "default"))
    assert not is_hurried(broker, "b")


def test_nobody_is_told_to_hurry_what_no_worker_takes() -> None:
    broker = a_broker(jobs=[ready(name, task_type="paint") for name in "ab"], workers=[idle("w1")])
    assert not is_hurried(broker, "b")


def test_a_model_that_is_loaded_for_others_first_may_be_hurried() -> None:
    worker = idle("w1", instances=[], catalog=on_disk("m1"), may_load=True)
    broker = a_broker(jobs=[ready(name, task_type="chat", models=["m1"]) for name in "ab"], workers=[worker])
    assert is_hurried(broker, "b")


def test_a_limit_that_was_set_is_told_with_how_to_reset_it() -> None:
    broker = a_broker(jobs=[running("x"), ready("a"), ready("b")], workers=[idle("w1", slots=3)])
    broker.says("ann", SetLimit(request_id=4, limit=Limit(of="running", value=1, user="*")))
    assert hints(broker, "b")[0] == "lmq limits reset 'running user=*'"
    assert not is_hurried(broker, "b")


def test_a_limit_of_the_file_is_shown() -> None:
    broker = a_broker(
        jobs=[running("x"), ready("a")], workers=[idle("w1", slots=3)],
        settings=Settings(limits=(Limit(of="running", value=1),)),
    )  # fmt: skip
    assert hints(broker, "a")[0] == "lmq limits"


def test_a_limit_of_a_place_is_told_with_how_to_reset_it() -> None:
    broker = a_broker(jobs=[ready("a", **asks())], workers=[engine()], settings=settings())
    broker.says("ann", SetLimit(request_id=4, limit=Limit(of="running", value=0, worker="w1")))
    assert "lmq limits reset 'running worker=w1'" in hints(broker, "a")
