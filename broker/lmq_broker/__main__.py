"""The broker's command: `lmq broker`, `lmq-broker`, `python -m lmq_broker`."""

import gc
import os
import sys
from pathlib import Path

import click
import zmq

from lmq_broker import config as configuration, logs

_EXAMPLES = """
Examples:

\b
  lmq broker
  lmq broker --data ~/lmq --listen tcp://127.0.0.1:7766
  lmq broker restore monday.sqlite3 --data ~/lmq
"""


class _BadSettings(click.ClickException):
    """Settings that cannot be used: starting again would not help, which the exit code tells the service manager."""

    exit_code = 2


@click.group("broker", invoke_without_command=True, epilog=_EXAMPLES)
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Configuration file (TOML).")
@click.option("--data", help="Folder of the journal.")
@click.option(
    "--listen", multiple=True, help="Address for clients and workers: ipc://PATH or tcp://127.0.0.1:PORT."
)
@click.option(
    "--events-listen", multiple=True, help="Address of the progress socket; beside --listen if not given."
)
@click.option(
    "--policy",
    help="Who runs next: blfq (fair shares within bands; the default), vtc (the same, and a model is swapped "
    "as soon as another's turn comes) or strict (priority, then arrival).",
)
@click.option("--log-level", help="debug, info, warning or error.")
@click.option("--log-format", help="plain or json.")
@click.option("--check", is_flag=True, help="Only read the settings, and say what is wrong with them.")
@click.pass_context
def command(context: click.Context, /, config_path: Path | None, check: bool, **options: object) -> None:
    """Run the broker: it takes jobs, keeps them on disk, decides whose runs next and hands them to workers.

    It needs a folder on a local disk for its journal, and listens on this machine only.
    """
    overrides = {
        name: list(value) if isinstance(value, tuple) else value for name, value in options.items() if value
    }
    try:
        config = configuration.load(config_path, overrides)
    except configuration.ConfigError as error:
        raise _BadSettings(str(error)) from error
    context.obj = config
    if check:
        click.echo("the broker's settings are well")
        context.exit()
    if context.invoked_subcommand is None:
        sys.exit(_run(config, config_path, overrides))


@command.command("restore")
@click.argument("backup", type=click.Path(path_type=Path))
@click.pass_obj
def restore_command(config: configuration.BrokerConfig, backup: Path) -> None:
    """Put a BACKUP in the place of the journal; the broker must not run. The old journal is kept beside it."""
    from lmq_broker.journal.errors import JournalError
    from lmq_broker.journal.restore import restore

    try:
        aside = restore(backup, config.folder())
    except (JournalError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"restored {backup} to {config.folder()}" + (f"; the old journal is {aside}" if aside else ""))


def _run(config: configuration.BrokerConfig, config_path: Path | None, overrides: dict[str, object]) -> int:
    """Open everything, recover, serve; return the exit code."""
    import signal

    from lmq_broker.core.invariants import check
    from lmq_broker.core.recover import recover
    from lmq_broker.core.settings import Settings
    from lmq_broker.journal.errors import JournalError
    from lmq_broker.journal.store import Journal
    from lmq_broker.shell import clock
    from lmq_broker.shell.door import Door, NotLocal, NotOurs
    from lmq_broker.shell.notify import Notifier
    from lmq_broker.shell.server import Server
    from lmq_broker.version import software

    logs.set_up(config.log_level, config.log_format)
    gc.disable()  # a million jobs coming back would be looked through again and again
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def wake() -> None:
        try:
            os.write(wake_write, b"\0")
        except BlockingIOError:
            return

    listen, events = config.addresses()
    journal = None
    try:
        journal = Journal(config.folder(), wake, events_kept=config.events_kept)
        door = Door(listen, events, config.ipc_mode)
    except (JournalError, NotLocal, NotOurs, OSError, zmq.ZMQError) as error:
        if journal is not None:
            journal.close()
        click.echo(f"lmq: {_explained(error, listen)}", err=True)
        return 2 if isinstance(error, NotLocal | NotOurs) else 75
    seed = config.seed or int.from_bytes(os.urandom(8), "big")
    state, opening = recover(
        journal.memory(), config.settings(), clock.now(), software=software(), seed=seed,
        fresh_id=os.urandom(16), fresh_secret=os.urandom(32),
    )  # fmt: skip
    check(state)
    journal.start()

    def reread() -> Settings | str:
        try:
            return configuration.load(config_path, overrides).settings()
        except configuration.ConfigError as error:
            return str(error)

    notifier = Notifier(*configuration.watchdog())
    server = Server(
        door, journal, state, notifier, wake_read, free_floor_bytes=config.free_floor_bytes,
        payload_cache_bytes=config.payload_cache_bytes, reread_settings=reread,
        announce=lambda line: click.echo(line, err=True),
    )  # fmt: skip
    code = server.run(opening)
    door.close(500)
    if not journal.close(3.0):
        code = 1
    notifier.close()
    return code


def _explained(error: Exception, listen: list[str]) -> str:
    """Return an error's sentence, with what to do where the system's own says little."""
    if isinstance(error, zmq.ZMQError) and error.errno == zmq.EADDRINUSE:
        return f"an address is in use ({', '.join(listen)}): a broker may run already; type: lmq doctor"
    return str(error)


def main() -> None:
    """Run the command; the entry point `lmq-broker`."""
    command(prog_name="lmq-broker")


if __name__ == "__main__":
    main()
