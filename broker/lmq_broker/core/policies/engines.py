"""What runs on each instance: how much of an engine's time each stream has had, and when the last is thought to end."""

import msgspec

from lmq_broker.core.limits import Running, Taken
from lmq_broker.core.policies.base import Fleet
from lmq_broker.core.policies.ledger import Flow
from lmq_broker.core.settings import Rates
from lmq_broker.core.state import Instance

RunKey = tuple[int, int, int]
"""(job number, epoch, attempt)."""


class Run(msgspec.Struct):
    """A lease as the ledger sees it."""

    pool: str
    band: int
    flow: Flow
    rates: Rates
    """Those of its dispatch: it is not priced anew later."""
    prompt_cost: float
    """As estimated; charged when the first token comes."""
    left: float
    """Of its prediction."""
    received: float = 0.0
    engine: str = ""
    """Key of the instance's clock; empty: none."""
    began_share_ms: float = 0.0
    ends_ms: float = 0.0
    """Monotonic time at which it is thought to end."""
    weight: float = 1.0
    """Of a stream; the runs of a group share one."""
    tokens: float = 0.0
    """Prompt and answer, as predicted."""
    uses: tuple[str, ...] = ()
    group: Running = ("", "", "", "", "")
    """As limits count it."""
    is_lent: bool = False
    """Its slot is: it counts against no limit, and holds nothing that it uses."""
    taken: Taken = ()
    """Of rates of tokens."""


class Engine(msgspec.Struct):
    """The clock of one instance: each of n streams has a share of 1/n of its time."""

    at_ms: int
    share_ms: float = 0.0
    streams: float = 0.0
    tokens: float = 0.0
    """That its runs may come to."""
    runs: dict[RunKey, Run] = msgspec.field(default_factory=dict)

    def advance(self, now_ms: int) -> None:
        """Let time pass."""
        if self.streams:
            self.share_ms += (now_ms - self.at_ms) / self.streams
        self.at_ms = now_ms


class Engines:
    """The clocks of all instances."""

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}

    def join(self, key: RunKey, run: Run, instance: Instance, now_ms: int) -> None:
        """A run begins on an instance; what is left of its prediction says when it ends."""
        run.engine = _name(instance)
        engine = self._engines.get(run.engine)
        if engine is None:
            engine = self._engines[run.engine] = Engine(now_ms)
        engine.advance(now_ms)
        engine.streams += run.weight
        engine.tokens += run.tokens
        engine.runs[key] = run
        run.began_share_ms = engine.share_ms
        run.ends_ms = now_ms + run.left * engine.streams

    def leave(self, key: RunKey, run: Run, now_ms: int) -> float:
        """A run is over; return the engine time it has had, 0 if that is not known."""
        engine = self._engines.get(run.engine)
        if engine is None or engine.runs.pop(key, None) is None:
            return 0.0
        engine.advance(now_ms)
        # With nothing left to run nothing is taken, whatever rounding has left over.
        engine.streams = engine.streams - run.weight if engine.runs else 0.0
        engine.tokens = engine.tokens - run.tokens if engine.runs else 0.0
        return (engine.share_ms - run.began_share_ms) * run.weight

    def streams(self, instance: Instance) -> float:
        """Return how many streams an instance has."""
        engine = self._engines.get(_name(instance))
        return 0.0 if engine is None else engine.streams

    def tokens(self, instance: Instance) -> float:
        """Return what the runs of an instance may come to together, prompts and answers."""
        engine = self._engines.get(_name(instance))
        return 0.0 if engine is None else engine.tokens

    def ends_ms(self, instance: Instance) -> float:
        """Return the monotonic time at which the last run of an instance is thought to end; 0: nothing runs."""
        engine = self._engines.get(_name(instance))
        return max((run.ends_ms for run in engine.runs.values()), default=0.0) if engine is not None else 0.0

    def forget_others(self, fleet: Fleet) -> None:
        """Drop the clocks of instances that are no more."""
        known = {_name(each) for worker in fleet.workers.values() for each in worker.instances.values()}
        for name in [name for name, engine in self._engines.items() if name not in known and not engine.runs]:
            del self._engines[name]


def _name(instance: Instance) -> str:
    return f"{instance.worker.name}/{instance.id}"
