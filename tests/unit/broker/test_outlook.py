"""The next starts, played through: states made by hand whose answers can be reckoned by hand."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lmq_broker.core.leases import fleet
from lmq_broker.core.policies.foreseen import Outlook
from lmq_broker.core.policies.lines import JobLine
from lmq_broker.core.policies.outlook import FEWER_STARTS, RUNS, STARTS, WORK, look_out
from lmq_broker.core.settings import Rates, Settings
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import Breaker, Drain, LoadEnded, LoadModel, Pause, Phases
from lmq_proto.parts import PhaseReport
from unit.broker.builders import (
    Broker,
    Planned,
    a_broker,
    idle,
    instance,
    job_id,
    on_disk,
    ready,
    running,
    sent,
    spec,
    started,
)

RATES = Rates(prompt_ms=1.0, output_ms=10.0)
TAKES_MS = 201.0
"""Of a job as `asks` has it: 1 ms for any, 100 prompt tokens, 10 output tokens, which is less than any draw."""
LOAD_MS = 10_000.0
"""Of a model that nobody has loaded yet."""


def settings(policy: str = "blfq", **fields: Any) -> Settings:
    return Settings(policy=policy, rates=dict.fromkeys(("m", "small", "big"), RATES), **fields)


def asks(model: str = "m", **fields: Any) -> dict[str, Any]:
    return {"task_type": "chat", "models": [model], "prompt_tokens": 100, "output_tokens": 10, **fields}


def engine(slots: int = 1, model: str = "m", **fields: Any) -> Any:
    return idle("w1", instances=[instance(model=model, kind="llm", slots=slots, ours=True)], **fields)


def chats(*names: str, **fields: Any) -> list[Planned]:
    return [ready(name, **asks(**fields)) for name in names]


def seen(broker: Broker) -> Outlook:
    """Look out, in one go."""
    found = Outlook(broker.mono_ms)
    for _ in look_out(broker.state.policy.parts(fleet(broker.state), broker.now), found):
        pass
    return found


def starts(broker: Broker) -> dict[str, float]:
    """Return when each ready job would start, the first one first."""
    found = [each for each in seen(broker).jobs.values() if each.group >= 0]
    found.sort(key=lambda each: each.place)
    return {each.job.id.rstrip(b"\0").decode(): each.start_ms for each in found}


def ends(broker: Broker) -> dict[str, float]:
    return {each.job.id.rstrip(b"\0").decode(): each.end_ms for each in seen(broker).jobs.values()}


def test_one_slot_serves_one_job_after_the_other() -> None:
    broker = a_broker(
        jobs=[running("x", **asks()), *chats("a", "b")], workers=[engine()], settings=settings()
    )
    assert starts(broker) == pytest.approx({"a": TAKES_MS, "b": 2 * TAKES_MS})
    assert ends(broker) == pytest.approx({"x": TAKES_MS, "a": 2 * TAKES_MS, "b": 3 * TAKES_MS})


def test_streams_share_an_engine() -> None:
    broker = a_broker(
        jobs=[running("x", **asks()), running("y", **asks()), *chats("a", "b", "c")], workers=[engine(2)],
        settings=settings(),
    )  # fmt: skip
    assert starts(broker) == pytest.approx({"a": 2 * TAKES_MS, "b": 2 * TAKES_MS, "c": 4 * TAKES_MS})
    # The last one has the engine to itself for its second half.
    assert ends(broker)["b"] == pytest.approx(4 * TAKES_MS)
    assert ends(broker)["c"] == pytest.approx(5 * TAKES_MS)


def test_what_a_running_job_has_written_is_behind_it() -> None:
    broker = a_broker(jobs=[running("x", **asks()), *chats("a")], workers=[engine()], settings=settings())
    report = PhaseReport(job_id=job_id("x"), attempt=1, phase="writing", tokens=7)
    broker.says("w1", Phases(leases=[report]))
    assert starts(broker) == pytest.approx({"a": 30.0})


def test_own_tasks_do_not_share_and_their_progress_is_believed() -> None:
    jobs = [running(name, task_type="train") for name in "xy"] + [ready("a", task_type="train")]
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=2)], settings=settings())
    broker.turn(3000)
    reports = [
        PhaseReport(job_id=job_id("x"), attempt=1, phase="writing", progress=0.5),
        PhaseReport(job_id=job_id("y"), attempt=1, phase="writing", progress=0.75),
    ]
    broker.says("w1", Phases(leases=reports))
    assert starts(broker) == pytest.approx({"a": 1000.0})
    assert ends(broker)["x"] == pytest.approx(3000.0)


def test_how_long_own_tasks_took_is_learnt() -> None:
    broker = a_broker(jobs=[running("x", task_type="train")], workers=[idle("w1")], settings=settings())
    for number in range(100):
        broker.reports("w1", "x" if not number else f"x{number}", "complete", engine_ms=60_000)
        broker.submit("ann", spec(f"x{number + 1}", task_type="train"))
        broker.turn()
    broker.submit("ann", spec("a", task_type="train"))
    assert starts(broker)["a"] == pytest.approx(60_000, rel=0.05)


def test_users_take_turns_and_stricter_bands_come_first() -> None:
    jobs = [running("x", user="zoe", **asks()), *chats("a1", "a2", "a3")]
    jobs += [ready(name, user="ben", **asks()) for name in ("b1", "b2")]
    jobs += [ready("i1", user="ann", **asks(priority=8))]
    broker = a_broker(jobs=jobs, workers=[engine()], settings=settings())
    assert list(starts(broker)) == ["i1", "a1", "b1", "a2", "b2", "a3"]


def test_strict_goes_by_priority_and_arrival() -> None:
    jobs = [running("x", **asks()), *chats("a", "b"), ready("c", user="ben", **asks(priority=6))]
    jobs += [ready("d", expires_ms=60_000, **asks())]
    broker = a_broker(jobs=jobs, workers=[engine()], settings=settings("strict"))
    assert list(starts(broker)) == ["c", "d", "a", "b"]


def test_the_order_is_the_one_in_which_they_then_start() -> None:
    jobs = [running("x", user="zoe", **asks())]
    for number in range(30):
        user = ("ann", "ben", "cid")[number % 7 % 3]
        jobs.append(ready(f"j{number}", user=user, **asks(priority=(5, 5, 8, 2)[number % 4])))
    broker = a_broker(jobs=jobs, workers=[engine()], settings=settings())
    expected = list(starts(broker))
    order: list[str] = []
    last = "x"
    while len(order) < 30:
        broker.reports("w1", last, "complete", prompt_tokens=100, output_tokens=10)
        effects = broker.turn(200)
        (last,) = started(effects, "w1")
        order.append(last)
    assert order == expected


def test_a_model_that_is_loading_is_there_when_that_is_done() -> None:
    broker = a_broker(
        jobs=[ready("a", **asks("big"))],
        workers=[idle("w1", instances=[], catalog=on_disk("big"), may_load=True)],
        settings=settings(),
    )
    assert starts(broker) == pytest.approx({"a": LOAD_MS})
    assert sent(broker.turn(), "w1", LoadModel)
    broker.turn(4000)
    assert starts(broker) == pytest.approx({"a": LOAD_MS - 4000})


def test_an_idle_model_gives_way_at_once_one_that_is_wanted_when_patience_is_over() -> None:
    worker = engine(model="small", catalog=on_disk("small", "big"), may_load=True, models_max=1)
    broker = a_broker(jobs=[ready("b", **asks("big"))], workers=[worker], settings=settings())
    broker.mono_ms += 60_000
    assert starts(broker) == pytest.approx({"b": LOAD_MS})
    jobs = [running("x", user="zoe", **asks("small")), ready("b", user="ben", **asks("big"))]
    # So many that the small model is wanted for longer than it is preferred.
    jobs += [ready(f"s{number}", **asks("small")) for number in range(300)]
    broker = a_broker(jobs=jobs, workers=[worker], settings=settings())
    broker.turn()
    found = starts(broker)
    patience_ms = 3 * LOAD_MS
    assert patience_ms + LOAD_MS <= found["b"] <= patience_ms + LOAD_MS + 2 * TAKES_MS
    assert sum(start < found["b"] for name, start in found.items() if name != "b") == pytest.approx(
        patience_ms / TAKES_MS, abs=3
    )


def test_a_load_that_failed_is_waited_for() -> None:
    broker = a_broker(
        jobs=[ready("a", **asks("big"))],
        workers=[idle("w1", instances=[], catalog=on_disk("big"), may_load=True)],
        settings=settings(),
    )
    command = sent(broker.turn(), "w1", LoadModel)[0]
    broker.says("w1", LoadEnded(command_id=command.command_id, error=ErrorInfo("load_failed", "no")))
    assert starts(broker) == pytest.approx({"a": 30_000 + LOAD_MS})


@pytest.mark.parametrize("what", ["queue", "worker", "drain", "breaker", "gone", "nobody"])
def test_where_nothing_can_start_nothing_is_foreseen(what: str) -> None:
    workers = [engine()] if what != "nobody" else []
    broker = a_broker(jobs=chats("a"), workers=workers, settings=settings())
    if what == "queue":
        broker.says("ann", Pause(request_id=5, noun="queue", name="default"))
    elif what == "worker":
        broker.says("ann", Pause(request_id=5, noun="worker", name="w1"))
    elif what == "drain":
        broker.says("ann", Drain(request_id=5, noun="worker", name="w1"))
    elif what == "breaker":
        broker.has_capacity("w1", instance(model="m", kind="llm"), breaker=Breaker(since_ms=1, reason="no"))
    elif what == "gone":
        broker.breaks("w1")
    assert starts(broker) == {}


def test_a_suspect_that_runs_keeps_its_worker_to_itself() -> None:
    broker = a_broker(jobs=[running("x", **asks())], workers=[engine(4)], settings=settings())
    broker.reports("w1", "x", "crash")
    broker.turn(1)
    assert broker.at("w1").alone
    broker.submit("ann", spec("a", **asks()), spec("b", **asks()))
    assert starts(broker) == pytest.approx({"a": TAKES_MS, "b": TAKES_MS})


def test_jobs_of_places_of_their_own_are_counted_for_themselves() -> None:
    workers = [engine(), idle("w2", instances=[instance(model="big", kind="llm")])]
    jobs = [running("x", **asks()), running("y", **asks("big")), *chats("a", "b"), *chats("c", model="big")]
    broker = a_broker(jobs=jobs, workers=workers, settings=settings())
    found = seen(broker)
    places = {each.job.id.rstrip(b"\0").decode(): (each.group, each.place) for each in found.jobs.values()}
    assert places["a"][1] == places["c"][1] == 0
    assert places["a"][0] != places["c"][0]
    assert sorted(group.jobs for group in found.groups) == [1, 2]


def test_jobs_that_come_on_as_they_came_put_those_off_who_have_had_more() -> None:
    jobs = [running("x", **asks()), *chats(*(f"a{number}" for number in range(20)))]

    def last_start(*, ben_comes: bool) -> float:
        broker = a_broker(jobs=jobs, workers=[engine()], clients=["ben"], settings=settings())
        for number in range(40):
            broker.mono_ms += 2000
            if ben_comes:
                broker.submit("ben", spec(f"b{number}", **asks()))
                broker.cancel("ben", f"b{number}")
        return starts(broker)["a19"]

    alone_ms = last_start(ben_comes=False)
    # A job of 201 ms every 2 s, of which 0.7 is believed: 7 % of the engine; before it is told that he comes, none.
    assert alone_ms == pytest.approx(20 * TAKES_MS)
    assert 1.0 < last_start(ben_comes=True) / alone_ms < 1.2


def test_of_many_jobs_some_are_played_in_bounded_steps_and_the_pace_is_told() -> None:
    jobs = [running("x", **asks()), *chats(*(f"a{number}" for number in range(1000)))]
    broker = a_broker(jobs=jobs, workers=[engine()], settings=settings())
    found = Outlook(broker.mono_ms)
    steps = list(look_out(broker.state.policy.parts(fleet(broker.state), broker.now), found))
    assert max(steps) < 100
    assert sum(steps) < RUNS * WORK
    assert len(found.jobs) == STARTS + 1
    group = found.groups[0]
    assert (group.jobs, group.starts) == (1000, STARTS)
    assert group.pace_ms == pytest.approx(TAKES_MS)
    # Those that are near are played several times.
    near = found.jobs[broker.job("a0").number]
    far = found.jobs[broker.job(f"a{FEWER_STARTS + 1}").number]
    assert (near.runs, far.runs) == (RUNS, 1)


def test_lanes_without_number_end_a_look_out_all_the_same() -> None:
    jobs = [ready(f"a{number}", **asks(queue=f"q{number}")) for number in range(300)]
    broker = a_broker(jobs=[running("x", **asks()), *jobs], workers=[engine()], settings=settings())
    found = Outlook(broker.mono_ms)
    steps = list(look_out(broker.state.policy.parts(fleet(broker.state), broker.now), found))
    assert sum(steps) <= RUNS * (WORK + max(steps) + 600)
    assert found.jobs


def test_no_step_is_long_where_many_lanes_want_the_same_many_places() -> None:
    jobs = [ready(f"j{number}", **asks(f"m{number}")) for number in range(100)]
    workers = [idle(f"w{number}") for number in range(60)]
    broker = a_broker(jobs=jobs, workers=workers, settings=settings())
    calls = worst = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        for _ in look_out(broker.state.policy.parts(fleet(broker.state), broker.now), Outlook(0)):
            worst, calls = max(worst, calls), 0
    finally:
        sys.setprofile(None)
    assert worst < 5000


def test_a_word_of_progress_that_says_nothing_is_not_believed() -> None:
    jobs = [running("x", task_type="train"), ready("a", task_type="train")]
    broker = a_broker(jobs=jobs, workers=[idle("w1")], settings=settings())
    broker.turn(3000)
    report = PhaseReport(job_id=job_id("x"), attempt=1, phase="writing", progress=1e-320)
    broker.says("w1", Phases(leases=[report]))
    assert starts(broker)["a"] < 600_000


def test_looking_out_twice_finds_the_same_and_changes_nothing() -> None:
    jobs = [running("x", user="zoe", **asks(output_tokens=0))]
    jobs += [ready(f"a{n}", user=("ann", "ben")[n % 2], **asks(output_tokens=0)) for n in range(20)]
    broker = a_broker(jobs=jobs, workers=[engine(2)], settings=settings())
    first, second = seen(broker), seen(broker)
    assert first == second
    # Answers are drawn: they differ in length, and what is said is between the shortest and the longest.
    lengths = [each.end_ms - each.start_ms for each in first.jobs.values() if each.group >= 0]
    assert max(lengths) > min(lengths) > 0


def test_jobs_of_new_places_that_come_between_two_steps_are_in_no_group_yet() -> None:
    both = idle("w1", instances=[instance(model, model=model, kind="llm") for model in ("m", "small")])
    broker = a_broker(jobs=chats("a", "b", "c"), workers=[both], settings=settings())
    broker.turn()
    found = Outlook(broker.mono_ms)
    steps = look_out(broker.state.policy.parts(fleet(broker.state), broker.now), found)
    while not found.groups:
        next(steps)
    broker.submit("ann", spec("new", **asks("small")))
    for _ in steps:
        pass
    assert job_id("b") in {each.job.id for each in found.jobs.values()}
    assert {each.group for each in found.jobs.values()} == {-1, 0}
    assert len(found.groups) == 1


@pytest.mark.parametrize("fields", [{}, {"expires_ms": 60_000}], ids=["in order", "by expiry"])
def test_of_many_that_left_few_are_passed_on_the_way_to_the_next(fields: dict[str, Any]) -> None:
    many = [f"a{n}" for n in range(1000)]
    broker = a_broker(jobs=chats(*many, **fields), workers=[engine()])
    broker.cancel("ann", *many[10:-10])
    (lane,) = broker.state.policy.parts(fleet(broker.state), broker.now).pools["llm"].lanes[1].values()
    (line,) = [flow.lines[lane.key] for flow in lane.standing.noted]
    assert [job.id for job in line.walk()] == [job_id(name) for name in many[:10] + many[-10:]]
    assert isinstance(line, JobLine)
    assert line.entries <= 3 * 20 + 2 * 64
