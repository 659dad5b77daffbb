"""Between frames and messages. Four frames: protocol version, verb, header (MessagePack map), body (opaque bytes).

No byte sequence makes `decode` raise anything but `ProtocolError`, and decoding is bounded by the sizes in `bounds`.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

from lmq_proto import bounds
from lmq_proto.errors import ProtocolError, TooLarge, UpgradeRequired
from lmq_proto.messages import FROM_PEER, ON_PUB, TO_PEER, FromPeer, Message, OnPub, ToPeer

VERSION_FRAME = b"LMQ%d" % bounds.PROTOCOL_NEWEST

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


class VersionRefused(ProtocolError):
    """A well-formed message of a protocol version that is not spoken here; answer it with `UpgradeRequired`."""

    code = UpgradeRequired.code

    def __init__(self, spoken: int) -> None:
        super().__init__(f"protocol version {spoken}")
        self.spoken = spoken

    def for_peer(self) -> UpgradeRequired:
        """Return the error to send."""
        return UpgradeRequired(self.spoken, bounds.PROTOCOL_OLDEST, bounds.PROTOCOL_NEWEST)


class Table(Generic[M]):
    """The messages one side may send: verb frames to decoders."""

    def __init__(self, kinds: Mapping[str, type[M]]) -> None:
        self._decoders = {verb.encode(): msgspec.msgpack.Decoder(kind) for verb, kind in kinds.items()}

    def decode(self, frames: Sequence[bytes]) -> tuple[M, bytes]:
        """Return (header, body) of four frames.

        Raises:
            UpgradeRequired: the version frame names a protocol that is not spoken here.
            ProtocolError: anything else is wrong with the frames.
        """
        if len(frames) != bounds.FRAMES:
            raise ProtocolError(f"{len(frames)} frames instead of {bounds.FRAMES}")
        version, verb, header, body = frames
        if version != VERSION_FRAME:
            _refuse_version(version)
        decoder = self._decoders.get(verb)
        if decoder is None:
            raise ProtocolError(f"unknown verb {verb[: bounds.VERB_BYTES].decode('ascii', 'replace')!r}")
        if len(header) > bounds.HEADER_BYTES:
            raise ProtocolError(f"header of {len(header)} bytes, the limit is {bounds.HEADER_BYTES}")
        if len(body) > bounds.BODY_BYTES:
            raise ProtocolError(f"body of {len(body)} bytes, the limit is {bounds.BODY_BYTES}")
        try:
            return decoder.decode(header), body
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise ProtocolError(f"{verb.decode()}: {error}") from error


FROM_PEER_TABLE: Table[FromPeer] = Table(FROM_PEER)
TO_PEER_TABLE: Table[ToPeer] = Table(TO_PEER)
ON_PUB_TABLE: Table[OnPub] = Table(ON_PUB)

_VERBS: dict[type[Message], bytes] = {
    kind: verb.encode() for table in (FROM_PEER, TO_PEER, ON_PUB) for verb, kind in table.items()
}


def encode(message: Message, body: bytes = b"") -> list[bytes]:
    """Return the four frames of a message."""
    return [VERSION_FRAME, _VERBS[type(message)], _encoder.encode(message), body]


def verb_of(message: Message) -> str:
    """Return the verb under which a message travels."""
    return _VERBS[type(message)].decode()


def cut(body: bytes, lengths: Sequence[int]) -> list[bytes]:
    """Return the parts of a body by their lengths.

    Raises:
        ProtocolError: a length is negative, or they do not add up to the body.
    """
    parts = []
    start = 0
    for length in lengths:
        if length < 0:
            raise ProtocolError(f"a length of {length} bytes")
        parts.append(body[start : start + length])
        start += length
    if start != len(body):
        raise ProtocolError(f"lengths add up to {start} bytes, the body has {len(body)}")
    return parts


def _refuse_version(frame: bytes) -> None:
    """Raise what fits a version frame that is not ours, unless it is of a version that is spoken."""
    if frame[:3] != b"LMQ" or not frame[3:].isdigit() or len(frame) > 8:
        raise ProtocolError(f"no lmq message: version frame {frame[:16]!r}")
    spoken = int(frame[3:])
    if not bounds.PROTOCOL_OLDEST <= spoken <= bounds.PROTOCOL_NEWEST:
        raise VersionRefused(spoken)


def check_payload(field: str, size: int, limit: int) -> None:
    """Refuse a payload or result that is over its size.

    Raises:
        TooLarge: it is.
    """
    if size > limit:
        raise TooLarge(field, size, limit)
