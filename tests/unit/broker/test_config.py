"""The broker's settings: where a value comes from, and what is refused with which words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lmq_broker.config import BrokerConfig, ConfigError, load
from lmq_broker.core.settings import BANDS, BandSettings, Rates

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LMQ_CONFIG", str(tmp_path / "none.toml"))


def loaded(tmp_path: Path, text: str, **overrides: object) -> BrokerConfig:
    file = tmp_path / "lmq.toml"
    file.write_text(text)
    return load(file, overrides)


def test_the_command_line_wins_over_the_environment_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[broker]\npolicy = "blfq"\njobs_open = 10\njobs_kept = 20\n'
    monkeypatch.setenv("LMQ_BROKER_JOBS_KEPT", "30")
    monkeypatch.setenv("LMQ_BROKER_JOBS_OPEN", "40")
    config = loaded(tmp_path, text, jobs_open=50)
    assert (config.policy, config.jobs_open, config.jobs_kept) == ("blfq", 50, 30)


def test_bands_weights_ceilings_apps_and_rates_reach_the_core(tmp_path: Path) -> None:
    text = """
    [broker]
    policy = "blfq"
    weights = { anna = 2.0 }
    ceilings = { anna = 6 }
    apps = { shop = "each" }
    rates = { qwen3-8b = { prompt_ms = 0.5, output_ms = 4.0 } }
    [[broker.bands]]
    name = "now"
    lowest = 5
    patience = 1.0
    [[broker.bands]]
    name = "later"
    lowest = 0
    share = 0.2
    """
    settings = loaded(tmp_path, text).settings()
    assert settings.bands == (BandSettings("now", 5, 0.0, 1.0), BandSettings("later", 0, 0.2))
    assert settings.weights == {"anna": 2.0}
    assert settings.ceilings == {"anna": 6}
    assert settings.apps == {"shop": "each"}
    assert settings.rates == {"qwen3-8b": Rates(0.5, 4.0)}


def test_aliases_and_default_models_reach_the_core(tmp_path: Path) -> None:
    text = """
    [broker.aliases]
    fast = ["qwen3-8b", "qwen3-8b@q4_k_m"]
    [broker.tasks.chat]
    model = "fast"
    """
    settings = loaded(tmp_path, text).settings()
    assert settings.aliases == {"fast": ("qwen3-8b", "qwen3-8b@q4_k_m")}
    assert settings.task_defaults["chat"].model == "fast"
    assert settings.task_defaults["chat"].failures == 3


def test_without_a_word_there_are_three_bands() -> None:
    assert BrokerConfig().settings().bands == BANDS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('policy = "fifo"', "policy = 'fifo'"),
        ('open_role = "king"', "open_role = 'king'"),
        ("payload_bytes = 0", "payload_bytes = 0"),
        ("jobs_open = 'many'", "jobs_open"),
        ("usage_days = 0", "usage_days = 0"),
        ("usage_rows = -1", "usage_rows = -1"),
        ("jobs_open = 0", "jobs_open = 0"),
        ("jobs_kept = -1", "jobs_kept = -1"),
        ('bands = [{ name = "a", lowest = 0, reserve = -1 }]', "band 'a'"),
        ("tasks = { chat = { queue = '' } }", "tasks.chat.queue = ''"),
        ("tasks = { chat = { timeout_s = 0 } }", "tasks.chat.timeout_s = 0"),
        ("tasks = { chat = { keep_s = 31622401 } }", "tasks.chat.keep_s = 31622401"),
        ("weights = { anna = 0.0 }", "weights.anna = 0.0"),
        ("ceilings = { anna = 10 }", "ceilings.anna = 10"),
        ("apps = { shop = 'all' }", "apps.shop = 'all'"),
        ("bands = []", "bands with lowest = []"),
        ('bands = [{ name = "a", lowest = 3 }]', "lowest = [3]"),
        ('bands = [{ name = "a", lowest = 0 }, { name = "b", lowest = 0 }]', "lowest = [0, 0]"),
        ('bands = [{ name = "a", lowest = 0, share = 1.0 }]', "band 'a'"),
        ('bands = [{ name = "a", lowest = 0, patience = -1.0 }]', "band 'a'"),
        ("rates = { m = { prompt_ms = -1.0, output_ms = 1.0 } }", "rates.m"),
        ("tasks = { chat = { priority = 11 } }", "tasks.chat.priority = 11"),
        ("tasks = { chat = { failures = 0 } }", "tasks.chat.failures = 0"),
        ("tasks = { train = { model = 'm' } }", "tasks.train.model = 'm'"),
        ("aliases = { fast = [] }", "aliases.fast = []"),
        ("aliases = { fast = ['m', 'Slow'], slow = ['n'] }", "aliases.fast = ['m', 'Slow']"),
        ("aliases = { '*' = ['m'] }", "aliases.*"),
        ("aliases = { fast = [''] }", "aliases.fast = ['']"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, f"[broker]\n{text}\n")
    assert says in str(raised.value)
    assert (
        "allowed is" in str(raised.value)
        or "allowed are" in str(raised.value)
        or "allowed for" in str(raised.value)
        or "Expected" in str(raised.value)
    )


@pytest.mark.parametrize("url", ["foo", "", "tcp://127.0.0.1", "7766", "http://127.0.0.1:7766", "ipc://"])
def test_what_is_no_address_is_told_with_one_that_is(url: str) -> None:
    with pytest.raises(ConfigError, match="is no address; write tcp:"):
        load(None, {"listen": [url]})


def test_an_address_of_each_kind_is_taken() -> None:
    urls = ["tcp://127.0.0.1:*", "tcp://[::1]:7766", "ipc:///run/lmq.sock"]
    assert load(None, {"listen": urls}).listen == urls


def test_a_file_that_was_named_and_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        load(tmp_path / "absent.toml", {})
