from __future__ import annotations

import msgspec
import pytest

from lmq_proto import bounds, codec
from lmq_proto.errors import ProtocolError, TooLarge
from lmq_proto.messages import FROM_PEER, ON_PUB, TO_PEER, Heartbeat, JobSpec, Status, Submit

STATUS = Status(request_id=7, job_ids=[bytes(16)])
FRAMES = codec.encode(STATUS)


def refused(frames: list[bytes]) -> str:
    """Return why frames are refused."""
    with pytest.raises(ProtocolError) as caught:
        codec.FROM_PEER_TABLE.decode(frames)
    return caught.value.what


def test_a_message_is_four_frames() -> None:
    assert FRAMES[:2] == [b"LMQ1", b"status"]
    assert len(FRAMES) == bounds.FRAMES
    assert codec.FROM_PEER_TABLE.decode(FRAMES) == (STATUS, b"")


def test_a_body_comes_back_as_it_went() -> None:
    message = Submit(request_id=1, jobs=[JobSpec(id=bytes(16), task_type="echo", payload_bytes=3)])
    assert codec.FROM_PEER_TABLE.decode(codec.encode(message, b"\x00\xff\n")) == (message, b"\x00\xff\n")


@pytest.mark.parametrize("verb", [*FROM_PEER, *TO_PEER, *ON_PUB])
def test_verbs_are_short_and_plain(verb: str) -> None:
    assert verb.isascii()
    assert len(verb) <= bounds.VERB_BYTES


def test_a_message_knows_its_verb() -> None:
    assert codec.verb_of(STATUS) == "status"
    assert codec.verb_of(Heartbeat()) == "heartbeat"


@pytest.mark.parametrize("count", [0, 1, 3, 5, 64])
def test_other_than_four_frames_are_refused(count: int) -> None:
    assert refused((FRAMES * 16)[:count]) == f"{count} frames instead of 4"


@pytest.mark.parametrize("spoken", [0, 2, 99999])
def test_a_version_that_is_not_spoken_is_told_which_are(spoken: int) -> None:
    with pytest.raises(codec.VersionRefused) as caught:
        codec.FROM_PEER_TABLE.decode([b"LMQ%d" % spoken, *FRAMES[1:]])
    error = caught.value.for_peer()
    assert (error.spoken, error.oldest, error.newest) == (
        spoken,
        bounds.PROTOCOL_OLDEST,
        bounds.PROTOCOL_NEWEST,
    )


@pytest.mark.parametrize(
    "frame", [b"", b"LMQ", b"LMQx", b"lmq1", b"HTTP/1.1", b"LMQ999999", b"LMQ-1", b"LMQ\xb2"]
)
def test_what_is_no_version_is_no_lmq_message(frame: bytes) -> None:
    assert refused([frame, *FRAMES[1:]]).startswith("no lmq message")


@pytest.mark.parametrize("verb", [b"", b"STATUS", b"status ", b"welcome", b"\xff" * 1000])
def test_a_verb_of_the_other_side_or_of_nobody_is_refused(verb: bytes) -> None:
    what = refused([FRAMES[0], verb, *FRAMES[2:]])
    assert what.startswith("unknown verb")
    assert len(what) < 200


def test_a_header_over_its_bound_is_refused_unread() -> None:
    assert "header of" in refused([*FRAMES[:2], bytes(bounds.HEADER_BYTES + 1), b""])


def test_a_body_over_its_bound_is_refused() -> None:
    assert "body of" in refused([*FRAMES[:3], bytes(bounds.BODY_BYTES + 1)])


def test_a_field_that_is_missing_or_of_another_type_is_named() -> None:
    assert "job_ids" in refused([*FRAMES[:2], msgspec.msgpack.encode({"request_id": 1}), b""])
    for wrong in (None, "x", 1, [None], ["text"], {"a": 1}):
        header = msgspec.msgpack.encode({"request_id": 1, "job_ids": wrong})
        assert "job_ids" in refused([*FRAMES[:2], header, b""])


def test_an_unknown_field_is_ignored() -> None:
    header = msgspec.msgpack.encode({"request_id": 7, "job_ids": [bytes(16)], "colour": {"deep": [1, 2]}})
    assert codec.FROM_PEER_TABLE.decode([*FRAMES[:2], header, b""])[0] == STATUS


def test_fields_that_hold_their_default_are_left_out() -> None:
    submit = Submit(request_id=1, jobs=[])
    assert msgspec.msgpack.decode(codec.encode(submit)[2]) == {"request_id": 1, "jobs": []}


def test_a_batch_of_a_thousand_jobs_with_labels_fits_a_header() -> None:
    labels = {f"name-{number}": "v" * 100 for number in range(bounds.LABELS)}
    spec = JobSpec(id=bytes(16), task_type="embed", payload_bytes=1, queue="background", labels=labels)
    frames = codec.encode(Submit(request_id=1, jobs=[spec] * bounds.BATCH_JOBS))
    assert len(frames[2]) <= bounds.HEADER_BYTES


# --- cut --------------------------------------------------------------------------------------------------------------


def test_a_body_is_cut_by_its_lengths() -> None:
    assert codec.cut(b"abcdef", [1, 0, 3, 2]) == [b"a", b"", b"bcd", b"ef"]
    assert codec.cut(b"", []) == []
    assert codec.cut(b"", [0, 0]) == [b"", b""]


@pytest.mark.parametrize("lengths", [[], [5], [7], [3, 4], [7, -1], [-1, 7], [1 << 62, 1]])
def test_lengths_that_do_not_fit_the_body_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ProtocolError):
        codec.cut(b"abcdef", lengths)


def test_a_payload_over_its_limit_is_too_large() -> None:
    codec.check_payload("payload", 8, 8)
    with pytest.raises(TooLarge) as caught:
        codec.check_payload("payload", 9, 8)
    assert (caught.value.field, caught.value.value, caught.value.limit) == ("payload", 9, 8)
