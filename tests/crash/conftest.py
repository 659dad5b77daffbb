"""What crash tests share: a fleet that leaves nothing behind, a seed, time in proportion to the kills."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crash.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Seconds for one kill, what follows it included; many times what it takes.
_KILL_S = 20
_REST_S = 180


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(tmp_path) as fleet:
        yield fleet


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Which kills, and when: `--seed`, or one nobody has tried."""
    given = request.config.getoption("--seed")
    return given if isinstance(given, int) else int.from_bytes(os.urandom(3), "big")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Bound each test that asks how often to kill by a time that grows with the kills."""
    kills = config.getoption("--kills")
    assert isinstance(kills, int)
    for item in items:
        if "kills" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(_REST_S + _KILL_S * kills))
