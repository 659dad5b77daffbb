"""The engine alone, on a clock that the test turns: loading, slots, prompt reading, decoding, failing."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_simulator.config import ModelSpec, SimulatorConfig
from lmq_simulator.engine import Engine
from lmq_simulator.records import Channel, Kind, Phase, Piece, Plan, Refused, Status, Ticket

SMALL = "small"
OTHER = "other"
EMBEDDER = "embedder"
MODELS = (
    ModelSpec(SMALL, size_gb=2.0, context_length=1000),
    ModelSpec(OTHER, size_gb=3.0, context_length=1000),
    ModelSpec(EMBEDDER, type="embeddings", size_gb=0.1, dimensions=8),
)


def an_engine(**knobs: Any) -> Engine:
    """A server whose prompt tokens take 1 ms each, and whose decode step takes 10 ms plus 1 per stream."""
    settings: dict[str, Any] = {
        "models": MODELS,
        "loaded": (SMALL, EMBEDDER),
        "load_gb_per_s": 1.0,
        "prefill_tokens_per_s": 1000.0,
        "itl_base_ms": 10.0,
        "itl_per_stream_ms": 1.0,
        "embed_ms_per_string": 5.0,
    }
    return Engine(SimulatorConfig(**{**settings, **knobs}), 0.0)


def ask(
    engine: Engine,
    at_ms: float,
    *,
    model: str = SMALL,
    prompt_tokens: int = 100,
    pieces: int = 5,
    **more: Any,
) -> Ticket:
    planned = Plan(tuple(Piece(Channel.CONTENT, "x") for _ in range(pieces)))

    def prepare(ticket: Ticket) -> None:
        ticket.plan = planned

    return engine.submit(
        model, kind=Kind.CHAT, now_ms=at_ms, prompt_tokens=prompt_tokens, prepare=prepare, **more
    )


def embed(engine: Engine, at_ms: float, strings: int = 1) -> Ticket:
    return engine.submit(EMBEDDER, kind=Kind.EMBED, now_ms=at_ms, strings=strings)


def run_out(engine: Engine) -> None:
    """Turn the clock until only idle limits are left."""
    while True:
        work = [one.work.ends_ms for one in engine.memory.instances.values() if one.work is not None]
        if not work:
            return
        engine.advance(max(work))


def refusal(function: Any, *arguments: Any, **more: Any) -> str:
    with pytest.raises(Refused) as refused:
        function(*arguments, **more)
    return refused.value.failure.text


# Slots, prompts, decoding.


def test_one_request_reads_its_prompt_and_then_writes_a_piece_a_step() -> None:
    engine = an_engine()
    ticket = ask(engine, 0)
    engine.advance(99)
    assert (ticket.phase, ticket.prefilled) == (Phase.PREFILL, 0)
    engine.advance(100)
    assert (ticket.phase, ticket.prefilled, ticket.emitted) == (Phase.DECODE, 100, 0)
    engine.advance(122)
    assert ticket.emitted == 2
    engine.advance(1000)
    assert (ticket.phase, ticket.started_ms, ticket.first_piece_ms, ticket.ended_ms) == (
        Phase.DONE,
        0,
        111,
        155,
    )


def test_a_decode_step_takes_longer_the_more_streams_share_it() -> None:
    engine = an_engine()
    tickets = [ask(engine, 0, prompt_tokens=10, pieces=100) for _ in range(4)]
    engine.advance(40)
    assert [ticket.phase for ticket in tickets] == [Phase.DECODE] * 4
    before = tickets[0].emitted
    engine.advance(40 + 14 * 10)
    assert tickets[0].emitted - before == 10


def test_a_prompt_being_read_pauses_the_decoding_of_the_others() -> None:
    engine = an_engine()
    first = ask(engine, 0, prompt_tokens=10, pieces=100)
    engine.advance(10 + 11 * 3)
    assert first.emitted == 3
    second = ask(engine, 43, prompt_tokens=200, pieces=5)
    engine.advance(54)
    assert first.emitted == 4
    engine.advance(253)
    assert (first.emitted, second.phase) == (4, Phase.PREFILL)
    engine.advance(254 + 12)
    assert (first.emitted, second.emitted) == (5, 1)


def test_a_long_prompt_is_read_in_batches_so_that_its_progress_shows() -> None:
    engine = an_engine()
    ticket = ask(engine, 0, prompt_tokens=900)
    engine.advance(512)
    assert (ticket.phase, ticket.prefilled) == (Phase.PREFILL, 512)
    engine.advance(900)
    assert ticket.phase is Phase.DECODE


def test_more_requests_than_slots_wait_in_order() -> None:
    engine = an_engine(parallel=2)
    tickets = [ask(engine, 0, prompt_tokens=10) for _ in range(5)]
    assert [ticket.phase for ticket in tickets] == [Phase.PREFILL] * 2 + [Phase.WAITING] * 3
    run_out(engine)
    started = [ticket.started_ms for ticket in tickets]
    assert None not in started
    assert started == sorted(started, key=lambda at: at or 0.0)
    assert engine.counters.max_active == 2
    assert engine.counters.max_waiting == 3
    assert engine.counters.completed == 5


def test_an_embedder_works_on_one_request_at_a_time_and_each_string_costs_the_same() -> None:
    engine = an_engine()
    one, three = embed(engine, 0), embed(engine, 0, strings=3)
    run_out(engine)
    assert (one.ended_ms, three.started_ms, three.ended_ms) == (5, 5, 20)


# The KV cache.


def test_a_shared_cache_that_runs_over_fails_all_who_are_active_but_not_who_waits() -> None:
    engine = an_engine(parallel=2)
    long, short = ask(engine, 0, prompt_tokens=600, pieces=300), ask(engine, 0, prompt_tokens=300, pieces=300)
    waiting = ask(engine, 0, prompt_tokens=10)
    run_out(engine)
    assert long.failure is not None
    assert long.failure.text == "Context size has been exceeded."
    assert (long.phase, short.phase, waiting.phase) == (Phase.FAILED, Phase.FAILED, Phase.DONE)
    assert engine.counters.overflows == 1
    assert SMALL in engine.memory.instances


@pytest.mark.parametrize("itl_base_ms", [0.0, 10.0])
def test_a_cache_runs_over_at_the_same_token_whether_steps_take_time_or_not(itl_base_ms: float) -> None:
    engine = an_engine(itl_base_ms=itl_base_ms, itl_per_stream_ms=0.0)
    tickets = [ask(engine, 0, prompt_tokens=450, pieces=400) for _ in range(2)]
    run_out(engine)
    assert [(ticket.phase, ticket.emitted) for ticket in tickets] == [(Phase.FAILED, 51)] * 2


def test_separate_caches_let_each_request_use_the_whole_context() -> None:
    engine = an_engine(unified_kv=False)
    tickets = [ask(engine, 0, prompt_tokens=600, pieces=300) for _ in range(2)]
    too_much = ask(engine, 0, prompt_tokens=900, pieces=300)
    run_out(engine)
    assert [ticket.phase for ticket in tickets] == [Phase.DONE, Phase.DONE]
    assert (too_much.plan.finish_reason, too_much.emitted) == ("length", 100)


def test_a_prompt_that_alone_is_too_long_fails_before_it_starts() -> None:
    engine = an_engine(overflow="nested")
    ticket = ask(engine, 0, prompt_tokens=1001)
    assert (ticket.phase, ticket.started_ms) == (Phase.FAILED, None)
    assert ticket.failure is not None
    assert "exceed_context_size_error" in ticket.failure.text


def test_a_prompt_that_alone_is_too_long_may_fail_after_the_stream_began() -> None:
    ticket = ask(an_engine(overflow="event"), 0, prompt_tokens=1001)
    assert (ticket.phase, ticket.started_ms) == (Phase.FAILED, 0)


def test_a_prompt_that_alone_is_too_long_may_get_an_empty_answer() -> None:
    ticket = ask(an_engine(overflow="empty"), 0, prompt_tokens=1001)
    assert (ticket.phase, ticket.emitted, ticket.plan.pieces) == (Phase.DONE, 0, ())


# Loading.


def test_a_request_for_a_model_on_disk_loads_it_and_waits() -> None:
    engine = an_engine()
    ticket = ask(engine, 0, model=OTHER)
    engine.advance(1500)
    assert (ticket.phase, ticket.instance.load_progress) == (Phase.LOADING, 0.5)
    engine.advance(3000)
    assert (ticket.phase, ticket.load_ms, ticket.started_ms) == (Phase.PREFILL, 3000, 3000)
    assert ticket.instance.jit


def test_simultaneous_first_requests_load_a_copy_each() -> None:
    engine = an_engine()
    tickets = [ask(engine, 0, model=OTHER) for _ in range(3)]
    run_out(engine)
    assert [ticket.instance.id for ticket in tickets] == [OTHER, f"{OTHER}:2", f"{OTHER}:3"]
    assert engine.counters.loads == 3
    later = ask(engine, 20_000, model=OTHER)
    assert later.instance.id == OTHER


def test_without_the_race_simultaneous_first_requests_share_one_load() -> None:
    engine = an_engine(jit_race=False)
    tickets = [ask(engine, 0, model=OTHER) for _ in range(3)]
    run_out(engine)
    assert {ticket.instance.id for ticket in tickets} == {OTHER}


def test_loading_on_demand_evicts_what_was_loaded_on_demand_even_if_it_works() -> None:
    engine = an_engine(loaded=())
    ticket = ask(engine, 0, model=SMALL, pieces=1000, prompt_tokens=1)
    engine.advance(2100)
    assert ticket.phase is Phase.DECODE
    ask(engine, 2100, model=OTHER)
    assert ticket.failure is not None
    assert ticket.failure.text == "Model unloaded."
    assert list(engine.memory.instances) == [OTHER]
    assert engine.counters.evictions == 1


def test_what_was_loaded_by_order_is_not_evicted() -> None:
    engine = an_engine()
    ask(engine, 0, model=OTHER)
    run_out(engine)
    assert list(engine.memory.instances) == [SMALL, EMBEDDER, OTHER]


def test_a_load_on_demand_that_is_overtaken_by_another_is_cancelled() -> None:
    engine = an_engine(loaded=())
    ticket = ask(engine, 0, model=SMALL)
    ask(engine, 100, model=OTHER)
    assert ticket.failure is not None
    assert ticket.failure.text == f'Failed to load model "{SMALL}". Error: Operation canceled.'


def test_a_patient_eviction_waits_until_the_other_model_is_idle() -> None:
    engine = an_engine(loaded=(), evict_busy=False)
    first = ask(engine, 0, model=SMALL, prompt_tokens=100, pieces=10)
    second = ask(engine, 2000, model=OTHER)
    engine.advance(2200)
    assert (first.phase, second.phase) == (Phase.DECODE, Phase.LOADING)
    run_out(engine)
    assert (first.ended_ms, first.phase, second.phase) == (2210, Phase.DONE, Phase.DONE)
    assert second.started_ms == 2210 + 3000
    assert list(engine.memory.instances) == [OTHER]


def test_an_order_to_load_makes_one_more_instance_each_time() -> None:
    engine = an_engine()
    ticket = engine.load(SMALL, context_length=500, now_ms=0)
    run_out(engine)
    assert (ticket.phase, ticket.instance.id) == (Phase.DONE, f"{SMALL}:2")
    assert (ticket.instance.context_length, ticket.instance.jit, ticket.instance.ttl_s) == (500, False, None)


def test_an_idle_model_that_was_loaded_on_demand_goes_after_its_time() -> None:
    engine = an_engine(ttl_s=10.0)
    ticket = ask(engine, 0, model=OTHER)
    run_out(engine)
    assert ticket.ended_ms is not None
    assert engine.next_due_ms() == ticket.ended_ms + 10_000
    engine.advance(ticket.ended_ms + 9_999)
    assert OTHER in engine.memory.instances
    engine.advance(ticket.ended_ms + 10_000)
    assert list(engine.memory.instances) == [SMALL, EMBEDDER]
    assert engine.counters.expirations == 1


def test_a_request_may_set_the_idle_life_of_what_it_loads() -> None:
    engine = an_engine()
    assert ask(engine, 0, model=OTHER, ttl_s=60.0).instance.ttl_s == 60.0


def test_the_guardrail_refuses_what_does_not_fit() -> None:
    engine = an_engine(memory_gb=5.0)
    assert "insufficient system resources" in refusal(engine.load, OTHER, context_length=None, now_ms=0)
    assert "insufficient system resources" in refusal(ask, engine, 0, model=OTHER)
    engine.unload(SMALL, 0)
    assert engine.load(OTHER, context_length=None, now_ms=0).instance.id == OTHER


def test_loads_can_be_refused_by_a_knob() -> None:
    assert "Failed to load model" in refusal(ask, an_engine(refuse_loads=True), 0, model=OTHER)


def test_without_loading_on_demand_a_model_on_disk_is_refused() -> None:
    assert refusal(ask, an_engine(jit=False), 0, model=OTHER).startswith(
        "No models loaded. Please load a model"
    )


def test_unknown_models_and_models_of_the_wrong_kind_are_refused() -> None:
    engine = an_engine()
    assert refusal(ask, engine, 0, model="nobody").startswith(
        'Invalid model identifier "nobody". Please specify'
    )
    assert "type llm" in refusal(ask, engine, 0, model=EMBEDDER)
    assert "No loaded instance" in refusal(engine.unload, "nobody", 0)


def test_a_key_with_its_quantization_names_the_same_model() -> None:
    assert ask(an_engine(), 0, model=f"{SMALL}@q4_k_m").instance.id == SMALL


# Failing and leaving.


def test_a_crash_fails_all_in_flight_and_the_next_request_loads_again() -> None:
    engine = an_engine(parallel=1)
    tickets = [ask(engine, 0), ask(engine, 0)]
    engine.advance(50)
    engine.crash(tickets[0].instance, 50)
    assert [ticket.phase for ticket in tickets] == [Phase.FAILED, Phase.FAILED]
    assert SMALL not in engine.memory.instances
    again = ask(engine, 60)
    run_out(engine)
    assert (again.phase, again.load_ms) == (Phase.DONE, 2000)


def test_a_poisoned_prompt_crashes_the_model_and_its_neighbours() -> None:
    engine = an_engine(crash_on_text="poison")
    neighbour = ask(engine, 0, prompt="harmless")
    poisoned = ask(engine, 10, prompt="a poisoned cup")
    assert (neighbour.phase, poisoned.phase) == (Phase.FAILED, Phase.FAILED)


def test_every_so_many_requests_the_model_crashes() -> None:
    engine = an_engine(crash_every_requests=3)
    phases = []
    for number in range(6):
        ticket = ask(engine, number * 10_000)
        run_out(engine)
        phases.append(ticket.phase)
    assert phases == [Phase.DONE, Phase.DONE, Phase.FAILED] * 2


def test_who_leaves_while_writing_gives_the_slot_back_at_once() -> None:
    engine = an_engine(parallel=1)
    leaver, waiting = ask(engine, 0, pieces=100), ask(engine, 0)
    engine.advance(150)
    engine.abandon(leaver, 150)
    assert leaver.phase is Phase.ABANDONED
    run_out(engine)
    assert waiting.started_ms is not None
    assert waiting.started_ms < 170


def test_who_leaves_while_the_prompt_is_read_keeps_the_slot_until_it_is_read() -> None:
    engine = an_engine(parallel=1)
    leaver, waiting = ask(engine, 0, prompt_tokens=900), ask(engine, 0)
    engine.abandon(leaver, 10)
    assert leaver.phase is Phase.PREFILL
    run_out(engine)
    assert (leaver.phase, leaver.ended_ms, waiting.started_ms) == (Phase.ABANDONED, 900, 900)


@pytest.mark.parametrize(("drops", "started_ms"), [(False, 200), (True, 100)])
def test_who_leaves_while_waiting_still_gets_a_turn_unless_a_knob_says_otherwise(
    drops: bool, started_ms: float
) -> None:
    engine = an_engine(parallel=1, drop_abandoned_waiting=drops)
    _first, leaver, last = ask(engine, 0, pieces=0), ask(engine, 0), ask(engine, 0)
    engine.abandon(leaver, 10)
    run_out(engine)
    assert (leaver.phase, last.started_ms) == (Phase.ABANDONED, started_ms)


def test_unloading_fails_what_runs() -> None:
    engine = an_engine()
    ticket = ask(engine, 0)
    engine.unload(SMALL, 10)
    assert (ticket.phase, engine.counters.unloads) == (Phase.FAILED, 1)


def test_a_stall_stops_everything_and_takes_it_up_where_it_was() -> None:
    engine = an_engine()
    ticket = ask(engine, 0, prompt_tokens=100, pieces=5)
    engine.turn(engine.config.turned({"stalled": True}), 50)
    assert engine.next_due_ms() is None
    engine.advance(10_000)
    assert ticket.phase is Phase.PREFILL
    engine.turn(engine.config.turned({"stalled": False}), 10_000)
    assert ticket.phase is Phase.PREFILL
    run_out(engine)
    assert ticket.ended_ms == 155 + 9_950


def test_what_comes_during_a_stall_begins_when_it_ends() -> None:
    engine = an_engine(stalled=True)
    ticket = ask(engine, 400, prompt_tokens=100, pieces=5)
    engine.turn(engine.config.turned({"stalled": False}), 1000)
    run_out(engine)
    assert (ticket.arrived_ms, ticket.ended_ms) == (400, 1155)


def test_an_instance_says_what_it_does() -> None:
    engine = an_engine()
    ticket = ask(engine, 0)
    seen = [ticket.instance.status]
    for at_ms in (100, 1000):
        engine.advance(at_ms)
        seen.append(ticket.instance.status)
    assert seen == [Status.PROCESSING_PROMPT, Status.GENERATING, Status.IDLE]


def test_a_restart_forgets_everything_but_the_configuration() -> None:
    engine = an_engine()
    ticket = ask(engine, 0, model=OTHER)
    engine.restart(10)
    assert ticket.is_final
    assert list(engine.memory.instances) == [SMALL, EMBEDDER]
    assert engine.counters.requests == 0
