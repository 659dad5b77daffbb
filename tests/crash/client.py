"""A client under load: submits through the SDK, waits for some results, reads text, cancels; says on stdout each
thing that it is about to do and each thing that it was told. `python -m crash.client URL NAME FIRST [AGAIN ...]`.

`FIRST` is the number of its first job; `AGAIN` are numbers of jobs with a key that a former life got no answer for.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from queue import SimpleQueue
from random import Random

import lmq
from crash.ledger import line
from crash.plans import Plan
from lmq.drafts import draft

# The fleet bounds what a test waits for; a client may be as patient as the kills need.
PATIENCE_S = 300.0

# Pairs in one line, so that the line goes into the pipe in one piece.
_PAIRS = 50


def say(word: str, *values: object) -> None:
    os.write(1, line(word, *values))


def say_pairs(word: str, name: str, pairs: list[tuple[int, str]]) -> None:
    for start in range(0, len(pairs), _PAIRS):
        say(word, name, pairs[start : start + _PAIRS])


class LoadClient:
    """One life of a client."""

    def __init__(self, url: str, name: str, first: int) -> None:
        self.name = name
        self.next = first
        self.chance = Random(f"{name} from {first}")
        self.q = lmq.Client(url, user=name, timeout_s=PATIENCE_S)
        self.to_read: SimpleQueue[tuple[lmq.Job[object], int]] = SimpleQueue()

    def run(self, again: list[int]) -> None:
        threading.Thread(target=self.read_texts, daemon=True).start()
        if again:
            self.submit(again)
        while True:
            count = self.chance.choice([1, 1, 1, 3, 10, 40, 120])
            numbers = list(range(self.next, self.next + count))
            self.next += count
            self.submit(numbers)

    def submit(self, numbers: list[int]) -> None:
        """Submit jobs in one of the ways there are, and see some of them to their end."""
        plans = {number: Plan(self.name, number) for number in numbers}
        drafts = {n: draft("echo", plan.payload, **plan.options) for n, plan in plans.items()}
        say_pairs("intent", self.name, [(number, draft.id) for number, draft in drafts.items()])
        way = self.chance.choice(["one", "many", "pipeline"])
        if way == "one":
            jobs = []
            for number, each in drafts.items():
                jobs.append(self.q.submit_draft(each))
                say_pairs("accepted", self.name, [(number, jobs[-1].id)])
        elif way == "many":
            jobs = self.q.submit_many(drafts.values())
            say_pairs("accepted", self.name, [(n, job.id) for n, job in zip(drafts, jobs, strict=True)])
        else:
            with self.q.pipeline(window=16) as pipeline:
                jobs = [pipeline.submit_draft(each) for each in drafts.values()]
            say_pairs("accepted", self.name, [(n, job.id) for n, job in zip(drafts, jobs, strict=True)])
        self.follow_up([(job, plan) for job, plan in zip(jobs, plans.values(), strict=True)])

    def follow_up(self, jobs: list[tuple[lmq.Job[object], Plan]]) -> None:
        awaited = []
        for job, plan in jobs:
            if plan.kind == "cancelled":
                try:
                    if job.cancel():
                        say("cancelled", job.id)
                except lmq.WrongState:
                    continue
            elif plan.kind == "text" and self.chance.random() < 0.7:
                self.to_read.put((job, self.chance.getrandbits(32)))
            # Some are left alone: leaving is not cancelling.
            if self.chance.random() < 0.7:
                awaited.append(job)
        for job in self.q.as_completed(awaited, PATIENCE_S):
            try:
                say("ended", job.id, "done", job.result())
            except lmq.JobDead:
                say("ended", job.id, "dead", None)
            except lmq.JobCancelled:
                say("ended", job.id, "cancelled", None)

    def read_texts(self) -> None:
        """Read one text after the other, saying each piece."""
        while True:
            job, reading = self.to_read.get()
            try:
                for piece in job.pieces(restart="continue", timeout_s=PATIENCE_S):
                    if isinstance(piece, lmq.Restart):
                        say("text", job.id, reading, "restart", piece.attempt)
                    else:
                        say("text", job.id, reading, piece.channel, piece.attempt, piece.number, piece.text)
                say("text", job.id, reading, "final")
            except lmq.JobNotDone:
                continue
            except lmq.LmqError as error:
                say("trouble", self.name, f"text of {job.id}: {error!r}")


def main(url: str, name: str, first: str, *again: str) -> None:
    faulthandler.register(signal.SIGUSR1)
    client = LoadClient(url, name, int(first))
    try:
        client.run([int(number) for number in again])
    except lmq.LmqError as error:
        say("trouble", name, repr(error))
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
