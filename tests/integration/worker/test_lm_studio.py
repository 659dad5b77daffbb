"""The lm_studio backend against the simulator over real HTTP, driven by a fake broker over real sockets."""

from __future__ import annotations

import asyncio
import re
import struct
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from integration.worker.fake_broker import FakeBroker, a_broker, a_worker, chat, settings
from lmq_proto.messages import LeaseRef, LoadEnded, LoadModel, Stop, UnloadModel
from lmq_simulator import Simulator, SimulatorConfig
from lmq_simulator.faults import FAULTS
from lmq_worker.backends.errors_table import classify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from lmq_proto.errors import ErrorInfo
    from lmq_proto.messages import Ended, InstanceInfo, Lease

CHAT_MODEL = "qwen/qwen3-8b"
OTHER_MODEL = "meta/llama-3.1-8b"
EMBEDDER = "text-embedding-nomic-embed-text-v1.5"

# A model that thinks before it answers, slowly enough to be caught in the middle.
SLOW = {"itl_base_ms": 20.0, "answer_tokens": 100_000}


class Studio:
    """A broker, a simulated LM Studio, and a worker between them."""

    def __init__(self, broker: FakeBroker, simulator: Simulator) -> None:
        self.broker, self.simulator = broker, simulator

    async def give(self, payload: dict[str, Any], task_type: str = "chat", **lease: Any) -> Lease:
        model = EMBEDDER if task_type.endswith("embed") else CHAT_MODEL
        instance_id = lease.pop("instance_id", None) or await self.broker.with_instance(model)
        return await self.broker.give(payload, task_type=task_type, instance_id=instance_id, **lease)

    async def run(
        self, payload: dict[str, Any], task_type: str = "chat", **lease: Any
    ) -> tuple[Ended, dict[str, Any]]:
        return await self.broker.end(await self.give(payload, task_type, **lease))

    async def fail(
        self, payload: dict[str, Any], task_type: str = "chat", **lease: Any
    ) -> tuple[Ended, ErrorInfo]:
        ended, _ = await self.run(payload, task_type, **lease)
        assert ended.error is not None, ended
        return ended, ended.error

    async def writing(self, lease: Lease) -> None:
        """Return once text of a lease has come."""
        await self.broker.until(
            lambda: self.broker.text(lease) or self.broker.text(lease, "reasoning"), "text"
        )

    async def instance(self, fits: Callable[[InstanceInfo], bool], what: str) -> InstanceInfo:
        def find() -> InstanceInfo | None:
            capacity = self.broker.capacity
            return next((one for one in capacity.instances if fits(one)), None) if capacity else None

        found: InstanceInfo = await self.broker.until(find, what)
        return found

    async def stop(self, lease: Lease) -> None:
        await self.broker.send(
            Stop(leases=[LeaseRef(job_id=lease.job_id, epoch=lease.epoch, attempt=lease.attempt)])
        )


