"""The one door into the core: something happened, at this time; what must now be done?"""

from typing import assert_never

from lmq_broker.core import (
    aliases,
    clocks,
    commands,
    holds,
    leases,
    limiting,
    metrics,
    orders,
    readers,
    reasons,
    sessions,
    shares,
    submit,
    usage,
    users,
    views,
    workers,
)
from lmq_broker.core.chronicle import Out, keep_ledger, put, refuse, tell
from lmq_broker.core.effects import Effect, Send, WakeAt
from lmq_broker.core.reads import (
    Context,
    CopyReply,
    EndsReply,
    EventsReply,
    JobsReply,
    ListReply,
    PayloadReply,
    ReadEvents,
    ReadText,
    ReadUsage,
    TextReply,
    UsageSums,
)  # fmt: skip
from lmq_broker.core.records import EventsAdded
from lmq_broker.core.rights import may
from lmq_broker.core.state import BrokerState, Disk, Session, Worker
from lmq_broker.core.stimuli import (
    DiskChanged,
    HostFacts,
    Loaded,
    Now,
    PeerClogged,
    PeerGone,
    Received,
    SettingsChanged,
    Stimulus,
    Stop,
    TurnEnded,
)  # fmt: skip
from lmq_proto.codec import verb_of
from lmq_proto.errors import NotAllowed, ProtocolError, Stopping
from lmq_proto.events import Kind
from lmq_proto.ids import PeerId
from lmq_proto.messages import (
    Backup,
    Bye,
    Bye as ByeMessage,
    Cancel,
    CapacityReport,
    Credit,
    Delete,
    Drain,
    Enlist,
    Follow,
    FollowText,
    FromPeer,
    GetPayload,
    Health,
    Heartbeat,
    Hello,
    ListJobs,
    ListLimits,
    ListModels,
    ListQueues,
    ListUsers,
    ListWorkers,
    LoadEnded,
    Metrics,
    OrderModel,
    Pause,
    Phases,
    ResetLimits,
    ResetUser,
    Results,
    Resume,
    Retry,
    SetAlias,
    SetDefaultModel,
    SetLimit,
    SetUser,
    Status,
    Submit,
    Subscribe,
    TextReport,
    Unfollow,
    Unsubscribe,
    Update,
    Usage,
    Who,
    Why,
)  # fmt: skip


def step(state: BrokerState, stimulus: Stimulus, now: Now) -> list[Effect]:
    """Apply one thing that happened; return what the shell must now do, in order."""
    out: Out = []
    match stimulus:
        case Received():
            _received(state, out, stimulus, now)
        case TurnEnded():
            _end_turn(state, out, now)
        case Loaded():
            _loaded(state, out, stimulus, now)
        case PeerGone():
            sessions.gone(state, stimulus.peer, now)
        case PeerClogged():
            sessions.gone(state, stimulus.peer, now)
        case DiskChanged():
            state.disk = Disk(stimulus.trouble, stimulus.free_bytes, stimulus.floor_bytes)
        case SettingsChanged():
            clocks.change_settings(state, stimulus.settings)
        case HostFacts():
            state.host = stimulus
        case Stop():
            _stop(state, out, now)
        case _:
            assert_never(stimulus)
    return out


def _received(state: BrokerState, out: Out, stimulus: Received, now: Now) -> None:
    """Route a message to its transition; ask strangers who they are, and refuse what a role may not."""
    message = stimulus.message
    if isinstance(message, Hello):
        _open(state, out, stimulus, message, now)
        return
    if isinstance(message, Enlist):
        _open(state, out, stimulus, message, now)
        return
    session = state.sessions.get(stimulus.peer)
    if session is None:
        if not isinstance(message, Bye):
            out.append(Send(stimulus.peer, Who()))
        return
    session.heard_ms = now.mono_ms
    if not may(session.who.role, type(message)):
        error = NotAllowed(verb_of(message), session.who.role)
        refuse(state, out, stimulus.peer, getattr(message, "request_id", 0), error)
        return
    worker = state.workers.get(session.worker) if session.worker is not None else None
    if worker is not None and worker.peer == stimulus.peer:
        worker.heard_ms = now.mono_ms
        if worker.gone_ms:
            worker.gone_ms = 0
            state.fleet_version += 1
        try:
            _from_worker(state, out, session, worker, message, stimulus.body, now)
        except ProtocolError as error:
            refuse(state, out, stimulus.peer, getattr(message, "request_id", 0), error)
    else:
        _from_client(state, out, session, message, stimulus.body, now)


