"""A producer that enqueues by name does not know whether a function is async; a worker teaches the registry."""

from __future__ import annotations

import asyncio

import pytest

from queue_system import QueueManager
from queue_system.registry import Registry
from support import running, until, until_metrics


def kind_of(config, queue):
    return config._ensure_redis_sync().hget(config.keys.registry, f"normal:{queue}")


@pytest.fixture
def stranger(make_config):
    """A producer whose process knows none of the functions."""
    return QueueManager(make_config(registry=Registry()))


@pytest.fixture
def functions(config):
    """An async one that waits for its event, and a sync one."""
    release = asyncio.Event()

    async def held(entity):
        await release.wait()

    def quick(entity):
        return None

    for function in (held, quick):
        config.registry.register(function, name=function.__name__, module="tests")
    return release


async def test_a_worker_teaches_the_kind_of_what_it_runs(config, stranger, functions):
    functions.set()
    for name in ("held", "quick"):
        assert stranger.enqueue({}, f"tests:{name}")["is_async"] is None
    assert (kind_of(config, "held"), kind_of(config, "quick")) == (b"u", b"u")
    async with running(config):
        await until_metrics(config, processed=2)
        await until(lambda: (kind_of(config, "held"), kind_of(config, "quick")) == (b"a", b"s"))
    stranger.enqueue({}, "tests:quick")
    assert kind_of(config, "quick") == b"s"  # what is known is not forgotten for one who does not know


async def test_a_queue_that_holds_both_is_mixed(config, stranger, functions):
    functions.set()
    for name in ("held", "quick"):
        stranger.enqueue({}, f"tests:{name}", queue_name="both")
    async with running(config):
        await until_metrics(config, processed=2)
        await until(lambda: kind_of(config, "both") == b"m")


async def test_sync_work_enqueued_by_name_does_not_wait_for_a_worker_task(config, stranger, functions):
    stranger.enqueue({}, "tests:quick")
    async with running(config, max_workers=1):
        await until_metrics(config, processed=1)
        await until(lambda: kind_of(config, "quick") == b"s")
        stranger.enqueue({}, "tests:held")
        await until(lambda: stranger.get_queue_status()["in_flight"] == 1)
        stranger.enqueue_batch([{}] * 5, "tests:quick")
        try:
            await until_metrics(config, processed=6)
        finally:
            functions.set()
