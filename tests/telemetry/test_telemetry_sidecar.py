"""The side-car's endpoints over HTTP, beside a real worker on a real Redis: what they show, and when they turn."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from otlp_receiver import HttpReceiver
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from queue_system import QueueConfig, QueueManager, QueueWorker
from queue_system.embedded import EmbeddedServer
from queue_system.errors import BrokerUnavailableError, ConfigurationError
from queue_system.log import get_logger
from queue_system.runtime import health
from queue_system.runtime.fetch import Fetcher
from support import until
from telemetry import SidecarServer, default_listeners

LONG = os.environ.get("QUEUE_SYSTEM_LONG_TESTS", "") == "1"
"""Block the event loop for 20 s, and with the limit that users have, instead of for 3 s."""

SCRIPT = Path(sys.executable).with_name("queue-system")
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def checks(self) -> dict[str, str]:
        return json.loads(self.body)["checks"]

    def value(self, name: str) -> float:
        """A sample of ``/metrics`` that has no labels."""
        (found,) = re.findall(rf"^queue_system_{name} (\S+)$", self.body.decode(), re.MULTILINE)
        return float(found)


class Client:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port

    def __call__(self, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection(*self._address, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers or {})
            return Answer(connection.getresponse())

    def raw(self, request: str) -> bytes:
        with socket.create_connection(self._address, timeout=10) as connection:
            connection.sendall(request.encode())
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def status(self, path: str) -> int:
        return self(path).status


class Apart:
    """A worker with an event loop and a thread of its own, so that it can be blocked without blocking the test."""

    def __init__(self, config: QueueConfig, **options: Any) -> None:
        self.worker = QueueWorker(config, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def run(self, coroutine: Any, timeout: float = 20.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def begin(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self.worker.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.worker.stop(grace=5.0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture
def collected() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def watched(make_config, collected) -> Callable[..., QueueConfig]:
    """A configuration whose metrics go to this test's registry."""
    return lambda **options: make_config(telemetry=default_listeners(get_logger(), collected), **options)


