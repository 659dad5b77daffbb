"""Users of an app that share as one: one flow for all of them in the ledger, and inside it they take turns.

A turn is one job, whatever it costs. Priority goes before turns; a user's own jobs keep their order. A limit that holds
one of the users sets that user aside and nobody else.
"""

import heapq
from collections.abc import Iterator
from itertools import islice

from lmq_broker.core.policies.ledger import Flow, Standing
from lmq_broker.core.policies.lines import JobLine, Line, Place
from lmq_broker.core.policies.places import LaneKey
from lmq_broker.core.state import Job

_SPARE = 64
"""Users who do not wait and are remembered in any case."""


class Members:
    """Who of an app's users has had how many turns. Nobody banks any: who comes begins where those who wait are."""

    __slots__ = ("_made", "_most", "_virtual", "_waiting", "flows")

    def __init__(self) -> None:
        self.flows: dict[str, Flow] = {}
        """User -> its turns as `service`, its jobs as `lines`."""
        self._virtual = 0.0
        self._most = 0.0
        self._waiting = Standing(_turns)
        self._made = 0

    def enter(self, user: str, jobs: int = 1) -> Flow:
        """Jobs of a user are queued."""
        flow = self._flow(user)
        if not flow.queued:
            self._stand_in_line(flow)
        flow.queued += jobs
        return flow

    def rest(self, flow: Flow) -> None:
        """A limit holds a user: nobody waits for it."""
        self._waiting.drop(flow)

    def return_(self, flow: Flow) -> None:
        """Nothing holds a user any more: it begins where the others are, a limit earns no turns."""
        self._stand_in_line(flow)

    def leave(self, flow: Flow) -> None:
        """A job of a user is queued no more."""
        flow.queued -= 1
        if not flow.queued:
            self._waiting.drop(flow)

    def take_turn(self, user: str) -> None:
        """A job of a user has started."""
        flow = self._flow(user)
        flow.service += 1.0
        self._most = max(self._most, flow.service)
        if len(self.flows) > 2 * len(self._waiting) + _SPARE:
            # They would begin here in any case.
            self.flows = {
                name: each for name, each in self.flows.items() if each.queued or each.service > self._virtual
            }

    def _stand_in_line(self, flow: Flow) -> None:
        """Lift a user to where those are who wait; where nobody does, what was is forgiven."""
        first = self._waiting.first()
        self._virtual = max(self._virtual, self._most if first is None else first[0])
        flow.service = max(flow.service, self._virtual)
        self._waiting.put(flow)

    def _flow(self, user: str) -> Flow:
        flow = self.flows.get(user)
        if flow is None:
            self._made += 1
            flow = self.flows[user] = Flow(user, 0, 1.0, self._made)
            flow.service = self._virtual
        return flow


class PooledLine:
    """Jobs of an app's users that can run in the same places. What a `JobLine` is for one user."""

    __slots__ = ("_aside", "_homes", "_members", "_standing", "key", "size")

    def __init__(self, key: LaneKey, homes: dict[int, JobLine], members: Members) -> None:
        self.key = key
        self.size = 0
        self._homes = homes
        self._members = members
        self._standing = Standing(self._turn_of)
        self._aside: dict[Flow, None] = {}
        """Users whom a limit holds."""

    def add(self, job: Job) -> None:
        """Put a job into its user's line."""
        member = self._members.enter(job.user)
        line = member.lines.get(self.key)
        if line is None:
            line = member.lines[self.key] = JobLine(self.key, self._homes)
        line.add(job)
        self.size += 1
        if member not in self._aside:
            self._standing.put(member)

    def adopt(self, user: str, line: Line) -> None:
        """Take in the line of a user who had the flow alone so far."""
        member = self._members.enter(user, line.size)
        member.lines[self.key] = line
        self.size += line.size
        self._standing.put(member)

    def remove(self, job: Job) -> None:
        """Take a job out, wherever it stands."""
        member = self._members.flows[job.user]
        line = member.lines[self.key]
        line.remove(job)
        self.size -= 1
        if not line.size:
            del member.lines[self.key]
            self._standing.drop(member)
            self._aside.pop(member, None)
        self._members.leave(member)

    def head(self) -> tuple[Place, Job]:
        """Return the first job and its place; there must be one whom no limit holds."""
        first = self._standing.first()
        assert first is not None, "a line of nobody was asked for its head"
        return first[1].lines[self.key].head()

    def first(self, count: int) -> list[Job]:
        """Return the first jobs, users in turn, as many as are wanted and there; of those whom no limit holds."""
        members = heapq.nsmallest(count, self._standing.noted, key=self._standing_of)
        return list(islice(self._in_turn(members), count))

    def walk(self) -> Iterator[Job]:
        """Yield the jobs, users in turn, of those whom no limit holds; nothing may be put in or taken out meanwhile."""
        return self._in_turn(list(self._standing.noted))

    def _in_turn(self, members: list[Flow]) -> Iterator[Job]:
        for turn in heapq.merge(*(self._turns_of(member) for member in members)):
            yield turn[-1]

    def _turns_of(self, member: Flow) -> Iterator[tuple[int, float, int, int, Job]]:
        for number, job in enumerate(member.lines[self.key].walk()):
            yield -job.priority, member.service + number, member.number, job.number, job

    def before(self, job: Job) -> int:
        """Return how many jobs come before a job of one of the users."""
        own = self._members.flows[job.user]
        line = own.lines.get(self.key)
        mine = 0 if line is None else line.before(job)
        turn = own.service + mine
        others = 0
        for member in (*self._standing.noted, *self._aside):
            if member is not own:
                others += min(member.lines[self.key].size, max(0, int(turn - member.service) + 1))
        return mine + others

    @property
    def is_held(self) -> bool:
        """Whether a limit holds everybody who has jobs here."""
        return not len(self._standing)

    def set_aside(self, user: str) -> None:
        """A limit holds a user."""
        member = self._members.flows[user]
        self._standing.drop(member)
        self._members.rest(member)
        self._aside[member] = None

    def bring_back(self) -> None:
        """Let all whom a limit held stand in line again."""
        for member in self._aside:
            self._members.return_(member)
            self._standing.put(member)
        self._aside.clear()

    def _turn_of(self, member: Flow) -> tuple[int, float]:
        return member.lines[self.key].head()[0][0], member.service

    def _standing_of(self, member: Flow) -> tuple[tuple[int, float], int]:
        """Return where a user stands; of two with the same turn the one who came first, as at the head."""
        return self._turn_of(member), member.number


def pool(flow: Flow, homes: dict[int, JobLine]) -> Members:
    """Make a flow one of several users; what it has queued so far is of the one it is named after."""
    flow.members = members = Members()
    for key, line in flow.lines.items():
        pooled = flow.lines[key] = PooledLine(key, homes, members)
        pooled.adopt(flow.user, line)
    return members


def _turns(flow: Flow) -> float:
    return flow.service
