"""Forecasts: what each policy does with a small trace, the figures of it, and the command that prints them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from lmq_broker.core.settings import BandSettings, Settings
from lmq_broker.forecast.__main__ import command
from lmq_broker.forecast.choices import CHOICES, BadEndpoints, endpoints, engines, forecast, replay_of
from lmq_broker.forecast.engines import EngineModel
from lmq_broker.forecast.figures import (
    Fairness,
    Figures,
    Waits,
    fairness_of,
    figures_of,
    gaps_of,
    jain,
    jains_of,
    light_users,
    service,
    waits_of,
)
from lmq_broker.forecast.replay import Replay, Request, Served
from lmq_broker.forecast.tables import Column, comparison, seconds
from lmq_broker.forecast.traces import read

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "t_s,user,in_tokens,out_tokens,model,priority\n"
# A slot is free at once for the first, then all others wait.
ONE_MODEL = f"""{HEAD}0.0,ann,100,100,,5
0.1,ann,100,100,,5
0.2,ann,100,100,,5
0.3,ann,100,100,,5
0.4,tom,100,40,,5
0.5,tom,100,40,,6
0.6,eve,100,40,,8
0.7,eve,100,30,,2
"""
# Loading the other model takes longer than all that waits for the one that is there.
TWO_MODELS = f"""{HEAD}0.0,ann,100,100,small,5
0.1,ann,100,100,small,5
0.2,tom,100,40,large,5
0.3,eve,100,100,small,5
0.4,ann,100,100,small,5
0.5,tom,100,40,large,5
"""


def order_under(choice: str, trace: str, models: list[str]) -> tuple[str, int]:
    """Return in which order requests start on one slot, by user and number, and how often models were swapped."""
    requests = read(trace.splitlines())
    replay = replay_of(choice, requests, engines([("gpu", 1)], models, EngineModel(load_s=10)), Settings())
    replay.run()
    served = list(replay.served.values())
    order = sorted(range(len(served)), key=lambda number: served[number].started_ms)
    return " ".join(f"{served[number].request.user}{number}" for number in order), replay.swaps


@pytest.mark.parametrize(
    ("choice", "order"),
    [
        ("fifo", "ann0 ann1 ann2 ann3 tom4 tom5 eve6 eve7"),
        ("strict", "ann0 eve6 tom5 ann1 ann2 ann3 tom4 eve7"),
        ("vtc", "ann0 eve6 tom5 tom4 ann1 ann2 ann3 eve7"),
        ("blfq", "ann0 eve6 tom5 tom4 ann1 ann2 ann3 eve7"),
    ],
)
def test_who_comes_first_under_each_policy_while_all_want_one_model(choice: str, order: str) -> None:
    assert order_under(choice, ONE_MODEL, ["model"]) == (order, 0)


@pytest.mark.parametrize(
    ("choice", "order"),
    [
        ("strict", "ann0 ann1 eve3 ann4 tom2 tom5"),
        ("blfq", "ann0 eve3 ann1 ann4 tom2 tom5"),
    ],
)
def test_the_loaded_model_goes_on_while_a_load_would_take_longer(choice: str, order: str) -> None:
    assert order_under(choice, TWO_MODELS, ["small", "large"]) == (order, 1)


@pytest.mark.parametrize(
    ("choice", "order"),
    [
        ("fifo", "ann0 ann1 tom2 eve3 ann4 tom5"),
        ("vtc", "ann0 tom2 eve3 tom5 ann1 ann4"),
    ],
)
def test_the_policies_that_are_there_to_compare_with_care_for_no_model(choice: str, order: str) -> None:
    started, swaps = order_under(choice, TWO_MODELS, ["small", "large"])
    assert started == order
    assert swaps >= 3


@pytest.mark.parametrize("choice", CHOICES)
def test_the_figures_of_a_small_trace_are_the_same_every_time(choice: str) -> None:
    requests = read(ONE_MODEL.splitlines())
    on = engines([("gpu", 1)], ["model"], EngineModel())
    figures = forecast(choice, requests, on, Settings())
    # 550 tokens of answers, 23 ms a token, and 67 ms to read each prompt, one after the other.
    assert figures.makespan_s == 13.186
    assert (figures.answered, figures.unanswered, figures.swaps) == (8, 0, 0)
    assert figures.slots_used_ratio == pytest.approx(1.0, abs=0.001)
    assert {name: waits.requests for name, waits in figures.bands.items()} == {
        "interactive": 1, "normal": 6, "background": 1,
    }  # fmt: skip
    assert [user.user for user in figures.users] == ["ann", "tom", "eve"]
    assert forecast(choice, requests, on, Settings()) == figures


def test_two_endpoints_begin_with_two_models() -> None:
    on = engines([("a", 8), ("b", 4), ("c", 4)], ["m1", "m2"], EngineModel())
    assert [(each.name, each.slots, each.models[0]) for each in on] == [
        ("a", 8, "m1"),
        ("b", 4, "m2"),
        ("c", 4, "m1"),
    ]


def test_a_request_that_never_ends_in_time_is_told_as_unanswered() -> None:
    requests = [Request(0, "ann", 10, 1_000_000), Request(0, "tom", 10, 10)]
    figures = forecast("strict", requests, [EngineModel(slots=2)], Settings())
    assert (figures.answered, figures.unanswered) == (1, 1)
    assert "without an answer" in "\n".join(comparison([Column("1", "strict", figures)]))


def test_a_replay_ends_though_some_wait_for_ever() -> None:
    requests = [Request(0, "ann", 10, 10), Request(0, "tom", 10, 10, task_type="paint")]
    replay = Replay(requests, [EngineModel()], Settings())
    replay.run()
    figures = figures_of(replay, Settings())
    assert (figures.answered, figures.unanswered, figures.stranded) == (1, 1, 1)
    assert "which waited for ever" in "\n".join(comparison([Column("1", "strict", figures)]))


def test_what_expires_or_is_refused_ends_the_replay_as_well() -> None:
    requests = [Request(0, "ann", 10, 1000, expires_ms=1000) for _ in range(4)]
    replay = Replay(requests, [EngineModel(slots=1)], Settings(jobs_open=3))
    replay.run()
    assert [each.state for each in replay.served.values()] == ["done", "expired", "expired", "refused"]


# --- figures ---------------------------------------------------------------------------------------------------------


def served(user: str, at_ms: int, started_ms: int, ended_ms: int, tokens: int = 50) -> Served:
    """Return a request of 2 * `tokens` that was answered."""
    return Served(Request(at_ms, user, 0, tokens), started_ms, started_ms, ended_ms, "gpu-1", 1, "done")


def test_jain_is_one_for_equals_and_one_nth_if_one_has_all() -> None:
    assert jain([3, 3, 3]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([0, 0]) == 1.0


def test_service_is_spread_over_the_time_of_the_answer() -> None:
    each = served("ann", 0, 1000, 3000)
    assert service(each, 0, 10_000) == 100
    assert service(each, 2000, 10_000) == 50
    assert service(each, 3000, 10_000) == 0


def test_only_those_who_wait_all_through_a_minute_are_compared() -> None:
    waiting = [served("ann", 0, 150_000, 160_000), served("ann", 0, 0, 60_000)]
    waiting += [served("tom", 0, 150_000, 160_000), served("tom", 0, 30_000, 120_000)]
    assert len(jains_of(waiting, Settings())) == 2
    # In the first minute ann had 100 and tom 100/3, in the second tom alone had some.
    assert jains_of(waiting, Settings()) == [pytest.approx(jain([100, 100 / 3])), 0.5]
    assert jains_of(waiting[:3], Settings())[0] == 0.5
    assert jains_of(waiting[:2], Settings()) == []


def test_users_of_two_bands_are_not_compared() -> None:
    waiting = [served("ann", 0, 150_000, 160_000), served("tom", 0, 150_000, 160_000)]
    waiting[1].request = Request(0, "tom", 0, 50, priority=8)
    assert jains_of(waiting, Settings()) == []


def test_weights_divide_what_was_served() -> None:
    waiting = [served("ann", 0, 150_000, 160_000), served("ann", 0, 0, 60_000, 100)]
    waiting += [served("tom", 0, 150_000, 160_000), served("tom", 0, 0, 60_000)]
    assert jains_of(waiting, Settings(weights={"ann": 2.0}))[0] == pytest.approx(1.0)


def test_the_gap_is_what_others_lack_to_the_best_served_as_far_as_they_asked_for_more() -> None:
    alone = [served("ann", at_ms, at_ms, at_ms + 1) for at_ms in range(0, 600_000, 1000)]
    assert max(gaps_of(alone, {})) == pytest.approx(0, abs=4)
    late = [*alone, *(served("tom", at_ms, 900_000, 900_001) for at_ms in range(0, 600_000, 1000))]
    # Both ask for 100 tokens each second; one has all of them.
    assert sorted(gaps_of(late, {}))[50] == pytest.approx(100, abs=4)
    fairness = fairness_of(late, Settings())
    assert (fairness.jain_mean, fairness.jain_least) == (None, None)


def test_light_users_ask_for_less_than_the_middle_one() -> None:
    assert light_users({"a": 5, "b": 1, "c": 9}) == {"b"}
    assert light_users({"a": 5}) == frozenset()
    assert light_users({}) == frozenset()


def test_waits_are_of_those_that_started() -> None:
    assert waits_of([]) is None
    assert waits_of([Served(Request(0, "ann", 1, 1))]) is None
    waits = waits_of(served("ann", 0, 1000 * number, 200_000) for number in range(1, 101))
    assert waits == Waits(100, 50.0, 95.0, 99.0)


# --- texts -----------------------------------------------------------------------------------------------------------


def test_endpoints_are_a_number_or_names_with_slots() -> None:
    assert endpoints("2", 4) == [("gpu-1", 4), ("gpu-2", 4)]
    assert endpoints("big:8, small", 4) == [("big", 8), ("small", 4)]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("0", "endpoints", "0"),
        ("101", "endpoints", "101"),
        ("gpu:0", "slots of gpu", "0"),
        ("gpu:many", "slots of gpu", "many"),
        ("gpu:4,gpu:4", "endpoint", "gpu"),
        ("", "endpoint", ""),
        ("a,,b", "endpoint", ""),
        (",".join(f"gpu{number}:1" for number in range(101)), "endpoints", "101"),
    ],
)
def test_endpoints_that_cannot_be_meant_are_named(text: str, field: str, value: str) -> None:
    with pytest.raises(BadEndpoints) as caught:
        endpoints(text, 4)
    assert (caught.value.field, caught.value.value) == (field, value)


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([1583.4, 61.2], ["1,583", "61"]),
        ([1583.4, 4.56], ["1,583.4", "4.6"]),
        ([0.04, 0.0], ["0.0", "0.0"]),
        ([None, 61.2], ["-", "61"]),
    ],
)
def test_seconds_side_by_side_have_the_decimals_that_the_smallest_is_worth(
    values: list[float | None], texts: list[str]
) -> None:
    assert seconds(values) == texts


def some_figures(**fields: Any) -> Figures:
    waits = Waits(10, 1.0, 2.0, 3.0)
    told: dict[str, Any] = {
        "makespan_s": 1583.0, "answered": 10, "unanswered": 0, "stranded": 0, "tokens_per_s": 400.0,
        "slots_used_ratio": 0.5, "swaps": 3, "loading_s": 30.0, "waits": waits,
        "bands": {"normal": waits}, "light": None, "fairness": Fairness(10.0, 5.0, None, None), "users": [],
    }  # fmt: skip
    return Figures(**told | fields)


def test_forecasts_stand_side_by_side() -> None:
    lines = comparison(
        [Column("1", "blfq", some_figures()), Column("2", "blfq", some_figures(makespan_s=800.0))]
    )
    assert lines[:4] == [
        "endpoints                       1     2",
        "policy                       blfq  blfq",
        "---------------------------------------",
        "makespan (s)                1,583   800",
    ]
    assert "light users" not in "\n".join(lines)


def test_bands_and_light_users_have_rows_where_there_are_some() -> None:
    waits = Waits(10, 1.0, 2.0, 3.0)
    bands = {"interactive": waits, "background": waits}
    text = "\n".join(comparison([Column("1", "blfq", some_figures(bands=bands, light=waits))]))
    for label in ("  interactive, p50", "  background, p50", "  light users, p50", "Jain's index"):
        assert label in text


def test_words_of_the_table_are_explained_under_it_where_it_has_them() -> None:
    told = comparison([Column("1", "blfq", some_figures(light=Waits(10, 1.0, 2.0, 3.0)))])
    under = told[told.index("", told.index("") + 1) + 1 :]
    legend = under[under.index("") + 1 :]
    assert [line[:14].rstrip() for line in legend] == ["light users", "service gap", "", "Jain's index"]
    assert max(map(len, legend)) <= 80
    assert "1/n" not in "\n".join(comparison([Column("1", "blfq", some_figures())]))


# --- the command -----------------------------------------------------------------------------------------------------


def run(*words: str, given: str = ONE_MODEL) -> Result:
    return CliRunner().invoke(command, ["-", *words], input=given, catch_exceptions=False)


def test_the_command_compares_endpoints_and_policies() -> None:
    shown = run(
        "--endpoints", "1", "--endpoints", "a:1,b:1", "--policy", "fifo", "--policy", "blfq", "--slots", "1"
    )
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == "8 requests of 3 users for 1 model within 1 s"
    assert lines[1] == "light users: 1 of 3, who ask for 18% of all tokens"
    assert lines[3].split() == ["endpoints", "1", "1", "a:1,b:1", "a:1,b:1"]
    assert lines[4].split() == ["policy", "fifo", "blfq", "fifo", "blfq"]
    assert lines[6].split()[-4:-2] == ["13.2", "13.2"]
    assert shown.stderr == ""


def test_json_has_every_figure_and_users_when_asked_for() -> None:
    told = json.loads(run("--json", "--slots", "1").stdout)
    assert (told["requests"], told["models"]) == (8, ["model"])
    only = told["forecasts"][0]
    assert (only["endpoints"], only["policy"], only["makespan_s"]) == ("1", Settings().policy, 13.186)
    assert "users" not in only
    told = json.loads(run("--json", "--slots", "1", "--users").stdout)
    assert [user["user"] for user in told["forecasts"][0]["users"]] == ["ann", "tom", "eve"]


def test_users_have_a_table_of_their_own() -> None:
    shown = run("--users")
    assert "endpoints 1, policy" in shown.stdout
    assert [line.split()[0] for line in shown.stdout.splitlines()[-3:]] == ["ann", "tom", "eve"]


def test_users_are_dealt_over_models_and_times_stretched() -> None:
    told = json.loads(run("--json", "--models", "2", "--stretch", "10", "--load-s", "3").stdout)
    assert (told["models"], told["span_s"]) == (["model-1", "model-2"], 7.0)


def test_bands_come_from_the_configuration_if_it_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lmq.toml"
    file.write_text(
        '[broker]\npolicy = "vtc"\nbands = [{ name = "now", lowest = 5 }, { name = "later", lowest = 0 }]\n'
    )
    told = json.loads(run("--json", "--config", str(file)).stdout)
    assert told["forecasts"][0]["policy"] == "vtc"
    assert list(told["forecasts"][0]["bands"]) == ["now", "later"]


@pytest.mark.parametrize(
    ("words", "given", "sentence"),
    [
        ((), "", "line 1, header = ''"),
        ((), f"{HEAD}0,ann,1,x,,", "stdin: line 2, out_tokens = 'x': allowed is a whole number from 0 to"),
        (("--endpoints", "gpu:0"), ONE_MODEL, "slots of gpu = '0': allowed is 1 to 1024"),
        (("--policy", "lottery"), ONE_MODEL, "'lottery' is not one of"),
        (("--stretch", "0"), ONE_MODEL, "0.0 is not in the range"),
        (("--config", "nowhere.toml"), ONE_MODEL, "nowhere.toml"),
    ],
)
def test_what_cannot_be_used_gets_a_sentence_and_status_2(
    words: tuple[str, ...], given: str, sentence: str
) -> None:
    ended = run(*words, given=given)
    assert ended.exit_code == 2
    assert sentence in ended.stderr
    assert "Traceback" not in ended.output


def test_a_file_that_is_no_text_gets_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(b"t_s,user,in_tokens,out_tokens\n0,\xff\xfe,1,1\n")
    ended = CliRunner().invoke(command, [str(file)])
    assert ended.exit_code == 2
    assert f"{file}: text that is not UTF-8" in ended.stderr


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_bytes(b"\xef\xbb\xbft_s,user,in_tokens,out_tokens\n0,ann,1,1\n")
    assert CliRunner().invoke(command, [str(file)]).exit_code == 0


def test_fifo_knows_no_priorities_but_tells_the_bands() -> None:
    requests = read(ONE_MODEL.splitlines())
    bands = (BandSettings("high", 6), BandSettings("low", 0))
    figures = forecast("fifo", requests, [EngineModel(slots=1)], Settings(bands=bands))
    assert {name: waits.requests for name, waits in figures.bands.items()} == {"high": 2, "low": 6}
