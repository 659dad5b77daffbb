"""A reader of all durable events: says each on stdout. `python -m crash.tail URL CURSOR`."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys

import lmq
from crash.ledger import line


def main(url: str, cursor: str) -> None:
    faulthandler.register(signal.SIGUSR1)
    with lmq.Client(url, user="tail") as q, q.events(since=int(cursor)) as events:
        for event in events:
            epoch = event.detail.get("epoch")
            os.write(1, line("event", event.seq, event.kind, event.job_id, event.attempt, event.state, epoch))


if __name__ == "__main__":
    main(*sys.argv[1:])
