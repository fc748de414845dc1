"""A collector that is dead, hangs, is slow, and comes back: it costs spans, which are counted, and no work.

How much of the throughput it costs is measured by ``benchmarks/collector_outage.py``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from otlp_receiver import GrpcReceiver, HttpReceiver, dead, slow

from queue_system import QueueConfig, QueueManager
from support import running, until, until_metrics
from telemetry import SpanPipeline, TracingListener, otlp_exporter
from telemetry.collector import TelemetryCollector

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).with_name("queue-system")
RECEIVERS = {"http/protobuf": HttpReceiver, "grpc": GrpcReceiver}

EXIT_LIMIT = 2.0
"""Seconds beyond the drain within which a worker's process ends."""


class Stuck(SpanExporter):
    """An exporter that does not return until it is let go."""

    def __init__(self) -> None:
        self.entered, self.let_go = threading.Event(), threading.Event()
        self.taken: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.let_go.wait(60)
        self.taken += [span.name for span in spans]
        return SpanExportResult.SUCCESS


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    exporter = Stuck()
    yield exporter
    exporter.let_go.set()


def emit(pipeline: SpanPipeline, *names: Any) -> None:
    tracer = pipeline.provider.get_tracer("test")
    for name in names:
        tracer.start_span(str(name)).end()


def adds_up(pipeline: SpanPipeline) -> bool:
    """At rest: nothing waits, nothing is on its way."""
    counts = pipeline.counts
    return counts.ended == counts.exported + counts.dropped


