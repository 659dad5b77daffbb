"""What must always hold of a state. Called by tests and the simulation after every step, and once after recovery."""

from lmq_broker.core import parents
from lmq_broker.core.state import BrokerState
from lmq_proto import bounds
from lmq_proto.states import OPEN, State


def check(state: BrokerState) -> None:
    """Raise AssertionError, naming the job or worker, if the state contradicts itself."""
    counts: dict[str, dict[State, int]] = {name: dict.fromkeys(OPEN, 0) for name in state.queues}
    users: dict[str, int] = {}
    for job_id, job in state.jobs.items():
        assert job.id == job_id
        assert job.state in OPEN, f"{job.number} is {job.state} and open"
        counts[job.queue][job.state] += 1
        users[job.user] = users.get(job.user, 0) + 1
        assert (job.lease is not None) == (job.state is State.LEASED), (
            f"{job.number} {job.state} lease {job.lease}"
        )
        assert job.failures < max(1, job.terms.failures_max) or job.failures == 0, (
            f"{job.number}: too many failures"
        )
        assert job.number <= state.last_number
        assert job.order <= state.last_order
        if job.lease is not None:
            _check_lease(state, job_id)
    for name, queue in state.queues.items():
        assert queue.counts == counts[name], f"queue {name}: {queue.counts} is not {counts[name]}"
    assert users == state.users_open
    assert not state.jobs.keys() & state.finished.keys(), "a job is open and final"
    assert not state.finished.keys() & state.tombstones.keys(), "a job is final and deleted"
    _check_parents(state)
    for key, order in state.orders.items():
        assert key == (order.worker, order.model)
        assert order.kind == "pin" or not order.until_ms
    _check_workers(state)
    _check_sessions(state)


def _check_parents(state: BrokerState) -> None:
    """Who is blocked waits for somebody who can still end, and nobody else does; ancestors have their priority."""
    for parent, children in state.children.items():
        assert children
        assert len(children) <= bounds.CHILDREN
        assert (parent in state.jobs) != (parent in state.settling), "children of nobody"
        for child_id in children:
            child = state.jobs[child_id]
            assert child.state is State.BLOCKED, f"{child.number} waits and is {child.state}"
            assert parent in child.terms.parents
    freed = {job.id for job in state.freed}
    for job in state.jobs.values():
        if job.state is State.BLOCKED:
            assert parents.awaited(state, job) or job.id in freed, f"{job.number} is blocked by nobody"
        if not state.unweighed:
            wanted = parents.wanted_priority(state, job)
            assert job.priority == wanted, f"{job.number} has priority {job.priority} instead of {wanted}"
        own = job.past.own_priority
        assert own is None or own < job.priority, f"{job.number} is lifted from {own} to {job.priority}"


def _check_lease(state: BrokerState, job_id: bytes) -> None:
    """A lease is in exactly one worker's hands, or in doubt."""
    job = state.jobs[job_id]
    lease = job.lease
    assert lease is not None
    assert lease.job is job
    assert not lease.stopping
    key = (job.id, lease.epoch, lease.attempt)
    holders = [worker.name for worker in state.workers.values() if key in worker.leases]
    assert len(holders) + (key in state.orphans) == 1, (
        f"{job.number}: held by {holders}, in doubt {key in state.orphans}"
    )
    assert (lease.epoch, lease.attempt) == (job.epoch, job.attempt)


def _check_workers(state: BrokerState) -> None:
    for worker in state.workers.values():
        slots: dict[str, set[int]] = {}
        for lease in worker.leases.values():
            if lease.parked_since_ms is None:
                slots.setdefault(lease.instance_id, set()).add(id(lease.slot))
            assert lease.stopping or lease.job.lease is lease, (
                f"{worker.name} holds a lease the job does not know"
            )
        assert worker.busy == sum(map(len, slots.values())), f"{worker.name}: {worker.busy} slots are busy"
        for instance in worker.instances.values():
            count = len(slots.get(instance.id, ()))
            assert instance.leased == count, f"{worker.name}/{instance.id}: {instance.leased} is not {count}"
        assert worker.peer is None or worker.peer in state.sessions, f"{worker.name} has no session"
        assert worker.peer is not None or not worker.leases, f"{worker.name} is gone and holds leases"


def _check_sessions(state: BrokerState) -> None:
    for peer, session in state.sessions.items():
        assert session.peer == peer
        for reader in session.readers.values():
            assert reader in state.text_readers[reader.job_id]
        assert len(session.follows) <= state.settings.follows
    for job_id, peers in state.followers.items():
        assert job_id in state.jobs, "a job that is not open has followers"
        for follower in peers:
            assert job_id in state.sessions[follower].follows
    for peer in state.subscribers:
        assert peer in state.sessions
