"""This project. `BENCH_VARIANT` names what differs from the default: ``off``, ``spans``, ``uvloop``, ``lease5``."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.peers.common import JOBS, REDIS, Peer, Producer, Role, run, run_loop
from queue_system import QueueConfig, QueueManager, QueueWorker
from queue_system.registry import default_registry

VARIANT = frozenset(filter(None, os.environ.get("BENCH_VARIANT", "").split(",")))
TELEMETRY = None if "off" in VARIANT else "default"

for _kind in JOBS.values():
    for _job in _kind.values():
        default_registry.register(_job)


def produce() -> Producer:
    manager = QueueManager(QueueConfig(redis_url=REDIS, telemetry=TELEMETRY))

    def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        manager.enqueue(payload, job)

    def many(job: Callable[..., Any], batch: Sequence[dict[str, Any]]) -> None:
        manager.enqueue_batch(list(batch), job)

    return Producer(one, many, chunk=1000, close=manager.config.close)


def work(role: Role) -> None:
    if "spans" in VARIANT:
        from telemetry import configure  # noqa: PLC0415

        configure(otlp_endpoint=os.environ["BENCH_OTLP"], sample_ratio=1.0)
    run_loop(_work(role), fast="uvloop" in VARIANT)


async def _work(role: Role) -> None:
    slots = "thread_pool_size" if role.kind == "sync" else "max_workers"
    settings: dict[str, Any] = {} if role.purpose == "recovery" else {slots: role.concurrency}
    if "lease5" in VARIANT:
        settings["lease"] = 5.0
    async with QueueWorker(QueueConfig(redis_url=REDIS, telemetry=TELEMETRY), **settings):
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(
        Peer(
            package="queue-system",
            kinds=("async", "sync"),
            settings={
                "noop": "max_workers or thread_pool_size = concurrency; metrics and logs on, no tracer provider",
                "recovery": "defaults",
            },
            produce=produce,
            work=work,
            bulk="enqueue_batch of 1,000",
        )
    )
