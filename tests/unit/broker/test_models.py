"""Names of models: what a job may call them."""

from __future__ import annotations

import pytest

from lmq_broker.core.models import instance_names, names_of, nearest, normal
from lmq_proto.messages import InstanceInfo


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Qwen3-8B", "qwen3-8b"), (" qwen3 ", "qwen3"), ("qwen3:2", "qwen3"), ("qwen3:latest", "qwen3:latest"),
        ("a/b:10", "a/b"), (":2", ""), ("", ""), ("q@q4", "q@q4"),
    ],
)  # fmt: skip
def test_case_space_and_instance_number_do_not_matter(written: str, plain: str) -> None:
    assert normal(written) == plain


def test_a_model_answers_with_and_without_publisher_and_variant() -> None:
    assert names_of("Qwen/Qwen3-8B@q4") == {"qwen/qwen3-8b@q4", "qwen3-8b@q4", "qwen/qwen3-8b", "qwen3-8b"}


def test_the_names_of_a_model_are_worked_out_once() -> None:
    """Each change of the fleet asks for those of each model on disk at each worker, for each lane."""
    assert names_of("a/b", ["c@q4"]) is names_of("a/b", ["c@q4"])


def test_an_instance_answers_to_its_id_and_variants_too() -> None:
    info = InstanceInfo(instance_id="mine", model="qwen/qwen3-8b", variants=["qwen3-8b@q8"])
    assert instance_names(info) >= {"mine", "qwen3-8b", "qwen/qwen3-8b", "qwen3-8b@q8"}


def test_an_instance_for_any_model_has_no_names() -> None:
    assert instance_names(InstanceInfo(instance_id="echo", model="*")) == frozenset()


def test_the_nearest_are_those_that_look_alike_or_hold_the_word() -> None:
    known = ["qwen/qwen3-8b", "meta/llama-3.1-8b", "nomic-embed-text"]
    assert nearest("qwen3-9b", known)[0] == "qwen/qwen3-8b"
    assert nearest("llama", known) == ["meta/llama-3.1-8b"]
    assert nearest("zzz", known) == []
    assert len(nearest("8b", known, count=1)) <= 1
