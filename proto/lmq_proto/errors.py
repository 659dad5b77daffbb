"""Every error that crosses the wire, and the ones the SDK adds. One base, `LmqError`; callers read fields, never text.

On the wire an error is its `code` and its fields (`ErrorInfo`); the message is made anew from the fields on the other
side, so that both sides say the same.
"""

from collections.abc import Callable
from typing import ClassVar

import msgspec

_SHOWN_CHARS = 80
"""How much of a wrong value an error repeats."""
_SHORT_CHARS = 6
"""How much of a whole id a sentence shows, as `ids.SHORT_CHARS` says, which cannot be asked here."""

Scalar = str | int | float | bool
Field = Scalar | list[str] | None


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error on the wire."""

    code: str
    message: str = ""
    retryable: bool = False
    fields: dict[str, Field] = {}


class LmqError(Exception):
    """The base of all errors lmq raises on purpose.

    `code` is the wire's name and stable for ever; `retryable` says whether the same command may succeed later.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, /, **fields: Field) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def info(self) -> ErrorInfo:
        """Return what goes over the wire."""
        return ErrorInfo(self.code, self.message, self.retryable, dict(self.fields))


class ProtocolError(LmqError):
    """A peer sent something that PROTOCOL.md does not allow."""

    code = "protocol_error"

    def __init__(self, what: str) -> None:
        super().__init__(what, what=what)
        self.what = what


class UpgradeRequired(LmqError):
    """The peers share no protocol version."""

    code = "upgrade_required"

    def __init__(self, spoken: int, oldest: int, newest: int) -> None:
        side = "older" if spoken < oldest else "newer"
        super().__init__(
            f"protocol {spoken} is {side} than this broker speaks ({oldest} to {newest}); install the same lmq on both",
            spoken=spoken,
            oldest=oldest,
            newest=newest,
        )
        self.spoken, self.oldest, self.newest = spoken, oldest, newest


class BadField(LmqError):
    """A field holds something it may not hold."""

    code = "bad_field"

    def __init__(self, field: str, value: Scalar, limit: str) -> None:
        if isinstance(value, str) and len(value) > _SHOWN_CHARS:
            value = value[: _SHOWN_CHARS - 3] + "..."
        super().__init__(f"{field} = {value!r}: allowed is {limit}", field=field, value=value, limit=limit)
        self.field, self.value, self.limit = field, value, limit


class TooLarge(LmqError):
    """Something is over its size."""

    code = "too_large"

    def __init__(self, field: str, value: int, limit: int) -> None:
        super().__init__(
            f"{field} is {value} bytes, the limit is {limit}; send a path or a URL instead",
            field=field,
            value=value,
            limit=limit,
        )
        self.field, self.value, self.limit = field, value, limit


class NotAllowed(LmqError):
    """The principal's role does not permit this."""

    code = "not_allowed"

    def __init__(self, verb: str, role: str, why: str = "") -> None:
        super().__init__(
            f"{role} may not {verb}" + (f": {why}" if why else ""), verb=verb, role=role, why=why
        )
        self.verb, self.role, self.why = verb, role, why


class NotFound(LmqError):
    """Nothing has that name."""

    code = "not_found"

    def __init__(self, what: str, name: str, nearest: list[str] | None = None) -> None:
        near = f"; nearest: {', '.join(nearest)}" if nearest else ""
        super().__init__(f"no {what} {name!r}{near}", what=what, name=name, nearest=nearest or [])
        self.what, self.name, self.nearest = what, name, nearest or []


class LimitReached(LmqError):
    """A bound is full; come back later."""

    code = "limit_reached"
    retryable = True

    def __init__(self, limit: str, value: int, limit_value: int, retry_after_s: float | None = None) -> None:
        again = (
            f"try again in {retry_after_s:g} s" if retry_after_s is not None else "until when is not known"
        )
        super().__init__(
            f"{limit} is full ({value} of {limit_value}); {again}",
            limit=limit,
            value=value,
            limit_value=limit_value,
            retry_after_s=retry_after_s,
        )
        self.limit, self.value, self.limit_value, self.retry_after_s = (
            limit,
            value,
            limit_value,
            retry_after_s,
        )


class QueueDraining(LmqError):
    """The queue finishes what it holds and takes no more."""

    code = "queue_draining"
    retryable = True

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue!r} is draining; type: lmq queues resume {queue}", queue=queue)
        self.queue = queue


class UnknownModel(LmqError):
    """No endpoint that this broker knows has the model."""

    code = "unknown_model"

    def __init__(self, model: str, nearest: list[str]) -> None:
        near = f"; nearest: {', '.join(nearest)}" if nearest else ""
        super().__init__(
            f"no endpoint has model {model!r}{near}; type: lmq models", model=model, nearest=nearest
        )
        self.model, self.nearest = model, nearest


class WrongKind(LmqError):
    """None of the models asked for can run a job of this task type, wherever they are known."""

    code = "wrong_kind"

    def __init__(self, model: str, task_type: str, makes: str, instead: list[str]) -> None:
        use = f"name one that can: {', '.join(instead)}" if instead else "no endpoint has one that can"
        super().__init__(
            f"models = {model!r}: it makes {makes} only, and this is of type {task_type}; {use}",
            model=model,
            task_type=task_type,
            makes=makes,
            instead=instead,
        )
        self.model, self.task_type, self.makes, self.instead = model, task_type, makes, instead


