"""The package's logger: structlog's interface over the standard library's ``queue_system`` logger.

So an application that has set up `logging` sees our events without further ado, one that has not sees warnings only,
and `telemetry.configure` turns them into JSON.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

import structlog

TRACES: Final = ("stack", "exception")
"""The fields whose text has lines of its own."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """The text with its control characters escaped (but for tabs), so that it cannot forge a line of a log."""
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], text)


def indented(text: str) -> str:
    """Lines of a traceback, set off from the lines of a log, without other control characters."""
    return "\n".join(f"    {one_line(line)}" for line in text.split("\n"))


def get_logger(logger: Any = None) -> Any:
    """A structlog logger.

    Args:
        logger: a standard logger to write to, a structlog logger to use as it is, or None for ``queue_system``.
    """
    if logger is None:
        logger = logging.getLogger("queue_system")
    if not isinstance(logger, logging.Logger | logging.LoggerAdapter):
        return logger
    return structlog.wrap_logger(
        logger,
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            _hand_over,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    ).bind()  # the lazy proxy would make a new logger for each line


def _hand_over(logger: Any, name: str, event_dict: Any) -> Any:
    """To a formatter that understands fields, or as text: asked for each line, as logging may be set up later."""
    if _has_structlog_formatter(logger):
        return structlog.stdlib.ProcessorFormatter.wrap_for_formatter(logger, name, event_dict)
    return _render_key_values(event_dict)


def _render_key_values(event_dict: Any) -> str:
    """``event key=value ...`` on one line; a stack or traceback, if any, is indented below it."""
    event = one_line(str(event_dict.pop("event", "")))
    traces = [event_dict.pop(name, None) for name in TRACES]
    text = " ".join([event, *(f"{one_line(str(name))}={value!r}" for name, value in event_dict.items())])
    return "\n".join([text, *(indented(str(trace)) for trace in traces if trace is not None)])


def _has_structlog_formatter(logger: Any) -> bool:
    base: logging.Logger | None = logger.logger if isinstance(logger, logging.LoggerAdapter) else logger
    while base is not None:
        if any(isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter) for handler in base.handlers):
            return True
        base = base.parent if base.propagate else None
    return False
