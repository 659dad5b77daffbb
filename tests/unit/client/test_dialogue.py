"""One test per transition of the dialogue: what goes in, and the instructions that come out."""

from __future__ import annotations

import pytest

from lmq._dialogue import (
    CONNECT_WAIT_MS,
    HELLO_WAIT_MS,
    REFUSED_WAIT_MS,
    SILENT_HEARTBEATS,
    TURN_MS,
    Dialogue,
)
from lmq._instructions import Connect, Connection, Fail, Instruction, Listen, Push, Resolve, Send
from lmq._streams import EVENTS_WINDOW, TEXT_WINDOW, EventsPush, TextPush
from lmq._submits import SUBMITS_IN_FLIGHT
from lmq_proto import bounds, errors, messages
from lmq_proto.events import Event

HEARTBEAT_MS = 1000
NOW_MS = 50_000
JOB = b"j" * 16
OTHER = b"k" * 16


def sends(instructions: list[Instruction]) -> list[messages.FromPeer]:
    return [instruction.message for instruction in instructions if isinstance(instruction, Send)]


def a_welcome(hello: messages.FromPeer) -> messages.Welcome:
    assert isinstance(hello, messages.Hello)
    return messages.Welcome(
        request_id=hello.request_id, protocol=1, software="b", broker_id=b"b", epoch=1, user="anna", role="user",
        wall_ms=0, heartbeat_ms=HEARTBEAT_MS, events_port=99, results_credit_bytes=4096,
    )  # fmt: skip


def a_dialogue(*urls: str) -> Dialogue:
    dialogue = Dialogue(urls or ("tcp://a:1",), b"i" * 16, "anna", "test")
    assert dialogue.start(NOW_MS) == [Connect(dialogue.url)]
    return dialogue


def greet(dialogue: Dialogue, now_ms: int = NOW_MS) -> list[Instruction]:
    """Connect and welcome; return what follows the welcome."""
    (hello,) = sends(dialogue.connected(now_ms))
    return dialogue.received(a_welcome(hello), b"", now_ms)


def an_up_dialogue() -> Dialogue:
    dialogue = a_dialogue()
    greet(dialogue)
    return dialogue


def a_spec(job_id: bytes = JOB, task_type: str = "echo", payload_bytes: int = 1) -> messages.JobSpec:
    return messages.JobSpec(id=job_id, task_type=task_type, payload_bytes=payload_bytes)


def accepted(request_id: int, *job_ids: bytes) -> messages.Submitted:
    outcomes = [messages.Outcome(job_id=job_id, outcome="accepted") for job_id in job_ids]
    return messages.Submitted(request_id=request_id, outcomes=outcomes)


def a_text(
    first: int, *texts: str, attempt: int = 1, restart: str = "", final: bool = False
) -> messages.Text:
    pieces = [messages.Piece(channel="content", text=text) for text in texts]
    return messages.Text(
        job_id=JOB, attempt=attempt, first=first, pieces=pieces, restart=restart, final=final
    )


def some_events(*seqs: int) -> list[Event]:
    return [Event(seq=seq, at_ms=0, kind="done") for seq in seqs]


# --- the connection ---------------------------------------------------------------------------------------------------


def test_hello_names_the_instance_and_the_versions() -> None:
    (hello,) = sends(a_dialogue().connected(NOW_MS))
    assert hello == messages.Hello(
        request_id=1, instance=b"i" * 16, protocol_oldest=1, protocol_newest=1, software="test", user="anna"
    )


def test_a_welcome_says_where_to_listen() -> None:
    dialogue = a_dialogue()
    assert greet(dialogue) == [Listen("tcp://a:1", 99, "")]
    assert (dialogue.connection, dialogue.welcomes) == (Connection.UP, 1)


def test_a_welcome_that_nobody_waits_for_changes_nothing() -> None:
    dialogue = an_up_dialogue()
    assert dialogue.received(a_welcome(messages.Hello(
        request_id=77, instance=b"", protocol_oldest=1, protocol_newest=1)), b"", NOW_MS) == []  # fmt: skip
    assert dialogue.welcomes == 1


