"""From an older journal to this one: one function per version, in order; the version is SQLite's `user_version`."""

import sqlite3
from collections.abc import Callable

VERSION = 3
"""The version this program writes."""


def _without_index_of_ids(connection: sqlite3.Connection) -> None:
    """Jobs are found by number: an index over random ids costs each new job as much as its row."""
    connection.execute("DROP INDEX IF EXISTS jobs_id")


def _with_usage(connection: sqlite3.Connection) -> None:
    """Daily sums begin; of jobs that ended before, their tokens are not known."""
    connection.execute(
        'CREATE TABLE IF NOT EXISTS "usage" ("day" INTEGER NOT NULL, "user" TEXT NOT NULL, "model" TEXT NOT NULL,'
        ' "task_type" TEXT NOT NULL, "done" INTEGER NOT NULL, "dead" INTEGER NOT NULL, "cancelled" INTEGER NOT NULL,'
        ' "expired" INTEGER NOT NULL, "prompt_tokens" INTEGER NOT NULL, "output_tokens" INTEGER NOT NULL,'
        ' "engine_ms" INTEGER NOT NULL, "waits" BLOB NOT NULL, "runs" BLOB NOT NULL,'
        ' PRIMARY KEY ("day", "user", "model", "task_type")) WITHOUT ROWID'
    )


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _without_index_of_ids, 2: _with_usage}
"""From version -> what makes it the next version."""
