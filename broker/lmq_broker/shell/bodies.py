"""Payloads of open jobs, so that dispatch seldom has to read the disk. Bounded: the journal has them all."""

from collections.abc import Iterable

from lmq_broker.core.records import JobAdded, JobChanged, Record
from lmq_proto.states import FINAL


class Bodies:
    """A bounded store of payloads by job number; when it is full, newcomers are left to the journal."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bodies: dict[int, bytes] = {}
        self._held_bytes = 0

    def take_in(self, records: Iterable[Record]) -> None:
        """Keep the payloads of jobs that were accepted, drop those of jobs that ended."""
        for record in records:
            if isinstance(record, JobAdded):
                size = len(record.payload)
                if self._held_bytes + size <= self._limit_bytes:
                    self._bodies[record.job.number] = record.payload
                    self._held_bytes += size
            elif isinstance(record, JobChanged) and record.job.state in FINAL:
                body = self._bodies.pop(record.job.number, None)
                if body is not None:
                    self._held_bytes -= len(body)

    def held(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """Return the payloads that are here, by job number. What is not has to be read."""
        bodies = self._bodies
        return {number: bodies[number] for number in numbers if number in bodies}
