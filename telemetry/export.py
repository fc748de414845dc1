"""Sends spans over OTLP without ever being in the way: a dead or slow collector costs spans, and no work.

The queue of ended spans is bounded, the oldest is dropped when it is full, and every span is counted: at rest,
ended = exported + dropped. `SpanPipeline.shutdown` returns after its limit whatever the collector does. The batch
processor of the SDK has neither exact counts nor such an end (its `shutdown` blocks for 30 s): hence one of our own.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY  # the only way to keep instrumented clients quiet
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult

from queue_system.errors import ConfigurationError
from queue_system.log import get_logger
from telemetry.spans import AnySpan, LightExporter, LightProvider, light_tracer, sdk_spans

logger = get_logger(logging.getLogger("queue_system.telemetry"))

DEFAULT_QUEUE_SIZE: Final = 2048
DEFAULT_BATCH_SIZE: Final = 512
DEFAULT_DELAY: Final = 1.0
"""Seconds after which a span is sent at the latest, when the collector takes spans."""

SHUTDOWN_LIMIT: Final = 1.5
"""Seconds for the last spans; leaves the interpreter time to end within 2 s."""


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
        if result.decision is Decision.DROP and attributes and is_retry(attributes):
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, trace_state)
        return result

    def get_description(self) -> str:
        """See the SDK."""
        return f"RetrySampler({self._base.get_description()})"


def is_retry(attributes: Mapping[str, Any]) -> bool:
    """Whether a span with these attributes is of an attempt after the first."""
    return bool(attributes.get("queue_system.attempt", 1) > 1)


@dataclass(slots=True)
class SpanCounts:
    """How many sampled spans ended, were taken by the collector, and were lost."""

    ended: int = 0
    exported: int = 0
    dropped: int = 0


class SpanQueue(SpanProcessor):
    """A bounded queue of ended spans and the daemon thread that exports them.

    Args:
        exporter: called in that thread only.
        counts: kept up to date.
        size: spans that wait; by default ``OTEL_BSP_MAX_QUEUE_SIZE`` or 2,048.
        batch: spans sent at once; by default ``OTEL_BSP_MAX_EXPORT_BATCH_SIZE`` or 512.
        delay: seconds that a span waits for others; by default ``OTEL_BSP_SCHEDULE_DELAY`` (ms) or 1.
    """

    _changed: threading.Condition
    _waiting: deque[AnySpan]
    _in_flight: int
    _stopping: bool
    _flushing: bool
    _given_up: bool
    _thread: threading.Thread

    def __init__(
        self,
        exporter: SpanExporter,
        counts: SpanCounts,
        *,
        size: int | None = None,
        batch: int | None = None,
        delay: float | None = None,
    ) -> None:
        self._exporter = exporter
        self._counts = counts
        self.size = size or _number("OTEL_BSP_MAX_QUEUE_SIZE", DEFAULT_QUEUE_SIZE)
        self._batch = min(self.size, batch or _number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", DEFAULT_BATCH_SIZE))
        self._delay = delay or _number("OTEL_BSP_SCHEDULE_DELAY", int(DEFAULT_DELAY * 1000)) / 1000
        self._start()
        if hasattr(os, "register_at_fork"):
            again = weakref.WeakMethod(self._start)
            os.register_at_fork(after_in_child=lambda: (start := again()) and start())

    def __len__(self) -> int:
        return len(self._waiting)

    def on_end(self, span: ReadableSpan) -> None:
        """See the SDK. Spans that are recorded without being sampled are not exported."""
        if span.context is not None and span.context.trace_flags.sampled:
            self.take(span)

    def take(self, span: AnySpan) -> None:
        """Take a sampled span that has ended; never waits for the exporter."""
        with self._changed:
            self._counts.ended += 1
            if self._stopping:
                self._counts.dropped += 1
                return
            if len(self._waiting) >= self.size:
                self._waiting.popleft()
                self._counts.dropped += 1
            self._waiting.append(span)
            if len(self._waiting) == self._batch:
                self._changed.notify_all()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Send what waits; false when it could not be sent in time."""
        deadline = time.monotonic() + timeout_millis / 1000
        with self._changed:
            self._flushing = True
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: not self._waiting and not self._in_flight, max(0.0, deadline - time.monotonic())
            )

    def shutdown(self) -> None:
        """See the SDK; returns within 1.5 s."""
        self.end()

    def end(self, limit: float = SHUTDOWN_LIMIT) -> bool:
        """Take no more, and send what waits for at most `limit` seconds; what is left then is dropped and counted."""
        with self._changed:
            if self._stopping:
                return not self._thread.is_alive()
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(limit)
        if not self._thread.is_alive():
            return True
        with self._changed:
            self._given_up = True
            self._counts.dropped += len(self._waiting) + self._in_flight
            self._waiting.clear()
        return False

    def _start(self) -> None:
        """Start empty; in a forked child as well, where the parent sends what it has."""
        self._changed = threading.Condition()
        self._waiting = deque()
        self._in_flight = 0
        self._stopping = self._flushing = self._given_up = False
        self._counts.ended = self._counts.exported = self._counts.dropped = 0
        self._thread = threading.Thread(target=self._run, name="queue-system-spans", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        otel_context.attach(otel_context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # noqa: FBT003  its signature
        while batch := self._next():
            taken = self._export(batch)
            with self._changed:
                if not self._given_up:
                    if taken:
                        self._counts.exported += len(batch)
                    else:
                        self._counts.dropped += len(batch)
                self._in_flight = 0
                self._changed.notify_all()
            del batch  # while it waits, it must not keep the last spans alive
        self._exporter.shutdown()

    def _next(self) -> list[AnySpan]:
        """Wait for a full batch, or for the delay to pass. Empty at the end only."""
        with self._changed:
            while True:
                self._changed.wait_for(self._due, self._delay)
                if self._waiting or self._stopping:
                    break
                self._flushing = False
            count = min(len(self._waiting), self._batch)
            self._in_flight = count
            return [self._waiting.popleft() for _ in range(count)]

    def _due(self) -> bool:
        return self._stopping or self._flushing or len(self._waiting) >= self._batch

    def _export(self, batch: list[AnySpan]) -> bool:
        exporter = self._exporter
        try:
            if isinstance(exporter, LightExporter):
                return exporter.export(batch) is SpanExportResult.SUCCESS
            return exporter.export(sdk_spans(batch)) is SpanExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001  an exporter that raises must not end the thread
            logger.warning("span_export_failed", error_type=type(error).__name__)
            return False


class SpanPipeline:
    """A tracer provider that exports over OTLP.

    Args:
        exporter: where to.
        sampler: by default what ``OTEL_TRACES_SAMPLER`` says or everything, and every retry in any case.
        service_name: by default what ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` says, or ``queue-system``.
        queue_size: ended spans that may wait, 2,048 by default (about 2 MB).
    """

    def __init__(
        self,
        exporter: SpanExporter,
        *,
        sampler: Sampler | None = None,
        service_name: str | None = None,
        queue_size: int | None = None,
    ) -> None:
        self.counts = SpanCounts()
        self.queue = SpanQueue(exporter, self.counts, size=queue_size)
        self.provider = LightProvider(
            resource=_resource(service_name),
            sampler=sampler,  # None: the SDK reads its variables
            shutdown_on_exit=False,
        )
        base = self.provider.sampler
        self.provider.sampler = RetrySampler(base)
        self.provider.add_span_processor(self.queue)
        self.provider.light = light_tracer(self.provider, base, is_retry, self.queue.take)

    def install(self) -> bool:
        """Make it the application's provider; false, and no change, when the application has set its own.

        The spans that wait are sent when the process ends, should `shutdown` not be called before.
        """
        if application_has_provider():
            return False
        trace.set_tracer_provider(self.provider)
        atexit.register(self.shutdown)
        return True

    def shutdown(self, limit: float = SHUTDOWN_LIMIT) -> bool:
        """Send what waits, for at most `limit` seconds (1.5 by default); false when that was not enough."""
        # Not through the provider, whose shutdown takes no limit.
        return self.queue.end(limit)


def application_has_provider() -> bool:
    """Whether somebody has set a tracer provider in this process."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


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
        from telemetry.otlp_http import http_exporter  # noqa: PLC0415  only if used

        return http_exporter(endpoint)
    if protocol == "grpc":
        from telemetry.otlp_grpc import GrpcExporter  # noqa: PLC0415  only if used

        return GrpcExporter(endpoint=endpoint)
    raise ConfigurationError(f"OTLP protocol {protocol!r}: use http/protobuf or grpc")


def _resource(service_name: str | None) -> Resource:
    resource = Resource.create({SERVICE_NAME: service_name} if service_name else None)
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "queue-system"}))
    return resource


def _number(variable: str, default: int) -> int:
    """A positive number from the environment; the default for anything else, as the specification has it."""
    text = os.environ.get(variable, "").strip()
    return int(text) if text.isdecimal() and int(text) > 0 else default
