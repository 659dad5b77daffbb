"""What the dialogue asks its driver to do, and how far it has got. Data only.

A *token* is whatever the driver wants to be told about; it comes back as it was given.
"""

from __future__ import annotations

import enum

import msgspec

from lmq_proto.errors import LmqError
from lmq_proto.messages import FromPeer

Token = object


class Send(msgspec.Struct, frozen=True):
    """Send a message now; drop it if that cannot be done, for then `disconnected` follows."""

    message: FromPeer
    body: bytes = b""


class Connect(msgspec.Struct, frozen=True):
    """Close the connection, if any, and make one to this address; then say `connected`."""

    url: str


class Listen(msgspec.Struct, frozen=True):
    """A broker has greeted: its PUB socket is at this port of its host (0: none), or at this local path."""

    url: str
    port: int
    path: str


class Resolve(msgspec.Struct, frozen=True):
    """The one answer a token waited for."""

    token: Token
    value: object


class Fail(msgspec.Struct, frozen=True):
    """The last thing a token hears."""

    token: Token
    error: LmqError


class Push(msgspec.Struct, frozen=True):
    """The next item of a token's stream: `TextPush` or `EventsPush`."""

    token: Token
    item: object


Instruction = Send | Connect | Listen | Resolve | Fail | Push


class Connection(enum.Enum):
    """How far the client has got with a broker."""

    DOWN = "down"
    GREETING = "greeting"
    UP = "up"
