"""Metrics that are read at scrape time: the workers of this process, and the queue's state in Redis."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from queue_system.errors import QueueError
from queue_system.events import (
    Depth,
    QueueView,
    WorkerStats,
    WorkerView,
)
from queue_system.keys import PRIORITIES
from telemetry.catalogue import CATALOGUE, TELEMETRY
from telemetry.export import SpanCounts
from telemetry.metrics import MAX_LABEL_VALUES, OTHER, Bounded

logger = logging.getLogger("queue_system.telemetry")

STATES: Final = ("ready", "delayed", "in_flight", "failed")

_FAMILIES: Final[dict[str, Any]] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

_WORKER_VALUES: Final[dict[str, Callable[[WorkerStats], float]]] = {
    "thread_pool_size": lambda stats: stats.pool.size,
    "thread_pool_active": lambda stats: stats.pool.active,
    "thread_pool_waiting": lambda stats: stats.pool.waiting,
    "thread_pool_abandoned": lambda stats: stats.pool.abandoned,
    "worker_tasks_abandoned": lambda stats: stats.tasks_abandoned,
    "thread_pool_submissions_total": lambda stats: stats.pool.submissions,
    "thread_pool_busy_seconds_total": lambda stats: stats.pool.busy_seconds,
    "thread_pool_capacity_seconds_total": lambda stats: stats.pool.capacity_seconds,
    "thread_pool_saturated_seconds_total": lambda stats: stats.pool.saturated_seconds,
    "worker_tasks": lambda stats: stats.tasks,
    "worker_tasks_alive": lambda stats: stats.tasks_alive,
    "worker_tasks_busy": lambda stats: stats.tasks_busy,
    "worker_task_busy_seconds_total": lambda stats: stats.task_busy_seconds,
    "worker_tasks_saturated_seconds_total": lambda stats: stats.tasks_saturated_seconds,
}
"""Summed over the workers of the process, of which there is usually one."""


class WorkerCollector:
    """Reads the workers of this process."""

    def __init__(self) -> None:
        self._workers: dict[str, WorkerView] = {}

    def attach(self, worker: WorkerView) -> None:
        """From now on this worker is read."""
        self._workers[worker.worker_id] = worker

    def detach(self, worker: WorkerView) -> None:
        """It has stopped: its counters end here."""
        self._workers.pop(worker.worker_id, None)

    def describe(self) -> Iterable[Metric]:
        """The names that `collect` yields, so that registering does not read anything."""
        return [_family(name) for name in (*_WORKER_VALUES, *_DERIVED)]

    def collect(self) -> Iterator[Metric]:
        """One family for each metric of `catalogue.WORKER`."""
        stats = [worker.stats() for worker in list(self._workers.values())]
        if not stats:
            return
        for name, value in _WORKER_VALUES.items():
            yield _family(name, sum(value(one) for one in stats))
        threads = sum(one.pool.size for one in stats)
        busy = sum(one.utilization * one.pool.size for one in stats)
        yield _family("thread_pool_utilization_ratio", busy / threads if threads else 0.0)
        yield _family("worker_heartbeat_timestamp_seconds", min(one.last_contact for one in stats))
        yield _family("event_loop_lag_seconds", max(one.loop_lag for one in stats))


_DERIVED: Final = ("thread_pool_utilization_ratio", "worker_heartbeat_timestamp_seconds", "event_loop_lag_seconds")


_NOTHING_READ: Final[tuple[float, list[Depth] | None, float]] = (float("-inf"), None, 0.0)


class QueueCollector:
    """Reads depth, age and accounting from Redis, in one script whose cost does not depend on the backlog.

    It is bounded in time by the view's own connection; when Redis does not answer, ``collector_up`` is 0 and the rest
    of the scrape is served all the same. Within `cache` seconds a second scrape is answered from the first.

    Args:
        queue_label: makes the label of a queue's name; by default the name of the first `MAX_LABEL_VALUES` queues.
        cache: seconds, 1 by default.
    """

    def __init__(self, queue_label: Callable[[str], str] | None = None, *, cache: float = 1.0) -> None:
        self._views: list[QueueView] = []
        self._cache = cache
        self._last = _NOTHING_READ
        self._queue = Bounded(MAX_LABEL_VALUES, OTHER) if queue_label is None else queue_label

    def attach(self, view: QueueView) -> None:
        """From now on this queue is read; the same queue twice is read once."""
        self._views.append(view)
        self._last = _NOTHING_READ

    def detach(self, view: QueueView) -> None:
        """Do not read it any more."""
        self._views = [one for one in self._views if one is not view]
        self._last = _NOTHING_READ

    def describe(self) -> Iterable[Metric]:
        """The names that `collect` yields, so that registering does not ask Redis."""
        names = ("failures", "system_errors", "unaccounted_operations", "collector_up", "collector_duration_seconds")
        return [_family(name) for name in names] + list(self._by_queue([]))

    def collect(self) -> Iterator[Metric]:
        """One family for each metric of `catalogue.REDIS`."""
        if not self._views:
            return
        depths, took = self._read()
        yield _family("collector_up", 0.0 if depths is None else 1.0)
        yield _family("collector_duration_seconds", took)
        if depths is None:
            return
        yield _family("failures", sum(depth.failures for depth in depths))
        yield _family("system_errors", sum(depth.system_errors for depth in depths))
        yield _family("unaccounted_operations", sum(depth.unaccounted for depth in depths))
        yield from self._by_queue(depths)

    def _read(self) -> tuple[list[Depth] | None, float]:
        began = time.monotonic()
        at, depths, took = self._last
        if began - at < self._cache:
            return depths, took
        try:
            depths = [view.depth() for view in {view.name: view for view in list(self._views)}.values()]
        except QueueError:
            depths = None  # told by collector_up
        except (
            Exception
        ):  # such as a counter that somebody set to a word: the rest of the scrape is needed all the more
            logger.exception("queue_depth_unreadable")
            depths = None
        took = time.monotonic() - began
        self._last = (time.monotonic(), depths, took)
        return depths, took

    def _by_queue(self, depths: list[Depth]) -> Iterator[Metric]:
        counts: dict[tuple[str, str, str], int] = {}
        ages: dict[tuple[str, str], float] = {}
        for depth in depths:
            for row in depth.queues:
                queue = self._queue(row.queue)
                priority = row.priority if row.priority in PRIORITIES else OTHER
                for state, count in zip(STATES, (row.ready, row.delayed, row.in_flight, row.failed), strict=True):
                    key = queue, priority, state
                    counts[key] = counts.get(key, 0) + count
                pair = queue, priority
                ages[pair] = max(ages.get(pair, 0.0), row.oldest_age)
        yield _labelled("queue_depth", counts)
        yield _labelled("queue_oldest_age_seconds", ages)


class TelemetryCollector:
    """Tells of telemetry itself: spans, once `spans` is set, and the version."""

    def __init__(self, version: str, python: str) -> None:
        self._build = {"version": version, "python": python}
        self.spans: SpanCounts | None = None

    def describe(self) -> Iterable[Metric]:
        """The names that `collect` yields."""
        return [_family(metric.name) for metric in TELEMETRY]

    def collect(self) -> Iterator[Metric]:
        """One family for each metric of `catalogue.TELEMETRY`."""
        spans = self.spans or SpanCounts()
        yield _family("spans_ended_total", spans.ended)
        yield _family("spans_exported_total", spans.exported)
        yield _family("spans_dropped_total", spans.dropped)
        yield _labelled("build_info", {tuple(self._build[name] for name in CATALOGUE["build_info"].labels): 1})


def _family(name: str, value: float | None = None) -> Metric:
    metric = CATALOGUE[name]
    family: Metric = _FAMILIES[metric.kind](metric.full_name, metric.help, value=value)
    return family


def _labelled(name: str, values: dict[Any, Any]) -> Metric:
    metric = CATALOGUE[name]
    family = GaugeMetricFamily(metric.full_name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
