"""What people type: durations, times, labels, jobs; and the options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from click.shell_completion import CompletionItem

from lmq.cli.errors import Failure, Status
from lmq.cli.humane import short
from lmq.cli.places import recall_last
from lmq.cli.session import Session
from lmq.cli.tables import state_word
from lmq.errors import BadField, LmqError, NotFound
from lmq_proto.events import Kind
from lmq_proto.ids import from_text, suffix_bounds, to_text
from lmq_proto.states import State

if TYPE_CHECKING:
    from lmq import JobMatch, JobOptions
    from lmq.cli.port import BrokerPort

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    # Generic for the type checker alone: older versions of click know no such thing.
    _ParamType = click.ParamType

F = TypeVar("F", bound=Callable[..., Any])

LAST = "@last"
WHOLE_CHARS = 26
FEWEST_CHARS = 4
"""Of an id's end: fewer name too many jobs to be meant."""
HOW_TO_NAME = "give the last 6 characters of its id, or @last"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|min|s|m|h|d|w)")
MOST_S = 100 * 365 * 86400.0


class Duration(_ParamType):
    """`90s`, `10m`, `3h`, `2d`, `1h30m`; a bare number is seconds."""

    name = "duration"

    def __init__(self, *, above_0: bool = False) -> None:
        self._above_0 = above_0

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        seconds = parse_duration(str(value))
        if seconds is None:
            self.fail(f"{value!r} is no duration; write 90s, 10m, 3h or 2d", param, ctx)
        if self._above_0 and not seconds:
            self.fail("0 is no time at all; leave it out to have the default", param, ctx)
        return seconds


class Moment(_ParamType):
    """`2026-11-23T18:00`, or `18:00` for the next time the clock says so."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return a time with its zone."""
        if isinstance(value, datetime):
            return value
        at = parse_moment(str(value), datetime.now().astimezone())
        if at is None:
            self.fail(f"{value!r} is no time; write 18:00 or 2026-11-23T18:00", param, ctx)
        return at


class Since(_ParamType):
    """A cursor (`4711`), a duration back from now (`10m`), or a time."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | datetime:
        """Return a cursor or a time."""
        if isinstance(value, int | datetime):
            return value
        text = str(value)
        if text.isascii() and text.isdigit():
            return int(text)
        now = datetime.now().astimezone()
        seconds = parse_duration(text)
        if seconds is not None:
            return now - timedelta(seconds=seconds)
        at = parse_moment(text, now - timedelta(days=1))
        if at is None:
            self.fail(
                f"{value!r} is neither a cursor (4711), a duration (10m) nor a time (18:00)", param, ctx
            )
        return at


class UtcDay(_ParamType):
    """A duration back from now (`7d`), a date (`2026-11-23`, a day in UTC), or a time."""

    name = "day"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return a time within the day."""
        if isinstance(value, datetime):
            return value
        text = str(value).strip()
        now = datetime.now().astimezone()
        seconds = parse_duration(text)
        if seconds is not None:
            return now - timedelta(seconds=seconds)
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            text += "T00:00:00+00:00"
        at = parse_moment(text, now - timedelta(days=1))
        if at is None:
            self.fail(f"{value!r} is neither a duration (7d) nor a date (2026-11-23)", param, ctx)
        return at


class Label(_ParamType):
    """`name=value`."""

    name = "label"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return name and value."""
        if isinstance(value, tuple):
            return cast("tuple[str, str]", value)
        name, equals, text = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is no label; write name=value", param, ctx)
        return name, text


class Priority(_ParamType):
    """0-9, larger sooner, or the name of a band."""

    name = "priority"
    names = ("interactive", "normal", "background")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Return the number or the name."""
        text = str(value)
        if text in self.names:
            return text
        if len(text) == 1 and text.isascii() and text.isdigit():
            return int(text)
        raise click.BadParameter(f"{value!r} is neither 0-9 nor one of {', '.join(self.names)}", ctx, param)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin so."""
        return [CompletionItem(name) for name in self.names if name.startswith(incomplete)]


class Named(_ParamType):
    """A name that the broker can list; completed by asking it, briefly."""

    def __init__(self, name: str, ask: Callable[[BrokerPort], list[str]]) -> None:
        self.name = name
        self._ask = ask

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return what begins so; nothing if no broker answers."""
        session = ctx.find_object(Session) or Session()
        session.url = session.url or str(ctx.find_root().params.get("url") or "")
        try:
            with session.client() as client:
                names = self._ask(client)
        except LmqError:
            return []
        return [CompletionItem(name) for name in names if name.casefold().startswith(incomplete.casefold())]


