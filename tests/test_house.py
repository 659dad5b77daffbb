"""The house rules that no other tool holds: who imports whom, what ships, which file may do what.

Everything is read from the tree as it stands, so a part that is not there yet is not judged yet. How the
parts behave is the business of the other tests.
"""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from house_portability import unguarded_uses

HOUSE = Path(__file__).resolve().parent.parent

# A file longer than this holds more than one noun.
MAX_LINES = 700

# Flat tables that are read by looking something up; each with the length it may not outgrow.
LONG_TABLES: dict[str, int] = {}


# --- the tree ---------------------------------------------------------------------------------------


def read_setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(HOUSE / "setup.cfg", encoding="utf-8")
    return config


def listed(section: str, option: str) -> list[str]:
    return [line.strip() for line in read_setup_cfg()[section][option].splitlines() if line.strip()]


# Top-level package -> its folder, as setup.cfg says; those that exist so far.
PACKAGE_DIRS = {
    package: HOUSE / folder
    for package, folder in (re.split(r"\s*=\s*", line) for line in listed("options", "package_dir"))
    if (HOUSE / folder / "__init__.py").is_file()
}
SOURCE_ROOTS = sorted({folder.parent for folder in PACKAGE_DIRS.values()})
SHIPPED = sorted(file for folder in PACKAGE_DIRS.values() for file in folder.rglob("*.py"))

# Folders that tools leave behind.
GENERATED = {"build", "dist", "htmlcov", "node_modules", "venv", "__pycache__"}


def top_level_folders() -> list[Path]:
    return sorted(
        folder
        for folder in HOUSE.iterdir()
        if folder.is_dir()
        and not folder.name.startswith(".")
        and folder.name not in GENERATED
        and not folder.name.endswith(".egg-info")
        and not (folder / "pyvenv.cfg").exists()
    )


