"""Raw readers of text as a process: `python -m benchmarks.raw_readers`. Each follows all streams.

Prints "following" when all have asked for the text, reads until every stream has ended for each, and prints what came
as one line of JSON. Stalled ones neither read nor give credit back for some seconds first; their heartbeats go on.
"""

import array
import json
import time
from pathlib import Path

import click
import zmq

from benchmarks.raw import HEARTBEAT_EVERY_S, RawPeer
from lmq_proto.codec import TO_PEER_TABLE
from lmq_proto.ids import from_text
from lmq_proto.messages import Credit, FollowText, Heartbeat, Text, Who

_GIVE_BACK_CHARS = 65_536
_SILENCE_S = 15.0
_CONTENT = "content"


class Reader:
    """One connection that reads all streams."""

    def __init__(self, peer: RawPeer, job_ids: list[bytes]) -> None:
        self.peer = peer
        self.open = len(job_ids)
        self._due_chars = dict.fromkeys(job_ids, 0)
        self._last = dict.fromkeys(job_ids, 0)
        self.pieces = 0
        self.messages = 0
        # Pieces missing, doubled or out of order; the protocol allows none.
        self.gaps = 0
        self.cut_off = False

    def follow(self) -> None:
        """Ask for the text of all streams from their start."""
        self.peer.hello()
        for number, job_id in enumerate(self._last):
            self.peer.say(FollowText(request_id=number + 2, job_id=job_id))

    def take(self, delays_us: "array.array[int]") -> None:
        """Read what is there, up to a bound, and note each piece's delay."""
        socket = self.peer.socket
        for _ in range(200):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = TO_PEER_TABLE.decode(frames)[0]
            if isinstance(message, Text):
                self._take_text(message, delays_us)
            elif isinstance(message, Who):
                # The broker ended the session: it was too slow to read.
                self.cut_off = True
                self.open = 0
                return

    def _take_text(self, text: Text, delays_us: "array.array[int]") -> None:
        now_us = time.monotonic_ns() // 1000
        last = self._last[text.job_id]
        if text.first != last + 1 and text.pieces:
            self.gaps += 1
        self._last[text.job_id] = text.first + len(text.pieces) - 1
        chars = 0
        for piece in text.pieces:
            if piece.channel == _CONTENT:
                delays_us.append(max(0, now_us - int(piece.text)))
                self.pieces += 1
            chars += max(1, len(piece.text))
        self.messages += bool(text.pieces)
        due = self._due_chars[text.job_id] + chars
        if due >= _GIVE_BACK_CHARS:
            self.peer.say(Credit(job_id=text.job_id, text_bytes=due))
            due = 0
        self._due_chars[text.job_id] = due
        if text.final:
            self.open -= 1


@click.command()
@click.option("--broker", required=True)
@click.option("--readers", type=int, required=True)
@click.option("--stalled-s", type=float, default=0.0, help="Read nothing for so long.")
@click.option(
    "--delays", type=click.Path(path_type=Path), help="File for the delays, unsigned 32 bit microseconds."
)
@click.argument("jobs", nargs=-1, required=True)
def main(broker: str, readers: int, stalled_s: float, delays: Path | None, jobs: tuple[str, ...]) -> None:
    """Read the text of JOBS."""
    context = zmq.Context()
    streams = [bytes(from_text(job)) for job in jobs]
    crew = [Reader(RawPeer(broker, context, buffers=not stalled_s), streams) for _ in range(readers)]
    for reader in crew:
        reader.follow()
    click.echo("following")
    awake_s = time.monotonic() + stalled_s
    while time.monotonic() < awake_s:
        for reader in crew:
            reader.peer.say(Heartbeat())
        time.sleep(min(HEARTBEAT_EVERY_S, max(0.0, awake_s - time.monotonic())))
    seen_us: array.array[int] = array.array("I")
    first_s, last_s = _read(crew, seen_us)
    if delays is not None:
        delays.write_bytes(seen_us.tobytes())
    click.echo(json.dumps({
        "pieces": sum(reader.pieces for reader in crew), "messages": sum(reader.messages for reader in crew),
        "gaps": sum(reader.gaps for reader in crew), "cut_off": sum(reader.cut_off for reader in crew),
        "unfinished": sum(reader.open for reader in crew), "first_s": first_s, "last_s": last_s,
    }))  # fmt: skip
    for reader in crew:
        reader.peer.close()
    context.term()


def _read(crew: list[Reader], seen_us: "array.array[int]") -> tuple[float, float]:
    """Read until all streams have ended, or nothing comes any more; return the times of the first and last piece."""
    poller = zmq.Poller()
    by_socket = {reader.peer.socket: reader for reader in crew}
    for socket in by_socket:
        poller.register(socket, zmq.POLLIN)
    first_s = last_s = 0.0
    next_heartbeat_s = heard_s = time.monotonic()
    while any(reader.open > 0 for reader in crew):
        ready = poller.poll(500)
        before = len(seen_us)
        for socket, _ in ready:
            by_socket[socket].take(seen_us)
        now_s = time.monotonic()
        if len(seen_us) > before:
            last_s = heard_s = now_s
            first_s = first_s or now_s
        if now_s > heard_s + _SILENCE_S:
            break
        if now_s > next_heartbeat_s:
            next_heartbeat_s = now_s + HEARTBEAT_EVERY_S
            for reader in crew:
                reader.peer.say(Heartbeat())
    return first_s, last_s


if __name__ == "__main__":
    main()
