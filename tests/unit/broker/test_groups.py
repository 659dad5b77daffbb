"""What shares a slot, what prefers a place, and what an instance has room for: groups, sessions, budgets, reserves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmq_broker.core.effects import SendWork
from lmq_broker.core.settings import Settings
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import Limit, Why, WhyReply
from unit.broker.builders import a_broker, idle, instance, job_id, ready, running, sent, started

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq_broker.core.effects import Effect
    from unit.broker.builders import Broker, Planned

FAIR = Settings(policy="blfq")


def vectors(name: str, **fields: Any) -> Planned:
    given: dict[str, Any] = {"task_type": "embed", "merge": "nomic", "prompt_tokens": 100}
    return ready(name, **(given | fields))


def embedder(*, slots: int = 1, **fields: Any) -> Any:
    return idle("w1", instances=[instance("e", model="nomic", kind="embedding", slots=slots, **fields)])


def groups(effects: Sequence[Effect], worker: str = "w1") -> list[list[str]]:
    return [
        [lease.job_id.rstrip(b"\0").decode() for lease in group.leases]
        for effect in effects
        if isinstance(effect, SendWork) and effect.peer == worker.encode()
        for group in effect.message.groups
    ]


def done(broker: Broker, *names: str) -> None:
    for name in names:
        broker.reports("w1", name, "complete", prompt_tokens=100)


def test_what_waited_for_a_slot_rides_together_users_in_turn() -> None:
    jobs = [
        vectors("first"),
        *(vectors(f"a{n}") for n in range(3)),
        *(vectors(f"t{n}", user="tom") for n in range(2)),
    ]
    broker = a_broker(jobs=jobs[:1], workers=[embedder()], clients=["tom"], settings=FAIR)
    assert groups(broker.turn()) == [["first"]], "an idle endpoint takes it at once"
    for job in jobs[1:]:
        broker.submit(job.user, job.spec, payloads=[b""])
    assert not groups(broker.turn())
    done(broker, "first")
    assert groups(broker.turn()) == [["t0", "a0", "t1", "a1", "a2"]]
    assert broker.at("w1").busy == 1


def test_a_group_takes_one_slot_until_all_of_it_has_ended() -> None:
    broker = a_broker(jobs=[vectors(f"a{n}") for n in range(3)], workers=[embedder()], settings=FAIR)
    assert groups(broker.turn()) == [["a0", "a1", "a2"]]
    broker.submit("ann", vectors("late").spec)
    done(broker, "a0", "a1")
    assert not groups(broker.turn())
    assert broker.at("w1").instances["e"].leased == 1
    done(broker, "a2")
    assert groups(broker.turn()) == [["late"]]


def test_free_slots_share_what_waits() -> None:
    broker = a_broker(jobs=[vectors(f"a{n}") for n in range(6)], workers=[embedder(slots=3)], settings=FAIR)
    assert [len(group) for group in groups(broker.turn())] == [2, 2, 2]


def test_another_key_another_queue_or_none_rides_apart() -> None:
    jobs = [
        vectors("a"),
        vectors("b", merge="other"),
        vectors("c", merge=""),
        vectors("d", queue="q"),
        vectors("e"),
    ]
    broker = a_broker(jobs=jobs, workers=[embedder(slots=8)], settings=FAIR)
    assert sorted(map(sorted, groups(broker.turn()))) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    few = a_broker(jobs=jobs, workers=[embedder(slots=1)], settings=FAIR)
    assert groups(few.turn()) == [["a", "e"]]


def test_a_group_has_a_bound_of_tokens() -> None:
    jobs = [vectors(f"a{n}", prompt_tokens=6000) for n in range(4)]
    assert groups(a_broker(jobs=jobs, workers=[embedder()], settings=FAIR).turn()) == [["a0", "a1"]]


def test_a_group_keeps_the_limits_of_each_user() -> None:
    settings = Settings(policy="blfq", limits=(Limit(of="running", value=2, user="*"),))
    jobs = [*(vectors(f"a{n}") for n in range(5)), *(vectors(f"t{n}", user="tom") for n in range(5))]
    broker = a_broker(jobs=jobs, workers=[embedder()], settings=settings)
    assert sorted(groups(broker.turn())[0]) == ["a0", "a1", "t0", "t1"]


def test_suspects_never_ride_with_others() -> None:
    broker = a_broker(jobs=[vectors(f"a{n}") for n in range(3)], workers=[embedder()], settings=FAIR)
    assert groups(broker.turn()) == [["a0", "a1", "a2"]]
    for name in ("a0", "a1", "a2"):
        broker.reports("w1", name, "crash", shared=True)
    assert [len(group) for group in groups(broker.turn(1))] == [1]


def test_each_of_a_group_pays_for_its_own() -> None:
    broker = a_broker(
        jobs=[vectors("a", prompt_tokens=1000), vectors("t", user="tom", prompt_tokens=10)], workers=[embedder()],
        settings=FAIR,
    )  # fmt: skip
    broker.turn()
    broker.reports("w1", "a", "complete", prompt_tokens=1000)
    broker.reports("w1", "t", "complete", prompt_tokens=10)
    policy: Any = broker.state.policy
    service = {share.user: share.service for share in policy.shares()}
    assert service["ann"] > 10 * service.get("tom", 1.0)


def test_one_of_a_group_is_cancelled_and_the_rest_goes_on() -> None:
    broker = a_broker(jobs=[vectors(f"a{n}") for n in range(3)], workers=[embedder()], settings=FAIR)
    broker.turn()
    broker.cancel("ann", "a1")
    assert broker.at("w1").busy == 1
    broker.reports("w1", "a1", "stopped", epoch=1, attempt=1)
    done(broker, "a0", "a2")
    assert broker.at("w1").busy == 0


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_session_goes_where_its_last_job_ran() -> None:
    broker = a_broker(
        jobs=[ready("a", session="s")], workers=[idle("w1", slots=2), idle("w2", slots=4)], settings=FAIR
    )
    assert started(broker.turn(), "w2") == ["a"]
    broker.reports("w2", "a", "complete")
    for number in range(3):
        broker.submit("ann", ready(f"x{number}").spec)
    effects = broker.turn()
    assert len(started(effects, "w2")) >= 2
    broker.submit("ann", ready("b", session="s").spec, ready("c").spec)
    effects = broker.turn()
    assert "b" in started(effects, "w2")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_an_instance_takes_no_more_tokens_than_its_budget() -> None:
    chat = instance("m", model="m", kind="llm", slots=4, budget_tokens=1000)
    jobs = [ready(f"c{n}", task_type="chat", prompt_tokens=300, output_tokens=100) for n in range(3)]
    broker = a_broker(jobs=jobs, workers=[idle("w1", instances=[chat])], settings=FAIR)
    assert started(broker.turn(), "w1") == ["c0", "c1"]
    why = sent(broker.says("ann", Why(request_id=8, job_id=job_id("c2"))), "ann", WhyReply)[0]
    assert [each.code for each in why.reasons] == ["budget"]
    assert why.reasons[0].fields == {"worker": "w1", "used": 800, "needs": 400, "limit_value": 900}
    broker.reports("w1", "c0", "complete", prompt_tokens=300, output_tokens=50)
    assert started(broker.turn(), "w1") == ["c2"]


def test_a_job_larger_than_the_budget_runs_alone() -> None:
    chat = instance("m", model="m", kind="llm", slots=4, budget_tokens=1000)
    jobs = [
        ready("huge", task_type="chat", prompt_tokens=3000, output_tokens=100),
        ready("small", task_type="chat", prompt_tokens=10, output_tokens=10),
    ]
    broker = a_broker(jobs=jobs, workers=[idle("w1", instances=[chat])], settings=FAIR)
    assert started(broker.turn(), "w1") == ["huge"]


# --- reserve ----------------------------------------------------------------------------------------------------------


def test_background_leaves_a_slot_free_while_people_are_about() -> None:
    flood = [ready(f"b{n}", priority=1) for n in range(20)]
    broker = a_broker(
        jobs=[running("live", priority=8), *flood], workers=[idle("w1", slots=4)], settings=FAIR
    )
    assert len(started(broker.turn(), "w1")) == 2
    broker.submit("ann", ready("next", priority=8).spec)
    assert started(broker.turn(), "w1") == ["next"]
    assert job_id("next") in broker.state.jobs


def test_nobody_about_nothing_kept_free() -> None:
    flood = [ready(f"b{n}", priority=1) for n in range(20)]
    assert len(started(a_broker(jobs=flood, workers=[idle("w1", slots=4)], settings=FAIR).turn(), "w1")) == 4


def test_a_prompt_longer_than_told_comes_back_uncharged_with_its_count() -> None:
    jobs = [ready("a", task_type="chat", prompt_tokens=10)]
    broker = a_broker(jobs=jobs, workers=[idle("w1", task_types=["chat"])], settings=FAIR)
    assert started(broker.turn(), "w1") == ["a"]
    error = ErrorInfo("prompt_longer", "its prompt has about 4000 tokens, its submitter said 10", True)
    broker.reports("w1", "a", "release", error=error, prompt_tokens=4000)
    assert (broker.job("a").failures, broker.job("a").prompt_tokens) == (0, 4000)
    assert started(broker.turn(), "w1") == ["a"]
