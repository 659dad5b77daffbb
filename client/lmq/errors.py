"""Every error the SDK raises: those that cross the wire, from lmq_proto, and those that only a client can know.

One base, `LmqError`; callers read fields, never text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmq_proto.errors import (
    AttemptMoved,
    BackupFailed,
    BadField,
    CursorExpired,
    DiskFull,
    ErrorInfo,
    IdempotencyConflict,
    LimitReached,
    LmqError,
    MayNotLoad,
    NeverFits,
    NoRoom,
    NotAllowed,
    NotFound,
    ParentEnded,
    ProtocolError,
    QueueDraining,
    Stopping,
    TooLarge,
    UnknownModel,
    UpgradeRequired,
    WrongKind,
    WrongState,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmq._handle import Handle

__all__ = [
    "AttemptMoved",
    "BackupFailed",
    "BadConfig",
    "BadField",
    "BadPayload",
    "ClientClosed",
    "CursorExpired",
    "DiskFull",
    "ErrorInfo",
    "IdempotencyConflict",
    "JobCancelled",
    "JobDead",
    "JobExpired",
    "JobNotDone",
    "LimitReached",
    "LmqError",
    "MayNotLoad",
    "NeverFits",
    "NoRoom",
    "NotAllowed",
    "NotFound",
    "NotReachable",
    "ParentEnded",
    "PartlyRefused",
    "ProtocolError",
    "QueueDraining",
    "Stopping",
    "StreamRestarted",
    "TooLarge",
    "UnknownModel",
    "UpgradeRequired",
    "WaitTimeout",
    "WrongKind",
    "WrongState",
]


class NotReachable(LmqError):
    """No broker answered at this address in the time the call had."""

    code = "not_reachable"
    retryable = True

    def __init__(self, url: str) -> None:
        super().__init__(f"no broker at {url}; type: lmq up", url=url)
        self.url = url


class ClientClosed(LmqError):
    """The client was closed, before or during the call."""

    code = "client_closed"

    def __init__(self) -> None:
        super().__init__("the client is closed; make another lmq.Client()")


class BadConfig(LmqError):
    """The configuration file cannot be read."""

    code = "bad_config"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}", path=path, why=why)
        self.path, self.why = path, why


class BadPayload(LmqError):
    """A payload cannot be built from what was given; nothing was submitted."""

    code = "bad_payload"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}", field=field, why=why)
        self.field, self.why = field, why


class WaitTimeout(LmqError):
    """What was waited for did not come in time. A job that was waited for goes on."""

    code = "wait_timeout"
    retryable = True

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(f"waited {timeout_s:g} s for {what}", what=what, timeout_s=timeout_s)
        self.what, self.timeout_s = what, timeout_s


class JobNotDone(LmqError):
    """A job has ended without a result. The base of the three ways to do so."""

    code = "job_not_done"

    def __init__(self, job_id: str, message: str, story: Sequence[ErrorInfo] = ()) -> None:
        super().__init__(message, job_id=job_id, story=[error.message or error.code for error in story])
        self.job_id = job_id
        self.story = tuple(story)


class JobDead(JobNotDone):
    """A job is out of attempts. `story` holds why each failed, oldest first."""

    code = "job_dead"

    def __init__(self, job_id: str, story: Sequence[ErrorInfo]) -> None:
        last = (story[-1].message or story[-1].code) if story else "no reason was given"
        tried = f" after {len(story)} failures" if len(story) > 1 else ""
        super().__init__(job_id, f"job {job_id} is dead{tried}: {last}", story)


class JobCancelled(JobNotDone):
    """A person or program cancelled the job, or a job that it was to wait for failed."""

    code = "job_cancelled"

    def __init__(self, job_id: str, story: Sequence[ErrorInfo] = ()) -> None:
        why = f": {story[-1].message}" if story and story[-1].code == ParentEnded.code else ""
        super().__init__(job_id, f"job {job_id} was cancelled{why}", story)


class JobExpired(JobNotDone):
    """The job had not started by its expiry."""

    code = "job_expired"

    def __init__(self, job_id: str, story: Sequence[ErrorInfo] = ()) -> None:
        super().__init__(job_id, f"job {job_id} expired before it could start", story)


class StreamRestarted(LmqError):
    """A new attempt began after text of an earlier one was shown: that text is void. Read `stream()` anew."""

    code = "stream_restarted"
    retryable = True

    def __init__(self, job_id: str, attempt: int, reason: str) -> None:
        why = f": {reason}" if reason else ""
        super().__init__(
            f"job {job_id} began attempt {attempt}{why}; the text so far is void",
            job_id=job_id, attempt=attempt, reason=reason,
        )  # fmt: skip
        self.job_id, self.attempt, self.reason = job_id, attempt, reason


class PartlyRefused(LmqError):
    """Some jobs of a batch were refused; the others are accepted and go on.

    Attributes:
        accepted: handles of the accepted ones, in order.
        refused: (index in the batch, why) of the others, in order.
    """

    code = "partly_refused"

    def __init__(self, accepted: Sequence[Handle[object]], refused: Sequence[tuple[int, LmqError]]) -> None:
        first = refused[0][1].message if refused else ""
        super().__init__(
            f"{len(refused)} of {len(accepted) + len(refused)} jobs were refused, the first: {first}",
            accepted=[handle.id for handle in accepted], refused=[str(index) for index, _ in refused],
        )  # fmt: skip
        self.accepted = list(accepted)
        self.refused = list(refused)
