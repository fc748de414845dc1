"""The OTLP/HTTP exporter of the library, with our encoding; imported only where it is used."""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from telemetry.otlp import encode
from telemetry.spans import AnySpan, LightExporter, sdk_spans


class HttpExporter(LightExporter):
    """Encodes spans; endpoint, headers, TLS, compression, time limit and retries are the library's.

    Args:
        library: its exporter, one for which `takes_bytes` is true.
    """

    def __init__(self, library: OTLPSpanExporter) -> None:
        self._library = library

    def export(self, spans: Sequence[AnySpan]) -> SpanExportResult:
        """See the SDK."""
        request = encode(spans)
        limit = self._library._max_request_size  # noqa: SLF001  see `takes_bytes`
        if self._library._shutdown or 0 < limit < len(request):  # noqa: SLF001  see `takes_bytes`
            return self._library.export(sdk_spans(spans))  # refuses them, and says so in its own words
        sent = self._library._client.export(request)  # noqa: SLF001  see `takes_bytes`
        return SpanExportResult.SUCCESS if sent.success else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """See the SDK."""
        self._library.shutdown()  # type: ignore[no-untyped-call]  # the library's

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """See the SDK."""
        return self._library.force_flush(timeout_millis)


def takes_bytes(library: OTLPSpanExporter) -> bool:
    """Whether this version of the library has a client that sends what is encoded already.

    There is no public one; without it the library encodes the spans as well.
    """
    client = getattr(library, "_client", None)
    return all(hasattr(library, name) for name in ("_max_request_size", "_shutdown")) and hasattr(client, "export")


def http_exporter(endpoint: str | None) -> SpanExporter:
    """See `telemetry.export.otlp_exporter`."""
    if endpoint is not None and not endpoint.rstrip("/").endswith("/v1/traces"):
        endpoint = endpoint.rstrip("/") + "/v1/traces"
    library = OTLPSpanExporter(endpoint=endpoint)
    return HttpExporter(library) if takes_bytes(library) else library
