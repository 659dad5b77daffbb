"""The life of a lease: granted, ended in each way, charged or not, too late, over its time."""

from __future__ import annotations

import pytest

from lmq_broker.core.effects import Send, SendWork
from lmq_broker.core.policies.base import Spent
from lmq_broker.core.records import JobChanged, ResultAdded
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import DiskChanged, Stop as StopBroker
from lmq_proto import bounds
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Acked,
    Enlisted,
    Lease,
    LeaseRef,
    PhaseReport,
    Phases,
    Progress,
    Stop,
    Submitted,
)
from lmq_proto.states import State
from unit.broker.builders import (
    EPOCH,
    a_broker,
    idle,
    instance,
    job_id,
    leases,
    only,
    outcomes,
    ready,
    running,
    sent,
    spec,
    started,
)

BOOM = ErrorInfo("server_error", "the server said 500", retryable=True)


def ref(job: str, attempt: int = 1) -> LeaseRef:
    return LeaseRef(job_id=job_id(job), epoch=EPOCH, attempt=attempt)


# --- granted ----------------------------------------------------------------------------------------------------------


def test_a_ready_job_goes_to_a_worker_with_room() -> None:
    job = ready("a", payload=b"hi", labels={"chat": "42"}, session="s1", timeout_ms=9000, failures=5)
    broker = a_broker(jobs=[job], workers=[idle("w1")])
    effects = broker.turn()
    work = only(effects, SendWork)[0]
    assert leases(effects, "w1") == [
        Lease(
            job_id=job_id("a"), epoch=EPOCH, attempt=1, task_type="echo", payload_bytes=2, instance_id="i1",
            timeout_ms=9000, failures=0, failures_max=5, user="ann", labels={"chat": "42"}, session="s1",
        )
    ]  # fmt: skip
    assert work.numbers == [broker.job("a").number]
    assert [change.job.state for change in only(effects, JobChanged)] == ["leased"]
    assert broker.last_event("started").worker == "w1"
    assert broker.job("a").state is State.LEASED


def test_nothing_starts_where_there_is_no_room() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1", slots=1)])
    assert not started(broker.turn(), "w1")
    broker.reports("w1", "a", "complete")
    assert started(broker.turn(), "w1") == ["b"]


def test_slots_over_all_instances_bound_the_worker() -> None:
    both = [instance("i1", slots=2), instance("i2", slots=2)]
    broker = a_broker(jobs=[ready(name) for name in "abcd"], workers=[idle("w1", instances=both, slots=3)])
    broker.has_capacity("w1", *both, slots=3)
    assert len(started(broker.turn(), "w1")) == 3


def test_a_task_type_or_queue_that_a_worker_does_not_serve_waits() -> None:
    broker = a_broker(
        jobs=[ready("a", task_type="train"), ready("b", queue="night"), ready("c")],
        workers=[idle("w1", slots=9, task_types=["echo"], queues=["default"])],
    )
    assert started(broker.turn(), "w1") == ["c"]


def test_engine_work_is_sent_before_its_submit_is_on_disk_and_own_tasks_after() -> None:
    broker = a_broker(workers=[idle("w1", slots=2)], clients=["ann"])
    broker.turn()
    before = broker.state.position
    broker.submit("ann", spec("a", task_type="echo"))
    assert [work.after <= before for work in only(broker.turn(), SendWork)] == [True]
    broker.submit("ann", spec("b", task_type="train"))
    assert [work.after for work in only(broker.turn(), SendWork)] == [broker.state.position]


def test_work_waits_until_its_worker_has_been_told_that_it_is_enlisted() -> None:
    broker = a_broker(jobs=[ready("a")])
    broker.turn()
    enlisted = [send for send in only(broker.worker(idle("w1")), Send) if isinstance(send.message, Enlisted)]
    assert [work.after for work in only(broker.turn(), SendWork)] == [send.after for send in enlisted]


def test_nothing_starts_while_the_disk_is_in_trouble_or_the_broker_stops() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    broker.step(DiskChanged("full", 0, 1))
    assert not started(broker.turn(), "w1")
    broker.step(DiskChanged("", 2, 1))
    broker.step(StopBroker())
    assert not started(broker.turn(), "w1")


