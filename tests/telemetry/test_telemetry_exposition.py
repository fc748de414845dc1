"""What a scrape of the real endpoint gets: checked by promtool in both formats, with exemplars that lead to spans.

promtool 2 reads the text format. Of OpenMetrics it reads samples with a time in `tsdb create-blocks-from openmetrics`
(the parser of Prometheus itself, exemplars included), and in `check metrics` what is left after taking out what the
text format does not have.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import telemetry
from queue_system import QueueConfig, QueueManager, QueueRetryConfig
from support import missing, running, until, until_metrics
from telemetry import SidecarServer, TracingListener
from telemetry.catalogue import CATALOGUE

TEXT = "text/plain; version=0.0.4"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
ALLOWED_REMARKS: dict[str, str] = {}
"""What promtool may remark: "metric remark" -> why it is right as it is. There is nothing at present."""

EXEMPLARS = {
    "queue_system_process_duration_seconds",
    "queue_system_queue_wait_seconds",
    "queue_system_thread_pool_wait_seconds",
    "queue_system_callback_duration_seconds",
}
CATALOGUE_NAMES = {metric.full_name.removesuffix("_total"): metric.name for metric in CATALOGUE.values()}


class Scrape(NamedTuple):
    text: str
    openmetrics: str
    content_types: tuple[str, str]
    spans: dict[str, set[str]]  # trace id -> names of its spans


@pytest.fixture
async def scrape(make_config: Callable[..., QueueConfig]) -> Scrape:
    """Of a worker that has seen successes, retries, failures, a timeout, a duplicate and callbacks."""
    exporter, provider, registry = InMemorySpanExporter(), TracerProvider(), CollectorRegistry()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    defaults = telemetry.default_listeners(make_config(telemetry=None).logger, registry)
    config = make_config(telemetry=[TracingListener(provider), *defaults[1:]])
    queue = QueueManager(config)
    work = register_all(config)
    twice = QueueRetryConfig.fixed(0.01, max_attempts=2)
    async with running(config, thread_pool_size=4) as worker:
        server = SidecarServer(worker.health, port=0, registry=registry)
        server.start()
        try:
            queue.enqueue_batch([{"n": n} for n in range(10)], work["quick"], on_success="tests:told")
            queue.enqueue_batch([{"n": n} for n in range(10)], work["nap"])
            queue.enqueue({}, work["broken"], retry_config=twice, on_failure="tests:told")
            queue.enqueue({}, work["sleepy"], timeout=0.05, retry_config=twice)
            for _ in range(2):
                queue.enqueue({}, work["quick"], deduplication_key="one")
            await until_metrics(config, processed=21, failed=2, callbacks_processed=11)
            await until(lambda: registry.get_sample_value("queue_system_callbacks_total", {"outcome": "success"}) == 11)
            pages = [await asyncio.to_thread(get, server.port, accepted) for accepted in (TEXT, OPENMETRICS)]
        finally:
            server.stop()
    spans: dict[str, set[str]] = {}
    for span in exporter.get_finished_spans():
        spans.setdefault(format(span.context.trace_id, "032x"), set()).add(span.name)
    (text, text_type), (openmetrics, openmetrics_type) = pages
    return Scrape(text, openmetrics, (text_type, openmetrics_type), spans)


def register_all(config: QueueConfig) -> dict[str, Callable[..., Any]]:
    async def quick(entity: dict[str, Any]) -> int:
        return 1

    def nap(entity: dict[str, Any]) -> None:
        time.sleep(0.01)

    async def broken(entity: dict[str, Any]) -> None:
        raise ValueError("no such order")

    async def sleepy(entity: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    async def told(data: dict[str, Any]) -> None:
        return None

    config.register_callback(told, name="told", module="tests")
    functions = {function.__name__: function for function in (quick, nap, broken, sleepy)}
    for name, function in functions.items():
        config.registry.register(function, name=name, module="tests")
    return functions


def get(port: int, accepted: str) -> tuple[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accepted})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def promtool(*arguments: str, page: str = "") -> str:
    """What it says; fails when it ends with an error."""
    tool = shutil.which("promtool")
    if tool is None:
        missing("promtool")
    done = subprocess.run([str(tool), *arguments], input=page, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    remarked = done.returncode == 3  # check metrics: remarks, but no error
    assert done.returncode == 0 or remarked, said
    return said


def remarks(page: str) -> list[str]:
    lines = promtool("check", "metrics", page=page).splitlines()
    return [line for line in lines if line not in ALLOWED_REMARKS]


async def test_promtool_has_no_remark_about_the_text_format(scrape: Scrape) -> None:
    assert scrape.content_types[0].startswith("text/plain")
    assert remarks(scrape.text) == []
    assert remarks("# TYPE oddCounter counter\noddCounter 1\n") != []  # it would say so


async def test_promtool_has_no_remark_about_openmetrics(scrape: Scrape, tmp_path: Path) -> None:
    assert scrape.content_types[1].startswith("application/openmetrics-text")
    assert scrape.openmetrics.endswith("# EOF\n")
    page = tmp_path / "page.om"
    page.write_text(with_times(scrape.openmetrics))
    said = promtool("tsdb", "create-blocks-from", "openmetrics", str(page), str(tmp_path / "blocks"))
    assert "NUM SERIES" in said
    assert remarks(as_text_format(scrape.openmetrics)) == []


async def test_both_formats_have_the_whole_catalogue_and_nothing_else(scrape: Scrape) -> None:
    wanted = {(metric.full_name, metric.kind) for metric in CATALOGUE.values()}
    shown = {tuple(line.split()[2:]) for line in scrape.text.splitlines() if line.startswith("# TYPE")}
    assert shown == wanted
    families = list(text_string_to_metric_families(scrape.openmetrics))
    assert {(f"{one.name}_total" if one.type == "counter" else one.name, one.type) for one in families} == wanted
    assert "_created" not in scrape.text + scrape.openmetrics
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", scrape.text, re.MULTILINE))
    assert helps == {metric.full_name: metric.help for metric in CATALOGUE.values()}


async def test_every_family_but_errors_has_samples_before_anything_happened(
    make_config: Callable[..., QueueConfig],
) -> None:
    """`increase()` sees the first event only of a series that was there before."""
    registry = CollectorRegistry()
    config = make_config(telemetry=telemetry.default_listeners(make_config(telemetry=None).logger, registry))
    register_all(config)
    async with running(config):
        empty = {
            family.name
            for family in registry.collect()
            if not family.samples and CATALOGUE_NAMES.get(family.name) != "errors_total"
        }
        labels = {"queue": "quick", "processor": "quick"}
        for name, more in (
            ("processed_total", {}),
            ("attempts_total", {"outcome": "abandoned"}),
            ("failed_total", {"reason": "crashed"}),
            ("retried_total", {"reason": "timeout"}),
            ("process_duration_seconds_count", {"outcome": "error"}),
        ):
            assert registry.get_sample_value(f"queue_system_{name}", labels | more) == 0
    # Of the producer's own, and of queues that there are not yet.
    assert empty == {
        f"queue_system_{name}" for name in ("enqueued", "deduplicated", "queue_depth", "queue_oldest_age_seconds")
    }


async def test_exemplars_lead_to_spans_that_were_exported(scrape: Scrape) -> None:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(scrape.openmetrics):
        for sample in family.samples:
            if sample.exemplar is not None:
                found.setdefault(family.name, set()).add(sample.exemplar.labels["trace_id"])
    assert set(found) == EXEMPLARS
    assert set.union(*found.values()) <= set(scrape.spans)
    names = {name for trace in found["queue_system_process_duration_seconds"] for name in scrape.spans[trace]}
    assert {"process quick", "process nap", "process broken", "process sleepy"} <= names
    callbacks = {name for trace in found["queue_system_callback_duration_seconds"] for name in scrape.spans[trace]}
    assert "callback told" in callbacks
    assert "# {" not in scrape.text


async def test_unsampled_traces_give_no_exemplars(make_config: Callable[..., QueueConfig]) -> None:
    registry = CollectorRegistry()
    config = make_config(telemetry=telemetry.default_listeners(make_config(telemetry=None).logger, registry))
    work = register_all(config)
    QueueManager(config).enqueue_batch([{}] * 3, work["nap"])
    async with running(config):
        await until(lambda: registry.get_sample_value("queue_system_queue_wait_seconds_count", {"queue": "nap"}) == 3)
    assert not [
        sample for family in registry.collect() for sample in family.samples if getattr(sample, "exemplar", None)
    ]


def with_times(page: str) -> str:
    """What `tsdb create-blocks-from` wants: each sample with its time, as in a backfill."""
    now = f"{time.time():.3f}"
    lines = []
    for line in page.splitlines():
        sample, mark, exemplar = line.partition(" # ")
        lines.append(line if line.startswith("#") else f"{sample} {now}{mark}{exemplar}")
    return "\n".join(lines) + "\n"


def as_text_format(page: str) -> str:
    """Without exemplars and ``# EOF``; a counter's help and type under the name of its samples."""
    counters = set(re.findall(r"^# TYPE (\S+) counter$", page, re.MULTILINE))
    lines = []
    for line in page.splitlines():
        if line.startswith("# ") and line != "# EOF":
            mark, what, name, rest = line.split(" ", 3)
            lines.append(" ".join((mark, what, f"{name}_total" if name in counters else name, rest)))
        elif line != "# EOF":
            lines.append(line.partition(" # ")[0])
    return "\n".join(lines) + "\n"
