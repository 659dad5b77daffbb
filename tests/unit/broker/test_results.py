"""Ends of followed jobs: pushed once, within credit, from memory or from the journal."""

from __future__ import annotations

from msgspec import structs

from lmq_broker.core.effects import Read, Send
from lmq_broker.core.reads import Context, EndsReply, JobsReply, ReadEnds, StoredEnd
from lmq_broker.core.records import JobChanged
from lmq_broker.core.settings import Settings
from lmq_proto import bounds
from lmq_proto.codec import encode
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Credit,
    Delete,
    Finished,
    Follow,
    Followed,
    JobEnd,
    Retry,
    Target,
    Unfollow,
)
from unit.broker.builders import (
    Broker,
    a_broker,
    body_for,
    error,
    idle,
    job_id,
    only,
    ready,
    running,
    sent,
    spec,
)


def follow(broker: Broker, *names: str, by: str = "ann") -> Followed:
    return sent(
        broker.says(by, Follow(request_id=6, job_ids=[job_id(name) for name in names])), by, Followed
    )[0]


def ends(broker: Broker, by: str = "ann") -> list[JobEnd]:
    """End the turn and return the ends that are pushed."""
    return [end for push in sent(broker.turn(), by, Finished) for end in push.jobs]


def stored(broker: Broker, name: str, result: bytes = b"") -> StoredEnd:
    """Return what the journal holds of a job that ended."""
    image = [record.job for record in only(broker.journal, JobChanged) if record.job.id == job_id(name)][-1]
    return StoredEnd(image, result)


def test_a_followed_jobs_end_is_pushed_once_with_its_result_when_it_is_durable() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    assert [each.outcome for each in follow(broker, "a").outcomes] == ["unchanged"]
    broker.mono_ms += 500
    broker.wall_ms += 500
    broker.reports("w1", "a", "complete", b"result", model="m1")
    effects = broker.turn()
    assert sent(effects, "ann", Finished) == [
        Finished(
            jobs=[
                JobEnd(
                    job_id=job_id("a"), state="done", attempt=1, result_bytes=6, worker="w1", model="m1",
                    leased_ms=500,
                )
            ]
        )
    ]  # fmt: skip
    assert body_for(effects, "ann", Finished) == b"result"
    push = next(each for each in only(effects, Send) if isinstance(each.message, Finished))
    assert push.after == broker.state.position
    assert not ends(broker)
    assert not broker.state.followers
    assert not broker.state.sessions[b"ann"].follows


def test_a_dead_jobs_end_tells_its_story() -> None:
    broker = a_broker(jobs=[running("a", failures=1)], workers=[idle("w1")])
    follow(broker, "a")
    broker.reports("w1", "a", "fail", error=ErrorInfo("e", "no"))
    end = ends(broker)[0]
    assert (end.state, end.failures, end.error) == ("dead", 1, ErrorInfo("e", "no"))
    assert [entry.message for entry in end.story] == ["no"]


def test_ends_of_one_turn_ride_in_one_message_with_results_in_order() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    follow(broker, "a", "b")
    broker.reports("w1", "b", "complete", b"22")
    broker.reports("w1", "a", "complete", b"1")
    effects = broker.turn()
    assert [end.job_id for end in sent(effects, "ann", Finished)[0].jobs] == [job_id("b"), job_id("a")]
    assert body_for(effects, "ann", Finished) == b"221"


def test_every_follower_is_told() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], clients=["tom"])
    follow(broker, "a")
    follow(broker, "a", by="tom")
    broker.reports("w1", "a", "complete")
    effects = broker.turn()
    assert len(sent(effects, "ann", Finished)) == len(sent(effects, "tom", Finished)) == 1


def test_a_job_that_has_ended_is_read_back_for_who_follows_it_then() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete", b"result")
    broker.turn()
    assert [each.outcome for each in follow(broker, "a").outcomes] == ["unchanged"]
    read = next(each for each in only(broker.turn(), Read) if isinstance(each.request, ReadEnds))
    effects = broker.reads(read.request, EndsReply([stored(broker, "a", b"result")], []))
    assert [end.state for end in sent(effects, "ann", Finished)[0].jobs] == ["done"]
    assert body_for(effects, "ann", Finished) == b"result"


