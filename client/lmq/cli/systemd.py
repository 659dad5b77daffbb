"""`lmq systemd`: write the services of this machine. The units are data of the package `lmq_systemd`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lmq.cli import session as cli
from lmq.cli.errors import Failure, Status

if TYPE_CHECKING:
    from lmq.cli.session import Session

EXAMPLE = """
sudo lmq systemd install
lmq systemd install --user
lmq systemd install --dry-run
"""
UNITS = ("lmq-broker.service", "lmq-worker@.service")
SYSTEM_FILES = {
    "lmq-sysusers.conf": "etc/sysusers.d/lmq.conf",
    "lmq-tmpfiles.conf": "etc/tmpfiles.d/lmq.conf",
}
"""What the system's services need beside the units, and where it lies."""
SYSTEM_UNITS = "etc/systemd/system"
USER_UNITS = ".config/systemd/user"
COMMAND = "/usr/bin/env lmq"
"""How the units as shipped call us; `install` puts this environment's own command in its place."""
SYSTEM_ONLY = ("# <system>", "# </system>")
PRIVATE_HOMES = ("/home", "/root", "/run/user")


@dataclass(frozen=True, slots=True)
class File:
    """A file to write."""

    path: Path
    text: str


@cli.noun("systemd", example=EXAMPLE)
@click.pass_context
def command(context: click.Context) -> None:
    """Run broker and workers as services of systemd."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("install", example=EXAMPLE)
@click.option("--user", "for_user", is_flag=True, help="Services of this account, without root.")
@click.option(
    "--root", type=click.Path(file_okay=False, path_type=Path), default=Path("/"), help="Write below here."
)
@click.option("--dry-run", is_flag=True, help="Print what would be written.")
@cli.pass_session
def install_command(session: Session, for_user: bool, root: Path, dry_run: bool) -> None:
    """Write the units for the environment that this command runs in, and say what to type next."""
    if not dry_run and not sys.platform.startswith("linux"):
        raise Failure("systemd is there on Linux only; on others: lmq up", Status.FAILED)
    found = user_files(Path.home()) if for_user else system_files(root)
    for file in found:
        if dry_run:
            click.echo(f"# {file.path}\n{file.text}")
        else:
            _write(file)
            click.echo(f"wrote {file.path}")
    for sentence in advice(for_user=for_user):
        session.note(sentence)


def system_files(root: Path) -> list[File]:
    """Return the files of system services."""
    folder = root / SYSTEM_UNITS
    units = [File(folder / name, rendered(name, for_user=False)) for name in UNITS]
    return units + [File(root / where, _text(name)) for name, where in SYSTEM_FILES.items()]


def user_files(home: Path) -> list[File]:
    """Return the files of an account's own services."""
    return [File(home / USER_UNITS / name, rendered(name, for_user=True)) for name in UNITS]


def rendered(name: str, *, for_user: bool) -> str:
    """Return a unit that calls this environment's command.

    For an account's own services, what only the system's manager can do is left out. A command below a home folder,
    which system services do not see, is let in read-only.
    """
    text = _text(name).replace(COMMAND, f"{_quoted(sys.executable)} -P -m lmq.cli")
    if for_user:
        return _without_system(text).replace("multi-user.target", "default.target")
    private = homes_needed()
    if private:
        opened = "".join(f"BindReadOnlyPaths={_quoted(str(path))}\n" for path in private)
        text = text.replace(
            "ProtectHome=yes\n",
            "# lmq is installed below a home folder: that alone is let in, read-only.\n"
            f"ProtectHome=tmpfs\n{opened}",
        )
    return text


def homes_needed() -> list[Path]:
    """Return the folders of this environment that lie below a home: of Python, of the packages, of the sources."""
    import lmq
    import lmq_proto

    places = [
        sys.prefix,
        sys.base_prefix,
        *(str(Path(one.__file__ or "").resolve().parent) for one in (lmq, lmq_proto)),
    ]
    if (Path(places[-1]).parent.name) == "proto":
        # An editable install: the sources of all parts lie side by side.
        places.append(str(Path(places[-1]).parent.parent))
    found = sorted(
        {Path(place) for place in places if place.startswith(tuple(f"{home}/" for home in PRIVATE_HOMES))}
    )
    return [path for path in found if not any(other in path.parents for other in found)]


def advice(*, for_user: bool) -> list[str]:
    """Return what to type next, and what to know about this environment."""
    ctl = "systemctl --user" if for_user else "sudo systemctl"
    said = []
    if not for_user:
        said.append("next: sudo systemd-sysusers lmq.conf && sudo systemd-tmpfiles --create lmq.conf")
    said += [
        f"next: {ctl} daemon-reload",
        f"next: {ctl} enable --now lmq-broker lmq-worker@local",
        "a worker for another endpoint: put LMQ_WORKER_ENDPOINT=http://gpu-2:1234 into "
        + ("~/.config/lmq/worker-gpu-2.env" if for_user else "/etc/lmq/worker-gpu-2.env")
        + f", then: {ctl} enable --now lmq-worker@gpu-2",
    ]
    if for_user:
        said.append("to have them run while nobody is logged in: sudo loginctl enable-linger")
    elif homes_needed():
        folders = ", ".join(map(str, homes_needed()))
        said.append(
            f"lmq or its Python lies below a home folder ({folders}): the services see that read-only. An update there "
            "changes the running services; better: sudo python3 -m venv /opt/lmq && sudo /opt/lmq/bin/pip install lmq, "
            "and: sudo /opt/lmq/bin/lmq systemd install"
        )
    return said


def _text(name: str) -> str:
    return files("lmq_systemd").joinpath(name).read_text(encoding="utf-8")


def _without_system(text: str) -> str:
    kept, is_kept = [], True
    for line in text.splitlines():
        if line.strip() == SYSTEM_ONLY[0]:
            is_kept = False
        elif line.strip() == SYSTEM_ONLY[1]:
            is_kept = True
        elif is_kept:
            kept.append(line)
    return "\n".join(kept) + "\n"


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path


def _write(file: File) -> None:
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_text(file.text, encoding="utf-8")
    except PermissionError as error:
        raise Failure(
            f"{file.path} may not be written; type: sudo lmq systemd install, or: lmq systemd install --user",
            Status.NOT_ALLOWED,
        ) from error
