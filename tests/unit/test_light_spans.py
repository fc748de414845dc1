"""Light spans: what they record is what the SDK's would, and where the SDK's are needed there are none."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from queue_system.events import AttemptFinished, AttemptStarted, EnqueueStarted, OperationInfo
from telemetry import SpanPipeline, TracingListener
from telemetry.export import RetrySampler, is_retry
from telemetry.spans import LIMIT_VARIABLES, LightProvider, LightSpan, Shape, light_tracer, shortcut
from telemetry.tracing import _inject, _span_context, current_ids, exemplar

STATE = TraceState([("vendor", "1")])
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROPAGATOR = TraceContextTextMapPropagator()


class Kept(SpanExporter):
    """Keeps what an exporter that knows the SDK's spans only is given."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans += spans
        return SpanExportResult.SUCCESS

    def named(self, name: str) -> ReadableSpan:
        (span,) = [span for span in self.spans if span.name == name]
        return span


class Piped:
    """A pipeline, and a listener that uses it."""

    def __init__(self, **options: Any) -> None:
        self.kept = Kept()
        self.pipeline = SpanPipeline(self.kept, **options)
        self.listener = TracingListener(self.pipeline.provider)

    def attempt(self, *, during: Callable[[], object] = lambda: None, **fields: Any) -> None:
        values: dict[str, Any] = {"attempt": 1, "headers": {}} | fields
        operation = OperationInfo("id", "mail", "low", "send", "operation", is_async=True, **values)
        with self.listener.attempt_context(AttemptStarted(operation, 0.5)):
            during()
            self.listener.on_event(AttemptFinished(operation, "success", 0.1, "done"))

    def ended(self) -> list[ReadableSpan]:
        assert self.pipeline.queue.force_flush(10_000)
        return self.kept.spans


@pytest.fixture
def make_piped() -> Any:
    made: list[Piped] = []

    def make(**options: Any) -> Piped:
        made.append(Piped(**options))
        return made[-1]

    yield make
    for piped in made:
        piped.pipeline.shutdown()


@pytest.fixture
def piped(make_piped: Callable[..., Piped]) -> Piped:
    return make_piped()


def is_light(piped: Piped) -> bool:
    """Whether the spans of operations are light; they are exported in any case."""
    seen: list[bool] = []
    piped.attempt(during=lambda: seen.append(isinstance(trace.get_current_span(), LightSpan)))
    assert piped.ended()[-1].name == "process mail"
    return seen[0]


# What they record


class Fixed(IdGenerator):
    """The same ids for all, so that what has them can be compared."""

    def __init__(self, trace_id: int = 7) -> None:
        self.trace_id = trace_id

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return 8


def started(sampler: Sampler, parent: SpanContext | None, attempt: int, ids: IdGenerator) -> list[trace.Span]:
    """A light span and one of the SDK's, of the same kind."""
    provider = LightProvider(sampler=RetrySampler(sampler), id_generator=ids)
    light = light_tracer(provider, sampler, is_retry, lambda _: None)
    assert light is not None
    shape = Shape("process mail", SpanKind.CONSUMER, {"queue_system.attempt": attempt, "a": "b"})
    context = Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())
    links = [SpanContext(1, 2, is_remote=True)]
    sdk = provider.get_tracer("queue_system").start_span(
        shape.name,
        context=context,
        kind=shape.kind,
        attributes={**shape.attributes, "id": "1"},
        links=[trace.Link(one) for one in links],
    )
    return [light.start(shape, {"id": "1"}, parent, links), sdk]


def recorded(span: Any) -> dict[str, Any]:
    """All that an exporter can see of a span, but when it was."""
    seen: ReadableSpan = span.readable() if isinstance(span, LightSpan) else span._readable_span()
    return {
        "name": seen.name,
        "context": seen.context,
        "parent": seen.parent,
        "kind": seen.kind,
        "attributes": list((seen.attributes or {}).items()),
        "events": [(one.name, dict(one.attributes or {}), one.dropped_attributes) for one in seen.events],
        "links": [(one.context, dict(one.attributes or {})) for one in seen.links],
        "status": (seen.status.status_code, seen.status.description),
        "dropped": (seen.dropped_attributes, seen.dropped_events, seen.dropped_links),
        "resource": seen.resource.attributes,
    }


