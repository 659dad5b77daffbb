"""The command `lmq forecast`: what would these endpoints and this policy do with the traffic of a trace?"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from lmq_broker import config as configuration
from lmq_broker.core.settings import Settings
from lmq_broker.forecast import traces
from lmq_broker.forecast.choices import CHOICES, SLOTS_MAX, BadEndpoints, endpoints, engines, forecast
from lmq_broker.forecast.engines import EngineModel
from lmq_broker.forecast.figures import demands, light_users
from lmq_broker.forecast.replay import Request
from lmq_broker.forecast.tables import Column, comparison, users_table

_LIKE = EngineModel()
_MODELS_MAX = 1000

_EXAMPLES = """
\b
Examples:
  lmq forecast monday.csv --endpoints 1 --endpoints 2
  lmq forecast monday.csv --endpoints gpu-1:8,gpu-2:4 --policy strict --policy blfq
  lmq forecast monday.csv --endpoints 2 --models 3 --load-s 30 --users

\b
A trace is a CSV file with a line of names and a line for each request:
  t_s,user,in_tokens,out_tokens,model,priority
  0.0,anna,120,250,qwen3-8b,8
  1.7,tom,900,80,qwen3-32b,5
t_s is when it came, in seconds. model and priority may be left out. Azure's public
traces (TIMESTAMP,ContextTokens,GeneratedTokens) are read as they are.
"""


class _CannotForecast(click.ClickException):
    """What was given cannot be used, which trying again would not change."""

    exit_code = 2


@click.command("forecast", epilog=_EXAMPLES, context_settings={"max_content_width": 90})
@click.argument("trace", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option(
    "--endpoints", "wanted", metavar="N|NAME:SLOTS,...", multiple=True, default=("1",), show_default=True,
    help="How many endpoints, or their names and slots. Again: compare.",
)  # fmt: skip
@click.option(
    "--policy", "policies", type=click.Choice(list(CHOICES)), multiple=True,
    help="Who runs next; default: as the broker is set. Again: compare.",
)  # fmt: skip
@click.option(
    "--slots", type=click.IntRange(1, SLOTS_MAX), default=_LIKE.slots, show_default=True,
    help="Of endpoints that are given by their number.",
)  # fmt: skip
@click.option(
    "--itl-base-ms", type=click.FloatRange(0.01, 10_000), default=_LIKE.first_ms, show_default=True,
    help="Between two tokens of an answer, without what each stream adds.",
)  # fmt: skip
@click.option(
    "--itl-per-stream-ms", type=click.FloatRange(0, 10_000), default=_LIKE.more_ms, show_default=True,
    help="What each answer that is being written adds to that.",
)  # fmt: skip
@click.option(
    "--prefill-tokens-per-s", type=click.FloatRange(1, 1e9), default=_LIKE.prompt_tokens_per_s, show_default=True,
    help="Speed of reading a prompt.",
)  # fmt: skip
@click.option(
    "--load-s", type=click.FloatRange(0, 86_400), default=_LIKE.load_s, show_default=True,
    help="How long loading a model takes.",
)  # fmt: skip
@click.option(
    "--models-fit", type=click.IntRange(1, 100), default=_LIKE.models_max, show_default=True,
    help="How many models an endpoint holds at once.",
)  # fmt: skip
@click.option(
    "--models", type=click.IntRange(1, _MODELS_MAX), metavar="N",
    help="Deal the users over N models, whatever the trace says.",
)  # fmt: skip
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the dealing: another seed, other users."
)
@click.option(
    "--stretch", type=click.FloatRange(0.001, 1000), default=1.0, show_default=True,
    help="All times longer by this factor: 2 is half the load, 0.5 is twice.",
)  # fmt: skip
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path),
    help="Take bands, weights, rates and policy of this configuration of the broker.",
)  # fmt: skip
@click.option("--users", is_flag=True, help="How each user fared, too.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    trace: str,
    wanted: tuple[str, ...],
    policies: tuple[str, ...],
    stretch: float,
    config_path: Path | None,
    users: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what endpoints and a policy would do with the traffic in TRACE: what would a second GPU bring?

    The broker's own core decides as it does every day, in front of modelled endpoints and under a clock of its own:
    an hour of traffic takes seconds. Same trace, same answer. No broker has to run. `-` reads the trace from stdin.
    """
    name = "stdin" if trace == "-" else trace
    try:
        settings = configuration.load(config_path, {}).settings() if config_path else Settings()
        requests = _requests(trace, stretch, options["models"], options["seed"])
        found = [(text, endpoints(text, options["slots"])) for text in dict.fromkeys(wanted)]
    except traces.BadTrace as error:
        raise _CannotForecast(f"{name}: {error}") from error
    except UnicodeDecodeError as error:
        raise _CannotForecast(f"{name}: text that is not UTF-8: {error}") from error
    except (configuration.ConfigError, BadEndpoints) as error:
        raise _CannotForecast(str(error)) from error
    like = EngineModel(
        first_ms=options["itl_base_ms"], more_ms=options["itl_per_stream_ms"],
        prompt_tokens_per_s=options["prefill_tokens_per_s"], load_s=options["load_s"],
        models_max=options["models_fit"],
    )  # fmt: skip
    models = sorted({each.model for each in requests})
    columns = []
    for text, named in found:
        for policy in dict.fromkeys(policies or (settings.policy,)):
            with _Progress(f"{text}, {policy}", len(requests)) as progress:
                figures = forecast(policy, requests, engines(named, models, like), settings, progress)
            columns.append(Column(text, policy, figures))
    # `lmq --json forecast` means the same as `lmq forecast --json`; the session of the client's root knows.
    if as_json or getattr(context.obj, "json", False):
        click.echo(msgspec.json.encode(_answer(requests, models, columns, with_users=users)))
        return
    lines = [*_introduction(requests, models), "", *comparison(columns)]
    for column in columns if users else ():
        lines += ["", f"endpoints {column.endpoints}, policy {column.policy}", "", *users_table(column)]
    click.echo("\n".join(lines))


