"""Which path leads where: the table of everything this server answers."""

from __future__ import annotations

from lmq_simulator import control_api, native_api, openai_api, responses_api
from lmq_simulator.server import Handler

ROUTES: dict[tuple[str, str], Handler] = {
    ("GET", "/lmstudio-greeting"): openai_api.greeting,
    # OpenAI-compatible.
    ("GET", "/v1/models"): openai_api.models,
    ("POST", "/v1/chat/completions"): openai_api.chat,
    ("POST", "/v1/completions"): openai_api.completions,
    ("POST", "/v1/embeddings"): openai_api.embeddings,
    ("POST", "/v1/responses"): responses_api.responses,
    # Native, version 0.
    ("GET", "/api/v0/models"): openai_api.v0_models,
    ("POST", "/api/v0/chat/completions"): openai_api.chat,
    ("POST", "/api/v0/completions"): openai_api.completions,
    ("POST", "/api/v0/embeddings"): openai_api.embeddings,
    # Native, version 1.
    ("GET", "/api/v1/models"): native_api.models,
    ("POST", "/api/v1/models/load"): native_api.load,
    ("POST", "/api/v1/models/unload"): native_api.unload,
    ("POST", "/api/v1/models/download"): native_api.download,
    ("POST", "/api/v1/chat"): native_api.chat,
    # No part of LM Studio.
    ("GET", "/simulator/state"): control_api.state,
    ("GET", "/simulator/requests"): control_api.requests,
    ("GET", "/simulator/faults"): control_api.faults,
    ("POST", "/simulator/knobs"): control_api.knobs,
    ("POST", "/simulator/zero-latency"): control_api.zero_latency,
    ("POST", "/simulator/crash"): control_api.crash,
    ("POST", "/simulator/inject"): control_api.inject,
    ("POST", "/simulator/reset"): control_api.reset,
}

# Routes whose last part is a name.
PREFIXES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/api/v0/models/", openai_api.v0_model),
    ("GET", "/api/v1/models/download/status/", native_api.download_status),
)
