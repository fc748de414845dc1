"""The listener that feeds the Prometheus metrics of events.

Children are kept, as looking each of them up would cost more than counting. They are made at 0, so that `increase()`
sees the first event: those of the registered processors when a worker starts, those of other pairs of queue and
processor when the pair is first heard of.

What adds up is changed under one lock, so that no scrape sees half of an event.

How the counts hang together is in ``docs/metrics.md``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Final, Generic, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry

from queue_system.events import (
    STOP_REASONS,
    AttemptFinished,
    AttemptStarted,
    BreakerChanged,
    BrokerCall,
    BrokerError,
    ClockCorrected,
    Enqueued,
    Event,
    LeaseLost,
    OperationInfo,
    OutcomeApplied,
    PoolStarted,
    QueueView,
    Reclaimed,
    WorkerChanged,
    WorkerTaskFailed,
    WorkerView,
)
from queue_system.hooks import Hooks
from queue_system.keys import PRIORITIES
from queue_system.outcome import (
    CANCELLED,
    CRASHED,
    ERROR,
    INTERNAL_ERROR,
    POOL_EXHAUSTED,
    TIMEOUT,
    TOTAL_TIMEOUT,
    UNKNOWN_PROCESSOR,
)
from telemetry.catalogue import EVENTS
from telemetry.families import LOCK, Counter, Families, Family, acquire, release

MAX_LABEL_VALUES: Final = 100
"""Queues, and processors, that are told apart."""

MAX_PAIRS: Final = 300
"""Pairs of queue and processor that are told apart: each is about 100 series and 10 KB."""

MAX_ERROR_TYPES: Final = 30
OTHER: Final = "other"

OUTCOMES: Final = ("success", "error", "timeout", "cancelled", "exhausted", "abandoned")
TIMED_OUTCOMES: Final = ("success", "error", "timeout", "cancelled")
"""Of the attempts that called a processor and count."""

RETRY_REASONS: Final = (ERROR, TIMEOUT, CANCELLED, POOL_EXHAUSTED, INTERNAL_ERROR)
FAILURE_REASONS: Final = (*RETRY_REASONS, TOTAL_TIMEOUT, CRASHED, UNKNOWN_PROCESSOR)
REQUEUE_REASONS: Final = ("shutdown", UNKNOWN_PROCESSOR, "newer_schema", "claimed_late")
BREAKER_STATES: Final = ("closed", "open", "half_open")

# Of what the metrics say about the worker itself: all values that there can be, to make them at 0.
_LOOPS: Final = ("worker", "beat", "fetch", "wait", "reap", "outbox")
_REDIS_ERRORS: Final = (
    *(("turn", kind) for kind in ("connection", "timeout", "auth", "oom", "readonly", "misconf", "loading", "busy")),
    *(("turn", kind) for kind in ("masterdown", "moved", "clusterdown", "tryagain")),
    *(("renew", kind) for kind in ("connection", "timeout", "auth", "readonly", "loading", "busy", "refused")),
)
_LISTENERS: Final = ("TracingListener", "MetricsListener", "Collectors", "LogListener")

_Value = TypeVar("_Value", bound=Hashable)


class Bounded(Generic[_Value]):
    """Lets the first `limit` values through; the rest becomes `other`. May be called from any thread."""

    def __init__(self, limit: int, other: _Value) -> None:
        self._limit = limit
        self._other = other
        self._known: set[_Value] = set()
        self._lock = threading.Lock()

    def __call__(self, value: _Value) -> _Value:
        """The value, or `other`."""
        if value in self._known:
            return value
        with self._lock:
            if len(self._known) < self._limit:
                self._known.add(value)
        return value if value in self._known else self._other

    def __len__(self) -> int:
        return len(self._known)


class EventMetrics:
    """The metric families of `catalogue.EVENTS` in one registry, and the values that their labels may have."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families = Families(EVENTS, registry)
        self.queue, self.processor = Bounded(MAX_LABEL_VALUES, OTHER), Bounded(MAX_LABEL_VALUES, OTHER)
        self.error_type = Bounded(MAX_ERROR_TYPES, OTHER)
        self._pairs = Bounded(MAX_PAIRS, (OTHER, OTHER))
        self._begin_at_zero()

    def __getitem__(self, name: str) -> Family[Any]:
        return self._families[name]

    def pair(self, queue: str, processor: str) -> tuple[str, str]:
        """The labels for an operation of this queue and processor."""
        return self._pairs((self.queue(queue), self.processor(processor)))

    def _begin_at_zero(self) -> None:
        for reason in _LOOPS:
            self["worker_task_failures_total"].labels(reason)
        for reason in STOP_REASONS:
            self["worker_drains_total"].labels(reason)
        for labels in _REDIS_ERRORS:
            self["redis_errors_total"].labels(*labels)
        for listener in _LISTENERS:
            self["telemetry_failures_total"].labels(listener)
        for state in BREAKER_STATES:
            self["circuit_breaker_state"].labels("redis", state).set(state == "closed")


