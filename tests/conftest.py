"""What every layer of tests shares: the command-line options, and waiting for something.

Builders of states and jobs belong beside the layer that uses them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

TESTS = Path(__file__).resolve().parent
SIMULATION = TESTS / "simulation"

# Few enough for a bare `pytest`; `make test` asks for 1000 and 50.
DEFAULT_SEED_COUNT = 25
DEFAULT_KILL_COUNT = 5

# Between two looks at a predicate: short against a test, long against a look.
POLL_S = 0.01


def eventually(predicate: Callable[[], object], within_s: float = 5, what: str | None = None) -> None:
    """Return once the predicate holds; fail, saying what was waited for, when it does not in time.

    For where only polling is left. An event, a line on a pipe or a latch is better.
    """
    deadline_s = time.monotonic() + within_s
    while not predicate():
        if time.monotonic() >= deadline_s:
            pytest.fail(f"waited {within_s} s for: {what or predicate.__doc__ or predicate}")
        time.sleep(POLL_S)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("lmq")
    group.addoption("--seed", type=int, help="simulation: replay this seed alone")
    group.addoption("--seeds", type=int, default=DEFAULT_SEED_COUNT, help="simulation: how many seeds")
    group.addoption("--kills", type=int, default=DEFAULT_KILL_COUNT, help="crash: how often to kill -9")


@pytest.fixture(scope="session")
def kills(request: pytest.FixtureRequest) -> int:
    """How many times a crash test kills what it tests."""
    count = request.config.getoption("--kills")
    assert isinstance(count, int)
    return count


def kept_seeds() -> list[int]:
    """Return the seeds that found a bug once: first word of each line of simulation/seeds.txt."""
    file = SIMULATION / "seeds.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each simulation test that takes a `seed` once per seed, the kept ones first."""
    if "seed" not in metafunc.fixturenames or not metafunc.definition.path.is_relative_to(SIMULATION):
        return
    if any("seed" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")):
        return
    alone = metafunc.config.getoption("--seed")
    count = metafunc.config.getoption("--seeds")
    seeds = [alone] if alone is not None else list(dict.fromkeys([*kept_seeds(), *range(count)]))
    metafunc.parametrize("seed", seeds)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say under a failed simulation how to replay it."""
    report = yield
    callspec = getattr(item, "callspec", None)
    if report.failed and callspec is not None and item.path.is_relative_to(SIMULATION):
        seed = callspec.params.get("seed")
        if seed is not None:
            report.sections.append(("replay", f"make sim SEED={seed}"))
    return report
