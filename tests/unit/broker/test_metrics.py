"""Measurements in Prometheus' text format: read back by a reader of that format written here from its description."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lmq_broker.core import metrics as core_metrics
from lmq_broker.core.histograms import EDGES_MS
from lmq_broker.core.settings import Settings
from lmq_broker.core.stimuli import DiskChanged, HostFacts
from lmq_proto.errors import ErrorInfo
from lmq_proto.messages import (
    Breaker,
    LoadEnded,
    LoadModel,
    Metrics,
    MetricsReply,
    PhaseReport,
    Phases,
    Status,
)
from unit.broker.builders import (
    Broker,
    a_broker,
    body_for,
    error,
    idle,
    instance,
    job_id,
    on_disk,
    ready,
    running,
    sent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

_HELP = re.compile(r"# HELP ([a-z_]+) (\S.*)")
_TYPE = re.compile(r"# TYPE ([a-z_]+) (counter|gauge|histogram|summary)")
_SAMPLE = re.compile(r"([a-z_]+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')


def labels_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of labels; all of the text must be labels."""
    at = 0
    while at < len(text):
        found = _LABEL.match(text, at)
        assert found, text[at:]
        at = found.end()
        value = re.sub(r"\\(.)", lambda escape: "\n" if escape[1] == "n" else escape[1], found[2])
        yield found[1], value


def parsed(text: str) -> Samples:
    """Return all samples; what breaks the format fails."""
    found: Samples = {}
    types: dict[str, str] = {}
    helped: list[str] = []
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if is_help := _HELP.fullmatch(line):
            helped.append(is_help[1])
        elif is_type := _TYPE.fullmatch(line):
            assert is_type[1] == helped[-1]
            assert is_type[1] not in types, "a family is told in two places"
            types[is_type[1]] = is_type[2]
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            family = helped[-1]
            endings = ("_bucket", "_sum", "_count") if types[family] == "histogram" else ("",)
            assert sample[1] in {family + ending for ending in endings}, line
            assert (types[family] == "counter") == sample[1].endswith("_total"), line
            labels = list(labels_in(sample[2] or ""))
            assert max(Counter(name for name, _ in labels).values(), default=1) == 1
            key = sample[1], frozenset(labels)
            assert key not in found, f"twice: {line}"
            found[key] = float(sample[3])
    assert helped == list(types)
    return found


def text_of(broker: Broker, name: str = "ann", **fields: Any) -> str:
    effects = broker.says(name, Metrics(request_id=7, **fields))
    assert sent(effects, name, MetricsReply) == [MetricsReply(request_id=7)]
    return body_for(effects, name, MetricsReply).decode()


def measured(broker: Broker, **fields: Any) -> Samples:
    return parsed(text_of(broker, **fields))


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def values_of(samples: Samples, name: str) -> dict[str, float]:
    """Return the values of a metric with one label."""
    return {next(iter(labels))[1]: value for (each, labels), value in samples.items() if each == name}


def test_jobs_by_queue_and_state_and_how_long_the_oldest_waits() -> None:
    jobs = [ready("a"), ready("b", queue="night"), ready("c", queue="night", delay_ms=5000)]
    broker = a_broker(jobs=[*jobs, running("d")], workers=[idle("w1", queues=["default"])])
    broker.turn(3000)
    samples = measured(broker)
    assert of(samples, "lmq_jobs", queue="night", state="ready") == 1
    assert of(samples, "lmq_jobs", queue="night", state="delayed") == 1
    assert of(samples, "lmq_jobs", queue="default", state="leased") == 1
    assert of(samples, "lmq_jobs", queue="night", state="asking") == 0
    assert values_of(samples, "lmq_queue_oldest_wait_seconds") == {"default": 3.0, "night": 3.0}


def test_ends_refusals_and_stale_results_are_counted() -> None:
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete")
    broker.cancel("ann", "b")
    broker.reports("w1", "a", "complete", epoch=1, attempt=1)
    broker.says("ann", Status(request_id=1, job_ids=[b""] * 1001))
    samples = measured(broker)
    assert values_of(samples, "lmq_jobs_ended_total") == {"done": 1, "cancelled": 1, "dead": 0, "expired": 0}
    assert values_of(samples, "lmq_refused_total") == {"bad_field": 1}
    assert of(samples, "lmq_stale_results_total") == 1


def test_workers_with_their_slots_and_breakers() -> None:
    broker = a_broker(jobs=[running("a")], workers=[idle("w1", slots=4), idle("w2", slots=8)])
    broker.has_capacity("w2", instance(slots=8), slots=3, breaker=Breaker(since_ms=1, reason="down"))
    samples = measured(broker)
    assert of(samples, "lmq_workers_up") == 2
    assert values_of(samples, "lmq_worker_slots") == {"w1": 4, "w2": 3}
    for metric in ("lmq_worker_leases", "lmq_worker_slots_taken"):
        assert sum(values_of(samples, metric).values()) == 1
    assert values_of(samples, "lmq_worker_breaker_open") == {"w1": 0, "w2": 1}
    broker.breaks("w1")
    broker.turn(4000)
    assert values_of(measured(broker), "lmq_worker_up") == {"w1": 0, "w2": 1}