CHANGES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda span: None,
    "plain attributes": lambda span: [span.set_attribute("x", one) for one in ("a", 1, 1.5, True)],
    "an attribute of the shape": lambda span: span.set_attribute("a", "c"),
    "odd attributes": lambda span: [span.set_attribute(f"x{n}", one) for n, one in enumerate([[1], b"", {"a": 1}])],
    "an object": lambda span: span.set_attribute("x", object()),
    "no key": lambda span: span.set_attribute("", "x"),
    "several": lambda span: span.set_attributes({"a": 1, "x": [1, 2], "": 3}),
    "too many": lambda span: [span.set_attribute(f"x{n}", n) for n in range(200)],
    "too many again": lambda span: [span.set_attribute(f"x{n % 150}", n) for n in range(400)],
    "too many events": lambda span: [span.add_event(f"x{n}", {"n": n}) for n in range(200)],
    "a full event": lambda span: span.add_event("x", {f"x{n}": n for n in range(200)}),
    "too many links": lambda span: [span.add_link(SpanContext(n + 1, 1, is_remote=False)) for n in range(200)],
    "links": lambda span: [
        span.add_link(one, attributes)
        for one in (trace.INVALID_SPAN_CONTEXT, SpanContext(0, 0, is_remote=True, trace_state=STATE))
        for attributes in (None, {"why": "x"})
    ],
    "a name": lambda span: span.update_name("other"),
    "statuses": lambda span: [
        span.set_status(Status(StatusCode.ERROR, "one")),
        span.set_status(StatusCode.ERROR, "two"),
        span.set_status(StatusCode.UNSET),
    ],
    "ok stays": lambda span: [span.set_status(StatusCode.OK), span.set_status(StatusCode.ERROR, "late")],
    "an exception": lambda span: span.record_exception(LookupError("no"), {"more": 1}),
    "an exception of an application": lambda span: span.record_exception(pytest.UsageError("no"), escaped=True),
    "after the end": lambda span: [
        span.end(5),
        span.end(6),
        span.set_attribute("x", 1),
        span.set_attributes({"x": 1}),
        span.add_event("x"),
        span.add_link(SpanContext(1, 1, is_remote=False)),
        span.update_name("x"),
        span.set_status(StatusCode.ERROR),
    ],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_light_span_records_what_the_sdks_does(change: Callable[[Any], object]) -> None:
    light, sdk = started(ALWAYS_ON, SpanContext(5, 6, is_remote=True, trace_state=STATE), 1, Fixed())
    assert isinstance(light, LightSpan)
    for span in (light, sdk):
        assert span.is_recording()
        change(span)
    assert recorded(light) == recorded(sdk)
    assert light.is_recording() is sdk.is_recording()
    assert light.end_time == sdk.end_time


SAMPLERS = [
    ALWAYS_ON,
    ALWAYS_OFF,
    DEFAULT_ON,
    DEFAULT_OFF,
    TraceIdRatioBased(0.5),
    ParentBasedTraceIdRatio(0.5),
    ParentBased(TraceIdRatioBased(0.0)),
    ParentBased(TraceIdRatioBased(1.0)),
]
PARENTS = [
    None,
    *(
        SpanContext(1 << 63, 6, is_remote=remote, trace_flags=TraceFlags(flags), trace_state=STATE)
        for remote in (True, False)
        for flags in (0, 1, 2, 3)
    ),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.get_description())
@pytest.mark.parametrize("parent", PARENTS, ids=lambda one: one and f"{one.is_remote}-{one.trace_flags}")
def test_it_is_sampled_as_the_sdks_is(sampler: Sampler, parent: SpanContext | None) -> None:
    for trace_id in (1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, (1 << 128) - 1):
        for attempt in (1, 2):
            if attempt == 2 and parent is not None:
                continue  # there is no such span: a retry starts a trace
            light, sdk = started(sampler, parent, attempt, Fixed(trace_id))
            assert light.is_recording() is sdk.is_recording()
            assert light.get_span_context() == sdk.get_span_context()


def test_a_root_says_whether_its_id_is_random() -> None:
    light, sdk = started(ALWAYS_ON, None, 1, RandomIdGenerator())
    assert light.get_span_context().trace_flags == sdk.get_span_context().trace_flags


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_threads_that_change_one_span_lose_nothing() -> None:
    light, _ = started(ALWAYS_ON, None, 1, Fixed())

    def change(thread: int) -> None:
        for number in range(10_000):
            light.set_attribute(f"{thread}-{number}", number)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen = light.readable()
    assert (len(seen.attributes) + seen.dropped_attributes, len(seen.attributes)) == (40_003, 128)


def test_the_spans_that_an_application_opens_inside_are_its_children_and_exported_as_well(piped: Piped) -> None:
    def work() -> None:
        app, event = piped.pipeline.provider.get_tracer("app"), EnqueueStarted("next", "low", "send", 1, "id", 0.0)
        with app.start_as_current_span("inside"), piped.listener.enqueue_context(event):
            pass

    piped.attempt(during=work)
    assert len(piped.ended()) == 3
    process, inside, enqueue = (piped.kept.named(name) for name in ("process mail", "inside", "enqueue next"))
    assert inside.parent == process.context
    assert enqueue.parent == inside.context
    assert piped.pipeline.counts.ended == piped.pipeline.counts.exported == 3


# Where there are none


@pytest.mark.parametrize("sampler", [None, *SAMPLERS], ids=lambda sampler: sampler and sampler.get_description())
def test_there_are_light_spans_with_every_sampler_that_the_variables_know(
    make_piped: Callable[..., Piped], sampler: Sampler | None
) -> None:
    assert make_piped(sampler=sampler).pipeline.provider.light is not None


class Own(Sampler):
    """An application's."""

    def should_sample(self, *arguments: Any, **named: Any) -> Any:
        return ALWAYS_ON.should_sample(*arguments, **named)

    def get_description(self) -> str:
        return "own"