def test_an_idle_client_has_nothing_due_and_sends_no_heartbeats() -> None:
    dialogue = an_up_dialogue()
    assert dialogue.next_due_ms is None
    assert dialogue.tick(NOW_MS + 100 * HEARTBEAT_MS) == []


def test_a_client_that_waits_sends_heartbeats() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    assert sends(dialogue.tick(NOW_MS)) == [messages.Health(request_id=2)]
    assert dialogue.next_due_ms == NOW_MS + HEARTBEAT_MS
    assert dialogue.tick(NOW_MS + HEARTBEAT_MS - 1) == []
    assert sends(dialogue.tick(NOW_MS + HEARTBEAT_MS)) == [messages.Heartbeat()]


def test_a_broker_that_is_silent_for_three_heartbeats_is_left_for_the_next() -> None:
    dialogue = a_dialogue("tcp://a:1", "tcp://b:2")
    greet(dialogue)
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.tick(NOW_MS)
    silent_ms = NOW_MS + SILENT_HEARTBEATS * HEARTBEAT_MS
    assert Connect("tcp://b:2") not in dialogue.tick(silent_ms - 1)
    assert Connect("tcp://b:2") in dialogue.tick(silent_ms)
    assert dialogue.connection is Connection.DOWN


def test_silence_before_anything_was_wanted_does_not_count() -> None:
    dialogue = an_up_dialogue()
    dialogue.tick(NOW_MS)
    later_ms = NOW_MS + 1_000_000
    dialogue.begin("t", messages.Health(request_id=0))
    assert sends(dialogue.tick(later_ms)) == [messages.Health(request_id=2)]


def test_any_message_of_the_broker_is_proof_of_life() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.tick(NOW_MS)
    dialogue.received(messages.Heartbeat(), b"", NOW_MS + 2900)
    assert not [one for one in dialogue.tick(NOW_MS + 3100) if isinstance(one, Connect)]


def test_a_broker_that_connects_but_does_not_greet_is_left() -> None:
    dialogue = a_dialogue("tcp://a:1", "tcp://b:2")
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.connected(NOW_MS)
    dialogue.tick(NOW_MS)
    assert dialogue.tick(NOW_MS + HELLO_WAIT_MS) == [Connect("tcp://b:2")]


def test_an_address_that_does_not_connect_is_left_where_there_is_another() -> None:
    dialogue = a_dialogue("tcp://a:1", "tcp://b:2")
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.tick(NOW_MS)
    assert dialogue.tick(NOW_MS + CONNECT_WAIT_MS) == [Connect("tcp://b:2")]
    dialogue.unreachable(NOW_MS + CONNECT_WAIT_MS)
    assert dialogue.tick(NOW_MS + CONNECT_WAIT_MS + TURN_MS) == [Connect("tcp://a:1")]


def test_a_lone_address_is_left_to_the_transport() -> None:
    dialogue = a_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.unreachable(NOW_MS)
    assert dialogue.tick(NOW_MS + CONNECT_WAIT_MS) == []


def test_a_refused_hello_fails_what_waits_and_is_tried_again_later() -> None:
    dialogue = a_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.connected(NOW_MS)
    refusal = messages.ErrorReply(request_id=2, error=errors.UpgradeRequired(1, 2, 3).info())
    (fail,) = dialogue.received(refusal, b"", NOW_MS)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, errors.UpgradeRequired)
    dialogue.begin("u", messages.Health(request_id=0))
    assert dialogue.tick(NOW_MS) == []
    assert isinstance(sends(dialogue.tick(NOW_MS + REFUSED_WAIT_MS))[0], messages.Hello)


def test_a_hello_that_is_refused_for_now_keeps_what_waits() -> None:
    dialogue = a_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.connected(NOW_MS)
    stopping = messages.ErrorReply(request_id=2, error=errors.Stopping().info())
    assert dialogue.received(stopping, b"", NOW_MS) == []
    dialogue.tick(NOW_MS)
    (hello,) = sends(dialogue.tick(NOW_MS + REFUSED_WAIT_MS))
    assert messages.Health(request_id=1) in sends(dialogue.received(a_welcome(hello), b"", NOW_MS))


