"""Hostile and broken peers on the real sockets; in each test somebody who behaves well is served all the while."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import zmq

import lmq
from conftest import eventually
from crash.fleet import Fleet
from integration.broker.raw import RawPeer
from lmq_proto import bounds, codec
from lmq_proto.errors import ProtocolError
from lmq_proto.ids import to_text
from lmq_proto.messages import (
    FROM_PEER,
    Credit,
    Events,
    Finished,
    Follow,
    FollowText,
    Health,
    HealthReply,
    Status,
    Statuses,
    Submitted,
    Subscribe,
    Subscribed,
    Text,
    Tick,
    Welcome,
    Who,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.broker.conftest import Steady

# What a ZMTP 3 peer says first, and that it wants no security; then a READY as a DEALER.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01NULL" + bytes(16) + b"\x00" + bytes(31)
READY = b"\x04\x19\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"

ROUNDS = 300


def tcp(fleet: Fleet) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", fleet.port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def until_cut(connection: socket.socket) -> bytes:
    """Return all that still comes until the broker has cut a connection."""
    came = b""
    try:
        while data := connection.recv(65536):
            came += data
    except ConnectionError:
        pass
    return came


def push(connection: socket.socket, data: bytes, *, is_all: bool = False) -> None:
    """Send, whether it is still wanted or not; and say that this is all."""
    try:
        connection.sendall(data)
        if is_all:
            connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass


@pytest.fixture
def raw(fleet: Fleet) -> Iterator[RawPeer]:
    with RawPeer(fleet.url) as raw:
        yield raw


# --- below the messages -----------------------------------------------------------------------------------------------


def test_garbage_on_the_port_is_cut_off(fleet: Fleet, steady: Steady) -> None:
    chance = random.Random(1)
    for _ in range(100):
        with tcp(fleet) as connection:
            push(connection, chance.randbytes(chance.randrange(1, 4000)), is_all=True)
            until_cut(connection)
    steady.goes_on()


def test_a_web_browser_is_cut_off(fleet: Fleet, steady: Steady) -> None:
    with tcp(fleet) as connection:
        push(connection, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"X-Filler: y\r\n" * 20)
        assert b"HTTP" not in until_cut(connection)
    steady.goes_on()


def test_handshakes_that_are_almost_right_do_no_harm(fleet: Fleet, steady: Steady) -> None:
    chance = random.Random(2)
    good = GREETING + READY + b"\x01\x04LMQ1\x01\x05hello\x01\x01\x80\x00\x00"
    for _ in range(ROUNDS):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with tcp(fleet) as connection:
            push(connection, bytes(data[: chance.randrange(10, len(data) + 1)]), is_all=True)
            until_cut(connection)
    steady.goes_on()


@pytest.mark.parametrize("size", [bounds.BODY_BYTES + 8192, 8 * 1024**3, 2**63 - 1])
def test_a_frame_that_announces_too_much_is_cut_off_at_once(fleet: Fleet, steady: Steady, size: int) -> None:
    with tcp(fleet) as connection:
        push(connection, GREETING + READY + b"\x03" + struct.pack(">Q", size) + bytes(1000))
        # It is cut although it said no end: nobody waits for the rest.
        until_cut(connection)
    steady.goes_on()


def test_a_thousand_connections_that_say_nothing_keep_nobody_out(fleet: Fleet, steady: Steady) -> None:
    connections: list[socket.socket] = []
    try:
        connections.extend(tcp(fleet) for _ in range(1000))
        steady.goes_on()
        with lmq.Client(fleet.url, user="newcomer", timeout_s=30) as newcomer:
            assert newcomer.submit("echo", {"n": 1}).result(30) == {"echo": {"n": 1}}
    finally:
        for connection in connections:
            connection.close()


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
def test_a_message_of_another_number_of_frames_is_an_error(raw: RawPeer, steady: Steady, count: int) -> None:
    raw.frames(*[b"LMQ1", b"hello", b"\x80", b"", *[b"more"] * 12][:count])
    assert raw.error().error.code == "protocol_error"
    assert raw.hello().user == "raw"


def test_a_message_of_500_frames_cuts_its_sender_off(fleet: Fleet, raw: RawPeer, steady: Steady) -> None:
    raw.hello()
    for _ in range(20):
        raw.frames(codec.VERSION_FRAME, b"heartbeat", b"\x80", *[b"part"] * 500)
    # The connection is new after that, and nobody knows it.
    with RawPeer(fleet.url) as other:
        other.hello("other")
    steady.goes_on()


def test_frames_as_large_as_may_be_are_answered(raw: RawPeer, steady: Steady) -> None:
    raw.hello()
    raw.frames(codec.VERSION_FRAME, b"submit", bytes(bounds.HEADER_BYTES + 1), b"")
    assert "header" in raw.error().error.message
    raw.frames(codec.VERSION_FRAME, b"submit", b"\x80", bytes(bounds.BODY_BYTES + 1))
    assert raw.error().error.code == "protocol_error"


def test_a_verb_that_nobody_knows_is_an_error(raw: RawPeer, steady: Steady) -> None:
    for verb in (b"", b"launch", b"x" * 100_000, b"\xff\xfe", b"Hello", b"welcome"):
        raw.frames(codec.VERSION_FRAME, verb, b"\x80", b"")
        assert raw.error().error.code == "protocol_error"


@pytest.mark.parametrize(
    ("version", "code"),
    [
        (b"LMQ0", "upgrade_required"),
        (b"LMQ2", "upgrade_required"),
        (b"LMQ99999", "upgrade_required"),
        (b"LMQ1000000000000", "protocol_error"),
        (b"LMQ", "protocol_error"),
        (b"lmq1", "protocol_error"),
        (b"", "protocol_error"),
        (b"\x00" * 1000, "protocol_error"),
        ("LMQ²".encode(), "protocol_error"),
    ],
)
def test_another_version_is_told_so(raw: RawPeer, steady: Steady, version: bytes, code: str) -> None:
    raw.frames(version, b"hello", b"\x80", b"")
    error = raw.error()
    assert (error.request_id, error.error.code) == (0, code)
    assert raw.hello().protocol == 1


BOMBS = {
    "empty": b"",
    "nothing": b"\xc0",
    "a number": b"\x07",
    "an array": b"\x93\x01\x02\x03",
    "cut short": b"\x82\xa1",
    "rest behind it": b"\x80\x80",
    "never used byte": b"\xc1",
    "deep array": b"\x91" * 100_000 + b"\xc0",
    "deep map": b"\x81\xa1a" * 100_000 + b"\xc0",
    "4 G entries": b"\xdf\xff\xff\xff\xff",
    "4 G text": b"\x81\xdb\xff\xff\xff\xff",
    "bad utf-8": b"\x81\xaarequest_id\xa2\xff\xfe",
    "key that is no text": b"\x81\x01\x02",
    "float for int": b"\x81\xaarequest_id\xcb?\xf0\x00\x00\x00\x00\x00\x00",
    "nan": b"\x81\xaarequest_id\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "text for int": b"\x81\xaarequest_id\xa11",
    "extension": b"\x81\xaarequest_id\xc7\x04\x01abcd",
    "deep inside": b"\x82\xaarequest_id\x01\xa4jobs" + b"\x91" * 50_000,
}


@pytest.mark.parametrize("verb", sorted(set(FROM_PEER) - {"heartbeat", "bye"}))
def test_bad_messagepack_is_an_error_in_every_verb(raw: RawPeer, steady: Steady, verb: str) -> None:
    raw.hello()
    sent = 0
    for header in BOMBS.values():
        frames = [codec.VERSION_FRAME, verb.encode(), header, b""]
        # What is unknown is ignored: where no field must be there, some of these are fine.
        try:
            codec.FROM_PEER_TABLE.decode(frames)
        except ProtocolError:
            raw.frames(*frames)
            sent += 1
    assert sent > 10
    for _ in range(sent):
        assert raw.error().error.code == "protocol_error"
    steady.goes_on(1)


# --- fields -----------------------------------------------------------------------------------------------------------


def test_lengths_that_do_not_fit_the_body_are_an_error(raw: RawPeer, steady: Steady) -> None:
    raw.hello()
    for length, body in [(5, b""), (0, b"rest"), (2**40, b"x"), (-1, b"x"), (2**64 - 1, b"x")]:
        job = {"id": os.urandom(16), "task_type": "echo", "payload_bytes": length}
        raw.header("submit", {"request_id": 1, "jobs": [job]}, body)
        assert raw.error().error.code in ("protocol_error", "bad_field")


def test_what_is_newer_in_a_header_is_ignored(raw: RawPeer, steady: Steady) -> None:
    new = {"shoe_size": 44, "nested": {"a": [1, {"b": None}]}, "": ""}
    hello = {
        "request_id": 1,
        "instance": raw.instance,
        "protocol_oldest": 1,
        "protocol_newest": 1,
        "user": "new",
    }
    raw.header("hello", hello | new)
    assert raw.message(Welcome).user == "new"
    job = {"id": os.urandom(16), "task_type": "echo", "payload_bytes": 1} | new
    raw.header("submit", {"request_id": 2, "jobs": [job], "follow": True} | new, b"\x80")
    assert raw.message(Submitted).outcomes[0].outcome == "accepted"
    ended, body = raw.receive(Finished)
    assert (ended.jobs[0].state, body) == ("done", b"\x81\xa4echo\x80")


# --- sessions ---------------------------------------------------------------------------------------------------------


def test_a_stranger_is_asked_who_it_is_and_nothing_is_carried_out(raw: RawPeer, steady: Steady) -> None:
    job_id = os.urandom(16)
    job = {"id": job_id, "task_type": "echo", "payload_bytes": 0}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("submit", {"request_id": 1, "jobs": [job]}),
        ("results", {"ended": []}),
        ("backup", {"request_id": 1, "path": "/nowhere/x"}),
    ]
    for verb, header in asked:
        raw.header(verb, header)
        raw.message(Who)
    raw.hello()
    raw.send(Status(request_id=9, job_ids=[job_id]))
    assert raw.message(Statuses).missing == [job_id]


@pytest.mark.parametrize("routing_id", [b"me", b"abcde", b"\0guess", b"\0", b"x" * 255])
def test_who_chooses_its_own_routing_id_is_not_served(
    fleet: Fleet, steady: Steady, routing_id: bytes
) -> None:
    with RawPeer(fleet.url, routing_id=routing_id) as raw:
        raw.header(
            "hello", {"request_id": 1, "instance": bytes(16), "protocol_oldest": 1, "protocol_newest": 1}
        )
        assert not raw.socket.poll(300)
        steady.goes_on()


# Automatic ids are a 0 and a counter. Where nobody seeds libc's generator it starts at the same number in each process;
# this is the second draw, after that of the handshake handler's socket.
FIRST_AUTOMATIC = 0xE43C9869


def claim_the_next_routing_ids(url: str) -> None:
    """Claim the ids that come next, and let ordinary peers come who would be given them."""
    with contextlib.ExitStack() as peers:
        for step in range(40):
            claimed = b"\0" + struct.pack(">I", FIRST_AUTOMATIC + step)
            claimant = peers.enter_context(RawPeer(url, routing_id=claimed))
            claimant.header("hello", {"request_id": 1})
        for _ in range(60):
            peers.enter_context(RawPeer(url)).hello("newcomer", within_s=5)


def test_claiming_the_next_automatic_routing_ids_aborts_nothing(tmp_path: Path) -> None:
    with Fleet(tmp_path) as fresh:
        broker = fresh.ready_broker()
        claim_the_next_routing_ids(fresh.url)
        assert not fresh.died()
        assert broker.terminate() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="other systems start the counter elsewhere")
def test_the_claim_of_the_next_routing_id_is_an_attack_indeed(tmp_path: Path) -> None:
    """Without the random start the same claims abort the process; else the test above would prove nothing."""
    with Fleet(tmp_path) as fresh:
        broker = fresh.broker(module="integration.broker.unseeded")
        broker.line("broker ready at")
        with pytest.raises(pytest.fail.Exception):
            claim_the_next_routing_ids(fresh.url)
        assert broker.wait() == -signal.SIGABRT
        broker.ended_by_us = True


def test_a_client_that_never_reads_though_it_grants_credit_harms_only_itself(
    fleet: Fleet, steady: Steady
) -> None:
    with RawPeer(fleet.url, RCVHWM=1, RCVBUF=4096) as deaf:
        deaf.hello("deaf")
        payload = msgspec.msgpack.encode({"x": "y" * 200_000})
        followed = [deaf.submit([payload] * 20, follow=True) for _ in range(5)]
        # From here on it does not read. What it asks for is more than any buffer on the way holds.
        ids = [job_id for batch in followed for job_id in batch]
        for round_number in range(100):
            deaf.send(Credit(results_bytes=bounds.RESULTS_CREDIT_BYTES))
            deaf.send(Follow(request_id=1000 + round_number, job_ids=ids))
        steady.goes_on(20)
    steady.goes_on()


def test_a_subscriber_that_hangs_keeps_nobody_waiting(fleet: Fleet, steady: Steady) -> None:
    with RawPeer(fleet.url, RCVHWM=1, RCVBUF=4096) as hanging, RawPeer(fleet.url) as reader:
        hanging.hello("hanging")
        for subscription in range(1, 65):
            hanging.send(
                Subscribe(request_id=subscription, subscription_id=subscription, cursor=0, credit=100_000)
            )
        reader.hello("reader")
        reader.send(Subscribe(request_id=1, subscription_id=1))
        cursor = reader.message(Subscribed).cursor
        steady.goes_on(20)
        while True:
            push = reader.message(Events)
            assert push.before == cursor
            cursor = push.after
            if push.events and push.events[-1].kind == "done":
                break


def test_one_who_reads_a_text_and_never_gives_credit_gets_no_more_than_it_asked_for(
    fleet: Fleet, steady: Steady
) -> None:
    with RawPeer(fleet.url) as raw:
        raw.hello("miser")
        payload = msgspec.msgpack.encode({"text": "abcd" * 100, "delay_s": 0.5})
        job_id = raw.submit([payload])[0]
        raw.send(FollowText(request_id=5, job_id=job_id, credit_bytes=40))
        seen = 0
        while seen < 40:
            seen += sum(len(piece.text) for piece in raw.message(Text).pieces)
        with lmq.Client(fleet.url, user="miser", timeout_s=30) as q:
            job = q.job(to_text(job_id))
            eventually(lambda: job.status().is_final, 30, "the job to end")
        raw.send(Health(request_id=6))
        raw.message(HealthReply)
        assert not raw.has(Text), "text came without credit"
        raw.send(Credit(job_id=job_id, text_bytes=10_000))
        text = raw.message(Text)
        while not text.final:
            text = raw.message(Text)


def test_thousands_of_messages_without_a_pause_are_answered_each(raw: RawPeer, steady: Steady) -> None:
    raw.hello()
    for request_id in range(100, 3100):
        raw.send(Health(request_id=request_id))
    for request_id in range(100, 3100):
        assert raw.message(HealthReply).request_id == request_id


# --- PUB --------------------------------------------------------------------------------------------------------------


def test_pub_names_nobody_and_holds_no_text(fleet: Fleet, steady: Steady) -> None:
    """Everything that is published under load is looked through for names, keys, labels and words of the jobs."""
    secrets = [b"Ottilie", b"geheim", b"Rosebud", b"confidential", b"steady"]
    with lmq.Client(fleet.url, user="Ottilie", timeout_s=30) as q:
        port = events_port(fleet)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        sub = context.socket(zmq.SUB)
        try:
            sub.setsockopt(zmq.LINGER, 0)
            sub.connect(f"tcp://127.0.0.1:{port}")
            sub.subscribe(b"")
            assert sub.poll(20_000), "not even a tick"
            jobs = [
                q.submit(
                    "echo", {"text": "Rosebud " * 20, "delay_s": 0.3, "n": n}, idempotency_key=f"geheim-{n}",
                    labels={"case": "confidential"}, session="Ottilie",
                )
                for n in range(20)
            ]  # fmt: skip
            channels = {job.channel.hex() for job in jobs}
            q.wait(jobs, 30)
            ended_at_ms = q.health().wall_ms
            seen: list[list[bytes]] = []
            while sub.poll(20_000):
                seen.append(sub.recv_multipart())
                latest = codec.ON_PUB_TABLE.decode(seen[-1][1:])[0]
                if isinstance(latest, Tick) and latest.wall_ms > ended_at_ms:
                    break
        finally:
            context.destroy(linger=0)
    topics = {frames[0].decode() for frames in seen}
    assert {f"job/{channel}" for channel in channels} & topics, "no progress of these jobs was published"
    for frames in seen:
        topic = frames[0].decode()
        assert re.fullmatch(r"tick|queue/default|worker/e1|job/[0-9a-f]{16}", topic), topic
        codec.ON_PUB_TABLE.decode(frames[1:])
        for secret in secrets:
            assert secret not in b"".join(frames), f"{secret!r} was published under {topic}"


def events_port(fleet: Fleet) -> int:
    with RawPeer(fleet.url) as raw:
        return raw.hello().events_port


def test_the_pub_socket_takes_garbage_too(fleet: Fleet, steady: Steady) -> None:
    chance = random.Random(4)
    port = events_port(fleet)
    for _ in range(50):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            push(connection, chance.randbytes(500))
    steady.goes_on()
