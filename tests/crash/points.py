"""A broker that dies, as by kill -9, at a named point: `python -m crash.points POINT NTH [the broker's arguments]`.

The code that ships knows nothing of this; what is named here is wrapped from outside before the broker starts.

| Point | The nth time that |
|---|---|
| `before:WHAT` | records were handed over, and the writing thread has them; nothing of them is on disk |
| `inside:WHAT` | their rows are written and the transaction is open |
| `after:WHAT` | they are committed, and nobody has been told |
| `reply:VERB` | a message of this verb is about to be sent |
| `told:VERB` | a message of this verb was handed to the socket |
| `recovered` | the journal has been read back; the new epoch is not on disk |
| `checkpoint` | SQLite copies its log into the journal |

WHAT is `any`, `submit`, `change`, `text`, `result` or `usage`: what a commit holds at least.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from lmq_broker.__main__ import main
from lmq_broker.core import recover
from lmq_broker.journal.batch import Batch
from lmq_broker.journal.store import FILE, Journal
from lmq_broker.journal.writer import Writer
from lmq_broker.shell.door import Door

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence

    from lmq_broker.core.effects import Effect
    from lmq_broker.core.state import BrokerState
    from lmq_proto.ids import PeerId

_HOLDS: dict[str, Callable[[Batch], object]] = {
    "any": lambda batch: True,
    "submit": lambda batch: batch._added,
    "change": lambda batch: batch._changed,
    "text": lambda batch: batch._texts,
    "result": lambda batch: batch._results,
    "usage": lambda batch: batch._usage,
}


class Countdown:
    """Ends this process at its nth call."""

    def __init__(self, nth: int) -> None:
        self._left = nth

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()


def arm(point: str, due: Callable[[], None]) -> None:
    """Wrap what the point names."""
    name, _, which = point.partition(":")
    if name in ("before", "after"):
        _arm_commit(due, _HOLDS[which], before=name == "before")
    elif name == "inside":
        _arm_transaction(due, _HOLDS[which])
    elif name in ("reply", "told"):
        _arm_send(due, which.encode(), before=name == "reply")
    elif name == "recovered":
        _arm_recovery(due)
    elif name == "checkpoint":
        _arm_checkpoint(due)
    else:
        raise ValueError(point)


def _arm_commit(due: Callable[[], None], holds: Callable[[Batch], object], *, before: bool) -> None:
    write = Writer._write

    def deadly(self: Writer, connection: sqlite3.Connection, batch: Batch) -> bool:
        if before and holds(batch):
            due()
        done = write(self, connection, batch)
        if not before and holds(batch):
            due()
        return done

    Writer._write = deadly  # type: ignore[method-assign]  # wrapped on purpose


def _arm_transaction(due: Callable[[], None], holds: Callable[[Batch], object]) -> None:
    write = Batch.write

    def deadly(self: Batch, connection: sqlite3.Connection) -> None:
        write(self, connection)
        if holds(self):
            due()

    Batch.write = deadly  # type: ignore[method-assign]  # wrapped on purpose


def _arm_send(due: Callable[[], None], verb: bytes, *, before: bool) -> None:
    send = Door.send

    def deadly(self: Door, peer: PeerId, frames: Sequence[bytes]) -> None:
        if before and frames[1] == verb:
            due()
        send(self, peer, frames)
        if not before and frames[1] == verb:
            due()

    Door.send = deadly  # type: ignore[method-assign]  # wrapped on purpose


def _arm_recovery(due: Callable[[], None]) -> None:
    original = recover.recover

    def deadly(*args: object, **kwargs: object) -> tuple[BrokerState, list[Effect]]:
        recovered = original(*args, **kwargs)  # type: ignore[arg-type]  # handed on as they came
        due()
        return recovered

    recover.recover = deadly


def _arm_checkpoint(due: Callable[[], None]) -> None:
    """Watch the journal's own file from the first submit on: in WAL mode, only a checkpoint writes to it."""
    append = Journal.append
    watching = threading.Event()

    def watch(path: Path) -> None:
        before = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == before:
            pass
        due()

    def watched(self: Journal, position: int, records: list[Effect]) -> None:
        append(self, position, records)  # type: ignore[arg-type]  # handed on as they came
        if len(records) > 3 and not watching.is_set():
            watching.set()
            threading.Thread(target=watch, args=(self.path.with_name(FILE),), daemon=True).start()

    Journal.append = watched  # type: ignore[method-assign,assignment]  # wrapped on purpose


if __name__ == "__main__":
    arm(sys.argv[1], Countdown(int(sys.argv[2])))
    del sys.argv[1:3]
    main()
