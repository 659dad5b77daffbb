"""The same bodies against the fake broker and the real one with an echo worker, which are killed and come back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol

import pytest

import lmq
from conftest import eventually
from integration.client.conftest import MakeClient
from integration.client.fake_broker import FakeBroker

HOUSE = Path(__file__).resolve().parents[3]
WITHIN_S = 40


class Station(Protocol):
    """A broker that takes echo jobs and has them done."""

    @property
    def url(self) -> str: ...

    def restart(self) -> None:
        """Kill it without a word and start it again."""

    def kill(self) -> None: ...


class RealStation:
    """lmq_broker and an echo worker, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        roots = (str(HOUSE / root) for root in ("proto", "broker", "worker"))
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "HOME": str(folder)}
        self.url = "tcp://127.0.0.1:*"
        self._broker = self._start_broker()
        eventually(self._announced, within_s=WITHIN_S, what="the line that says where the broker is")
        self.url = self._announced()
        self._worker = self._start("lmq_worker", "--backend", "echo", "--slots", "8", "--broker", self.url)

    def _announced(self) -> str:
        found = re.search(r"broker ready at (\S+)\n", (self._folder / "lmq_broker.log").read_text("utf-8"))
        return found[1] if found else ""

    def restart(self) -> None:
        self._broker.kill()
        self._broker.wait()
        self._broker = self._start_broker()

    def kill(self) -> None:
        for process in (self._broker, self._worker):
            process.kill()
            process.wait()

    def _start_broker(self) -> subprocess.Popen[bytes]:
        return self._start("lmq_broker", "--data", str(self._folder / "data"), "--listen", self.url)

    def _start(self, module: str, *args: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{module}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, *args],
                env=self._environment,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.slow)])
def station(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Station]:
    made: Station = FakeBroker() if request.param == "fake" else RealStation(tmp_path)
    yield made
    made.kill()


def test_a_job_is_done_and_its_status_says_so(station: Station, make_client: MakeClient) -> None:
    client = make_client(station.url)
    job = client.submit("echo", {"a": 1}, labels={"x": "y"})
    assert job.result(timeout_s=WITHIN_S) == {"echo": {"a": 1}}
    assert (job.status().state, job.status().labels) == ("done", {"x": "y"})
    assert job.payload() == {"a": 1}
    assert client.find(job.id[-6:]).id == job.id
    assert client.jobs(states=["done"])[0].id == job.id
    assert job.delete() is True
    with pytest.raises(lmq.NotFound):
        client.job(job.id).result(timeout_s=WITHIN_S)


def test_many_jobs_are_done_once_each(station: Station, make_client: MakeClient) -> None:
    client = make_client(station.url)
    jobs = client.submit_many([("echo", {"n": number}) for number in range(2500)])
    with client.pipeline(window=100) as pipe:
        jobs += [pipe.submit("echo", {"n": number}) for number in range(500)]
    assert {job.id for job in client.as_completed(jobs, timeout_s=WITHIN_S)} == {job.id for job in jobs}
    assert jobs[2999].result(timeout_s=WITHIN_S) == {"echo": {"n": 499}}


def test_restarts_in_the_middle_lose_nothing_and_double_nothing(
    station: Station, make_client: MakeClient
) -> None:
    client = make_client(station.url)

    def one(number: int) -> object:
        return client.submit("echo", {"n": number}).result(timeout_s=WITHIN_S)

    one(-1)
    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(one, number) for number in range(300)]
        for goal in (50, 150):
            eventually(lambda: sum(result.done() for result in results) >= goal, within_s=WITHIN_S)  # noqa: B023  # asked at once
            station.restart()
        assert [result.result(WITHIN_S) for result in results] == [
            {"echo": {"n": number}} for number in range(300)
        ]
    assert len(client.jobs(limit=1000)) == 301


def test_events_go_on_over_restarts(station: Station, make_client: MakeClient) -> None:
    client = make_client(station.url)
    with client.events(since=0, timeout_s=WITHIN_S) as events:
        jobs = client.submit_many([("echo", {"n": number}) for number in range(50)])
        seen = list(islice(events, 20))
        station.restart()
        jobs += client.submit_many([("echo", {"n": number}) for number in range(50)])
        done = [event.job_id for event in seen if event.kind == "done"]
        while len(done) < 100:
            event = next(iter(events))
            seen.append(event)
            if event.kind == "done":
                done.append(event.job_id)
    assert sorted(done) == sorted(job.id for job in jobs)
    assert [event.seq for event in seen] == list(range(1, seen[-1].seq + 1))


def test_usage_and_metrics_count_what_was_done(station: Station, make_client: MakeClient) -> None:
    client = make_client(station.url)
    for job in client.submit_many([("echo", {"n": number}) for number in range(30)]):
        job.wait(WITHIN_S)
    station.restart()
    client.submit("echo", {"n": 30}).wait(WITHIN_S)
    found = client.usage(by=["user", "task_type"])
    assert [(row.user, row.task_type, row.done) for row in found.rows] == [("anna", "echo", 31)]
    assert found.total.done == 31
    assert "lmq_jobs_kept 31\n" in client.metrics()


def test_the_text_of_an_ended_job_is_read_after_a_restart(station: Station, make_client: MakeClient) -> None:
    client = make_client(station.url)
    job = client.submit("echo", {"text": "one two three"})
    assert "".join(job.stream(timeout_s=WITHIN_S)) == "one two three"
    station.restart()
    assert "".join(client.job(job.id).stream(timeout_s=WITHIN_S)) == "one two three"
