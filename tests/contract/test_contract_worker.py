"""Whole operations through `QueueManager` and `QueueWorker`, on each back end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from queue_system import AsyncQueueManager, QueueManager, QueueRetryConfig
from queue_system.testing import drain
from support import running, until, until_metrics


@pytest.fixture
def config(make_config):
    return make_config()


@pytest.fixture
def register(config):
    """Registers functions of a test under their own names; callbacks may be among them."""

    def register(*functions):
        for function in functions:
            config.registry.register(function, name=function.__name__, module="tests")

    return register


@pytest.fixture
def failures(config, queue):
    return lambda: config.broker.run(config.commands.failures())


def quick(attempts: int = 5) -> QueueRetryConfig:
    return QueueRetryConfig.fixed(delay=0.01, max_attempts=attempts)


async def test_async_and_sync_operations_with_callbacks(config, queue, register):
    called: list[dict] = []

    async def double(entity):
        return {"is": entity["n"] * 2}

    def square(entity):
        return {"is": entity["n"] ** 2}

    async def on_success(data):
        called.append(data)

    register(double, square, on_success)
    for function in (double, square):
        assert queue.enqueue({"n": 7}, function, on_success=on_success, priority="high")["status"] == "queued"
    async with running(config):
        await until_metrics(config, enqueued=2, processed=2, callbacks_processed=2, failed=0)
    assert {data["processor"]: data["result"] for data in called} == {"double": {"is": 14}, "square": {"is": 49}}


async def test_an_idle_worker_is_woken(config, queue, register):
    async def echo(entity):
        return entity

    def echo_in_thread(entity):
        return entity

    register(echo, echo_in_thread)
    async with running(config):
        for number, function in enumerate((echo, echo_in_thread, echo, echo_in_thread), start=1):
            queue.enqueue({}, function)
            await until_metrics(config, processed=number)


async def test_retried_until_it_succeeds(config, queue, register):
    attempts: list[int] = []

    async def flaky(entity, context):
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise ValueError("not yet")

    register(flaky)
    queue.enqueue({}, flaky, retry_config=quick())
    async with running(config):
        await until_metrics(config, processed=1, retried=2, failed=0)
    assert attempts == [1, 2, 3]


async def test_given_up_after_its_last_attempt_and_called_back(config, queue, register, failures):
    told: list[dict] = []

    def broken(entity):
        raise ValueError(f"bad {entity['n']}")

    def on_failure(data):
        told.append(data)

    register(broken, on_failure)
    queue.enqueue({"n": 7}, broken, operation_id="op", retry_config=quick(2), on_failure=on_failure)
    async with running(config):
        await until_metrics(config, failed=1, retried=1, callbacks_processed=1, processed=0)
    (row,) = failures()
    assert (row.operation_id, row.attempts, len(row.history)) == ("op", 2, 2)
    assert b"bad 7" in row.error
    assert (told[0]["reason"], told[0]["error"], told[0]["attempts"]) == (
        "error",
        {"type": "ValueError", "message": "bad 7"},
        2,
    )


async def test_a_failure_runs_again_when_it_is_put_back(config, queue, register, failures):
    healthy = threading.Event()

    def sometimes(entity):
        if not healthy.is_set():
            raise ValueError("ill")

    register(sometimes)
    queue.enqueue({}, sometimes, operation_id="op", retry_config=quick(1))
    async with running(config):
        await until_metrics(config, failed=1)
        healthy.set()
        assert config.broker.run(config.commands.requeue_failure("op"))
        await until_metrics(config, processed=1, requeued=1)
    assert failures() == []


async def test_a_processor_out_of_time_is_cancelled(config, queue, register, failures):
    cleaned_up: list[bool] = []

    async def endless(entity):
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(True)

    register(endless)
    queue.enqueue({}, endless, timeout=0.05, retry_config=quick(2))
    async with running(config):
        await until_metrics(config, failed=1, retried=1, timeouts=2)
    assert cleaned_up == [True, True]
    assert b'"reason":"timeout"' in failures()[0].error


async def test_a_delay_passes_before_the_first_attempt(config, queue, register):
    started: list[float] = []

    async def note(entity):
        started.append(config.broker.run(config.commands.status()).now)

    register(note)
    async with running(config):
        asked = queue.get_queue_status()["status_time"]
        assert queue.enqueue({}, note, delay=0.2)["status"] == "scheduled"
        await until_metrics(config, processed=1)
    assert started[0] - asked >= 0.2


async def test_a_lease_is_renewed_while_its_operation_runs(config, queue, register):
    client = config.clients.sync(timeout=5.0)
    release = asyncio.Event()
    runs: list[int] = []

    async def slow(entity):
        runs.append(1)
        await release.wait()

    register(slow)
    queue.enqueue({}, slow, operation_id="op")

    def expiry():
        return client.zscore(config.keys.leases, "op")

    async with running(config, lease=0.3):
        seen = {await until(expiry)}
        for _ in range(3):
            seen.add(await until(lambda: None if expiry() in seen else expiry()))
        release.set()
        await until_metrics(config, processed=1)
    client.close()
    assert (len(seen), len(runs)) == (4, 1)


async def test_a_stop_gives_back_what_runs_without_burning_an_attempt(config, make_config, queue, register):
    begun = asyncio.Event()
    attempts: list[int] = []

    async def patient(entity, context):
        attempts.append(context.attempt)
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()

    register(patient)
    queue.enqueue({}, patient)
    async with running(config) as worker:
        async with asyncio.timeout(20):
            await begun.wait()
        await worker.stop(grace=0.0)
    status = queue.get_queue_status()
    assert (status[config.get_queue_key("patient")], status["in_flight"]) == (1, 0)
    metrics = await drain(make_config())
    assert attempts == [1, 1]
    assert (metrics["processed"], metrics["retried"], metrics.get("reclaimed", 0)) == (1, 0, 0)


async def test_a_crashed_worker_is_replaced(config, queue, register):
    async def process(entity):
        return entity

    register(process)
    queue.enqueue({}, process, operation_id="op")
    claim = config.commands.claim(async_slots=1, sync_slots=1, lease=60.0, retention=60.0)
    assert len(config.broker.run(claim).deliveries) == 1  # and its owner dies
    client = config.clients.sync(timeout=5.0)
    async with running(config, lease=1.0):
        client.zadd(config.keys.leases, {"op": 1})
        await until_metrics(config, processed=1, reclaimed=1)
    client.close()


async def test_two_workers_run_each_operation_once(config, make_config, queue, register):
    runs: list[int] = []

    async def on_loop(entity):
        runs.append(entity["n"])

    def in_thread(entity):
        runs.append(entity["n"])

    register(on_loop, in_thread)
    async with running(config), running(make_config()):
        queue.enqueue_batch([{"n": number} for number in range(150)], on_loop)
        queue.enqueue_batch([{"n": number} for number in range(150, 300)], in_thread, priority="low")
        await until_metrics(config, processed=300, retried=0)
    assert sorted(runs) == list(range(300))


async def test_strict_priority_at_a_single_task(config, queue, register):
    order: list[str] = []

    async def note(entity):
        order.append(entity["priority"])

    register(note)
    for priority in ("low", "normal", "high"):
        queue.enqueue_batch([{"priority": priority}] * 5, note, priority=priority)
    await drain(config, max_workers=1)
    assert order == ["high"] * 5 + ["normal"] * 5 + ["low"] * 5


async def test_what_cannot_be_understood_is_kept_apart(config, queue, register):
    async def process(entity):
        return entity

    register(process)
    queue.enqueue({}, process, operation_id="good")
    client = config.clients.sync(timeout=5.0)
    client.hset(config.keys.operation("bad"), mapping={"st": "ready", "q": "normal:process", "b": b"\xff{not json"})
    client.rpush(config.get_queue_key("process"), "bad")
    client.close()
    metrics = await drain(config)
    assert (metrics["processed"], metrics["system_errors"]) == (1, 1)
    (row,) = config.broker.run(config.commands.failures(system_errors=True))
    assert (row.operation_id, row.body) == ("bad", b"\xff{not json")


async def test_the_asynchronous_manager_does_the_same(config, register):
    async def process(entity):
        return entity

    register(process)
    manager = AsyncQueueManager(config)
    assert (await manager.enqueue({"n": 1}, process, operation_id="one"))["status"] == "queued"
    assert (await manager.enqueue({"n": 1}, process, operation_id="one"))["status"] == "duplicate"
    batch = await manager.enqueue_batch([{"n": 2}, {"n": 2}, {"n": 3}], process, deduplicate=True)
    assert [result["status"] for result in batch] == ["queued", "duplicate", "queued"]
    status = await manager.get_queue_status()
    assert (status[config.get_queue_key("process")], status["metrics"]["deduplicated"]) == (3, 2)
    assert await manager.purge_queue("process") == 3
    assert (await manager.get_queue_status())["total_items"] == 0
    await manager.close()


def test_a_batch_is_one_round_trip_for_thousands(config, queue: QueueManager, register):
    async def process(entity):
        return entity

    register(process)
    results = queue.enqueue_batch([{"n": number} for number in range(2500)], process, delay=0.0)
    assert [result["status"] for result in results] == ["queued"] * 2500
    assert queue.get_queue_status()[config.get_queue_key("process")] == 2500
    assert queue.purge_queue("process") == 2500
