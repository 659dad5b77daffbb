"""From an older journal to this one: one function per version, in order; the version is SQLite's `user_version`."""

import sqlite3
from collections.abc import Callable

VERSION = 1
"""The version this program writes."""

MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {}
"""From version -> what makes it the next version."""
