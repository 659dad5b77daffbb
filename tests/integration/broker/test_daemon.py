"""The broker as a daemon: signals, the service manager, addresses; and the SDK over its restarts."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import lmq
from conftest import eventually
from crash.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 45.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet whose broker the test starts and ends."""
    with Fleet(tmp_path) as fleet:
        yield fleet


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_broker_told_to_end_keeps_all_it_acknowledged_and_leaves_nothing_behind(
    fleet: Fleet, number: signal.Signals
) -> None:
    broker = fleet.ready_broker()
    ipc_file = Path(fleet.ipc.removeprefix("ipc://"))
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        jobs = q.submit_many([("later", {"n": n}) for n in range(3000)])
        assert ipc_file.is_socket()
        broker.ended_by_us = True
        broker.send_signal(number)
        assert broker.wait() == 0, broker.said()
        assert "Traceback" not in broker.said()
        assert not ipc_file.exists()
        fleet.ready_broker()
        assert q.health().jobs_open == len(jobs)
        assert q.health().epoch == 2


def test_a_broker_told_to_end_under_load_loses_no_answer_it_gave(fleet: Fleet) -> None:
    broker = fleet.ready_broker()
    fleet.worker("e1")
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        with q.pipeline(window=64) as pipeline:
            jobs = [pipeline.submit("echo", {"n": n}) for n in range(400)]
            assert broker.terminate() == 0
            fleet.ready_broker()
            jobs += [pipeline.submit("echo", {"n": n}) for n in range(400, 800)]
        assert [job.result(PATIENCE_S) for job in jobs] == [{"echo": {"n": n}} for n in range(800)]


def test_sighup_rereads_the_defaults_of_jobs_to_come(fleet: Fleet) -> None:
    config = fleet.folder / "broker.toml"
    config.write_text("[broker.tasks.train]\npriority = 3\n")
    broker = fleet.ready_broker("--config", str(config))
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        before = q.submit("train")
        assert before.status().priority == 3
        config.write_text('[broker.tasks.train]\npriority = 7\nqueue = "nights"\nfailures = 9\n')
        broker.send_signal(signal.SIGHUP)
        eventually(lambda: q.submit("train").status().priority == 7, PATIENCE_S, "the new default")
        after = q.submit("train").status()
        assert (after.queue, after.failures_max) == ("nights", 9)
        assert before.status().priority == 3
        config.write_text("[broker.tasks.train]\npriority = 70\n")
        broker.send_signal(signal.SIGHUP)
        assert "allowed is 0 to 9" in broker.line("the old settings stay")
        assert q.submit("train").status().priority == 7


# --- the service manager ----------------------------------------------------------------------------------------------


