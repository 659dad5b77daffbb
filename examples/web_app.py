"""A web application in front of the queue: one client for its whole life, an id at once, the answer when it is there.

pip install fastapi uvicorn
uvicorn web_app:app                                            (beside `lmq up`)
curl -d '{"text": "Why is the sky blue?"}' -H 'content-type: application/json' localhost:8000/questions
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

import lmq

q = lmq.AsyncClient()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with q:
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    """What somebody wants to know."""

    text: str


@app.post("/questions", status_code=202)
async def ask(question: Question) -> dict[str, str]:
    """Queue a question; a full queue answers 429 with when to come back."""
    try:
        job = await q.chat(question.text, priority=8)
    except lmq.LimitReached as error:
        raise HTTPException(
            429, str(error), {"Retry-After": str(int(error.retry_after_s or 10) + 1)}
        ) from error
    return {"id": job.id}


@app.get("/questions/{job_id}")
async def look(job_id: str) -> dict[str, str | int | None]:
    """Say where a question stands."""
    try:
        status = await q.job(job_id).status()
    except lmq.NotFound as error:
        raise HTTPException(404, str(error)) from error
    return {"state": status.state, "ahead": status.ahead}


@app.get("/questions/{job_id}/answer")
async def answer(job_id: str) -> StreamingResponse:
    """Stream the answer from its beginning, whenever one comes."""
    return StreamingResponse(q.job(job_id).stream(), media_type="text/plain")
