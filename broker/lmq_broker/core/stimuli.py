"""What can happen to a broker."""

import msgspec

from lmq_broker.core.reads import ReadReply, ReadRequest
from lmq_broker.core.settings import Settings
from lmq_proto.ids import PeerId
from lmq_proto.messages import FromPeer


class Now(msgspec.Struct, frozen=True, gc=False):
    """The time, brought by the caller: `mono_ms` never jumps, `wall_ms` is Unix UTC and may."""

    mono_ms: int
    wall_ms: int


class Credential(msgspec.Struct, frozen=True, gc=False):
    """What the transport proves about a peer: `ipc` with the account the kernel names, or `loopback` with nothing."""

    transport: str
    account: str = ""
    is_owner: bool = False
    """The account runs the broker, or is root."""


class Received(msgspec.Struct, frozen=True):
    """A well-formed message came from a peer."""

    peer: PeerId
    credential: Credential
    message: FromPeer
    body: bytes = b""


class PeerGone(msgspec.Struct, frozen=True):
    """A send found that the connection is no longer there."""

    peer: PeerId


class PeerClogged(msgspec.Struct, frozen=True):
    """A send found the peer's pipe full: it has not read for long, in spite of credit."""

    peer: PeerId


class Loaded(msgspec.Struct, frozen=True):
    """The reading thread has what a `Read` effect asked for."""

    request: ReadRequest
    reply: ReadReply


class DiskChanged(msgspec.Struct, frozen=True):
    """The journal's disk became too full to go on (`trouble` says how), or is well again (empty)."""

    trouble: str
    free_bytes: int
    floor_bytes: int


class SettingsChanged(msgspec.Struct, frozen=True):
    """The configuration file was read again."""

    settings: Settings


class Stop(msgspec.Struct, frozen=True):
    """The daemon is going down: accept nothing more, tell the peers."""


class HostFacts(msgspec.Struct, frozen=True):
    """What only the shell can know about the broker's process and disk, for `health` (once a second)."""

    journal_path: str = ""
    journal_bytes: int = 0
    journal_free_bytes: int = 0
    journal_floor_bytes: int = 0
    commit_p50_us: int = 0
    commit_p99_us: int = 0
    memory_bytes: int = 0
    events_port: int = 0
    events_path: str = ""


class TurnEnded(msgspec.Struct, frozen=True):
    """All that waited has been taken in: dispatch, push, and say when to wake."""


Stimulus = (
    Received | PeerGone | PeerClogged | Loaded | DiskChanged | SettingsChanged | HostFacts | Stop | TurnEnded
)
