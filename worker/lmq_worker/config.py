"""Every setting of a worker: one field each, with unit and default. The only file that reads the environment.

Order: command line over environment (`LMQ_WORKER_NAME_OF_FIELD`, `LMQ_URL`) over the file's `[worker.NAME]` over its
`[worker]` over the defaults here.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tomllib
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
import platformdirs

from lmq_proto.errors import LmqError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PORT = 7766
"""Where a broker listens unless told otherwise."""

DEFAULT_ENDPOINTS = {"lm_studio": "http://127.0.0.1:1234", "openai": "http://127.0.0.1:8080"}

SLOTS_MOST = 4096
"""What a worker may report of an instance."""

# Settings that have another name now.
_ALSO = {"slots": "concurrency"}


class BadSetting(LmqError):
    """A setting holds something it may not hold, or has a name nobody knows."""

    code = "bad_setting"

    def __init__(self, setting: str, where: str, why: str) -> None:
        super().__init__(f"{setting} ({where}): {why}", setting=setting, where=where, why=why)
        self.setting, self.where, self.why = setting, where, why


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Settings of one worker process."""

    name: str = ""
    """What people see; empty: made from host and endpoint."""
    endpoint: str = ""
    """URL of the model server; empty: the backend's usual one on this machine."""
    backend: str = "auto"
    """`lm_studio`, `openai`, `echo`, or `auto`: look at the endpoint."""
    concurrency: int | Literal["auto"] = "auto"
    """Jobs at once at an instance. `auto`: the slots that the endpoint has, or as many as it is found to bear where it
    does not say; a number: that many, whatever happens."""
    concurrency_max: int = 256
    """`auto` goes no higher where the endpoint does not say how many slots it has."""
    token_gap_max_s: float = 0.1
    """There `auto` keeps the mean time from one token of an answer to the next below this."""
    queues: list[str] = field(default_factory=list)
    """Queues it serves; none means all."""
    broker: list[str] = field(default_factory=list)
    """Addresses of the broker, tried in turn; none: `LMQ_URL`, or the local broker."""
    reach_timeout_s: float = 5.0
    """How long one address of the broker is tried before the next."""
    api_token: str = ""
    """Sent to the endpoint as a bearer token."""

    may_load: bool = True
    """Load and unload models when the broker says so (lm_studio)."""
    models_max: int = 0
    """Models in the endpoint's memory at once; 0: as many as fit."""
    load_timeout_s: float = 900.0
    """A load that takes longer has failed."""
    poll_s: float = 5.0
    """How often the endpoint is looked at."""
    loading_poll_s: float = 1.0
    """The same while a model loads."""

    connect_timeout_s: float = 5.0
    write_timeout_s: float = 30.0
    first_byte_timeout_s: float = 600.0
    """Longest silence before the first text of an answer: loading and reading a long prompt are silent."""
    between_chunks_timeout_s: float = 120.0
    """Longest silence inside an answer."""
    cancel_grace_s: float = 2.0
    """How long a slot stays taken after its request was cut off: the server finishes reading the prompt first."""
    embed_slice: int = 32
    """Inputs in one request of `bulk_embed`."""
    slices_bytes: int = 256 * 1024 * 1024
    """Room for vectors of `bulk_embed` jobs that are not finished."""

    breaker_failures: int = 5
    """Connection failures in a row after which the endpoint counts as down."""
    breaker_probe_s: float = 1.0
    """First wait before a down endpoint is tried again; doubles, with jitter."""
    breaker_probe_max_s: float = 30.0

    drain_timeout_s: float = 5.0
    """How long running jobs may go on after SIGTERM."""
    ack_timeout_s: float = 2.0
    """How long results may wait for their acknowledgement at the end, before they are spooled."""
    state_dir: str = ""
    """Where spools lie; empty: systemd's STATE_DIRECTORY, or the user's state directory."""
    spool_bytes: int = 256 * 1024 * 1024
    """Room for results that no broker has acknowledged."""

    echo_slots: int = 64
    echo_may_crash: bool = False
    """Let a payload with `crash` end this process (tests)."""

    log_level: str = "info"
    log_format: str = "auto"
    """`plain`, `json`, or `auto`: plain on a terminal or under systemd."""

    notify_socket: str = ""
    """Where systemd listens (NOTIFY_SOCKET)."""
    watchdog_usec: int = 0
    """How often systemd wants a sign of life, in microseconds (WATCHDOG_USEC)."""

    @property
    def pinned(self) -> int:
        """How many jobs at once were asked for; 0: `auto`."""
        return 0 if self.concurrency == "auto" else self.concurrency

    @property
    def spool_dir(self) -> Path:
        """The directory of this endpoint's spool."""
        base = (
            Path(self.state_dir) if self.state_dir else platformdirs.user_state_path("lmq", appauthor=False)
        )
        return base / "worker" / (re.sub(r"[^A-Za-z0-9._-]+", "_", self.endpoint).strip("_") or "endpoint")