DURATION = Duration()
ABOVE_0 = Duration(above_0=True)
MOMENT = Moment()
SINCE = Since()
UTC_DAY = UtcDay()


class StateName(click.Choice[str]):
    """A job's state as people call it, or as the wire does; the value is the wire's."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the wire's name."""
        word = super().convert(state_word(value), param, ctx)
        return next((state.value for state in State if state_word(state) == word), word)


LABEL = Label()
PRIORITY = Priority()
QUEUE = Named("queue", lambda client: [queue.name for queue in client.queues()])
WORKER = Named("worker", lambda client: [worker.name for worker in client.workers()])
USER = Named("user", lambda client: sorted({row.user for row in client.users().users if row.user}))
ALIAS = Named("alias", lambda client: [alias.name for alias in client.aliases()])
MODEL = Named(
    "model",
    lambda client: [
        *(model.model for model in client.models()), *(alias.name for alias in client.aliases()),
    ],
)  # fmt: skip
JOB = Named("job", lambda client: [LAST, *(short(job.id) for job in client.jobs(limit=50))])
STATE = StateName([state_word(state) for state in State])
KIND = click.Choice([kind.value for kind in Kind])


def parse_duration(text: str) -> float | None:
    """Return seconds, or None for what is no duration."""
    text = text.strip().lower()
    try:
        seconds = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None
    except ValueError:
        seconds = None
    if seconds is None:
        parts = _DURATION.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            return None
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return seconds if seconds <= MOST_S else None


