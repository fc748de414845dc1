"""The OTLP/gRPC exporter of the library, with our encoding; imported only where it is used."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExportResult

from telemetry.otlp import encode
from telemetry.spans import AnySpan, LightExporter


class GrpcExporter(OTLPSpanExporter, LightExporter):
    """Encodes spans; all else is the library's, whose exporters of every signal differ in `_translate_data` only."""

    def export(self, spans: Sequence[AnySpan]) -> SpanExportResult:
        """See the SDK."""
        return self._export(spans)  # type: ignore[arg-type]  # only `_translate_data` looks at them

    def _translate_data(self, data: Sequence[AnySpan]) -> ExportTraceServiceRequest:
        # Its stub serialises a message. To parse ours for it, in C, is cheap; to fill one from Python is not.
        request: ExportTraceServiceRequest = ExportTraceServiceRequest.FromString(encode(data))
        return request
