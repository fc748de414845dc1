"""Spans around every operation, from enqueue through each attempt to the callback.

| span | kind | parent | links |
|---|---|---|---|
| ``enqueue {queue}`` | producer | the caller's span | |
| ``process {queue}``, first attempt of a single immediate operation | consumer | the enqueue span | the enqueue span |
| ``process {queue}``, otherwise | consumer | none: a new trace | the enqueue span, the previous attempt |
| ``callback {name}``, first attempt | internal | the process span that caused it | |
| ``callback {name}``, later attempts | internal | none: a new trace | that process span, the previous attempt |

A retry, a delayed or a batched operation starts a trace of its own, so that a trace stays of a size that one can look
at. The callback of an operation that was given up without an attempt belongs to the enqueue span instead. What a
processor's own code opens is a child of the process span, in the pool's threads as well.

No payload, no result and no message of an error (it may quote a payload) is ever put into a span: of errors the class.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from functools import lru_cache
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from queue_system.events import (
    AttemptFinished,
    AttemptStarted,
    EnqueueStarted,
    Event,
    LeaseLost,
    OperationInfo,
    PoolStarted,
    current_operation,
)
from queue_system.hooks import NO_CONTEXT, Hooks
from queue_system.operation import KIND_CALLBACK
from telemetry.spans import SCOPE, LightProvider, LightSpan, Shape, Spans

SYSTEM: Final = "queue_system"
LINK_ONLY: Final = "trace-link-only"
"""Header of an operation whose attempts do not continue the producer's trace: it was delayed, or one of a batch."""

_SHAPES_KEPT: Final = 1024
"""Kinds of spans (by queue, processor, attempt...) whose common part is made once."""

_propagator = TraceContextTextMapPropagator()
_PLAIN_TRACEPARENT: Final = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
"""As we write it ourselves; any other form is left to the propagator."""

_link_only: ContextVar[bool | None] = ContextVar("queue_system_link_only", default=None)
"""Inside an enqueue call: whether its operations are linked only. None outside."""


class TracingListener(Hooks):
    """Makes spans with the application's tracer provider. Without one they cost next to nothing.

    With the provider of a `SpanPipeline` they cost little; see `telemetry.spans`.

    Args:
        provider: None for the global one, whatever it will be by then.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._sdk = _SdkSpans(trace.get_tracer(SCOPE.name, SCOPE.version, tracer_provider=provider))
        self._provider = provider
        self._running: dict[int, tuple[OperationInfo, Span]] = {}
        self._off = provider is None
        self._look_again = 0.0
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            AttemptFinished: self._on_finished,
            LeaseLost: self._on_lease_lost,
            PoolStarted: _on_pool_started,
        }

    def enqueue_context(self, event: EnqueueStarted) -> AbstractContextManager[None]:
        """See `Hooks`."""
        return NO_CONTEXT if self._is_off() else _EnqueueSpan(self._spans(), event)

    def attempt_context(self, event: AttemptStarted) -> AbstractContextManager[None]:
        """See `Hooks`."""
        return NO_CONTEXT if self._is_off() else _AttemptSpan(self._spans(), event, self._running)

    def _spans(self) -> Spans:
        provider = self._provider
        return provider.light or self._sdk if isinstance(provider, LightProvider) else self._sdk

    def _is_off(self) -> bool:
        """Whether nobody has set up tracing: then not even spans that do nothing are made.

        Looked at every tenth of a second only: as long as there is no provider, asking for it reads the environment,
        about a microsecond. A provider that was set stays.
        """
        if self._off and (now := time.monotonic()) >= self._look_again:
            self._look_again = now + 0.1
            self._provider = trace.get_tracer_provider()
            self._off = isinstance(self._provider, trace.ProxyTracerProvider)
        return self._off

    def inject(self, headers: dict[str, str]) -> None:
        """See `Hooks`."""
        link_only = _link_only.get()
        if link_only is None and current_operation.get() is None:
            return  # what is current here, if anything, is the span in which the worker was started
        _inject(headers)
        if headers and link_only:
            headers[LINK_ONLY] = "1"

    def on_event(self, event: Event) -> None:
        """See `Hooks`."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def handler_for(self, event_type: type[Event]) -> Callable[[Any], None] | None:
        """See `Hooks`."""
        return self._handlers.get(event_type)

    def _on_finished(self, event: AttemptFinished) -> None:
        running = self._running.get(id(event.operation))
        if running is not None:
            _finish(running[1], event)

    def _on_lease_lost(self, event: LeaseLost) -> None:
        for operation, span in list(self._running.values()):
            if operation.operation_id == event.operation_id:
                span.add_event("lease lost")


