"""The client in a web application: one for its whole life, used by all requests, through a restart of the broker."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    import pytest
    from fastapi import FastAPI

    from integration.client.fake_broker import FakeBroker

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "web_app.py"


def the_app(url: str, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """Import the example as `uvicorn` would, with this broker in the environment."""
    monkeypatch.setenv("LMQ_URL", url)
    spec = importlib.util.spec_from_file_location("web_app", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "web_app", module)
    spec.loader.exec_module(module)
    app: FastAPI = module.app
    return app


def test_requests_share_one_client_for_the_life_of_the_application(
    broker: FakeBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = the_app(broker.url, monkeypatch)

    async def story() -> None:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as web,
        ):
            asked = await asyncio.gather(
                *(web.post("/questions", json={"text": f"no. {n}"}) for n in range(20))
            )
            assert {each.status_code for each in asked} == {202}
            ids = [each.json()["id"] for each in asked]
            assert len(set(ids)) == len(ids)
            answers = await asyncio.gather(*(web.get(f"/questions/{job_id}/answer") for job_id in ids))
            assert {each.text for each in answers} == {"Hello, world"}
            assert (await web.get(f"/questions/{ids[0]}")).json()["state"] == "done"
            assert (await web.get(f"/questions/{'0' * 26}")).status_code == 404
            broker.restart()
            again = await web.post("/questions", json={"text": "still there?"})
            assert again.status_code == 202

    asyncio.run(story())