@asynccontextmanager
async def a_studio(
    tmp_path: Path, knobs: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[Studio]:
    config = SimulatorConfig.instant(**(knobs or {}))
    async with Simulator(config).start() as simulator, a_broker() as broker:
        worker = settings(broker.url, tmp_path, backend="lm_studio", endpoint=simulator.url, **fields)
        async with a_worker(worker):
            await broker.until(lambda: broker.capacity, "the worker")
            yield Studio(broker, simulator)


# --- chat and complete ---


def test_a_chat_is_streamed_and_its_result_says_the_same(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            lease = await studio.give(chat("Why is the sky blue?"))
            ended, result = await studio.broker.end(lease)
            assert ended.outcome == "complete", ended
            assert result["text"]
            assert studio.broker.text(lease) == result["text"]
            assert studio.broker.text(lease, "end") == result["finish_reason"] == "stop"
            assert result["usage"]["completion_tokens"] == ended.output_tokens > 0
            assert result["usage"]["prompt_tokens"] == ended.prompt_tokens > 0
            assert ended.model == result["model"] == lease.instance_id

    asyncio.run(story())


@pytest.mark.parametrize("style", ["field", "think_tags"])
def test_thoughts_are_told_apart_from_the_answer(tmp_path: Path, style: str) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {"reasoning_tokens": 12, "reasoning_style": style}) as studio:
            lease = await studio.give(chat("Think."))
            _, result = await studio.broker.end(lease)
            assert result["reasoning"]
            assert result["text"]
            assert "think>" not in result["text"] + result["reasoning"]
            assert studio.broker.text(lease, "reasoning") == result["reasoning"]
            assert studio.broker.text(lease) == result["text"]

    asyncio.run(story())


def test_tool_calls_are_put_together(tmp_path: Path) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "weather", "parameters": parameters}}

    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            lease = await studio.give(chat("How is the weather?", tools=[tool], tool_choice="required"))
            ended, result = await studio.broker.end(lease)
            assert ended.outcome == "complete", ended
            assert result["finish_reason"] == "tool_calls"
            (call,) = result["tool_calls"]
            assert call["function"]["name"] == "weather"
            assert "city" in call["function"]["arguments"]
            assert studio.broker.text(lease, "tool").count("\n") >= 1

    asyncio.run(story())


def test_a_completion_has_no_chat_around_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            ended, result = await studio.run({"body": {"prompt": "Once upon"}}, "complete")
            assert ended.outcome == "complete", ended
            assert result["text"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("payload", "task_type"),
    [
        ({}, "chat"),
        ({"body": {"messages": []}}, "chat"),
        ({"body": {"prompt": 7}}, "complete"),
        ({"input": []}, "embed"),
        ({"input": ["a", ""]}, "embed"),
        ({"input": ["a", 7]}, "bulk_embed"),
        ({"input": ["a"], "options": 7}, "embed"),
        ({}, "nonsense"),
    ],
)
def test_a_payload_that_cannot_be_run_fails_for_good(
    tmp_path: Path, payload: dict[str, Any], task_type: str
) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            ended, error = await studio.fail(payload, task_type)
            assert (ended.outcome, ended.permanent, error.code) == ("fail", True, "bad_payload")

    asyncio.run(story())


def test_a_server_that_closes_after_each_reply_is_no_problem(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {"close_after_reply_ratio": 1.0, "keep_alive_s": 0.01}) as studio:
            for _ in range(10):
                assert (await studio.run(chat("Hi")))[0].outcome == "complete"

    asyncio.run(story())