class _SdkSpans:
    """Spans of the application's tracer."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def start_here(self, shape: Shape, attributes: dict[str, Any]) -> Span:
        """See `Spans`."""
        return self._tracer.start_span(shape.name, kind=shape.kind, attributes={**shape.attributes, **attributes})

    def start(
        self, shape: Shape, attributes: dict[str, Any], parent: SpanContext | None, links: Sequence[SpanContext]
    ) -> Span:
        """See `Spans`."""
        return self._tracer.start_span(
            shape.name,
            context=otel_context.Context() if parent is None else _continuing(parent),
            kind=shape.kind,
            attributes={**shape.attributes, **attributes},
            links=[Link(one) for one in links],
        )


class _CurrentSpan(AbstractContextManager[None]):
    """A span that is current inside; cheaper than the API's two generators, and it never takes an error's message."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> None:
        self._token = otel_context.attach(trace.set_span_in_context(self._span))

    def __exit__(self, *details: object) -> None:
        otel_context.detach(self._token)
        self._span.end()


class _EnqueueSpan(_CurrentSpan):
    __slots__ = ("_link_only", "_outer")

    def __init__(self, spans: Spans, event: EnqueueStarted) -> None:
        shape = _enqueue_shape(event.queue, event.priority, event.processor)
        attributes: dict[str, Any] = (
            {"messaging.batch.message_count": event.count}
            if event.operation_id is None
            else {"messaging.message.id": event.operation_id}
        )
        self._link_only = event.operation_id is None or event.delay > 0
        self._outer: Token[bool | None] | None = None
        super().__init__(spans.start_here(shape, attributes))

    def __enter__(self) -> None:
        super().__enter__()
        self._outer = _link_only.set(self._link_only)

    def __exit__(self, *details: object) -> None:
        if self._outer is not None:
            _link_only.reset(self._outer)
        if isinstance(details[1], Exception):
            _mark_error(self._span, type(details[1]).__name__)
        super().__exit__(*details)


class _AttemptSpan(_CurrentSpan):
    __slots__ = ("_operation", "_running")

    def __init__(self, spans: Spans, event: AttemptStarted, running: dict[int, tuple[OperationInfo, Span]]) -> None:
        self._operation = operation = event.operation
        self._running = running
        callback = operation.kind == KIND_CALLBACK
        shape = _attempt_shape(
            operation.queue,
            operation.priority,
            operation.processor,
            operation.attempt,
            is_async=operation.is_async,
            callback=callback,
        )
        attributes = {"messaging.message.id": operation.operation_id, "queue_system.wait_seconds": round(event.wait, 6)}
        creation = _span_context(operation.headers)
        previous = _span_context({"traceparent": operation.previous_trace}) if operation.previous_trace else None
        parent = creation
        if operation.attempt > 1 or previous is not None or LINK_ONLY in operation.headers:
            parent = None
        links = [one for one in (None if callback and parent else creation, previous) if one is not None]
        # Not a child of what is current: that is the span, if any, in which the worker was started.
        super().__init__(spans.start(shape, attributes, parent, links))

    def __enter__(self) -> None:
        super().__enter__()
        if self._span.is_recording():
            self._running[id(self._operation)] = self._operation, self._span

    def __exit__(self, *details: object) -> None:
        self._running.pop(id(self._operation), None)
        super().__exit__(*details)


