"""Many rows in few statements: each step of a statement gives the interpreter away and has to wait to get it back."""

from collections.abc import Sequence
from itertools import chain
from sqlite3 import Connection

_AT_ONCE = (128, 64, 32, 16, 8, 4, 2, 1)
"""Rows of one statement; more cost as much each, and have more values than an old SQLite takes."""


class Rows:
    """A statement that takes rows of so many values, and stands for any number of them."""

    def __init__(self, statement: str, width: int) -> None:
        """Take a statement with `{}` in the place of its rows."""
        row = "(" + ",".join("?" * width) + ")"
        self._statements = [(count, statement.format(",".join([row] * count))) for count in _AT_ONCE]

    def write(self, connection: Connection, rows: Sequence[Sequence[object]]) -> None:
        """Carry it out for all rows, in their order."""
        at = 0
        for count, statement in self._statements:
            while len(rows) - at >= count:
                connection.execute(statement, list(chain.from_iterable(rows[at : at + count])))
                at += count
