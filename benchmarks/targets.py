"""What lmq wants to reach beside what was seen: one line each, and a miss is printed as a miss."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.results import markdown_table


@dataclass(frozen=True, slots=True)
class Target:
    """One number to reach."""

    what: str
    # As the design says it: ">= 0.9", "<= 2 ms".
    reach: str
    # The figure with its unit.
    seen: str
    # None: this run was too small to tell.
    reached: bool | None


def targets_table(targets: Sequence[Target]) -> str:
    """Return the targets as a table."""
    rows = [[target.what, target.reach, target.seen, _verdict(target.reached)] for target in targets]
    return markdown_table(["what", "reach", "seen", "reached"], rows)


def _verdict(reached: bool | None) -> str:
    if reached is None:
        return "not at this size"
    return "yes" if reached else "**missed**"