def current_ids() -> dict[str, str]:
    """``trace_id`` and ``span_id`` of the current span, sampled or not; empty without one. Not to be changed."""
    span = trace.get_current_span()
    return span.ids if type(span) is LightSpan else _ids(span.get_span_context())


def exemplar() -> dict[str, str] | None:
    """``trace_id`` and ``span_id`` for an exemplar, when the current span is sampled and so can be looked up."""
    if not otel_context.get_current():  # nobody traces: most often, and quicker than to ask for the span
        return None
    span = trace.get_current_span()
    if type(span) is LightSpan:
        return span.ids
    if span is trace.INVALID_SPAN:
        return None
    context = span.get_span_context()
    return _ids(context) if context.trace_flags & TraceFlags.SAMPLED and context.is_valid else None


def _ids(context: SpanContext) -> dict[str, str]:
    if not context.is_valid:
        return {}
    return {"trace_id": format(context.trace_id, "032x"), "span_id": format(context.span_id, "016x")}


@lru_cache(_SHAPES_KEPT)
def _enqueue_shape(queue: str, priority: str, processor: str) -> Shape:
    attributes = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.destination.name": queue,
        "queue_system.priority": priority,
        "queue_system.processor": processor,
    }
    return Shape(f"enqueue {queue}", SpanKind.PRODUCER, attributes)


@lru_cache(_SHAPES_KEPT)
def _attempt_shape(queue: str, priority: str, processor: str, attempt: int, *, is_async: bool, callback: bool) -> Shape:
    attributes = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": queue,
        "queue_system.priority": priority,
        "queue_system.processor": processor,
        "queue_system.attempt": attempt,
        "queue_system.mode": "async" if is_async else "sync",
    }
    if callback:
        return Shape(f"callback {processor}", SpanKind.INTERNAL, attributes)
    return Shape(f"process {queue}", SpanKind.CONSUMER, attributes)


def _on_pool_started(event: PoolStarted) -> None:
    """In the pool's thread, where the process span is current."""
    trace.get_current_span().set_attribute("queue_system.pool_wait_seconds", round(event.waited, 6))


def _finish(span: Span, event: AttemptFinished) -> None:
    """Outcome, error and events. Never the error's message: it may quote what the entity holds."""
    span.set_attribute("queue_system.outcome", event.outcome or event.next)
    if event.error_type:
        _mark_error(span, event.error_type)
    if event.outcome == "timeout":
        span.add_event("timeout", {"queue_system.duration_seconds": round(event.duration, 6)})
    elif event.outcome == "exhausted":
        span.add_event("pool exhausted")
    if event.next == "retry":
        span.add_event(
            "retry scheduled", {"queue_system.delay_seconds": event.delay, "queue_system.reason": event.reason}
        )
    elif event.next == "failed":
        span.add_event("moved to failures", {"queue_system.reason": event.reason})


def _mark_error(span: Span, error_type: str) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR, error_type))


def _inject(headers: dict[str, str]) -> None:
    """What the propagator does, at less cost in the common case."""
    span = trace.get_current_span()
    if type(span) is LightSpan and not span.trace_state:
        headers["traceparent"] = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.flags:02x}"
    elif span is not trace.INVALID_SPAN:
        _propagator.inject(headers)


def _span_context(headers: dict[str, str]) -> SpanContext | None:
    """What the propagator finds, at less cost in the common case; None without a valid one."""
    traceparent = headers.get("traceparent")
    if not traceparent:
        return None
    plain = None if "tracestate" in headers else _PLAIN_TRACEPARENT.fullmatch(traceparent)
    if plain is None:
        context = trace.get_current_span(_propagator.extract(headers)).get_span_context()
    else:
        trace_id, span_id, flags = plain.groups()
        context = SpanContext(
            int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
        )
    return context if context.is_valid else None


def _continuing(parent: SpanContext) -> otel_context.Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), otel_context.Context())