def test_a_request_that_got_no_byte_is_tried_once_more(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            studio.simulator.inject("reset", count=1)
            assert (await studio.run(chat("Hi")))[0].outcome == "complete"
            studio.simulator.inject("reset", count=2)
            ended, error = await studio.fail(chat("Hi"))
            assert (ended.outcome, error.code) == ("release", "endpoint_unreachable")

    asyncio.run(story())


# --- embeddings ---


def floats(result: dict[str, Any]) -> list[tuple[float, ...]]:
    dims = result["dims"]
    numbers = struct.unpack(f"<{result['count'] * dims}f", result["vectors"])
    return [numbers[at : at + dims] for at in range(0, len(numbers), dims)]


def test_texts_become_packed_vectors(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            ended, result = await studio.run({"input": ["a", "b", "a"]}, "embed")
            assert ended.outcome == "complete", ended
            assert (result["count"], result["dims"]) == (3, 768)
            first, second, third = floats(result)
            assert first == third != second

    asyncio.run(story())


def test_embeddings_in_one_group_are_one_request(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            instance = await studio.broker.with_instance(EMBEDDER)
            _, alone = await studio.run({"input": ["b"]}, "embed")
            before = len(studio.simulator.requests())
            payloads = [{"input": ["a"]}, {"input": ["b", "c"]}]
            leases = await studio.broker.give_group(payloads, task_type="embed", instance_id=instance)
            results = [(await studio.broker.end(lease))[1] for lease in leases]
            assert len(studio.simulator.requests()) == before + 1
            assert [result["count"] for result in results] == [1, 2]
            assert floats(results[1])[0] == floats(alone)[0]

    asyncio.run(story())


def test_one_bad_job_does_not_fail_those_it_was_merged_with(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            instance = await studio.broker.with_instance(EMBEDDER)
            studio.simulator.inject(
                "custom", text="'input' field must be a string or an array of strings", count=2
            )
            payloads = [{"input": ["a"]}, {"input": ["b"]}]
            leases = await studio.broker.give_group(payloads, task_type="embed", instance_id=instance)
            outcomes = [(await studio.broker.end(lease))[0].outcome for lease in leases]
            assert outcomes == ["fail", "complete"]

    asyncio.run(story())


def test_a_batch_that_is_too_large_is_halved(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {"embed_max_batch": 3}) as studio:
            ended, result = await studio.run({"input": [str(n) for n in range(10)]}, "embed")
            assert ended.outcome == "complete", ended
            assert len(set(floats(result))) == result["count"] == 10

    asyncio.run(story())


def test_a_second_attempt_goes_on_behind_the_finished_slices(tmp_path: Path) -> None:
    inputs = {"input": [str(n) for n in range(10)]}

    async def story() -> None:
        async with a_studio(tmp_path, embed_slice=4) as studio:
            instance = await studio.broker.with_instance(EMBEDDER)
            _, whole = await studio.run({"input": inputs["input"]}, "embed")
            studio.simulator.turn(embed_max_batch=0, embed_ms_per_string=50.0)
            job_id = b"bulk".ljust(16)
            first = await studio.give(inputs, "bulk_embed", job_id=job_id)
            slices = tmp_path / "worker"
            await studio.broker.until(lambda: list(slices.rglob("*.vectors")), "a finished slice")
            await studio.stop(first)
            assert (await studio.broker.end(first))[0].outcome == "stopped"
            studio.simulator.turn(embed_ms_per_string=0.0)
            strings = sum(one["strings"] for one in studio.simulator.requests())
            second = await studio.give(inputs, "bulk_embed", job_id=job_id, attempt=2, instance_id=instance)
            ended, result = await studio.broker.end(second)
            assert ended.outcome == "complete", ended
            assert result["vectors"] == whole["vectors"]
            assert sum(one["strings"] for one in studio.simulator.requests()) - strings < 10
            assert not list(slices.rglob("*.vectors"))

    asyncio.run(story())


def test_vectors_that_do_not_fit_in_a_result_are_refused_early(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            ended, error = await studio.fail({"input": ["x"] * 3000}, "bulk_embed")
            assert (ended.permanent, error.code) == (True, "result_too_large")
            assert "split" in error.message

    asyncio.run(story())


# --- failures ---

# Those that tests below look at one by one, or that need a text of their own.
SPECIAL = {"reset", "cut", "eof", "stall", "empty", "custom", "custom_in_stream", "unknown_model", "context_exceeded",
           "no_models_loaded", "llama_decode"}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - SPECIAL))
def test_what_the_server_says_over_http_is_judged_as_the_table_says(tmp_path: Path, fault: str) -> None:
    failure = FAULTS[fault].failure
    assert failure is not None
    expected = classify(failure.text, code=failure.code or "", status=failure.status)

    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            studio.simulator.inject(fault)
            ended, error = await studio.fail(chat("Hi"))
            got = (ended.outcome, error.code, ended.permanent)
            assert got == (expected.outcome, expected.code, expected.permanent), error
            assert expected.code != "server_error"

    asyncio.run(story())


@pytest.mark.parametrize("fault", ["cut", "eof"])
def test_a_stream_without_a_finish_reason_is_no_answer(tmp_path: Path, fault: str) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {"answer_tokens": 50}) as studio:
            studio.simulator.inject(fault)
            ended, error = await studio.fail(chat("Hi"))
            assert (ended.outcome, error.code, ended.permanent) == ("fail", "stream_cut", False)

    asyncio.run(story())


def test_an_empty_success_is_a_failure(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            studio.simulator.inject("empty")
            ended, error = await studio.fail(chat("Hi"))
            assert (ended.outcome, error.code) == ("fail", "empty_answer")

    asyncio.run(story())


def test_a_stream_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {"answer_tokens": 50}, between_chunks_timeout_s=0.2) as studio:
            studio.simulator.inject("stall")
            ended, error = await studio.fail(chat("Hi"))
            assert (ended.outcome, error.code, ended.permanent) == ("fail", "chunk_timeout", False)

    asyncio.run(story())


def test_an_answer_that_does_not_begin_is_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {"stalled": True}, first_byte_timeout_s=0.2) as studio:
            ended, error = await studio.fail(chat("Hi"))
            assert (ended.outcome, error.code) == ("fail", "first_byte_timeout")

    asyncio.run(story())


def test_an_engine_that_dies_takes_all_its_jobs_and_each_says_that_it_was_not_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {**SLOW, "broken_stream": "abrupt"}) as studio:
            leases = [await studio.give(chat(f"number {n}")) for n in range(2)]
            for lease in leases:
                await studio.writing(lease)
            studio.simulator.crash()
            ends = [(await studio.broker.end(lease))[0] for lease in leases]
            assert [(one.outcome, one.shared) for one in ends] == [("crash", True), ("crash", True)]

    asyncio.run(story())


