"""Where tests that look at logs have all lines of the process written to."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import structlog

from telemetry import configure_logging


class LogStream:
    """What the process has logged, from DEBUG, since `start`."""

    def __init__(self) -> None:
        self._stream = io.StringIO()

    def start(self, log_format: str) -> None:
        configure_logging(log_format, "DEBUG", stream=self._stream, name="")

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Those of the JSON format."""
        return [json.loads(line) for line in self.text.splitlines()]


@contextlib.contextmanager
def log_stream() -> Iterator[LogStream]:
    """Leaves the root logger and structlog's configuration as they were."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, root.propagate
    known = structlog.get_config() if structlog.is_configured() else None
    try:
        yield LogStream()
    finally:
        root.handlers[:], root.level, root.propagate = before
        structlog.reset_defaults() if known is None else structlog.configure(**known)
