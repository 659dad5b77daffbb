"""The forms that errors and events take on the wire: shapes A to F, and server-sent events."""

from __future__ import annotations

from typing import Any

import msgspec

from lmq_simulator.records import Failure

_encode = msgspec.json.encode

DONE = b"data: [DONE]\n\n"


def error_body(failure: Failure) -> dict[str, Any]:
    """Return the JSON body of an error (shapes A to D)."""
    match failure.shape:
        case "string":
            return {"error": failure.text}
        case "openai":
            return {
                "error": {
                    "message": failure.text,
                    "type": failure.type,
                    "param": failure.param,
                    "code": failure.code,
                }
            }
        case "native":
            return {"error": native_error(failure)}


def native_error(failure: Failure) -> dict[str, Any]:
    """Return the error object of the native API (shape C, without its wrapping)."""
    # The OpenAI surface's word for a bad request is not known here.
    kind = "invalid_request" if failure.type == "invalid_request_error" else failure.type
    error = {"type": kind, "message": failure.text}
    if failure.code is not None:
        error["code"] = failure.code
    if failure.param is not None:
        error["param"] = failure.param
    return error


def no_such_route(method: str, path: str) -> dict[str, str]:
    """Return the body of the 200 that stands for "not found" (shape E)."""
    return {"error": f"Unexpected endpoint or method. ({method} {path})"}


def frame(body: Any) -> bytes:
    """Return one unnamed server-sent event."""
    return b"data: " + _encode(body) + b"\n\n"


def named(name: str, body: dict[str, Any]) -> bytes:
    """Return one named server-sent event; its data repeats the name as `type`."""
    return b"event: " + name.encode("ascii") + b"\ndata: " + _encode({"type": name, **body}) + b"\n\n"


def error_event(failure: Failure) -> bytes:
    """Return the event that ends a stream which has already begun (shape F)."""
    body = {"error": {"message": failure.text}, "message": failure.text}
    return b"event: error\ndata: " + _encode(body) + b"\n\n"
