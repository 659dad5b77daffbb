"""Who may do what: one table from roles to the commands they may send."""

from lmq_proto.messages import (
    Backup,
    Bye,
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
    Why,
)

_SESSION: frozenset[type[FromPeer]] = frozenset({Heartbeat, Bye})
_LOOK: frozenset[type[FromPeer]] = frozenset(
    {
        Hello,
        Status,
        ListJobs,
        Why,
        Subscribe,
        Unsubscribe,
        Credit,
        Unfollow,
        ListQueues,
        ListWorkers,
        ListLimits,
        ListModels,
        ListUsers,
        Health,
        Usage,
        Metrics,
    }
)
_OWN_JOBS: frozenset[type[FromPeer]] = frozenset(
    {Submit, Follow, FollowText, GetPayload, Cancel, Retry, Delete, Update}
)
_WORK: frozenset[type[FromPeer]] = frozenset({Enlist, Results, Phases, TextReport, CapacityReport, LoadEnded})
_STEER: frozenset[type[FromPeer]] = frozenset(
    {
        Pause,
        Drain,
        Resume,
        Backup,
        SetLimit,
        ResetLimits,
        SetUser,
        ResetUser,
        SetAlias,
        SetDefaultModel,
        OrderModel,
    }
)

MAY: dict[str, frozenset[type[FromPeer]]] = {
    "user": _SESSION | _LOOK | _OWN_JOBS,
    "app": _SESSION | _LOOK | _OWN_JOBS,
    "gateway": _SESSION | _LOOK | _OWN_JOBS,
    "observer": _SESSION | _LOOK,
    "worker": _SESSION | _WORK,
    "admin": _SESSION | _LOOK | _OWN_JOBS | _WORK | _STEER,
}

SEES_ALL = frozenset({"admin", "observer", "gateway"})
"""Roles that see the jobs of every user; all others see their own."""


def may(role: str, command: type[FromPeer]) -> bool:
    """Tell whether a role may send a command at all. Whose jobs it may touch is asked per job."""
    return command in MAY.get(role, frozenset())


def may_act_for(principal: str, role: str, session_user: str, user: str) -> bool:
    """Tell whether a principal may submit or act on behalf of a user.

    An app has its own namespace (`shop/alice`); a gateway and an admin may name anyone.
    """
    if user == session_user or role in ("admin", "gateway"):
        return True
    return role == "app" and user.startswith(f"{principal}/")
