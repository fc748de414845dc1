"""A Redis Cluster refuses every claim below a prefix without a hash tag: so that prefix is refused at the start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from queue_system import AsyncQueueManager, QueueConfig, QueueManager, QueueWorker
from queue_system.embedded import EmbeddedServer
from queue_system.errors import ConfigurationError


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    with EmbeddedServer(extra=("--cluster-enabled", "yes")) as server:
        yield server.url


def test_a_producer_is_told(cluster_url):
    told = pytest.raises(ConfigurationError, match=r"is a cluster.*queue_prefix='\{queue\}:'")
    with QueueConfig(redis_url=cluster_url, telemetry=None) as config, told:
        QueueManager(config).get_queue_status()


async def test_so_are_an_async_one_and_a_worker(cluster_url):
    config = QueueConfig(redis_url=cluster_url, telemetry=None)
    with pytest.raises(ConfigurationError, match="is a cluster"):
        await AsyncQueueManager(config).get_queue_status()
    with pytest.raises(ConfigurationError, match="is a cluster"):
        await QueueWorker(config).start()
    await asyncio.to_thread(config.close)
