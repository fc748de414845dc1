"""Metrics, spans and logs of Queue System: listeners on its hooks.

A plain `QueueConfig(...)` has them all without any set-up: metrics in the default registry of prometheus-client, spans
with the application's tracer provider (none, unless it has one), log events on the ``queue_system`` logger.
`configure` sets up what an application has not: exporting spans, and how logs look.
"""

from __future__ import annotations

from telemetry.defaults import Telemetry, configure, default_listeners
from telemetry.export import SpanPipeline, otlp_exporter
from telemetry.logging import LogListener, configure_logging
from telemetry.metrics import MetricsListener
from telemetry.server import SidecarServer
from telemetry.tracing import TracingListener

__all__ = [
    "LogListener",
    "MetricsListener",
    "SidecarServer",
    "SpanPipeline",
    "Telemetry",
    "TracingListener",
    "configure",
    "configure_logging",
    "default_listeners",
    "otlp_exporter",
]
