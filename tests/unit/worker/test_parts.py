"""The small parts that core and agent are put together from."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any

import platformdirs
import pytest

from lmq_proto.messages import Ended, HostLoad, Lease
from lmq_worker.attempt import Attempt
from lmq_worker.backends.breaker import EndpointBreaker
from lmq_worker.backends.lm_studio import network_notes
from lmq_worker.backends.openai import model_names, read_props
from lmq_worker.config import BadSetting, WorkerConfig, complete, load_config, local_broker
from lmq_worker.failures import AttemptFailed, EmptyAnswer, StreamCut, WrongModel
from lmq_worker.host import moved
from lmq_worker.logs import JsonFormatter, PlainFormatter
from lmq_worker.notify import Supervisor
from lmq_worker.open_data import pack, unpack
from lmq_worker.slices import SliceStore
from lmq_worker.spool import Spool
from lmq_worker.tasks.base import Engine
from lmq_worker.tasks.embed import EmbedTask, read_vectors
from lmq_worker.tasks.generate import Answer

if TYPE_CHECKING:
    from pathlib import Path

# --- breaker ---


def a_breaker(jitter: float = 1.0) -> EndpointBreaker:
    return EndpointBreaker(failures=3, probe_s=1.0, probe_max_s=8.0, jitter=lambda: jitter)


def test_failures_in_a_row_open_it() -> None:
    breaker = a_breaker()
    opened = []
    for now_s in range(3):
        breaker.failed(now_s, "refused")
        opened.append(breaker.is_open)
    assert opened == [False, False, True]
    assert (breaker.opened_s, breaker.probe_at_s, breaker.reason) == (2, 3.0, "refused")


def test_an_answer_in_between_starts_the_count_anew() -> None:
    breaker = a_breaker()
    for _ in range(5):
        breaker.failed(0, "refused")
        breaker.failed(0, "refused")
        breaker.succeeded()
    assert not breaker.is_open


def test_a_failed_look_opens_it_at_once_and_each_further_one_doubles_the_wait() -> None:
    breaker = a_breaker()
    waits = []
    now_s = 0.0
    for _ in range(6):
        breaker.probe_failed(now_s, "down")
        waits.append(breaker.probe_at_s - now_s)
        now_s = breaker.probe_at_s
    assert waits == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert breaker.opened_s == 0.0


def test_while_open_it_lets_through_one_probe_when_it_is_due() -> None:
    breaker = a_breaker(jitter=0.0)
    assert breaker.may_probe(0)
    breaker.probe_failed(0, "down")
    assert not breaker.may_probe(0.4)
    assert breaker.may_probe(0.5)
    breaker.succeeded()
    assert breaker.may_probe(0.6)


# --- spool ---


def an_end(name: str) -> Ended:
    return Ended(job_id=name.encode().ljust(16), epoch=1, attempt=2, outcome="complete")


def test_results_are_read_back_in_order_and_forgotten(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=10_000)
    for name in ("b", "a"):
        assert spool.persist(an_end(name), name.encode())
    spool.close()
    again = Spool(tmp_path, limit_bytes=10_000)
    assert sorted(result for _, result in again.results()) == [b"a", b"b"]
    again.forget((an_end("a").job_id, 1, 2))
    again.forget((an_end("never there").job_id, 1, 2))
    again.close()
    last = Spool(tmp_path, limit_bytes=10_000)
    assert last.results() == [(an_end("b"), b"b")]
    last.close()


def test_a_full_spool_keeps_the_oldest_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, limit_bytes=200)
    assert spool.persist(an_end("old"), bytes(100))
    assert not spool.persist(an_end("new"), bytes(100))
    assert not spool.persist(an_end("newer"), bytes(100))
    assert [record.message for record in caplog.records] == ["spool_full"]
    spool.forget((an_end("old").job_id, 1, 2))
    assert spool.persist(an_end("newer"), bytes(100))
    spool.close()


def test_a_damaged_file_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool(tmp_path, limit_bytes=1000)
    spool.persist(an_end("a"), b"a")
    (file,) = (tmp_path / "results").iterdir()
    file.write_bytes(b"torn")
    assert spool.results() == []
    assert [one.suffix for one in (tmp_path / "results").iterdir()] == [".bad"]
    assert [record.message for record in caplog.records] == ["spool_file_unreadable"]
    spool.close()


def test_the_next_process_learns_whom_it_replaces_unless_that_said_goodbye(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=1000)
    assert spool.take_over(b"1" * 16) == b""
    assert spool.take_over(b"2" * 16) == b"1" * 16
    spool.said_goodbye()
    assert spool.take_over(b"3" * 16) == b""
    spool.close()


def test_the_models_it_loaded_are_remembered(tmp_path: Path) -> None:
    spool = Spool(tmp_path, limit_bytes=1000)
    assert spool.own_instances() == set()
    spool.keep_own_instances({"a", "b:2"})
    assert spool.own_instances() == {"a", "b:2"}
    (tmp_path / "loaded.json").write_text("{", encoding="utf-8")
    assert spool.own_instances() == set()
    spool.close()


# --- slices of bulk_embed ---


def test_finished_slices_outlive_the_attempt(tmp_path: Path) -> None:
    store = SliceStore(tmp_path, limit_bytes=1000)
    first = store.open(b"j" * 16, b"payload", "m")
    first.add(b"12345678", 1)
    first.add(b"abcd", 1)
    again = store.open(b"j" * 16, b"payload", "m")
    assert (again.count, again.dims, again.vectors) == (3, 1, b"12345678abcd")
    again.remove()
    assert store.open(b"j" * 16, b"payload", "m").count == 0


@pytest.mark.parametrize(("payload", "model"), [(b"other", "m"), (b"payload", "n")])
def test_slices_of_another_payload_or_model_do_not_count(tmp_path: Path, payload: bytes, model: str) -> None:
    store = SliceStore(tmp_path, limit_bytes=1000)
    store.open(b"j" * 16, b"payload", "m").add(b"1234", 1)
    assert store.open(b"j" * 16, payload, model).count == 0
    assert not list(tmp_path.iterdir())


def test_a_torn_vector_is_cut_off(tmp_path: Path) -> None:
    store = SliceStore(tmp_path, limit_bytes=1000)
    store.open(b"j" * 16, b"p", "m").add(b"12345678", 2)
    (file,) = tmp_path.iterdir()
    with file.open("ab") as out:
        out.write(b"123")
    again = store.open(b"j" * 16, b"p", "m")
    assert again.vectors == b"12345678"
    again.add(b"abcdefgh", 2)
    assert store.open(b"j" * 16, b"p", "m").vectors == b"12345678abcdefgh"


def test_a_damaged_file_of_slices_is_removed(tmp_path: Path) -> None:
    (tmp_path / f"{(b'j' * 16).hex()}.vectors").write_bytes(b"\xff\xff\xff\xff nonsense")
    assert SliceStore(tmp_path, limit_bytes=1000).open(b"j" * 16, b"p", "m").count == 0
    assert not list(tmp_path.iterdir())


def test_without_room_the_oldest_other_job_goes_and_at_last_the_job_itself(tmp_path: Path) -> None:
    store = SliceStore(tmp_path, limit_bytes=250)
    store.open(b"a" * 16, b"p", "m").add(bytes(100), 1)
    mine = store.open(b"b" * 16, b"p", "m")
    mine.add(bytes(120), 1)
    assert store.open(b"a" * 16, b"p", "m").count == 0
    mine.add(bytes(120), 1)
    assert mine.count == 60
    assert not list(tmp_path.iterdir())


# --- settings ---


def test_environment_wins_over_the_named_table_over_the_general_one(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        '[worker]\npoll_s = 9\nconcurrency = 1\nqueues = ["a"]\n[worker.gpu-1]\nconcurrency = 2\nendpoint = "http://gpu-1:1234"\n',
        encoding="utf-8",
    )
    env = {"LMQ_CONFIG": str(file), "LMQ_WORKER_DRAIN_TIMEOUT_S": "7", "LMQ_URL": "tcp://a:1,tcp://b:2"}
    config = load_config({"name": "gpu-1", "concurrency": None}, env)
    assert (config.name, config.concurrency, config.poll_s, config.drain_timeout_s) == ("gpu-1", 2, 9.0, 7.0)
    assert (config.endpoint, config.queues, config.broker) == (
        "http://gpu-1:1234",
        ["a"],
        ["tcp://a:1", "tcp://b:2"],
    )
    assert load_config({"name": "gpu-1"}, {**env, "LMQ_WORKER_CONCURRENCY": "3"}).concurrency == 3
    assert load_config({"name": "gpu-1"}, {**env, "LMQ_WORKER_CONCURRENCY": "auto"}).pinned == 0
    said = {"name": "gpu-1", "concurrency": 4}
    assert load_config(said, {**env, "LMQ_WORKER_CONCURRENCY": "3"}).pinned == 4
    assert load_config({"name": "other"}, env).pinned == 1


def test_slots_is_another_name_of_concurrency(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[worker]\nslots = 2\n", encoding="utf-8")
    assert load_config({}, {"LMQ_CONFIG": str(file)}).concurrency == 2
    assert load_config({}, {"LMQ_CONFIG": str(file), "LMQ_WORKER_SLOTS": "3"}).concurrency == 3


@pytest.mark.parametrize(
    ("text", "env", "what"),
    [
        ("[worker]\nslotz = 1\n", {}, "slotz"),
        ('[worker]\nslots = "many"\n', {}, "slots"),
        ('[worker]\nconcurrency = "many"\n', {}, "concurrency"),
        ("", {"LMQ_WORKER_CONCURRENCY": "0"}, "concurrency"),
        ("", {"LMQ_WORKER_CONCURRENCY_MAX": "5000"}, "concurrency_max"),
        ("", {"LMQ_WORKER_TOKEN_GAP_MAX_S": "0"}, "token_gap_max_s"),
        ("[worker", {}, "config"),
        ("worker = 7\n", {}, "worker"),
        ("", {"LMQ_WORKER_EMBED_SLICE": "0"}, "embed_slice"),
        ("", {"LMQ_WORKER_LOG_LEVEL": "loud"}, "log_level"),
        ("", {"LMQ_WORKER_LOG_FORMAT": "xml"}, "log_format"),
        ("", {"LMQ_WORKER_SPOOL_BYTES": "-1"}, "spool_bytes"),
        ("", {"LMQ_WORKER_ENDPOINT": "gpu-1:1234"}, "endpoint"),
        ("", {"LMQ_URL": "localhost:7766"}, "broker"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(
    tmp_path: Path, text: str, env: dict[str, str], what: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(BadSetting) as caught:
        load_config({}, {"LMQ_CONFIG": str(file), **env})
    assert caught.value.setting == what


def test_a_settings_file_that_was_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(BadSetting, match="there is no file"):
        load_config({}, {"LMQ_CONFIG": str(tmp_path / "absent.toml")})


def test_the_watchdog_of_another_process_is_not_ours() -> None:
    env = {"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "5"}
    assert load_config({}, env).watchdog_usec == 5
    assert load_config({}, {**env, "WATCHDOG_PID": "1"}).watchdog_usec == 0


def test_under_systemd_the_state_lies_where_the_unit_says() -> None:
    env = {"STATE_DIRECTORY": "/var/lib/lmq:/other"}
    assert load_config({}, env).state_dir == "/var/lib/lmq"
    assert load_config({}, {**env, "LMQ_WORKER_STATE_DIR": "/mine"}).state_dir == "/mine"


@pytest.mark.parametrize(
    ("config", "endpoint", "ending"),
    [
        (WorkerConfig(backend="lm_studio"), "http://127.0.0.1:1234", "-1234"),
        (WorkerConfig(backend="openai", endpoint="http://gpu-2:8000/v1/"), "http://gpu-2:8000", "gpu-2-8000"),
        (WorkerConfig(backend="echo", name="e"), "echo:e", "e"),
    ],
)
def test_what_is_not_said_is_filled_in(config: WorkerConfig, endpoint: str, ending: str) -> None:
    whole = complete(config)
    assert whole.endpoint == endpoint
    assert whole.name.endswith(ending)
    assert whole.broker


@pytest.mark.parametrize("there", [True, False])
def test_the_local_broker_is_its_socket_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(platformdirs, "user_runtime_path", lambda *_, **__: tmp_path)
    if there:
        (tmp_path / "broker.sock").touch()
    expected = (
        f"ipc://{tmp_path / 'broker.sock'}" if there and sys.platform != "win32" else "tcp://127.0.0.1:7766"
    )
    assert local_broker() == expected


# --- logs, systemd, host ---


def a_record(**fields: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"levelname": "INFO", "msg": "event_name"})
    vars(record).update(fields)
    return record


def test_a_log_line_is_an_event_and_its_fields() -> None:
    record = a_record(a=1, b="two words", c=b"\x01")
    assert PlainFormatter().format(record) == 'INFO event_name a=1 b="two words" c=01'
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["event"], line["a"], line["b"]) == ("info", "event_name", 1, "two words")


def test_a_sentence_for_people_stands_in_for_the_event() -> None:
    record = a_record(text="worker w ready at e", worker="w")
    assert PlainFormatter().format(record) == "INFO worker w ready at e"
    assert json.loads(JsonFormatter().format(record))["event"] == "event_name"


def test_without_a_supervisor_nothing_is_said() -> None:
    for address in ("", "/nowhere/at/all"):
        supervisor = Supervisor(address)
        supervisor.ready("x")
        supervisor.watchdog()
        supervisor.close()


def test_a_supervisor_hears_what_is_said(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "s"))
        supervisor = Supervisor(str(tmp_path / "s"))
        supervisor.ready("up")
        assert systemd.recv(100) == b"READY=1\nSTATUS=up"
        supervisor.close()


def test_small_changes_of_load_are_not_worth_a_message() -> None:
    told = HostLoad(cpu_ratio=0.5, memory_ratio=0.5)
    assert not moved(told, HostLoad(cpu_ratio=0.54, memory_ratio=0.46))
    assert moved(told, HostLoad(cpu_ratio=0.56, memory_ratio=0.5))
    assert moved(told, HostLoad(cpu_ratio=0.5, memory_ratio=0.44))


@pytest.mark.parametrize(
    ("endpoint", "broker"),
    [
        ("http://127.0.0.1:1", "tcp://127.0.0.1:7766"),
        ("http://127.0.0.1:1", "ipc:///run/broker.sock"),
        ("http://gpu-1:1234", "tcp://queue:7766"),
    ],
)
def test_where_an_endpoint_listens_matters_only_to_a_broker_elsewhere(endpoint: str, broker: str) -> None:
    assert asyncio.run(network_notes(WorkerConfig(endpoint=endpoint, broker=[broker]))) == []


# --- payloads and answers ---


@pytest.mark.parametrize(
    ("data", "value"), [(b"", {}), (pack({"a": 1}), {"a": 1}), (b"\x01", None), (b"\xc1", None)]
)
def test_a_payload_is_a_map_or_nothing(data: bytes, value: object) -> None:
    assert unpack(data) == value


def test_a_bomb_of_a_payload_is_nothing() -> None:
    assert unpack(b"\x91" * 100_000) is None


class Told:
    """A report that remembers."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def text(self, channel: str, text: str) -> None:
        self.texts.append((channel, text))

    def phase(self, *_: object, **__: object) -> None:
        return None


