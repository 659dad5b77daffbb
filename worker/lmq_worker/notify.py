"""Tells systemd how the worker is. Without a supervisor that listens, every call does nothing."""

from __future__ import annotations

import socket


class Supervisor:
    """The socket of `Type=notify`. The watchdog is fed by the loop itself, so that a hung loop is noticed."""

    def __init__(self, address: str) -> None:
        """Take the address that systemd passes in NOTIFY_SOCKET; empty means nobody listens."""
        self._socket: socket.socket | None = None
        if address and hasattr(socket, "AF_UNIX"):
            name = "\0" + address[1:] if address.startswith("@") else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            try:
                self._socket.connect(name)
            except OSError:
                self._socket.close()
                self._socket = None

    def ready(self, status: str) -> None:
        self._say(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        self._say(f"STATUS={status}")

    def watchdog(self) -> None:
        self._say("WATCHDOG=1")

    def stopping(self) -> None:
        self._say("STOPPING=1")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, text: str) -> None:
        if self._socket is not None:
            try:
                self._socket.send(text.encode())
            except OSError:
                # The supervisor restarts us if it misses a word; losing one is no reason to stop work.
                self.close()
