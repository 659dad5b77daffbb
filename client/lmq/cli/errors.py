"""From an error to one sentence and an exit status: the only place that knows which is which."""

from __future__ import annotations

import difflib
import json
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

import click

from lmq.errors import (
    AttemptMoved,
    BadConfig,
    BadField,
    BadPayload,
    CursorExpired,
    IdempotencyConflict,
    JobNotDone,
    LmqError,
    NeverFits,
    NotAllowed,
    NotFound,
    NotReachable,
    PartlyRefused,
    TooLarge,
    UnknownModel,
    UpgradeRequired,
    WaitTimeout,
    WrongKind,
    WrongState,
)

if TYPE_CHECKING:
    from types import TracebackType
    from typing import IO, Any


class Status(IntEnum):
    """What `lmq` exits with. Scripts rely on these."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NO_BROKER = 69
    LATER = 75
    NOT_ALLOWED = 77
    TIMED_OUT = 124
    INTERRUPTED = 130


# The first kind that fits counts, so the narrower ones stand first.
_STATUSES: tuple[tuple[type[LmqError], Status], ...] = (
    (NotReachable, Status.NO_BROKER),
    (UpgradeRequired, Status.NO_BROKER),
    (WaitTimeout, Status.TIMED_OUT),
    (JobNotDone, Status.FAILED),
    (NotAllowed, Status.NOT_ALLOWED),
    (NotFound, Status.NOT_FOUND),
    (UnknownModel, Status.NOT_FOUND),
    (CursorExpired, Status.NOT_FOUND),
    (BadField, Status.USAGE),
    (BadPayload, Status.USAGE),
    (BadConfig, Status.USAGE),
    (TooLarge, Status.USAGE),
    (WrongKind, Status.USAGE),
    (NeverFits, Status.USAGE),
    (WrongState, Status.FAILED),
    (AttemptMoved, Status.FAILED),
    (IdempotencyConflict, Status.FAILED),
)

LEFT = "left; what was submitted goes on"
"""Said on Ctrl-C by a command that submits, once it may have."""

_LISTS = {
    "job": "lmq list", "parent": "lmq list", "limit": "lmq limits", "model": "lmq models", "queue": "lmq queues",
    "user": "lmq users", "worker": "lmq workers",
}  # fmt: skip
"""What to type where nothing has the name that was given."""

_WHOLE_ID = re.compile(r"\b[0-9A-HJKMNP-TV-Z]{20}([0-9A-HJKMNP-TV-Z]{6})\b")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Failure(click.ClickException):
    """A command that ends with a sentence on stderr and a status; never with a traceback."""

    def __init__(
        self, sentence: str, status: Status, *, error: LmqError | None = None, as_json: bool = False
    ) -> None:
        super().__init__(sentence)
        self.exit_code = int(status)  # type: ignore[misc]  # click reads it from the instance, whatever it declares
        self.error = error
        self.as_json = as_json

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the sentence, or its JSON where JSON was asked for."""
        if self.as_json:
            code = self.error.code if self.error else "failed"
            fields = self.error.fields if self.error else {}
            told = {"error": {"code": code, "message": self.message, "fields": fields}}
            click.echo(json.dumps(told, ensure_ascii=False, default=str), err=True)
        elif self.message:
            click.echo(f"lmq: {self.message}", err=True)


def status_of(error: LmqError) -> Status:
    """Return the exit status of an error."""
    if isinstance(error, PartlyRefused):
        return status_of(error.refused[0][1]) if error.refused else Status.FAILED
    for kind, status in _STATUSES:
        if isinstance(error, kind):
            return status
    return Status.LATER if error.retryable else Status.FAILED


def sentence_of(error: LmqError) -> str:
    """Return an error as a person reads it: ids by their last 6 characters, no control characters."""
    known = _LISTS.get(error.what) if isinstance(error, NotFound) and not error.nearest else None
    there = f"; type: {known}" if known else ""
    return clean(_WHOLE_ID.sub(r"\1", error.message)) + there


def failure_of(error: LmqError, *, as_json: bool = False) -> Failure:
    """Return what a command ends with that met this error."""
    return Failure(sentence_of(error), status_of(error), error=error, as_json=as_json)


@contextmanager
def leaving(sentence: str) -> Iterator[None]:
    """End with this sentence on Ctrl-C: what goes on without whoever leaves.

    Raises:
        Failure: it was pressed.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Failure(sentence, Status.INTERRUPTED) from None


def near(name: str, names: Iterable[str]) -> list[str]:
    """Return those names that this one may have been meant to be."""
    folded = {each.casefold(): each for each in names}
    return [folded[each] for each in difflib.get_close_matches(name.casefold(), folded)]


def clean(text: str) -> str:
    """Return text without control characters but newline and tab: names and answers come from others."""
    return _CONTROL.sub("", text)


def guarded(act: Callable[[], object]) -> int:
    """Run a command line and return its exit status; whatever happens is told in a sentence."""
    try:
        value = act()
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.Abort:
        click.echo("lmq: left", err=True)
        return Status.INTERRUPTED
    except click.ClickException as failure:
        failure.show() if isinstance(failure, Failure) else _show(failure)
        return failure.exit_code
    except LmqError as error:
        failure_of(error).show()
        return status_of(error)
    except BrokenPipeError:
        _silence_stdout()
        return Status.FAILED
    except RecursionError:
        click.echo("lmq: what was given is nested too deeply", err=True)
        return Status.USAGE
    except (OSError, UnicodeError) as error:
        click.echo(f"lmq: {_said_by_system(error)}", err=True)
        return Status.FAILED
    return value if isinstance(value, int) else Status.OK


def _show(failure: click.ClickException) -> None:
    """Print what click has to say as we say it: what is wrong with what was typed, and what is right."""
    sentence = failure.format_message()
    if isinstance(failure, click.UsageError) and failure.ctx is not None:
        click.echo(f"{failure.ctx.get_usage()}\nhelp: {failure.ctx.command_path} --help", err=True)
        example = getattr(failure.ctx.command, "example", "").strip().partition("\n")[0]
        if isinstance(failure, click.MissingParameter) and example:
            sentence = f"{sentence.rstrip('.')}; as: {example}"
        if isinstance(failure, click.NoSuchOption) and failure.option_name[1:2].isdigit():
            sentence = f"{failure.option_name}: numbers are 0 or more here"
    click.echo(f"lmq: {sentence}", err=True)


def hide_tracebacks() -> None:
    """Have a bug of ours told in a sentence; the traceback goes into a file that a report can name."""
    # A machine without a runtime folder is no news to whoever types a command.
    warnings.filterwarnings("ignore", module="platformdirs")
    sys.excepthook = _tell_bug
    threading.excepthook = _tell_bug_of_thread


def _said_by_system(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return f"text that is not UTF-8: {error}"
    name = f"{error.filename}: " if error.filename else ""
    return f"{name}{error.strerror or error}"


def _silence_stdout() -> None:
    """Whoever read our output has left: keep Python from saying so again when it ends."""
    import os

    if sys.stdout is None:
        return
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass  # a stdout without a descriptor needs no silencing


def _tell_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    from lmq.cli.places import state_dir

    where = ""
    try:
        file = state_dir() / "last-bug.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(traceback.format_exception(kind, error, trace)), encoding="utf-8")
        where = f"; please report it with {file}"
    except OSError:
        where = "; please report it"
    click.echo(f"lmq: this is a bug in lmq: {kind.__name__}: {clean(str(error))}{where}", err=True)


def _tell_bug_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not issubclass(args.exc_type, SystemExit):
        _tell_bug(args.exc_type, args.exc_value, args.exc_traceback)