def an_engine(*answers_to: str) -> Any:
    return Engine(None, "m", frozenset(answers_to), 32, None)  # type: ignore[arg-type]  # no request is made


def an_answer(*chunks: dict[str, Any]) -> tuple[Answer, Told]:
    told = Told()
    answer = Answer(told)
    for chunk in chunks:
        answer.feed(chunk)
    return answer, told


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields}]}


TEXT_C: dict[str, Any] = {"choices": [{"text": "c"}]}
FINISH: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "model": "m"}


def test_the_logprobs_of_all_pieces_are_kept_together() -> None:
    def chunk(**logprobs: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": logprobs}]}

    first, second = {"token": "x", "logprob": -0.5}, {"token": "x", "logprob": -0.7}
    answer, _ = an_answer(chunk(content=[first], refusal=None), chunk(content=[second], refusal=None))
    assert answer.raw == {"logprobs": {"content": [first, second], "refusal": None}}


def test_odd_chunks_are_forgiven() -> None:
    odd: list[dict[str, Any]] = [
        {},
        {"choices": []},
        {"choices": None},
        {"choices": [None]},
        delta(content=None),
        delta(tool_calls=[None]),
    ]
    answer, told = an_answer(*odd, delta(content="a", reasoning="b"), TEXT_C, FINISH)
    assert unpack(answer.outcome(an_engine()).result) == {
        "text": "ac",
        "reasoning": "b",
        "tool_calls": [],
        "finish_reason": "stop",
        "usage": {},
        "model": "m",
        "raw": {},
    }
    assert told.texts[-1] == ("end", "stop")


def test_a_character_cut_in_two_by_the_server_is_whole_again() -> None:
    _, told = an_answer(delta(content="a\ud83d"), delta(content="\ude00b"), FINISH)
    assert told.texts == [("content", "a"), ("content", "\U0001f600b")]


def test_pieces_of_tool_calls_are_joined_by_their_index() -> None:
    def call(index: int, **fields: Any) -> dict[str, Any]:
        return {"index": index, **fields}

    answer, told = an_answer(
        delta(tool_calls=[call(0, id="1", type="function", function={"name": "f", "arguments": ""})]),
        delta(tool_calls=[call(1, id="2", function={"name": "g"}), call(0, function={"arguments": '{"a"'})]),
        delta(tool_calls=[call(0, function={"arguments": ": 1}"})]),
        FINISH,
    )
    result = unpack(answer.outcome(an_engine()).result)
    assert result is not None
    assert [(one["id"], one["function"]) for one in result["tool_calls"]] == [
        ("1", {"name": "f", "arguments": '{"a": 1}'}),
        ("2", {"name": "g", "arguments": ""}),
    ]
    assert all(json.loads(line) for channel, line in told.texts if channel == "tool")


def test_no_finish_reason_nothing_said_and_the_wrong_model_are_failures() -> None:
    with pytest.raises(StreamCut):
        an_answer(delta(content="a"))[0].outcome(an_engine())
    with pytest.raises(EmptyAnswer):
        an_answer(FINISH)[0].outcome(an_engine())
    with pytest.raises(WrongModel):
        an_answer(delta(content="a"), FINISH)[0].outcome(an_engine("n", "n:2"))
    assert an_answer(delta(content="a"), FINISH)[0].outcome(an_engine("n", "m")).outcome == "complete"


def test_an_answer_that_is_empty_by_its_own_count_is_an_answer() -> None:
    answer, _ = an_answer(FINISH, {"choices": [], "usage": {"completion_tokens": 1}})
    assert answer.outcome(an_engine()).outcome == "complete"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"data": []},
        {"data": [{"embedding": []}]},
        {"data": [{"embedding": ["x"]}]},
        {"data": [{"embedding": None}]},
        {"data": [7]},
    ],
)
def test_an_answer_without_vectors_is_a_failure(answer: object) -> None:
    with pytest.raises(AttemptFailed):
        read_vectors(answer, 1)


