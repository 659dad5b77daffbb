"""How the broker's log looks: a fixed event name, then fields, to stderr. systemd keeps the time; `plain` adds it."""

import json
import logging
import sys


class _Plain(logging.Formatter):
    """`12:00:01 info broker_ready urls=... epoch=3`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        text = " ".join(f"{name}={_value(value)}" for name, value in fields.items())
        return f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower()} {record.getMessage()} {text}".rstrip()


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        return json.dumps({"level": record.levelname.lower(), "event": record.getMessage(), **fields})


def set_up(level: str, form: str) -> None:
    """Send the log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Plain())
    root = logging.getLogger("lmq")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


def _value(value: object) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or not text else text
