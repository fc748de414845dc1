"""arq: async jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from benchmarks.peers.common import JOBS, REDIS, Peer, Producer, Role, gathered, run, run_loop


def function_of(job: Callable[..., Any]) -> Any:
    async def function(_: Any, payload: dict[str, Any]) -> None:
        await job(payload)

    return func(function, name=job.__name__)


FUNCTIONS = [function_of(job) for job in JOBS["async"].values()]


async def produce() -> Producer:
    pool = await create_pool(RedisSettings.from_dsn(REDIS))

    async def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        await pool.enqueue_job(job.__name__, payload)

    return Producer(one, gathered(one), close=pool.aclose)


def work(role: Role) -> None:
    run_loop(_work(role), fast=role.purpose != "recovery")


async def _work(role: Role) -> None:
    settings: dict[str, Any] = {}
    if role.purpose != "recovery":
        settings = {"max_jobs": role.concurrency, "keep_result": 0, "log_results": False}
        if role.purpose != "latency":  # an idle worker's polls are left as they come
            settings["poll_delay"] = 0.01
    worker = Worker(FUNCTIONS, redis_settings=RedisSettings.from_dsn(REDIS), handle_signals=False, **settings)
    await worker.async_run()
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(
        Peer(
            package="arq",
            kinds=("async",),
            settings={
                "noop": "max_jobs=N, keep_result=0, log_results=False, poll_delay=0.01, uvloop",
                "latency": "max_jobs=N, keep_result=0, poll_delay of 0.5 s as by default",
                "recovery": "defaults",
            },
            produce=produce,
            work=work,
            bulk="gather of 100 enqueue_job()",
        )
    )
