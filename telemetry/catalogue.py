"""The one list of this process's own metrics: name, kind, labels, help, buckets.

Everything that names a metric (the listener, the collector, dashboards, rules, their tests) takes it from here. The
help texts say what is counted and when, since that is what an operator reads beside a number. ``python -m
telemetry.catalogue`` prints it as the tables of ``docs/metrics.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

PREFIX: Final = "queue_system_"

DURATION_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
WAIT_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)
POOL_WAIT_BUCKETS: Final = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30)
REDIS_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family. `name` is without the prefix; a counter's ends in ``_total``."""

    name: str
    kind: str  # counter, gauge or histogram
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """The name as Prometheus shows it."""
        return PREFIX + self.name


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, "counter", text, labels)


def _gauge(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, "gauge", text, labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(name, "histogram", text, labels, buckets)


EVENTS: Final = (
    _counter("enqueued_total", "Operations accepted, without duplicates.", "queue", "priority", "processor"),
    _counter("deduplicated_total", "Operations refused as duplicates.", "queue"),
    _counter("processed_total", "Operations that ended well.", "queue", "processor"),
    _counter("failed_total", "Operations given up: moved to the failures.", "queue", "processor", "reason"),
    _counter("failed_without_attempt_total", "Those of failed_total that were not tried again.", "queue", "processor"),
    _counter("retried_total", "Attempts that ended badly and are followed by another.", "queue", "processor", "reason"),
    _counter("timeouts_total", "Time limits that were reached.", "queue", "processor", "kind"),
    _counter("thread_pool_exhaustion_total", "Sync operations that found no free thread within the limit."),
    _counter("attempts_started_total", "Calls of a processor that began.", "queue", "processor"),
    _counter("attempts_total", "Attempts that ended, by how.", "queue", "processor", "outcome"),
    _counter("errors_total", "Attempts that ended badly, by the class of the error.", "processor", "error_type"),
    _counter("rejected_total", "Operations that were not understood or not allowed.", "queue"),
    _counter("requeued_total", "Operations given back without burning an attempt.", "queue", "reason"),
    _counter("callbacks_total", "Attempts of callbacks that ended, by how.", "outcome"),
    _counter("callbacks_failed_total", "Callbacks given up: moved to the failures.", "reason"),
    _counter("reclaimed_total", "Expired leases taken back from workers that are gone."),
    _counter("clock_corrected_total", "Times kept in Redis that were put right after its clock had been ahead."),
    _counter("leases_lost_total", "Leases of this process that others took over."),
    _counter("stale_acks_total", "Outcomes refused because the lease had been lost."),
    _counter("worker_task_failures_total", "Loops of the worker that raised and were started again.", "reason"),
    _counter("worker_drains_total", "Times that a worker began to drain, by why.", "reason"),
    _counter("redis_errors_total", "Calls to Redis that failed.", "op", "kind"),
    _counter("telemetry_failures_total", "Listeners of telemetry that raised.", "listener"),
    _histogram("process_duration_seconds", "Time of an attempt.", DURATION_BUCKETS, "queue", "processor", "outcome"),
    _histogram("queue_wait_seconds", "Time from being due to the call of the processor.", WAIT_BUCKETS, "queue"),
    _histogram("end_to_end_seconds", "Time from being accepted to the end.", WAIT_BUCKETS, "queue"),
    _histogram("thread_pool_wait_seconds", "Time from the hand-over to a thread's start.", POOL_WAIT_BUCKETS),
    _histogram("callback_duration_seconds", "Time in a callback.", DURATION_BUCKETS, "outcome"),
    _histogram("redis_command_duration_seconds", "Round trips to Redis.", REDIS_BUCKETS, "op"),
    _gauge("circuit_breaker_state", "1 for the state that the circuit breaker is in.", "breaker", "state"),
)
"""Fed by events, as they happen."""

WORKER: Final = (
    _gauge("thread_pool_size", "Threads of the pool."),
    _gauge("thread_pool_active", "Threads that are busy now."),
    _gauge("thread_pool_waiting", "Sync operations in the pool that have no thread yet."),
    _gauge("worker_tasks_abandoned", "Worker tasks whose processor did not heed its cancellation; they count as busy."),
    _gauge("thread_pool_abandoned", "Threads whose operation has run beyond its limit; they count as active."),
    _gauge("thread_pool_utilization_ratio", "Share of the threads that was busy since the last heartbeat, 0 to 1."),
    _counter("thread_pool_submissions_total", "Sync operations handed to the pool."),
    _counter("thread_pool_busy_seconds_total", "Seconds of threads being busy, summed over threads."),
    _counter("thread_pool_capacity_seconds_total", "Seconds of threads being there, summed over threads."),
    _counter("thread_pool_saturated_seconds_total", "Seconds in which every thread was busy."),
    _gauge("worker_tasks", "Worker tasks: how many async operations run at once."),
    _gauge("worker_tasks_alive", "Worker tasks that are running or about to be started again."),
    _gauge("worker_tasks_busy", "Worker tasks that hold an operation now."),
    _counter("worker_task_busy_seconds_total", "Seconds of worker tasks being busy, summed over tasks."),
    _counter("worker_tasks_saturated_seconds_total", "Seconds in which every worker task was busy."),
    _gauge("worker_heartbeat_timestamp_seconds", "When this worker last reached Redis, as a Unix time."),
    _gauge("event_loop_lag_seconds", "How late the event loop is, or for how long it has been blocked."),
)
"""Read from the workers of this process at each scrape; the seconds are integrated on every change, not sampled."""

REDIS: Final = (
    _gauge("queue_depth", "Operations by queue and state.", "queue", "priority", "state"),
    _gauge("queue_oldest_age_seconds", "Since when the oldest ready operation is due.", "queue", "priority"),
    _gauge("failures", "Entries in the failures."),
    _gauge("system_errors", "Entries in the system errors."),
    _gauge("unaccounted_operations", "Accepted less waiting, in flight and ended. Anything but 0 is a defect."),
    _gauge("collector_up", "1 when Redis answered this scrape."),
    _gauge("collector_duration_seconds", "How long Redis took to answer this scrape."),
)
"""Read from Redis at each scrape, the same in every process of the fleet: aggregate with max, not with sum."""

TELEMETRY: Final = (
    _counter("spans_ended_total", "Sampled spans that ended."),
    _counter("spans_exported_total", "Spans that the collector has taken."),
    _counter("spans_dropped_total", "Spans lost because the collector was away or too slow."),
    _gauge("build_info", "1, with the version.", "version", "python"),
)
"""About telemetry itself."""

CATALOGUE: Final = {metric.name: metric for metric in (*EVENTS, *WORKER, *REDIS, *TELEMETRY)}

_SECTIONS: Final = (
    ("Counted as things happen, by the process in which they happen", EVENTS),
    ("Read from the workers of this process at each scrape", WORKER),
    ("Read from Redis at each scrape: the same in every process, so use `max`, not `sum`", REDIS),
    ("About telemetry itself", TELEMETRY),
)


def markdown() -> str:
    """The catalogue as Markdown: a heading and a table for each part."""
    return "\n".join(f"### {title}\n\n{_table(metrics)}" for title, metrics in _SECTIONS)


def _table(metrics: Sequence[Metric]) -> str:
    rows = []
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.full_name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(["| metric | type | labels | meaning |", "|---|---|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.stdout.write(markdown())
