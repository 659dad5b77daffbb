"""Daily sums: what counts as what, in which turn's records, within which bound, and who is told."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Effect, Read
from lmq_broker.core.reads import JobsReply, ReadUsage, UsageSums
from lmq_broker.core.records import JobChanged, JobsDeleted, UsageAdded, UsageDropped
from lmq_broker.core.settings import Settings
from lmq_broker.core.usage import OTHERS
from lmq_proto import bounds
from lmq_proto.messages import (
    Delete,
    Heartbeat,
    PhaseReport,
    Phases,
    Retry,
    Target,
    Usage,
    UsageReply,
    UsageRow,
)
from unit.broker.builders import (
    WALL_MS,
    Broker,
    a_broker,
    a_memory,
    error,
    held,
    idle,
    instance,
    job_id,
    only,
    ready,
    running,
    sent,
)

DAY = WALL_MS // bounds.DAY_MS
QWEN = [instance("qwen:2", model="Qwen3", kind="llm", slots=9)]


def added(effects: list[Effect]) -> list[dict[str, Any]]:
    """Return what a turn adds to each row, without what is empty."""
    return [
        {name: value for name in row.__struct_fields__ if (value := getattr(row, name))}
        for row in only(effects, UsageAdded)
    ]


def a_row(**sums: Any) -> dict[str, Any]:
    return {"day": DAY, "user": "ann", "model": "Qwen3", "task_type": "chat"} | sums


def chats(*names: str, **fields: Any) -> Broker:
    """A broker with chats that run on Qwen3."""
    jobs = [running(name, task_type="chat", models=["qwen3"], **fields) for name in names]
    broker = a_broker(jobs=jobs, workers=[idle("w1", instances=QWEN)])
    broker.turn()
    return broker


# --- what counts ------------------------------------------------------------------------------------------------------


def test_what_a_turn_adds_to_a_row_is_one_record_among_those_of_the_ends() -> None:
    broker = chats("a", "b")
    effects = broker.reports("w1", "a", "complete", prompt_tokens=10, output_tokens=3, engine_ms=700)
    effects += broker.reports("w1", "b", "complete", prompt_tokens=5, output_tokens=2, engine_ms=300)
    assert not added(effects), "a turn's sums are journaled when it ends"
    effects += broker.turn()
    [row] = added(effects)
    assert row.pop("waits") == row.pop("runs") == {0: 2}
    assert row == a_row(ended={"done": 2}, prompt_tokens=15, output_tokens=5, engine_ms=1000)
    assert len([each for each in only(effects, JobChanged) if each.job.state == "done"]) == 2
    assert not added(broker.turn()), "what was journaled is not journaled again"


def test_the_tokens_of_failed_attempts_count_and_the_job_ends_once() -> None:
    broker = chats("a", failures=2)
    broker.reports("w1", "a", "fail", prompt_tokens=10, engine_ms=40)
    assert added(broker.turn()) == [a_row(prompt_tokens=10, engine_ms=40)]
    broker.pass_time(2000, hearing=["w1", "ann"])
    broker.reports("w1", "a", "fail", prompt_tokens=10, engine_ms=50)
    [row] = added(broker.turn())
    assert (row["ended"], row["prompt_tokens"], row["engine_ms"]) == ({"dead": 1}, 10, 50)


@pytest.mark.parametrize("outcome", ["release", "crash"])
def test_the_engine_worked_whoever_is_to_blame(outcome: str) -> None:
    broker = chats("a")
    broker.reports("w1", "a", outcome, prompt_tokens=10, engine_ms=40)
    assert added(broker.turn()) == [a_row(prompt_tokens=10, engine_ms=40)]


def test_of_a_cancelled_job_what_its_worker_had_reported_counts_once_it_has_stopped() -> None:
    broker = chats("a")
    lease = broker.job("a")
    broker.says("w1", Phases(leases=[PhaseReport(job_id=lease.id, attempt=1, phase="writing", tokens=30)]))
    broker.cancel("ann", "a")
    [row] = added(broker.turn())
    assert row["ended"] == {"cancelled": 1}
    assert "output_tokens" not in row
    broker.reports("w1", "a", "stopped", epoch=lease.epoch, attempt=1, engine_ms=900)
    assert added(broker.turn()) == [a_row(output_tokens=30, engine_ms=900)]


def test_an_answer_is_as_long_as_the_engine_says_and_not_as_progress_said() -> None:
    broker = chats("a")
    report = PhaseReport(job_id=job_id("a"), attempt=1, phase="writing", tokens=30)
    broker.says("w1", Phases(leases=[report]))
    broker.reports("w1", "a", "complete", output_tokens=28)
    [row] = added(broker.turn())
    assert row["output_tokens"] == 28


def test_an_end_that_is_told_twice_counts_once() -> None:
    broker = chats("a")
    lease = held(broker, "a")
    broker.reports("w1", "a", "complete", output_tokens=3)
    broker.reports("w1", "a", "complete", output_tokens=3, epoch=lease.epoch, attempt=lease.attempt)
    [row] = added(broker.turn())
    assert (row["ended"], row["output_tokens"]) == ({"done": 1}, 3)
    broker.reports("w1", "a", "complete", output_tokens=3, epoch=lease.epoch, attempt=lease.attempt)
    assert not added(broker.turn())


def test_absurd_counts_of_a_worker_are_put_in_bounds() -> None:
    broker = chats("a")
    broker.reports("w1", "a", "complete", prompt_tokens=-5, output_tokens=1 << 60, engine_ms=1 << 60)
    [row] = added(broker.turn())
    assert "prompt_tokens" not in row
    assert (row["output_tokens"], row["engine_ms"]) == (bounds.TOKENS, bounds.DURATION_MS)


def test_a_job_that_never_started_has_no_times_and_the_model_it_asked_for() -> None:
    broker = a_broker(jobs=[ready("a", models=["m1", "m2"]), ready("b", user="tom", expires_ms=500)])
    broker.cancel("ann", "a")
    broker.turn(600)
    told = {"day": DAY, "task_type": "echo"}
    assert added([*only(broker.journal, UsageAdded)]) == [
        told | {"user": "ann", "model": "m1", "ended": {"cancelled": 1}},
        told | {"user": "tom", "ended": {"expired": 1}},
    ]


def test_waiting_is_from_accepted_and_running_from_the_first_start() -> None:
    broker = a_broker(jobs=[ready("a", failures=2)], clients=["ann"])
    broker.turn(4000)
    broker.worker(idle("w1"))
    broker.turn()
    broker.reports("w1", "a", "fail")
    broker.pass_time(3000, hearing=["w1", "ann"])
    broker.reports("w1", "a", "complete")
    [row] = added(broker.turn())
    assert row["waits"] == {35: 1}, "3.6 to 4.3 s"
    assert row["runs"] == {33: 1}, "2.6 to 3.0 s, both attempts and what was between them"


def test_a_delay_that_was_wished_is_no_waiting() -> None:
    broker = a_broker(jobs=[ready("a", delay_ms=3_600_000)], clients=["ann"])
    broker.worker(idle("w1"))
    for _ in range(3600):
        broker.says("w1", Heartbeat())
        broker.says("ann", Heartbeat())
        broker.turn(1000)
    broker.reports("w1", "a", "complete")
    [row] = added(broker.turn())
    assert row["waits"] == {0: 1}


def test_of_a_job_that_a_person_retried_only_the_ends_count() -> None:
    broker = chats("a", failures=1)
    broker.reports("w1", "a", "fail")
    effects = broker.turn()
    [dead] = [each.job for each in only(broker.journal, JobChanged) if each.job.state == "dead"]
    broker.pass_time(60_000, hearing=["w1", "ann"])
    [read] = only(broker.says("ann", Retry(request_id=5, target=Target(job_ids=[job_id("a")]))), Read)
    broker.reads(read.request, JobsReply([dead]))
    broker.turn()
    broker.reports("w1", "a", "complete")
    [row] = added(broker.turn())
    assert added(effects)[0]["ended"] == {"dead": 1}
    assert row == a_row(ended={"done": 1})


def test_a_day_ends_at_midnight_utc() -> None:
    broker = chats("a", "b")
    broker.reports("w1", "a", "complete")
    broker.wall_ms = (DAY + 1) * bounds.DAY_MS
    broker.reports("w1", "b", "complete")
    assert [row["day"] for row in added(broker.turn())] == [DAY, DAY + 1]


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_what_comes_when_a_day_is_full_has_one_row_together() -> None:
    users = ["ann", "ben", "cat", "dan", "ann"]
    jobs = [running(f"j{number}", user=user) for number, user in enumerate(users)]
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=9)], settings=Settings(usage_rows=2))
    for number in range(5):
        broker.reports("w1", f"j{number}", "complete", engine_ms=10)
    rows = {row["user"]: row for row in added(broker.turn())}
    assert {user: row["ended"]["done"] for user, row in rows.items()} == {"ann": 2, "ben": 1, OTHERS: 2}
    assert (rows[OTHERS]["model"], rows[OTHERS]["task_type"], rows[OTHERS]["engine_ms"]) == (
        OTHERS,
        OTHERS,
        20,
    )


def test_the_bound_holds_over_a_restart() -> None:
    memory = a_memory(usage_rows=[(DAY, "ann", "", "echo"), (DAY, "ben", "", "echo")], usage_oldest_day=DAY)
    jobs = [running("a", user="ann"), running("c", user="cat")]
    broker = a_broker(
        jobs=jobs, workers=[idle("w1", slots=9)], settings=Settings(usage_rows=2), memory=memory
    )
    broker.reports("w1", "a", "complete")
    broker.reports("w1", "c", "complete")
    assert [row["user"] for row in added(broker.turn())] == ["ann", OTHERS]


def test_only_the_rows_of_two_days_are_held_in_memory() -> None:
    broker = chats("a", "b", "c", "d")
    for number, name in enumerate("abcd"):
        broker.wall_ms = (DAY + number) * bounds.DAY_MS
        broker.reports("w1", name, "complete")
        broker.turn()
    assert list(broker.state.usage_rows) == [DAY + 2, DAY + 3]


def test_days_are_forgotten_one_at_a_time_when_they_were_kept_long_enough() -> None:
    settings = Settings(usage_days=10, retention_every_ms=1000)
    broker = a_broker(memory=a_memory(usage_oldest_day=DAY - 13), settings=settings)
    dropped = []
    for _ in range(10):
        effects = broker.turn(1000)
        dropped.append([record.day for record in only(effects, UsageDropped)])
        for read in only(effects, Read):
            broker.reads(read.request, JobsReply([]))
    assert [days for days in dropped if days] == [[DAY - 13], [DAY - 12], [DAY - 11]]
    assert broker.state.usage_oldest_day == DAY - 10


def test_no_day_is_forgotten_while_the_wall_clock_is_in_doubt() -> None:
    settings = Settings(usage_days=10, retention_every_ms=1000)
    broker = a_broker(memory=a_memory(usage_oldest_day=DAY - 5), settings=settings)
    broker.wall_ms += 300 * bounds.DAY_MS
    for _ in range(60):
        effects = broker.turn(1000)
        assert not only(effects, UsageDropped)
        assert not only(effects, Read)


# --- asked ------------------------------------------------------------------------------------------------------------


def asked(broker: Broker, name: str = "ann", **fields: Any) -> list[Effect]:
    return broker.says(name, Usage(request_id=7, **fields))


def read_for(broker: Broker, name: str = "ann", **fields: Any) -> ReadUsage:
    [read] = only(asked(broker, name, **fields), Read)
    assert isinstance(read.request, ReadUsage)
    return read.request


def test_the_days_that_touch_the_time_asked_for_are_read() -> None:
    broker = a_broker(clients=["ann"], memory=a_memory(usage_oldest_day=DAY - 400))
    request = read_for(broker, since_ms=WALL_MS - 7 * bounds.DAY_MS, by=["user", "day"])
    assert (request.first, request.last, request.by) == (DAY - 7, DAY, ("user", "day"))
    midnight_ms = DAY * bounds.DAY_MS
    assert read_for(broker, until_ms=midnight_ms).last == DAY - 1
    assert read_for(broker, until_ms=midnight_ms + 1).last == DAY
    assert read_for(broker).first == DAY - 400, "the first day that is kept"


def test_what_was_read_is_answered_with_the_days_looked_at() -> None:
    broker = a_broker(clients=["ann"])
    request = read_for(broker)
    row = UsageRow(user="ann", done=3)
    effects = broker.reads(request, UsageSums([row], row, more=True))
    [reply] = sent(effects, "ann", UsageReply)
    assert (reply.request_id, reply.rows, reply.total, reply.more) == (7, [row], row, True)
    assert (reply.since_ms, reply.until_ms) == (DAY * bounds.DAY_MS, (DAY + 1) * bounds.DAY_MS)


@pytest.mark.parametrize(
    ("field", "fields"),
    [("since_ms", {"since_ms": -1}), ("until_ms", {"until_ms": 1 << 63}), ("until_ms", {"since_ms": 9, "until_ms": 9}),
     ("by", {"by": ["queue"]}), ("by", {"by": ["user", "user"]}), ("after", {"by": ["user"], "after": ["a", "b"]})],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_by_name(field: str, fields: dict[str, Any]) -> None:
    told = error(asked(a_broker(clients=["ann"]), **fields))
    assert (told.code, told.fields["field"]) == ("bad_field", field)


@pytest.mark.parametrize(
    ("role", "whose"), [("admin", ""), ("observer", ""), ("gateway", ""), ("user", "ann"), ("app", "ann")]
)
def test_who_sees_whose_sums(role: str, whose: str) -> None:
    broker = a_broker(clients=["ann"])
    broker.role("ann", role)
    assert read_for(broker).user == whose
    assert read_for(broker, user="ann").user == "ann"


def test_nobody_asks_for_others_but_who_sees_all_and_an_app_for_its_own_users() -> None:
    broker = a_broker(clients=["ann"])
    for role in ("user", "app"):
        broker.role("ann", role, principal="shop")
        assert error(asked(broker, user="tom")).code == "not_allowed"
    assert read_for(broker, user="shop/tom").user == "shop/tom"
    broker.role("ann", "user", principal="shop")
    assert error(asked(broker, user="shop/tom")).code == "not_allowed"


def test_sums_stay_when_the_jobs_are_deleted() -> None:
    broker = chats("a")
    broker.reports("w1", "a", "complete")
    broker.turn()
    [done] = [each.job for each in only(broker.journal, JobChanged) if each.job.state == "done"]
    [read] = only(broker.says("ann", Delete(request_id=5, target=Target(job_ids=[job_id("a")]))), Read)
    effects = broker.reads(read.request, JobsReply([done])) + broker.turn()
    assert only(effects, JobsDeleted)
    assert not only(effects, UsageAdded)
    assert not only(effects, UsageDropped)
