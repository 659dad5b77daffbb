"""What is pushed to those who wait: ends of jobs, text, durable events. Cursor and credit; no queue per reader."""

import msgspec

from lmq_broker.core.chronicle import Out, number_of, numbers_of, put, refusal, refuse, reply
from lmq_broker.core.effects import Read, Send
from lmq_broker.core.reads import Context, EndsReply, EventsReply, ReadEnds, ReadEvents, ReadText, TextReply
from lmq_broker.core.records import TextAdded
from lmq_broker.core.rights import SEES_ALL, may_act_for
from lmq_broker.core.state import BrokerState, End, Job, Session, Subscription, TextLog, TextReader, Worker
from lmq_broker.core.stimuli import Now
from lmq_proto import bounds
from lmq_proto.errors import BadField, NotAllowed, NotFound, ProtocolError
from lmq_proto.events import Event
from lmq_proto.ids import JobId, PeerId, to_text
from lmq_proto.messages import (
    Credit,
    EventFilter,
    Events,
    Finished,
    Follow,
    Followed,
    FollowText,
    JobEnd,
    Outcome,
    Piece,
    Subscribe,
    Subscribed,
    Text,
    TextDurable,
    TextMark,
    TextReport,
    Unfollow,
    Unsubscribe,
)
from lmq_proto.states import FINAL, State

_PUSH_BYTES = 4 * 1024 * 1024
"""Results or text in one push."""
_PUSH_PIECES = 1000
_PUSH_HEADER_BYTES = bounds.HEADER_BYTES // 2
"""What a push's header may take, as far as it is counted: stories and labels are, the rest of an entry is bounded."""
_FETCH_ENDS = 1000
_EMPTY_PUSH_AFTER = 1000
"""A subscription that matched nothing for so many events is told the cursor all the same."""
_pack = msgspec.msgpack.Encoder()

# --- ends of followed jobs -------------------------------------------------------------------------------------------


def follow(state: BrokerState, out: Out, session: Session, command: Follow) -> None:
    """Begin to follow jobs; those that have ended already are sent from the journal."""
    if len(command.job_ids) > bounds.BATCH_JOBS:
        error = BadField("job_ids", len(command.job_ids), f"at most {bounds.BATCH_JOBS}")
        refuse(state, out, session.peer, command.request_id, error)
        return
    if len(session.follows) + len(command.job_ids) > state.settings.follows:
        error = BadField("follows", len(session.follows), f"at most {state.settings.follows}")
        refuse(state, out, session.peer, command.request_id, error)
        return
    outcomes = []
    for job_id in command.job_ids:
        job = state.jobs.get(job_id)
        if (job is None and job_id not in state.finished) or (
            job is not None and not _may_read(session, job.user)
        ):
            error_info = refusal(state, NotFound("job", _name_of(job_id)))
            outcomes.append(Outcome(job_id=job_id, outcome="refused", error=error_info))
            continue
        follow_one(state, out, session, job_id)
        outcomes.append(Outcome(job_id=job_id, outcome="unchanged"))
    reply(state, out, session.peer, Followed(request_id=command.request_id, outcomes=outcomes))


def _name_of(job_id: bytes) -> str:
    return to_text(job_id[:16].rjust(16, b"\0"))


def follow_one(state: BrokerState, out: Out, session: Session, job_id: bytes) -> None:
    """Follow one job that exists."""
    if job_id in session.follows:
        return
    session.follows.add(job_id)
    if job_id in state.jobs:
        state.followers.setdefault(job_id, []).append(session.peer)
    else:
        session.undelivered.append(job_id)
        state.fresh_ends.setdefault(session.peer, [])


def unfollow(state: BrokerState, session: Session, command: Unfollow) -> None:
    """Send no more of these jobs."""
    for job_id in command.job_ids:
        session.follows.discard(job_id)
        drop_follower(state, job_id, session.peer)
        reader = session.readers.pop(job_id, None)
        if reader is not None:
            drop_reader(state, reader)


def drop_follower(state: BrokerState, job_id: bytes, peer: PeerId) -> None:
    """Forget that a peer follows a job."""
    peers = state.followers.get(job_id)
    if peers is not None and peer in peers:
        peers.remove(peer)
        if not peers:
            del state.followers[job_id]


def ended(state: BrokerState, end: End) -> None:
    """Hand a job's end to its followers; it is pushed when the turn ends."""
    for peer in state.followers.pop(end.job_id, ()):
        state.fresh_ends.setdefault(peer, []).append(end)