def load_config(overrides: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> WorkerConfig:
    """Return the settings from file, environment and command line.

    Args:
        overrides: what the command line says, by field; None means not said.
        environment: stands in for the process's own (tests).

    Raises:
        BadSetting: a value does not fit, or a name is unknown.
    """
    env = os.environ if environment is None else environment
    said = {name: value for name, value in overrides.items() if value is not None}
    name = said.get("name") or env.get("LMQ_WORKER_NAME", "")
    config = _from_file(WorkerConfig(), env, str(name))
    config = _from_environment(config, env)
    config = replace(config, **said)
    _check(config)
    return config


def complete(config: WorkerConfig) -> WorkerConfig:
    """Return settings whose empty fields are filled in; `backend` is known by now."""
    host = socket.gethostname().partition(".")[0] or "worker"
    if config.backend == "echo":
        name = config.name or f"{host}-echo"
        endpoint = config.endpoint or f"echo:{name}"
    else:
        endpoint = base_url(config.endpoint or DEFAULT_ENDPOINTS[config.backend])
        where = urlsplit(endpoint)
        on_host = host if where.hostname in LOOPBACK else where.hostname
        name = config.name or f"{on_host}-{where.port or where.scheme}"
    return replace(config, name=name, endpoint=endpoint, broker=config.broker or [local_broker()])


def base_url(endpoint: str) -> str:
    """Return the URL that paths are put behind: without the /v1 that OpenAI clients want."""
    return endpoint.rstrip("/").removesuffix("/v1")


LOOPBACK = ("127.0.0.1", "localhost", "::1")


def local_broker() -> str:
    """Return the address of the broker on this machine: its ipc socket, this account's first; else the usual port."""
    if sys.platform != "win32":
        with warnings.catch_warnings():
            # Without XDG_RUNTIME_DIR it falls back to a directory in /tmp and says so; the broker does the same.
            warnings.simplefilter("ignore", UserWarning)
            own = platformdirs.user_runtime_path("lmq", appauthor=False) / "broker.sock"
        if own.exists() and own.parent.stat().st_uid in (0, os.getuid()):
            return f"ipc://{own}"
        machines = Path("/run/lmq/broker.sock")
        if machines.exists():
            return f"ipc://{machines}"
    return f"tcp://127.0.0.1:{DEFAULT_PORT}"


def config_file(env: Mapping[str, str]) -> Path:
    """Return where the settings file is looked for."""
    named = env.get("LMQ_CONFIG")
    return Path(named) if named else platformdirs.user_config_path("lmq", appauthor=False) / "config.toml"


def _from_file(config: WorkerConfig, env: Mapping[str, str], name: str) -> WorkerConfig:
    path = config_file(env)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if env.get("LMQ_CONFIG"):
            raise BadSetting("LMQ_CONFIG", "environment", f"there is no file {path}") from None
        return config
    except OSError as error:
        raise BadSetting("config", str(path), str(error)) from error
    try:
        whole = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadSetting("config", str(path), str(error)) from error
    table = whole.get("worker", {})
    if not isinstance(table, dict):
        raise BadSetting("worker", str(path), "must be a table: [worker]")
    general = {key: value for key, value in table.items() if not isinstance(value, dict)}
    named = table.get(name or str(general.get("name", "")), {})
    own = named if isinstance(named, dict) else {}
    if name and own:
        own = {"name": name, **own}
    return _with(config, {**general, **own}, str(path))


def _from_environment(config: WorkerConfig, env: Mapping[str, str]) -> WorkerConfig:
    values: dict[str, Any] = {}
    types = get_type_hints(WorkerConfig)
    for name in (*types, *_ALSO):
        text = env.get(f"LMQ_WORKER_{name.upper()}")
        if text is not None:
            values[name] = text.split(",") if get_origin(types.get(name)) is list else text
    if "broker" not in values and env.get("LMQ_URL"):
        values["broker"] = env["LMQ_URL"].split(",")
    if "state_dir" not in values and env.get("STATE_DIRECTORY"):
        values["state_dir"] = env["STATE_DIRECTORY"].partition(":")[0]
    if env.get("NOTIFY_SOCKET"):
        values["notify_socket"] = env["NOTIFY_SOCKET"]
        if env.get("WATCHDOG_USEC") and env.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            values["watchdog_usec"] = env["WATCHDOG_USEC"]
    return _with(config, values, "environment")


def _with(config: WorkerConfig, values: Mapping[str, Any], where: str) -> WorkerConfig:
    types = get_type_hints(WorkerConfig)
    checked: dict[str, Any] = {}
    for name, value in values.items():
        field_name = _ALSO.get(name, name)
        if field_name not in types:
            raise BadSetting(name, where, f"unknown; known are {', '.join(sorted(types))}")
        kind = types[field_name]
        listed = [value] if get_origin(kind) is list and isinstance(value, str) else value
        try:
            # Text from the environment may stand for a number or a yes/no.
            checked[field_name] = msgspec.convert(listed, kind, strict=not isinstance(value, str))
        except msgspec.ValidationError as error:
            raise BadSetting(name, where, f"{error}, got {value!r}") from error
    return replace(config, **checked)


_NOT_NEGATIVE = ("drain_timeout_s", "ack_timeout_s", "cancel_grace_s", "spool_bytes", "slices_bytes")
_POSITIVE = (
    "reach_timeout_s", "poll_s", "loading_poll_s", "connect_timeout_s", "write_timeout_s", "first_byte_timeout_s",
    "load_timeout_s", "between_chunks_timeout_s", "embed_slice", "breaker_failures", "breaker_probe_s",
    "breaker_probe_max_s", "echo_slots", "token_gap_max_s",
)  # fmt: skip


def _check(config: WorkerConfig) -> None:
    for name in _NOT_NEGATIVE:
        if getattr(config, name) < 0:
            raise BadSetting(name, "settings", f"must not be negative, got {getattr(config, name)}")
    for name in _POSITIVE:
        if getattr(config, name) <= 0:
            raise BadSetting(name, "settings", f"must be above 0, got {getattr(config, name)}")
    for name in ("concurrency", "concurrency_max"):
        value = getattr(config, name)
        if value != "auto" and not 1 <= value <= SLOTS_MOST:
            raise BadSetting(name, "settings", f"must be 1 to {SLOTS_MOST}, got {value}")
    if config.log_format not in ("plain", "json", "auto"):
        raise BadSetting("log_format", "settings", f"plain, json or auto, got {config.log_format!r}")
    if config.log_level not in ("debug", "info", "warning", "error"):
        raise BadSetting("log_level", "settings", f"debug, info, warning or error, got {config.log_level!r}")
    for address in config.broker:
        scheme, _, rest = address.partition("://")
        if scheme not in ("tcp", "ipc") or not rest:
            raise BadSetting("broker", "settings", f"tcp://HOST:PORT or ipc://PATH, got {address!r}")
        if scheme == "ipc" and sys.platform == "win32":
            raise BadSetting("broker", "settings", "there is no ipc on Windows; use tcp://HOST:PORT")
    if (
        config.endpoint
        and config.backend != "echo"
        and not config.endpoint.startswith(("http://", "https://"))
    ):
        raise BadSetting("endpoint", "settings", f"http://HOST:PORT, got {config.endpoint!r}")