# --- commands ---------------------------------------------------------------------------------------------------------


def test_a_reply_resolves_its_command_once() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.ListModels(request_id=0))
    dialogue.tick(NOW_MS)
    reply = messages.Models(request_id=2, models=[])
    assert dialogue.received(reply, b"", NOW_MS) == [Resolve("t", reply)]
    assert dialogue.received(reply, b"", NOW_MS) == []


def test_a_reply_with_a_body_comes_with_it() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.GetPayload(request_id=0, job_id=JOB))
    reply = messages.Done(request_id=2)
    assert dialogue.received(reply, b"body", NOW_MS)[-1] == Resolve("t", (reply, b"body"))


def test_commands_without_a_reply_go_again_in_order_under_their_numbers() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.begin("u", messages.ListQueues(request_id=0))
    first = sends(dialogue.tick(NOW_MS))
    assert dialogue.disconnected(NOW_MS) == []
    assert sends(greet(dialogue)) == first


def test_who_is_answered_by_one_hello_however_often_it_comes() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.tick(NOW_MS)
    (hello,) = sends(dialogue.received(messages.Who(), b"", NOW_MS))
    assert dialogue.received(messages.Who(), b"", NOW_MS) == []
    assert sends(dialogue.received(a_welcome(hello), b"", NOW_MS)) == [messages.Health(request_id=2)]


def test_a_command_that_a_stopping_broker_refused_goes_to_the_next_one() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.tick(NOW_MS)
    stopping = messages.ErrorReply(request_id=2, error=errors.Stopping().info())
    assert dialogue.received(stopping, b"", NOW_MS) == []
    dialogue.disconnected(NOW_MS)
    assert sends(greet(dialogue)) == [messages.Health(request_id=2)]


def test_an_error_fails_its_command() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    refusal = messages.ErrorReply(request_id=2, error=errors.NotAllowed("health", "worker").info())
    (fail,) = [one for one in dialogue.received(refusal, b"", NOW_MS) if isinstance(one, Fail)]
    assert (fail.token, type(fail.error)) == ("t", errors.NotAllowed)


def test_a_forgotten_command_is_neither_answered_nor_sent_again() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("t", messages.Health(request_id=0))
    dialogue.begin_submit("s", a_spec(), b"x", "", "end")
    dialogue.forget("t")
    dialogue.forget("s")
    dialogue.disconnected(NOW_MS)
    assert sends(greet(dialogue)) == []
    assert not dialogue.is_pending


# --- submits ----------------------------------------------------------------------------------------------------------


def test_submits_of_one_user_share_a_message() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_submit("a", a_spec(JOB), b"x", "", "end")
    dialogue.begin_submit("b", a_spec(OTHER), b"y", "", "end2")
    dialogue.begin_submit("c", a_spec(b"c" * 16), b"z", "shop/alice")
    first, second = [one for one in dialogue.tick(NOW_MS) if isinstance(one, Send)]
    assert isinstance(first.message, messages.Submit)
    assert isinstance(second.message, messages.Submit)
    assert ([spec.id for spec in first.message.jobs], first.body, first.message.follow) == (
        [JOB, OTHER],
        b"xy",
        True,
    )
    assert (second.message.as_user, second.body, second.message.follow) == ("shop/alice", b"z", False)
    outcomes = accepted(2, JOB, OTHER)
    assert dialogue.received(outcomes, b"", NOW_MS) == [
        Resolve("a", outcomes.outcomes[0]),
        Resolve("b", outcomes.outcomes[1]),
    ]


