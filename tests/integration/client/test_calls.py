"""Each call of the client against a broker that works."""

from __future__ import annotations

import datetime as dt
import threading
from itertools import islice

import pytest

import lmq
from conftest import eventually
from integration.client.conftest import MakeClient
from integration.client.fake_broker import FakeBroker
from lmq_proto import messages


def test_a_job_gives_its_result(broker: FakeBroker, make_client: MakeClient) -> None:
    job = make_client(broker.url).submit("echo", {"a": 1}, labels={"chat": "42"})
    assert job.result(timeout_s=10) == {"echo": {"a": 1}}
    assert job.result() == {"echo": {"a": 1}}
    assert job.wait() == lmq.State.DONE


def test_a_chat_streams_its_text_and_gives_its_answer(broker: FakeBroker, make_client: MakeClient) -> None:
    job = make_client(broker.url).chat("Why?", system="Be brief.", model="fast", priority="interactive")
    assert list(job.stream(timeout_s=10)) == ["Hello", ", ", "world"]
    answer = job.result(timeout_s=10)
    assert isinstance(answer, lmq.ChatResult)
    assert (answer.text, answer.reasoning, answer.finish_reason, answer.model) == (
        "Hello, world",
        "",
        "stop",
        "fake",
    )
    assert answer.usage.total_tokens == 4
    spec = broker.disk.jobs[job.job_id].spec
    assert (spec.models, spec.priority) == (["fast"], 8)


def test_pieces_name_their_channel_and_number(manual: FakeBroker, make_client: MakeClient) -> None:
    job = make_client(manual.url).chat("Why?")
    manual.write(job.job_id, "hm", channel="reasoning")
    manual.write(job.job_id, "because")
    manual.finish(job.job_id, {"text": "because"})
    assert list(job.pieces(timeout_s=10)) == [
        lmq.Piece("reasoning", "hm", 1, 1),
        lmq.Piece("content", "because", 1, 2),
    ]


def test_whoever_comes_later_reads_the_text_from_the_start(
    broker: FakeBroker, make_client: MakeClient
) -> None:
    first = make_client(broker.url).chat("Why?")
    first.wait(10)
    again = make_client(broker.url).job(first.id)
    assert "".join(again.stream(timeout_s=10)) == "Hello, world"
    assert isinstance(again.result(timeout_s=10), lmq.ChatResult)


