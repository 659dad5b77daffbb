"""docs/configuration.md says what the code does: keys, defaults, what SIGHUP changes; its examples can be used."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmq import config as client_config
from lmq.cli.configuration import CLIENT_KEYS, KNOWN_TABLES
from lmq_broker import config as broker_config
from lmq_broker.config import BrokerConfig, LimitConfig, TaskConfig
from lmq_broker.core import clocks
from lmq_broker.core.settings import BANDS, TASK_DEFAULTS, BandSettings, Rates, TaskDefaults
from lmq_worker.config import WorkerConfig, load_config
from unit.broker.builders import a_broker
from unit.proto.protocol_text import read_sections, words

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"
SECTIONS = {section.heading.replace("`", ""): section for section in read_sections(PAGE.read_text("utf-8"))}
EXAMPLES = ("For a family", "For a lab")

OTHERWISE: dict[str, Any] = {
    "tasks": {"chat": TaskConfig(priority=1)},
    "bands": (BandSettings("all", 0),),
    "weights": {"anna": 2.0},
    "ceilings": {"anna": 6},
    "apps": {"shop": "each"},
    "rates": {"m": Rates(1.0, 2.0)},
    "aliases": {"fast": ["m"]},
    "limits": [LimitConfig("running", 1.0)],
    "policy": "strict",
    "open_role": "user",
}
"""Of keys whose values are no numbers, one that is not the default."""


def table_in(heading: str, first: str = "Key") -> list[dict[str, str]]:
    """Return the rows of the table of a section whose first column has this title, by the titles of the columns."""
    for titles, *rows in SECTIONS[heading].tables:
        if titles[0] == first:
            return [dict(zip(titles, row, strict=True)) for row in rows]
    raise AssertionError(f"{heading} has no table of {first}")


def told(heading: str) -> dict[str, object]:
    """Return the keys of a section's table with the defaults that it tells."""
    return {
        words(row["Key"])[0]: None if row["Default"] == "required" else literal(words(row["Default"])[0])
        for row in table_in(heading)
    }


def literal(text: str) -> object:
    return tomllib.loads(f"value = {text}")["value"]


def defaults_of(kind: type[msgspec.Struct]) -> dict[str, object]:
    """Return the fields of a struct with their defaults; None: required."""
    found = {}
    for field in msgspec.structs.fields(kind):
        made = None if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        found[field.encode_name] = made if field.default is msgspec.NODEFAULT else field.default
    return found


def test_the_tables_of_the_broker_have_its_keys_with_their_defaults() -> None:
    defaults = defaults_of(BrokerConfig)
    tables = {words(row["Table"])[0] for row in table_in("The broker: [broker]", "Table")}
    assert tables == set(broker_config._TABLES)
    assert told("The broker: [broker]") == {key: defaults[key] for key in defaults if key not in tables}
    assert told("Limits: [[broker.limits]]") == defaults_of(LimitConfig)
    assert told("Bands: [[broker.bands]]") == defaults_of(BandSettings)


def test_the_tables_of_task_types_have_their_keys_and_defaults() -> None:
    keys = told("Task types: [broker.tasks.NAME]")
    assert list(keys) == [field.name for field in msgspec.structs.fields(TaskConfig)]
    given = msgspec.convert(keys, TaskConfig, strict=False)
    assert BrokerConfig(tasks={"train": given}).task_defaults()["train"] == TaskDefaults()
    named = {
        words(row["Task type"])[0]: (
            int(row["`priority`"]),
            int(row["`failures`"]),
            1000 * int(row["`timeout_s`"]),
        )
        for row in table_in("Task types: [broker.tasks.NAME]", "Task type")
    }
    assert named == {
        name: (each.priority, each.failures, each.timeout_ms) for name, each in TASK_DEFAULTS.items()
    }


def test_the_bands_that_there_are_without_a_word() -> None:
    rows = [
        {words(title)[0]: words(cell)[0] if title == "`name`" else cell for title, cell in row.items()}
        for row in table_in("Bands: [[broker.bands]]", "`name`")
    ]
    assert tuple(msgspec.convert(rows, list[BandSettings], strict=False)) == BANDS


def test_the_table_of_workers_has_each_key_with_its_default() -> None:
    defaults = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(WorkerConfig)
    }
    assert told("Workers: [worker]") == defaults


def test_the_table_of_clients_has_each_key_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {words(row["Key"])[0]: words(row["Environment"]) for row in table_in("Clients: [client]")}
    assert tuple(rows) == CLIENT_KEYS
    for (variable,) in filter(None, rows.values()):
        monkeypatch.setenv(variable, "7:1")
    settings = client_config.load()
    assert {key for key, value in settings.origins.items() if "variable" in value} == {"url", "user"}
    monkeypatch.setenv(rows["price_hour"][0], "3")
    assert client_config.price_hour() == 3


@pytest.mark.parametrize("key", [field.name for field in msgspec.structs.fields(BrokerConfig)])
def test_sighup_changes_what_the_page_says(key: str) -> None:
    default = getattr(BrokerConfig(), key)
    other = OTHERWISE.get(key, default + 1 if isinstance(default, int) else default)
    new = BrokerConfig(**{key: other}).settings()
    state = a_broker().state
    state.settings = BrokerConfig().settings()
    clocks.change_settings(state, new)
    row = next(
        (row for row in table_in("The broker: [broker]", "Table") if words(row["Table"]) == [key]),
        {"SIGHUP": "no"},
    )
    assert row["SIGHUP"] == ("yes" if state.settings != BrokerConfig().settings() else "no")
    if row["SIGHUP"] == "no" and key in broker_config._TABLES:
        assert new != BrokerConfig().settings(), "the example of another value is none"


@pytest.mark.parametrize(
    ("variable", "text", "value"), [("JOBS_OPEN", "7", 7), ("LISTEN", "ipc:///run/b", ["ipc:///run/b"])]
)
def test_the_environment_gives_what_is_no_table(
    variable: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LMQ_BROKER_{variable}", text)
    assert getattr(broker_config.load(None, {}), variable.lower()) == value


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where all parts look for their file."""
    monkeypatch.setenv("LMQ_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "config.toml"


@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_can_be_used_by_all_parts(heading: str, file: Path) -> None:
    text = "\n".join(SECTIONS[heading].code)
    file.write_text(text, "utf-8")
    tree = tomllib.loads(text)
    assert set(tree) <= set(KNOWN_TABLES)
    assert set(tree.get("client", {})) <= set(CLIENT_KEYS)
    client_config.load()
    assert client_config.price_hour() == tree.get("client", {}).get("price_hour")
    assert broker_config.load(None, {}) != BrokerConfig()
    names = [name for name, value in tree["worker"].items() if isinstance(value, dict)]
    for name in names or [""]:
        config = load_config({"name": name or None})
        assert config.endpoint.startswith("http://")
        assert config.name == name


def test_both_examples_pass_the_check(file: Path) -> None:
    """As `lmq config check` does it, with the parts as processes of their own."""
    from unit.cli.fakes import FakeBroker, run

    for heading in EXAMPLES:
        file.write_text("\n".join(SECTIONS[heading].code), "utf-8")
        ended = run(FakeBroker(), "config", "check")
        assert (ended.exit_code, ended.stderr) == (0, ""), heading
    file.write_text("[broker]\nweights = { anna = 0 }\n[worker.gpu-1]\npoll_s = -1\n", "utf-8")
    ended = run(FakeBroker(), "config", "check")
    assert ended.exit_code == 2
    for fault in ("weights.anna = 0", "allowed is 0.001 to 1000", "poll_s", "must be above 0"):
        assert fault in ended.stderr