def test_an_engine_that_dies_under_one_job_says_that_it_was_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, SLOW) as studio:
            lease = await studio.give(chat("alone"))
            await studio.writing(lease)
            studio.simulator.crash()
            ended, _ = await studio.broker.end(lease)
            assert (ended.outcome, ended.shared) == ("crash", False)

    asyncio.run(story())


def test_an_overflow_alone_is_for_good(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            studio.simulator.inject("context_exceeded")
            ended, error = await studio.fail(chat("Hi"))
            assert (ended.outcome, error.code, ended.permanent) == ("fail", "context_overflow", True)

    asyncio.run(story())


def test_an_overflow_in_company_is_nobodys_fault(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, SLOW) as studio:
            other = await studio.give(chat("other"))
            await studio.writing(other)
            studio.simulator.inject("context_exceeded")
            ended, error = await studio.fail(chat("Hi"))
            assert (ended.outcome, error.code) == ("release", "kv_overflow")
            await studio.stop(other)
            await studio.broker.end(other)

    asyncio.run(story())


def test_a_model_that_is_not_loaded_is_never_loaded_by_a_request(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            ended, error = await studio.fail(chat("Hi"), instance_id=OTHER_MODEL)
            assert (ended.outcome, error.code) == ("release", "instance_gone")
            assert studio.simulator.requests() == []

    asyncio.run(story())


def test_a_request_that_is_stopped_leaves_its_slot_at_the_server(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, SLOW) as studio:
            lease = await studio.give(chat("long"))
            await studio.writing(lease)
            await studio.stop(lease)
            assert (await studio.broker.end(lease))[0].outcome == "stopped"
            await studio.run({"input": ["x"]}, "embed")
            assert not any(one["active"] for one in studio.simulator.state()["instances"])

    asyncio.run(story())


# --- the endpoint ---


def test_a_server_that_is_gone_opens_the_breaker_and_closes_it_when_it_is_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker:
            async with Simulator(SimulatorConfig.instant()).start() as simulator:
                url = simulator.url
            port = int(url.rpartition(":")[2])
            worker = settings(broker.url, tmp_path, backend="lm_studio", endpoint=url)
            async with a_worker(worker):
                await broker.until(lambda: broker.capacity and broker.capacity.breaker, "an open breaker")
                assert broker.capacity is not None
                assert broker.capacity.slots == 0
                async with Simulator(SimulatorConfig.instant(port=port)).start() as again:
                    await broker.until(
                        lambda: broker.capacity and not broker.capacity.breaker, "a closed breaker"
                    )
                    studio = Studio(broker, again)
                    assert (await studio.run(chat("Hi")))[0].outcome == "complete"
                await broker.until(
                    lambda: broker.capacity and broker.capacity.breaker, "an open breaker again"
                )

    asyncio.run(story())


def test_a_server_that_is_stopped_in_the_middle_is_no_fault_of_its_jobs(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker:
            async with Simulator(SimulatorConfig.instant(**SLOW)).start() as simulator:
                config = settings(broker.url, tmp_path, backend="lm_studio", endpoint=simulator.url)
                worker = a_worker(config)
                await worker.__aenter__()
                studio = Studio(broker, simulator)
                lease = await studio.give(chat("long"))
                await studio.writing(lease)
            ended, _ = await broker.end(lease)
            assert ended.error is not None
            assert (ended.outcome, ended.error.code) == ("release", "endpoint_unreachable")
            await worker.__aexit__(None, None, None)

    asyncio.run(story())


def test_a_wrong_token_is_no_jobs_fault_and_holds_the_endpoint(tmp_path: Path) -> None:
    token = "sk-lm-abcdefgh:abcdefghijklmnopqrst"

    async def story() -> None:
        async with a_studio(tmp_path, {"api_token": token}) as studio:
            broker = studio.broker
            await broker.until(lambda: broker.capacity and broker.capacity.breaker, "an open breaker")

    async def with_token() -> None:
        async with a_studio(tmp_path, {"api_token": token}, api_token=token) as studio:
            assert (await studio.run(chat("Hi")))[0].outcome == "complete"

    asyncio.run(story())
    asyncio.run(with_token())


def test_it_says_what_is_loaded_what_could_be_and_with_how_many_slots(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {"parallel": 3}) as studio:
            chatter = await studio.instance(lambda one: one.model == CHAT_MODEL, "the chat model")
            embedder = await studio.instance(lambda one: one.model == EMBEDDER, "the embedder")
            assert (chatter.kind, chatter.slots, chatter.ours) == ("llm", 3, False)
            assert chatter.context_tokens > 0
            assert (embedder.kind, embedder.slots) == ("embedding", 1)
            capacity = studio.broker.capacity
            assert capacity is not None
            assert OTHER_MODEL in [one.model for one in capacity.catalog]
            assert capacity.may_load
            assert capacity.host is not None

    asyncio.run(story())


def test_an_operator_is_told_about_small_contexts_and_single_slots(tmp_path: Path) -> None:
    async def story() -> None:
        models = tuple(
            replace(model, context_length=2048) if model.key == CHAT_MODEL else model
            for model in SimulatorConfig().models
        )
        async with a_studio(tmp_path, {"parallel": 1, "models": models}) as studio:
            capacity = studio.broker.capacity
            assert capacity is not None
            notes = " ".join(capacity.notes)
            assert "context of 2048 tokens" in notes
            assert "one job at a time" in notes

    asyncio.run(story())


def test_a_model_is_loaded_once_is_ours_and_is_unloaded(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            broker = studio.broker
            await broker.with_instance(CHAT_MODEL)
            await broker.send(LoadModel(command_id=1, model=OTHER_MODEL, context_tokens=4096))
            await broker.send(LoadModel(command_id=2, model=OTHER_MODEL))
            for number in (1, 2):
                ended = await broker.message(LoadEnded, number)
                assert (ended.command_id, ended.error) == (number, None)
            loaded = [one for one in studio.simulator.state()["instances"] if one["key"] == OTHER_MODEL]
            assert len(loaded) == 1
            ours = await studio.instance(lambda one: one.model == OTHER_MODEL, "what was loaded")
            assert (ours.ours, ours.context_tokens) == (True, 4096)
            assert (await studio.run(chat("Hi"), instance_id=ours.instance_id))[0].outcome == "complete"
            await broker.send(UnloadModel(command_id=3, instance_id=ours.instance_id))
            ended = await broker.message(LoadEnded, 3)
            assert ended.error is None
            assert broker.capacity is not None
            assert OTHER_MODEL not in [one.model for one in broker.capacity.instances]

    asyncio.run(story())


def test_what_somebody_else_loaded_is_unloaded_when_told(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path) as studio:
            broker = studio.broker
            theirs = await studio.instance(lambda one: one.model == CHAT_MODEL, "what was there")
            assert not theirs.ours
            await broker.send(UnloadModel(command_id=1, instance_id=theirs.instance_id))
            ended = await broker.message(LoadEnded)
            assert ended.error is None
            assert CHAT_MODEL not in [one["key"] for one in studio.simulator.state()["instances"]]

    asyncio.run(story())


def test_what_was_loaded_is_still_ours_in_the_next_life(tmp_path: Path) -> None:
    async def story() -> None:
        async with Simulator(SimulatorConfig.instant()).start() as simulator, a_broker() as broker:
            worker = settings(broker.url, tmp_path, backend="lm_studio", endpoint=simulator.url)
            async with a_worker(worker):
                await broker.with_instance(CHAT_MODEL)
                await broker.send(LoadModel(command_id=1, model=OTHER_MODEL))
                await broker.message(LoadEnded)
            broker.capacity = None
            async with a_worker(worker):
                studio = Studio(broker, simulator)
                assert (await studio.instance(lambda one: one.model == OTHER_MODEL, "what was loaded")).ours
                assert not (await studio.instance(lambda one: one.model == CHAT_MODEL, "the other")).ours

    asyncio.run(story())


@pytest.mark.parametrize(
    ("knobs", "fields", "model", "code"),
    [
        ({}, {}, "no/such-model", "model_not_found"),
        ({"refuse_loads": True}, {}, OTHER_MODEL, "insufficient_memory"),
        ({}, {"may_load": False}, OTHER_MODEL, "load_not_allowed"),
    ],
)
def test_a_load_that_fails_says_why(
    tmp_path: Path, knobs: dict[str, Any], fields: dict[str, Any], model: str, code: str
) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, knobs, **fields) as studio:
            await studio.broker.with_instance(CHAT_MODEL)
            await studio.broker.send(LoadModel(command_id=1, model=model))
            ended = await studio.broker.message(LoadEnded)
            assert ended.error is not None
            assert ended.error.code == code
            # How large it is and what is in its way: LM Studio says neither.
            sizes = rf"the model is {OTHER_MODEL} \(\d+\.\d GB\), loaded there: {CHAT_MODEL} \(\d+\.\d GB\)"
            assert bool(re.search(sizes, ended.error.message)) is (code == "insufficient_memory")

    asyncio.run(story())


def test_a_load_that_goes_on_failing_is_no_longer_called_a_lack_of_memory(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, {"refuse_loads": True}) as studio:
            await studio.broker.with_instance(CHAT_MODEL)
            codes = []
            for number in (1, 2):
                await studio.broker.send(LoadModel(command_id=number, model=OTHER_MODEL))
                ended = await studio.broker.message(LoadEnded, number)
                codes.append(ended.error.code if ended.error else "")
            assert codes == ["insufficient_memory", "load_failed"]

    asyncio.run(story())


def test_an_instance_with_jobs_is_not_unloaded(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_studio(tmp_path, SLOW) as studio:
            lease = await studio.give(chat("long"))
            await studio.writing(lease)
            await studio.broker.send(UnloadModel(command_id=1, instance_id=lease.instance_id))
            ended = await studio.broker.message(LoadEnded)
            assert ended.error is not None
            assert ended.error.code == "instance_busy"
            await studio.stop(lease)
            await studio.broker.end(lease)

    asyncio.run(story())


# --- any OpenAI-compatible server ---


def test_the_openai_backend_serves_whatever_the_server_lists(tmp_path: Path) -> None:
    async def story() -> None:
        async with Simulator(SimulatorConfig.instant()).start() as simulator, a_broker() as broker:
            worker = settings(broker.url, tmp_path, backend="openai", endpoint=simulator.url, concurrency=2)
            async with a_worker(worker):
                studio = Studio(broker, simulator)
                assert (await studio.run(chat("Hi")))[0].outcome == "complete"
                assert (await studio.run({"input": ["x"]}, "embed"))[0].outcome == "complete"
                assert broker.capacity is not None
                assert broker.capacity.slots == 2
                assert not broker.capacity.may_load

    asyncio.run(story())
