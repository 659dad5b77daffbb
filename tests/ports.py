"""Ports on loopback for tests that close a listener and open it again."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from typing import Any

_PORTS = (20_000, 32_000)
"""Below what the system gives to outgoing connections: while nobody listens, a peer that connects again and again could
be given the very port as its own."""


def a_port() -> int:
    """Return a free port that no outgoing connection will be given."""
    first, last = _PORTS
    span = last - first
    start = int.from_bytes(os.urandom(2), "big") % span
    for step in range(span):
        port = first + (start + step) % span
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port on loopback")


def bind(listener: zmq.Socket[Any], port: int) -> None:
    """Bind to a port of loopback; libzmq frees that of a socket just closed a moment later, in a thread of its own."""
    for _ in range(1000):
        try:
            listener.bind(f"tcp://127.0.0.1:{port}")
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE:
                raise
            time.sleep(0.005)  # nothing tells when the port is free
        else:
            return
    raise AssertionError(f"port {port} did not become free")
