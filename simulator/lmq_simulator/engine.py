"""The deterministic model of the server: instances, loading, slots, prompt reading, decoding, failing.

No sockets, no threads, no clock: the caller says what time it is, in milliseconds of any monotonic clock, and asks
when something is due next. Which models are in memory is decided in `memory.py`; here is what instances do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from lmq_simulator import failures
from lmq_simulator.config import SimulatorConfig
from lmq_simulator.memory import Memory
from lmq_simulator.records import (
    Counters,
    Failure,
    Instance,
    Kind,
    Phase,
    Plan,
    Refused,
    Status,
    Ticket,
    Work,
)

# Prompt tokens that are read in one go before anything else can happen: the server's evaluation batch.
EVAL_BATCH_TOKENS = 512
# Slices of a load, so that its progress can be told.
LOAD_SLICES = 10
# Most steps done in one `advance`; the rest follows in the next, so that nobody is starved meanwhile.
MAX_STEPS = 2000
# Ended requests that the state report still shows.
RECENT_TICKETS = 2000


class Engine:
    """All instances of one server and the requests in them."""

    def __init__(self, config: SimulatorConfig, now_ms: float) -> None:
        self.config = config
        self.counters = Counters()
        self.memory = Memory(self, now_ms)
        self.recent: deque[Ticket] = deque(maxlen=RECENT_TICKETS)
        self.touched: list[Ticket] = []
        self._numbers = 0
        self._stalled_since_ms: float | None = now_ms if config.stalled else None

    # What callers do.

    def submit(
        self,
        model: str | None,
        *,
        kind: Kind,
        now_ms: float,
        prompt_tokens: int = 0,
        strings: int = 0,
        ttl_s: float | None = None,
        context_length: int | None = None,
        prompt: str = "",
        prepare: Callable[[Ticket], None] | None = None,
    ) -> Ticket:
        """Take a request, loading its model if need be, and return the ticket to follow it by.

        Args:
            model: model key or instance id; None takes what is loaded.
            kind: CHAT or EMBED.
            now_ms: the time.
            prompt_tokens: length of the prompt of a chat.
            strings: number of texts to embed.
            ttl_s: idle life of the instance that this request loads, if it loads one.
            context_length: context of the instance that this request loads, if it loads one.
            prompt: the text itself, only to look for the text that crashes the model.
            prepare: called with the new ticket before anything happens to it, to give it its plan.

        Raises:
            Refused: unknown model, nothing loaded, no memory, or a model of the wrong kind.
        """
        arrived_ms, now_ms = now_ms, self._own_time(now_ms)
        self.counters.requests += 1
        instance = self.memory.instance_for(
            model, embed=kind is Kind.EMBED, ttl_s=ttl_s, context_length=context_length, now_ms=now_ms
        )
        instance.last_used_ms = now_ms
        ticket = self._ticket(kind, instance, arrived_ms)
        ticket.prompt_tokens = prompt_tokens
        ticket.strings = strings
        if prepare is not None:
            prepare(ticket)
        self.recent.append(ticket)
        if self._is_poisoned(prompt):
            self.crash(instance, now_ms, waiting=ticket)
            return ticket
        instance.waiting.append(ticket)
        self._resume(instance, now_ms)
        self.counters.max_waiting = max(self.counters.max_waiting, len(instance.waiting))
        self.advance(now_ms)
        return ticket

    def load(self, key: str, *, context_length: int | None, now_ms: float) -> Ticket:
        """Load one more instance of a model; the ticket ends when it is ready."""
        now_ms = self._own_time(now_ms)
        instance = self.memory.load(key, context_length=context_length, now_ms=now_ms)
        ticket = self._ticket(Kind.LOAD, instance, now_ms)
        instance.waiting.append(ticket)
        self.advance(now_ms)
        return ticket

    def unload(self, instance_id: str, now_ms: float) -> None:
        """Take an instance out of memory; whatever it was doing fails.

        Raises:
            Refused: there is no such instance.
        """
        now_ms = self._own_time(now_ms)
        instance = self.memory.instances.get(instance_id)
        if instance is None:
            raise Refused(failures.unknown_instance(instance_id))
        self.counters.unloads += 1
        self.remove(instance, now_ms)

    def crash(self, instance: Instance, now_ms: float, *, waiting: Ticket | None = None) -> None:
        """Let an instance die: all its requests fail, and it is no longer loaded."""
        self.counters.crashes += 1
        if waiting is not None:
            instance.waiting.append(waiting)
        self._drop(instance, failures.crashed(self.config.broken_stream), now_ms)

    def remove(self, instance: Instance, now_ms: float) -> None:
        """Unload an instance; requests that were loading it are cancelled, others lose their model."""
        if instance.is_loaded:
            self._drop(instance, failures.unloaded(self.config.broken_stream), now_ms)
        else:
            self._drop(instance, failures.load_cancelled(instance.model.key), now_ms)

    def abandon(self, ticket: Ticket, now_ms: float) -> None:
        """The client of a request has left.

        A request that writes gives its slot back at once; one whose prompt is being read keeps the slot until the
        prompt is done; one that waits still gets its turn, unless a knob says otherwise.
        """
        now_ms = self._own_time(now_ms)
        if ticket.is_final:
            return
        ticket.client_left = True
        if ticket.phase in (Phase.DECODE, Phase.EMBEDDING) or ticket.is_stuck:
            self._end(ticket, Phase.ABANDONED, now_ms)
            self._resume(ticket.instance, now_ms)
        elif self.config.drop_abandoned_waiting and ticket.phase in (Phase.WAITING, Phase.LOADING):
            self._end(ticket, Phase.ABANDONED, now_ms)

    def turn(self, config: SimulatorConfig, now_ms: float) -> None:
        """Go on with other knobs; what is already under way keeps the pace it has."""
        self.advance(now_ms)
        self.config = config
        if config.stalled and self._stalled_since_ms is None:
            self._stalled_since_ms = now_ms
        elif not config.stalled and self._stalled_since_ms is not None:
            self._shift(now_ms - self._stalled_since_ms)
            self._stalled_since_ms = None
            self.advance(now_ms)

    def restart(self, now_ms: float) -> None:
        """Begin anew with the models that are loaded at start, and all counters at zero."""
        for instance in list(self.memory.instances.values()):
            self.remove(instance, now_ms)
        self.memory = Memory(self, now_ms)
        self.counters = Counters()
        self.recent.clear()

    # Time.

    def next_due_ms(self) -> float | None:
        """Return when `advance` has something to do; None means not before the next call."""
        if self._stalled_since_ms is not None:
            return None
        due = [
            instance.work.ends_ms for instance in self.memory.instances.values() if instance.work is not None
        ]
        due += [at for instance in self.memory.instances.values() if (at := expires_ms(instance)) is not None]
        return min(due, default=None)

    def advance(self, now_ms: float) -> None:
        """Do all that is due by now, in the order in which it was due."""
        if self._stalled_since_ms is not None:
            return
        for _ in range(MAX_STEPS):
            instance = self._next_at_work(now_ms)
            if instance is None:
                break
            self._finish_work(instance)
        for instance in list(self.memory.instances.values()):
            expiry_ms = expires_ms(instance)
            if expiry_ms is not None and expiry_ms <= now_ms:
                self.counters.expirations += 1
                self.remove(instance, now_ms)

    def _own_time(self, now_ms: float) -> float:
        """Do what is due, and return what time it is for the instances: while stalled, it stands still."""
        self.advance(now_ms)
        return now_ms if self._stalled_since_ms is None else self._stalled_since_ms

    def _next_at_work(self, now_ms: float) -> Instance | None:
        chosen: Instance | None = None
        earliest_ms = now_ms
        for instance in self.memory.instances.values():
            work = instance.work
            if work is not None and (
                work.ends_ms < earliest_ms or (chosen is None and work.ends_ms <= now_ms)
            ):
                chosen, earliest_ms = instance, work.ends_ms
        return chosen

    def _shift(self, by_ms: float) -> None:
        for instance in self.memory.instances.values():
            instance.last_used_ms += by_ms
            if instance.work is not None:
                work = instance.work
                instance.work = Work(work.status, work.ends_ms + by_ms, work.ticket, work.tokens)

    # Work.

    def begin_load(self, instance: Instance, now_ms: float) -> None:
        """Start to read a model into memory; called by `memory` once there is room."""
        rate = self.config.load_gb_per_s
        instance.load_started_ms = now_ms
        instance.load_ms = 1000.0 * instance.model.size_gb / rate if rate else 0.0
        instance.work = Work(Status.LOADING, now_ms + instance.load_ms / LOAD_SLICES)

    def _finish_work(self, instance: Instance) -> None:
        work = instance.work
        assert work is not None
        at_ms = work.ends_ms
        instance.work = None
        match work.status:
            case Status.LOADING:
                if not self._load_slice_done(instance, at_ms):
                    return
            case Status.PROCESSING_PROMPT:
                self._prompt_read(instance, work, at_ms)
            case Status.GENERATING:
                self._step_done(instance, work, at_ms)
            case Status.EMBEDDING:
                assert work.ticket is not None
                if work.ticket.fault is not None:
                    self._fail(work.ticket, work.ticket.fault, at_ms)
                elif not work.ticket.is_final:
                    self._end(work.ticket, Phase.DONE, at_ms)
            case Status.IDLE:
                raise AssertionError("idle is not work")
        if instance.id in self.memory.instances:
            self._choose(instance, at_ms)

    def _resume(self, instance: Instance, now_ms: float) -> None:
        """A request came or went between two pieces of work: fill the slots, and go on if nothing is under way."""
        if not instance.is_loaded or instance.id not in self.memory.instances:
            return
        if instance.work is not None and instance.work.ticket is not None and instance.work.ticket.is_final:
            instance.work = None
        if instance.work is None:
            self._choose(instance, now_ms)
        else:
            self._admit(instance, now_ms)

    def _choose(self, instance: Instance, now_ms: float) -> None:
        """Give free slots to who waits, then decide what the instance does next."""
        self._admit(instance, now_ms)
        config = self.config
        if instance.model.is_embedder:
            for ticket in instance.active:
                if not ticket.is_final and not ticket.is_stuck:
                    ticket.phase = Phase.EMBEDDING
                    instance.status = Status.EMBEDDING
                    ends_ms = now_ms + config.embed_ms_per_string * ticket.strings
                    instance.work = Work(Status.EMBEDDING, ends_ms, ticket)
                    return
        else:
            for ticket in instance.active:
                if ticket.phase is Phase.PREFILL:
                    rate = config.prefill_tokens_per_s
                    left = ticket.prompt_tokens - ticket.prefilled
                    tokens = min(left, EVAL_BATCH_TOKENS) if rate else left
                    ends_ms = now_ms + (1000.0 * tokens / rate if rate else 0.0)
                    instance.status = Status.PROCESSING_PROMPT
                    instance.work = Work(Status.PROCESSING_PROMPT, ends_ms, ticket, tokens)
                    return
            writing = [ticket for ticket in instance.active if not ticket.is_stuck]
            if writing:
                step_ms = config.itl_base_ms + config.itl_per_stream_ms * len(writing)
                instance.status = Status.GENERATING
                tokens = 1 if step_ms else self._burst(instance, writing)
                instance.work = Work(Status.GENERATING, now_ms + step_ms, None, tokens)
                return
        instance.status = Status.GENERATING if instance.active else Status.IDLE
        if not instance.active:
            instance.last_used_ms = max(instance.last_used_ms, now_ms)
            self.memory.room_made(now_ms)

    def _burst(self, instance: Instance, writing: list[Ticket]) -> int:
        """Return how many steps that take no time are taken together: up to the first end, or the first overflow."""
        if self.config.unified_kv:
            room = (instance.context_length - instance.kv_used) // len(writing)
        else:
            room = instance.context_length - max(ticket.kv_used for ticket in writing)
        return max(1, min([room + 1, *(ticket.pieces_left for ticket in writing)]))

    def _admit(self, instance: Instance, now_ms: float) -> None:
        while instance.waiting and len(instance.active) < instance.parallel:
            ticket = instance.waiting.popleft()
            if ticket.kind is Kind.LOAD:
                ticket.load_ms = instance.load_ms
                self._end(ticket, Phase.DONE, now_ms)
                continue
            if ticket.kind is Kind.CHAT and ticket.prompt_tokens > instance.context_length:
                self._too_long(ticket, now_ms)
                continue
            ticket.started_ms = now_ms
            ticket.phase = Phase.PREFILL
            instance.active.append(ticket)
            self.counters.max_active = max(self.counters.max_active, len(instance.active))
            self._touch(ticket)

    def _too_long(self, ticket: Ticket, now_ms: float) -> None:
        self.counters.overflows += 1
        instance = ticket.instance
        if self.config.overflow == "nested":
            self._fail(
                ticket, failures.prompt_too_long_nested(ticket.prompt_tokens, instance.context_length), now_ms
            )
            return
        ticket.started_ms = now_ms
        if self.config.overflow == "event":
            self._fail(ticket, failures.prompt_too_long(instance.model.format, ticket.prompt_tokens), now_ms)
            return
        ticket.plan = Plan(())
        self._end(ticket, Phase.DONE, now_ms)

    def _load_slice_done(self, instance: Instance, at_ms: float) -> bool:
        instance.load_progress = round(min(1.0, instance.load_progress + 1.0 / LOAD_SLICES), 3)
        for ticket in instance.waiting:
            self._touch(ticket)
        assert instance.load_started_ms is not None
        ends_ms = instance.load_started_ms + instance.load_ms
        if at_ms < ends_ms - instance.load_ms / LOAD_SLICES / 2:
            instance.work = Work(Status.LOADING, min(ends_ms, at_ms + instance.load_ms / LOAD_SLICES))
            return False
        instance.load_progress = 1.0
        instance.status = Status.IDLE
        instance.last_used_ms = at_ms
        self.counters.loads += 1
        for ticket in instance.waiting:
            ticket.load_ms = instance.load_ms
            ticket.phase = Phase.WAITING
        return True

    def _prompt_read(self, instance: Instance, work: Work, at_ms: float) -> None:
        ticket = work.ticket
        assert ticket is not None
        ticket.prefilled += work.tokens
        self._touch(ticket)
        if self._cache_is_full(instance, at_ms) or ticket.prefilled < ticket.prompt_tokens:
            return
        if ticket.client_left:
            self._end(ticket, Phase.ABANDONED, at_ms)
            return
        ticket.phase = Phase.DECODE
        self._end_if_finished(ticket, at_ms)

    def _step_done(self, instance: Instance, work: Work, at_ms: float) -> None:
        writing = [one for one in instance.active if one.phase is Phase.DECODE and not one.is_stuck]
        for ticket in writing:
            if ticket.first_piece_ms is None:
                ticket.first_piece_ms = at_ms
            emitted = min(work.tokens, ticket.pieces_left)
            ticket.emitted += emitted
            self.counters.generated_tokens += emitted
            if ticket.wants_pieces:
                self._touch(ticket)
        if not self._cache_is_full(instance, at_ms):
            for ticket in writing:
                self._end_if_finished(ticket, at_ms)

    def _end_if_finished(self, ticket: Ticket, at_ms: float) -> None:
        """End a ticket that has put out its last piece, or that has come to its fault."""
        if ticket.is_final or ticket.is_stuck or ticket.pieces_left:
            return
        if ticket.fault is not None:
            self._fail(ticket, ticket.fault, at_ms)
        else:
            self._end(ticket, Phase.DONE, at_ms)

    def _cache_is_full(self, instance: Instance, at_ms: float) -> bool:
        """Handle a KV cache that has run over; return whether it had."""
        if not self.config.unified_kv:
            for ticket in list(instance.active):
                if ticket.phase is Phase.DECODE and ticket.kv_used >= instance.context_length:
                    ticket.plan = Plan(ticket.plan.pieces[: ticket.emitted], "length", "contextLengthReached")
                    self._end(ticket, Phase.DONE, at_ms)
            return False
        if instance.kv_used <= instance.context_length:
            return False
        self.counters.overflows += 1
        for ticket in list(instance.active):
            self._fail(ticket, failures.context_exceeded(), at_ms)
        return True

    # Endings.

    def _ticket(self, kind: Kind, instance: Instance, now_ms: float) -> Ticket:
        self._numbers += 1
        phase = Phase.WAITING if instance.is_loaded else Phase.LOADING
        return Ticket(self._numbers, kind, instance, now_ms, phase=phase)

    def _is_poisoned(self, prompt: str) -> bool:
        if self.config.crash_on_text and self.config.crash_on_text in prompt:
            return True
        every = self.config.crash_every_requests
        return bool(every) and self.counters.requests % every == 0

    def _drop(self, instance: Instance, failure: Failure, now_ms: float) -> None:
        self.memory.forget(instance)
        instance.work = None
        for ticket in [*instance.active, *instance.waiting]:
            self._fail(ticket, failure, now_ms)
        instance.waiting.clear()
        self.memory.room_made(now_ms)

    def _fail(self, ticket: Ticket, failure: Failure, now_ms: float) -> None:
        ticket.failure = failure
        self._end(ticket, Phase.ABANDONED if ticket.client_left else Phase.FAILED, now_ms)

    def _end(self, ticket: Ticket, phase: Phase, now_ms: float) -> None:
        ticket.phase = phase
        ticket.ended_ms = now_ms
        if ticket in ticket.instance.active:
            ticket.instance.active.remove(ticket)
        elif phase is Phase.ABANDONED and ticket in ticket.instance.waiting:
            ticket.instance.waiting.remove(ticket)
        if ticket.kind is not Kind.LOAD:
            match phase:
                case Phase.DONE:
                    self.counters.completed += 1
                case Phase.FAILED:
                    self.counters.failed += 1
                case _:
                    self.counters.abandoned += 1
        self._touch(ticket)

    def _touch(self, ticket: Ticket) -> None:
        ticket.revision += 1
        self.touched.append(ticket)


def expires_ms(instance: Instance) -> float | None:
    """Return when an instance has been idle for too long; None if it is busy or stays for ever."""
    if instance.ttl_s is None or instance.is_busy or not instance.is_loaded:
        return None
    return instance.last_used_ms + 1000.0 * instance.ttl_s
