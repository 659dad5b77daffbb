"""What the broker is asked for, what is worked out of several answers, and how acts are carried out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest

from lmq import Outcome, QueueView, Reason, Why
from lmq.cli.top.command import carry_out, why
from lmq.cli.top.model import AskWhy, CancelJob, PauseIt, Prioritise, ResumeIt
from lmq.cli.top.view import NEWEST_SHOWN, OLDEST_SHOWN, Swaps, look
from lmq.errors import ErrorInfo, LmqError
from unit.cli.fakes import ID_A, FakeBroker, a_job, an_event, run

if TYPE_CHECKING:
    from lmq.cli.port import BrokerPort


def port(broker: FakeBroker) -> BrokerPort:
    return cast("BrokerPort", broker)


def test_a_swap_is_a_load_after_an_unload_at_the_same_worker() -> None:
    swaps = Swaps()
    story = [
        ("model_loaded", "gpu-1"), ("model_unloaded", "gpu-1"), ("model_loaded", "gpu-2"), ("model_loaded", "gpu-1"),
        ("model_loaded", "gpu-1"), ("model_unloaded", "gpu-2"), ("worker_up", "gpu-2"), ("model_loaded", "gpu-2"),
    ]  # fmt: skip
    for seq, (kind, worker) in enumerate(story, 1):
        swaps = swaps.after(an_event(seq, kind, worker=worker))
    assert (swaps.lately("gpu-1", 10_000), swaps.lately("gpu-2", 10_000)) == (1, 0)
    assert swaps.lately("gpu-1", 4_000 + 3_600_000) == 0


def test_where_many_wait_the_newest_are_looked_at_too() -> None:
    jobs = [
        a_job(f"{ID_A[:-3]}{number:03}", number=number, ahead=number) for number in range(OLDEST_SHOWN + 5)
    ]

    class Many(FakeBroker):
        def jobs(self, *, limit: int = 100, oldest_first: bool = False, **match: object) -> list[object]:  # type: ignore[override]  # a stand-in's stand-in
            if match["states"] == ["leased"]:
                return []
            return list((jobs if oldest_first else jobs[::-1])[:limit])

    found = look(port(Many())).waiting
    assert [job.number for job in found] == list(range(OLDEST_SHOWN + 5))
    assert NEWEST_SHOWN > 5


def test_once_and_on_a_pipe_the_tables_are_printed() -> None:
    broker = FakeBroker(found=[a_job(), a_job(ID_A[:-1] + "7", state="leased", phase="writing")])
    broker.all_queues = [QueueView(name="default", ready=1)]
    for words in (["top", "--once"], ["top"]):
        told = run(broker, *words).stdout
        assert "default" in told
        assert ID_A[-6:] in told
        assert "no worker; type: lmq up" in told
        assert "\x1b" not in told


def test_json_has_all_of_it() -> None:
    told = json.loads(run(FakeBroker(found=[a_job()]), "top", "--json").stdout)
    assert set(told) == {"url", "health", "users", "queues", "workers", "models", "running", "waiting"}
    assert [job["id"] for job in told["waiting"]] == [ID_A]


def test_acts_are_carried_out_and_told_in_words() -> None:
    broker = FakeBroker(outcomes=[Outcome(ID_A, "changed")], found=[a_job()])
    name = ID_A[-6:]
    assert carry_out(port(broker), CancelJob(ID_A)).text == f"{name} cancelled"
    assert carry_out(port(broker), Prioritise(ID_A, 7)).text == f"{name} has priority 7"
    assert carry_out(port(broker), PauseIt("queue", "night", 60.0)).text == "night paused"
    assert carry_out(port(broker), PauseIt("worker", "gpu-1", None)).text == "gpu-1 paused"
    assert carry_out(port(broker), ResumeIt("worker", "gpu-1")).text == "gpu-1 was not held"
    assert broker.did == [
        ("cancel", (ID_A,), {}),
        ("update", (ID_A,), {"priority": 7}),
        ("pause", {"queue": "night", "worker": "", "for_s": 60.0}),
        ("pause", {"queue": "", "worker": "gpu-1", "for_s": None}),
        ("resume", {"queue": "", "worker": "gpu-1"}),
    ]


def test_a_job_that_has_ended_is_told_of_and_a_refusal_raised() -> None:
    broker = FakeBroker(outcomes=[Outcome(ID_A, "unchanged")])
    assert carry_out(port(broker), CancelJob(ID_A)).text.endswith("had ended already")
    broker.outcomes = [Outcome(ID_A, "refused", ErrorInfo("not_found", "there is no such job"))]
    for act in (CancelJob(ID_A), Prioritise(ID_A, 7)):
        with pytest.raises(LmqError, match="there is no such job"):
            carry_out(port(broker), act)


def test_a_ceiling_is_told_of() -> None:
    broker = FakeBroker(outcomes=[Outcome(ID_A, "changed", None, 6)], found=[a_job(user="anna")])
    assert carry_out(port(broker), Prioritise(ID_A, 9)).text.endswith(
        "has priority 6 (ceiling of anna), asked 9"
    )


def test_why_comes_as_lines_without_colours() -> None:
    broker = FakeBroker(reason=Why(a_job(), [Reason(code="paused", text="queue night is paused")]))
    told = why(port(broker), AskWhy(ID_A))
    assert told.job_id == ID_A
    assert told.lines[1] == "because   queue night is paused"
