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

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
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
from queue_system.version import __version__

SYSTEM: Final = "queue_system"
LINK_ONLY: Final = "trace-link-only"
"""Header of an operation whose attempts do not continue the producer's trace: it was delayed, or one of a batch."""

_propagator = TraceContextTextMapPropagator()
_link_only: ContextVar[bool | None] = ContextVar("queue_system_link_only", default=None)
"""Inside an enqueue call: whether its operations are linked only. None outside."""


class TracingListener(Hooks):
    """Makes spans with the application's tracer provider. Without one they cost next to nothing.

    Args:
        provider: None for the global one, whatever it will be by then.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("queue_system", __version__, tracer_provider=provider)
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
        return NO_CONTEXT if self._is_off() else _EnqueueSpan(self._tracer, event)

    def attempt_context(self, event: AttemptStarted) -> AbstractContextManager[None]:
        """See `Hooks`."""
        return NO_CONTEXT if self._is_off() else _AttemptSpan(self._tracer, event, self._running)

    def _is_off(self) -> bool:
        """Whether nobody has set up tracing: then not even spans that do nothing are made.

        Looked at every tenth of a second only: as long as there is no provider, asking for it reads the environment,
        about a microsecond. A provider that was set stays.
        """
        if self._off and (now := time.monotonic()) >= self._look_again:
            self._look_again = now + 0.1
            self._off = isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        return self._off

    def inject(self, headers: dict[str, str]) -> None:
        """See `Hooks`."""
        link_only = _link_only.get()
        if link_only is None and current_operation.get() is None:
            return  # what is current here, if anything, is the span in which the worker was started
        _propagator.inject(headers)
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

    def __init__(self, tracer: trace.Tracer, event: EnqueueStarted) -> None:
        attributes: dict[str, Any] = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "enqueue",
            "messaging.operation.type": "send",
            "messaging.destination.name": event.queue,
            "queue_system.priority": event.priority,
            "queue_system.processor": event.processor,
        }
        if event.operation_id is not None:
            attributes["messaging.message.id"] = event.operation_id
        else:
            attributes["messaging.batch.message_count"] = event.count
        self._link_only = event.operation_id is None or event.delay > 0
        self._outer: Token[bool | None] | None = None
        super().__init__(tracer.start_span(f"enqueue {event.queue}", kind=SpanKind.PRODUCER, attributes=attributes))

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

    def __init__(
        self, tracer: trace.Tracer, event: AttemptStarted, running: dict[int, tuple[OperationInfo, Span]]
    ) -> None:
        self._operation = operation = event.operation
        self._running = running
        creation = _span_context(operation.headers)
        previous = _span_context({"traceparent": operation.previous_trace})
        callback = operation.kind == KIND_CALLBACK
        parent = creation
        if operation.attempt > 1 or previous is not None or LINK_ONLY in operation.headers:
            parent = None
        links = [Link(one) for one in (None if callback and parent else creation, previous) if one is not None]
        super().__init__(
            tracer.start_span(
                f"callback {operation.processor}" if callback else f"process {operation.queue}",
                # Not what is current: that is the span, if any, in which the worker was started.
                context=otel_context.Context() if parent is None else _continuing(parent),
                kind=SpanKind.INTERNAL if callback else SpanKind.CONSUMER,
                attributes=_attributes(event),
                links=links,
            )
        )

    def __enter__(self) -> None:
        super().__enter__()
        if self._span.is_recording():
            self._running[id(self._operation)] = self._operation, self._span

    def __exit__(self, *details: object) -> None:
        self._running.pop(id(self._operation), None)
        super().__exit__(*details)


def current_ids() -> dict[str, str]:
    """``trace_id`` and ``span_id`` of the current span, sampled or not; empty without one."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {"trace_id": format(context.trace_id, "032x"), "span_id": format(context.span_id, "016x")}


def exemplar() -> dict[str, str] | None:
    """``trace_id`` and ``span_id`` for an exemplar, when the current span is sampled and so can be looked up."""
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return {"trace_id": format(context.trace_id, "032x"), "span_id": format(context.span_id, "016x")}


def _attributes(event: AttemptStarted) -> dict[str, Any]:
    operation = event.operation
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": operation.queue,
        "messaging.message.id": operation.operation_id,
        "queue_system.priority": operation.priority,
        "queue_system.processor": operation.processor,
        "queue_system.attempt": operation.attempt,
        "queue_system.wait_seconds": round(event.wait, 6),
        "queue_system.mode": "async" if operation.is_async else "sync",
    }


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


def _span_context(headers: dict[str, str]) -> SpanContext | None:
    if not headers.get("traceparent"):
        return None
    context = trace.get_current_span(_propagator.extract(headers)).get_span_context()
    return context if context.is_valid else None


def _continuing(parent: SpanContext) -> otel_context.Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(parent), otel_context.Context())
