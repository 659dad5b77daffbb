"""Views to draw and to press keys on: an office with two workers, three users, and something of everything."""

from __future__ import annotations

from typing import Any

from lmq import BandView, InstanceInfo, JobStatus, ModelView, QueueView, Users, UserView, WorkerView
from lmq.cli.top.draw import draw
from lmq.cli.top.lines import text_of
from lmq.cli.top.model import Key, Message, Model, Seen, Wish, update
from lmq.cli.top.view import View
from lmq_proto.messages import Breaker, Capacity, Hold
from unit.cli.fakes import URL, a_job, health

NOW_MS = 1_000_000_000
RUNNING = "01M811YGTS299ZZFYVR3JRRRR1"
FIRST = "01M811YGTS299ZZFYVR3JWWWW1"
SECOND = "01M811YGTS299ZZFYVR3JWWWW2"
DELAYED = "01M811YGTS299ZZFYVR3JDDDD1"


def a_user(user: str, **fields: Any) -> UserView:
    return UserView(**{"pool": "llm", "band": "normal", "user": user, **fields})


def a_worker(
    name: str, *instances: InstanceInfo, breaker: Breaker | None = None, **fields: Any
) -> WorkerView:
    told = {"endpoint": f"http://{name}:1234", "backend": "lm_studio", "host": name, "state": "up", **fields}
    return WorkerView(name=name, capacity=Capacity(instances=list(instances), breaker=breaker), **told)


def an_instance(model: str, slots: int = 4) -> InstanceInfo:
    return InstanceInfo(instance_id=model, model=model, slots=slots, context_tokens=8192)


def running(job_id: str = RUNNING, **fields: Any) -> JobStatus:
    told = {
        "state": "leased", "phase": "writing", "tokens": 42, "tokens_per_s": 19.0, "worker": "gpu-1",
        "model": "qwen3-8b", "started_at_ms": NOW_MS - 7000, "created_at_ms": NOW_MS - 9000, **fields,
    }  # fmt: skip
    return a_job(job_id, **told)


def waiting(job_id: str = FIRST, **fields: Any) -> JobStatus:
    told = {"state": "ready", "ahead": 0, "created_at_ms": NOW_MS - 60_000, "models": ["qwen3-8b"], **fields}
    return a_job(job_id, **told)


def a_view(**fields: Any) -> View:
    """The office, but for these."""
    bands = [
        BandView(pool="llm", name="interactive", lowest=7, running=0, queued=0),
        BandView(pool="llm", name="normal", lowest=4, share_ratio=0.1, running=1, queued=2, owed_ms=3000),
        BandView(pool="llm", name="background", lowest=0, share_ratio=0.05),
    ]
    users = [
        a_user("anna", weight=2.0, running=1, queued=1, wanted_ratio=2 / 3, received_ratio=0.7),
        a_user("ben", queued=1, wanted_ratio=1 / 3, received_ratio=0.1),
        a_user("cleo", received_ratio=0.2),
    ]
    told: dict[str, Any] = {
        "url": URL,
        "health": health(
            counts={"leased": 1, "ready": 2, "delayed": 1}, ended={"done": 10, "dead": 1}, wall_ms=NOW_MS,
            uptime_ms=3_600_000, journal_bytes=12_000_000, commit_p50_us=1400,
        ),
        "users": Users(request_id=1, policy="blfq", has_shares=True, users=users, bands=bands),
        "queues": [
            QueueView(name="default", ready=2, leased=1, oldest_ready_ms=60_000, workers=["gpu-1"]),
            QueueView(name="night", delayed=1, hold=Hold(kind="pause", by="tom", since_ms=0, reason="gaming")),
        ],
        "workers": [
            a_worker("gpu-1", an_instance("qwen3-8b"), leased=1, instances_leased={"qwen3-8b": 1}),
            a_worker("gpu-2", loading="llama-8b", loading_ms=12_000),
        ],
        "models": [ModelView(model="qwen3-8b", kind="llm", waiting=2)],
        "running": [running()],
        "waiting": [
            waiting(FIRST, user="anna"), waiting(SECOND, user="ben", ahead=1, priority=7, number=2),
            waiting(DELAYED, state="delayed", ahead=None, due_at_ms=0),
        ],
    }  # fmt: skip
    return View(**(told | fields))


def a_model(view: View | None = None, **fields: Any) -> Model:
    """A screen that has seen a view."""
    model, _ = update(Model(**fields), Seen(view or a_view(user=fields.get("user", "")), 100.0))
    return model


def after(model: Model, *messages: Message | str) -> tuple[Model, list[Wish]]:
    """Return a model after messages, keys by their names; and all that was wished for."""
    wishes: list[Wish] = []
    for message in messages:
        model, more = update(model, Key(message) if isinstance(message, str) else message)
        wishes += more
    return model, wishes


def screen(model: Model, width: int = 80, height: int = 24) -> list[str]:
    """Return the screen as text."""
    return [text_of(line) for line in draw(model, width, height)]


def footer(model: Model, width: int = 100) -> str:
    """Return the last line of the screen."""
    return screen(model, width)[-1].strip()
