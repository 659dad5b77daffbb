"""Put a backup in the place of the journal, offline. The result is another broker's life: new id, later epoch."""

import shutil
import sqlite3
import time
from pathlib import Path

from lmq_broker.core.recover import BROKER_ID, EPOCH
from lmq_broker.journal.errors import JournalForeign, JournalNewer
from lmq_broker.journal.migrations import VERSION
from lmq_broker.journal.store import FILE, _lock


def restore(backup: Path, folder: Path) -> Path | None:
    """Replace the journal in `folder` by a backup; return where the old one was put, if there was one.

    The epoch becomes the present Unix second, above any count of starts, so that no lease of the old life can ever
    match one of the new.

    Raises:
        JournalForeign: the backup is no journal.
        JournalNewer: a newer lmq wrote it.
        JournalTaken: a broker is running on the folder.
    """
    _check(backup)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = _lock(folder)
    try:
        journal = folder / FILE
        fresh = folder / (FILE + ".restoring")
        shutil.copy2(backup, fresh)
        connection = sqlite3.connect(fresh)
        with connection:
            connection.execute("DELETE FROM meta WHERE name = ?", (BROKER_ID,))
            epoch = str(int(time.time())).encode()
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (EPOCH, epoch))
        connection.close()
        aside = None
        if journal.exists():
            aside = folder / f"{FILE}.before-restore-{int(time.time())}"
            for ending in ("", "-wal", "-shm"):
                old = folder / (FILE + ending)
                if old.exists():
                    old.replace(aside.with_name(aside.name + ending))
        fresh.replace(journal)
        return aside
    finally:
        lock.close()


def _check(backup: Path) -> None:
    if not backup.is_file():
        raise JournalForeign(backup, "there is no such file")
    try:
        connection = sqlite3.connect(f"file:{backup}?mode=ro", uri=True)
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
        connection.close()
    except sqlite3.Error as error:
        raise JournalForeign(backup, str(error)) from error
    if version > VERSION:
        raise JournalNewer(backup, version, VERSION)
    if not version or verdict != "ok":
        raise JournalForeign(backup, verdict if version else "it is not a journal of lmq")
