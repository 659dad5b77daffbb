"""Who runs next: the policies on public traces and floods, through the broker's own core under a virtual clock.

Nothing is timed, so the section is the same wherever it is made. What is run is in `fair_rows`, with what in `fair_traffic`, the
pictures are in `fair_pictures`.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks import fair_pictures
from benchmarks.command import Wishes, finish, say, standing_options, typed
from benchmarks.fair_rows import PARTS, Part, Plan
from benchmarks.fair_traffic import FOLDER, NoTrace
from benchmarks.results import commit
from benchmarks.targets import Target, targets_table

SEEDS = 6


def report(parts: list[Part], command: str, at: str, absent: list[str], *, quick: bool) -> str:
    """Return the section."""
    targets: list[Target] = [target for part in parts for target in part.targets]
    lines = [
        "## Who runs next\n",
        f"Computed at commit {at} by `{command}`: the broker's own core decides, endpoints and time are modelled, nothing is timed. The same "
        "on any machine. Traces and their licences: [benchmarks/traces](../benchmarks/traces/README.md).\n",
    ]
    if quick:
        lines.append("A quick run: one seed of each, which shows that everything works.\n")
    lines += [f"{sentence}\n" for sentence in absent]
    if targets:
        lines.append(targets_table(targets))
        lines.append(
            "Decision cost is under [With much queued](#with-much-queued). Limits of concurrency and estimates of time are not measured here.\n"
        )
    lines += [part.text for part in parts]
    return "\n".join(lines)


@click.command(
    epilog="\b\nExamples:\n  python -m benchmarks.fairness --quick --no-write\n"
    "  python -m benchmarks.fairness --only models --no-write\n"
    "  python -m benchmarks.fairness --traces ~/traces     with azure2023_conv.csv"
)
@standing_options
@click.option(
    "--traces", "folder", type=click.Path(path_type=Path, file_okay=False), envvar="LMQ_TRACES", default=FOLDER,
    show_default="benchmarks/traces", help="Folder of the public traces; also LMQ_TRACES.",
)  # fmt: skip
@click.option(
    "--only", metavar="PART", multiple=True, type=click.Choice(list(PARTS)), help="Run only this part."
)
def main(
    only: tuple[str, ...], folder: Path, quick: bool, no_write: bool, output: Path, directory: Path
) -> None:
    """Replay traces and floods under each policy and write the section "Who runs next", with its pictures.

    About five minutes. Nothing is timed: leave the machine busy with whatever you like.
    """
    wishes = Wishes(quick, no_write, output.resolve(), directory)
    plan = Plan(1 if quick else SEEDS, folder, say)
    parts, absent = [], []
    for name, make in PARTS.items():
        if only and name not in only:
            continue
        try:
            parts.append(make(plan))
        except NoTrace as error:
            if name in only:
                raise click.ClickException(str(error)) from error
            say(f"{name} is left out: {error}")
            absent.append(f"Left out: {name}, whose trace {error.name} was not there.")
    if not only and not no_write:
        fair_pictures.draw_all(plan, wishes.output.parent)
    words = [word for name in only for word in ("--only", name)]
    finish(
        "fairness", report(parts, typed("fairness", wishes, *words), commit(), absent, quick=quick), wishes
    )


if __name__ == "__main__":
    main()
