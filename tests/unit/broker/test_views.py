"""What people are shown: jobs, queues, workers, models, health, backups, and why a job waits."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Effect, Publish, Read
from lmq_broker.core.reads import (
    CopyJournal,
    CopyReply,
    JobsReply,
    ListReply,
    PayloadReply,
    ReadJobs,
    ReadList,
    ReadPayload,
)
from lmq_broker.core.records import JobChanged, StoredJob
from lmq_broker.core.stimuli import HostFacts
from lmq_proto import bounds
from lmq_proto.codec import encode
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Backup,
    BackupDone,
    Breaker,
    Drain,
    GetPayload,
    Health,
    HealthReply,
    JobFilter,
    JobView,
    Listed,
    ListJobs,
    ListModels,
    ListQueues,
    ListWorkers,
    Models,
    Pause,
    Payload,
    Queues,
    QueueSize,
    Status,
    Statuses,
    Tick,
    Why,
    WhyReply,
    Workers,
)
from unit.broker.builders import (
    Broker,
    a_broker,
    error,
    idle,
    instance,
    job_id,
    on_disk,
    only,
    ready,
    running,
    sent,
    spec,
)


def status(broker: Broker, *names: str, by: str = "ann") -> Statuses:
    """Ask for jobs; what must be read is read from what was journaled."""
    effects = broker.says(by, Status(request_id=5, job_ids=[job_id(name) for name in names]))
    for read in only(effects, Read):
        assert isinstance(read.request, ReadJobs)
        found = [image for image in images(broker) if image.id in read.request.ids]
        effects = broker.reads(read.request, JobsReply(found))
    return sent(effects, by, Statuses)[0]


def images(broker: Broker) -> list[StoredJob]:
    return list({record.job.id: record.job for record in only(broker.journal, JobChanged)}.values())


def view(broker: Broker, name: str) -> JobView:
    return status(broker, name).jobs[0]


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_is_shown_as_it_is_now() -> None:
    broker = a_broker(jobs=[running("a"), ready("b", priority=7), ready("c")], workers=[idle("w1")])
    shown = view(broker, "a")
    assert (shown.state, shown.worker, shown.attempt, shown.phase) == ("leased", "w1", 1, "sent")
    assert [view(broker, name).ahead for name in "bc"] == [0, 1]
    broker.reports("w1", "a", "complete", b"result")
    shown = view(broker, "a")
    assert (shown.state, shown.result_bytes, shown.phase) == ("done", 6, "")
    assert shown.deletes_at_ms > shown.finished_at_ms > 0


def test_jobs_come_in_the_order_asked_and_the_others_are_missing() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete")
    found = status(broker, "b", "z", "a")
    assert [job.id for job in found.jobs] == [job_id("b"), job_id("a")]
    assert found.missing == [job_id("z")]


def test_another_users_jobs_are_missing_and_an_observer_sees_all() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")], clients=["tom"])
    broker.reports("w1", "a", "complete")
    for role, count in (("user", 0), ("observer", 2), ("gateway", 2), ("app", 0)):
        broker.role("tom", role)
        assert len(status(broker, "a", "b", by="tom").jobs) == count, role


def test_a_status_names_a_bounded_number_of_jobs() -> None:
    broker = a_broker(clients=["ann"])
    many = Status(request_id=5, job_ids=[bytes(16)] * (bounds.BATCH_JOBS + 1))
    assert error(broker.says("ann", many)).fields["field"] == "job_ids"


def test_a_list_is_a_page_of_the_journal_shown_as_it_is_now() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.role("ann", "user")
    asked = ListJobs(request_id=5, match=JobFilter(queue="default"), after=9, limit=2, oldest_first=True)
    request = only(broker.says("ann", asked), Read)[0].request
    assert isinstance(request, ReadList)
    assert (request.user, request.after, request.limit, request.oldest_first) == ("ann", 9, 2, True)
    leased = images(broker)[0]
    broker.reports("w1", "a", "fail")
    found = sent(broker.reads(request, ListReply([leased], more=True)), "ann", Listed)[0]
    assert (found.more, found.jobs[0].state) == (True, "delayed")


def much_labelled(count: int) -> Broker:
    """A broker with jobs of the largest labels there are."""
    labels = {f"{number:0128}": "😀" * bounds.LABEL_CHARS for number in range(bounds.LABELS)}
    jobs = [running(f"j{number}", labels=labels) for number in range(count)]
    return a_broker(jobs=jobs, workers=[idle("w1", slots=count)])


def test_a_page_that_does_not_fit_a_header_ends_early_and_says_that_there_is_more() -> None:
    broker = much_labelled(300)
    asked = ListJobs(request_id=5, match=JobFilter(), limit=1000)
    request = only(broker.says("ann", asked), Read)[0].request
    effects = broker.reads(request, ListReply(images(broker), more=False))
    found = sent(effects, "ann", Listed)[0]
    assert found.more
    assert 100 < len(found.jobs) < 300
    assert len(encode(found)[2]) <= bounds.HEADER_BYTES


def test_statuses_that_do_not_fit_a_header_are_refused() -> None:
    broker = much_labelled(300)
    job_ids = [image.id for image in images(broker)]
    refusal = error(broker.says("ann", Status(request_id=5, job_ids=job_ids)))
    assert (refusal.code, refusal.fields["field"]) == ("bad_field", "job_ids")


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"limit": 0}, "limit"), ({"limit": 1001}, "limit"), ({"match": JobFilter(states=["lost"])}, "states")],
)
def test_a_list_out_of_bounds_is_refused(fields: dict[str, Any], field: str) -> None:
    broker = a_broker(clients=["ann"])
    given: dict[str, Any] = {"request_id": 5, "match": JobFilter()}
    asked = ListJobs(**(given | fields))
    assert error(broker.says("ann", asked)).fields["field"] == field


def test_a_payload_is_read_for_whom_it_concerns() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], clients=["tom"])
    broker.role("tom", "user")
    for name, answers in (("ann", True), ("tom", False)):
        request = only(broker.says(name, GetPayload(request_id=5, job_id=job_id("a"))), Read)[0].request
        assert isinstance(request, ReadPayload)
        effects = broker.reads(request, PayloadReply(images(broker)[0], b"secret"))
        assert bool(sent(effects, name, Payload)) == answers
        assert answers or error(effects).code == "not_found"


def test_what_was_read_for_who_has_left_is_dropped() -> None:
    broker = a_broker(jobs=[ready("a")])
    request = only(broker.says("ann", GetPayload(request_id=5, job_id=job_id("a"))), Read)[0].request
    broker.breaks("ann")
    assert not broker.reads(request, PayloadReply(None, b""))


# --- nouns ------------------------------------------------------------------------------------------------------------


def test_queues_are_listed_with_their_counts() -> None:
    broker = a_broker(
        jobs=[running("a"), ready("b"), ready("c", delay_ms=9000), ready("d", queue="night")],
        workers=[idle("w1", queues=["default"])],
    )
    broker.turn(500)
    found = {
        queue.name: queue
        for queue in sent(broker.says("ann", ListQueues(request_id=5)), "ann", Queues)[0].queues
    }
    default = found["default"]
    assert (default.leased, default.ready, default.delayed, default.oldest_ready_ms) == (1, 1, 1, 500)
    assert (found["night"].ready, found["night"].workers, default.workers) == (1, [], ["w1"])


def test_workers_are_listed_the_lately_gone_too() -> None:
    broker = a_broker(workers=[idle("w1"), idle("w2"), idle("w3")], jobs=[ready("a")])
    broker.says("ann", Pause(request_id=5, noun="worker", name="w2"))
    broker.breaks("w3")
    found = sent(broker.says("ann", ListWorkers(request_id=5)), "ann", Workers)[0].workers
    assert {worker.name: worker.state for worker in found} == {"w1": "up", "w2": "paused", "w3": "silent"}
    broker.pass_time(5000, hearing=["w1", "w2", "ann"])
    found = sent(broker.says("ann", ListWorkers(request_id=5)), "ann", Workers)[0].workers
    assert found[2].state == "gone"


def test_models_are_listed_with_where_they_are_and_who_waits() -> None:
    loaded = instance("qwen3", model="qwen3", kind="llm", slots=2)
    broker = a_broker(
        jobs=[
            running("a", task_type="chat", models=["qwen3"]),
            ready("b", task_type="chat", models=["llama"]),
        ],
        workers=[idle("w1", instances=[loaded], catalog=on_disk("qwen3", "llama"))],
    )
    found = sent(broker.says("ann", ListModels(request_id=5)), "ann", Models)[0].models
    assert [(model.model, model.loaded_on, model.slots, model.leased, model.waiting) for model in found] == [
        ("llama", [], 0, 0, 1), ("qwen3", ["w1"], 2, 1, 0),
    ]  # fmt: skip
    assert [model.on_disk_at for model in found] == [["w1"], ["w1"]]


def test_health_tells_counts_and_what_only_the_shell_knows() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    broker.step(HostFacts(journal_path="/j", journal_bytes=5, memory_bytes=7))
    broker.reports("w1", "a", "complete")
    broker.reports("w1", "a", "complete", attempt=1, epoch=1)
    broker.submit("ann", spec("x", priority=99))
    found = sent(broker.says("ann", Health(request_id=5)), "ann", HealthReply)[0]
    assert found.counts == {"delayed": 0, "blocked": 0, "ready": 1, "leased": 0, "asking": 0}
    assert (found.ended, found.refused, found.stale_results) == ({"done": 1}, {"bad_field": 1}, 1)
    assert (found.sessions, found.workers, found.jobs_open, found.journal_path) == (2, 1, 1, "/j")
    assert (found.journal_bytes, found.memory_bytes, found.disk_trouble) == (5, 7, "")


@pytest.mark.parametrize("path", ["", "/" * 4097])
def test_a_backup_needs_a_path(path: str) -> None:
    assert (
        error(a_broker(clients=["ann"]).says("ann", Backup(request_id=5, path=path))).fields["field"]
        == "path"
    )


def test_a_backup_is_answered_when_the_copy_is_whole() -> None:
    broker = a_broker(clients=["ann"])
    request = only(broker.says("ann", Backup(request_id=5, path="/b")), Read)[0].request
    assert isinstance(request, CopyJournal)
    done = sent(broker.reads(request, CopyReply(99, "")), "ann", BackupDone)
    assert done == [BackupDone(request_id=5, path="/b", copied_bytes=99)]
    refused = error(broker.reads(request, CopyReply(0, "no space")))
    assert (refused.code, refused.fields["why"]) == ("backup_failed", "no space")


def test_health_counts_the_ends_of_the_last_minute_for_whoever_asks_whenever() -> None:
    broker = a_broker(jobs=[ready(name) for name in "abc"])

    def ended() -> int:
        return sent(broker.says("ann", Health(request_id=5)), "ann", HealthReply)[0].ended_last_min

    broker.cancel("ann", "a", "b")
    assert ended() == 2
    broker.pass_time(40_000, hearing=["ann"])
    broker.cancel("ann", "c")
    assert ended() == 3
    broker.pass_time(30_000, hearing=["ann"])
    assert ended() == 1


# --- latest values ----------------------------------------------------------------------------------------------------


def published(effects: list[Effect], kind: type[Any]) -> list[Any]:
    return [each.message for each in only(effects, Publish) if isinstance(each.message, kind)]


def test_a_tick_comes_once_a_second() -> None:
    broker = a_broker(jobs=[ready("a")])
    effects = broker.pass_time(10_000, hearing=["ann"])
    ticks = published(effects, Tick)
    assert len(ticks) == 10
    assert (ticks[-1].counts["ready"], ticks[-1].workers, ticks[-1].cursor) == (1, 0, broker.state.last_seq)


def test_queue_sizes_come_when_they_changed_at_most_four_times_a_second() -> None:
    broker = a_broker(clients=["ann"])
    sizes = []
    for number in range(20):
        broker.submit("ann", spec(f"j{number}"))
        sizes += published(broker.turn(50), QueueSize)
    assert 3 <= len(sizes) <= 5
    assert not published(broker.pass_time(1000), QueueSize)[1:]


# --- why --------------------------------------------------------------------------------------------------------------


def why(broker: Broker, name: str, *, by: str = "ann") -> WhyReply:
    effects = broker.says(by, Why(request_id=5, job_id=job_id(name)))
    for read in only(effects, Read):
        found = [image for image in images(broker) if image.id == job_id(name)]
        effects = broker.reads(read.request, JobsReply(found))
    return sent(effects, by, WhyReply)[0]


def codes(broker: Broker, name: str) -> list[str]:
    return [reason.code for reason in why(broker, name).reasons]


def hints(broker: Broker, name: str) -> str:
    return " ".join(why(broker, name).hints)


def test_without_workers_that_is_why() -> None:
    broker = a_broker(jobs=[ready("a")])
    assert codes(broker, "a") == ["no_worker"]
    assert "lmq worker" in hints(broker, "a")


def test_a_queue_or_task_type_that_no_worker_takes_is_why() -> None:
    broker = a_broker(jobs=[ready("a", queue="night")], workers=[idle("w1", queues=["default"])])
    assert codes(broker, "a") == ["no_worker_for_queue"]


def test_a_task_type_that_nobody_takes_is_told_with_those_that_are_taken() -> None:
    broker = a_broker(
        jobs=[ready("a", task_type="paint")], workers=[idle("w1", task_types=["chat", "embed"])]
    )
    assert "they take chat, embed" in why(broker, "a").reasons[0].text
    assert "lmq workers list" in hints(broker, "a")


@pytest.mark.parametrize(
    ("delay_ms", "says"),
    [(40_000, "in 40 s"), (180_000, "in 3 min"), (7_200_000, "in 2 h"), (7_500_000, "in 2 h 5 min")],
)
def test_times_are_told_as_people_say_them(delay_ms: int, says: str) -> None:
    broker = a_broker(jobs=[ready("a", delay_ms=delay_ms)])
    assert why(broker, "a").reasons[0].text.endswith(says)


def test_jobs_ahead_are_why_and_the_first_is_next() -> None:
    broker = a_broker(jobs=[running("x"), ready("a"), ready("b"), ready("c")], workers=[idle("w1")])
    assert codes(broker, "a") == ["next"]
    reasons = why(broker, "c").reasons
    assert [(reason.code, reason.fields) for reason in reasons] == [("ahead", {"ahead": 2})]
    assert "--priority 8" in hints(broker, "c")


def test_a_running_job_says_where() -> None:
    reason = why(a_broker(jobs=[running("a")], workers=[idle("w1")]), "a").reasons[0]
    assert (reason.code, reason.fields) == ("running", {"worker": "w1", "phase": "sent"})


def test_a_wait_is_of_its_submitter_or_a_backoff() -> None:
    broker = a_broker(jobs=[running("a"), ready("b", delay_ms=9000)], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", error=ErrorInfo("e", "the server said 500"), retry_after_ms=4000)
    backoff = why(broker, "a").reasons[0]
    assert (backoff.code, backoff.fields) == ("backoff", {"seconds": 4.0, "failures": 1})
    assert "the server said 500" in backoff.text
    delayed = why(broker, "b").reasons[0]
    assert (delayed.code, delayed.fields) == ("delayed", {"seconds": 9.0})


def test_what_is_paused_says_by_whom_and_what_to_type() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    broker.says("ann", Pause(request_id=5, noun="queue", name="default", reason="gaming", for_ms=60_000))
    broker.says("ann", Pause(request_id=5, noun="worker", name="w1"))
    assert codes(broker, "a") == ["queue_paused", "worker_paused"]
    assert "gaming" in why(broker, "a").reasons[0].text
    assert "lmq queues resume default" in hints(broker, "a")
    assert "lmq workers resume w1" in hints(broker, "a")


def test_an_endpoint_that_fails_is_why() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    breaker = Breaker(since_ms=broker.wall_ms - 5000, reason="connection refused")
    broker.has_capacity("w1", instance(), breaker=breaker)
    reason = why(broker, "a").reasons[0]
    assert (reason.code, reason.fields) == ("breaker_open", {"worker": "w1", "since_s": 5})


def test_a_model_whose_endpoint_fails_is_not_said_to_be_nowhere() -> None:
    job = ready("a", task_type="chat", models=["big"])
    broker = a_broker(jobs=[job], workers=[idle("w1", instances=[instance("i", model="big", kind="llm")])])
    broker.has_capacity("w1", breaker=Breaker(since_ms=broker.wall_ms, reason="connection refused"))
    assert codes(broker, "a") == ["breaker_open"]
    assert not [hint for hint in hints(broker, "a") if "--model" in hint]


def test_a_model_of_another_kind_is_why() -> None:
    job = ready("a", task_type="chat", models=["vec"])
    broker = a_broker(jobs=[job])
    broker.worker(idle("w1", instances=[instance("i", model="vec", kind="embedding")]))
    assert codes(broker, "a") == ["wrong_kind"]


def test_no_load_is_foretold_of_a_model_of_another_kind() -> None:
    job = ready("a", task_type="chat", models=["vec"])
    broker = a_broker(jobs=[job])
    broker.worker(idle("w1", instances=[], catalog=on_disk("vec", kind="embedding"), may_load=True))
    assert codes(broker, "a") == ["wrong_kind"]


def test_a_model_that_is_loading_or_on_disk_only_is_why() -> None:
    job = ready("a", task_type="chat", models=["big"])
    broker = a_broker(jobs=[job], workers=[idle("w1", instances=[], catalog=on_disk("big"), may_load=True)])
    assert codes(broker, "a") == ["not_loaded"]
    broker.turn()
    assert codes(broker, "a") == ["loading"]
    broker = a_broker(jobs=[job], workers=[idle("w1", instances=[], catalog=on_disk("big"))])
    assert "may not load" in why(broker, "a").reasons[0].text


def test_a_model_that_nobody_has_any_more_is_why_and_the_nearest_is_named() -> None:
    broker = a_broker(jobs=[ready("a", task_type="chat", models=["qwen3-8b"])])
    broker.worker(idle("w1", instances=[instance(model="qwen3-9b", kind="llm")]))
    reason = why(broker, "a").reasons[0]
    assert (reason.code, reason.fields) == ("no_model", {"model": "qwen3-8b", "nearest": ["qwen3-9b"]})
    assert "--model qwen3-9b" in hints(broker, "a")


def test_a_job_that_ended_tells_its_story() -> None:
    broker = a_broker(jobs=[running("a", failures=1)], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", error=ErrorInfo("e", "no"))
    found = why(broker, "a")
    assert [reason.code for reason in found.reasons] == ["dead", "attempt_failed"]
    assert "lmq retry" in hints(broker, "a")


def test_why_of_another_users_job_is_not_told() -> None:
    broker = a_broker(jobs=[ready("a")], clients=["tom"])
    broker.role("tom", "user")
    for name in ("a", "z"):
        assert error(broker.says("tom", Why(request_id=5, job_id=job_id(name)))).code == "not_found"


def test_a_drained_queue_refuses_and_its_view_says_so() -> None:
    broker = a_broker(clients=["ann"])
    broker.says("ann", Drain(request_id=5, noun="queue", name="q"))
    found = sent(broker.says("ann", ListQueues(request_id=6)), "ann", Queues)[0].queues
    assert {queue.name: queue.hold.kind for queue in found if queue.hold} == {"q": "drain"}
