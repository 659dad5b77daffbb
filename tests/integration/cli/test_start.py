"""`lmq up` and `lmq demo`: whole, and cut short; nothing of theirs is left running."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from integration.cli.conftest import Lmq


def children_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"ended without {pattern}: {process.stderr.read() if process.stderr else ''}")


def test_up_starts_all_and_ctrl_c_stops_all(lone: Lmq) -> None:
    up = lone.start("--url", "tcp://127.0.0.1:0", "up", "--simulator")
    url = read_until(up, "broker ready at").split()[-1]
    read_until(up, r"^up\. ")
    started = children_of(up)
    assert len(started) == 3
    asked = lone.run("--url", url, "chat", "Hello")
    assert asked.returncode == 0, asked.stderr
    again = lone.start("--url", url, "up", "--simulator")
    assert "a broker runs at" in read_until(again, "already")
    read_until(again, r"^up\. ")
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=30)
    up.send_signal(signal.SIGINT)
    said, _ = up.communicate(timeout=30)
    assert (up.returncode, said.rstrip().splitlines()[-1]) == (0, "stopped")
    assert psutil.wait_procs(started, timeout=5)[1] == []


def test_up_without_a_model_server_says_what_to_do(lone: Lmq) -> None:
    ended = lone.run("--url", "tcp://127.0.0.1:9", "up", "--endpoint", "http://127.0.0.1:9")
    assert ended.returncode == 69
    assert "no LM Studio at http://127.0.0.1:9" in ended.stderr
    assert "lmq up --simulator" in ended.stderr


def test_up_ends_and_stops_the_others_when_one_ends(lone: Lmq) -> None:
    up = lone.start("--url", "tcp://127.0.0.1:0", "up", "--simulator")
    read_until(up, r"^up\. ")
    started = children_of(up)
    worker = next(child for child in started if "worker" in child.cmdline())
    worker.kill()
    _, said = up.communicate(timeout=30)
    assert up.returncode == 1
    assert "worker was killed (SIGKILL)" in said
    assert "type: lmq up" in said
    assert psutil.wait_procs(started, timeout=5)[1] == []


@pytest.mark.slow
def test_the_demo_answers_each_job_once_over_a_kill_of_the_broker(lone: Lmq) -> None:
    demo = lone.start("--json", "demo", "--simulator")
    read_until(demo, "jobs from 3 users")
    started = children_of(demo)
    last = read_until(demo, r"^\{")
    demo.communicate(timeout=30)
    told = json.loads(last)
    assert (demo.returncode, told["faults"], told["broker_kills"]) == (0, [], 1)
    assert told["answered_once"] == told["jobs"] == sum(len(waits) for waits in told["waited_s"].values())
    assert psutil.wait_procs(started, timeout=5)[1] == []


MOMENTS = [
    ("starting a broker", signal.SIGINT),
    ("simulating one", signal.SIGINT),
    ("broker .process", signal.SIGINT),
    ("jobs from 3 users", signal.SIGINT),
    (" done ", signal.SIGINT),
    (" done ", signal.SIGTERM),
    (" done ", signal.SIGHUP),
    ("kill -9", signal.SIGINT),
    ("again after", signal.SIGINT),
]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), MOMENTS)
def test_ctrl_c_at_any_moment_of_the_demo_leaves_nothing(
    lone: Lmq, moment: str, number: signal.Signals
) -> None:
    demo = lone.start("demo", "--simulator")
    read_until(demo, moment)
    started = children_of(demo)
    demo.send_signal(number)
    _, said = demo.communicate(timeout=40)
    assert (demo.returncode, said.strip()) == (130, "lmq: stopped; nothing of the demo is left running")
    assert psutil.wait_procs(started, timeout=5)[1] == []


def test_ctrl_c_while_the_command_is_still_being_imported_prints_no_traceback(tmp_path: Path) -> None:
    """A module that interrupts stands in for a key pressed at that moment."""
    (tmp_path / "sitecustomize.py").write_text(
        "import builtins, os, signal, sys\n"
        "real = builtins.__import__\n"
        "def guarded(name, *rest, **more):\n"
        "    if name == 'click':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *rest, **more)\n"
        "builtins.__import__ = guarded\n",
        "utf-8",
    )
    folders = os.pathsep.join([str(tmp_path), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-m", "lmq.cli", "list"], env={**os.environ, "PYTHONPATH": folders}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == ""
