"""What a bad collector costs: throughput and memory with one that is well, dead, slow, or never answers.

    python -m benchmarks.collector_outage [--operations 20000] [--rounds 5] [--json]

Each measurement is a process of its own that drains async no-ops, every span sampled. The collectors take turns within
a round; `relative` is the median of the rounds' ratios to the one that is well, the other figures are medians, too.
`us/op` is CPU time, which a busy machine disturbs less. `growth` is what the process's memory gains after the first
quarter of the operations. The exit code is 1 when throughput falls by more than 5 % or memory grows by over 10 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from benchmarks.machine import describe, median
from benchmarks.receiver import Receiver
from queue_system import QueueConfig, QueueManager, QueueWorker
from queue_system.embedded import EmbeddedServer
from telemetry import configure

SLOW = 1.0  # seconds for each batch
COLLECTORS = {
    "well": "takes every batch at once",
    "dead": "refuses connections",
    "slow": f"takes {SLOW:g} s for each batch",
    "hanging": "accepts connections and never answers",
}
CONCURRENCY = 100
ALLOWED_LOSS, ALLOWED_GROWTH = 0.05, 10.0


async def noop(entity: dict[str, Any]) -> None:
    """The operation: nothing, so that what is measured is ours."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(asyncio.run(measure(arguments.measure, arguments.operations))))
        return 0
    with EmbeddedServer() as server:
        results = run(server.url, arguments.operations, arguments.rounds)
        version = QueueConfig(redis_url=server.url, telemetry=None).broker.server_version()
    return show(results, describe(version), as_json=arguments.json)


def run(url: str, operations: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """All collectors, in turns."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in COLLECTORS}
    for number in range(rounds):
        for name in COLLECTORS:
            with collector(name) as endpoint:
                environment = os.environ | {"BENCH_REDIS": url, "BENCH_PREFIX": f"{name}{number}:"}
                command = [sys.executable, "-m", "benchmarks.collector_outage", "--measure", endpoint]
                command += ["--operations", str(operations)]
                done = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=300
                )
            results[name].append(json.loads(done.stdout))
    return results


async def measure(endpoint: str, operations: int) -> dict[str, float]:
    """One drain in this process."""
    telemetry = configure(otlp_endpoint=endpoint, sample_ratio=1.0)
    counts = telemetry.pipeline.counts
    options = {"redis_url": os.environ["BENCH_REDIS"], "queue_prefix": os.environ["BENCH_PREFIX"]}
    producer = QueueManager(QueueConfig(**options, telemetry=None))
    for start in range(0, operations, 1000):
        producer.enqueue_batch([{"n": start}] * min(1000, operations - start), noop)
    worker = QueueWorker(QueueConfig(**options), max_workers=CONCURRENCY)
    memory, process = 0.0, psutil.Process()
    cpu, began = time.process_time(), time.perf_counter()
    await worker.start()
    while counts.ended < operations:
        if not memory and counts.ended > operations / 4:
            memory = process.memory_info().rss
        await asyncio.sleep(0.01)
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    growth = (process.memory_info().rss - memory) / 1e6
    await worker.stop()
    began = time.perf_counter()
    telemetry.shutdown()
    return {
        "per_second": operations / took,
        "microseconds": cpu / operations * 1e6,
        "growth_mb": growth,
        "shutdown_seconds": time.perf_counter() - began,
        "exported": counts.exported,
        "dropped": counts.dropped,
        "unaccounted": counts.ended - counts.exported - counts.dropped,
    }


def show(results: dict[str, list[dict[str, float]]], machine: str, *, as_json: bool) -> int:
    """The table, or JSON; 1 when a limit is passed."""
    figures = {
        name: {key: median([one[key] for one in rounds]) for key in rounds[0]} for name, rounds in results.items()
    }
    for name, one in figures.items():
        pairs = zip(results[name], results["well"], strict=True)
        one["relative"] = median([this["per_second"] / well["per_second"] for this, well in pairs])
    if as_json:
        print(json.dumps({"machine": machine, "collectors": figures}, indent=2))
    else:
        print(machine)
        print("collector      op/s relative  us/op    growth  exported  dropped    end  what")
        for name, what in COLLECTORS.items():
            one = figures[name]
            print(
                f"{name:<10} {one['per_second']:8,.0f} {one['relative']:8.2f} {one['microseconds']:6.0f} "
                f"{one['growth_mb']:+6.1f} MB {one['exported']:9,.0f} {one['dropped']:8,.0f} "
                f"{one['shutdown_seconds']:4.1f} s  {what}"
            )
    good = all(
        one["relative"] >= 1 - ALLOWED_LOSS and one["growth_mb"] <= ALLOWED_GROWTH and one["unaccounted"] == 0
        for one in figures.values()
    )
    return 0 if good else 1


@contextmanager
def collector(name: str) -> Iterator[str]:
    """An endpoint that behaves as its name says, in this process."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if name in {"dead", "hanging"}:  # bound and not listening, or listening and never answering
            if name == "hanging":
                listening.listen(100)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            return
    with Receiver(SLOW if name == "slow" else 0.0) as receiver:
        yield receiver.endpoint


if __name__ == "__main__":
    sys.exit(main())
