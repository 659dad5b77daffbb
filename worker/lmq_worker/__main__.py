"""The command `lmq worker`: settings in, one agent run, an exit status out."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from lmq_proto.errors import LmqError
from lmq_worker.agent import Agent
from lmq_worker.backends import BACKENDS, detected
from lmq_worker.config import SLOTS_MOST, BadSetting, complete, load_config
from lmq_worker.logs import start_logs
from lmq_worker.spool import Spool

if TYPE_CHECKING:
    from lmq_proto.errors import ErrorInfo
    from lmq_worker.config import WorkerConfig

# Exit statuses: wrong settings; the broker or the endpoint is not to be had; the broker does not permit it.
USAGE, UNAVAILABLE, NOT_ALLOWED = 2, 69, 77


def _concurrency(context: click.Context, option: click.Parameter, typed: str | None) -> Any:
    return typed if typed in (None, "auto") else click.IntRange(1, SLOTS_MOST)(typed, option, context)


@click.command(name="worker")
@click.option("--name", help="What people see of this worker.")
@click.option(
    "--endpoint", metavar="URL", help="The model server. Default: the backend's usual port on this machine."
)
@click.option(
    "--backend", type=click.Choice([*BACKENDS, "auto"]), help="What the model server is. Default: auto."
)
@click.option(
    "--concurrency",
    "--slots",
    metavar="N|auto",
    callback=_concurrency,
    help="Jobs at once. Default, auto: as many as the endpoint has slots, or as it is found to bear.",
)
@click.option("--queues", metavar="NAME,NAME", help="Serve these queues only.")
@click.option("--broker", metavar="URL,URL", help="The broker. Default: LMQ_URL, or the one on this machine.")
@click.option("--no-load", is_flag=True, help="Never load or unload models.")
@click.option("--check", is_flag=True, help="Only read the settings, and say what is wrong with them.")
def command(
    name: str | None,
    endpoint: str | None,
    backend: str | None,
    concurrency: int | Literal["auto"] | None,
    queues: str | None,
    broker: str | None,
    no_load: bool,
    check: bool,
) -> None:
    """Serve one model server: take jobs from the broker, bring results back."""
    overrides = {
        "name": name,
        "endpoint": endpoint,
        "backend": backend,
        "concurrency": concurrency,
        "queues": queues.split(",") if queues else None,
        "broker": broker.split(",") if broker else None,
        "may_load": False if no_load else None,
    }
    try:
        config = load_config(overrides)
        if config.backend not in (*BACKENDS, "auto"):
            raise BadSetting(
                "backend", "settings", f"one of {', '.join(BACKENDS)}, auto; got {config.backend!r}"
            )
    except LmqError as error:
        _say(str(error))
        sys.exit(USAGE)
    if check:
        click.echo("the worker's settings are well")
        return
    start_logs(level=config.log_level, form=config.log_format)
    try:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            refusal = runner.run(serve(config))
    except BadSetting as error:
        _say(str(error))
        sys.exit(USAGE)
    except LmqError as error:
        _say(str(error))
        sys.exit(UNAVAILABLE)
    if refusal is not None:
        _say(refusal.message or refusal.code)
        sys.exit(NOT_ALLOWED if refusal.code == "not_allowed" else UNAVAILABLE)


async def serve(config: WorkerConfig) -> ErrorInfo | None:
    """Run one worker until it is told to stop; return the broker's refusal, if that is why it ended."""
    if config.backend == "auto":
        config = await detected(config)
    config = complete(config)
    spool = Spool(config.spool_dir, limit_bytes=config.spool_bytes)
    try:
        return await Agent(config, BACKENDS[config.backend](config, spool), spool).run()
    finally:
        spool.close()


def main() -> None:
    """Run the command, as `lmq-worker` does."""
    command(prog_name="lmq-worker")


def _say(sentence: str) -> None:
    click.echo(f"lmq worker: {sentence}", err=True)


if __name__ == "__main__":
    main()
