from __future__ import annotations

import pytest

from lmq_proto import ids
from lmq_proto.errors import BadField

ID = bytes.fromhex("019ba5031014a1b2c3d4e5f60718293a")
TEXT = "01KEJG640MM6SC7N75YR3HGA9T"


def test_an_id_is_six_bytes_of_time_and_ten_of_chance() -> None:
    made = ids.job_id(0x019B_A503_1014, bytes.fromhex("a1b2c3d4e5f60718293a"))
    assert made == ID
    assert len(made) == ids.JOB_ID_BYTES


@pytest.mark.parametrize("count", [0, 9, 11])
def test_an_id_takes_exactly_ten_random_bytes(count: int) -> None:
    with pytest.raises(ValueError, match="10 random bytes"):
        ids.job_id(0, bytes(count))


def test_a_clock_beyond_six_bytes_wraps_instead_of_failing() -> None:
    assert ids.job_id((1 << 48) + 5, bytes(10)) == ids.job_id(5, bytes(10))


def test_an_id_is_written_as_26_characters() -> None:
    assert ids.to_text(ID) == TEXT
    assert ids.from_text(TEXT) == ID
    assert ids.short(ID) == TEXT[-6:]


def test_the_largest_id_is_written_and_read() -> None:
    assert ids.to_text(b"\xff" * 16) == "7" + "Z" * 25
    assert ids.from_text("7" + "Z" * 25) == b"\xff" * 16


def test_case_and_look_alikes_do_not_matter() -> None:
    assert ids.from_text(TEXT.lower()) == ID
    assert ids.from_text("O" * 25 + "L") == ids.from_text("0" * 25 + "1") == ids.from_text("o" * 25 + "i")


@pytest.mark.parametrize("text", ["", TEXT[:-1], TEXT + "0", "U" * 26, "8" + "0" * 25, "-" + TEXT[1:]])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(BadField) as caught:
        ids.from_text(text)
    assert caught.value.field == "job_id"


@pytest.mark.parametrize("count", [1, 6, 25, 26])
def test_an_id_ends_with_each_ending_of_its_text(count: int) -> None:
    assert ids.ends_with(ID, ids.suffix_bounds(TEXT[-count:].lower()))


def test_an_id_does_not_end_with_another_ending() -> None:
    assert not ids.ends_with(ID, ids.suffix_bounds("0GA9T"))
    assert not ids.ends_with(ID, ids.suffix_bounds("0" + TEXT[-6:]))


@pytest.mark.parametrize("text", ["", "0" * 27, "UUU", "a b"])
def test_an_ending_that_no_id_can_have_is_refused(text: str) -> None:
    with pytest.raises(BadField):
        ids.suffix_bounds(text)
