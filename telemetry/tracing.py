"""Spans around every operation, from enqueue through each attempt to the callback.

| span | kind | parent | links |
|---|---|---|---|
| ``enqueue {queue}`` | producer | the caller's span | |
| ``process {queue}``, first attempt of a single immediate operation | consumer | the enqueue span | the enqueue span |
| ``process {queue}``, otherwise | consumer | none: a new trace | the enqueue span, the previous attempt |
| ``callback {name}``, first attempt | internal | the process span that caused it | |
| ``callback {name}``, later attempts | internal | none: a new trace | that process span, the previous attempt |

A retry, a delayed or a batched operation starts a trace of its own, so that a trace stays of a size that one can look
at. No payload and no result is ever put into a span.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from queue_system.hooks import AttemptFinished, AttemptStarted, EnqueueStarted, Event, Hooks, OperationInfo

SYSTEM: Final = "queue_system"
LINK_ONLY: Final = "trace-link-only"
"""Header of an operation whose attempts do not continue the producer's trace: it was delayed, or one of a batch."""

_propagator = TraceContextTextMapPropagator()
_link_only: ContextVar[bool] = ContextVar("queue_system_link_only", default=False)


class TracingListener(Hooks):
    """Makes spans with the application's tracer provider. Without one they cost next to nothing.

    Args:
        provider: None for the global one, whatever it will be by then.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._tracer = trace.get_tracer("queue_system", tracer_provider=provider)

    @contextmanager
    def enqueue_context(self, event: EnqueueStarted) -> Iterator[None]:
        """See `Hooks`."""
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
        token = _link_only.set(event.operation_id is None or event.delay > 0)
        try:
            with self._tracer.start_as_current_span(
                f"enqueue {event.queue}", kind=SpanKind.PRODUCER, attributes=attributes, record_exception=False
            ) as span:
                try:
                    yield
                except Exception as error:
                    span.set_attribute("error.type", type(error).__name__)
                    span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                    raise
        finally:
            _link_only.reset(token)

    def attempt_context(self, event: AttemptStarted) -> AbstractContextManager[None]:
        """See `Hooks`."""
        return self._attempt_span(event)

    def inject(self, headers: dict[str, str]) -> None:
        """See `Hooks`."""
        _propagator.inject(headers)
        if headers and _link_only.get():
            headers[LINK_ONLY] = "1"

    def on_event(self, event: Event) -> None:
        """See `Hooks`."""
        if isinstance(event, AttemptFinished):
            span = trace.get_current_span()
            if span.is_recording():
                _finish(span, event)

    @contextmanager
    def _attempt_span(self, event: AttemptStarted) -> Iterator[None]:
        operation = event.operation
        creation = _span_context(operation.headers)
        callback = operation.kind == "callback"
        continues = creation is not None and operation.attempt == 1 and LINK_ONLY not in operation.headers
        links = [Link(context) for context in _links(operation, creation, as_child=callback and continues)]
        with self._tracer.start_as_current_span(
            f"callback {operation.processor}" if callback else f"process {operation.queue}",
            context=_parent(creation) if continues and creation is not None else otel_context.Context(),
            kind=SpanKind.INTERNAL if callback else SpanKind.CONSUMER,
            attributes=_attributes(event),
            links=links,
            record_exception=False,  # its message may hold what an entity holds
            set_status_on_exception=False,
        ):
            yield


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


def _finish(span: Span, event: AttemptFinished) -> None:
    """Outcome, error and events, written while the span is current."""
    span.set_attribute("queue_system.outcome", event.outcome or event.next)
    if event.error_type:
        span.set_attribute("error.type", event.error_type)
        span.set_status(Status(StatusCode.ERROR, event.error_type))
    if event.outcome == "timeout":
        span.add_event("timeout", {"queue_system.duration_seconds": event.duration})
    elif event.outcome == "exhausted":
        span.add_event("pool exhausted")
    if event.next == "retry":
        span.add_event(
            "retry scheduled", {"queue_system.delay_seconds": event.delay, "queue_system.reason": event.reason}
        )
    elif event.next == "failed":
        span.add_event("moved to failures", {"queue_system.reason": event.reason})
    elif event.next == "dropped":
        span.add_event("lease lost")


def _links(operation: OperationInfo, creation: SpanContext | None, *, as_child: bool) -> Iterator[SpanContext]:
    if creation is not None and not as_child:
        yield creation
    previous = _span_context({"traceparent": operation.previous_trace})
    if previous is not None and operation.attempt > 1:
        yield previous


def _span_context(headers: dict[str, str]) -> SpanContext | None:
    if not headers.get("traceparent"):
        return None
    context = trace.get_current_span(_propagator.extract(headers)).get_span_context()
    return context if context.is_valid else None


def _parent(creation: SpanContext) -> otel_context.Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(creation), otel_context.Context())
