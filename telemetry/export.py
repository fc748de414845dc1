"""Sends spans over OTLP without ever being in the way: a dead or slow collector costs spans, and no work.

The queue of ended spans is bounded, what does not fit is dropped and counted, and `shutdown` returns after its limit
whatever the collector does (the SDK's own blocks for 30 s).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)

from queue_system.errors import ConfigurationError

DEFAULT_QUEUE_SIZE: Final = 2048
SHUTDOWN_LIMIT: Final = 2.0
EXPORT_TIMEOUT: Final = 10.0


class RetrySampler(Sampler):
    """A head sampler that keeps every retry: an attempt after the first is sampled, whatever the ratio says.

    Whether an attempt will fail cannot be known at its start; that it follows a failed one can.
    """

    def __init__(self, base: Sampler) -> None:
        self._base = base

    def should_sample(
        self,
        parent_context: Any,
        trace_id: int,
        name: str,
        kind: Any = None,
        attributes: Any = None,
        links: Any = None,
        trace_state: Any = None,
    ) -> SamplingResult:
        """See the SDK."""
        result = self._base.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is Decision.DROP and attributes and attributes.get("queue_system.attempt", 1) > 1:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        return result

    def get_description(self) -> str:
        """See the SDK."""
        return f"RetrySampler({self._base.get_description()})"


class SpanCounts:
    """How many sampled spans ended, were taken by the collector, and were lost."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.ended = self.handed_over = self.exported = self.refused = self.overflowed = 0

    @property
    def dropped(self) -> int:
        """Lost: there was no room for them, or the collector did not take them."""
        return self.refused + self.overflowed


class CountingExporter(SpanExporter):
    """Counts what another exporter does."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts) -> None:
        self._exporter = exporter
        self._counts = counts

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See the SDK."""
        with self._counts.lock:
            self._counts.handed_over += len(spans)
        taken = False
        try:
            result = self._exporter.export(spans)
            taken = result is SpanExportResult.SUCCESS
        finally:
            with self._counts.lock:
                if taken:
                    self._counts.exported += len(spans)
                else:
                    self._counts.refused += len(spans)
        return result

    def shutdown(self) -> None:
        """See the SDK."""
        self._exporter.shutdown()


class CountingProcessor(BatchSpanProcessor):
    """The SDK's batch processor, which drops the oldest span when its queue is full; here it is counted, too."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts, queue_size: int = DEFAULT_QUEUE_SIZE) -> None:
        super().__init__(
            CountingExporter(exporter, counts),
            max_queue_size=queue_size,
            max_export_batch_size=min(512, queue_size),
            schedule_delay_millis=1000,
        )
        self._counts = counts
        self._queue_size = queue_size

    def on_end(self, span: ReadableSpan) -> None:
        """See the SDK."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        counts = self._counts
        with counts.lock:
            counts.ended += 1
            if counts.ended - counts.handed_over - counts.overflowed > self._queue_size:
                counts.overflowed += 1
        super().on_end(span)


class SpanPipeline:
    """A tracer provider that exports over OTLP.

    Args:
        exporter: where to.
        sampler: by default what ``OTEL_TRACES_SAMPLER`` says or everything, and every retry in any case.
        service_name: by default what ``OTEL_SERVICE_NAME`` says, or ``queue-system``.
        queue_size: ended spans that may wait, 2,048 by default (about 2 MB).
    """

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        sampler: Sampler | None = None,
        service_name: str | None = None,
        queue_size: int = DEFAULT_QUEUE_SIZE,
    ) -> None:
        self.counts = SpanCounts()
        name = service_name or os.environ.get("OTEL_SERVICE_NAME") or "queue-system"
        self.provider = TracerProvider(
            resource=Resource.create({"service.name": name}),
            sampler=RetrySampler(sampler or _sampler_from_environment()),
            shutdown_on_exit=False,
        )
        self.provider.add_span_processor(CountingProcessor(exporter, self.counts, queue_size))

    def install(self) -> bool:
        """Make it the application's provider; false, and no change, when the application has set its own."""
        if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return False
        trace.set_tracer_provider(self.provider)
        return True

    def shutdown(self, limit: float = SHUTDOWN_LIMIT) -> bool:
        """Send what waits, for at most `limit` seconds; false when that was not enough."""
        # In a daemon thread: the exporter may sit in a request to a collector that does not answer.
        thread = threading.Thread(target=self.provider.shutdown, name="queue-system-spans-end", daemon=True)
        thread.start()
        thread.join(limit)
        return not thread.is_alive()


def otlp_exporter(endpoint: str | None = None, protocol: str | None = None) -> SpanExporter:
    """An OTLP exporter; what is not given comes from the ``OTEL_EXPORTER_OTLP_*`` variables.

    Args:
        endpoint: for ``http/protobuf`` the base URL, to which ``/v1/traces`` is added, or that whole URL; for ``grpc``
            ``http://host:port``.
        protocol: ``http/protobuf`` (default) or ``grpc``.

    Raises:
        ConfigurationError: another protocol.
    """
    protocol = (
        protocol
        or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "http/protobuf"
    )
    if protocol == "http/protobuf":
        return _http_exporter(endpoint)
    if protocol == "grpc":
        return _grpc_exporter(endpoint)
    raise ConfigurationError(f"OTLP protocol {protocol!r}: use http/protobuf or grpc")


def _http_exporter(endpoint: str | None) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  only if used

    if endpoint is not None and not endpoint.rstrip("/").endswith("/v1/traces"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    return OTLPSpanExporter(endpoint=endpoint)


def _grpc_exporter(endpoint: str | None) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  only if used

    return OTLPSpanExporter(endpoint=endpoint)


def _sampler_from_environment() -> Sampler:
    """``OTEL_TRACES_SAMPLER`` and its argument, as the SDK reads them; everything when it is not set."""
    name = os.environ.get("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    if name in {"parentbased_always_on", "always_on"}:
        return ParentBased(ALWAYS_ON) if name.startswith("parentbased") else ALWAYS_ON
    try:
        ratio = float(os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1.0"))
    except ValueError as error:
        raise ConfigurationError("OTEL_TRACES_SAMPLER_ARG must be a number from 0 to 1") from error
    ratios = {"always_off": 0.0, "parentbased_always_off": 0.0}
    base = TraceIdRatioBased(ratios.get(name, ratio))
    return ParentBased(base) if name.startswith("parentbased") else base
