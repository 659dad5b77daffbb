"""Who takes part in the demo, and what they submit: three users with different needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lmq import drafts

if TYPE_CHECKING:
    from lmq import Client, Draft, Job, Json
    from lmq.cli.endpoint import Endpoint

MAX_TOKENS = 48

_QUESTIONS = (
    "Why is the sky blue?",
    "What does a queue do, in one sentence?",
    "Name three rivers in Europe.",
    "How does a bicycle stay upright?",
    "What is the smallest prime number?",
    "Why do cats purr?",
)
_SUMMARIES = (
    "Summarise: the broker keeps each job on disk before it says so.",
    "Summarise: a worker holds a lease while it works, and reports the result.",
    "Summarise: users share the model server by weight, so nobody starves.",
    "Summarise: a late report of a lost attempt is refused.",
    "Summarise: leaving is not cancelling, answers can be fetched tomorrow.",
    "Summarise: every limit has a name, and full is said at once.",
    "Summarise: embeddings merge into one call where they can.",
    "Summarise: the events of a job come in order, each of them once.",
)
_SENTENCES = tuple(
    f"Sentence {number} of a long document that wants to be found again." for number in range(96)
)


@dataclass(slots=True)
class User:
    """One user, and the jobs submitted."""

    name: str
    wish: str
    jobs: list[Job[object]] = field(default_factory=list)
    asked: str = ""
    """What the last job asks."""


def submit_all(client: Client, endpoint: Endpoint, *, share: float) -> list[User]:
    """Submit what the three want and return them, the last job of the first user being the one to read along.

    Args:
        client: for all three, on whose behalf it submits.
        endpoint: what is loaded there.
        share: of the jobs, 0..1; a real model may be slow.
    """
    model = endpoint.llms[0]
    anna = User("anna", "asks and waits (priority 8)")
    ben = User("ben", "summaries and embeddings (5)")
    cleo = User("cleo", "a long document to embed (2)")
    # The bulk comes first: whoever comes later with something urgent must not wait for all of it.
    if endpoint.embedders:
        embedder = endpoint.embedders[0]
        bulk = [
            drafts.draft(
                "bulk_embed", {"input": list(part), "options": {}}, model=embedder, priority="background"
            )
            for part in _parts(_SENTENCES, 16)
        ]
        cleo.jobs = client.as_user("cleo").submit_many(bulk[: _some(len(bulk), share)])
    else:
        cleo.wish = "notes, when there is time (2)"
        notes = [_chat(text, model, "background") for text in _SUMMARIES]
        cleo.jobs = client.as_user("cleo").submit_many(notes[: _some(len(notes), share)])
    middle = [_chat(text, model, "normal") for text in _SUMMARIES][: _some(len(_SUMMARIES), share)]
    if endpoint.embedders:
        pair: Json = {"input": ["a blue sky", "a red rose"], "options": {}}
        middle += [drafts.draft("embed", pair, model=endpoint.embedders[0]) for _ in range(2)]
    ben.jobs = client.as_user("ben").submit_many(middle)
    questions = _QUESTIONS[: _some(len(_QUESTIONS), share)]
    anna.jobs = client.as_user("anna").submit_many([_chat(text, model, "interactive") for text in questions])
    anna.asked = questions[-1]
    return [anna, ben, cleo]


def _chat(text: str, model: str, priority: str) -> Draft:
    return drafts.chat_draft(text, model=model, priority=priority, max_tokens=MAX_TOKENS)


def _some(number: int, share: float) -> int:
    return max(1, round(number * share))


def _parts(texts: Sequence[str], size: int) -> list[Sequence[str]]:
    return [texts[start : start + size] for start in range(0, len(texts), size)]