class _Children:
    """The children of one queue and processor, made at 0."""

    def __init__(self, metrics: EventMetrics, queue: str, processor: str) -> None:
        pair = queue, processor
        self.started = metrics["attempts_started_total"].labels(*pair)
        self.processed = metrics["processed_total"].labels(*pair)
        self.unattempted = metrics["failed_without_attempt_total"].labels(*pair)
        self.wait = metrics["queue_wait_seconds"].labels(queue)
        self.end_to_end = metrics["end_to_end_seconds"].labels(queue)
        self.attempts = {one: metrics["attempts_total"].labels(*pair, one) for one in OUTCOMES}
        self.duration = {one: metrics["process_duration_seconds"].labels(*pair, one) for one in TIMED_OUTCOMES}
        self.retried = {one: metrics["retried_total"].labels(*pair, one) for one in RETRY_REASONS}
        self.failed = {one: metrics["failed_total"].labels(*pair, one) for one in FAILURE_REASONS}
        self.timeouts = {one: metrics["timeouts_total"].labels(*pair, one) for one in ("attempt", "total")}
        metrics["rejected_total"].labels(queue)
        for reason in REQUEUE_REASONS:
            metrics["requeued_total"].labels(queue, reason)


class MetricsListener(Hooks):
    """Counts events.

    Args:
        registry: where the metrics are; the default registry of prometheus-client by default. Listeners of one
            registry share its metrics.
        exemplar: asked for ``{"trace_id": ...}`` when the current span is sampled, or None.
    """

    def __init__(
        self,
        registry: CollectorRegistry = REGISTRY,
        exemplar: Callable[[], dict[str, str] | None] = lambda: None,
    ) -> None:
        self.registry = registry
        self._metrics = metrics = event_metrics(registry)
        self._exemplar = exemplar
        self._pairs: dict[str, dict[str, _Children]] = {}  # by queue and processor
        self._enqueued: dict[tuple[str, str, str], Counter] = {}
        pool_wait = metrics["thread_pool_wait_seconds"].labels()
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            Enqueued: self._on_enqueued,
            AttemptStarted: self._on_started,
            AttemptFinished: self._on_finished,
            OutcomeApplied: self._on_applied,
            PoolStarted: lambda event: pool_wait.observe(event.waited, exemplar()),
            LeaseLost: lambda _: metrics["leases_lost_total"].labels().inc(),
            ClockCorrected: lambda event: metrics["clock_corrected_total"].labels().inc(event.times),
            Reclaimed: lambda event: metrics["reclaimed_total"].labels().inc(event.returned + event.quarantined),
            WorkerTaskFailed: self._on_task_failed,
            BrokerCall: self._on_broker_call,
            BrokerError: lambda event: metrics["redis_errors_total"].labels(event.operation, event.kind).inc(),
            WorkerChanged: self._on_worker,
            BreakerChanged: self._on_breaker,
        }
        self._results: dict[str, Callable[[OutcomeApplied, _Children], None]] = {
            "retried": self._on_retried,
            "failed": self._on_failed,
        }
        self._redis = {op: metrics["redis_command_duration_seconds"].labels(op) for op in ("claim", "settle")}
        self._callbacks = {one: metrics["callbacks_total"].labels(one) for one in OUTCOMES if one != "exhausted"}
        self._callbacks_failed = {
            one: metrics["callbacks_failed_total"].labels(one) for one in FAILURE_REASONS if one != POOL_EXHAUSTED
        }
        self._callback_time = {one: metrics["callback_duration_seconds"].labels(one) for one in TIMED_OUTCOMES}

    def handler_for(self, event_type: type[Event]) -> Callable[[Any], None] | None:
        """See `Hooks`."""
        return self._handlers.get(event_type)

    def on_event(self, event: Event) -> None:
        """See `Hooks`."""
        handler = self._handlers.get(type(event))
        if handler is not None:
            handler(event)

    def attach(self, worker: WorkerView, queue: QueueView) -> None:  # noqa: ARG002  the seam has it so
        """See `Hooks`: makes the children of the processors that are registered there."""
        for pair in worker.served():
            self._children(*pair)

    def listener_failed(self, listener: str) -> None:
        """See `Hooks`: counts it."""
        self._metrics["telemetry_failures_total"].labels(listener).inc()

    def _of(self, operation: OperationInfo) -> _Children:
        try:
            return self._pairs[operation.queue][operation.processor]
        except KeyError:
            return self._children(operation.queue, operation.processor)

    def _children(self, queue: str, processor: str) -> _Children:
        # Kept under the bounded labels only: a million names must not fill the memory either.
        queue, processor = self._metrics.pair(queue, processor)
        of_queue = self._pairs.setdefault(queue, {})
        if processor not in of_queue:
            of_queue[processor] = _Children(self._metrics, queue, processor)
        return of_queue[processor]

    def _on_enqueued(self, event: Enqueued) -> None:
        counter = self._enqueued.get((event.queue, event.priority, event.processor))
        if counter is None:
            counter = self._enqueued_counter(event)
        counter.inc(event.accepted)
        if event.duplicates:
            self._metrics["deduplicated_total"].labels(self._metrics.queue(event.queue)).inc(event.duplicates)

    def _enqueued_counter(self, event: Enqueued) -> Counter:
        queue, processor = self._metrics.pair(event.queue, event.processor)
        if (queue, event.priority, processor) not in self._enqueued:
            self._metrics["deduplicated_total"].labels(self._metrics.queue(event.queue))
            for priority in PRIORITIES:
                counter = self._metrics["enqueued_total"].labels(queue, priority, processor)
                self._enqueued[queue, priority, processor] = counter
        return self._enqueued[queue, event.priority, processor]

    def _on_started(self, event: AttemptStarted) -> None:
        operation = event.operation
        if operation.kind != "operation":
            return
        children, exemplar = self._of(operation), self._exemplar()
        try:
            acquire()
            children.started.value += 1
            children.wait.add(event.wait, exemplar)
        finally:
            release()

    def _on_finished(self, event: AttemptFinished) -> None:
        operation, outcome = event.operation, event.outcome
        if outcome in TIMED_OUTCOMES:
            own = operation.kind == "operation"
            histogram = self._of(operation).duration[outcome] if own else self._callback_time[outcome]
            exemplar = self._exemplar()
            try:
                acquire()
                histogram.add(event.duration, exemplar)
            finally:
                release()
        elif outcome == "abandoned":  # nothing of it will be applied
            self._abandoned(operation)
        if event.error_type and outcome:
            processor, error_type = self._metrics.processor(operation.processor), event.error_type
            self._metrics["errors_total"].labels(processor, self._metrics.error_type(error_type)).inc()

    def _on_applied(self, event: OutcomeApplied) -> None:
        operation = event.operation
        if event.result == "processed" and operation.kind == "operation":  # nearly all of them
            children = self._of(operation)
            try:
                acquire()
                children.attempts[event.outcome].value += 1
                children.processed.value += 1
                children.end_to_end.add(event.age)
            finally:
                release()
        else:
            with LOCK:
                self._on_ended_otherwise(event)

    def _on_ended_otherwise(self, event: OutcomeApplied) -> None:
        operation = event.operation
        if event.result == "stale":
            if event.reason == "lease_lost":
                self._metrics["stale_acks_total"].labels().inc()
            if event.outcome and event.outcome != "exhausted":  # of that one it is the end of an attempt that began
                self._abandoned(operation)
        elif event.result in ("rejected", "requeued"):
            self._on_put_away(event)
        elif operation.kind != "operation":
            self._on_callback(event)
        else:
            # A name that stands for nothing comes from whoever can write to Redis: it gets no series of its own.
            named = event.reason != UNKNOWN_PROCESSOR
            children = self._of(operation) if named else self._children(operation.queue, OTHER)
            if event.outcome:
                children.attempts[event.outcome].inc()
            self._results[event.result](event, children)

    def _on_retried(self, event: OutcomeApplied, children: _Children) -> None:
        children.retried[event.reason].inc()
        self._on_ended_badly(event, children)

    def _on_failed(self, event: OutcomeApplied, children: _Children) -> None:
        children.failed[event.reason].inc()
        if not event.outcome:
            children.unattempted.inc()
        children.end_to_end.observe(event.age)
        self._on_ended_badly(event, children)

    def _on_ended_badly(self, event: OutcomeApplied, children: _Children) -> None:
        if event.reason == TOTAL_TIMEOUT:
            children.timeouts["total"].inc()
        elif event.reason == TIMEOUT:
            children.timeouts["attempt"].inc()
        if event.outcome == "exhausted":
            self._metrics["thread_pool_exhaustion_total"].labels().inc()

    def _on_callback(self, event: OutcomeApplied) -> None:
        if event.outcome:
            self._callbacks[event.outcome].inc()
        if event.result == "failed":
            self._callbacks_failed[event.reason].inc()

    def _on_put_away(self, event: OutcomeApplied) -> None:
        if event.operation.kind == "operation":
            queue = self._metrics.queue(event.operation.queue)
            if event.result == "rejected":
                self._metrics["rejected_total"].labels(queue).inc()
            else:
                self._metrics["requeued_total"].labels(queue, event.reason).inc()

    def _abandoned(self, operation: OperationInfo) -> None:
        own = operation.kind == "operation"
        (self._of(operation).attempts if own else self._callbacks)["abandoned"].inc()

    def _on_task_failed(self, event: WorkerTaskFailed) -> None:
        self._metrics["worker_task_failures_total"].labels(event.task.partition("-")[0]).inc()

    def _on_worker(self, event: WorkerChanged) -> None:
        if event.state == "draining":
            self._metrics["worker_drains_total"].labels(event.reason).inc()

    def _on_broker_call(self, event: BrokerCall) -> None:
        histogram = self._redis.get(event.operation)
        if histogram is not None:
            histogram.observe(event.duration)

    def _on_breaker(self, event: BreakerChanged) -> None:
        with LOCK:
            for state in BREAKER_STATES:
                self._metrics["circuit_breaker_state"].labels(event.breaker, state).set(state == event.state)


_shared: dict[int, tuple[CollectorRegistry, EventMetrics]] = {}
_lock = threading.Lock()


def event_metrics(registry: CollectorRegistry) -> EventMetrics:
    """The event metrics of a registry, made once: several configurations of a process count together."""
    with _lock:
        known = _shared.get(id(registry))
        if known is None or known[0] is not registry:
            known = _shared[id(registry)] = (registry, EventMetrics(registry))
        return known[1]
