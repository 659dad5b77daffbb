"""Sessions: hello, strangers, heartbeats, silence, roles, and a broker that stops."""

from __future__ import annotations

from typing import Any

import pytest

from lmq_broker.core.effects import Effect, Send
from lmq_broker.core.rights import MAY, may, may_act_for
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import Credential, HostFacts, PeerClogged, Stop
from lmq_proto import bounds
from lmq_proto.ids import PeerId
from lmq_proto.messages import (
    FROM_PEER,
    Bye,
    Cancel,
    Delete,
    Enlist,
    Follow,
    FollowText,
    FromPeer,
    GetPayload,
    Health,
    Heartbeat,
    Hello,
    JobFilter,
    ListJobs,
    Retry,
    Status,
    Submit,
    Target,
    Update,
    Welcome,
    Who,
    Why,
)
from unit.broker.builders import EPOCH, Broker, a_broker, error, idle, instance_of, job_id, only, ready, sent


def hello(**fields: Any) -> Hello:
    given: dict[str, Any] = {
        "request_id": 1, "instance": instance_of("x"), "protocol_oldest": 1, "protocol_newest": 1,
    }  # fmt: skip
    return Hello(**(given | fields))


def comes(broker: Broker, credential: Credential = Credential("loopback"), **fields: Any) -> list[Effect]:  # noqa: B008
    return broker.says("x", hello(**fields), credential=credential)


def welcome(effects: list[Effect]) -> Welcome:
    return sent(effects, "x", Welcome)[0]


# --- hello ------------------------------------------------------------------------------------------------------------


def test_a_client_is_told_what_it_must_know() -> None:
    broker = a_broker()
    told = welcome(comes(broker, user="anna", software="go"))
    assert (told.request_id, told.protocol, told.epoch, told.user, told.role) == (
        1,
        1,
        EPOCH,
        "anna",
        "admin",
    )
    assert (told.broker_id, told.wall_ms) == (broker.state.broker_id, broker.wall_ms)
    assert (told.payload_bytes, told.results_credit_bytes) == (
        bounds.PAYLOAD_BYTES,
        bounds.RESULTS_CREDIT_BYTES,
    )
    assert told.cursor == broker.state.last_seq


def test_the_event_port_is_for_tcp_and_the_path_for_ipc() -> None:
    broker = a_broker()
    broker.step(HostFacts(events_port=7001, events_path="/run/e"))
    told = welcome(comes(broker))
    assert (told.events_port, told.events_path) == (7001, "")
    told = welcome(comes(broker, Credential("ipc", "anna", is_owner=True)))
    assert (told.events_port, told.events_path) == (0, "/run/e")


@pytest.mark.parametrize(("oldest", "newest"), [(2, 2), (2, 9), (0, 0)])
def test_a_peer_without_a_common_version_is_told_to_upgrade(oldest: int, newest: int) -> None:
    broker = a_broker()
    refused = error(comes(broker, protocol_oldest=oldest, protocol_newest=newest))
    assert (refused.code, refused.fields["oldest"], refused.fields["newest"]) == ("upgrade_required", 1, 1)
    assert not broker.state.sessions


@pytest.mark.parametrize(("oldest", "newest"), [(1, 1), (1, 7), (0, 1)])
def test_a_peer_that_speaks_more_versions_gets_the_common_one(oldest: int, newest: int) -> None:
    assert welcome(comes(a_broker(), protocol_oldest=oldest, protocol_newest=newest)).protocol == 1


@pytest.mark.parametrize("size", [0, 15, 17])
def test_an_instance_has_sixteen_bytes(size: int) -> None:
    assert error(comes(a_broker(), instance=bytes(size))).fields["field"] == "instance"


@pytest.mark.parametrize("user", ["x" * 129, "a\nb", "\x00"])
def test_a_name_that_cannot_be_one_is_refused(user: str) -> None:
    assert error(comes(a_broker(), user=user)).fields["field"] == "user"


def test_sessions_are_bounded() -> None:
    broker = a_broker(clients=["ann"], settings=Settings(sessions=1))
    refused = error(comes(broker))
    assert (refused.code, refused.fields["limit"]) == ("limit_reached", "sessions")
    assert sent(broker.client("ann"), "ann", Welcome), "a session that is there may say hello again"


@pytest.mark.parametrize(
    ("credential", "claim", "user", "role"),
    [
        (Credential("loopback"), "anna", "anna", "admin"),
        (Credential("loopback"), "", "local", "admin"),
        (Credential("ipc", "tom"), "anna", "tom", "user"),
        (Credential("ipc", "tom"), "", "tom", "user"),
        (Credential("ipc", "root", is_owner=True), "", "root", "admin"),
        (Credential("ipc", "root", is_owner=True), "anna", "anna", "admin"),
    ],
)
def test_in_open_mode_the_kernel_names_the_user_and_over_loopback_it_names_itself(
    credential: Credential, claim: str, user: str, role: str
) -> None:
    told = welcome(comes(a_broker(), credential, user=claim))
    assert (told.user, told.role) == (user, role)


def test_an_open_role_of_user_is_for_those_who_say_who_they_are_not_for_whom_the_kernel_names() -> None:
    broker = a_broker(settings=Settings(open_role="user"))
    assert welcome(comes(broker, Credential("loopback"), user="anna")).role == "user"
    assert welcome(comes(broker, Credential("ipc", "root", is_owner=True))).role == "admin"
    broker.says("w1", idle("w1"), credential=Credential("ipc", "root", is_owner=True))
    assert "w1" in broker.state.workers