def test_while_enough_submits_are_under_way_the_others_gather() -> None:
    dialogue = an_up_dialogue()
    for number in range(SUBMITS_IN_FLIGHT):
        dialogue.begin_submit(number, a_spec(bytes([number]) * 16), b"x")
        assert len(sends(dialogue.tick(NOW_MS))) == 1
    for number in range(10, 20):
        dialogue.begin_submit(number, a_spec(bytes([number]) * 16), b"x")
    assert sends(dialogue.tick(NOW_MS)) == []
    dialogue.received(accepted(2, bytes(16)), b"", NOW_MS)
    (gathered,) = sends(dialogue.tick(NOW_MS))
    assert isinstance(gathered, messages.Submit)
    assert len(gathered.jobs) == 10


def test_a_submit_is_sent_again_with_the_same_job_ids() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_submit("a", a_spec(), b"x", "", "end")
    (submit,) = sends(dialogue.tick(NOW_MS))
    dialogue.disconnected(NOW_MS)
    assert sends(greet(dialogue)) == [submit]
    assert sends(dialogue.tick(NOW_MS)) == []


def test_a_batch_over_its_bound_fails_here() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_batch("t", [a_spec()] * (bounds.BATCH_JOBS + 1), [b"x"] * (bounds.BATCH_JOBS + 1))
    (fail,) = dialogue.tick(NOW_MS)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, errors.BadField)


def test_a_key_that_stands_for_another_job_moves_the_follow_to_it() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_submit("a", a_spec(JOB), b"x", "", "end")
    dialogue.tick(NOW_MS)
    known = messages.Outcome(job_id=OTHER, outcome="duplicate")
    dialogue.received(messages.Submitted(request_id=2, outcomes=[known]), b"", NOW_MS)
    assert sends(dialogue.tick(NOW_MS)) == [messages.Follow(request_id=3, job_ids=[OTHER])]


def test_outcomes_that_do_not_fit_their_submit_are_an_error() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_submit("a", a_spec(JOB), b"x")
    dialogue.tick(NOW_MS)
    (fail,) = dialogue.received(messages.Submitted(request_id=2, outcomes=[]), b"", NOW_MS)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, errors.ProtocolError)


# --- ends of jobs -----------------------------------------------------------------------------------------------------


def test_an_end_reaches_all_who_follow_and_its_credit_goes_back() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_follow([("a", JOB), ("b", JOB)])
    assert sends(dialogue.tick(NOW_MS)) == [messages.Follow(request_id=2, job_ids=[JOB])]
    end = messages.JobEnd(job_id=JOB, state="done", result_bytes=1000)
    assert dialogue.received(messages.Finished(jobs=[end]), b"r" * 1000, NOW_MS) == [
        Resolve("a", (end, b"r" * 1000)),
        Resolve("b", (end, b"r" * 1000)),
    ]
    assert sends(dialogue.tick(NOW_MS)) == [
        messages.Credit(results_bytes=1000 + bounds.RESULT_OVERHEAD_BYTES)
    ]
    assert dialogue.received(messages.Finished(jobs=[end]), b"r" * 1000, NOW_MS) == []


def test_a_refused_submit_leaves_the_end_of_a_job_that_was_there_before_to_those_who_wait_for_it() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_follow([("before", JOB)])
    dialogue.tick(NOW_MS)
    dialogue.begin_batch("again", [a_spec(), a_spec(OTHER)], [b"x", b"y"], atomic=True, follows=["f", "g"])
    (submit,) = sends(dialogue.tick(NOW_MS))
    assert isinstance(submit, messages.Submit)
    error = errors.NotFound("parent", "x").info()
    outcomes = [messages.Outcome(job_id=each, outcome="refused", error=error) for each in (JOB, OTHER)]
    dialogue.received(messages.Submitted(request_id=submit.request_id, outcomes=outcomes), b"", NOW_MS)
    assert [each.job_ids for each in sends(dialogue.tick(NOW_MS)) if isinstance(each, messages.Follow)] == [
        [JOB]
    ]
    end = messages.JobEnd(job_id=JOB, state="done")
    told = dialogue.received(messages.Finished(jobs=[end]), b"", NOW_MS)
    assert Resolve("before", (end, b"")) in told


