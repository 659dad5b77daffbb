"""What systemd is told: ready, status, watchdog, reloading, stopping. Does nothing where nobody listens."""

import socket
import time


class Notifier:
    """Writes to the socket that the service manager names."""

    def __init__(self, address: str, watchdog_us: int) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        )
        self.watchdog_ms = watchdog_us // 2000
        """How often the watchdog wants to be fed: half of its time; 0: never."""

    def tell(self, text: str) -> None:
        """Send one message; a service manager that is gone is no reason to fail."""
        if self._socket is None:
            return
        try:
            self._socket.sendto(text.encode(), self._address)
        except OSError:
            return

    def ready(self, status: str) -> None:
        """Say that commands are answered now."""
        self.tell(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is being read again; `ready` ends it."""
        self.tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self.tell("STOPPING=1\nSTATUS=stopping")

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
