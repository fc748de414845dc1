"""A real Prometheus scrapes real workers under load: what it then answers is what the load did.

The load lasts 30 s; with ``QUEUE_SYSTEM_LONG_TESTS=1`` it lasts a minute.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from queue_system import QueueConfig, QueueManager
from support import missing, until, until_metrics

LOAD = 60.0 if os.environ.get("QUEUE_SYSTEM_LONG_TESTS", "") == "1" else 30.0
WINDOW = int(LOAD) - 10
"""Seconds that the queries look back: the load without its beginning, when the pool fills."""

SCRIPT = Path(sys.executable).with_name("queue-system")
THREADS = 20
SHARE = 0.6
NAPS = 15

TASKS = """
import asyncio
import time
from queue_system import processor

@processor
def work(entity):
    time.sleep(entity["seconds"])

@processor
async def nap(entity):
    await asyncio.sleep(1.0)
"""


def work(entity):
    """Stands for the one of `TASKS`."""


async def nap(entity):
    """Stands for the one of `TASKS`."""


class Prometheus:
    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1/"

    def ready(self) -> bool:
        try:
            return bool(self._get("targets", state="active")["activeTargets"])
        except (urllib.error.URLError, ConnectionError):
            return False

    def value(self, query: str) -> float:
        """The one sample that a query gives now."""
        (found,) = self._get("query", query=query)["result"]
        return float(found["value"][1])

    def scraped(self) -> bool:
        return bool(self._get("query", query="sum(up) == 2")["result"])

    def _get(self, path: str, **parameters: str):
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
            return json.load(answer)["data"]


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., Callable[[], str]]]:
    """Starts programs, which are ended by their id; gives what each has printed."""
    processes: list[subprocess.Popen[bytes]] = []

    def begin(*command: str, env: dict[str, str] | None = None) -> Callable[[], str]:
        output = tmp_path / f"output-{len(processes)}"
        with output.open("wb") as out:
            processes.append(
                subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path, env=os.environ | (env or {}))
            )
        return output.read_text

    yield begin
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


async def worker(start, tmp_path: Path, config: QueueConfig) -> str:
    """A worker of the command line; its address of metrics."""
    tmp_path.joinpath("tasks.py").write_text(TASKS)
    env = {"QUEUE_SYSTEM_REDIS_URL": config.clients.address, "QUEUE_SYSTEM_QUEUE_PREFIX": config.queue_prefix}
    options = ("--metrics-port", "0", "--thread-pool-size", str(THREADS), "--max-workers", "1", "--grace", "0")
    said = start(str(SCRIPT), "worker", "tasks", *options, env=env)
    found = await until(lambda: re.search(r"metrics on http://(\S+)/metrics", said()), 30, f"ready: {said()}")
    return found.group(1)


async def prometheus(start, tmp_path: Path, targets: dict[str, str]) -> Prometheus:
    """One that scrapes the targets, {job: address}, every second."""
    if shutil.which("prometheus") is None:
        missing("prometheus")
    jobs = [{"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()]
    settings = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
    tmp_path.joinpath("prometheus.yml").write_text(json.dumps(settings))  # JSON is YAML
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    start(
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={address}",
    )
    server = Prometheus(address)
    await until(server.ready, 30, "Prometheus")
    await until(server.scraped, 30, "the first scrape")
    return server


async def keep_busy(config: QueueConfig, seconds: float) -> int:
    """Operations of that length, spread evenly, that keep the share of the threads busy for `LOAD`."""
    manager, rate, began, count = QueueManager(config), THREADS * SHARE / seconds, time.monotonic(), 0
    while (elapsed := time.monotonic() - began) < LOAD:
        while count < elapsed * rate:
            manager.enqueue({"seconds": seconds}, work)
            count += 1
        await asyncio.sleep(min(0.02, 1 / rate))
    return count


def utilization(job: str) -> str:
    rate = 'rate(queue_system_thread_pool_{}_seconds_total{{job="{}"}}[{}s])'
    return f"{rate.format('busy', job, WINDOW)} / {rate.format('capacity', job, WINDOW)}"


async def test_prometheus_shows_what_the_load_did(start, tmp_path, make_config, prefix):
    short, long = make_config(queue_prefix=f"{prefix}s:"), make_config(queue_prefix=f"{prefix}l:")
    for function in (work, nap):  # like the worker, the producer knows which of them is async
        short.registry.register(function, name=function.__name__, module="tasks")
    addresses = [await worker(start, tmp_path, config) for config in (short, long)]
    server = await prometheus(start, tmp_path, {"short": addresses[0], "long": addresses[1]})

    QueueManager(short).enqueue_batch([{}] * NAPS, nap)
    counts = await asyncio.gather(keep_busy(short, 0.8), keep_busy(long, 3.0))  # shorter, longer than a scrape interval
    shares = [server.value(utilization(job)) for job in ("short", "long")]
    print("utilization of short and long operations:", *(f"{share:.4f}" for share in shares))  # noqa: T201  for -s
    assert shares == pytest.approx([SHARE, SHARE], abs=0.05)
    gauge = f'avg_over_time(queue_system_thread_pool_utilization_ratio{{job="long"}}[{WINDOW}s])'
    assert server.value(gauge) == pytest.approx(SHARE, abs=0.08)

    await until_metrics(short, processed=counts[0] + NAPS)
    await until_metrics(long, processed=counts[1])
    napped = 'queue_system_queue_wait_seconds_{}{{job="short",queue="nap"{}}}'
    await until(lambda: server.value(napped.format("count", "")) == NAPS)
    # One at a time, a second each: the last waited for all before it.
    oldest = 'queue_system_queue_oldest_age_seconds{job="short",queue="nap"}'
    assert server.value(f"max_over_time({oldest}[{2 * WINDOW}s])") == pytest.approx(NAPS - 1, abs=2.5)
    await until(lambda: server.value(oldest) == 0)
    mean = server.value(napped.format("sum", "")) / NAPS
    assert mean == pytest.approx((NAPS - 1) / 2, abs=1.0)
    assert server.value(napped.format("bucket", ',le="5.0"')) == pytest.approx(5, abs=2)
    # The pool had room all the time, so nothing waited for a thread.
    waits = 'sum by (le) (queue_system_queue_wait_seconds_bucket{queue="work"})'
    assert server.value(f"histogram_quantile(0.95, {waits})") < 0.5
    assert server.value("sum(queue_system_thread_pool_exhaustion_total)") == 0
    assert server.value("max(queue_system_unaccounted_operations)") == 0
    await until(lambda: server.value("max(queue_system_thread_pool_active)") == 0)
