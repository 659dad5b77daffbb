"""From an older journal to this one: one function per version, in order; the version is SQLite's `user_version`."""

import sqlite3
from collections.abc import Callable

VERSION = 2
"""The version this program writes."""


def _without_index_of_ids(connection: sqlite3.Connection) -> None:
    """Jobs are found by number: an index over random ids costs each new job as much as its row."""
    connection.execute("DROP INDEX IF EXISTS jobs_id")


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _without_index_of_ids}
"""From version -> what makes it the next version."""
