"""What the fields of commands may hold: the same words for the same fault everywhere."""

from lmq_proto import bounds
from lmq_proto.errors import BadField


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
        raise BadField(field, value, f"1 to {bounds.NAME_CHARS} printable characters")


def check_within(field: str, value: int, low: int, high: int) -> None:
    """Raise BadField unless a number is within its bounds."""
    if not low <= value <= high:
        raise BadField(field, value, f"{low} to {high}")
