"""The journal as the broker sees it: open it, read back what it holds, append, ask, and be told what is durable."""

import fcntl
import os
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil
from peewee import PeeweeException, SqliteDatabase

from lmq_broker.core.records import Record
from lmq_broker.core.recover import Memory, StoredKey
from lmq_broker.journal.errors import JournalForeign, JournalNewer, JournalTaken, NetworkDisk, SqliteTooOld
from lmq_broker.journal.migrations import MIGRATIONS, VERSION
from lmq_broker.journal.models import INDEXES, TABLES, connection_of
from lmq_broker.journal.reader import COLUMNS, Answer, Question, Reader, stored
from lmq_broker.journal.writer import Writer

FILE = "journal.sqlite3"
_LOCK = "broker.lock"
_NETWORK = ("nfs", "cifs", "smb", "sshfs", "afpfs", "webdav", "9p", "ceph", "glusterfs")
_OLDEST_SQLITE = (3, 33, 0)
"""The first with `UPDATE ... FROM`."""
_PRAGMAS = {
    "page_size": 8192,
    "journal_mode": "wal",
    "synchronous": "full",
    "cache_size": -65536,
    "temp_store": "memory",
    "wal_autocheckpoint": 4000,
    "busy_timeout": 5000,
}
_OPEN_STATES = "finished_at_ms = 0"


class Journal:
    """An open journal: one folder, one broker.

    `wake` is called from the journal's threads when `poll` has something to say.
    """

    def __init__(self, folder: Path, wake: Callable[[], None], *, events_kept: int) -> None:
        self.path = folder / FILE
        self._folder = folder
        self._wake = wake
        self._answers: deque[tuple[Question, Answer]] = deque()
        self._asked: deque[tuple[int, Question]] = deque()
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise SqliteTooOld(sqlite3.sqlite_version, ".".join(map(str, _OLDEST_SQLITE)))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_network(folder)
        self._lock = _lock(folder)
        self._database = SqliteDatabase(str(self.path), pragmas=_PRAGMAS, thread_safe=True)
        try:
            _prepare(self._database, self.path)
        except (sqlite3.Error, PeeweeException) as error:
            # Opening goes through peewee, which has errors of its own for what SQLite says then.
            raise JournalForeign(self.path, str(error)) from error
        self.writer = Writer(self._database, wake, events_kept=events_kept)
        self._reader = Reader(self._database, self.path, self._deliver)

    def start(self) -> None:
        """Start both threads."""
        self.writer.start()
        self._reader.start()

    def memory(self) -> Memory:
        """Read back what a broker needs to start."""
        connection = connection_of(self._database)
        connection.execute("PRAGMA cache_size=-262144")

        def one(sql: str) -> int:
            return int(connection.execute(sql).fetchone()[0] or 0)

        rows = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE {_OPEN_STATES} ORDER BY number")
        first_event = connection.execute("SELECT min(first) FROM events").fetchone()[0]
        return Memory(
            meta=dict(connection.execute("SELECT name, value FROM meta")),
            open_jobs=(stored(row) for row in rows),
            finished=connection.execute(
                f"SELECT id, number, user, state, priority FROM jobs WHERE NOT {_OPEN_STATES}"
                " ORDER BY finished_at_ms, number"
            ),
            keys=(
                StoredKey(*row) for row in connection.execute("SELECT user, key, job_id, digest FROM keys")
            ),
            tombstones=connection.execute("SELECT job_id, until_ms FROM tombstones ORDER BY until_ms"),
            stored_text=_stored_text(connection),
            last_number=one("SELECT max(number) FROM jobs"),
            last_order=one('SELECT max("order") FROM jobs'),
            last_seq=one("SELECT max(last) FROM events"),
            oldest_cursor=first_event - 1 if first_event is not None else 0,
            last_event_ms=one("SELECT at_ms FROM events ORDER BY first DESC LIMIT 1") if first_event else 0,
            usage_rows=connection.execute(
                "SELECT day, user, model, task_type FROM usage"
                " WHERE day >= (SELECT max(day) - 1 FROM usage) ORDER BY day"
            ),
            usage_oldest_day=one("SELECT min(day) FROM usage"),
        )

    def append(self, position: int, records: list[Record]) -> None:
        """Hand over one turn's records."""
        self.writer.append(position, records)

    def ask(self, question: Question, after: int) -> None:
        """Ask what is not in memory; answered once all up to `after` is durable."""
        if after <= self.writer.durable:
            self._reader.ask(question)
        else:
            self._asked.append((after, question))

    def poll(self) -> list[tuple[Question, Answer]]:
        """Return answers that came, and let questions go whose position is durable by now."""
        while self._asked and self._asked[0][0] <= self.writer.durable:
            self._reader.ask(self._asked.popleft()[1])
        answers = []
        while self._answers:
            answers.append(self._answers.popleft())
        return answers

    def size_bytes(self) -> int:
        """Return what the journal takes on disk, its log included."""
        total = 0
        for name in (FILE, FILE + "-wal"):
            try:
                total += (self._folder / name).stat().st_size
            except FileNotFoundError:
                continue
        return total

    def free_bytes(self) -> int:
        """Return what is free on the journal's disk."""
        return shutil.disk_usage(self._folder).free

    def close(self, within_s: float = 5.0) -> bool:
        """Finish the commit and let go of the files; False if the disk did not let us in time."""
        done = self.writer.close(within_s)
        done = self._reader.close(within_s) and done
        self._database.close()
        self._lock.close()
        return done

    def _deliver(self, question: Question, answer: Answer) -> None:
        self._answers.append((question, answer))
        self._wake()


def _stored_text(connection: sqlite3.Connection) -> dict[int, tuple[int, int]]:
    """Return, for open jobs, the last piece of their attempt's text that is on disk."""
    rows = connection.execute(
        "SELECT texts.number, texts.attempt, max(texts.last) FROM texts JOIN jobs ON jobs.number = texts.number"
        " AND jobs.attempt = texts.attempt WHERE jobs.finished_at_ms = 0 GROUP BY texts.number, texts.attempt"
    )
    return {number: (attempt, last) for number, attempt, last in rows}


def _refuse_network(folder: Path) -> None:
    """Raise NetworkDisk if a folder is not on a local disk."""
    real = str(folder.resolve())
    best = ""
    kind = ""
    for partition in psutil.disk_partitions(all=True):
        mount = partition.mountpoint
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, partition.fstype
    if any(name in kind.lower() for name in _NETWORK):
        raise NetworkDisk(folder, kind)


def _lock(folder: Path) -> IO[str]:
    """Take the folder for this process; the lock ends with the process, however it ends."""
    path = folder / _LOCK
    file = path.open("a+", encoding="ascii")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        pid = file.read().strip()
        file.close()
        raise JournalTaken(folder, pid) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _prepare(database: SqliteDatabase, path: Path) -> None:
    """Make the tables of a new journal; bring an older one up to date after a backup; refuse a newer one."""
    connection = connection_of(database)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    has_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0
    if version > VERSION:
        raise JournalNewer(path, version, VERSION)
    if has_tables and not version:
        raise JournalForeign(path, "it is a database, but not a journal of lmq")
    if not version:
        with database.bind_ctx(TABLES):
            database.create_tables(TABLES)
        for index in INDEXES:
            connection.execute(index)
        connection.execute(f"PRAGMA user_version={VERSION}")
        return
    for old in range(version, VERSION):
        keep = path.with_name(f"{path.name}.v{old}")
        if not keep.exists():
            shutil.copy2(path, keep)
        with database.atomic():
            MIGRATIONS[old](connection)
            connection.execute(f"PRAGMA user_version={old + 1}")