class NeverFits(LmqError):
    """No endpoint can hold so many tokens with any of the models asked for."""

    code = "never_fits"

    def __init__(self, model: str, tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"the job needs {tokens} tokens and {model} holds {context_tokens} at most; shorten it, "
            "or name a model with a larger context",
            model=model,
            tokens=tokens,
            context_tokens=context_tokens,
        )
        self.model, self.tokens, self.context_tokens = model, tokens, context_tokens


class MayNotLoad(LmqError):
    """The worker loads and unloads no models."""

    code = "may_not_load"

    def __init__(self, worker: str) -> None:
        super().__init__(
            f"worker {worker} loads and unloads no models: its server cannot, or it was started with --no-load",
            worker=worker,
        )
        self.worker = worker


class NoRoom(LmqError):
    """What is in an endpoint's memory, and has to stay, leaves no room for a model."""

    code = "no_room"

    def __init__(self, model: str, worker: str, models_max: int, staying: list[str]) -> None:
        super().__init__(
            f"worker {worker} holds {models_max} at once and {', '.join(staying)} stays there, so that {model} has no "
            "room; type: lmq models unload, or lmq models unpin",
            model=model,
            worker=worker,
            models_max=models_max,
            staying=staying,
        )
        self.model, self.worker, self.models_max, self.staying = model, worker, models_max, staying


class IdempotencyConflict(LmqError):
    """Another payload was submitted under the same key."""

    code = "idempotency_conflict"

    def __init__(self, key: str, job_id: str) -> None:
        super().__init__(
            f"key {key!r} belongs to job {job_id}, which has another payload", key=key, job_id=job_id
        )
        self.key, self.job_id = key, job_id


class ParentEnded(LmqError):
    """A job that was to wait for another never could start: that one has ended without a result."""

    code = "parent_ended"

    def __init__(self, parent: str, state: str) -> None:
        super().__init__(f"its parent {parent[-_SHORT_CHARS:]} is {state}", parent=parent, state=state)
        self.parent, self.state = parent, state


class WrongState(LmqError):
    """The job's state does not allow this."""

    code = "wrong_state"

    def __init__(self, job_id: str, state: str, wanted: str) -> None:
        super().__init__(
            f"job {job_id} is {state}; this needs {wanted}", job_id=job_id, state=state, wanted=wanted
        )
        self.job_id, self.state, self.wanted = job_id, state, wanted


class AttemptMoved(LmqError):
    """The job is at another attempt than `if_attempt` named."""

    code = "attempt_moved"

    def __init__(self, job_id: str, if_attempt: int, attempt: int) -> None:
        super().__init__(
            f"job {job_id} is at attempt {attempt}, not {if_attempt}",
            job_id=job_id,
            if_attempt=if_attempt,
            attempt=attempt,
        )
        self.job_id, self.if_attempt, self.attempt = job_id, if_attempt, attempt


class CursorExpired(LmqError):
    """The events after this cursor are no longer kept."""

    code = "cursor_expired"

    def __init__(self, cursor: int, oldest: int) -> None:
        super().__init__(
            f"events after {cursor} are no longer kept; the oldest cursor is {oldest}",
            cursor=cursor,
            oldest=oldest,
        )
        self.cursor, self.oldest = cursor, oldest


class DiskFull(LmqError):
    """The journal's disk is full or under its floor; reads go on, submits do not."""

    code = "disk_full"
    retryable = True

    def __init__(self, free_bytes: int, floor_bytes: int, retry_after_s: float) -> None:
        super().__init__(
            f"journal disk has {free_bytes} bytes free, the floor is {floor_bytes}; free some space",
            free_bytes=free_bytes,
            floor_bytes=floor_bytes,
            retry_after_s=retry_after_s,
        )
        self.free_bytes, self.floor_bytes, self.retry_after_s = free_bytes, floor_bytes, retry_after_s


class Stopping(LmqError):
    """The broker is going down; the command was not carried out."""

    code = "stopping"
    retryable = True

    def __init__(self) -> None:
        super().__init__("the broker is stopping; try again in a moment")


class EndpointTaken(LmqError):
    """Another worker already serves this endpoint."""

    code = "endpoint_taken"
    retryable = True

    def __init__(self, endpoint: str, worker: str, retry_after_s: float) -> None:
        super().__init__(
            f"endpoint {endpoint} is served by worker {worker}; stop it first",
            endpoint=endpoint,
            worker=worker,
            retry_after_s=retry_after_s,
        )
        self.endpoint, self.worker, self.retry_after_s = endpoint, worker, retry_after_s


class BackupFailed(LmqError):
    """The journal could not be copied."""

    code = "backup_failed"

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"backup to {path} failed: {why}", path=path, why=why)
        self.path, self.why = path, why


WIRE_ERRORS: dict[str, type[LmqError]] = {
    error.code: error
    for error in (
        ProtocolError, UpgradeRequired, BadField, TooLarge, NotAllowed, NotFound, LimitReached, QueueDraining,
        UnknownModel, WrongKind, NeverFits, MayNotLoad, NoRoom, IdempotencyConflict, ParentEnded, WrongState,
        AttemptMoved, CursorExpired, DiskFull, Stopping, EndpointTaken, BackupFailed,
    )
}  # fmt: skip


def from_info(info: ErrorInfo) -> LmqError:
    """Return the error that was sent; an unknown code (a newer broker) or unfit fields give a plain `LmqError`."""
    kind: Callable[..., LmqError] | None = WIRE_ERRORS.get(info.code)
    if kind is not None:
        try:
            return kind(**info.fields)
        except (TypeError, ValueError):
            pass
    return LmqError(info.message or info.code, **info.fields)