def test_a_follow_that_is_refused_fails() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_follow([("a", JOB)])
    dialogue.tick(NOW_MS)
    outcome = messages.Outcome(job_id=JOB, outcome="refused", error=errors.NotFound("job", "x").info())
    (fail,) = dialogue.received(messages.Followed(request_id=2, outcomes=[outcome]), b"", NOW_MS)
    assert isinstance(fail, Fail)
    assert isinstance(fail.error, errors.NotFound)


def test_follows_are_renewed_in_one_message_after_a_break() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_follow([("a", JOB)])
    dialogue.tick(NOW_MS)
    dialogue.begin_follow([("b", OTHER)])
    dialogue.tick(NOW_MS)
    dialogue.disconnected(NOW_MS)
    greet(dialogue)
    (follow,) = sends(dialogue.tick(NOW_MS))
    assert isinstance(follow, messages.Follow)
    assert follow.job_ids == [JOB, OTHER]


def test_a_job_nobody_follows_any_more_is_unfollowed() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_follow([("a", JOB), ("b", JOB)])
    dialogue.tick(NOW_MS)
    dialogue.end_follow("a", JOB)
    assert sends(dialogue.tick(NOW_MS)) == []
    dialogue.end_follow("b", JOB)
    assert sends(dialogue.tick(NOW_MS)) == [messages.Unfollow(job_ids=[JOB])]


def test_follows_over_the_bound_of_a_session_wait_for_room() -> None:
    dialogue = an_up_dialogue()
    ids = [number.to_bytes(16, "big") for number in range(bounds.FOLLOWS + 5)]
    dialogue.begin_follow([(job_id, job_id) for job_id in ids])
    follows = sends(dialogue.tick(NOW_MS))
    assert sum(len(one.job_ids) for one in follows if isinstance(one, messages.Follow)) == bounds.FOLLOWS
    dialogue.begin_submit("s", a_spec(), b"x", "", "end")
    (submit,) = sends(dialogue.tick(NOW_MS))
    assert isinstance(submit, messages.Submit)
    assert not submit.follow
    dialogue.received(accepted(submit.request_id, JOB), b"", NOW_MS)
    ends = [messages.JobEnd(job_id=job_id, state="done") for job_id in ids[:6]]
    dialogue.received(messages.Finished(jobs=ends), b"", NOW_MS)
    (rest,) = [one for one in sends(dialogue.tick(NOW_MS)) if isinstance(one, messages.Follow)]
    assert rest.job_ids == [*ids[bounds.FOLLOWS :], JOB]


# --- text -------------------------------------------------------------------------------------------------------------


def test_text_goes_on_from_its_cursor_after_a_break() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_text("t", JOB)
    (follow,) = sends(dialogue.tick(NOW_MS))
    assert follow == messages.FollowText(request_id=2, job_id=JOB, credit_bytes=TEXT_WINDOW)
    (push,) = dialogue.received(a_text(1, "a", "b"), b"", NOW_MS)
    assert isinstance(push, Push)
    assert isinstance(push.item, TextPush)
    assert (push.item.first, [piece.text for piece in push.item.pieces]) == (1, ["a", "b"])
    dialogue.disconnected(NOW_MS)
    (again,) = sends(greet(dialogue))
    assert isinstance(again, messages.FollowText)
    assert (again.attempt, again.piece, again.credit_bytes) == (1, 2, TEXT_WINDOW - 2)


def test_text_that_was_had_already_is_cut_off() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_text("t", JOB)
    dialogue.received(a_text(1, "a", "b"), b"", NOW_MS)
    (push,) = dialogue.received(a_text(2, "b", "c"), b"", NOW_MS)
    assert isinstance(push, Push)
    assert isinstance(push.item, TextPush)
    assert (push.item.first, [piece.text for piece in push.item.pieces]) == (3, ["c"])


def test_a_hole_in_the_text_makes_it_follow_again() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_text("t", JOB)
    dialogue.received(a_text(1, "a"), b"", NOW_MS)
    (again,) = sends(dialogue.received(a_text(3, "c"), b"", NOW_MS))
    assert isinstance(again, messages.FollowText)
    assert (again.attempt, again.piece) == (1, 1)


