"""Many rows in few statements: each step of a statement gives the interpreter away and has to wait to get it back."""

from collections.abc import Sequence
from itertools import chain
from sqlite3 import Connection

_AT_ONCE = 32
"""Rows of one statement; larger ones cost as much and are longer in the way."""


class Rows:
    """A statement that takes rows of so many values, and stands for any number of them."""

    def __init__(self, statement: str, width: int) -> None:
        """Take a statement with `{}` in the place of its rows."""
        row = "(" + ",".join("?" * width) + ")"
        self._one = statement.format(row)
        self._many = statement.format(",".join([row] * _AT_ONCE))

    def write(self, connection: Connection, rows: Sequence[Sequence[object]]) -> None:
        """Carry it out for all rows, in their order."""
        whole = len(rows) - len(rows) % _AT_ONCE
        for at in range(0, whole, _AT_ONCE):
            connection.execute(self._many, list(chain.from_iterable(rows[at : at + _AT_ONCE])))
        if whole < len(rows):
            connection.executemany(self._one, rows[whole:])