def test_two_readers_of_one_job_each_get_all(manual: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(manual.url)
    job = client.chat("Why?")
    manual.write(job.job_id, "a", "b")
    first = job.stream(timeout_s=10)
    assert list(islice(first, 2)) == ["a", "b"]
    second = job.stream(timeout_s=10)
    assert next(second) == "a"
    manual.write(job.job_id, "c")
    manual.finish(job.job_id, {"text": "abc"})
    assert list(first) == ["c"]
    assert list(second) == ["b", "c"]


def test_a_long_text_comes_through_a_bounded_window(manual: FakeBroker, make_client: MakeClient) -> None:
    job = make_client(manual.url).chat("Why?")
    texts = [f"{number:06}" * 1000 for number in range(200)]
    manual.write(job.job_id, *texts)
    manual.finish(job.job_id, {"text": ""})
    assert list(job.stream(timeout_s=10)) == texts
    assert manual.received["credit"] > 2


def test_a_restart_after_shown_text_is_an_error_or_a_marker(
    manual: FakeBroker, make_client: MakeClient
) -> None:
    client = make_client(manual.url)
    job = client.chat("Why?")
    manual.write(job.job_id, "wrong")
    strict, lenient = job.stream(timeout_s=10), job.stream(restart="continue", timeout_s=10)
    assert [next(strict), next(lenient)] == ["wrong", "wrong"]
    manual.begin_attempt(job.job_id, "engine crashed")
    manual.write(job.job_id, "right")
    manual.finish(job.job_id, {"text": "right"})
    with pytest.raises(lmq.StreamRestarted) as caught:
        next(strict)
    assert (caught.value.attempt, caught.value.reason) == (2, "engine crashed")
    assert list(lenient) == [lmq.Restart(2, "engine crashed"), "right"]
    assert list(job.stream(timeout_s=10)) == ["right"]


def test_a_dead_job_tells_its_story(broker: FakeBroker, make_client: MakeClient) -> None:
    job = make_client(broker.url).submit("die")
    with pytest.raises(lmq.JobDead) as caught:
        job.result(timeout_s=10)
    assert [info.message for info in caught.value.story] == ["it broke", "it broke again"]
    assert job.wait() == "dead"
    with pytest.raises(lmq.JobDead):
        list(job.stream(timeout_s=10))


def test_a_wait_that_is_too_short_leaves_the_job_alone(manual: FakeBroker, make_client: MakeClient) -> None:
    job = make_client(manual.url).submit("echo")
    with pytest.raises(lmq.WaitTimeout):
        job.result(timeout_s=0.01)
    manual.finish(job.job_id, 7)
    assert job.result(timeout_s=10) == 7


def test_embeddings_come_as_lists_and_as_bytes(broker: FakeBroker, make_client: MakeClient) -> None:
    result = make_client(broker.url).embed(["a", "bb"], model="nomic").result(timeout_s=10)
    assert result.vectors == [[1.0, 1.0], [2.0, 1.0]]
    assert (len(result.array), result.count, result.dims) == (16, 2, 2)


def test_many_texts_become_several_jobs_under_one_handle(broker: FakeBroker, make_client: MakeClient) -> None:
    texts = ["x" * (1 + number % 7) for number in range(1300)]
    job = make_client(broker.url).embed(texts, model="nomic")
    result = job.result(timeout_s=10)
    assert [vector[0] for vector in result.vectors] == [float(len(text)) for text in texts]
    assert [fake.spec.task_type for fake in broker.disk.jobs.values()] == ["bulk_embed"] * 3
    assert job.is_ended


def test_a_refused_job_raises_what_the_broker_said(broker: FakeBroker, make_client: MakeClient) -> None:
    with pytest.raises(lmq.LimitReached) as caught:
        make_client(broker.url).submit("refuse")
    assert caught.value.retry_after_s == 2.5


def test_the_same_key_is_the_same_job(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    first = client.submit("echo", {"a": 1}, idempotency_key="k")
    second = client.submit("echo", {"a": 1}, idempotency_key="k")
    assert second.id == first.id
    assert second.result(timeout_s=10) == {"echo": {"a": 1}}
    assert len(broker.disk.jobs) == 1


def test_the_same_draft_is_the_same_job(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    draft = lmq.draft("echo", 1)
    assert client.submit_draft(draft).id == client.submit_draft(draft).id == draft.id


def test_submit_many_gives_handles_in_order(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    jobs = client.submit_many(("echo", number) for number in range(2500))
    assert len(jobs) == 2500
    assert broker.submit_messages == 3
    assert [jobs[0].result(10), jobs[2499].result(10)] == [{"echo": 0}, {"echo": 2499}]
    done = list(client.as_completed(jobs, timeout_s=20))
    assert {job.id for job in done} == {job.id for job in jobs}


def test_a_partly_refused_batch_names_both(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    with pytest.raises(lmq.PartlyRefused) as caught:
        client.submit_many([("echo", 1), ("refuse", 2), ("echo", 3)])
    assert len(caught.value.accepted) == 2
    assert [(index, type(error)) for index, error in caught.value.refused] == [(1, lmq.LimitReached)]


def test_an_atomic_batch_is_all_or_nothing(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    with pytest.raises(lmq.PartlyRefused) as caught:
        client.submit_many([("echo", 1), ("refuse", 2)], atomic=True)
    assert caught.value.accepted == []
    assert not broker.disk.jobs
    with pytest.raises(lmq.BadPayload):
        client.submit_many([("echo", 1)] * 1001, atomic=True)


def test_a_pipeline_submits_without_waiting_for_each(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    with client.pipeline(window=50) as pipe:
        jobs = [pipe.submit("echo", number) for number in range(500)]
    assert len(broker.disk.jobs) == 500
    assert broker.submit_messages < 500
    assert {job.id for job in client.as_completed(jobs, timeout_s=20)} == {job.id for job in jobs}


def test_a_pipeline_tells_at_its_end_what_was_refused(broker: FakeBroker, make_client: MakeClient) -> None:
    pipe = make_client(broker.url).pipeline()
    pipe.submit("echo")
    pipe.submit("refuse")
    with pytest.raises(lmq.PartlyRefused) as caught:
        pipe.flush()
    assert [index for index, _ in caught.value.refused] == [1]


def test_as_completed_gives_the_first_to_end_first(manual: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(manual.url)
    jobs = [client.submit("echo", number) for number in range(3)]
    manual.finish(jobs[2].job_id)
    completed = client.as_completed(jobs, timeout_s=10)
    assert next(completed) == jobs[2]
    manual.finish(jobs[0].job_id)
    assert next(completed) == jobs[0]
    ended, still_open = client.wait(jobs, timeout_s=0.01)
    assert (ended, still_open) == ([jobs[0], jobs[2]], [jobs[1]])
    manual.finish(jobs[1].job_id)
    assert next(completed) == jobs[1]


def test_leaving_a_job_early_cancels_it_and_leaving_it_done_does_not(
    manual: FakeBroker, make_client: MakeClient
) -> None:
    client = make_client(manual.url)
    with client.chat("Why?") as left:
        pass
    assert manual.disk.jobs[left.job_id].state == "cancelled"
    with pytest.raises(lmq.JobCancelled):
        left.result(timeout_s=10)
    with client.chat("Why?") as kept:
        manual.finish(kept.job_id, {"text": "so"})
        kept.result(timeout_s=10)
    assert manual.received["cancel"] == 1


def test_jobs_can_be_looked_at_and_acted_on(manual: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(manual.url)
    job = client.submit("echo", {"a": 1}, labels={"x": "1"})
    assert job.status().state == "ready"
    assert job.status().id == job.id
    assert job.payload() == {"a": 1}
    assert job.why().reasons[0].code == "no_worker"
    assert job.update(labels={"x": "2"}, priority="background") is True
    assert (job.status().labels, job.status().priority) == ({"x": "2"}, 2)
    assert job.cancel() is True
    assert job.wait(10) == "cancelled"
    assert job.retry() is True
    manual.finish(job.job_id, 5)
    assert job.result(timeout_s=10) == 5
    assert job.cancel() is False
    with pytest.raises(lmq.WrongState):
        client.submit("echo").delete()
    assert job.delete() is True
    with pytest.raises(lmq.NotFound):
        job.status()
    with pytest.raises(lmq.NotFound):
        client.job(job.id).result(timeout_s=10)


def test_jobs_are_listed_found_and_acted_on_by_what_they_match(
    manual: FakeBroker, make_client: MakeClient
) -> None:
    client = make_client(manual.url)
    jobs = client.submit_many([("echo", number) for number in range(5)])
    assert [status.id for status in client.jobs(limit=2)] == [jobs[4].id, jobs[3].id]
    assert [status.id for status in client.jobs(oldest_first=True)] == [job.id for job in jobs]
    assert client.find(jobs[1].id[-6:].lower()).id == jobs[1].id
    with pytest.raises(lmq.NotFound):
        client.find("ZZZZZZ")
    assert [status.id for status in client.statuses([jobs[2], jobs[0].id])] == [jobs[2].id, jobs[0].id]
    assert [outcome.outcome for outcome in client.cancel(jobs[0], jobs[1].id)] == ["changed", "changed"]
    assert len(client.cancel(states=["ready"])) == 3
    assert len(client.retry(states=["cancelled"])) == 5
    assert {one.outcome for one in client.update(match={"task_type": "echo"}, priority=1)} == {"changed"}
    assert [one.outcome for one in client.delete(jobs[0])] == ["refused"]
    with pytest.raises(ValueError, match="not neither"):
        client.cancel()


def test_nouns_and_acts_of_the_broker(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    assert [queue.name for queue in client.queues()] == ["default"]
    assert client.workers() == []
    assert client.models() == []
    assert client.health().epoch == 1
    assert client.backup("/somewhere").path == "/somewhere"
    assert client.pause(queue="default", for_s=5) is True
    assert client.pause(queue="default") is False
    assert client.resume(queue="default") is True
    assert client.drain(worker="gpu-1") is True
    with pytest.raises(ValueError, match="queue or a worker"):
        client.pause()


def test_users_are_given_weights_and_ceilings(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    assert client.set_user("anna", weight=2.0, ceiling=6) is True
    assert client.set_user("anna", weight=2.0, ceiling=6) is False
    assert [(each.user, each.weight, each.ceiling) for each in client.users().allowances] == [
        ("anna", 2.0, 6)
    ]
    first = client.submit("echo", priority=9)
    many = client.submit_many([lmq.draft("echo", priority=9), lmq.draft("echo", priority=6)])
    vectors = client.embed("a", priority=9)
    vectors.wait(timeout_s=10)
    assert [job.given_priority for job in (first, *many, vectors)] == [6, 6, None, 6]
    assert client.reset_user("anna") is True
    assert client.reset_user("anna") is False
    with pytest.raises(ValueError, match="a weight, a ceiling or both"):
        client.set_user("anna")


def test_models_are_steered(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    assert client.set_alias("fast", ["qwen3-8b", "qwen3-8b@q4_k_m"]) is True
    assert client.set_alias("big", "qwen3-32b") is True
    assert {each.name: each.models for each in client.aliases()} == {
        "fast": ["qwen3-8b", "qwen3-8b@q4_k_m"], "big": ["qwen3-32b"],
    }  # fmt: skip
    assert client.set_alias("fast", []) is True
    assert client.set_alias("big", (), reset=True) is True
    assert client.aliases() == []
    assert client.set_default_model("chat", "fast") is True
    assert client.default_models() == [lmq.DefaultModel(task_type="chat", model="fast")]
    assert client.set_default_model("chat", "", reset=True) is True
    assert client.load_model("a", "gpu-1") is True
    assert client.unload_model("a") is True
    assert client.pin_model("a", "gpu-1", for_s=4 * 3600) is True
    assert client.unpin_model("a", "gpu-1") is True
    assert client.unpin_model("a", "gpu-1") is False
    assert broker.disk.orders[:4] == [
        ("load", "a", "gpu-1", 0), ("unload", "a", "", 0), ("pin", "a", "gpu-1", 14_400_000),
        ("unpin", "a", "gpu-1", 0),
    ]  # fmt: skip


def test_a_job_for_another_user(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    job = client.as_user("alice").submit("echo")
    assert job.status().user == "alice"
    assert client.submit("echo").status().user == "anna"


def test_events_come_once_each_in_order_from_a_cursor(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    client.submit_many([("echo", number) for number in range(1500)])
    with client.events(since=0, timeout_s=10) as events:
        seen = list(islice(events, 3001))
    assert [event.seq for event in seen] == list(range(1, 3002))
    with client.events(since=seen[99].seq, kinds=["done"], timeout_s=10) as events:
        later = next(iter(events))
        assert (later.seq, later.kind) == (next(e.seq for e in seen[100:] if e.kind == "done"), "done")
        assert events.cursor == later.seq


def test_events_from_now_on_are_those_after_the_call(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    client.submit("echo").wait(10)
    events = client.events(timeout_s=10)
    job = client.submit("echo")
    assert [(event.kind, event.job_id) for event in islice(events, 2)] == [
        ("accepted", job.id),
        ("done", job.id),
    ]
    events.close()


def test_events_begin_at_a_time_or_some_back(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    client.submit("echo").wait(10)
    with client.events(last=1, timeout_s=10) as events:
        assert next(iter(events)).kind == "done"
    since = dt.datetime.fromtimestamp(0.002, dt.UTC)
    with client.events(since=since, timeout_s=10) as events:
        assert next(iter(events)).seq == 2
    with pytest.raises(ValueError, match="not both"):
        client.events(since=1, last=1)


def test_an_old_cursor_is_told_apart(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    client.submit("echo").wait(10)
    broker.disk.oldest_cursor = 2
    with client.events(since=0, timeout_s=10) as events, pytest.raises(lmq.CursorExpired) as caught:
        next(iter(events))
    assert (caught.value.cursor, caught.value.oldest) == (0, 2)


def test_usage_is_one_answer_however_many_pages_it_has(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    for task_type in ("a", "b", "c", "d", "e"):
        for _ in range(2):
            broker.finish(client.submit(task_type).job_id, None)
    since = dt.datetime.fromtimestamp(1_000, dt.UTC)
    found = client.usage(since=since, until=since + dt.timedelta(days=1), by=["task_type", "user"])
    assert [(row.task_type, row.user, row.done) for row in found.rows] == [
        (task_type, "anna", 2) for task_type in "abcde"
    ]
    assert (found.total.done, found.more) == (10, False)
    assert (found.since_ms, found.until_ms) == (1_000_000, 87_400_000)
    assert [(row.user, row.done) for row in client.usage(by="user").rows] == [("anna", 10)]
    assert client.usage(user="tom").total.done == 0


def test_metrics_are_a_text(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    client.submit("later")
    assert client.metrics() == "lmq_jobs_kept 1\n"
    assert client.metrics(users=True) == "lmq_jobs_kept 1\nlmq_user_jobs 1\n"


def test_watch_gives_the_latest_value_of_each_topic(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    size = messages.QueueSize(name="default", counts={"ready": 3})
    seen: list[object] = []

    def look() -> None:
        seen.append(next(client.watch("queue/", timeout_s=10)))

    thread = threading.Thread(target=look)
    thread.start()

    def published_and_seen() -> bool:
        broker.publish("queue/default", size)
        return bool(seen)

    eventually(published_and_seen)
    thread.join(10)
    assert seen == [size]


def test_progress_ends_with_the_job(manual: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(manual.url)
    job = client.submit("train")
    channel = "job/" + job.channel.hex()
    step = messages.Progress(state="leased", phase="writing", progress=0.5)
    seen: list[messages.Progress] = []
    thread = threading.Thread(target=lambda: seen.extend(job.progress()))
    thread.start()
    eventually(lambda: seen, what="the first look")

    def published_and_seen() -> bool:
        manual.publish(channel, step)
        return step in seen

    eventually(published_and_seen)
    manual.finish(job.job_id)
    thread.join(10)
    assert not thread.is_alive()
    assert seen[0].state == "ready"
    assert seen[1] == step


def test_a_payload_that_cannot_be_sent_is_not(broker: FakeBroker, make_client: MakeClient) -> None:
    client = make_client(broker.url)
    with pytest.raises(lmq.BadPayload):
        client.submit("echo", object())  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="unknown options: prio"):
        client.submit("echo", prio=3)  # type: ignore[call-arg]  # on purpose
    assert not broker.disk.jobs
