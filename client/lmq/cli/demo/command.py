"""The story of the demo: start, submit, kill the broker half way, start it again, count."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, cast

import click

from lmq import Client, Event, Job, JobStatus, Piece, Restart
from lmq.cli import session as cli
from lmq.cli.demo.cast import submit_all
from lmq.cli.demo.score import Score
from lmq.cli.demo.screen import Scene, Screen, screen_for, summary_table, wrapped
from lmq.cli.demo.stage import Stage
from lmq.cli.errors import Failure, Status
from lmq.cli.feeds import Feeds
from lmq.cli.humane import count, duration
from lmq.errors import LmqError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lmq.cli.session import Session

EXAMPLE = """
lmq demo
lmq demo --simulator
"""
HURRY_AFTER_S = 42.0
"""What has not started by then is cancelled, so that a slow model, too, leaves room under a minute."""
GIVE_UP_AFTER_S = 56.0
SHARE_OF_REAL = 0.5
"""Of the jobs, on a real LM Studio: its model may be slow."""
MIDDLE_CHARS = 60
LATEST_RATIO = 0.75
LOOK_EVERY_S = 0.5
LOOK_UP_S = 0.1


@cli.command("demo", example=EXAMPLE)
@click.option("--simulator", is_flag=True, help="Simulate LM Studio even if a real one answers.")
@cli.pass_session
def command(session: Session, simulator: bool) -> None:
    """See it all at work: three users, one model server, a broker that is killed half way; under a minute.

    It uses LM Studio at localhost:1234 if one answers with a model loaded (and neither loads nor unloads), else a
    simulated one. All it starts is its own, and gone afterwards.
    """
    try:
        _tell_story(session, simulator=simulator)
    except KeyboardInterrupt:
        raise Failure("stopped; nothing of the demo is left running", Status.INTERRUPTED) from None


def _tell_story(session: Session, *, simulator: bool) -> None:
    scene = Scene(Score())
    with Stage() as stage:
        with screen_for(scene) as screen:
            _set_up(stage, screen, simulator=simulator)
            # One connection that speaks for three users, as a web application would.
            with Client(stage.broker_url, user="demo", timeout_s=20.0) as client:
                _play(stage, screen, scene, client)
                faults = _audit(scene, client)
        _sum_up(session, stage, scene, faults)


def _set_up(stage: Stage, screen: Screen, *, simulator: bool) -> None:
    screen.tell("starting a broker and a worker of their own, in a folder of their own")
    stage.find_model_server(simulate=simulator)
    if stage.is_simulated:
        screen.tell("no LM Studio with a loaded model at localhost:1234: simulating one")
    else:
        screen.tell(f"LM Studio at {stage.endpoint.url}, model {stage.endpoint.llms[0]}")
    stage.start_broker()
    stage.start_worker()
    screen.tell(f"broker (process {stage.broker_pid}) at {stage.broker_url}, worker {stage.worker_name}")


def _play(stage: Stage, screen: Screen, scene: Scene, client: Client) -> None:
    feeds = Feeds()
    over = threading.Event()
    feeds.add("events", client.events(since=0))
    scene.users = submit_all(client, stage.endpoint, share=1.0 if stage.is_simulated else SHARE_OF_REAL)
    total = sum(len(user.jobs) for user in scene.users)
    screen.tell(f"{total} jobs from 3 users are on the broker's disk")
    read_along = scene.users[0].jobs[-1]
    scene.asked = f"anna asks: {scene.users[0].asked}"
    feeds.add("text", _pieces(read_along))
    feeds.add("open", _open_jobs(client, over))
    try:
        _watch(stage, screen, scene, feeds, total)
    finally:
        over.set()


def _watch(stage: Stage, screen: Screen, scene: Scene, feeds: Feeds, total: int) -> None:
    """Show what happens until all has ended; kill the broker half way."""
    began_s = time.monotonic()
    hurried = False
    while scene.score.ended < total:
        now_s = time.monotonic() - began_s
        item = feeds.get(LOOK_UP_S)
        if item is not None and item.error is not None and item.name != "text":
            raise item.error
        if item is not None:
            _show(screen, scene, item.value)
        scene.headline = f"broker {stage.broker_pid}, {duration(now_s)}"
        screen.draw()
        if not stage.kills and _is_half_way(scene, total):
            _kill_and_return(stage, screen)
        if not hurried and now_s > HURRY_AFTER_S:
            hurried = True
            screen.tell("the model is slow: what has not started is cancelled")
            _hurry(scene)
        if now_s > GIVE_UP_AFTER_S:
            raise Failure(
                f"{total - scene.score.ended} jobs had not ended after {duration(now_s)}", Status.FAILED
            )


def _is_half_way(scene: Scene, total: int) -> bool:
    """Tell whether to kill the broker: half has ended, and best in the middle of the answer that is read along."""
    ended = scene.score.ended
    return ended >= total // 2 and (len(scene.answer) > MIDDLE_CHARS or ended >= total * LATEST_RATIO)


def _show(screen: Screen, scene: Scene, value: object) -> None:
    match value:
        case Event():
            scene.score.take(value)
            screen.event(value)
        case Piece(channel="content"):
            scene.answer += value.text
            screen.text(value.text)
        case Restart():
            scene.answer = ""
        case list():
            scene.open_jobs = cast("list[JobStatus]", value)


def _kill_and_return(stage: Stage, screen: Screen) -> None:
    pid = stage.broker_pid
    stage.kill_broker()
    screen.tell(f"half way: kill -9 {pid}: the broker is dead")
    screen.draw()
    began_s = time.monotonic()
    stage.start_broker()
    took = duration(time.monotonic() - began_s)
    screen.tell(f"started again after {took} as process {stage.broker_pid}; what was accepted is still there")


def _hurry(scene: Scene) -> None:
    for user in scene.users:
        for job in user.jobs:
            record = scene.score.jobs.get(job.id)
            if record is not None and record.state == "ready":
                try:
                    job.cancel()
                except LmqError:
                    # It has just started, or ended: then it needs no hurrying.
                    continue


def _pieces(job: Job[object]) -> Iterator[Piece | Restart]:
    yield from job.pieces(restart="continue")


def _open_jobs(client: Client, over: threading.Event) -> Iterator[list[JobStatus]]:
    """Give the open jobs twice a second: what runs first, then what comes next."""
    while not over.wait(LOOK_EVERY_S):
        try:
            found = client.jobs(states=["leased", "ready", "delayed"], limit=100)
        except LmqError:
            continue
        yield sorted(found, key=lambda job: (job.state != "leased", job.ahead or 0, job.number))


def _audit(scene: Scene, client: Client) -> list[str]:
    """Return what was not as promised: a job without its answer, or with two, or an event that came twice."""
    faults = []
    for user in scene.users:
        for job in user.jobs:
            record = scene.score.jobs[job.id]
            if record.state == "cancelled":
                continue
            if record.answers != 1:
                faults.append(f"{job.id} was answered {record.answers} times")
            elif job.result(timeout_s=10) is None:
                faults.append(f"{job.id} has no result")
    if scene.score.gaps:
        faults.append(f"{count(scene.score.gaps, 'event')} came twice or out of order")
    stale = client.health().stale_results
    if stale:
        scene.news.append(f"{count(stale, 'late result')} of lost attempts refused")
    return faults


def _sum_up(session: Session, stage: Stage, scene: Scene, faults: list[str]) -> None:
    jobs = list(scene.score.jobs.values())
    answered = sum(job.answers == 1 for job in jobs)
    cancelled = sum(job.state == "cancelled" for job in jobs)
    again = sum(job.attempts > 1 for job in jobs)
    if session.json:
        session.emit(
            {"jobs": len(jobs), "answered_once": answered, "cancelled": cancelled, "broker_kills": stage.kills,
             "simulated": stage.is_simulated, "faults": faults,
             "waited_s": {user.name: [job.waited_s for job in scene.score.of(user.name)] for user in scene.users}}
        )  # fmt: skip
    else:
        if scene.answer:
            click.echo(f"\n{scene.asked}\n{wrapped(scene.answer)}")
        session.lines(["", *summary_table(scene), ""])
        given_up = f", {cancelled} cancelled" if cancelled else ""
        click.echo(f"{answered} of {len(jobs)} jobs answered, each exactly once{given_up}.")
        events = f"{count(scene.score.events, 'event')}, none doubled or out of order"
        click.echo(f"The broker was killed {_times(stage.kills)}; {count(again, 'job')} ran again; {events}.")
        source = "on a simulated LM Studio" if stage.is_simulated else f"at {stage.endpoint.url}"
        click.echo(f"All of it {source}. With yours, type: lmq up")
    if faults:
        raise Failure("; ".join(faults), Status.FAILED)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