def push_ends(state: BrokerState, out: Out) -> None:
    """Push the ends of this turn, as far as each follower's credit goes; the rest is read back later."""
    for peer, ends in state.fresh_ends.items():
        session = state.sessions.get(peer)
        if session is None:
            continue
        sendable: list[End] = []
        for end in ends:
            if end.job_id not in session.follows:
                continue
            if session.undelivered or session.results_credit_bytes <= 0:
                session.undelivered.append(end.job_id)
            else:
                session.results_credit_bytes -= len(end.result) + bounds.RESULT_OVERHEAD_BYTES
                session.follows.discard(end.job_id)
                sendable.append(end)
        _send_ends(state, out, peer, sendable)
        _fetch_ends(state, out, session)
    state.fresh_ends.clear()


def _send_ends(state: BrokerState, out: Out, peer: PeerId, ends: list[End]) -> None:
    """Send ends in messages of bounded size."""
    batch: list[End] = []
    size = header_size = 0
    for end in ends:
        story_size = len(_pack.encode(end.story)) if end.story else 0
        is_full = (
            size + len(end.result) > _PUSH_BYTES
            or len(batch) >= bounds.BATCH_JOBS
            or header_size + story_size > _PUSH_HEADER_BYTES
        )
        if batch and is_full:
            _send_batch(state, out, peer, batch)
            batch, size, header_size = [], 0, 0
        batch.append(end)
        size += len(end.result)
        header_size += story_size
    if batch:
        _send_batch(state, out, peer, batch)


def _send_batch(state: BrokerState, out: Out, peer: PeerId, batch: list[End]) -> None:
    jobs = [
        JobEnd(
            job_id=end.job_id, state=end.state, attempt=end.attempt, failures=end.failures,
            result_bytes=len(end.result), error=end.error, story=list(end.story), worker=end.worker, model=end.model,
            queued_ms=end.queued_ms, leased_ms=end.leased_ms,
        )
        for end in batch
    ]  # fmt: skip
    out.append(Send(peer, Finished(jobs=jobs), b"".join(end.result for end in batch), state.position))


def _fetch_ends(state: BrokerState, out: Out, session: Session) -> None:
    """Read back ends that could not be sent when they came, if there is credit now."""
    if not session.undelivered or session.fetching or session.results_credit_bytes <= 0:
        return
    session.fetching = True
    ids = [session.undelivered[index] for index in range(min(_FETCH_ENDS, len(session.undelivered)))]
    limit_bytes = min(_PUSH_BYTES, session.results_credit_bytes)
    out.append(
        Read(ReadEnds(Context(session.peer), ids, numbers_of(state, ids), limit_bytes), state.position)
    )


def ends_loaded(state: BrokerState, out: Out, session: Session, answer: EndsReply) -> None:
    """Send ends that were read back."""
    session.fetching = False
    sendable = []
    answered = set(answer.missing)
    for stored in answer.ends:
        job = stored.job
        answered.add(job.id)
        if job.id not in session.follows:
            continue
        if job.id in state.jobs:
            state.followers.setdefault(job.id, []).append(session.peer)
            continue
        if State(job.state) not in FINAL:
            # It was open when it was read, and has ended since: read it again.
            answered.discard(job.id)
            continue
        session.follows.discard(job.id)
        if not _may_read(session, job.user):
            sendable.append(_missing(job.id))
            continue
        started_ms = job.started_at_ms or job.finished_at_ms
        sendable.append(End(
            JobId(job.id), job.state, job.attempt, job.failures, stored.result, job.past.error, job.past.story,
            job.worker, job.model, max(0, started_ms - job.created_at_ms), max(0, job.finished_at_ms - started_ms),
        ))  # fmt: skip
    for job_id in answer.missing:
        if job_id in session.follows:
            session.follows.discard(job_id)
            sendable.append(_missing(job_id))
    while session.undelivered and session.undelivered[0] in answered:
        session.undelivered.popleft()
    session.results_credit_bytes -= sum(len(end.result) + bounds.RESULT_OVERHEAD_BYTES for end in sendable)
    _send_ends(state, out, session.peer, sendable)
    _fetch_ends(state, out, session)


def _missing(job_id: bytes) -> End:
    """Return what a follower is told of a job that was deleted, or is not for it to see."""
    error = NotFound("job", _name_of(job_id)).info()
    return End(JobId(job_id), "deleted", 0, 0, b"", error, (), "", "", 0, 0)