def test_work_comes_in_messages_of_bounded_size_and_all_of_it_comes() -> None:
    broker = a_broker(jobs=[ready(f"j{number}") for number in range(200)], workers=[idle("w1", slots=200)])
    effects = broker.turn()
    assert len(leases(effects, "w1")) == 200
    assert max(len(work.numbers) for work in only(effects, SendWork)) <= 64
    assert [len(work.numbers) for work in only(effects, SendWork)] == [
        len(work.message.groups) for work in only(effects, SendWork)
    ]


# --- ended well -------------------------------------------------------------------------------------------------------


def test_a_completed_job_is_done_and_its_end_acknowledged_when_durable() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    position = broker.state.position
    effects = broker.reports("w1", "a", "complete", b"result", model="m1", engine_ms=5)
    changed, result = effects
    assert isinstance(changed, JobChanged)
    assert (changed.job.state, changed.job.result_bytes, changed.job.model) == ("done", 6, "m1")
    assert (
        changed.job.deletes_at_ms
        == changed.job.finished_at_ms + broker.state.settings.task_defaults["chat"].keep_ms
    )
    assert result == ResultAdded(1, b"result")
    assert job_id("a") not in broker.state.jobs
    acks = [effect for effect in only(broker.turn(), Send) if isinstance(effect.message, Acked)]
    assert [(ack.message, ack.after) for ack in acks] == [(Acked(leases=[ref("a")]), position + 1)]
    assert broker.last_event("done").detail == {"queued_ms": 0, "leased_ms": 0}
    assert broker.at("w1").instances["i1"].leased == 0


def test_an_end_without_a_result_journals_none() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    assert not only(broker.reports("w1", "a", "complete"), ResultAdded)


def test_a_result_over_the_limit_is_a_permanent_failure() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], settings=Settings(payload_bytes=3))
    broker.reports("w1", "a", "complete", b"1234")
    broker.turn()
    assert broker.last_event("dead").detail["code"] == "result_too_large"


def test_lengths_that_do_not_fit_are_refused_and_nothing_moves() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    effects = broker.reports("w1", "a", "complete", b"12345", result_bytes=4)
    assert [type(send.message).__name__ for send in only(effects, Send)] == ["ErrorReply"]
    assert broker.job("a").state is State.LEASED


# --- too late ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fence", [{"attempt": 2}, {"epoch": EPOCH + 1}, {"epoch": 0}])
def test_an_end_of_another_lease_is_counted_acknowledged_and_changes_nothing(fence: dict[str, int]) -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete", b"late", **fence)
    assert broker.job("a").state is State.LEASED
    assert broker.state.stale_results == 1
    assert len(sent(broker.turn(), "w1", Acked)) == 1


def test_a_late_result_is_refused_after_the_lease_passed_on() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.worker(idle("w2"))
    broker.breaks("w1")
    broker.pass_time(4000, hearing=["w2", "ann"])
    assert (broker.job("a").worker, broker.job("a").attempt) == ("w2", 2)
    broker.worker(idle("w1", life=1))
    broker.reports("w1", "a", "complete", b"late", attempt=1)
    assert broker.job("a").state is State.LEASED
    broker.reports("w2", "a", "complete", b"right")
    assert [record.result for record in only(broker.journal, ResultAdded)] == [b"right"]


def test_a_result_sent_twice_counts_once() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    lease = {"attempt": 1, "epoch": EPOCH}
    broker.reports("w1", "a", "complete", b"r", **lease)
    broker.reports("w1", "a", "complete", b"r", **lease)
    assert len(only(broker.journal, ResultAdded)) == 1
    assert len(sent(broker.turn(), "w1", Acked)[0].leases) == 2


def test_another_workers_report_on_a_lease_changes_nothing() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.worker(idle("w2"))
    broker.reports("w2", "a", "complete", b"forged")
    assert broker.job("a").state is State.LEASED


