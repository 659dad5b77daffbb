"""Strange values in well-formed messages: refused or taken, and the broker goes on and can still read its journal."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import lmq
from crash.audit import check_journal
from crash.fleet import Fleet
from integration.broker.raw import RawPeer
from integration.broker.strange import headers
from lmq_proto import bounds
from lmq_proto.ids import to_text
from lmq_proto.messages import (
    FROM_PEER,
    Enlist,
    Health,
    HealthReply,
    Hello,
    JobFilter,
    JobSpec,
    Listed,
    ListJobs,
    ListQueues,
    ListWorkers,
    Queues,
    Submitted,
    Work,
    Workers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

FROM_WORKERS = ("results", "phases", "text_report", "capacity", "load_ended")
FROM_CLIENTS = sorted(set(FROM_PEER) - {*FROM_WORKERS, "hello", "enlist", "bye", "heartbeat"})


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A broker of its own: what is cancelled and drained here is everybody's."""
    with Fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        broker = fleet.ready_broker()
        yield fleet
        assert not fleet.died()
        assert broker.terminate() == 0, broker.said()
        # All that was taken can be read back.
        assert not check_journal(fleet.data / "journal.sqlite3")
        again = fleet.ready_broker()
        with lmq.Client(fleet.url, timeout_s=30) as q:
            q.jobs(limit=5000)
        assert again.terminate() == 0, again.said()


@pytest.fixture
def raw(fleet: Fleet) -> Iterator[RawPeer]:
    with RawPeer(fleet.url) as raw:
        yield raw


def still_answers(fleet: Fleet) -> None:
    """Ask a newcomer's questions, of memory and of the journal."""
    with RawPeer(fleet.url) as other:
        other.hello("other")
        other.send(Health(request_id=10))
        assert other.message(HealthReply).disk_trouble == ""
        other.send(ListJobs(request_id=11, match=JobFilter()))
        other.message(Listed)
        other.send(ListQueues(request_id=12))
        other.message(Queues)
        other.send(ListWorkers(request_id=13))
        other.message(Workers)
    assert not fleet.died()


@pytest.mark.parametrize("verb", FROM_CLIENTS)
def test_strange_values_from_a_client_break_nothing(fleet: Fleet, raw: RawPeer, verb: str) -> None:
    raw.hello("strange")
    job_ids = raw.submit([b"\x80", b"\x80"])
    known = {"job_id": job_ids[0], "job_ids": job_ids, "payload_bytes": 0, "request_id": 9}
    for header in headers(FROM_PEER[verb], known):
        raw.header(verb, header)
    raw.send(Health(request_id=999_999))
    while raw.message(HealthReply).request_id != 999_999:
        pass
    still_answers(fleet)


def test_strange_jobs_are_refused_or_kept_as_they_are(fleet: Fleet, raw: RawPeer) -> None:
    raw.hello("strange")
    taken = {}
    for request_id, spec in enumerate(headers(JobSpec, {"payload_bytes": 0}), 100):
        fresh = spec | ({"id": os.urandom(16)} if len(spec["id"]) == 16 else {})
        raw.header("submit", {"request_id": request_id, "jobs": [fresh]})
        taken[request_id] = fresh
    accepted = {}
    for request_id, spec in taken.items():
        answer = raw.answer(request_id)
        if isinstance(answer, Submitted) and answer.outcomes[0].outcome == "accepted":
            accepted[spec["id"]] = spec
    assert len(accepted) > 20
    with lmq.Client(fleet.url, user="strange", timeout_s=30) as q:
        kept = {job.id: job for job in q.jobs(limit=5000, user="strange")}
        for job_id, spec in accepted.items():
            job = kept[to_text(job_id)]
            assert job.labels == spec.get("labels", {})
            assert job.key == spec.get("key", "")
            assert job.session == spec.get("session", "")
    still_answers(fleet)


@pytest.mark.parametrize("verb", FROM_WORKERS)
def test_strange_values_from_a_worker_break_nothing(fleet: Fleet, verb: str) -> None:
    with RawPeer(fleet.url) as client, RawPeer(fleet.url) as worker:
        client.hello("strange")
        worker.enlist(f"strange-{verb}", slots=64)
        client.submit([b"\x80"] * 64, queue=f"queue-{verb}")
        lease = worker.message(Work).groups[0].leases[0]
        known: dict[str, Any] = {
            "job_id": lease.job_id, "epoch": lease.epoch, "attempt": lease.attempt, "result_bytes": 0, "first": 1,
            "pieces": [{"channel": "content", "text": "word"}],
        }  # fmt: skip
        for header in headers(FROM_PEER[verb], known):
            worker.header(verb, header)
        still_answers(fleet)


@pytest.mark.parametrize(("verb", "kind"), [("hello", Hello), ("enlist", Enlist)])
def test_strange_first_messages_break_nothing(fleet: Fleet, verb: str, kind: type) -> None:
    known: dict[str, Any] = {"protocol_oldest": 1, "protocol_newest": 1}
    for header in headers(kind, known):
        with RawPeer(fleet.url) as raw:
            raw.header(verb, header)
            assert raw.socket.poll(30_000), header
    still_answers(fleet)


def test_a_filter_finds_a_model_by_its_whole_name_and_as_it_is_written(fleet: Fleet) -> None:
    names = ["qwen-8b", "8b", "%", "_", "a'b", "x\ty"]
    with lmq.Client(fleet.url, user="modeller", timeout_s=30) as q:
        jobs = {name: q.submit("later", model=name) for name in names if name.isprintable()}
        for name, job in jobs.items():
            found = [each.id for each in q.jobs(user="modeller", model=name)]
            assert found == [job.id], name


def test_a_filter_of_more_labels_than_a_job_can_have_finds_nothing(fleet: Fleet) -> None:
    with RawPeer(fleet.url) as raw:
        raw.hello()
        raw.submit([b"\x80"], labels={"a": "b"})
        labels = {str(number): "x" for number in range(bounds.LABELS + 1)}
        raw.send(ListJobs(request_id=50, match=JobFilter(labels=labels)))
        answer = raw.answer(50)
        assert not isinstance(answer, Listed) or answer.jobs == []


def test_a_payload_over_the_limit_is_refused_and_one_at_the_limit_taken(fleet: Fleet) -> None:
    with lmq.Client(fleet.url, timeout_s=30) as q:
        room = bounds.PAYLOAD_BYTES - len(msgspec.msgpack.encode({"x": b"x" * 70_000})) + 70_000
        assert q.submit("later", {"x": b"x" * room}).status().payload_bytes == bounds.PAYLOAD_BYTES
        with pytest.raises(lmq.TooLarge):
            q.submit("later", {"x": b"x" * (room + 1)})
