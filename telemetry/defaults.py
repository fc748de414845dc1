"""What a plain configuration gets, and `configure` for the rest."""

from __future__ import annotations

import logging
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import REGISTRY, CollectorRegistry

import queue_system.version
from queue_system.errors import ConfigurationError
from queue_system.events import (
    QueueView,
    WorkerView,
)
from queue_system.hooks import Hooks
from queue_system.log import get_logger
from telemetry.collector import QueueCollector, TelemetryCollector, WorkerCollector
from telemetry.export import SHUTDOWN_LIMIT, SpanPipeline, application_has_provider, otlp_exporter
from telemetry.logging import LogListener, configure_logging
from telemetry.metrics import MetricsListener, event_metrics
from telemetry.tracing import TracingListener, exemplar

OTLP_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXPORTERS: Final = {"otlp": None, "otlp_proto_http": "http/protobuf", "otlp_proto_grpc": "grpc"}
"""What ``OTEL_TRACES_EXPORTER`` may ask for, and the protocol that it implies."""

logger = get_logger(logging.getLogger("queue_system.telemetry"))


class Collectors(Hooks):
    """Keeps the collectors of one registry informed of the workers of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._workers, self._queues = WorkerCollector(), QueueCollector(event_metrics(registry).queue)
        registry.register(self._workers)
        registry.register(self._queues)

    def attach(self, worker: WorkerView, queue: QueueView) -> None:
        """See `Hooks`."""
        self._workers.attach(worker)
        self._queues.attach(queue)

    def detach(self, worker: WorkerView, queue: QueueView) -> None:
        """See `Hooks`."""
        self._workers.detach(worker)
        self._queues.detach(queue)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What `configure` has set up."""

    pipeline: SpanPipeline | None

    def shutdown(self, limit: float = SHUTDOWN_LIMIT) -> bool:
        """Send the spans that wait, for at most `limit` seconds; false when that was not enough."""
        return True if self.pipeline is None else self.pipeline.shutdown(limit)


_lock = threading.Lock()
_registries: dict[int, tuple[CollectorRegistry, Collectors, TelemetryCollector]] = {}


def default_listeners(logger: Any, registry: CollectorRegistry = REGISTRY) -> Sequence[Hooks]:
    """Metrics in `registry`, spans with the application's provider, log events on `logger`."""
    collectors, _ = _collectors(registry)
    return (TracingListener(), MetricsListener(registry, exemplar), collectors, LogListener(logger))


def configure(
    *,
    otlp_endpoint: str | None = None,
    otlp_protocol: str | None = None,
    service_name: str | None = None,
    sample_ratio: float | None = None,
    log_format: str | None = None,
    log_level: str = "INFO",
    registry: CollectorRegistry = REGISTRY,
) -> Telemetry:
    """Export spans over OTLP, and set up logs. Call it once, at the start of a process; it never blocks.

    ``OTEL_SDK_DISABLED=true`` and ``OTEL_TRACES_EXPORTER=none`` turn exporting off, whatever the arguments say.

    Args:
        otlp_endpoint: of the collector; without it the ``OTEL_EXPORTER_OTLP_*`` variables decide, and without them
            (and without ``OTEL_TRACES_EXPORTER=otlp``, which means localhost) no spans are exported.
        otlp_protocol: ``http/protobuf`` (default) or ``grpc``.
        service_name: by default ``OTEL_SERVICE_NAME``, or ``queue-system``.
        sample_ratio: share of traces that are kept, 0 to 1; by default ``OTEL_TRACES_SAMPLER`` or all. Retries are
            kept in any case.
        log_format: ``json``, ``console`` or ``auto``; None leaves logging as it is. The whole process logs so,
            structlog's loggers included; an application that has set up the root logger keeps that, and only the
            package's own logger changes.
        log_level: of the logger that is set up.
        registry: where the counts of spans are shown.

    Returns:
        What was set up; call its `shutdown` at the end. An application that has set its own tracer provider keeps
        it, and our spans go there: then there is no pipeline of ours.

    Raises:
        ConfigurationError: an argument is not one of those above.
    """
    if sample_ratio is not None and not 0 <= sample_ratio <= 1:
        raise ConfigurationError(f"sample_ratio {sample_ratio!r}: use a number from 0 to 1")
    if log_format is not None:
        configure_logging(log_format, log_level, name="queue_system" if logging.getLogger().handlers else "")
    if not _exports(otlp_endpoint) or application_has_provider():
        return Telemetry(None)
    sampler = None if sample_ratio is None else ParentBased(TraceIdRatioBased(sample_ratio))
    protocol = otlp_protocol or EXPORTERS.get(_exporter_variable())
    pipeline = SpanPipeline(otlp_exporter(otlp_endpoint, protocol), sampler=sampler, service_name=service_name)
    pipeline.install()
    _collectors(registry)[1].spans = pipeline.counts
    return Telemetry(pipeline)


def _exports(endpoint: str | None) -> bool:
    """Whether spans are to be exported, as the arguments and the ``OTEL_*`` variables say."""
    wanted = _exporter_variable()
    if wanted == "none" or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if wanted and wanted not in EXPORTERS:
        logger.warning("traces_exporter_unknown", OTEL_TRACES_EXPORTER=wanted, use="otlp or none")
        wanted = ""
    return bool(wanted or endpoint or any(os.environ.get(name) for name in OTLP_VARIABLES))


def _exporter_variable() -> str:
    return os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()


def _collectors(registry: CollectorRegistry) -> tuple[Collectors, TelemetryCollector]:
    with _lock:
        known = _registries.get(id(registry))
        if known is None or known[0] is not registry:
            telemetry = TelemetryCollector(queue_system.version.__version__, platform.python_version())
            registry.register(telemetry)
            known = _registries[id(registry)] = (registry, Collectors(registry), telemetry)
        return known[1], known[2]
