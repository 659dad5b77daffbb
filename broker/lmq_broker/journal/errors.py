"""What can be wrong with a journal when a broker wants to start. Each says what to do."""

from pathlib import Path


class JournalError(Exception):
    """The journal cannot be used."""


class JournalTaken(JournalError):
    """Another broker uses it."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(
            f"another broker (pid {pid or 'unknown'}) uses {path}; stop it, or give this one another --data folder"
        )


class JournalNewer(JournalError):
    """A newer lmq wrote it."""

    def __init__(self, path: Path, version: int, ours: int) -> None:
        super().__init__(f"{path} has format {version}, this lmq knows up to {ours}; install a newer lmq")


class JournalForeign(JournalError):
    """It is no journal of ours, or damaged."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} cannot be read ({why}); type: lmq restore BACKUP, or move the file away")


class SqliteTooOld(JournalError):
    """This Python's SQLite does not know what is asked of it."""

    def __init__(self, version: str, oldest: str) -> None:
        super().__init__(
            f"this Python has SQLite {version}, and {oldest} or later is needed; install a newer Python"
        )


class NetworkDisk(JournalError):
    """It lies on a network file system, where locks and fsync cannot be trusted."""

    def __init__(self, path: Path, kind: str) -> None:
        super().__init__(
            f"{path} is on a network file system ({kind}); give the broker a --data folder on a local disk"
        )
