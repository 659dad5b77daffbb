"""Payloads and results: open MessagePack maps, as PROTOCOL.md section 5 lists them."""

from __future__ import annotations

from typing import Any

import msgspec

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder()


def pack(data: dict[str, Any]) -> bytes:
    """Return a map as MessagePack."""
    return _encoder.encode(data)


def unpack(data: bytes) -> dict[Any, Any] | None:
    """Return the map that the bytes hold, or None if they hold anything else; no bytes at all are an empty map."""
    if not data:
        return {}
    try:
        value = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
