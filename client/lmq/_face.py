"""What `Client` and `AsyncClient` are made of alike: settings, the link, time limits. No waiting here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from lmq import config
from lmq._inbox import Patience
from lmq._link import Engine, Link
from lmq._version import SOFTWARE

COMMAND_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
"""A broker that starts is there within a second or two: who waits longer has none, and should be told."""


class Face:
    """The base of both clients.

    Args:
        url: one broker address or several, tried in turn; None: `LMQ_URL`, the config file, or the local broker.
        user: the name to claim; counts over loopback TCP in open mode only.
        as_user: on whose behalf jobs are submitted.
        timeout_s: bound on each command; waiting for a job's end has none unless told.
        connect_timeout_s: bound on waiting for the very first contact, for every kind of call; None: 10 s, or
            `timeout_s` where that is less.

    Raises:
        BadConfig: the configuration file or an address is unfit.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        user: str | None = None,
        as_user: str | None = None,
        timeout_s: float = COMMAND_TIMEOUT_S,
        connect_timeout_s: float | None = None,
    ) -> None:
        settings = config.load(url, user, as_user)
        self._link = Link(settings.urls, settings.user, SOFTWARE)
        self._owns_link = True
        self._as_user = settings.as_user
        self._timeout_s = timeout_s
        self._connect_timeout_s = (
            min(timeout_s, CONNECT_TIMEOUT_S) if connect_timeout_s is None else connect_timeout_s
        )

    def as_user(self, user: str) -> Self:
        """Return a client that submits on behalf of a user, over the same connection; closing it does nothing."""
        clone = type(self).__new__(type(self))
        clone._link = self._link
        clone._owns_link = False
        clone._as_user = user
        clone._timeout_s = self._timeout_s
        clone._connect_timeout_s = self._connect_timeout_s
        return clone

    @property
    def url(self) -> str:
        """The broker address in use, or the first to try."""
        return self._link.url

    def _engine(self) -> Engine:
        return self._link.engine()

    def _patience(self, what: str, timeout_s: float | None) -> Patience:
        return Patience(self._engine(), what, timeout_s, self._connect_timeout_s)


def share_docs(reader: type, writer: type) -> None:
    """Give the methods of one class the sentences of their namesakes in another, where they have none."""
    for name, member in vars(reader).items():
        model = vars(writer).get(name.replace("__a", "__"))
        if callable(member) and not member.__doc__ and model is not None:
            member.__doc__ = model.__doc__
