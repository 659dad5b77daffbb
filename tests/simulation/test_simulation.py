"""The seeded worlds. `make sim SEED=8412` replays one; a seed that found a bug stays in seeds.txt."""

from __future__ import annotations

import gc

import pytest

from simulation.scenario import simulate


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_was_promised_holds_in_the_world_of_this_seed(seed: int) -> None:
    simulate(seed)


@pytest.mark.parametrize("same_seed", [1, 2, 3])
def test_the_same_seed_gives_the_same_world(same_seed: int) -> None:
    first = simulate(same_seed)
    gc.collect()
    assert simulate(same_seed) == first
