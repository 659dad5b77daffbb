"""Procrastinate on a PostgreSQL of our own. Accept only: it keeps no results for a submitter to wait for.

Settings chosen, each a documented one:

- PostgreSQL as it ships, fsync and synchronous_commit on, TCP on loopback; only `shared_buffers` is raised to a
  quarter of a gigabyte, which a table that fits wants.
- Submitter: the synchronous psycopg pool of THREADS connections, `defer` one by one from as many threads, so that
  commits share a sync; bulk by `batch_defer`, BULK_JOBS to one statement and commit.

PostgreSQL refuses to run as root. For root, the account `postgres` is used, which its package makes.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import PAYLOAD, Facts, submit_in_threads, timed
from benchmarks.processes import HOST, Children, accepts_connections, free_port, which

if TYPE_CHECKING:
    from procrastinate.tasks import Task

INSTALL = "apt install postgresql"

# The fastest of 1, 2, 4, 8, 16 in a trial on two cores.
THREADS = 4

# Jobs to one statement; 100 and 5000 were no faster in the same trial.
BULK_JOBS = 1000

ACCOUNT = "postgres"
INITDB_TIMEOUT_S = 60


def server_program(name: str) -> Path | None:
    """Return a program of PostgreSQL, the newest where several versions are installed off PATH."""
    versioned = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: folder.parent.name.zfill(4)
    )
    return which(name, *reversed(versioned))


def account() -> str | None:
    """Return the account to run the server as: None for our own, which must not be root's."""
    return ACCOUNT if os.geteuid() == 0 else None


class ProcrastinatePostgres:
    """Procrastinate, with a cluster made for the session."""

    def __init__(self) -> None:
        self._children: Children | None = None
        self._open = contextlib.ExitStack()
        self._noop: Task[Any, Any, Any] | None = None

    @property
    def facts(self) -> Facts:
        """What to print beside the figures."""
        return Facts(
            title="Procrastinate + PostgreSQL",
            accepted_means="fsync before the ack",
            fsync_before_ack=True,
            submitter=f"{THREADS} threads; bulk by `batch_defer` of {BULK_JOBS}",
            worker="not measured: it keeps no results",
        )

    def missing(self) -> str | None:
        """Return what to install, None if nothing."""
        if importlib.util.find_spec("procrastinate") is None:
            return "pip install procrastinate psycopg[binary,pool]"
        if server_program("postgres") is None or server_program("initdb") is None:
            return INSTALL
        if account() is not None and not any(entry.pw_name == ACCOUNT for entry in pwd.getpwall()):
            return f"{INSTALL} (as root, the account {ACCOUNT} is needed)"
        return None

    def start(self, directory: Path) -> None:
        """Make a cluster, start it, lay the tables."""
        self._children = Children(directory)
        port = free_port()
        self._start_server(directory, port)
        self._noop = self._connect(port)

    def start_worker(self) -> None:
        """Start nothing: there is nothing a worker could be measured by."""

    def accept_windowed(self, jobs: int) -> float:
        """Submit from THREADS threads, each on a connection of its own."""
        noop = self._noop
        assert noop is not None, "start comes first"
        return submit_in_threads(lambda: noop.defer(payload=PAYLOAD), jobs, THREADS)

    def accept_bulk(self, jobs: int) -> float:
        """Submit BULK_JOBS to a commit."""
        noop = self._noop
        assert noop is not None, "start comes first"

        def run() -> None:
            for done in range(0, jobs, BULK_JOBS):
                noop.batch_defer(*({"payload": PAYLOAD} for _ in range(min(BULK_JOBS, jobs - done))))

        return timed(run)

    def end_to_end(self, jobs: int, window: int) -> None:
        """No results, no figure."""

    def one_at_a_time(self, jobs: int) -> None:
        """No results, no figure."""

    def stop(self) -> None:
        """Close the connections, end the server."""
        self._open.close()
        self._noop = None
        if self._children is not None:
            self._children.stop()

    def _start_server(self, directory: Path, port: int) -> None:
        assert self._children is not None, "start comes first"
        initdb, postgres = server_program("initdb"), server_program("postgres")
        assert initdb is not None, "missing() is asked first"
        assert postgres is not None, "missing() is asked first"
        cluster = directory / "cluster"
        cluster.mkdir()
        owner = account()
        if owner is not None:
            # The session's folder is ours alone; the server's account must get through to its own part of it.
            shutil.chown(cluster, owner, owner)
            directory.chmod(0o711)
        as_account = f"--username={ACCOUNT}"
        subprocess.run(
            [initdb, "--pgdata", cluster, as_account, "--auth=trust", "--no-sync", "--encoding=UTF8"],
            check=True,
            capture_output=True,
            timeout=INITDB_TIMEOUT_S,
            cwd=cluster,
            user=owner,
            group=owner,
            extra_groups=[] if owner else None,
        )
        options = {
            "listen_addresses": HOST,
            "port": str(port),
            "unix_socket_directories": "",
            "shared_buffers": "256MB",
        }
        command: list[str | Path] = [postgres, "-D", cluster]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._children.start_server(command, accepts_connections(port), account=owner)

    def _connect(self, port: int) -> "Task[Any, Any, Any]":
        # Imported here, so that a machine without Procrastinate still lists this peer as not installed.
        import psycopg
        from procrastinate import App, SyncPsycopgConnector

        conninfo = f"host={HOST} port={port} user={ACCOUNT} dbname=postgres"
        # The port answers a moment before the database does.
        for _ in range(100):
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(conninfo).close()
                break
        connector = SyncPsycopgConnector(conninfo=conninfo, min_size=THREADS, max_size=THREADS)
        app = App(connector=connector)
        self._open.enter_context(app.open())
        app.schema_manager.apply_schema()

        def noop(payload: str) -> str:
            return payload

        return app.task(name="noop")(noop)