def parse_moment(text: str, after: datetime) -> datetime | None:
    """Return a time, or None for what is no time; a bare time of day is its next one after `after`."""
    text = text.strip()
    if re.fullmatch(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?", text):
        try:
            at = time.fromisoformat(text.zfill(5))
        except ValueError:
            return None
        day = after.date()
        found = datetime.combine(day, at).astimezone()
        return found if found > after else datetime.combine(day + timedelta(days=1), at).astimezone()
    try:
        found = datetime.fromisoformat(text)
        return found if found.tzinfo is not None else found.astimezone()
    except (ValueError, OverflowError, OSError):
        return None


def job_ids(client: BrokerPort, names: tuple[str, ...] | list[str]) -> list[str]:
    """Return the whole ids of jobs as people name them: whole, by their last characters, or `@last`.

    Raises:
        NotFound: there is no such job.
        Failure: an ending fits several jobs, or nothing was submitted from here yet.
    """
    return [_job_id(client, name) for name in dict.fromkeys(names)]


def _job_id(client: BrokerPort, name: str) -> str:
    if name == LAST:
        last = recall_last()
        if not last:
            raise Failure("no job was submitted from here yet; type: lmq list", Status.NOT_FOUND)
        return last
    if len(name) < FEWEST_CHARS:
        raise Failure(f"{name!r} is too short for a job; {HOW_TO_NAME}", Status.USAGE)
    try:
        if len(name) == WHOLE_CHARS:
            return to_text(from_text(name))
        suffix_bounds(name)
    except BadField as error:
        raise Failure(f"{name!r} is no job; {HOW_TO_NAME}", Status.USAGE, error=error) from error
    found = client.jobs(id_ending=name, limit=2)
    if not found:
        raise NotFound("job", name)
    if len(found) > 1:
        ids = ", ".join(job.id for job in found)
        raise Failure(f"{name} fits several jobs: {ids}; give the whole id", Status.USAGE)
    return found[0].id


# --- options that several commands share -----------------------------------------------------------------------------


def job_options(function: F) -> F:
    """Add the options of a job, named as in the SDK."""
    for option in reversed(
        (
            click.option("--queue", type=QUEUE, help="Where it waits."),
            click.option("--priority", "-p", type=PRIORITY, metavar="0-9|BAND", help="Larger runs sooner."),
            click.option(
                "--label", type=LABEL, multiple=True, metavar="NAME=VALUE", help="May be given 16 times."
            ),
            click.option("--key", metavar="KEY", help="The same key again is the same job."),
            click.option("--delay", type=DURATION, metavar="TIME", help="Not before so long, as 10m."),
            click.option("--at", type=MOMENT, metavar="TIME", help="Not before, as 18:00."),
            click.option("--expires", type=ABOVE_0, metavar="TIME", help="It must have started by then."),
            click.option("--timeout", type=ABOVE_0, metavar="TIME", help="Of one attempt."),
            click.option("--failures", type=click.IntRange(1, 100), help="So many, and it is dead."),
            click.option("--keep", type=ABOVE_0, metavar="TIME", help="How long its result stays."),
            click.option("--session", "session_name", metavar="NAME", help="Prefer where its last job ran."),
            click.option(
                "--depends-on",
                type=JOB,
                multiple=True,
                metavar="JOB",
                help="Once this one is done; may be given 64 times.",
            ),
        )
    ):
        function = option(function)
    return function


def options_of(client: BrokerPort, said: dict[str, Any]) -> JobOptions:
    """Return the SDK's options from what `job_options` gathered.

    Raises:
        UsageError: two of them contradict each other.
    """
    if said.get("delay") is not None and said.get("at") is not None:
        raise click.UsageError("give --delay or --at, not both")
    names = {
        "queue": "queue", "priority": "priority", "key": "idempotency_key", "delay": "delay_s", "at": "at",
        "expires": "expires_s", "timeout": "timeout_s", "failures": "failures", "keep": "keep_s",
        "session_name": "session",
    }  # fmt: skip
    options: dict[str, Any] = {
        sdk: said[typed] for typed, sdk in names.items() if said.get(typed) not in (None, "")
    }
    if said.get("label"):
        options["labels"] = dict(said["label"])
    if said.get("uses"):
        options["uses"] = list(said["uses"])
    if said.get("depends_on"):
        options["depends_on"] = job_ids(client, said["depends_on"])
    return cast("JobOptions", options)


_MATCH_OPTIONS = {
    "state": click.option("--state", type=STATE, multiple=True, help="May be given several times."),
    "user": click.option("--user", metavar="USER", help="Of this user."),
    "queue": click.option("--queue", type=QUEUE, help="In this queue."),
    "type": click.option("--type", "task_type", metavar="TYPE", help="Of this task type, as chat."),
    "model": click.option("--model", "-m", type=MODEL, help="On this model."),
    "worker": click.option("--worker", type=WORKER, help="On this worker."),
    "key": click.option("--key", metavar="KEY", help="With this idempotency key."),
    "label": click.option(
        "--label", type=LABEL, multiple=True, metavar="NAME=VALUE", help="With this label."
    ),
}


def match_options(function: F, but: Container[str] = ()) -> F:
    """Add the filters that name jobs by what they are, but for some."""
    for name, option in reversed(_MATCH_OPTIONS.items()):
        if name not in but:
            function = option(function)
    return function


def match_of(said: dict[str, Any]) -> JobMatch:
    """Return the SDK's filter from what `match_options` gathered; empty for none."""
    match: dict[str, Any] = {
        name: said[name]
        for name in ("user", "queue", "task_type", "model", "worker", "key")
        if said.get(name)
    }
    if said.get("state"):
        match["states"] = list(said["state"])
    if said.get("label"):
        match["labels"] = dict(said["label"])
    return cast("JobMatch", match)


job_argument = click.argument("job", type=JOB, metavar="JOB")
jobs_argument = click.argument("job", type=JOB, nargs=-1, metavar="[JOB]...")
