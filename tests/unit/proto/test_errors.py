from __future__ import annotations

import msgspec
import pytest

from lmq_proto.errors import (
    WIRE_ERRORS,
    AttemptMoved,
    BackupFailed,
    BadField,
    CursorExpired,
    DiskFull,
    EndpointTaken,
    ErrorInfo,
    IdempotencyConflict,
    LimitReached,
    LmqError,
    MayNotLoad,
    NeverFits,
    NoRoom,
    NotAllowed,
    NotFound,
    ParentEnded,
    ProtocolError,
    QueueDraining,
    Stopping,
    TooLarge,
    UnknownModel,
    UpgradeRequired,
    WrongKind,
    WrongState,
    from_info,
)

EACH = [
    ProtocolError("3 frames instead of 4"),
    UpgradeRequired(1, 2, 3),
    BadField("priority", 12, "0 to 9"),
    TooLarge("payload", 9_000_000, 8_388_608),
    NotAllowed("pause", "user"),
    NotAllowed("submit", "app", "shop may not act for tom"),
    NotFound("job", "01KEJG640MM6SC7N75YR3HGA9T"),
    NotFound("worker", "gpu-9", ["gpu-1", "gpu-2"]),
    LimitReached("jobs_open", 10, 10, 2.5),
    QueueDraining("training"),
    UnknownModel("qwen4", ["qwen3"]),
    WrongKind("qwen3-8b", "embed", "text", ["nomic"]),
    NeverFits("qwen3-8b", 9000, 8192),
    MayNotLoad("gpu-1"),
    NoRoom("qwen3-8b", "gpu-1", 1, ["llama-8b"]),
    IdempotencyConflict("norms-2026", "01KEJG640MM6SC7N75YR3HGA9T"),
    ParentEnded("01KEJG640MM6SC7N75YR3HGA9T", "dead"),
    WrongState("3HGA9T", "done", "dead, cancelled or expired"),
    AttemptMoved("3HGA9T", 1, 2),
    CursorExpired(5, 900),
    DiskFull(1000, 2000, 10.0),
    Stopping(),
    EndpointTaken("http://localhost:1234", "gpu-1", 2.0),
    BackupFailed("/backups/a", "no space"),
]


def test_each_error_of_the_wire_is_tried_here() -> None:
    assert {type(error) for error in EACH} == set(WIRE_ERRORS.values())


@pytest.mark.parametrize("error", EACH, ids=lambda error: error.code)
def test_an_error_is_the_same_on_the_other_side(error: LmqError) -> None:
    sent = msgspec.msgpack.encode(error.info())
    back = from_info(msgspec.msgpack.decode(sent, type=ErrorInfo))
    assert type(back) is type(error)
    assert (str(back), back.fields, back.retryable) == (str(error), error.fields, error.retryable)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("error", EACH, ids=lambda error: error.code)
def test_the_fields_of_an_error_are_its_attributes(error: LmqError) -> None:
    assert {name: getattr(error, name) for name in error.fields} == error.fields


def test_codes_belong_to_one_error_each() -> None:
    assert all(kind.code == code for code, kind in WIRE_ERRORS.items())
    assert len(set(WIRE_ERRORS.values())) == len(WIRE_ERRORS)


def test_a_code_of_a_newer_broker_is_a_plain_error_with_its_fields() -> None:
    back = from_info(ErrorInfo("sealed", "the payload is sealed", fields={"key": "k1", "message": "lost"}))
    assert type(back) is LmqError
    assert str(back) == "the payload is sealed"
    assert back.fields == {"key": "k1", "message": "lost"}


def test_an_error_without_words_says_its_code() -> None:
    assert str(from_info(ErrorInfo("sealed"))) == "sealed"


@pytest.mark.parametrize(
    "fields", [{}, {"limit": "jobs_open"}, {"limit": "a", "value": 1, "limit_value": 1, "more": 2}]
)
def test_fields_that_do_not_fit_their_code_give_a_plain_error(fields: dict[str, str | int]) -> None:
    back = from_info(ErrorInfo("limit_reached", "it is full", retryable=True, fields=dict(fields)))
    assert type(back) is LmqError
    assert str(back) == "it is full"
    assert back.fields == fields


def test_a_long_value_is_cut() -> None:
    error = BadField("user", "x" * 500, "1 to 128 characters")
    assert len(str(error)) < 200
    assert error.value == "x" * 77 + "..."


def test_a_version_that_is_too_old_and_one_that_is_too_new_are_told_apart() -> None:
    assert "older" in str(UpgradeRequired(1, 2, 3))
    assert "newer" in str(UpgradeRequired(4, 2, 3))
