"""`lmq models`: which models there are, and where; what names stand for; and what is to be loaded, unloaded or kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import Failure, Status, clean, near
from lmq.cli.held import for_words, tell
from lmq.cli.humane import until
from lmq.cli.params import ALIAS, DURATION, MODEL, WORKER
from lmq.cli.tables import Cell, Row, table
from lmq.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lmq import Alias, DefaultModel, ModelView, Order
    from lmq.cli.port import BrokerPort
    from lmq.cli.session import Session

EXAMPLE = """
lmq models
lmq models pin qwen3-8b --on gpu-1 --for 4h
lmq models alias fast qwen3-8b qwen3-8b@q4_k_m
"""
TASK_TYPES = ("chat", "complete", "embed", "bulk_embed")
"""Those that may have a default model."""

on_option = click.option("--on", "worker", type=WORKER, required=True, metavar="WORKER", help="Where.")
anywhere_option = click.option(
    "--on", "worker", type=WORKER, default="", metavar="WORKER", help="There only; else wherever it is."
)
wait_option = click.option("--wait", is_flag=True, help="Until it is done, or has failed.")


@cli.noun("models", example=EXAMPLE)
@cli.pass_session
@click.pass_context
def command(context: click.Context, session: Session) -> None:
    """List models; name them; load, unload or pin one."""
    if context.invoked_subcommand is None:
        _list(session)


@command.command("list", example="lmq models list")
@cli.pass_session
def list_command(session: Session) -> None:
    """List all models of all endpoints: loaded, or on disk. Below them aliases, defaults and orders."""
    _list(session)


@command.command("show", example="lmq models show qwen3-8b")
@click.argument("name", type=MODEL)
@cli.pass_session
def show_command(session: Session, name: str) -> None:
    """Show one model: where it is, what waits for it, what it is called, who wants it where. NAME may be an alias."""
    with session.client() as client:
        found = client.models()
        alias = next((one for one in client.aliases() if one.name.casefold() == name.casefold()), None)
    if alias is not None:
        if session.json:
            session.emit(alias)
        else:
            session.lines(alias_table([alias]))
        return
    model = _named(found, name)
    if session.json:
        session.emit(model)
        return
    facts = [
        ("model", f"{model.model} ({model.kind})" if model.kind else model.model),
        ("loaded on", ", ".join(model.loaded_on)),
        ("on disk at", ", ".join(model.on_disk_at)),
        ("slots", f"{model.slots:,}" if model.slots else ""),
        ("runs", f"{model.leased:,}" if model.slots else ""),
        ("waits", f"{model.waiting:,}"),
        ("aliases", ", ".join(model.aliases)),
        *(
            (one.kind, f"on {one.worker} {_by(one)}{': ' if one.note else ''}{one.note}")
            for one in model.orders
        ),
    ]
    for title, text in facts:
        if text:
            click.echo(f"{title:12}{clean(text)}")


# --- names -----------------------------------------------------------------------------------------------------------


@command.command("alias", example="lmq models alias fast qwen3-8b qwen3-8b@q4_k_m")
@click.argument("name", required=False)
@click.argument("model", type=MODEL, nargs=-1)
@cli.pass_session
def alias_command(session: Session, name: str | None, model: tuple[str, ...]) -> None:
    """Make NAME stand for any of these models, best first; without arguments list what stands for what.

    Jobs that wait follow. It wins over the broker's configuration file until
    lmq models unalias NAME --reset.
    """
    with session.client() as client:
        if name is None:
            _emit(session, client.aliases(), alias_table, "no alias; type: lmq models alias fast MODEL")
            return
        if not model:
            raise click.UsageError(f"say what {name} stands for; to end it: lmq models unalias {name}")
        changed = client.set_alias(name, list(model))
    words = f"stands for {' or '.join(model)}"
    tell(session, name, words, changed, otherwise=f"{words} already")


@command.command("unalias", example="lmq models unalias fast")
@click.argument("name", type=ALIAS)
@click.option("--reset", is_flag=True, help="What the broker's configuration file says holds again.")
@cli.pass_session
def unalias_command(session: Session, name: str, reset: bool) -> None:
    """Let NAME stand for nothing but itself."""
    with session.client() as client:
        changed = client.set_alias(name, [], reset=reset)
    done = "is what the configuration file says" if reset else "is no alias any more"
    tell(session, name, done, changed, otherwise=f"{done} already" if reset else "was no alias")


@command.command("default", example="lmq models default chat qwen3-8b")
@click.argument("task_type", type=click.Choice(TASK_TYPES), required=False)
@click.argument("model", type=MODEL, required=False)
@click.option("--none", "no_default", is_flag=True, help="Any model will do.")
@click.option("--reset", is_flag=True, help="What the broker's configuration file says holds again.")
@cli.pass_session
def default_command(
    session: Session, task_type: str | None, model: str | None, no_default: bool, reset: bool
) -> None:
    """Say which MODEL or alias jobs of a type get that name none; without arguments list the defaults.

    complete follows chat, and bulk_embed follows embed, unless they have their
    own.
    """
    with session.client() as client:
        if task_type is None and not no_default and not reset:
            _emit(session, client.default_models(), default_table, "no default: jobs run on any model")
            return
        if task_type is None or (model is not None) + no_default + reset != 1:
            example = f"lmq models default {task_type or 'chat'} qwen3-8b"
            raise click.UsageError(f"give a task type and a model, --none or --reset, as: {example}")
        changed = client.set_default_model(task_type, model or "", reset=reset)
    done = f"jobs run on {model}" if model else "jobs run on any model"
    if reset:
        done = "jobs run on what the configuration file says"
    tell(session, task_type, f"{done} from now on", changed, otherwise=f"{done} already")


# --- orders ----------------------------------------------------------------------------------------------------------


@command.command("load", example="lmq models load qwen3-8b --on gpu-1 --wait")
@click.argument("model", type=MODEL)
@on_option
@wait_option
@cli.pass_session
def load_command(session: Session, model: str, worker: str, wait: bool) -> None:
    """Bring a model to a worker. What has to make room finishes its jobs first."""
    done = f"is to be loaded on {worker}"
    otherwise = f"is there, or on its way to {worker}"
    _order(
        session, "load", lambda client: client.load_model(model, worker), model, done, otherwise, wait=wait
    )


@command.command("unload", example="lmq models unload qwen3-8b --on gpu-1")
@click.argument("model", type=MODEL)
@anywhere_option
@wait_option
@cli.pass_session
def unload_command(session: Session, model: str, worker: str, wait: bool) -> None:
    """Let a model finish its jobs and unload it, whoever loaded it.

    Jobs that wait for it bring it back; to keep a machine free, pause its
    worker: lmq workers pause gpu-1 --for 3h
    """
    where = f" on {worker}" if worker else ""
    done, otherwise = f"is to be unloaded{where}", f"is not loaded{where}, or about to go"
    _order(
        session, "unload", lambda client: client.unload_model(model, worker), model, done, otherwise, wait=wait
    )  # fmt: skip


@command.command("pin", example="lmq models pin qwen3-8b --on gpu-1 --for 4h")
@click.argument("model", type=MODEL)
@on_option
@click.option("--for", "for_s", type=DURATION, metavar="TIME", help="It ends by itself after so long.")
@cli.pass_session
def pin_command(session: Session, model: str, worker: str, for_s: float | None) -> None:
    """Keep a model on a worker: it is loaded when it is not there, and no job evicts it."""
    with session.client() as client:
        changed = client.pin_model(model, worker, for_s=for_s)
    lasts = for_words(for_s) if for_s else " until unpinned"
    tell(session, model, f"is pinned on {worker}{lasts}", changed, otherwise=f"was pinned on {worker}")


@command.command("unpin", example="lmq models unpin qwen3-8b")
@click.argument("model", type=MODEL)
@anywhere_option
@cli.pass_session
def unpin_command(session: Session, model: str, worker: str) -> None:
    """Take back a pin, or a load or unload that is not done yet."""
    with session.client() as client:
        changed = client.unpin_model(model, worker)
    where = f" on {worker}" if worker else ""
    tell(session, model, f"may come and go{where}", changed, otherwise=f"was not ordered{where}")


def _order(
    session: Session,
    kind: str,
    act: Callable[[BrokerPort], bool],
    model: str,
    done: str,
    otherwise: str,
    *,
    wait: bool,
) -> None:
    """Give an order, and wait for its end if that is wished."""
    with session.client() as client:
        before = client.health().cursor if wait else 0
        changed = act(client)
        if not changed or not wait:
            tell(session, model, done, changed, otherwise=otherwise)
            return
        failed = _await_end(client, kind, before, client.health().cursor)
    if failed:
        raise Failure("; ".join(failed), Status.FAILED)
    tell(session, model, f"is {kind}ed", True, otherwise="")


def _await_end(client: BrokerPort, kind: str, before: int, after: int) -> list[str]:
    """Wait until what was ordered between two cursors has ended; return what went wrong."""
    pending: set[tuple[str, str]] = set()
    failed = []
    events = client.events(since=before, kinds=["model_ordered", "order_ended"])
    try:
        for event in events:
            place = (event.worker, event.model)
            if event.kind == "model_ordered":
                if event.seq <= after and event.detail.get("order") == kind:
                    pending.add(place)
            elif place in pending:
                pending.remove(place)
                if event.detail.get("why") != "done":
                    cause = event.detail.get("error") or f"the order was {event.detail.get('why')}"
                    failed.append(f"{event.worker} did not {kind} {event.model}: {cause}")
            if event.seq >= after and not pending:
                break
    finally:
        events.close()
    return failed


# --- shown -----------------------------------------------------------------------------------------------------------


def model_table(found: Sequence[ModelView]) -> list[str]:
    """Return the table of some models."""
    rows: list[Row] = []
    for model in found:
        loaded = ", ".join(model.loaded_on)
        disk = ", ".join(name for name in model.on_disk_at if name not in model.loaded_on)
        slots, runs = (f"{model.slots:,}", f"{model.leased:,}") if model.slots else ("", "")
        rows.append([model.model, model.kind, Cell(loaded, "green"), slots, runs, f"{model.waiting:,}", disk])
    titles = ["MODEL", "KIND", "LOADED ON", "SLOTS", "RUNS", "WAITS", "ON DISK AT"]
    return table(titles, rows, right=(3, 4, 5))


def alias_table(found: Sequence[Alias]) -> list[str]:
    """Return the table of some aliases."""
    rows: list[Row] = [[one.name, " or ".join(one.models), one.by or "configuration file"] for one in found]
    return table(["ALIAS", "STANDS FOR", "BY"], rows)


def default_table(found: Sequence[DefaultModel]) -> list[str]:
    """Return the table of some default models."""
    rows: list[Row] = [[one.task_type, one.model, one.by or "configuration file"] for one in found]
    return table(["JOBS", "RUN ON", "BY"], rows)


def order_table(found: Sequence[Order]) -> list[str]:
    """Return the table of some orders."""
    rows: list[Row] = [
        [one.kind, one.model, one.worker, one.by, _time(one), Cell(one.note, "yellow")] for one in found
    ]
    return table(["ORDER", "MODEL", "WORKER", "BY", "FOR", ""], rows)


def _time(order: Order) -> str:
    if order.kind != "pin":
        return "once"
    return f"another {until(order.until_ms)}" if order.until_ms else "until unpinned"


def _by(order: Order) -> str:
    """Return by whom and for how long, as the end of a sentence."""
    lasts = f" for {_time(order)}" if order.until_ms else ""
    return f"by {order.by}{lasts}"


def _named(found: Sequence[ModelView], name: str) -> ModelView:
    """Return the model that is called so: by its key, or by its key without the publisher.

    Raises:
        NotFound: none is, or several are.
    """
    wanted = name.casefold()
    for model in found:
        if model.model.casefold() == wanted:
            return model
    close = [model for model in found if model.model.casefold().rpartition("/")[2] == wanted]
    if len(close) != 1:
        names = [model.model for model in close] or near(name, [one.model for one in found])
        raise NotFound("model", name, names)
    return close[0]


def _emit(session: Session, found: Sequence[object], shown: Callable[..., list[str]], otherwise: str) -> None:
    """Print a list, or what to do when it is empty."""
    if session.json:
        session.emit(found)
    elif found:
        session.lines(shown(found))
    else:
        session.note(otherwise)


def _list(session: Session) -> None:
    with session.client() as client:
        found, aliases, defaults = client.models(), client.aliases(), client.default_models()
    if session.json:
        session.emit(found)
        return
    orders = [order for model in found for order in model.orders]
    blocks = [
        shown
        for things, shown in (
            (found, model_table(found)), (aliases, alias_table(aliases)), (defaults, default_table(defaults)),
            (orders, order_table(orders)),
        )
        if things
    ]  # fmt: skip
    if not found:
        session.note("no model: no worker is connected; type: lmq up")
    for number, block in enumerate(blocks):
        session.lines([""] * (number > 0) + block)
