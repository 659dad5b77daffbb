"""Raw workers as processes: `python -m benchmarks.raw_worker drain|stream`. No model, no thinking, no spool.

`drain` completes every lease at once, until it is ended. `stream` waits until it holds all streams, writes a piece of
each at an even pace for some seconds, completes them, and prints what it sent as one line of JSON.
"""

import json
import time

import click

from benchmarks.raw import (
    ANSWER_TIMEOUT_S,
    HEARTBEAT_EVERY_S,
    RawPeer,
    RawPeerFailed,
    any_model,
    enlistment,
    raw_peer,
)
from lmq_proto.messages import Acked, Heartbeat, Results, Text, TextReport, Who, Work
from lmq_proto.parts import Ended, Lease, Piece

# A text's time of sending, in microseconds of the monotonic clock that all processes of a machine share.
STAMP_CHARS = 16

_RESULT = b"\x80"
_COLLECT_TIMEOUT_S = 30.0


@click.group()
def main() -> None:
    """Run a raw worker."""


@main.command()
@click.option("--broker", required=True)
@click.option("--name", required=True)
@click.option("--slots", type=int, required=True)
def drain(broker: str, name: str, slots: int) -> None:
    """Complete every job at once."""
    with raw_peer(broker) as peer:
        peer.enlist(enlistment(name, any_model(slots)))
        click.echo("enlisted")
        next_heartbeat_s = 0.0
        while True:
            # The broker's own heartbeats end the wait as well.
            peer.socket.poll(int(HEARTBEAT_EVERY_S * 1000))
            if time.monotonic() >= next_heartbeat_s:
                peer.say(Heartbeat())
                next_heartbeat_s = time.monotonic() + HEARTBEAT_EVERY_S
            leases: list[Lease] = []
            while peer.socket.poll(0):
                leases += _leases(peer)
            if leases:
                _complete(peer, leases)


@main.command()
@click.option("--broker", required=True)
@click.option("--streams", type=int, required=True)
@click.option("--pieces-per-s", type=float, required=True, help="Of each stream.")
@click.option("--seconds", type=float, required=True)
def stream(broker: str, streams: int, pieces_per_s: float, seconds: float) -> None:
    """Write text into all streams."""
    with raw_peer(broker) as peer:
        peer.enlist(enlistment("streams", any_model(streams)))
        leases = _collect(peer, streams)
        click.echo(json.dumps(_write(peer, leases, pieces_per_s, seconds)))
        _complete(peer, leases)
        # Its going would give back what is not acknowledged.
        _await_acks(peer, len(leases))


def stamped(now_ns: int) -> str:
    """Return the text of a piece: when it was sent."""
    return f"{now_ns // 1000:0{STAMP_CHARS}d}"


def _leases(peer: RawPeer) -> list[Lease]:
    """Return the leases of the next message, none if it holds none."""
    message = peer.hear()
    if isinstance(message, Who):
        raise RawPeerFailed("the broker has forgotten this worker")
    return [lease for group in message.groups for lease in group.leases] if isinstance(message, Work) else []


def _complete(peer: RawPeer, leases: list[Lease]) -> None:
    ended = [
        Ended(
            job_id=lease.job_id, epoch=lease.epoch, attempt=lease.attempt, outcome="complete",
            result_bytes=len(_RESULT),
        )
        for lease in leases
    ]  # fmt: skip
    peer.say(Results(ended=ended), _RESULT * len(ended))


def _collect(peer: RawPeer, streams: int) -> list[Lease]:
    """Return as many leases as there are streams."""
    leases: list[Lease] = []
    deadline_s = time.monotonic() + _COLLECT_TIMEOUT_S
    while len(leases) < streams:
        leases += _leases(peer)
        if time.monotonic() > deadline_s:
            raise RawPeerFailed(f"{len(leases)} of {streams} streams after {_COLLECT_TIMEOUT_S:.0f} s")
    return leases


def _write(peer: RawPeer, leases: list[Lease], pieces_per_s: float, seconds: float) -> dict[str, float]:
    """Write a piece after the other, the streams in turn, each when it is due; return what was done."""
    per_s = pieces_per_s * len(leases)
    total = int(per_s * seconds)
    written = [0] * len(leases)
    sent = 0
    late_s = 0.0
    began_s = time.monotonic()
    while sent < total:
        now_s = time.monotonic()
        due = min(int((now_s - began_s) * per_s) + 1, total)
        if due <= sent:
            time.sleep(began_s + sent / per_s - now_s)
            continue
        late_s = max(late_s, now_s - began_s - sent / per_s)
        text = stamped(time.monotonic_ns())
        gathered: dict[int, int] = {}
        for number in range(sent, due):
            gathered[number % len(leases)] = gathered.get(number % len(leases), 0) + 1
        peer.say(TextReport(texts=[
            Text(
                job_id=leases[index].job_id, attempt=leases[index].attempt, first=written[index] + 1,
                pieces=[Piece(channel="content", text=text)] * count,
            )
            for index, count in gathered.items()
        ]))  # fmt: skip
        for index, count in gathered.items():
            written[index] += count
        sent = due
        # Marks of what is on disk; a raw worker keeps nothing that they would let it forget.
        while peer.socket.poll(0):
            peer.hear()
    return {"pieces": sent, "seconds": time.monotonic() - began_s, "late_s": late_s}


def _await_acks(peer: RawPeer, leases: int) -> None:
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    acked = 0
    while acked < leases:
        message = peer.hear()
        if isinstance(message, Acked):
            acked += len(message.leases)
        if time.monotonic() > deadline_s:
            raise RawPeerFailed(f"{acked} of {leases} ends acknowledged after {ANSWER_TIMEOUT_S:.0f} s")


if __name__ == "__main__":
    main()
