"""What happens on the wire over time: streams, slots, clients that leave, connections that close, models that die."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import eventually
from lmq_simulator import Simulator, SimulatorConfig, ThreadedSimulator, run_in_thread

Start = Callable[..., tuple[ThreadedSimulator, httpx.Client]]

MODEL = "qwen/qwen3-8b"
OTHER = "meta/llama-3.1-8b"
EMBEDDER = "text-embedding-nomic-embed-text-v1.5"
CHAT = "/v1/chat/completions"
# Long enough that nothing ends by itself while a test looks on.
FOR_EVER = 100_000


def question(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


@contextmanager
def streaming(client: httpx.Client, body: dict[str, Any]) -> Iterator[Iterator[str]]:
    """Open a stream and read its first line, so that the request is known to be in its slot and writing."""
    with client.stream("POST", CHAT, json={**body, "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        yield lines


def instance(simulator: ThreadedSimulator, instance_id: str = MODEL) -> dict[str, Any]:
    return next(one for one in simulator.state()["instances"] if one["id"] == instance_id)


def counter(simulator: ThreadedSimulator, name: str) -> int:
    value = simulator.state()["counters"][name]
    assert isinstance(value, int)
    return value


@contextmanager
def raw_connection(url: str) -> Iterator[socket.socket]:
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=20) as connection:
        yield connection


def raw_request(body: dict[str, Any], path: str = CHAT) -> bytes:
    data = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(data), data)


def read_reply(connection: socket.socket) -> tuple[bytes, bytes]:
    """Read one reply with a Content-Length; return its head and its body."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return head, body


# Slots and loading.


def test_a_piece_is_sent_as_soon_as_it_is_written(start: Start) -> None:
    simulator, client = start(itl_base_ms=5, answer_tokens=FOR_EVER)
    with streaming(client, question()) as lines:
        for _ in range(10):
            next(lines)
        assert instance(simulator)["status"] == "generating"


def test_requests_beyond_the_slots_wait_without_a_byte(start: Start) -> None:
    simulator, client = start(parallel=2, itl_base_ms=20, answer_tokens=FOR_EVER)
    with (
        streaming(client, question()),
        streaming(client, question()),
        raw_connection(simulator.url) as third,
    ):
        third.sendall(raw_request(question(stream=True, max_tokens=1)))
        eventually(lambda: len(instance(simulator)["waiting"]) == 1)
        assert len(instance(simulator)["active"]) == 2
        third.setblocking(False)
        with pytest.raises(BlockingIOError):
            third.recv(1)
        third.setblocking(True)
        simulator.crash(MODEL)
        assert read_reply(third)[0].startswith(b"HTTP/1.1 400 Bad Request")


def test_many_requests_at_once_never_use_more_than_the_slots(start: Start) -> None:
    simulator, client = start(parallel=3, itl_base_ms=1, answer_tokens=3)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.post(CHAT, json=question()).status_code, range(12)))
    assert answers == [200] * 12
    assert counter(simulator, "max_active") <= 3
    assert counter(simulator, "completed") == 12


@pytest.mark.parametrize(("race", "ids"), [(True, {OTHER, f"{OTHER}:2", f"{OTHER}:3"}), (False, {OTHER})])
def test_simultaneous_first_requests_race_to_load(start: Start, race: bool, ids: set[str]) -> None:
    simulator, client = start(jit_race=race, load_gb_per_s=0.001)

    def ask(_: int) -> str:
        answer = client.post(CHAT, json={**question(), "model": OTHER}).json()
        return str(answer["error"])

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, number) for number in range(3)]
        eventually(lambda: counter(simulator, "requests") == 3)
        loading = {one["id"] for one in simulator.state()["instances"] if one["status"] == "loading"}
        assert loading == ids
        assert not any(one.done() for one in asked)
        for one in ids:
            client.post("/api/v1/models/unload", json={"instance_id": one})
        assert {one.result() for one in asked} == {
            f'Failed to load model "{OTHER}". Error: Operation canceled.'
        }


@pytest.mark.parametrize("ending", ["abrupt", "event"])
def test_loading_on_demand_cuts_off_a_model_that_is_writing(start: Start, ending: str) -> None:
    _simulator, client = start(loaded=(), itl_base_ms=5, answer_tokens=FOR_EVER, broken_stream=ending)
    with streaming(client, question()) as lines:
        answer = client.post(CHAT, json={**question(), "model": OTHER, "max_tokens": 1})
        assert answer.json()["model"] == OTHER
        if ending == "abrupt":
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        else:
            assert "event: error" in list(lines)