@pytest.fixture
def serve(collected) -> Iterator[Callable[..., Client]]:
    servers: list[SidecarServer] = []

    def start(worker: QueueWorker, **options: Any) -> Client:
        server = SidecarServer(worker.health, **{"port": 0, "registry": collected} | options)
        server.start()
        servers.append(server)
        return Client(server.url)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Processors wait for it; it opens at the end of a test in any case."""
    opened = threading.Event()
    yield opened
    opened.set()


def add(config: QueueConfig, function: Callable[..., Any]) -> None:
    config.registry.register(function, name=function.__name__, module="tests")


def test_metrics_are_served_as_text_and_as_openmetrics(watched, serve):
    with Apart(watched(), thread_pool_size=3) as apart:
        get = serve(apart.worker)
        text, modern = get("/metrics"), get("/metrics", headers=OPENMETRICS)
    assert text.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert modern.headers["Content-Type"].startswith("application/openmetrics-text")
    assert modern.body.endswith(b"# EOF\n")
    names = [
        {family.name for family in parse(answer.body.decode())}
        for parse, answer in ((parse_text, text), (parse_openmetrics, modern))
    ]
    assert names[0] == names[1]
    assert "queue_system_thread_pool_size" in names[0]
    assert text.value("thread_pool_size") == modern.value("thread_pool_size") == 3


def test_a_healthy_worker_is_alive_and_ready(watched, serve):
    with Apart(watched()) as apart:
        get = serve(apart.worker)
        asyncio.run(until(lambda: get.status("/readyz") == 200, what="a first claim that is accepted"))
        alive, ready = get("/livez"), get("/readyz")
    assert (alive.status, set(alive.checks.values())) == (200, {"ok"})
    assert (ready.status, set(ready.checks.values())) == (200, {"ok"})
    assert {"state", "redis", "claims", "thread_pool", "worker_tasks"} == set(ready.checks) - set(alive.checks)
    assert ready.headers["Content-Type"] == "application/json"


def test_a_worker_that_does_not_run_is_alive_but_not_ready(watched, serve):
    get = serve(QueueWorker(watched()))
    assert (get.status("/livez"), get.status("/readyz"), get.status("/metrics")) == (200, 503, 200)


def test_other_paths_are_not_found_and_the_root_names_those_that_are(watched, serve):
    get = serve(QueueWorker(watched()))
    assert get.status("/metric") == get.status("/metrics/") == get.status("/livez/x") == 404
    assert json.loads(get("/").body) == {"endpoints": ["/metrics", "/livez", "/readyz"]}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/metrics", "/livez", "/"])
def test_other_methods_are_refused(watched, serve, method, path):
    answer = serve(QueueWorker(watched()))(path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(("path", "status"), [("/metrics", 200), ("/livez", 200), ("/readyz", 503), ("/x", 404)])
def test_head_has_the_headers_of_get_and_no_body(watched, serve, path, status):
    get = serve(QueueWorker(watched()))
    head, whole = get(path, "HEAD"), get(path)
    assert head.status == whole.status == status
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    assert int(head.headers["Content-Length"]) > 0
    assert get.raw(f"HEAD {path} HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")[2] == b""  # `http.client` would not tell


def test_it_listens_on_this_machine_only_unless_told_otherwise(watched, collected):
    worker = QueueWorker(watched())
    for host, options in (("127.0.0.1", {}), ("0.0.0.0", {"host": "0.0.0.0"})):
        server = SidecarServer(worker.health, port=0, registry=collected, **options)
        assert server.url == f"http://{host}:{server.port}"
        server.stop()


def test_it_listens_on_ipv6(watched, serve):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    assert serve(QueueWorker(watched()), host="::1").status("/livez") == 200


def test_a_port_in_use_is_told(watched, collected):
    worker = QueueWorker(watched())
    server = SidecarServer(worker.health, port=0, registry=collected)
    with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{server.port}.*choose another port"):
        SidecarServer(worker.health, port=server.port, registry=collected)
    server.stop()


async def test_a_draining_worker_is_alive_and_not_ready(watched, serve, gate):
    def waits(_):
        gate.wait()

    config = watched()
    add(config, waits)
    with Apart(config) as apart:
        get = serve(apart.worker)
        QueueManager(config).enqueue({}, waits)
        await until(lambda: get("/metrics").value("thread_pool_active") == 1)
        stopping = apart.begin(apart.worker.stop())
        await until(lambda: get.status("/readyz") == 503)
        assert get("/readyz").checks["state"] == "draining"
        alive = [get.status("/livez")]
        gate.set()
        while not stopping.done():  # also in the last part of the stop, when the loops are ended one after the other
            alive.append(get.status("/livez"))
    assert set(alive) == {200}
    assert (get.status("/livez"), get.status("/readyz")) == (200, 503)


async def test_without_redis_it_is_not_ready_and_with_it_again(make_config, collected, serve, monkeypatch):
    monkeypatch.setattr(health, "CONTACT_LIMIT", 1.0)
    with EmbeddedServer() as server:
        config = make_config(
            telemetry=default_listeners(get_logger(), collected), redis_url=server.url, connection_timeout=0.5
        )
        with Apart(config, lease=0.6) as apart:
            get = serve(apart.worker)
            await until(lambda: get.status("/readyz") == 200)
            server.kill()
            await until(lambda: get.status("/readyz") == 503)
            assert get("/readyz").checks["redis"] != "ok"
            assert get.status("/livez") == 200
            began = time.monotonic()
            await until(lambda: get("/metrics").value("collector_up") == 0)
            assert time.monotonic() - began < 5
            server.restart()
            await until(lambda: get.status("/readyz") == 200)
            await until(lambda: get("/metrics").value("collector_up") == 1)


async def test_a_claim_loop_that_stands_still_is_not_alive(watched, serve, monkeypatch):
    released = asyncio.Event()

    async def never(_: Any) -> None:
        await released.wait()
        raise BrokerUnavailableError("released", kind="timeout")

    async def look(fetcher: Fetcher) -> None:
        fetcher._look_again()

    async def release() -> None:
        released.set()

    monkeypatch.setattr(health, "TURN_LIMIT", 0.3)
    with Apart(watched()) as apart:
        get = serve(apart.worker)
        assert get.status("/livez") == 200
        fetcher = apart.worker._engine.fetcher
        monkeypatch.setattr(fetcher._broker, "run_many", never)
        apart.run(look(fetcher))
        await until(lambda: get.status("/livez") == 503)
        assert get("/livez").checks["claim_loop"].startswith("in one round trip for")
        assert get("/livez").checks["event_loop"] == "ok"
        assert get.status("/readyz") == 503
        monkeypatch.undo()
        apart.run(release())


async def test_a_blocked_event_loop_is_seen_and_does_not_hide_the_scrape(watched, serve, gate, monkeypatch):
    blocked_for, limit = (20.0, health.LOOP_LIMIT) if LONG else (3.0, 1.0)
    monkeypatch.setattr(health, "LOOP_LIMIT", limit)
    runs: list[float] = []

    async def blocks(_):
        runs.append(time.monotonic())
        gate.wait(blocked_for)

    config = watched()
    add(config, blocks)
    with Apart(config, lease=1.0) as apart:
        get = serve(apart.worker)
        QueueManager(config).enqueue({}, blocks)
        await until(lambda: runs)
        with Apart(config, lease=1.0):  # would take the operation over if its lease expired
            lags, alive, slowest = _watch(get, until=runs[0] + blocked_for - 0.2)
            await until(lambda: get.status("/livez") == 200)
            await until(lambda: config.get_metrics()["processed"] == 1)
    assert slowest < 2  # a scrape reads Redis, too
    assert max(lags) > blocked_for - 1.5
    turned = [at for at, status in alive if status == 503]
    assert turned
    assert min(turned) - runs[0] == pytest.approx(limit, abs=1.0)
    assert all(status == 503 for at, status in alive if at > min(turned))
    assert len(runs) == 1
    metrics = config.get_metrics()
    assert (metrics.get("reclaimed", 0), metrics.get("stale_acks", 0)) == (0, 0)


def _watch(get: Client, *, until: float) -> tuple[list[float], list[tuple[float, int]], float]:
    """Scrape and probe until then: lags, (time, status) of /livez, and the slowest answer's time."""
    lags, alive, slowest = [], [], 0.0
    while (began := time.monotonic()) < until:
        lags.append(get("/metrics").value("event_loop_lag_seconds"))
        alive.append((time.monotonic(), get.status("/livez")))
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.05)
    return lags, alive, slowest


