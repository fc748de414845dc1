"""What telemetry costs: microseconds of worker CPU for each operation, with it off and with each part of it on.

    python -m benchmarks.telemetry_overhead [--operations 20000] [--rounds 5] [--json]

Each measurement is a process of its own: it drains async no-ops at concurrency 100 and divides its CPU time, user and
system, by their number. The modes take turns within a round; the median of the rounds is shown, and the difference to
the mode without telemetry.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from benchmarks.machine import describe, median
from queue_system import QueueConfig, QueueManager, QueueWorker
from queue_system.embedded import EmbeddedServer
from telemetry import configure

MODES = {
    "off": "telemetry=None",
    "metrics": "metrics and logs, no tracer provider (the default)",
    "unsampled": "metrics, logs, and spans that the sampler drops",
    "sampled": "metrics, logs, and every span exported over OTLP/HTTP",
}
ENTITY = {"user_id": "123", "action": "update"}
CONCURRENCY = 100


async def noop(entity: dict[str, Any]) -> None:
    """The operation: nothing, so that what is measured is ours."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", choices=MODES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(asyncio.run(measure(arguments.measure, arguments.operations))))
        return
    with EmbeddedServer() as server, Receiver() as receiver:
        results = run(server.url, receiver.endpoint, arguments.operations, arguments.rounds)
        version = QueueConfig(redis_url=server.url, telemetry=None).broker.server_version()
    show(results, describe(version), as_json=arguments.json)


def run(url: str, endpoint: str, operations: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """All modes, in turns."""
    results: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for number in range(rounds):
        for mode in MODES:
            environment = os.environ | {"BENCH_REDIS": url, "BENCH_OTLP": endpoint, "BENCH_PREFIX": f"{mode}{number}:"}
            command = [sys.executable, "-m", "benchmarks.telemetry_overhead", "--measure", mode]
            command += ["--operations", str(operations)]
            output = subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300).stdout
            results[mode].append(json.loads(output))
    return results


async def measure(mode: str, operations: int) -> dict[str, float]:
    """One drain in this process."""
    telemetry = prepare(mode)
    options = {"redis_url": os.environ["BENCH_REDIS"], "queue_prefix": os.environ["BENCH_PREFIX"]}
    producer = QueueManager(QueueConfig(**options, telemetry=None))
    for start in range(0, operations, 1000):
        producer.enqueue_batch([ENTITY] * min(1000, operations - start), noop)
    config = QueueConfig(**options, telemetry=None if mode == "off" else "default")
    worker = QueueWorker(config, max_workers=CONCURRENCY)
    cpu, began = time.process_time(), time.perf_counter()
    await worker.start()
    # The count is in Redis, where no event of ours can be set.
    while (await asyncio.to_thread(producer.config.get_metrics))["processed"] < operations:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    cpu, took = time.process_time() - cpu, time.perf_counter() - began
    await worker.stop()
    if telemetry is not None:
        telemetry.shutdown()
    return {"microseconds": cpu / operations * 1e6, "per_second": operations / took}


def prepare(mode: str) -> Any:
    """Set up the mode's tracer provider."""
    if mode in {"off", "metrics"}:
        return None
    # Retries apart, a ratio of 0 drops every span: what is measured is that the SDK is there.
    return configure(otlp_endpoint=os.environ["BENCH_OTLP"], sample_ratio=0.0 if mode == "unsampled" else 1.0)


def show(results: dict[str, list[dict[str, float]]], machine: str, *, as_json: bool) -> None:
    """The table, or JSON."""
    cost = {mode: median([one["microseconds"] for one in rounds]) for mode, rounds in results.items()}
    speed = {mode: median([one["per_second"] for one in rounds]) for mode, rounds in results.items()}
    if as_json:
        print(json.dumps({"machine": machine, "microseconds": cost, "per_second": speed}, indent=2))
        return
    print(machine)
    print(f"{'mode':<10} {'us/op':>7} {'added':>7} {'op/s':>8}  what")
    for mode, what in MODES.items():
        print(f"{mode:<10} {cost[mode]:7.1f} {cost[mode] - cost['off']:+7.1f} {speed[mode]:8,.0f}  {what}")


class Receiver:
    """Takes spans in a thread of this process, and throws them away."""

    def __init__(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


if __name__ == "__main__":
    main()
