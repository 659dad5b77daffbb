"""Peers of other versions, and who a peer is over ipc: the account that the kernel names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import lmq
from integration.broker.raw import RawPeer
from lmq_proto.ids import to_text
from lmq_proto.messages import Acked, Ended, Finished, Follow, Heartbeat, Results, Welcome, Work

if TYPE_CHECKING:
    from crash.fleet import Fleet

NOBODY = 65534


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("oldest", "newest"), [(1, 1), (0, 1), (1, 5), (0, 99)])
def test_a_client_that_also_speaks_our_version_is_served(fleet: Fleet, oldest: int, newest: int) -> None:
    with RawPeer(fleet.url) as raw:
        assert raw.hello(oldest=oldest, newest=newest).protocol == 1
        raw.submit([b"\x80"], follow=True)
        assert raw.message(Finished).jobs[0].state == "done"


@pytest.mark.parametrize(("oldest", "newest", "spoken"), [(2, 3, 2), (0, 0, 0), (5, 99, 5), (3, 1, 3)])
def test_a_client_without_a_common_version_is_told_to_upgrade(
    fleet: Fleet, oldest: int, newest: int, spoken: int
) -> None:
    with RawPeer(fleet.url) as raw:
        raw.header("hello", {
            "request_id": 7, "instance": raw.instance, "protocol_oldest": oldest, "protocol_newest": newest,
        })  # fmt: skip
        error = raw.error()
        assert (error.request_id, error.error.code) == (7, "upgrade_required")
        assert error.error.fields == {"spoken": spoken, "oldest": 1, "newest": 1}
        assert "install the same lmq" in error.error.message


@pytest.mark.parametrize(("oldest", "newest"), [(0, 1), (1, 5)])
def test_a_worker_that_also_speaks_our_version_is_given_work(fleet: Fleet, oldest: int, newest: int) -> None:
    name = f"old-{oldest}-{newest}"
    with RawPeer(fleet.url) as worker, RawPeer(fleet.url) as client:
        enlisted = worker.enlist(name, task_types=[name], protocol_oldest=oldest, protocol_newest=newest)
        assert enlisted.protocol == 1
        client.hello()
        job_id = client.submit([b"\x80"], follow=True, task_type=name)[0]
        lease = worker.message(Work).groups[0].leases[0]
        ended = Ended(
            job_id=lease.job_id, epoch=lease.epoch, attempt=lease.attempt, outcome="complete", result_bytes=2
        )
        worker.send(Results(ended=[ended]), b"ok")
        assert worker.message(Acked).leases[0].job_id == job_id
        end, body = client.receive(Finished)
        assert (end.jobs[0].state, body) == ("done", b"ok")


def test_a_worker_without_a_common_version_is_told_to_upgrade(fleet: Fleet) -> None:
    with RawPeer(fleet.url) as worker:
        worker.header("enlist", {
            "request_id": 3, "instance": worker.instance, "protocol_oldest": 2, "protocol_newest": 3, "name": "new",
            "endpoint": "raw://new", "backend": "raw", "capacity": {}, "task_types": ["echo"], "brand_new": True,
        })  # fmt: skip
        assert worker.error().error.code == "upgrade_required"


# --- who is there -----------------------------------------------------------------------------------------------------


def as_account(uid: int, url: str, *names: str) -> dict[str, Any]:
    """Run `peer_as` as another account and return what it found."""
    ran = subprocess.run(
        [sys.executable, "-m", "integration.broker.peer_as", str(uid), url, *names],
        # A home that this account may not even look into would be an error of its own.
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "HOME": "/nowhere",
            "XDG_CONFIG_HOME": "/nowhere",
        },
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_over_ipc_the_kernel_says_who_one_is_whatever_one_claims(fleet: Fleet) -> None:
    import pwd

    with RawPeer(fleet.ipc) as raw:
        welcome = raw.hello("mallory")
        assert welcome.role == "admin"
        # The account that runs the broker may speak for others, so its claim counts; its principal stays its own.
        job_id = raw.submit([b"\x80"])[0]
        with lmq.Client(fleet.ipc, timeout_s=30) as q:
            assert q.job(to_text(job_id)).status().principal == pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another account")
def test_over_ipc_another_account_is_a_user_with_its_own_jobs_and_no_more(fleet: Fleet) -> None:
    import pwd

    with lmq.Client(fleet.url, user="anna", timeout_s=30) as q:
        private = q.submit("later", {"secret": True})
        socket_folder = Path(fleet.ipc.removeprefix("ipc://")).parent
        socket_folder.chmod(0o755)
        found = as_account(NOBODY, fleet.ipc, private.id)
        account = pwd.getpwuid(NOBODY).pw_name
        assert (found["user"], found["role"]) == (account, "user")
        assert found["result"] == {"echo": {"mine": 1}}
        assert found["jobs_seen"] == [found["own_job"]]
        assert found["users_of_events"] == [account]
        refused = dict.fromkeys(("pause worker", "pause queue", "backup", "enlist", "as_user"), "not_allowed")
        hidden = dict.fromkeys(("status", "follow", "payload", "cancel", "delete", "update"), "not_found")
        assert found["errors"] == refused | hidden
        status = private.status()
        assert (status.state, status.user) == ("ready", "anna")
        assert q.job(found["own_job"]).status().user == account
        assert q.cancel(private)[0].outcome == "changed"


def test_over_loopback_a_session_is_whom_it_claims_to_be(fleet: Fleet) -> None:
    for name in ("anna", "Øyvind", "shop/alice", "x" * 128):
        with RawPeer(fleet.url) as raw:
            assert raw.hello(name).user == name
    for name in ("x" * 129, "a\nb", "\0"):
        with RawPeer(fleet.url) as raw:
            header = {"request_id": 1, "instance": raw.instance, "protocol_oldest": 1, "protocol_newest": 1}
            raw.header("hello", header | {"user": name})
            assert raw.error().error.code == "bad_field"


def test_a_second_hello_of_the_same_process_ends_its_first_session(fleet: Fleet) -> None:
    with RawPeer(fleet.url) as first, RawPeer(fleet.url) as second:
        first.hello()
        second.instance = first.instance
        second.hello()
        first.header("health", {"request_id": 5})
        assert first.socket.poll(30_000)
        assert first.socket.recv_multipart()[1] == b"who"
        payload = msgspec.msgpack.encode({"n": 1})
        job_id = second.submit([payload])[0]
        second.send(Follow(request_id=9, job_ids=[job_id]))
        assert second.message(Finished).jobs[0].job_id == job_id
        first.send(Heartbeat())
        first.hello()
        assert isinstance(first.hello(), Welcome)
