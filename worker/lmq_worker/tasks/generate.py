"""A streamed answer put together: text, thoughts, tool calls, usage. What `chat` and `complete` share."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from lmq_worker.attempt import Outcome
from lmq_worker.failures import EmptyAnswer, StreamCut, WrongModel
from lmq_worker.tasks.base import clean, packed, tokens
from lmq_worker.tasks.think import ThinkSplitter

if TYPE_CHECKING:
    from lmq_worker.backends.base import Report
    from lmq_worker.tasks.base import Engine

# Least distance of two progress reports of one attempt; the broker passes on no more than that anyway.
PHASE_EVERY_S = 0.25
# Keys of a chunk that are told apart in the result; the others go into `raw`.
_OWN_KEYS = frozenset({"choices", "usage", "model"})

# What servers call the thoughts in a delta.
_REASONING_KEYS = ("reasoning_content", "reasoning")


class Answer:
    """Collects the chunks of one stream; tells the report what is new."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._parts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._splitter = ThinkSplitter()
        self._tool_calls: dict[int, dict[str, Any]] = {}
        self._surrogate: dict[str, str] = {"content": "", "reasoning": ""}
        self._chunks = 0
        self._first_s = 0.0
        self._phase_s = 0.0
        self.finish_reason = ""
        self.usage: dict[str, Any] = {}
        self.model = ""
        self.raw: dict[str, Any] = {}

    def feed(self, chunk: dict[str, Any]) -> None:
        """Take one chunk of a stream. Unknown keys are kept, missing ones forgiven."""
        self.model = str(chunk.get("model") or self.model)
        if isinstance(chunk.get("usage"), dict):
            self.usage = chunk["usage"]
        self.raw.update({key: value for key, value in chunk.items() if key not in _OWN_KEYS})
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        choice = choices[0]
        # A server that does not stream has the whole `message` where a chunk has its `delta`.
        delta = choice.get("delta") or choice.get("message")
        if isinstance(delta, dict):
            self._delta(delta)
        elif isinstance(choice.get("text"), str):
            self._content(choice["text"])
        if isinstance(choice.get("logprobs"), dict):
            self._logprobs(choice["logprobs"])
        if choice.get("finish_reason"):
            self.finish_reason = str(choice["finish_reason"])

    def _logprobs(self, piece: dict[str, Any]) -> None:
        """Put the pieces together: lists of one entry per token, under names that differ by route and server."""
        whole = self.raw.setdefault("logprobs", {})
        for name, value in piece.items():
            if isinstance(value, list) and isinstance(whole.get(name), list):
                whole[name] += value
            else:
                whole[name] = list(value) if isinstance(value, list) else value

    def _delta(self, delta: dict[str, Any]) -> None:
        for key in _REASONING_KEYS:
            if isinstance(delta.get(key), str) and delta[key]:
                self._say("reasoning", delta[key])
                break
        if isinstance(delta.get("content"), str):
            self._content(delta["content"])
        calls = delta.get("tool_calls")
        for at, call in enumerate(calls if isinstance(calls, list) else []):
            if isinstance(call, dict):
                self._tool_call(at, call)

    def _content(self, text: str) -> None:
        for channel, piece in self._splitter.feed(text):
            self._say(channel, piece)

    def _say(self, channel: str, text: str) -> None:
        text = self._surrogate[channel] + text
        # A server may cut a character outside the first plane in two: wait for its other half.
        half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        self._surrogate[channel] = half
        text = clean(text.removesuffix(half)) if half else clean(text)
        if text:
            self._parts[channel].append(text)
            self._report.text(channel, text)
            self._progress()

    def _tool_call(self, at: int, call: dict[str, Any]) -> None:
        """Put a tool call's pieces together; readers get each piece as one line of JSON."""
        index = call["index"] if isinstance(call.get("index"), int) else at
        whole = self._tool_calls.setdefault(
            index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        function = call["function"] if isinstance(call.get("function"), dict) else {}
        if call.get("id"):
            whole["id"] = str(call["id"])
        if call.get("type"):
            whole["type"] = str(call["type"])
        name = clean(str(function.get("name") or ""))
        arguments = clean(str(function.get("arguments") or ""))
        whole["function"]["name"] += name
        whole["function"]["arguments"] += arguments
        line = {"index": index, "id": call.get("id"), "name": name, "arguments": arguments}
        self._report.text(
            "tool", json.dumps({key: value for key, value in line.items() if value not in ("", None)}) + "\n"
        )
        self._progress()

    def _progress(self) -> None:
        now_s = time.monotonic()
        self._chunks += 1
        if self._chunks == 1:
            self._first_s = now_s
        if now_s - self._phase_s >= PHASE_EVERY_S:
            self._phase_s = now_s
            writing_s = now_s - self._first_s
            rate = (self._chunks - 1) / writing_s if writing_s > 0 else 0.0
            self._report.phase("writing", tokens=self._chunks, tokens_per_s=round(rate, 1))

    def outcome(self, engine: Engine) -> Outcome:
        """Return the result.

        Raises:
            StreamCut: no finish reason was seen.
            EmptyAnswer: nothing was said.
            WrongModel: another model answered.
            ResultTooLarge: it does not fit in a message.
        """
        for channel, piece in self._splitter.end():
            self._say(channel, piece)
        if not self.finish_reason:
            raise StreamCut("the stream ended without a finish reason")
        if engine.answers_to and self.model and self.model not in engine.answers_to:
            raise WrongModel(engine.model, self.model)
        text, reasoning = "".join(self._parts["content"]), "".join(self._parts["reasoning"])
        calls = [self._tool_calls[index] for index in sorted(self._tool_calls)]
        output_tokens = tokens(self.usage, "completion_tokens")
        if not (text or reasoning or calls or output_tokens):
            raise EmptyAnswer
        self._report.text("end", self.finish_reason)
        result = {
            "text": text,
            "reasoning": reasoning,
            "tool_calls": calls,
            "finish_reason": self.finish_reason,
            "usage": self.usage,
            "model": self.model or engine.model,
            "raw": self.raw,
        }
        return Outcome(
            "complete",
            packed(result, "ask for a shorter answer"),
            model=engine.model,
            prompt_tokens=tokens(self.usage, "prompt_tokens"),
            output_tokens=output_tokens or self._chunks,
        )


async def generate(engine: Engine, path: str, body: dict[str, Any], report: Report) -> Outcome:
    """Stream one request to its end; always streamed, so that text is kept and a cut is noticed."""
    request = {**body, "model": engine.model, "stream": True, "stream_options": {"include_usage": True}}
    report.phase("reading")
    answer = Answer(report)
    async with engine.endpoint.stream(path, request) as events:
        async for chunk in events:
            answer.feed(chunk)
    return answer.outcome(engine)
