"""Where the client finds its broker and its name: the only file of the SDK that reads the environment.

Order: what the caller says, then `LMQ_URL` and `LMQ_USER`, then the table `[client]` of config.toml (keys `url`,
`user`, `as`), then the default. `LMQ_PRICE_HOUR` and its key `price_hour` are for `lmq usage` alone.
"""

from __future__ import annotations

import getpass
import os
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmq.errors import BadConfig

DEFAULT_URL = "tcp://127.0.0.1:7766"
SCHEMES = ("tcp://", "ipc://")
PORT_MAX = 65535
"""Port 0 is a free one: for whoever listens."""

ConfigValue = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to connect, as whom, and where each value came from.

    Attributes:
        urls: broker addresses, tried in turn.
        user: the name claimed in hello; counts over loopback TCP in open mode only.
        as_user: on whose behalf jobs are submitted; empty: the user's own.
        origins: setting to where its value came from, for people.
    """

    urls: tuple[str, ...]
    user: str
    as_user: str
    origins: dict[str, str]


def config_path() -> Path:
    """Return where the configuration file is looked for: where `LMQ_CONFIG` says, else in this account's folder."""
    named = os.environ.get("LMQ_CONFIG")
    if named:
        return Path(named)
    import platformdirs

    return Path(platformdirs.user_config_dir("lmq", appauthor=False)) / "config.toml"


def load(
    url: str | Sequence[str] | None = None, user: str | None = None, as_user: str | None = None
) -> Settings:
    """Return the settings in force.

    Args:
        url: one address, several, or several in one text with commas between them.
        user: the name to claim.
        as_user: on whose behalf to submit; empty: the user's own, whatever the file says.

    Raises:
        BadConfig: the file is no TOML or holds something unfit, or an address is of no known kind.
    """
    file = _read_file(config_path()) if url is None or user is None or as_user is None else {}
    origins: dict[str, str] = {}

    def pick(name: str, said: ConfigValue | None, variable: str, in_file: str) -> ConfigValue | None:
        choices = (
            (said, "argument"),
            ((os.environ.get(variable) or None) if variable else None, f"environment variable {variable}"),
            (file.get(in_file), str(config_path()) if file else ""),
        )
        for value, origin in choices:
            if value is not None:
                origins[name] = origin
                return value
        origins[name] = "default"
        return None

    wanted = pick("url", url, "LMQ_URL", "url")
    urls = _addresses(default_url() if wanted is None else wanted, origins["url"])
    name = pick("user", user, "LMQ_USER", "user") or account_name()
    on_behalf = pick("as", as_user, "", "as") or ""
    return Settings(urls, _text(name), _text(on_behalf), origins)


def price_hour() -> float | None:
    """Return what an hour of engine time costs; None: nobody said.

    Raises:
        BadConfig: it is no number, or below 0.
    """
    told: object = os.environ.get("LMQ_PRICE_HOUR") or None
    origin = "environment variable LMQ_PRICE_HOUR"
    if told is None:
        told, origin = _read_table(config_path()).get("price_hour"), str(config_path())
    if told is None:
        return None
    try:
        price = float(told) if isinstance(told, str | int | float) else -1.0
    except ValueError:
        price = -1.0
    if not 0 <= price < float("inf"):
        raise BadConfig(origin, f"price_hour = {told!r} must be a number, 0 or more")
    return price


def default_url() -> str:
    """Return the local broker's socket file if there is one, this account's before the machine's; else its port."""
    if sys.platform != "win32":
        for path in (runtime_folder() / "broker.sock", Path("/run/lmq/broker.sock")):
            # A folder of another account, under /tmp say, could hold anyone's socket.
            if path.exists() and (path.parts[1] == "run" or path.parent.stat().st_uid in (0, os.getuid())):
                return f"ipc://{path}"
    return DEFAULT_URL


def runtime_folder() -> Path:
    """Return this account's folder for sockets; one under /tmp where the session has none, as over plain ssh."""
    import warnings

    import platformdirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return platformdirs.user_runtime_path("lmq", appauthor=False)


def account_name() -> str:
    """Return the name of the account that runs this, or `unknown` where the system cannot say."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        # Containers run accounts without a name; Windows lacks `pwd` and may lack the variables.
        return "unknown"


def _read_table(path: Path) -> dict[str, object]:
    """Return the table `[client]`, empty when there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(str(path), f"cannot be read: {error}") from error
    try:
        table = tomllib.loads(text).get("client", {})
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(str(path), f"is no TOML: {error}") from error
    if not isinstance(table, dict):
        raise BadConfig(str(path), "client must be a table: [client]")
    return table


def _read_file(path: Path) -> dict[str, ConfigValue]:
    """Return the texts, and lists of texts, of the table `[client]`."""
    found: dict[str, ConfigValue] = {}
    for key, value in _read_table(path).items():
        if isinstance(value, str) or (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            found[key] = value
        elif key in {"url", "user", "as"}:
            raise BadConfig(str(path), f"client.{key} must be a text or a list of texts")
    return found


def _addresses(value: ConfigValue, origin: str) -> tuple[str, ...]:
    """Return the addresses named; a bare `host:port` is TCP."""
    parts = value.split(",") if isinstance(value, str) else value
    urls = tuple(_address(part.strip(), origin) for part in parts if part.strip())
    if not urls:
        raise BadConfig(origin, "url names no address")
    return urls


def _address(text: str, origin: str) -> str:
    if "://" not in text:
        text = f"tcp://{text}"
    if not text.startswith(SCHEMES):
        raise BadConfig(origin, f"url {text!r} must begin with tcp:// or be the path of a local socket")
    scheme, _, place = text.partition("://")
    if scheme == "tcp":
        host, _, port = place.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or int(port) > PORT_MAX:
            raise BadConfig(origin, f"url {text!r} must name a host and a port, as {DEFAULT_URL}")
    return text


def _text(value: ConfigValue) -> str:
    return value if isinstance(value, str) else ",".join(value)
