"""Identifiers: how they are made, written and read. Nothing here knows what they stand for.

A job id is 16 bytes: 6 bytes of the maker's Unix milliseconds, then 10 random bytes. The time part only keeps index
pages close together on disk; the broker orders jobs by its own arrival number and never by this clock.
"""

from typing import NewType

from lmq_proto.errors import BadField

JobId = NewType("JobId", bytes)
"""16 bytes, made by the submitter."""
InstanceId = NewType("InstanceId", bytes)
"""16 random bytes: one life of one client or worker process."""
PeerId = NewType("PeerId", bytes)
"""The broker's own routing id of a connection. Never sent, never stored."""
UserName = NewType("UserName", str)
WorkerName = NewType("WorkerName", str)

JOB_ID_BYTES = 16
SHORT_CHARS = 6
"""How many trailing characters people type; 30 random bits tell a queue's jobs apart."""

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {char: value for value, char in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_TEXT_CHARS = 26


def job_id(wall_ms: int, random_bytes: bytes) -> JobId:
    """Return a new job id from the maker's wall clock and 10 random bytes."""
    if len(random_bytes) != 10:
        raise ValueError(f"a job id needs 10 random bytes, got {len(random_bytes)}")
    return JobId((wall_ms & 0xFFFF_FFFF_FFFF).to_bytes(6, "big") + random_bytes)


def to_text(value: bytes) -> str:
    """Return the 26 characters (Crockford base 32) that people and JSON see for a 16-byte id."""
    number = int.from_bytes(value, "big")
    chars = []
    for _ in range(_TEXT_CHARS):
        chars.append(_ALPHABET[number & 31])
        number >>= 5
    return "".join(reversed(chars))


def short(value: bytes) -> str:
    """Return the last 6 characters of an id's text, enough for a person to name a job."""
    return to_text(value)[-SHORT_CHARS:]


def from_text(text: str) -> JobId:
    """Return the id written as 26 characters; case and the look-alikes O, I, L do not matter.

    Raises:
        BadField: the text is no id.
    """
    if len(text) != _TEXT_CHARS:
        raise BadField("job_id", text, f"{_TEXT_CHARS} characters, or the last {SHORT_CHARS}")
    number = 0
    for char in text.upper():
        if char not in _VALUES:
            raise BadField("job_id", text, "letters and digits of base 32")
        number = number << 5 | _VALUES[char]
    if number >> 128:
        raise BadField("job_id", text, "at most 128 bits")
    return JobId(number.to_bytes(JOB_ID_BYTES, "big"))


def suffix_bounds(text: str) -> tuple[int, int]:
    """Return (bits, value) of a typed id ending, so that a reader can compare it with the low bits of an id.

    Raises:
        BadField: a character is not of base 32, or the ending is longer than an id.
    """
    if not 1 <= len(text) <= _TEXT_CHARS:
        raise BadField("job_id", text, f"1 to {_TEXT_CHARS} characters")
    value = 0
    for char in text.upper():
        if char not in _VALUES:
            raise BadField("job_id", text, "letters and digits of base 32")
        value = value << 5 | _VALUES[char]
    return 5 * len(text), value


def ends_with(value: bytes, bounds: tuple[int, int]) -> bool:
    """Tell whether an id's text ends with what `suffix_bounds` read."""
    bits, ending = bounds
    return int.from_bytes(value, "big") & ((1 << bits) - 1) == ending
