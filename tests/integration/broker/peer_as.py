"""A client under another account, `python -m integration.broker.peer_as UID URL JOB`: says what it may and sees (JSON).

`JOB` is the id of a job of somebody else. A bare peer: nothing may have to be imported once the account is changed, for
the new one may not be allowed to read it.
"""

from __future__ import annotations

import json
import os
import sys

import msgspec

from integration.broker.raw import RawPeer
from lmq_proto.ids import from_text, to_text
from lmq_proto.messages import (
    Backup,
    Cancel,
    Capacity,
    Changed,
    Delete,
    Enlist,
    ErrorReply,
    Events,
    Finished,
    Follow,
    Followed,
    FromPeer,
    GetPayload,
    JobFilter,
    JobSpec,
    Listed,
    ListJobs,
    Pause,
    Status,
    Statuses,
    Submit,
    Subscribe,
    Target,
    Update,
)


def refusal(raw: RawPeer, message: FromPeer, request_id: int) -> str:
    """Return the code with which a command, or its one job, is refused; empty if it is not."""
    raw.send(message)
    answer = raw.answer(request_id)
    match answer:
        case ErrorReply():
            return answer.error.code
        case Followed() | Changed():
            error = answer.outcomes[0].error
            return error.code if error is not None else ""
        case Statuses():
            return "not_found" if answer.missing and not answer.jobs else ""
    return ""


def main(uid: str, url: str, foreign: str) -> None:
    os.setgroups([])
    os.setgid(int(uid))
    os.setuid(int(uid))
    with RawPeer(url) as raw:
        welcome = raw.hello("root")
        own = raw.submit([msgspec.msgpack.encode({"mine": 1})], follow=True)[0]
        _, body = raw.receive(Finished)
        raw.send(ListJobs(request_id=20, match=JobFilter(), limit=1000))
        raw.send(Subscribe(request_id=21, subscription_id=1, cursor=0, credit=100_000))
        users = set()
        kinds: list[str] = []
        while "done" not in kinds:
            events = raw.message(Events).events
            users |= {event.user for event in events} - {""}
            kinds += [event.kind for event in events if event.job_id == own]
        job = from_text(foreign)
        target = Target(job_ids=[job])
        spec = JobSpec(id=os.urandom(16), task_type="echo", payload_bytes=0)
        enlist = Enlist(
            request_id=31, instance=os.urandom(16), protocol_oldest=1, protocol_newest=1, name="intruder",
            endpoint="raw://intruder", backend="raw", capacity=Capacity(), task_types=["echo"],
        )  # fmt: skip
        asked: dict[str, FromPeer] = {
            "pause worker": Pause(request_id=32, noun="worker", name="e1"),
            "pause queue": Pause(request_id=33, noun="queue", name="default"),
            "backup": Backup(request_id=34, path="/tmp/stolen"),
            "as_user": Submit(request_id=35, jobs=[spec], as_user="anna"),
            "status": Status(request_id=36, job_ids=[job]),
            "follow": Follow(request_id=37, job_ids=[job]),
            "payload": GetPayload(request_id=38, job_id=job),
            "cancel": Cancel(request_id=39, target=target),
            "delete": Delete(request_id=40, target=target),
            "update": Update(request_id=41, target=target, priority=9),
        }
        with RawPeer(url) as worker:
            errors = {"enlist": refusal(worker, enlist, 31)}
        for name, message in asked.items():
            errors[name] = refusal(raw, message, message.request_id)  # type: ignore[union-attr]  # all have one
        found = {
            "user": welcome.user,
            "role": welcome.role,
            "own_job": to_text(own),
            "result": msgspec.msgpack.decode(body),
            "jobs_seen": [to_text(seen.id) for seen in raw.message(Listed).jobs],
            "users_of_events": sorted(users),
            "errors": errors,
        }
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
