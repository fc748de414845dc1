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
| ``callback_started`` | debug | a callback is called |
| ``callback_processed`` | debug | it ended well |
| ``callback_retried`` | warning | it did not, and another attempt follows |
| ``callback_failed`` | error | it was given up |
| ``callback_rejected`` | error | it was not understood, or not allowed |
| ``callback_requeued`` | info | it was given back |
| ``callback_stale`` | warning | its outcome was refused |
| ``thread_pool_exhausted`` | warning | a sync operation found no free thread in time |
| ``task_abandoned`` | warning | an async processor has not heeded its cancellation; with its stack |
| ``thread_abandoned`` | warning | a thread has not returned from its operation in time; with its stack |
| ``lease_lost`` | warning | another worker may run this operation now |
| ``clock_corrected`` | warning | times kept in Redis were put right: its clock had been ahead |
| ``leases_reclaimed`` | warning | operations of workers that are gone were taken over |
| ``worker_running`` | info | a worker has started |
| ``worker_draining`` | info | it claims no more; with the reason |
| ``worker_stopped`` | info | it has ended |
| ``worker_task_failed`` | error | a loop of the worker raised, and was started again |
| ``redis_error`` | warning | a call to Redis failed; the same refusal is told every 10 s at most |
| ``redis_back`` | warning | Redis answers again, after so many seconds; once for each outage |
| ``circuit_breaker_changed`` | warning | the circuit breaker went to another state |
| ``metric_set`` | info | `QueueConfig.update_metric` has set a text |
| ``metric_changed`` | info | it has changed a number that is worth a line |
| ``span_export_failed`` | warning | an exporter of spans raised |
| ``spans_not_exported`` | warning | options about spans were given to a worker's command line, but no endpoint |
| ``spans_left_behind`` | warning | a worker's process ended before the collector had taken all spans |
| ``traces_exporter_unknown`` | warning | ``OTEL_TRACES_EXPORTER`` is not understood, and ignored |
| ``telemetry_listener_failed`` | error | a listener raised (its name follows in the text) |

Every event about an operation has ``operation_id``, ``queue``, ``processor`` and ``attempt``; every line written while
one is processed, by a processor's own logger and in a thread as well, has these and ``trace_id`` and ``span_id``, once
`configure_logging` or `CorrelationFilter` is in place.

Never logged are payloads, results, and messages of errors (they may quote a payload): of an error the class, and the
failures keep the rest. In what others log, fields with a secret's name and passwords in texts are hidden as far as
they can be recognised, and control characters are escaped.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, TextIO

import structlog

from queue_system.errors import ConfigurationError
from queue_system.events import (
    AttemptStarted,
    BreakerChanged,
    BrokerBack,
    BrokerError,
    ClockCorrected,
    Enqueued,
    EnqueueFailed,
    Event,
    LeaseLost,
    OperationInfo,
    OutcomeApplied,
    PoolExhausted,
    Reclaimed,
    TaskAbandoned,
    ThreadAbandoned,
    WorkerChanged,
    WorkerTaskFailed,
    current_operation,
)
from queue_system.hooks import Hooks
from queue_system.log import TRACES, indented, one_line
from queue_system.operation import KIND_CALLBACK, KIND_OPERATION
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
_HINTS = r"passw|passphrase|secret|token|api_?key|private_?key|authorization|cookie|credential"
_SECRET_NAME: Final = re.compile(_HINTS, re.IGNORECASE)
_PAYLOADS: Final = frozenset({"entity", "payload", "result"})
_URL_PASSWORD: Final = re.compile(r"(\w+://)[^\s/]*@")
_ASSIGNED: Final = re.compile(rf"(\b\w*(?:{_HINTS})\w*[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&]+)", re.IGNORECASE)
_MAX_DEPTH: Final = 5
REFUSAL_INTERVAL: Final = 10.0
"""Seconds after which the same refusal of Redis is told again."""

HIDDEN: Final = "***"
_CORRELATION: Final = ("operation_id", "queue", "processor", "attempt", "trace_id", "span_id")