def job_deleted(state: BrokerState, out: Out, job_id: bytes) -> None:
    """End the text readers of a job that is gone."""
    for reader in state.text_readers.pop(job_id, ()):
        session = state.sessions.get(reader.peer)
        if session is not None:
            session.readers.pop(job_id, None)
        final = Text(job_id=job_id, attempt=reader.attempt, first=reader.piece + 1, pieces=[], final=True)
        out.append(Send(reader.peer, final, after=state.position))


def credit(state: BrokerState, out: Out, session: Session, command: Credit) -> None:
    """Take more credit and go on where it was missing."""
    if command.results_bytes > 0:
        ceiling = bounds.RESULTS_CREDIT_BYTES
        session.results_credit_bytes = min(ceiling, session.results_credit_bytes + command.results_bytes)
        _fetch_ends(state, out, session)
    subscription = session.subscriptions.get(command.subscription_id)
    if subscription is not None and command.events > 0:
        subscription.credit = min(100_000, subscription.credit + command.events)
    reader = session.readers.get(command.job_id)
    if reader is not None and command.text_bytes > 0:
        reader.credit_bytes = min(bounds.BODY_BYTES, reader.credit_bytes + command.text_bytes)
        state.awake.append(reader)


def _may_read(session: Session, user: str) -> bool:
    """Tell whether a session may read results and text of a user's jobs."""
    who = session.who
    return may_act_for(who.principal, who.role, who.user, user)


# --- text: from the worker -------------------------------------------------------------------------------------------


def text_report(state: BrokerState, session: Session, worker: Worker, command: TextReport, now: Now) -> None:
    """Take in pieces of text; those that are there already are skipped, those with a hole before them refused."""
    for text in command.texts:
        job = state.jobs.get(text.job_id)
        lease = job.lease if job is not None else None
        if job is None or lease is None or lease.worker != worker.name or lease.attempt != text.attempt:
            continue
        size = sum(len(piece.text) for piece in text.pieces)
        if len(text.pieces) > bounds.TEXT_PIECES or size > bounds.TEXT_BYTES:
            raise ProtocolError(
                f"text of {len(text.pieces)} pieces and {size} characters,"
                f" the limits are {bounds.TEXT_PIECES} and {bounds.TEXT_BYTES}"
            )
        if lease.text is None:
            lease.text = log_of(job)
        log = lease.text
        skipped = log.last + 1 - text.first
        if skipped < 0 or skipped >= len(text.pieces):
            continue
        fresh = text.pieces[skipped:]
        size = sum(len(piece.text) for piece in fresh)
        if not log.unstored_bytes:
            log.unstored_since_ms = now.mono_ms
            state.unstored_text[job.id] = None
        log.pieces.extend(fresh)
        log.held_bytes += size
        log.unstored_bytes += size + len(fresh)
        state.fresh_text[job.id] = None


def log_of(job: Job) -> TextLog:
    """Return the log in which an attempt's text goes on after what is on disk of it."""
    stored = job.text_last if job.text_attempt == job.attempt else 0
    return TextLog(first=stored + 1, stored=stored)


def store_due_text(state: BrokerState, out: Out, now: Now) -> None:
    """Put text on disk that has waited for a second, or grown to 16 KiB."""
    for job_id in list(state.unstored_text):
        job = state.jobs.get(job_id)
        log = job.lease.text if job is not None and job.lease is not None else None
        if job is None or log is None or not log.unstored_bytes:
            del state.unstored_text[job_id]
        elif (
            log.unstored_bytes >= state.settings.text_flush_bytes
            or now.mono_ms - log.unstored_since_ms >= state.settings.text_flush_ms
        ):
            store_text(state, out, job)


def store_text(state: BrokerState, out: Out, job: Job) -> None:
    """Put all text of a job's attempt on disk, and tell its worker when it is there."""
    lease = job.lease
    log = lease.text if lease is not None else None
    state.unstored_text.pop(job.id, None)
    if lease is None or log is None or log.last <= log.stored:
        return
    packed = _pack.encode(log.pieces[log.stored + 1 - log.first :])
    put(state, out, TextAdded(job.number, lease.attempt, log.stored + 1, log.last, packed))
    log.stored = log.last
    log.unstored_bytes = 0
    job.text_attempt, job.text_last = lease.attempt, log.last
    worker = state.workers.get(lease.worker)
    if worker is not None and worker.peer is not None:
        marks = [TextMark(job_id=job.id, attempt=lease.attempt, piece=log.stored)]
        out.append(Send(worker.peer, TextDurable(marks=marks), after=state.position))
    while log.held_bytes > state.settings.text_memory_bytes and log.first <= log.stored:
        log.held_bytes -= len(log.pieces[0].text)
        del log.pieces[0]
        log.first += 1


