"""Jobs whose models are known to make something else are refused, and only those."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmq_proto.messages import SetAlias, SetDefaultModel, Update
from unit.broker.builders import a_broker, codes, error, idle, instance, on_disk, outcomes, ready, spec, tell

if TYPE_CHECKING:
    from lmq_broker.core.settings import Settings
    from unit.broker.builders import Broker

TEXT = instance("t", model="qwen/qwen3-8b", kind="llm")
VECTORS = instance("v", model="text-embedding-nomic", kind="embedding")


def a_farm(*, settings: Settings | None = None) -> Broker:
    """A worker with a model of each kind loaded, and one of each on its disk."""
    catalog = on_disk("llama-70b") + on_disk("text-embedding-bge", kind="embedding")
    worker = idle("w1", instances=[TEXT, VECTORS], catalog=catalog, may_load=True)
    return a_broker(workers=[worker], clients=["ann"], settings=settings)


def submitted(broker: Broker, task_type: str, *models: str) -> str:
    return codes(outcomes(broker.submit("ann", spec("a", task_type=task_type, models=list(models)))))[0]


@pytest.mark.parametrize(
    ("task_type", "model"),
    [("embed", "qwen/qwen3-8b"), ("bulk_embed", "QWEN3-8B"), ("embed", "llama-70b"),
     ("chat", "text-embedding-nomic"), ("complete", "nomic"), ("chat", "bge")],
)  # fmt: skip
def test_a_model_of_the_wrong_kind_is_refused_loaded_or_on_disk(task_type: str, model: str) -> None:
    assert submitted(a_farm(), task_type, model) == "wrong_kind"


def test_the_refusal_names_what_to_use_instead_the_loaded_first() -> None:
    refused = outcomes(a_farm().submit("ann", spec("a", task_type="embed", models=["qwen3-8b"])))[0].error
    assert refused is not None
    assert refused.fields == {
        "model": "qwen3-8b", "task_type": "embed", "makes": "text",
        "instead": ["text-embedding-nomic", "text-embedding-bge"],
    }  # fmt: skip
    assert "'qwen3-8b': it makes text only" in refused.message
    assert "text-embedding-nomic" in refused.message


def test_where_nothing_can_do_it_the_refusal_says_so() -> None:
    broker = a_broker(workers=[idle("w1", instances=[TEXT])], clients=["ann"])
    refused = outcomes(broker.submit("ann", spec("a", task_type="embed", models=["qwen3-8b"])))[0].error
    assert refused is not None
    assert refused.message.endswith("no endpoint has one that can")


@pytest.mark.parametrize(
    ("task_type", "models"),
    [("chat", ["qwen3-8b"]), ("embed", ["nomic"]), ("chat", ["nomic", "qwen3-8b"]), ("train", ["nomic"]), ("chat", [])],
)  # fmt: skip
def test_what_can_run_is_accepted(task_type: str, models: list[str]) -> None:
    assert submitted(a_farm(), task_type, *models) == "accepted"


def test_a_model_that_is_of_another_kind_elsewhere_is_accepted() -> None:
    broker = a_farm()
    broker.worker(idle("w2", instances=[instance("x", model="qwen3-8b", kind="embedding")]))
    assert submitted(broker, "embed", "qwen3-8b") == "accepted"


@pytest.mark.parametrize("kind", ["any", "", "reranker"])
def test_a_kind_of_which_nothing_is_known_is_accepted(kind: str) -> None:
    broker = a_broker(workers=[idle("w1", instances=[instance(model="m1", kind=kind)])], clients=["ann"])
    assert submitted(broker, "embed", "m1") == "accepted"


def test_where_any_model_is_served_nothing_is_refused() -> None:
    broker = a_farm()
    broker.worker(idle("w2"))
    assert submitted(broker, "embed", "qwen3-8b") == "accepted"


def test_a_model_that_no_endpoint_has_any_more_is_accepted() -> None:
    broker = a_farm()
    broker.has_capacity("w1", VECTORS)
    assert submitted(broker, "embed", "qwen3-8b") == "accepted"


def test_an_alias_is_refused_if_all_it_stands_for_is_of_the_wrong_kind() -> None:
    broker = a_farm()
    broker.says("ann", SetAlias(request_id=4, name="both", models=["qwen3-8b", "nomic"]))
    broker.says("ann", SetAlias(request_id=4, name="talk", models=["qwen3-8b", "llama-70b"]))
    assert submitted(broker, "embed", "talk") == "wrong_kind"
    assert submitted(broker, "embed", "both") == "accepted"


def test_a_default_model_of_the_wrong_kind_is_refused() -> None:
    broker = a_farm()
    assert error(broker.says("ann", SetDefaultModel(request_id=4, task_type="embed", model="qwen3-8b"))).code == (
        "wrong_kind"
    )  # fmt: skip


def test_a_job_that_waits_is_not_given_models_of_the_wrong_kind() -> None:
    broker = a_farm()
    broker.submit("ann", spec("a", task_type="chat", models=["qwen3-8b"], delay_ms=1000))
    assert codes(tell(broker, Update, "a", models=["nomic"])) == ["wrong_kind"]
    assert broker.job("a").models == ("qwen3-8b",)


def test_a_job_for_a_model_that_later_is_of_another_kind_stays() -> None:
    broker = a_broker(jobs=[ready("a", task_type="chat", models=["nomic"])])
    broker.worker(idle("w1", instances=[VECTORS]))
    assert broker.job("a").models == ("nomic",)
