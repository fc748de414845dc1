"""Spans of our own, a fraction of the SDK's in cost: for operations, in a process whose pipeline is ours.

An application's processors, custom samplers and limits are served by the SDK's spans only. So `light_tracer` makes
none where one of those is set up, and `LightProvider` forgets its own as soon as somebody adds a processor.
"""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from threading import Lock
from time import time_ns
from typing import Any, Final, Protocol

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk import environment_variables as variables
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, DEFAULT_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from queue_system.version import __version__

logger = logging.getLogger("opentelemetry.sdk.trace")  # where the SDK's spans say the same

SCOPE: Final = InstrumentationScope("queue_system", __version__)
"""Who makes these spans."""

LIMIT: Final = 128
"""Attributes, events and links of a span, as the specification has it by default."""

LIMIT_VARIABLES: Final = (
    variables.OTEL_ATTRIBUTE_COUNT_LIMIT,
    variables.OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT,
    variables.OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT,
    variables.OTEL_LINK_ATTRIBUTE_COUNT_LIMIT,
    variables.OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT,
    variables.OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT,
    variables.OTEL_SPAN_EVENT_COUNT_LIMIT,
    variables.OTEL_SPAN_LINK_COUNT_LIMIT,
)
SDK_METRICS_VARIABLE: Final = "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED"
"""The SDK's metrics about its own spans; not known to every version that we work with."""

_PLAIN: Final = frozenset({str, int, float, bool})
"""Types of attributes that need no cleaning."""

_RANDOM: Final[int] = getattr(TraceFlags, "RANDOM_TRACE_ID", 0)
_UNSET: Final = Status(StatusCode.UNSET)
_LOW_64_BITS: Final = (1 << 64) - 1

Decide = Callable[[SpanContext | None, int], bool]
"""Whether a span with this parent (None for a root) and this trace id is sampled."""


class Shape:
    """What many spans have in common, made once: name, kind and attributes."""

    __slots__ = ("attributes", "encoded", "kind", "name")

    def __init__(self, name: str, kind: SpanKind, attributes: Mapping[str, Any]) -> None:
        self.name = name
        self.kind = kind
        self.attributes = attributes
        self.encoded: Any = None
        """Kept here by whoever encodes it."""


class Spans(Protocol):
    """Starts spans; attributes are those of the shape and `attributes`, of types that need no cleaning."""

    def start_here(self, shape: Shape, attributes: dict[str, Any]) -> Span:
        """Start a child of the current span."""

    def start(
        self, shape: Shape, attributes: dict[str, Any], parent: SpanContext | None, links: Sequence[SpanContext]
    ) -> Span:
        """Start a child of `parent`, or a root, whatever is current."""


