"""The worker's core: one transition each, the whole list of instructions compared where it says something."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lmq_proto import bounds
from lmq_proto.errors import ErrorInfo, ProtocolError
from lmq_proto.messages import (
    Acked,
    Bye,
    Capacity,
    CapacityReport,
    Ended,
    Enlist,
    Enlisted,
    ErrorReply,
    FromPeer,
    Group,
    Heartbeat,
    Held,
    InstanceInfo,
    Lease,
    LeaseRef,
    LoadEnded,
    LoadModel,
    PhaseReport,
    Phases,
    Results,
    Stop,
    TextDurable,
    TextMark,
    TextReport,
    UnloadModel,
    Welcome,
    Who,
    Work,
)
from lmq_worker.attempt import Attempt, Key, Outcome
from lmq_worker.core import HELD_LEASES, Session, WorkerCore
from lmq_worker.instructions import (
    Forget,
    GiveUp,
    Instruction,
    Load,
    Note,
    Persist,
    Reconnect,
    SendMessage,
    StartGroup,
    StopAttempt,
    Unload,
)
from lmq_worker.texts import PIECE_CHARS

CAPACITY = Capacity(instances=[InstanceInfo(instance_id="i", model="*", slots=4)], may_load=True)
DONE = Outcome("complete", b"result")


def an_enlist() -> Enlist:
    return Enlist(
        request_id=0,
        instance=b"i" * 16,
        protocol_oldest=1,
        protocol_newest=1,
        name="w",
        endpoint="e",
        backend="b",
        capacity=CAPACITY,
    )


def enlisted(request_id: int = 1, *, epoch: int = 1, stop: list[Held] | None = None) -> Enlisted:
    return Enlisted(
        request_id=request_id,
        protocol=1,
        software="s",
        broker_id=b"b" * 16,
        epoch=epoch,
        wall_ms=0,
        heartbeat_ms=1000,
        stop=stop or [],
    )


def a_core(*, spooled: list[tuple[Ended, bytes]] | None = None) -> WorkerCore:
    """Return a core that has enlisted at 0 ms."""
    core = WorkerCore(an_enlist(), spooled=spooled or [])
    core.start(0)
    core.received(enlisted(), b"", 0)
    return core


def a_lease(name: str, **fields: Any) -> Lease:
    values = {"epoch": 1, "attempt": 1, "task_type": "echo", "payload_bytes": 1, "instance_id": "i", **fields}
    return Lease(job_id=name.encode().ljust(16), **values)


def key(lease: Lease) -> Key:
    return (lease.job_id, lease.epoch, lease.attempt)


def ref(lease: Lease) -> LeaseRef:
    return LeaseRef(job_id=lease.job_id, epoch=lease.epoch, attempt=lease.attempt)


def work(core: WorkerCore, *groups: list[Lease], now_ms: int = 0) -> list[Instruction]:
    leases = [lease for group in groups for lease in group]
    return core.received(Work(groups=[Group(leases=group) for group in groups]), b"p" * len(leases), now_ms)


def started(instructions: list[Instruction]) -> list[list[bytes]]:
    """Return the jobs of each group that is to be started."""
    return [
        [attempt.lease.job_id.strip() for attempt in one.attempts]
        for one in instructions
        if isinstance(one, StartGroup)
    ]


def sent(instructions: list[Instruction]) -> list[FromPeer]:
    return [one.message for one in instructions if isinstance(one, SendMessage)]


def results(instructions: list[Instruction]) -> list[Ended]:
    return [
        ended for message in sent(instructions) if isinstance(message, Results) for ended in message.ended
    ]


def without_notes(instructions: list[Instruction]) -> list[Instruction]:
    return [one for one in instructions if not isinstance(one, Note)]


# --- session ---


def test_the_first_word_is_enlist() -> None:
    core = WorkerCore(an_enlist())
    assert core.start(0) == [SendMessage(msgspec.structs.replace(an_enlist(), request_id=1))]
    assert core.session is Session.ENLISTING


def test_enlist_is_said_again_under_the_same_number_until_it_is_answered() -> None:
    core = WorkerCore(an_enlist())
    first = core.start(0)
    assert core.next_due_ms == 1000
    assert core.tick(999) == []
    assert core.tick(1000) == first


def test_enlist_is_not_said_again_while_the_first_still_waits_in_the_shell() -> None:
    core = WorkerCore(an_enlist())
    core.start(0)
    core.send_blocked()
    assert core.tick(1000) == []


def test_an_address_that_does_not_answer_is_left_for_the_next() -> None:
    core = WorkerCore(an_enlist())
    core.start(0)
    assert core.tick(5000) == [Reconnect(), SendMessage(msgspec.structs.replace(an_enlist(), request_id=2))]


def test_an_answer_to_an_earlier_enlist_does_not_count() -> None:
    core = WorkerCore(an_enlist())
    core.start(0)
    core.tick(5000)
    assert core.received(enlisted(1), b"", 5001) == []
    assert core.session is Session.ENLISTING


def test_who_makes_it_enlist_again_with_all_leases_held() -> None:
    core = a_core()
    runs, ended = a_lease("runs"), a_lease("ended")
    work(core, [runs], [ended])
    core.attempt_ended(key(ended), DONE, 1)
    core.flush(1)
    message = sent(core.received(Who(), b"", 2))[0]
    assert isinstance(message, Enlist)
    assert message.request_id == 2
    assert message.held == [
        Held(job_id=runs.job_id, epoch=1, attempt=1, instance_id="i"),
        Held(job_id=ended.job_id, epoch=1, attempt=1, ended=True),
    ]


def test_who_is_no_news_while_enlisting() -> None:
    core = WorkerCore(an_enlist())
    core.start(0)
    assert core.received(Who(), b"", 1) == []


def test_results_and_text_go_again_after_enlisting_again_text_first() -> None:
    core = a_core()
    runs, ended = a_lease("runs"), a_lease("ended")
    work(core, [runs], [ended])
    core.attempt_text(key(runs), "content", "hello")
    core.attempt_ended(key(ended), DONE, 1)
    core.flush(1)
    core.received(Who(), b"", 2)
    again = core.received(enlisted(2, epoch=2), b"", 3)
    kinds = [type(message) for message in sent(again)]
    assert kinds == [TextReport, Results]
    assert texts(again) == [(1, [("content", "hello")])]
    assert core.epoch == 2


def test_durable_pieces_do_not_go_again() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    for text in ("one", "two", "three"):
        core.attempt_text(key(lease), "content", text)
        core.flush(1)
    core.received(TextDurable(marks=[TextMark(job_id=lease.job_id, attempt=1, piece=2)]), b"", 2)
    core.received(Who(), b"", 3)
    assert texts(core.received(enlisted(2), b"", 4)) == [(3, [("content", "three")])]


def test_lost_leases_are_stopped_and_nothing_more_is_said_about_them() -> None:
    core = a_core()
    runs, ended = a_lease("runs"), a_lease("ended")
    work(core, [runs], [ended])
    core.attempt_text(key(runs), "content", "x")
    core.attempt_ended(key(ended), DONE, 1)
    persisted = core.received(Who(), b"", 2)
    assert Persist(core_ended(ended), b"result") in persisted
    stop = [Held(job_id=lease.job_id, epoch=1, attempt=1) for lease in (runs, ended)]
    out = without_notes(core.received(enlisted(2, stop=stop), b"", 3))
    assert out == [StopAttempt(key(runs), "lease lost"), Forget(key(ended))]
    assert core.attempt_ended(key(runs), DONE, 4) == []
    assert core.attempt_text(key(runs), "content", "more") == []
    assert core.flush(4) == []


def core_ended(lease: Lease) -> Ended:
    return Ended(job_id=lease.job_id, epoch=1, attempt=1, outcome="complete", result_bytes=6)


def test_a_heartbeat_is_due_only_after_silence() -> None:
    core = a_core()
    assert core.next_due_ms == 1000
    assert core.tick(999) == []
    assert core.tick(1000) == [SendMessage(Heartbeat())]
    assert core.next_due_ms == 2000


def test_saying_something_else_puts_the_heartbeat_off() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_ended(key(lease), DONE, 900)
    core.flush(900)
    assert [type(message) for message in sent(core.tick(1000))] == []


def test_a_broker_silent_for_three_heartbeats_is_dead() -> None:
    core = a_core()
    core.tick(2000)
    assert Reconnect() not in core.tick(2999)
    out = core.tick(3000)
    assert [type(one) for one in without_notes(out)] == [Reconnect, SendMessage]
    assert core.session is Session.ENLISTING


def test_anything_heard_is_proof_of_life() -> None:
    core = a_core()
    core.received(Heartbeat(), b"", 2500)
    assert Reconnect() not in core.tick(3000)


def test_a_broker_that_says_bye_is_left() -> None:
    assert Reconnect() in a_core().received(Bye(reason="stop"), b"", 1)


def test_a_refusal_that_may_pass_is_waited_out() -> None:
    core = WorkerCore(an_enlist())
    core.start(0)
    taken = ErrorInfo("endpoint_taken", "taken", retryable=True, fields={"retry_after_s": 7.0})
    out = core.received(ErrorReply(request_id=1, error=taken), b"", 0)
    assert without_notes(out) == []
    assert core.tick(6999) == []
    assert [type(message) for message in sent(core.tick(7000))] == [Enlist]


def test_a_refusal_for_good_ends_the_worker() -> None:
    core = WorkerCore(an_enlist())
    core.start(0)
    error = ErrorInfo("upgrade_required", "too old")
    out = core.received(ErrorReply(request_id=1, error=error), b"", 0)
    assert without_notes(out) == [GiveUp(error)]
    assert core.session is Session.GONE


def test_messages_for_others_are_noted_and_change_nothing() -> None:
    welcome = Welcome(
        request_id=1,
        protocol=1,
        software="",
        broker_id=b"",
        epoch=1,
        user="",
        role="",
        wall_ms=0,
        heartbeat_ms=1,
    )
    assert [type(one) for one in a_core().received(welcome, b"", 1)] == [Note]


def test_errors_about_nothing_it_asked_are_noted() -> None:
    out = a_core().received(ErrorReply(request_id=0, error=ErrorInfo("protocol_error")), b"", 1)
    assert [type(one) for one in out] == [Note]


# --- leases ---


def test_work_starts_at_once_with_its_payloads() -> None:
    core = a_core()
    a, b, c = a_lease("a"), a_lease("b", payload_bytes=2), a_lease("c", payload_bytes=0)
    out = core.received(Work(groups=[Group(leases=[a, b]), Group(leases=[c])]), b"xyz", 0)
    assert out == [
        StartGroup("i", (Attempt(a, b"x"), Attempt(b, b"yz"))),
        StartGroup("i", (Attempt(c, b""),)),
    ]


def test_lengths_that_do_not_fit_the_body_change_nothing() -> None:
    core = a_core()
    with pytest.raises(ProtocolError):
        core.received(Work(groups=[Group(leases=[a_lease("a", payload_bytes=5)])]), b"x", 0)
    assert core.idle


def test_a_lease_that_comes_twice_starts_once() -> None:
    core = a_core()
    assert len(started(work(core, [a_lease("a")]))) == 1
    assert work(core, [a_lease("a")]) == []


def test_many_results_ride_in_one_message() -> None:
    core = a_core()
    leases = [a_lease(str(n)) for n in range(3)]
    work(core, *[[lease] for lease in leases])
    for lease in leases:
        assert core.attempt_ended(key(lease), DONE, 1) == []
    assert core.next_due_ms == 0
    (only,) = core.flush(1)
    assert isinstance(only, SendMessage)
    assert only.body == b"resultresultresult"
    assert [ended.job_id for ended in results([only])] == [lease.job_id for lease in leases]


def test_a_message_of_results_holds_at_most_1000() -> None:
    core = a_core()
    leases = [a_lease(str(n)) for n in range(bounds.BATCH_JOBS + 1)]
    work(core, *[[lease] for lease in leases])
    for lease in leases:
        core.attempt_ended(key(lease), Outcome("complete"), 1)
    assert [len(message.ended) for message in sent(core.flush(1)) if isinstance(message, Results)] == [
        1000,
        1,
    ]


def test_a_message_of_results_stays_under_the_size_of_a_body() -> None:
    core = a_core()
    leases = [a_lease(str(n)) for n in range(5)]
    work(core, *[[lease] for lease in leases])
    for lease in leases:
        core.attempt_ended(key(lease), Outcome("complete", bytes(bounds.PAYLOAD_BYTES)), 1)
    bodies = [len(one.body) for one in core.flush(1) if isinstance(one, SendMessage)]
    assert bodies == [bounds.BODY_BYTES, bounds.PAYLOAD_BYTES]


def test_an_acknowledged_result_is_forgotten() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_ended(key(lease), DONE, 1)
    core.flush(1)
    assert core.received(Acked(leases=[ref(lease)]), b"", 2) == []
    assert core.settled


def test_a_result_unacknowledged_for_two_seconds_is_persisted_and_later_forgotten() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_ended(key(lease), DONE, 1)
    core.flush(1)
    core.received(Heartbeat(), b"", 2000)
    assert Persist(core_ended(lease), b"result") not in core.tick(2000)
    assert Persist(core_ended(lease), b"result") in core.tick(2250)
    assert core.received(Acked(leases=[ref(lease)]), b"", 2300) == [Forget(key(lease))]


def test_without_a_broker_a_result_is_persisted_at_once() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.received(Who(), b"", 1)
    assert core.attempt_ended(key(lease), DONE, 2) == [Persist(core_ended(lease), b"result")]


def test_spooled_results_are_offered_and_sent_again() -> None:
    lease = a_lease("a")
    core = WorkerCore(an_enlist(), spooled=[(core_ended(lease), b"result")])
    message = sent(core.start(0))[0]
    assert isinstance(message, Enlist)
    assert message.held == [Held(job_id=lease.job_id, epoch=1, attempt=1, ended=True)]
    assert results(core.received(enlisted(), b"", 1)) == [core_ended(lease)]
    assert core.received(Acked(leases=[ref(lease)]), b"", 2) == [Forget(key(lease))]


# --- alone, crashes ---


def test_a_suspect_waits_until_its_instance_is_empty_and_keeps_others_out() -> None:
    core = a_core()
    first, suspect, last = a_lease("first"), a_lease("suspect", alone=True), a_lease("last")
    assert started(work(core, [first], [suspect], [last])) == [[b"first"]]
    assert started(core.attempt_ended(key(first), DONE, 1)) == [[b"suspect"]]
    assert started(core.attempt_ended(key(suspect), DONE, 2)) == [[b"last"]]


def test_a_suspect_does_not_keep_other_instances_waiting() -> None:
    core = a_core()
    assert started(work(core, [a_lease("a", alone=True)], [a_lease("b", instance_id="j")])) == [
        [b"a"],
        [b"b"],
    ]


def crash(core: WorkerCore, lease: Lease, now_ms: int) -> bool:
    """Let the engine die under a lease; return whether the end says that others shared it."""
    core.attempt_ended(key(lease), Outcome("crash"), now_ms)
    (ended,) = results(core.flush(now_ms))
    return ended.shared


def test_a_crash_is_shared_with_all_who_ran_there_even_the_last_to_report() -> None:
    core = a_core()
    a, b, elsewhere = a_lease("a"), a_lease("b"), a_lease("c", instance_id="j")
    work(core, [a], [b], [elsewhere], now_ms=10)
    assert crash(core, a, 20)
    assert crash(core, b, 25)
    assert not crash(core, elsewhere, 30)


def test_a_later_crash_alone_is_not_shared() -> None:
    core = a_core()
    a, b = a_lease("a"), a_lease("b")
    work(core, [a], now_ms=10)
    assert not crash(core, a, 20)
    work(core, [b], now_ms=30)
    assert not crash(core, b, 40)


def test_merged_jobs_share_their_crash() -> None:
    core = a_core()
    a, b = a_lease("a"), a_lease("b")
    work(core, [a, b])
    assert crash(core, a, 1)


# --- stop ---


def test_stop_ends_a_running_attempt_and_its_end_is_reported() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    stop = Stop(leases=[ref(lease)], reason="cancelled")
    assert core.received(stop, b"", 1) == [StopAttempt(key(lease), "cancelled")]
    assert core.received(stop, b"", 1) == []
    core.attempt_ended(key(lease), Outcome("stopped"), 2)
    assert [ended.outcome for ended in results(core.flush(2))] == ["stopped"]


def test_a_stopping_attempt_says_so_as_its_phase() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.received(Stop(leases=[ref(lease)]), b"", 1)
    (message,) = sent(core.flush(1))
    assert isinstance(message, Phases)
    assert message.leases[0].phase == "stopping"


def test_stop_of_what_only_waits_is_stopped_at_once() -> None:
    core = a_core()
    runs, waits = a_lease("a"), a_lease("b", alone=True)
    work(core, [runs], [waits])
    core.received(Stop(leases=[ref(waits)]), b"", 1)
    assert [(e.job_id, e.outcome) for e in results(core.flush(1))] == [(waits.job_id, "stopped")]


def test_stop_of_what_never_came_is_answered_with_stopped() -> None:
    core = a_core()
    core.received(Stop(leases=[ref(a_lease("a"))]), b"", 1)
    assert [ended.outcome for ended in results(core.flush(1))] == ["stopped"]


def test_stop_of_what_has_ended_changes_nothing() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_ended(key(lease), DONE, 1)
    core.received(Stop(leases=[ref(lease)]), b"", 1)
    assert [ended.outcome for ended in results(core.flush(1))] == ["complete"]


# --- text and phases ---


def texts(instructions: list[Instruction]) -> list[tuple[int, list[tuple[str, str]]]]:
    return [
        (text.first, [(piece.channel, piece.text) for piece in text.pieces])
        for message in sent(instructions)
        if isinstance(message, TextReport)
        for text in message.texts
    ]


def test_text_leaves_at_once_and_is_numbered_from_one() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_text(key(lease), "content", "a")
    assert texts(core.flush(1)) == [(1, [("content", "a")])]
    core.attempt_text(key(lease), "content", "b")
    assert texts(core.flush(2)) == [(2, [("content", "b")])]


def test_text_that_cannot_leave_is_merged_by_channel() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.send_blocked()
    for channel, text in [
        ("reasoning", "x"),
        ("reasoning", "y"),
        ("content", "a"),
        ("content", "b"),
        ("end", "stop"),
    ]:
        core.attempt_text(key(lease), channel, text)
        assert core.flush(1) == []
    merged = [("reasoning", "xy"), ("content", "ab"), ("end", "stop")]
    assert texts(core.send_unblocked(2)) == [(1, merged)]


def test_a_long_text_is_cut_into_pieces() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_text(key(lease), "content", "x" * (2 * PIECE_CHARS + 1))
    ((first, pieces),) = texts(core.flush(1))
    assert (first, [len(text) for _, text in pieces]) == (1, [PIECE_CHARS, PIECE_CHARS, 1])


def test_much_text_goes_in_several_messages_without_a_gap() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_text(key(lease), "content", "ü" * (bounds.TEXT_BYTES // 2))
    parts = texts(core.flush(1))
    assert len(parts) > 1
    following = 1
    for first, pieces in parts:
        assert first == following
        following += len(pieces)


def test_text_goes_before_the_result() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_text(key(lease), "content", "a")
    core.attempt_ended(key(lease), DONE, 1)
    assert [type(message) for message in sent(core.flush(1))] == [TextReport, Results]


def test_phases_are_sent_some_times_a_second_and_only_the_latest() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])

    def at(progress: float, now_ms: int) -> list[FromPeer]:
        core.attempt_phase(PhaseReport(job_id=lease.job_id, attempt=1, phase="writing", progress=progress))
        return sent(core.flush(now_ms))

    assert len(at(0.1, 0)) == 1
    assert at(0.2, 100) == []
    assert at(0.3, 200) == []
    assert core.next_due_ms == 250
    (message,) = sent(core.tick(250))
    assert isinstance(message, Phases)
    assert [report.progress for report in message.leases] == [0.3]


# --- endpoint ---


def test_a_changed_capacity_is_told_once() -> None:
    core = a_core()
    changed = Capacity()
    core.capacity_changed(changed)
    assert sent(core.flush(1)) == [CapacityReport(capacity=changed)]
    core.capacity_changed(Capacity())
    assert core.flush(2) == []


def test_a_capacity_that_changed_while_enlisting_is_told_afterwards() -> None:
    core = WorkerCore(an_enlist())
    core.start(0)
    core.capacity_changed(Capacity())
    assert sent(core.received(enlisted(), b"", 1)) == [CapacityReport(capacity=Capacity())]


def test_a_load_ends_after_the_capacity_that_shows_it() -> None:
    core = a_core()
    out = core.received(LoadModel(command_id=7, model="m", context_tokens=4096), b"", 1)
    assert out == [Load(7, "m", 4096)]
    core.capacity_changed(Capacity())
    core.load_ended(7, 1.5)
    assert sent(core.flush(2)) == [CapacityReport(capacity=Capacity()), LoadEnded(command_id=7, seconds=1.5)]


def test_an_unload_is_passed_on() -> None:
    assert a_core().received(UnloadModel(command_id=7, instance_id="i"), b"", 1) == [Unload(7, "i")]


def test_a_load_is_refused_where_loading_is_not_allowed() -> None:
    core = a_core()
    core.capacity_changed(Capacity())
    assert core.received(LoadModel(command_id=7, model="m"), b"", 1) == []
    (_, message) = sent(core.flush(1))
    assert isinstance(message, LoadEnded)
    assert message.error is not None
    assert message.error.code == "load_not_allowed"


def test_the_end_of_a_load_of_an_earlier_epoch_is_not_told() -> None:
    core = a_core()
    core.received(LoadModel(command_id=7, model="m"), b"", 1)
    core.received(Who(), b"", 2)
    core.received(enlisted(2, epoch=2), b"", 3)
    core.load_ended(7, 1.0)
    assert core.flush(4) == []


def test_the_end_of_the_last_load_goes_again_to_the_same_broker_only() -> None:
    core = a_core()
    core.received(LoadModel(command_id=7, model="m"), b"", 1)
    core.load_ended(7, 1.0)
    ended = LoadEnded(command_id=7, seconds=1.0)
    assert sent(core.flush(1)) == [ended]
    core.received(Who(), b"", 2)
    assert sent(core.received(enlisted(2), b"", 3)) == [ended]
    core.received(Who(), b"", 4)
    assert sent(core.received(enlisted(3, epoch=2), b"", 5)) == []


def test_no_more_leases_are_named_than_an_enlistment_may_hold() -> None:
    ends = [(core_ended(a_lease(str(n))), b"result") for n in range(HELD_LEASES + 1)]
    core = WorkerCore(an_enlist(), spooled=ends)
    message = sent(core.start(0))[0]
    assert isinstance(message, Enlist)
    assert len(message.held) == HELD_LEASES


# --- going ---


def test_a_draining_worker_says_zero_slots_and_gives_back_what_comes_or_waits() -> None:
    core = a_core()
    runs, waits, late = a_lease("runs"), a_lease("waits", alone=True), a_lease("late")
    work(core, [runs], [waits])
    out = core.drain(1)
    told = sent(out)[0]
    assert isinstance(told, CapacityReport)
    assert (told.capacity.slots, told.capacity.may_load) == (0, False)
    assert [(ended.job_id, ended.outcome) for ended in results(out)] == [(waits.job_id, "release")]
    assert started(work(core, [late], now_ms=2)) == []
    assert [(ended.job_id, ended.outcome) for ended in results(core.flush(2))] == [(late.job_id, "release")]
    assert core.held == [key(runs)]


def test_what_still_runs_at_the_end_is_released_uncharged() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.drain(1)
    out = core.release_all(2)
    assert out[0] == StopAttempt(key(lease), "worker stops")
    assert [ended.outcome for ended in results(out)] == ["release"]
    assert core.attempt_ended(key(lease), DONE, 3) == []


def test_leaving_persists_what_is_not_acknowledged_and_says_bye() -> None:
    core = a_core()
    lease = a_lease("a")
    work(core, [lease])
    core.attempt_ended(key(lease), DONE, 1)
    out = core.leave(2)
    assert [type(one) for one in out] == [SendMessage, Persist, SendMessage]
    assert isinstance(sent(out)[-1], Bye)
    assert core.received(Heartbeat(), b"", 3) == []
    assert core.tick(9999) == []
