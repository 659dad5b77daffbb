"""beanstalkd with its write-ahead log synced at every write (`-b dir -f 0`), spoken to directly.

The protocol is short text, and a server that answers the commands of a connection in order allows to send many before
reading the replies. The usual Python clients wait for each reply; the few lines of client here do not, which is the
fastest way to use this server and so the fair one.

beanstalkd keeps no results. The usual pattern is a second tube: the worker puts a reply there, durable as any job, and
deletes the job it ran; the submitter reserves replies and deletes them. A result known is a reply reserved.
"""

import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.peers.base import (
    PAYLOAD,
    WAIT_TIMEOUT_S,
    WINDOW,
    Facts,
    JobLost,
    PeerFailed,
    latencies_ms,
    timed,
)
from benchmarks.processes import HOST, Children, accepts_connections, free_port, which

INSTALL = "apt install beanstalkd"
JOBS_TUBE = "jobs"
REPLIES_TUBE = "replies"

# Replies or jobs reserved in one round trip at most.
BATCH = 100

# A reserved job goes back when it is not deleted by then.
TIME_TO_RUN_S = 120


class UnexpectedReply(PeerFailed):
    """The server answered something that this use of it cannot get."""

    def __init__(self, reply: bytes) -> None:
        super().__init__(f"beanstalkd said {reply!r}")
        self.reply = reply


def put_command(body: bytes) -> bytes:
    """Return the command that puts one job into the tube in use."""
    return b"put 0 0 %d %d\r\n%b\r\n" % (TIME_TO_RUN_S, len(body), body)


class Connection:
    """One connection, using one tube for puts and watching one for reserves."""

    def __init__(self, port: int, *, use: str, watch: str) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=WAIT_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")
        self._wanted = 1
        self.send([f"use {use}\r\nwatch {watch}\r\nignore default\r\n".encode()])
        for expected in (b"USING", b"WATCHING", b"WATCHING"):
            self.expect(expected)

    def send(self, commands: Iterable[bytes]) -> None:
        """Send commands without reading their replies."""
        self._socket.sendall(b"".join(commands))

    def expect(self, word: bytes) -> None:
        """Read one reply that must start with `word`."""
        reply = self._replies.readline()
        if not reply.startswith(word):
            raise UnexpectedReply(reply)

    def reserve(self) -> list[tuple[int, bytes]]:
        """Wait for a job, then take what more is ready, up to BATCH; return (id, body) of each.

        Asks for twice what it got last time: few in vain while jobs come singly, many while they queue up.
        """
        self.send([b"reserve\r\n", *[b"reserve-with-timeout 0\r\n"] * (self._wanted - 1)])
        taken = []
        for _ in range(self._wanted):
            reply = self._replies.readline()
            if reply == b"TIMED_OUT\r\n":
                continue
            word, job_id, size = reply.split()
            if word != b"RESERVED":
                raise UnexpectedReply(reply)
            taken.append((int(job_id), self._replies.read(int(size) + 2)[:-2]))
        self._wanted = min(BATCH, 2 * len(taken))
        return taken

    def close(self) -> None:
        """Close the connection."""
        self._replies.close()
        self._socket.close()


class Beanstalkd:
    """beanstalkd that syncs before each reply to a put."""

    def __init__(self) -> None:
        self._children: Children | None = None
        self._port = 0
        self._connection: Connection | None = None

    @property
    def facts(self) -> Facts:
        """What to print beside the figures."""
        return Facts(
            title="beanstalkd (fsync each)",
            accepted_means="fsync before the ack",
            fsync_before_ack=True,
            submitter=f"1 connection, {WINDOW} puts pipelined; no bulk command",
            worker=f"1 process, reserves up to {BATCH} per round trip; replies by a second tube",
        )

    def missing(self) -> str | None:
        """Return what to install, None if nothing."""
        return None if which("beanstalkd") else INSTALL

    def start(self, directory: Path) -> None:
        """Start the server and connect."""
        program = which("beanstalkd")
        assert program is not None, "missing() is asked first"
        self._children = Children(directory)
        self._port = free_port()
        log = directory / "binlog"
        log.mkdir()
        command: list[str | Path] = [program, "-l", HOST, "-p", str(self._port), "-b", log, "-f", "0"]
        self._children.start_server(command, accepts_connections(self._port))
        self._connection = Connection(self._port, use=JOBS_TUBE, watch=REPLIES_TUBE)

    def start_worker(self) -> None:
        """Start the worker process."""
        assert self._children is not None, "start comes first"
        self._children.start_python("benchmarks.peers.beanstalkd", str(self._port))

    def accept_windowed(self, jobs: int) -> float:
        """Put with up to WINDOW replies outstanding."""

        def run() -> None:
            unanswered = 0
            for done in range(0, jobs, BATCH):
                count = min(BATCH, jobs - done)
                while unanswered + count > WINDOW:
                    self._server.expect(b"INSERTED")
                    unanswered -= 1
                self._server.send([put_command(PAYLOAD.encode())] * count)
                unanswered += count
            for _ in range(unanswered):
                self._server.expect(b"INSERTED")

        return timed(run)

    def accept_bulk(self, jobs: int) -> None:
        """beanstalkd has no command for many jobs."""

    def end_to_end(self, jobs: int, window: int) -> float:
        """Keep the window full, in turns: put what fits, take the replies that are there."""

        def run() -> None:
            submitted = finished = 0
            while finished < jobs:
                count = min(jobs - submitted, window - (submitted - finished), BATCH)
                self._put(count)
                submitted += count
                if submitted == jobs or submitted - finished == window:
                    finished += self._take_replies()

        return timed(run)

    def one_at_a_time(self, jobs: int) -> list[float]:
        """Submit, wait, submit."""
        return latencies_ms(lambda: self._put(1), lambda _: self._take_replies(), jobs)

    def stop(self) -> None:
        """Close the connection, end worker and server."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._children is not None:
            self._children.stop()

    @property
    def _server(self) -> Connection:
        assert self._connection is not None, "start comes first"
        return self._connection

    def _put(self, count: int) -> None:
        self._server.send([put_command(PAYLOAD.encode())] * count)
        for _ in range(count):
            self._server.expect(b"INSERTED")

    def _take_replies(self) -> int:
        try:
            replies = self._server.reserve()
        except TimeoutError as error:
            raise JobLost(self.facts.title, "a put job") from error
        self._server.send(b"delete %d\r\n" % reply_id for reply_id, _ in replies)
        for _ in replies:
            self._server.expect(b"DELETED")
        return len(replies)


def work(port: int) -> None:
    """Be the worker until told to end: a job's reply is put before the job is deleted, so that none can be lost."""
    server = Connection(port, use=REPLIES_TUBE, watch=JOBS_TUBE)
    while True:
        try:
            jobs = server.reserve()
        except TimeoutError:  # an idle minute, in the middle of a reserve: start over on a new connection
            server.close()
            server = Connection(port, use=REPLIES_TUBE, watch=JOBS_TUBE)
            continue
        server.send(put_command(body) + b"delete %d\r\n" % job_id for job_id, body in jobs)
        for _ in jobs:
            server.expect(b"INSERTED")
            server.expect(b"DELETED")


if __name__ == "__main__":
    work(int(sys.argv[1]))
