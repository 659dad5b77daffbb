"""What is said of starts and ends: when it is found, what it follows from, and when nothing is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lmq_broker.core.effects import Publish
from lmq_broker.core.eta import FRESH_MS, STALE_MS
from lmq_broker.core.views import of_job
from lmq_proto.messages import Follow, Limit, Pause, Progress, Resume
from unit.broker.builders import a_broker, job_id, only, ready, running
from unit.broker.test_outlook import asks, chats, engine, settings

if TYPE_CHECKING:
    from lmq_proto.messages import JobView
    from unit.broker.builders import Broker

UNASKED: dict[str, Any] = {"outlook_every_ms": 0}
"""Nobody looks out but for those who ask."""


def view(broker: Broker, name: str) -> JobView:
    return of_job(broker.state, broker.job(name), broker.now)


def a_line(*names: str, workers: int = 1, **fields: Any) -> Broker:
    """Return a broker whose one slot runs x, of another user, while ann's jobs wait."""
    jobs = [running("x", user="zoe", **asks()), *chats(*names)]
    return a_broker(jobs=jobs, workers=[engine()][:workers], settings=settings(**(UNASKED | fields)))


def asked_for(broker: Broker, name: str) -> JobView:
    """Ask, let turns end until all slices of the look-out are done, and ask again."""
    view(broker, name)
    for _ in range(20):
        broker.turn()
    return view(broker, name)


def test_who_asks_again_is_told_when_a_job_starts_and_is_done() -> None:
    broker = a_line("a", "b")
    first = view(broker, "b")
    assert (first.ahead, first.starts_in_s, first.done_in_s) == (1, None, None)
    told = asked_for(broker, "b")
    assert told.ahead == 1
    # 402 ms and 603 ms are foreseen; a second is added, and of that comes the default range, 0.2 to 3 times.
    assert (told.starts_in_s, told.done_in_s) == ((0.0, 3.2), (0.0, 3.8))
    assert view(broker, "x").done_in_s == (0.0, 2.6)
    assert view(broker, "x").starts_in_s is None


def test_what_is_foreseen_comes_nearer_as_time_passes() -> None:
    broker = a_line("a", "b", "c", "d", "e")
    before = asked_for(broker, "e").starts_in_s
    broker.turn(FRESH_MS // 2)
    after = view(broker, "e").starts_in_s
    assert before is not None
    assert after is not None
    assert after[1] == pytest.approx(before[1] - 1.5, abs=0.11)


def test_a_look_out_is_made_for_who_asks_and_not_for_nobody() -> None:
    broker = a_line("a")
    made_ms = broker.state.eta.outlook.made_ms
    broker.turn(5000)
    assert broker.state.eta.outlook.made_ms == made_ms
    view(broker, "a")
    broker.turn()
    assert broker.state.eta.outlook.made_ms == broker.mono_ms
    view(broker, "a")
    broker.turn(FRESH_MS - 1)
    assert broker.state.eta.outlook.made_ms == broker.mono_ms - FRESH_MS + 1


def test_while_jobs_wait_one_is_made_unasked_so_that_ranges_learn() -> None:
    broker = a_line("a", outlook_every_ms=2000)
    broker.turn(2000)
    assert broker.state.eta.outlook.made_ms == broker.mono_ms
    idle_one = a_line(outlook_every_ms=2000)
    idle_one.turn(2000)
    assert idle_one.state.eta.outlook.made_ms < 0


def test_what_was_found_long_ago_is_not_said() -> None:
    broker = a_line("a")
    assert asked_for(broker, "a").starts_in_s is not None
    broker.turn()
    broker.mono_ms += STALE_MS
    old = view(broker, "a")
    assert (old.ahead, old.starts_in_s, old.done_in_s) == (0, None, None)


def test_of_a_paused_queue_nothing_is_said_until_it_goes_on() -> None:
    broker = a_line("a")
    asked_for(broker, "a")
    broker.says("ann", Pause(request_id=5, noun="queue", name="default"))
    assert view(broker, "a").starts_in_s is None
    broker.says("ann", Resume(request_id=5, noun="queue", name="default"))
    assert view(broker, "a").starts_in_s is not None


def test_a_job_that_came_since_is_reckoned_by_those_that_were_seen() -> None:
    broker = a_line(*(f"a{number}" for number in range(20)))
    last = asked_for(broker, "a19").starts_in_s
    broker.submit("ann", ready("late", **asks()).spec)
    late = view(broker, "late")
    assert late.ahead == 20
    assert last is not None
    assert late.starts_in_s is not None
    assert late.starts_in_s[1] == pytest.approx(last[1] + 3 * 0.201, abs=0.11)


def test_a_rate_puts_a_start_off_for_sure() -> None:
    once = Limit(of="jobs", value=1, per_ms=60_000, user="ann")
    broker = a_line("a", "b", limits=(once,))
    broker.reports("w1", "x", "complete")
    broker.turn()
    assert broker.job("a").lease is not None
    told = asked_for(broker, "b").starts_in_s
    assert told is not None
    assert told[0] >= 60.0


def test_where_a_limit_lets_nothing_start_nothing_is_said() -> None:
    broker = a_line("a", limits=(Limit(of="running", value=0, user="ann"),))
    assert asked_for(broker, "a").starts_in_s is None


def test_followers_are_told_how_many_are_ahead_when_that_has_changed() -> None:
    broker = a_line("a", "b")
    broker.says("ann", Follow(request_id=5, job_ids=[job_id("b")]))

    def told() -> list[int | None]:
        view(broker, "b")
        return [
            each.message.ahead
            for each in only(broker.turn(FRESH_MS), Publish)
            if isinstance(each.message, Progress) and each.message.state == "ready"
        ]

    assert told() == [1]
    assert told() == []
    broker.reports("w1", "x", "complete")
    assert told() == [0]


def test_ranges_follow_from_what_became_of_earlier_ones() -> None:
    """Every job takes what was foreseen: after some dozens of them a range is no wider than the rounding."""
    broker = a_broker(
        jobs=[running("x", **asks()), *chats(*(f"a{n}" for n in range(60)))], workers=[engine()],
        settings=settings(**UNASKED),
    )  # fmt: skip
    broker.turn(FRESH_MS)
    asked_for(broker, "a0")
    runs = "x"
    for number in range(50):
        broker.turn(201)
        broker.reports("w1", runs, "complete")
        broker.turn()
        runs = f"a{number}"
        assert broker.job(runs).lease is not None
    told = asked_for(broker, "a59").starts_in_s
    assert told is not None
    assert told[1] - told[0] < 1.0
