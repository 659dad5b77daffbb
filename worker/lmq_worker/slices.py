"""Vectors of unfinished `bulk_embed` jobs, on disk: a second attempt on this worker goes on where one broke off.

One file per job, growing by whole slices. Bounded: what was touched longest ago goes first, since all of it can be
made again.
"""

from __future__ import annotations

import hashlib
import logging
import os
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)


class SliceHead(msgspec.Struct, frozen=True, array_like=True):
    """What the vectors in a file belong to, in front of them."""

    digest: bytes
    model: str
    dims: int


class Slices:
    """The finished part of one job."""

    def __init__(self, store: SliceStore, file: Path, digest: bytes, model: str) -> None:
        self._store, self._file, self._digest, self._model = store, file, digest, model
        self.dims = 0
        self.vectors = b""
        self._load()

    @property
    def count(self) -> int:
        """How many inputs are done."""
        return len(self.vectors) // (4 * self.dims) if self.dims else 0

    def add(self, vectors: bytes, dims: int) -> None:
        """Keep the vectors of the next inputs."""
        if not self.dims:
            self.dims = dims
            head = msgspec.msgpack.encode(SliceHead(self._digest, self._model, dims))
            vectors_file = len(head).to_bytes(4, "big") + head + vectors
        else:
            vectors_file = vectors
        self.vectors += vectors
        self._store.append(self._file, vectors_file, new=len(self.vectors) == len(vectors))

    def remove(self) -> None:
        """Forget the job."""
        self._store.remove(self._file)

    def _load(self) -> None:
        """Read what an earlier attempt left, of the same payload and model; a torn vector is cut off."""
        try:
            data = self._file.read_bytes()
            end = 4 + int.from_bytes(data[:4], "big")
            head = msgspec.msgpack.decode(data[4:end], type=SliceHead)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError):
            self.remove()
            return
        if (head.digest, head.model) != (self._digest, self._model) or head.dims < 1:
            self.remove()
            return
        whole = (len(data) - end) // (4 * head.dims) * 4 * head.dims
        self.dims, self.vectors = head.dims, data[end : end + whole]
        if end + whole < len(data):
            os.truncate(self._file, end + whole)


class SliceStore:
    """The directory of unfinished jobs."""

    def __init__(self, path: Path, *, limit_bytes: int) -> None:
        self._path, self._limit_bytes = path, limit_bytes

    def open(self, job_id: bytes, payload: bytes, model: str) -> Slices:
        """Return what is done of a job."""
        return Slices(self, self._path / f"{job_id.hex()}.vectors", hashlib.sha256(payload).digest(), model)

    def append(self, file: Path, data: bytes, *, new: bool) -> None:
        """Add to a file, if there is room; a file that cannot grow is removed, for a gap in it would be a lie."""
        if not new and not file.exists():
            return
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            if self._make_room(len(data), file):
                with file.open("wb" if new else "ab") as out:
                    out.write(data)
            else:
                self.remove(file)
        except OSError as error:
            log.warning("slices_not_kept", extra={"file": file.name, "why": str(error)})
            self.remove(file)

    def remove(self, file: Path) -> None:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("slices_not_removed", extra={"file": file.name, "why": str(error)})

    def _make_room(self, size: int, keep: Path) -> bool:
        """Remove other jobs, oldest first, until there is room for `size` more bytes; tell whether there is."""
        files = [
            (file.stat().st_mtime_ns, file.stat().st_size, file) for file in self._path.glob("*.vectors")
        ]
        total = sum(file_bytes for _, file_bytes, _ in files) + size
        for _, file_bytes, file in sorted(files):
            if total > self._limit_bytes and file != keep:
                self.remove(file)
                total -= file_bytes
        return total <= self._limit_bytes