# --- text: to readers ------------------------------------------------------------------------------------------------


def follow_text(state: BrokerState, out: Out, session: Session, command: FollowText) -> None:
    """Begin to read a job's text from a cursor on."""
    job = state.jobs.get(command.job_id)
    if session.who.role == "observer":
        refuse(state, out, session.peer, command.request_id, NotAllowed("follow_text", "observer", "no text"))
        return
    if (job is None and command.job_id not in state.finished) or (
        job is not None and not _may_read(session, job.user)
    ):
        refuse(state, out, session.peer, command.request_id, NotFound("job", _name_of(command.job_id)))
        return
    old = session.readers.get(command.job_id)
    if old is not None:
        drop_reader(state, old)
    reader = TextReader(
        session.peer, JobId(command.job_id), _sane(command.attempt), _sane(command.piece),
        min(max(command.credit_bytes, 0), bounds.BODY_BYTES),
    )  # fmt: skip
    session.readers[command.job_id] = reader
    state.text_readers.setdefault(command.job_id, []).append(reader)
    state.awake.append(reader)


def _sane(number: int) -> int:
    """Return a cursor's number as the journal can compare it."""
    return min(max(number, 0), 1 << 31)


def drop_reader(state: BrokerState, reader: TextReader) -> None:
    """Forget a reader."""
    readers = state.text_readers.get(reader.job_id)
    if readers is not None and reader in readers:
        readers.remove(reader)
        if not readers:
            del state.text_readers[reader.job_id]


def push_texts(state: BrokerState, out: Out) -> None:
    """Push new text to all who read it, and old text to those who came or have credit again."""
    for job_id in state.fresh_text:
        shared: dict[tuple[int, int], Text] = {}
        for reader in state.text_readers.get(job_id, ()):
            _push_text(state, out, reader, shared)
    for reader in state.awake:
        session = state.sessions.get(reader.peer)
        if session is not None and session.readers.get(reader.job_id) is reader:
            _push_text(state, out, reader, {})
    state.fresh_text.clear()
    state.awake.clear()


def _push_text(state: BrokerState, out: Out, reader: TextReader, shared: dict[tuple[int, int], Text]) -> None:
    """Push what a reader lacks and its credit allows; readers at one cursor share one message."""
    if reader.fetching or reader.credit_bytes <= 0:
        return
    job = state.jobs.get(reader.job_id)
    if job is None:
        _fetch_text(state, out, reader)
        return
    lease = job.lease
    log = lease.text if lease is not None else None
    if lease is None or log is None:
        return
    begin = reader.piece if reader.attempt == lease.attempt else 0
    if begin + 1 < log.first:
        _fetch_text(state, out, reader)
        return
    if begin >= log.last:
        return
    key = (reader.attempt, begin)
    message = shared.get(key)
    if message is None:
        restart = _restart_reason(job) if reader.attempt not in (0, lease.attempt) else ""
        pieces = _within(log.pieces, begin + 1 - log.first, min(reader.credit_bytes, bounds.TEXT_BYTES))
        message = Text(job_id=job.id, attempt=lease.attempt, first=begin + 1, pieces=pieces, restart=restart)
        shared[key] = message
    _sent(reader, message)
    out.append(Send(reader.peer, message, after=lease.position))


def _within(pieces: list[Piece], start: int, limit: int) -> list[Piece]:
    """Return the pieces from `start` on that fit into a push, at least one."""
    taken: list[Piece] = []
    size = 0
    for index in range(start, min(len(pieces), start + _PUSH_PIECES)):
        size += len(pieces[index].text)
        if taken and size > limit:
            break
        taken.append(pieces[index])
    return taken


def _sent(reader: TextReader, message: Text) -> None:
    """Move a reader's cursor and charge its credit."""
    reader.attempt = message.attempt
    reader.piece = message.first + len(message.pieces) - 1
    reader.credit_bytes -= sum(max(1, len(piece.text)) for piece in message.pieces)


def _restart_reason(job: Job) -> str:
    """Return why an earlier attempt's text is void."""
    last = job.past.story[-1] if job.past.story else None
    # A worker need not say why; but the reason is what tells a reader to drop what it has, so it is never empty.
    return (last and (last.message or last.code)) or "the attempt was given back and begun anew"


