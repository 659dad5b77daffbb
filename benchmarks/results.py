"""What every benchmark prints: the machine, the commit, and its own section of docs/benchmarks.md.

What is measured, and what a table of it looks like, belongs to the benchmark (`compare`, `tables`).
"""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "benchmarks.md"

# One page of SQLite and one block of most file systems.
FSYNC_BYTES = 4096

INTRODUCTION = """# Benchmarks

What lmq does, on one machine, in one run. The scripts are in [benchmarks/](../benchmarks/README.md); each of them
writes its own section here and leaves the others alone. Figures of different machines, or of different runs, do not
compare: the ratios do.
"""


class BrokenSection(Exception):
    """The document has only one of a section's two marks, or has them in the wrong order."""

    def __init__(self, path: Path, name: str) -> None:
        super().__init__(f"{path}: the marks of section {name} do not pair up; mend them by hand")
        self.path, self.name = path, name


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures depend on besides the code."""

    cpu: str
    cores: int
    kernel: str
    python: str
    # Of the directory the servers' files were in.
    file_system: str

    def sentence(self) -> str:
        """Describe it in one line."""
        return f"{self.cores} cores ({self.cpu}), {self.kernel}, Python {self.python}, files on {self.file_system}"


def describe_machine(directory: Path) -> Machine:
    """Look at the machine, and at the file system that holds `directory`."""
    return Machine(
        cpu=_cpu_model(),
        cores=_usable_cores(),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        file_system=file_system(directory),
    )


def file_system(directory: Path) -> str:
    """Return the type of the file system that holds `directory`, "unknown" where the system does not tell."""
    mounts = Path("/proc/mounts")
    if not mounts.exists():
        return "unknown"
    holder = ("", "unknown")
    for line in mounts.read_text().splitlines():
        _, point, kind, *_ = line.split()
        # The longest mount point above the directory holds it; of equal ones the later lies on top.
        if directory.resolve().is_relative_to(point) and len(point) >= len(holder[0]):
            holder = (point, kind)
    return holder[1]


def fsync_latencies_ms(directory: Path, writes: int) -> list[float]:
    """Append FSYNC_BYTES and sync, `writes` times, to a file in `directory`; return each one's milliseconds."""
    block = os.urandom(FSYNC_BYTES)
    taken_ms = []
    path = directory / "fsync.probe"
    with path.open("wb", buffering=0) as file:
        for _ in range(writes):
            started_s = time.perf_counter()
            file.write(block)
            os.fsync(file.fileno())
            taken_ms.append((time.perf_counter() - started_s) * 1000)
    path.unlink()
    return taken_ms


def commit() -> str:
    """Return the short commit of the tree, with "+" when files in it differ; "unknown" outside git."""
    try:
        short = _git("rev-parse", "--short", "HEAD")
        return f"{short}+" if _git("status", "--porcelain", "--untracked-files=no") else short
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def percentile(values: Sequence[float], hundredths: int) -> float:
    """Return the value below which `hundredths` percent of `values` lie, by the nearest rank.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    ordered = sorted(values)
    rank = -(-len(ordered) * hundredths // 100)
    return ordered[max(rank, 1) - 1]


def provenance(machine: Machine, fsync_ms: Sequence[float], command: str) -> str:
    """Return the lines that say where, when, on what and by which command the figures below them were measured."""
    day = datetime.now(UTC).date().isoformat()
    return (
        f"Measured {day} at commit {commit()} by `{command}` on {machine.sentence()}.\n"
        f"Write and fsync of {FSYNC_BYTES // 1024} KiB in the same directory, in the same run: "
        f"median {statistics.median(fsync_ms):.2f} ms, p99 {percentile(fsync_ms, 99):.2f} ms.\n"
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """Return a Markdown table; the columns after the first `text_columns` are figures and set to the right."""
    marks = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    lines = [head, marks, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_section(path: Path, name: str, body: str) -> None:
    """Put `body` between the marks of section `name`, at the end if it is new; the rest of the file stays as it is.

    Raises:
        BrokenSection: one mark is there without the other.
    """
    begin, end = f"<!-- begin:{name} -->\n", f"<!-- end:{name} -->\n"
    section = f"{begin}{body.rstrip()}\n{end}"
    text = path.read_text() if path.exists() else INTRODUCTION
    if begin not in text and end not in text:
        text = f"{text.rstrip()}\n\n{section}"
    else:
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise BrokenSection(path, name)
        text = before + section + after
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: a reader, or the next benchmark, never meets half a document.
    draft = path.with_suffix(".tmp")
    draft.write_text(text)
    draft.replace(path)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()


def _usable_cores() -> int:
    # A container or taskset may give fewer than the machine has. macOS cannot say.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
