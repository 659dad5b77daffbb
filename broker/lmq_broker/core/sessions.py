"""Sessions: who is at the other end of a connection, and whether it still is."""

from lmq_broker.core import fields, readers
from lmq_broker.core.chronicle import Out, full, refuse, reply
from lmq_broker.core.effects import Send
from lmq_broker.core.rights import may
from lmq_broker.core.state import BrokerState, Identity, Session
from lmq_broker.core.stimuli import Credential, Now, Received
from lmq_proto import bounds
from lmq_proto.codec import verb_of
from lmq_proto.errors import BadField, LmqError, NotAllowed, ProtocolError, UpgradeRequired
from lmq_proto.ids import InstanceId, PeerId
from lmq_proto.messages import FromPeer, Heartbeat, Hello, Welcome

_INSTANCE_BYTES = 16


def hello(state: BrokerState, out: Out, stimulus: Received, command: Hello, now: Now) -> None:
    """Open a client's session and tell it what it must know."""
    peer = stimulus.peer
    try:
        protocol = agreed_protocol(command.protocol_oldest, command.protocol_newest)
        here = state.sessions.get(peer)
        if here is not None and here.worker is not None:
            raise ProtocolError(f"this connection is that of worker {here.worker}")
        who = identify(state, stimulus.credential, command.user, command)
        is_new = peer not in state.sessions and command.instance not in state.peers
        if is_new and len(state.sessions) >= state.settings.sessions:
            raise full(state, now, "sessions", len(state.sessions), state.settings.sessions)
        check_instance(command.instance)
    except LmqError as error:
        refuse(state, out, peer, command.request_id, error)
        return
    session = open_session(
        state, out, peer, InstanceId(command.instance), who, command.software, protocol, now
    )
    session.results_credit_bytes = bounds.RESULTS_CREDIT_BYTES
    reply(state, out, peer, Welcome(
        request_id=command.request_id, protocol=protocol, software=state.software, broker_id=state.broker_id,
        epoch=state.epoch, user=who.user, role=who.role, wall_ms=now.wall_ms,
        heartbeat_ms=state.settings.client_heartbeat_ms, payload_bytes=state.settings.payload_bytes,
        results_credit_bytes=bounds.RESULTS_CREDIT_BYTES,
            events_port=state.host.events_port if stimulus.credential.transport != "ipc" else 0,
            events_path=state.host.events_path if stimulus.credential.transport == "ipc" else "", cursor=state.last_seq,
    ))  # fmt: skip


def check_instance(instance: bytes) -> None:
    """Refuse what cannot be random: two processes of one instance would end each other.

    Raises:
        BadField: it is no 16 bytes.
    """
    if len(instance) != _INSTANCE_BYTES:
        raise BadField("instance", len(instance), f"{_INSTANCE_BYTES} bytes")


def agreed_protocol(oldest: int, newest: int) -> int:
    """Return the newest protocol that both sides speak.

    Raises:
        UpgradeRequired: there is none.
    """
    agreed = min(newest, bounds.PROTOCOL_NEWEST)
    if agreed < max(oldest, bounds.PROTOCOL_OLDEST):
        spoken = newest if newest < bounds.PROTOCOL_OLDEST else oldest
        raise UpgradeRequired(spoken, bounds.PROTOCOL_OLDEST, bounds.PROTOCOL_NEWEST)
    return agreed


def identify(state: BrokerState, credential: Credential, claim: str, command: FromPeer) -> Identity:
    """Return who a peer is in open mode: over ipc the account the kernel names, over loopback TCP who it says it is.

    Raises:
        NotAllowed: the role may not send this first message.
        BadField: the claimed name cannot be a name.
    """
    if claim:
        fields.check_name("user", claim)
    if credential.transport == "ipc" and not credential.is_owner:
        who = Identity(credential.account, credential.account, "user")
    else:
        name = credential.account or claim or "local"
        who = Identity(name, claim or name, "admin" if credential.is_owner else state.settings.open_role)
    if not may(who.role, type(command)):
        raise NotAllowed(verb_of(command), who.role)
    return who


def open_session(
    state: BrokerState,
    out: Out,
    peer: PeerId,
    instance: InstanceId,
    who: Identity,
    software: str,
    protocol: int,
    now: Now,
) -> Session:
    """Begin a session on a connection; an older one of the same process, or on the same connection, ends."""
    forget(state, peer)
    forget(state, state.peers.get(instance, peer))
    session = Session(
        peer=peer, instance=instance, who=who, software=software, protocol=protocol, heard_ms=now.mono_ms,
        sent_ms=now.mono_ms,
    )  # fmt: skip
    state.sessions[peer] = session
    state.peers[instance] = peer
    return session


def forget(state: BrokerState, peer: PeerId) -> None:
    """End a session: whatever it followed or read is no longer sent."""
    session = state.sessions.pop(peer, None)
    if session is None:
        return
    state.peers.pop(session.instance, None)
    for job_id in session.follows:
        readers.drop_follower(state, job_id, peer)
    for reader in session.readers.values():
        readers.drop_reader(state, reader)
    state.subscribers.pop(peer, None)
    state.fresh_ends.pop(peer, None)
    state.acks.pop(peer, None)


def gone(state: BrokerState, peer: PeerId, now: Now) -> None:
    """Note that a connection is not there any more: a client's session ends, a worker has a moment to come back."""
    session = state.sessions.get(peer)
    if session is None:
        return
    worker = state.workers.get(session.worker) if session.worker is not None else None
    if worker is None:
        forget(state, peer)
    elif not worker.gone_ms:
        worker.gone_ms = max(1, now.mono_ms)
        state.fleet_version += 1


def beat(state: BrokerState, out: Out, now: Now) -> None:
    """Send heartbeats that are due, and end the sessions of clients that are silent."""
    settings = state.settings
    for session in list(state.sessions.values()):
        if session.worker is None and now.mono_ms - session.heard_ms >= settings.silent_ms:
            forget(state, session.peer)
            continue
        every_ms = settings.client_heartbeat_ms if session.worker is None else settings.heartbeat_ms
        if now.mono_ms - session.sent_ms >= every_ms:
            session.sent_ms = now.mono_ms
            out.append(Send(session.peer, Heartbeat()))