def _fetch_text(state: BrokerState, out: Out, reader: TextReader) -> None:
    """Read text back from the journal."""
    request = ReadText(
        Context(reader.peer),
        reader.job_id,
        number_of(state, reader.job_id),
        reader.attempt,
        reader.piece,
        max(1, reader.credit_bytes),
    )
    reader.fetching = request
    out.append(Read(request, state.position))


def text_loaded(state: BrokerState, out: Out, session: Session, request: ReadText, answer: TextReply) -> None:
    """Send text that was read back, and the final word if the job has ended and nothing is left."""
    reader = session.readers.get(request.id)
    if reader is None or reader.fetching != request:
        return
    reader.fetching = None
    job = answer.job
    is_open = request.id in state.jobs
    if job is None or not _may_read(session, job.user):
        _finish_reader(state, out, session, reader, [])
        return
    before = (reader.attempt, reader.piece)
    for text in answer.texts:
        if text.attempt < reader.attempt:
            continue
        same = text.attempt == reader.attempt
        begin = reader.piece if same else 0
        pieces = text.pieces[begin + 1 - text.first :] if begin >= text.first else text.pieces
        first = max(text.first, begin + 1)
        if not pieces or first != begin + 1:
            continue
        restart = "" if same or not reader.attempt else "a later attempt has begun"
        message = Text(job_id=request.id, attempt=text.attempt, first=first, pieces=pieces, restart=restart)
        _sent(reader, message)
        # On disk already; live text, which waits for its lease only, must not overtake it.
        out.append(Send(reader.peer, message))
    if is_open:
        if (reader.attempt, reader.piece) != before:
            _push_text(state, out, reader, {})
    elif answer.more or State(job.state) not in FINAL:
        if reader.credit_bytes > 0:
            _fetch_text(state, out, reader)
    else:
        _finish_reader(state, out, session, reader, [])


def _finish_reader(
    state: BrokerState, out: Out, session: Session, reader: TextReader, pieces: list[Piece]
) -> None:
    """Tell a reader that no more text follows."""
    first = reader.piece + 1
    message = Text(job_id=reader.job_id, attempt=reader.attempt, first=first, pieces=pieces, final=True)
    out.append(Send(reader.peer, message, after=state.position))
    drop_reader(state, reader)
    session.readers.pop(reader.job_id, None)


def text_ended(state: BrokerState, out: Out, job: Job) -> None:
    """A job ends: give its readers the rest and the final word where memory and credit allow, else from the journal."""
    lease = job.lease
    log = lease.text if lease is not None else None
    for reader in list(state.text_readers.get(job.id, ())):
        session = state.sessions[reader.peer]
        if lease is not None and log is not None and reader.credit_bytes > 0 and not reader.fetching:
            _push_text(state, out, reader, {})
            if reader.attempt == lease.attempt and reader.piece == log.last:
                _finish_reader(state, out, session, reader, [])
                continue
        state.awake.append(reader)


# --- events ----------------------------------------------------------------------------------------------------------


def subscribe(state: BrokerState, out: Out, session: Session, command: Subscribe) -> None:
    """Begin to read events from a cursor, from a time, or from now on."""
    if (
        command.subscription_id not in session.subscriptions
        and len(session.subscriptions) >= bounds.SUBSCRIPTIONS
    ):
        error = BadField("subscriptions", len(session.subscriptions), f"at most {bounds.SUBSCRIPTIONS}")
        refuse(state, out, session.peer, command.request_id, error)
        return
    only = "" if session.who.role in SEES_ALL else session.who.user
    subscription = Subscription(
        command.subscription_id, 0, 0, max(0, min(command.credit, 100_000)), command.match, only
    )
    session.subscriptions[command.subscription_id] = subscription
    state.subscribers[session.peer] = None
    if command.cursor < 0 and command.since_ms:
        context = Context(session.peer, command)
        since_ms = min(max(command.since_ms, 0), 1 << 52)
        request = ReadEvents(context, command.subscription_id, -1, since_ms, 0)
        subscription.fetching = request
        out.append(Read(request, state.position))
        return
    if command.cursor < 0:
        cursor = max(state.oldest_cursor, state.last_seq - max(0, command.last))
    else:
        cursor = min(command.cursor, state.last_seq)
    _subscribed(state, out, session, subscription, command.request_id, cursor)


