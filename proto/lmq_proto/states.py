"""The states of a job and every legal move between them: one table, printed in PROTOCOL.md."""

from enum import StrEnum


class State(StrEnum):
    """Where a job is in its life."""

    # That of its text, which is also quicker: the enum's own is looked up by name, in Python, a dozen times a job.
    __hash__ = str.__hash__

    DELAYED = "delayed"
    BLOCKED = "blocked"
    READY = "ready"
    LEASED = "leased"
    ASKING = "asking"
    DONE = "done"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Phase(StrEnum):
    """What a leased job is doing at its worker."""

    SENT = "sent"
    LOADING = "loading"
    READING = "reading"
    WRITING = "writing"
    PARKED = "parked"
    """A task waits for jobs that it submitted: its slot is lent."""
    STOPPING = "stopping"


FINAL = frozenset({State.DONE, State.DEAD, State.CANCELLED, State.EXPIRED})
OPEN = frozenset(State) - FINAL

MOVES: dict[State, dict[State, str]] = {
    State.DELAYED: {
        State.READY: "its time has come",
        State.CANCELLED: "a person or program cancelled it",
        State.EXPIRED: "it had not started by its expiry",
    },
    State.BLOCKED: {
        State.READY: "its last parent is done",
        State.DELAYED: "its last parent is done and its own delay has not passed",
        State.CANCELLED: "a person, a program, or a parent's end cancelled it",
        State.EXPIRED: "it had not started by its expiry",
    },
    State.READY: {
        State.LEASED: "dispatched to a worker",
        State.CANCELLED: "a person or program cancelled it",
        State.EXPIRED: "it had not started by its expiry",
    },
    State.LEASED: {
        State.DONE: "the worker completed the current attempt",
        State.READY: "released, or its worker was lost: no fault of the job",
        State.DELAYED: "the attempt failed and another may follow after its backoff",
        State.ASKING: "the attempt asked a person something",
        State.BLOCKED: "the attempt waits for jobs it submitted",
        State.DEAD: "the last failure that is allowed, a permanent one, or the second strike",
        State.CANCELLED: "a person or program cancelled it",
    },
    State.ASKING: {
        State.READY: "the answer came",
        State.CANCELLED: "a person or program cancelled it",
        State.EXPIRED: "nobody answered in time",
    },
    State.DEAD: {State.READY: "a person retried it"},
    State.CANCELLED: {
        State.READY: "a person retried it",
        State.BLOCKED: "a person retried it and a parent is still open",
    },
    State.EXPIRED: {
        State.READY: "a person retried it",
        State.BLOCKED: "a person retried it and a parent is still open",
    },
    State.DONE: {},
}


def may_move(origin: State, target: State) -> bool:
    """Tell whether a job may go from one state to another."""
    return target in MOVES[origin]
