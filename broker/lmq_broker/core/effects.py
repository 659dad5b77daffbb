"""What the core can ask the shell for."""

import msgspec

from lmq_broker.core.reads import ReadRequest
from lmq_broker.core.records import Record
from lmq_proto.ids import PeerId
from lmq_proto.messages import OnPub, ToPeer, Work


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send a message to a peer once the journal is durable up to `after` (0: at once)."""

    peer: PeerId
    message: ToPeer
    body: bytes = b""
    after: int = 0


class SendWork(msgspec.Struct, frozen=True):
    """Send leases to a worker with the payloads of these jobs, in order."""

    peer: PeerId
    message: Work
    numbers: list[int]
    after: int = 0


class Publish(msgspec.Struct, frozen=True):
    """Put a latest value on the PUB socket."""

    topic: str
    message: OnPub


class Read(msgspec.Struct, frozen=True):
    """Ask the reading thread, once the journal is durable up to `after`."""

    request: ReadRequest
    after: int


class WakeAt(msgspec.Struct, frozen=True):
    """End a turn at this monotonic time even if nothing happens."""

    mono_ms: int


class Log(msgspec.Struct, frozen=True):
    """One line for the operator's log: a fixed event name and its fields."""

    name: str
    fields: dict[str, str | int | float]
    warning: bool = False


Effect = Record | Send | SendWork | Publish | Read | WakeAt | Log
