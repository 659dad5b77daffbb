"""Who runs next: the policies on public traces and floods, through the broker's own core under a virtual clock.

Nothing is timed, so the section is the same wherever it is made. Its parts are in `fair_shares`, `fair_bands` and
`fair_models`, their traffic in `fair_traffic`, the pictures in `fair_pictures`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import fair_bands, fair_models, fair_pictures, fair_shares
from benchmarks.command import Wishes, finish, say, standing_options, typed
from benchmarks.fair_runs import Part, Plan, prose
from benchmarks.fair_traffic import FOLDER, NoTrace
from benchmarks.results import commit
from benchmarks.targets import Target, targets_table

if TYPE_CHECKING:
    from collections.abc import Callable

SEEDS = 6


PARTS: dict[str, Callable[[Plan], Part]] = {
    "backlogged": fair_shares.backlogged,
    "arena": fair_shares.arena,
    "weights": fair_shares.weights,
    "floods": fair_bands.floods,
    "inversions": fair_bands.inversions,
    "models": fair_models.models,
    "overload": fair_models.overload,
    "azure": fair_models.azure,
}

PICTURES = (
    "### Pictures\n\n"
    + prose("""
        What the users who ask for little, and the one who asks for most, had been served over time (solid)
        of what they had asked for (dotted). First come first served lets all wait alike, whoever filled the
        queue. Strict order does better only because it stays with the loaded model for a while. Fair shares
        without that (VTC) keep the light users close to what they ask for and spend half of the time on
        loads, which the heaviest user pays for. BLFQ does both: the light users hardly wait, and the
        heaviest is done a few minutes later than under strict order.""")
    + f"![Served over time]({fair_pictures.SERVICE})\n\n"
    + prose("""
        Patience is how long the loaded model is preferred to whoever's turn it is, in times of a load (T).
        More of it saves loads and so makespan, and lets those wait longest who ask for little of a model
        that is not there. The shaded field is what was to be reached. The points are means over the
        user-to-model maps of "Three models on two endpoints".""")
    + f"![Makespan against waits]({fair_pictures.TRADE})\n"
)


def report(
    parts: list[Part], command: str, at: str, absent: list[str], *, quick: bool, pictures: bool
) -> str:
    """Return the section."""
    targets: list[Target] = [target for part in parts for target in part.targets]
    introduction = prose(f"""
        Computed at commit {at} by `{command}`: the broker's own core decides, endpoints and time are
        modelled, nothing is timed. It is the same on any machine. Traces and their licences:
        [benchmarks/traces](../benchmarks/traces/README.md).""")
    lines = [f"## Who runs next\n\n{introduction}".rstrip() + "\n"]
    if quick:
        lines.append("A quick run: one seed of each, which shows that everything works.\n")
    lines += [f"{sentence}\n" for sentence in absent]
    if targets:
        lines.append(targets_table(targets))
        lines.append(
            "What decisions cost is under [With much queued](#with-much-queued), the adaptive limit under "
            "[Adaptive concurrency](#adaptive-concurrency). Estimates of time are under "
            "[How long it takes](#how-long-it-takes).\n"
        )
    lines += [part.text for part in parts]
    if pictures:
        lines.append(PICTURES)
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

    About ten minutes. Nothing is timed: leave the machine busy with whatever you like.
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
    pictures = not only and not no_write
    if pictures:
        fair_pictures.draw_all(plan, wishes.output.parent)
    words = [word for name in only for word in ("--only", name)]
    words += [] if folder == FOLDER else ["--traces", "DIR"]
    command = typed("fairness", wishes, *words)
    section = report(parts, command, commit(), absent, quick=quick, pictures=pictures)
    finish("fairness", section, wishes)


if __name__ == "__main__":
    main()
