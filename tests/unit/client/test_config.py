"""Where the client finds its broker and its name."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

import lmq
from lmq import config

HOUSE = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An account with no settings of its own."""
    monkeypatch.delenv("LMQ_URL", raising=False)
    monkeypatch.delenv("LMQ_USER", raising=False)
    monkeypatch.setattr(config, "config_path", lambda: tmp_path / "config.toml")
    monkeypatch.setattr(config, "default_url", lambda: config.DEFAULT_URL)
    return tmp_path


def test_without_anything_it_is_the_local_broker() -> None:
    settings = config.load()
    assert settings.urls == ("tcp://127.0.0.1:7766",)
    assert settings.user
    assert settings.origins["url"] == "default"


def test_the_caller_wins_over_the_environment_over_the_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "config.toml").write_text(
        '[client]\nurl = "tcp://file:1"\nuser = "file"\nas = "shop/alice"\n', "utf-8"
    )
    settings = config.load()
    assert (settings.urls, settings.user, settings.as_user) == (("tcp://file:1",), "file", "shop/alice")
    monkeypatch.setenv("LMQ_URL", "tcp://one:1, two:2")
    settings = config.load()
    assert settings.urls == ("tcp://one:1", "tcp://two:2")
    assert settings.origins["url"] == "environment variable LMQ_URL"
    settings = config.load(["tcp://said:1"], "me", "")
    assert (settings.urls, settings.user, settings.as_user) == (("tcp://said:1",), "me", "")


@pytest.mark.parametrize("text", ["[client", "client = 3", "[client]\nurl = 3", '[client]\nurl = "http://x"'])
def test_a_file_that_does_not_fit_is_named(home: Path, text: str) -> None:
    (home / "config.toml").write_text(text, "utf-8")
    with pytest.raises(lmq.BadConfig):
        config.load()


def test_an_account_without_a_name_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise OSError("no such account")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert config.account_name() == "unknown"


def test_the_version_is_that_of_the_package() -> None:
    setup = configparser.ConfigParser()
    setup.read(HOUSE / "setup.cfg", encoding="utf-8")
    assert lmq.__version__ == setup["metadata"]["version"]


@pytest.mark.parametrize(
    "text", ["queue", "tcp://queue", "tcp://:7766", "queue:", "queue:port", "queue:65536", "queue:٣"]
)
def test_an_address_without_host_or_port_is_told_with_one_that_has_both(text: str) -> None:
    with pytest.raises(lmq.BadConfig, match=config.DEFAULT_URL):
        config.load(text)


@pytest.mark.parametrize(
    "text", ["queue:7766", "tcp://[::1]:7766", "tcp://127.0.0.1:0", "ipc:///run/lmq/x.sock"]
)
def test_an_address_with_host_and_port_or_a_path_is_taken(text: str) -> None:
    assert config.load(text).urls == (text if "://" in text else f"tcp://{text}",)


@pytest.mark.parametrize(("timeout_s", "connect_timeout_s"), [(30.0, 10.0), (60.0, 10.0), (2.0, 2.0)])
def test_a_broker_that_is_not_there_is_told_before_a_command_times_out(
    timeout_s: float, connect_timeout_s: float
) -> None:
    with lmq.Client("tcp://127.0.0.1:1", timeout_s=timeout_s) as client:
        assert client._connect_timeout_s == connect_timeout_s
