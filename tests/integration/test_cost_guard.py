"""What an operation costs, counted and not timed, so that a busy machine changes nothing.

The limits stand a little above what was counted when they were set; a change that passes one costs something, and its
author decides whether that is worth it. `python -m benchmarks` has the seconds.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from benchmarks.driver import Load, Server
from queue_system import QueueConfig, QueueManager, QueueWorker, garbage
from queue_system.registry import Registry
from support import running, until

ENTITY = {"user_id": "123", "action": "update"}
OPERATIONS = 2_000
CONCURRENCY = 100

# For each operation; in brackets what was counted. Redis commands, those that scripts call included:
ENQUEUE_COMMANDS = 9  # one at a time (9)
BULK_COMMANDS = 1.3  # in thousands (1.0)
# In a full drain, by the number of slots, where a round trip is for half of them:
DRAIN_COMMANDS = {100: 4.0, 10: 7.3, 20: 3.9}  # (3.4, 6.6, 3.4)
ROUND_TRIPS = {100: 0.05, 10: 0.25, 20: 0.05}  # (0.04, 0.22, 0.03)
# On the worker's event loop:
TASKS = 0.05  # (0.001)
TIMERS = 0.15  # (0.03)
CALLBACKS = 0.5  # (0.10)
LEAKED_BLOCKS = 0.1  # of memory (0.007)
# While it runs, what the garbage collector counts and looks through:
OBJECTS_HELD = {"async": 13, "sync": 24}  # (11, 22)

done: list[None] = []  # one for each operation that has run: appending is safe under threads


async def count(_: dict[str, Any]) -> None:
    done.append(None)


def count_sync(_: dict[str, Any]) -> None:
    done.append(None)


class Held:
    """A processor of each kind that counts itself, and returns when it is told to."""

    def __init__(self) -> None:
        self.begun: list[None] = []
        self._for_async, self._for_sync = asyncio.Event(), threading.Event()

    async def wait(self, _: dict[str, Any]) -> None:
        self.begun.append(None)
        await self._for_async.wait()

    def wait_sync(self, _: dict[str, Any]) -> None:
        self.begun.append(None)
        self._for_sync.wait(20.0)

    def let_go(self) -> None:
        self._for_async.set()
        self._for_sync.set()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of this module's own: what it has done is what these tests have asked of it."""
    with Server() as server:
        yield server


@pytest.fixture
def shared(server: Server, prefix: str) -> Iterator[QueueConfig]:
    registry = Registry()
    registry.register(count)
    registry.register(count_sync)
    with QueueConfig(redis_url=server.url, queue_prefix=prefix, registry=registry) as config:
        yield config


@pytest.fixture
def manager(shared: QueueConfig) -> QueueManager:
    """Has enqueued one operation of each kind: the script is loaded, the queues are known."""
    manager = QueueManager(shared)
    for job in (count, count_sync):
        manager.enqueue_batch([ENTITY], job)
    return manager


def enqueue(manager: QueueManager, job: Callable[..., Any], number: int) -> None:
    for start in range(0, number, 1_000):
        manager.enqueue_batch([ENTITY] * min(1_000, number - start), job)


async def drained(manager: QueueManager, job: Callable[..., Any], number: int) -> None:
    """Enqueue so many, and wait until they have run. Asks nothing of Redis while it waits."""
    target = len(done) + number
    await asyncio.to_thread(enqueue, manager, job, number)
    await until(lambda: len(done) >= target, 60.0, f"{number} operations")


async def settled(manager: QueueManager) -> None:
    """Wait until the outcomes of all that was enqueued are written."""

    def all_written() -> bool:
        metrics = manager.config.get_metrics()
        return bool(metrics["processed"] == metrics["enqueued"])

    await until(all_written, 20.0, "outcomes")


async def cost_of_drain(server: Server, manager: QueueManager, job: Callable[..., Any], **sizes: int) -> Load:
    """All that a worker asks of Redis, from its start to its end, for `OPERATIONS` that wait."""
    enqueue(manager, job, OPERATIONS)
    target = len(done) + OPERATIONS + 2
    before = server.load()
    async with running(manager.config, **sizes):
        await until(lambda: len(done) >= target, 60.0, f"{OPERATIONS} operations")
    return server.load().since(before)