def test_text_of_an_older_attempt_is_dropped() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_text("t", JOB)
    dialogue.received(a_text(1, "b", attempt=2), b"", NOW_MS)
    assert dialogue.received(a_text(1, "a", attempt=1), b"", NOW_MS) == []


def test_a_new_attempt_tells_who_was_shown_text() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_text("t", JOB)
    dialogue.received(a_text(1, "a"), b"", NOW_MS)
    (push,) = dialogue.received(a_text(1, "b", attempt=2, restart="crash"), b"", NOW_MS)
    assert isinstance(push, Push)
    assert isinstance(push.item, TextPush)
    assert (push.item.restart, push.item.reason, push.item.attempt) == (True, "crash", 2)


def test_text_credit_goes_back_as_it_is_read_by_the_slowest() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_text("fast", JOB)
    dialogue.begin_text("slow", JOB)
    dialogue.tick(NOW_MS)
    dialogue.received(a_text(1, "x" * TEXT_WINDOW), b"", NOW_MS)
    dialogue.text_taken("fast", JOB, TEXT_WINDOW)
    assert sends(dialogue.tick(NOW_MS)) == []
    dialogue.text_taken("slow", JOB, TEXT_WINDOW)
    assert sends(dialogue.tick(NOW_MS)) == [messages.Credit(job_id=JOB, text_bytes=TEXT_WINDOW)]


def test_the_final_push_ends_the_reading() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_text("t", JOB)
    (push,) = [one for one in dialogue.received(a_text(1, final=True), b"", NOW_MS) if isinstance(one, Push)]
    assert isinstance(push.item, TextPush)
    assert push.item.final
    assert not dialogue.is_pending


def test_leaving_a_text_keeps_following_the_result() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_follow([("end", JOB)])
    dialogue.begin_text("t", JOB)
    dialogue.tick(NOW_MS)
    dialogue.end_text("t", JOB)
    unfollow, follow = sends(dialogue.tick(NOW_MS))
    assert unfollow == messages.Unfollow(job_ids=[JOB])
    assert isinstance(follow, messages.Follow)


def test_text_of_an_unknown_job_fails() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_text("t", JOB)
    refusal = messages.ErrorReply(request_id=2, error=errors.NotFound("job", "x").info())
    (fail,) = [one for one in dialogue.received(refusal, b"", NOW_MS) if isinstance(one, Fail)]
    assert (fail.token, type(fail.error)) == ("t", errors.NotFound)
    assert not dialogue.is_pending


# --- events -----------------------------------------------------------------------------------------------------------


def subscribed(dialogue: Dialogue, cursor: int = 0) -> messages.Subscribe:
    """Begin a subscription and have it confirmed; return the command."""
    dialogue.begin_events("e", messages.EventFilter(), cursor)
    (subscribe,) = sends(dialogue.tick(NOW_MS))
    assert isinstance(subscribe, messages.Subscribe)
    confirm(dialogue, subscribe, cursor)
    return subscribe


def confirm(dialogue: Dialogue, subscribe: messages.Subscribe, cursor: int) -> list[Instruction]:
    reply = messages.Subscribed(
        request_id=subscribe.request_id, subscription_id=subscribe.subscription_id, cursor=cursor
    )
    return dialogue.received(reply, b"", NOW_MS)


def a_push(subscribe: messages.Subscribe, before: int, after: int, *seqs: int) -> messages.Events:
    return messages.Events(
        subscription_id=subscribe.subscription_id, before=before, after=after, events=some_events(*seqs)
    )


def test_events_are_pushed_with_their_cursor() -> None:
    dialogue = an_up_dialogue()
    subscribe = subscribed(dialogue)
    assert dialogue.received(a_push(subscribe, 0, 9, 2, 5), b"", NOW_MS) == [
        Push("e", EventsPush(some_events(2, 5), 9))
    ]


