"""What a worker leaves on disk for its next life: unacknowledged results, its instance id, the models it loaded.

One directory per endpoint, held by one process at a time under a lock of the kernel's, which no `kill -9` can leave
behind. Results are one file each, written aside and renamed, so that a half-written one is never read.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from lmq_proto.errors import LmqError
from lmq_proto.ids import to_text
from lmq_proto.messages import Ended

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lmq_worker.attempt import Key

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

log = logging.getLogger(__name__)

# The locked byte lies behind the text, because a lock on Windows also keeps others from reading.
_LOCK_AT = 4096


class SpoolTaken(LmqError):
    """Another live worker uses the spool, so it serves the same endpoint."""

    code = "spool_taken"

    def __init__(self, path: str, pid: str) -> None:
        super().__init__(
            f"another worker on this machine (process {pid}) serves this endpoint; stop it first, "
            f"or give this one its own --endpoint (spool: {path})",
            path=path, pid=pid,
        )  # fmt: skip
        self.path, self.pid = path, pid


class SpoolUnusable(LmqError):
    """The spool's directory cannot be made or written."""

    code = "spool_unusable"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"cannot use {path}: {why}; set LMQ_WORKER_STATE_DIR to a directory that can be written",
            path=path, why=why,
        )  # fmt: skip
        self.path, self.why = path, why


class SpooledResult(msgspec.Struct, frozen=True, array_like=True):
    """One file of the spool."""

    ended: Ended
    result: bytes


class Spool:
    """The directory, locked from `__init__` to `close`."""

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        """Open the spool.

        Raises:
            SpoolTaken: another process holds it.
            SpoolUnusable: the directory cannot be used.
        """
        self.path = path
        self._limit_bytes = limit_bytes
        self._results = path / "results"
        self._sizes: dict[Key, int] = {}
        self._bytes = 0
        self._full_told = False
        try:
            self._results.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path / "lock")
        except OSError as error:
            raise SpoolUnusable(str(path), error.strerror or str(error)) from error

    def take_over(self, instance: bytes) -> bytes:
        """Write down this process's instance id; return that of the one before, which is surely dead, or nothing."""
        file = self.path / "instance"
        try:
            before = bytes.fromhex(file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            before = b""
        _write(file, instance.hex().encode())
        return before

    def results(self) -> list[tuple[Ended, bytes]]:
        """Return what an earlier process left, oldest first. A file that cannot be read is set aside and logged."""
        decoder = msgspec.msgpack.Decoder(SpooledResult)
        found = []
        for file in sorted(
            self._results.glob("*.result"), key=lambda file: (file.stat().st_mtime_ns, file.name)
        ):
            try:
                one = decoder.decode(file.read_bytes())
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("spool_file_unreadable", extra={"file": file.name, "why": str(error)})
                file.replace(file.with_suffix(".bad"))
                continue
            self._count((one.ended.job_id, one.ended.epoch, one.ended.attempt), file.stat().st_size)
            found.append((one.ended, one.result))
        return found

    def persist(self, ended: Ended, result: bytes) -> bool:
        """Write a result down; tell whether there was room. What is there already is never pushed out."""
        key = (ended.job_id, ended.epoch, ended.attempt)
        data = msgspec.msgpack.encode(SpooledResult(ended, result))
        if self._bytes + len(data) > self._limit_bytes:
            if not self._full_told:
                self._full_told = True
                log.error("spool_full", extra={"spool_bytes": self._bytes, "limit_bytes": self._limit_bytes})
            return False
        try:
            _write(self._file(key), data)
        except OSError as error:
            log.error("spool_write_failed", extra={"job_id": to_text(ended.job_id), "why": str(error)})
            return False
        self._count(key, len(data))
        return True

    def forget(self, key: Key) -> None:
        """Remove a result."""
        size = self._sizes.pop(key, None)
        if size is not None:
            self._bytes -= size
            self._full_told = False
            self._file(key).unlink(missing_ok=True)

    def own_instances(self) -> set[str]:
        """Return the model instances that this worker loaded at the endpoint."""
        try:
            names = json.loads((self.path / "loaded.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return set()
        return {str(name) for name in names} if isinstance(names, list) else set()

    def keep_own_instances(self, names: Iterable[str]) -> None:
        """Write down the model instances that this worker loaded."""
        try:
            _write(self.path / "loaded.json", json.dumps(sorted(names)).encode())
        except OSError as error:
            log.error("spool_write_failed", extra={"file": "loaded.json", "why": str(error)})

    def said_goodbye(self) -> None:
        """Forget this process's instance id: the broker knows that it is gone, so the next replaces nobody."""
        (self.path / "instance").unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the lock."""
        self._lock.close()

    def _count(self, key: Key, size: int) -> None:
        self._bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def _file(self, key: Key) -> Path:
        return self._results / f"{to_text(key[0])}-{key[1]}-{key[2]}.result"


def _write(file: Path, data: bytes) -> None:
    aside = file.with_suffix(".new")
    aside.write_bytes(data)
    aside.replace(file)


def _locked(file: Path) -> BinaryIO:
    """Return the open, locked file; the lock goes with the process.

    Raises:
        SpoolTaken: another process holds it.
    """
    lock = file.open("a+b")
    try:
        lock.seek(_LOCK_AT)
        if sys.platform == "win32":
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        pid = lock.read(32).decode("ascii", "replace").strip()
        lock.close()
        raise SpoolTaken(str(file.parent), pid or "unknown") from None
    lock.truncate(0)
    lock.write(str(os.getpid()).encode())
    lock.flush()
    return lock
