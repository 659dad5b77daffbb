"""How log lines look: a fixed event name, then fields; plain for eyes and systemd, JSON for machines. To stderr."""

from __future__ import annotations

import json
import logging
import sys

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what was passed in `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class PlainFormatter(logging.Formatter):
    """`INFO event key=value`; a field `text` is a sentence for people and stands in for the event."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        text = fields.pop("text", None)
        words = [record.levelname, record.getMessage()] if text is None else [record.levelname, str(text)]
        if text is None:
            words += [f"{name}={_shown(value)}" for name, value in fields.items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line: `level`, `event`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | fields_of(record), default=str, ensure_ascii=False)


def start_logs(*, level: str, form: str) -> None:
    """Send this process's log to stderr."""
    logs = logging.StreamHandler(sys.stderr)
    logs.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [logs]
    root.setLevel(level.upper())
    # One line per request of every job is the server's business, not ours.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)


def _shown(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    plain = text and not any(char.isspace() or char == '"' for char in text)
    return text if plain else json.dumps(text, ensure_ascii=False)
