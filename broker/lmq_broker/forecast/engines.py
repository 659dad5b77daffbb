"""A modelled model server: slots, decoding that slows as it is shared, loads and unloads. It is told the time.

The gap between two tokens of a stream is `first_ms + more_ms * n` when `n` streams decode; a prompt is read before its
first token at a fixed rate, beside the others.
"""

import heapq
from collections.abc import Iterator

import msgspec


class EngineModel(msgspec.Struct, frozen=True):
    """How fast an endpoint is and what it can hold."""

    name: str = ""
    """Empty: by its number, as gpu-1."""
    slots: int = 4
    first_ms: float = 20.0
    more_ms: float = 3.0
    """Between two tokens of one of n streams: first_ms + more_ms * n."""
    prompt_tokens_per_s: float = 1500.0
    load_s: float = 10.0
    models: tuple[str, ...] = ("model",)
    models_max: int = 1

    def gap_ms(self, streams: int) -> float:
        """Return the time between two tokens of a stream."""
        return self.first_ms + self.more_ms * streams


class Stream(msgspec.Struct):
    """One answer that is being made."""

    key: tuple[bytes, int, int]
    instance_id: str
    prompt_tokens: int
    output_tokens: int
    reads_until_ms: float
    begins_at: float = -1.0
    """Reading of the decoding clock at its first token; below 0: the prompt is read."""


class Engine:
    """One endpoint over time."""

    def __init__(self, model: EngineModel) -> None:
        self.model = model
        self.streams: dict[tuple[bytes, int, int], Stream] = {}
        self._decoding = 0
        self._clock = 0.0
        """Tokens that each decoding stream has been given since the start."""
        self._at_ms = 0.0
        self._ends: list[tuple[float, int, Stream]] = []
        self._reads: list[tuple[float, int, Stream]] = []
        self._begun = 0

    def begin(self, stream: Stream, now_ms: float) -> None:
        """Take in a stream."""
        self._pass_time(now_ms)
        self._begun += 1
        stream.reads_until_ms = now_ms + stream.prompt_tokens * 1000 / self.model.prompt_tokens_per_s
        self.streams[stream.key] = stream
        heapq.heappush(self._reads, (stream.reads_until_ms, self._begun, stream))

    def stop(self, key: tuple[bytes, int, int], now_ms: float) -> bool:
        """End a stream early; False if there is none."""
        self._pass_time(now_ms)
        stream = self.streams.pop(key, None)
        if stream is None:
            return False
        if stream.begins_at >= 0:
            self._decoding -= 1
        return True

    def next_ms(self) -> float | None:
        """Return when something happens here next if nothing else does."""
        self._drop_stopped()
        found = [self._reads[0][0]] if self._reads else []
        if self._ends:
            found.append(
                self._at_ms + max(0.0, self._ends[0][0] - self._clock) * self.model.gap_ms(self._decoding)
            )
        return min(found) if found else None

    def advance(self, now_ms: float) -> Iterator[Stream]:
        """Let time pass up to now, through all that happens meanwhile; yield the streams that end."""
        while (due_ms := self.next_ms()) is not None and due_ms <= now_ms:
            self._pass_time(due_ms)
            if self._reads and self._reads[0][0] <= due_ms:
                stream = heapq.heappop(self._reads)[2]
                stream.begins_at = self._clock
                self._decoding += 1
                self._begun += 1
                heapq.heappush(self._ends, (self._clock + stream.output_tokens, self._begun, stream))
            else:
                stream = heapq.heappop(self._ends)[2]
                self._clock = max(self._clock, stream.begins_at + stream.output_tokens)
                del self.streams[stream.key]
                self._decoding -= 1
                yield stream
        self._pass_time(now_ms)

    def tokens(self, stream: Stream) -> int:
        """Return how many tokens a stream has so far."""
        return 0 if stream.begins_at < 0 else min(stream.output_tokens, int(self._clock - stream.begins_at))

    def _pass_time(self, now_ms: float) -> None:
        passed_ms = now_ms - self._at_ms
        if passed_ms <= 0:
            return
        if self._decoding:
            self._clock += passed_ms / self.model.gap_ms(self._decoding)
        self._at_ms = now_ms

    def _drop_stopped(self) -> None:
        for heap in (self._reads, self._ends):
            while heap and self.streams.get(heap[0][2].key) is not heap[0][2]:
                heapq.heappop(heap)
