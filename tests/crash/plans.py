"""What each job of the load is: known from its client's name and its number alone, to the client and to the audit."""

from __future__ import annotations

from random import Random
from typing import Any

from lmq_proto.states import State

# Kind -> how many of a hundred jobs.
_MIX = {"plain": 52, "slow": 14, "text": 12, "fails_once": 6, "dead": 4, "cancelled": 6, "delayed": 6}

# Kind -> the states in which it may end when nothing is killed.
_ENDS = {
    "plain": {State.DONE},
    "slow": {State.DONE},
    "text": {State.DONE},
    "fails_once": {State.DONE},
    "dead": {State.DEAD},
    "cancelled": {State.CANCELLED, State.DONE},
    "delayed": {State.DONE},
}


class Plan:
    """One job: kind, payload, idempotency key (or none), options."""

    __slots__ = ("key", "kind", "options", "payload")

    def __init__(self, name: str, number: int) -> None:
        chance = Random(f"{name}/{number}")
        self.kind = chance.choices(list(_MIX), list(_MIX.values()))[0]
        self.key = f"{name}/{number}" if chance.random() < 0.5 else ""
        self.payload: dict[str, Any] = {"name": name, "number": number, "x": "y" * chance.randrange(40)}
        self.options: dict[str, Any] = {"priority": chance.randrange(10), "labels": {"kind": self.kind}}
        if self.key:
            self.options["idempotency_key"] = self.key
        if self.kind == "slow":
            self.payload["delay_s"] = round(chance.uniform(0.01, 0.3), 3)
        elif self.kind == "text":
            self.payload |= {
                "pieces": chance.randrange(1, 40),
                "delay_s": round(chance.uniform(0.02, 0.4), 3),
            }
        elif self.kind == "fails_once":
            self.payload["failures"] = 1
        elif self.kind == "dead":
            self.payload["fail"] = "permanent"
        elif self.kind == "cancelled":
            self.options["delay_s"] = 1.0
        elif self.kind == "delayed":
            self.options["delay_s"] = round(chance.uniform(0.01, 0.5), 3)

    def may_end(self, state: str) -> bool:
        return state in _ENDS[self.kind]