class LogListener(Hooks):
    """Writes events to a structlog logger.

    Args:
        logger: where to.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self._enabled = logger.isEnabledFor if isinstance(logger, structlog.stdlib.BoundLogger) else None
        self._refusals: dict[str, tuple[str, float]] = {}  # of each operation the last that was told, and when
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Enqueued: self._on_enqueued,
            EnqueueFailed: lambda e: logger.warning("enqueue_failed", queue=e.queue, error_type=e.error_type),
            OutcomeApplied: self._on_outcome,
            AttemptStarted: self._on_started,
            PoolExhausted: lambda e: logger.warning(
                "thread_pool_exhausted", **_ids(e.operation), waited=round(e.waited, 3)
            ),
            ThreadAbandoned: self._on_thread_abandoned,
            TaskAbandoned: lambda e: logger.warning(
                "task_abandoned",
                **_ids(e.operation),
                task=e.task,
                seconds=round(e.seconds, 1),
                reason=e.reason,
                stack=e.stack,
            ),
            LeaseLost: lambda e: logger.warning("lease_lost", operation_id=e.operation_id),
            ClockCorrected: lambda e: logger.warning("clock_corrected", times=e.times),
            Reclaimed: lambda e: logger.warning("leases_reclaimed", returned=e.returned, quarantined=e.quarantined),
            WorkerTaskFailed: lambda e: logger.error("worker_task_failed", task=e.task, reason=e.reason),
            BrokerError: self._on_broker_error,
            BrokerBack: lambda e: logger.warning("redis_back", message=f"Redis is back after {e.seconds:.1f} s"),
            BreakerChanged: lambda e: logger.warning("circuit_breaker_changed", breaker=e.breaker, state=e.state),
            WorkerChanged: self._on_worker,
        }

    def handler_for(self, event_type: type[Event]) -> Callable[[Any], None] | None:
        """See `Hooks`."""
        return self._handlers.get(event_type)

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
            name = f"{_kind(event.operation)}_started"
            self._logger.debug(name, **_ids(event.operation), wait=round(event.wait, 6))

    def _on_outcome(self, event: OutcomeApplied) -> None:
        if event.result == "processed" and not self._debug():
            return
        fields = {"reason": event.reason, "error_type": event.error_type}
        told = {name: value for name, value in fields.items() if value}
        log = getattr(self._logger, _LEVELS[event.result])
        log(f"{_kind(event.operation)}_{event.result}", **_ids(event.operation), **told)

    def _on_worker(self, event: WorkerChanged) -> None:
        name = _WORKER_EVENTS.get(event.state)
        if name is not None:
            self._logger.info(name, worker_id=event.worker_id, **({"reason": event.reason} if event.reason else {}))

    def _on_broker_error(self, event: BrokerError) -> None:
        """A refusal comes again and again until somebody mends its cause: it is told every `REFUSAL_INTERVAL`."""
        if not event.reason:
            self._logger.warning("redis_error", operation=event.operation, kind=event.kind)
            return
        told, now = self._refusals.get(event.operation), time.monotonic()
        if told is None or told[0] != event.reason or now - told[1] >= REFUSAL_INTERVAL:
            self._refusals[event.operation] = event.reason, now
            self._logger.warning("redis_error", operation=event.operation, kind=event.kind, reason=event.reason)

    def _on_thread_abandoned(self, event: ThreadAbandoned) -> None:
        ids = {} if event.operation is None else _ids(event.operation)
        self._logger.warning(
            "thread_abandoned", **ids, thread=event.thread, seconds=round(event.seconds, 1), stack=event.stack
        )


def configure_logging(
    log_format: str = "auto", level: str = "INFO", *, stream: TextIO | None = None, name: str = "queue_system"
) -> logging.Logger:
    """Set up a logger: a handler of its own, and no propagation to the loggers above.

    Args:
        log_format: ``json``, ``console``, or ``auto``: console in a terminal, JSON elsewhere.
        level: ``DEBUG``, ``INFO``, ``WARNING`` or ``ERROR``.
        stream: where to; standard error by default.
        name: of the logger; the package's by default. With ``""``, the root logger, all of the process's lines look
            so, those of structlog's loggers included (unless the application has configured structlog itself).

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
    handler.setFormatter(_formatter(as_json=as_json, colours=target.isatty()))
    logger = logging.getLogger(name or None)
    logger.handlers = [handler]
    logger.setLevel(number)
    logger.propagate = False
    if not name and not structlog.is_configured():
        _configure_structlog()
    return logger


