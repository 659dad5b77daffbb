"""The task types of engine work: how a payload becomes requests, and answers a result. A new one is a line in TASKS."""

from lmq_worker.tasks.base import Task
from lmq_worker.tasks.chat import ChatTask
from lmq_worker.tasks.complete import CompleteTask
from lmq_worker.tasks.embed import BulkEmbedTask, EmbedTask

TASKS: dict[str, Task] = {
    "chat": ChatTask(),
    "complete": CompleteTask(),
    "embed": EmbedTask(),
    "bulk_embed": BulkEmbedTask(),
}

STREAMED = frozenset({"chat", "complete"})
"""Task types whose text comes piece by piece."""