def _subscribed(
    state: BrokerState, out: Out, session: Session, subscription: Subscription, request_id: int, cursor: int
) -> None:
    """Answer a subscribe; a cursor whose events are gone begins at the oldest kept, and says so."""
    begin = max(cursor, state.oldest_cursor)
    subscription.cursor = subscription.told = begin
    subscribed = Subscribed(request_id=request_id, subscription_id=subscription.id, cursor=cursor)
    reply(state, out, session.peer, subscribed)
    if begin > cursor:
        expired = Events(subscription_id=subscription.id, before=cursor, after=begin, events=[], expired=True)
        subscription.credit -= 1
        reply(state, out, session.peer, expired)


def unsubscribe(state: BrokerState, session: Session, command: Unsubscribe) -> None:
    """Send no more events."""
    session.subscriptions.pop(command.subscription_id, None)
    if not session.subscriptions:
        state.subscribers.pop(session.peer, None)


def keep_events(state: BrokerState, events: list[Event]) -> None:
    """Hold the newest events in memory for readers that keep up."""
    state.events.extend(events)
    limit = state.settings.events_in_memory
    if len(state.events) > 2 * limit:
        del state.events[: len(state.events) - limit]


def push_events(state: BrokerState, out: Out) -> None:
    """Push events to every subscription that has credit."""
    for peer in list(state.subscribers):
        session = state.sessions.get(peer)
        if session is None:
            continue
        for subscription in session.subscriptions.values():
            _push_events(state, out, session, subscription)


def _push_events(state: BrokerState, out: Out, session: Session, subscription: Subscription) -> None:
    """Push what one subscription lacks, from memory; what is older is read from the journal."""
    while subscription.credit > 0 and not subscription.fetching and subscription.cursor < state.last_seq:
        oldest = state.events[0].seq if state.events else state.last_seq + 1
        if subscription.cursor + 1 < oldest:
            request = ReadEvents(
                Context(session.peer), subscription.id, subscription.cursor, 0, state.settings.events_per_push
            )
            subscription.fetching = request
            out.append(Read(request, state.position))
            return
        start = subscription.cursor + 1 - oldest
        if start >= len(state.events):
            # Of this turn: they are pushed when it ends.
            return
        _send_events(
            state, out, session, subscription, state.events[start : start + state.settings.events_per_push]
        )


def _send_events(
    state: BrokerState, out: Out, session: Session, subscription: Subscription, events: list[Event]
) -> None:
    """Send the events of a stretch that match, within credit, and move the cursor over the others."""
    fitting: list[Event] = []
    header_size = 0
    after = subscription.cursor
    for event in events:
        if _matches(event, subscription):
            header_size += len(_pack.encode(event.labels)) if event.labels else 0
            if len(fitting) >= subscription.credit or (fitting and header_size > _PUSH_HEADER_BYTES):
                break
            fitting.append(event)
        after = event.seq
    subscription.cursor = after
    if fitting or after - subscription.told >= _EMPTY_PUSH_AFTER:
        message = Events(
            subscription_id=subscription.id, before=subscription.told, after=after, events=fitting
        )
        subscription.credit -= max(1, len(fitting))
        subscription.told = after
        out.append(Send(session.peer, message, after=state.position))


def _matches(event: Event, subscription: Subscription) -> bool:
    """Tell whether an event is for this reader: permitted, and wanted."""
    if subscription.only_user and event.user and event.user != subscription.only_user:
        return False
    match: EventFilter = subscription.match
    if match.kinds and event.kind not in match.kinds:
        return False
    if match.user and event.user != match.user:
        return False
    if match.queue and event.queue != match.queue:
        return False
    if match.job_ids and event.job_id not in match.job_ids:
        return False
    return all(event.labels.get(name) == value for name, value in match.labels.items())


def events_loaded(
    state: BrokerState, out: Out, session: Session, request: ReadEvents, answer: EventsReply
) -> None:
    """Send events that were read back."""
    subscription = session.subscriptions.get(request.subscription_id)
    if subscription is None or subscription.fetching != request:
        return
    subscription.fetching = None
    command = request.context.command
    if isinstance(command, Subscribe):
        _subscribed(state, out, session, subscription, command.request_id, answer.cursor)
    elif answer.oldest > subscription.cursor:
        message = Events(
            subscription_id=subscription.id,
            before=subscription.told,
            after=answer.oldest,
            events=[],
            expired=True,
        )
        subscription.cursor = subscription.told = answer.oldest
        subscription.credit -= 1
        out.append(Send(session.peer, message, after=state.position))
    else:
        _send_events(state, out, session, subscription, answer.events)
    _push_events(state, out, session, subscription)
