"""The scheduling policies by name. All are the one engine in other settings: add a way to set it, and its line here."""

from collections.abc import Callable

import msgspec

from lmq_broker.core.limits import Limits
from lmq_broker.core.policies.base import Policy
from lmq_broker.core.policies.blfq import Blfq
from lmq_broker.core.policies.lanes import band_of
from lmq_broker.core.settings import BandSettings, Settings
from lmq_proto.bounds import PRIORITY_MAX


def _strict(settings: Settings, limits: Limits) -> Policy:
    """By priority, then arrival, whoever asked; the loaded model is preferred as its band has patience."""
    bands = tuple(
        BandSettings(str(priority), priority, 0.0, settings.bands[band_of(priority, settings)].patience)
        for priority in range(PRIORITY_MAX, -1, -1)
    )
    return Blfq(msgspec.structs.replace(settings, bands=bands, shares=False), limits)


def _vtc(settings: Settings, limits: Limits) -> Policy:
    """Fair shares by what was received, nothing foreseen, no regard to what is loaded: to compare with."""
    bands = tuple(msgspec.structs.replace(band, patience=0.0) for band in settings.bands)
    return Blfq(msgspec.structs.replace(settings, bands=bands, foresees=False), limits)


POLICIES: dict[str, Callable[[Settings, Limits], Policy]] = {
    "blfq": Blfq,
    "strict": _strict,
    "vtc": _vtc,
}