@pytest.mark.parametrize("protocol", RECEIVERS)
async def test_work_goes_on_while_the_collector_is_dead_slow_and_back(
    protocol: str, make_config: Callable[..., QueueConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # s: a dead collector costs that for each batch
    receiver = RECEIVERS[protocol]()
    pipeline = SpanPipeline(otlp_exporter(receiver.endpoint, protocol), queue_size=20)
    config = make_config(telemetry=[TracingListener(pipeline.provider)])
    queue, counts = QueueManager(config), pipeline.counts
    collector = TelemetryCollector("0", "0")
    collector.spans = counts

    async def work(entity: Any) -> None:
        assert len(pipeline.queue) <= 20

    config.registry.register(work, name="work", module="tests")
    try:
        async with running(config):
            for phase, behaviour in enumerate((dead, slow(0.2), lambda: None), start=1):
                receiver.received.behave = behaviour
                exported = counts.exported
                queue.enqueue_batch([{}] * 100, "tests:work", queue_name="work")
                await until_metrics(config, processed=100 * phase)
                if behaviour is dead:
                    assert counts.exported == 0
                    await until(lambda: counts.dropped >= 101 - 20)
                    await until(lambda: adds_up(pipeline))
                else:
                    await until(lambda before=exported: counts.exported > before)
        assert pipeline.shutdown(30)
        assert adds_up(pipeline)
        assert counts.ended == 303
        assert counts.exported == len(receiver.received.spans) > 0
        shown = {family.name: family.samples[0].value for family in collector.collect()}
        assert shown["queue_system_spans_ended"] == 303
        assert shown["queue_system_spans_exported"] + shown["queue_system_spans_dropped"] == 303
    finally:
        pipeline.shutdown()
        receiver.stop()


def test_emitting_does_not_wait_and_the_queue_is_bounded_and_keeps_the_latest(stuck: Stuck) -> None:
    pipeline = SpanPipeline(stuck, queue_size=100)
    emit(pipeline, *range(100))
    assert stuck.entered.wait(10)
    emit(pipeline, *range(100, 5000))  # the exporter is stuck all the while: emitting waits for nothing
    assert len(pipeline.queue) == 100
    assert (pipeline.counts.ended, pipeline.counts.exported, pipeline.counts.dropped) == (5000, 0, 4800)
    stuck.let_go.set()
    assert pipeline.provider.force_flush(10_000)
    assert stuck.taken == [str(number) for number in (*range(100), *range(4900, 5000))]
    assert adds_up(pipeline)
    assert pipeline.shutdown()


def test_many_threads_lose_no_count() -> None:
    class Fails(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            nonlocal calls
            calls += 1
            if calls % 3 == 0:
                raise OSError("as a broken exporter does")
            return SpanExportResult.FAILURE if calls % 3 == 1 else SpanExportResult.SUCCESS

    calls = 0
    pipeline = SpanPipeline(Fails(), queue_size=50)
    threads = [threading.Thread(target=emit, args=(pipeline, *range(2000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pipeline.shutdown(30)
    assert pipeline.counts.ended == 8000
    assert pipeline.counts.exported > 0
    assert adds_up(pipeline)


def test_shutdown_returns_at_its_limit_and_counts_what_is_left(stuck: Stuck) -> None:
    pipeline = SpanPipeline(stuck, queue_size=50)
    emit(pipeline, *range(70))
    began = time.monotonic()
    assert not pipeline.shutdown(0.2)
    assert time.monotonic() - began < 5  # the SDK's own takes 30 s
    assert pipeline.counts.dropped == 70
    emit(pipeline, "late")
    assert not pipeline.shutdown(60)  # at once: it was given up
    stuck.let_go.set()
    pipeline.queue._thread.join(10)
    assert adds_up(pipeline)  # what comes through after all is not counted twice


def test_the_providers_own_shutdown_sends_what_waits(stuck: Stuck) -> None:
    stuck.let_go.set()
    pipeline = SpanPipeline(stuck)
    emit(pipeline, "last")
    pipeline.provider.shutdown()
    assert stuck.taken == ["last"]
    assert pipeline.shutdown()


def test_the_queue_is_sized_by_the_standard_variables(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "7")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "nonsense")
    pipeline = SpanPipeline(stuck)
    emit(pipeline, *range(100))
    assert len(pipeline.queue) <= 7
    stuck.let_go.set()
    assert pipeline.shutdown()


FORKING = """
import os, sys
from telemetry import SpanPipeline, otlp_exporter
pipeline = SpanPipeline(otlp_exporter(sys.argv[1]))
tracer = pipeline.provider.get_tracer("test")
tracer.start_span("before").end()
child = os.fork()
tracer.start_span("child" if child == 0 else "parent").end()
ended = pipeline.shutdown(), pipeline.counts.ended, pipeline.counts.exported
if child == 0:
    os._exit(0 if ended == (True, 1, 1) else 1)
assert os.waitpid(child, 0)[1] == 0
assert ended == (True, 2, 2), ended
"""


def test_a_forked_child_exports_its_own_spans() -> None:
    receiver = HttpReceiver()
    try:
        subprocess.run([sys.executable, "-c", FORKING, receiver.endpoint], check=True, timeout=60, cwd=ROOT)
    finally:
        receiver.stop()
    assert sorted(span.name for span in receiver.received.spans) == ["before", "child", "parent"]


@pytest.mark.parametrize("protocol", RECEIVERS)
@pytest.mark.parametrize("collector", ["dead", "hanging", "well"])
async def test_a_worker_process_ends_in_time(
    protocol: str, collector: str, redis_url: str, prefix: str, make_config: Callable[..., QueueConfig], tmp_path: Path
) -> None:
    receiver, let_go = RECEIVERS[protocol](), threading.Event()
    endpoint = receiver.endpoint
    if collector == "hanging":
        receiver.received.behave = lambda: let_go.wait(60)
    elif collector == "dead":
        endpoint = f"http://127.0.0.1:{_closed_port()}"
    config = make_config(telemetry=None)
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    process = _start_worker(tmp_path, redis_url, prefix, env)
    output = tmp_path / "out"
    try:
        QueueManager(config).enqueue_batch([{}] * 1000, "chores:work", queue_name="work")
        await until_metrics(config, processed=1000)
        process.send_signal(signal.SIGTERM)
        await until(lambda: " drained in " in output.read_text())
        drained = time.monotonic()
        await until(lambda: process.poll() is not None, 30)
        took = time.monotonic() - drained
        assert process.returncode == 0, output.read_text()
        assert took < EXIT_LIMIT + 1, took  # a second for a busy machine
        left_behind = [line for line in output.read_text().splitlines() if "spans_left_behind" in line]
        assert len(left_behind) == (collector != "well")
        assert all(json.loads(line)["level"] == "warning" for line in left_behind)
        assert len(receiver.received.spans) == (1000 if collector == "well" else 0)
    finally:
        let_go.set()
        if process.poll() is None:
            process.kill()
        process.wait(10)
        receiver.stop()


def _start_worker(directory: Path, redis_url: str, prefix: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
    (directory / "chores.py").write_text("async def work(entity):\n    pass\n")
    with (directory / "out").open("wb") as out:
        return subprocess.Popen(
            [SCRIPT, "worker", "chores", "--redis-url", redis_url, "--prefix", prefix, "--log-format", "json"],
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=os.environ | env,
        )


def _closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
