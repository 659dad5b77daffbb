"""What becomes of many submits at once, job by job; for both faces, without waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, cast

from lmq.errors import BadPayload, ClientClosed, LmqError, NotReachable, PartlyRefused, WaitTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lmq._handle import Handle, Record
    from lmq._inbox import Inbox
    from lmq._link import Engine
    from lmq._payloads import Draft
    from lmq_proto.messages import Outcome

BATCHES_IN_FLIGHT = 8
"""Messages of one `submit_many` without a reply; keeps the broker busy while the next are built."""

H = TypeVar("H", bound="Handle[object]")


class Batch(Generic[H]):
    """The outcomes of one `submit_many`, in order.

    Args:
        make: makes the handle of a draft.
        atomic: whether it was all or nothing.
    """

    def __init__(self, make: Callable[[Draft], H], *, atomic: bool) -> None:
        self._make = make
        self._atomic = atomic
        self._accepted: list[H] = []
        self._refused: list[tuple[int, LmqError]] = []
        self._whole: LmqError | None = None
        self._count = 0

    def take(self, part: Sequence[Draft], reply: object) -> None:
        """Take the outcomes of a message."""
        for draft, outcome in zip(part, cast("list[Outcome]", reply), strict=True):
            handle = self._make(draft)
            try:
                handle._settle(outcome)
            except LmqError as error:
                self._refused.append((self._count, error))
            else:
                self._accepted.append(handle)
            self._count += 1

    def refuse(self, part: Sequence[Draft], error: LmqError) -> None:
        """Take that a whole message was refused.

        Raises:
            NotReachable, WaitTimeout, ClientClosed: it is not known what became of it.
        """
        if isinstance(error, NotReachable | WaitTimeout | ClientClosed):
            raise error
        self._refused += [(self._count + index, error) for index in range(len(part))]
        self._count += len(part)
        self._whole = error

    def handles(self) -> list[H]:
        """Return the handles, in order.

        Raises:
            PartlyRefused: some were refused.
            LmqError: all were, for one reason.
        """
        if not self._refused:
            return self._accepted
        if self._whole is not None and not self._accepted:
            raise self._whole
        raise PartlyRefused([] if self._atomic else self._accepted, self._refused)


class Slot:
    """Token of one submit in a pipeline: hands (handle, outcome or error) to the pipeline's one inbox."""

    __slots__ = ("_handle", "_inbox")

    def __init__(self, handle: Handle[object], inbox: Inbox) -> None:
        self._handle = handle
        self._inbox = inbox

    def put(self, item: object, touched: set[Inbox]) -> None:
        self._inbox.put((self._handle, item), touched)

    def fail(self, error: LmqError, touched: set[Inbox]) -> None:
        self._inbox.put((self._handle, error), touched)


class Outcomes:
    """The outcomes of a pipeline so far."""

    def __init__(self) -> None:
        self.accepted: list[Handle[object]] = []
        self.refused: list[tuple[int, LmqError]] = []
        self.open: dict[Handle[object], int] = {}
        self._count = 0

    def add(self, handle: Handle[object]) -> None:
        """Take that a job was sent."""
        self.open[handle] = self._count
        self._count += 1

    def take(self, item: object) -> None:
        """Take what a slot handed over."""
        handle, outcome = cast("tuple[Handle[object], Outcome | LmqError]", item)
        index = self.open.pop(handle)
        if isinstance(outcome, LmqError):
            self.refused.append((index, outcome))
            return
        try:
            handle._settle(outcome)
        except LmqError as error:
            self.refused.append((index, error))
        else:
            self.accepted.append(handle)

    def check(self) -> None:
        """Raise `PartlyRefused` if any was refused."""
        if self.refused:
            raise PartlyRefused(self.accepted, sorted(self.refused, key=lambda pair: pair[0]))


def follow_all(handles: Iterable[Handle[object]], inbox: Inbox, engine: Engine) -> None:
    """Have an inbox told of the end of each job, as its `Record`; those that are not followed yet are, in one go."""
    follows: list[tuple[Record, bytes]] = []
    for handle in handles:
        record = handle._record
        record.waiters.append(inbox)
        if record.engine is not engine and record.end is None:
            record.engine = engine
            follows.append((record, handle.job_id))
    if follows:
        engine.post(engine.dialogue.begin_follow, follows)


def one_message(parts: Iterable[list[Draft]]) -> list[list[Draft]]:
    """Return the only part of an atomic batch.

    Raises:
        BadPayload: it would take more than one message.
    """
    found = list(parts)
    if len(found) > 1:
        raise BadPayload("jobs", "too many or too large for one atomic batch: at most 1,000 jobs and 16 MB")
    return found
