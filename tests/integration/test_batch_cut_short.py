"""A batch of several parts on a Redis that refuses in its midst: what the error says is what is in Redis."""

import pytest

from queue_system import AsyncQueueManager, QueueConfig, QueueManager
from queue_system.embedded import EmbeddedServer
from queue_system.errors import QueueError
from queue_system.request import EnqueueRequest

COUNT, PART = 5000, 1000


def fill(redis):
    redis.config_set("maxmemory-policy", "noeviction")
    redis.config_set("maxmemory", 1)


def make_read_only(redis):
    redis.execute_command("REPLICAOF", "127.0.0.1", "1")


@pytest.fixture
def config():
    with EmbeddedServer() as server, QueueConfig(redis_url=server.url, queue_prefix="cut:", telemetry=None) as config:
        yield config


async def in_a_thread(config, entities, ids):
    return QueueManager(config).enqueue_batch(entities, "elsewhere:run", operation_ids=ids)


async def on_a_loop(config, entities, ids):
    return await AsyncQueueManager(config).enqueue_batch(entities, "elsewhere:run", operation_ids=ids)


@pytest.mark.parametrize("enqueue", [in_a_thread, on_a_loop])
@pytest.mark.parametrize("trouble", [fill, make_read_only])
async def test_what_is_said_to_be_accepted_is_there_and_the_rest_is_not(config, monkeypatch, enqueue, trouble):
    redis, take, taken = config._ensure_redis_sync(), EnqueueRequest.take, []

    def take_and_break(request, replies):
        take(request, replies)
        taken.append(1)
        if len(taken) == 2:
            trouble(redis)

    monkeypatch.setattr(EnqueueRequest, "take", take_and_break)
    ids = [f"n{n}" for n in range(COUNT)]
    with pytest.raises(QueueError) as caught:
        await enqueue(config, [{"n": n} for n in range(COUNT)], ids)
    error = caught.value
    there = [each for each in ids if redis.exists(config.keys.operation(each))]
    assert there == ids[: 2 * PART]
    assert list(error.accepted) == there
    assert (list(error.refused), list(error.unknown)) == (ids[2 * PART :], [])
    assert list(error.operation_ids) == ids[2 * PART :]
    assert [result["operation_id"] for result in error.results] == there
    assert error.ambiguous is False
