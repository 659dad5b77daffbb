"""The modelled servers, and the worker's own limit in front of some of them: a virtual clock, always the same."""

import pytest
from benchmarks.adaptive import KNOWN, QUICK, SEEN, UNSEEN, Drift, Verdict, adapt, judge, report, targets
from benchmarks.modelled import DURATION_S, Jobs, Server, Static, run

SERVERS = {each.name: each for each in (*KNOWN, *SEEN, *UNSEEN)}

# Prompts of a token, so that nothing but writing takes time.
BARE = Jobs(prompt_mean=1, output_mean=100, spread=0.2)


@pytest.mark.parametrize("limit", [1, 3, 6])
def test_a_modelled_server_writes_as_fast_as_its_steps_are_long(limit: int) -> None:
    server = Server("bare", 100, 20, 3, prefill_tokens_per_s=1e9, jobs=BARE)
    assert run(server, Static(limit), 1).goodput() == pytest.approx(limit / (0.02 + 0.003 * limit), rel=0.02)


def test_what_is_too_slow_is_no_good_text() -> None:
    slow = Server("slow", 100, 20, 3, prefill_tokens_per_s=1e9, jobs=BARE)
    assert run(slow, Static(26), 1).goodput() > 250
    assert run(slow, Static(28), 1).goodput() == 0.0


def test_more_requests_than_slots_wait_inside_and_their_first_token_is_late() -> None:
    server = Server("two slots", 2, 50, 0, prefill_tokens_per_s=1e9, jobs=BARE)
    kept, queued = run(server, Static(2), 1), run(server, Static(5), 1)
    assert (kept.waited(95, 60.0), queued.waited(5, 60.0)) == (0, 3)
    assert queued.goodput() < 0.1 * kept.goodput()


def test_prompts_slow_writing_while_they_are_read() -> None:
    server = Server(
        "reads", 8, 20, 1, prefill_tokens_per_s=1000, jobs=Jobs(prompt_mean=1000, output_mean=100)
    )
    idle = Server(
        "does not", 8, 20, 1, prefill_tokens_per_s=1e9, jobs=Jobs(prompt_mean=1000, output_mean=100)
    )
    assert run(server, Static(2), 1).goodput() < 0.7 * run(idle, Static(2), 1).goodput()


@pytest.mark.parametrize("preempts", [False, True])
def test_a_cache_that_is_too_small_makes_more_jobs_write_less(preempts: bool) -> None:
    server = Server("small", 64, 20, 1, prefill_tokens_per_s=3000, cache_tokens=4000, preempts=preempts)
    assert run(server, Static(24), 1).goodput() < run(server, Static(7), 1).goodput()


def test_a_run_is_the_same_each_time() -> None:
    server = SERVERS["jitter and stalls"]
    assert adapt(server, 4) == adapt(server, 4)
    assert adapt(server, 4) != adapt(server, 5)


# The best static limit of each, as the benchmark finds it.
@pytest.mark.parametrize(
    ("name", "best", "least"),
    [
        ("4 slots", 4, 0.97),
        ("16 slots", 16, 0.94),
        ("64 slots", 64, 0.90),
        ("serial engine", 1, 0.95),
        ("small cache, told", 13, 0.90),
        ("small cache, not told", 13, 0.90),
        ("long prompts, short answers", 6, 0.85),
        ("hardly fast enough", 2, 0.97),
    ],
)
def test_the_limit_that_adapts_brings_nearly_as_much_as_the_best_that_stays(
    name: str, best: int, least: float
) -> None:
    found = adapt(SERVERS[name], 1)
    assert found.goodput() / run(SERVERS[name], Static(best), 1).goodput() >= least
    assert found.waited(95, 60.0) < 1


@pytest.mark.parametrize(("name", "best"), [("drift at half time", 12), ("twice as fast at half time", 20)])
def test_half_a_minute_after_a_drift_it_is_where_it_should_be(name: str, best: int) -> None:
    server = SERVERS[name]
    assert server.later is not None
    begin_s = DURATION_S / 2 + 30
    fixed = run(server.later, Static(best), 1)
    assert adapt(server, 1).goodput(begin_s) >= 0.9 * fixed.goodput(begin_s)


def test_a_server_is_judged_beside_its_best_limit() -> None:
    verdict = judge(Server("tiny", 2, 40, 3), QUICK)
    assert verdict.best_limit == 2
    assert 0.9 < verdict.ratio <= 1.05
    assert verdict.ratios == [pytest.approx(verdict.ratio)]
    assert (verdict.limits, verdict.waited_p95, verdict.drift) == ([2], 0, None)


def a_verdict(
    name: str, *, adaptive: float = 95.0, waited_p95: int = 0, drift: Drift | None = None
) -> Verdict:
    return Verdict(
        server=SERVERS[name], best_limit=4, best=100.0, adaptive=adaptive, ratios=[adaptive / 100],
        waited_p95=waited_p95, limits=[4], changes_per_min=1.0, drift=drift,
    )  # fmt: skip


def test_what_is_missed_is_said_and_more_than_the_best_makes_up_for_nothing() -> None:
    known = [
        a_verdict("4 slots", adaptive=89.0),
        a_verdict("drift at half time", adaptive=130.0, waited_p95=1, drift=Drift(0.95, 31.0)),
    ]
    found = {
        target.what: (target.seen, target.reached) for target in targets([("known", known), ("unseen", [])])
    }
    assert found == {
        "known, least ratio": ("0.890", False),
        "known, mean ratio": ("0.945", False),
        "known, waiting inside after 60 s, p95": ("1", False),
        "drift at half time, settled after": ("31 s", False),
        "drift at half time, ratio from then on": ("0.950", True),
    }


def test_servers_that_were_unseen_stand_apart_with_their_first_figures() -> None:
    found = {name: a_verdict(name) for name in ("4 slots", "jitter and stalls", "wide and slow")}
    text = report(found, "python -m benchmarks.adaptive", quick=False)
    places = [
        text.index(words)
        for words in ("| 4 slots |", "0.97, 0.60", "| jitter", "| wide and slow |", "| what |")
    ]
    assert places == sorted(places)
