"""Messages for peers whose pipe is full: since credit bounds what is pushed, soon over, or a reader that hangs."""

from collections import deque
from collections.abc import Callable, Sequence

from lmq_broker.shell.door import SendFailed
from lmq_proto.ids import PeerId

_PATIENCE_MS = 10_000
_MOST_MESSAGES = 20_000
_MOST_BYTES = 64 * 1024 * 1024

Frames = Sequence[bytes]


class _Waiting:
    """What waits for one peer."""

    __slots__ = ("messages", "since_ms", "size_bytes")

    def __init__(self, since_ms: int) -> None:
        self.messages: deque[Frames] = deque()
        self.since_ms = since_ms
        self.size_bytes = 0


class Backlog:
    """Sends in order, keeps what does not fit, and says which peers are gone or have not read for too long.

    Args:
        send: sends without waiting; raises SendFailed.
    """

    def __init__(self, send: Callable[[PeerId, Frames], None]) -> None:
        self._send = send
        self._waiting: dict[PeerId, _Waiting] = {}
        self._lost: dict[PeerId, bool] = {}

    def __bool__(self) -> bool:
        """Tell whether anything waits, or somebody was lost."""
        return bool(self._waiting or self._lost)

    def send(self, peer: PeerId, frames: Frames, now_ms: int) -> None:
        """Send a message now, or behind those that wait for the same peer."""
        waiting = self._waiting.get(peer)
        if waiting is None:
            try:
                self._send(peer, frames)
                return
            except SendFailed as failure:
                if failure.gone:
                    self._lost[peer] = True
                    return
            waiting = self._waiting[peer] = _Waiting(now_ms)
        waiting.messages.append(frames)
        waiting.size_bytes += sum(map(len, frames))
        if len(waiting.messages) > _MOST_MESSAGES or waiting.size_bytes > _MOST_BYTES:
            del self._waiting[peer]
            self._lost[peer] = False

    def retry(self, now_ms: int) -> dict[PeerId, bool]:
        """Send what fits by now; return the peers that were lost, and whether each is gone (else it does not read)."""
        for peer, waiting in list(self._waiting.items()):
            try:
                while waiting.messages:
                    self._send(peer, waiting.messages[0])
                    waiting.size_bytes -= sum(map(len, waiting.messages.popleft()))
                    waiting.since_ms = now_ms
                del self._waiting[peer]
            except SendFailed as failure:
                if failure.gone or now_ms - waiting.since_ms > _PATIENCE_MS:
                    del self._waiting[peer]
                    self._lost[peer] = failure.gone
        lost, self._lost = self._lost, {}
        return lost
