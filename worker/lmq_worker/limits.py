"""The limit of each instance of one endpoint: what is reported as its slots, and why. The caller brings the time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from lmq_worker.concurrency import Bounds, KneeFit, LimitedBy

if TYPE_CHECKING:
    from collections.abc import Callable

    from lmq_proto.messages import Capacity, InstanceInfo
    from lmq_worker.config import WorkerConfig

log = logging.getLogger(__name__)

# Fits of instances that are no longer loaded are kept up to here.
FITS = 256


class Limits:
    """Bounds what was found at an endpoint by what its instances bear.

    A look at the endpoint says `slots` 0 of an instance where the endpoint does not tell; then they are to be found.
    """

    def __init__(
        self, config: WorkerConfig, *, shares_cache: bool = False, changed: Callable[[], None]
    ) -> None:
        """Know no instance yet.

        Args:
            config: `concurrency` and what belongs to it.
            shares_cache: the jobs of an instance share its context.
            changed: called when a limit is no longer what was reported, until it is.
        """
        self._config, self._shares_cache, self._changed = config, shares_cache, changed
        self._fits: dict[str, Fit] = {}

    def bounded(self, capacity: Capacity, now_s: float) -> Capacity:
        """Return what to report of what was found."""
        if self._config.pinned:
            instances = [
                msgspec.structs.replace(one, limit_by=LimitedBy.SETTING) for one in capacity.instances
            ]
            return msgspec.structs.replace(capacity, instances=instances)
        writers = [one for one in capacity.instances if one.kind != "embedding"]
        # Who lists several models and says nothing of slots may swap them: two at once would make it swap all the time.
        adapts = len(writers) == 1
        instances, fits = [], {}
        for one in capacity.instances:
            slots = one.slots or (0 if adapts and one.kind != "embedding" else 1)
            fit = self._fit(one, slots, now_s)
            fits[one.instance_id] = fit
            instances.append(msgspec.structs.replace(one, slots=fit.told, limit_by=fit.told_by))
        # A model that comes back is what it was.
        self._fits = {**self._fits, **fits} if len(self._fits) < FITS else fits
        total = None if capacity.slots is None else max((one.slots for one in instances), default=1)
        return msgspec.structs.replace(capacity, instances=instances, slots=total)

    def watch(self, instance_id: str, now_s: float) -> Watch | None:
        """Take note that a job which is answered as a stream begins; None where no limit is kept."""
        fit = self._fits.get(instance_id)
        return None if fit is None else Watch(self, instance_id, fit, now_s)

    def moved(self, instance_id: str, fit: Fit) -> None:
        """Ask to be reported if a limit is no longer what it was, and still counts."""
        if fit.told != fit.knee.limit and self._fits.get(instance_id) is fit:
            self._changed()

    def _fit(self, instance: InstanceInfo, slots: int, now_s: float) -> Fit:
        """Return the fit of an instance, a new one if the instance is not what it was; what it says now is reported."""
        bounds = Bounds(
            gap_s=self._config.token_gap_max_s,
            most=self._config.concurrency_max,
            slots=slots,
            cache_tokens=instance.context_tokens if self._shares_cache else 0,
        )
        fit = self._fits.get(instance.instance_id)
        if fit is None or fit.bounds != bounds:
            return Fit(bounds, now_s)
        fit.knee.tick(now_s)
        if fit.knee.limit != fit.told:
            log.info(
                "limit_changed",
                extra={
                    "instance_id": instance.instance_id,
                    "limit": fit.knee.limit,
                    "was": fit.told,
                    "limit_by": str(fit.knee.limited_by),
                    "base_ms": round(1000 * fit.knee.line.base_s, 1),
                    "per_stream_ms": round(1000 * fit.knee.line.per_stream_s, 2),
                    "running": fit.knee.running,
                },
            )
            fit.tell()
        return fit


class Fit:
    """One instance: what is known of it, and what was reported last."""

    def __init__(self, bounds: Bounds, now_s: float) -> None:
        self.bounds = bounds
        self.knee = KneeFit(bounds, now_s)
        self.tell()

    def tell(self) -> None:
        """Take what it says now for reported. Only the limit makes a report: its reason alone is no news."""
        self.told, self.told_by = self.knee.limit, str(self.knee.limited_by)


class Watch:
    """One job at an instance, told to its limit."""

    __slots__ = ("_fit", "_instance_id", "_limits", "_request")

    def __init__(self, limits: Limits, instance_id: str, fit: Fit, now_s: float) -> None:
        self._limits, self._instance_id, self._fit = limits, instance_id, fit
        self._request = fit.knee.begin(now_s)

    def piece(self, now_s: float) -> None:
        """Take note of a piece of text, which counts as one token: servers that send more at once seem slow."""
        self._fit.knee.piece(self._request, now_s)
        self._limits.moved(self._instance_id, self._fit)

    def over(self, now_s: float, *, overloaded: bool, tokens: int = 0) -> None:
        """Take note of the end, whatever it was; `tokens` as in `KneeFit.end`."""
        if overloaded:
            self._fit.knee.fail(self._request, now_s)
        else:
            self._fit.knee.end(self._request, now_s, tokens=tokens)
        self._limits.moved(self._instance_id, self._fit)
