"""What the machine and the client libraries allow at all, a second: the ceilings that the figures stand under.

Run as a program it measures on `BENCH_REDIS` and prints one line of JSON. The bare loop is the least that a queue with
leases can do: one script claims a batch, each job is a task, one script acknowledges the batch.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import redis
import redis.asyncio

from benchmarks.peers.common import PAYLOAD, run_loop

BODY: Final = json.dumps(PAYLOAD).encode()
NAMES: Final = {
    "redis-py round trip": "one LPUSH after the other",
    "raw socket round trip": "the same bytes without a client library",
    "redis-py pipelined": "LPUSH, 1,000 a pipeline",
    "redis.asyncio pipelined": "LPUSH, 1,000 a pipeline",
    "asyncio task": "create_task of a no-op, 100 at once",
    "executor hop": "run_in_executor of a no-op, 20 threads",
    "bare loop 100": "claim of 100, a task each, one ack",
    "bare loop 10": "claim of 10, a task each, one ack",
    "bare loop 100 uvloop": "the same with uvloop",
    "bare loop 10 ms": "100 at once, each sleeps 10 ms; the limit is 10,000",
    "bare loop 10 ms uvloop": "the same with uvloop",
}
_CLAIM: Final = """
local ids = redis.call('LPOP', KEYS[1], ARGV[1])
if not ids then return {} end
local now = redis.call('TIME')[1] + ARGV[2]
local reply = {}
for i, id in ipairs(ids) do
  redis.call('ZADD', KEYS[2], now, id)
  reply[2 * i - 1] = id
  reply[2 * i] = redis.call('HGET', KEYS[3] .. id, 'body')
end
return reply
"""
_ACK: Final = """
for i = 1, #ARGV do
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then redis.call('DEL', KEYS[2] .. ARGV[i]) end
end
"""


def main() -> None:
    url, seconds = os.environ["BENCH_REDIS"], float(os.environ.get("BENCH_SECONDS", "1"))
    client = redis.Redis.from_url(url)
    figures = {
        "redis-py round trip": rate(lambda: client.lpush("limit", BODY), seconds),
        "raw socket round trip": raw_socket(url, seconds),
        "redis-py pipelined": pipelined(client, seconds),
    }
    client.flushdb()
    figures["redis.asyncio pipelined"] = asyncio.run(pipelined_async(url, seconds))
    client.flushdb()
    figures["asyncio task"] = asyncio.run(tasks(seconds))
    figures["executor hop"] = asyncio.run(hops(seconds))
    for name, batch, wait, fast in (
        ("bare loop 100", 100, 0.0, False),
        ("bare loop 10", 10, 0.0, False),
        ("bare loop 100 uvloop", 100, 0.0, True),
        ("bare loop 10 ms", 100, 0.01, False),
        ("bare loop 10 ms uvloop", 100, 0.01, True),
    ):
        fill(client, int((20_000 if wait else 100_000) * seconds))
        figures[name] = run_loop(bare_loop(url, batch, wait), fast=fast)
        client.flushdb()
    print(json.dumps(figures))


def rate(call: Callable[[], Any], seconds: float, each: int = 1) -> float:
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for _ in range(20):
            call()
        done += 20 * each
    return done / took


def raw_socket(url: str, seconds: float) -> float:
    host, port = url.removeprefix("redis://").partition("/")[0].split(":")
    command = b"*3\r\n$5\r\nLPUSH\r\n$5\r\nlimit\r\n$%d\r\n%s\r\n" % (len(BODY), BODY)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def call() -> None:
            connection.sendall(command)
            connection.recv(100)

        return rate(call, seconds)


def pipelined(client: redis.Redis, seconds: float) -> float:
    def call() -> None:
        pipeline = client.pipeline(transaction=False)
        for _ in range(1000):
            pipeline.lpush("limit", BODY)
        pipeline.execute()

    return rate(call, seconds, 1000)


async def pipelined_async(url: str, seconds: float) -> float:
    client = redis.asyncio.Redis.from_url(url)
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        pipeline = client.pipeline(transaction=False)
        for _ in range(1000):
            pipeline.lpush("limit", BODY)
        await pipeline.execute()
        done += 1000
    await client.aclose()
    return done / took


async def nothing() -> None:
    pass


async def tasks(seconds: float) -> float:
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        await asyncio.gather(*[asyncio.create_task(nothing()) for _ in range(100)])
        done += 100
    return done / took


async def hops(seconds: float) -> float:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(20) as pool:
        done, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            await asyncio.gather(*[loop.run_in_executor(pool, int) for _ in range(100)])
            done += 100
        return done / took


def fill(client: redis.Redis, count: int) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(count):
        pipeline.hset(f"op:{number}", "body", BODY)
        pipeline.rpush("ready", number)
        if not (number + 1) % 2000:
            pipeline.execute()
    pipeline.execute()


async def bare_loop(url: str, batch: int, wait: float) -> float:
    client = redis.asyncio.Redis.from_url(url)
    claim, ack = client.register_script(_CLAIM), client.register_script(_ACK)

    async def job(body: bytes) -> None:
        json.loads(body)
        if wait:
            await asyncio.sleep(wait)

    done, began = 0, time.perf_counter()
    if wait:
        done = await _keep_in_flight(claim, ack, job, batch)
    else:
        while reply := await claim(("ready", "leases", "op:"), (batch, 30)):
            await asyncio.gather(*[asyncio.create_task(job(body)) for body in reply[1::2]])
            await ack(("leases", "op:"), reply[::2])
            done += len(reply) // 2
    took = time.perf_counter() - began
    await client.aclose()
    return done / took


async def _keep_in_flight(claim: Any, ack: Any, job: Callable[[bytes], Coroutine[Any, Any, None]], most: int) -> int:
    """As soon as something has ended it is acknowledged, and as much is claimed."""
    done = 0
    ended: list[bytes] = []
    running: set[asyncio.Task[None]] = set()
    changed = asyncio.Event()

    async def one(name: bytes, body: bytes) -> None:
        await job(body)
        ended.append(name)
        changed.set()

    more = True
    while more or running or ended:
        if ended:
            names, ended[:] = ended[:], []
            await ack(("leases", "op:"), names)
            done += len(names)
        if more and (free := most - len(running)):
            reply = await claim(("ready", "leases", "op:"), (free, 30))
            more = bool(reply)
            for name, body in zip(reply[::2], reply[1::2], strict=True):
                task = asyncio.create_task(one(name, body))
                running.add(task)
                task.add_done_callback(running.discard)
        if not ended:
            changed.clear()
            if running:
                await changed.wait()
            else:
                await asyncio.sleep(0)
    return done


if __name__ == "__main__":
    main()
