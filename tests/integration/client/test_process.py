"""The client inside a process: interrupts, forks, event loops that are blocked or end, what an import costs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import lmq
from conftest import eventually
from integration.client.fake_broker import FakeBroker

HOUSE = Path(__file__).resolve().parents[3]


def run_python(program: str, *args: str) -> str:
    """Run a program in a fresh interpreter that finds the house's packages; return what it printed."""
    roots = [str(HOUSE / root) for root in ("proto", "client")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *args],
        env=environment, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    return run.stdout


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="interrupts a thread by a POSIX call")
def test_an_interrupt_in_result_leaves_the_client_usable(manual: FakeBroker) -> None:
    main = threading.main_thread().ident
    assert main is not None
    # A process that a shell put into the background ignores the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with lmq.Client(manual.url) as client:
        job = client.submit("echo", 1)
        waits = threading.Event()

        def interrupt() -> None:
            assert waits.wait(10)
            eventually(lambda: job._record.waiters, what="the wait")
            signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        waits.set()
        with pytest.raises(KeyboardInterrupt):
            job.result()
        thread.join(10)
        assert not job._record.waiters
        manual.finish(job.job_id, "still here")
        assert job.result(timeout_s=10) == "still here"
        assert client.health().epoch == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_child_has_a_connection_of_its_own(broker: FakeBroker) -> None:
    program = """
import os, sys, lmq
client = lmq.Client(sys.argv[1])
job = client.submit("echo", "parent")
assert job.result(20) == {"echo": "parent"}
waiting = client.submit("echo", "followed before the fork")
read, write = os.pipe()
child = os.fork()
if child == 0:
    answer = client.submit("echo", "child").result(20)["echo"]
    answer += "+" + waiting.result(20)["echo"]
    client.close()
    os.write(write, answer.encode())
    os._exit(0)
os.waitpid(child, 0)
print(os.read(read, 100).decode())
print(client.submit("echo", "parent again").result(20)["echo"])
client.close()
"""
    assert run_python(program, broker.url).split("\n")[:2] == [
        "child+followed before the fork",
        "parent again",
    ]


def test_a_program_that_never_closes_its_client_ends(broker: FakeBroker) -> None:
    program = """
import sys, lmq
client = lmq.Client(sys.argv[1])
events = client.events()
print(client.submit("echo", 1).result(20))
"""
    assert run_python(program, broker.url) == "{'echo': 1}\n"


def test_a_client_that_is_dropped_ends_its_thread(broker: FakeBroker) -> None:
    client = lmq.Client(broker.url)
    client.health()
    del client
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "lmq-client"])


def test_the_conversation_goes_on_while_the_loop_is_blocked(manual: FakeBroker) -> None:
    async def main() -> None:
        async with lmq.AsyncClient(manual.url) as client:
            job = await client.submit("echo", 1)
            # Blocks the loop until the client has sent heartbeats of its own accord.
            beats = manual.received["heartbeat"]
            eventually(lambda: manual.received["heartbeat"] > beats + 3, within_s=20)
            manual.finish(job.job_id, "meanwhile")
            eventually(lambda: job.is_ended, what="the end, taken by the I/O thread", within_s=20)
            assert await job.result() == "meanwhile"
        assert manual.disk.epoch == 1

    asyncio.run(main())


def test_an_async_client_may_be_used_from_one_loop_after_another(broker: FakeBroker) -> None:
    client = lmq.AsyncClient(broker.url)

    async def once(number: int) -> object:
        return await client.submit("echo", number).result(timeout_s=20)

    assert [asyncio.run(once(number)) for number in range(3)] == [{"echo": number} for number in range(3)]
    asyncio.run(client.close())


def test_a_cancelled_wait_leaves_the_client_usable(manual: FakeBroker) -> None:
    async def main() -> None:
        async with lmq.AsyncClient(manual.url) as client:
            job = await client.submit("echo", 1)
            waiting = asyncio.create_task(job.result())

            async def first_piece() -> str:
                return await anext(aiter(job.stream()))

            stream = asyncio.create_task(first_piece())
            await asyncio.sleep(0)
            waiting.cancel()
            stream.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with pytest.raises(asyncio.CancelledError):
                await stream
            manual.finish(job.job_id, 2)
            assert await job.result(timeout_s=20) == 2

    asyncio.run(main())


def test_many_coroutines_share_one_client(broker: FakeBroker) -> None:
    async def main() -> list[object]:
        async with lmq.AsyncClient(broker.url) as client:
            waits = [client.submit("echo", number).result(timeout_s=30) for number in range(1000)]
            return list(await asyncio.gather(*waits))

    assert asyncio.run(main()) == [{"echo": number} for number in range(1000)]
    assert broker.submit_messages < 1000


def test_an_import_pulls_in_no_sockets_loops_or_other_parts() -> None:
    loaded = set(run_python("import lmq, sys; print(*sys.modules)").split())
    heavy = {
        "zmq", "asyncio", "platformdirs", "lmq_broker", "lmq_worker", "lmq_simulator", "lmq_systemd", "lmq.cli",
        "rich", "httpx", "h11", "peewee", "click", "sqlite3", "ssl", "importlib.metadata", "concurrent.futures",
    }  # fmt: skip
    assert not loaded & heavy


def test_every_public_name_can_be_imported() -> None:
    for name in lmq.__all__:
        assert getattr(lmq, name) is not None
    with pytest.raises(AttributeError):
        lmq.nothing  # type: ignore[attr-defined]  # noqa: B018  # the look is the test
