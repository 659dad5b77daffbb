"""The seeded worlds. `make sim SEED=8412` replays one, `make sim SEEDS=100000` is for a night.

A seed that found a bug stays in seeds.txt, with a word on what it found.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lmq_broker.core.policies import POLICIES
from simulation.scenario import simulate


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_what_was_promised_holds_in_the_world_of_this_seed(seed: int, policy: str) -> None:
    simulate(seed, policy)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize("world", [1, 2, 3])
def test_the_same_seed_gives_the_same_world_in_another_process(world: int, policy: str) -> None:
    """Another process has other hashes of strings: nothing may hang on the order of a set."""
    program = f"from simulation.scenario import simulate; print(simulate({world}, {policy!r}).digest)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": str(world)}
    other = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == simulate(world, policy).digest
