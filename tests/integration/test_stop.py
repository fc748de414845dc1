"""`stop` drains, gives back the rest without burning an attempt, and is held up by nothing."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from scaffold import add, leased, stored

from queue_system import QueueManager, QueueRetryConfig, QueueWorker, WorkerStateError
from support import running, until, until_metrics

CLEAN_UP = 3.0
"""Seconds that a stop may take beyond its grace on a busy machine; cancelled processors get one of them."""


async def test_what_runs_may_finish_within_the_grace(config):
    started, finish = asyncio.Event(), asyncio.Event()
    release = threading.Event()
    in_thread = threading.Event()

    async def slow(entity):
        started.set()
        async with asyncio.timeout(20):
            await finish.wait()

    def slow_sync(entity):
        in_thread.set()
        assert release.wait(20)

    add(config, slow, slow_sync)
    queue = QueueManager(config)
    queue.enqueue({}, slow)
    queue.enqueue({}, slow_sync)
    worker = QueueWorker(config)
    await worker.start()
    await until(lambda: started.is_set() and in_thread.is_set())
    stopping = asyncio.create_task(worker.stop(grace=20))
    await until(lambda: worker.state == "draining")
    queue.enqueue_batch([{}] * 3, slow)  # a worker that drains claims nothing more
    finish.set()
    release.set()
    await stopping
    assert worker.state == "stopped"
    metrics = config.get_metrics()
    assert (metrics["processed"], metrics["failed"], metrics["retried"]) == (2, 0, 0)
    status = queue.get_queue_status()
    assert (status[config.get_queue_key("slow")], status["in_flight"]) == (3, 0)


async def test_the_rest_is_given_back_without_burning_an_attempt_and_another_worker_does_it(config):
    attempts: list[tuple[str, int]] = []
    cleaned_up: list[str] = []
    patient = asyncio.Event()

    async def long(entity, context):
        attempts.append((context.operation_id, context.attempt))
        try:
            async with asyncio.timeout(20):
                await patient.wait()
        except asyncio.CancelledError:
            cleaned_up.append(context.operation_id)
            raise

    add(config, long)
    queue = QueueManager(config)
    once = QueueRetryConfig(max_attempts=1)
    for number in range(5):
        queue.enqueue({"n": number}, long, operation_id=f"long-{number}", retry_config=once)
    worker = QueueWorker(config, max_workers=3)
    await worker.start()
    await until(lambda: len(attempts) == 3)
    began = time.monotonic()
    await worker.stop(grace=0.2)
    assert 0.2 <= time.monotonic() - began < 0.2 + CLEAN_UP
    assert sorted(cleaned_up) == ["long-0", "long-1", "long-2"]
    assert leased(config) == set()
    for number in range(5):
        fields = stored(config, f"long-{number}")
        assert (fields["st"], "at" in fields, "cr" in fields) == ("ready", False, False)
    metrics = config.get_metrics()
    assert (metrics["processed"], metrics["failed"], metrics["retried"], metrics["workers"]) == (0, 0, 0, 0)
    assert queue.get_queue_status()[config.get_queue_key("long")] == 5

    patient.set()
    async with running(config, max_workers=1):
        await until_metrics(config, processed=5)
    assert {attempt for _, attempt in attempts} == {1}  # each time the first
    # What was given back is at the head of its queue.
    assert {name for name, _ in attempts[3:6]} == {"long-0", "long-1", "long-2"}


async def test_threads_that_never_return_do_not_hold_up_a_stop(config):
    never = threading.Event()
    running_now = threading.Semaphore(0)

    def stuck(entity):
        running_now.release()
        never.wait(60)

    add(config, stuck)
    queue = QueueManager(config)
    for number in range(12):
        queue.enqueue({}, stuck, operation_id=f"stuck-{number}", retry_config=QueueRetryConfig(max_attempts=1))
    worker = QueueWorker(config, thread_pool_size=2)
    await worker.start()
    try:
        await until(lambda: running_now.acquire(blocking=False))
        await until(lambda: running_now.acquire(blocking=False))
        began = time.monotonic()
        await worker.stop(grace=0.2)
        assert time.monotonic() - began < 0.2 + CLEAN_UP
        assert leased(config) == set()
        for number in range(12):
            fields = stored(config, f"stuck-{number}")
            assert (fields["st"], "at" in fields, "cr" in fields) == ("ready", False, False)
        never.set()
        async with running(config, thread_pool_size=2):
            await until_metrics(config, processed=12)
        assert config.get_metrics()["failed"] == 0
    finally:
        never.set()


async def test_a_processor_that_ignores_its_cancellation_does_not_hold_up_a_stop(config):
    stubborn_is_up = asyncio.Event()
    let_go = asyncio.Event()

    async def stubborn(entity):
        stubborn_is_up.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    add(config, stubborn)
    QueueManager(config).enqueue({}, stubborn, operation_id="stubborn")
    worker = QueueWorker(config, max_workers=1)
    await worker.start()
    try:
        await until(stubborn_is_up.is_set)
        began = time.monotonic()
        async with asyncio.timeout(20):
            await worker.stop(grace=0.1)
        assert time.monotonic() - began < 0.1 + CLEAN_UP
        assert leased(config) == set()
        assert stored(config, "stubborn")["st"] == "ready"
    finally:
        let_go.set()


async def test_what_was_claimed_and_not_yet_taken_by_a_task_is_given_back(config):
    """A moment that is hard to meet by chance: here the worker's tasks are replaced by ones that take nothing."""

    async def untouched(entity):
        raise AssertionError("must not be called")

    class Idle(QueueWorker):
        async def _worker_loop(self, worker_id: int) -> None:
            await asyncio.get_running_loop().create_future()

    add(config, untouched)
    queue = QueueManager(config)
    for number in range(3):
        queue.enqueue({}, untouched, operation_id=f"waiting-{number}")
    worker = Idle(config, max_workers=3)
    await worker.start()
    await until(lambda: len(leased(config)) == 3)
    await worker.stop(grace=20)  # nothing runs, so nothing is waited for
    assert leased(config) == set()
    assert queue.get_queue_status()[config.get_queue_key("untouched")] == 3
    assert all("at" not in stored(config, f"waiting-{number}") for number in range(3))


