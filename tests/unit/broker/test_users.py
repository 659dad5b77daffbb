"""Weights and ceilings of users, by settings and by command; and how users stand in their bands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmq_broker.core import shares
from lmq_broker.core.records import MetaSet
from lmq_broker.core.settings import Rates, Settings
from lmq_broker.core.stimuli import SettingsChanged
from lmq_proto.messages import (
    Changed,
    Done,
    ListUsers,
    PhaseReport,
    Phases,
    ResetUser,
    SetUser,
    Submit,
    Target,
    Update,
    Users,
)
from unit.broker.builders import (
    Broker,
    a_broker,
    a_memory,
    drained,
    error,
    idle,
    job_id,
    only,
    outcomes,
    ready,
    running,
    sent,
    spec,
    started,
)

if TYPE_CHECKING:
    from lmq_broker.core.effects import Effect
    from lmq_proto.messages import UserView
    from unit.broker.builders import Planned

FAIR = Settings(policy="blfq", rates={"m1": Rates(prompt_ms=0.0, output_ms=10.0)})


def set_user(broker: Broker, user: str, **fields: Any) -> list[Effect]:
    return broker.says("ann", SetUser(request_id=5, user=user, **fields))


def reset_user(broker: Broker, user: str) -> list[Effect]:
    return broker.says("ann", ResetUser(request_id=6, user=user))


def listed(broker: Broker, who: str = "ann") -> Users:
    return sent(broker.says(who, ListUsers(request_id=7)), who, Users)[0]


def rows(reply: Users) -> dict[tuple[str, str], UserView]:
    """Return the rows by (band, user)."""
    return {(row.band, row.user): row for row in reply.users}


def many(user: str, count: int, **fields: Any) -> list[Planned]:
    return [ready(f"{user}{number}", user=user, **fields) for number in range(count)]


def writes_tokens(broker: Broker, job: str, tokens: int) -> None:
    report = PhaseReport(job_id=job_id(job), attempt=1, phase="writing", tokens=tokens)
    broker.says("w1", Phases(leases=[report]))


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_weight_by_command_counts_at_once_for_what_waits() -> None:
    broker = a_broker(jobs=[*many("ann", 3), *many("tom", 6)], workers=[idle("w1")], settings=FAIR)
    effects = set_user(broker, "tom", weight=2.0)
    assert sent(effects, "ann", Done) == [Done(request_id=5)]
    order = drained(broker)
    assert [sum(name.startswith("tom") for name in order[:count]) for count in (3, 6)] == [2, 4]


def test_what_is_set_is_journaled_told_and_there_after_a_restart() -> None:
    settings = Settings(policy="blfq", weights={"tom": 5.0})
    broker = a_broker(clients=["ann"], settings=settings)
    effects = set_user(broker, "tom", weight=2.0)
    effects += set_user(broker, "tom", ceiling=6)
    broker.turn()
    assert broker.last_event("user_set").user == "tom"
    assert broker.last_event("user_set").detail == {"weight": 2.0, "ceiling": 6, "by": "ann"}
    meta = {record.name: record.value for record in only(effects, MetaSet)}
    assert list(meta) == ["allowance/tom"]
    again = a_broker(
        jobs=[*many("ann", 3), *many("tom", 6)], workers=[idle("w1")], settings=settings,
        memory=a_memory(meta=meta),
    )  # fmt: skip
    assert [(each.user, each.weight, each.ceiling, each.by) for each in listed(again).allowances] == [
        ("tom", 2.0, 6, "ann")
    ]
    assert sum(name.startswith("tom") for name in drained(again)[:3]) == 2


def test_settings_that_are_read_again_count_where_no_command_said_anything() -> None:
    broker = a_broker(
        clients=["ann"], settings=Settings(weights={"tom": 5.0, "sue": 5.0}, ceilings={"tom": 5})
    )
    set_user(broker, "tom", weight=2.0)
    broker.step(SettingsChanged(Settings(weights={"tom": 4.0}, ceilings={"sue": 3})))
    assert [(each.user, each.weight, each.ceiling) for each in listed(broker).allowances] == [
        ("sue", 1.0, 3), ("tom", 2.0, None),
    ]  # fmt: skip


def test_a_reset_brings_back_what_the_settings_say() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(policy="blfq", weights={"tom": 5.0}))
    set_user(broker, "tom", weight=2.0, ceiling=3)
    effects = reset_user(broker, "tom")
    assert sent(effects, "ann", Done) == [Done(request_id=6)]
    assert [(record.name, record.value) for record in only(effects, MetaSet)] == [("allowance/tom", b"")]
    broker.turn()
    assert broker.last_event("user_reset").detail == {"by": "ann"}
    assert [(each.weight, each.ceiling, each.by) for each in listed(broker).allowances] == [(5.0, None, "")]
    assert sent(reset_user(broker, "tom"), "ann", Done) == [Done(request_id=6, changed=False)]


def test_the_same_once_more_changes_nothing() -> None:
    broker = a_broker(clients=["ann"])
    set_user(broker, "tom", weight=2.0)
    effects = set_user(broker, "tom", weight=2.0)
    assert sent(effects, "ann", Done) == [Done(request_id=5, changed=False)]
    assert not only(effects, MetaSet)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"weight": 0.0}, "weight"), ({"weight": float("nan")}, "weight"), ({"weight": 1001.0}, "weight"),
        ({"ceiling": 10}, "ceiling"), ({"ceiling": -1}, "ceiling"), ({}, "weight"),
    ],
)  # fmt: skip
def test_what_cannot_be_given_is_refused(fields: dict[str, Any], field: str) -> None:
    broker = a_broker(clients=["ann"])
    refused = error(set_user(broker, "tom", **fields))
    assert (refused.code, refused.fields["field"]) == ("bad_field", field)
    assert not broker.state.allowances


def test_a_name_that_cannot_be_one_is_refused() -> None:
    broker = a_broker(clients=["ann"])
    assert error(set_user(broker, "", weight=1.0)).fields["field"] == "user"
    assert error(reset_user(broker, "a\tb")).fields["field"] == "user"


def test_users_with_an_allowance_are_bounded() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(allowances=1))
    set_user(broker, "tom", weight=2.0)
    assert error(set_user(broker, "sue", weight=2.0)).code == "limit_reached"
    assert sent(set_user(broker, "tom", weight=3.0), "ann", Done)


def test_only_an_admin_gives() -> None:
    broker = a_broker(clients=["ann"])
    broker.role("ann", "user")
    assert error(set_user(broker, "ann", weight=9.0)).code == "not_allowed"
    assert error(reset_user(broker, "ann")).code == "not_allowed"


# --- ceilings ---------------------------------------------------------------------------------------------------------


def test_a_ceiling_lowers_what_is_asked_for_and_the_outcome_says_so() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(ceilings={"ann": 6}))
    told = outcomes(broker.submit("ann", spec("a", priority=9), spec("b", priority=6), spec("c")))
    assert [each.priority for each in told] == [6, None, None]
    assert [broker.job(name).priority for name in "abc"] == [6, 6, 5]


def test_a_default_above_the_ceiling_is_lowered_too() -> None:
    broker = a_broker(clients=["ann"])
    set_user(broker, "ann", ceiling=3)
    told = outcomes(broker.submit("ann", spec("a", task_type="embed")))
    assert (told[0].priority, broker.job("a").priority) == (3, 3)


def test_a_ceiling_by_command_wins_over_the_settings_until_reset() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(ceilings={"ann": 6}))
    set_user(broker, "ann", ceiling=8)
    broker.submit("ann", spec("a", priority=9))
    reset_user(broker, "ann")
    broker.submit("ann", spec("b", priority=9))
    assert [broker.job(name).priority for name in "ab"] == [8, 6]


def test_an_update_is_held_under_the_ceiling_of_the_jobs_user_whoever_asks() -> None:
    broker = a_broker(jobs=[ready("a", user="tom")], clients=["ann"], settings=Settings(ceilings={"tom": 6}))
    target = Target(job_ids=[job_id("a")])
    effects = broker.says("ann", Update(request_id=3, target=target, priority=9))
    told = sent(effects, "ann", Changed)[0].outcomes
    assert [(each.outcome, each.priority) for each in told] == [("changed", 6)]
    again = sent(broker.says("ann", Update(request_id=4, target=target, priority=9)), "ann", Changed)[
        0
    ].outcomes
    assert [(each.outcome, each.priority) for each in again] == [("unchanged", 6)]
    lower = sent(broker.says("ann", Update(request_id=5, target=target, priority=2)), "ann", Changed)[
        0
    ].outcomes
    assert [(each.outcome, each.priority) for each in lower] == [("changed", None)]


def test_users_of_an_app_have_its_ceiling_unless_they_have_one_of_their_own() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(ceilings={"shop": 4, "shop/vip": 7}))
    for number, user in enumerate(("shop/alice", "shop/vip", "shop", "shopper")):
        job = spec(f"job{number}", priority=9)
        broker.says("ann", Submit(request_id=2, jobs=[job], as_user=user))
    assert [broker.job(f"job{number}").priority for number in range(4)] == [4, 7, 4, 9]


# --- how users stand --------------------------------------------------------------------------------------------------


def test_wanted_goes_by_weight_over_those_who_wait_or_run() -> None:
    broker = a_broker(
        jobs=[running("r", user="ann"), *many("tom", 2), *many("sue", 1, priority=8)], workers=[idle("w1")],
        settings=Settings(policy="blfq", weights={"tom": 3.0}),
    )  # fmt: skip
    found = rows(listed(broker))
    assert {key: (row.wanted_ratio, row.queued, row.running) for key, row in found.items()} == {
        ("interactive", "sue"): (1.0, 1, 0), ("normal", "ann"): (0.25, 0, 1), ("normal", "tom"): (0.75, 2, 0),
    }  # fmt: skip
    bands = {band.name: (band.queued, band.running, band.lowest) for band in listed(broker).bands}
    assert bands == {"interactive": (1, 0, 7), "normal": (2, 1, 4), "background": (0, 0, 0)}


def test_received_is_what_was_charged_within_the_last_minute() -> None:
    jobs = [running(f"{user}0", user=user, task_type="chat", models=["m1"]) for user in ("ann", "tom")]
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=2)], settings=FAIR)
    for name, tokens in (("ann0", 300), ("tom0", 100)):
        writes_tokens(broker, name, tokens)
    broker.turn(1000)
    before = rows(listed(broker))
    assert before["normal", "ann"].received_ratio == pytest.approx(0.75, abs=0.01)
    assert before["normal", "tom"].received_ratio == pytest.approx(0.25, abs=0.01)
    broker.pass_time(40_000, hearing=["w1", "ann", "tom"])
    writes_tokens(broker, "tom0", 200)
    broker.pass_time(25_000, hearing=["w1", "ann", "tom"])
    after = rows(listed(broker))
    assert after["normal", "tom"].received_ratio == 1.0
    assert after["normal", "ann"].received_ratio == 0.0


def test_who_has_ended_stays_in_the_list_while_the_window_holds_what_it_received() -> None:
    broker = a_broker(
        jobs=[running("a", task_type="chat", models=["m1"])], workers=[idle("w1")], settings=FAIR
    )
    broker.reports("w1", "a", "complete", output_tokens=100, model="m1")
    broker.turn(1000)
    row = rows(listed(broker))["normal", "ann"]
    assert (row.running, row.queued, row.wanted_ratio, row.received_ratio) == (0, 0, 0.0, 1.0)
    broker.pass_time(61_000, hearing=["w1", "ann"])
    assert listed(broker).users == []


def test_a_refund_takes_back_what_was_received() -> None:
    jobs = [running(f"{user}0", user=user, task_type="chat", models=["m1"]) for user in ("ann", "tom")]
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=2)], settings=FAIR)
    for name in ("ann0", "tom0"):
        writes_tokens(broker, name, 100)
    broker.reports("w1", "ann0", "release")
    broker.turn(1000)
    assert rows(listed(broker))["normal", "tom"].received_ratio == 1.0


def test_a_user_sees_its_own_row_and_the_sum_of_the_others() -> None:
    broker = a_broker(
        jobs=[*many("ann", 1), *many("tom", 2), *many("sue", 3)], settings=Settings(
            policy="blfq", weights={"tom": 2.0, "ann": 1.5}
        ),
    )  # fmt: skip
    broker.role("ann", "user")
    reply = listed(broker)
    assert [(row.user, row.users, row.queued, row.weight) for row in reply.users] == [
        ("ann", 1, 1, 1.5), ("", 2, 5, 3.0),
    ]  # fmt: skip
    assert sum(row.wanted_ratio for row in reply.users) == pytest.approx(1.0)
    assert [each.user for each in reply.allowances] == ["ann"]


@pytest.mark.parametrize("role", ["admin", "observer", "gateway"])
def test_some_roles_see_everybody(role: str) -> None:
    broker = a_broker(jobs=[*many("ann", 1), *many("tom", 1)], settings=FAIR)
    broker.role("ann", role)
    assert [row.user for row in listed(broker).users] == ["ann", "tom"]


def test_an_app_sees_the_users_of_its_namespace() -> None:
    broker = a_broker(clients=["shop"], settings=Settings(policy="blfq"))
    broker.role("shop", "app", principal="shop")
    for number, user in enumerate(("shop", "shop/alice")):
        broker.says("shop", Submit(request_id=2, jobs=[spec(f"job{number}")], as_user=user))
    broker.client("tom")
    broker.submit("tom", spec("tom"))
    assert "" in [row.user for row in listed(broker, "shop").users]
    assert "tom" not in [row.user for row in listed(broker, "shop").users]


def test_beyond_a_thousand_users_the_rest_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "ROWS", 2)
    broker = a_broker(jobs=[ready(f"job{n}", user=f"user{n}") for n in range(5)], settings=FAIR)
    assert [(row.user, row.users) for row in listed(broker, "user0").users] == [
        ("user0", 1), ("user1", 1), ("", 3),
    ]  # fmt: skip


def test_the_window_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "KEPT", 3)
    broker = a_broker(
        jobs=[running("a", task_type="chat", models=["m1"])], workers=[idle("w1")], settings=FAIR
    )
    for number in range(10):
        writes_tokens(broker, "a", 10 * (number + 1))
        broker.pass_time(1000, hearing=["ann"])
    assert len(broker.state.charged_lately) == 3


def test_without_shares_nobody_wants_any_and_the_bands_are_those_that_people_know() -> None:
    jobs = [*many("ann", 2, priority=8), ready("b", priority=9), ready("c", user="tom")]
    reply = listed(a_broker(jobs=jobs, settings=Settings(policy="strict")))
    assert [(row.band, row.user, row.queued, row.wanted_ratio) for row in reply.users] == [
        ("interactive", "ann", 3, 0.0), ("normal", "tom", 1, 0.0),
    ]  # fmt: skip
    assert [(band.name, band.queued) for band in reply.bands] == [
        ("interactive", 3), ("normal", 1), ("background", 0),
    ]  # fmt: skip
    assert (reply.policy, reply.has_shares) == ("strict", False)


def test_a_weight_without_shares_changes_no_order() -> None:
    broker = a_broker(
        jobs=[*many("ann", 2), *many("tom", 2)], workers=[idle("w1")], settings=Settings(policy="strict")
    )
    set_user(broker, "tom", weight=9.0)
    assert drained(broker) == ["ann0", "ann1", "tom0", "tom1"]


def test_own_tasks_are_a_pool_of_their_own() -> None:
    broker = a_broker(jobs=[ready("a", task_type="train", queue="training"), ready("b")], settings=FAIR)
    assert [(row.pool, row.queued) for row in listed(broker).users] == [("llm", 1), ("tasks/training", 1)]


def test_a_job_that_runs_is_priced_anew_at_the_new_weight() -> None:
    broker = a_broker(
        jobs=[running("r", user="tom"), *many("ann", 2), *many("tom", 2)], workers=[idle("w1")], settings=FAIR
    )
    set_user(broker, "tom", weight=4.0)
    key = rows(listed(broker))["normal", "tom"].key_ms
    set_user(broker, "tom", weight=1.0)
    assert rows(listed(broker))["normal", "tom"].key_ms == pytest.approx(4 * key, abs=4)
    assert started(broker.turn(1), "w1") == []
