"""The command: run a simulated LM Studio server until it is told to stop. Every knob is an option."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import MISSING, Field, fields
from types import FrameType
from typing import Any, get_args, get_origin, get_type_hints

import click

from lmq_simulator.config import KNOB_HELP, ZERO_LATENCY, SimulatorConfig
from lmq_simulator.simulator import Simulator

# What LM Studio listens on, so that a client finds the stand-in without being told.
DEFAULT_PORT = 1234

# How `--loaded` says that nothing is in memory.
_NONE = "none"

_EXAMPLE = """
\b
Example:
  lmq simulator --port 0 --loaded qwen/qwen3-8b --parallel 2 --itl-base-ms 30
  curl -N http://127.0.0.1:PORT/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"model": "qwen/qwen3-8b", "stream": true,
            "messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
"""


async def serve(config: SimulatorConfig) -> None:
    """Run a simulator, say where, and stop when the process is asked to."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stop.set)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        async with Simulator(config).start() as simulator:
            loaded = ", ".join(config.loaded) or "nothing"
            click.echo(f"simulator ready at {simulator.url} (loaded: {loaded})")
            await stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(instant: bool, **knobs: Any) -> None:
    """Simulate an LM Studio server: its HTTP API, its speed, its queues and its failures, without a model."""
    if knobs["loaded"] == (_NONE,):
        knobs["loaded"] = ()
    if instant:
        knobs.update(ZERO_LATENCY)
    try:
        config = SimulatorConfig(**knobs)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    try:
        asyncio.run(serve(config))
    except OSError as error:
        raise click.ClickException(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}"
        ) from error


def _option(field: Field[Any], kind: Any) -> click.Option:
    name = field.name.replace("_", "-")
    default = DEFAULT_PORT if field.name == "port" else field.default
    assert default is not MISSING
    help_text = KNOB_HELP[field.name]
    if kind is bool:
        return click.Option([f"--{name}/--no-{name}"], default=default, show_default=True, help=help_text)
    if get_origin(kind) is tuple:
        return click.Option(
            [f"--{name}"], default=default, multiple=True, metavar="MODEL", show_default=True, help=help_text
        )
    choices = get_args(kind)
    shape = click.Choice(choices) if choices else kind
    return click.Option([f"--{name}"], default=default, type=shape, show_default=True, help=help_text)


def _options() -> list[click.Parameter]:
    kinds = get_type_hints(SimulatorConfig)
    first = click.Option(
        ["--instant"], is_flag=True, help="Nothing takes time: all speeds and waits at zero."
    )
    knobs = [field for field in fields(SimulatorConfig) if field.name != "models"]
    return [first, *(_option(field, kinds[field.name]) for field in knobs)]


command = click.Command("simulator", callback=_run, params=_options(), help=_run.__doc__, epilog=_EXAMPLE)


def main() -> None:
    """Run the command as a program of its own."""
    command.main(prog_name="lmq simulator")


if __name__ == "__main__":
    main()
