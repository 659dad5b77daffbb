"""`lmq users`, and what submits and updates say of a ceiling."""

from __future__ import annotations

import json

import msgspec
import pytest

from lmq import Allowance, Outcome, Users, UserView
from unit.cli.fakes import ID_A, FakeBroker, a_job, run


def a_row(user: str, **fields: object) -> UserView:
    told = {"pool": "llm", "band": "normal", "weight": 1.0, **fields}
    return UserView(user=user, **told)  # type: ignore[arg-type]


def broker_with(*rows: UserView, allowances: tuple[Allowance, ...] = (), policy: str = "blfq") -> FakeBroker:
    told = Users(
        request_id=1,
        policy=policy,
        has_shares=policy != "strict",
        users=list(rows),
        bands=[],
        allowances=list(allowances),
    )
    return FakeBroker(all_users=told)


def test_the_list_shows_what_is_wanted_and_received() -> None:
    broker = broker_with(
        a_row("anna", weight=2.0, running=1, queued=3, wanted_ratio=2 / 3, received_ratio=0.7),
        a_row("", users=4, weight=4.0, queued=1200, wanted_ratio=1 / 3, received_ratio=0.3),
        allowances=(
            Allowance(user="anna", weight=2.0, ceiling=6, by="tom"),
            Allowance(user="sue", weight=0.5),
        ),
    )
    lines = run(broker, "users").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["BAND", "USER", "WEIGHT", "CEILING", "RUNS", "WAITS", "WANTED", "RECEIVED"],
        ["normal", "anna", "2", "6", "1", "3", "67%", "70%"],
        ["normal", "4", "others", "4", "0", "1,200", "33%", "30%"],
        ["sue", "0.5"],
    ]
    assert run(broker, "users", "list").stdout.splitlines() == lines
    assert json.loads(run(broker, "users", "--json").stdout)["users"][0]["user"] == "anna"


def test_pools_are_named_where_there_are_several() -> None:
    broker = broker_with(a_row("anna"), a_row("anna", pool="tasks/training", band="background"))
    assert run(broker, "users").stdout.split()[:3] == ["POOL", "BAND", "USER"]
    lines = run(broker, "users").stdout.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["llm", "normal"], ["tasks/training", "background"]]


def test_without_shares_it_says_so() -> None:
    ended = run(broker_with(a_row("anna", queued=2), policy="strict"), "users")
    assert "anna" in ended.stdout
    assert "users have no shares" in ended.stderr


def test_with_nobody_there_it_says_so() -> None:
    assert "nobody waits or runs" in run(broker_with(), "users").stderr


def test_one_user_is_shown_with_its_jobs() -> None:
    broker = broker_with(
        a_row("anna", weight=2.0), allowances=(Allowance(user="anna", weight=2.0, ceiling=6),)
    )
    broker.found = [a_job()]
    shown = run(broker, "users", "show", "anna").stdout
    assert "weight 2, ceiling 6   (by the configuration)" in shown
    assert ID_A[-6:] in shown
    assert json.loads(run(broker, "users", "show", "anna", "--json").stdout)["allowance"]["ceiling"] == 6


def test_a_user_of_an_app_that_shares_as_one_is_shown_with_the_share_of_the_app() -> None:
    broker = broker_with(
        a_row("shop", weight=3.0, running=1), allowances=(Allowance(user="shop/alice", ceiling=4),)
    )
    lines = run(broker, "users", "show", "shop/alice").stdout.splitlines()
    assert lines[0] == "shop/alice shares as shop   ceiling 4"
    assert lines[3].split()[:3] == ["normal", "shop", "3"]
    assert run(broker_with(), "users", "show", "shop/bob").stdout.strip() == "shop/bob shares as shop"


def test_a_weight_that_does_not_count_is_said_to() -> None:
    ended = run(broker_with(), "users", "set", "shop/alice", "--weight", "3")
    assert "shop/alice shares as shop: its own weight does not count" in ended.stderr
    assert "lmq users set shop --weight 3" in ended.stderr
    assert "shares as" not in run(broker_with(), "users", "set", "shop/alice", "--ceiling", "3").stderr


def test_a_user_of_an_app_whose_users_have_a_share_each_is_like_any_other() -> None:
    broker = broker_with(a_row("shop/alice", weight=3.0, running=1))
    broker.all_users = msgspec.structs.replace(broker.all_users, each=["shop"])
    assert "shares as" not in run(broker, "users", "show", "shop/alice").stdout
    assert "shares as" not in run(broker, "users", "set", "shop/alice", "--weight", "3").stderr
    assert run(broker, "users", "show", "shop/bob").exit_code == 3


def test_a_user_that_nobody_knows_is_not_found() -> None:
    assert run(broker_with(a_row("anna")), "users", "show", "nobody").exit_code == 3


def test_a_user_that_is_not_there_names_the_nearest_if_any_is_near() -> None:
    assert "nearest: anna" in run(broker_with(a_row("anna"), a_row("cleo")), "users", "show", "ana").stderr
    assert (
        "no user 'zzz'; type: lmq users\n" in run(broker_with(a_row("anna")), "users", "show", "zzz").stderr
    )


def test_a_ceiling_may_be_the_name_of_a_band() -> None:
    broker = broker_with()
    assert run(broker, "users", "set", "anna", "--ceiling", "normal").stdout == "anna has ceiling 5\n"
    assert broker.did == [("set_user", "anna", {"weight": None, "ceiling": 5})]


def test_a_weight_and_a_ceiling_are_given() -> None:
    broker = broker_with()
    ended = run(broker, "users", "set", "anna", "--weight", "2", "--ceiling", "6")
    assert ended.stdout == "anna has weight 2 and ceiling 6\n"
    assert broker.did == [("set_user", "anna", {"weight": 2.0, "ceiling": 6})]


def test_a_reset_says_whether_there_was_anything() -> None:
    assert run(broker_with(), "users", "reset", "anna").stdout == "anna was as the configuration says\n"


@pytest.mark.parametrize("words", [[], ["--weight", "0"], ["--ceiling", "10"]], ids=str)
def test_what_cannot_be_given_is_refused_before_a_broker_is_asked(words: list[str]) -> None:
    broker = broker_with()
    assert run(broker, "users", "set", "anna", *words).exit_code == 2
    assert broker.did == []


@pytest.mark.parametrize(
    "words",
    [["chat", "-d", "Hi"], ["submit", "echo", "{}"], ["embed", "-d", "a"]],
    ids=lambda words: words[0],
)
def test_a_submit_says_that_a_ceiling_lowered_what_was_asked(words: list[str]) -> None:
    broker = FakeBroker(ceiling=6, found=[a_job(user="anna")])
    ended = run(broker, *words, "--priority", "9")
    assert "priority 6 (ceiling of anna), asked 9" in ended.stderr
    assert "ceiling" not in run(broker, *words, "--priority", "9", "--quiet").stderr


def test_a_default_that_was_lowered_is_told_without_what_was_asked() -> None:
    broker = FakeBroker(ceiling=3, found=[a_job(user="anna")])
    assert "priority 3 (ceiling of anna)\n" in run(broker, "submit", "echo", "{}").stderr


def test_an_update_says_it_too() -> None:
    broker = FakeBroker(found=[a_job(user="anna")], outcomes=[Outcome(ID_A, "changed", None, 6)])
    ended = run(broker, "update", ID_A, "--priority", "interactive")
    assert "priority 6 (ceiling of anna), asked 8" in ended.stderr
    assert ended.exit_code == 0
