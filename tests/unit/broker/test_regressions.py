"""Bugs that were there once, each with the test that would have caught it."""

from __future__ import annotations

import pytest

from lmq_broker.core.effects import Read
from lmq_broker.core.reads import EventsReply, ReadEvents, ReadText
from lmq_broker.core.records import MetaSet
from lmq_broker.core.settings import Settings
from lmq_proto.messages import (
    Drain,
    Enlist,
    Enlisted,
    ErrorReply,
    Finished,
    FollowText,
    Held,
    HostLoad,
    JobFilter,
    LeaseRef,
    ListJobs,
    Pause,
    PhaseReport,
    Phases,
    Stop,
    Subscribe,
    Target,
    Update,
)
from lmq_proto.states import State
from unit.broker.builders import (
    EPOCH,
    a_broker,
    held,
    idle,
    instance,
    instance_of,
    job_id,
    only,
    outcomes,
    ready,
    running,
    sent,
    spec,
    started,
)


def test_the_deadline_of_a_job_that_is_done_does_nothing() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    job = broker.job("a")
    broker.reports("w1", "a", "complete")
    assert job.lease is None, "a ring of job and lease would never be freed"
    broker.pass_time(611_000, hearing=["w1", "ann"])
    assert broker.kinds() == ["accepted", "started", "done"]


def test_a_job_is_released_and_starts_again_within_one_millisecond() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "release")
    assert started(broker.turn(), "w1") == ["a"]


def test_a_report_of_the_machines_load_alone_keeps_its_slots() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")], workers=[idle("w1")])
    broker.turn()
    broker.has_capacity("w1", instance(), host=HostLoad(cpu_ratio=0.5))
    broker.reports("w1", "a", "complete")
    assert started(broker.turn(), "w1") == ["b"]


def test_a_job_that_has_started_once_does_not_expire_in_its_backoff() -> None:
    broker = a_broker(jobs=[running("a", expires_ms=5000)], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", retry_after_ms=10_000)
    broker.pass_time(6000, hearing=["w1", "ann"])
    assert broker.job("a").state is State.DELAYED


def test_an_atomic_batch_that_contradicts_itself_is_refused_whole() -> None:
    broker = a_broker(clients=["ann"])
    batch = [spec("a", key="k", payload=b"1"), spec("b", key="k", payload=b"2")]
    found = outcomes(broker.submit("ann", *batch, payloads=[b"1", b"2"], atomic=True))
    assert [each.outcome for each in found] == ["refused", "refused"]
    assert not broker.state.jobs


def test_a_job_keeps_within_its_failures_when_they_are_lowered() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail")
    broker.says("ann", Update(request_id=1, target=Target(job_ids=[job_id("a")]), failures=1))
    broker.pass_time(2000, hearing=["w1", "ann"])


@pytest.mark.timeout(10)
def test_events_read_back_while_new_ones_wait_for_the_turns_end_do_not_spin() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(events_in_memory=1))
    for number in range(9):
        broker.submit("ann", spec(f"j{number}"))
        broker.turn()
    broker.says("ann", Subscribe(request_id=1, subscription_id=1, cursor=0))
    reads = [read.request for read in only(broker.turn(), Read) if isinstance(read.request, ReadEvents)]
    broker.submit("ann", spec("new"))
    broker.reads(reads[0], EventsReply(broker.events[:10], 0, 0))


def test_another_users_job_is_not_followed_by_its_id() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], clients=["tom"])
    broker.role("tom", "user")
    broker.submit("tom", spec("a"), follow=True)
    broker.reports("w1", "a", "complete", b"secret")
    assert not sent(broker.turn(), "tom", Finished)


def test_a_lease_that_was_stopping_when_its_worker_came_back_is_stopped_and_its_slot_freed() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    mine = held(broker, "a")
    broker.breaks("w1")
    broker.cancel("ann", "a")
    effects = broker.worker(idle("w1", held=[mine], request_id=2))
    assert sent(effects, "w1", Enlisted)[0].stop == []
    lease = LeaseRef(job_id=job_id("a"), epoch=EPOCH, attempt=1)
    assert [stop.leases for stop in sent(effects, "w1", Stop)] == [[lease]]
    assert not started(broker.turn(), "w1")
    broker.reports("w1", "a", "stopped", attempt=1, epoch=EPOCH)
    assert started(broker.turn(), "w1") == ["b"]


