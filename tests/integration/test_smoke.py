"""The shortest way through: enqueue, process, call back."""

from __future__ import annotations

import asyncio

from queue_system import QueueManager
from support import running, until_metrics


async def test_async_and_sync_operations_are_processed_and_called_back(config):
    seen: list[dict] = []
    called = asyncio.Event()

    async def double(entity):
        return {"twice": entity["n"] * 2}

    def square(entity):
        return {"square": entity["n"] ** 2}

    async def on_success(data):
        seen.append(data)
        if len(seen) == 2:
            called.set()

    for function in (double, square):
        config.registry.register(function, name=function.__name__, module="tests")
    config.register_callback(on_success, name="on_success", module="tests")
    queue = QueueManager(config)
    for function in (double, square):
        result = queue.enqueue({"n": 7}, function, on_success="tests:on_success")
        assert result["status"] == "queued"
        assert result["is_async"] is (function is double)
    async with running(config):
        async with asyncio.timeout(20):
            await called.wait()
        await until_metrics(config, enqueued=2, processed=2, callbacks_processed=2)
    assert {data["processor"]: data["result"] for data in seen} == {"double": {"twice": 14}, "square": {"square": 49}}
