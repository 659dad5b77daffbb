"""Submits that wait to be sent, merged into as few messages as may be. Pure; part of `_dialogue`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from lmq._instructions import Token
from lmq_proto import bounds
from lmq_proto.messages import JobSpec

SUBMIT_BYTES = 16 * 1024 * 1024
"""Payload bytes in one `submit`: half a body, so that one more job of the largest size always fits."""
SUBMIT_HEADER_BYTES = bounds.HEADER_BYTES // 2
"""Labels, keys and names in one `submit`, roughly reckoned."""
SUBMITS_IN_FLIGHT = 4
"""Merged submits without a reply. What comes meanwhile waits and goes together: the more load, the larger the batch."""


@dataclass(slots=True)
class Merged:
    """Jobs that go as one message, and who asked for each."""

    as_user: str
    follow: bool
    tokens: list[Token] = field(default_factory=list)
    specs: list[JobSpec] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)


class Submits:
    """The waiting submits, in lanes: jobs of one lane share their `as_user`, and all are followed or none."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[str, bool], deque[tuple[Token, JobSpec, bytes]]] = {}

    def add(self, token: Token, spec: JobSpec, payload: bytes, as_user: str, follow: bool) -> None:
        """Take a job that waits."""
        lane = self._lanes.get((as_user, follow))
        if lane is None:
            lane = self._lanes[as_user, follow] = deque()
        lane.append((token, spec, payload))

    def forget(self, token: Token) -> bytes | None:
        """Drop the job of a token, if it still waits here; return its id."""
        for lane in self._lanes.values():
            for entry in lane:
                if entry[0] is token:
                    lane.remove(entry)
                    return entry[1].id
        return None

    def take(self) -> Merged | None:
        """Return as much of the first lane as one message may hold; None when nothing waits."""
        while self._lanes:
            key, lane = next(iter(self._lanes.items()))
            if lane:
                return _cut(Merged(*key), lane)
            del self._lanes[key]
        return None

    def tokens(self) -> Iterator[Token]:
        """Give who waits."""
        for lane in self._lanes.values():
            for token, _, _ in lane:
                yield token

    def job_ids(self) -> Iterator[bytes]:
        """Give the ids of the jobs that the broker does not know yet."""
        for lane in self._lanes.values():
            for _, spec, _ in lane:
                yield spec.id

    def clear(self) -> None:
        self._lanes.clear()

    def __bool__(self) -> bool:
        return any(self._lanes.values())


def _cut(merged: Merged, lane: deque[tuple[Token, JobSpec, bytes]]) -> Merged:
    """Move jobs from a lane into a message, up to its bounds."""
    body_bytes = header_bytes = 0
    while lane and len(merged.specs) < bounds.BATCH_JOBS:
        token, spec, payload = lane[0]
        body_bytes += len(payload)
        header_bytes += spec_bytes(spec)
        if merged.specs and (body_bytes > SUBMIT_BYTES or header_bytes > SUBMIT_HEADER_BYTES):
            break
        lane.popleft()
        merged.tokens.append(token)
        merged.specs.append(spec)
        merged.payloads.append(payload)
    return merged


def spec_bytes(spec: JobSpec) -> int:
    """Return about how many bytes a job takes in a header; never less than it does by much."""
    size = 160 + len(spec.queue) + len(spec.key) + len(spec.session) + 18 * len(spec.parents)
    if spec.labels:
        size += 4 * sum(len(name) + len(value) + 4 for name, value in spec.labels.items())
    if spec.models:
        size += 4 * sum(len(model) + 4 for model in spec.models)
    return size
