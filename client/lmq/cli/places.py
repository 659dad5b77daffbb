"""Where the command keeps what it remembers between two calls: the last job, the last bug."""

from __future__ import annotations

from pathlib import Path


def state_dir() -> Path:
    """Return this account's state directory, whether it exists or not."""
    import platformdirs

    return Path(platformdirs.user_state_dir("lmq", appauthor=False))


def remember_last(job_id: str) -> None:
    """Make a job the one that `@last` names. That it cannot be written down stops nobody."""
    try:
        file = state_dir() / "last"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{job_id}\n", encoding="ascii")
    except OSError:
        pass


def recall_last() -> str:
    """Return the id of the last job that was submitted from here; empty if there is none."""
    try:
        return (state_dir() / "last").read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return ""
