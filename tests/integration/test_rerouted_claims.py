"""A queue that is said to hold sync operations and holds async ones: they are handed on, and free their slots."""

from __future__ import annotations

from queue_system import QueueManager
from support import running, until


async def work(_entity: dict[str, int]) -> None:
    return None


async def test_an_operation_that_was_handed_on_frees_its_slot(make_config, redis_url):
    config = make_config(redis_url=redis_url)
    manager = QueueManager(config)
    for n in range(3):
        manager.enqueue({"n": n}, work, queue_name="misnamed")
    config._ensure_redis_sync().hset(config.keys.registry, "normal:misnamed", "s")
    async with running(config, max_workers=1, thread_pool_size=1) as worker:
        await until(lambda: manager.get_queue_status()["metrics"]["processed"] == 3)
        await until(lambda: worker._engine.intake.held == 0)
