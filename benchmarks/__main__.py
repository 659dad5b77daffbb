"""`python -m benchmarks`, what `make bench` runs: every benchmark that writes into docs/benchmarks.md, in turn.

Each runs in a process of its own, so that none inherits the memory, the garbage or the sockets of the one before.
"""

import signal
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.command import Wishes, begin, say, standing_options
from benchmarks.results import ROOT

NAMES = ("compare", "added", "scale", "text", "adaptive", "fairness", "eta")

# What a benchmark gets to end its own processes in.
_STOP_TIMEOUT_S = 30.0


def run(name: str, wishes: Wishes) -> bool:
    """Run one benchmark; tell whether it went to its end."""
    child = subprocess.Popen([sys.executable, "-m", f"benchmarks.{name}", *wishes.words()], cwd=ROOT)
    try:
        return child.wait() == 0
    finally:
        if child.poll() is None:
            # Ctrl-C has reached it as well; SIGTERM has not.
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@click.command(epilog="\b\nExample:\n  python -m benchmarks --quick --only added --only text --no-write")
@standing_options
@click.option("--only", metavar="NAME", multiple=True, type=click.Choice(NAMES), help="Run only this one.")
def main(only: tuple[str, ...], quick: bool, no_write: bool, output: Path, directory: Path) -> None:
    """Run all benchmarks one after the other: compare, added, scale, text, adaptive, fairness, eta.

    Each writes its own section of docs/benchmarks.md; one that fails does not stop the others.
    """
    wishes = Wishes(quick, no_write, output.resolve(), directory.resolve())
    begin(wishes)
    failed = []
    for name in NAMES:
        if not only or name in only:
            say(f"--- {name}")
            if not run(name, wishes):
                failed.append(name)
    if failed:
        raise click.ClickException(f"did not go to their end: {', '.join(failed)}")


if __name__ == "__main__":
    main()
