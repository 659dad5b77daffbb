"""A real worker process: what it prints, how it ends, what it leaves behind when it is killed."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from conftest import eventually
from integration.worker.fake_broker import WITHIN_S, FakeBroker, a_broker, environment
from lmq_proto.messages import Bye, CapacityReport, Enlist

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FOR_EVER_S = 600.0


@asynccontextmanager
async def a_process(
    broker_url: str, state_dir: Path, *options: str, **extra: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a worker process; kill it if it still runs when the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lmq_worker", "--backend", "echo", "--name", "w1", "--broker", broker_url, *options,
        env=environment(
            LMQ_WORKER_STATE_DIR=str(state_dir), LMQ_CONFIG=str(no_settings(state_dir)), **extra
        ),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def no_settings(state_dir: Path) -> Path:
    file = state_dir / "config.toml"
    file.touch()
    return file


async def line(process: asyncio.subprocess.Process, *, holding: str) -> str:
    """Return the first line on stderr that holds a text."""
    assert process.stderr is not None
    async with asyncio.timeout(WITHIN_S):
        while text := (await process.stderr.readline()).decode():
            if holding in text:
                return text
    pytest.fail(f"no line with {holding!r}")


async def exit_status(process: asyncio.subprocess.Process) -> tuple[int, str]:
    """Return the exit status and the rest of stderr."""
    async with asyncio.timeout(WITHIN_S):
        _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def run_to_end(broker_url: str, state_dir: Path, *options: str, **extra: str) -> tuple[int, str]:
    async with a_process(broker_url, state_dir, *options, **extra) as process:
        return await exit_status(process)


def test_it_says_when_it_is_ready_and_sigterm_gives_back_what_runs(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            a_broker() as broker,
            a_process(broker.url, tmp_path, LMQ_WORKER_DRAIN_TIMEOUT_S="0.1") as process,
        ):
            assert "worker w1 ready at echo:w1" in await line(process, holding="ready")
            lease = await broker.give({"delay_s": FOR_EVER_S})
            await broker.end(await broker.give({}))
            process.send_signal(signal.SIGTERM)
            assert (await broker.end(lease))[0].outcome == "release"
            assert (await broker.message(CapacityReport)).capacity.slots == 0
            await broker.message(Bye)
            assert (await exit_status(process))[0] == 0

    asyncio.run(story())


async def killed_with_a_result(broker: FakeBroker, state_dir: Path) -> bytes:
    """Run a worker until a result of it lies in the spool, then kill -9; return its instance id."""
    async with a_process(broker.url, state_dir) as process:
        enlist = await broker.message(Enlist)
        await broker.end(await broker.give({"a": 1}))
        results = state_dir / "worker" / "echo_w1" / "results"
        await asyncio.to_thread(
            eventually, lambda: list(results.glob("*.result")), WITHIN_S, "a result in the spool"
        )
        process.kill()
        await process.wait()
        return enlist.instance


def test_after_kill_9_the_next_one_offers_the_results_and_names_whom_it_replaces(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker:
            broker.acks = False
            instance = await killed_with_a_result(broker, tmp_path)
            broker.acks = True
            broker.results.clear()
            async with a_process(broker.url, tmp_path):
                second = await broker.message(Enlist, 2)
                assert second.replaces == instance != second.instance
                assert [one.ended for one in second.held] == [True]
                await broker.until(lambda: broker.results, "the result of the first life")

    asyncio.run(story())


def test_a_second_worker_for_the_same_endpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_process(broker.url, tmp_path) as process:
            await line(process, holding="ready")
            status, said = await run_to_end(broker.url, tmp_path)
            assert status == 69
            assert "stop it first" in said
            assert "Traceback" not in said

    asyncio.run(story())


@pytest.mark.parametrize(
    ("options", "extra", "status", "holding"),
    [
        (["--backend", "nothing"], {}, 2, "nothing"),
        (["--slots", "0"], {}, 2, "slots"),
        (["--broker", "http://x"], {}, 2, "tcp://HOST:PORT"),
        ([], {"LMQ_WORKER_POLL_S": "soon"}, 2, "poll_s"),
        ([], {"LMQ_WORKER_POLL_S": "-1"}, 2, "above 0"),
        (["--backend", "auto", "--endpoint", "http://127.0.0.1:1"], {}, 69, "lms server start"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, options: list[str], extra: dict[str, str], status: int, holding: str
) -> None:
    ended, said = asyncio.run(run_to_end("tcp://127.0.0.1:1", tmp_path, *options, **extra))
    assert (ended, "Traceback" in said) == (status, False)
    assert holding in said


def test_an_echo_job_may_kill_its_worker_where_that_is_allowed(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            a_broker() as broker,
            a_process(broker.url, tmp_path, LMQ_WORKER_ECHO_MAY_CRASH="true") as process,
        ):
            await broker.message(Enlist)
            await broker.give({"crash": True})
            assert (await exit_status(process))[0] == 137

    asyncio.run(story())


def test_it_tells_systemd_when_it_is_ready_alive_and_stopping(tmp_path: Path) -> None:
    async def story() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            systemd.setblocking(False)
            loop = asyncio.get_running_loop()
            said: list[str] = []

            async def hear(word: str) -> None:
                async with asyncio.timeout(WITHIN_S):
                    while not any(word in one for one in said):
                        said.append((await loop.sock_recv(systemd, 4096)).decode())

            async with (
                a_broker() as broker,
                a_process(
                    broker.url, tmp_path, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="100000"
                ) as process,
            ):
                for word in ("READY=1", "STATUS=worker w1 ready", ", 0 running", "WATCHDOG=1"):
                    await hear(word)
                await broker.give({"delay_s": 3600.0})
                await hear(", 1 running")
                process.send_signal(signal.SIGTERM)
                await hear("STOPPING=1")
                assert (await exit_status(process))[0] == 0

    asyncio.run(story())
