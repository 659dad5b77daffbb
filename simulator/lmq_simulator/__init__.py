"""A stand-in for an LM Studio server over real HTTP, for the demo, the tests and the benchmarks. No model inside."""

from __future__ import annotations

from lmq_simulator.config import DEFAULT_MODELS, ModelSpec, SimulatorConfig
from lmq_simulator.simulator import Simulator, ThreadedSimulator, run_in_thread

__all__ = [
    "DEFAULT_MODELS",
    "ModelSpec",
    "Simulator",
    "SimulatorConfig",
    "ThreadedSimulator",
    "run_in_thread",
]
