"""`lmq models` against real daemons: names, loads, pins, and what others do at an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from conftest import eventually
from integration.cli.conftest import Lmq
from lmq.cli.children import daemon_words
from lmq.cli.demo.stage import Stage
from lmq.cli.endpoint import look
from lmq.cli.up import SIMULATOR_READY, WORKER_READY

QWEN = "qwen/qwen3-8b"
LLAMA = "meta/llama-3.1-8b"
WITHIN_S = 20


@pytest.fixture
def endpoint(stage: Stage) -> str:
    """A second endpoint, with room for one model and a worker that may load; return its address."""
    words = [*daemon_words("simulator"), "--port", "0", "--loaded", LLAMA, "--load-gb-per-s", "100"]
    url = look(stage.children.await_ready(stage.children.start("simulator", words), SIMULATOR_READY)[1]).url
    words = [
        *daemon_words("worker"), "--broker", stage.broker_url, "--endpoint", url, "--backend", "lm_studio",
        "--name", "gpu-2",
    ]  # fmt: skip
    environment = stage._environment() | {
        "LMQ_WORKER_MODELS_MAX": "1", "LMQ_WORKER_POLL_S": "0.1", "LMQ_WORKER_STATE_DIR": str(stage._path("gpu-2")),
    }  # fmt: skip
    stage.children.await_ready(stage.children.start("worker", words, environment), WORKER_READY)
    return url


@pytest.fixture
def other(endpoint: str) -> Iterator[httpx.Client]:
    """Somebody else at that endpoint."""
    with httpx.Client(base_url=endpoint) as client:
        yield client


def on_gpu_2(lmq: Lmq) -> list[str]:
    found = json.loads(lmq.run("--json", "models").stdout)
    return [model["model"] for model in found if "gpu-2" in model.get("loaded_on", ())]


def worker(lmq: Lmq) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(lmq.run("--json", "workers", "show", "gpu-2").stdout)["worker"]
    return shown


def test_a_job_asks_for_an_alias_or_gets_the_default(lmq: Lmq) -> None:
    refused = lmq.run("chat", "-m", "fast", "Hello")
    assert (refused.returncode, "no endpoint has model 'fast'" in refused.stderr) == (3, True)
    said = lmq.run("models", "alias", "fast", "qwen3-32b", "qwen3-8b")
    assert (said.returncode, said.stdout) == (0, "fast stands for qwen3-32b or qwen3-8b\n")
    assert lmq.run("models", "alias", "faster", "fast").returncode == 2
    assert lmq.run("models", "alias", "qwen3-8b", "qwen3-32b").returncode == 2
    assert lmq.run("chat", "-m", "fast", "Hello").returncode == 0
    job = json.loads(lmq.run("--json", "show", "@last").stdout)
    assert (job["models"], job["model"]) == (["fast"], QWEN)
    assert lmq.run("models", "default", "chat", "fast").returncode == 0
    assert lmq.run("chat", "Hello").returncode == 0
    assert json.loads(lmq.run("--json", "show", "@last").stdout)["models"] == ["fast"]
    listed = lmq.run("models").stdout
    assert "qwen3-32b or qwen3-8b" in listed
    assert lmq.run("models", "unalias", "fast").returncode == 0
    assert lmq.run("chat", "-m", "fast", "Hello").returncode == 3


def test_models_are_loaded_pinned_and_unloaded_as_people_say(lmq: Lmq, endpoint: str) -> None:
    refused = lmq.run("models", "load", QWEN, "--on", "gpu-1")
    assert (refused.returncode, "gpu-1 loads and unloads no models" in refused.stderr) == (1, True)
    refused = lmq.run("models", "load", QWEN, "--on", "gpu-2")
    assert (refused.returncode, f"{LLAMA} stays there" in refused.stderr) == (1, True), "it is not ours"
    unloaded = lmq.run("models", "unload", "llama-3.1-8b", "--on", "gpu-2", "--wait")
    assert (unloaded.returncode, unloaded.stdout) == (0, "llama-3.1-8b is unloaded\n"), unloaded.stderr
    loaded = lmq.run("models", "load", "qwen3-8b", "--on", "gpu-2", "--wait")
    assert (loaded.returncode, loaded.stdout) == (0, "qwen3-8b is loaded\n"), loaded.stderr
    assert on_gpu_2(lmq) == [QWEN]
    assert "is there" in lmq.run("models", "load", "qwen3-8b", "--on", "gpu-2", "--wait").stdout
    assert lmq.run("models", "pin", "qwen3-8b", "--on", "gpu-2", "--for", "4h").returncode == 0
    shown = lmq.run("models", "show", "qwen3-8b").stdout
    assert "on gpu-2 by" in shown
    assert "for another 4 h" in shown or "for another 3 h 59 min" in shown
    refused = lmq.run("models", "pin", LLAMA, "--on", "gpu-2")
    assert (refused.returncode, f"holds 1 at once and {QWEN} stays there" in refused.stderr) == (1, True)
    job_id = lmq.run("chat", "-d", "-m", LLAMA, "Hello").stdout.strip()
    assert f"gpu-2 keeps {QWEN}" in lmq.run("why", job_id).stdout
    assert lmq.run("models", "unpin", "qwen3-8b").returncode == 0
    assert lmq.run("wait", job_id).returncode == 0
    assert on_gpu_2(lmq) == [LLAMA]
    assert worker(lmq).get("loads") == 2
    kinds = [
        json.loads(line)
        for line in lmq.run("--json", "tail", "--no-follow", "--since", "0").stdout.splitlines()
    ]
    orders = [(one["detail"]["order"], one["detail"]["why"]) for one in kinds if one["kind"] == "order_ended"]
    assert orders == [("unload", "done"), ("load", "done"), ("pin", "taken_back")]
    assert not [one for one in kinds if one["kind"] == "foreign_use"]


def test_what_others_do_at_an_endpoint_is_told_and_a_pin_brings_its_model_back(
    lmq: Lmq, other: httpx.Client
) -> None:
    assert worker(lmq).get("trust", 1.0) == 1.0
    assert other.post("/api/v1/models/unload", json={"instance_id": LLAMA}).status_code == 200
    eventually(lambda: on_gpu_2(lmq) == [], WITHIN_S, "the look that finds it gone")
    assert worker(lmq).get("trust") == pytest.approx(0.8, abs=0.01)
    told = [
        json.loads(line)
        for line in lmq.run("--json", "tail", "--no-follow", "--since", "0").stdout.splitlines()
    ]
    foreign = [one for one in told if one["kind"] == "foreign_use"]
    assert [(one["worker"], one["model"], one["detail"]["what"]) for one in foreign] == [
        ("gpu-2", LLAMA, "unloaded")
    ]
    assert lmq.run("models", "pin", "qwen3-8b", "--on", "gpu-2").returncode == 0
    eventually(lambda: on_gpu_2(lmq) == [QWEN], WITHIN_S, "the pinned model")
    assert other.post("/api/v1/models/unload", json={"instance_id": QWEN}).status_code == 200
    eventually(lambda: worker(lmq).get("loads") == 2, WITHIN_S, "the pinned model, again")
    assert on_gpu_2(lmq) == [QWEN]
    assert worker(lmq).get("trust") == pytest.approx(0.64, abs=0.01)


def test_orders_and_names_outlive_the_broker(lmq: Lmq, stage: Stage) -> None:
    assert lmq.run("models", "alias", "fast", "qwen3-8b").returncode == 0
    assert lmq.run("models", "default", "chat", "fast").returncode == 0
    stage.kill_broker()
    stage.start_broker()
    assert json.loads(lmq.run("--json", "models", "alias").stdout)[0]["models"] == ["qwen3-8b"]
    defaults = json.loads(lmq.run("--json", "models", "default").stdout)
    assert [(one["task_type"], one["model"]) for one in defaults] == [("chat", "fast"), ("complete", "fast")]


def test_a_job_that_never_fits_is_refused_with_the_numbers(lmq: Lmq) -> None:
    refused = lmq.run("chat", "-m", "qwen3-8b", "-", given="word " * 200_000)
    assert refused.returncode == 2
    assert "the job needs 250000 tokens and qwen/qwen3-8b holds 40960 at most" in refused.stderr
