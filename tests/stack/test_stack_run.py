"""``python -m stack`` as a user runs it: each printed address answers, and work shows in the metrics."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from queue_system.embedded import find_server
from queue_system.errors import ConfigurationError
from stack import configuration
from stack.programs import answers, free_port
from support import missing, until

ROOT = Path(__file__).parents[2]
INTERVAL = 1


@pytest.fixture(autouse=True)
def _programs() -> None:
    try:
        find_server()
    except ConfigurationError:
        missing("a redis-server or valkey-server")
    for binary in ("prometheus", "prometheus-alertmanager"):
        if shutil.which(binary) is None:
            missing(binary)


@contextlib.asynccontextmanager
async def stack(directory: Path) -> AsyncIterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The running stack and the addresses that it printed."""
    told = directory / "addresses.json"
    command = [sys.executable, "-m", "stack", "--free-ports", "--interval", str(INTERVAL), "--without", "jaeger"]
    with subprocess.Popen(  # noqa: ASYNC220  it is not waited for here
        [*command, "--addresses", told, "--seconds", "100"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            await until(lambda: process.poll() is not None or told.exists(), 60, "the stack is up")
            assert process.poll() is None, process.communicate()[0]
            yield process, json.loads(told.read_text())
        finally:
            process.terminate()
            process.wait(30)


def get(url: str, data: dict[str, Any] | None = None) -> Any:
    body = None if data is None else json.dumps(data).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=5) as answer:
        return json.load(answer)


def value(prometheus: str, query: str) -> float:
    found = get(f"{prometheus}/api/v1/query?query={urllib.parse.quote(query)}")["data"]["result"]
    return float(found[0]["value"][1]) if found else 0.0


async def test_each_address_answers_and_an_operation_shows_within_one_scrape(tmp_path: Path) -> None:
    async with stack(tmp_path) as (process, addresses):
        assert set(addresses) == {"Redis", "Sample app", "Worker", "Alertmanager", "Prometheus"}
        pages = {name: url for name, url in addresses.items() if name != "Redis"}
        assert [name for name, url in pages.items() if not answers(url)] == []
        assert ping(addresses["Redis"])
        prometheus = addresses["Prometheus"]
        assert {job["name"] for job in get(f"{prometheus}/api/v1/rules")["data"]["groups"]} == committed_groups()
        await until(lambda: up(prometheus) == {"queue-system": 2, "prometheus": 1}, 15, "all targets are up")
        known = get(f"{prometheus}/api/v1/alertmanagers")["data"]["activeAlertmanagers"]
        assert [alertmanager["url"] for alertmanager in known] == [f"{addresses['Alertmanager']}/api/v2/alerts"]

        accepted = get(f"{addresses['Sample app']}/enqueue", {"task": "mail", "entity": {"seconds": 0}, "count": 3})
        assert accepted["accepted"] == 3
        await until(lambda: get(f"{addresses['Sample app']}/status")["metrics"]["processed"] == 3, 10, "processed")
        done = time.monotonic()
        for name in ("enqueued", "processed"):
            query = f'sum(queue_system_{name}_total{{queue="mail"}})'
            await until(lambda query=query: value(prometheus, query) == 3, 10 * INTERVAL, query)
        assert time.monotonic() - done < 2 * INTERVAL + 1  # a scrape, at worst just missed, and a busy machine

        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=30)[0]
        assert process.returncode == 0, output
        assert [
            url for url in addresses.values() if not re.search(rf"^\S.* {re.escape(url)}$", output, re.MULTILINE)
        ] == []
        assert [name for name, url in pages.items() if answers(url)] == []
        assert not ping(addresses["Redis"])


async def test_a_program_that_ends_ends_the_stack_and_says_so(tmp_path: Path) -> None:
    async with stack(tmp_path) as (process, addresses):
        children = psutil.Process(process.pid).children(recursive=True)
        worker = next(child for child in children if "sample_tasks" in child.cmdline())
        worker.kill()
        output = process.communicate(timeout=30)[0]
        assert process.returncode == 1, output
        assert "Worker has ended with -9" in output
        assert not ping(addresses["Redis"])
        assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


async def test_a_port_that_is_taken_is_not_taken_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert free_port(taken) not in {0, taken}
    assert free_port(taken) == taken


def ping(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    try:
        with socket.create_connection((str(parts.hostname), int(parts.port or 0)), 2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
    except OSError:
        return False


def up(prometheus: str) -> dict[str, int]:
    found = get(f"{prometheus}/api/v1/targets")["data"]["activeTargets"]
    healthy = [target["labels"]["job"] for target in found if target["health"] == "up"]
    return {job: healthy.count(job) for job in healthy}


def committed_groups() -> set[str]:
    files = (configuration.PROMETHEUS / "rules").glob("*.yml")
    return {group["name"] for path in files for group in yaml.safe_load(path.read_text())["groups"]}
