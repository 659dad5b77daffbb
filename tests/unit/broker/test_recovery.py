"""A restart: what the journal keeps comes back; leases wait for their worker; no number is used twice."""

from __future__ import annotations

from lmq_broker.core import invariants
from lmq_broker.core.effects import Effect
from lmq_broker.core.records import MetaSet
from lmq_broker.core.recover import StoredKey, recover
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import Now
from lmq_proto.messages import Enlisted, Held
from lmq_proto.states import State
from unit.broker.builders import (
    MONO_MS,
    WALL_MS,
    a_broker,
    a_memory,
    held,
    idle,
    job_id,
    on_disk,
    outcomes,
    ready,
    restarted,
    running,
    sent,
    spec,
    started,
)


def told_to_stop(effects: list[Effect], name: str) -> list[Held]:
    return sent(effects, name, Enlisted)[0].stop


def test_the_epoch_grows_with_each_start_and_is_journaled_first() -> None:
    for epoch in (0, 1, 41):
        meta = {"epoch": str(epoch).encode(), "broker_id": b"i" * 16, "secret": b"s"} if epoch else {}
        state, effects = recover(
            a_memory(meta=meta), Settings(), Now(MONO_MS, WALL_MS), software="test", seed=1,
            fresh_id=b"f" * 16, fresh_secret=b"fresh",
        )  # fmt: skip
        assert state.epoch == epoch + 1
        assert MetaSet("epoch", str(epoch + 1).encode()) in effects
        assert state.broker_id == (b"i" * 16 if epoch else b"f" * 16), "the journal's, for ever"
        assert state.secret == (b"s" if epoch else b"fresh"), "channels of jobs stay the same"
        invariants.check(state)


def test_waiting_jobs_come_back_in_their_order() -> None:
    broker = a_broker(jobs=[ready("a"), ready("b", priority=9), ready("c", delay_ms=5000), ready("d")])
    again = restarted(broker)
    again.worker(idle("w1", slots=9))
    assert started(again.turn(), "w1") == ["b", "a", "d"]
    assert started(again.pass_time(5000, hearing=["w1"]), "w1") == ["c"]


def test_numbers_and_orders_are_never_used_twice() -> None:
    again = restarted(a_broker(jobs=[ready("a"), ready("b")]))
    again.submit("ann", spec("c"))
    assert (again.job("c").number, again.job("c").order) == (3, 3)
    assert again.events == [] or again.state.last_seq > 2


def test_a_backoff_is_granted_again() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    broker.reports("w1", "a", "fail", retry_after_ms=8000)
    again = restarted(broker)
    assert (again.job("a").state, again.job("a").failures) == (State.DELAYED, 1)
    again.worker(idle("w1"))
    assert not started(again.pass_time(7000, hearing=["w1"]), "w1")
    assert started(again.pass_time(1000, hearing=["w1"]), "w1") == ["a"]
    assert again.job("a").attempt == 2


def test_a_worker_takes_its_leases_up_again_and_their_results_count() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    mine = [held(broker, "a"), held(broker, "b")]
    again = restarted(broker)
    assert len(again.state.orphans) == 2
    assert told_to_stop(again.worker(idle("w1", slots=2, held=mine)), "w1") == []
    assert not again.state.orphans
    assert not started(again.turn(), "w1")
    again.reports("w1", "a", "complete", b"r")
    assert job_id("a") in again.state.finished


def test_what_the_worker_no_longer_holds_passes_on_at_once() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    mine = [held(broker, "a")]
    again = restarted(broker)
    again.worker(idle("w1", slots=2, held=mine))
    assert (again.job("b").state, again.job("b").failures) == (State.READY, 0)
    assert started(again.turn(), "w1") == ["b"]
    assert again.last_event("released").detail["code"] == "lease_lost"


def test_leases_that_nobody_takes_up_pass_on_after_a_while() -> None:
    again = restarted(a_broker(jobs=[running("a")], workers=[idle("w1")]))
    again.worker(idle("w2"))
    assert not started(again.pass_time(14_000, hearing=["w2", "ann"]), "w2")
    assert started(again.pass_time(3000, hearing=["w2", "ann"]), "w2") == ["a"]
    assert (again.job("a").attempt, again.job("a").failures) == (2, 0)


def test_a_worker_that_comes_too_late_has_lost_its_lease() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    mine = held(broker, "a")
    again = restarted(broker)
    again.worker(idle("w2"))
    again.pass_time(20_000, hearing=["w2", "ann"])
    assert told_to_stop(again.worker(idle("w1", held=[mine])), "w1") == [mine]


def test_another_worker_cannot_take_a_lease_up() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    mine = held(broker, "a")
    again = restarted(broker)
    assert told_to_stop(again.worker(idle("w2", held=[mine])), "w2") == [mine]
    assert len(again.state.orphans) == 1


def test_a_lease_in_doubt_can_be_cancelled() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1")])
    mine = held(broker, "a")
    again = restarted(broker)
    again.cancel("ann", "a")
    assert not again.state.orphans
    assert told_to_stop(again.worker(idle("w1", held=[mine])), "w1") == [mine]


def test_a_suspect_is_a_suspect_after_a_restart() -> None:
    broker = a_broker(jobs=[running("a"), running("b")], workers=[idle("w1", slots=2)])
    broker.reports("w1", "a", "crash", shared=True)
    again = restarted(broker)
    assert again.job("a").past.suspect


def test_ended_jobs_keys_and_tombstones_are_known() -> None:
    memory = a_memory(
        finished=[(job_id("a"), 1, "ann", "done", 5)],
        keys=[StoredKey("ann", "k", job_id("a"), b"")],
        tombstones=[(job_id("t"), WALL_MS + 1000)],
        last_number=2,
    )
    again = a_broker(memory=memory, clients=["ann"])
    found = outcomes(again.submit("ann", spec("a"), spec("t"), spec("b")))
    assert [each.outcome for each in found] == ["duplicate", "duplicate", "accepted"]
    conflict = outcomes(again.submit("ann", spec("x", key="k")))[0]
    assert conflict.error is not None
    assert conflict.error.code == "idempotency_conflict"


def test_models_that_were_ever_announced_are_known() -> None:
    broker = a_broker(workers=[idle("w1", instances=[], catalog=on_disk("qwen3"))])
    again = restarted(broker)
    assert outcomes(again.submit("ann", spec("a", models=["qwen3"])))[0].outcome == "accepted"
    refused = outcomes(again.submit("ann", spec("b", models=["llama"])))[0]
    assert refused.error is not None
    assert refused.error.code == "unknown_model"


def test_a_start_is_told() -> None:
    broker = a_broker()
    assert broker.last_event("broker_started").detail == {"epoch": 1, "software": "test"}
