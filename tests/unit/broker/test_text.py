"""Text of running jobs: gapless from any cursor, begun anew with a new attempt, final at the end, journaled."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lmq_broker.core.effects import Read, Send
from lmq_broker.core.reads import JobsReply, ReadText, StoredText, TextReply
from lmq_broker.core.records import JobChanged, TextAdded
from lmq_broker.core.settings import Settings
from lmq_proto import bounds
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Credit,
    Delete,
    FollowText,
    Piece,
    Target,
    Text,
    TextDurable,
    TextMark,
    Unfollow,
)
from unit.broker.builders import EPOCH, Broker, a_broker, error, idle, job_id, only, ready, running, sent


def reads_text(broker: Broker, job: str = "a", *, by: str = "ann", **fields: Any) -> None:
    broker.says(by, FollowText(request_id=4, job_id=job_id(job), **fields))


def pushed(effects: list[object], by: str = "ann") -> list[Text]:
    return sent(effects, by, Text)  # type: ignore[arg-type]  # any effects


def words(pushes: list[Text]) -> str:
    return "|".join(piece.text for push in pushes for piece in push.pieces)


def turn(broker: Broker, after_ms: int = 0) -> list[object]:
    return list(broker.turn(after_ms))


def pieces(*texts: str) -> list[Piece]:
    return [Piece(channel="content", text=text) for text in texts]


def asked_text(effects: list[object]) -> ReadText:
    found = [read.request for read in only(effects, Read) if isinstance(read.request, ReadText)]
    assert len(found) == 1
    return found[0]


def image(broker: Broker) -> JobsReply:
    return JobsReply([only(broker.journal, JobChanged)[-1].job])


def writing(*, settings: Settings | None = None, **fields: Any) -> Broker:
    """A broker with a job `a` that runs, and a reader of its text."""
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], settings=settings)
    reads_text(broker, **fields)
    broker.turn()
    return broker


# --- gapless ----------------------------------------------------------------------------------------------------------


def test_text_is_pushed_as_it_comes_numbered_from_one() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "Hell", "o")
    first = pushed(turn(broker))
    assert first == [Text(job_id=job_id("a"), attempt=1, first=1, pieces=pieces("Hell", "o"))]
    broker.writes("w1", "a", 3, "!")
    assert [(push.first, words([push])) for push in pushed(turn(broker))] == [(3, "!")]


def test_text_need_not_wait_for_its_own_record_but_for_that_of_its_lease() -> None:
    broker = writing()
    lease = broker.job("a").lease
    assert lease is not None
    broker.writes("w1", "a", 1, "x")
    push = next(each for each in only(broker.turn(), Send) if isinstance(each.message, Text))
    assert push.after == lease.position


def test_who_comes_late_gets_all_from_its_cursor_on() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "1", "2", "3")
    broker.turn()
    for attempt, piece, text in ((0, 0, "1|2|3"), (1, 2, "3"), (1, 3, "")):
        reads_text(broker, attempt=attempt, piece=piece)
        assert words(pushed(turn(broker))) == text


def test_pieces_sent_again_are_skipped_and_those_behind_a_hole_dropped() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "1", "2")
    broker.writes("w1", "a", 1, "1", "2", "3")
    broker.writes("w1", "a", 5, "5")
    broker.writes("w1", "a", 2, "2")
    assert words(pushed(turn(broker))) == "1|2|3"
    broker.writes("w1", "a", 4, "4", "5")
    assert words(pushed(turn(broker))) == "4|5"


def test_text_of_another_attempt_or_worker_is_dropped() -> None:
    broker = writing()
    broker.worker(idle("w2"))
    broker.writes("w1", "a", 1, "stale", attempt=2)
    broker.writes("w2", "a", 1, "forged")
    assert not pushed(turn(broker))


def test_readers_at_one_cursor_share_a_message() -> None:
    broker = writing()
    broker.client("tom")
    reads_text(broker, by="tom")
    broker.turn()
    broker.writes("w1", "a", 1, "x")
    effects = turn(broker)
    assert pushed(effects)[0] is pushed(effects, "tom")[0]


def test_a_job_that_waits_has_no_text_yet() -> None:
    broker = a_broker(jobs=[ready("a")])
    reads_text(broker)
    effects = turn(broker)
    assert not pushed(effects)
    assert not [read for read in only(effects, Read) if isinstance(read.request, ReadText)]


# --- a new attempt ----------------------------------------------------------------------------------------------------


def test_a_new_attempt_begins_anew_and_says_why() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "half an ans")
    broker.turn()
    broker.reports("w1", "a", "release")
    broker.turn(1)
    assert broker.job("a").attempt == 2
    broker.writes("w1", "a", 1, "whole")
    push = pushed(turn(broker))[0]
    assert (push.attempt, push.first, words([push]), bool(push.restart)) == (2, 1, "whole", True)
    broker.writes("w1", "a", 2, "!")
    assert [(each.first, each.restart) for each in pushed(turn(broker))] == [(2, "")]


def test_who_has_read_nothing_yet_is_not_told_to_begin_anew() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "release")
    broker.turn(1)
    reads_text(broker)
    broker.writes("w1", "a", 1, "x")
    assert [push.restart for push in pushed(turn(broker))] == [""]


def test_the_reason_of_a_restart_is_the_failure() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "x")
    broker.turn()
    broker.reports("w1", "a", "fail")
    broker.turn(1000)
    broker.writes("w1", "a", 1, "y")
    assert "no reason" in pushed(turn(broker))[0].restart


@pytest.mark.parametrize("code", ["e", ""])
def test_a_restart_has_a_reason_even_if_its_worker_gave_none(code: str) -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "x")
    broker.turn()
    broker.reports("w1", "a", "fail", error=ErrorInfo(code))
    broker.turn(1000)
    broker.writes("w1", "a", 1, "y")
    assert pushed(turn(broker))[0].restart


# --- final ------------------------------------------------------------------------------------------------------------


def test_the_end_of_a_job_gives_the_rest_and_then_the_final_word() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "1")
    broker.turn()
    broker.writes("w1", "a", 2, "2")
    effects = broker.reports("w1", "a", "complete")
    found = pushed([*effects, *broker.turn()])
    assert words(found) == "2"
    assert [(push.final, push.first) for push in found] == [(False, 2), (True, 3)]
    assert not broker.state.text_readers
    assert not broker.state.sessions[b"ann"].readers


def test_all_text_is_journaled_before_the_end() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "1", "2")
    effects = broker.reports("w1", "a", "complete")
    records = [type(effect).__name__ for effect in effects if isinstance(effect, TextAdded | JobChanged)]
    assert records == ["TextAdded", "JobChanged"]


def test_a_cancelled_job_keeps_its_text_so_far() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "so far")
    effects = broker.cancel("ann", "a")
    assert [record.last for record in only(effects, TextAdded)] == [1]
    assert [push.final for push in pushed([*effects, *broker.turn()])] == [False, True]


def test_text_of_a_job_that_ended_comes_from_the_journal() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.writes("w1", "a", 1, "1", "2")
    broker.reports("w1", "a", "complete")
    broker.turn()
    reads_text(broker, attempt=1, piece=1)
    request = asked_text(turn(broker))
    assert (request.attempt, request.piece) == (1, 1)
    job = image(broker).jobs[0]
    found = pushed(
        list(broker.reads(request, TextReply(job, [StoredText(1, 1, pieces("1", "2"))], more=False)))
    )
    assert [(push.first, words([push]), push.final) for push in found] == [(2, "2", False), (3, "", True)]


def test_a_job_that_ended_without_text_has_a_final_word_too() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    reads_text(broker)
    broker.reports("w1", "a", "complete")
    request = asked_text(turn(broker))
    found = pushed(list(broker.reads(request, TextReply(image(broker).jobs[0], [], more=False))))
    assert [(push.attempt, push.first, push.final) for push in found] == [(0, 1, True)]


def test_a_deleted_job_gives_its_readers_the_final_word() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete")
    reads_text(broker)
    broker.turn()
    asked = broker.says("ann", Delete(request_id=7, target=Target(job_ids=[job_id("a")])))
    reads = only(asked, Read)
    effects = broker.reads(reads[0].request, image(broker))
    assert [push.final for push in pushed(list(effects))] == [True]
    assert not broker.state.text_readers


# --- credit -----------------------------------------------------------------------------------------------------------


def test_without_credit_nothing_is_pushed_until_there_is_some() -> None:
    broker = writing(credit_bytes=3)
    broker.writes("w1", "a", 1, "abcd")
    assert words(pushed(turn(broker))) == "abcd"
    broker.writes("w1", "a", 2, "e")
    assert not pushed(turn(broker))
    broker.says("ann", Credit(job_id=job_id("a"), text_bytes=1))
    assert not pushed(turn(broker)), "the debt comes first"
    broker.says("ann", Credit(job_id=job_id("a"), text_bytes=1))
    assert words(pushed(turn(broker))) == "e"


def test_an_empty_piece_costs_one() -> None:
    broker = writing(credit_bytes=2)
    broker.writes("w1", "a", 1, "", "")
    broker.turn()
    assert broker.state.sessions[b"ann"].readers[job_id("a")].credit_bytes == 0


def test_credit_has_a_ceiling() -> None:
    broker = writing(credit_bytes=1 << 60)
    reader = broker.state.sessions[b"ann"].readers[job_id("a")]
    assert reader.credit_bytes == bounds.BODY_BYTES
    broker.says("ann", Credit(job_id=job_id("a"), text_bytes=1 << 60))
    assert reader.credit_bytes == bounds.BODY_BYTES


# --- journaled --------------------------------------------------------------------------------------------------------


def test_text_is_journaled_after_a_second_and_its_worker_told() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "1", "2")
    assert not only(turn(broker), TextAdded)
    effects = broker.turn(1000)
    added = only(effects, TextAdded)[0]
    assert (added.attempt, added.first, added.last) == (1, 1, 2)
    assert msgspec.msgpack.decode(added.packed, type=list[Piece]) == pieces("1", "2")
    durable = next(each for each in only(effects, Send) if isinstance(each.message, TextDurable))
    mark = TextMark(job_id=job_id("a"), attempt=1, piece=2)
    assert (durable.message, durable.after) == (TextDurable(marks=[mark]), broker.state.position)
    assert not only(broker.turn(2000), TextAdded), "once"


def test_much_text_is_journaled_at_once() -> None:
    broker = writing()
    broker.writes("w1", "a", 1, "x" * 16 * 1024)
    assert only(turn(broker), TextAdded)


def test_text_over_its_memory_is_read_back_from_the_journal() -> None:
    broker = a_broker(
        jobs=[running("a")], workers=[idle("w1")], settings=Settings(text_memory_bytes=10, text_flush_bytes=1)
    )
    for number in range(1, 5):
        broker.writes("w1", "a", number, f"piece {number}")
        broker.turn()
    reads_text(broker)
    request = asked_text(turn(broker))
    assert (request.attempt, request.piece) == (0, 0)
    whole = [f"piece {number}" for number in range(1, 5)]
    answer = TextReply(image(broker).jobs[0], [StoredText(1, 1, pieces(*whole))], more=False)
    assert words(pushed(list(broker.reads(request, answer)))) == "|".join(whole)


# --- whose ------------------------------------------------------------------------------------------------------------


def test_text_of_another_user_is_not_found() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], clients=["tom"])
    broker.role("tom", "user")
    for name in ("a", "z"):
        asked = FollowText(request_id=4, job_id=job_id(name))
        assert error(broker.says("tom", asked)).code == "not_found"


def test_an_ended_jobs_text_of_another_user_is_not_told() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], clients=["tom"])
    broker.role("tom", "user")
    broker.reports("w1", "a", "complete")
    reads_text(broker, by="tom")
    request = asked_text(turn(broker))
    answer = TextReply(image(broker).jobs[0], [StoredText(1, 1, pieces("secret"))], more=False)
    found = pushed(list(broker.reads(request, answer)), "tom")
    assert [(push.pieces, push.final) for push in found] == [([], True)]


def test_who_unfollows_or_leaves_reads_no_more() -> None:
    broker = writing()
    broker.client("tom")
    reads_text(broker, by="tom")
    broker.says("ann", Unfollow(job_ids=[job_id("a")]))
    broker.breaks("tom")
    assert not broker.state.text_readers
    broker.writes("w1", "a", 1, "x")
    assert not pushed(turn(broker))


def test_reading_again_replaces_the_first_reader() -> None:
    broker = writing()
    reads_text(broker)
    broker.turn()
    broker.writes("w1", "a", 1, "x")
    assert len(pushed(turn(broker))) == 1
    assert broker.job("a").epoch == EPOCH
