"""Many tasks, and many threads, that enqueue at once, beside redis-py's own clients: enqueues and `LPUSH` a second.

    python -m benchmarks.concurrency [--quick] [--rounds 7] [--markdown FILE]

Each of N tasks (threads) enqueues one operation after the other with one manager that all share; beside it, each of N
does one `LPUSH` after the other with one client of redis-py's that all share, by turns. Medians over the rounds are
shown, and the median of the ratios within a round. About a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import pathlib
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis
import redis.asyncio as aioredis
from rich.console import Console

from benchmarks.driver import Server
from benchmarks.machine import describe, median
from benchmarks.markdown import table
from benchmarks.tables import plain
from queue_system import AsyncQueueManager, QueueConfig, QueueManager

TASKS: Final = (1, 10, 50, 200)
THREADS: Final = (1, 8, 64, 250)
OPERATIONS: Final = 3_000
QUICK_OPERATIONS: Final = 500
ROUNDS: Final = 7
ENTITY: Final[dict[str, Any]] = {"order_id": 12345, "customer": "alice@example.com", "items": [1, 2, 3]}
BODY: Final = b"x" * 300
HEADS: Final = ("at once", "enqueued a second", "redis-py's LPUSH a second", "of redis-py's")
_UNLIMITED: Final = 100_000  # connections: redis-py allows 100, and raises an error for the next one


@dataclass(frozen=True)
class Row:
    """So many tasks or threads at once."""

    title: str
    ours: float
    theirs: float
    ratio: float

    @property
    def cells(self) -> list[str]:
        return [self.title, f"{self.ours:,.0f}", f"{self.theirs:,.0f}", f"{self.ratio:.2f}"]


async def noop(entity: dict[str, Any]) -> None:
    """What is enqueued; nobody runs it."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.concurrency", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help=f"one round, {QUICK_OPERATIONS} operations each")
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}, with --quick 1")
    parser.add_argument("--markdown", metavar="FILE", help="write the table of docs/performance.md there")
    options = parser.parse_args()
    operations = QUICK_OPERATIONS if options.quick else OPERATIONS
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    with Server() as server:
        machine = describe(server.version())
        rows = measure(server, operations, rounds)
    console = Console()
    console.print(machine, highlight=False)
    console.print(plain("many that enqueue at once", HEADS, [row.cells for row in rows]))
    if options.markdown:
        text = f"`python -m benchmarks.concurrency` on {machine}.\n\n{table(HEADS, [row.cells for row in rows])}\n"
        pathlib.Path(options.markdown).write_text(text)
    return 0


def measure(server: Server, operations: int, rounds: int) -> list[Row]:
    """All rows, by turns within each round."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for count in TASKS:
            server.flush()
            found.setdefault(_named(count, "task"), []).append(asyncio.run(by_tasks(server.url, count, operations)))
        for count in THREADS:
            server.flush()
            found.setdefault(_named(count, "thread"), []).append(by_threads(server.url, count, operations))
    return [
        Row(
            title,
            median([ours for ours, _ in pairs]),
            median([theirs for _, theirs in pairs]),
            median([ours / theirs for ours, theirs in pairs]),
        )
        for title, pairs in found.items()
    ]


def _named(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


async def by_tasks(url: str, count: int, operations: int) -> tuple[float, float]:
    """A second, ours and redis-py's."""
    queue = AsyncQueueManager(QueueConfig(redis_url=url))
    client: Any = aioredis.Redis.from_url(url, max_connections=_UNLIMITED)
    try:
        ours = await _task_rate(lambda: queue.enqueue(ENTITY, noop), count, operations)
        theirs = await _task_rate(lambda: client.lpush("beside", BODY), count, operations)
    finally:
        await queue.close()
        await client.connection_pool.disconnect()
    return ours, theirs


def by_threads(url: str, count: int, operations: int) -> tuple[float, float]:
    """A second, ours and redis-py's."""
    client = redis.Redis.from_url(url, max_connections=_UNLIMITED)
    with QueueConfig(redis_url=url) as config:
        queue = QueueManager(config)
        ours = _thread_rate(lambda: queue.enqueue(ENTITY, noop), count, operations)
    theirs = _thread_rate(lambda: client.lpush("beside", BODY), count, operations)
    client.close()
    return ours, theirs


async def _task_rate(do: Callable[[], Awaitable[Any]], count: int, operations: int) -> float:
    each = max(operations // count, 1)

    async def one() -> None:
        for _ in range(each):
            await do()

    await asyncio.gather(*(do() for _ in range(count)))  # connected
    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return each * count / (time.perf_counter() - began)


def _thread_rate(do: Callable[[], Any], count: int, operations: int) -> float:
    each = max(operations // count, 1)
    begin, end = threading.Barrier(count + 1), threading.Barrier(count + 1)

    def one() -> None:
        try:
            do()  # connected
            begin.wait()
            for _ in range(each):
                do()
            end.wait()
        except BaseException:
            begin.abort()
            end.abort()
            raise

    threads: Sequence[threading.Thread] = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    begin.wait()
    began = time.perf_counter()
    end.wait()
    took = time.perf_counter() - began
    for thread in threads:
        thread.join()
    return each * count / took


if __name__ == "__main__":
    sys.exit(main())
