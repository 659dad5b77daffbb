"""What a forecast compares: policies by name, on endpoints as they are written at the command line."""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from lmq_broker.core.fields import check_name
from lmq_broker.core.settings import Settings
from lmq_broker.forecast.engines import EngineModel
from lmq_broker.forecast.figures import Figures, figures_of
from lmq_broker.forecast.replay import Replay, Request
from lmq_proto.errors import BadField

ENDPOINTS_MAX = 100
SLOTS_MAX = 1024
_EQUAL = 5
"""The priority of all, where priorities do not count."""

CHOICES = {
    "fifo": "by arrival alone: no priorities, no shares, whatever is loaded",
    "strict": "by priority, then by arrival; the loaded model is preferred for a while",
    "vtc": "fair shares by what was received, whatever is loaded",
    "blfq": "bands, fair shares within them, the loaded model within a bound",
}


class BadEndpoints(Exception):
    """Endpoints that cannot be meant; the text says what stands there and what may."""

    def __init__(self, field: str, value: str, limit: str) -> None:
        super().__init__(f"{field} = {value!r}: allowed is {limit}")
        self.field, self.value, self.limit = field, value, limit


def endpoints(text: str, slots: int) -> list[tuple[str, int]]:
    """Return (name, slots) of endpoints: `2` are gpu-1 and gpu-2 with `slots` each, `a:8,b:4` are named.

    Raises:
        BadEndpoints: it is neither, or out of bounds.
    """
    if text.strip().isascii() and text.strip().isdigit():
        return [(f"gpu-{number + 1}", slots) for number in range(_within("endpoints", text, ENDPOINTS_MAX))]
    found: dict[str, int] = {}
    for part in text.split(","):
        name, colon, own = part.strip().rpartition(":")
        name = name if colon else own
        try:
            check_name("endpoint", name)
        except BadField as error:
            raise BadEndpoints("endpoint", name, f"{error.limit}, then a colon and its slots") from error
        if name in found:
            raise BadEndpoints("endpoint", name, "each name once")
        found[name] = _within(f"slots of {name}", own, SLOTS_MAX) if colon else slots
    if len(found) > ENDPOINTS_MAX:
        raise BadEndpoints("endpoints", str(len(found)), f"1 to {ENDPOINTS_MAX}")
    return list(found.items())


def engines(named: Sequence[tuple[str, int]], models: Sequence[str], like: EngineModel) -> list[EngineModel]:
    """Return endpoints that are alike but for their slots; each begins with the next of the models loaded."""
    found = []
    for number, (name, slots) in enumerate(named):
        first = number % len(models)
        order = (*models[first:], *models[:first])
        found.append(msgspec.structs.replace(like, name=name, slots=slots, models=order))
    return found


def chosen(choice: str, settings: Settings) -> Settings:
    """Return the settings of a policy by its name here."""
    if choice != "fifo":
        return msgspec.structs.replace(settings, policy=choice)
    bands = tuple(msgspec.structs.replace(band, patience=0.0) for band in settings.bands)
    return msgspec.structs.replace(settings, policy="strict", bands=bands)


def replay_of(
    choice: str, requests: Sequence[Request], on: Sequence[EngineModel], settings: Settings
) -> Replay:
    """Return a replay under a policy, ready to run."""
    if choice == "fifo":
        requests = [msgspec.structs.replace(each, priority=_EQUAL) for each in requests]
    room = {"jobs_open": len(requests) + 1, "jobs_open_per_user": len(requests) + 1, "jobs_kept": 1000}
    return Replay(requests, on, msgspec.structs.replace(chosen(choice, settings), **room))


def told(replay: Replay, requests: Sequence[Request], settings: Settings) -> Figures:
    """Return the figures of a replay that has ended, requests by the priorities that they came with."""
    in_order = sorted(requests, key=lambda each: each.at_ms)
    for request, each in zip(in_order, replay.served.values(), strict=True):
        each.request = request
    return figures_of(replay, settings)


def forecast(
    choice: str,
    requests: Sequence[Request],
    on: Sequence[EngineModel],
    settings: Settings,
    progress: Callable[[int], None] | None = None,
) -> Figures:
    """Run a trace through the core under a policy and return what it came to.

    Args:
        choice: one of CHOICES.
        requests: the trace.
        on: the endpoints.
        settings: bands, weights and rates; its policy is not looked at.
        progress: told now and then how many requests are left.
    """
    replay = replay_of(choice, requests, on, settings)
    for _ in _some(replay.turns()):
        if progress is not None:
            progress(replay.left)
    return told(replay, requests, settings)


def _some(turns: Iterator[None]) -> Iterator[None]:
    for number, _ in enumerate(turns):
        if number % 1000 == 0:
            yield


def _within(field: str, text: str, most: int) -> int:
    limit = f"1 to {most}"
    try:
        value = int(text)
    except ValueError:
        raise BadEndpoints(field, text, limit) from None
    if not 1 <= value <= most:
        raise BadEndpoints(field, text.strip(), limit)
    return value
