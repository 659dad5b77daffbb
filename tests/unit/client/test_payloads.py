"""What users write becomes the payloads of PROTOCOL.md; results become what users read."""

from __future__ import annotations

import datetime as dt
import struct
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest

import lmq
from lmq import _payloads, results
from lmq._commands import job_filter
from lmq._sync_job import EmbedJob
from lmq_proto import ids
from lmq_proto.errors import BadField, ProtocolError
from lmq_proto.messages import JobView

if TYPE_CHECKING:
    from lmq import EmbedResult, Job

PNG = b"\x89PNG\r\n\x1a\nrest"


def body_of(draft: lmq.Draft) -> dict[str, object]:
    payload = msgpack.unpackb(draft.payload)
    assert list(payload) == ["body"]
    body = payload["body"]
    assert isinstance(body, dict)
    return body


def test_a_prompt_becomes_messages() -> None:
    draft = lmq.chat_draft(
        "Why?", system="Be brief.", model=["a", "b"], temperature=0.5, max_tokens=99, seed=1
    )
    assert body_of(draft) == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
        "temperature": 0.5, "max_tokens": 99, "seed": 1,
    }  # fmt: skip
    assert (draft.spec.models, draft.spec.output_tokens, draft.spec.task_type) == (["a", "b"], 99, "chat")
    assert draft.spec.payload_bytes == len(draft.payload)


def test_a_schema_becomes_a_response_format() -> None:
    body = body_of(lmq.chat_draft("Why?", schema={"type": "object"}))
    assert body["response_format"] == {
        "type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
    }  # fmt: skip
    with pytest.raises(lmq.BadPayload):
        lmq.chat_draft("Why?", schema={}, response_format={})


def test_pictures_stand_beside_the_last_words_of_a_person(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PNG)
    talk: list[dict[str, results.Json]] = [
        {"role": "user", "content": "Look."}, {"role": "assistant", "content": "At what?"},
    ]  # fmt: skip
    draft = lmq.chat_draft(talk, images=["https://x/y.png", PNG, file])
    content = body_of(draft)["messages"][0]["content"]  # type: ignore[index]  # of a payload that this test knows
    assert content[0] == {"type": "text", "text": "Look."}
    assert content[1]["image_url"]["url"] == "https://x/y.png"
    assert content[2] == content[3]
    assert content[2]["image_url"]["url"].startswith("data:image/png;base64,")
    assert draft.spec.prompt_tokens >= 3 * _payloads.IMAGE_TOKENS
    assert talk[0]["content"] == "Look."


@pytest.mark.parametrize(
    "options",
    [{"images": ["cat.png"]}, {"images": [b"text"]}, {"images": [Path("nowhere.png")]}, {"extra": {"model": "x"}},
     {"extra": {"stream": True}}, {"priority": "urgent"}],
)  # fmt: skip
def test_what_cannot_be_sent_is_told_before(options: lmq.ChatOptions) -> None:
    with pytest.raises(lmq.BadPayload):
        lmq.chat_draft("Why?", **options)


def test_messages_need_roles_and_texts_need_to_be_there() -> None:
    for messages in ([], [{"content": "x"}]):
        with pytest.raises(lmq.BadPayload):
            lmq.chat_draft(messages)
    with pytest.raises(lmq.BadPayload):
        lmq.embed_drafts([])


def test_what_is_empty_or_no_prompt_is_told_before(tmp_path: Path) -> None:
    for prompt in (" \n", None, 3, {"role": "user", "content": "Hi"}):
        with pytest.raises(lmq.errors.BadPayload, match="prompt: "):
            lmq.chat_draft(cast("str", prompt))
    with pytest.raises(lmq.errors.BadPayload, match=r"texts\[1\]: is empty"):
        _payloads.embed(["a", ""], model=None, extra=None, options={})
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG")
    assert lmq.chat_draft("", images=[picture]).spec.task_type == "chat"


def test_filters_that_there_are_not_are_told_with_those_there_are() -> None:
    with pytest.raises(TypeError, match=r"unknown filters: state; there are: .*states"):
        job_filter(cast("lmq.JobMatch", {"state": ["ready"]}))


def test_the_prompt_is_estimated_by_its_characters() -> None:
    assert lmq.chat_draft("x" * 4000).spec.prompt_tokens == 1000
    assert lmq.complete_draft("x" * 400).spec.prompt_tokens == 100
    assert lmq.embed_drafts(["x" * 40] * 2)[0].spec.prompt_tokens == 20


def test_options_become_the_words_of_the_wire() -> None:
    at = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
    parent = lmq.draft("echo")
    spec = lmq.draft(
        "train", {"a": 1}, queue="q", priority="background", labels={"x": "y"}, idempotency_key="k", delay_s=1.5, at=at,
        expires_s=60, timeout_s=0.0001, failures=2, keep_s=3600, session="s", depends_on=[parent.id],
    ).spec  # fmt: skip
    assert (spec.queue, spec.priority, spec.labels, spec.key, spec.session) == ("q", 2, {"x": "y"}, "k", "s")
    assert (spec.delay_ms, spec.expires_ms, spec.timeout_ms, spec.keep_ms) == (1500, 60_000, 1, 3_600_000)
    assert spec.at_ms == int(at.timestamp() * 1000)
    assert (spec.failures, spec.parents) == (2, [parent.spec.id])
    assert lmq.draft("train").spec.priority is None