async def test_a_pool_full_of_abandoned_threads_is_not_ready(watched, serve, gate):
    def waits(_):
        gate.wait()

    config = watched()
    add(config, waits)
    with Apart(config, thread_pool_size=2, abandon_after=0.2, max_abandoned=0) as apart:
        get = serve(apart.worker)
        QueueManager(config).enqueue({}, waits)
        await until(lambda: get("/metrics").value("thread_pool_abandoned") == 1)
        assert get.status("/readyz") == 200
        QueueManager(config).enqueue({}, waits)
        await until(lambda: get.status("/readyz") == 503)
        assert get("/readyz").checks["thread_pool"] == "all 2 threads are held by operations beyond their limit"
        assert get("/metrics").value("thread_pool_abandoned") == 2
        assert get.status("/livez") == 200
        gate.set()
        await until(lambda: get.status("/readyz") == 200)
        assert get("/metrics").value("thread_pool_abandoned") == 0


def test_the_limit_of_abandoned_threads_is_checked(watched):
    with pytest.raises(ConfigurationError, match="abandon_after"):
        QueueWorker(watched(), abandon_after=0)


# The command line

TASKS = """
import asyncio
from pathlib import Path
from queue_system import processor

@processor
async def until_go(entity):
    Path("started").touch()
    while not Path("go").exists():
        await asyncio.sleep(0.01)
"""