def _requests(trace: str, stretch: float, models: int | None, seed: int) -> list[Request]:
    """Return the requests of a trace, varied as was asked."""
    with click.open_file(trace, encoding="utf-8-sig") as lines:
        requests = traces.stretched(traces.read(lines), stretch)
    return requests if models is None else traces.dealt(requests, models, seed)


def _introduction(requests: Sequence[Request], models: Sequence[str]) -> list[str]:
    demand = demands(requests)
    light = light_users(demand)
    asked = f"{_count(len(requests), 'request')} of {_count(len(demand), 'user')}"
    lines = [f"{asked} for {_count(len(models), 'model')} within {requests[-1].at_ms / 1000:,.0f} s"]
    if light:
        ratio = sum(demand[user] for user in light) / (sum(demand.values()) or 1)
        lines.append(f"light users: {len(light)} of {len(demand)}, who ask for {ratio:.0%} of all tokens")
    return lines


def _answer(
    requests: Sequence[Request], models: Sequence[str], columns: Sequence[Column], *, with_users: bool
) -> dict[str, object]:
    forecasts = []
    for column in columns:
        figures = msgspec.to_builtins(column.figures)
        if not with_users:
            del figures["users"]
        forecasts.append({"endpoints": column.endpoints, "policy": column.policy, **figures})
    return {
        "requests": len(requests),
        "span_s": requests[-1].at_ms / 1000,
        "models": models,
        "forecasts": forecasts,
    }


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


class _Progress:
    """A line on stderr while a forecast is made, if somebody looks on; gone when it is done."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._shown = -1
        self._seen = sys.stderr.isatty()

    def __call__(self, left: int) -> None:
        hundredths = 100 * (self._total - left) // self._total
        if self._seen and hundredths != self._shown:
            self._shown = hundredths
            click.echo(f"\r{self._label}: {hundredths} %", nl=False, err=True)

    def __enter__(self) -> Callable[[int], None]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown >= 0:
            click.echo("\r\x1b[K", nl=False, err=True)


def main() -> None:
    """Run the command as a program of its own."""
    command.main(prog_name="lmq forecast")


if __name__ == "__main__":
    main()