def test_a_second_hello_of_a_process_ends_its_first_session() -> None:
    broker = a_broker()
    comes(broker)
    broker.says("y", hello())
    assert list(broker.state.sessions) == [b"y"]


def test_another_account_over_ipc_cannot_be_a_worker() -> None:
    broker = a_broker()
    effects = broker.says("w1", idle("w1"), credential=Credential("ipc", "tom"))
    assert error(effects).code == "not_allowed"
    assert not broker.state.workers


# --- strangers, silence -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [Heartbeat(), Health(request_id=4), Submit(request_id=1, jobs=[])])
def test_a_stranger_is_asked_who_it_is(message: FromPeer) -> None:
    effects = a_broker().says("x", message)
    assert [send.message for send in only(effects, Send)] == [Who()]


def test_a_stranger_that_says_bye_is_left_in_peace() -> None:
    assert not a_broker().says("x", Bye())


@pytest.mark.parametrize("how", ["bye", "gone", "clogged", "silent"])
def test_a_session_ends_with_all_it_held(how: str) -> None:
    broker = a_broker(jobs=[ready("a")])
    broker.says("ann", Follow(request_id=1, job_ids=[job_id("a")]))
    broker.says("ann", FollowText(request_id=2, job_id=job_id("a")))
    if how == "bye":
        broker.says("ann", Bye())
    elif how == "gone":
        broker.breaks("ann")
    elif how == "clogged":
        broker.step(PeerClogged(PeerId(b"ann")))
    else:
        broker.pass_time(16_000)
    assert not broker.state.sessions
    assert not broker.state.followers
    assert not broker.state.text_readers
    assert job_id("a") in broker.state.jobs, "leaving is not cancelling"


def test_who_is_heard_now_and_then_stays() -> None:
    broker = a_broker(clients=["ann"])
    broker.pass_time(60_000, hearing=["ann"])
    assert list(broker.state.sessions) == [b"ann"]


def test_the_broker_sends_heartbeats_to_those_it_has_nothing_to_tell() -> None:
    broker = a_broker(clients=["ann"], workers=[idle("w1")])
    effects = broker.pass_time(10_000, hearing=["ann", "w1"])
    assert 3 <= len(sent(effects, "ann", Heartbeat)) <= 6
    assert 8 <= len(sent(effects, "w1", Heartbeat)) <= 11


def test_a_broker_that_stops_says_bye_to_all_and_opens_no_session() -> None:
    broker = a_broker(clients=["ann"], workers=[idle("w1")])
    effects = broker.step(Stop())
    assert {send.peer for send in only(effects, Send) if isinstance(send.message, Bye)} == {b"ann", b"w1"}
    assert error(comes(broker)).code == "stopping"
    assert error(broker.worker(idle("w2"))).code == "stopping"
    broker.turn()
    assert broker.events[-1].kind == "broker_stopped"


# --- rights -----------------------------------------------------------------------------------------------------------

NOBODY = JobFilter()
ONE_OF_EACH: list[FromPeer] = [
    ListJobs(request_id=1, match=NOBODY), Status(request_id=1, job_ids=[]), Why(request_id=1, job_id=b""),
    Submit(request_id=1, jobs=[]), GetPayload(request_id=1, job_id=b""), Cancel(request_id=1, target=Target()),
    Retry(request_id=1, target=Target()), Delete(request_id=1, target=Target()),
    Update(request_id=1, target=Target()), Health(request_id=1),
]  # fmt: skip


@pytest.mark.parametrize("role", [*MAY, "nobody"])
@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: type(message).__name__)
def test_what_a_role_may_not_send_is_refused_and_all_else_is_not(role: str, message: FromPeer) -> None:
    broker = a_broker(clients=["ann"])
    broker.role("ann", role)
    refused = [
        send for send in only(broker.says("ann", message), Send)
        if getattr(getattr(send.message, "error", None), "code", "") == "not_allowed"
    ]  # fmt: skip
    assert bool(refused) != may(role, type(message))
    assert bool(refused) != (type(message) in MAY.get(role, ()))


def test_every_message_may_be_sent_by_some_role() -> None:
    assert set().union(*MAY.values()) == set(FROM_PEER.values())
    assert MAY["admin"] == set(FROM_PEER.values())


def test_observers_only_look_and_workers_only_work() -> None:
    assert not MAY["observer"] & {
        Submit,
        Follow,
        FollowText,
        GetPayload,
        Cancel,
        Retry,
        Delete,
        Update,
        Enlist,
    }
    assert not MAY["worker"] & {Hello, Submit, ListJobs, Cancel}


@pytest.mark.parametrize(
    ("principal", "role", "session_user", "user", "allowed"),
    [
        ("ann", "user", "ann", "ann", True),
        ("ann", "user", "ann", "tom", False),
        ("ann", "user", "ann", "ann/x", False),
        ("shop", "app", "shop", "shop/alice", True),
        ("shop", "app", "shop", "shop", True),
        ("shop", "app", "shop", "shopping/alice", False),
        ("shop", "app", "shop", "shop2", False),
        ("web", "gateway", "web", "anyone", True),
        ("root", "admin", "root", "anyone", True),
        ("eye", "observer", "eye", "ann", False),
        ("w1", "worker", "w1", "ann", False),
    ],
)
def test_on_whose_behalf(principal: str, role: str, session_user: str, user: str, allowed: bool) -> None:
    assert may_act_for(principal, role, session_user, user) is allowed
