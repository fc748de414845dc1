"""Nothing counts as processed that has not run: what a plain function returns is awaited, or its attempt fails."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading

import pytest
from scaffold import add, given_up

from queue_system import ConfigurationError, QueueManager, QueueRetryConfig, QueueWorker
from support import running, until, until_metrics

ONCE = QueueRetryConfig(max_attempts=1)
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_what_a_plain_function_returns_is_awaited_on_the_loop_in_its_context(config):
    seen = []
    results = []

    async def body(entity):
        await asyncio.sleep(0)
        seen.append((entity["id"], VARIABLE.get(), threading.current_thread() is threading.main_thread()))
        return {"id": entity["id"]}

    def plain(entity):
        assert threading.current_thread() is not threading.main_thread()
        VARIABLE.set("of the thread")
        return body(entity)

    def tell(data):
        results.append(data["result"])

    add(config, plain)
    config.register_callback(tell, name="tell", module="tests")
    receipt = QueueManager(config).enqueue({"id": 1}, plain, on_success="tests:tell")
    assert receipt["is_async"] is False
    async with running(config):
        await until_metrics(config, processed=1)
        await until(lambda: results)
    assert seen == [(1, "of the thread", True)]
    assert results == [{"id": 1}]
    assert VARIABLE.get() == "unset"


async def test_asyncio_run_behind_functools_wraps_runs_in_a_thread(config):
    seen = []

    async def body(entity):
        await asyncio.sleep(0)
        seen.append(threading.current_thread() is threading.main_thread())

    @functools.wraps(body)
    def plain(entity):
        return asyncio.run(body(entity))

    config.registry.register(plain, name="plain", module="tests")
    QueueManager(config).enqueue({}, plain, retry_config=ONCE)
    async with running(config):
        await until_metrics(config, processed=1)
    assert seen == [False]


async def test_it_has_the_time_limit_of_async_work(config):
    ended = []

    async def hang():
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append(True)

    def plain(entity):
        return hang()

    add(config, plain)
    QueueManager(config).enqueue({}, plain, timeout=0.2, retry_config=ONCE)
    async with running(config):
        metrics = await until_metrics(config, failed=1)
    (entry,) = given_up(config)
    assert (entry.reason, entry.error_type, entry.error_message) == ("timeout", "TimeoutError", "cancelled after 0.2 s")
    assert "in hang\n" in entry.traceback
    assert (metrics["timeouts"], metrics["processed"], ended) == (1, 0, [True])


async def test_a_generator_of_a_plain_function_fails_its_attempt(config):
    def plain(entity):
        return (each.upper() for each in "ab")

    add(config, plain)
    QueueManager(config).enqueue({}, plain, retry_config=ONCE)
    async with running(config):
        await until_metrics(config, failed=1, processed=0)
    (entry,) = given_up(config)
    assert (entry.reason, entry.error_type) == ("error", "UnrunResultError")
    assert "returned a generator object, whose code has not run" in entry.error_message


async def test_a_stop_cancels_what_is_awaited_and_what_waits_for_its_turn_and_gives_both_back(config):
    began = []
    cancelled = []

    async def hang(number):
        began.append(number)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.append(number)

    called = []

    def plain(entity):
        called.append(entity["id"])
        return hang(entity["id"])

    add(config, plain)
    queue = QueueManager(config)
    queue.enqueue_batch([{"id": number} for number in range(3)], plain)
    worker = QueueWorker(config, thread_pool_size=1)
    await worker.start()
    await until(lambda: len(called) == 3 and began)
    assert len(began) == 1  # as many at once as there are threads
    assert worker.stats().pool.active == 0
    assert queue.get_queue_status()["in_flight"] == 3
    await worker.stop(grace=0.0)
    assert cancelled == began
    status = queue.get_queue_status()
    assert (status["in_flight"], status[config.get_queue_key("plain")]) == (0, 3)
    metrics = config.get_metrics()
    assert (metrics["processed"], metrics["failed"], metrics["retried"]) == (0, 0, 0)


async def test_callbacks_are_awaited_too(config):
    told = []

    async def work(entity):
        return 1

    async def body(data):
        told.append(data["result"])

    def tell(data):
        return body(data)

    add(config, work)
    config.register_callback(tell, name="tell", module="tests")
    QueueManager(config).enqueue({}, work, on_success="tests:tell")
    async with running(config):
        await until_metrics(config, processed=1)
        await until(lambda: told == [1])


def test_a_generator_function_is_refused_when_it_is_enqueued(config):
    def sends(entity):
        yield entity

    def tells(data):
        yield data

    async def work(entity):
        return None

    add(config, work)
    queue = QueueManager(config)
    sends.__qualname__ = tells.__qualname__ = "sends"
    with pytest.raises(ConfigurationError, match="is a generator function"):
        queue.enqueue({}, sends)
    with pytest.raises(ConfigurationError, match="is a generator function"):
        queue.enqueue({}, work, on_success=tells)
    assert config.get_metrics()["enqueued"] == 0
