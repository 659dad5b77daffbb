"""The lm_studio backend and the names of what it loads, against scripted answers of the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from lmq_worker.backends.lm_studio import LmStudioBackend
from lmq_worker.config import WorkerConfig
from lmq_worker.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Server:
    """A model with two variants, of which the list names one, whichever is loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.asked: list[str] = []
        self.hold: asyncio.Event | None = None
        """An answer waits for it, and tells of the time before."""

    async def get(self, path: str) -> dict[str, Any]:
        answer = {
            "models": [
                {
                    "key": "q/m", "type": "llm", "variants": ["q/m@q4", "q/m@q8"], "selected_variant": "q/m@q4",
                    "loaded_instances": [{"id": name, "config": {"parallel": 4}} for name in self.loaded],
                }
            ]
        }  # fmt: skip
        if self.hold is not None:
            await self.hold.wait()
        return answer

    async def post(self, path: str, body: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        if path.endswith("/unload"):
            self.loaded.remove(body["instance_id"])
            return {}
        self.asked.append(body["model"])
        self.loaded.append("q/m" if "q/m" not in self.loaded else f"q/m:{len(self.loaded) + 1}")
        return {"instance_id": self.loaded[-1], "status": "loaded"}


def a_backend(tmp_path: Path) -> Iterator[tuple[LmStudioBackend, Server]]:
    spool = Spool(tmp_path, limit_bytes=1000)
    backend = LmStudioBackend(WorkerConfig(name="w1", endpoint="http://127.0.0.1:1"), spool)
    server = Server()
    backend.endpoint = server  # type: ignore[assignment]  # all it is asked here
    try:
        yield backend, server
    finally:
        spool.close()


def told(tmp_path: Path, story: Any) -> None:
    for backend, server in a_backend(tmp_path):
        asyncio.run(story(backend, server))


def test_an_instance_answers_to_the_variant_it_was_loaded_by(tmp_path: Path) -> None:
    async def story(backend: LmStudioBackend, server: Server) -> None:
        await backend.look()
        assert await backend.load("q/m@q8", 0) is None
        (loaded,) = (await backend.look()).instances
        assert (loaded.instance_id, loaded.variants, loaded.ours) == ("q/m", ["q/m@q4", "q/m@q8"], True)
        assert await backend.load("q/m@q8", 0) is None
        assert server.asked == ["q/m@q8"], "it is loaded already"

    told(tmp_path, story)


def test_a_name_is_forgotten_with_its_instance(tmp_path: Path) -> None:
    async def story(backend: LmStudioBackend, server: Server) -> None:
        await backend.look()
        await backend.load("q/m@q8", 0)
        server.loaded.clear()
        await backend.look()
        server.loaded.append("q/m")
        (loaded,) = (await backend.look()).instances
        assert (loaded.variants, loaded.ours) == (["q/m@q4"], False), "somebody else loaded it"

    told(tmp_path, story)


def test_an_answer_from_before_a_load_takes_nothing_from_it(tmp_path: Path) -> None:
    async def story(backend: LmStudioBackend, server: Server) -> None:
        await backend.look()
        server.hold = asyncio.Event()
        early = asyncio.create_task(backend.look())
        await asyncio.sleep(0)
        hold, server.hold = server.hold, None
        assert await backend.load("q/m@q8", 0) is None, "a look is no reason to refuse a load"
        hold.set()
        assert (await early).instances == []
        (loaded,) = (await backend.look()).instances
        assert (loaded.ours, "q/m@q8" in loaded.variants) == (True, True)

    told(tmp_path, story)