# --- failed -----------------------------------------------------------------------------------------------------------


def test_a_failure_is_charged_and_another_attempt_follows_after_a_backoff() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", error=BOOM)
    job = broker.job("a")
    assert (job.state, job.attempt, job.failures) == (State.DELAYED, 1, 1)
    assert 0 < job.backoff_until_ms - broker.mono_ms <= 1000
    broker.turn()
    assert broker.last_event("attempt_failed").detail == {
        "code": "server_error", "error": "the server said 500", "failures": 1, "failures_max": 3, "again": True,
    }  # fmt: skip
    assert started(broker.turn(1000), "w1") == ["a"]
    assert broker.job("a").attempt == 2


def test_the_last_failure_makes_it_dead_with_its_story() -> None:
    broker = a_broker(jobs=[running("a", failures=3)], workers=[idle("w1")])
    for attempt in (1, 2, 3):
        assert broker.job("a").attempt == attempt
        broker.reports("w1", "a", "fail", error=ErrorInfo("e", f"no {attempt}"))
        broker.pass_time(5000, hearing=["w1", "ann"])
    assert job_id("a") in broker.state.finished
    image = only(broker.journal, JobChanged)[-1].job
    assert (image.state, image.failures) == ("dead", 3)
    assert [(entry.message, entry.fields["attempt"]) for entry in image.past.story] == [
        ("no 1", 1), ("no 2", 2), ("no 3", 3),
    ]  # fmt: skip
    assert image.past.error == ErrorInfo("e", "no 3")
    assert broker.last_event("dead").detail == {
        "code": "e", "error": "no 3", "failures": 3, "queued_ms": 0, "leased_ms": 10_000,
    }  # fmt: skip
    assert not broker.last_event("attempt_failed").detail["again"]


def test_a_permanent_failure_is_the_last_one() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", error=ErrorInfo("bad_payload", "no messages"), permanent=True)
    assert job_id("a") in broker.state.finished


def test_a_failure_without_a_reason_and_an_unknown_outcome_are_charged() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    broker.reports("w1", "a", "fail")
    broker.reports("w1", "b", "exploded")
    assert [(broker.job(name).failures, broker.job(name).past.story[0].code) for name in "ab"] == [
        (1, "fail"), (1, "exploded"),
    ]  # fmt: skip


def test_the_server_may_ask_for_more_patience_than_the_backoff() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", error=BOOM, retry_after_ms=45_000)
    assert broker.job("a").backoff_until_ms - broker.mono_ms == 45_000


@pytest.mark.parametrize("outcome", ["fail", "release"])
def test_no_server_may_ask_for_patience_without_end(outcome: str) -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", outcome, error=BOOM, retry_after_ms=2**64 - 1)
    assert broker.job("a").backoff_until_ms - broker.mono_ms == bounds.DURATION_MS


def test_the_error_of_a_worker_is_cut_to_its_bounds() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", error=ErrorInfo("c" * 999, "m" * 99_999, fields={"page": "p" * 99_999}))
    entry = broker.job("a").past.story[0]
    assert (len(entry.code), len(entry.message), entry.fields) == (128, 500, {"attempt": 1})
    broker.turn()
    assert broker.last_event("attempt_failed").detail["error"] == "m" * 500


def test_what_a_worker_counted_is_put_in_bounds_before_anybody_is_charged() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    charged: list[Spent] = []
    broker.state.policy.ended = lambda lease, spent, now: charged.append(spent)  # type: ignore[method-assign]  # listens
    broker.reports(
        "w1", "a", "complete", prompt_tokens=-(2**63), output_tokens=2**64 - 1, engine_ms=2**64 - 1
    )
    assert charged == [Spent(0, bounds.TOKENS, bounds.DURATION_MS, complete=True, innocent=False)]


