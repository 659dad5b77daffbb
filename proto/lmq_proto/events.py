"""Durable events: something that happened, with its number in the broker's one stream."""

from enum import StrEnum

import msgspec

from lmq_proto.errors import Field


class Kind(StrEnum):
    """What happened. The table in PROTOCOL.md says which `detail` each carries."""

    ACCEPTED = "accepted"
    READY = "ready"
    STARTED = "started"
    ATTEMPT_FAILED = "attempt_failed"
    RELEASED = "released"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    RETRIED = "retried"
    UPDATED = "updated"
    DELETED = "deleted"
    QUEUE_HELD = "queue_held"
    QUEUE_RESUMED = "queue_resumed"
    WORKER_UP = "worker_up"
    WORKER_DOWN = "worker_down"
    WORKER_HELD = "worker_held"
    WORKER_RESUMED = "worker_resumed"
    MODEL_LOADED = "model_loaded"
    MODEL_UNLOADED = "model_unloaded"
    LOAD_FAILED = "load_failed"
    MODEL_ORDERED = "model_ordered"
    ORDER_ENDED = "order_ended"
    FOREIGN_USE = "foreign_use"
    SWAPS_COSTLY = "swaps_costly"
    ALIAS_SET = "alias_set"
    DEFAULT_SET = "default_set"
    BREAKER_OPEN = "breaker_open"
    BREAKER_CLOSED = "breaker_closed"
    USER_SET = "user_set"
    USER_RESET = "user_reset"
    LIMIT_SET = "limit_set"
    LIMIT_RESET = "limit_reset"
    ALERT_RAISED = "alert_raised"
    ALERT_CLEARED = "alert_cleared"
    BROKER_STARTED = "broker_started"
    BROKER_STOPPED = "broker_stopped"


class Event(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, gc=False):
    """One thing that happened. Fields of a job are set for events of a job only."""

    seq: int
    at_ms: int
    kind: str
    job_id: bytes = b""
    user: str = ""
    queue: str = ""
    task_type: str = ""
    state: str = ""
    """The job's state after it."""
    attempt: int = 0
    worker: str = ""
    model: str = ""
    labels: dict[str, str] = {}
    detail: dict[str, Field] = {}
