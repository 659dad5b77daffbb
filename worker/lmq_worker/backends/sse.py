"""Server-sent events, as model servers really send them: comments, any line ending, a bare `error:` line. Pure."""

from __future__ import annotations

# One event larger than this is no text of a model: the stream is refused.
EVENT_BYTES = 16 * 1024 * 1024


class EventTooLong(ValueError):
    """A line or an event is over EVENT_BYTES."""


class SseParser:
    """Bytes in, (event name, data) out. The name is empty where the server gave none."""

    __slots__ = ("_buffer", "_data", "_data_bytes", "_event")

    def __init__(self) -> None:
        self._buffer = b""
        self._event = ""
        self._data: list[str] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[tuple[str, str]]:
        """Return the events that are complete with this chunk.

        Raises:
            EventTooLong: the server sends no end of an event.
        """
        lines = (self._buffer + chunk).split(b"\n")
        self._buffer = lines.pop()
        if len(self._buffer) > EVENT_BYTES:
            raise EventTooLong(f"a line of over {EVENT_BYTES} bytes")
        events = []
        for line in lines:
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                events.append(event)
        return events

    def end(self) -> list[tuple[str, str]]:
        """Return the event that the stream broke off in, if it was all there but its blank line."""
        events = []
        if self._buffer:
            line, self._buffer = self._buffer, b""
            event = self._line(line.removesuffix(b"\r"))
            if event is not None:
                events.append(event)
        last = self._line(b"")
        return [*events, last] if last is not None else events

    def _line(self, line: bytes) -> tuple[str, str] | None:
        if not line:
            if not self._data:
                self._event = ""
                return None
            event = (self._event, "\n".join(self._data))
            self._event, self._data, self._data_bytes = "", [], 0
            return event
        name, _, value = line.partition(b":")
        text = value.removeprefix(b" ").decode("utf-8", "replace")
        if name == b"data":
            self._data_bytes += len(value)
            if self._data_bytes > EVENT_BYTES:
                raise EventTooLong(f"an event of over {EVENT_BYTES} bytes")
            self._data.append(text)
        elif name == b"event":
            self._event = text
        elif name == b"error":
            self._event = "error"
            self._data.append(text)
        return None