def test_a_cache_that_runs_over_fails_all_streams_in_it(start: Start) -> None:
    simulator, client = start(itl_base_ms=1, answer_tokens=FOR_EVER)
    client.post("/api/v1/models/load", json={"model": MODEL, "context_length": 200})
    body = {**question(), "model": f"{MODEL}:2"}
    with streaming(client, body) as one, streaming(client, body) as two:
        for lines in (one, two):
            rest = list(lines)
            assert "event: error" in rest
            assert "Context size has been exceeded." in "".join(rest)
            assert "data: [DONE]" not in rest
    assert instance(simulator, f"{MODEL}:2")["active"] == []
    assert counter(simulator, "overflows") == 1


def test_embeddings_are_computed_one_request_at_a_time(start: Start) -> None:
    simulator, client = start(embed_ms_per_string=1)
    with ThreadPoolExecutor(4) as pool:
        bodies = [{"model": EMBEDDER, "input": ["text"] * 3} for _ in range(4)]
        answers = list(pool.map(lambda body: client.post("/v1/embeddings", json=body).status_code, bodies))
    assert answers == [200] * 4
    tickets = sorted(simulator.requests(), key=lambda ticket: ticket["started_ms"])
    assert all(one["ended_ms"] <= other["started_ms"] for one, other in pairwise(tickets))


# Dying.


def test_a_crash_cuts_streams_off_and_answers_400_to_who_waits(start: Start) -> None:
    simulator, client = start(parallel=1, itl_base_ms=5, answer_tokens=FOR_EVER)
    with streaming(client, question()) as lines, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, CHAT, json=question())
        eventually(lambda: len(instance(simulator)["waiting"]) == 1)
        assert simulator.crash(MODEL) == [MODEL]
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
        assert waiting.result().status_code == 400
        assert (
            waiting.result()
            .json()["error"]
            .startswith("The model has crashed without additional information.")
        )
    again = client.post(CHAT, json=question(max_tokens=1))
    assert again.status_code == 200
    assert instance(simulator)["jit"]


def test_a_stalled_server_sends_nothing_until_it_goes_on(start: Start) -> None:
    simulator, client = start(stalled=True)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, CHAT, json=question())
        eventually(lambda: counter(simulator, "requests") == 1)
        assert client.get("/v1/models").status_code == 200
        assert not answer.done()
        simulator.turn(stalled=False)
        assert answer.result().status_code == 200


# Leaving.


def test_a_client_that_leaves_while_its_answer_is_written_frees_the_slot(start: Start) -> None:
    simulator, client = start(itl_base_ms=5, answer_tokens=FOR_EVER)
    with streaming(client, question()):
        assert len(instance(simulator)["active"]) == 1
    eventually(lambda: not instance(simulator)["active"])
    assert counter(simulator, "abandoned") == 1
    assert counter(simulator, "disconnects") == 1


def test_a_client_that_leaves_while_its_prompt_is_read_keeps_the_slot_until_it_is_read(start: Start) -> None:
    simulator, _client = start(prefill_tokens_per_s=1)
    with raw_connection(simulator.url) as connection:
        connection.sendall(raw_request(question(stream=True)))
        eventually(lambda: instance(simulator)["status"] == "processingPrompt")
    eventually(lambda: counter(simulator, "disconnects") == 1)
    (ticket,) = simulator.requests()
    assert (ticket["phase"], ticket["client_left"]) == ("prefill", True)
    assert len(instance(simulator)["active"]) == 1


def test_the_prompt_once_read_the_slot_of_who_left_is_free(start: Start) -> None:
    simulator, _client = start(stalled=True)
    with raw_connection(simulator.url) as connection:
        connection.sendall(raw_request(question(stream=True)))
        eventually(lambda: instance(simulator)["status"] == "processingPrompt")
    eventually(lambda: counter(simulator, "disconnects") == 1)
    simulator.turn(stalled=False)
    (ticket,) = simulator.requests()
    assert (ticket["phase"], ticket["generated_tokens"]) == ("abandoned", 0)
    assert ticket["prefilled"] == ticket["prompt_tokens"]
    assert instance(simulator)["active"] == []


