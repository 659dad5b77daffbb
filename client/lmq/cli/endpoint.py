"""A short look at a model server over HTTP: is it LM Studio, what has it loaded. Loads nothing, changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

LOCAL_URL = "http://127.0.0.1:1234"
"""Where LM Studio serves unless told otherwise."""
TIMEOUT_S = 1.5


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What was found at an address.

    Attributes:
        url: the address.
        kind: `lm_studio`, `openai`, or empty: nothing answers.
        why: why nothing answers.
        llms: chat models that are loaded.
        embedders: embedding models that are loaded.
    """

    url: str
    kind: str = ""
    why: str = ""
    llms: list[str] = field(default_factory=list)
    embedders: list[str] = field(default_factory=list)


def look(url: str) -> Endpoint:
    """Return what is at an address."""
    import httpx

    base = url.rstrip("/").removesuffix("/v1")
    # The proxy of the environment, if any, is for the web, not for this machine or this office.
    with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as http:
        try:
            greeting = _json(http, f"{base}/lmstudio-greeting")
            if isinstance(greeting, dict) and greeting.get("lmstudio"):
                return _loaded(http, base)
            listed = _json(http, f"{base}/v1/models")
        except httpx.ConnectError:
            return Endpoint(base, why="nothing answers")
        except httpx.TimeoutException:
            return Endpoint(base, why=f"no answer within {TIMEOUT_S:g} s")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Endpoint(base, why=str(error) or type(error).__name__)
    if isinstance(listed, dict) and isinstance(listed.get("data"), list):
        names = [str(one.get("id")) for one in listed["data"] if isinstance(one, dict)]
        return Endpoint(base, "openai", llms=names)
    return Endpoint(base, why="something else answers there")


def _loaded(http: httpx.Client, base: str) -> Endpoint:
    """Return LM Studio's loaded models, from its native API: version 1, or the older 0."""
    found: dict[str, list[str]] = {"llm": [], "embedding": []}
    answer = _json(http, f"{base}/api/v1/models")
    for model in _dicts(answer, "models"):
        if model.get("loaded_instances"):
            found.setdefault(str(model.get("type")), []).append(str(model.get("key")))
    if not _dicts(answer, "models"):
        for model in _dicts(_json(http, f"{base}/api/v0/models"), "data"):
            if model.get("state") == "loaded":
                kind = "embedding" if model.get("type") == "embeddings" else "llm"
                found[kind].append(str(model.get("id")))
    return Endpoint(base, "lm_studio", llms=found["llm"], embedders=found["embedding"])


def _json(http: httpx.Client, url: str) -> Any:
    """Return what an address answers, None where that is no JSON: LM Studio answers 200 to anything."""
    try:
        return http.get(url).json()
    except ValueError:
        return None


def _dicts(answer: Any, name: str) -> list[dict[str, Any]]:
    listed = answer.get(name) if isinstance(answer, dict) else None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
