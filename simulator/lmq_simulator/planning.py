"""From a request to what the model will answer: the prompt it sees, and the pieces it is going to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec

from lmq_simulator import text
from lmq_simulator.config import ModelSpec, SimulatorConfig
from lmq_simulator.failures import bad_grammar
from lmq_simulator.records import Channel, Piece, Plan, Refused
from lmq_simulator.schema import instance_of

# What a chat template adds to each message, in tokens.
TEMPLATE_TOKENS = 4
# Plans that are kept for the next request like it.
_KEPT_PLANS = 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation as the planner sees it."""

    last: str
    earlier: str
    tokens: int
    wants_tool: bool = True

    @property
    def whole(self) -> str:
        return f"{self.earlier}\n{self.last}"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of the answer, besides the prompt."""

    seed: int = 0
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    schema: Any = None
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str = "auto"
    reasons: bool = True


def prompt_of(messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Read a list of chat messages; only the texts in them count."""
    texts = [_content_text(message.get("content")) for message in messages]
    asked = [at for at, message in enumerate(messages) if message.get("role") == "user"]
    at = asked[-1] if asked else len(texts) - 1
    tokens = sum(text.token_count(one) + TEMPLATE_TOKENS for one in texts)
    answered = bool(messages) and messages[-1].get("role") == "tool"
    return Prompt(texts[at], "\n".join(texts[:at] + texts[at + 1 :]), tokens, wants_tool=not answered)


def raw_prompt(prompt: str) -> Prompt:
    """Take a text as the whole prompt, without a chat template."""
    return Prompt(prompt, "", text.token_count(prompt))


def plan(prompt: Prompt, wish: Wish, model: ModelSpec, config: SimulatorConfig) -> Plan:
    """Decide what a model answers.

    Raises:
        Refused: the schema that the answer should have is none.
    """
    seed = text.digest(config.seed, wish.seed, prompt.earlier)
    reasoning = 0
    if wish.reasons:
        reasoning = config.reasoning_tokens if model.reasoning else 0
    tool = _tool_to_call(prompt, wish)
    if tool is not None:
        return _cut_short(_tool_plan(tool, seed, prompt, reasoning), wish.max_tokens)
    if wish.schema is not None:
        said = _constrained(wish.schema, text.digest(seed, prompt.last))
        return _text_plan(
            prompt.last, seed, 0, reasoning, config.reasoning_style, wish.max_tokens, wish.stops, said
        )
    tokens = config.answer_tokens
    return _text_plan(
        prompt.last, seed, tokens, reasoning, config.reasoning_style, wish.max_tokens, wish.stops, None
    )


@lru_cache(maxsize=_KEPT_PLANS)
def _text_plan(
    prompt: str,
    seed: int,
    tokens: int,
    reasoning: int,
    style: str,
    max_tokens: int | None,
    stops: tuple[str, ...],
    said: str | None,
) -> Plan:
    content = text.answer(prompt, seed=seed, tokens=tokens) if said is None else said
    found = [at for stop in stops if stop and (at := content.find(stop)) >= 0]
    if found:
        content = content[: min(found)]
    pieces = [Piece(Channel.CONTENT, one) for one in text.pieces_of(content)]
    whole = Plan((*_reasoning(prompt, seed, reasoning, style), *pieces))
    if found:
        whole = Plan(whole.pieces, "stop", "stopStringFound")
    return _cut_short(whole, max_tokens)


def _reasoning(prompt: str, seed: int, tokens: int, style: str) -> list[Piece]:
    if tokens == 0:
        return []
    said = text.pieces_of(text.thought(prompt, seed=seed, tokens=tokens))
    if style == "field":
        return [Piece(Channel.REASONING, one) for one in said]
    return [Piece(Channel.CONTENT, one) for one in ("<think>", *said, "</think>\n\n")]


def _tool_plan(tool: Mapping[str, Any], seed: int, prompt: Prompt, reasoning: int) -> Plan:
    schema = tool.get("parameters", {"type": "object"})
    written = _constrained(schema, text.digest(seed, prompt.last))
    pieces = [Piece(Channel.TOOL_CALL, str(tool.get("name", "")))]
    pieces += [Piece(Channel.TOOL_ARGUMENTS, one) for one in text.pieces_of(written)]
    return Plan((*_reasoning(prompt.last, seed, reasoning, "field"), *pieces), "tool_calls", "toolCalls")


def _constrained(schema: Any, seed: int) -> str:
    try:
        value = instance_of(schema, seed=seed)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        # What is wrong in a schema shows only while it is read, in as many ways as there are keywords.
        raise Refused(bad_grammar()) from error
    return msgspec.json.encode({} if value is None else value).decode()


def _tool_to_call(prompt: Prompt, wish: Wish) -> Mapping[str, Any] | None:
    """Choose a tool: the one that is asked for by name, else the first; none once a tool has answered."""
    if (
        not wish.tools
        or wish.tool_choice == "none"
        or not (prompt.wants_tool or wish.tool_choice == "required")
    ):
        return None
    lowered = prompt.last.lower()
    for tool in wish.tools:
        name = str(tool.get("name", ""))
        if name == wish.tool_choice or name.lower().replace("_", " ") in lowered or name.lower() in lowered:
            return tool
    return wish.tools[0]


def _cut_short(whole: Plan, max_tokens: int | None) -> Plan:
    if max_tokens is None or max_tokens < 0 or len(whole.pieces) <= max_tokens:
        return whole
    return Plan(whole.pieces[:max_tokens], "length", "maxPredictedTokensReached")


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""
