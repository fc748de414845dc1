"""Spans that are encoded by hand are, byte for byte, what the library makes of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from telemetry import otlp
from telemetry.otlp import encode, encode_span
from telemetry.otlp_http import HttpExporter, http_exporter, takes_bytes
from telemetry.spans import LightProvider, LightSpan, Shape, light_tracer

STATE = TraceState([("vendor", "a=b"), ("other", "1")])
REMOTE = SpanContext(0xA << 120, 0xB, is_remote=True, trace_flags=TraceFlags(1))
LOCAL = SpanContext(0xC << 60, 0xD << 56, is_remote=False, trace_flags=TraceFlags(1), trace_state=STATE)
COMMON = {"messaging.system": "queue_system", "queue_system.attempt": 1, "share": 0.5, "on": True, "grüße": "日本"}
ODD_TEXTS = ["", "a", "x" * 125, "x" * 126, "x" * 127, "x" * 128, "ü" * 63, "日" * 9000, "\x00\n"]
NUMBERS = [0, 1, 127, 128, -1, 2**63 - 1, -(2**63), 0.0, -0.0, 1e-300, math.inf, True, False]


class Maker:
    """Makes light spans, and keeps those that have ended."""

    def __init__(self) -> None:
        self.ended: list[LightSpan] = []
        self.provider = LightProvider(resource=Resource({"service.name": "läden"}, "https://schema"), sampler=ALWAYS_ON)
        tracer = light_tracer(self.provider, ALWAYS_ON, lambda _: False, self.ended.append)
        assert tracer is not None
        self.tracer = tracer

    def make(
        self,
        change: Callable[[LightSpan], object] = lambda _: None,
        *,
        parent: SpanContext | None = None,
        links: Sequence[SpanContext] = (),
        kind: SpanKind = SpanKind.CONSUMER,
    ) -> LightSpan:
        span = self.tracer.start(Shape("process mail", kind, COMMON), {"messaging.message.id": "id-1"}, parent, links)
        assert isinstance(span, LightSpan)
        change(span)
        span.end()
        return span


@pytest.fixture
def maker() -> Maker:
    return Maker()


def by_library(*spans: LightSpan) -> Any:
    return encode_spans([span.readable() for span in spans])


def parsed(request: bytes) -> Any:
    return ExportTraceServiceRequest.FromString(request)


def same(span: LightSpan) -> None:
    """By hand, not by way of the library, and equal to what that makes."""
    expected = by_library(span)
    assert encode_span(span) == expected.resource_spans[0].scope_spans[0].spans[0].SerializeToString()
    assert parsed(encode([span])) == expected


@pytest.mark.parametrize("kind", SpanKind)
@pytest.mark.parametrize("parent", [None, REMOTE, LOCAL], ids=["root", "remote", "local with a state"])
@pytest.mark.parametrize("links", [(), (REMOTE,), (LOCAL, REMOTE)], ids=["unlinked", "one link", "two links"])
def test_kinds_parents_and_links(
    maker: Maker, kind: SpanKind, parent: SpanContext | None, links: Sequence[SpanContext]
) -> None:
    same(maker.make(parent=parent, links=links, kind=kind))


@pytest.mark.parametrize("value", [*ODD_TEXTS, *NUMBERS])
def test_attributes_of_every_plain_type(maker: Maker, value: Any) -> None:
    same(maker.make(lambda span: span.set_attribute("key", value)))
    same(maker.make(lambda span: span.add_event("event", {"key": value})))


@pytest.mark.parametrize("name", [text for text in ODD_TEXTS if text])
def test_names_of_every_length(maker: Maker, name: str) -> None:
    same(maker.make(lambda span: (span.update_name(name), span.add_event(name), span.set_attribute(name, name))))


@pytest.mark.parametrize(
    "change",
    [
        lambda span: span.update_name(""),
        lambda span: span.set_attribute("messaging.system", "mine"),
        lambda span: span.set_attributes({"a": "b", "share": 7}),
        lambda span: span.set_status(Status(StatusCode.ERROR, "LookupError")),
        lambda span: span.set_status(StatusCode.ERROR),
        lambda span: span.set_status(StatusCode.OK),
        lambda span: span.add_event("at once", timestamp=0),
        lambda span: span.add_event("then", {"a": 1, "b": "ü" * 300}, timestamp=1_700_000_000_000_000_000),
        lambda span: span.add_link(REMOTE),
        lambda span: span.add_link(LOCAL, {"why": "ü", "n": -5}),
        lambda span: [span.set_attribute(f"key {number}", number) for number in range(300)],
        lambda span: [span.add_event(f"event {number}") for number in range(300)],
        lambda span: [span.add_link(REMOTE, {"n": number}) for number in range(300)],
        lambda span: span.add_event("full", {f"key {number}": number for number in range(300)}),
    ],
)
def test_what_the_api_may_change(maker: Maker, change: Callable[[LightSpan], object]) -> None:
    same(maker.make(change, parent=REMOTE, links=[REMOTE]))


@pytest.mark.parametrize(
    "value", [[1, 2], ["a", "ü"], [], (True, 1.5), b"\xff", None, {"a": [1]}, "\ud800", 2**63, -(2**63) - 1], ids=repr
)
def test_the_library_encodes_what_is_not_common(maker: Maker, value: Any) -> None:
    span = maker.make(lambda span: span.set_attribute("key", value))
    with pytest.raises(otlp._UNCOMMON):
        encode_span(span)
    assert parsed(encode([span])) == by_library(span)


def test_a_batch_of_ours_and_others(maker: Maker) -> None:
    odd = maker.make(lambda span: span.set_attribute("key", [1, 2]))
    ours = [maker.make(parent=REMOTE) for _ in range(300)]
    theirs = maker.provider.get_tracer("app", "1").start_span("theirs")
    theirs.end()
    request = parsed(encode([theirs, *ours[:100], odd, *ours[100:]]))
    assert [scope.scope.name for one in request.resource_spans for scope in one.scope_spans] == [
        "queue_system", "app", "queue_system",
    ]  # fmt: skip
    assert {one.resource.attributes[0].value.string_value for one in request.resource_spans} == {"läden"}
    assert {one.schema_url for one in request.resource_spans} == {"https://schema"}
    names = [span.name for one in request.resource_spans for scope in one.scope_spans for span in scope.spans]
    assert names == ["process mail"] * 300 + ["theirs", "process mail"]
    assert parsed(encode(ours)) == by_library(*ours)


def test_an_empty_batch_is_an_empty_request() -> None:
    assert encode([]) == b""


class Sent:
    def __init__(self, *, success: bool) -> None:
        self.success = success


class Library:
    """As the HTTP exporter of the library."""

    def __init__(self, *, success: bool = True) -> None:
        self._client = self
        self._max_request_size = 10_000
        self._shutdown = False
        self.result = Sent(success=success)
        self.bodies: list[bytes] = []
        self.refused: list[list[str]] = []

    def export(self, what: Any) -> Any:
        if isinstance(what, bytes):
            self.bodies.append(what)
            return self.result
        self.refused.append([span.name for span in what])
        return SpanExportResult.FAILURE


@pytest.mark.parametrize("success", [True, False])
def test_the_librarys_client_sends_what_we_encode(maker: Maker, success: bool) -> None:
    library, spans = Library(success=success), [maker.make(), maker.make()]
    exporter = HttpExporter(library)
    assert exporter.export(spans) is (SpanExportResult.SUCCESS if success else SpanExportResult.FAILURE)
    assert [parsed(body) for body in library.bodies] == [by_library(*spans)]


def test_the_library_refuses_what_is_too_large_and_what_comes_too_late(maker: Maker) -> None:
    library = Library()
    exporter = HttpExporter(library)
    assert (
        exporter.export([maker.make(lambda span: span.set_attribute("key", "x" * 10_000))]) is SpanExportResult.FAILURE
    )
    library._shutdown = True
    assert exporter.export([maker.make()]) is SpanExportResult.FAILURE
    assert (library.bodies, library.refused) == ([], [["process mail"]] * 2)


def test_a_library_without_such_a_client_encodes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(http_exporter("http://127.0.0.1:1"), HttpExporter)

    class Older:
        def __init__(self, endpoint: str) -> None:
            self.endpoint = endpoint

    monkeypatch.setattr("telemetry.otlp_http.OTLPSpanExporter", Older)
    exporter: Any = http_exporter("http://127.0.0.1:1/")
    assert (type(exporter), exporter.endpoint) == (Older, "http://127.0.0.1:1/v1/traces")
    assert not takes_bytes(exporter)
