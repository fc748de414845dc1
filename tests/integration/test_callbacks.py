"""Callbacks are operations of their own: called after the outcome is written, again when they fail, never lost."""

from __future__ import annotations

import asyncio
import threading
import uuid

import pytest
from scaffold import Notes, add, add_callbacks, given_up, jobs, named, worker_program

from queue_system import QueueManager, QueueRetryConfig
from support import running, until, until_metrics

NO_RETRY = QueueRetryConfig(max_attempts=1)


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_on_success_gets_the_result(config, kind):
    calls: list[dict] = []
    threads: set[str] = set()

    async def work(entity):
        return {"twice": 2 * entity["n"]}

    async def success_async(data):
        calls.append(data)

    def success_sync(data):
        threads.add(threading.current_thread().name)
        calls.append(data)

    success = {"async": success_async, "sync": success_sync}[kind]
    add(config, work)
    add_callbacks(config, success)
    queue = QueueManager(config)
    queue.enqueue({"n": 21}, work, operation_id="one", priority="high", on_success=named(success))
    async with running(config):
        metrics = await until_metrics(config, processed=1, callbacks_processed=1)
    assert calls == [
        {
            "operation_id": "one",
            "queue": "work",
            "priority": "high",
            "processor": "work",
            "entity": {"n": 21},
            "attempts": 1,
            "result": {"twice": 42},
        }
    ]
    assert (metrics["enqueued"], metrics["callbacks_enqueued"]) == (1, 1)  # counted apart
    assert threading.current_thread().name not in threads  # a sync one does not block the event loop


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_on_failure_gets_the_reason_and_the_error_once_at_the_end(config, kind):
    calls: list[dict] = []

    async def broken_async(entity):
        raise ValueError("no such order")

    def broken_sync(entity):
        raise ValueError("no such order")

    async def on_failure(data):
        calls.append(data)

    async def on_success(data):
        raise AssertionError("must not be called")

    broken = {"async": broken_async, "sync": broken_sync}[kind]
    add(config, broken)
    add_callbacks(config, on_failure, on_success)
    QueueManager(config).enqueue(
        {"order": 7},
        broken,
        operation_id="one",
        retry_config=QueueRetryConfig.fixed(0.01, max_attempts=3),
        on_failure=named(on_failure),
        on_success=named(on_success),
    )
    async with running(config):
        await until_metrics(config, failed=1, callbacks_processed=1)
    assert calls == [
        {
            "operation_id": "one",
            "queue": broken.__name__,
            "priority": "normal",
            "processor": broken.__name__,
            "entity": {"order": 7},
            "attempts": 3,
            "reason": "error",
            "error": {"type": "ValueError", "message": "no such order"},
        }
    ]


async def test_on_failure_is_called_after_timeouts(config):
    calls: list[dict] = []

    async def slow(entity):
        await asyncio.sleep(30)

    async def on_failure(data):
        calls.append(data)

    add(config, slow)
    add_callbacks(config, on_failure)
    QueueManager(config).enqueue({}, slow, timeout=0.1, retry_config=NO_RETRY, on_failure=named(on_failure))
    async with running(config):
        await until_metrics(config, failed=1, callbacks_processed=1)
    (data,) = calls
    assert (data["reason"], data["error"]["type"]) == ("timeout", "TimeoutError")


async def test_a_callback_that_raises_is_called_again_and_its_parent_stays_processed(config):
    calls: list[str] = []

    async def work(entity):
        return None

    async def flaky(data):
        calls.append(data["operation_id"])
        if len(calls) < 2:
            raise ConnectionError("not yet")

    add(config, work)
    add_callbacks(config, flaky)
    QueueManager(config).enqueue({}, work, operation_id="one", on_success=named(flaky))
    async with running(config):
        metrics = await until_metrics(config, processed=1, callbacks_processed=1)
    assert calls == ["one"] * 2
    assert (metrics["failed"], metrics["retried"]) == (0, 0)
    assert metrics["callbacks_retried"] == 1  # as often as it was called, less the last
    assert given_up(config) == []


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_callback_may_take_its_context(config, kind):
    seen: list[tuple] = []

    async def work(entity):
        return None

    async def tell(data, context):
        seen.append((data["operation_id"], context.attempt, context.priority, context.operation_id != "one"))

    def tell_in_a_thread(data, context):
        seen.append((data["operation_id"], context.attempt, context.priority, context.operation_id != "one"))

    add(config, work)
    add_callbacks(config, tell, tell_in_a_thread)
    callback = tell if kind == "async" else tell_in_a_thread
    QueueManager(config).enqueue({}, work, operation_id="one", priority="high", on_success=named(callback))
    async with running(config):
        await until_metrics(config, processed=1, callbacks_processed=1, callbacks_retried=0)
    assert seen == [("one", 1, "high", True)]


