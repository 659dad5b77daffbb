"""The queues that are measured side by side, by name. One line here and one file beside it is a new one."""

from collections.abc import Callable
from functools import partial

from benchmarks.peers.base import Peer
from benchmarks.peers.beanstalkd import Beanstalkd
from benchmarks.peers.celery_redis import CeleryRedis
from benchmarks.peers.dramatiq_redis import DramatiqRedis
from benchmarks.peers.huey_sqlite import HueySqlite
from benchmarks.peers.lmq_itself import LmqItself
from benchmarks.peers.procrastinate_postgres import ProcrastinatePostgres
from benchmarks.peers.redis_server import Appendfsync
from benchmarks.peers.rq_redis import RqRedis

# What ratios are taken of, and what they are taken against; both may be left out of a run.
OURS = "lmq"
BASELINE = "celery"

# The order of the table and of each round. lmq's own line, under the name OURS, goes first.
PEERS: dict[str, Callable[[], Peer]] = {
    OURS: LmqItself,
    "celery": partial(CeleryRedis, Appendfsync.EVERYSEC),
    "celery-always": partial(CeleryRedis, Appendfsync.ALWAYS),
    "dramatiq": partial(DramatiqRedis, Appendfsync.EVERYSEC),
    "dramatiq-always": partial(DramatiqRedis, Appendfsync.ALWAYS),
    "rq": partial(RqRedis, Appendfsync.EVERYSEC),
    "rq-always": partial(RqRedis, Appendfsync.ALWAYS),
    "huey": HueySqlite,
    "beanstalkd": Beanstalkd,
    "procrastinate": ProcrastinatePostgres,
}