def test_models_with_their_slots_and_what_waits_for_them() -> None:
    loaded = [
        instance("q", model="qwen", kind="llm", slots=1),
        instance("q:2", model="qwen", kind="llm", slots=1),
    ]
    jobs = [running("a", task_type="chat", models=["qwen"]), ready("b", task_type="chat", models=["llama"])]
    worker = idle("w1", instances=loaded, catalog=on_disk("qwen", "llama", "phi"))
    samples = measured(a_broker(jobs=jobs, workers=[worker]))
    assert values_of(samples, "lmq_model_slots") == {"qwen": 2, "llama": 0}, (
        "phi is on disk and nobody wants it"
    )
    assert values_of(samples, "lmq_model_slots_taken") == {"qwen": 1, "llama": 0}
    assert values_of(samples, "lmq_model_waiting") == {"qwen": 0, "llama": 1}


def test_loads_are_counted_by_their_outcome_and_once() -> None:
    worker = idle("w1", instances=[], catalog=on_disk("m1"), may_load=True)
    broker = a_broker(jobs=[ready("a", task_type="chat", models=["m1"])], workers=[worker])
    [load] = sent(broker.turn(), "w1", LoadModel)
    failed = LoadEnded(command_id=load.command_id, error=ErrorInfo("load_failed", "no"))
    broker.says("w1", failed)
    broker.says("w1", failed)
    samples = measured(broker)
    assert values_of(samples, "lmq_model_loads_total") == {"done": 0, "failed": 1}
    assert values_of(samples, "lmq_model_unloads_total") == {"done": 0, "failed": 0}


def test_tokens_and_engine_time_by_model_and_on_request_by_user() -> None:
    models = [instance("qwen", model="qwen", kind="llm", slots=9)]
    jobs = [running("a", task_type="chat", models=["qwen"]), ready("b", user="tom")]
    broker = a_broker(jobs=jobs, workers=[idle("w1", instances=models)])
    report = PhaseReport(job_id=job_id("a"), attempt=1, phase="writing", tokens=5)
    broker.says("w1", Phases(leases=[report]))
    broker.reports("w1", "a", "fail", prompt_tokens=7, engine_ms=1500)
    samples = measured(broker)
    assert of(samples, "lmq_tokens_total", model="qwen", kind="prompt") == 7
    assert of(samples, "lmq_tokens_total", model="qwen", kind="output") == 5
    assert of(samples, "lmq_engine_seconds_total", model="qwen") == 1.5
    assert "ann" not in text_of(broker)
    assert "tom" not in text_of(broker)
    samples = measured(broker, users=True)
    assert values_of(samples, "lmq_user_engine_seconds_total") == {"ann": 1.5}
    assert values_of(samples, "lmq_user_jobs") == {"ann": 1, "tom": 1}


@pytest.mark.parametrize("role", ["user", "app", "gateway", "observer"])
def test_measurements_are_for_all_who_look_but_those_of_users_for_admins(role: str) -> None:
    broker = a_broker(clients=["ann"])
    broker.role("ann", role)
    text_of(broker)
    told = error(broker.says("ann", Metrics(request_id=7, users=True)))
    assert (told.code, told.fields["role"]) == ("not_allowed", role)


def test_waits_and_runs_are_histograms_by_band() -> None:
    broker = a_broker(jobs=[ready("a", priority=8), ready("b", priority=2)], clients=["ann"])
    broker.turn(3000)
    broker.worker(idle("w1", slots=2))
    broker.turn()
    broker.turn(500)
    for name in "ab":
        broker.reports("w1", name, "complete")
    samples = measured(broker)
    for band, count in (("interactive", 1), ("normal", 0), ("background", 1)):
        assert of(samples, "lmq_job_wait_seconds_count", band=band) == count
        assert of(samples, "lmq_job_wait_seconds_sum", band=band) == 3.0 * count
        assert of(samples, "lmq_job_run_seconds_sum", band=band) == 0.5 * count
        buckets = {
            float(dict(labels)["le"]): value
            for (name, labels), value in samples.items()
            if name == "lmq_job_wait_seconds_bucket" and ("band", band) in labels
        }
        assert list(buckets) == sorted(buckets)
        assert {le: value for le, value in buckets.items() if value} == {
            le: count for le in buckets if le >= 3.0 and count
        }


def test_a_time_that_is_an_edge_lies_within_it() -> None:
    edge_ms = EDGES_MS[32]
    broker = a_broker(jobs=[ready("a")], clients=["ann"])
    broker.turn(edge_ms)
    broker.worker(idle("w1"))
    broker.turn()
    broker.reports("w1", "a", "complete")
    samples = measured(broker)
    le = {"band": "normal", "le": repr(edge_ms / 1000)}
    assert of(samples, "lmq_job_wait_seconds_bucket", **le) == 1


