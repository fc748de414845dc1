"""Logs: one stable event name for each thing that happens, JSON in production and readable in a terminal.

| event | level | when |
|---|---|---|
| ``operations_enqueued`` | debug | an enqueue call was answered |
| ``enqueue_failed`` | warning | an enqueue call raised |
| ``operation_started`` | debug | a processor is called |
| ``operation_processed`` | debug | it ended well, and Redis knows |
| ``operation_retried`` | warning | it did not, and another attempt follows |
| ``operation_failed`` | error | it was given up |
| ``operation_rejected`` | error | it was not understood, or not allowed |
| ``operation_requeued`` | info | it was given back without burning an attempt |
| ``operation_stale`` | warning | its outcome was refused: the lease was lost |
| ``callback_...`` | | the same for callbacks |
| ``thread_pool_exhausted``, ``lease_lost``, ``leases_reclaimed``, ``worker_running``, ``worker_draining``, |||
| ``worker_stopped``, ``worker_task_failed``, ``redis_error``, ``circuit_breaker_changed`` | | as they say |

Every event about an operation has ``operation_id``, ``queue``, ``processor`` and ``attempt``; every line written while
one is processed, by a processor's own logger and in a thread as well, has these and ``trace_id`` and ``span_id``.
Payloads and results are never logged; passwords in URLs are hidden; control characters are escaped.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, Final, TextIO

import structlog

from queue_system.errors import ConfigurationError
from queue_system.hooks import (
    AttemptStarted,
    BreakerChanged,
    BrokerError,
    Enqueued,
    EnqueueFailed,
    Event,
    Hooks,
    LeaseLost,
    OperationInfo,
    OutcomeApplied,
    PoolExhausted,
    Reclaimed,
    WorkerChanged,
    WorkerTaskFailed,
    current_operation,
)
from telemetry.tracing import current_ids

EventDict = MutableMapping[str, Any]

_WORKER_EVENTS: Final = {
    "running": "worker_running",
    "draining": "worker_draining",
    "stopped": "worker_stopped",
}
_LEVELS: Final = {
    "processed": "debug",
    "retried": "warning",
    "failed": "error",
    "rejected": "error",
    "requeued": "info",
    "stale": "warning",
}
_SECRET_NAME: Final = re.compile(r"passw|secret|token|api_?key|authorization|credential", re.IGNORECASE)
_URL_PASSWORD: Final = re.compile(r"(\w+://)[^\s/@]*@")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
HIDDEN: Final = "***"


class LogListener(Hooks):
    """Writes events to a structlog logger.

    Args:
        logger: where to.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._enabled = getattr(logger, "isEnabledFor", None)
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Enqueued: self._on_enqueued,
            EnqueueFailed: lambda e: logger.warning("enqueue_failed", queue=e.queue, error_type=e.error_type),
            OutcomeApplied: self._on_outcome,
            AttemptStarted: self._on_started,
            PoolExhausted: lambda e: logger.warning(
                "thread_pool_exhausted", **_ids(e.operation), waited=round(e.waited, 3)
            ),
            LeaseLost: lambda e: logger.warning("lease_lost", operation_id=e.operation_id),
            Reclaimed: lambda e: logger.warning("leases_reclaimed", returned=e.returned, quarantined=e.quarantined),
            WorkerTaskFailed: lambda e: logger.error("worker_task_failed", task=e.task, reason=e.reason),
            BrokerError: lambda e: logger.warning("redis_error", operation=e.operation, kind=e.kind),
            BreakerChanged: lambda e: logger.warning("circuit_breaker_changed", breaker=e.breaker, state=e.state),
            WorkerChanged: self._on_worker,
        }

    def on_event(self, event: Event) -> None:
        """See `Hooks`."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _debug(self) -> bool:
        """Whether debug lines are wanted: asked before they are made, since they are most of all lines."""
        return self._enabled is None or bool(self._enabled(logging.DEBUG))

    def _on_enqueued(self, event: Enqueued) -> None:
        if not self._debug():
            return
        self._logger.debug(
            "operations_enqueued",
            queue=event.queue,
            processor=event.processor,
            accepted=event.accepted,
            duplicates=event.duplicates,
            operation_id=event.operation_ids[0] if len(event.operation_ids) == 1 else None,
        )

    def _on_started(self, event: AttemptStarted) -> None:
        if self._debug():
            self._logger.debug(
                "operation_started", kind=event.operation.kind, **_ids(event.operation), wait=round(event.wait, 6)
            )

    def _on_outcome(self, event: OutcomeApplied) -> None:
        if event.result == "processed" and not self._debug():
            return
        fields = {"reason": event.reason, "error_type": event.error_type}
        told = {name: value for name, value in fields.items() if value}
        log = getattr(self._logger, _LEVELS[event.result])
        log(f"{event.operation.kind}_{event.result}", **_ids(event.operation), **told)

    def _on_worker(self, event: WorkerChanged) -> None:
        name = _WORKER_EVENTS.get(event.state)
        if name is not None:
            self._logger.info(name, worker_id=event.worker_id)


def configure_logging(
    log_format: str = "auto", level: str = "INFO", *, stream: TextIO | None = None, name: str = "queue_system"
) -> logging.Logger:
    """Set up the package's logger: a handler of its own, and no propagation to the root logger.

    Args:
        log_format: ``json``, ``console``, or ``auto``: console in a terminal, JSON elsewhere.
        level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
        stream: where to; standard error by default.
        name: of the logger.

    Raises:
        ConfigurationError: an unknown format or level.
    """
    target = sys.stderr if stream is None else stream
    if log_format not in {"auto", "json", "console"}:
        raise ConfigurationError(f"log format {log_format!r}: use json, console or auto")
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ConfigurationError(f"log level {level!r}: use DEBUG, INFO, WARNING or ERROR")
    as_json = log_format == "json" or (log_format == "auto" and not target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(_formatter(as_json=as_json))
    logger = logging.getLogger(name)
    logger.handlers = [handler]
    logger.setLevel(number)
    logger.propagate = False
    return logger


def add_trace_ids(_: Any, __: str, event_dict: EventDict) -> EventDict:
    """Add ``trace_id`` and ``span_id`` of the current span, also when it is not sampled."""
    for key, value in current_ids().items():
        event_dict.setdefault(key, value)
    return event_dict


def redact(_: Any, __: str, event_dict: EventDict) -> EventDict:
    """Hide the values of fields with a secret's name and passwords in URLs, and escape control characters."""
    for key, value in event_dict.items():
        if isinstance(value, str) and key not in {"exception", "level", "timestamp"}:
            event_dict[key] = HIDDEN if _SECRET_NAME.search(key) else clean(value)
        elif key in {"entity", "payload", "result"}:
            event_dict[key] = HIDDEN
    return event_dict


def clean(text: str) -> str:
    """The text without passwords in URLs, on one line."""
    return _CONTROL.sub(lambda match: repr(match.group())[1:-1], _URL_PASSWORD.sub(rf"\1{HIDDEN}@", text))


def add_operation(_: Any, __: str, event_dict: EventDict) -> EventDict:
    """Add the ids of the operation that is being processed, whoever logs."""
    operation = current_operation.get()
    if operation is not None:
        for key, value in _ids(operation).items():
            event_dict.setdefault(key, value)
    return event_dict


def _formatter(*, as_json: bool) -> logging.Formatter:
    renderer: Any = (
        structlog.processors.JSONRenderer(default=repr) if as_json else structlog.dev.ConsoleRenderer(sort_keys=False)
    )
    return structlog.stdlib.ProcessorFormatter(
        # For standard records only: those of structlog carry their logger as an extra.
        foreign_pre_chain=[structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            add_operation,
            add_trace_ids,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            redact,
            renderer,
        ],
    )


def _ids(operation: OperationInfo) -> dict[str, Any]:
    return {
        "operation_id": operation.operation_id,
        "queue": operation.queue,
        "processor": operation.processor,
        "attempt": operation.attempt,
    }
