"""The SDK's examples run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from integration.client.fake_broker import FakeBroker

HOUSE = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((HOUSE / "examples").glob("sdk_*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_runs_as_it_stands(example: Path, broker: FakeBroker, tmp_path: Path) -> None:
    roots = [str(HOUSE / root) for root in ("proto", "client")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots), "LMQ_URL": broker.url}
    run = subprocess.run(
        [sys.executable, "-W", "error", str(example)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout
    assert not run.stderr
