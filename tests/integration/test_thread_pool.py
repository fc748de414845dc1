"""The bounded thread pool: exhaustion is counted and backs off, and a backlog alone never loses healthy work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from scaffold import add, add_callbacks, given_up, named, stored

from queue_system import QueueManager, QueueRetryConfig
from support import running, until, until_metrics


class Blocker:
    """A sync processor that keeps its thread until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.holding = 0

    def block(self, entity):
        self.holding += 1
        assert self.released.wait(60)


@pytest.fixture
def blocker() -> Iterator[Blocker]:
    made = Blocker()
    yield made
    made.released.set()


@pytest.mark.timeout(120)
async def test_2000_sync_operations_of_50_ms_through_a_pool_of_4(config):
    """About 25 s of work for four threads: the pool is full all the time, and nothing is lost by it."""
    runs: Counter[int] = Counter()
    lock = threading.Lock()

    def nap(entity):
        time.sleep(0.05)
        with lock:
            runs[entity["n"]] += 1

    add(config, nap)
    queue = QueueManager(config)
    results = queue.enqueue_batch([{"n": n} for n in range(2000)], nap)
    assert [result["status"] for result in results] == ["queued"] * 2000
    async with running(config, max_workers=2, thread_pool_size=4):
        metrics = await until_metrics(config, timeout=90, processed=2000)
    assert (metrics["failed"], metrics["system_errors"]) == (0, 0)
    assert metrics["thread_pool_exhaustion"] > 0
    assert metrics["retried"] == metrics["thread_pool_exhaustion"]
    assert set(runs.values()) == {1}
    assert len(runs) == 2000
    status = queue.get_queue_status()
    assert (status["total_items"], status["delayed"], status["in_flight"]) == (0, 0, 0)
    assert given_up(config) == []


async def test_exhaustion_is_counted_once_burns_an_attempt_and_the_operation_comes_back(config, blocker):
    ran: list[int] = []

    def late(entity, context):
        ran.append(context.attempt)

    add(config, blocker.block, late)
    queue = QueueManager(config)
    queue.enqueue({}, blocker.block)
    async with running(config, thread_pool_size=1):
        await until(lambda: blocker.holding == 1)
        enqueued = time.monotonic()
        queue.enqueue({}, late, operation_id="late", retry_config=QueueRetryConfig(max_attempts=3))
        await until_metrics(config, thread_pool_exhaustion=1)
        assert 0.1 <= time.monotonic() - enqueued < 2.0
        fields = stored(config, "late")
        assert (fields["at"], fields["ex"]) == ("1", "1")
        assert '"reason":"thread_pool_exhausted"' in fields["hist"]
        assert ran == []  # the processor was not called

        # It comes back and then waits for its thread, however long that takes: no second exhaustion.
        await until(lambda: stored(config, "late")["st"] == "leased")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):  # three times the limit of a first wait
                await until(lambda: config.get_metrics()["thread_pool_exhaustion"] > 1)
        blocker.released.set()
        metrics = await until_metrics(config, processed=2)
    assert ran == [2]
    assert (metrics["thread_pool_exhaustion"], metrics["retried"], metrics["failed"]) == (1, 1, 0)


async def test_exhaustion_backs_off_exponentially(config, blocker):
    """From 1 s with full jitter, whatever the operation's own schedule is: the due times are spread over 0 to 1 s."""

    def waits(entity):
        return None

    add(config, blocker.block, waits)
    queue = QueueManager(config)
    queue.enqueue({}, blocker.block)
    async with running(config, thread_pool_size=4) as worker:
        await until(lambda: blocker.holding == 1)
        queue.enqueue_batch([{}] * 3, blocker.block)
        await until(lambda: blocker.holding == 4)
        patience = QueueRetryConfig.fixed(600, max_attempts=3)
        results = queue.enqueue_batch([{}] * 12, waits, retry_config=patience)  # as many as there are waiting places
        await until_metrics(config, thread_pool_exhaustion=12)
        delays = []
        for result in results:
            (record,) = stored(config, result["operation_id"])["hist"].splitlines()
            ended = float(record.partition('"ended":')[2].partition(",")[0])
            delays.append(int(stored(config, result["operation_id"])["rd"]) / 1000 - ended)
        assert all(-0.1 <= delay <= 1.2 for delay in delays), delays
        assert max(delays) - min(delays) > 0.1  # jitter: they do not come back all at once
        blocker.released.set()
        await until_metrics(config, processed=16)
        assert worker.state == "running"


