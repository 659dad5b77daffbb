"""A Redis of our own, for the peers that stand on Redis. Not a peer itself."""

from enum import StrEnum
from pathlib import Path

from benchmarks.processes import HOST, Children, accepts_connections, free_port, which

INSTALL = "apt install redis-server"


class Appendfsync(StrEnum):
    """When Redis syncs its append-only file."""

    # At most once a second, in the background; what Redis ships with and most people run.
    EVERYSEC = "everysec"
    # Before the replies of each turn of its loop leave: one sync for all clients that wrote in that turn.
    ALWAYS = "always"

    @property
    def accepted_means(self) -> str:
        """What an acknowledged write has behind it, in a few words."""
        return "fsync before the ack" if self is Appendfsync.ALWAYS else "in memory; fsync within a second"


def redis_missing() -> str | None:
    """Return how to install the server, None when it is there."""
    return None if which("redis-server") else INSTALL


def start_redis(children: Children, directory: Path, appendfsync: Appendfsync) -> str:
    """Start a Redis with an append-only file in `directory`; return its URL.

    Snapshots are off: they would be a second, redundant copy and their fork a stutter in the figures.
    """
    program = which("redis-server")
    assert program is not None, "missing() is asked first"
    port = free_port()
    settings = {
        "bind": HOST,
        "port": str(port),
        "dir": f'"{directory}"',
        "daemonize": "no",
        "save": '""',
        "appendonly": "yes",
        "appendfsync": appendfsync.value,
        # A rewrite of the file in the middle of a run would hit one peer by chance.
        "auto-aof-rewrite-percentage": "0",
        "maxclients": "200",
    }
    config = directory / "redis.conf"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    children.start_server([program, config], accepts_connections(port))
    return f"redis://{HOST}:{port}/0"
