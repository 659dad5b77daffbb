"""The backends, by name. A new one is a file here and a line in BACKENDS."""

from collections.abc import Callable

from lmq_worker.backends.base import Backend
from lmq_worker.backends.echo import EchoBackend
from lmq_worker.config import WorkerConfig

BACKENDS: dict[str, Callable[[WorkerConfig], Backend]] = {
    "echo": EchoBackend,
}
