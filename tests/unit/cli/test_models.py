"""`lmq models`: what is listed, asked of the broker, and said of it; and what other commands say of models."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click
import pytest

from lmq import Alias, DefaultModel, Event, JobStatus, ModelView, Order, WorkerView
from lmq.cli import humane
from lmq.cli.eventlines import event_line
from lmq.errors import MayNotLoad, NeverFits, NoRoom, NotFound
from unit.cli.fakes import FakeBroker, a_job, an_event, run

if TYPE_CHECKING:
    from lmq.errors import LmqError

PIN = Order(kind="pin", worker="gpu-1", model="qwen/qwen3-8b", by="anna", since_ms=0, until_ms=14_400_000)
QWEN = ModelView(
    model="qwen/qwen3-8b", kind="llm", loaded_on=["gpu-1"], on_disk_at=["gpu-1", "gpu-2"], slots=4, leased=1, waiting=3,
    aliases=["fast"], orders=[PIN],
)  # fmt: skip
LOAD = Order(
    kind="load", worker="gpu-2", model="nomic", by="tom", since_ms=0, note="waits for room; 1 job runs there"
)
NOMIC = ModelView(model="nomic", kind="embedding", on_disk_at=["gpu-2"], orders=[LOAD])
FAST = Alias(name="fast", models=["qwen3-8b", "qwen3-8b@q4_k_m"], by="anna")
BIG = Alias(name="big", models=["qwen3-32b"])


@pytest.fixture(autouse=True)
def a_clock_that_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humane, "now_ms", lambda: 0)


def a_broker(**fields: Any) -> FakeBroker:
    return FakeBroker(all_models=[QWEN, NOMIC], all_aliases=[FAST, BIG], **fields)


# --- list and show ---


def test_the_list_shows_models_aliases_defaults_and_orders() -> None:
    broker = a_broker(all_defaults=[DefaultModel(task_type="chat", model="fast", by="anna")])
    lines = run(broker, "models").output.splitlines()
    assert [line.split()[0] for line in lines if line] == [
        "MODEL", "qwen/qwen3-8b", "nomic", "ALIAS", "fast", "big", "JOBS", "chat", "ORDER", "pin", "load",
    ]  # fmt: skip
    assert lines == run(broker, "models", "list").output.splitlines()
    assert lines[0].split() == ["MODEL", "KIND", "LOADED", "ON", "SLOTS", "RUNS", "WAITS", "ON", "DISK", "AT"]
    assert lines[1].split() == ["qwen/qwen3-8b", "llm", "gpu-1", "4", "1", "3", "gpu-2"]
    assert "qwen3-8b or qwen3-8b@q4_k_m  anna" in lines[4 + 1]
    assert "configuration file" in lines[6]
    assert "another 4 h" in lines[12]
    assert "once" in lines[13]


def test_the_list_in_json_is_one_of_models_with_their_aliases_and_orders() -> None:
    found = json.loads(run(a_broker(), "--json", "models").output)
    assert [model["model"] for model in found] == ["qwen/qwen3-8b", "nomic"]
    assert (found[0]["aliases"], found[0]["orders"][0]["by"]) == (["fast"], "anna")


def test_one_model_is_shown_with_who_wants_it_where() -> None:
    shown = run(a_broker(), "models", "show", "Qwen3-8B").output
    assert "aliases     fast" in shown
    assert "pin         on gpu-1 by anna for another 4 h" in shown
    assert (
        "load        on gpu-2 by tom: waits for room; 1 job runs there"
        in run(a_broker(), "models", "show", "nomic").output
    )


def test_an_alias_is_shown_with_what_it_stands_for() -> None:
    assert "qwen3-8b or qwen3-8b@q4_k_m" in run(a_broker(), "models", "show", "FAST").output
    assert json.loads(run(a_broker(), "--json", "models", "show", "fast").output)["by"] == "anna"


def test_a_model_that_is_not_there_names_the_nearest() -> None:
    ended = run(a_broker(), "models", "show", "nomix")
    assert (ended.exit_code, "nearest: nomic" in ended.stderr) == (3, True)


# --- names ---


@pytest.mark.parametrize(
    ("words", "did", "says"),
    [
        (
            "alias fast qwen3-8b q4",
            ("alias", "fast", ["qwen3-8b", "q4"], False),
            "fast stands for qwen3-8b or q4",
        ),
        ("unalias fast", ("alias", "fast", [], False), "fast is no alias any more"),
        ("unalias fast --reset", ("alias", "fast", [], True), "fast is what the configuration file says"),
        ("default chat fast", ("default", "chat", "fast", False), "chat jobs run on fast from now on"),
        ("default chat --none", ("default", "chat", "", False), "chat jobs run on any model from now on"),
        (
            "default embed --reset",
            ("default", "embed", "", True),
            "embed jobs run on what the configuration file says",
        ),
        ("load a --on gpu-1", ("load", "a", "gpu-1"), "a is to be loaded on gpu-1"),
        ("unload a", ("unload", "a", ""), "a is to be unloaded\n"),
        ("unload a --on gpu-1", ("unload", "a", "gpu-1"), "a is to be unloaded on gpu-1"),
        ("pin a --on gpu-1", ("pin", "a", "gpu-1", None), "a is pinned on gpu-1 until unpinned"),
        ("pin a --on gpu-1 --for 4h", ("pin", "a", "gpu-1", 14_400.0), "a is pinned on gpu-1 for 4 h"),
        ("unpin a", ("unpin", "a", ""), "a may come and go"),
    ],
)
def test_what_is_typed_is_asked_for_and_told(words: str, did: tuple[object, ...], says: str) -> None:
    broker = a_broker()
    ended = run(broker, "models", *words.split())
    assert ended.exit_code == 0, ended.output
    assert broker.did == [did]
    assert says in ended.output
    changed = json.loads(run(a_broker(), "--json", "models", *words.split()).output)
    assert (changed["name"], changed["changed"]) == (words.split()[1], True)
    again = run(a_broker(changes=False), "models", *words.split())
    assert again.exit_code == 0
    assert again.output != ended.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("alias fast", "lmq models unalias fast"), ("default chat", "lmq models default chat"),
        ("default chat a --none", "--none or --reset"), ("default --none", "a task type"),
        ("default train a", "'train'"), ("load a", "--on"), ("pin a --on gpu-1 --for soon", "no duration"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(words: str, says: str) -> None:
    ended = run(a_broker(), "models", *words.split())
    assert (ended.exit_code, says in ended.stderr) == (2, True)


def test_without_arguments_aliases_and_defaults_are_listed() -> None:
    assert run(a_broker(), "models", "alias").output.splitlines()[1].startswith("fast")
    assert json.loads(run(a_broker(), "--json", "models", "alias").output)[0]["name"] == "fast"
    assert json.loads(run(a_broker(), "--json", "models", "default").output) == []
    assert "no default" in run(a_broker(), "models", "default").stderr


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (MayNotLoad("gpu-1"), 1),
        (NoRoom("a", "gpu-1", 1, ["b"]), 1),
        (NotFound("worker", "gpu-9", ["gpu-1"]), 3),
    ],
)
def test_an_order_that_is_refused_says_why(refusal: LmqError, status: int) -> None:
    ended = run(a_broker(refusal=refusal), "models", "pin", "a", "--on", "gpu-1")
    assert (ended.exit_code, ended.stderr) == (status, f"lmq: {refusal}\n")


def test_a_job_that_never_fits_is_a_mistake_of_whoever_submits_it() -> None:
    ended = run(a_broker(refusal=NeverFits("qwen", 9000, 8192)), "chat", "-d", "Hello")
    assert (ended.exit_code, "9000 tokens and qwen holds 8192" in ended.stderr) == (2, True)


# --- waiting for the end of an order ---


def ordered(seq: int, kind: str = "load", **fields: Any) -> Event:
    return an_event(seq, "model_ordered", worker="gpu-1", model="a", detail={"order": kind}, **fields)


def ended(seq: int, why: str, error: str = "") -> Event:
    detail = {"order": "load", "why": why, "error": error}
    return an_event(seq, "order_ended", worker="gpu-1", model="a", detail=detail)


def test_with_wait_an_order_is_told_when_it_is_done() -> None:
    stream = [ordered(0), ended(1, "done")]
    broker = a_broker(streams=[stream])
    assert run(broker, "models", "load", "a", "--on", "gpu-1", "--wait").output == "a is loaded\n"
    assert broker.did[1] == ("events", {"since": 0, "kinds": ["model_ordered", "order_ended"]})


@pytest.mark.parametrize(
    ("why", "error", "says"),
    [("failed", "no memory", "gpu-1 did not load a: no memory"), ("replaced", "", "the order was replaced")],
)
def test_with_wait_an_order_that_fails_says_why(why: str, error: str, says: str) -> None:
    broker = a_broker(streams=[[ordered(0), ended(1, why, error)]])
    done = run(broker, "models", "load", "a", "--on", "gpu-1", "--wait")
    assert (done.exit_code, says in done.stderr) == (1, True)


def test_what_needs_no_order_is_not_waited_for() -> None:
    broker = a_broker(changes=False)
    assert "is there" in run(broker, "models", "load", "a", "--on", "gpu-1", "--wait").output


# --- other commands ---


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("model_ordered", {"detail": {"order": "pin", "by": "anna", "until_ms": 0}}, "gpu-1 pin qwen by anna"),
        ("order_ended", {"detail": {"order": "load", "why": "failed", "error": "no memory"}},
         "load qwen: failed (no memory)"),
        ("foreign_use", {"detail": {"what": "unloaded", "trust": 0.8}}, "qwen unloaded by others, trust 0.8"),
        ("swaps_costly", {"detail": {"models": ["a", "b"], "users": ["tom"], "lost_s": 150, "of_s": 600}},
         "gpu-1 150 of 600 s lost to a/b for tom"),
        ("alias_set", {"worker": "", "detail": {"alias": "fast", "models": ["a", "b"], "by": "anna"}},
         "fast stands for a or b by anna"),
        ("alias_set", {"worker": "", "detail": {"alias": "fast", "models": [], "by": "anna"}},
         "fast stands for nothing"),
        ("default_set", {"worker": "", "detail": {"task_type": "chat", "by": "anna"}}, "chat runs on qwen by anna"),
    ],
)  # fmt: skip
def test_an_event_says_what_became_of_a_model(kind: str, fields: dict[str, Any], says: str) -> None:
    told: dict[str, Any] = {"worker": "gpu-1", "model": "qwen"} | fields
    # Of today, so that the line begins with a time and has room for the rest.
    line = click.unstyle(event_line(Event(seq=1, at_ms=int(time.time() * 1000), kind=kind, **told)))
    assert kind.replace("_", " ") in line
    assert says in line
    assert len(line) <= 80


def test_a_worker_says_what_swaps_cost_and_how_far_it_is_trusted() -> None:
    worker = WorkerView(
        name="gpu-1", endpoint="http://gpu-1", backend="lm_studio", host="h", state="up", trust=0.64, loads=12,
        lost_ms=150_000,
    )  # fmt: skip
    shown = run(FakeBroker(all_workers=[worker]), "workers", "show", "gpu-1").output
    assert "12 in the last hour; 2 min of the last 10 min lost to swaps" in shown
    assert "0.64: others load and unload models there" in shown


def waiting(model: str) -> JobStatus:
    return a_job(models=[model])


def test_doctor_takes_an_alias_for_a_model_that_is_there() -> None:
    from lmq.cli.diagnosis import Facts, _missing_models

    worker = WorkerView(name="gpu-1", endpoint="e", backend="b", host="h", state="up")
    facts = Facts(url="u", workers=[worker], models=[QWEN], waiting=[waiting("Fast"), waiting("slow")])
    assert [finding.text for finding in _missing_models(facts)] == [
        "1 job waits for slow, which no endpoint has"
    ]
