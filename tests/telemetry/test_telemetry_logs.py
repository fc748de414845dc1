"""The logs of real workers: stable events, and the ids of the operation in whatever is logged during it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from log_stream import LogStream, log_stream
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON
from prometheus_client import CollectorRegistry

import telemetry.logging
from queue_system import OperationContext, QueueConfig, QueueManager
from queue_system.retry import QueueRetryConfig
from support import running, until_metrics
from telemetry import LogListener, MetricsListener, SpanPipeline, TracingListener
from telemetry.tracing import current_ids

TABLE = frozenset(re.findall(r"^\| ``(\w+)`` ", telemetry.logging.__doc__ or "", re.MULTILINE))


class Nowhere(SpanExporter):
    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


@pytest.fixture
def logs() -> Iterator[LogStream]:
    with log_stream() as stream:
        yield stream


def traced_config(make_config: Callable[..., QueueConfig], sampler: Any = ALWAYS_ON) -> QueueConfig:
    pipeline = SpanPipeline(Nowhere(), sampler=sampler)
    config = make_config(telemetry=None)
    return make_config(
        telemetry=[
            TracingListener(pipeline.provider),
            MetricsListener(CollectorRegistry()),
            LogListener(config.logger),
        ]
    )


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "unsampled"])
@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_everything_that_is_logged_during_an_operation_has_its_ids(
    mode: str, sampler: Any, make_config: Callable[..., QueueConfig], logs: LogStream
) -> None:
    config = traced_config(make_config, sampler)
    logs.start("json")  # logs are set up after the configuration was made
    ids: dict[str, str] = {}

    def work(context: OperationContext) -> None:
        ids.update(current_ids())
        logging.getLogger("app").info("by the standard library")
        structlog.get_logger("app").info("by structlog")
        context.logger.info("by the context", step=1)

    async def work_async(entity: Any, context: OperationContext) -> None:
        work(context)
        await asyncio.to_thread(logging.getLogger("app").info, "in a thread of the processor's own")

    def work_sync(entity: Any, context: OperationContext) -> None:
        assert threading.current_thread().name.startswith("queue-system-pool")
        work(context)

    function = work_async if mode == "async" else work_sync
    config.registry.register(function, name="work", module="tests")
    result = QueueManager(config).enqueue({}, "tests:work", queue_name="chores")
    async with running(config):
        await until_metrics(config, processed=1)
    lines = {line["event"]: line for line in logs.lines}
    own = ["by the standard library", "by structlog", "by the context", "operation_started"]
    own += ["in a thread of the processor's own"] if mode == "async" else []
    expected = {
        "operation_id": result["operation_id"],
        "queue": "chores",
        "processor": "work",
        "attempt": 1,
        "trace_id": ids["trace_id"],
        "span_id": ids["span_id"],
    }
    assert len(ids["trace_id"]) == 32
    for event in own:
        assert expected.items() <= lines[event].items(), event
    assert lines["by the context"]["step"] == 1
    assert lines["operation_processed"]["operation_id"] == result["operation_id"]
    assert lines["operations_enqueued"]["operation_id"] == result["operation_id"]
    assert "operation_id" not in lines["worker_running"]


async def test_the_events_of_a_worker_are_those_of_the_table(
    make_config: Callable[..., QueueConfig], logs: LogStream
) -> None:
    logs.start("json")
    config = traced_config(make_config)
    tried: list[int] = []

    async def fail_once(entity: Any) -> None:
        tried.append(1)
        if len(tried) == 1:
            raise LookupError("secret\nforged")

    def fail(entity: Any) -> None:
        raise LookupError("secret\nforged")

    async def tell(data: Any) -> None:
        pass

    config.registry.register(fail_once, name="fail_once", module="tests")
    config.registry.register(fail, name="fail", module="tests")
    config.register_callback(tell, name="tell", module="tests")
    queue = QueueManager(config)
    queue.enqueue({}, "tests:fail_once", retry_config=QueueRetryConfig(delays=[0.01]))
    failed = queue.enqueue({}, "tests:fail", retry_config=QueueRetryConfig(max_attempts=1), on_failure="tests:tell")
    async with running(config):
        await until_metrics(config, processed=1, failed=1, callbacks_processed=1)
    lines = logs.lines
    ours = [line for line in lines if line["logger"].startswith("queue_system")]
    events = [line["event"] for line in ours]
    assert set(events) == {
        "operations_enqueued", "worker_running", "operation_started", "operation_retried", "operation_processed",
        "operation_failed", "callback_started", "callback_processed", "worker_draining", "worker_stopped",
    }  # fmt: skip
    assert set(events) <= TABLE
    assert events.count("operation_started") == 3
    (line,) = [line for line in ours if line["event"] == "operation_failed"]
    assert (line["operation_id"], line["error_type"], line["level"]) == (
        failed["operation_id"],
        "LookupError",
        "error",
    )
    assert "secret" not in json.dumps(lines)