def _open(state: BrokerState, out: Out, stimulus: Received, message: Hello | Enlist, now: Now) -> None:
    if state.stopping:
        refuse(state, out, stimulus.peer, message.request_id, Stopping())
    elif isinstance(message, Hello):
        sessions.hello(state, out, stimulus, message, now)
    else:
        workers.enlist(state, out, stimulus, message, now)


def _from_client(
    state: BrokerState, out: Out, session: Session, message: FromPeer, body: bytes, now: Now
) -> None:
    """Carry out a client's command."""
    match message:
        case Submit():
            submit.submit(state, out, session, message, body, now)
        case Credit():
            readers.credit(state, out, session, message)
        case Heartbeat():
            pass
        case Follow():
            readers.follow(state, out, session, message)
        case Unfollow():
            readers.unfollow(state, session, message)
        case FollowText():
            readers.follow_text(state, out, session, message)
        case Status():
            views.status(state, out, session, message, now)
        case ListJobs():
            views.list_jobs(state, out, session, message)
        case GetPayload():
            views.get_payload(state, out, session, message)
        case Why():
            reasons.why(state, out, session, message, now)
        case Cancel() | Retry() | Delete() | Update():
            commands.act(state, out, session, message, now)
        case Subscribe():
            readers.subscribe(state, out, session, message)
        case Unsubscribe():
            readers.unsubscribe(state, session, message)
        case Pause() | Drain():
            holds.hold(state, out, session, message, now)
        case Resume():
            holds.resume(state, out, session, message, now)
        case ListQueues():
            views.queues(state, out, session, message, now)
        case ListWorkers():
            views.list_workers(state, out, session, message, now)
        case ListModels():
            views.list_models(state, out, session, message, now)
        case SetAlias():
            aliases.set_alias(state, out, session, message, now)
        case SetDefaultModel():
            aliases.set_default(state, out, session, message, now)
        case OrderModel():
            orders.order(state, out, session, message, now)
        case SetLimit():
            limiting.set_limit(state, out, session, message, now)
        case ResetLimits():
            limiting.reset(state, out, session, message, now)
        case ListLimits():
            limiting.list_limits(state, out, session, message, now)
        case ListUsers():
            shares.list_users(state, out, session, message)
        case SetUser():
            users.set_user(state, out, session, message, now)
        case ResetUser():
            users.reset_user(state, out, session, message, now)
        case Health():
            views.health(state, out, session, message, now)
        case Usage():
            usage.usage(state, out, session, message, now)
        case Metrics():
            metrics.metrics(state, out, session, message, now)
        case Backup():
            views.backup(state, out, session, message)
        case Bye():
            sessions.forget(state, session.peer)
        case Results() | Phases() | TextReport() | CapacityReport() | LoadEnded():
            out.append(Send(session.peer, Who()))
        case Hello() | Enlist():
            raise AssertionError("opened above")
        case _:
            assert_never(message)


