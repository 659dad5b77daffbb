"""What holds for every command: an example under its help, and a sentence instead of a traceback, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest

from lmq.cli.root import COMMANDS, root
from unit.cli.fakes import ID_A, URL, FakeBroker, NoBroker, run

CONTEXT = click.Context(root)


def own_commands() -> Iterator[tuple[str, ...]]:
    """Give the words of every command but the daemons', nouns before their verbs."""
    for name in COMMANDS:
        found = root.get_command(CONTEXT, name)
        assert found is not None
        yield (name,)
        if isinstance(found, click.Group):
            yield from ((name, verb) for verb in found.list_commands(CONTEXT))


ALL = list(own_commands())

# What each command needs to get as far as asking a broker; None for those that ask none.
MINIMAL: dict[str, list[str] | None] = {
    "up": None, "demo": None, "config": None, "systemd": None, "completion": None, "version": ["--broker"],
    "restore": None, "doctor": ["--endpoint", "http://127.0.0.1:9"], "chat": ["Hello"], "embed": ["Hello"],
    "submit": ["echo", "{}"], "show": [ID_A], "why": [ID_A], "logs": [ID_A], "stream": [ID_A], "result": [ID_A],
    "wait": [ID_A], "cancel": [ID_A], "retry": [ID_A], "delete": [ID_A], "update": [ID_A, "--priority", "8"],
    "backup": ["x.sqlite3"], "pause": ["x"], "resume": ["x"], "drain": ["x"], "set": ["running", "2"],
    "reset": ["running"],
    "load": ["x", "--on", "w"], "unload": ["x"], "pin": ["x", "--on", "w"], "unpin": ["x"], "unalias": ["x"],
}  # fmt: skip


@pytest.mark.parametrize("words", [(), *ALL], ids=" ".join)
def test_the_help_of_every_command_shows_an_example(words: tuple[str, ...]) -> None:
    shown = run(NoBroker(), *words, "--help")
    assert shown.exit_code == 0, shown.output
    _, _, example = shown.output.partition("Example:")
    assert " ".join(["lmq", *words]) in example
    assert all(len(line) <= 80 for line in shown.output.splitlines()), "help is wider than 80 columns"


def test_the_table_of_commands_names_verbs_that_there_are() -> None:
    for noun, entry in COMMANDS.items():
        _, colon, verbs = entry.help.rstrip(".").rpartition(": ")
        if colon and entry.section == "nouns":
            shown = run(NoBroker(), noun, "--help").output
            assert all(f"\n  {verb} " in shown for verb in verbs.split(", ")), noun


def test_what_is_missing_is_told_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        root.main(["models", "load", "nope"])
    said = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert said[-1] == "lmq: Missing option '--on'; as: lmq models load qwen3-8b --on gpu-1 --wait"


def test_every_daemon_that_is_installed_shows_an_example() -> None:
    from lmq.cli.root import daemons

    for name in daemons():
        assert "xample" in run(NoBroker(), name, "--help").output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_of_each_command_what_its_own_help_begins_with(name: str) -> None:
    found = root.get_command(CONTEXT, name)
    assert found is not None
    assert found.help
    assert COMMANDS[name].help.endswith(".")


def needed_words(words: tuple[str, ...]) -> list[str] | None:
    if words[0] in ("config", "systemd"):
        return None
    if words == ("users", "set"):
        return ["x", "--weight", "2"]
    return ["x"] if words[-1] == "show" and len(words) == 2 else MINIMAL.get(words[-1], [])


@pytest.mark.parametrize("words", [words for words in ALL if needed_words(words) is not None], ids=" ".join)
def test_without_a_broker_every_command_says_what_to_type(words: tuple[str, ...]) -> None:
    ended = run(NoBroker(), *words, *(needed_words(words) or []))
    assert ended.exit_code == 69, ended.output
    assert ended.stderr.rstrip().endswith(f"no broker at {URL}; type: lmq up")


GARBAGE = (
    ["--no-such-option"],
    ["\x1b[31m"],
    ["-"],
    ["--limit", "x"],
    ["", "", ""],
    ["☃" * 300],
    ["--json", "--", "-1"],
)


@pytest.mark.parametrize(
    "words", [words for words in ALL if words[0] not in ("up", "demo", "systemd")], ids=" ".join
)
@pytest.mark.parametrize("garbage", GARBAGE, ids=ascii)
def test_garbage_gets_a_sentence_and_never_a_traceback(words: tuple[str, ...], garbage: list[str]) -> None:
    ended = run(NoBroker(), *words, *garbage, given="")
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    assert ended.exit_code in (0, 1, 2, 3, 69), ended.output
    assert "Traceback" not in ended.output


def test_an_unknown_command_names_the_one_that_was_meant() -> None:
    ended = run(NoBroker(), "listt")
    assert ended.exit_code == 2
    assert "did you mean list?" in ended.stderr


def test_global_options_may_stand_before_or_behind_the_command() -> None:
    for words in (["--json", "queues"], ["queues", "--json"], ["queues", "list", "--json"]):
        assert run(FakeBroker(), *words).output == "[]\n"


def test_an_error_is_json_where_json_was_asked_for() -> None:
    ended = run(NoBroker(), "--json", "list")
    assert ended.stderr.startswith('{"error": {"code": "not_reachable"')


def test_the_client_is_closed_whatever_happens() -> None:
    broker = FakeBroker()
    run(broker, "list")
    assert broker.is_closed
