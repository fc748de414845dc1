"""Spans as Jaeger has them: its own program, built from its Go module, and read through its query API.

The build takes minutes on two cores and happens once: where nothing is built yet, only CI builds, with a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from queue_system import QueueConfig
from stack import jaeger
from stack.programs import Program, Programs, beside_python, free_port
from support import IN_CI, until

ROOT = Path(__file__).parents[2]
EXPECTED = Path(__file__).with_name("jaeger_trace.json")

KINDS = {1: "internal", 4: "producer", 5: "consumer"}

PRODUCER = """
import sys
from opentelemetry import trace
from queue_system import QueueConfig, QueueManager
from telemetry import configure
from sample_tasks import note_result, send_mail

url, prefix, endpoint = sys.argv[1:]
telemetry = configure(otlp_endpoint=endpoint, service_name="sample-app")
with QueueConfig(redis_url=url, queue_prefix=prefix) as config:
    queue = QueueManager(config)
    with trace.get_tracer("sample").start_as_current_span("POST /enqueue"):
        queue.enqueue({"fails": 2}, send_mail, on_success=note_result)
    queue.enqueue({}, send_mail)
    queue.enqueue_batch([{}, {}], send_mail)
assert telemetry.shutdown()
"""


@pytest.fixture(scope="module")
def binary() -> Path:
    """Jaeger's program; built here in CI, where a build that fails for want of time or a toolchain is a skip."""
    found = jaeger.find()
    if found is not None:
        return found
    if not IN_CI:
        pytest.skip("Jaeger is not built; python -m stack.jaeger builds it")
    try:
        return jaeger.build()
    except jaeger.JaegerMissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def server(binary: Path, tmp_path: Path) -> Iterator[Program]:
    programs = Programs(tmp_path)
    try:
        yield jaeger.start(programs, binary, query=free_port(), otlp=free_port()).wait_ready()
    finally:
        programs.stop()


@pytest.mark.timeout(jaeger.BUILD_LIMIT + 120)
async def test_enqueue_three_attempts_and_a_callback(
    server: Program, make_config: Callable[..., QueueConfig], redis_url: str, prefix: str
) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "examples"), "QUEUE_SYSTEM_OTLP_ENDPOINT": server.otlp_url}
    producer = [sys.executable, "-c", PRODUCER, redis_url, prefix, server.otlp_url]
    subprocess.run(  # noqa: ASYNC221  nothing else runs meanwhile
        producer, cwd=ROOT, env=environment, check=True, timeout=60
    )
    with worker(redis_url, prefix, environment):
        # Four operations and one callback; the callbacks are not counted among the operations.
        metrics = make_config().get_metrics
        await until(lambda: metrics()["processed"] == 4 and not metrics()["failed"], 30, "all is processed")
    # The worker has drained and sent all: what Jaeger has now is what there is.
    spans = await until(lambda: complete(server.url), 20, "Jaeger has all the spans")
    found = described(spans)
    assert found == json.loads(EXPECTED.read_text()), json.dumps(found, indent=2)


@contextlib.contextmanager
def worker(redis_url: str, prefix: str, environment: dict[str, str]) -> Iterator[None]:
    command = [beside_python("queue-system"), "worker", "sample_tasks", "--service-name", "sample-worker"]
    with subprocess.Popen(
        [*command, "--redis-url", redis_url, "--prefix", prefix], cwd=ROOT / "examples", env=environment
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(40)
    assert process.returncode == 0


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def complete(url: str) -> list[dict[str, Any]] | None:
    """All spans of all services, once there are as many as expected (or more).

    In the form of OTLP: the older form has either a parent or a link where a span has both to the same span.
    """
    traces = {
        trace["traceID"]
        for service in get(f"{url}/api/services")["data"]
        for trace in get(f"{url}/api/traces?service={service}&limit=100&lookback=1h")["data"]
    }
    spans = [
        span | {"service": attributes(resource["resource"])["service.name"]}
        for trace in traces
        for resource in get(f"{url}/api/v3/traces/{trace}")["result"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    expected = sum(len(trace) for trace in json.loads(EXPECTED.read_text())["traces"])
    return spans if len(spans) >= expected else None


def described(spans: list[dict[str, Any]]) -> dict[str, Any]:
    """What of the spans is the same in every run: no ids, no times."""
    names = {span["spanId"]: f"{span['service']}: {span['name']}{attempt(span)}" for span in spans}
    traces: dict[str, list[dict[str, Any]]] = {}
    for span in spans:
        one = {
            "span": names[span["spanId"]],
            "kind": KINDS[span["kind"]],
            "parent": names[span["parentSpanId"]] if span.get("parentSpanId") else None,
            "links": sorted(names[link["spanId"]] for link in span.get("links", ())),
            "outcome": attributes(span).get("queue_system.outcome"),
            "error": attributes(span).get("error.type"),
            "events": [event["name"] for event in span.get("events", ())],
        }
        traces.setdefault(span["traceId"], []).append(one)
    ordered = [sorted(trace, key=lambda one: one["span"]) for trace in traces.values()]
    return {
        "services": sorted({span["service"] for span in spans}),
        "operations": sorted({span["name"] for span in spans}),
        "traces": sorted(ordered, key=json.dumps),
    }


def attributes(thing: dict[str, Any]) -> dict[str, Any]:
    """Of a span or a resource, without the types of the values."""
    return {one["key"]: next(iter(one["value"].values())) for one in thing.get("attributes", ())}


def attempt(span: dict[str, Any]) -> str:
    number = attributes(span).get("queue_system.attempt")
    return "" if number is None else f", attempt {number}"