def _from_worker(
    state: BrokerState, out: Out, session: Session, worker: Worker, message: FromPeer, body: bytes, now: Now
) -> None:
    """Take in a worker's report."""
    match message:
        case Results():
            leases.results(state, out, session, worker, message, body, now)
        case TextReport():
            readers.text_report(state, session, worker, message, now)
        case Phases():
            leases.phases(state, out, session, message, now)
        case Heartbeat():
            pass
        case CapacityReport():
            workers.capacity_report(state, out, session, worker, message, now)
        case LoadEnded():
            workers.load_ended(state, out, worker, message, now)
        case Bye():
            workers.say_bye(state, out, worker, message.reason, now)
        case _:
            raise ProtocolError(f"a worker may not send {verb_of(message)}")


def _loaded(state: BrokerState, out: Out, stimulus: Loaded, now: Now) -> None:
    """Go on with what had to be read first."""
    request, answer = stimulus.request, stimulus.reply
    context = request.context
    if not context.peer:
        assert isinstance(answer, JobsReply)
        clocks.retire(state, out, answer, context.position, now)
        return
    session = state.sessions.get(context.peer)
    if session is None:
        return
    command = context.command
    match answer:
        case EndsReply():
            readers.ends_loaded(state, out, session, answer)
        case TextReply():
            assert isinstance(request, ReadText)
            readers.text_loaded(state, out, session, request, answer)
        case EventsReply():
            assert isinstance(request, ReadEvents)
            readers.events_loaded(state, out, session, request, answer)
        case JobsReply() | ListReply():
            _jobs_loaded(state, out, session, context, answer, now)
        case PayloadReply():
            assert isinstance(command, GetPayload)
            views.payload_loaded(state, out, session, command, answer, now)
        case UsageSums():
            assert isinstance(request, ReadUsage)
            assert isinstance(command, Usage)
            usage.loaded(state, out, session, command, request, answer)
        case CopyReply():
            assert isinstance(command, Backup)
            views.copied(state, out, session, command, answer)
        case _:
            assert_never(answer)


def _jobs_loaded(
    state: BrokerState,
    out: Out,
    session: Session,
    context: Context,
    answer: JobsReply | ListReply,
    now: Now,
) -> None:
    """Go on with a command for which jobs were read."""
    command = context.command
    match command:
        case Status():
            assert isinstance(answer, JobsReply)
            views.status_loaded(state, out, session, command, answer, now)
        case ListJobs():
            assert isinstance(answer, ListReply)
            views.listed(state, out, session, command, answer, now)
        case Why():
            assert isinstance(answer, JobsReply)
            reasons.why_loaded(state, out, session, command, answer)
        case Cancel() | Retry() | Delete() | Update():
            commands.act_on_loaded(state, out, session, command, answer, context.position, now)
        case _:
            raise AssertionError(f"nothing reads jobs for {type(command).__name__}")


def _end_turn(state: BrokerState, out: Out, now: Now) -> None:
    """Dispatch, push what is new, journal the turn's events, and say when to wake."""
    unfinished = clocks.tend(state, out, now)
    ask_ms = leases.dispatch(state, out, now)
    limiting.keep(state, out, now)
    readers.store_due_text(state, out, now)
    readers.push_texts(state, out)
    readers.push_ends(state, out)
    usage.keep(state, out)
    if state.turn_events:
        put(state, out, EventsAdded(state.turn_events))
        readers.keep_events(state, state.turn_events)
        state.turn_events = []
    readers.push_events(state, out)
    leases.send_acks(state, out)
    views.publish_queues(state, out, now)
    state.turn_has_records = False
    unfinished |= state.eta.look_out(state, out, now)
    wake_ms = now.mono_ms if unfinished else clocks.next_wake(state, now)
    out.append(WakeAt(wake_ms if ask_ms is None else min(wake_ms, ask_ms)))


def _stop(state: BrokerState, out: Out, now: Now) -> None:
    """Take no more, and tell every peer; running jobs go on at their workers."""
    state.stopping = True
    keep_ledger(state, out)
    tell(state, now, Kind.BROKER_STOPPED)
    out.extend(
        Send(PeerId(peer), ByeMessage(reason="stopping"), after=state.position) for peer in state.sessions
    )
