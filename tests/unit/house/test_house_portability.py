"""The scanner behind a house rule: what it finds, and which guards it accepts."""

from __future__ import annotations

import ast
import textwrap

import pytest

from house_portability import unguarded_uses


def found(source: str) -> list[str]:
    return [use for _, use in unguarded_uses(ast.parse(textwrap.dedent(source)))]


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("import fcntl", "fcntl"),
        ("from pwd import getpwuid", "pwd"),
        ("import os\nos.fork()", "os.fork"),
        ("from os import getuid", "os.getuid"),
        ("def f():\n    return os.getuid()", "os.getuid"),
        ("signal.signal(signal.SIGHUP, f)", "signal.SIGHUP"),
        ("loop.add_signal_handler(15, f)", ".add_signal_handler"),
        ("run(['x'], preexec_fn=f)", "preexec_fn="),
        ("URL = 'ipc:///tmp/lmq'", "ipc:///tmp/lmq"),
        ("url = f'ipc://{path}'", "ipc://"),
        ("if ready:\n    os.fork()", "os.fork"),
        ("try:\n    os.fork()\nexcept OSError:\n    pass", "os.fork"),
        ("try:\n    import json\nexcept ImportError:\n    import fcntl", "fcntl"),
    ],
)
def test_an_unguarded_use_is_found(source: str, use: str) -> None:
    assert found(source) == [use]


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.getpid()",
        "signal.signal(signal.SIGTERM, f)",
        "if sys.platform != 'win32':\n    import fcntl",
        "if hasattr(os, 'fork'):\n    os.fork()",
        "if sys.platform == 'win32':\n    pass\nelse:\n    os.getuid()",
        "name = os.getuid() if hasattr(os, 'getuid') else 0",
        "ok = hasattr(os, 'getuid') and os.getuid() == 0",
        "try:\n    import resource\nexcept ImportError:\n    resource = None",
        "with suppress(NotImplementedError):\n    loop.add_signal_handler(15, f)",
        "def f():\n    if sys.platform == 'win32':\n        return 0\n    return os.getuid()",
        "def f():\n    assert sys.platform != 'win32'\n    return os.getuid()",
        "local = url.startswith('ipc://')",
        "raise ValueError('no ipc:// here')",
    ],
)
def test_a_guarded_or_portable_use_is_not(source: str) -> None:
    assert found(source) == []


def test_a_guard_ends_with_its_function() -> None:
    source = """
        def f():
            if sys.platform == "win32":
                return 0
            return os.getuid()

        def g():
            return os.getuid()
    """
    assert found(source) == ["os.getuid"]
