"""Turns the broker's counts into the shapes that `get_queue_status` and `get_metrics` return. Pure."""

from __future__ import annotations

from typing import Any, Final

from queue_system.broker.messages import Status
from queue_system.keys import Keys

SEED_COUNTERS: Final = (
    "enqueued",
    "processed",
    "failed",
    "retried",
    "timeouts",
    "thread_pool_exhaustion",
    "deduplicated",
    "system_errors",
)
"""Shown as 0 before they were first counted."""


def metrics_summary(status: Status) -> dict[str, Any]:
    """The metrics hash with numbers as numbers, and what is computed from it.

    ``success_rate`` is the percentage of ended operations that ended well, 100.0 before any has ended.
    ``thread_pool_utilization`` is the percentage of all live workers' threads that were busy since their last
    heartbeat, ``thread_pool_size`` the number of those threads, ``workers`` that of live workers.
    """
    metrics: dict[str, Any] = dict.fromkeys(SEED_COUNTERS, 0)
    metrics |= {name: _number(value) for name, value in status.metrics.items()}
    metrics |= {name: 0 for name in SEED_COUNTERS if not isinstance(metrics[name], int)}  # written by someone else
    ended = metrics["processed"] + metrics["failed"]
    metrics["success_rate"] = round(100.0 * metrics["processed"] / ended, 2) if ended else 100.0
    threads = sum(size for _, size, _ in status.workers)
    busy = sum(size * share for _, size, share in status.workers)
    metrics["thread_pool_utilization"] = round(100.0 * busy / threads, 1) if threads else 0.0
    metrics["thread_pool_size"] = threads
    metrics["workers"] = len(status.workers)
    return metrics


def status_summary(status: Status, keys: Keys) -> dict[str, Any]:
    """One entry for each known queue and for what was given up, their sum, and the metrics.

    ``total_items`` counts what is in those lists; ``delayed`` and ``in_flight`` come on top of it.
    """
    counts = {f"{keys.prefix}{name}": length for name, length in sorted(status.queues.items(), key=_dispatch_order)}
    counts[keys.failures] = status.failures
    counts[keys.system_errors] = status.system_errors
    return {
        **counts,
        "total_items": sum(counts.values()),
        "delayed": status.delayed,
        "in_flight": status.leased,
        "metrics": metrics_summary(status),
        "status_time": status.now,
    }


def unaccounted(status: Status) -> int:
    """Invariant I1: accepted less everything that it can have become. Anything but 0 is a defect."""
    return unaccounted_from(status.metrics, sum(status.queues.values()) + status.delayed + status.leased)


def unaccounted_from(metrics: dict[str, str], live: int) -> int:
    """The same from the metrics hash and the number of operations that are ready, delayed or leased."""
    count = {name: number for name, value in metrics.items() if isinstance(number := _number(value), int)}
    kinds = ("", "callbacks_")
    accepted = sum(count.get(f"{kind}{name}", 0) for kind in kinds for name in ("enqueued", "requeued"))
    ended = sum(count.get(f"{kind}{name}", 0) for kind in kinds for name in ("processed", "failed", "discarded"))
    return int(accepted - ended - count.get("rejected", 0) - live)


def _dispatch_order(entry: tuple[str, int]) -> tuple[int, str]:
    priority, _, queue = entry[0].partition(":")
    return {"high": 0, "normal": 1, "low": 2}.get(priority, 3), queue


def _number(value: str) -> Any:
    for convert in (int, float):
        try:
            return convert(value)
        except ValueError:
            continue
    return value