class CorrelationFilter(logging.Filter):
    """Adds the ids to records, for an application with formatters of its own.

    Put it on a handler; a format may then have ``%(operation_id)s``, ``%(trace_id)s`` and so on. An id that is not
    there is empty.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging`."""
        operation = current_operation.get()
        ids = dict.fromkeys(_CORRELATION, "") | ({} if operation is None else _ids(operation)) | current_ids()
        for key, value in ids.items():
            if not hasattr(record, key):
                setattr(record, key, value)
        return True


def add_trace_ids(_: Any, __: str, event_dict: EventDict) -> EventDict:
    """Add ``trace_id`` and ``span_id`` of the current span, also when it is not sampled."""
    for key, value in current_ids().items():
        event_dict.setdefault(key, value)
    return event_dict


def redact(_: Any, __: str, event_dict: EventDict) -> EventDict:
    """Hide payloads, secrets by their field's name, and passwords in texts; escape control characters."""
    several_lines = {name: event_dict.pop(name) for name in TRACES if event_dict.get(name) is not None}
    safe: EventDict = {_text(key): _safe(key, value, 0) for key, value in event_dict.items()}
    for name, text in several_lines.items():
        safe[name] = "\n".join(clean(line) for line in str(text).split("\n"))
    return safe


def clean(text: str) -> str:
    """The text without passwords in URLs and assignments, on one line."""
    return one_line(_ASSIGNED.sub(rf"\1{HIDDEN}", _URL_PASSWORD.sub(rf"\1{HIDDEN}@", text)))


def _safe(key: object, value: Any, depth: int) -> Any:
    if isinstance(key, str) and (key in _PAYLOADS or _SECRET_NAME.search(key)):
        return HIDDEN
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {_text(name): _safe(name, inner, depth + 1) for name, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_safe(None, inner, depth + 1) for inner in value]
    return _text(value)


def _text(value: object) -> str:
    return clean(value if isinstance(value, str) else repr(value))


def add_operation(_: Any, __: str, event_dict: EventDict) -> EventDict:
    """Add the ids of the operation that is being processed, whoever logs."""
    operation = current_operation.get()
    if operation is not None:
        for key, value in _ids(operation).items():
            event_dict.setdefault(key, value)
    return event_dict


def _formatter(*, as_json: bool, colours: bool) -> logging.Formatter:
    renderer: list[Any] = [structlog.processors.JSONRenderer()]
    if not as_json:
        renderer = [_indent_exception, structlog.dev.ConsoleRenderer(sort_keys=False, colors=colours)]
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
            *renderer,
        ],
    )


def _indent_exception(_: Any, __: str, event_dict: EventDict) -> EventDict:
    for name in TRACES:
        if name in event_dict:
            event_dict[name] = indented(event_dict[name])
    return event_dict


def _configure_structlog() -> None:
    """Send what structlog's own loggers write through the standard library, to the formatter above."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def _kind(operation: OperationInfo) -> str:
    """What the names of events begin with; `OperationInfo.kind` is a text from Redis."""
    return KIND_CALLBACK if operation.kind == KIND_CALLBACK else KIND_OPERATION


def _ids(operation: OperationInfo) -> dict[str, Any]:
    return {
        "operation_id": operation.operation_id,
        "queue": operation.queue,
        "processor": operation.processor,
        "attempt": operation.attempt,
    }
