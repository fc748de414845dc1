"""Strict priority on one worker. On two it is held in `test_two_workers`."""

from __future__ import annotations

import asyncio
import random
import threading

import pytest
from scaffold import add

from queue_system import QueueManager
from support import running, until, until_metrics

PRIORITIES = ("high", "normal", "low")


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_one_worker_starts_high_then_normal_then_low_each_first_in_first_out(config, kind):
    order: list[tuple[str, int]] = []

    async def note_async(entity):
        order.append((entity["priority"], entity["n"]))

    def note_sync(entity):
        order.append((entity["priority"], entity["n"]))

    function = {"async": note_async, "sync": note_sync}[kind]
    add(config, function)
    queue = QueueManager(config)
    mixed = [priority for priority in PRIORITIES for _ in range(30)]
    random.Random(7).shuffle(mixed)
    for n, priority in enumerate(mixed):
        queue.enqueue({"priority": priority, "n": n}, function, priority=priority)
    async with running(config, max_workers=1, thread_pool_size=1):
        await until_metrics(config, processed=90)
    assert [priority for priority, _ in order] == ["high"] * 30 + ["normal"] * 30 + ["low"] * 30
    for priority in PRIORITIES:
        numbers = [n for its, n in order if its == priority]
        assert numbers == sorted(numbers)


async def test_a_high_operation_that_arrives_later_goes_before_a_backlog(config):
    order: list[str] = []
    gate = asyncio.Event()

    async def first(entity):
        async with asyncio.timeout(20):
            await gate.wait()

    async def note(entity):
        order.append(entity["name"])

    add(config, first, note)
    queue = QueueManager(config)
    queue.enqueue({}, first, priority="low")
    async with running(config, max_workers=1):
        await until(lambda: queue.get_queue_status()["in_flight"] == 1)
        queue.enqueue_batch([{"name": f"low-{n}"} for n in range(5)], note, priority="low")
        queue.enqueue({"name": "normal"}, note, priority="normal")
        queue.enqueue({"name": "high"}, note, priority="high")
        gate.set()
        await until_metrics(config, processed=8)
    assert order == ["high", "normal", *(f"low-{n}" for n in range(5))]


async def test_priority_holds_over_all_queues(config):
    order: list[str] = []

    async def note(entity):
        order.append(entity["priority"])

    add(config, note)
    queue = QueueManager(config)
    for name in ("mail", "bills", "audit"):
        for priority in reversed(PRIORITIES):
            queue.enqueue_batch([{"priority": priority}] * 10, note, queue_name=name, priority=priority)
    async with running(config, max_workers=1):
        await until_metrics(config, processed=90)
    assert order == ["high"] * 30 + ["normal"] * 30 + ["low"] * 30


async def test_queues_of_one_priority_take_turns(config):
    """A full queue does not starve its neighbour."""
    order: list[str] = []

    async def note(entity):
        order.append(entity["queue"])

    add(config, note)
    queue = QueueManager(config)
    for name in ("long", "short"):
        count = {"long": 200, "short": 5}[name]
        queue.enqueue_batch([{"queue": name}] * count, note, queue_name=name)
    async with running(config, max_workers=1):
        await until_metrics(config, processed=205)
    assert max(index for index, name in enumerate(order) if name == "short") < 30


async def test_a_high_sync_operation_does_not_wait_behind_async_ones(config):
    """The two kinds take different slots: neither holds up the other, whatever their priorities are."""
    gate = asyncio.Event()
    ran = threading.Event()

    async def keeps_its_task(entity):
        async with asyncio.timeout(20):
            await gate.wait()

    def quick(entity):
        ran.set()

    add(config, keeps_its_task, quick)
    queue = QueueManager(config)
    queue.enqueue_batch([{}] * 5, keeps_its_task, priority="high")
    async with running(config, max_workers=1, thread_pool_size=1):
        await until(lambda: queue.get_queue_status()["in_flight"] == 1)
        queue.enqueue({}, quick, priority="low")
        await until(ran.is_set)
        assert not gate.is_set()
        gate.set()
        await until_metrics(config, processed=6)


async def test_the_default_priority_of_a_processor_is_overruled_by_the_call(config):
    async def plain(entity):
        return None

    config.registry.register(plain, name="plain", module="tests", priority="low", queue="slow-lane")
    queue = QueueManager(config)
    assert queue.enqueue({}, plain)["priority"] == "low"
    assert queue.enqueue({}, plain)["queue"] == "slow-lane"
    assert queue.enqueue({}, plain, priority="normal")["priority"] == "normal"
    assert queue.enqueue({}, plain, queue_name="other", priority="high")["queue"] == "other"
