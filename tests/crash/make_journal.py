"""Make the journal that `test_backup.py` opens: `python -m crash.make_journal FILE.gz`, with the broker of its day.

One job of each state, each with its state as idempotency key; text, a result, a held queue, a tombstone, sums. Once a
version has been released its file stays as it is: a later broker must open it.
"""

from __future__ import annotations

import gzip
import sys
import tempfile
from pathlib import Path

import lmq
from crash.fleet import Fleet
from integration.broker.raw import RawPeer
from lmq_proto.ids import to_text
from lmq_proto.messages import (
    Acked,
    Ended,
    Lease,
    Piece,
    Results,
    Text,
    TextDurable,
    TextReport,
    Work,
)

PATIENCE_S = 30.0


def make(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, Fleet(Path(folder) / "fleet") as fleet:
        broker = fleet.ready_broker()
        with lmq.Client(fleet.url, user="anna", timeout_s=PATIENCE_S) as q, RawPeer(fleet.url) as worker:
            submit(q, worker)
            q.backup(str(Path(folder) / "copy"))
        broker.terminate()
        # Without the time in its head, the same content gives the same file.
        file.write_bytes(gzip.compress((Path(folder) / "copy").read_bytes(), mtime=0))


def submit(q: lmq.Client, worker: RawPeer) -> None:
    """Bring one job into each state."""
    worker.enlist("raw", slots=1)
    q.pause(queue="paused", reason="for the night")

    done = q.submit("echo", {"n": 1}, idempotency_key="done", labels={"chat": "42"}, session="s1")
    lease = worker.message(Work).groups[0].leases[0]
    say(worker, lease, ["Hello ", "world"])
    end(worker, lease, "complete", b"\x81\xa4echo\x81\xa1n\x01")
    assert done.result(PATIENCE_S) == {"echo": {"n": 1}}

    dead = q.submit("echo", {"n": 2}, idempotency_key="dead", failures=1)
    end(worker, worker.message(Work).groups[0].leases[0], "fail")
    dead.wait(PATIENCE_S)

    deleted = q.submit("echo", {"n": 3}, idempotency_key="deleted")
    end(worker, worker.message(Work).groups[0].leases[0], "complete", b"\x80")
    deleted.wait(PATIENCE_S)
    deleted.delete()

    q.submit("echo", {"n": 4}, idempotency_key="cancelled", delay_s=3600).cancel()
    q.submit("echo", {"n": 5}, idempotency_key="leased", timeout_s=3600)
    say(worker, worker.message(Work).groups[0].leases[0], ["half a ", "sentence"])
    q.submit(
        "echo", {"n": 6}, idempotency_key="ready", priority=7, model=["qwen3-8b", "llama"], labels={"a": "b"}
    )
    q.submit("echo", {"n": 7}, idempotency_key="delayed", delay_s=100 * 366 * 86400 / 101)
    q.submit("echo", {"n": 8}, idempotency_key="paused", queue="paused")


def say(worker: RawPeer, lease: Lease, words: list[str]) -> None:
    """Report text, and wait until it is on disk."""
    pieces = [Piece(channel="content", text=word) for word in words]
    text = Text(job_id=lease.job_id, attempt=lease.attempt, first=1, pieces=pieces)
    worker.send(TextReport(texts=[text]))
    assert worker.message(TextDurable).marks[0].piece == len(words), to_text(lease.job_id)


def end(worker: RawPeer, lease: Lease, outcome: str, result: bytes = b"") -> None:
    """End a lease, and wait until that is on disk."""
    ended = Ended(
        job_id=lease.job_id,
        epoch=lease.epoch,
        attempt=lease.attempt,
        outcome=outcome,
        result_bytes=len(result),
        prompt_tokens=10,
        output_tokens=3,
        engine_ms=700,
    )
    worker.send(Results(ended=[ended]), result)
    worker.message(Acked)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
