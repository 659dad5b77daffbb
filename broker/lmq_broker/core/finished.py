"""Final jobs that are kept, as far as the core remembers them: in what order they ended, whose they were, and how.

There may be a million of them. Each has its entry in a dictionary and one whole number, which holds the job's number
and beside it which of the few kinds of ended jobs it is one of. All else of them is in the journal.
"""

from collections.abc import Iterator, KeysView, Mapping
from typing import NamedTuple

from lmq_proto.states import State

_NUMBER_BITS = 48
_NUMBER = (1 << _NUMBER_BITS) - 1


class Ended(NamedTuple):
    """What is remembered of a final job beside its number: the same object for all jobs of which it is true."""

    user: str
    state: State
    priority: int


class Finished(Mapping[bytes, int]):
    """Ids of final jobs -> their numbers, in the order they ended."""

    __slots__ = ("_free", "_jobs", "_kinds", "_places", "_sizes")

    def __init__(self) -> None:
        self._jobs: dict[bytes, int] = {}
        """Id -> place of its kind, shifted, and its number."""
        self._kinds: list[Ended] = []
        self._sizes: list[int] = []
        """How many jobs are of the kind at this place; a place with none is free."""
        self._places: dict[tuple[str, State, int], int] = {}
        self._free: list[int] = []

    def add(self, job_id: bytes, number: int, user: str, state: State, priority: int) -> None:
        """Remember a job that has ended just now."""
        place = self._places.get((user, state, priority))
        if place is None:
            place = self._take_place(Ended(user, state, priority))
        self._sizes[place] += 1
        self._jobs[job_id] = place << _NUMBER_BITS | number

    def _take_place(self, kind: Ended) -> int:
        if self._free:
            place = self._free.pop()
            self._kinds[place] = kind
        else:
            place = len(self._kinds)
            self._kinds.append(kind)
            self._sizes.append(0)
        self._places[kind] = place
        return place

    def pop(self, job_id: bytes) -> int:
        """Forget a job; return its number, 0 if it was not there."""
        packed = self._jobs.pop(job_id, 0)
        if packed:
            place = packed >> _NUMBER_BITS
            self._sizes[place] -= 1
            if not self._sizes[place]:
                del self._places[self._kinds[place]]
                self._free.append(place)
        return packed & _NUMBER

    def ended(self, job_id: bytes) -> Ended | None:
        """Return how a job ended; None if it is not here."""
        packed = self._jobs.get(job_id)
        return None if packed is None else self._kinds[packed >> _NUMBER_BITS]

    def __getitem__(self, job_id: bytes) -> int:
        return self._jobs[job_id] & _NUMBER

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._jobs

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    def keys(self) -> KeysView[bytes]:
        """Return the ids, in the order the jobs ended."""
        return self._jobs.keys()
