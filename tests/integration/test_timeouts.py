"""Timeouts, retries on time, the failures queue, and the way back from it."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest
from scaffold import add, given_up, leased, named, redis_of, stored

from queue_system import QueueManager, QueueRetryConfig
from queue_system.failures import FailureStore
from support import running, until, until_metrics

LATE = 1.7
"""Seconds: more than a busy machine takes, less than the 2 s for which an idle worker blocks when nothing wakes it."""


class Slow:
    """An async processor of 10 s that tells how it ended."""

    def __init__(self) -> None:
        self.started: list[float] = []
        self.cancelled: list[float] = []
        self.finished = 0

    async def slow(self, entity):
        self.started.append(time.monotonic())
        try:
            await asyncio.sleep(10)
            self.finished += 1
        finally:
            self.cancelled.append(time.monotonic())


async def test_a_timeout_cancels_retries_by_the_schedule_and_ends_in_failures_and_can_be_requeued(config):
    slow = Slow()
    add(config, slow.slow)
    queue = QueueManager(config)
    schedule = QueueRetryConfig.custom([0.2, 0.5])
    result = queue.enqueue({"id": 1}, slow.slow, timeout=0.2, retry_config=schedule, operation_id="slow-1")
    assert result["status"] == "queued"
    async with running(config):
        metrics = await until_metrics(config, failed=1)
        assert (metrics["timeouts"], metrics["retried"], metrics["processed"]) == (3, 2, 0)

        assert (len(slow.started), len(slow.cancelled), slow.finished) == (3, 3, 0)
        for started, cancelled in zip(slow.started, slow.cancelled, strict=True):
            assert 0.05 < cancelled - started < 5.0  # the time counts from before the processor's first line
        pauses = [start - end for end, start in zip(slow.cancelled, slow.started[1:], strict=False)]
        for pause, delay in zip(pauses, schedule.delays, strict=True):
            assert 0.9 * delay - 0.01 <= pause < delay + 1.5

        (entry,) = given_up(config)
        assert (entry.operation_id, entry.entity, entry.attempts) == ("slow-1", {"id": 1}, 3)
        assert (entry.reason, entry.error_type) == ("timeout", "TimeoutError")
        assert entry.error_message == "cancelled after 0.2 s"
        assert "in slow\n" in entry.traceback  # the line of the processor that was cancelled
        assert "await asyncio.sleep(10)" in entry.traceback
        assert [attempt["reason"] for attempt in entry.history] == ["timeout"] * 3
        assert leased(config) == set()

        assert FailureStore(config).retry("slow-1")
        metrics = await until_metrics(config, failed=2, requeued=1)
        assert len(slow.started) == 6  # with all its attempts before it again
        (entry,) = given_up(config)
        assert (entry.operation_id, entry.reason, entry.attempts) == ("slow-1", "timeout", 3)
        assert not FailureStore(config).retry("unknown")


async def test_a_requeued_failure_can_succeed(config):
    healthy = asyncio.Event()

    async def depends(entity, context):
        if not healthy.is_set():
            raise ConnectionError("not yet")
        return context.attempt

    add(config, depends)
    queue = QueueManager(config)
    queue.enqueue({}, depends, operation_id="one", retry_config=QueueRetryConfig.fixed(0.01, max_attempts=2))
    async with running(config):
        await until_metrics(config, failed=1, retried=1)
        healthy.set()
        assert FailureStore(config).retry("one")
        await until_metrics(config, processed=1)
    assert given_up(config) == []
    assert queue.get_queue_status()["total_items"] == 0


async def test_an_idle_worker_retries_on_time(config):
    """It is blocked in a read of up to 2 s when the retry becomes due."""
    started: list[float] = []

    async def fails_four_times(entity):
        started.append(time.monotonic())
        if len(started) <= 4:
            raise ValueError("again")

    add(config, fails_four_times)
    queue = QueueManager(config)
    async with running(config):
        await until(lambda: config.get_metrics()["workers"] == 1)
        queue.enqueue({}, fails_four_times, retry_config=QueueRetryConfig.fixed(0.2, max_attempts=5))
        await until_metrics(config, processed=1)
    pauses = [later - earlier for earlier, later in itertools.pairwise(started)]
    assert len(pauses) == 4
    assert all(0.17 <= pause < LATE for pause in pauses), pauses


async def test_an_idle_worker_runs_a_scheduled_operation_on_time(config):
    ran: list[float] = []

    async def scheduled(entity):
        ran.append(time.monotonic())

    add(config, scheduled)
    queue = QueueManager(config)
    async with running(config):
        await until(lambda: config.get_metrics()["workers"] == 1)
        enqueued = time.monotonic()
        assert queue.enqueue({}, scheduled, delay=0.3)["status"] == "scheduled"
        await until_metrics(config, processed=1)
    assert 0.29 <= ran[0] - enqueued < LATE


async def test_the_total_time_bounds_all_attempts(config):
    calls: list[int] = []

    async def fails(entity, context):
        calls.append(context.attempt)
        raise ValueError("no")

    add(config, fails)
    queue = QueueManager(config)
    schedule = QueueRetryConfig.fixed(0.6, max_attempts=100, timeout=1.5)
    queue.enqueue({}, fails, retry_config=schedule)
    async with running(config):
        await until_metrics(config, failed=1)
    assert 2 <= len(calls) <= 3  # a fourth would start after 1.62 s at the earliest
    (entry,) = given_up(config)
    assert entry.reason == "total_timeout"
    assert entry.error_type == "ValueError"  # the last error is kept
    assert entry.attempts == len(calls)


async def test_the_total_time_does_not_run_before_the_first_call(config):
    """A thread that is busy for longer than the total time, then a retry that is well within it."""
    calls: list[int] = []
    gate = threading.Event()

    def holds(entity):
        gate.wait(60)

    def fails_once(entity, context):
        calls.append(context.attempt)
        if len(calls) == 1:
            raise ValueError("no")

    add(config, holds, fails_once)
    queue = QueueManager(config)
    queue.enqueue({}, holds)
    async with running(config, thread_pool_size=1) as worker:
        await until(lambda: worker.stats().pool.active == 1)
        schedule = QueueRetryConfig.fixed(0.01, max_attempts=3, timeout=1.0)
        queue.enqueue({}, fails_once, retry_config=schedule, operation_id="op")
        enqueued = time.monotonic()
        await until_metrics(config, thread_pool_exhaustion=1, retried=1)
        assert "fa" not in stored(config, "op")
        await until(lambda: leased(config) >= {"op"} and time.monotonic() - enqueued > 1.1)
        gate.set()
        await until_metrics(config, processed=2, failed=0)
    assert len(calls) == 2


async def test_a_stored_total_time_of_zero_is_one_attempt(config):
    """As an older producer could write it. It was given up uncalled, or after a millisecond."""
    ended: list[str] = []

    async def fails(entity):
        await asyncio.sleep(0.05)
        ended.append("called")
        raise ValueError("no")

    add(config, fails)
    QueueManager(config).enqueue({}, fails, retry_config=QueueRetryConfig.fixed(0.01, timeout=8765), operation_id="op")
    redis = redis_of(config)
    body = redis.hget(config.keys.operation("op"), "b")
    assert b'"timeout":8765.0' in body
    redis.hset(config.keys.operation("op"), "b", body.replace(b'"timeout":8765.0', b'"timeout":0.0'))
    async with running(config):
        await until_metrics(config, failed=1, retried=0, system_errors=0)
    assert ended == ["called"]
    (entry,) = given_up(config)
    assert (entry.reason, entry.error_type) == ("error", "ValueError")


async def test_the_total_time_cuts_the_last_attempt_short(config):
    ended: list[float] = []

    async def hangs(entity):
        began = time.monotonic()
        try:
            await asyncio.sleep(10)
        finally:
            ended.append(time.monotonic() - began)

    add(config, hangs)
    QueueManager(config).enqueue({}, hangs, retry_config=QueueRetryConfig.fixed(0.01, timeout=0.3), timeout=5.0)
    async with running(config):
        await until_metrics(config, failed=1, timeouts=1)
    assert len(ended) == 1
    assert ended[0] < 2.0


async def test_the_workers_timeout_holds_where_the_operation_has_none(config):
    slow = Slow()
    add(config, slow.slow)
    QueueManager(config).enqueue({}, slow.slow, retry_config=QueueRetryConfig(max_attempts=1))
    async with running(config, work_timeout=0.2):
        await until_metrics(config, failed=1, timeouts=1)
    assert len(slow.cancelled) == 1


async def test_a_timeout_error_of_the_processor_itself_is_no_timeout(config):
    async def raises(entity):
        raise TimeoutError("the database did not answer")

    add(config, raises)
    QueueManager(config).enqueue({}, raises, retry_config=QueueRetryConfig(max_attempts=1), timeout=20)
    async with running(config):
        metrics = await until_metrics(config, failed=1)
    assert metrics["timeouts"] == 0
    (entry,) = given_up(config)
    assert (entry.reason, entry.error_message) == ("error", "the database did not answer")


async def test_a_sync_processor_has_no_timeout(config):
    def slow(entity):
        time.sleep(0.5)

    add(config, slow)
    QueueManager(config).enqueue({}, slow, timeout=0.05)
    async with running(config, work_timeout=0.05):
        metrics = await until_metrics(config, processed=1)
    assert (metrics["timeouts"], metrics["retried"]) == (0, 0)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_failure_keeps_all_that_is_needed_to_understand_it(config, kind):
    async def broken_async(entity):
        raise KeyError("missing in async")

    def broken_sync(entity):
        raise KeyError("missing in sync")

    function = {"async": broken_async, "sync": broken_sync}[kind]
    add(config, function)
    QueueManager(config).enqueue(
        {"order": 7}, function, operation_id="broken", retry_config=QueueRetryConfig.fixed(0.01, max_attempts=2)
    )
    async with running(config) as worker:
        await until_metrics(config, failed=1, retried=1)
    (entry,) = given_up(config)
    assert (entry.operation_id, entry.queue, entry.priority) == ("broken", function.__name__, "normal")
    assert (entry.processor, entry.entity, entry.attempts) == (named(function), {"order": 7}, 2)
    assert (entry.error_type, entry.error_message) == ("KeyError", f"'missing in {kind}'")
    assert f"in {function.__name__}\n" in entry.traceback
    assert [attempt["attempt"] for attempt in entry.history] == [1, 2]
    for attempt in entry.history:
        assert attempt["worker"] == worker.worker_id
        assert attempt["started"] <= attempt["ended"] <= entry.failed_at.timestamp() + 1


async def test_no_wake_up_is_lost_when_work_arrives_while_a_claim_is_on_its_way(config):
    """A producer that answers each outcome at once hits that moment again and again; a loss costs 2 s."""

    async def quick(entity):
        return None

    add(config, quick)
    queue = QueueManager(config)
    rounds: list[float] = []

    def answer_each_outcome() -> None:
        for number in range(1, 201):
            began = time.monotonic()
            queue.enqueue({}, quick)
            while config.get_metrics()["processed"] < number and time.monotonic() - began < 5:
                pass
            rounds.append(time.monotonic() - began)

    async with running(config):
        await asyncio.to_thread(answer_each_outcome)
    assert config.get_metrics()["processed"] == 200
    assert max(rounds) < LATE
