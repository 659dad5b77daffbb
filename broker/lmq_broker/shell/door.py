"""The sockets: ROUTER, PUB and the ZAP handler; who is at the other end, frames in, frames out.

Behind the options: a peer could abort a ROUTER by claiming its next automatic routing id, so the ids start at a random
number and a peer that sets one is cut off; without MANDATORY a send to a full or absent peer is dropped silently.
"""

import contextlib
import ctypes
import os
import pwd
import resource
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import zmq

from lmq_broker.core.stimuli import Credential
from lmq_proto import bounds
from lmq_proto.ids import PeerId

_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_DOMAIN = b"lmq"
_ZAP_ENFORCE_DOMAIN = 93
"""The option's number: its name is missing where libzmq was built without drafts, yet it works."""
_HWM = 10_000
"""Messages in a peer's pipe: room for the replies to a window of submits that one commit lets go at once."""
_MORE = int(zmq.SNDMORE)
_MORE_AT_ONCE = int(zmq.SNDMORE | zmq.NOBLOCK)
"""Plain numbers: making the flag anew costs half as much as the send."""
_HEARTBEAT_MS, _SILENT_MS = 5000, 15000
_IPC = b"ipc:"
_LOOPBACK = b"loopback"
_MOST_PARTS = 16
_FILES = 65_536


class SendFailed(Exception):
    """A message could not be sent to a peer: `gone`, or its pipe is full."""

    def __init__(self, *, gone: bool) -> None:
        super().__init__("gone" if gone else "full")
        self.gone = gone


class NotLocal(ValueError):
    """An address that open mode does not bind."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"{url} is reachable from other machines, which needs keys, and this version has none yet; "
            "use tcp://127.0.0.1:PORT or ipc://PATH"
        )


class NotOurs(ValueError):
    """The folder of a socket belongs to another account, which could put its own socket there."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"{folder} belongs to another account; give --listen ipc://PATH in a folder of your own"
        )


