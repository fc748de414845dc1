"""OTLP's protobuf for batches of spans: light ones by hand, whatever is not common by the library.

An export request is the messages of its spans' resources one after the other, so ours and the library's simply follow
each other. Field numbers are those of ``opentelemetry/proto/trace/v1/trace.proto``; a comment names each field's tag.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import Link, SpanContext, Status, StatusCode

from telemetry.spans import SCOPE, AnySpan, LightSpan, Shape

_BYTE: Final = [bytes([number]) for number in range(128)]
_TEXT: Final = [bytes([0x12, size + 2, 0x0A, size]) for size in range(126)]
"""Before a text of `size` bytes, as the value (2) of an attribute: AnyValue.string_value (1)."""

_UNCOMMON: Final = (LookupError, ValueError, OverflowError, struct.error)
"""What encoding by hand raises for a value that it does not know: no plain type, a lone surrogate, out of range."""

_OF_THIS_PROCESS: Final = (0x100).to_bytes(4, "little")  # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_OF_ANOTHER_PROCESS: Final = (0x100 | 0x200).to_bytes(4, "little")  # and SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_STATUS_UNSET: Final = b"\x7a\x00"
_pack_float: Final = struct.Struct("<d").pack
_pack_fixed64: Final = struct.Struct("<Q").pack


def encode(batch: Sequence[AnySpan]) -> bytes:
    """An ``ExportTraceServiceRequest`` with these spans, in its serialised form."""
    light: list[bytes] = []
    others: list[ReadableSpan] = []
    resource = None
    for span in batch:
        if not isinstance(span, LightSpan):
            others.append(span)
            continue
        try:
            light.append(encode_span(span))
        except _UNCOMMON:
            others.append(span.readable())
        else:
            resource = span.resource  # the same for all: a queue has the spans of one provider
    request = b"" if resource is None else _resource_spans(resource, light)
    if others:
        request += encode_spans(others).SerializeToString()
    return request


def encode_span(span: LightSpan) -> bytes:
    """A ``Span``, in its serialised form.

    Raises:
        LookupError, ValueError, OverflowError, struct.error: it has something that only the library encodes.
    """
    shape, parent = span.shape, span.parent
    name_and_kind, common = shape.encoded or _encode_shape(shape)
    return b"".join(
        (
            b"\x0a\x10",  # trace_id
            span.trace_id.to_bytes(16, "big"),
            b"\x12\x08",  # span_id
            span.span_id.to_bytes(8, "big"),
            b"" if parent is None else _parent(parent),
            name_and_kind if span.name is shape.name else _name_and_kind(span.name, span.kind.value),
            b"\x39",  # start_time_unix_nano
            _pack_fixed64(span.start_time),
            b"\x41",  # end_time_unix_nano
            _pack_fixed64(span.end_time or 0),
            common,
            _attributes(b"\x4a", span.own),  # attributes
            b""
            if not span.dropped_attributes
            else _count(b"\x50", span.dropped_attributes),  # dropped_attributes_count
            _list(b"\x5a", b"\x60", _event, span.events) if span.events else b"",  # events, dropped_events_count
            _list(b"\x6a", b"\x70", _link, span.links) if span.links else b"",  # links, dropped_links_count
            _status(span.status),
            b"\x85\x01",  # flags
            _flags(parent),
        )
    )


def _parent(parent: SpanContext) -> bytes:
    state = ",".join(f"{key}={value}" for key, value in parent.trace_state.items()) if parent.trace_state else ""
    return _text(b"\x1a", state) + b"\x22\x08" + parent.span_id.to_bytes(8, "big")  # trace_state, parent_span_id


def _list(tag: bytes, dropped: bytes, encode_one: Callable[[Any], bytes], items: Sequence[Any]) -> bytes:
    """Events or links, and how many more there were."""
    return b"".join([_field(tag, encode_one(one)) for one in items]) + _count(dropped, getattr(items, "dropped", 0))


def _resource_spans(resource: Resource, spans: Iterable[bytes]) -> bytes:
    head, scope = _envelope(resource)
    body = scope + b"".join([_field(b"\x12", span) for span in spans])  # spans, of a ScopeSpans
    return _field(b"\x0a", head + _field(b"\x12", body))  # scope_spans, of a ResourceSpans, of the request


@lru_cache(maxsize=4)
def _envelope(resource: Resource) -> tuple[bytes, bytes]:
    """A ``ResourceSpans`` without its scope, and a ``ScopeSpans`` without spans: what is added to them is merged."""
    nobody = SpanContext(1, 1, is_remote=False)
    span = ReadableSpan("", context=nobody, resource=resource, start_time=1, end_time=1, instrumentation_scope=SCOPE)
    head = encode_spans([span]).resource_spans[0]
    scope = head.scope_spans[0]
    scope.ClearField("spans")
    encoded: bytes = scope.SerializeToString()
    head.ClearField("scope_spans")
    return head.SerializeToString(), encoded


def _encode_shape(shape: Shape) -> tuple[bytes, bytes]:
    encoded = _name_and_kind(shape.name, shape.kind.value), _attributes(b"\x4a", shape.attributes.items())
    shape.encoded = encoded
    return encoded


def _name_and_kind(name: str, kind: int) -> bytes:
    return _text(b"\x2a", name) + b"\x30" + _varint(kind + 1)  # name, kind: OTLP's 0 is unspecified


def _event(event: Event) -> bytes:
    return b"".join(
        (
            b"\x09" + _pack_fixed64(event.timestamp) if event.timestamp else b"",  # time_unix_nano
            _text(b"\x12", event.name),
            _attributes(b"\x1a", (event.attributes or {}).items()),
            _count(b"\x20", event.dropped_attributes),
        )
    )


def _link(link: Link) -> bytes:
    context = link.context
    head = b"\x0a\x10%b\x12\x08%b" % (context.trace_id.to_bytes(16, "big"), context.span_id.to_bytes(8, "big"))
    if link.attributes:
        head += _attributes(b"\x22", link.attributes.items()) + _count(b"\x28", link.dropped_attributes)
    return head + b"\x35" + _flags(context)


def _flags(context: SpanContext | None) -> bytes:
    """Whether the parent or the linked span is of another process."""
    return _OF_ANOTHER_PROCESS if context is not None and context.is_remote else _OF_THIS_PROCESS


def _status(status: Status) -> bytes:
    if status.status_code is StatusCode.UNSET:
        return _STATUS_UNSET
    message = _text(b"\x12", status.description or "")
    return _field(b"\x7a", message + b"\x18" + _varint(status.status_code.value))


def _attributes(tag: bytes, attributes: Iterable[tuple[str, Any]]) -> bytes:
    parts: list[bytes] = []
    for key, value in attributes:
        body = _key(key) + _VALUES[type(value)](value)
        size = len(body)
        parts += (tag, _BYTE[size] if size < len(_BYTE) else _varint(size), body)
    return b"".join(parts)


@lru_cache(maxsize=1024)
def _key(key: str) -> bytes:
    return _field(b"\x0a", key.encode())


def _text_value(value: str) -> bytes:
    data = value.encode()
    if len(data) < len(_TEXT):
        return _TEXT[len(data)] + data
    return _field(b"\x12", _field(b"\x0a", data))


def _bool_value(value: bool) -> bytes:
    return b"\x12\x02\x10\x01" if value else b"\x12\x02\x10\x00"


def _int_value(value: int) -> bytes:
    if not -(1 << 63) <= value < 1 << 63:
        raise OverflowError("an attribute beyond 64 bits")
    return _field(b"\x12", b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF))


def _float_value(value: float) -> bytes:
    return b"\x12\x09\x21" + _pack_float(value)


_VALUES: Final[dict[type, Callable[[Any], bytes]]] = {
    str: _text_value,
    bool: _bool_value,
    int: _int_value,
    float: _float_value,
}
"""An AnyValue with its tag, as the value (2) of an attribute; sequences, mappings and bytes are not common."""


def _text(tag: bytes, text: str) -> bytes:
    """A text; left out when it is empty, as protobuf has it."""
    return _field(tag, text.encode()) if text else b""


def _count(tag: bytes, number: int) -> bytes:
    return tag + _varint(number) if number else b""


def _field(tag: bytes, data: bytes) -> bytes:
    size = len(data)
    return tag + (_BYTE[size] if size < len(_BYTE) else _varint(size)) + data


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:  # noqa: PLR2004  seven bits at a time
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
