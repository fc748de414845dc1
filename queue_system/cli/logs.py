"""What a worker started from the command line tells: logs to stderr, spans over OTLP, metrics and probes over HTTP."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from queue_system.settings import Settings
from queue_system.worker import QueueWorker


@dataclass(frozen=True, slots=True)
class Observed:
    """What was set up. `url` is that of the side-car's server, None without one."""

    url: str | None
    exports_spans: bool

    def __str__(self) -> str:
        metrics = "" if self.url is None else f", metrics on {self.url}/metrics"
        return f"{metrics}{', spans exported' if self.exports_spans else ''}"


def configure(settings: Settings) -> None:
    """Send all logs of the process to stderr, in the form and from the level of the settings.

    An application that has set up the root logger itself, in a module that the worker imports, keeps its set-up.
    """
    from telemetry import configure_logging  # noqa: PLC0415  only a worker pays for it

    if not logging.getLogger().handlers:
        configure_logging(settings.log_format, settings.log_level, name="")


@contextlib.contextmanager
def observed(worker: QueueWorker, settings: Settings) -> Iterator[Observed]:
    """Export spans and serve metrics and probes meanwhile. At the end the spans that wait get two seconds.

    The server starts before the worker and ends last: probes are answered while it connects and while it drains.
    """
    from telemetry import SidecarServer, Telemetry, configure  # noqa: PLC0415  as above

    server, telemetry = None, Telemetry(None)
    try:
        if settings.metrics_port is not None:
            server = SidecarServer(worker.health, port=settings.metrics_port, host=settings.metrics_host)
            server.start()
        telemetry = configure(
            otlp_endpoint=settings.otlp_endpoint,
            otlp_protocol=settings.otlp_protocol,
            service_name=settings.service_name,
            sample_ratio=settings.trace_sample_ratio,
        )
        if telemetry.pipeline is None and (settings.trace_sample_ratio is not None or settings.otlp_protocol):
            worker.config.logger.warning(
                "spans_not_exported", reason="no OTLP endpoint, or the application's own set-up"
            )
        yield Observed(None if server is None else server.url, telemetry.pipeline is not None)
    finally:
        if not telemetry.shutdown():
            worker.config.logger.warning("spans_left_behind", reason="the collector did not take them in time")
        if server is not None:
            server.stop()


def silence() -> None:
    """Keep logs off the terminal: a command says what went wrong in its one line."""
    logging.getLogger("queue_system").addHandler(logging.NullHandler())