def seed_routing_ids() -> None:
    """Let automatic routing ids start at a random number; before the first socket of the process."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).srand(int.from_bytes(os.urandom(4), "big"))


def raise_file_limit() -> int:
    """Allow this process as many open files (one for each connection) as the system lets it; return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Door:
    """All sockets of the broker. One thread uses it."""

    def __init__(self, listen: Sequence[str], events: Sequence[str], ipc_mode: int) -> None:
        for url in (*listen, *events):
            if not is_local(url):
                raise NotLocal(url)
        seed_routing_ids()
        raise_file_limit()
        self._context = zmq.Context()
        self._owner = os.getuid()
        self._accounts: dict[str, Credential] = {}
        self._ipc_paths: list[Path] = []
        self._ipc_mode = ipc_mode
        try:
            self.zap = self._context.socket(zmq.REP)
            self.zap.bind(_ZAP_ENDPOINT)
            self.router = self._context.socket(zmq.ROUTER)
            self.router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._configure(self.router)
            self.pub = self._context.socket(zmq.PUB)
            self._configure(self.pub)
            self.urls = [self._bind(self.router, url) for url in listen]
            self.events_urls = [self._bind(self.pub, url) for url in events]
        except (zmq.ZMQError, OSError, NotOurs):
            self.close(0)
            raise

    def _configure(self, sock: "zmq.Socket[bytes]") -> None:
        for option, value in (
            (zmq.SNDHWM, _HWM), (zmq.RCVHWM, _HWM), (zmq.LINGER, 0), (zmq.BACKLOG, 1024),
            (zmq.HANDSHAKE_IVL, 5000), (zmq.HEARTBEAT_IVL, _HEARTBEAT_MS), (zmq.HEARTBEAT_TIMEOUT, _SILENT_MS),
            (zmq.HEARTBEAT_TTL, _SILENT_MS), (zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 60),
            (zmq.TCP_KEEPALIVE_INTVL, 10), (zmq.TCP_KEEPALIVE_CNT, 3), (zmq.MAXMSGSIZE, bounds.BODY_BYTES + 4096),
            (_ZAP_ENFORCE_DOMAIN, 1),
        ):  # fmt: skip
            sock.setsockopt(option, value)
        sock.zap_domain = _ZAP_DOMAIN

    def _bind(self, sock: "zmq.Socket[bytes]", url: str) -> str:
        """Bind an address and return it as peers must write it (port 0 or * becomes the real one)."""
        if url.startswith("ipc://"):
            path = Path(url.removeprefix("ipc://"))
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
            if path.parent.stat().st_uid not in (0, self._owner):
                raise NotOurs(path.parent)
            sock.bind(url)
            path.chmod(self._ipc_mode)
            self._ipc_paths.append(path)
            return url
        sock.bind(url.removesuffix(":0") + ":*" if url.endswith(":0") else url)
        return cast(bytes, sock.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()  # this option is bytes

    # --- who ---------------------------------------------------------------------------------------------------------

    def answer_zap(self) -> None:
        """Answer the handshakes that wait: over ipc the account the kernel names, over loopback anyone."""
        while cast(int, self.zap.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            frames = self.zap.recv_multipart()
            user = b""
            if len(frames) >= 6 and frames[0] == b"1.0" and frames[2] == _ZAP_DOMAIN and frames[5] == b"NULL":
                address = frames[3].decode("ascii", "replace")
                parts = address.split(":")
                if len(parts) == 4 and parts[1].isdigit():
                    user = _IPC + parts[1].encode()
                elif address == "::1" or address.startswith(("127.", "::ffff:127.")):
                    user = _LOOPBACK
            request_id = frames[1] if len(frames) > 1 else b""
            code, text = (b"200", b"") if user else (b"400", b"not permitted")
            self.zap.send_multipart([b"1.0", request_id, code, text, user, b""])

    def credential(self, user_id: str) -> Credential | None:
        """Return what a User-Id of ours says about a peer; None for any other."""
        known = self._accounts.get(user_id)
        if known is None:
            if user_id == _LOOPBACK.decode():
                known = Credential("loopback")
            elif user_id.startswith(_IPC.decode()) and user_id[len(_IPC) :].isdigit():
                uid = int(user_id[len(_IPC) :])
                known = Credential("ipc", _account(uid), uid in (0, self._owner))
            else:
                return None
            self._accounts[user_id] = known
        return known

    # --- frames ------------------------------------------------------------------------------------------------------

    def receive(self) -> "tuple[PeerId, Credential | None, list[bytes]] | None":
        """Return the next message, or None if nothing waits.

        The credential is None for a peer that may not speak: one that ZAP did not see, that set its own routing id, or
        that sent a message of too many parts. Such a connection is cut.
        """
        try:
            frame = self.router.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        peer = PeerId(frame.bytes)
        frames: list[bytes] = []
        credential = None
        first: zmq.Frame | None = None
        parts = 0
        while frame.more:
            frame = self.router.recv(copy=False)
            parts += 1
            if first is None:
                first = frame
                credential = self._credential_of(frame)
            if parts <= _MOST_PARTS:
                frames.append(frame.bytes)
        if first is not None and (credential is None or parts > _MOST_PARTS or not _is_automatic(peer)):
            _cut(first)
            credential = None
        return peer, credential, frames

    def _credential_of(self, frame: zmq.Frame) -> Credential | None:
        """Return who sent a frame, by what ZAP said at the handshake."""
        try:
            return self.credential(str(frame.get("User-Id")))
        except zmq.ZMQError:
            return None

    def send(self, peer: PeerId, frames: Sequence[bytes]) -> None:
        """Send a message without waiting.

        Raises:
            SendFailed: the peer is gone, or does not read.
        """
        router = self.router
        try:
            router.send(peer, _MORE_AT_ONCE)
        except zmq.Again as error:
            raise SendFailed(gone=False) from error
        except zmq.ZMQError as error:
            raise SendFailed(gone=True) from error
        for frame in frames[:-1]:
            router.send(frame, _MORE)
        router.send(frames[-1])

    def publish(self, topic: str, frames: Sequence[bytes]) -> None:
        """Put a latest value on the PUB socket; who does not read misses it."""
        self.pub.send_multipart([topic.encode(), *frames])

    def close(self, linger_ms: int) -> None:
        """Close all sockets, giving what is under way a moment."""
        for name in ("router", "pub", "zap"):
            sock = getattr(self, name, None)
            if sock is not None:
                sock.close(linger_ms)
        self._context.term()
        for path in self._ipc_paths:
            path.unlink(missing_ok=True)


def _is_automatic(peer: PeerId) -> bool:
    """Tell whether a routing id looks like one that the ROUTER gave: a zero and a 32-bit counter.

    The property in which a peer tells its own id reads as empty when it begins with a zero, so the id itself is looked
    at. One of five bytes with a zero in front cannot be told from ours; where ours are, no peer knows.
    """
    return len(peer) == 5 and peer[0] == 0


def is_local(url: str) -> bool:
    """Tell whether an address can be reached from this machine only."""
    if url.startswith("ipc://"):
        return True
    host = url.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return url.startswith("tcp://") and (host in ("localhost", "::1") or host.startswith("127."))


def _account(uid: int) -> str:
    """Return an account's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"


def _cut(frame: zmq.Frame) -> None:
    """Cut the connection that a frame came over, if its descriptor still is that connection."""
    try:
        copy = os.dup(frame.get(zmq.SRCFD))
    except (zmq.ZMQError, OSError):
        return
    with socket.socket(fileno=copy) as connection, contextlib.suppress(OSError):
        connection.getpeername()
        connection.shutdown(socket.SHUT_RDWR)
