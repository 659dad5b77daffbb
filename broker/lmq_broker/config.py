"""The broker's settings: file under environment under command line, each with its unit and default.

The only file of the broker that reads the environment. The TOML file holds how a daemon starts and the defaults of
jobs; what commands change (pauses, limits) lives in the journal.
"""

import os
import re
import warnings
from pathlib import Path

import msgspec
import platformdirs

from lmq_broker.core.limiting import check
from lmq_broker.core.models import ANY, normal
from lmq_broker.core.settings import (
    BANDS,
    EACH,
    POOLED,
    TASK_DEFAULTS,
    TASKS_WITH_DEFAULT,
    BandSettings,
    Rates,
    Settings,
    TaskDefaults,
)
from lmq_proto import bounds
from lmq_proto.errors import BadField
from lmq_proto.messages import Limit

PORT = 7766
EVENTS_PORT = 7767
_ADDRESS = re.compile(r"ipc://.+|tcp://.+:([0-9]+|\*)")
_PREFIX = "LMQ_BROKER_"
_TABLES = ("tasks", "bands", "weights", "ceilings", "apps", "rates", "aliases", "limits")
"""Settings that only the file can give."""
_FROM_1 = ("journal_bytes", "jobs_open", "jobs_open_per_user", "usage_days", "usage_rows")
_FROM_0 = ("free_floor_bytes", "payload_cache_bytes", "events_kept", "jobs_kept")
_PATIENCE_MAX = 1000


class ConfigError(Exception):
    """The configuration cannot be used; the text names file, field and what is allowed."""


class TaskConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults of one task type, `[broker.tasks.NAME]`. Absent: as lmq has it."""

    queue: str | None = None
    priority: int | None = None
    failures: int | None = None
    timeout_s: float | None = None
    keep_s: float | None = None
    model: str | None = None
    """For jobs that name none; chat, complete, embed and bulk_embed only."""
    expected_s: float | None = None
    """Of own tasks: how long one is thought to take, until some have ended."""


class LimitConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[broker.limits]]`: how much may run, wait, or begin in a while, until a command says otherwise."""

    of: str
    value: float
    user: str = ""
    queue: str = ""
    task_type: str = ""
    model: str = ""
    worker: str = ""
    resource: str = ""
    per_s: float = 0.0
    burst: float = 0.0
    refuse: bool = False

    def limit(self) -> Limit:
        """Return it as the core knows it.

        Raises:
            ConfigError: it says nothing, or too much.
        """
        limit = Limit(
            of=self.of, value=self.value, user=self.user, queue=self.queue, task_type=self.task_type,
            model=self.model, worker=self.worker, resource=self.resource, per_ms=int(self.per_s * 1000),
            burst=self.burst, refuse=self.refuse,
        )  # fmt: skip
        try:
            check(limit)
        except BadField as error:
            raise ConfigError(f"limits: {error.message}") from error
        return limit


class BrokerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[broker]` of the configuration file."""

    data: str = ""
    """Folder of the journal; empty: the user's data folder."""
    listen: list[str] = []
    """Addresses of the ROUTER; empty: ipc in the runtime folder and tcp://127.0.0.1:7766."""
    events_listen: list[str] = []
    """Addresses of the PUB socket; empty: beside `listen`."""
    ipc_mode: int = 0o666
    """Permissions of the ipc sockets: the kernel names each peer's account, so that all may connect."""
    log_level: str = "info"
    log_format: str = "plain"
    """`plain` or `json`."""
    policy: str = "blfq"
    """Who runs next: `blfq` (fair shares between users within bands) or `strict` (priority, then arrival)."""
    bands: tuple[BandSettings, ...] = BANDS
    """Strict groups of priorities, from the strictest on."""
    weights: dict[str, float] = {}
    """User -> weight in the fair share, 1 for all others (blfq)."""
    apps: dict[str, str] = {}
    """App -> `pooled` (its users, named `app/user`, share as one) or `each` (each has a share); else pooled (blfq)."""
    ceilings: dict[str, int] = {}
    """User -> the highest priority that may be asked for; none for all others."""
    rates: dict[str, Rates] = {}
    """Model -> milliseconds of engine time a token, by which users are charged; else learnt (blfq)."""
    aliases: dict[str, list[str]] = {}
    """Name -> models that it stands for, best first: `[broker.aliases] fast = ["qwen3-8b", "qwen3-8b@q4_k_m"]`."""
    limits: list[LimitConfig] = []
    """How much may run, wait, or begin in a while; `lmq limits set` changes it at run time."""
    open_role: str = "admin"
    """Open mode: the role of local peers, `admin` or `user`."""
    free_floor_bytes: int = 128 * 1024 * 1024
    """Submits are refused while the journal's disk has less than this free."""
    payload_bytes: int = bounds.PAYLOAD_BYTES
    payload_cache_bytes: int = 256 * 1024 * 1024
    journal_bytes: int = 16 * 1024**3
    events_kept: int = 2_000_000
    jobs_open: int = 2_000_000
    jobs_open_per_user: int = 1_000_000
    jobs_kept: int = 1_000_000
    usage_days: int = 731
    """How long the daily sums of `lmq usage` are kept."""
    usage_rows: int = 5000
    """Sums (user, model, task type) that one day gets; what comes beyond is summed up together."""
    seed: int = 0
    """Of the broker's chance (backoff jitter); 0: from the system."""
    tasks: dict[str, TaskConfig] = {}

    def settings(self) -> Settings:
        """Return what the core is told."""
        return Settings(
            policy=self.policy, open_role=self.open_role, payload_bytes=self.payload_bytes, jobs_open=self.jobs_open,
            jobs_open_per_user=self.jobs_open_per_user, jobs_kept=self.jobs_kept, journal_bytes=self.journal_bytes,
            usage_days=self.usage_days, usage_rows=self.usage_rows, task_defaults=self.task_defaults(),
            bands=self.bands, weights=self.weights, rates=self.rates,
            aliases={name: tuple(models) for name, models in self.aliases.items()},
            limits=tuple(each.limit() for each in self.limits), ceilings=self.ceilings, apps=self.apps,
        )  # fmt: skip

    def task_defaults(self) -> dict[str, TaskDefaults]:
        """Return the defaults of every task type, the file's over lmq's own."""
        merged = dict(TASK_DEFAULTS)
        for name, given in self.tasks.items():
            base = merged.get(name, TaskDefaults())
            merged[name] = TaskDefaults(
                queue=base.queue if given.queue is None else given.queue,
                priority=base.priority if given.priority is None else given.priority,
                failures=base.failures if given.failures is None else given.failures,
                timeout_ms=base.timeout_ms if given.timeout_s is None else int(given.timeout_s * 1000),
                keep_ms=base.keep_ms if given.keep_s is None else int(given.keep_s * 1000),
                model=given.model or "",
                expected_ms=base.expected_ms if given.expected_s is None else int(given.expected_s * 1000),
            )
        return merged

    def folder(self) -> Path:
        """Return the folder of the journal."""
        state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
        return Path(self.data or state or platformdirs.user_data_dir("lmq", appauthor=False)).expanduser()

    def addresses(self) -> tuple[list[str], list[str]]:
        """Return where to listen for commands and for readers of events."""
        listen = list(self.listen) or [f"ipc://{socket_path()}", f"tcp://127.0.0.1:{PORT}"]
        events = list(self.events_listen)
        if not events:
            events = [_beside(url) for url in listen]
        return listen, events


class _File(msgspec.Struct, frozen=True):
    """The parts of the configuration file that are the broker's."""

    broker: BrokerConfig = BrokerConfig()


def socket_path() -> Path:
    """Return the broker's ipc socket in the runtime folder of this account or service."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    with warnings.catch_warnings():
        # Where the session has no runtime folder, as over plain ssh, it is one under /tmp, and that is well.
        warnings.simplefilter("ignore")
        return Path(runtime or platformdirs.user_runtime_dir("lmq", appauthor=False)) / "broker.sock"


def default_file() -> Path:
    """Return where the configuration file is looked for."""
    given = os.environ.get("LMQ_CONFIG")
    return (
        Path(given) if given else Path(platformdirs.user_config_dir("lmq", appauthor=False)) / "config.toml"
    )


def load(path: Path | None, overrides: dict[str, object]) -> BrokerConfig:
    """Return the configuration: defaults, then file, then `LMQ_BROKER_...`, then `overrides`.

    Raises:
        ConfigError: a file or value cannot be used; says which and what is allowed.
    """
    file = path or default_file()
    values: dict[str, object] = {}
    if path is not None and not path.is_file():
        raise ConfigError(f"no configuration file {path}")
    if file.is_file():
        try:
            tree = msgspec.toml.decode(file.read_bytes())
            values = dict(tree.get("broker", {}))
        except (msgspec.MsgspecError, OSError, AttributeError) as error:
            raise ConfigError(f"{file}: {error}") from error
    values |= _from_environment()
    values |= overrides
    try:
        config = msgspec.convert(values, BrokerConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{file} [broker]: {error}") from error
    _check(config)
    return config


def watchdog() -> tuple[str, int]:
    """Return the service manager's socket and its watchdog time in microseconds."""
    usec = os.environ.get("WATCHDOG_USEC", "0")
    return os.environ.get("NOTIFY_SOCKET", ""), int(usec) if usec.isdigit() else 0


def _from_environment() -> dict[str, object]:
    """Return the settings that `LMQ_BROKER_<NAME>` gives; lists are separated by commas."""
    found: dict[str, object] = {}
    for field in msgspec.structs.fields(BrokerConfig):
        text = os.environ.get(_PREFIX + field.name.upper())
        if text is not None and field.name not in _TABLES:
            found[field.name] = text.split(",") if field.type == list[str] else text
    return found


def _check(config: BrokerConfig) -> None:
    """Raise ConfigError for a value that is of the right type and still of no use."""
    from lmq_broker.core.policies import POLICIES

    if config.policy not in POLICIES:
        raise ConfigError(f"policy = {config.policy!r}: allowed is {', '.join(sorted(POLICIES))}")
    if config.open_role not in ("admin", "user"):
        raise ConfigError(f"open_role = {config.open_role!r}: allowed is admin or user")
    if config.log_level not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"log_level = {config.log_level!r}: allowed is debug, info, warning or error")
    if config.log_format not in ("plain", "json"):
        raise ConfigError(f"log_format = {config.log_format!r}: allowed is plain or json")
    for url in (*config.listen, *config.events_listen):
        if not _ADDRESS.fullmatch(url):
            raise ConfigError(
                f"{url or 'an empty text'} is no address; write tcp://127.0.0.1:{PORT} or ipc:///path"
            )
    if not 0 < config.payload_bytes <= bounds.BODY_BYTES // 2:
        raise ConfigError(f"payload_bytes = {config.payload_bytes}: allowed is 1 to {bounds.BODY_BYTES // 2}")
    for names, least in ((_FROM_1, 1), (_FROM_0, 0)):
        for name in names:
            if getattr(config, name) < least:
                raise ConfigError(f"{name} = {getattr(config, name)}: allowed is {least} or more")
    lowest = [band.lowest for band in config.bands]
    if (
        not lowest
        or lowest[-1] != 0
        or lowest != sorted(set(lowest), reverse=True)
        or lowest[0] > bounds.PRIORITY_MAX
    ):
        raise ConfigError(
            f"bands with lowest = {lowest}: allowed are numbers that fall, from {bounds.PRIORITY_MAX} at most to 0"
        )
    for band in config.bands:
        if not 0 <= band.share < 1 or not 0 <= band.patience <= _PATIENCE_MAX:
            raise ConfigError(
                f"band {band.name!r}: allowed is a share from 0 to below 1 and a patience from 0 to {_PATIENCE_MAX}"
            )
        if band.reserve < 0:
            raise ConfigError(f"band {band.name!r}: allowed is a reserve of 0 or more slots")
    for user, weight in config.weights.items():
        if not 1 / bounds.WEIGHT_MAX <= weight <= bounds.WEIGHT_MAX:
            raise ConfigError(
                f"weights.{user} = {weight}: allowed is {1 / bounds.WEIGHT_MAX:g} to {bounds.WEIGHT_MAX}"
            )
    for app, how in config.apps.items():
        if how not in (POOLED, EACH):
            raise ConfigError(f"apps.{app} = {how!r}: allowed is {POOLED} or {EACH}")
    for user, ceiling in config.ceilings.items():
        if not 0 <= ceiling <= bounds.PRIORITY_MAX:
            raise ConfigError(f"ceilings.{user} = {ceiling}: allowed is 0 to {bounds.PRIORITY_MAX}")
    for model, rates in config.rates.items():
        if min(rates.prompt_ms, rates.output_ms) < 0:
            raise ConfigError(f"rates.{model}: allowed is 0 or more milliseconds a token")
    for each in config.limits:
        each.limit()
    for name, task in config.tasks.items():
        if task.priority is not None and not 0 <= task.priority <= bounds.PRIORITY_MAX:
            raise ConfigError(
                f"tasks.{name}.priority = {task.priority}: allowed is 0 to {bounds.PRIORITY_MAX}"
            )
        if task.failures is not None and not 1 <= task.failures <= bounds.FAILURES_MAX:
            raise ConfigError(
                f"tasks.{name}.failures = {task.failures}: allowed is 1 to {bounds.FAILURES_MAX}"
            )
        if task.queue is not None and not 0 < len(task.queue) <= bounds.NAME_CHARS:
            raise ConfigError(
                f"tasks.{name}.queue = {task.queue!r}: allowed is 1 to {bounds.NAME_CHARS} characters"
            )
        for field in ("timeout_s", "keep_s", "expected_s"):
            seconds = getattr(task, field)
            if seconds is not None and not 0 < seconds <= bounds.DURATION_MS / 1000:
                raise ConfigError(
                    f"tasks.{name}.{field} = {seconds}: allowed is above 0, to {bounds.DURATION_MS // 1000}"
                )
        if task.model and name not in TASKS_WITH_DEFAULT:
            raise ConfigError(
                f"tasks.{name}.model = {task.model!r}: allowed for {', '.join(TASKS_WITH_DEFAULT)} only"
            )
    _check_aliases(config.aliases)


def _check_aliases(aliases: dict[str, list[str]]) -> None:
    """Raise ConfigError for an alias that stands for nothing, for too much, or for another alias."""
    names = {normal(name) for name in aliases}
    for name, models in aliases.items():
        if not 0 < len(name) <= bounds.NAME_CHARS or normal(name) in ("", ANY):
            raise ConfigError(f"aliases.{name}: allowed are names of 1 to {bounds.NAME_CHARS} characters")
        if not 0 < len(models) <= bounds.MODELS:
            raise ConfigError(f"aliases.{name} = {models}: allowed are 1 to {bounds.MODELS} models")
        for model in models:
            if normal(model) in names or not 0 < len(model) <= bounds.NAME_CHARS:
                raise ConfigError(f"aliases.{name} = {models}: allowed are models, not another alias")


def _beside(url: str) -> str:
    """Return the address of the PUB socket beside a ROUTER's."""
    if url.startswith("ipc://"):
        return url.removesuffix(".sock") + ".events.sock"
    host, _, port = url.rpartition(":")
    if port == str(PORT):
        return f"{host}:{EVENTS_PORT}"
    return f"{host}:0"