@pytest.fixture
def command(tmp_path, redis_url, prefix, monkeypatch):
    """Starts ``queue-system worker tasks``; says its process, and how to read what it has printed."""
    for name in [name for name in os.environ if name.startswith(("QUEUE_SYSTEM_", "OTEL_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("QUEUE_SYSTEM_REDIS_URL", redis_url)
    monkeypatch.setenv("QUEUE_SYSTEM_QUEUE_PREFIX", prefix)
    tmp_path.joinpath("tasks.py").write_text(TASKS)
    processes: list[subprocess.Popen[bytes]] = []

    def start(*args: str) -> tuple[subprocess.Popen[bytes], Callable[[], str]]:
        with tmp_path.joinpath("out").open("wb") as out:
            process = subprocess.Popen(
                [SCRIPT, "worker", "tasks", *args], stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path
            )
        processes.append(process)
        return process, tmp_path.joinpath("out").read_text

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait(10)


async def ready(process: subprocess.Popen[bytes], said: Callable[[], str]) -> Client:
    await until(lambda: " ready: " in said() or process.poll() is not None, 30, "the ready line")
    found = re.search(r"metrics on (http://\S+)/metrics", said())
    assert found, said()
    return Client(found.group(1))


async def test_a_worker_of_the_command_line_is_observed_until_its_end(command, config, tmp_path):
    receiver = HttpReceiver()
    process, said = command("--metrics-port", "0", "--otlp-endpoint", receiver.endpoint, "--service-name", "shop")
    get = await ready(process, said)
    assert ", spans exported" in said()
    await until(lambda: (get.status("/livez"), get.status("/readyz")) == (200, 200))
    QueueManager(config).enqueue({}, "tasks:until_go")
    await until(tmp_path.joinpath("started").exists)
    process.send_signal(signal.SIGTERM)
    await until(lambda: get.status("/readyz") == 503)
    assert get.status("/livez") == 200
    assert get("/metrics").value("worker_tasks_busy") == 1
    tmp_path.joinpath("go").touch()
    await until(lambda: process.poll() is not None)
    assert process.returncode == 0
    (span,) = receiver.received.named("process")  # it ended in the drain, and was still sent
    assert (span.service, span.attributes["queue_system.outcome"]) == ("shop", "success")
    receiver.stop()


async def test_a_collector_that_never_answers_holds_the_end_up_for_two_seconds_at_most(command, config, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        process, said = command("--metrics-port", "0", "--otlp-endpoint", f"http://127.0.0.1:{port}")
        get = await ready(process, said)
        tmp_path.joinpath("go").touch()
        QueueManager(config).enqueue({}, "tasks:until_go")
        await until(lambda: config.get_metrics()["processed"] == 1)
        process.send_signal(signal.SIGTERM)
        await until(lambda: " drained in " in said())
        began = time.monotonic()
        assert get.status("/readyz") == 503
        await until(lambda: process.poll() is not None)
        assert time.monotonic() - began < 3.5
    assert process.returncode == 0
    assert "spans_left_behind" in said()


async def test_without_an_endpoint_a_worker_says_that_its_sampling_is_in_vain(command):
    process, said = command("--metrics-port", "0", "--trace-sample-ratio", "0.5")
    await ready(process, said)
    assert "spans_not_exported" in said()
    assert "spans exported" not in said()


async def test_the_port_comes_from_its_variable_and_is_off_by_default(command, monkeypatch):
    process, said = command()
    await until(lambda: " ready: " in said() or process.poll() is not None, 30)
    assert "metrics on" not in said()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("QUEUE_SYSTEM_METRICS_PORT", str(port))
        process, said = command()
        await until(lambda: process.poll() is not None, 30)
    assert process.returncode == 2
    assert f"cannot serve metrics on 127.0.0.1:{port}" in said()


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--metrics-port", "70000"], "--metrics-port=70000"),
        (["--otlp-endpoint", "user:hunter2@host"], "--otlp-endpoint: not an address"),
        (["--otlp-protocol", "carrier-pigeon"], "'http/protobuf' or 'grpc'"),
        (["--trace-sample-ratio", "1.5"], "--trace-sample-ratio=1.5"),
    ],
)
async def test_bad_options_are_one_line_and_2(command, args, hint):
    process, said = command(*args)
    await until(lambda: process.poll() is not None, 30)
    assert process.returncode == 2
    assert hint in said()
    assert "hunter2" not in said()
    assert len(said().splitlines()) == 1