async def test_the_last_attempt_goes_to_the_failures_when_the_pool_makes_no_progress_at_all(config, blocker):
    """A last attempt waits as long as jobs still end; only a pool that is stuck for `patience` gives it up."""
    told: list[dict] = []

    async def on_failure(data):
        told.append(data)

    def late(entity):
        raise AssertionError("must not be called")

    add(config, blocker.block, late)
    add_callbacks(config, on_failure)
    queue = QueueManager(config)
    queue.enqueue({}, blocker.block)
    async with running(config, thread_pool_size=1) as worker:
        worker._engine.pool._patience = 0.4
        await until(lambda: blocker.holding == 1)
        queue.enqueue(
            {"n": 1},
            late,
            operation_id="last",
            retry_config=QueueRetryConfig(max_attempts=1),
            on_failure=named(on_failure),
        )
        metrics = await until_metrics(config, failed=1, thread_pool_exhaustion=1, callbacks_processed=1)
        assert metrics["retried"] == 0
        blocker.released.set()
        await until_metrics(config, processed=1)
    (entry,) = given_up(config)
    assert (entry.operation_id, entry.attempts) == ("last", 1)
    assert (entry.reason, entry.error_type) == ("thread_pool_exhausted", "ThreadPoolExhaustedError")
    (data,) = told
    assert (data["operation_id"], data["reason"], data["attempts"]) == ("last", "thread_pool_exhausted", 1)


@pytest.mark.parametrize("max_attempts", [1, 2])
async def test_a_backlog_alone_never_gives_an_operation_up(config, max_attempts):
    """Each job takes longer than the 100 ms after which a waiting one is exhausted."""

    def slow(entity):
        time.sleep(0.15)

    add(config, slow)
    queue = QueueManager(config)
    queue.enqueue_batch([{}] * 30, slow, retry_config=QueueRetryConfig(max_attempts=max_attempts))
    async with running(config, thread_pool_size=2):
        metrics = await until_metrics(config, processed=30)
    assert metrics["failed"] == 0
    if max_attempts == 1:
        assert metrics["retried"] == 0  # the only attempt is never spent on waiting


async def test_async_operations_flow_while_the_pool_is_full(config, blocker):
    async def flows(entity):
        return None

    add(config, blocker.block, flows)
    queue = QueueManager(config)
    queue.enqueue_batch([{}] * 40, blocker.block, priority="high")  # more than the pool and its waiting room
    async with running(config, max_workers=2, thread_pool_size=2):
        await until(lambda: blocker.holding == 2)
        queue.enqueue_batch([{}] * 200, flows, priority="low")
        metrics = await until_metrics(config, processed=200)
        assert blocker.holding == 2
        assert metrics["failed"] == 0
        blocker.released.set()
        await until_metrics(config, processed=240)


async def test_the_worker_claims_no_more_sync_operations_than_it_has_places(config, blocker):
    """The rest stays in Redis for other workers, at its place in the queue."""
    add(config, blocker.block)
    queue = QueueManager(config)
    queue.enqueue_batch([{}] * 50, blocker.block, retry_config=QueueRetryConfig(max_attempts=1))
    async with running(config, thread_pool_size=2):
        await until(lambda: blocker.holding == 2)
        status = await until(lambda: (s := queue.get_queue_status())["in_flight"] == 8 and s)
        assert status[config.get_queue_key("block")] == 42  # 2 threads and 6 waiting places
        blocker.released.set()
        await until_metrics(config, processed=50)


async def test_sync_concurrency_is_the_size_of_the_pool_not_the_number_of_worker_tasks(config):
    together = threading.Barrier(6, timeout=20)

    def meets(entity):
        together.wait()

    add(config, meets)
    QueueManager(config).enqueue_batch([{}] * 6, meets)
    async with running(config, max_workers=1, thread_pool_size=6):
        await until_metrics(config, processed=6)


async def test_async_concurrency_is_the_number_of_worker_tasks(config):
    now, most = 0, 0
    together = asyncio.Event()

    async def meets(entity):
        nonlocal now, most
        now += 1
        most = max(most, now)
        if now == 3:
            together.set()
        async with asyncio.timeout(20):
            await together.wait()
        now -= 1

    add(config, meets)
    QueueManager(config).enqueue_batch([{}] * 12, meets)
    async with running(config, max_workers=3, thread_pool_size=1):
        await until_metrics(config, processed=12)
    assert most == 3