class ServiceManager:
    """The socket on which systemd would listen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE_S)

    def hears(self, word: str) -> str:
        """Return the next message that holds a word; others before it are passed over."""
        while True:
            text = self._socket.recv(4096).decode()
            if word in text:
                return text

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(fleet: Fleet) -> Iterator[ServiceManager]:
    manager = ServiceManager(Path(fleet.ipc.removeprefix("ipc://")).parent / "notify")
    yield manager
    manager.close()


def test_the_service_manager_is_told_how_it_goes(fleet: Fleet, manager: ServiceManager) -> None:
    broker = fleet.broker(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="400000")
    assert "STATUS=0 jobs open, 0 ended since the start, 0 workers, 0 sessions" in manager.hears("READY=1")
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        # Ready means that commands are answered.
        q.submit("later")
        for _ in range(3):
            assert "STATUS=" in manager.hears("WATCHDOG=1")
        assert manager.hears("STATUS=1 job open")
        broker.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in manager.hears("RELOADING=1")
        manager.hears("READY=1")
    broker.ended_by_us = True
    broker.send_signal(signal.SIGTERM)
    manager.hears("STOPPING=1")
    assert broker.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has sockets without a file")
def test_the_service_manager_may_listen_without_a_file(fleet: Fleet) -> None:
    name = f"lmq-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(PATIENCE_S)
        fleet.broker(NOTIFY_SOCKET=f"@{name}")
        assert listening.recv(4096).startswith(b"READY=1")


def test_a_service_manager_that_is_gone_is_no_reason_to_fail(fleet: Fleet) -> None:
    broker = fleet.ready_broker(NOTIFY_SOCKET="/nowhere/notify", WATCHDOG_USEC="100000")
    with lmq.Client(fleet.url, timeout_s=PATIENCE_S) as q:
        q.submit("later")
    assert broker.terminate() == 0


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["tcp://0.0.0.0:0", "tcp://*:0", "tcp://[::]:0", "tcp://192.0.2.1:0", "tcp://localhost.example:0"],
)
@pytest.mark.parametrize("option", ["--listen", "--events-listen"])
def test_an_address_that_others_can_reach_is_refused(fleet: Fleet, option: str, address: str) -> None:
    broker = fleet.broker(option, address)
    assert broker.wait() == 2
    assert "reachable from other machines" in broker.said()
    assert "tcp://127.0.0.1:PORT" in broker.said()
    assert "Traceback" not in broker.said()


def test_an_address_in_use_is_refused_in_a_sentence(fleet: Fleet, tmp_path: Path) -> None:
    fleet.ready_broker()
    with Fleet(tmp_path / "second") as second:
        second.url = fleet.url
        broker = second.broker()
        assert broker.wait() == 75
        assert "address is in use" in broker.said()
        assert "Traceback" not in broker.said()


# --- the SDK over restarts --------------------------------------------------------------------------------------------


def test_what_waits_in_the_sdk_goes_on_over_kills_of_the_broker(fleet: Fleet) -> None:
    """A result, a text, a subscription and a row of submits are under way while the broker dies twice."""
    broker = fleet.ready_broker()
    fleet.worker("e1")
    with lmq.Client(fleet.url, user="anna", timeout_s=PATIENCE_S) as q:
        events = q.events(timeout_s=PATIENCE_S)
        text = "".join(f"word {n:03} " for n in range(60))
        slow = q.submit("echo", {"text": text, "delay_s": 2.5})
        stream = slow.stream(timeout_s=PATIENCE_S)
        read = next(stream)
        others = []
        for _ in range(2):
            broker.kill()
            broker = fleet.ready_broker()
            others += [q.submit("echo", {"n": n}) for n in range(20)]
            read += next(stream)
        read += "".join(stream)
        assert read == text
        assert slow.result(PATIENCE_S) == {"echo": {"text": text, "delay_s": 2.5}}
        # The worker lived, so its lease did: one attempt over three brokers.
        assert (slow.status().attempt, slow.status().failures) == (1, 0)
        assert all(job.result(PATIENCE_S) for job in others)
        seqs = []
        for event in events:
            seqs.append(event.seq)
            if event.kind == "done" and event.job_id == slow.id:
                break
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        events.close()


def test_settings_that_cannot_be_used_end_it_with_2_so_that_nobody_starts_it_again(fleet: Fleet) -> None:
    config = fleet.folder / "broker.toml"
    config.write_text("[broker]\nfoo = 1\n")
    broker = fleet.broker("--config", str(config))
    broker.ended_by_us = True
    assert broker.wait() == 2
    assert "foo" in broker.said()


def test_a_reload_that_cannot_be_used_is_in_the_status(fleet: Fleet, manager: ServiceManager) -> None:
    config = fleet.folder / "broker.toml"
    config.write_text("[broker]\n")
    broker = fleet.broker("--config", str(config), NOTIFY_SOCKET=str(manager.path))
    manager.hears("READY=1")
    config.write_text("[broker]\njobs_open = 'many'\n")
    broker.send_signal(signal.SIGHUP)
    manager.hears("RELOADING=1")
    assert "the old settings stay" in manager.hears("READY=1")
    config.write_text("[broker]\n")
    broker.send_signal(signal.SIGHUP)
    manager.hears("RELOADING=1")
    assert "the old settings stay" not in manager.hears("READY=1")