def test_enqueue_is_one_round_trip(server: Server, manager: QueueManager) -> None:
    before = server.load()
    for _ in range(100):
        manager.enqueue(ENTITY, count)
    cost = server.load().since(before)
    assert cost.reads - 1 == 100  # one reading is our own look
    assert cost.calls <= ENQUEUE_COMMANDS * 100


def test_bulk_costs_few_commands_each(server: Server, manager: QueueManager) -> None:
    before = server.load()
    enqueue(manager, count, OPERATIONS)
    cost = server.load().since(before)
    assert cost.calls <= BULK_COMMANDS * OPERATIONS
    assert cost.reads <= 0.1 * OPERATIONS  # Redis reads 16 kB at a time


@pytest.mark.parametrize(
    ("job", "setting", "slots"),
    [(count, "max_workers", CONCURRENCY), (count, "max_workers", 10), (count_sync, "thread_pool_size", 20)],
)
async def test_a_drain_makes_few_round_trips(
    server: Server, manager: QueueManager, job: Callable[..., Any], setting: str, slots: int
) -> None:
    cost = await cost_of_drain(server, manager, job, **{setting: slots})
    assert cost.reads / OPERATIONS <= ROUND_TRIPS[slots]
    assert cost.calls / OPERATIONS <= DRAIN_COMMANDS[slots], cost.commands


async def test_an_operation_leaves_nothing_in_memory(manager: QueueManager, worker: QueueWorker) -> None:
    await drained(manager, count, OPERATIONS)  # caches are filled, pools are grown
    await settled(manager)
    before = allocated()
    await drained(manager, count, 3 * OPERATIONS)
    await settled(manager)
    # The last reply may be on its way still; what leaks never comes back.
    await until(lambda: (allocated() - before) / (3 * OPERATIONS) <= LEAKED_BLOCKS, 10.0, "memory given back")


async def test_an_operation_takes_no_task_and_hardly_a_timer_or_callback(
    manager: QueueManager, worker: QueueWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await drained(manager, count, OPERATIONS)
    counts = counted_loop(monkeypatch)
    await drained(manager, count, OPERATIONS)
    assert counts["tasks"] / OPERATIONS <= TASKS, counts
    assert counts["timers"] / OPERATIONS <= TIMERS, counts
    assert counts["callbacks"] / OPERATIONS <= CALLBACKS, counts


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_the_garbage_collector_has_little_to_look_at(
    shared: QueueConfig, manager: QueueManager, kind: str
) -> None:
    held, slots = Held(), 20
    job = held.wait if kind == "async" else held.wait_sync
    shared.registry.register(job, name="held")
    async with running(shared, max_workers=slots, thread_pool_size=slots):
        await asyncio.to_thread(enqueue, manager, job, slots)
        await until(lambda: len(held.begun) == slots, 20.0, "all of them running")
        with_them = objects()
        held.let_go()
        await settled(manager)
        for_each = (with_them - objects()) / slots
    assert 0 < for_each <= OBJECTS_HELD[kind] <= garbage.OBJECTS_HELD


@pytest.fixture
async def worker(shared: QueueConfig) -> AsyncIterator[QueueWorker]:
    async with running(shared, max_workers=CONCURRENCY) as worker:
        yield worker


def allocated() -> int:
    """Blocks that Python holds, rubbish collected."""
    gc.collect()
    return sys.getallocatedblocks()


def objects() -> int:
    """How many the garbage collector looks through, rubbish collected."""
    gc.collect()
    return len(gc.get_objects())


def counted_loop(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """From now on counts what is made on the running loop."""
    loop = asyncio.get_running_loop()
    counts = {"tasks": 0, "timers": 0, "callbacks": 0}

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*args, **options)

        return call

    for method, name in (("create_task", "tasks"), ("call_at", "timers"), ("call_soon", "callbacks")):
        monkeypatch.setattr(loop, method, counting(name, getattr(loop, method)))
    return counts
