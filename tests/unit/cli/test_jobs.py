"""The verbs about jobs: what they ask of the SDK, what they print, how they end."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import pytest

from lmq import ChatResult, EmbedResult, ErrorInfo, Outcome, Piece, QueueView, Restart, Why
from lmq.cli import reading
from lmq.cli.errors import Status, sentence_of, status_of
from lmq.cli.session import Session
from lmq.errors import (
    BadField,
    DiskFull,
    JobCancelled,
    JobDead,
    LimitReached,
    LmqError,
    NotAllowed,
    NotFound,
    NotReachable,
    PartlyRefused,
    QueueDraining,
    UnknownModel,
    WaitTimeout,
)
from unit.cli.fakes import ID_A, ID_B, URL, FakeBroker, FakeJob, a_job, an_event, health, run

if TYPE_CHECKING:
    from lmq.cli.port import BrokerPort, JobPort


def piece(text: str, channel: str = "content") -> Piece:
    return Piece(channel=channel, text=text, attempt=1, number=1)


@pytest.mark.parametrize(
    ("error", "status"),
    [(JobDead(ID_A, []), 1), (JobCancelled(ID_A), 1), (BadField("priority", 11, "0-9"), 2), (NotFound("job", "x"), 3),
     (UnknownModel("x", []), 3), (NotReachable("tcp://x"), 69), (LimitReached("jobs", 2, 2, 10), 75),
     (QueueDraining("q"), 75), (DiskFull(1, 2, 3.0), 75), (NotAllowed("drain", "user"), 77),
     (WaitTimeout("job", 5), 124), (PartlyRefused([], [(0, LimitReached("jobs", 2, 2, 10))]), 75)],
)  # fmt: skip
def test_each_error_has_the_status_of_the_table(error: LmqError, status: int) -> None:
    assert status_of(error) == Status(status)


def test_sentences_name_jobs_by_their_last_characters_and_hold_no_control_characters() -> None:
    said = sentence_of(JobDead(ID_A, [ErrorInfo("x", "gone \x1b]0;evil\x07")]))
    assert said == "job JZ6EB6 is dead: gone ]0;evil"


# --- chat ------------------------------------------------------------------------------------------------------------


def test_chat_prints_the_answer_alone_on_stdout_and_asks_with_live_priority() -> None:
    broker = FakeBroker(
        text=[piece("Because "), piece("hm", "reasoning"), piece("of air."), piece("stop", "end")]
    )
    ended = run(
        broker, "chat", "Why is", "the sky blue?", "-m", "fast", "-s", "Be brief.", "--max-tokens", "9"
    )
    assert ended.exit_code == 0
    assert ended.stdout == "Because of air.\n"
    assert broker.did[0][1] == "Why is the sky blue?"
    assert broker.did[0][2] == {"model": ["fast"], "system": "Be brief.", "max_tokens": 9, "priority": 8}


def test_chat_takes_what_comes_in_on_a_pipe() -> None:
    broker = FakeBroker(text=[piece("ok")])
    run(broker, "chat", "Review this:", "-", given="a diff\n")
    run(broker, "chat", given="all of it")
    assert [did[1] for did in broker.did] == ["Review this:\n\na diff\n", "all of it"]


def test_an_empty_prompt_is_usage() -> None:
    assert run(FakeBroker(), "chat", given="").exit_code == 2


def test_an_answer_cannot_write_over_the_terminal() -> None:
    broker = FakeBroker(text=[piece("a\x1b[2Jb\r\n\tc")])
    assert run(broker, "chat", "x").stdout == "a[2Jb\n\tc\n"


def test_a_new_attempt_is_told_beside_the_answer() -> None:
    broker = FakeBroker(text=[piece("Bec"), Restart(2, "worker lost"), piece("Because.")])
    ended = run(broker, "chat", "x")
    assert ended.stdout == "Bec\nBecause.\n"
    assert "-- attempt 2 begins anew: worker lost --" in ended.stderr


def test_a_new_attempt_is_told_with_why_the_one_before_ended() -> None:
    ended = an_event(2, "released", job_id=ID_A, detail={"code": "x", "error": "its model server stopped"})
    broker = FakeBroker(text=[piece("Bec"), Restart(3, "given back"), piece("Because.")], streams=[[ended]])
    assert "-- attempt 3 begins anew: its model server stopped --" in run(broker, "chat", "x").stderr
    assert broker.did[-1][1]["jobs"] == [ID_A]


def test_a_broker_that_does_not_answer_is_told_and_its_late_answer_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "ANSWER_S", 0.0)
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        return answers.get(timeout=5)

    status = reading.StatusLine(Session())
    assert [status.ask(ask), status.ask(ask)] == [reading.NO_WORD] * 2
    answers.put("next")
    monkeypatch.setattr(reading, "ANSWER_S", 5.0)
    assert (status.ask(ask), asked) == ("next", [1])


def test_a_broker_that_goes_in_the_middle_of_a_text_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = threading.Event()
    monkeypatch.setattr(reading, "PATIENCE_S", 5.0)
    monkeypatch.setattr(reading, "GAP_S", 0.01)
    monkeypatch.setattr(reading, "ANSWER_S", 0.01)

    def note(_: Session, sentence: str) -> None:
        click.echo(sentence)
        told.set()

    monkeypatch.setattr(Session, "note", note)

    class Looked(reading.StatusLine):
        def __init__(self, session: Session) -> None:
            super().__init__(session)
            self.is_on = True

    class Silent(FakeJob):
        def why(self) -> Why:
            told.wait(5)
            raise NotReachable(URL)

        def pieces(self, **_: object) -> Iterator[Piece | Restart]:
            yield piece("Bec")
            assert told.wait(5)
            yield piece("ause.")

    monkeypatch.setattr(reading, "StatusLine", Looked)
    broker = FakeBroker()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    reading.print_text(Session(), cast("BrokerPort", broker), cast("JobPort", Silent(ID_A, broker)))
    assert capsys.readouterr().out.startswith(f"Bec\n-- {reading.NO_WORD} --\n")


def test_a_line_about_a_job_is_as_long_as_the_terminal_is_wide(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((20, 5)))
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2, raising=False)
    status = reading.StatusLine(Session())
    status.is_on = True
    status.show(lambda: "日本 waits: for\nsomething that is long")
    status.clear()
    line, _, rest = click.unstyle(capsys.readouterr().err).partition("\r")
    assert (line, rest) == ("(日本 waits: for s…", "")


def test_who_leaves_before_anything_was_submitted_is_told_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("lmq.cli.chat.read_pipe", interrupted)
    ended = run(FakeBroker(), "chat", "-")
    assert (ended.exit_code, ended.stderr.strip()) == (130, "lmq: left")


@pytest.mark.parametrize("words", [("wait",), ("result",), ("stream",)])
def test_who_leaves_while_a_job_goes_on_is_told_so(words: tuple[str, ...]) -> None:
    class Left(FakeBroker):
        def job(self, job_id: str) -> FakeJob:
            raise KeyboardInterrupt

    ended = run(Left(found=[a_job()]), *words, ID_A)
    assert ended.exit_code == 130
    assert "left; the job" in ended.stderr


def test_resources_are_offered_where_jobs_may_use_them() -> None:
    broker = FakeBroker()
    assert run(broker, "submit", "train", "{}", "--uses", "gpu-1").exit_code == 0
    assert broker.did[0][2]["uses"] == ["gpu-1"]
    assert run(broker, "chat", "x", "--uses", "gpu-1").exit_code == 2


def test_ctrl_c_in_chat_cancels_and_says_so() -> None:
    broker = FakeBroker(text=[piece("Bec"), KeyboardInterrupt()])
    ended = run(broker, "chat", "x")
    assert ended.exit_code == 130
    assert ("cancel", ID_A) in broker.did
    assert "lmq: cancelled JZ6EB6" in ended.stderr


def test_a_job_that_dies_is_status_1_after_the_text_there_was() -> None:
    broker = FakeBroker(text=[piece("Bec"), JobDead(ID_A, [ErrorInfo("x", "out of memory")])])
    ended = run(broker, "chat", "x")
    assert (ended.exit_code, ended.stdout) == (1, "Bec\n")
    assert "job JZ6EB6 is dead: out of memory" in ended.stderr


def test_a_detached_chat_prints_its_id_and_has_no_live_priority() -> None:
    broker = FakeBroker()
    ended = run(broker, "-q", "chat", "-d", "x")
    assert (ended.stdout, ended.stderr) == (f"{ID_A}\n", "")
    assert "priority" not in broker.did[0][2]


def test_a_schema_and_an_image_come_from_files(tmp_path: Path) -> None:
    schema, image = tmp_path / "s.json", tmp_path / "a.png"
    schema.write_text('{"type": "object"}')
    image.write_bytes(b"\x89PNG")
    broker = FakeBroker(text=[piece("{}")])
    assert run(broker, "chat", "x", "--schema", str(schema), "--image", str(image)).exit_code == 0
    assert broker.did[0][2]["schema"] == {"type": "object"}
    assert broker.did[0][2]["images"] == [image]
    schema.write_text("no json")
    assert run(broker, "chat", "x", "--schema", str(schema)).exit_code == 2


# --- submit, embed, result, wait -------------------------------------------------------------------------------------


def test_a_file_of_payloads_is_submitted_at_once_each_line_with_a_key_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"n": 1}\n\n{"n": 2}\n')
    broker = FakeBroker()
    ended = run(broker, "submit", "echo", "-f", str(file), "--key", "night", "--atomic")
    assert ended.exit_code == 0
    verb, drafts, atomic = broker.did[0]
    assert (verb, atomic) == ("submit_many", True)
    assert [draft.spec.key for draft in drafts] == ["night/1", "night/3"]
    assert ended.stdout.split() == [draft.id for draft in drafts]
    assert "2 jobs accepted" in ended.stderr


def test_a_line_that_is_no_json_is_named_and_nothing_is_submitted(tmp_path: Path) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"n": 1}\n{oops\n')
    broker = FakeBroker()
    ended = run(broker, "submit", "echo", "-f", str(file))
    assert ended.exit_code == 2
    assert "line 2 is no JSON" in ended.stderr
    assert not broker.did


def test_a_partly_refused_batch_prints_what_was_accepted_and_ends_as_refused_later() -> None:
    broker = FakeBroker()
    accepted = [broker.job(ID_B)]
    broker.refusal = PartlyRefused(accepted, [(1, LimitReached("jobs_open", 9, 9, 3))])  # type: ignore[arg-type]  # a stand-in for handles
    ended = run(broker, "submit", "echo", "-f", "-", given="{}\n{}\n")
    assert (ended.exit_code, ended.stdout) == (75, f"{ID_B}\n")
    assert "line 2: jobs_open is full" in ended.stderr
    assert ended.stderr.endswith("1 job refused, 1 accepted\n")


def test_embed_shows_the_first_numbers_and_json_all() -> None:
    import array

    packed = array.array("f", [0.5, -1.0, 2.0, 0.0, 4.0]).tobytes()
    broker = FakeBroker(outcome=EmbedResult(packed, 1, 5, "nomic"))
    assert run(broker, "embed", "x").stdout.splitlines() == [
        "1 vector of 5 numbers, nomic",
        "    1    0.5000  -1.0000   2.0000   0.0000 ...",
    ]
    told = json.loads(run(broker, "--json", "embed", "x").stdout)
    assert told["vectors"] == [[0.5, -1.0, 2.0, 0.0, 4.0]]


def test_result_prints_text_of_a_chat_and_json_of_anything_else() -> None:
    broker = FakeBroker(found=[a_job()], outcome=ChatResult(text="Because."))
    assert run(broker, "result", ID_A).stdout == "Because.\n"
    broker.outcome = {"status": "kept"}
    assert json.loads(run(broker, "result", ID_A).stdout) == {"status": "kept"}
    broker.outcome = WaitTimeout("job", 5)
    assert run(broker, "result", ID_A, "--timeout", "5s").exit_code == 124


def test_wait_ends_with_1_if_a_job_is_not_done() -> None:
    broker = FakeBroker(found=[a_job(state="done"), a_job(ID_B, state="dead")])
    assert run(broker, "wait", ID_A).exit_code == 0
    ended = run(broker, "wait", ID_A, ID_B)
    assert ended.exit_code == 1
    assert ended.stdout.splitlines() == ["JZ6EB6  done", "7KQ2M9  dead"]


# --- list and acts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["waiting", "ready"])
def test_list_passes_the_filters_on_and_prints_a_table(word: str) -> None:
    broker = FakeBroker(found=[a_job(ahead=2)])
    ended = run(broker, "list", "--state", word, "--user", "anna", "--label", "chat=42", "--type", "chat")
    assert broker.did == [
        ("jobs", {"user": "anna", "task_type": "chat", "states": ["ready"], "labels": {"chat": "42"}})
    ]
    head, row = ended.stdout.splitlines()
    assert head.split() == ["ID", "STATE", "TYPE", "USER", "MODEL", "AGE"]
    assert row.split()[:5] == ["JZ6EB6", "waiting", "chat", "anna", "any"]


def test_output_is_the_same_on_a_pipe_but_for_colours() -> None:
    from click.testing import CliRunner

    from lmq.cli.root import root
    from lmq.cli.session import Session

    broker = FakeBroker(found=[a_job(state="dead")])
    session = Session(connect=lambda _: broker)  # type: ignore[arg-type, return-value]  # the stand-in
    colored = CliRunner().invoke(root, ["list"], obj=session, color=True).stdout
    assert "\x1b[31mdead" in colored
    assert click.unstyle(colored) == run(broker, "list").stdout
    assert "\x1b" not in CliRunner().invoke(root, ["list", "--no-color"], obj=session, color=True).stdout


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete"])
def test_acts_on_named_jobs_do_not_ask(verb: str) -> None:
    broker = FakeBroker(found=[a_job()], outcomes=[Outcome(ID_A, "changed")])
    ended = run(broker, verb, "JZ6EB6")
    assert ended.exit_code == 0
    assert (verb, (ID_A,), {}) in broker.did
    assert ended.stdout.startswith("JZ6EB6  ")


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete"])
def test_acts_on_a_filter_ask_first_and_do_nothing_where_nobody_answers(verb: str) -> None:
    broker = FakeBroker(found=[a_job(state="ready"), a_job(ID_B, state="dead")])
    ended = run(broker, verb, "--user", "anna")
    assert ended.exit_code == 2
    assert "1 job? Nobody is here to ask; add --yes" in ended.stderr
    assert not [did for did in broker.did if did[0] == verb]
    broker.outcomes = [Outcome(ID_A, "changed")]
    assert run(broker, verb, "--user", "anna", "--yes").exit_code == 0
    act = next(did for did in broker.did if did[0] == verb)
    assert act[1] == ()
    assert act[2]["user"] == "anna"
    assert "done" not in act[2]["states"] or verb == "delete"


def test_neither_names_nor_a_filter_or_both_is_usage() -> None:
    assert run(FakeBroker(), "cancel").exit_code == 2
    assert run(FakeBroker(), "cancel", ID_A, "--user", "anna").exit_code == 2


def test_a_refused_act_says_why_and_ends_with_its_status() -> None:
    refusal = ErrorInfo("wrong_state", "", False, {"job_id": ID_A, "state": "done", "wanted": "an open job"})
    broker = FakeBroker(outcomes=[Outcome(ID_A, "refused", refusal), Outcome(ID_B, "unchanged")])
    ended = run(broker, "cancel", ID_A, ID_B)
    assert (ended.exit_code, ended.stdout) == (1, "7KQ2M9  had ended already\n")
    assert "job JZ6EB6 is done; this needs an open job" in ended.stderr


@pytest.mark.parametrize(
    "filters",
    [
        ("--user", "anna", "--state", "ready"),
        ("--where", "user=anna", "--state", "ready"),
        ("--where", "user=anna", "--where", "state=ready"),
    ],
)
def test_update_tells_changes_from_filters(filters: tuple[str, ...]) -> None:
    broker = FakeBroker(found=[a_job()], outcomes=[Outcome(ID_A, "changed")])
    ended = run(broker, "-y", "update", *filters, "--queue", "night", "-p", "2")
    assert ended.exit_code == 0, ended.output
    assert broker.did[-1] == (
        "update", (), {"match": {"user": "anna", "states": ["ready"]}, "priority": 2, "queue": "night"}
    )  # fmt: skip


def test_update_filters_by_what_it_also_changes() -> None:
    broker = FakeBroker(found=[a_job()], outcomes=[Outcome(ID_A, "changed")])
    ended = run(
        broker, "-y", "update", "--where", "queue=night", "--where", "label=chat=42", "--queue", "day"
    )
    assert ended.exit_code == 0, ended.output
    match = {
        "queue": "night",
        "labels": {"chat": "42"},
        "states": ["asking", "blocked", "delayed", "leased", "ready"],
    }
    assert broker.did[-1] == ("update", (), {"match": match, "queue": "day"})


@pytest.mark.parametrize("verb", ["cancel", "retry", "delete", "update"])
def test_what_a_command_without_jobs_proposes_is_understood(verb: str) -> None:
    change = ["-p", "3"] if verb == "update" else []
    ended = run(FakeBroker(), verb, *change)
    assert ended.exit_code == 2
    assert f"lmq {verb} --user anna" in ended.stderr
    assert "no job fits that" in run(FakeBroker(), verb, *change, "--user", "anna").stderr


def test_update_refuses_what_is_no_change_or_no_filter() -> None:
    assert run(FakeBroker(), "update", ID_A).exit_code == 2
    assert run(FakeBroker(), "update", ID_A, "--where", "colour=red", "-p", "2").exit_code == 2
    assert run(FakeBroker(), "update", "--where", "state=wild", "-p", "2").exit_code == 2


def test_an_update_that_changes_nothing_says_so() -> None:
    broker = FakeBroker(outcomes=[Outcome(ID_A, "unchanged")])
    assert run(broker, "update", ID_A, "-p", "3").stdout == "JZ6EB6  nothing to change\n"


def test_logs_print_what_happened_and_end() -> None:
    events = [
        an_event(1, "accepted", job_id=ID_A, queue="q"),
        an_event(2, "started", job_id=ID_A, worker="gpu-1"),
    ]
    broker = FakeBroker(found=[a_job()], streams=[[*events]])
    lines = run(broker, "logs", ID_A).stdout.splitlines()
    assert ["accepted" in lines[0], "gpu-1" in lines[1]] == [True, True]


# --- nouns -----------------------------------------------------------------------------------------------------------


def test_a_worker_is_paused_for_a_while_now_and_with_a_reason() -> None:
    broker = FakeBroker()
    ended = run(broker, "workers", "pause", "gpu-2", "--for", "3h", "--now", "--reason", "gaming")
    assert broker.did == [("pause", {"worker": "gpu-2", "for_s": 10800.0, "now": True, "reason": "gaming"})]
    assert ended.stdout == "gpu-2 paused for 3 h\n"
    assert run(broker, "queues", "resume", "night").stdout == "night was not held\n"
    assert run(broker, "queues", "drain", "night").exit_code == 0


def test_backup_takes_a_path_from_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(FakeBroker(), "backup", "copy.sqlite3")
    assert (
        ended.stdout == f"{tmp_path}/copy.sqlite3: 1.4 MB; to use it: lmq restore {tmp_path}/copy.sqlite3\n"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    script = run(FakeBroker(), "completion", shell).stdout
    assert "_LMQ_COMPLETE" in script
    assert f"{shell}_complete" in script


def test_completion_asks_the_broker_for_names_and_is_quiet_without_one() -> None:
    from click.shell_completion import ShellComplete

    from lmq import QueueView
    from lmq.cli.root import root
    from lmq.cli.session import Session
    from unit.cli.fakes import NoBroker

    def completed(client: object, *words: str) -> list[str]:
        session = Session(connect=lambda _: client)  # type: ignore[arg-type, return-value]  # the stand-in
        complete = ShellComplete(root, {"obj": session}, "lmq", "_LMQ_COMPLETE")
        return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]

    broker = FakeBroker(all_queues=[QueueView(name="night"), QueueView(name="day")], found=[a_job()])
    assert completed(broker, "queues", "pause", "n") == ["night"]
    assert completed(broker, "show", "") == ["@last", "JZ6EB6"]
    assert completed(broker, "ch") == ["chat"]
    assert completed(NoBroker(), "queues", "pause", "n") == []


def test_config_names_the_origin_of_each_value_and_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmq.config import config_path

    config_path().parent.mkdir(parents=True, exist_ok=True)
    config_path().write_text('[client]\nuser = "anna"\n[worker]\napi_token = "sk-lm-1"\n')
    monkeypatch.setenv("LMQ_URL", "tcp://queue:7766")
    rows = {row["name"]: row for row in json.loads(run(FakeBroker(), "--json", "config").stdout)}
    assert rows["url"] == {
        "name": "url",
        "value": "tcp://queue:7766",
        "origin": "environment variable LMQ_URL",
    }
    assert rows["user"]["origin"] == str(config_path())
    assert rows["worker.api_token"]["value"] == "(not shown)"
    assert run(FakeBroker(), "config", "check").exit_code == 0
    config_path().write_text("[clint]\n")
    assert run(FakeBroker(), "config", "check").exit_code == 2
    config_path().write_text("[client\n")
    assert run(FakeBroker(), "config", "show").exit_code == 2


def test_a_backup_is_restored_to_the_folder_it_came_from_by_the_account_it_belongs_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = str(tmp_path / "journal.sqlite3")
    monkeypatch.setattr(FakeBroker, "health", lambda broker: health(journal_path=journal))
    monkeypatch.setattr(Path, "owner", lambda path: "lmq")
    ended = run(FakeBroker(), "backup", "/srv/a copy.sqlite3")
    assert f"sudo -u lmq lmq restore '/srv/a copy.sqlite3' --data {tmp_path}" in ended.stdout
    monkeypatch.setattr("lmq.config.account_name", lambda: "lmq")
    assert f"to use it: lmq restore /srv/x --data {tmp_path}" in run(FakeBroker(), "backup", "/srv/x").stdout


@pytest.mark.parametrize("verb", ["pause", "drain"])
def test_a_queue_that_nobody_has_named_is_held_and_that_is_said(verb: str) -> None:
    broker = FakeBroker(all_queues=[QueueView(name="night")])
    ended = run(broker, "queues", verb, "nihgt")
    assert (ended.exit_code, broker.did[0][0]) == (0, verb)
    assert ended.stderr.strip() == "there was no queue nihgt; there are: night"
    assert run(broker, "queues", verb, "night").stderr == ""


@pytest.mark.parametrize("option", ["--timeout", "--keep", "--expires"])
def test_no_time_at_all_is_not_taken_for_the_default(option: str) -> None:
    ended = run(FakeBroker(), "chat", "hi", option, "0")
    assert (ended.exit_code, "0 is no time at all" in ended.stderr) == (2, True)
