"""What a plain configuration gets, and `configure` for the rest."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import REGISTRY, CollectorRegistry

import queue_system.version
from queue_system.hooks import Hooks, QueueView, WorkerView
from telemetry.collector import QueueCollector, TelemetryCollector, WorkerCollector
from telemetry.export import SHUTDOWN_LIMIT, SpanPipeline, otlp_exporter
from telemetry.logging import LogListener, configure_logging
from telemetry.metrics import MetricsListener
from telemetry.tracing import TracingListener, exemplar

OTLP_VARIABLES: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Collectors(Hooks):
    """Keeps the collectors of one registry informed of the workers of this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._workers, self._queues = WorkerCollector(), QueueCollector()
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

    Args:
        otlp_endpoint: of the collector; without it the ``OTEL_EXPORTER_OTLP_*`` variables decide, and without them
            no spans are exported.
        otlp_protocol: ``http/protobuf`` (default) or ``grpc``.
        service_name: by default ``OTEL_SERVICE_NAME``, or ``queue-system``.
        sample_ratio: share of traces that are kept, 0 to 1; by default ``OTEL_TRACES_SAMPLER`` or all. Retries are
            kept in any case.
        log_format: ``json``, ``console`` or ``auto``; None leaves logging as it is.
        log_level: of the package's logger.
        registry: where the counts of spans are shown.

    Returns:
        What was set up; call its `shutdown` at the end. An application that has set its own tracer provider keeps
        it: then there is no pipeline of ours.

    Raises:
        ConfigurationError: an argument is not one of those above.
    """
    if log_format is not None:
        configure_logging(log_format, log_level)
    if otlp_endpoint is None and not any(os.environ.get(name) for name in OTLP_VARIABLES):
        return Telemetry(None)
    sampler = None if sample_ratio is None else ParentBased(TraceIdRatioBased(sample_ratio))
    pipeline = SpanPipeline(otlp_exporter(otlp_endpoint, otlp_protocol), sampler=sampler, service_name=service_name)
    if not pipeline.install():
        pipeline.shutdown(0.0)
        return Telemetry(None)
    _collectors(registry)[1].spans = pipeline.counts
    return Telemetry(pipeline)


def _collectors(registry: CollectorRegistry) -> tuple[Collectors, TelemetryCollector]:
    with _lock:
        known = _registries.get(id(registry))
        if known is None or known[0] is not registry:
            telemetry = TelemetryCollector(queue_system.version.__version__, platform.python_version())
            registry.register(telemetry)
            known = _registries[id(registry)] = (registry, Collectors(registry), telemetry)
        return known[1], known[2]
