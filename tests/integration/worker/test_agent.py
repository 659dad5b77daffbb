"""The agent over real sockets, with the echo backend: connections that break, leases that end, results that stay."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from integration.worker.fake_broker import a_broker, a_worker, settings
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    CapacityReport,
    Enlist,
    ErrorReply,
    Group,
    Lease,
    LeaseRef,
    LoadEnded,
    LoadModel,
    Stop,
    Work,
)
from lmq_worker.agent import Agent, WorkerBroken
from lmq_worker.backends import BACKENDS
from lmq_worker.backends.echo import EchoBackend
from lmq_worker.spool import Spool, SpoolTaken

if TYPE_CHECKING:
    from pathlib import Path

# Longer than any test: such a job ends only by being stopped.
FOR_EVER_S = 600.0


def test_an_echo_job_comes_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            lease = await broker.give({"a": [1, "two"]})
            ended, result = await broker.end(lease)
            assert (ended.outcome, ended.error) == ("complete", None)
            assert result == {"echo": {"a": [1, "two"]}}

    asyncio.run(story())


def test_text_comes_in_pieces_and_ends_with_the_reason(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            lease = await broker.give({"text": "a text of some pieces"})
            await broker.end(lease)
            assert broker.text(lease) == "a text of some pieces"
            assert broker.text(lease, "end") == "stop"
            assert len(broker.pieces[lease.job_id, 1]) > 1

    asyncio.run(story())


@pytest.mark.parametrize(
    ("payload", "outcome", "code", "permanent"),
    [
        ({"fail": "transient"}, "fail", "echo_transient", False),
        ({"fail": "permanent"}, "fail", "echo_permanent", True),
        ({"failures": 1}, "fail", "echo_transient", False),
        ({"crash": True}, "fail", "crash_not_allowed", True),
        (b"\xc1", "fail", "bad_payload", True),
    ],
)
def test_an_echo_job_fails_as_it_asks(
    tmp_path: Path, payload: dict[str, object] | bytes, outcome: str, code: str, permanent: bool
) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            ended, _ = await broker.end(await broker.give(payload))
            assert ended.error is not None
            assert (ended.outcome, ended.error.code, ended.permanent) == (outcome, code, permanent)

    asyncio.run(story())


def test_an_echo_job_succeeds_after_the_failures_it_asked_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            ended, _ = await broker.end(await broker.give({"failures": 2}, failures=2))
            assert ended.outcome == "complete"

    asyncio.run(story())


def test_two_thousand_jobs_end_once_each_in_few_messages(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            for start in range(0, 2000, 100):
                leases = [
                    Lease(
                        job_id=(1000 + start + n).to_bytes(16, "big"),
                        epoch=1,
                        attempt=1,
                        task_type="echo",
                        payload_bytes=1,
                        instance_id="echo",
                    )
                    for n in range(100)
                ]
                await broker.send(Work(groups=[Group(leases=[lease]) for lease in leases]), b"\x80" * 100)
            await broker.until(lambda: len(broker.results) == 2000, "2000 results")
            assert broker.results_heard == 2000

    asyncio.run(story())


def test_a_group_runs_one_after_another_in_its_slot(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            first, second, third = await broker.give_group([{"delay_s": FOR_EVER_S}, {"text": "two"}, {}])
            await broker.send(Stop(leases=[LeaseRef(job_id=second.job_id, epoch=1, attempt=1)]))
            await broker.send(Stop(leases=[LeaseRef(job_id=first.job_id, epoch=1, attempt=1)]))
            outcomes = [(await broker.end(lease))[0].outcome for lease in (first, second, third)]
            assert outcomes == ["stopped", "stopped", "complete"]

    asyncio.run(story())


def test_an_attempt_over_its_time_fails(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            ended, _ = await broker.end(await broker.give({"delay_s": FOR_EVER_S}, timeout_ms=50))
            assert ended.error is not None
            assert (ended.outcome, ended.error.code, ended.permanent) == ("fail", "attempt_timeout", False)
            assert ended.engine_ms >= 40, "the engine was busy until then"

    asyncio.run(story())


def test_a_stopped_attempt_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            lease = await broker.give({"delay_s": FOR_EVER_S})
            await broker.send(
                Stop(leases=[LeaseRef(job_id=lease.job_id, epoch=1, attempt=1)], reason="cancelled")
            )
            ended, _ = await broker.end(lease)
            assert ended.outcome == "stopped"

    asyncio.run(story())


def test_a_broker_back_after_a_crash_gets_leases_results_and_text_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as first, a_worker(settings(first.url, tmp_path)):
            await first.message(Enlist)
            first.acks = first.text_durable = False
            done = await first.give({"text": "all of it"})
            await first.end(done)
            runs = await first.give({"delay_s": FOR_EVER_S})
            await first.until(lambda: True, "the send")
            port = first.port
            await first.close()
            async with a_broker(port, epoch=2) as second:
                enlist = await second.message(Enlist)
                held = {one.job_id: one.ended for one in enlist.held}
                assert held[done.job_id] is True
                ended, result = await second.end(done)
                assert (ended.outcome, result) == ("complete", {"echo": {"text": "all of it"}})
                assert second.text(done) == "all of it"
                if runs.job_id in held:
                    await second.send(Stop(leases=[LeaseRef(job_id=runs.job_id, epoch=1, attempt=1)]))
                    assert (await second.end(runs))[0].outcome == "stopped"

    asyncio.run(story())


def test_a_broker_that_falls_silent_is_connected_to_anew(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            broker.heartbeat_ms = 100
            await broker.message(Enlist)
            broker.heartbeats = False
            again = await broker.message(Enlist, 2)
            assert again.instance == (await broker.message(Enlist)).instance
            broker.heartbeats = True

    asyncio.run(story())


def test_the_next_address_is_tried_when_one_does_not_answer(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as mute, a_broker() as broker:
            mute.enlists = False
            worker = settings(broker.url, tmp_path, broker=[mute.url, broker.url])
            async with a_worker(worker):
                await mute.message(Enlist)
                await broker.message(Enlist)
                assert (await broker.end(await broker.give({})))[0].outcome == "complete"

    asyncio.run(story())


def test_garbage_from_a_broker_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            for frames in (
                [b""],
                [b"LMQ1", b"work", b"\xc1", b""],
                [b"LMQ9", b"work", b"\x80", b""],
                [b"x"] * 9,
            ):
                await broker.socket.send_multipart([broker.peer, *frames])
            await broker.send(Work(groups=[Group(leases=[a_lease_of(9)])]), b"too short")
            assert (await broker.end(await broker.give({})))[0].outcome == "complete"

    asyncio.run(story())


def a_lease_of(payload_bytes: int) -> Lease:
    return Lease(job_id=b"j" * 16, epoch=1, attempt=1, task_type="echo", payload_bytes=payload_bytes + 1)


def test_a_load_is_refused_by_a_backend_without_models(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker, a_worker(settings(broker.url, tmp_path)):
            await broker.message(Enlist)
            await broker.send(LoadModel(command_id=3, model="m"))
            ended = await broker.message(LoadEnded)
            assert ended.command_id == 3
            assert ended.error is not None
            assert ended.error.code == "load_not_allowed"

    asyncio.run(story())


def test_a_worker_that_is_not_wanted_ends_and_says_why(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker:
            broker.enlists = False
            config = settings(broker.url, tmp_path)
            spool = Spool(config.spool_dir, limit_bytes=config.spool_bytes)
            run = asyncio.create_task(Agent(config, BACKENDS["echo"](config, spool), spool).run())
            enlist = await broker.message(Enlist)
            refusal = ErrorInfo("upgrade_required", "install the same lmq on both")
            await broker.send(ErrorReply(request_id=enlist.request_id, error=refusal))
            assert await run == refusal
            spool.close()

    asyncio.run(story())


def test_a_fault_of_its_own_ends_the_worker_instead_of_leaving_it_half_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(EchoBackend, "immediate", broken)

    async def story() -> None:
        async with a_broker() as broker:
            config = settings(broker.url, tmp_path)
            spool = Spool(config.spool_dir, limit_bytes=config.spool_bytes)
            run = asyncio.create_task(Agent(config, BACKENDS["echo"](config, spool), spool).run())
            await broker.message(Enlist)
            await broker.give({})
            with pytest.raises(WorkerBroken, match="a bug"):
                await run
            spool.close()

    asyncio.run(story())


def test_what_was_not_acknowledged_is_offered_by_the_next_worker(tmp_path: Path) -> None:
    async def story() -> None:
        async with a_broker() as broker:
            config = settings(broker.url, tmp_path, ack_timeout_s=0.05)
            broker.acks = False
            async with a_worker(config):
                await broker.message(Enlist)
                lease = await broker.give({"a": 1})
                await broker.end(lease)
            results = config.spool_dir / "results"
            assert len(list(results.iterdir())) == 1
            broker.acks = True
            broker.results.clear()
            async with a_worker(config):
                second = await broker.message(Enlist, 2)
                assert [(one.job_id, one.ended) for one in second.held] == [(lease.job_id, True)]
                assert second.replaces == b""
                assert (await broker.end(lease))[1] == {"echo": {"a": 1}}
                await broker.end(await broker.give({}))
            assert list(results.iterdir()) == []

    asyncio.run(story())


def test_a_stopping_worker_finishes_what_it_can_and_gives_back_the_rest(tmp_path: Path) -> None:
    async def story() -> None:
        async with (
            a_broker() as broker,
            a_worker(settings(broker.url, tmp_path, drain_timeout_s=1.0)) as agent,
        ):
            await broker.message(Enlist)
            quick = await broker.give({"delay_s": 0.3})
            slow = await broker.give({"delay_s": FOR_EVER_S, "text": "xxxx"})
            echo = await broker.give({})
            await broker.end(echo)
            agent.stop()
            told = await broker.message(CapacityReport)
            assert told.capacity.slots == 0
            late = await broker.give({})
            outcomes = [(await broker.end(lease))[0].outcome for lease in (quick, slow, late)]
            assert outcomes == ["complete", "release", "release"]

    asyncio.run(story())


def test_two_workers_on_one_spool_refuse_each_other(tmp_path: Path) -> None:
    first = Spool(tmp_path, limit_bytes=1)
    with pytest.raises(SpoolTaken, match="stop it first"):
        Spool(tmp_path, limit_bytes=1)
    first.close()
    Spool(tmp_path, limit_bytes=1).close()
