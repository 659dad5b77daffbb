"""The one I/O thread of a client: it owns the sockets and the dialogue, and nobody else touches either.

Callers, threads or coroutines, post what they want into a deque and wake the thread at most once per burst; it hands
answers into their inboxes and wakes each once per burst. One thread for both faces, and not asyncio for the async
one, because the conversation must go on (heartbeats, acknowledgements, credit) while a caller's event loop is blocked
by a long step, has not started, or has ended; because Windows' default event loop cannot watch ZeroMQ sockets; and so
that an AsyncClient may be made in one loop and used in another, as in tests, notebooks and web servers.

The thread starts on first use, is a daemon, and is left behind by a fork: the child makes its own on its first use.
Nothing here thinks about jobs: that is `_dialogue`.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, cast

from lmq._dialogue import Dialogue
from lmq._inbox import Inbox, Receiver, wake
from lmq._instructions import Connect, Fail, Instruction, Listen, Push, Resolve, Send
from lmq.errors import ClientClosed
from lmq_proto import bounds
from lmq_proto.codec import ON_PUB_TABLE, TO_PEER_TABLE, VersionRefused, encode
from lmq_proto.errors import ProtocolError
from lmq_proto.messages import Bye, FromPeer, OnPub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import zmq

log = logging.getLogger("lmq")
# Without this, Python prints warnings of a library whose program has set up no logging.
log.addHandler(logging.NullHandler())

LONGEST_WAIT_MS = 1000
"""Between two turns of the loop: bounds what a wake-up lost to an interrupt in the middle of `post` costs."""
MESSAGES_PER_TURN = 300
POSTS_PER_TURN = 10_000
CLOSE_WAIT_S = 1.0
"""How long closing waits for what is queued to leave."""
JOIN_WAIT_S = 3.0

# Of facts measured with libzmq 4.3.5: see docs. Milliseconds.
RECONNECT_MS = 100
RECONNECT_MAX_MS = 5000
CONNECT_TIMEOUT_MS = 3000
HANDSHAKE_MS = 10_000
HEARTBEAT_MS = 5000
HEARTBEAT_TIMEOUT_MS = 15_000
HIGH_WATER = 1000
"""Messages; a backstop, since credit bounds what is under way."""


class Watch:
    """The latest values of some PUB topics. Its inbox is told which topic is new; `take` gives the value."""

    def __init__(self, inbox: Inbox, topics: Sequence[bytes]) -> None:
        self.inbox = inbox
        self.topics = tuple(topics)
        self._latest: dict[bytes, OnPub] = {}
        self._lock = threading.Lock()

    def offer(self, topic: bytes, message: OnPub, touched: set[Inbox]) -> None:
        """Keep a value, in place of an older one that was not taken."""
        if not topic.startswith(self.topics):
            return
        with self._lock:
            fresh = topic not in self._latest
            self._latest[topic] = message
            if fresh:
                self.inbox.put(topic, touched)

    def take(self, topic: bytes) -> OnPub:
        """Return the value of a topic that the inbox named."""
        with self._lock:
            return self._latest.pop(topic)


class Engine:
    """The thread and all that it owns. `post`, `post_quietly` and `stop` may be called from anywhere."""

    def __init__(self, urls: Sequence[str], user: str, software: str) -> None:
        self.dialogue = Dialogue(urls, os.urandom(16), user, software)
        self.pid = os.getpid()
        self.closed = False
        self._posts: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._signalled = False
        self._stopping = False
        self._hear, self._ring = socket.socketpair()
        self._hear.setblocking(False)
        self._ring.setblocking(False)
        self._touched: set[Inbox] = set()
        self._outgoing: deque[Send] = deque()
        self._watches: set[Watch] = set()
        self._topics: dict[bytes, int] = {}
        self._pub_url = ""
        self._sub_url = ""
        self._wants_room = False
        self._dealer: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._sub: zmq.Socket[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="lmq-client", daemon=True)
        self._thread.start()

    # --- from any thread -----------------------------------------------------------------------------------------

    def post(self, act: Callable[..., None], *args: object) -> None:
        """Have the thread call `act(*args)` soon; `act` is a method of `dialogue`, or `watch` or `unwatch`.

        Raises:
            ClientClosed: the thread has ended, or ends now.
        """
        self._posts.append((act, args))
        if not self._signalled:
            self._signalled = True
            try:
                self._ring.send(b"\0")
            except OSError:
                pass  # full: the thread wakes anyway; closed: the next lines say so
        if self.closed:
            # Asked after the post was made: the thread sets it first and then looks for posts a last time.
            raise ClientClosed

    def post_quietly(self, act: Callable[..., None], *args: object) -> None:
        """Have the thread call `act(*args)` when it next wakes; safe in finalizers."""
        self._posts.append((act, args))

    def stop(self) -> None:
        """Have the thread end; what waits fails with `ClientClosed`."""
        try:
            self.post(self._stop)
        except ClientClosed:
            pass

    def abandon(self) -> None:
        """In the child of a fork: let go of what the parent's thread uses. ZeroMQ's own sockets know of the fork."""
        self.closed = True
        self._hear.close()
        self._ring.close()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread, unless called on it."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def welcomes(self) -> int:
        """How often a broker has greeted this client."""
        return self.dialogue.welcomes

    @property
    def is_up(self) -> bool:
        """Whether a broker knows this client now."""
        return self.dialogue.connection.value == "up"

    @property
    def url(self) -> str:
        """The address in use."""
        return self.dialogue.url

    # --- in the thread -------------------------------------------------------------------------------------------

    def watch(self, watch: Watch) -> None:
        """Hand it the latest values of its topics from now on."""
        self._watches.add(watch)
        for topic in watch.topics:
            self._topics[topic] = self._topics.get(topic, 0) + 1
            if self._topics[topic] == 1 and self._sub is not None:
                self._sub.subscribe(topic)
        self._open_sub()

    def unwatch(self, watch: Watch) -> None:
        """Stop that; nothing if it was not watching."""
        if watch not in self._watches:
            return
        self._watches.remove(watch)
        for topic in watch.topics:
            self._topics[topic] -= 1
            if not self._topics[topic]:
                del self._topics[topic]
                if self._sub is not None:
                    self._sub.unsubscribe(topic)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        import zmq
        from zmq.utils.monitor import parse_monitor_message

        self._zmq = zmq
        self._parse_event = parse_monitor_message
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._poller.register(self._hear.fileno(), zmq.POLLIN)
        try:
            self._carry_out(self.dialogue.start(_now_ms()))
            while not self._stopping:
                self._turn()
            self._say_bye()
        finally:
            # Whatever ended the loop, nobody may wait for ever.
            self.closed = True
            while self._posts:
                self._apply_posts()
            self._carry_out([i for i in self.dialogue.abort(ClientClosed()) if isinstance(i, Fail)])
            for watch in self._watches:
                watch.inbox.fail(ClientClosed(), self._touched)
            self._wake()
            self._close_dealer()
            self._close_sub()
            self._hear.close()
            self._ring.close()
            self._context.term()

    def _turn(self) -> None:
        """Wait for something, take all that is there, do what follows from it."""
        zmq = self._zmq
        ready = dict(self._poller.poll(self._wait_ms()))
        # Before the posts are taken, so that what is posted meanwhile rings again.
        self._signalled = False
        if self._hear.fileno() in ready:
            _drain(self._hear)
        self._apply_posts()
        if self._monitor is not None and self._monitor in ready:
            self._hear_monitor()
        if self._dealer is not None and ready.get(self._dealer, 0) & zmq.POLLIN:
            self._hear_broker()
        if self._sub is not None and self._sub in ready:
            self._hear_pub()
        self._carry_out(self.dialogue.tick(_now_ms()))
        self._send_outgoing()
        self._wake()

    def _wait_ms(self) -> int:
        if self._posts:
            return 0
        due_ms = self.dialogue.next_due_ms
        if due_ms is None:
            return LONGEST_WAIT_MS
        return max(0, min(LONGEST_WAIT_MS, due_ms - _now_ms()))

    def _apply_posts(self) -> None:
        posts = self._posts
        for _ in range(min(len(posts), POSTS_PER_TURN)):
            act, args = posts.popleft()
            act(*args)

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        touched = self._touched
        for instruction in instructions:
            match instruction:
                case Resolve(token, value) | Push(token, value):
                    cast(Receiver, token).put(value, touched)
                case Send():
                    self._outgoing.append(instruction)
                case Fail(token, error):
                    cast(Receiver, token).fail(error, touched)
                case Connect(url):
                    self._connect(url)
                case Listen():
                    self._pub_url = pub_url(instruction)
                    self._open_sub()

    def _wake(self) -> None:
        if self._touched:
            wake(self._touched)
            self._touched.clear()

    # --- the DEALER ----------------------------------------------------------------------------------------------

    def _connect(self, url: str) -> None:
        zmq = self._zmq
        self._close_dealer()
        self._outgoing.clear()
        dealer = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IMMEDIATE, 1),
            (zmq.SNDHWM, HIGH_WATER),
            (zmq.RCVHWM, HIGH_WATER),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS),
            (zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS),
            (zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.MAXMSGSIZE, bounds.BODY_BYTES),
        ):
            dealer.setsockopt(option, value)
        self._monitor = dealer.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED
        )
        self._dealer = dealer
        self._wants_room = False
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        try:
            dealer.connect(url)
        except zmq.ZMQError as error:
            # An address that can never be: the dialogue turns to the next one after its wait.
            log.warning("connect_failed", extra={"url": url, "error": str(error)})

    def _close_dealer(self, linger_ms: int = 0) -> None:
        if self._dealer is not None:
            self._poller.unregister(self._dealer)
            self._dealer.disable_monitor()
            self._dealer.close(linger=linger_ms)
        if self._monitor is not None:
            self._poller.unregister(self._monitor)
            self._monitor.close(linger=0)
        self._dealer = self._monitor = None

    def _hear_monitor(self) -> None:
        zmq = self._zmq
        while self._monitor is not None:
            try:
                parts = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event = self._parse_event(parts)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._outgoing.clear()
                self._carry_out(self.dialogue.connected(_now_ms()))
            elif event == zmq.EVENT_DISCONNECTED:
                self._outgoing.clear()
                self._carry_out(self.dialogue.disconnected(_now_ms()))
            elif event == zmq.EVENT_CONNECT_RETRIED:
                self.dialogue.unreachable(_now_ms())

    def _hear_broker(self) -> None:
        zmq = self._zmq
        now_ms = _now_ms()
        for _ in range(MESSAGES_PER_TURN):
            if self._dealer is None:
                return
            try:
                frames = _receive(self._dealer, zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message, body = TO_PEER_TABLE.decode(frames)
            except VersionRefused as error:
                self._carry_out(self.dialogue.abort(error.for_peer()))
                continue
            except ProtocolError as error:
                log.warning("message_dropped", extra={"url": self.url, "error": error.message})
                continue
            self._carry_out(self.dialogue.received(message, body, now_ms))

    def _send_outgoing(self) -> None:
        """Send what is queued, as far as the socket takes it; the rest waits for room."""
        zmq = self._zmq
        dealer = self._dealer
        if dealer is None:
            self._outgoing.clear()
            return
        while self._outgoing:
            send = self._outgoing[0]
            frames = encode(send.message, send.body)
            try:
                dealer.send(frames[0], zmq.NOBLOCK | zmq.SNDMORE)
            except zmq.Again:
                self._want_room(True)
                return
            self._outgoing.popleft()
            dealer.send(frames[1], zmq.SNDMORE)
            dealer.send(frames[2], zmq.SNDMORE)
            dealer.send(frames[3])
        self._want_room(False)

    def _want_room(self, wants: bool) -> None:
        """Be woken, or not, when the DEALER can take more."""
        if wants != self._wants_room and self._dealer is not None:
            self._wants_room = wants
            self._poller.register(self._dealer, self._zmq.POLLIN | (self._zmq.POLLOUT if wants else 0))

    def _say_bye(self) -> None:
        """Let what is queued leave, then say that this client goes."""
        self._apply_posts()
        self._carry_out(self.dialogue.tick(_now_ms()))
        if self.is_up:
            self._outgoing.append(Send(cast(FromPeer, Bye())))
        deadline_s = time.monotonic() + CLOSE_WAIT_S
        while self._outgoing and self._dealer is not None and time.monotonic() < deadline_s:
            self._send_outgoing()
            if self._outgoing:
                self._poller.poll(50)
        # The context waits this long at most for what ZeroMQ still holds.
        self._close_dealer(int(CLOSE_WAIT_S * 1000))

    # --- the SUB -------------------------------------------------------------------------------------------------

    def _open_sub(self) -> None:
        """Connect the SUB socket to the broker that greeted last, if anybody watches."""
        if not self._watches or not self._pub_url:
            return
        zmq = self._zmq
        if self._sub is not None:
            if self._sub_url == self._pub_url:
                return
            self._close_sub()
        self._sub_url = self._pub_url
        self._sub = self._context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.LINGER, 0)
        self._sub.setsockopt(zmq.RCVHWM, HIGH_WATER)
        self._sub.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        self._sub.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        self._sub.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        self._sub.setsockopt(zmq.MAXMSGSIZE, bounds.HEADER_BYTES)
        for topic in self._topics:
            self._sub.subscribe(topic)
        self._sub.connect(self._pub_url)
        self._poller.register(self._sub, zmq.POLLIN)

    def _close_sub(self) -> None:
        if self._sub is not None:
            self._poller.unregister(self._sub)
            self._sub.close(linger=0)
            self._sub = None

    def _hear_pub(self) -> None:
        """Take what there is, keep the latest of each topic, and hand it to who watches."""
        zmq = self._zmq
        latest: dict[bytes, list[bytes]] = {}
        assert self._sub is not None
        for _ in range(MESSAGES_PER_TURN):
            try:
                topic, *frames = _receive(self._sub, zmq.NOBLOCK)
            except zmq.Again:
                break
            latest[topic] = frames
        for topic, frames in latest.items():
            try:
                message, _ = ON_PUB_TABLE.decode(frames)
            except ProtocolError as error:
                log.warning("publication_dropped", extra={"url": self._pub_url, "error": error.message})
                continue
            for watch in self._watches:
                watch.offer(topic, message, self._touched)


class Link:
    """A client's hold on its engine: made on first use, made anew after a fork, ended with the last client.

    Clients of one connection (`as_user`) and their handles share it.
    """

    def __init__(self, urls: Sequence[str], user: str, software: str) -> None:
        self.urls = tuple(urls)
        self._user = user
        self._software = software
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._closed = False
        _LINKS.add(self)

    def engine(self) -> Engine:
        """Return the running engine.

        Raises:
            ClientClosed: the client was closed.
        """
        engine = self._engine
        if engine is not None and not engine.closed and engine.pid == os.getpid():
            return engine
        with self._lock:
            if self._closed:
                raise ClientClosed
            if self._engine is None or self._engine.closed or self._engine.pid != os.getpid():
                self._engine = Engine(self.urls, self._user, self._software)
            return self._engine

    def close(self) -> None:
        """End the connection; whoever waits gets `ClientClosed`. A second time does nothing."""
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None and engine.pid == os.getpid():
            engine.stop()
            engine.join(JOIN_WAIT_S)

    @property
    def url(self) -> str:
        """The address in use, or the first to try."""
        engine = self._engine
        return self.urls[0] if engine is None else engine.url

    def leave_to_parent(self) -> None:
        """In the child of a fork: forget the engine, whose thread is in the parent."""
        self._lock = threading.Lock()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.abandon()

    def __del__(self) -> None:
        engine = self._engine
        if engine is not None and not engine.closed and engine.pid == os.getpid():
            engine.stop()


_LINKS: weakref.WeakSet[Link] = weakref.WeakSet()


def _after_fork() -> None:
    for link in list(_LINKS):
        link.leave_to_parent()


def _at_exit() -> None:
    for link in list(_LINKS):
        link.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def pub_url(listen: Listen) -> str:
    """Return the address of the PUB socket, as seen from the address of the broker; empty if there is none."""
    scheme, _, rest = listen.url.partition("://")
    if scheme == "ipc":
        return f"{scheme}://{listen.path}" if listen.path else ""
    host, _, _ = rest.rpartition(":")
    return f"{scheme}://{host}:{listen.port}" if listen.port else ""


def _receive(source: zmq.Socket[bytes], flags: int) -> list[bytes]:
    """Return the frames of one message; raises `zmq.Again` when there is none.

    Frames rather than `recv_multipart`, which costs twice as much.
    """
    frame = source.recv(flags, copy=False)
    frames = [frame.bytes]
    while frame.more:
        frame = source.recv(copy=False)
        frames.append(frame.bytes)
    return frames


def _drain(hear: socket.socket) -> None:
    try:
        while len(hear.recv(4096)) == 4096:
            pass
    except BlockingIOError:
        pass


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
