"""What clients, readers and workers were told, kept outside of all that is killed: in the test's own process.

Programs say facts as lines of JSON on stdout: a word, then its values. A line of one write below the pipe's atomic size
is said or not said, whatever kills the program in between.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest

Fact = list[Any]
"""A word and its values, as JSON holds them."""


def line(word: str, *values: object) -> bytes:
    """Return a fact as it is said."""
    return json.dumps([word, *values]).encode() + b"\n"


@dataclass(slots=True)
class Intent:
    """A job that a client was about to submit."""

    name: str
    number: int


@dataclass(slots=True)
class Book:
    """All that was told so far."""

    intents: dict[str, Intent] = field(default_factory=dict)
    """By job id, written down before the submit."""
    accepted: dict[str, Intent] = field(default_factory=dict)
    """By the id that the broker acknowledged: for a key that was used before, the first one's."""
    refused: list[Fact] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    ends: dict[str, list[tuple[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    """(state, result) as clients were told, each time they were."""
    leases: Counter[tuple[str, int, int]] = field(default_factory=Counter)
    """(job id, epoch, attempt) that workers were given, with how often."""
    texts: dict[tuple[str, int], list[Fact]] = field(default_factory=lambda: defaultdict(list))
    """What each reader saw, by (job id, reading): pieces, restarts and the end, in order."""
    events: list[Fact] = field(default_factory=list)
    trouble: list[Fact] = field(default_factory=list)
    """Errors that clients got where none was due."""


class Ledger:
    """Takes facts from many threads; whoever waits for more of them is woken."""

    def __init__(self) -> None:
        self.book = Book()
        self._facts = 0
        self._news = threading.Condition()

    @property
    def facts(self) -> int:
        return self._facts

    def hear(self, text: str) -> None:
        """Take one line."""
        fact = json.loads(text)
        with self._news:
            self._facts += 1
            _enter(self.book, fact)
            self._news.notify_all()

    def wait_for(self, more: int, within_s: float) -> None:
        """Return when so many more facts were told; fail if they are not in time."""
        with self._news:
            wanted = self._facts + more
            deadline_s = time.monotonic() + within_s
            while self._facts < wanted:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    pytest.fail(f"nothing goes on: {self._facts} facts, waited {within_s} s for {wanted}")
                self._news.wait(left_s)

    def unacknowledged(self, name: str) -> list[int]:
        """Return the numbers of a client's jobs that it meant to submit and got no answer for."""
        with self._news:
            book = self.book
            answered = {intent.number for intent in book.accepted.values() if intent.name == name}
            refused = {fact[2] for fact in book.refused if fact[1] == name}
            meant = {intent.number for intent in book.intents.values() if intent.name == name}
            return sorted(meant - answered - refused)

    def last_number(self, name: str) -> int:
        """Return the highest number that a client gave to a job; 0 before the first."""
        with self._news:
            numbers = [intent.number for intent in self.book.intents.values() if intent.name == name]
            return max(numbers, default=0)

    def last_seq(self) -> int:
        """Return the cursor of the reader of events."""
        with self._news:
            return self.book.events[-1][1] if self.book.events else 0


def _enter(book: Book, fact: Fact) -> None:
    match fact:
        case ["intent", name, pairs]:
            for number, job_id in pairs:
                book.intents[job_id] = Intent(name, number)
        case ["accepted", name, pairs]:
            for number, job_id in pairs:
                book.accepted[job_id] = Intent(name, number)
        case ["refused", *_]:
            book.refused.append(fact)
        case ["cancelled", job_id]:
            book.cancelled.add(job_id)
        case ["ended", job_id, state, result]:
            book.ends[job_id].append((state, result))
        case ["leased", job_id, epoch, attempt]:
            book.leases[job_id, epoch, attempt] += 1
        case ["text", job_id, reading, *_]:
            book.texts[job_id, reading].append(fact[3:])
        case ["event", *_]:
            book.events.append(fact)
        case ["trouble", *_]:
            book.trouble.append(fact)
        case _:
            raise AssertionError(f"an unknown fact: {fact}")