def test_a_job_depends_on_ids_drafts_and_all_that_is_under_a_handle() -> None:
    first, other = lmq.draft("echo"), lmq.draft("echo")
    with lmq.Client("tcp://127.0.0.1:1") as q:
        handle = q.job(other.id)
        parts = [q.job(ids.to_text(bytes([n]) * 16)) for n in range(2)]
        many = EmbedJob(q, cast("list[Job[EmbedResult]]", parts))
        spec = lmq.draft("echo", depends_on=[first, first.id, handle, many]).spec
    assert spec.parents == [first.spec.id, other.spec.id, bytes(16), b"\x01" * 16]


def test_a_job_may_depend_on_one_job_as_it_stands() -> None:
    first = lmq.draft("echo")
    for one in (first, first.id):
        assert lmq.draft("echo", depends_on=one).spec.parents == [first.spec.id]


def test_a_status_names_parents_as_people_do() -> None:
    view = JobView(
        id=b"\x01" * 16, number=1, user="ann", principal="ann", task_type="echo", queue="default", priority=8,
        state="blocked", created_at_ms=1, parents=[bytes(16), b"\x02" * 16], waits_for=[bytes(16)], own_priority=5,
    )  # fmt: skip
    status = lmq.JobStatus.of(view)
    assert status.parents == [ids.to_text(bytes(16)), ids.to_text(b"\x02" * 16)]
    assert (status.waits_for, status.own_priority) == ([ids.to_text(bytes(16))], 5)


def test_a_job_that_was_cancelled_with_its_parent_says_so() -> None:
    told = lmq.ParentEnded("01KEJG640MM6SC7N75YR3HGA9T", "dead").info()
    cancelled = lmq.JobCancelled("X", [told])
    assert cancelled.message == "job X was cancelled: its parent 3HGA9T is dead"
    assert lmq.JobCancelled("X", [lmq.ErrorInfo("cancelled", "by tom")]).message == "job X was cancelled"


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="prio"):
        lmq.draft("train", prio=1)  # type: ignore[call-arg]  # on purpose


def test_long_embeddings_are_cut_by_count_and_by_bytes() -> None:
    assert [d.spec.task_type for d in lmq.embed_drafts(["a"] * 512)] == ["embed"]
    parts = lmq.embed_drafts(["a"] * 513, idempotency_key="k")
    assert [len(msgpack.unpackb(part.payload)["input"]) for part in parts] == [512, 1]
    assert [part.spec.key for part in parts] == ["k/0", "k/1"]
    parts = lmq.embed_drafts(["x" * 1_500_000] * 3)
    assert [len(msgpack.unpackb(part.payload)["input"]) for part in parts] == [1, 1, 1]


def test_jobs_are_cut_into_messages_by_count_and_bytes() -> None:
    assert [len(part) for part in _payloads.batches(("echo", n) for n in range(2001))] == [1000, 1000, 1]
    large = [("echo", b"x" * 5_000_000)] * 4
    assert [len(part) for part in _payloads.batches(large)] == [3, 1]
    labelled = [lmq.draft("echo", labels={f"l{n}": "v" * 250 for n in range(16)})] * 300
    assert len(list(_payloads.batches(labelled))) > 1


def test_ids_are_read_from_text_handles_and_bytes() -> None:
    job_id = ids.job_id(1, b"r" * 10)
    assert _payloads.id_of(ids.to_text(job_id)) == _payloads.id_of(job_id) == job_id
    with pytest.raises(BadField):
        _payloads.id_of("7KQ2M9")


def test_an_answer_is_read_with_what_it_lacks_left_empty() -> None:
    answer = results.read_chat(
        msgpack.packb({"text": "so", "reasoning": None, "usage": {"prompt_tokens": 3}})
    )
    assert answer == lmq.ChatResult(text="so", usage=lmq.Usage(prompt_tokens=3))
    assert results.read_chat(b"") == lmq.ChatResult()


def test_vectors_are_read_and_joined() -> None:
    def packed(*numbers: float) -> bytes:
        vectors = struct.pack(f"<{len(numbers)}f", *numbers)
        return bytes(msgpack.packb({"vectors": vectors, "count": len(numbers) // 2, "dims": 2, "model": "m"}))

    first, second = results.read_embed(packed(1, 2, 3, 4)), results.read_embed(packed(5, 6))
    assert first.vectors == [[1.0, 2.0], [3.0, 4.0]]
    assert results.join_embeds([first, second]).vectors == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


@pytest.mark.parametrize("fields", [{}, {"vectors": b"123", "count": 1, "dims": 1}])
def test_vectors_that_are_not_there_are_an_error(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        results.read_embed(msgpack.packb(fields))


def test_bytes_that_are_no_messagepack_are_an_error() -> None:
    with pytest.raises(ProtocolError):
        results.unpack(b"\xc1")
