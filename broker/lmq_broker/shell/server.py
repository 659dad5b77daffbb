"""The poll loop: take in what waits, `step`, carry out the effects, wait. It thinks about no job."""

import gc
import heapq
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable

import psutil
import zmq

from lmq_broker.core.effects import Effect, Publish, Read, Send, SendWork, WakeAt
from lmq_broker.core.machine import step
from lmq_broker.core.reads import ReadReply, ReadRequest
from lmq_broker.core.records import RECORDS, Record
from lmq_broker.core.settings import Settings
from lmq_broker.core.state import BrokerState
from lmq_broker.core.stimuli import (
    DiskChanged,
    HostFacts,
    Loaded,
    Now,
    PeerClogged,
    PeerGone,
    Received,
    SettingsChanged,
    Stimulus,
    Stop,
    TurnEnded,
)  # fmt: skip
from lmq_broker.journal.reader import PayloadsReply, ReadFailed, ReadPayloads
from lmq_broker.journal.store import Journal
from lmq_broker.shell import clock, joblog
from lmq_broker.shell.backlog import Backlog
from lmq_broker.shell.bodies import Bodies
from lmq_broker.shell.door import Door
from lmq_broker.shell.notify import Notifier
from lmq_proto.codec import FROM_PEER_TABLE, VersionRefused, encode
from lmq_proto.errors import LmqError, ProtocolError
from lmq_proto.ids import PeerId
from lmq_proto.messages import ErrorReply, Group, ToPeer, Work

log = logging.getLogger("lmq.broker")

_MESSAGES_PER_TURN = 500
_TURN_NS = 4_000_000
"""A turn takes in no more once it has lasted this long, so that what it caused goes out."""
_SWITCH_S = 0.002
"""How long a journal thread may hold the interpreter while the loop waits; Python has 5 ms, as long as many jobs."""
_FACTS_EVERY_MS = 1000
_RETRY_MS = 5
"""How soon a peer whose pipe was full is tried again."""
_STOP_WITHIN_S = 4.0


