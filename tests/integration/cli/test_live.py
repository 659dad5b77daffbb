"""The command as a process against real daemons."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from integration.cli.conftest import LMQ, Lmq
from lmq.cli.demo.stage import Stage
from lmq.cli.root import COMMANDS

if TYPE_CHECKING:
    from pathlib import Path


def test_a_chat_is_answered_and_can_be_looked_at_afterwards(lmq: Lmq) -> None:
    asked = lmq.run("chat", "Why is the sky blue?")
    assert asked.returncode == 0, asked.stderr
    assert "blue" in asked.stdout
    assert lmq.run("result", "@last").stdout.strip() == asked.stdout.strip()
    assert lmq.run("stream", "@last").stdout.strip() == asked.stdout.strip()
    listed = json.loads(lmq.run("--json", "list").stdout)
    assert [(job["state"], job["task_type"], job["priority"]) for job in listed] == [("done", "chat", 8)]
    assert listed[0]["id"] in lmq.run("show", "@last").stdout
    assert lmq.run("why", listed[0]["id"][-6:]).stdout.startswith(listed[0]["id"][-6:])
    logs = lmq.run("logs", "@last").stdout.splitlines()
    assert [line.split()[2] for line in logs] == ["accepted", "started", "done"]
    assert lmq.run("wait", "@last").returncode == 0


def test_embeddings_bulks_and_nouns(lmq: Lmq, stage: Stage) -> None:
    told = json.loads(lmq.run("--json", "embed", "a blue sky", "a red rose").stdout)
    assert len(told["vectors"]) == 2
    many = lmq.run("submit", "chat", "-f", "-", given='{"body": {"messages": []}}\n' * 3)
    assert len(many.stdout.split()) == 3
    assert stage.worker_name in lmq.run("workers").stdout
    assert "qwen/qwen3-8b" in lmq.run("models").stdout
    assert "default" in lmq.run("queues").stdout
    assert lmq.run("queues", "show", "nowhere").returncode == 3
    assert "lmq" in lmq.run("top").stdout
    assert lmq.run("version", "--broker").stdout.count("\n") == 2


def test_what_jobs_used_is_summed_up_and_measured(lmq: Lmq) -> None:
    assert lmq.run("chat", "Why is the sky blue?").returncode == 0
    assert lmq.run("embed", "a blue sky").returncode == 0
    job_id = lmq.run("chat", "-d", "--queue", "night", "--delay", "1h", "Hello").stdout.strip()
    assert lmq.run("cancel", job_id).returncode == 0
    told = json.loads(lmq.run("--json", "usage", "--by", "type,user", "--price-hour", "3600").stdout)
    chat, embed = told["rows"]
    assert (chat["task_type"], chat["done"], chat["cancelled"]) == ("chat", 1, 1)
    assert (embed["task_type"], embed["done"], embed["output_tokens"]) == ("embed", 1, 0)
    assert chat["prompt_tokens"] > 0
    assert chat["output_tokens"] > 0
    assert chat["cost"] == pytest.approx(chat["engine_s"], abs=0.001) != 0
    assert chat["run_p50_s"] is not None
    table = lmq.run("usage", "--by", "model")
    assert "qwen/qwen3-8b" in table.stdout
    assert "total" in table.stdout
    assert len(lmq.run("usage", "--csv", "--since", "2026-01-01").stdout.splitlines()) == 2
    measured = lmq.run("metrics", "--users").stdout
    assert 'lmq_jobs_ended_total{state="done"} 2\n' in measured
    assert f'lmq_tokens_total{{model="qwen/qwen3-8b",kind="output"}} {chat["output_tokens"]}\n' in measured
    assert "lmq_user_engine_seconds_total{" in measured


def test_what_was_asked_for_is_a_trace_that_forecasts_read(lmq: Lmq, tmp_path: Path) -> None:
    """Tokens as the worker counted them; who was cancelled asked for nothing that could be played again."""
    for user in ("anna", "ben"):
        assert lmq.run("--as", user, "chat", "Why is the sky blue?").returncode == 0
    job_id = lmq.run("chat", "-d", "--delay", "1h", "Hello").stdout.strip()
    assert lmq.run("cancel", job_id).returncode == 0
    written = lmq.run("usage", "--trace", "--since", "1d")
    rows = list(csv.DictReader(io.StringIO(written.stdout)))
    assert [row["user"] for row in rows] == ["anna", "ben"]
    shown = json.loads(lmq.run("--json", "list", "--user", "ben").stdout)[0]
    for mine, field in (("in_tokens", "prompt_tokens"), ("out_tokens", "output_tokens")):
        assert int(rows[1][mine]) == shown[field] > 0
    assert rows[0]["t_s"] == "0.0"
    assert "(2 requests)" in written.stderr
    file = tmp_path / "mine.csv"
    file.write_text(written.stdout, encoding="utf-8")
    told = lmq.run("forecast", str(file), "--endpoints", "1")
    assert told.stdout.startswith("2 requests of 2 users for 1 model "), told.stderr


def test_a_paused_queue_holds_its_jobs_until_they_are_cancelled_by_filter(lmq: Lmq) -> None:
    assert lmq.run("queues", "pause", "night", "--reason", "a test").returncode == 0
    job_id = lmq.run("chat", "-d", "--queue", "night", "Hello").stdout.strip()
    why = lmq.run("why", job_id).stdout
    assert "queue night is paused" in why
    assert "lmq queues resume night" in why
    assert lmq.run("result", job_id, "--timeout", "0.2s").returncode == 124
    assert lmq.run("cancel", "--queue", "night").returncode == 2
    assert lmq.run("cancel", "--queue", "night", "--yes").returncode == 0
    ended = lmq.run("result", job_id)
    assert ended.returncode == 1
    assert "was cancelled" in ended.stderr
    assert lmq.run("retry", job_id).returncode == 0
    assert lmq.run("update", job_id, "--queue", "default", "--priority", "9").returncode == 0
    assert lmq.run("wait", job_id).returncode == 0
    assert lmq.run("delete", job_id).returncode == 0
    assert lmq.run("show", job_id).returncode == 3


def test_ctrl_c_in_chat_cancels_the_job(lmq: Lmq) -> None:
    chat = lmq.start("chat", "Why is the sky blue?")
    assert chat.stdout is not None
    assert chat.stdout.read(1)
    chat.send_signal(signal.SIGINT)
    _, said = chat.communicate(timeout=20)
    assert chat.returncode == 130
    assert "cancelled" in said
    assert "the text so far stays: lmq stream" in said
    assert lmq.run("wait", "@last").stdout.split()[1] == "cancelled"


def test_ctrl_c_elsewhere_only_leaves_and_says_so(lmq: Lmq) -> None:
    lmq.run("queues", "pause", "default")
    job_id = lmq.run("chat", "-d", "Hello").stdout.strip()
    tail = lmq.start("--json", "tail")
    assert tail.stdout is not None
    assert tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    _, said = tail.communicate(timeout=20)
    assert (tail.returncode, said.strip()) == (130, "lmq: left")
    assert json.loads(lmq.run("--json", "show", job_id).stdout)["state"] == "ready"


def test_tail_goes_on_through_a_kill_of_the_broker_without_a_gap_or_a_double(lmq: Lmq, stage: Stage) -> None:
    tail = lmq.start("--json", "tail", "-n", "0")
    ids = lmq.run(
        "submit", "chat", "-f", "-", given='{"body": {"messages": [{"role": "user", "content": "Hi"}]}}\n' * 4
    )
    waiting = set(ids.stdout.split())
    assert len(waiting) == 4
    assert tail.stdout is not None
    seen: list[dict[str, object]] = []
    killed = False
    for line in tail.stdout:
        event = json.loads(line)
        seen.append(event)
        if event["kind"] == "started" and not killed:
            killed = True
            stage.kill_broker()
            stage.start_broker()
        if event["kind"] == "done":
            waiting.discard(str(event["job_id"]))
        if not waiting:
            break
    seqs = [int(str(event["seq"])) for event in seen]
    past = lmq.run("--json", "tail", "--no-follow", "--since", "0").stdout.splitlines()
    stored = [int(json.loads(line)["seq"]) for line in past]
    assert seqs == [seq for seq in stored if seqs[0] <= seq <= seqs[-1]]
    assert "broker_started" in {event["kind"] for event in seen}


def test_a_backup_is_restored_offline(lmq: Lmq, stage: Stage) -> None:
    from lmq.cli.humane import size

    folder = stage._path("copy")
    folder.mkdir()
    copied = lmq.run("backup", str(folder / "a.sqlite3"))
    assert copied.returncode == 0, copied.stderr
    assert size((folder / "a.sqlite3").stat().st_size) in copied.stdout
    refused = lmq.run("--yes", "restore", str(folder / "a.sqlite3"))
    assert refused.returncode == 1
    assert "a broker runs at" in refused.stderr
    restored = lmq.run("--yes", "restore", str(folder / "a.sqlite3"), "--data", str(folder / "data"))
    assert restored.returncode == 0, restored.stderr


def test_doctor_finds_nothing_wrong_here(lmq: Lmq, stage: Stage) -> None:
    ended = lmq.run("--json", "doctor", "--endpoint", stage.endpoint.url)
    found = json.loads(ended.stdout)
    assert found[0]["level"] == "ok"
    # Whoever runs these tests may run a broker of their own, at the usual address.
    wrong = [one["text"] for one in found if one["level"] != "ok" and "a second broker" not in one["text"]]
    assert wrong == []


@pytest.mark.parametrize(
    "words", [["list"], ["--help"], ["tail", "--no-follow"], ["--json", "top"]], ids=" ".join
)
def test_a_reader_that_leaves_gets_no_traceback(lmq: Lmq, words: list[str]) -> None:
    for _ in range(3):
        lmq.run("submit", "echo", "{}")
    process = lmq.start(*words)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, said = process.communicate(timeout=30)
    assert "Traceback" not in said
    assert "Exception ignored" not in said


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("up", "demo", "doctor")])
def test_a_closed_stdout_gets_no_traceback(lone: Lmq, name: str) -> None:
    line = " ".join([*(f"'{word}'" for word in LMQ), name, "--help", ">&-"])
    ended = subprocess.run(
        ["/bin/sh", "-c", line], env=lone.environment, capture_output=True, text=True, check=False, timeout=30
    )
    assert "Traceback" not in ended.stderr
    assert "bug" not in ended.stderr


def test_a_shell_completes_commands_and_jobs(lmq: Lmq) -> None:
    job_id = lmq.run("chat", "-d", "Hello").stdout.strip()
    asked = {**lmq.environment, "_LMQ_COMPLETE": "bash_complete"}
    for words, wanted in (("lmq ch", "plain,chat"), ("lmq show ", f"plain,{job_id[-6:]}")):
        ended = subprocess.run(
            LMQ, env={**asked, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))},
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert wanted in ended.stdout.splitlines(), ended.stderr
