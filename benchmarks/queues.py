"""10 known queues against 10,000, by turns in one run: what that costs the start of an operation, and Redis a claim.

All queues but one are empty. ``python -m benchmarks.queues``; ``QUEUES=10,10000`` and ``TURNS=10`` are the defaults.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from typing import Any, Final

import redis

from benchmarks.driver import Server
from queue_system import QueueConfig, QueueManager, QueueWorker
from queue_system.registry import Registry

STARTS: Final = 100  # in a turn
CLAIMS: Final = 300  # in a turn


class Rig:
    """One prefix with so many known queues, and a worker of its own."""

    def __init__(self, url: str, known: int) -> None:
        self.known = known
        registry = Registry()
        registry.register(self._note, name="note", module="benchmark")
        self.config = QueueConfig(redis_url=url, queue_prefix=f"q{known}:", telemetry=None, registry=registry)
        self.manager = QueueManager(self.config)
        self.client = redis.Redis.from_url(url)
        kinds = {f"normal:tenant-{number}": "a" for number in range(known - 1)}
        self.client.hset(self.config.keys.registry, mapping=kinds)
        self.client.incr(self.config.keys.registry_version)
        self._started: asyncio.Queue[float] = asyncio.Queue()
        self.starts: list[float] = []  # seconds from the enqueue to the processor
        self.claims: list[float] = []  # seconds of Redis

    async def _note(self, entity: dict[str, Any]) -> None:
        self._started.put_nowait(time.perf_counter() - entity["at"])

    async def start_some(self) -> None:
        """Enqueue one operation after the other, each when the one before has begun."""
        for _ in range(STARTS):
            entity = {"at": time.perf_counter()}
            await asyncio.to_thread(self.manager.enqueue, entity, "benchmark:note", queue_name="one")
            self.starts.append(await asyncio.wait_for(self._started.get(), 30.0))

    def claim_some(self) -> None:
        """Claim one operation after the other, as a worker does."""
        entities = [{"at": 0.0}] * CLAIMS
        self.manager.enqueue_batch(entities, "benchmark:note", queue_name="one")
        call = self.config.commands.claim(async_slots=1, sync_slots=1, lease=600.0, retention=60.0)
        before = self._redis_seconds()
        for _ in range(CLAIMS):
            if len(self.config.broker.run(call).deliveries) != 1:
                raise RuntimeError("a claim brought nothing")
        self.claims.append((self._redis_seconds() - before) / CLAIMS)
        self.client.delete(self.config.keys.leases)

    def _redis_seconds(self) -> float:
        stats: Any = self.client.info("commandstats")
        return sum(stats[name]["usec"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats) / 1e6


async def measure(url: str, sizes: list[int], turns: int) -> list[Rig]:
    """Turns of each size, one after the other."""
    rigs = [Rig(url, known) for known in sizes]
    for _ in range(turns):
        for rig in rigs:
            worker = QueueWorker(rig.config)
            await worker.start()
            try:
                await rig.start_some()
            finally:
                await worker.stop()
            await asyncio.to_thread(rig.claim_some)
    return rigs


def main() -> None:
    """Measure, and print a line for each size and the ratios to the first."""
    sizes = [int(size) for size in os.environ.get("QUEUES", "10,10000").split(",")]
    with Server() as server:
        rigs = asyncio.run(measure(server.url, sizes, int(os.environ.get("TURNS", "10"))))
    first = [statistics.median(each) for each in (rigs[0].starts, rigs[0].claims)]
    for rig in rigs:
        start, claim = statistics.median(rig.starts), statistics.median(rig.claims)
        print(
            f"{rig.known:>6} known queues: start of an operation {1e3 * start:.2f} ms ({start / first[0]:.2f}), "
            f"Redis time of a claim {1e6 * claim:.0f} us ({claim / first[1]:.2f})"
        )


if __name__ == "__main__":
    main()