class Server:
    """The broker as a process: sockets, journal, core."""

    def __init__(
        self,
        door: Door,
        journal: Journal,
        state: BrokerState,
        notifier: Notifier,
        wake_fd: int,
        *,
        free_floor_bytes: int,
        payload_cache_bytes: int,
        reread_settings: Callable[[], Settings | str],
        announce: Callable[[str], None],
    ) -> None:
        self._door = door
        self._journal = journal
        self._state = state
        self._notifier = notifier
        self._wake_fd = wake_fd
        self._free_floor_bytes = free_floor_bytes
        self._reread_settings = reread_settings
        self._announce = announce
        self._bodies = Bodies(payload_cache_bytes)
        self._held: list[tuple[int, int, Send | SendWork]] = []
        """Heap of (journal position, number, effect): text waits for its lease's position, not for the present one."""
        self._holds = 0
        self._records: list[Record] = []
        self._waiting_work: list[SendWork] = []
        self._unread_work: dict[int, tuple[SendWork, dict[int, bytes]]] = {}
        self._last_ticket = 0
        self._backlog = Backlog(door.send)
        self._wake_at_ms = 0
        self._next_facts_ms = 0
        self._next_feed_ms = 0
        self._disk_trouble = ""
        self._last_sent: tuple[ToPeer, list[bytes]] | None = None
        self._signals: deque[int] = deque()
        self._last_status = ""
        """As the service manager was told; empty: it was not told yet that all is ready."""
        self._problem = ""
        """Why the settings on disk are not those in force."""
        self._process = psutil.Process()
        self.exit_code: int | None = None

    # --- the loop ----------------------------------------------------------------------------------------------------

    def run(self, opening: list[Effect]) -> int:
        """Serve until told to stop; return the exit code. `opening` are the effects of recovery."""
        sys.setswitchinterval(_SWITCH_S)
        gc.collect()
        gc.disable()
        gc.freeze()
        self._catch_signals()
        poller = zmq.Poller()
        poller.register(self._door.router, zmq.POLLIN)
        poller.register(self._door.zap, zmq.POLLIN)
        poller.register(self._wake_fd, zmq.POLLIN)
        now = clock.now()
        self._carry_out(opening)
        self._look_at_host(now)
        self._end_turn(now)
        self._wait_durable()
        self._last_status = self._status()
        self._notifier.ready(self._last_status)
        log.info(
            "broker_ready", extra={"fields": {"urls": " ".join(self._door.urls), "epoch": self._state.epoch}}
        )
        self._announce(f"broker ready at {' '.join(self._door.urls)}")
        while self.exit_code is None:
            timeout_ms = max(0, self._wake_at_ms - clock.now().mono_ms)
            if self._backlog:
                timeout_ms = min(timeout_ms, _RETRY_MS)
            ready = dict(poller.poll(timeout_ms))
            self._turn(ready)
        return self.exit_code

    def _turn(self, ready: dict[object, int]) -> None:
        """One round: everything that waits, then the end of the turn."""
        now = clock.now()
        busy = now.mono_ms >= self._wake_at_ms
        if self._wake_fd in ready:
            os.read(self._wake_fd, 4096)
            self._take_signals(now)
        if self._door.zap in ready:
            self._door.answer_zap()
        if self._backlog:
            for peer, gone in self._backlog.retry(now.mono_ms).items():
                self._step(PeerGone(peer) if gone else PeerClogged(peer), now)
            busy = True
        busy |= self._take_answers(now)
        if self._door.router in ready:
            busy |= self._take_messages(now)
        busy |= self._look_at_disk(now)
        if now.mono_ms >= self._next_facts_ms:
            self._look_at_host(now)
        if busy:
            self._end_turn(now)
        self._flush(self._journal.writer.durable)
        self._feed(now)

    def _take_messages(self, now: Now) -> bool:
        """Decode and step what peers sent, up to a bound; garbage is answered and taken no further."""
        began = time.monotonic_ns()
        for count in range(_MESSAGES_PER_TURN):
            received = self._door.receive()
            if received is None:
                return count > 0
            peer, credential, frames = received
            if credential is None:
                log.warning("peer_refused", extra={"fields": {"frames": len(frames)}})
                continue
            try:
                message, body = FROM_PEER_TABLE.decode(frames)
            except ProtocolError as error:
                told: LmqError = error.for_peer() if isinstance(error, VersionRefused) else error
                self._send(peer, encode(ErrorReply(request_id=0, error=told.info())))
                continue
            self._step(Received(peer, credential, message, body), now)
            if time.monotonic_ns() - began > _TURN_NS:
                self._wake_at_ms = now.mono_ms
                break
        return True

    def _take_answers(self, now: Now) -> bool:
        """Step what the reading thread has found."""
        answers = self._journal.poll()
        for question, answer in answers:
            if isinstance(answer, ReadFailed):
                log.error("journal_unreadable", extra={"fields": {"error": answer.error}})
                self.exit_code = 1
            elif isinstance(answer, PayloadsReply):
                assert isinstance(question, ReadPayloads)
                self._send_waiting(question.ticket, answer.payloads)
            else:
                assert not isinstance(question, ReadPayloads)
                request: ReadRequest = question
                reply: ReadReply = answer
                self._step(Loaded(request, reply), now)
        return bool(answers)

    def _step(self, stimulus: Stimulus, now: Now) -> None:
        self._carry_out(step(self._state, stimulus, now))

    def _end_turn(self, now: Now) -> None:
        """End the core's turn and hand its records to the writing thread."""
        self._wake_at_ms = now.mono_ms + 60_000
        self._carry_out(step(self._state, TurnEnded(), now))
        records, self._records = self._records, []
        self._bodies.take_in(records)
        work, self._waiting_work = self._waiting_work, []
        for effect in work:
            self._send_work(effect)
        # Only now: once it is awake, the writing thread takes the interpreter from whoever sends.
        if records:
            self._journal.append(self._state.position, records)
            joblog.write(records)

    # --- effects -----------------------------------------------------------------------------------------------------

    def _carry_out(self, effects: list[Effect]) -> None:
        """Do what the core asked for, in order."""
        durable = self._journal.writer.durable
        # What the disk has released meanwhile goes first, or a later reply would overtake an earlier one.
        self._flush(durable)
        for effect in effects:
            if isinstance(effect, RECORDS):
                self._records.append(effect)
            elif isinstance(effect, Send):
                if effect.after > durable:
                    self._hold(effect)
                else:
                    self._send_message(effect)
            elif isinstance(effect, SendWork):
                if effect.after > durable:
                    self._hold(effect)
                else:
                    self._waiting_work.append(effect)
            elif isinstance(effect, Publish):
                self._door.publish(effect.topic, encode(effect.message))
            elif isinstance(effect, Read):
                self._journal.ask(effect.request, effect.after)
            elif isinstance(effect, WakeAt):
                self._wake_at_ms = min(self._wake_at_ms, effect.mono_ms)
            else:
                log.log(
                    logging.WARNING if effect.warning else logging.INFO,
                    effect.name,
                    extra={"fields": effect.fields},
                )

    def _hold(self, effect: Send | SendWork) -> None:
        """Keep an effect until the disk is as far as it needs; of one position, the first held is the first to go."""
        self._holds += 1
        heapq.heappush(self._held, (effect.after, self._holds, effect))

    def _flush(self, durable: int) -> None:
        """Send what had to wait for the disk and need not any more."""
        held = self._held
        while held and held[0][0] <= durable:
            effect = heapq.heappop(held)[2]
            if isinstance(effect, SendWork):
                self._send_work(effect)
            else:
                self._send_message(effect)

    def _send_message(self, effect: Send) -> None:
        """Send one message; one that goes to many readers is encoded once."""
        last = self._last_sent
        if last is not None and last[0] is effect.message and not effect.body:
            frames = last[1]
        else:
            frames = encode(effect.message, effect.body)
            self._last_sent = (effect.message, frames)
        self._send(effect.peer, frames)

    def _send_work(self, effect: SendWork) -> None:
        """Send leases with their payloads, or read those first."""
        held = self._bodies.held(effect.numbers)
        missing = [number for number in effect.numbers if number not in held]
        if missing:
            # What is here is kept with it: a job that ends meanwhile takes its payload out of the store.
            self._last_ticket += 1
            self._unread_work[self._last_ticket] = effect, held
            self._journal.ask(ReadPayloads(missing, self._last_ticket), self._state.position)
        else:
            self._send(
                effect.peer, encode(effect.message, b"".join(held[number] for number in effect.numbers))
            )

    def _send(self, peer: PeerId, frames: list[bytes]) -> None:
        self._backlog.send(peer, frames, time.monotonic_ns() // 1_000_000)

    def _send_waiting(self, ticket: int, payloads: dict[int, bytes]) -> None:
        """Send the leases whose payloads have been read, but for those of jobs that were deleted meanwhile."""
        effect, held = self._unread_work.pop(ticket)
        numbers = iter(effect.numbers)
        bodies = held | payloads
        parts: list[bytes] = []
        groups = []
        for group in effect.message.groups:
            leases = []
            for lease, number in zip(group.leases, numbers, strict=False):
                if number in bodies:
                    leases.append(lease)
                    parts.append(bodies[number])
            if leases:
                groups.append(Group(leases=leases))
        if groups:
            self._send(effect.peer, encode(Work(groups=groups), b"".join(parts)))

    # --- the machine around ------------------------------------------------------------------------------------------

    def _look_at_disk(self, now: Now) -> bool:
        """Tell the core when the journal's disk falls into trouble or out of it."""
        trouble = self._journal.writer.trouble
        if trouble == "io":
            log.critical("journal_failed", extra={"fields": {"error": self._journal.writer.trouble_text}})
            self.exit_code = 1
            return False
        free_bytes = self._state.host.journal_free_bytes
        if not trouble and self._next_facts_ms and free_bytes < self._free_floor_bytes:
            trouble = "low"
        if trouble == self._disk_trouble:
            return False
        self._disk_trouble = trouble
        # What is known of the room is up to a second old; what peers are told now is not.
        self._look_at_host(now)
        free_bytes = self._state.host.journal_free_bytes
        log.warning(
            "disk_changed", extra={"fields": {"trouble": trouble or "none", "free_bytes": free_bytes}}
        )
        self._step(DiskChanged(trouble, free_bytes, self._free_floor_bytes), now)
        return True

    def _look_at_host(self, now: Now) -> None:
        """Tell the core the facts of process and disk."""
        self._next_facts_ms = now.mono_ms + _FACTS_EVERY_MS
        status = self._status()
        if self._last_status and status != self._last_status:
            self._last_status = status
            self._notifier.tell(f"STATUS={status}")
        commits = sorted(self._journal.writer.commits_us)
        ports = [url for url in self._door.events_urls if url.startswith("tcp://")]
        paths = [url for url in self._door.events_urls if url.startswith("ipc://")]
        self._step(HostFacts(
            journal_path=str(self._journal.path), journal_bytes=self._journal.size_bytes(),
            journal_free_bytes=self._journal.free_bytes(), journal_floor_bytes=self._free_floor_bytes,
            commit_p50_us=commits[len(commits) // 2] if commits else 0,
            commit_p99_us=commits[len(commits) * 99 // 100] if commits else 0,
            memory_bytes=self._process.memory_info().rss,
            events_port=int(ports[0].rpartition(":")[2]) if ports else 0,
            events_path=paths[0].removeprefix("ipc://") if paths else "",
        ), now)  # fmt: skip

    def _feed(self, now: Now) -> None:
        """Feed the watchdog from the loop itself, and say how things are."""
        if now.mono_ms >= self._next_feed_ms:
            every_ms = self._notifier.watchdog_ms
            self._next_feed_ms = now.mono_ms + min(every_ms or 10_000, 10_000)
            self._last_status = self._status()
            self._notifier.tell(f"WATCHDOG=1\nSTATUS={self._last_status}")
        self._wake_at_ms = min(self._wake_at_ms, self._next_feed_ms)

    def _status(self) -> str:
        """Return live counts in one line."""
        state = self._state
        connected = sum(worker.peer is not None for worker in state.workers.values())
        ended = sum(state.ended.values())
        counts = ((len(state.jobs), "job"), (connected, "worker"), (len(state.sessions), "session"))
        jobs, workers, sessions = (f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
        return f"{jobs} open, {ended} ended since the start, {workers}, {sessions}{self._problem}"

    def _catch_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda which, _frame: self._signals.append(which))

    def _take_signals(self, now: Now) -> None:
        """SIGHUP reads the defaults again; SIGTERM and SIGINT end the broker."""
        while self._signals:
            number = self._signals.popleft()
            if number == signal.SIGHUP:
                self._notifier.reloading()
                self._reread(now)
                self._notifier.ready(self._status())
            else:
                self._stop(now)

    def _reread(self, now: Now) -> None:
        """Take over what may change at run time; a file that cannot be used changes nothing, and the status says so."""
        found = self._reread_settings()
        if isinstance(found, str):
            self._problem = f"; the old settings stay: {found}"
            self._announce(f"lmq: {found}; the old settings stay")
        else:
            self._problem = ""
            self._step(SettingsChanged(found), now)

    def _stop(self, now: Now) -> None:
        """Take no more, tell the peers, finish the commit. Running jobs go on and report to the next broker."""
        self._notifier.stopping()
        log.info("broker_stopping")
        self._step(Stop(), now)
        self._end_turn(now)
        self._wait_durable()
        self.exit_code = 0

    def _wait_durable(self) -> None:
        """Wait, for a bounded time, until everything handed over is on disk, and send what waited for it."""
        deadline_s = time.monotonic() + _STOP_WITHIN_S
        poller = zmq.Poller()
        poller.register(self._wake_fd, zmq.POLLIN)
        while self._journal.writer.durable < self._state.position and time.monotonic() < deadline_s:
            if dict(poller.poll(200)):
                os.read(self._wake_fd, 4096)
            if self._journal.writer.trouble == "io":
                break
        self._flush(self._journal.writer.durable)
