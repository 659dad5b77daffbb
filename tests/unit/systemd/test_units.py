"""The units: complete, hardened, and clean in the eyes of systemd itself."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner

from lmq.cli import systemd
from lmq.cli.root import root

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def unit(name: str) -> dict[str, list[str]]:
    """Return the settings of a unit's service, each with its values."""
    found: dict[str, list[str]] = {}
    for line in files("lmq_systemd").joinpath(name).read_text(encoding="utf-8").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", systemd.UNITS)
def test_a_unit_tells_when_it_is_ready_is_watched_and_comes_back(name: str) -> None:
    settings = unit(name)
    assert settings["Type"] == ["notify"]
    assert int(settings["WatchdogSec"][0]) > 0
    assert settings["Restart"] == ["on-failure"]
    assert settings["ExecStart"][0].startswith(f"{systemd.COMMAND} ")


@pytest.mark.parametrize("name", systemd.UNITS)
def test_a_unit_closes_what_it_does_not_need(name: str) -> None:
    settings = unit(name)
    for setting in (
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectKernelModules",
        "RestrictSUIDSGID",
    ):
        assert settings[setting] == ["yes"]
    assert settings["ProtectSystem"] == ["strict"]
    assert settings["User"] == ["lmq"]
    assert settings["StateDirectory"]


def test_a_worker_starts_after_the_broker_and_does_not_need_it() -> None:
    settings = unit("lmq-worker@.service")
    assert "lmq-broker.service" in settings["After"][0].split()
    assert "Requires" not in settings
    assert settings["EnvironmentFile"] == ["-%E/lmq/worker-%i.env"]


def test_every_section_of_a_unit_is_explained() -> None:
    for name in systemd.UNITS:
        text = files("lmq_systemd").joinpath(name).read_text(encoding="utf-8")
        assert sum(line.startswith("# ") for line in text.splitlines()) >= 12


@needs_analyze
def test_the_units_as_shipped_are_clean(tmp_path: Path) -> None:
    assert verified([Path(str(files("lmq_systemd").joinpath(name))) for name in systemd.UNITS]) == ""


@needs_analyze
@pytest.mark.parametrize("for_user", [False, True])
def test_the_units_as_installed_are_clean(tmp_path: Path, for_user: bool) -> None:
    paths = []
    for name in systemd.UNITS:
        paths.append(tmp_path / name)
        paths[-1].write_text(systemd.rendered(name, for_user=for_user), encoding="utf-8")
    assert verified(paths) == ""


def verified(paths: list[Path]) -> str:
    """Return what systemd finds wrong with units."""
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    ours = [line for line in ended.stderr.splitlines() if "lmq-" in line]
    assert ended.returncode == 0 or ours, ended.stderr
    return "\n".join(ours)


def test_install_writes_units_that_call_this_environment(tmp_path: Path) -> None:
    ended = CliRunner().invoke(root, ["systemd", "install", "--root", str(tmp_path)])
    assert ended.exit_code == 0, ended.output
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert written == [
        "etc/systemd/system/lmq-broker.service",
        "etc/systemd/system/lmq-worker@.service",
        "etc/sysusers.d/lmq.conf",
        "etc/tmpfiles.d/lmq.conf",
    ]
    text = (tmp_path / written[0]).read_text()
    assert f"ExecStart={sys.executable} -P -m lmq.cli broker\n" in text
    assert "sudo systemctl enable --now lmq-broker lmq-worker@local" in ended.stderr


def test_a_unit_of_an_account_has_nothing_that_only_the_system_can_do() -> None:
    for name in systemd.UNITS:
        text = systemd.rendered(name, for_user=True)
        assert "User=" not in text
        assert "ProtectSystem" not in text
        assert "WantedBy=default.target" in text
        config = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
        config.optionxform = str  # type: ignore[assignment, method-assign]  # keys of units are not lower-cased
        config.read_string(text)
        assert config.sections() == ["Unit", "Service", "Install"]


def test_an_environment_below_a_home_is_let_in_read_only_and_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    home = Path("/home/anna/venv")
    monkeypatch.setattr(systemd, "homes_needed", lambda: [home])
    text = systemd.rendered("lmq-broker.service", for_user=False)
    assert f"ProtectHome=tmpfs\nBindReadOnlyPaths={home}\n" in text
    assert "ProtectHome=yes" not in text
    said = "\n".join(systemd.advice(for_user=False))
    assert "below a home folder" in said
    assert "/opt/lmq" in said


def test_homes_are_found_by_where_python_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/home/anna/venv")
    monkeypatch.setattr(sys, "base_prefix", "/home/anna/.local/share/python")
    assert {Path("/home/anna/venv"), Path("/home/anna/.local/share/python")} <= set(systemd.homes_needed())


def test_what_may_not_be_written_says_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refused)
    ended = CliRunner().invoke(root, ["systemd", "install", "--root", "/tmp/nowhere-of-ours"])
    assert ended.exit_code == 77
    assert "sudo lmq systemd install" in ended.stderr


def test_a_reload_needs_no_program_that_a_small_system_lacks() -> None:
    assert unit("lmq-broker.service")["ExecReload"] == ['/bin/sh -c "kill -HUP $MAINPID"']


def test_the_folder_of_the_settings_is_made_and_closed_to_others() -> None:
    text = files("lmq_systemd").joinpath("lmq-tmpfiles.conf").read_text(encoding="utf-8")
    made = [line.split() for line in text.splitlines() if not line.startswith("#")]
    assert made == [["d", "/etc/lmq", "0750", "root", "lmq", "-"]]
    assert any("systemd-tmpfiles --create" in sentence for sentence in systemd.advice(for_user=False))