async def test_a_stop_that_is_cancelled_can_be_called_again(config):
    started = asyncio.Event()

    async def long(entity):
        started.set()
        await asyncio.sleep(60)

    add(config, long)
    QueueManager(config).enqueue({}, long, operation_id="long")
    worker = QueueWorker(config)
    await worker.start()
    await until(started.is_set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await worker.stop(grace=60)
    await worker.stop(grace=0)
    assert worker.state == "stopped"
    assert leased(config) == set()
    assert stored(config, "long")["st"] == "ready"
    assert config.get_metrics()["workers"] == 0


async def test_two_stops_at_once_both_return_when_it_has_stopped(config):
    started = asyncio.Event()

    async def long(entity):
        started.set()
        await asyncio.sleep(60)

    add(config, long)
    QueueManager(config).enqueue({}, long)
    worker = QueueWorker(config)
    await worker.start()
    await until(started.is_set)
    async with asyncio.timeout(20):
        await asyncio.gather(worker.stop(grace=0.2), worker.stop(grace=0.2))
    assert worker.state == "stopped"
    assert leased(config) == set()


async def test_the_end_of_the_event_loop_gives_back_what_runs(config):
    """As after Ctrl-C in `asyncio.run`: every task is cancelled at once, and nobody calls `stop`."""
    pool_is_busy = threading.Event()
    never = threading.Event()

    def in_a_thread(entity):
        pool_is_busy.set()
        never.wait(60)

    async def on_the_loop(entity):
        await asyncio.sleep(60)

    add(config, in_a_thread, on_the_loop)
    queue = QueueManager(config)
    queue.enqueue({}, in_a_thread, operation_id="in-a-thread")
    queue.enqueue_batch([{}] * 4, on_the_loop)

    async def main() -> None:
        worker = QueueWorker(config, max_workers=2)
        await worker.start()
        await until(lambda: pool_is_busy.is_set() and len(leased(config)) == 3)
        raise KeyboardInterrupt

    def run() -> None:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(main())

    try:
        await asyncio.to_thread(run)
    finally:
        never.set()
    assert leased(config) == set()
    assert stored(config, "in-a-thread")["st"] == "ready"
    assert "at" not in stored(config, "in-a-thread")
    status = queue.get_queue_status()
    assert (status["total_items"], status["delayed"], status["metrics"]["workers"]) == (5, 0, 0)


async def test_a_worker_starts_once(config):
    worker = QueueWorker(config)
    await worker.start()
    try:
        with pytest.raises(WorkerStateError, match="this worker is running: make a new QueueWorker"):
            await worker.start()
        assert worker.state == "running"
    finally:
        await worker.stop()
    with pytest.raises(WorkerStateError, match="this worker is stopped: make a new QueueWorker"):
        await worker.start()


async def test_stop_without_start_and_stop_again_do_nothing(config):
    worker = QueueWorker(config)
    await worker.stop()
    assert worker.state == "new"
    await worker.start()
    await worker.stop()
    await worker.stop()
    assert worker.state == "stopped"


async def test_stop_leaves_no_task_and_no_busy_thread_behind(config):
    async def quick(entity):
        return None

    def quick_sync(entity):
        return None

    add(config, quick, quick_sync)
    queue = QueueManager(config)
    tasks = asyncio.all_tasks()
    threads = set(threading.enumerate())
    async with running(config):
        queue.enqueue({}, quick)
        queue.enqueue({}, quick_sync)
        await until_metrics(config, processed=2)
    await until(lambda: asyncio.all_tasks() == tasks, 5, "the worker's tasks to end")
    left = lambda: {t.name for t in set(threading.enumerate()) - threads if t.name.startswith("queue-system")}  # noqa: E731
    await until(lambda: not left(), 5, "the worker's threads to end")
