"""What is reported as the slots of an instance: as it was set, as the endpoint says, or as it is found."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lmq_proto.messages import Capacity, InstanceInfo
from lmq_worker.config import WorkerConfig
from lmq_worker.limits import Limits, Watch

LLM = InstanceInfo(instance_id="qwen", model="qwen", slots=4, context_tokens=8192)
UNTOLD = InstanceInfo(instance_id="qwen", model="qwen", kind="any", slots=0)
EMBEDDER = InstanceInfo(instance_id="bge", model="bge", kind="embedding", slots=1)


class Endpoint:
    """Limits, and how often they asked to be reported."""

    def __init__(self, *instances: InstanceInfo, slots: int | None = None, **settings: Any) -> None:
        shares_cache = settings.pop("shares_cache", False)
        self.asked = 0
        self.limits = Limits(WorkerConfig(**settings), shares_cache=shares_cache, changed=self._ask)
        self.capacity = Capacity(instances=list(instances), slots=slots)
        self.now_s = 100.0
        self.report()

    def _ask(self) -> None:
        self.asked += 1

    def report(self) -> list[tuple[str, int, str]]:
        self.reported = self.limits.bounded(self.capacity, self.now_s)
        return [(one.instance_id, one.slots, one.limit_by) for one in self.reported.instances]

    def begin(self, instance_id: str = "qwen") -> Watch:
        watch = self.limits.watch(instance_id, self.now_s)
        assert watch is not None
        return watch

    def saturate(self, windows: int) -> None:
        """Write all jobs that may run at 20 ms a token, for some windows."""
        watches: list[Watch] = []
        for _ in range(windows * 100 + 1):
            watches += [self.begin() for _ in range(self.reported.instances[0].slots - len(watches))]
            self.now_s += 0.02
            for watch in watches:
                watch.piece(self.now_s)
        for watch in watches:
            watch.over(self.now_s, overloaded=False)


def test_what_was_set_is_reported_whatever_happens() -> None:
    endpoint = Endpoint(LLM, EMBEDDER, slots=2, concurrency=2)
    assert endpoint.report() == [("qwen", 4, "setting"), ("bge", 1, "setting")]
    assert endpoint.reported.slots == 2
    assert endpoint.limits.watch("qwen", 0.0) is None


def test_what_the_endpoint_says_is_reported() -> None:
    endpoint = Endpoint(LLM, EMBEDDER)
    assert endpoint.report() == [("qwen", 4, "slots"), ("bge", 1, "slots")]
    assert endpoint.reported.slots is None


def test_where_it_says_nothing_two_are_tried_and_an_embedder_gets_one() -> None:
    endpoint = Endpoint(UNTOLD, msgspec.structs.replace(EMBEDDER, slots=0), slots=0)
    assert endpoint.report() == [("qwen", 2, "probe"), ("bge", 1, "slots")]
    assert endpoint.reported.slots == 2


def test_of_several_models_whose_server_says_nothing_only_one_job_runs() -> None:
    """It may be a router that swaps them: two at once would make it swap for each."""
    other = msgspec.structs.replace(UNTOLD, instance_id="llama", model="llama")
    endpoint = Endpoint(UNTOLD, other, slots=0)
    assert endpoint.report() == [("qwen", 1, "slots"), ("llama", 1, "slots")]
    assert endpoint.reported.slots == 1


def test_no_instance_at_all_is_no_limit_at_all() -> None:
    assert Endpoint(slots=0).reported.slots == 1
    assert Endpoint().reported.slots is None


def test_a_higher_limit_asks_to_be_reported_and_then_is_at_rest() -> None:
    endpoint = Endpoint(UNTOLD, slots=0)
    endpoint.saturate(1)
    assert endpoint.asked > 0
    assert endpoint.report() == [("qwen", 3, "probe")]
    asked = endpoint.asked
    endpoint.begin().piece(endpoint.now_s)
    assert endpoint.asked == asked


def test_the_reason_alone_is_no_news() -> None:
    endpoint = Endpoint(msgspec.structs.replace(LLM, slots=1))
    endpoint.begin().over(endpoint.now_s, overloaded=True)
    assert endpoint.asked == 0
    assert endpoint.report() == [("qwen", 1, "slots")]


@pytest.mark.parametrize(("overloaded", "slots"), [(True, 2), (False, 4)])
def test_only_an_end_of_too_much_work_takes_slots_away(overloaded: bool, slots: int) -> None:
    endpoint = Endpoint(LLM, slots=None)
    endpoint.begin().over(endpoint.now_s, overloaded=overloaded)
    assert endpoint.asked == overloaded
    assert endpoint.report()[0][1] == slots


def test_a_job_at_an_instance_that_changed_since_asks_for_nothing() -> None:
    endpoint = Endpoint(LLM)
    watch = endpoint.begin()
    endpoint.capacity = Capacity(instances=[msgspec.structs.replace(LLM, slots=8)])
    assert endpoint.report() == [("qwen", 8, "slots")]
    watch.over(endpoint.now_s, overloaded=True)
    assert endpoint.asked == 0
    assert endpoint.report() == [("qwen", 8, "slots")]


def test_a_model_that_is_loaded_again_is_what_it_was() -> None:
    endpoint = Endpoint(LLM)
    watch = endpoint.begin()
    endpoint.capacity = Capacity()
    assert endpoint.report() == []
    watch.over(endpoint.now_s, overloaded=True)
    endpoint.capacity = Capacity(instances=[LLM])
    assert endpoint.report() == [("qwen", 2, "errors")]


@pytest.mark.parametrize(("shares_cache", "slots"), [(True, 2), (False, 4)])
def test_the_size_of_jobs_counts_where_they_share_the_context(shares_cache: bool, slots: int) -> None:
    endpoint = Endpoint(LLM, shares_cache=shares_cache)
    for _ in range(5):
        endpoint.begin().over(endpoint.now_s, overloaded=False, tokens=3000)
    endpoint.now_s += 4.0
    assert endpoint.report()[0][1] == slots


def test_the_settings_bound_what_is_found() -> None:
    endpoint = Endpoint(UNTOLD, slots=0, concurrency_max=3)
    for _ in range(4):
        endpoint.saturate(2)
        endpoint.report()
    assert endpoint.report() == [("qwen", 3, "most")]
    slow = Endpoint(UNTOLD, slots=0, token_gap_max_s=0.02)
    slow.saturate(4)
    assert slow.report() == [("qwen", 2, "probe")]


def test_a_change_is_logged_with_its_reason_and_what_was_found(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    endpoint = Endpoint(LLM)
    endpoint.report()
    assert not caplog.records
    watches = [endpoint.begin() for _ in range(3)]
    watches[0].over(endpoint.now_s, overloaded=True)
    endpoint.report()
    (record,) = caplog.records
    said = {name: getattr(record, name) for name in ("instance_id", "limit", "was", "limit_by", "running")}
    assert record.message == "limit_changed"
    assert said == {"instance_id": "qwen", "limit": 2, "was": 4, "limit_by": "errors", "running": 2}
    assert (record.base_ms, record.per_stream_ms) == (0.0, 0.0)  # type: ignore[attr-defined]  # of `extra`
