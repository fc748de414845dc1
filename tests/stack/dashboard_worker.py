"""A worker under mixed load with its side-car's page, for `test_stack_dashboards`: `dashboard_worker.py REDIS_URL`.

Prints the address of the page, and works until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import sys
import time

from queue_system import QueueConfig, QueueManager, QueueRetryConfig, QueueWorker
from queue_system.registry import Registry
from telemetry import SidecarServer, configure

SOON = QueueRetryConfig.fixed(delay=0.05, max_attempts=2)
registry = Registry()


async def quick(entity):
    await asyncio.sleep(0.01)


def in_thread(entity):
    time.sleep(0.05)


async def fails(entity):
    raise ValueError(entity["number"])


async def hangs(entity):
    await asyncio.sleep(60)


async def told(data):
    await asyncio.sleep(0.001)


async def told_badly(data):
    raise LookupError


def enqueue(queue: QueueManager, number: int) -> None:
    entity = {"number": number}
    queue.enqueue(entity, quick, queue_name="mail", priority="high", on_success="tests:told")
    queue.enqueue(entity, in_thread, queue_name="reports", deduplication_key=f"report-{number // 2}")
    queue.enqueue(entity, in_thread, queue_name="reports", priority="low", delay=1.0)
    queue.enqueue(entity, fails, queue_name="mail", retry_config=SOON, on_failure="tests:told_badly")
    if number % 5 == 0:
        queue.enqueue(entity, hangs, queue_name="mail", retry_config=SOON, timeout=0.2)
    if number % 10 == 0:
        queue.enqueue(entity, "nowhere:nothing", queue_name="reports")


async def main(url: str) -> None:
    with socket.socket() as closed:  # spans go to a port where nobody listens: that must not disturb
        closed.bind(("127.0.0.1", 0))
        configure(otlp_endpoint=f"http://127.0.0.1:{closed.getsockname()[1]}/v1/traces")
    for function in (quick, in_thread, fails, hangs):
        registry.register(function, name=function.__name__, module="tests")
    with contextlib.closing(QueueConfig(redis_url=url, queue_prefix="dashboards:", registry=registry)) as config:
        for callback in (told, told_badly):
            config.register_callback(callback, name=callback.__name__, module="tests")
        worker = QueueWorker(config, max_workers=4, thread_pool_size=2)
        server = SidecarServer(worker.health, port=0)
        await worker.start()
        server.start()
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        for number in itertools.count():
            if (await asyncio.wait({ended}, timeout=0.1))[0]:
                break
            await asyncio.to_thread(enqueue, QueueManager(config), number)
        await worker.stop(grace=2.0)
        server.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