def test_a_hole_in_the_events_makes_it_subscribe_again_from_the_cursor() -> None:
    dialogue = an_up_dialogue()
    subscribe = subscribed(dialogue)
    dialogue.received(a_push(subscribe, 0, 3, 1, 2, 3), b"", NOW_MS)
    (again,) = sends(dialogue.received(a_push(subscribe, 5, 6, 6), b"", NOW_MS))
    assert isinstance(again, messages.Subscribe)
    assert (again.cursor, again.credit) == (3, EVENTS_WINDOW - 3)
    # What was on its way belongs to the old one.
    assert dialogue.received(a_push(subscribe, 6, 7, 7), b"", NOW_MS) == []
    confirm(dialogue, again, 3)
    assert dialogue.received(a_push(subscribe, 3, 4, 4), b"", NOW_MS) == [
        Push("e", EventsPush(some_events(4), 4))
    ]


def test_events_that_were_had_already_are_left_out() -> None:
    dialogue = an_up_dialogue()
    subscribe = subscribed(dialogue)
    dialogue.received(a_push(subscribe, 0, 3, 1, 2, 3), b"", NOW_MS)
    assert dialogue.received(a_push(subscribe, 1, 5, 2, 3, 4, 5), b"", NOW_MS) == [
        Push("e", EventsPush(some_events(4, 5), 5))
    ]


def test_subscribing_again_after_a_break_drops_the_old_beginning() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin_events("e", messages.EventFilter(), -1, 0, 20)
    (first,) = sends(dialogue.tick(NOW_MS))
    assert isinstance(first, messages.Subscribe)
    assert (first.cursor, first.last) == (-1, 20)
    confirm(dialogue, first, 80)
    dialogue.disconnected(NOW_MS)
    (again,) = sends(greet(dialogue))
    assert isinstance(again, messages.Subscribe)
    assert (again.cursor, again.last) == (80, 0)


def test_event_credit_goes_back_in_halves() -> None:
    dialogue = an_up_dialogue()
    subscribe = subscribed(dialogue)
    dialogue.received(a_push(subscribe, 0, 600, *range(1, 601)), b"", NOW_MS)
    dialogue.events_taken("e", 400)
    assert sends(dialogue.tick(NOW_MS)) == []
    dialogue.events_taken("e", 200)
    credit = messages.Credit(subscription_id=subscribe.subscription_id, events=600)
    assert sends(dialogue.tick(NOW_MS)) == [credit]


@pytest.mark.parametrize("at", ["subscribed", "push"])
def test_events_that_are_gone_end_the_stream(at: str) -> None:
    dialogue = an_up_dialogue()
    if at == "subscribed":
        dialogue.begin_events("e", messages.EventFilter(), 5)
        (subscribe,) = sends(dialogue.tick(NOW_MS))
        assert isinstance(subscribe, messages.Subscribe)
        confirm(dialogue, subscribe, 5)
        dialogue.disconnected(NOW_MS)
        (again,) = sends(greet(dialogue))
        assert isinstance(again, messages.Subscribe)
        instructions = confirm(dialogue, again, 40)
    else:
        subscribe = subscribed(dialogue, 5)
        number = subscribe.subscription_id
        gone = messages.Events(subscription_id=number, before=5, after=40, events=[], expired=True)
        instructions = dialogue.received(gone, b"", NOW_MS)
    (fail,) = [one for one in instructions if isinstance(one, Fail)]
    assert isinstance(fail.error, errors.CursorExpired)
    assert (fail.error.cursor, fail.error.oldest) == (5, 40)
    assert messages.Unsubscribe(subscription_id=subscribe.subscription_id) in sends(instructions)


def test_aborting_fails_everything_that_waits_once() -> None:
    dialogue = an_up_dialogue()
    dialogue.begin("c", messages.Health(request_id=0))
    dialogue.begin_submit("s", a_spec(), b"x", "", "end")
    dialogue.begin_text("t", OTHER)
    dialogue.begin_events("e", messages.EventFilter())
    error = errors.LmqError("over")
    fails = [one for one in dialogue.abort(error) if isinstance(one, Fail)]
    assert sorted(str(fail.token) for fail in fails) == ["c", "e", "end", "s", "t"]
    assert not dialogue.is_pending
