"""Logs: one stable event name for each thing that happens. Payloads and results are never logged."""

from __future__ import annotations

from typing import Any, Final

from queue_system.hooks import (
    AttemptFinished,
    BreakerChanged,
    BrokerError,
    EnqueueFailed,
    Event,
    Hooks,
    LeaseLost,
    OutcomeApplied,
    PoolExhausted,
    Reclaimed,
    WorkerChanged,
    WorkerTaskFailed,
)

_WORKER_EVENTS: Final = {
    "running": "worker_running",
    "draining": "worker_draining",
    "stopped": "worker_stopped",
}
_RESULT_LEVELS: Final = {
    "processed": "debug",
    "retried": "warning",
    "failed": "error",
    "rejected": "error",
    "requeued": "info",
    "stale": "warning",
}


class LogListener(Hooks):
    """Writes events to a structlog logger.

    Args:
        logger: where to.
    """

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def on_event(self, event: Event) -> None:
        """See `Hooks`."""
        match event:
            case OutcomeApplied():
                self._outcome(event)
            case AttemptFinished() | PoolExhausted():
                pass
            case WorkerChanged():
                self._logger.info(_WORKER_EVENTS.get(event.state, event.state), worker_id=event.worker_id)
            case Reclaimed():
                self._logger.warning("leases_reclaimed", returned=event.returned, quarantined=event.quarantined)
            case LeaseLost():
                self._logger.warning("lease_lost", operation_id=event.operation_id)
            case WorkerTaskFailed():
                self._logger.error("worker_task_failed", task=event.task, reason=event.reason)
            case BrokerError():
                self._logger.warning("redis_error", operation=event.operation, kind=event.kind)
            case BreakerChanged():
                self._logger.warning("circuit_breaker_changed", breaker=event.breaker, state=event.state)
            case EnqueueFailed():
                self._logger.warning("enqueue_failed", queue=event.queue, error_type=event.error_type)

    def _outcome(self, event: OutcomeApplied) -> None:
        operation = event.operation
        fields = {
            "operation_id": operation.operation_id,
            "queue": operation.queue,
            "processor": operation.processor,
            "attempt": operation.attempt,
        }
        if event.reason:
            fields["reason"] = event.reason
        if event.error_type:
            fields["error_type"] = event.error_type
        log = getattr(self._logger, _RESULT_LEVELS[event.result])
        log(operation.kind + "_" + event.result, **fields)
