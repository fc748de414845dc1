"""`AsyncQueueManager`: the methods of `QueueManager`, awaited, with the same results on the same queue."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from typing import Any

import pytest
import pytest_asyncio
from scaffold import add, add_callbacks, named, stored

from queue_system import AsyncQueueManager, QueueManager, QueueRetryConfig
from queue_system.events import (
    EnqueueFailed,
)
from queue_system.hooks import Hooks
from support import running, until, until_metrics


async def work(entity):
    return {"n": entity.get("n")}


def work_sync(entity):
    return entity


@pytest_asyncio.fixture
async def twins(make_config):
    """A synchronous and an asynchronous manager, each on a prefix of its own, with equal ids for equal calls."""
    sync_config = make_config()
    async_config = make_config(queue_prefix=f"twin-{sync_config.queue_prefix}")
    add(sync_config, work, work_sync)
    made = Twins(QueueManager(sync_config), AsyncQueueManager(async_config))
    yield made
    await made.aio.close()


class Twins:
    def __init__(self, sync: QueueManager, aio: AsyncQueueManager) -> None:
        self.sync, self.aio = sync, aio
        for manager in (sync, aio):
            numbers = itertools.count()
            manager._generate_operation_id = lambda numbers=numbers: f"generated-{next(numbers)}"

    async def both(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What both give for the same call, which must be the same."""
        by_sync = await asyncio.to_thread(self._outcome_sync, method, args, kwargs)
        by_aio = await self._outcome_async(method, args, kwargs)
        assert by_sync == by_aio
        return by_sync

    def _outcome_sync(self, method, args, kwargs):
        try:
            return getattr(self.sync, method)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  the error is the outcome, to be compared
            return type(error), str(error)

    async def _outcome_async(self, method, args, kwargs):
        try:
            return await getattr(self.aio, method)(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  as above
            return type(error), str(error)

    async def status(self) -> dict[str, Any]:
        """The status of both, without what differs by nature; must be the same."""
        by_sync = comparable(await asyncio.to_thread(self.sync.get_queue_status), self.sync)
        by_aio = comparable(await self.aio.get_queue_status(), self.aio)
        assert by_sync == by_aio
        return by_sync


def comparable(status: dict[str, Any], manager: Any) -> dict[str, Any]:
    prefix = manager.config.queue_prefix
    return {key.replace(prefix, "queue:", 1): value for key, value in status.items() if key != "status_time"}


async def test_every_method_gives_the_same(twins):
    queued = await twins.both("enqueue", {"n": 1}, work)
    assert queued == {
        "operation_id": "generated-0",
        "status": "queued",
        "queue": "work",
        "priority": "normal",
        "processor": "work",
        "is_async": True,
    }
    sync_one = await twins.both("enqueue", {"n": 2}, work_sync, "mail", "high", "mine")
    assert (sync_one["queue"], sync_one["priority"], sync_one["is_async"]) == ("mail", "high", False)
    unknown = await twins.both("enqueue", {"n": 3}, "elsewhere:other", priority="low")
    assert (unknown["queue"], unknown["is_async"]) == ("other", None)
    assert (await twins.both("enqueue", {"n": 4}, work, delay=600))["status"] == "scheduled"
    assert (await twins.both("enqueue", {"n": 5}, work, operation_id="mine"))["duplicate_of"] == "mine"
    await twins.both("enqueue", {"n": 6}, work, deduplication_key="k")
    assert (await twins.both("enqueue", {"n": 7}, work, deduplication_key="k"))["status"] == "duplicate"
    everything = {
        "retry_config": QueueRetryConfig.fixed(3),
        "timeout": 4.0,
        "on_success": "tests:called_back",
        "on_failure": "tests:called_back",
        "custom_serializer": str,
        "deduplicate": True,
        "deduplication_window": 60.0,
    }
    await twins.both("enqueue", {"n": 8, "o": object}, work, operation_id="everything", **everything)
    assert stored(twins.sync.config, "everything")["b"] == stored(twins.aio.config, "everything")["b"]

    assert await twins.both("enqueue_batch", [], work) == []
    batch = await twins.both("enqueue_batch", [{"n": 1}, {"n": 2}, {"n": 1}], work, priority="high", deduplicate=True)
    assert [result["status"] for result in batch] == ["queued", "queued", "duplicate"]
    many = await twins.both("enqueue_batch", [{"n": n} for n in range(2500)], work, queue_name="many")
    assert [result["status"] for result in many] == ["queued"] * 2500

    status = await twins.status()
    assert (status["queue:high:mail"], status["queue:normal:many"], status["delayed"]) == (1, 2500, 1)
    assert status["metrics"]["enqueued"] == 2508

    assert await twins.both("purge_queue", "many") == 2500
    assert await twins.both("purge_queue", "many") == 0
    assert await twins.both("purge_queue", "mail", "high") == 1
    assert await twins.both("purge_queue", "work") == 4  # the delayed one, too
    status = await twins.status()
    assert (status["total_items"], status["metrics"]["discarded"]) == (3, 2505)


@pytest.mark.parametrize(
    ("method", "args", "kwargs"),
    [
        ("enqueue", ([1], work), {}),
        ("enqueue", ({}, lambda entity: entity), {}),
        ("enqueue", ({}, work), {"priority": "urgent"}),
        ("enqueue", ({"x": object()}, work), {}),
        ("enqueue", ({}, work), {"delay": -1}),
        ("enqueue", ({}, work), {"queue_name": "a b"}),
        ("enqueue_batch", ({"n": 1}, work), {}),
        ("enqueue_batch", ([{"n": 1}, 7], work), {}),
        ("enqueue_batch", ([{}], work), {"operation_id": "x"}),
        ("purge_queue", ("a b",), {}),
        ("purge_queue", ("work", "urgent"), {}),
    ],
)
async def test_every_method_gives_the_same_error(twins, method, args, kwargs):
    kind, text = await twins.both(method, *args, **kwargs)
    assert issubclass(kind, Exception)
    assert text
    assert (await twins.status())["metrics"]["enqueued"] == 0


def test_the_signatures_are_the_same():
    for name in ("enqueue", "enqueue_batch", "get_queue_status", "purge_queue"):
        sync, aio = (inspect.signature(getattr(each, name)) for each in (QueueManager, AsyncQueueManager))
        positional = [
            (parameter.name, parameter.default)
            for parameter in sync.parameters.values()
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        theirs = [
            (parameter.name, parameter.default)
            for parameter in aio.parameters.values()
            if parameter.name != "options" and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
        ]
        assert positional == theirs
        assert inspect.iscoroutinefunction(inspect.unwrap(getattr(AsyncQueueManager, name)))


async def test_both_feed_one_worker(config):
    done: list[str] = []

    async def note(entity):
        done.append(entity["by"])

    async def called_back(data):
        done.append("callback")

    add(config, note)
    add_callbacks(config, called_back)
    manager = AsyncQueueManager(config)
    try:
        await manager.enqueue({"by": "async"}, note, on_success=named(called_back))
        QueueManager(config).enqueue({"by": "sync"}, note)
        async with running(config):
            await until_metrics(config, processed=2, callbacks_processed=1)
        assert sorted(done) == ["async", "callback", "sync"]
        assert (await manager.get_queue_status())["total_items"] == 0
    finally:
        await manager.close()


async def test_it_does_not_block_the_event_loop(config):
    """100 calls at once; others run in between."""
    add(config, work)
    manager = AsyncQueueManager(config)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    try:
        results = await asyncio.gather(*(manager.enqueue({"n": n}, work) for n in range(100)))
    finally:
        ticking.cancel()
        await manager.close()
    assert len({result["operation_id"] for result in results}) == 100
    assert ticks > 5


async def test_it_can_be_used_again_after_it_was_closed(config):
    add(config, work)
    manager = AsyncQueueManager(config)
    await manager.enqueue({}, work)
    await manager.close()
    await manager.close()
    assert (await manager.enqueue({}, work))["status"] == "queued"
    await manager.close()


async def test_a_failed_connection_is_told_to_the_listeners_as_by_the_other(make_config):
    events: list[EnqueueFailed] = []

    class Listener(Hooks):
        def on_event(self, event):
            if isinstance(event, EnqueueFailed):
                events.append(event)

    config = make_config(redis_url="redis://127.0.0.1:1/0", telemetry=[Listener()], max_connection_retries=1)
    add(config, work)
    manager = AsyncQueueManager(config)
    with pytest.raises(ConnectionError):
        await manager.enqueue({}, work)
    await manager.close()
    with pytest.raises(ConnectionError):
        QueueManager(config).enqueue({}, work)
    await until(lambda: len(events) == 2)
    assert events[0] == events[1]