async def test_what_the_import_policy_refuses_has_its_callback(config):
    told: list[dict] = []

    async def on_failure(data):
        told.append(data)

    add_callbacks(config, on_failure)
    QueueManager(config).enqueue({"n": 7}, "shutil:rmtree", operation_id="one", on_failure=named(on_failure))
    async with running(config):
        await until_metrics(config, system_errors=1, rejected=1, callbacks_processed=1)
    (data,) = told
    assert (data["operation_id"], data["entity"], data["attempts"]) == ("one", {"n": 7}, 0)
    assert data["reason"] == data["error"]["type"] == "ImportRefusedError"


async def test_a_callback_that_nobody_knows_does_not_touch_its_parent(config):
    async def work(entity):
        return None

    add(config, work)
    queue = QueueManager(config)
    queue.enqueue({}, work, on_success="nowhere_to_be_found")
    async with running(config):
        metrics = await until_metrics(config, processed=1, callbacks_enqueued=1)
        await until(lambda: queue.get_queue_status()["delayed"] == 1)  # for a newer worker, perhaps
    assert (metrics["failed"], metrics.get("callbacks_processed", 0)) == (0, 0)


async def test_a_result_without_a_json_form_still_calls_back(config):
    calls: list[dict] = []

    async def work(entity):
        return {"when": uuid.UUID(int=7), "what": 1j}

    async def on_success(data):
        calls.append(data)

    add(config, work)
    add_callbacks(config, on_success)
    QueueManager(config).enqueue({}, work, on_success=named(on_success))
    async with running(config):
        await until_metrics(config, processed=1, callbacks_processed=1)
    assert calls[0]["result"] == {"when": str(uuid.UUID(int=7)), "what": {"__unserializable__": "builtins.complex"}}


async def test_a_registered_processor_can_be_a_callback(config):
    seen: list[dict] = []

    async def work(entity):
        return 1

    async def also_a_processor(entity):
        seen.append(entity)

    add(config, work, also_a_processor)
    QueueManager(config).enqueue({}, work, on_success=also_a_processor)
    async with running(config):
        await until_metrics(config, processed=1, callbacks_processed=1)
    assert seen[0]["result"] == 1


async def test_callbacks_are_always_served(config):
    """A worker that serves some queues only still calls back for them."""
    calls: list[dict] = []

    async def work(entity):
        return None

    async def on_success(data):
        calls.append(data)

    add(config, work)
    add_callbacks(config, on_success)
    QueueManager(config).enqueue({}, work, on_success=named(on_success))
    async with running(config, queues=["work"]):
        await until_metrics(config, processed=1, callbacks_processed=1)
    assert len(calls) == 1


async def test_a_worker_that_dies_in_the_callback_does_not_lose_it(config, tmp_path):
    notes = Notes(tmp_path / "notes")
    QueueManager(config).enqueue(
        {"id": "parent"}, jobs.run_async, operation_id="one", on_success=jobs.called_back_and_killed_once
    )
    with worker_program(config, notes, lease=1) as first:
        assert await first.ends() == 9
    assert config.get_metrics()["processed"] == 1
    with worker_program(config, notes, lease=1):
        metrics = await until_metrics(config, callbacks_processed=1)
    assert [note.words for note in notes.all("callback")] == [("one",)] * 2
    assert notes.count("start") == 1  # the parent did not run again
    assert (metrics["processed"], metrics["failed"]) == (1, 0)


async def test_a_worker_that_dies_between_the_outcome_and_the_callback_does_not_lose_it(config, tmp_path):
    notes = Notes(tmp_path / "notes")
    QueueManager(config).enqueue({"id": "parent"}, jobs.run_async, operation_id="one", on_success=jobs.called_back)
    with worker_program(config, notes, dies_of_an_outcome=True, lease=1) as first:
        assert await first.ends() == 9
    assert config.get_metrics()["processed"] == 1
    assert notes.all("callback") == []
    with worker_program(config, notes, lease=1):
        await until_metrics(config, callbacks_processed=1)
    assert [note.words for note in notes.all("callback")] == [("one",)]
    assert notes.count("start") == 1
