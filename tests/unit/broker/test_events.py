"""Durable events: each once, in order, from any cursor still kept, within credit, to whom they are for."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Effect, Read, Send
from lmq_broker.core.reads import EventsReply, ReadEvents
from lmq_broker.core.settings import Settings
from lmq_proto import bounds
from lmq_proto.codec import encode
from lmq_proto.messages import Credit, EventFilter, Events, Subscribe, Subscribed, Unsubscribe
from unit.broker.builders import (
    Broker,
    a_broker,
    a_memory,
    error,
    idle,
    job_id,
    only,
    ready,
    running,
    sent,
    spec,
)


def subscribe(broker: Broker, *, by: str = "ann", number: int = 1, **fields: Any) -> list[Effect]:
    return broker.says(by, Subscribe(request_id=5, subscription_id=number, **fields))


def pushes(effects: list[Effect], by: str = "ann") -> list[Events]:
    return sent(effects, by, Events)


def seqs(found: list[Events]) -> list[int]:
    return [event.seq for push in found for event in push.events]


def asked(effects: list[Effect]) -> ReadEvents:
    found = [read.request for read in only(effects, Read) if isinstance(read.request, ReadEvents)]
    assert len(found) == 1
    return found[0]


def busy(count: int = 5, **settings: Any) -> Broker:
    """A broker that has accepted some jobs of ann, one a turn."""
    broker = a_broker(clients=["ann"], settings=Settings(**settings))
    for number in range(count):
        broker.submit("ann", spec(f"j{number}"))
        broker.turn()
    return broker


# --- cursor -----------------------------------------------------------------------------------------------------------


def test_from_a_cursor_on_all_events_come_in_order() -> None:
    broker = busy()
    subscribed = sent(subscribe(broker, cursor=2), "ann", Subscribed)[0]
    found = pushes(broker.turn())
    assert subscribed.cursor == found[0].before == 2
    assert seqs(found) == list(range(3, broker.state.last_seq + 1))
    assert [event.kind for event in found[0].events] == [event.kind for event in broker.events[2:]]


def test_each_push_begins_where_the_last_one_ended() -> None:
    broker = busy(events_per_push=2)
    subscribe(broker, cursor=0)
    found = pushes(broker.turn())
    broker.submit("ann", spec("more"))
    found += pushes(broker.turn())
    assert [push.before for push in found] == [0, *(push.after for push in found[:-1])]
    assert seqs(found) == list(range(1, broker.state.last_seq + 1))
    assert max(len(push.events) for push in found) == 2


def test_events_with_large_labels_are_spread_over_messages_whose_headers_are_in_bounds() -> None:
    labels = {f"{number:0128}": "x" * bounds.LABEL_CHARS for number in range(bounds.LABELS)}
    broker = a_broker(clients=["ann"], settings=Settings(events_per_push=1000))
    broker.submit("ann", *(spec(f"j{number}", labels=labels) for number in range(1000)))
    broker.turn()
    subscribe(broker, cursor=0, credit=5000)
    found = pushes(broker.turn())
    assert seqs(found) == list(range(1, broker.state.last_seq + 1))
    assert max(len(encode(push)[2]) for push in found) <= bounds.HEADER_BYTES


def test_from_now_on_nothing_old_comes() -> None:
    broker = busy()
    assert sent(subscribe(broker), "ann", Subscribed)[0].cursor == broker.state.last_seq
    assert not pushes(broker.turn())
    broker.submit("ann", spec("new"))
    assert [event.job_id for push in pushes(broker.turn()) for event in push.events] == [job_id("new")]


def test_the_last_few_can_be_asked_for() -> None:
    broker = busy()
    subscribe(broker, last=2)
    assert seqs(pushes(broker.turn())) == [broker.state.last_seq - 1, broker.state.last_seq]


def test_a_cursor_of_the_future_means_from_now_on() -> None:
    broker = busy()
    assert sent(subscribe(broker, cursor=10**9), "ann", Subscribed)[0].cursor == broker.state.last_seq


def test_events_since_a_time_are_looked_up_in_the_journal() -> None:
    broker = busy()
    request = asked(subscribe(broker, since_ms=broker.wall_ms))
    assert (request.cursor, request.since_ms) == (-1, broker.wall_ms)
    effects = broker.reads(request, EventsReply([], 0, 3))
    assert sent(effects, "ann", Subscribed)[0].cursor == 3
    assert seqs(pushes(effects)) == list(range(4, broker.state.last_seq + 1))


def test_events_no_longer_in_memory_are_read_from_the_journal() -> None:
    broker = busy(20, events_in_memory=2)
    subscribe(broker, cursor=0)
    effects = broker.turn()
    assert not pushes(effects)
    request = asked(effects)
    assert request.cursor == 0
    oldest = broker.state.events[0].seq
    effects = broker.reads(request, EventsReply(broker.events[: oldest - 1], 0, 0))
    assert seqs(pushes(effects)) == list(range(1, broker.state.last_seq + 1))


def test_events_read_back_while_new_ones_come_keep_their_order() -> None:
    broker = busy(20, events_in_memory=2)
    subscribe(broker, cursor=0)
    request = asked(broker.turn())
    broker.submit("ann", spec("meanwhile"))
    found = pushes(broker.reads(request, EventsReply(list(broker.events), 0, 0)))
    found += pushes(broker.turn())
    assert seqs(found) == list(range(1, broker.state.last_seq + 1))
    assert [push.before for push in found[1:]] == [push.after for push in found[:-1]]


def test_events_reach_no_reader_before_they_are_on_disk() -> None:
    broker = busy()
    subscribe(broker, cursor=0)
    send = next(each for each in only(broker.turn(), Send) if isinstance(each.message, Events))
    assert send.after == broker.state.position


# --- expired ----------------------------------------------------------------------------------------------------------


def test_a_cursor_whose_events_are_gone_begins_at_the_oldest_and_says_so() -> None:
    broker = a_broker(memory=a_memory(last_seq=100, oldest_cursor=60), clients=["ann"])
    effects = subscribe(broker, cursor=10)
    assert sent(effects, "ann", Subscribed)[0].cursor == 10
    assert pushes(effects) == [Events(subscription_id=1, before=10, after=60, events=[], expired=True)]


def test_events_that_vanish_while_they_are_read_are_told_to_be_gone() -> None:
    broker = busy(20, events_in_memory=2)
    subscribe(broker, cursor=1)
    request = asked(broker.turn())
    found = pushes(broker.reads(request, EventsReply([], 15, 1)))
    assert (found[0].expired, found[0].before, found[0].after) == (True, 1, 15)


# --- credit -----------------------------------------------------------------------------------------------------------


def test_each_event_costs_one_and_without_credit_none_comes() -> None:
    broker = busy()
    subscribe(broker, cursor=0, credit=3)
    assert seqs(pushes(broker.turn())) == [1, 2, 3]
    assert not pushes(broker.turn())
    broker.says("ann", Credit(subscription_id=1, events=2))
    assert seqs(pushes(broker.turn())) == [4, 5]


def test_credit_has_a_ceiling_and_a_floor() -> None:
    broker = busy()
    subscribe(broker, credit=-5)
    subscription = broker.state.sessions[b"ann"].subscriptions[1]
    assert subscription.credit == 0
    broker.says("ann", Credit(subscription_id=1, events=10**9))
    assert subscription.credit == 100_000
    broker.says("ann", Credit(subscription_id=2, events=1))


def test_a_reader_for_whom_nothing_matches_is_told_the_cursor_now_and_then() -> None:
    broker = a_broker(clients=["ann"])
    subscribe(broker, cursor=0, credit=10, match=EventFilter(kinds=["dead"]))
    broker.submit("ann", *[spec(f"j{number}") for number in range(bounds.BATCH_JOBS)])
    found = pushes(broker.turn())
    assert [(push.before, push.events) for push in found] == [(0, [])]
    assert found[0].after >= 1000
    assert broker.state.sessions[b"ann"].subscriptions[1].credit == 9


# --- what, and whose --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "names"),
    [
        (EventFilter(), ["a", "b"]),
        (EventFilter(kinds=["accepted"]), ["a", "b"]),
        (EventFilter(kinds=["done", "dead"]), []),
        (EventFilter(user="ann"), ["a"]),
        (EventFilter(queue="night"), ["b"]),
        (EventFilter(job_ids=[job_id("b"), job_id("z")]), ["b"]),
        (EventFilter(labels={"chat": "42"}), ["a"]),
        (EventFilter(labels={"chat": "42", "more": ""}), []),
        (EventFilter(user="ann", queue="night"), []),
    ],
)
def test_a_filter_lets_through_what_matches_all_of_it(match: EventFilter, names: list[str]) -> None:
    broker = a_broker(clients=["ann", "tom"])
    broker.turn()
    subscribe(broker, match=match)
    broker.submit("ann", spec("a", labels={"chat": "42"}))
    broker.submit("tom", spec("b", queue="night"))
    found = [event.job_id for push in pushes(broker.turn()) for event in push.events]
    assert found == [job_id(name) for name in names]


def test_a_user_gets_events_of_its_own_jobs_and_those_of_nobody() -> None:
    broker = a_broker(clients=["ann", "tom"])
    broker.turn()
    for name, role in (("ann", "user"), ("tom", "observer")):
        broker.role(name, role)
        subscribe(broker, by=name)
    broker.role("tom", "admin")
    broker.submit("tom", spec("b"))
    broker.submit("ann", spec("a"))
    broker.worker(idle("w1", slots=0))
    effects = broker.turn()
    kinds = {
        name: [(event.kind, event.user) for push in pushes(effects, name) for event in push.events]
        for name in ("ann", "tom")
    }
    nobody = [("worker_up", ""), ("model_loaded", "")]
    assert kinds["ann"] == [("accepted", "ann"), *nobody]
    assert kinds["tom"] == [("accepted", "tom"), ("accepted", "ann"), *nobody]


def test_a_session_has_a_bounded_number_of_subscriptions() -> None:
    broker = a_broker(clients=["ann"])
    for number in range(bounds.SUBSCRIPTIONS):
        subscribe(broker, number=number)
    assert error(subscribe(broker, number=99)).fields["field"] == "subscriptions"
    assert sent(subscribe(broker, number=3, cursor=0), "ann", Subscribed), "the same again replaces"


def test_who_unsubscribes_or_leaves_gets_none() -> None:
    broker = a_broker(clients=["ann", "tom"])
    subscribe(broker, number=1)
    subscribe(broker, number=2)
    subscribe(broker, by="tom")
    broker.says("ann", Unsubscribe(subscription_id=1))
    broker.breaks("tom")
    broker.submit("ann", spec("a"))
    effects = broker.turn()
    assert {push.subscription_id for push in pushes(effects)} == {2}
    assert not pushes(effects, "tom")


def test_the_story_of_a_job_is_told_in_order() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail")
    broker.turn()
    broker.pass_time(2000, hearing=["w1"])
    broker.reports("w1", "b", "complete")
    broker.turn()
    broker.reports("w1", "a", "complete")
    broker.turn()
    mine = [event.kind for event in broker.events if event.job_id == job_id("a")]
    assert mine == ["accepted", "started", "attempt_failed", "started", "done"]
    assert [event.seq for event in broker.events] == list(range(1, broker.state.last_seq + 1))