class OwnParent(ParentBased):
    pass


class OwnRatio(TraceIdRatioBased):
    pass


@pytest.mark.parametrize(
    "sampler",
    [
        Own(),
        OwnParent(ALWAYS_ON),
        OwnRatio(1.0),
        ParentBased(Own()),
        ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_ON),
        ParentBased(ALWAYS_ON, local_parent_sampled=ALWAYS_OFF),
    ],
)
def test_a_sampler_that_is_not_known_is_asked(make_piped: Callable[..., Piped], sampler: Sampler) -> None:
    assert shortcut(sampler) is None
    assert not is_light(make_piped(sampler=sampler))


@pytest.mark.parametrize("variable", LIMIT_VARIABLES)
def test_the_sdk_keeps_the_limits_that_are_set(
    make_piped: Callable[..., Piped], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    assert is_light(make_piped())
    monkeypatch.setenv(variable, "100")
    assert not is_light(make_piped())


def test_the_sdk_counts_its_spans_where_that_is_asked_for(
    make_piped: Callable[..., Piped], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED", "true")
    assert not is_light(make_piped())


def test_an_sdk_that_is_disabled_stays_so(make_piped: Callable[..., Piped], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    piped = make_piped()
    piped.attempt()
    assert piped.ended() == []


def test_a_processor_that_an_application_adds_sees_every_span(piped: Piped) -> None:
    class Watches(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            seen.append(span.name)

    seen: list[str] = []
    assert is_light(piped)
    piped.pipeline.provider.add_span_processor(Watches())
    assert not is_light(piped)
    assert seen == ["process mail"]
    assert piped.pipeline.counts.exported == 2


def test_an_applications_provider_makes_its_own_spans() -> None:
    listener = TracingListener(TracerProvider())
    with listener.enqueue_context(EnqueueStarted("mail", "low", "send", 1, "id", 0.0)):
        assert not isinstance(trace.get_current_span(), LightSpan)
        assert trace.get_current_span().is_recording()


# Headers and ids


@pytest.mark.parametrize(
    "traceparent",
    [
        TRACEPARENT,
        *(TRACEPARENT[:-2] + flags for flags in ("00", "02", "03", "ff", "0g", "1", "001", "")),
        TRACEPARENT.replace("00-", "ff-", 1),
        TRACEPARENT.replace("00-", "01-", 1),
        TRACEPARENT.replace("00-", "cc-", 1) + "-what comes later",
        TRACEPARENT.upper(),
        TRACEPARENT.replace("-", "_"),
        TRACEPARENT.replace("a", "_"),
        TRACEPARENT.replace("0af7", " 0af"),
        TRACEPARENT.replace("0af7", "\u0660af7"),
        f"  {TRACEPARENT}\t",
        f"{TRACEPARENT}\n",
        f"{TRACEPARENT}-more",
        f"{TRACEPARENT},{TRACEPARENT}",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-0af7651916cd43dd8448eb211c80319c-{'0' * 16}-01",
        "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        "x" * 55,
        "x" * 9000,
        "",
    ],
)
@pytest.mark.parametrize("more", [{}, {"tracestate": "vendor=1"}, {"tracestate": "=,="}, {"tracestate": ""}], ids=str)
def test_headers_are_read_as_the_propagator_reads_them(traceparent: str, more: Mapping[str, str]) -> None:
    headers = {"traceparent": traceparent, **more}
    expected = trace.get_current_span(PROPAGATOR.extract(headers, Context())).get_span_context()
    found = _span_context(headers)
    assert found == (expected if expected.is_valid else None)
    if found is not None:
        assert found.trace_state == expected.trace_state


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF])
@pytest.mark.parametrize("parent", PARENTS)
def test_headers_are_written_as_the_propagator_writes_them(sampler: Sampler, parent: SpanContext | None) -> None:
    for span in (*started(sampler, parent, 1, Fixed()), trace.INVALID_SPAN, NonRecordingSpan(PARENTS[2])):
        expected: dict[str, str] = {}
        found: dict[str, str] = {}
        with trace.use_span(span):
            PROPAGATOR.inject(expected)
            _inject(found)
        assert found == expected


def test_ids_for_logs_and_exemplars(make_piped: Callable[..., Piped]) -> None:
    seen: list[Any] = []
    for sampler in (ALWAYS_ON, ALWAYS_OFF):
        piped = make_piped(sampler=sampler)
        piped.attempt(
            during=lambda: seen.append((trace.get_current_span().get_span_context(), current_ids(), exemplar()))
        )
    for number, (context, ids, shown) in enumerate(seen):
        assert ids == {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        assert shown == (ids if number == 0 else None)
    assert (current_ids(), exemplar()) == ({}, None)


def test_the_attempt_before_is_linked(piped: Piped) -> None:
    piped.attempt(headers={"traceparent": TRACEPARENT}, attempt=2, previous_trace=TRACEPARENT[:-3] + "-00")
    (span,) = piped.ended()
    assert span.parent is None
    assert [link.context.trace_flags for link in span.links] == [1, 0]
    assert (span.attributes or {})["queue_system.outcome"] == "success"
