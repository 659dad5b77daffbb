"""What the fields of commands may hold: the same words for the same fault everywhere.

A command out of bounds is refused. A worker's report is put in bounds instead: its lease has ended all the same.
"""

import msgspec

from lmq_proto import bounds
from lmq_proto.errors import BadField, ErrorInfo

_pack = msgspec.msgpack.Encoder()


def check_labels(labels: dict[str, str]) -> None:
    """Raise BadField for too many labels, or a name or value out of bounds."""
    if len(labels) > bounds.LABELS:
        raise BadField("labels", len(labels), f"at most {bounds.LABELS}")
    for name, value in labels.items():
        check_name("label name", name)
        if len(value) > bounds.LABEL_CHARS:
            raise BadField(f"label {name}", value, f"at most {bounds.LABEL_CHARS} characters")


def check_name(field: str, value: str) -> None:
    """Raise BadField unless a name is printable and of bounded length."""
    if not 0 < len(value) <= bounds.NAME_CHARS or not value.isprintable():
        raise BadField(field, value, f"a name of 1 to {bounds.NAME_CHARS} printable characters")


def check_within(field: str, value: int, low: int, high: int) -> None:
    """Raise BadField unless a number is within its bounds."""
    if not low <= value <= high:
        raise BadField(field, value, f"{low} to {high}")


def put_within(value: int, high: int) -> int:
    """Return the number of 0 to `high` that is nearest to a worker's."""
    return min(max(value, 0), high)


def put_error_within(error: ErrorInfo) -> ErrorInfo:
    """Return a worker's error with its texts cut to their bounds, and without fields that take too much."""
    small = not error.fields or len(_pack.encode(error.fields)) <= bounds.ERROR_FIELDS_BYTES
    return ErrorInfo(
        error.code[: bounds.NAME_CHARS], error.message[: bounds.REASON_CHARS], error.retryable,
        error.fields if small else {},
    )  # fmt: skip
