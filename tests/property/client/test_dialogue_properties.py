"""Whatever is lost, repeated or cut off in between, each call is answered once and each stream has no hole."""

from __future__ import annotations

from collections import Counter
from random import Random
from unittest.mock import patch

from hypothesis import given, settings, strategies as st

from lmq import _streams
from lmq._dialogue import Dialogue
from lmq._instructions import Connect, Fail, Instruction, Push, Resolve, Send
from lmq._streams import EventsPush, TextPush
from lmq._submits import SUBMIT_BYTES
from lmq_proto import messages
from lmq_proto.codec import encode
from lmq_proto.errors import LimitReached
from property.client.model_broker import ModelBroker, to_client

STEP_MS = 500


class World:
    """A dialogue, a model broker, and a clock that the test turns."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000
        self.broker = ModelBroker()
        self.dialogue = Dialogue(["tcp://a", "tcp://b"], b"i" * 16, "anna")
        self.connecting = False
        self.is_connected = False
        self.answers: Counter[object] = Counter()
        self.values: dict[object, object] = {}
        self.errors: dict[object, object] = {}
        self.texts: dict[bytes, list[tuple[int, str]]] = {}
        self.finals: Counter[bytes] = Counter()
        self.events: list[int] = []
        self.asked: set[object] = set()
        self.refused: set[object] = set()
        self.job_ids: list[bytes] = []
        self.carry_out(self.dialogue.start(self.now_ms))

    def carry_out(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send(message, body):
                    assert self.is_connected, "sent without a connection"
                    self.broker.to_broker.append(encode(message, body))
                case Connect():
                    self.broker.cut_off()
                    self.is_connected = False
                    self.connecting = True
                case Resolve(token, value):
                    self.answers[token] += 1
                    self.values[token] = value
                case Fail(token, error):
                    self.answers[token] += 1
                    self.errors[token] = error
                case Push(("text", bytes(job_id)), item):
                    assert isinstance(item, TextPush)
                    self.read_text(job_id, item)
                case Push(_, item):
                    assert isinstance(item, EventsPush)
                    self.events += [event.seq for event in item.events]
                    self.dialogue.events_taken("events", len(item.events))

    def read_text(self, job_id: bytes, push: TextPush) -> None:
        shown = self.texts.setdefault(job_id, [])
        if push.restart:
            shown.clear()
        if push.pieces:
            assert push.first == len(shown) + 1
        shown += [(push.attempt, piece.text) for piece in push.pieces]
        self.finals[job_id] += push.final
        self.dialogue.text_taken(("text", job_id), job_id, push.cost)

    # --- what may happen ------------------------------------------------------------------------------------------

    def submit(self, kind: str) -> None:
        number = len(self.asked)
        job_id = number.to_bytes(16, "big")
        spec = messages.JobSpec(id=job_id, task_type=kind, payload_bytes=3)
        token, follow = ("submit", job_id), ("end", job_id)
        self.asked.add(token)
        if kind == "refuse":
            self.refused.add(token)
        else:
            self.asked.add(follow)
            self.job_ids.append(job_id)
        self.dialogue.begin_submit(token, spec, b"abc", "", follow)

    def command(self) -> None:
        token = ("command", len(self.asked))
        self.asked.add(token)
        self.dialogue.begin(token, messages.Resume(request_id=0, noun="queue", name="default"))

    def follow_text(self) -> None:
        known = [job_id for job_id in self.job_ids if job_id in self.broker.jobs and job_id not in self.texts]
        if known:
            self.texts[known[0]] = []
            self.dialogue.begin_text(("text", known[0]), known[0])

    def late_follow(self) -> None:
        if self.broker.jobs:
            job_id = next(iter(self.broker.jobs))
            token = ("late", len(self.asked))
            self.asked.add(token)
            self.dialogue.begin_follow([(token, job_id)])

    def disconnect(self) -> None:
        if self.is_connected:
            self.broker.cut_off()
            self.is_connected = False
            self.connecting = True
            self.carry_out(self.dialogue.disconnected(self.now_ms))

    def connect(self) -> None:
        if self.connecting:
            self.connecting = False
            self.is_connected = True
            self.carry_out(self.dialogue.connected(self.now_ms))

    def deliver(self, repeat: bool = False) -> None:
        if self.broker.to_client and self.is_connected:
            frames = self.broker.to_client[0] if repeat else self.broker.to_client.popleft()
            message, body = to_client(frames)
            if repeat and isinstance(message, messages.Finished):
                return  # its credit is counted once
            self.carry_out(self.dialogue.received(message, body, self.now_ms))

    def tick(self) -> None:
        self.now_ms += STEP_MS
        instructions = self.dialogue.tick(self.now_ms)
        if not self.is_connected:
            instructions = [one for one in instructions if not isinstance(one, Send)]
        self.carry_out(instructions)

    def act(self, name: str, pick: int) -> None:
        jobs = list(self.broker.jobs)
        match name:
            case "submit":
                self.submit("echo")
            case "refuse":
                self.submit("refuse")
            case "command":
                self.command()
            case "text":
                self.follow_text()
            case "late":
                self.late_follow()
            case "disconnect":
                self.disconnect()
            case "connect":
                self.connect()
            case "forget":
                self.broker.forget()
            case "hear":
                self.broker.hear()
            case "push":
                self.broker.push()
            case "deliver":
                self.deliver()
            case "repeat":
                self.deliver(repeat=True)
            case "tick":
                self.tick()
            case "happen":
                self.broker.happen("queue_held")
            case "write" if jobs:
                self.broker.write(jobs[pick % len(jobs)], f"t{pick}" * (pick % 5))
            case "attempt" if jobs:
                self.broker.begin_attempt(jobs[pick % len(jobs)])
            case "finish" if jobs:
                self.broker.finish(jobs[pick % len(jobs)])

    def settle(self) -> None:
        """Let everything work until all is answered, or too much time went by."""
        for _ in range(200):
            for job_id in list(self.broker.jobs):
                self.broker.finish(job_id)
            self.connect()
            self.tick()
            while self.broker.hear():
                pass
            self.broker.push()
            while self.broker.to_client and self.is_connected:
                self.deliver()
            if self.is_settled():
                return

    def is_settled(self) -> bool:
        return (
            self.asked <= set(self.answers)
            and len(self.events) >= len(self.broker.events)
            and all(self.finals[job_id] for job_id in self.texts)
            and not self.broker.to_broker
        )


ACTS = {
    "submit": 6, "hear": 12, "push": 10, "deliver": 20, "repeat": 3, "tick": 8, "connect": 6, "write": 8, "finish": 4,
    "happen": 3, "refuse": 1, "command": 2, "text": 3, "late": 2, "disconnect": 1, "forget": 1, "attempt": 1,
}  # fmt: skip
"""What may happen next, and how often beside the others."""


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(200, 800))
def test_each_call_is_answered_once_and_each_stream_is_whole(seed: int, steps: int) -> None:
    chance = Random(seed)
    # Windows so small that every run needs credit.
    with patch.object(_streams, "EVENTS_WINDOW", 6), patch.object(_streams, "TEXT_WINDOW", 12):
        walk(chance.choices(list(ACTS), list(ACTS.values()), k=steps), chance)


def walk(acts: list[str], chance: Random) -> None:
    world = World()
    world.dialogue.begin_events("events", messages.EventFilter(), 0)
    for name in acts:
        world.act(name, chance.randrange(100))
    world.settle()

    assert {token: count for token, count in world.answers.items() if count != 1} == {}
    # The end of a job that was refused is nobody's to tell: its submit said so.
    assert world.asked == set(world.answers)
    for token in world.asked:
        if token in world.refused:
            value = world.values[token]
            assert isinstance(value, messages.Outcome)
            assert value.outcome == "refused"
            assert value.error is not None
            assert value.error.code == LimitReached.code
        else:
            assert token not in world.errors
    for job_id in world.job_ids:
        end = world.values["end", job_id]
        assert isinstance(end, tuple)
        assert end[1] == b"result of " + job_id
    assert world.events == list(range(1, len(world.broker.events) + 1))
    for job_id, shown in world.texts.items():
        job = world.broker.jobs[job_id]
        assert [text for _, text in shown] == job.pieces
        assert {attempt for attempt, _ in shown} <= {job.attempt}
        assert world.finals[job_id] == 1
    assert world.dialogue.is_pending  # the subscription
    world.dialogue.end_events("events")
    assert not world.dialogue.is_pending


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=8), st.integers(1, 200_000))
def test_many_submits_share_messages_within_the_bounds(bursts: list[int], payload_bytes: int) -> None:
    broker = ModelBroker()
    dialogue = Dialogue(["tcp://a"], b"i" * 16, "anna")
    dialogue.start(0)
    todo = dialogue.connected(0)
    payload = bytes(payload_bytes)
    count = messages_sent = resolved = 0
    while bursts or todo:
        if bursts:
            for _ in range(bursts.pop()):
                count += 1
                spec = messages.JobSpec(
                    id=count.to_bytes(16, "big"), task_type="echo", payload_bytes=payload_bytes
                )
                dialogue.begin_submit(count, spec, payload)
        for instruction in todo:
            match instruction:
                case Send(messages.Submit() as submit, body):
                    messages_sent += 1
                    assert len(submit.jobs) <= 1000
                    assert len(body) <= max(SUBMIT_BYTES, payload_bytes)
                    broker.to_broker.append(encode(submit, body))
                case Send(message, body):
                    broker.to_broker.append(encode(message, body))
                case Resolve():
                    resolved += 1
        todo = []
        while broker.hear():
            pass
        while broker.to_client:
            todo += dialogue.received(*to_client(broker.to_client.popleft()), 0)
        todo += dialogue.tick(0)
    assert resolved == count == len(broker.jobs)
    assert messages_sent <= 8 + 2 * (count // 1000 + count * payload_bytes // SUBMIT_BYTES)
