"""The backends, by name. A new one is a file here and a line in BACKENDS."""

from collections.abc import Callable
from dataclasses import replace

from lmq_proto.errors import LmqError
from lmq_worker.backends.base import Backend
from lmq_worker.backends.echo import EchoBackend
from lmq_worker.backends.http import Endpoint
from lmq_worker.backends.lm_studio import LmStudioBackend, greets
from lmq_worker.backends.openai import OpenAIBackend
from lmq_worker.config import DEFAULT_ENDPOINTS, WorkerConfig, base_url
from lmq_worker.failures import Unreachable
from lmq_worker.spool import Spool

BACKENDS: dict[str, Callable[[WorkerConfig, Spool], Backend]] = {
    "lm_studio": LmStudioBackend,
    "openai": OpenAIBackend,
    "echo": EchoBackend,
}

# Where a model server is looked for when nothing is said: LM Studio, llama.cpp, Ollama.
USUAL_ENDPOINTS = (*DEFAULT_ENDPOINTS.values(), "http://127.0.0.1:11434")


class NoEndpoint(LmqError):
    """No model server answers where one was looked for."""

    code = "no_endpoint"
    retryable = True

    def __init__(self, looked_at: list[str], why: str = "") -> None:
        """Say where was looked; `why` is what happened at the only endpoint there is, the one that was named."""
        advice = (
            f"{why}; start it (LM Studio: lms server start), or wait for it: --backend openai or lm_studio"
            if why
            else "start one (LM Studio: lms server start), or name it: --endpoint URL --backend lm_studio"
        )
        super().__init__(f"no model server at {', '.join(looked_at)}; {advice}", looked_at=looked_at)
        self.looked_at = looked_at


async def detected(config: WorkerConfig) -> WorkerConfig:
    """Return settings with `backend` and `endpoint` set to what answers.

    Raises:
        NoEndpoint: nothing does.
    """
    candidates = [config.endpoint] if config.endpoint else list(USUAL_ENDPOINTS)
    why = ""
    for url in candidates:
        # LM Studio greets beside /v1, which a URL copied from an OpenAI client ends with.
        endpoint = Endpoint(replace(config, endpoint=base_url(url)))
        try:
            backend = "lm_studio" if await greets(endpoint) else "openai"
        except Unreachable as failure:
            why = failure.message
            continue
        finally:
            await endpoint.close()
        return replace(config, endpoint=url, backend=backend)
    raise NoEndpoint(candidates, why if config.endpoint else "")
