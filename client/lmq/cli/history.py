"""Events that have happened already, up to the present, and then no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmq.errors import CursorExpired, WaitTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from lmq import Event
    from lmq.cli.port import BrokerPort

SILENCE_S = 0.7
"""The broker sends what it has without a pause; silence for so long means that it has no more."""


def past_events(
    client: BrokerPort,
    *,
    since: int | datetime | None = None,
    last: int = 0,
    kinds: Sequence[str] = (),
    user: str = "",
    queue: str = "",
    jobs: Sequence[str] = (),
) -> Iterator[Event]:
    """Give the events that match, oldest first, and end at the present."""
    # A first contact may take longer than the silence; after this one the events come over a connection that stands.
    client.health()
    stream = client.events(
        since=since, last=last, kinds=kinds, user=user, queue=queue, jobs=jobs, timeout_s=SILENCE_S
    )
    try:
        yield from stream
    except CursorExpired as error:
        yield from past_events(client, since=error.oldest, kinds=kinds, user=user, queue=queue, jobs=jobs)
    except WaitTimeout:
        return
    finally:
        stream.close()
