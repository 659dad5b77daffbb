"""Why a job waits, cause by cause: those that need more than one thing to happen first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import DiskChanged
from lmq_proto.messages import Why, WhyReply
from unit.broker.builders import a_broker, idle, instance, job_id, ready, running, sent, spec
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
