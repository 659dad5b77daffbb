"""Users of an app: one share for all of them and turns inside, one story at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import SettingsChanged
from lmq_proto.messages import Limit, ListUsers, Submit, Users
from unit.broker.builders import a_broker, drained, idle, instance, ready, sent, spec, started

if TYPE_CHECKING:
    from unit.broker.builders import Broker, Planned

FAIR = Settings(policy="blfq")


def many(user: str, count: int) -> list[Planned]:
    return [ready(f"{user}{number}", user=user) for number in range(count)]


def for_users(broker: Broker, *jobs: tuple[str, str], **fields: Any) -> None:
    """Let an app submit jobs, each for one of its users."""
    broker.client("app")
    for name, user in jobs:
        broker.says("app", Submit(request_id=2, jobs=[spec(name, **fields)], as_user=user))


def test_users_of_an_app_share_as_one_and_take_turns_inside() -> None:
    broker = a_broker(jobs=many("tom", 4), workers=[idle("w1")], settings=FAIR)
    for_users(broker, *((f"a{n}", "shop/alice") for n in range(3)), ("b0", "shop/bob"))
    assert drained(broker) == ["tom0", "a0", "tom1", "b0", "tom2", "a1", "tom3", "a2"]


def test_users_of_an_app_that_is_trusted_have_a_share_each() -> None:
    trusting = Settings(policy="blfq", apps={"shop": "each"})
    broker = a_broker(jobs=many("tom", 3), workers=[idle("w1")], settings=trusting)
    for_users(broker, *((f"a{n}", "shop/alice") for n in range(3)), ("b0", "shop/bob"))
    assert drained(broker) == ["tom0", "a0", "b0", "tom1", "a1", "tom2", "a2"]


def test_what_an_app_asks_for_itself_is_one_of_its_users() -> None:
    broker = a_broker(jobs=many("shop", 3), workers=[idle("w1")], settings=FAIR)
    for_users(broker, ("a0", "shop/alice"), ("a1", "shop/alice"))
    assert drained(broker) == ["shop0", "a0", "shop1", "a1", "shop2"]


def test_inside_an_app_priority_goes_before_turns_and_expiry_before_order() -> None:
    broker = a_broker(workers=[idle("w1")], settings=FAIR)
    for_users(broker, ("a0", "shop/alice"), ("a1", "shop/alice"))
    for_users(broker, ("b0", "shop/bob"), priority=4)
    for_users(broker, ("a2", "shop/alice"), expires_ms=60_000)
    for_users(broker, ("c0", "shop/carol"), priority=6)
    assert drained(broker) == ["c0", "a2", "a0", "a1", "b0"]


def test_a_limit_that_holds_one_user_of_an_app_holds_nobody_else() -> None:
    one_each = Settings(policy="blfq", limits=(Limit(of="running", value=1, user="*"),))
    broker = a_broker(workers=[idle("w1", slots=3)], settings=one_each)
    for_users(broker, *((f"a{n}", "shop/alice") for n in range(3)), ("b0", "shop/bob"), ("b1", "shop/bob"))
    assert started(broker.turn(1), "w1") == ["a0", "b0"]
    broker.reports("w1", "b0", "complete")
    assert started(broker.turn(1), "w1") == ["b1"]
    for_users(broker, ("c0", "shop/carol"))
    assert started(broker.turn(1), "w1") == ["c0"]
    broker.reports("w1", "a0", "complete")
    assert started(broker.turn(1), "w1") == ["a1"]


def test_where_a_limit_holds_all_users_of_an_app_others_go_on() -> None:
    one_each = Settings(policy="blfq", limits=(Limit(of="running", value=1, user="shop/alice"),))
    broker = a_broker(jobs=many("tom", 2), workers=[idle("w1", slots=3)], settings=one_each)
    for_users(broker, ("a0", "shop/alice"), ("a1", "shop/alice"))
    assert sorted(started(broker.turn(1), "w1")) == ["a0", "tom0", "tom1"]
    broker.reports("w1", "tom0", "complete")
    assert started(broker.turn(1), "w1") == []
    broker.reports("w1", "a0", "complete")
    assert started(broker.turn(1), "w1") == ["a1"]


def test_a_limit_that_is_lifted_lets_who_was_set_aside_start() -> None:
    one_each = Settings(policy="blfq", limits=(Limit(of="running", value=1, user="*"),))
    broker = a_broker(workers=[idle("w1", slots=3)], settings=one_each)
    for_users(broker, ("a0", "shop/alice"), ("a1", "shop/alice"), ("b0", "shop/bob"))
    assert started(broker.turn(1), "w1") == ["a0", "b0"]
    broker.step(SettingsChanged(FAIR))
    assert started(broker.turn(1), "w1") == ["a1"]


def test_what_rides_together_is_of_all_users_in_turn_and_within_their_limits() -> None:
    two_each = Settings(policy="blfq", limits=(Limit(of="running", value=2, user="*", task_type="embed"),))
    worker = idle("w1", instances=[instance("e", model="nomic", kind="embedding")])
    broker = a_broker(workers=[worker], settings=two_each)
    jobs = [*((f"a{n}", "shop/alice") for n in range(4)), ("b0", "shop/bob"), ("c0", "shop/carol")]
    for_users(broker, *jobs, task_type="embed", models=["nomic"], merge="nomic")
    assert started(broker.turn(1), "w1") == ["a0", "b0", "c0", "a1"]


def test_who_is_first_in_turn_rides_though_another_with_as_many_turns_came_before() -> None:
    none_of_bob = Settings(policy="blfq", limits=(Limit(of="running", value=0, user="shop/bob"),))
    worker = idle("w1", instances=[instance("e", model="nomic", kind="embedding", slots=2)])
    broker = a_broker(workers=[worker], clients=["shop/alice", "shop/bob"], settings=none_of_bob)
    for user, name in (("alice", "a0"), ("bob", "b0"), ("alice", "a1")):
        broker.submit(f"shop/{user}", spec(name, task_type="embed", merge="nomic"), payloads=[b""])
        if name == "b0":
            broker.cancel("shop/alice", "a0")
    assert started(broker.turn(1), "w1") == ["a1"]
    assert broker.at("w1").busy == 1


def test_the_apps_whose_users_have_a_share_each_are_told() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(apps={"shop": "each", "web": "pooled"}))
    assert sent(broker.says("ann", ListUsers(request_id=5)), "ann", Users)[0].each == ["shop"]


def test_how_users_of_an_app_stand_is_one_row() -> None:
    broker = a_broker(jobs=many("tom", 1), settings=FAIR)
    for_users(broker, ("a0", "shop/alice"), ("b0", "shop/bob"))
    told = sent(broker.says("tom", ListUsers(request_id=7)), "tom", Users)[0]
    assert [(row.user, row.queued, row.wanted_ratio) for row in told.users] == [
        ("shop", 2, 0.5),
        ("tom", 1, 0.5),
    ]
