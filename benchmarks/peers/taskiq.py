"""taskiq with taskiq-redis: streams, which acknowledge; async and sync jobs. Its worker takes uvloop by itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from taskiq_redis import RedisStreamBroker

from benchmarks.peers.common import JOBS, REDIS, Peer, Producer, Role, gathered, run

# From the stream's beginning: the default, "$", would not see what was enqueued before the first worker.
broker = RedisStreamBroker(REDIS, consumer_id="0", xread_count=100)
TASKS = {job: broker.task(task_name=job.__name__)(job) for jobs in JOBS.values() for job in jobs.values()}


async def produce() -> Producer:
    await broker.startup()

    async def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        await TASKS[job].kiq(payload)

    return Producer(one, gathered(one), close=broker.shutdown)


def work(role: Role) -> None:
    command = [sys.executable, "-m", "taskiq", "worker", "benchmarks.peers.taskiq:broker", "--log-level", "ERROR"]
    if role.purpose != "recovery":
        command += ["--workers", "1", "--no-parse", "--max-async-tasks", str(role.concurrency), "--max-prefetch", "100"]
        command += ["--max-threadpool-threads", str(role.concurrency)]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    run(
        Peer(
            package="taskiq-redis",
            kinds=("async", "sync"),
            settings={
                "noop": "RedisStreamBroker(xread_count=100), 1 worker, uvloop, --no-parse, --max-async-tasks N, "
                "--max-threadpool-threads N, --max-prefetch 100, no result backend",
                "recovery": "RedisStreamBroker, defaults",
            },
            produce=produce,
            work=work,
            bulk="gather of 100 kiq()",
            also=("taskiq", "redis", "hiredis", "uvloop"),
        )
    )
