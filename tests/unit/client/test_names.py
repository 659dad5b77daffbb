"""The public names: all there, each imported when it is first named."""

from __future__ import annotations

import subprocess
import sys

import lmq


def test_every_public_name_is_there_and_no_other() -> None:
    for name in lmq.__all__:
        assert getattr(lmq, name) is not None, name
    assert set(lmq.__all__) <= set(dir(lmq))
    assert not hasattr(lmq, "Cliemt")


def test_importing_lmq_imports_neither_its_libraries_nor_broker_and_worker() -> None:
    text = "import lmq, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {text}"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"zmq", "msgspec", "httpx", "click", "lmq_proto", "lmq_broker", "lmq_worker"} & set(loaded)
