"""The text of one attempt on its way: merged while it cannot leave, kept until it is durable. Pure."""

from collections import deque

from lmq_proto.messages import Piece

# A piece that grows by merging stops here, so that a reader's credit is spent in small steps.
PIECE_CHARS = 16_384


class AttemptText:
    """Pieces of one attempt: those not numbered yet, and those sent and not yet durable.

    A piece gets its number when it leaves. Until then text of the same channel is joined to it, so that a slow
    broker gets few large pieces instead of many small ones.
    """

    __slots__ = ("_first_kept", "_kept", "_waiting")

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, list[str], int]] = deque()
        self._kept: deque[Piece] = deque()
        self._first_kept = 1

    @property
    def waits(self) -> bool:
        """Tell whether there is text that has no number yet."""
        return bool(self._waiting)

    @property
    def keeps(self) -> bool:
        """Tell whether there are numbered pieces that are not durable yet."""
        return bool(self._kept)

    def add(self, channel: str, text: str) -> None:
        """Take text from the engine. An `end` piece is never merged."""
        if not self._waiting and len(text) <= PIECE_CHARS:
            self._waiting.append((channel, [text], len(text)))
            return
        for at in range(0, len(text), PIECE_CHARS) or range(1):
            self._join(channel, text[at : at + PIECE_CHARS])

    def _join(self, channel: str, text: str) -> None:
        if self._waiting and channel != "end":
            last_channel, parts, chars = self._waiting[-1]
            if last_channel == channel and chars + len(text) <= PIECE_CHARS:
                parts.append(text)
                self._waiting[-1] = (channel, parts, chars + len(text))
                return
        self._waiting.append((channel, [text], len(text)))

    def number(self, limit: int) -> tuple[int, list[Piece]]:
        """Give numbers to up to `limit` waiting pieces; return the first number and the pieces, to be sent now."""
        first = self._first_kept + len(self._kept)
        pieces: list[Piece] = []
        while self._waiting and len(pieces) < limit:
            channel, parts, _ = self._waiting.popleft()
            pieces.append(Piece(channel=channel, text="".join(parts)))
        self._kept.extend(pieces)
        return first, pieces

    def kept(self) -> tuple[int, list[Piece]]:
        """Return the first number and all pieces that are not known to be durable."""
        return self._first_kept, list(self._kept)

    def durable(self, piece: int) -> None:
        """Forget pieces up to `piece`."""
        while self._kept and self._first_kept <= piece:
            self._kept.popleft()
            self._first_kept += 1
