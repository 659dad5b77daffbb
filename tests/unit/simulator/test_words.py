"""What the simulated models say, and the values that satisfy a schema."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lmq_simulator import planning, text
from lmq_simulator.config import DEFAULT_MODELS, SimulatorConfig
from lmq_simulator.planning import Wish, prompt_of
from lmq_simulator.records import Channel, Plan
from lmq_simulator.schema import instance_of
from lmq_simulator.vectors import vector_of

REASONER = DEFAULT_MODELS[0]
GARDEN = [{"role": "user", "content": "How do I plan a garden?"}]
TOOLS = (
    {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
    {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
)


def said(plan: Plan, channel: Channel = Channel.CONTENT) -> str:
    return "".join(piece.text for piece in plan.pieces if piece.channel is channel)


def planned(messages: list[dict[str, Any]] | None = None, wish: Wish | None = None, **knobs: Any) -> Plan:
    return planning.plan(prompt_of(messages or GARDEN), wish or Wish(), REASONER, SimulatorConfig(**knobs))


def test_the_same_prompt_and_seed_give_the_same_answer_and_another_seed_another() -> None:
    assert planned() == planned()
    assert planned() != planned(seed=8)
    assert planned() != planned(wish=Wish(seed=1))


def test_an_answer_depends_on_what_was_said_before() -> None:
    assert planned() != planned([{"role": "system", "content": "Be brief."}, *GARDEN])


def test_pieces_joined_are_the_text() -> None:
    whole = "Line one.\n\n  Two  extraordinarily long words; \t end \n"
    assert "".join(text.pieces_of(whole)) == whole


def test_a_common_question_gets_its_answer() -> None:
    assert "blue light" in said(planned([{"role": "user", "content": "Why is the sky blue?"}]))


@pytest.mark.parametrize("tokens", [1, 7, 500])
def test_the_length_of_an_answer_can_be_set_exactly(tokens: int) -> None:
    assert len(planned(answer_tokens=tokens).pieces) == tokens


def test_a_limit_cuts_an_answer_short() -> None:
    plan = planned(wish=Wish(max_tokens=3))
    assert (len(plan.pieces), plan.finish_reason, plan.stop_reason) == (
        3,
        "length",
        "maxPredictedTokensReached",
    )
    assert planned(wish=Wish(max_tokens=-1)) == planned()


def test_an_answer_ends_before_a_stop_string() -> None:
    whole = said(planned())
    stop = whole.split()[6]
    plan = planned(wish=Wish(stops=(stop,)))
    assert said(plan) == whole[: whole.index(stop)]
    assert (plan.finish_reason, plan.stop_reason) == ("stop", "stopStringFound")


def test_reasoning_goes_into_its_own_channel_or_between_tags() -> None:
    assert len(said(planned(reasoning_tokens=9), Channel.REASONING)) > 0
    assert said(planned(reasoning_tokens=9, reasoning_style="think_tags")).startswith("<think>")
    assert said(planned(wish=Wish(reasons=False), reasoning_tokens=9), Channel.REASONING) == ""


def test_a_tool_that_is_named_is_called_else_the_first_and_none_after_its_answer() -> None:
    def called(content: str, choice: str = "auto", after: str | None = None) -> str:
        messages = [{"role": "user", "content": content}]
        messages += [{"role": "tool", "content": after}] if after else []
        return said(planned(messages, Wish(tools=TOOLS, tool_choice=choice)), Channel.TOOL_CALL)

    assert called("What does get weather say?") == "get_weather"
    assert called("What is up?") == "get_time"
    assert called("What is up?", choice="get_weather") == "get_weather"
    assert called("What is up?", choice="none") == ""
    assert called("What is up?", after="12:00") == ""
    assert called("What is up?", choice="required", after="12:00") == "get_time"


@pytest.mark.parametrize(
    ("schema", "holds"),
    [
        ({"type": "string", "minLength": 12, "maxLength": 14}, lambda value: 12 <= len(value) <= 14),
        ({"type": "integer", "minimum": 5, "maximum": 6}, lambda value: value in (5, 6)),
        ({"type": "integer", "maximum": -3}, lambda value: value <= -3),
        ({"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 7}, lambda value: value == 6),
        ({"type": "integer", "minimum": 7, "multipleOf": 5}, lambda value: value >= 7 and value % 5 == 0),
        ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, lambda value: 0 < value <= 0.5),
        ({"type": "number", "minimum": 0.2, "maximum": 0.4}, lambda value: 0.2 <= value <= 0.4),
        ({"type": "boolean"}, lambda value: isinstance(value, bool)),
        ({"type": ["null", "string"]}, lambda value: isinstance(value, str)),
        ({"enum": ["a", "b"]}, lambda value: value in ("a", "b")),
        ({"const": 4}, lambda value: value == 4),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, lambda value: value is None),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, lambda value: len(value) == 3),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 0}, lambda value: value == []),
        (
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"const": 1}}},
                    {"properties": {"b": {"const": 2}}},
                ]
            },
            lambda value: value == {"a": 1, "b": 2},
        ),
        (
            {
                "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
                "$ref": "#/$defs/node",
            },
            lambda value: isinstance(value, dict),
        ),
        ({"type": "object", "required": ["x"]}, lambda value: "x" in value),
        ({"type": "string", "format": "date"}, lambda value: len(value) == 10),
    ],
)
def test_an_instance_satisfies_its_schema(schema: dict[str, Any], holds: Any) -> None:
    assert holds(instance_of(schema, seed=3))


def test_vectors_are_of_unit_length_and_the_same_for_the_same_text() -> None:
    vector = vector_of("a text", model="m", dimensions=768)
    assert len(vector) == 768
    assert math.isclose(sum(value * value for value in vector), 1.0)
    assert vector == vector_of("a text", model="m", dimensions=768)
    assert vector != vector_of("another", model="m", dimensions=768)


def test_a_turned_knob_is_checked() -> None:
    config = SimulatorConfig()
    assert config.turned({"itl_base_ms": 3}).itl_base_ms == 3
    for wrong in ({"nonsense": 1}, {"port": 1}, {"overflow": "sideways"}, {"jit": "yes"}, {"parallel": 0}):
        with pytest.raises(ValueError):
            config.turned(wrong)
    with pytest.raises(ValueError):
        SimulatorConfig(loaded=("nobody",))