def in_house(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def module_name(file: Path) -> str:
    """Return the dotted name under which a shipped file is imported."""
    root = next(root for root in SOURCE_ROOTS if file.is_relative_to(root))
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def imports(file: Path) -> list[tuple[int, str]]:
    """Return (line, dotted name) of all that a file imports; `from a import b` gives both a and a.b.

    Imports for the type checker count: a wall is a wall for types too.
    """
    found: list[tuple[int, str]] = []
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{in_house(file)}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


# --- arrows -----------------------------------------------------------------------------------------

# gateway -> lmq -> lmq_proto <- lmq_worker;  lmq_broker -> lmq_proto;  the units are data for the CLI.
MAY_IMPORT: dict[str, set[str]] = {
    "lmq_proto": set(),
    "lmq_broker": {"lmq_proto"},
    "lmq_worker": {"lmq_proto"},
    "lmq": {"lmq_proto", "lmq_systemd"},
    "lmq_gateway": {"lmq"},
    "lmq_simulator": set(),
    "lmq_systemd": set(),
}

# The one named exception: the runner of Python tasks hands each task a public `lmq` client.
TASK_RUNNER = "lmq_worker.tasks.runner"

# Inside the broker: shell -> journal -> core. What is in none of the layers stands above them all,
# but for the settings, which know nothing.
BROKER_LAYERS: dict[str, set[str]] = {
    "lmq_broker.core": {"lmq_broker.core"},
    "lmq_broker.journal": {"lmq_broker.core", "lmq_broker.journal"},
    "lmq_broker.shell": {"lmq_broker.core", "lmq_broker.journal", "lmq_broker.shell", "lmq_broker.config"},
    "lmq_broker.config": {"lmq_broker.core", "lmq_broker.config"},
}


@pytest.mark.parametrize("package", PACKAGE_DIRS)
def test_imports_between_the_parts_run_one_way(package: str) -> None:
    assert package in MAY_IMPORT, f"say in MAY_IMPORT what {package} may import"
    wrong = []
    for file in PACKAGE_DIRS[package].rglob("*.py"):
        allowed = {package} | MAY_IMPORT[package] | ({"lmq"} if module_name(file) == TASK_RUNNER else set())
        wrong += [
            f"{in_house(file)}:{line}: {name}"
            for line, name in imports(file)
            if name.partition(".")[0] in MAY_IMPORT.keys() - allowed
        ]
    assert not wrong


def test_imports_inside_the_broker_run_from_shell_to_journal_to_core() -> None:
    wrong = []
    for file in PACKAGE_DIRS.get("lmq_broker", Path("absent")).rglob("*.py"):
        for layer, allowed in BROKER_LAYERS.items():
            if inside(module_name(file), layer):
                wrong += [
                    f"{in_house(file)}:{line}: {name}"
                    for line, name in imports(file)
                    if name.startswith("lmq_broker.") and not any(inside(name, below) for below in allowed)
                ]
    assert not wrong


def test_nothing_that_ships_imports_tests_examples_or_benchmarks() -> None:
    private = {"tests", "examples", "benchmarks", "simulation", "conftest"}
    assert not [
        f"{in_house(file)}:{line}: {name}"
        for file in SHIPPED
        for line, name in imports(file)
        if name.partition(".")[0] in private
    ]


# --- the pure parts ---------------------------------------------------------------------------------

IO_MODULES = frozenset(
    "asyncio concurrent ctypes fcntl fileinput ftplib getpass glob http io mmap multiprocessing os pathlib "
    "queue sched select selectors shelve shutil signal smtplib socket socketserver sqlite3 ssl "
    "subprocess tempfile threading urllib _thread".split()
)
CLOCK_CHANCE_AND_LOG_MODULES = frozenset(
    "getopt locale logging platform secrets syslog time uuid warnings".split()
)
CLOCK_READS = {"now", "utcnow", "today"}
# Builtins that reach outside or differ from run to run (`hash` of text does).
IMPURE_BUILTINS = {"open", "print", "input", "hash", "exec", "eval", "breakpoint"}

# Third-party modules without I/O. `msgspec` encodes what the journal keeps.
PURE_LIBRARIES = {"msgspec"}


def core_files() -> list[Path]:
    return [file for file in SHIPPED if inside(module_name(file), "lmq_broker.core")]


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", core_files(), ids=in_house)
def test_the_core_does_no_io_reads_no_clock_and_draws_no_chance(file: Path) -> None:
    known = set(sys.stdlib_module_names) | PURE_LIBRARIES | MAY_IMPORT.keys()
    wrong = [
        f"{line}: imports {name}"
        for line, name in imports(file)
        if name.partition(".")[0] in IO_MODULES | CLOCK_CHANCE_AND_LOG_MODULES
        or name.partition(".")[0] not in known
        or (name.startswith("random.") and name != "random.Random")
    ]
    for node in ast.walk(parsed(file)):
        match node:
            case ast.Attribute(value=ast.Name(id="random"), attr=attr) if attr != "Random":
                wrong.append(f"{node.lineno}: random.{attr}, but chance comes from the state's generator")
            case (
                ast.Call(func=ast.Attribute(attr="Random"), args=[])
                | ast.Call(func=ast.Name(id="Random"), args=[])
            ):
                wrong.append(f"{node.lineno}: a generator without a seed")
            case ast.Call(func=ast.Attribute(attr=attr)) if attr in CLOCK_READS:
                wrong.append(f"{node.lineno}: .{attr}() reads a clock")
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_BUILTINS:
                wrong.append(f"{node.lineno}: {name}()")
    assert not wrong


def test_the_protocol_opens_no_sockets_and_no_files() -> None:
    wrong = []
    for file in PACKAGE_DIRS.get("lmq_proto", Path("absent")).rglob("*.py"):
        refused = IO_MODULES | {"zmq", "peewee", "httpx", "platformdirs", "click", "rich"}
        wrong += [
            f"{in_house(file)}:{line}: {name}"
            for line, name in imports(file)
            if name.partition(".")[0] in refused
        ]
        wrong += [
            f"{in_house(file)}:{call.lineno}: open()"
            for call in calls(parsed(file))
            if isinstance(call.func, ast.Name) and call.func.id == "open"
        ]
    assert not wrong


# --- what an import pulls in ------------------------------------------------------------------------

# Importing the first must not import any of the others: a script pays for what it uses.
STAYS_LIGHT = {
    "lmq": [
        "lmq_broker",
        "lmq_worker",
        "lmq_simulator",
        "lmq_systemd",
        "rich",
        "httpx",
        "h11",
        "peewee",
        "click",
    ],
    "lmq_proto": ["lmq", "lmq_broker", "lmq_worker", "zmq", "rich", "httpx", "peewee", "click", "asyncio"],
    "lmq_broker.core": ["lmq", "zmq", "rich", "httpx", "peewee", "sqlite3", "click", "asyncio"],
}


def has_package(package: str) -> bool:
    top, *rest = package.split(".")
    return top in PACKAGE_DIRS and (PACKAGE_DIRS[top].joinpath(*rest) / "__init__.py").exists()


@pytest.mark.parametrize("package", [package for package in STAYS_LIGHT if has_package(package)])
def test_an_import_stays_light(package: str) -> None:
    program = f"import {package}, sys; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCE_ROOTS))}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert not [name for name in STAYS_LIGHT[package] if name in loaded]


# --- what ships -------------------------------------------------------------------------------------


def test_setup_cfg_lists_the_packages_that_the_tree_has() -> None:
    in_tree = {
        module_name(folder / "__init__.py")
        for top in PACKAGE_DIRS.values()
        for folder in [top, *(path for path in top.rglob("*") if path.is_dir())]
        if any(folder.glob("*.py"))
    }
    in_setup_cfg = {name for name in listed("options", "packages") if name.partition(".")[0] in PACKAGE_DIRS}
    assert in_tree == in_setup_cfg


def test_each_folder_with_code_that_ships_is_a_package() -> None:
    assert not [in_house(file.parent) for file in SHIPPED if not (file.parent / "__init__.py").exists()]


def test_every_source_root_is_known_to_setup_cfg() -> None:
    packages = [path.parent for folder in top_level_folders() for path in folder.glob("lmq*/__init__.py")]
    assert sorted(packages) == sorted(PACKAGE_DIRS.values())


def test_no_source_root_is_itself_a_package() -> None:
    assert not [in_house(root) for root in SOURCE_ROOTS if (root / "__init__.py").exists()]


@pytest.mark.parametrize("package", PACKAGE_DIRS)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (PACKAGE_DIRS[package] / "py.typed").exists()


def test_the_tools_know_every_source_root() -> None:
    tools = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    roots = {root.name for root in SOURCE_ROOTS} | {"tests"}
    assert roots <= set(tools["pytest"]["ini_options"]["pythonpath"])
    assert roots <= set(tools["mypy"]["files"])
    assert roots <= {path.rpartition("/")[2] for path in tools["mypy"]["mypy_path"].split(":")}
    assert roots <= set(tools["ruff"]["src"])
    assert roots <= set(tools["pyright"]["extraPaths"])


def test_every_entry_point_names_something_in_its_module() -> None:
    """A module that is missing altogether is found by `make fresh-install`, which calls each of them."""
    wrong = []
    for group in ("console_scripts", "lmq.commands"):
        for line in listed("options.entry_points", group):
            module, _, attribute = line.partition("=")[2].strip().partition(":")
            top, *rest = module.split(".")
            if top in PACKAGE_DIRS:
                path = PACKAGE_DIRS[top].joinpath(*rest)
                file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                if file.exists() and not re.search(rf"\b{attribute}\b", file.read_text(encoding="utf-8")):
                    wrong.append(line)
    assert not wrong


def test_the_units_lie_where_they_ship_from() -> None:
    assert not list((HOUSE / "systemd").glob("*.service")), "move the units into systemd/lmq_systemd/"


# --- files and what they may do ---------------------------------------------------------------------


def test_no_file_is_too_long() -> None:
    lengths = {in_house(file): len(file.read_text(encoding="utf-8").splitlines()) for file in SHIPPED}
    assert not {file: n for file, n in lengths.items() if n > LONG_TABLES.get(file, MAX_LINES)}


def reads_environment(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "getenvb"):
            return True
        case ast.ImportFrom(module="os", names=names):
            return any(alias.name in {"environ", "environb", "getenv", "getenvb"} for alias in names)
        case ast.keyword(arg="envvar" | "auto_envvar_prefix"):
            return True
    return False


def test_the_environment_is_read_in_config_py_alone() -> None:
    assert not [
        f"{in_house(file)}:{getattr(node, 'lineno', '?')}"
        for file in SHIPPED
        if file.name != "config.py"
        for node in ast.walk(parsed(file))
        if reads_environment(node)
    ]


# What runs on Linux, macOS and Windows. The broker runs on the first two, the units on the first.
EVERYWHERE = {"lmq_proto", "lmq", "lmq_worker", "lmq_gateway", "lmq_simulator"}


@pytest.mark.parametrize("package", [package for package in PACKAGE_DIRS if package in EVERYWHERE])
def test_client_and_worker_use_nothing_that_a_platform_lacks(package: str) -> None:
    assert not [
        f"{in_house(file)}:{line}: {use}"
        for file in PACKAGE_DIRS[package].rglob("*.py")
        for line, use in unguarded_uses(parsed(file))
    ]


# --- documents --------------------------------------------------------------------------------------

DOCUMENTS = sorted(
    file
    for pattern in ("*.md", "*/*.md", "docs/*/*.md", "tests/*/*.md")
    for file in HOUSE.glob(pattern)
    if file.relative_to(HOUSE).parts[0] not in GENERATED
    and not file.relative_to(HOUSE).parts[0].startswith(".")
)


def test_every_folder_says_what_it_is() -> None:
    assert not [in_house(folder) for folder in top_level_folders() if not (folder / "README.md").exists()]


def test_the_protocol_has_a_text() -> None:
    assert "lmq_proto" not in PACKAGE_DIRS or (HOUSE / "proto" / "PROTOCOL.md").exists()


def test_every_decision_has_a_number_of_its_own_and_a_title() -> None:
    numbers: dict[str, str] = {}
    for file in sorted((HOUSE / "docs" / "adr").glob("*.md")):
        if file.name == "README.md":
            continue
        named = re.fullmatch(r"(\d{4})-[a-z0-9][a-z0-9-]*\.md", file.name)
        assert named, f"{file.name}: NNNN-title.md"
        number = named[1]
        assert number not in numbers, f"{file.name} and {numbers[number]} share a number"
        numbers[number] = file.name
        first = file.read_text(encoding="utf-8").partition("\n")[0]
        assert re.fullmatch(rf"# (ADR[ -])?{number}[.:]? .+", first), f"{file.name}: # {number}. Title"


def test_the_first_screen_shows_an_example_that_runs() -> None:
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(shown) == 1
    assert shown[0] in (HOUSE / "examples" / "ask.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=in_house)
def test_every_link_to_a_file_leads_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text)
    assert not [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=in_house)
def test_every_make_target_in_the_documents_exists(document: Path) -> None:
    makefile = (HOUSE / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    named = set(
        re.findall(
            r"(?:`|^ *\$? ?)make ([a-z][a-z-]*)", document.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
    )
    assert named <= targets