def test_backoff_doubles_with_each_failure_up_to_its_cap() -> None:
    broker = a_broker(jobs=[running("a", failures=100)], workers=[idle("w1")])
    waits = []
    for _ in range(12):
        broker.reports("w1", "a", "fail", error=BOOM)
        waits.append(broker.job("a").backoff_until_ms - broker.mono_ms)
        broker.pass_time(61_000, hearing=["w1", "ann"])
    for failure, wait_ms in enumerate(waits, start=1):
        assert 0 < wait_ms <= min(60_000, 1000 << (failure - 1))
    assert max(waits) > 8000


def test_a_retried_job_goes_behind_its_equals() -> None:
    broker = a_broker(jobs=[running("a"), ready("b"), ready("c", priority=1)], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", error=BOOM)
    order = []
    for _ in range(3):
        order += started(broker.turn(2000), "w1")
        broker.reports("w1", order[-1], "complete")
    assert order == ["b", "a", "c"]


# --- released ---------------------------------------------------------------------------------------------------------


def test_a_released_job_is_ready_again_where_it_was_and_uncharged() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    broker.reports("w1", "a", "release", error=ErrorInfo("endpoint_unreachable", "no connection"))
    assert (broker.job("a").state, broker.job("a").failures) == (State.READY, 0)
    assert started(broker.turn(1), "w1") == ["a"]
    assert broker.last_event("released").detail == {
        "code": "endpoint_unreachable", "error": "no connection", "suspect": False,
    }  # fmt: skip
    assert broker.job("a").attempt == 2


def test_after_three_releases_in_a_row_further_ones_wait_longer_and_longer() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    waits = []
    for _ in range(10):
        broker.reports("w1", "a", "release")
        waits.append(max(0, broker.job("a").backoff_until_ms - broker.mono_ms))
        broker.pass_time(31_000, hearing=["w1", "ann"])
    assert waits == [0, 0, 0, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]
    assert broker.job("a").failures == 0


def test_a_release_may_ask_for_patience() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "release", retry_after_ms=7000)
    assert (broker.job("a").state, broker.job("a").backoff_until_ms - broker.mono_ms) == (State.DELAYED, 7000)


def test_a_lease_that_stopped_untold_is_released() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "stopped")
    assert (broker.job("a").state, broker.job("a").failures) == (State.READY, 0)


# --- crashed ----------------------------------------------------------------------------------------------------------


def test_a_crash_that_several_shared_makes_them_suspects_uncharged() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    for name in "ab":
        broker.reports("w1", name, "crash", shared=True)
        assert (broker.job(name).state, broker.job(name).failures) == (State.READY, 0)
        assert broker.job(name).past.suspect


def test_suspects_run_alone() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=4)])
    for name in "ab":
        broker.reports("w1", name, "crash", shared=True)
    broker.submit("ann", spec("c"), spec("d"))
    effects = broker.turn(1)
    assert [(lease.job_id, lease.alone) for lease in leases(effects, "w1")] == [(job_id("a"), True)]
    assert not started(broker.turn(), "w1"), "nothing joins a suspect"
    broker.reports("w1", "a", "complete")
    assert started(broker.turn(1), "w1") == ["b"]
    broker.reports("w1", "b", "complete")
    assert started(broker.turn(), "w1") == ["c", "d"]


def test_a_suspect_waits_for_an_instance_on_which_nothing_runs() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=4)])
    broker.submit("ann", spec("c", priority=9))
    broker.turn()
    for name in "ab":
        broker.reports("w1", name, "crash", shared=True)
    assert not started(broker.turn(), "w1")
    broker.reports("w1", "c", "complete")
    assert started(broker.turn(1), "w1") == ["a"]


def test_a_solo_crash_is_a_strike_and_the_second_makes_it_dead() -> None:
    broker = a_broker(jobs=[running("a", failures=50)], workers=[idle("w1")])
    crash = ErrorInfo("engine_crashed", "the model has crashed")
    broker.reports("w1", "a", "crash", error=crash)
    job = broker.job("a")
    assert (job.lease, job.past.strikes, job.past.suspect) == (None, 1, True)
    assert started(broker.turn(1000), "w1") == ["a"]
    broker.reports("w1", "a", "crash", error=crash)
    broker.turn()
    assert broker.last_event("dead").detail["code"] == "engine_crashed"
    assert [entry.code for entry in only(broker.journal, JobChanged)[-1].job.past.story] == [
        "engine_crashed"
    ] * 2