def test_the_brokers_own_facts() -> None:
    broker = a_broker(clients=["ann"])
    broker.step(HostFacts(journal_bytes=5000, journal_free_bytes=9000, commit_p50_us=1500, commit_p99_us=20_000,
                          memory_bytes=77))  # fmt: skip
    broker.step(DiskChanged("low", 1, 2))
    broker.turn(10_000)
    samples = measured(broker)
    assert of(samples, "lmq_journal_bytes") == 5000
    assert of(samples, "lmq_journal_free_bytes") == 9000
    assert of(samples, "lmq_journal_commit_seconds", quantile="0.5") == 0.0015
    assert of(samples, "lmq_journal_commit_seconds", quantile="0.99") == 0.02
    assert of(samples, "lmq_broker_memory_bytes") == 77
    assert of(samples, "lmq_broker_uptime_seconds") == 10.0
    assert of(samples, "lmq_journal_trouble") == 1
    assert of(samples, "lmq_event_cursor") == broker.state.last_seq
    assert of(samples, "lmq_sessions") == 1


NAMES = [
    'say "hi"',
    "back\\slash",
    "line\nend",
    "tab\tand\x1b[31m",
    "ünïcödé ☃",
    "{a=b}",
    "a,b",
    "#",
    "\\",
    '"',
]


def test_names_of_any_letters_are_told_apart_and_break_nothing() -> None:
    loaded = [instance(f"i{number}", model=name, kind="llm") for number, name in enumerate(NAMES)]
    samples = measured(a_broker(clients=["ann"], workers=[idle("w1", instances=loaded)]))
    told = {name: name for name in NAMES} | {
        "line\nend": "line\\u000aend",
        "tab\tand\x1b[31m": "tab\\u0009and\\u001b[31m",
    }
    assert set(values_of(samples, "lmq_model_slots")) == set(told.values())


def test_prometheus_own_reader_finds_the_same() -> None:
    reader = pytest.importorskip("prometheus_client.parser", reason="the extra dev brings prometheus-client")
    loaded = [instance(f"i{number}", model=name, kind="llm") for number, name in enumerate(NAMES)]
    jobs = [running("a"), ready("b", queue="night", priority=8)]
    broker = a_broker(jobs=jobs, workers=[idle("w1"), idle("w2", instances=loaded)])
    broker.reports("w1", "a", "complete", prompt_tokens=3, engine_ms=10)
    text = text_of(broker, users=True)
    theirs = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in reader.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert theirs == parsed(text)
    assert len(theirs) > 200


def test_series_have_a_bound_and_what_is_beyond_it_is_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_metrics, "NAMED", 2)
    monkeypatch.setattr(core_metrics, "METERED", 2)
    jobs = [ready(f"j{number}", queue=f"q{number}", user=f"u{number}") for number in range(5)]
    samples = measured(a_broker(jobs=jobs, clients=["u0"]), name="u0", users=True)
    ready_jobs = {labels: value for (name, labels), value in samples.items() if name == "lmq_jobs" and value}
    assert {dict(labels)["queue"]: value for labels, value in ready_jobs.items()} == {
        "q0": 1,
        "q1": 1,
        "(others)": 3,
    }
    assert values_of(samples, "lmq_user_jobs") == {"u0": 1, "u1": 1, "(others)": 3}


def test_models_beyond_the_bound_are_metered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmq_broker.core.usage.METERED", 1)
    jobs = [running(name, models=[name]) for name in ("m1", "m2", "m3")]
    broker = a_broker(jobs=jobs, workers=[idle("w1", slots=3)])
    for name in ("m1", "m2", "m3"):
        broker.reports("w1", name, "complete", engine_ms=1000)
    assert values_of(measured(broker), "lmq_engine_seconds_total") == {"m1": 1.0, "(others)": 2.0}


def test_the_page_for_people_lists_each_metric_with_its_type_and_labels() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "metrics.md").read_text("utf-8")
    listed: dict[str, tuple[str, set[str]]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `lmq_"):
            listed[cells[0].strip("`")] = cells[1], set(re.findall(r"`(\w+)`", cells[2]))
    broker = a_broker(jobs=[running("a"), ready("b")], workers=[idle("w1")])
    broker.reports("w1", "a", "complete", prompt_tokens=1, output_tokens=1, engine_ms=1)
    broker.says("ann", Status(request_id=1, job_ids=[b""] * 1001))
    text = text_of(broker, users=True)
    samples = parsed(text)
    told = {}
    for name, kind in _TYPE.findall(text):
        labels = {
            label
            for (each, pairs) in samples
            if each in (name, f"{name}_bucket", f"{name}_sum", f"{name}_count")
            for label, _ in pairs
        }
        told[name] = kind, labels - {"le"}
    assert told == listed


def test_bands_are_those_of_the_settings() -> None:
    from lmq_broker.core.settings import BandSettings

    settings = Settings(bands=(BandSettings("day", 5), BandSettings("night", 0)))
    broker = a_broker(jobs=[running("a", priority=5)], workers=[idle("w1")], settings=settings)
    broker.reports("w1", "a", "complete")
    assert values_of(measured(broker), "lmq_job_run_seconds_count") == {"day": 1, "night": 0}
