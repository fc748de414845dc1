"""`get_queue_status` in the shape of the specification's "Monitoring Queue Status"."""

from __future__ import annotations

import asyncio
import threading
import time

from scaffold import add

from queue_system import QueueManager, QueueRetryConfig
from support import running, until, until_metrics

TOP_LEVEL = {
    "queue:high:async_processor",
    "queue:normal:sync_processor",
    "queue:failures",
    "queue:system_errors",
    "total_items",
    "metrics",
    "status_time",
}
METRICS = {
    "enqueued",
    "processed",
    "failed",
    "retried",
    "timeouts",
    "thread_pool_exhaustion",
    "thread_pool_utilization",
    "success_rate",
}


def without_prefix(status, config):
    return {key.replace(config.queue_prefix, "queue:", 1): value for key, value in status.items()}


async def test_the_example_of_the_specification_gives_its_keys_and_its_numbers(config):
    """115 enqueued: 98 processed, 2 failed, 15 waiting; on the way 5 retries, one of them after a timeout."""
    failing: dict[int, int] = {0: 1, 1: 1, 2: 2}  # how many more times an operation fails
    exhausted = QueueRetryConfig.fixed(0.01, max_attempts=1)

    async def async_processor(entity):
        if entity["n"] < 0:
            raise ValueError("always")
        if entity["n"] == 3 and failing.setdefault(3, 1):
            failing[3] -= 1
            await asyncio.sleep(30)
        if failing.get(entity["n"], 0):
            failing[entity["n"]] -= 1
            raise ValueError("not yet")

    def sync_processor(entity):
        return entity

    add(config, async_processor, sync_processor)
    queue = QueueManager(config)
    retry = QueueRetryConfig.fixed(0.01, max_attempts=5)
    numbers = [{"n": n} for n in range(50)]
    queue.enqueue_batch(numbers, async_processor, priority="high", retry_config=retry, timeout=0.3)
    queue.enqueue_batch([{"n": n} for n in range(48)], sync_processor)
    queue.enqueue_batch([{"n": -1}, {"n": -2}], async_processor, priority="high", retry_config=exhausted)
    async with running(config):
        await until_metrics(config, processed=98, failed=2)
    queue.enqueue_batch(numbers[:5], async_processor, priority="high")
    queue.enqueue_batch(numbers[:10], sync_processor, priority="normal")

    before = time.time()
    status = without_prefix(queue.get_queue_status(), config)

    assert status.keys() >= TOP_LEVEL
    assert [key for key in status if key.startswith("queue:")] == [
        "queue:high:async_processor",
        "queue:normal:sync_processor",
        "queue:failures",
        "queue:system_errors",
    ]
    assert status["queue:high:async_processor"] == 5
    assert status["queue:normal:sync_processor"] == 10
    assert status["queue:failures"] == 2
    assert status["queue:system_errors"] == 0
    assert status["total_items"] == 17
    assert abs(status["status_time"] - before) < 5
    metrics = status["metrics"]
    assert metrics.keys() >= METRICS
    assert {name: metrics[name] for name in METRICS - {"thread_pool_exhaustion"}} == {
        "enqueued": 115,
        "processed": 98,
        "failed": 2,
        "retried": 5,
        "timeouts": 1,
        "thread_pool_utilization": 0.0,  # no worker lives now
        "success_rate": 98.0,
    }
    assert metrics["thread_pool_exhaustion"] == 0
    assert all(isinstance(value, int | float) for value in metrics.values())


async def test_a_fresh_queue_has_all_its_keys(queue, config):
    status = without_prefix(queue.get_queue_status(), config)
    assert status.keys() >= {key for key in TOP_LEVEL if not key.endswith("_processor")}
    assert status["total_items"] == 0
    assert status["metrics"].keys() >= METRICS
    assert status["metrics"]["success_rate"] == 100.0


async def test_delayed_and_in_flight_come_on_top(config):
    release = asyncio.Event()
    started = asyncio.Event()

    async def waits(entity):
        started.set()
        await release.wait()

    add(config, waits)
    queue = QueueManager(config)
    queue.enqueue({"n": 1}, waits)
    queue.enqueue({"n": 2}, waits, delay=3600)
    async with running(config, max_workers=1):
        await started.wait()
        queue.enqueue({"n": 3}, waits)
        status = without_prefix(queue.get_queue_status(), config)
        release.set()
        await until_metrics(config, processed=2)
    assert (status["queue:normal:waits"], status["delayed"], status["in_flight"]) == (1, 1, 1)
    assert status["total_items"] == 1


async def test_utilization_is_the_share_of_threads_that_are_busy(config):
    release = threading.Event()

    def busy(entity):
        assert release.wait(30)

    add(config, busy)
    queue = QueueManager(config)
    queue.enqueue({}, busy)
    async with running(config, thread_pool_size=2, lease=0.6):  # a heartbeat every 0.2 s
        try:
            metrics = await until(
                lambda: (m := config.get_metrics())["thread_pool_utilization"] >= 49.0 and m, what="half of the pool"
            )
        finally:
            release.set()
    assert 49.0 <= metrics["thread_pool_utilization"] <= 51.0
    assert (metrics["thread_pool_size"], metrics["workers"]) == (2, 1)
