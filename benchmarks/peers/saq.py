"""saq: async jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from saq import Worker
from saq.queue.redis import RedisQueue

from benchmarks.peers.common import JOBS, REDIS, Peer, Producer, Role, gathered, run, run_loop


def function_of(job: Callable[..., Any]) -> Callable[..., Any]:
    async def function(_: Any, *, payload: dict[str, Any]) -> None:
        await job(payload)

    function.__qualname__ = function.__name__ = job.__name__
    return function


FUNCTIONS = [function_of(job) for job in JOBS["async"].values()]


def connect(most: int = 100) -> RedisQueue:
    return RedisQueue(Redis.from_url(REDIS), max_concurrent_ops=most)


async def produce() -> Producer:
    queue = connect()
    await queue.connect()

    async def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        await queue.enqueue(job.__name__, payload=payload, ttl=-1)

    return Producer(one, gathered(one), close=queue.disconnect)


def work(role: Role) -> None:
    run_loop(_work(role), fast=role.purpose != "recovery")


async def _work(role: Role) -> None:
    if role.purpose == "recovery":
        worker = Worker(RedisQueue(Redis.from_url(REDIS)), FUNCTIONS)
    else:
        worker = Worker(connect(), FUNCTIONS, concurrency=role.concurrency)
    await worker.queue.connect()
    await asyncio.shield(worker.start())


if __name__ == "__main__":
    run(
        Peer(
            package="saq",
            kinds=("async",),
            settings={
                "noop": "concurrency=N, max_concurrent_ops=100, uvloop, results not kept (ttl=-1)",
                "recovery": "defaults, results not kept",
            },
            produce=produce,
            work=work,
            bulk="gather of 100 enqueue()",
        )
    )
