"""Depth, age and accounting cost Redis the same for a million operations as for a thousand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from queue_system import QueueConfig
from queue_system.embedded import EmbeddedServer
from queue_system.reader import QueueReader
from support import until
from telemetry.collector import QueueCollector

MILLION = 1_000_000
CALLS = 50
BACKLOG = {"ready": 0.7, "delayed": 0.1, "in_flight": 0.1, "failed": 0.1}
"""Shares of the states."""

FILL = """
-- KEYS: 1 ready list, 2 delayed, 3 leases, 4 failures, 5 depths, 6 metrics, 7 registry
-- ARGV: prefix, queue, first, then how many in each state. Of ready ones only the head has its hash: the script under
-- test reads no other, and a million hashes are 300 MB.
local prefix, queue, n = ARGV[1], ARGV[2], tonumber(ARGV[3])
local now = redis.call('TIME')[1] * 1000
local function add(count, put)
  for i = 1, count do
    put(string.format('%s-%032d', queue, n), n)
    n = n + 1
  end
end
if redis.call('LLEN', KEYS[1]) == 0 then
  local head = string.format('%s-%032d', queue, n)
  redis.call('HSET', prefix .. 'op:' .. head, 'st', 'ready', 'q', queue, 'rd', now - 5000)
end
add(tonumber(ARGV[4]), function(id) redis.call('RPUSH', KEYS[1], id) end)
add(tonumber(ARGV[5]), function(id, i) redis.call('ZADD', KEYS[2], now + 3600000 + i, id) end)
add(tonumber(ARGV[6]), function(id, i) redis.call('ZADD', KEYS[3], now + 3600000 + i, id) end)
add(tonumber(ARGV[7]), function(id, i) redis.call('ZADD', KEYS[4], now + i, id) end)
redis.call('HINCRBY', KEYS[5], 'd:' .. queue, ARGV[5])
redis.call('HINCRBY', KEYS[5], 'l:' .. queue, ARGV[6])
redis.call('HINCRBY', KEYS[5], 'f:' .. queue, ARGV[7])
redis.call('HINCRBY', KEYS[6], 'enqueued', ARGV[4] + ARGV[5] + ARGV[6] + ARGV[7])
redis.call('HINCRBY', KEYS[6], 'failed', ARGV[7])
redis.call('HSET', KEYS[7], queue, 'a')
return n
"""


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server for this test alone: its command statistics are those of one script, and its memory goes with it."""
    with EmbeddedServer() as server:
        yield server


def fill(config: QueueConfig, operations: int, queues: int) -> None:
    """A backlog of so many operations in all states, over so many queues."""
    client, keys = config._ensure_redis_sync(), config.keys
    script = client.register_script(FILL)
    for number in range(queues):
        queue, first, left = f"normal:queue_{number}", 0, operations // queues
        while left > 0:  # in parts, so that no script runs for longer than Redis's own limit
            part = min(left, 100_000)
            counts = [round(part * share) for share in BACKLOG.values()]
            containers = (keys.delayed, keys.leases, keys.failures, keys.depths, keys.metrics, keys.registry)
            first = script([f"{keys.prefix}{queue}", *containers], [keys.prefix, queue, first, *counts])
            left -= part


def microseconds(config: QueueConfig) -> float:
    """Redis's own time for one call of the depth script, on average, the commands inside included."""
    client, reader = config._ensure_redis_sync(), QueueReader(config)
    try:
        reader.depth()  # loads it
        client.config_resetstat()
        for _ in range(CALLS):
            reader.depth()
        stats = client.info("commandstats")["cmdstat_evalsha"]
    finally:
        reader.close()
    assert stats["calls"] == CALLS
    return float(stats["usec_per_call"])


@pytest.mark.timeout(120)
def test_a_scrape_of_a_million_costs_redis_what_one_of_a_thousand_costs(
    own_server: EmbeddedServer, make_config: Callable[..., QueueConfig]
) -> None:
    few, many = (make_config(redis_url=own_server.url, queue_prefix=prefix) for prefix in ("few:", "many:"))
    queues = 10
    fill(few, 1000, queues)
    fill(many, MILLION, queues)
    times = {1000: microseconds(few), MILLION: microseconds(many)}
    print(f"\nmicroseconds of Redis for each scrape: {times}")  # noqa: T201  for the record
    assert times[MILLION] < 50_000
    assert times[MILLION] < 5 * times[1000] + 200
    depth = scraped(many)
    assert {state: depth["queue_depth", state] for state in BACKLOG} == {
        state: MILLION * share for state, share in BACKLOG.items()
    }
    assert depth["failures", ""] == MILLION * BACKLOG["failed"]
    assert depth["unaccounted_operations", ""] == 0
    assert 4 < depth["queue_oldest_age_seconds", ""] / queues < 120


def scraped(config: QueueConfig) -> dict[tuple[str, str], float]:
    """The collector's metrics, summed over queues, by name and state."""
    reader, registry = QueueReader(config), CollectorRegistry()
    collector = QueueCollector()
    registry.register(collector)
    collector.attach(reader)
    totals: dict[tuple[str, str], float] = {}
    for family in registry.collect():
        for sample in family.samples:
            key = sample.name.removeprefix("queue_system_"), sample.labels.get("state", "")
            totals[key] = totals.get(key, 0) + sample.value
    reader.close()
    assert totals["collector_up", ""] == 1
    return totals


async def test_without_redis_the_scrape_is_served_in_bounded_time(make_config: Callable[..., QueueConfig]) -> None:
    server = EmbeddedServer().start()
    try:
        config = make_config(redis_url=server.url)
        reader, collector = QueueReader(config, timeout=0.5), QueueCollector(cache=0.0)
        collector.attach(reader)

        def up() -> Any:
            return {family.name: family.samples for family in collector.collect()}

        assert value(up(), "collector_up") == 1
        server.kill()
        metrics = up()
        assert value(metrics, "collector_up") == 0
        assert value(metrics, "collector_duration_seconds") < 3
        assert set(metrics) == {"queue_system_collector_up", "queue_system_collector_duration_seconds"}
        server.restart()
        await until(lambda: value(up(), "collector_up") == 1, 20)
        reader.close()
    finally:
        server.stop()


def value(metrics: dict[str, Any], name: str) -> float:
    (sample,) = metrics[f"queue_system_{name}"]
    return float(sample.value)
