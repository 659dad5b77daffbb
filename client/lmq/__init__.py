"""The Python SDK of lmq: submit jobs to a fair, durable queue for local LLM servers, and read what becomes of them.

    import lmq

    with lmq.Client() as q:
        job = q.chat("Why is the sky blue?", model="fast")
        for piece in job.stream():
            print(piece, end="")
        print(job.result().usage)

`AsyncClient` has the same names with `await`. The public names are those in `__all__`; modules whose name begins with
an underscore are nobody else's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmq._version import __version__

if TYPE_CHECKING:
    from lmq import errors
    from lmq._async import AsyncClient
    from lmq._async_job import AsyncEmbedJob, AsyncEventStream, AsyncJob, AsyncPipeline
    from lmq._payloads import ChatOptions, Draft, JobMatch, JobOptions, UpdateOptions
    from lmq._sync import Client
    from lmq._sync_job import EmbedJob, EventStream, Job, Pipeline
    from lmq.drafts import chat_draft, complete_draft, draft, embed_drafts
    from lmq.errors import (
        AttemptMoved,
        BackupFailed,
        BadConfig,
        BadField,
        BadPayload,
        ClientClosed,
        CursorExpired,
        DiskFull,
        IdempotencyConflict,
        JobCancelled,
        JobDead,
        JobExpired,
        JobNotDone,
        LimitReached,
        LmqError,
        MayNotLoad,
        NeverFits,
        NoRoom,
        NotAllowed,
        NotFound,
        NotReachable,
        ParentEnded,
        PartlyRefused,
        ProtocolError,
        QueueDraining,
        Stopping,
        StreamRestarted,
        TooLarge,
        UnknownModel,
        UpgradeRequired,
        WaitTimeout,
        WrongKind,
        WrongState,
    )
    from lmq.results import (
        Alias,
        Allowance,
        BandView,
        ChatResult,
        DefaultModel,
        EmbedResult,
        ErrorInfo,
        Event,
        HealthReply,
        Hold,
        InstanceInfo,
        JobStatus,
        Json,
        Limit,
        LimitView,
        ModelView,
        Order,
        Outcome,
        Piece,
        Progress,
        QueueSize,
        QueueView,
        Reason,
        Restart,
        Tick,
        Usage,
        UsageReply,
        UsageRow,
        Users,
        UserView,
        Why,
        WorkerState,
        WorkerView,
    )
    from lmq_proto.events import Kind
    from lmq_proto.states import FINAL, OPEN, Phase, State

__all__ = [
    "FINAL",
    "OPEN",
    "Alias",
    "Allowance",
    "AsyncClient",
    "AsyncEmbedJob",
    "AsyncEventStream",
    "AsyncJob",
    "AsyncPipeline",
    "AttemptMoved",
    "BackupFailed",
    "BadConfig",
    "BadField",
    "BadPayload",
    "BandView",
    "ChatOptions",
    "ChatResult",
    "Client",
    "ClientClosed",
    "CursorExpired",
    "DefaultModel",
    "DiskFull",
    "Draft",
    "EmbedJob",
    "EmbedResult",
    "ErrorInfo",
    "Event",
    "EventStream",
    "HealthReply",
    "Hold",
    "IdempotencyConflict",
    "InstanceInfo",
    "Job",
    "JobCancelled",
    "JobDead",
    "JobExpired",
    "JobMatch",
    "JobNotDone",
    "JobOptions",
    "JobStatus",
    "Json",
    "Kind",
    "Limit",
    "LimitReached",
    "LimitView",
    "LmqError",
    "MayNotLoad",
    "ModelView",
    "NeverFits",
    "NoRoom",
    "NotAllowed",
    "NotFound",
    "NotReachable",
    "Order",
    "Outcome",
    "ParentEnded",
    "PartlyRefused",
    "Phase",
    "Piece",
    "Pipeline",
    "Progress",
    "ProtocolError",
    "QueueDraining",
    "QueueSize",
    "QueueView",
    "Reason",
    "Restart",
    "State",
    "Stopping",
    "StreamRestarted",
    "Tick",
    "TooLarge",
    "UnknownModel",
    "UpdateOptions",
    "UpgradeRequired",
    "Usage",
    "UsageReply",
    "UsageRow",
    "UserView",
    "Users",
    "WaitTimeout",
    "Why",
    "WorkerState",
    "WorkerView",
    "WrongKind",
    "WrongState",
    "__version__",
    "chat_draft",
    "complete_draft",
    "draft",
    "embed_drafts",
    "errors",
]


_WHERE = {
    "lmq._payloads": ("ChatOptions", "Draft", "JobMatch", "JobOptions", "UpdateOptions"),
    "lmq._sync": ("Client",),
    "lmq._sync_job": ("EmbedJob", "EventStream", "Job", "Pipeline"),
    "lmq._async": ("AsyncClient",),
    "lmq._async_job": ("AsyncEmbedJob", "AsyncEventStream", "AsyncJob", "AsyncPipeline"),
    "lmq.drafts": ("chat_draft", "complete_draft", "draft", "embed_drafts"),
    "lmq_proto.events": ("Kind",),
    "lmq_proto.states": ("FINAL", "OPEN", "Phase", "State"),
    "lmq.results": (
        "Alias", "Allowance", "BandView", "ChatResult", "DefaultModel", "EmbedResult", "ErrorInfo", "Event",
        "HealthReply", "Hold", "InstanceInfo", "JobStatus", "Json", "Limit", "LimitView", "ModelView", "Order",
        "Outcome", "Piece", "Progress", "QueueSize", "QueueView", "Reason", "Restart", "Tick", "Usage", "UsageReply",
        "UsageRow", "UserView", "Users", "Why", "WorkerState", "WorkerView",
    ),
}  # fmt: skip
"""Where the names lie that are neither here nor, as all others, in `lmq.errors`."""
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}


if not TYPE_CHECKING:  # or a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        """Import what is named when it is first named: who does not use it does not pay for it.

        The command `lmq` lives on this too: it can take charge of Ctrl-C before anything slow is imported.
        """
        if name not in __all__:
            raise AttributeError(f"module 'lmq' has no attribute {name!r}")
        from importlib import import_module

        module = import_module(_MODULE_OF.get(name, "lmq.errors"))
        found = module if name == "errors" else getattr(module, name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