class LightSpan(Span):
    """A sampled span; see the API. It goes to `LightTracer.take` when it ends; any thread may use it."""

    __slots__ = (
        "_context",
        "_ids",
        "_lock",
        "_own",
        "_shape",
        "_tracer",
        "dropped_attributes",
        "end_time",
        "events",
        "flags",
        "links",
        "name",
        "parent",
        "span_id",
        "start_time",
        "status",
        "trace_id",
    )

    def __init__(
        self,
        tracer: LightTracer,
        shape: Shape,
        attributes: dict[str, Any],
        parent: SpanContext | None,
        links: Sequence[SpanContext],
        trace_id: int,
        flags: int,
    ) -> None:
        self._tracer = tracer
        self._shape = shape
        self._own = attributes
        self._context: SpanContext | None = None
        self._ids: dict[str, str] | None = None
        self._lock = Lock()
        self.name = shape.name
        self.parent = parent
        self.trace_id = trace_id
        self.span_id = tracer.new_span_id()
        self.flags = flags
        self.links: Sequence[Link] = [Link(one) for one in links] if links else ()
        self.events: Sequence[Event] = ()
        self.status = _UNSET
        self.dropped_attributes = 0
        self.end_time: int | None = None
        self.start_time = time_ns()

    @property
    def kind(self) -> SpanKind:
        """See the SDK."""
        return self._shape.kind

    @property
    def attributes(self) -> Mapping[str, Any]:
        """See the SDK."""
        with self._lock:
            return {**self._shape.attributes, **self._own}

    @property
    def shape(self) -> Shape:
        """What it has in common with others; an attribute of the shape is none of `own`."""
        return self._shape

    @property
    def own(self) -> Iterable[tuple[str, Any]]:
        """Its own attributes; to be asked for when it has ended."""
        return self._own.items()

    @property
    def resource(self) -> Resource:
        """See the SDK."""
        return self._tracer.provider.resource

    @property
    def ids(self) -> dict[str, str]:
        """``trace_id`` and ``span_id`` as text; always the same dictionary, not to be changed."""
        if self._ids is None:
            self._ids = {"trace_id": format(self.trace_id, "032x"), "span_id": format(self.span_id, "016x")}
        return self._ids

    @property
    def trace_state(self) -> TraceState | None:
        """The parent's, as the SDK's samplers have it."""
        return None if self.parent is None else self.parent.trace_state

    def get_span_context(self) -> SpanContext:
        """See the API."""
        if self._context is None:
            self._context = SpanContext(
                self.trace_id,
                self.span_id,
                is_remote=False,
                trace_flags=TraceFlags(self.flags),
                trace_state=self.trace_state,
            )
        return self._context

    def is_recording(self) -> bool:
        """See the API."""
        return self.end_time is None

    def set_attribute(self, key: str, value: Any) -> None:
        """See the API."""
        if not (type(value) in _PLAIN and type(key) is str and key):
            self.set_attributes({key: value})
            return
        with self._lock:
            if self.end_time is None:
                self._put(key, value)
                return
        self._too_late()

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """See the API."""
        cleaned = BoundedAttributes(None, attributes)
        with self._lock:
            if self.end_time is None:
                self.dropped_attributes += cleaned.dropped
                for key, value in cleaned.items():
                    self._put(key, value)
                return
        self._too_late()

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """See the API."""
        event = Event(name, BoundedAttributes(LIMIT, attributes), timestamp)
        with self._lock:
            if self.end_time is None:
                self.events = _appended(self.events, event)
                return
        self._too_late()

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """See the API."""
        if not context.is_valid and not attributes and not context.trace_state:
            return
        link = Link(context, BoundedAttributes(LIMIT, attributes))
        with self._lock:
            if self.end_time is None:
                self.links = _appended(self.links, link)
                return
        self._too_late()

    def update_name(self, name: str) -> None:
        """See the API."""
        with self._lock:
            if self.end_time is None:
                self.name = name
                return
        self._too_late()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """See the API. What is OK stays so, and nothing becomes unset."""
        new = Status(status, description) if isinstance(status, StatusCode) else status
        with self._lock:
            if self.end_time is None:
                if self.status.status_code is not StatusCode.OK and new.status_code is not StatusCode.UNSET:
                    self.status = new
                return
        self._too_late()

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """See the API; for an application that wants its exceptions in its spans. We never call it."""
        kind = type(exception)
        told = {
            "exception.type": kind.__qualname__
            if kind.__module__ == "builtins"
            else f"{kind.__module__}.{kind.__qualname__}",
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", told | dict(attributes or {}), timestamp)

    def end(self, end_time: int | None = None) -> None:
        """See the API."""
        with self._lock:
            first = self.end_time is None
            if first:
                self.end_time = time_ns() if end_time is None else end_time
        if first:
            self._tracer.take(self)
        else:
            self._too_late()

    def readable(self) -> ReadableSpan:
        """The same for what takes the SDK's spans only."""
        attributes = BoundedAttributes(LIMIT, self.attributes)
        attributes.dropped = self.dropped_attributes
        return ReadableSpan(
            self.name,
            context=self.get_span_context(),
            parent=self.parent,
            resource=self.resource,
            attributes=attributes,
            events=self.events,
            links=self.links,
            kind=self.kind,
            status=self.status,
            start_time=self.start_time,
            end_time=self.end_time,
            instrumentation_scope=SCOPE,
        )

    def _too_late(self) -> None:
        # Without the lock: what handles logs may well look at the current span.
        logger.warning("Changing or ending an ended span.")

    def _put(self, key: str, value: Any) -> None:
        """The newest is last, and the oldest goes when there is no room."""
        common = self._shape.attributes
        if key in common or len(common) + len(self._own) >= LIMIT:
            self._own = {**common, **self._own}
            self._shape = Shape(self._shape.name, self._shape.kind, {})
        own = self._own
        own.pop(key, None)
        if len(own) >= LIMIT:
            del own[next(iter(own))]
            self.dropped_attributes += 1
        own[key] = value


AnySpan = LightSpan | ReadableSpan


class LightExporter(SpanExporter):
    """An exporter that takes light spans as they are; any other gets the SDK's."""

    def export(self, spans: Sequence[AnySpan]) -> SpanExportResult:
        """See the SDK."""
        raise NotImplementedError


def sdk_spans(spans: Sequence[AnySpan]) -> list[ReadableSpan]:
    """The same spans for what takes the SDK's only."""
    return [span.readable() if isinstance(span, LightSpan) else span for span in spans]


class LightTracer:
    """Makes light spans, and spans that only carry their ids when they are not sampled.

    Args:
        provider: has the resource, and the generator of ids.
        decide: what the provider's sampler would decide.
        keep: whether a span with these attributes is sampled in any case.
        take: called with each span that ends.
    """

    def __init__(
        self,
        provider: TracerProvider,
        decide: Decide,
        keep: Callable[[Mapping[str, Any]], bool],
        take: Callable[[LightSpan], None],
    ) -> None:
        self.provider = provider
        self.take = take
        self.new_span_id = provider.id_generator.generate_span_id
        self._new_trace_id = provider.id_generator.generate_trace_id
        is_random = getattr(provider.id_generator, "is_trace_id_random", None)
        self._root_flags = _RANDOM if is_random is not None and is_random() else 0
        self._decide = decide
        self._keep = keep

    def start_here(self, shape: Shape, attributes: dict[str, Any]) -> Span:
        """See `Spans`."""
        current = trace.get_current_span().get_span_context()
        return self.start(shape, attributes, current if current.is_valid else None, ())

    def start(
        self, shape: Shape, attributes: dict[str, Any], parent: SpanContext | None, links: Sequence[SpanContext]
    ) -> Span:
        """See `Spans`."""
        if parent is None:
            trace_id, flags = self._new_trace_id(), self._root_flags
        else:
            trace_id, flags = parent.trace_id, parent.trace_flags & _RANDOM
        if self._decide(parent, trace_id) or self._keep(shape.attributes):
            return LightSpan(self, shape, attributes, parent, links, trace_id, flags | TraceFlags.SAMPLED)
        return NonRecordingSpan(
            SpanContext(
                trace_id,
                self.new_span_id(),
                is_remote=False,
                trace_flags=TraceFlags(flags),
                trace_state=None if parent is None else parent.trace_state,
            )
        )


class LightProvider(TracerProvider):
    """A tracer provider whose `light`, if any, makes the spans of operations."""

    light: LightTracer | None = None

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        """See the SDK. The processor must see every span: there are no more light ones, which it would not."""
        super().add_span_processor(span_processor)
        self.light = None


def light_tracer(
    provider: TracerProvider,
    sampler: Sampler,
    keep: Callable[[Mapping[str, Any]], bool],
    take: Callable[[LightSpan], None],
) -> LightTracer | None:
    """A tracer that samples as `sampler` does; None where only the SDK's spans do what is asked for."""
    decide = shortcut(sampler)
    set_up = any(os.environ.get(name, "").strip() for name in LIMIT_VARIABLES)
    counted = os.environ.get(SDK_METRICS_VARIABLE, "").strip().lower() == "true"
    on = isinstance(provider.get_tracer(SCOPE.name, SCOPE.version), Tracer)
    return (
        LightTracer(provider, decide, keep, take) if decide is not None and on and not set_up and not counted else None
    )


def shortcut(sampler: Sampler) -> Decide | None:
    """What this sampler of the SDK decides, at little cost; None for a sampler that is not known to look at no more."""
    if sampler is ALWAYS_ON:
        return lambda _parent, _trace_id: True
    if sampler is ALWAYS_OFF:
        return lambda _parent, _trace_id: False
    if type(sampler) is TraceIdRatioBased:
        bound = sampler.bound
        return lambda _parent, trace_id: trace_id & _LOW_64_BITS < bound
    root = _root_of(sampler)
    decide = None if root is None else shortcut(root)
    if decide is None:
        return None
    return lambda parent, trace_id: decide(None, trace_id) if parent is None else bool(parent.trace_flags & 1)


def _root_of(sampler: Sampler) -> Sampler | None:
    """The root sampler of one that does what the parent's flag says, of whatever kind the parent is."""
    # Of the SDK's own classes only; what a parent's flag leads to is the same as in its default sampler.
    if not isinstance(sampler, ParentBased) or type(sampler).__module__ != ParentBased.__module__:
        return None
    known, default = vars(sampler), vars(DEFAULT_ON)
    if known.keys() != default.keys() or any(known[name] is not default[name] for name in known if name != "_root"):
        return None
    root: Sampler | None = known.get("_root")
    return root


def _appended(items: Sequence[Any], item: Any) -> Sequence[Any]:
    """With one more, and the oldest counted and gone when there is no room."""
    if not isinstance(items, BoundedList):
        items = BoundedList.from_seq(LIMIT, items)
    items.append(item)
    return items