def test_a_job_that_is_gone_by_then_is_told_to_be_deleted() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete")
    follow(broker, "a")
    read = next(each for each in only(broker.turn(), Read) if isinstance(each.request, ReadEnds))
    deleted = broker.says("ann", Delete(request_id=7, target=Target(job_ids=[job_id("a")])))
    broker.reads(only(deleted, Read)[0].request, JobsReply([stored(broker, "a").job]))
    end = sent(broker.reads(read.request, EndsReply([], [job_id("a")])), "ann", Finished)[0].jobs[0]
    assert (end.state, end.error.code if end.error else "") == ("deleted", "not_found")


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_is_not_there_or_not_ones_own_is_not_found() -> None:
    broker = a_broker(jobs=[ready("a")], clients=["tom"])
    broker.role("tom", "user")
    found = follow(broker, "a", "z", by="tom").outcomes
    assert [each.error.code for each in found if each.error] == ["not_found", "not_found"]
    assert not broker.state.followers


def test_an_ended_job_of_another_user_is_not_told() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], clients=["tom"])
    broker.role("tom", "user")
    broker.reports("w1", "a", "complete", b"secret")
    follow(broker, "a", by="tom")
    read = next(each for each in only(broker.turn(), Read) if isinstance(each.request, ReadEnds))
    effects = broker.reads(read.request, EndsReply([stored(broker, "a", b"secret")], []))
    assert body_for(effects, "tom", Finished) == b""
    assert sent(effects, "tom", Finished)[0].jobs[0].state == "deleted"


def test_another_users_job_is_not_followed_by_submitting_its_id() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")], clients=["tom"])
    broker.role("tom", "user")
    broker.submit("tom", spec("a"), follow=True)
    broker.reports("w1", "a", "complete", b"secret")
    assert not ends(broker, "tom")


def test_bounds_of_following() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b")], settings=Settings(follows=1))
    many = Follow(request_id=6, job_ids=[bytes(16)] * (bounds.BATCH_JOBS + 1))
    assert error(broker.says("ann", many)).fields["field"] == "job_ids"
    both = Follow(request_id=6, job_ids=[job_id("a"), job_id("b")])
    assert error(broker.says("ann", both)).fields["field"] == "follows"


# --- credit -----------------------------------------------------------------------------------------------------------


def test_each_end_costs_its_bytes_and_256() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    follow(broker, "a")
    broker.reports("w1", "a", "complete", b"12345")
    broker.turn()
    session = broker.state.sessions[b"ann"]
    assert session.results_credit_bytes == bounds.RESULTS_CREDIT_BYTES - 5 - bounds.RESULT_OVERHEAD_BYTES
    broker.says("ann", Credit(results_bytes=5 + bounds.RESULT_OVERHEAD_BYTES))
    assert session.results_credit_bytes == bounds.RESULTS_CREDIT_BYTES
    broker.says("ann", Credit(results_bytes=1 << 40))
    assert session.results_credit_bytes == bounds.RESULTS_CREDIT_BYTES, "never more than at the start"
    broker.says("ann", Credit(results_bytes=-5))
    assert session.results_credit_bytes == bounds.RESULTS_CREDIT_BYTES


def test_without_credit_an_end_waits_in_the_journal_until_there_is_some() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    follow(broker, "a", "b")
    session = broker.state.sessions[b"ann"]
    session.results_credit_bytes = 1
    broker.reports("w1", "a", "complete", b"first")
    broker.reports("w1", "b", "complete", b"second")
    effects = broker.turn()
    assert body_for(effects, "ann", Finished) == b"first", "the last byte of credit pays for one more"
    assert not [read for read in only(effects, Read) if isinstance(read.request, ReadEnds)]
    effects = broker.says("ann", Credit(results_bytes=1000))
    read = only(effects, Read)[0].request
    assert isinstance(read, ReadEnds)
    assert (read.ids, read.limit_bytes) == ([job_id("b")], session.results_credit_bytes)
    assert not only(broker.says("ann", Credit(results_bytes=1)), Read), "one reading at a time"
    effects = broker.reads(read, EndsReply([stored(broker, "b", b"second")], []))
    assert body_for(effects, "ann", Finished) == b"second"


