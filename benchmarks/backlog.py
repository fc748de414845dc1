"""What an operation costs at a constant backlog: one line of JSON. `BENCH_BACKLOG` are put in first; with 0 none are.

Batches of 100 are enqueued, and 100 are claimed and completed, in turns: the same calls that manager and worker make,
without the rest of them, so that the backlog is all that differs. CPU of Redis and of this process together, which no
neighbour disturbs as it does the time.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Final

import redis

from benchmarks.peers.common import PAYLOAD, noop_async
from queue_system import QueueConfig, QueueManager
from queue_system.broker.messages import Completion
from queue_system.registry import default_registry

BATCH: Final = 100
TURNS: Final = 100


class Meter:
    """Seconds, and Redis's CPU seconds, spent within ``with`` blocks."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self.seconds = self.redis = 0.0

    def __enter__(self) -> None:
        self._cpu, self._began = self._used(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began
        self.redis += self._used() - self._cpu

    def _used(self) -> float:
        info: Any = self._client.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])


def main() -> None:
    size, url = int(float(os.environ["BENCH_BACKLOG"])), os.environ["BENCH_REDIS"]
    default_registry.register(noop_async)
    client = redis.Redis.from_url(url)
    config = QueueConfig(redis_url=url, telemetry=None)
    manager = QueueManager(config)
    manager.enqueue_batch([PAYLOAD], noop_async)
    empty = dataset(client)
    for start in range(0, size, 1000):
        manager.enqueue_batch([PAYLOAD] * min(1000, size - start), noop_async)
    filled = {"bytes": (dataset(client) - empty) / size} if size else {}
    enqueueing, claiming = Meter(client), Meter(client)
    done = 0
    for _ in range(TURNS):
        with enqueueing:
            for _ in range(BATCH):
                manager.enqueue(PAYLOAD, noop_async)
        with claiming:
            done += claim_and_complete(config)
    print(
        json.dumps(
            {
                **filled,
                "enqueue_us": enqueueing.seconds / (TURNS * BATCH) * 1e6,
                "enqueue_redis_us": enqueueing.redis / (TURNS * BATCH) * 1e6,
                "claim_complete_us": claiming.seconds / done * 1e6,
                "claim_complete_redis_us": claiming.redis / done * 1e6,
            }
        )
    )


def claim_and_complete(config: QueueConfig) -> int:
    claim = config.commands.claim(async_slots=BATCH, sync_slots=BATCH, lease=60.0, retention=60.0)
    claimed = config.broker.run(claim)
    done = [Completion(one.operation_id, one.token, "a") for one in claimed.deliveries]
    if not all(config.broker.run(config.commands.complete(done, done_ttl=0.0, again=False))):
        raise RuntimeError("a completion was refused")
    return len(done)


def dataset(client: redis.Redis) -> int:
    info: Any = client.info("memory")
    return int(info["used_memory"])


if __name__ == "__main__":
    main()