def test_a_client_that_leaves_may_never_be_noticed(start: Start) -> None:
    simulator, client = start(itl_base_ms=1, answer_tokens=20, disconnects_noticed=False)
    with streaming(client, question()):
        pass
    eventually(lambda: counter(simulator, "completed") == 1)
    assert simulator.requests()[0]["generated_tokens"] == 20
    assert counter(simulator, "abandoned") == 0


# Connections.


def test_one_connection_carries_many_requests(start: Start) -> None:
    simulator, _client = start()
    with raw_connection(simulator.url) as connection:
        for _ in range(3):
            connection.sendall(raw_request(question()))
            head, body = read_reply(connection)
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert json.loads(body)["object"] == "chat.completion"
        connection.sendall(raw_request(question()) * 2)
        assert read_reply(connection)[0].startswith(b"HTTP/1.1 200 OK")


def test_an_idle_connection_is_closed_after_its_time(start: Start) -> None:
    simulator, _client = start(keep_alive_s=0.05)
    with raw_connection(simulator.url) as connection:
        connection.sendall(raw_request(question()))
        head, _ = read_reply(connection)
        assert b"Keep-Alive: timeout=0.05" in head
        assert connection.recv(1) == b""
    eventually(lambda: simulator.state()["connections"] == 0)


def test_a_connection_may_close_right_after_a_reply_that_promised_to_keep_it(start: Start) -> None:
    simulator, _client = start(close_after_reply_ratio=1.0)
    with raw_connection(simulator.url) as connection:
        connection.sendall(raw_request(question()))
        head, _ = read_reply(connection)
        assert b"Connection: keep-alive" in head
        assert connection.recv(1) == b""


def test_what_is_no_http_is_refused(start: Start) -> None:
    simulator, _client = start()
    with raw_connection(simulator.url) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        received = b""
        while part := connection.recv(65536):
            received += part
        assert received.startswith(b"HTTP/1.1 400 Bad Request")


def test_a_client_may_ask_before_it_sends_the_body(start: Start) -> None:
    simulator, _client = start()
    head, _, body = raw_request(question()).partition(b"\r\n\r\n")
    with raw_connection(simulator.url) as connection:
        connection.sendall(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert read_reply(connection)[0].startswith(b"HTTP/1.1 200 OK")


def test_stopping_drops_the_streams_that_are_open() -> None:
    config = SimulatorConfig.instant(itl_base_ms=5, answer_tokens=FOR_EVER)
    with run_in_thread(config) as simulator, ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=simulator.url))
        lines = stack.enter_context(streaming(client, question()))
        left_open = stack.pop_all()
    with left_open, pytest.raises(httpx.TransportError):
        list(lines)


def test_a_simulator_lives_in_an_event_loop_too() -> None:
    async def ask() -> int:
        async with Simulator(SimulatorConfig.instant()).start() as simulator, httpx.AsyncClient() as client:
            response = await client.post(simulator.url + CHAT, json=question())
            assert simulator.state()["counters"]["completed"] == 1
            return response.status_code

    assert asyncio.run(ask()) == 200


def test_an_address_that_is_taken_is_an_error() -> None:
    with run_in_thread() as simulator:
        port = httpx.URL(simulator.url).port or 0
        with pytest.raises(OSError), run_in_thread(SimulatorConfig(port=port)):
            pass


# The command.


@pytest.mark.skipif(sys.platform == "win32", reason="signals to a process of one's own are not sent there")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_where_it_listens_and_stops_when_asked(number: signal.Signals) -> None:
    root = Path(__file__).resolve().parents[3] / "simulator"
    arguments = [sys.executable, "-m", "lmq_simulator", "--port", "0", "--instant", "--answer-tokens", "2"]
    with subprocess.Popen(
        arguments, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("simulator ready at http://127.0.0.1:")
        answer = httpx.post(line.split()[3] + CHAT, json=question(), timeout=20).json()
        assert answer["usage"]["completion_tokens"] == 2
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == ""


def test_the_command_lists_every_knob(capsys: pytest.CaptureFixture[str]) -> None:
    from lmq_simulator.__main__ import command
    from lmq_simulator.config import KNOB_HELP

    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in KNOB_HELP)
    assert "Example:" in shown