def test_a_draining_queue_finishes_what_it_holds() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    broker.says("ann", Drain(request_id=1, noun="queue", name="default"))
    assert started(broker.turn(), "w1") == ["a"]


def test_a_workers_connection_stays_a_workers() -> None:
    broker = a_broker(jobs=[ready("a")], workers=[idle("w1")])
    enlist = idle("w2")
    fields = {name: getattr(enlist, name) for name in enlist.__struct_fields__}
    refused = sent(broker.says("w1", Enlist(**fields)), "w1", ErrorReply)
    assert [each.error.code for each in refused] == ["protocol_error"]
    assert started(broker.turn(), "w1") == ["a"]


def test_a_process_that_takes_another_name_leaves_its_old_one() -> None:
    broker = a_broker(workers=[idle("w1")])
    enlist = idle("w2")
    fields = {name: getattr(enlist, name) for name in enlist.__struct_fields__}
    broker.says("elsewhere", Enlist(**(fields | {"instance": instance_of("w1")})))
    assert broker.at("w1").peer is None
    assert broker.at("w2").peer is not None


def test_a_job_that_was_never_leased_cannot_be_taken_up() -> None:
    broker = a_broker(jobs=[ready("a")])
    claim = Held(job_id=job_id("a"), epoch=0, attempt=0)
    assert sent(broker.worker(idle("w1", held=[claim])), "w1", Enlisted)[0].stop == [claim]


def test_text_that_begins_behind_a_hole_is_not_taken() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.says("ann", FollowText(request_id=1, job_id=job_id("a")))
    broker.writes("w1", "a", 5, "late")
    assert not [read for read in only(broker.turn(), Read) if isinstance(read.request, ReadText)]


def test_a_job_beside_one_that_is_being_stopped_is_not_alone_when_the_worker_dies() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    broker.cancel("ann", "b")
    broker.breaks("w1")
    broker.pass_time(4000, hearing=["ann"])
    assert broker.job("a").past.strikes == 0
    assert broker.job("a").past.suspect


def test_a_suspect_is_alone_at_its_worker_so_that_the_workers_death_is_its_own() -> None:
    both = [instance("i1", slots=1), instance("i2", slots=1)]
    broker = a_broker(jobs=[running("a")], workers=[idle("w1", instances=both)])
    broker.reports("w1", "a", "crash", shared=True)
    broker.submit("ann", spec("b"))
    assert started(broker.turn(1), "w1") == ["a"]
    broker.breaks("w1")
    broker.pass_time(4000, hearing=["ann"])
    assert broker.job("a").past.strikes == 1


def test_progress_that_is_no_number_is_none() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    report = PhaseReport(job_id=job_id("a"), attempt=1, phase="writing", progress=float("nan"))
    broker.says("w1", Phases(leases=[report]))
    lease = broker.job("a").lease
    assert lease is not None
    assert lease.progress == 0.0


def test_what_is_refused_is_named_by_its_verb() -> None:
    broker = a_broker(clients=["ann"])
    broker.role("ann", "worker")
    refused = sent(broker.says("ann", ListJobs(request_id=1, match=JobFilter())), "ann", ErrorReply)
    assert refused[0].error.fields["verb"] == "list"


def test_an_error_does_not_repeat_a_huge_value() -> None:
    broker = a_broker(clients=["ann"])
    pause = Pause(request_id=1, noun="queue", name="q", reason="r" * 3_000_000)
    refused = sent(broker.says("ann", pause), "ann", ErrorReply)
    assert len(str(refused[0].error)) < 1000


def test_what_is_told_of_a_queue_has_one_order_in_every_process() -> None:
    """States are text, whose order in a set is another in each process: the same seed has to say the same bytes."""
    broker = a_broker(jobs=[ready("a")])
    assert list(broker.state.queues["default"].counts) == ["asking", "blocked", "delayed", "leased", "ready"]


def test_shares_go_to_the_journal_in_one_order_in_every_process() -> None:
    """Who comes back from it first is first among equals."""
    users = [f"u{number}" for number in range(8)]
    broker = a_broker(jobs=[running(user, user=user) for user in users], workers=[idle("w1", slots=8)])
    for user in users:
        broker.reports("w1", user, "complete")
    kept = [record.name for record in only(broker.turn(1000), MetaSet) if record.name.startswith("ledger/")]
    assert len(kept) >= len(users)
    assert kept == sorted(kept)