def test_vectors_are_put_in_order() -> None:
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    assert read_vectors({"data": data}, 2).data == b"\x00\x00\x80?\x00\x00\x00@"


@pytest.mark.parametrize(
    ("payloads", "merges"),
    [
        ([{"input": ["a"]}, {"input": ["b"]}], True),
        ([{"input": ["a"]}, {"input": ["b"], "options": {"dimensions": 3}}], False),
        ([{"input": ["a"]}, {"input": []}], False),
    ],
)
def test_embeddings_merge_when_all_are_sound_and_want_the_same(
    payloads: list[dict[str, Any]], merges: bool
) -> None:
    lease = Lease(job_id=b"j", epoch=1, attempt=1, task_type="embed", payload_bytes=0)
    assert EmbedTask().merges([Attempt(lease, pack(payload)) for payload in payloads]) is merges


def test_servers_tell_their_models_and_slots_in_their_own_ways() -> None:
    assert model_names({"object": "list", "data": [{"id": "a"}, {}, 7]}) == ["a"]
    assert model_names({"object": "list", "data": None}) == []
    assert model_names({"error": "x"}) is None
    assert read_props({"total_slots": 4, "default_generation_settings": {"n_ctx": 2048}}) == (4, 2048)
    assert read_props({}) == (0, 0)
