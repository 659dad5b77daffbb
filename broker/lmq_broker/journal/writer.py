"""The one writing thread: group commit without delay. It starts when it is idle and takes all that waits."""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable

from peewee import SqliteDatabase

from lmq_broker.core.records import Record
from lmq_broker.journal import usage
from lmq_broker.journal.batch import Batch
from lmq_broker.journal.models import connection_of

_BATCH_RECORDS = 20_000
"""Records in one commit: more would make the first of them wait too long."""
_RETRY_FULL_S = 0.5
_COMMITS_KEPT = 512
_EVENT_ROWS_PER_TRIM = 200


class Writer:
    """Owns the writing connection.

    `durable` is the last position that is on disk. `notify` is called, from the writing thread, whenever `durable` or
    `trouble` has changed.
    """

    def __init__(
        self, database: SqliteDatabase, notify: Callable[[], None], *, events_kept: int, position: int = 0
    ) -> None:
        self._database = database
        self._notify = notify
        self._events_kept = events_kept
        self._waiting: deque[tuple[int, list[Record]]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="journal-writer", daemon=True)
        self._last_event = 0
        self._trim_due = False
        self.durable = position
        self.trouble = ""
        """`full`: the disk is; `io`: it fails, and the broker must exit and recover."""
        self.trouble_text = ""
        self.commits_us: deque[int] = deque(maxlen=_COMMITS_KEPT)
        """How long the latest commits took, the fsync included."""

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def append(self, position: int, records: list[Record]) -> None:
        """Hand over the records of one turn; they become durable together or not at all."""
        with self._wake:
            self._waiting.append((position, records))
            self._wake.notify()

    def close(self, within_s: float) -> bool:
        """Write what waits and end the thread; False if it did not end in time."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join(within_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._write_all()
        except Exception as error:  # noqa: BLE001  # whatever it is: a thread that ended unseen would be waited for in vain
            self._say("io", f"{type(error).__name__}: {error}")

    def _write_all(self) -> None:
        connection = connection_of(self._database)
        usage.prepare(connection)
        while True:
            batch = self._take()
            if batch is None:
                break
            if not self._write(connection, batch):
                break
            self.durable = batch.position
            self._notify()
            if self._trim_due:
                self._trim(connection)
        self._database.close()

    def _take(self) -> Batch | None:
        """Return all that waits, once something does; None when there is nothing left and the end has come."""
        with self._wake:
            while not self._waiting:
                if self._stopping:
                    return None
                self._wake.wait()
            taken = []
            count = 0
            while self._waiting and count < _BATCH_RECORDS:
                turn = self._waiting.popleft()
                taken.append(turn)
                count += len(turn[1])
        batch = Batch()
        for position, records in taken:
            batch.add(position, records)
        return batch

    def _write(self, connection: sqlite3.Connection, batch: Batch) -> bool:
        """Commit a batch, however long the disk is full; False if the disk fails otherwise."""
        while True:
            began = time.perf_counter_ns()
            try:
                connection.execute("BEGIN IMMEDIATE")
                batch.write(connection)
                connection.execute("COMMIT")
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if not is_full(error):
                    self._say("io", str(error))
                    return False
                self._say("full", str(error))
                with self._wake:
                    if self._stopping:
                        return False
                    self._wake.wait(_RETRY_FULL_S)
                continue
            self.commits_us.append((time.perf_counter_ns() - began) // 1000)
            self._trim_due = batch.last_seq - self._last_event > self._events_kept // 64
            if self._trim_due:
                self._last_event = batch.last_seq
            self._say("", "")
            return True

    def _trim(self, connection: sqlite3.Connection) -> None:
        """Drop events beyond the number kept, a few commits' worth at a time."""
        floor = self._last_event - self._events_kept
        if floor <= 0:
            return
        try:
            connection.execute(
                "DELETE FROM events WHERE first IN (SELECT first FROM events WHERE last<=? ORDER BY first LIMIT ?)",
                (floor, _EVENT_ROWS_PER_TRIM),
            )
        except sqlite3.Error as error:
            if not is_full(error):
                self._say("io", str(error))

    def _say(self, trouble: str, text: str) -> None:
        if trouble != self.trouble:
            self.trouble_text = text
            self.trouble = trouble
            self._notify()


def is_full(error: sqlite3.Error) -> bool:
    """Tell whether an error means that there is no room, now."""
    return getattr(error, "sqlite_errorname", "").startswith(("SQLITE_FULL", "SQLITE_BUSY"))
