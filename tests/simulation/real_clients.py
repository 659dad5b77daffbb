"""A client's line with the SDK's real `Dialogue` in it; what its I/O thread does is done here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmq._dialogue import Dialogue
from lmq._instructions import Connect, Fail, Instruction, Listen, Push, Resolve, Send
from lmq._streams import EventsPush, TextPush
from lmq_proto.messages import FromPeer, JobEnd, Outcome, Submit, ToPeer
from simulation.people import EventRead, Person, TextRead

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulation.network import Network
    from simulation.world import World

_TICK_MS = 200


class RealLine:
    """The SDK's thinking, driven by virtual time. A token is a tuple that says what for."""

    def __init__(self, world: World, network: Network, person: Person, evil: bool) -> None:
        self.world = world
        self.person = person
        self.evil = evil
        self.dialogue = Dialogue(["tcp://broker"], world.random.randbytes(16), person.name)
        self.answers: dict[int, Callable[[object, bytes], None]] = {}
        self.last_token = 0
        self.texts: dict[int, tuple[bytes, TextRead]] = {}
        self.reads: dict[int, EventRead] = {}
        self.ends: dict[int, bytes] = {}
        self.port = network.open(person.name, self._take)
        self.port.on_up = self._up
        self.port.on_down = self._down
        self._do(self.dialogue.start(world.mono_ms))
        world.after(_TICK_MS, self._beat)

    # --- what its I/O thread does ---

    def _do(self, instructions: list[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Send():
                    if self.port.connected:
                        self.port.send(instruction.message, instruction.body)
                case Connect():
                    if self.port.connected:
                        self.port.reconnect()
                case Listen():
                    pass
                case Resolve():
                    self._resolve(instruction.token, instruction.value)
                case Fail():
                    self._fail(instruction)
                case Push():
                    self._push(instruction)

    def _up(self) -> None:
        self._do(self.dialogue.connected(self.world.mono_ms))

    def _down(self) -> None:
        self._do(self.dialogue.disconnected(self.world.mono_ms))

    def _take(self, message: ToPeer, body: bytes) -> None:
        self._do(self.dialogue.received(message, body, self.world.mono_ms))
        self._tick()

    def _beat(self) -> None:
        self._tick()
        self.world.after(_TICK_MS, self._beat)

    def _tick(self) -> None:
        self._do(self.dialogue.tick(self.world.mono_ms))

    def _token(self) -> int:
        self.last_token += 1
        return self.last_token

    # --- what the person wants ---

    def command(self, message: FromPeer, body: bytes, answered: Callable[[object, bytes], None]) -> None:
        token = self._token()
        self.answers[token] = answered
        self.dialogue.begin(token, message, body)
        self._tick()

    def submit(
        self, message: Submit, payloads: list[bytes], answered: Callable[[list[Outcome] | None], None]
    ) -> None:
        if message.atomic or self.world.chance(0.3):
            self._submit_batch(message, payloads, answered)
            return
        outcomes: dict[bytes, Outcome] = {}

        def reply(job_id: bytes, value: object) -> None:
            if isinstance(value, Outcome):
                if value.outcome == "refused":
                    self._unwant(job_id)
                outcomes[job_id] = value
                if len(outcomes) == len(message.jobs):
                    answered([outcomes[spec.id] for spec in message.jobs])
            else:
                outcome = Outcome(job_id=job_id, outcome="refused")
                reply(job_id, outcome)

        for spec, payload in zip(message.jobs, payloads, strict=True):
            token = self._token()
            self.answers[token] = lambda value, _, job_id=spec.id: reply(job_id, value)  # type: ignore[misc]
            self.dialogue.begin_submit(token, spec, payload, follow=self._end_token(spec.id, message))
        self._tick()

    def _submit_batch(
        self, message: Submit, payloads: list[bytes], answered: Callable[[list[Outcome] | None], None]
    ) -> None:
        def reply(value: object, _: bytes) -> None:
            outcomes = value if isinstance(value, list) else None
            for at, spec in enumerate(message.jobs):
                if outcomes is None or outcomes[at].outcome == "refused":
                    self._unwant(spec.id)
            answered(outcomes)

        token = self._token()
        self.answers[token] = reply
        follows = [self._end_token(spec.id, message) for spec in message.jobs] if message.follow else []
        self.dialogue.begin_batch(
            token, message.jobs, payloads, atomic=message.atomic, follows=[each for each in follows if each]
        )
        self._tick()

    def _unwant(self, job_id: bytes) -> None:
        """Do not wait for the end of a job that was refused."""
        self.ends = {token: each for token, each in self.ends.items() if each != job_id}

    def _end_token(self, job_id: bytes, message: Submit) -> int | None:
        if not message.follow:
            return None
        token = self._token()
        self.ends[token] = job_id
        return token

    def follow(self, job_ids: list[bytes]) -> None:
        under_way = set(self.ends.values())
        follows = []
        for job_id in job_ids:
            if job_id not in under_way:
                token = self._token()
                self.ends[token] = job_id
                follows.append((token, job_id))
        self.dialogue.begin_follow(follows)
        self._tick()

    def read_text(self, job_id: bytes, read: TextRead) -> None:
        token = self._token()
        self.texts[token] = (job_id, read)
        self.dialogue.begin_text(token, job_id)
        self._tick()

    def read_events(self, read: EventRead, cursor: int) -> None:
        token = self._token()
        self.reads[token] = read
        self.dialogue.begin_events(token, read.match, cursor)
        self._tick()

    def leave_ends(self, job_ids: list[bytes]) -> None:
        for token, job_id in list(self.ends.items()):
            if job_id in job_ids:
                del self.ends[token]
                self.dialogue.end_follow(token, job_id)
        self._tick()

    def leave_text(self, job_id: bytes) -> None:
        for token, (each, _) in list(self.texts.items()):
            if each == job_id:
                del self.texts[token]
                self.dialogue.end_text(token, job_id)
        self._tick()

    def leave_events(self, read: EventRead) -> None:
        for token, each in list(self.reads.items()):
            if each is read:
                del self.reads[token]
                self.dialogue.end_events(token)
        self._tick()

    # --- what the dialogue says ---

    def _resolve(self, token: object, value: object) -> None:
        assert isinstance(token, int)
        if token in self.ends:
            job_id = self.ends.pop(token)
            assert isinstance(value, tuple)
            end, result = value
            assert isinstance(end, JobEnd)
            self.person.job_ended(end, result)
            if end.job_id != job_id:
                assert self.person.specs[job_id].key
            return
        answered = self.answers.pop(token, None)
        if answered is None:
            # The end of a job that is followed no more; a key may have made it another job than was submitted.
            return
        if isinstance(value, tuple):
            message, body = value
            answered(message, body)
        else:
            answered(value, b"")

    def _fail(self, failure: Fail) -> None:
        token, error = failure.token, failure.error
        assert isinstance(token, int)
        assert error.code != "protocol_error", error
        if token in self.ends:
            job_id = self.ends.pop(token)
            self.person.job_ended(JobEnd(job_id=job_id, state="deleted"), b"")
        elif token in self.texts:
            _, read = self.texts.pop(token)
            read.final = read.refused = True
        elif token in self.reads:
            self.reads.pop(token).expired = True
        elif token in self.answers:
            self.answers.pop(token)(error.info(), b"")
        # Else it is the end of a job that was refused, and is not waited for any more.

    def _push(self, push: Push) -> None:
        token, item = push.token, push.item
        assert isinstance(token, int)
        if isinstance(item, TextPush):
            job_id, read = self.texts[token]
            if item.attempt > read.attempt:
                assert item.restart or not read.pieces, "a new attempt without a word of restart"
                read.begin(item.attempt)
            assert item.first == read.pieces + 1 or not item.pieces, f"{item.first} follows {read.pieces}"
            read.add(item.pieces)
            self.dialogue.text_taken(token, job_id, item.cost)
            if item.final:
                read.final = True
                del self.texts[token]
            self.person.text_came(job_id, read)
        else:
            assert isinstance(item, EventsPush)
            read_events = self.reads[token]
            read_events.events += item.events
            # The SDK does not say where a subscription began; what came is looked at for order alone.
            self.dialogue.events_taken(token, len(item.events))
            self.person.events_came(read_events)

    def unsettled(self) -> str:
        """Say what has no answer yet."""
        if self.answers:
            return f"{len(self.answers)} commands without a reply"
        return f"{len(self.ends)} ends not told" if self.ends else ""
