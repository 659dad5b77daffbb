"""What the client's callers notice of a broker that dies, hangs or forgets: nothing but the time."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice

import pytest

import lmq
from conftest import eventually
from integration.client.conftest import MakeClient
from integration.client.fake_broker import FakeBroker


def test_a_submit_whose_reply_is_lost_is_sent_again_as_the_same_job(
    broker: FakeBroker, make_client: MakeClient
) -> None:
    client = make_client(broker.url)
    client.health()
    broker.lose("submitted")
    with ThreadPoolExecutor() as pool:
        submit = pool.submit(client.submit, "echo", 1)
        eventually(lambda: broker.disk.jobs, what="the job on disk")
        broker.restart()
        job = submit.result(20)
    assert job.result(timeout_s=20) == {"echo": 1}
    assert list(broker.disk.submits.values()) == [2]
    assert len(broker.disk.jobs) == 1


def test_a_result_waited_for_comes_after_a_restart(manual: FakeBroker, make_client: MakeClient) -> None:
    job = make_client(manual.url).submit("echo", 1)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(job.result)
        manual.restart()
        eventually(lambda: manual.received["follow"], what="the follow after the restart", within_s=20)
        manual.finish(job.job_id, "late")
        assert waiting.result(20) == "late"


def test_a_result_whose_push_was_lost_comes_again(manual: FakeBroker, make_client: MakeClient) -> None:
    job = make_client(manual.url).submit("echo", 1)
    manual.lose("finished")
    manual.finish(job.job_id, "once")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(job.result)
        manual.restart()
        assert waiting.result(20) == "once"


def test_a_stream_goes_on_after_a_restart_without_gap_or_double(
    manual: FakeBroker, make_client: MakeClient
) -> None:
    job = make_client(manual.url).chat("Why?")
    texts = [f"{number} " for number in range(100)]
    stream = job.stream(timeout_s=20)
    for start in range(0, 100, 10):
        manual.write(job.job_id, *texts[start : start + 10])
        assert list(islice(stream, 5)) == texts[start // 2 : start // 2 + 5]
        if start % 30 == 0:
            manual.restart()
    manual.finish(job.job_id, {"text": "".join(texts)})
    assert list(stream) == texts[50:]


def test_a_stream_notices_that_the_attempt_changed_during_a_restart(
    manual: FakeBroker, make_client: MakeClient
) -> None:
    job = make_client(manual.url).chat("Why?")
    manual.write(job.job_id, "old")
    stream = job.stream(timeout_s=20)
    assert next(stream) == "old"
    manual.kill()
    manual.disk.jobs[job.job_id].attempt = 2
    manual.disk.jobs[job.job_id].pieces = []
    manual.start()
    manual.write(job.job_id, "new")
    with pytest.raises(lmq.StreamRestarted):
        next(stream)


def test_events_go_on_after_restarts_without_gap_or_double(
    broker: FakeBroker, make_client: MakeClient
) -> None:
    client = make_client(broker.url)
    seen: list[int] = []
    with client.events(since=0, timeout_s=20) as events:
        for round_number in range(4):
            client.submit_many([("echo", number) for number in range(40)])
            seen += [event.seq for event in islice(events, 30)]
            if round_number % 2:
                broker.restart()
            else:
                broker.forget_sessions()
        last = len(broker.disk.events)
        seen += [event.seq for event in islice(events, last - len(seen))]
    assert seen == list(range(1, last + 1))


def test_a_broker_that_forgot_its_sessions_is_told_again(manual: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(manual.url)
    job = client.submit("echo", 1)
    manual.forget_sessions()
    assert client.health().epoch == 1
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(job.result)
        eventually(lambda: manual.received["follow"], what="the follow")
        manual.finish(job.job_id, 3)
        assert waiting.result(20) == 3


def test_a_silent_broker_is_left_and_found_again(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    client.health()
    broker.go_deaf()
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.health)
        broker.restart()
        assert waiting.result(20).epoch == 2


def test_the_next_address_is_tried(broker: FakeBroker, make_client: MakeClient) -> None:
    gone = FakeBroker()
    gone.kill()
    client = make_client([gone.url, broker.url])
    assert client.submit("echo", 1).result(timeout_s=20) == {"echo": 1}
    assert client.url == broker.url


def test_no_broker_at_all_is_said_in_time(make_client: MakeClient) -> None:
    gone = FakeBroker()
    gone.kill()
    client = make_client(gone.url, timeout_s=0.05)
    with pytest.raises(lmq.NotReachable) as caught:
        client.health()
    assert caught.value.url == gone.url
    assert "lmq up" in str(caught.value)
    with pytest.raises(lmq.NotReachable):
        client.submit("echo", 1)
    with pytest.raises(lmq.NotReachable):
        next(iter(client.events()))


def test_a_command_without_an_answer_runs_into_its_time(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url, timeout_s=0.05, connect_timeout_s=20)
    while True:
        try:
            client.health()
            break
        except lmq.WaitTimeout:
            pass  # a slow machine
    broker.lose("health_reply")
    with pytest.raises(lmq.WaitTimeout):
        client.health()


def test_many_threads_share_one_client(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)

    def one(number: int) -> object:
        return client.submit("echo", number).result(timeout_s=30)

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(one, range(600))) == [{"echo": number} for number in range(600)]
    assert len(broker.disk.jobs) == 600


def test_many_threads_over_restarts_lose_nothing_and_double_nothing(
    broker: FakeBroker, make_client: MakeClient
) -> None:
    client = make_client(broker.url)

    def one(number: int) -> object:
        return client.submit("echo", number).result(timeout_s=30)

    def reached(goal: int) -> bool:
        return len(broker.disk.jobs) >= goal

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(one, number) for number in range(200)]
        for goal in (20, 60, 100):
            eventually(partial(reached, goal), within_s=30, what=f"{goal} jobs")
            broker.restart()
        assert [result.result(40) for result in results] == [{"echo": number} for number in range(200)]
    assert len(broker.disk.jobs) == 200


def test_closing_ends_every_wait(manual: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(manual.url)
    job = client.submit("echo")
    chat = client.chat("Why?")
    events = client.events()
    with ThreadPoolExecutor() as pool:
        waits: list[Future[object]] = [
            pool.submit(job.result),
            pool.submit(lambda: list(chat.stream())),
            pool.submit(lambda: list(client.as_completed([job]))),
            pool.submit(lambda: list(events)),
        ]
        eventually(
            lambda: manual.received["follow_text"] and manual.received["subscribe"], what="the streams"
        )
        client.close()
        for wait in waits:
            with pytest.raises(lmq.ClientClosed):
                wait.result(20)
    with pytest.raises(lmq.ClientClosed):
        client.submit("echo")
    client.close()


def test_closing_says_bye_and_sends_what_is_queued(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    client.health()
    client.close()
    eventually(lambda: broker.received["bye"], what="bye")
    assert not [thread for thread in threading.enumerate() if thread.name == "lmq-client"]


def test_handles_that_are_dropped_are_no_longer_followed(manual: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(manual.url)
    job = client.submit("echo")
    job_id = job.job_id
    del job

    def unfollowed() -> bool:
        client.health()
        return manual.received["unfollow"] > 0

    eventually(unfollowed)
    manual.finish(job_id)
    assert client.health().jobs_open == 1