def test_ends_that_wait_keep_their_order_and_later_ones_queue_behind() -> None:
    broker = a_broker(jobs=[running(name) for name in "abc"], workers=[idle("w1", slots=3)])
    follow(broker, *"abc")
    session = broker.state.sessions[b"ann"]
    session.results_credit_bytes = 0
    for name in "ab":
        broker.reports("w1", name, "complete")
    assert not ends(broker)
    session.results_credit_bytes = 10_000
    broker.reports("w1", "c", "complete")
    effects = broker.turn()
    read = next(each.request for each in only(effects, Read) if isinstance(each.request, ReadEnds))
    assert read.ids == [job_id(name) for name in "abc"]
    effects = broker.reads(read, EndsReply([stored(broker, name) for name in "ab"], []))
    again = only(effects, Read)[0].request
    assert isinstance(again, ReadEnds)
    assert again.ids == [job_id("c")]


def test_large_results_are_spread_over_several_messages() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    follow(broker, "a", "b")
    for name in "ab":
        broker.reports("w1", name, "complete", bytes(3 * 1024 * 1024))
    assert [len(push.jobs) for push in sent(broker.turn(), "ann", Finished)] == [1, 1]


def test_long_stories_are_spread_over_messages_whose_headers_are_in_bounds() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", error=ErrorInfo("e", "no"), permanent=True)
    broker.turn()
    image = stored(broker, "a").job
    told = ErrorInfo("e", "😀" * bounds.REASON_CHARS, fields={"page": "p" * 4000})
    past = structs.replace(image.past, story=(told,) * 20)
    names = [f"j{number}" for number in range(100)]
    session = broker.state.sessions[b"ann"]
    session.follows.update(map(job_id, names))
    session.undelivered.append(job_id(names[0]))
    broker.says("ann", Credit(results_bytes=1))
    found = [StoredEnd(structs.replace(image, id=job_id(name), past=past), b"") for name in names]
    read = ReadEnds(Context(session.peer), [end.job.id for end in found], [], limit_bytes=1)
    pushed = sent(broker.reads(read, EndsReply(found, [])), "ann", Finished)
    assert [end.job_id for push in pushed for end in push.jobs] == [job_id(name) for name in names]
    assert max(len(encode(push)[2]) for push in pushed) <= bounds.HEADER_BYTES


def test_who_unfollows_is_told_nothing() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    follow(broker, "a", "b")
    broker.says("ann", Unfollow(job_ids=[job_id("a")]))
    for name in "ab":
        broker.reports("w1", name, "complete")
    assert [end.job_id for end in ends(broker)] == [job_id("b")]


def test_follows_end_with_the_session() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    follow(broker, "a")
    broker.breaks("ann")
    assert not broker.state.followers
    broker.reports("w1", "a", "complete")
    assert not sent(broker.turn(), "ann", Finished)


def test_a_job_retried_before_its_end_was_read_is_followed_on() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", permanent=True)
    follow(broker, "a")
    read = next(each for each in only(broker.turn(), Read) if isinstance(each.request, ReadEnds))
    asked = broker.says("ann", Retry(request_id=8, target=Target(job_ids=[job_id("a")])))
    broker.reads(only(asked, Read)[0].request, JobsReply([stored(broker, "a").job]))
    assert not sent(broker.reads(read.request, EndsReply([stored(broker, "a")], [])), "ann", Finished)
    broker.turn(1)
    broker.reports("w1", "a", "complete", b"at last")
    assert [end.state for end in ends(broker)] == ["done"]