def test_an_overflow_of_the_shared_cache_makes_a_suspect_of_a_released_job() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "release", error=ErrorInfo("kv_overflow", "context full"))
    assert broker.job("a").past.suspect
    assert broker.job("a").failures == 0


# --- over its time ----------------------------------------------------------------------------------------------------


def test_an_attempt_over_its_time_is_charged_and_its_slot_kept_until_it_stopped() -> None:
    broker = a_broker(jobs=[running("a", timeout_ms=5000), ready("b")], workers=[idle("w1")])
    broker.pass_time(14_000, hearing=["w1", "ann"])
    assert broker.job("a").state is State.LEASED, "the worker has ten seconds more to end it itself"
    effects = broker.pass_time(1000, hearing=["w1", "ann"])
    assert sent(effects, "w1", Stop) == [Stop(leases=[ref("a")], reason="timeout")]
    assert (broker.job("a").state, broker.job("a").failures) == (State.DELAYED, 1)
    assert broker.job("a").past.story[0].code == "attempt_timeout"
    assert not started(broker.pass_time(2000, hearing=["w1", "ann"]), "w1")
    broker.reports("w1", "a", "stopped", attempt=1, epoch=EPOCH)
    assert started(broker.turn(), "w1") == ["b"]


def test_a_job_without_a_time_limit_of_its_own_has_that_of_its_task_type() -> None:
    broker = a_broker(jobs=[running("a", task_type="embed")], workers=[idle("w1")])
    assert next(iter(broker.at("w1").leases.values())).deadline_ms - broker.mono_ms == 70_000


# --- progress ---------------------------------------------------------------------------------------------------------


def progress(effects: list[object]) -> list[Progress]:
    return [each.message for each in effects if isinstance(getattr(each, "message", None), Progress)]  # type: ignore[attr-defined]


def test_progress_is_shown_on_the_jobs_channel_at_most_ten_times_a_second() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])

    def reports(tokens: int) -> list[Progress]:
        report = PhaseReport(job_id=job_id("a"), attempt=1, phase="writing", tokens=tokens, tokens_per_s=9.0)
        return progress(list(broker.says("w1", Phases(leases=[report]))))

    broker.mono_ms += 200
    assert [each.tokens for each in reports(1)] == [1]
    assert reports(2) == []
    broker.mono_ms += 100
    assert [(each.tokens, each.phase, each.state) for each in reports(3)] == [(3, "writing", "leased")]


@pytest.mark.parametrize("told", [{"attempt": 2}, {"job_id": job_id("z")}])
def test_progress_of_another_attempt_is_dropped(told: dict[str, int | bytes]) -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    fields = {"job_id": job_id("a"), "attempt": 1, "phase": "writing"} | told
    assert not broker.says("w1", Phases(leases=[PhaseReport(**fields)]))  # type: ignore[arg-type]  # mixed on purpose


def test_progress_out_of_range_is_put_in_range() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    report = PhaseReport(
        job_id=job_id("a"), attempt=1, phase="dancing", progress=7.0, stage="s" * 9999, tokens=2**64 - 1,
        tokens_per_s=float("nan"),
    )  # fmt: skip
    broker.says("w1", Phases(leases=[report]))
    lease = broker.job("a").lease
    assert lease is not None
    assert (lease.phase, lease.progress, len(lease.stage)) == ("sent", 1.0, 500)
    assert (lease.tokens, lease.tokens_per_s) == (bounds.TOKENS, 0.0)


def test_a_submit_and_its_end_in_one_turn_are_told_in_order() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    assert outcomes(broker.submit("ann", spec("b")))[0].outcome == "accepted"
    broker.reports("w1", "a", "complete")
    effects = broker.turn()
    assert [event.seq for event in broker.events] == list(range(1, broker.state.last_seq + 1))
    assert not sent(effects, "ann", Submitted)
    assert broker.kinds() == ["accepted", "started", "accepted", "done", "started"]
