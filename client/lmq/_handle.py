"""What both kinds of job handle share: the id, the end of the job once it is known, and how a result is read.

No waiting here: that is `_sync` and `_async`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, cast

from lmq import results
from lmq._streams import TextPush
from lmq.errors import JobCancelled, JobDead, JobExpired, LmqError, NotFound, StreamRestarted
from lmq.results import JobStatus, Piece, Restart
from lmq_proto import ids
from lmq_proto.errors import from_info
from lmq_proto.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lmq._inbox import Inbox
    from lmq._link import Engine
    from lmq_proto.messages import JobEnd, Outcome

R_co = TypeVar("R_co", covariant=True)

READERS: dict[str, Callable[[bytes], object]] = {
    "chat": results.read_chat,
    "complete": results.read_chat,
    "embed": results.read_embed,
    "bulk_embed": results.read_embed,
}
"""Task type to what reads its result; other results are MessagePack as it stands."""

DELETED = "deleted"
"""What the wire says instead of a final state of a job that is gone."""

REPORT_TEXT = 64 * 1024
"""Characters read before the dialogue is told: a quarter of the window, so that few messages carry credit."""


class Record:
    """How one job ends, shared between a handle and the I/O thread.

    `engine` is the one that was asked to follow the job, if any; after a fork it is no longer the right one.
    """

    __slots__ = ("end", "engine", "waiters")

    def __init__(self, engine: Engine | None = None) -> None:
        self.end: tuple[JobEnd, bytes] | None = None
        self.engine = engine
        self.waiters: list[Inbox] = []

    def put(self, item: object, touched: set[Inbox]) -> None:
        self.end = cast("tuple[JobEnd, bytes]", item)
        # `end` is set before the waiters are taken: who comes too late for the list sees the end itself.
        waiters, self.waiters = self.waiters, []
        for inbox in waiters:
            inbox.put(self, touched)

    def fail(self, error: LmqError, touched: set[Inbox]) -> None:
        # Not kept: the next who waits asks again.
        self.engine = None
        waiters, self.waiters = self.waiters, []
        for inbox in waiters:
            inbox.fail(error, touched)


class Handle(Generic[R_co]):
    """A job that was submitted. Leaving it, or losing it, changes nothing about the job."""

    __slots__ = ("_id_text", "_record", "channel", "given_priority", "job_id", "task_type")

    def __init__(self, job_id: bytes, task_type: str = "", record: Record | None = None) -> None:
        self.job_id = job_id
        self.task_type = task_type
        self.channel = b""
        self.given_priority: int | None = None
        """The priority that its submit was given, where its user's ceiling is under what was asked for."""
        self._record = record or Record()
        self._id_text = ""

    @property
    def id(self) -> str:
        """The id as people see it: 26 characters."""
        if not self._id_text:
            self._id_text = ids.to_text(self.job_id)
        return self._id_text

    @property
    def job_ids(self) -> list[bytes]:
        """The ids of all jobs under this handle, as they go over the wire."""
        return [self.job_id]

    @property
    def is_ended(self) -> bool:
        """Whether the end is known here; asks nobody."""
        return self._record.end is not None

    def __repr__(self) -> str:
        kind = f" {self.task_type}" if self.task_type else ""
        return f"<{type(self).__name__} {self.id}{kind}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and other.job_id == self.job_id

    def __hash__(self) -> int:
        return hash(self.job_id)

    def __del__(self) -> None:
        record = self._record
        if record.engine is not None and record.end is None:
            record.engine.post_quietly(record.engine.dialogue.end_follow, record, self.job_id)

    def _settle(self, outcome: Outcome) -> None:
        """Take what became of the submit.

        Raises:
            LmqError: the job was refused.
        """
        if outcome.outcome == "refused":
            self._record.engine = None
            raise refusal(outcome)
        if outcome.job_id != self.job_id:
            # An idempotency key stands for another job already.
            self.job_id, self._id_text = outcome.job_id, ""
        self.channel = outcome.channel
        self.given_priority = outcome.priority

    def _learn(self, status: JobStatus) -> JobStatus:
        """Take over what a status tells about the job for good."""
        self.task_type = status.task_type
        self.channel = status.channel
        return status

    def _await_by(self, inbox: Inbox, engine: Engine) -> None:
        """Have an inbox told of the end; the caller looks at `is_ended` afterwards."""
        self._record.waiters.append(inbox)
        if self._record.engine is not engine and self._record.end is None:
            self._record.engine = engine
            engine.post(engine.dialogue.begin_follow, [(self._record, self.job_id)])

    def _leave(self, inbox: Inbox) -> None:
        if inbox in self._record.waiters:
            self._record.waiters.remove(inbox)

    def _state(self) -> State:
        """Return the final state.

        Raises:
            NotFound: the job was deleted.
        """
        assert self._record.end is not None
        state = self._record.end[0].state
        if state == DELETED:
            raise NotFound("job", self.id)
        return State(state)

    def _read_result(self) -> R_co:
        """Return the result, or raise how the job ended instead."""
        assert self._record.end is not None
        self._raise_unless_done()
        data = self._record.end[1]
        return cast(R_co, READERS.get(self.task_type, results.unpack)(data))

    def _raise_unless_done(self) -> None:
        assert self._record.end is not None
        end = self._record.end[0]
        story = end.story or ([end.error] if end.error else [])
        match end.state:
            case State.DEAD:
                raise JobDead(self.id, story)
            case State.CANCELLED:
                raise JobCancelled(self.id, story)
            case State.EXPIRED:
                raise JobExpired(self.id, story)
            case deleted if deleted == DELETED:
                raise NotFound("job", self.id)


class Pieces:
    """Turns pushes of text into what a reader sees; used by both kinds of stream.

    Args:
        job_id: for the error.
        restart: `raise`, or `continue` to give a `Restart` marker instead.
    """

    def __init__(self, job_id: str, restart: str) -> None:
        if restart not in {"raise", "continue"}:
            raise ValueError("restart is 'raise' or 'continue'")
        self._job_id = job_id
        self._raises = restart == "raise"
        self.is_final = False
        self.taken = 0

    def read(self, push: object) -> Iterator[Piece | Restart]:
        """Give the pieces of a push.

        Raises:
            StreamRestarted: a new attempt began after pieces of an earlier one.
        """
        assert isinstance(push, TextPush)
        self.taken += push.cost
        if push.restart:
            if self._raises:
                raise StreamRestarted(self._job_id, push.attempt, push.reason)
            yield Restart(push.attempt, push.reason)
        for number, piece in enumerate(push.pieces, push.first):
            yield Piece(piece.channel, piece.text, push.attempt, number)
        self.is_final = push.final

    def due(self) -> int:
        """Return how much to report as read, once it is worth a message."""
        if self.taken < REPORT_TEXT:
            return 0
        taken, self.taken = self.taken, 0
        return taken


def refusal(outcome: Outcome) -> LmqError:
    """Return why an outcome was refused."""
    return from_info(outcome.error) if outcome.error else LmqError("refused without a reason")
