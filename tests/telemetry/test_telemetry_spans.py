"""The spans of operations, as a receiver gets them that speaks the official OTLP over HTTP and over gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from otlp_receiver import GrpcReceiver, HttpReceiver, ReceivedSpan

from queue_system import QueueConfig, QueueManager
from queue_system.errors import BrokerUnavailableError
from queue_system.keys import CALLBACK_QUEUE
from queue_system.retry import QueueRetryConfig
from support import running, until, until_metrics
from telemetry import SpanPipeline, TracingListener, otlp_exporter
from telemetry.tracing import current_ids

ROOT = Path(__file__).resolve().parents[2]
RECEIVERS = {"http/protobuf": HttpReceiver, "grpc": GrpcReceiver}
SOON: dict[str, Any] = {"delays": [0.01], "jitter": 0.0}


class Traced:
    """A configuration whose spans go to a receiver."""

    def __init__(self, receiver: Any, protocol: str, make_config: Callable[..., QueueConfig], **options: Any) -> None:
        self.receiver = receiver
        self.pipeline = SpanPipeline(otlp_exporter(receiver.endpoint, protocol), service_name="shop", **options)
        self.config = make_config(telemetry=[TracingListener(self.pipeline.provider)])
        self.queue = QueueManager(self.config)
        self.tracer = self.pipeline.provider.get_tracer("app")

    def add(self, *functions: Callable[..., Any]) -> None:
        for function in functions:
            self.config.registry.register(function, name=function.__name__, module="tests")

    def add_callback(self, function: Callable[..., Any]) -> str:
        self.config.register_callback(function, name=function.__name__, module="tests")
        return f"tests:{function.__name__}"

    def spans(self, start: str = "", *, wait_for: int = 0) -> list[ReceivedSpan]:
        """Those that have arrived, in the order of their attempts."""
        assert self.pipeline.provider.force_flush(10_000)
        found = self.receiver.received.named(start)
        assert len(found) >= wait_for, [span.name for span in self.receiver.received.spans]
        return sorted(found, key=lambda span: span.attributes.get("queue_system.attempt", 0))

    def one(self, start: str) -> ReceivedSpan:
        (span,) = self.spans(start)
        return span


@pytest.fixture(params=RECEIVERS)
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def receiver(protocol: str) -> Iterator[Any]:
    receiver = RECEIVERS[protocol]()
    yield receiver
    receiver.stop()


@pytest.fixture
def make_traced(
    receiver: Any, protocol: str, make_config: Callable[..., QueueConfig]
) -> Iterator[Callable[..., Traced]]:
    made: list[Traced] = []

    def make(**options: Any) -> Traced:
        made.append(Traced(receiver, protocol, make_config, **options))
        return made[-1]

    yield make
    for traced in made:
        traced.pipeline.shutdown()


@pytest.fixture
def traced(make_traced: Callable[..., Traced]) -> Traced:
    return make_traced()


over_http = pytest.mark.parametrize("protocol", ["http/protobuf"], indirect=True)


def place(span: ReceivedSpan) -> tuple[str, str]:
    return span.trace_id, span.span_id


@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_three_attempts_and_their_callback(traced: Traced, mode: str) -> None:
    calls: list[str] = []

    def work() -> str:
        with traced.tracer.start_as_current_span("charge the card"):
            calls.append(threading.current_thread().name)
        if len(calls) < 3:
            raise LookupError("card 4929 1234")
        return "paid"

    async def pay_async(entity: Any) -> str:
        return work()

    def pay_sync(entity: Any) -> str:
        return work()

    async def tell(data: Any) -> None:
        assert data["result"] == "paid"

    function = pay_async if mode == "async" else pay_sync
    traced.add(function)
    result = traced.queue.enqueue(
        {"card": "4929 1234"},
        f"tests:{function.__name__}",
        queue_name="payments",
        priority="high",
        on_success=traced.add_callback(tell),
        retry_config=QueueRetryConfig(max_attempts=3, **SOON),
    )
    async with running(traced.config):
        await until_metrics(traced.config, processed=1, callbacks_processed=1)

    enqueue = traced.one("enqueue payments")
    first, second, third = traced.spans("process payments")
    callback = traced.one("callback tell")
    own = {span.parent_id: span for span in traced.spans("charge the card")}
    assert len(traced.receiver.received.spans) == 8
    assert {span.service for span in traced.receiver.received.spans} == {"shop"}
    assert enqueue.scope == first.scope == callback.scope == "queue_system"
    assert all(name.startswith("queue-system-pool") is (mode == "sync") for name in calls)

    assert [span.kind for span in (enqueue, first, second, third, callback)] == [
        "producer", "consumer", "consumer", "consumer", "internal",
    ]  # fmt: skip
    assert (enqueue.parent_id, enqueue.links, enqueue.error) == ("", [], False)
    assert (first.trace_id, first.parent_id, first.links) == (*place(enqueue), [place(enqueue)])
    assert (second.parent_id, second.links) == ("", [place(enqueue), place(first)])
    assert (third.parent_id, third.links) == ("", [place(enqueue), place(second)])
    assert len({span.trace_id for span in (enqueue, second, third)}) == 3
    assert (callback.trace_id, callback.parent_id, callback.links) == (*place(third), [])
    for attempt in (first, second, third):
        assert own[attempt.span_id].trace_id == attempt.trace_id

    common = {
        "messaging.system": "queue_system",
        "messaging.destination.name": "payments",
        "messaging.message.id": result["operation_id"],
        "queue_system.priority": "high",
        "queue_system.processor": function.__name__,
    }
    assert enqueue.attributes == common | {
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
    }
    for number, span in enumerate((first, second, third), start=1):
        expected = common | {
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "queue_system.attempt": number,
            "queue_system.mode": mode,
            "queue_system.outcome": "success" if number == 3 else "error",
        }
        assert expected.items() <= span.attributes.items()
        more = {"queue_system.wait_seconds"} | ({"error.type"} if number < 3 else set())
        more |= {"queue_system.pool_wait_seconds"} if mode == "sync" else set()
        assert span.attributes.keys() - expected.keys() == more
        assert 0 <= span.attributes["queue_system.wait_seconds"] < 10
    for span in (first, second):
        assert (span.error, span.status, span.attributes["error.type"]) == (True, "LookupError", "LookupError")
        assert span.events == {
            "retry scheduled": {"queue_system.delay_seconds": 0.01, "queue_system.reason": "error"},
        }
    assert (third.error, third.events) == (False, {})
    assert callback.attributes["messaging.destination.name"] == CALLBACK_QUEUE
    assert callback.attributes["queue_system.outcome"] == "success"
    assert b"4929" not in b"".join(traced.receiver.received.raw)


@over_http
async def test_delayed_and_batched_operations_start_traces_of_their_own(traced: Traced) -> None:
    async def ship(entity: Any) -> None:
        pass

    traced.add(ship)
    traced.queue.enqueue({}, "tests:ship", queue_name="later", delay=0.05)
    traced.queue.enqueue_batch([{"n": 1}, {"n": 2}, {"n": 3}], "tests:ship", queue_name="many")
    async with running(traced.config):
        await until_metrics(traced.config, processed=4)

    batch = traced.one("enqueue many")
    assert batch.attributes["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in batch.attributes
    for name, count in (("later", 1), ("many", 3)):
        enqueue, attempts = traced.one(f"enqueue {name}"), traced.spans(f"process {name}")
        assert [span.parent_id for span in attempts] == [""] * count
        assert [span.links for span in attempts] == [[place(enqueue)]] * count
        assert len({span.trace_id for span in (enqueue, *attempts)}) == count + 1


@over_http
async def test_a_trace_goes_on_from_the_caller_and_into_what_a_processor_enqueues(traced: Traced) -> None:
    async def child(entity: Any) -> None:
        pass

    async def parent(entity: Any) -> None:
        await asyncio.to_thread(traced.queue.enqueue, {}, "tests:child", queue_name="children")

    traced.add(child, parent)
    with traced.tracer.start_as_current_span("request"):
        traced.queue.enqueue({}, "tests:parent", queue_name="parents")
    async with running(traced.config):
        await until_metrics(traced.config, processed=2)
    chain = ["request", "enqueue parents", "process parents", "enqueue children", "process children"]
    spans = [traced.one(name) for name in chain]
    assert [span.parent_id for span in spans] == ["", *(span.span_id for span in spans[:-1])]
    assert len({span.trace_id for span in spans}) == 1


@over_http
async def test_a_callback_that_is_called_again_is_linked(traced: Traced) -> None:
    called = []

    async def work(entity: Any) -> None:
        pass

    def tell(data: Any) -> None:
        called.append(data)
        if len(called) == 1:
            raise OSError("no mail today")

    traced.add(work)
    traced.queue.enqueue({}, "tests:work", queue_name="work", on_success=traced.add_callback(tell))
    async with running(traced.config):
        await until_metrics(traced.config, callbacks_processed=1)
    process = traced.one("process work")
    first, second = traced.spans("callback tell")
    assert (first.parent_id, first.links, first.error) == (process.span_id, [], True)
    assert (second.parent_id, second.links) == ("", [place(process), place(first)])
    assert second.attributes["queue_system.mode"] == "async"  # it is awaited; its thread is not of the workers' pool


@over_http
async def test_a_timeout_and_the_end_of_the_attempts_are_events(traced: Traced) -> None:
    async def hang(entity: Any) -> None:
        await asyncio.sleep(60)

    traced.add(hang)
    traced.queue.enqueue(
        {}, "tests:hang", queue_name="slow", timeout=0.05, retry_config=QueueRetryConfig(max_attempts=1)
    )
    async with running(traced.config):
        await until_metrics(traced.config, failed=1)
    span = traced.one("process slow")
    assert (span.error, span.attributes["error.type"]) == (True, "TimeoutError")
    assert span.attributes["queue_system.outcome"] == "timeout"
    assert span.events["moved to failures"] == {"queue_system.reason": "timeout"}
    assert 0.05 <= span.events["timeout"]["queue_system.duration_seconds"] < 5


@over_http
async def test_an_exhausted_pool_is_an_event(traced: Traced) -> None:
    ended = threading.Event()

    def block(entity: Any) -> None:
        ended.wait(30)

    traced.add(block)
    traced.queue.enqueue_batch([{}, {}], "tests:block", queue_name="threads")
    async with running(traced.config, thread_pool_size=1):
        await until_metrics(traced.config, thread_pool_exhaustion=1)
        ended.set()
        await until_metrics(traced.config, processed=2)
    (span,) = [one for one in traced.spans("process threads") if one.attributes["queue_system.outcome"] == "exhausted"]
    assert (span.error, span.attributes["error.type"]) == (True, "ThreadPoolExhaustedError")
    assert span.events["pool exhausted"] == {}
    assert span.events["retry scheduled"]["queue_system.reason"] == "thread_pool_exhausted"
    assert "queue_system.pool_wait_seconds" not in span.attributes


@over_http
@pytest.mark.parametrize("mode", ["async", "sync"])
async def test_a_lost_lease_is_an_event(traced: Traced, mode: str) -> None:
    started, ended = threading.Event(), threading.Event()

    async def long_async(entity: Any) -> None:
        started.set()
        await asyncio.sleep(60)

    def long_sync(entity: Any) -> None:
        started.set()
        ended.wait(30)

    function = long_async if mode == "async" else long_sync
    traced.add(function)
    result = traced.queue.enqueue({}, f"tests:{function.__name__}", queue_name="held")
    async with running(traced.config, lease=1.0) as worker:
        await until(started.is_set)
        # What another worker does that takes it over: the fencing token is not ours any more.
        redis, key = traced.config._ensure_redis_sync(), traced.config.keys.operation(result["operation_id"])
        token = redis.hget(key, "tk")
        redis.hset(key, "tk", "999999")
        if mode == "sync":
            (running_span,) = worker.config.hooks._listeners[0]._running.values()
            await until(lambda: running_span[1].events)
            ended.set()
        await until(lambda: not worker._engine.attempts.all())
        redis.hset(key, "tk", token)
    span = traced.one("process held")
    assert span.events == {"lease lost": {}}
    assert span.attributes["queue_system.outcome"] == ("abandoned" if mode == "async" else "success")


@over_http
async def test_the_callback_of_what_was_given_up_without_an_attempt_belongs_to_the_producer(traced: Traced) -> None:
    async def fail(entity: Any) -> None:
        raise OSError

    async def regret(data: Any) -> None:
        assert data["reason"] == "total_timeout"

    traced.add(fail)
    traced.queue.enqueue(
        {},
        "tests:fail",
        queue_name="late",
        on_failure=traced.add_callback(regret),
        retry_config=QueueRetryConfig(max_attempts=9, timeout=0.3, delays=[0.2], jitter=0.0),
    )
    async with running(traced.config):
        await until_metrics(traced.config, retried=1)
    over = time.monotonic() + 0.4
    await until(lambda: time.monotonic() > over)
    with traced.tracer.start_as_current_span("main"):  # current where no attempt is, and not to be taken for one
        async with running(traced.config):
            await until_metrics(traced.config, callbacks_processed=1)
    assert len(traced.spans("process late")) == 1
    assert traced.one("callback regret").parent_id == traced.one("enqueue late").span_id


@over_http
async def test_the_span_in_which_a_worker_was_started_is_left_alone(traced: Traced) -> None:
    async def work(entity: Any) -> None:
        raise OSError

    async def regret(data: Any) -> None:
        pass

    traced.add(work)
    twice = QueueRetryConfig(max_attempts=2, **SOON)
    with traced.tracer.start_as_current_span("main"):
        async with running(traced.config):
            with trace.use_span(trace.INVALID_SPAN):
                traced.queue.enqueue(
                    {}, "tests:work", queue_name="work", on_failure=traced.add_callback(regret), retry_config=twice
                )
            await until_metrics(traced.config, callbacks_processed=1)
    main = traced.one("main")
    assert (main.attributes, main.events, main.error) == ({}, {}, False)
    assert main.trace_id not in {span.trace_id for span in traced.spans() if span is not main}


@over_http
def test_an_enqueue_that_fails_is_an_error_without_its_message(traced: Traced, make_config: Any) -> None:
    config = make_config(
        redis_url="redis://u:hunter2@127.0.0.1:1/0",
        max_connection_retries=1,
        telemetry=[TracingListener(traced.pipeline.provider)],
    )
    with pytest.raises(BrokerUnavailableError):
        QueueManager(config).enqueue({"a": 1}, "tests:nothing", queue_name="gone")
    span = traced.one("enqueue gone")
    assert (span.error, span.status) == (True, "BrokerUnavailableError")
    assert span.attributes["error.type"] == "BrokerUnavailableError"
    assert span.events == {}


@over_http
async def test_a_ratio_of_0_keeps_retries_and_the_ids_of_all(make_traced: Callable[..., Traced]) -> None:
    traced = make_traced(sampler=ParentBased(TraceIdRatioBased(0.0)))
    seen: list[dict[str, str]] = []

    async def fail_once(entity: Any) -> None:
        seen.append(current_ids())
        with traced.tracer.start_as_current_span("inside"):
            pass
        if len(seen) == 1:
            raise OSError

    traced.add(fail_once)
    traced.queue.enqueue({}, "tests:fail_once", queue_name="sampled", retry_config=QueueRetryConfig(**SOON))
    async with running(traced.config):
        await until_metrics(traced.config, processed=1)
    inside, retry = traced.spans()
    assert (inside.name, retry.name, retry.attributes["queue_system.attempt"]) == ("inside", "process sampled", 2)
    assert inside.parent_id == retry.span_id
    assert seen[1] == {"trace_id": retry.trace_id, "span_id": retry.span_id}
    assert set(seen[0]) == {"trace_id", "span_id"}
    assert (seen[0]["trace_id"], seen[0]["span_id"]) in retry.links
    assert int(seen[0]["trace_id"], 16)


PROGRAM = """
import json, sys
import telemetry
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from queue_system.events import (
    EnqueueStarted,
)

arguments, own = json.loads(sys.argv[1])
listener = telemetry.TracingListener()  # as of a configuration that is made before
memory = InMemorySpanExporter()
if own:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)
known = telemetry.configure(**arguments)
with listener.enqueue_context(EnqueueStarted("q", "normal", "p", 1, "id", 0.0)):
    pass
kept = not own or trace.get_tracer_provider() is provider
print(json.dumps([known.pipeline is not None, len(memory.get_finished_spans()), kept]))
"""
PROGRAM_ENDS = "known.shutdown()\n"


def configured(arguments: dict[str, Any], env: dict[str, str], *, own: bool = False, ends: bool = True) -> list[Any]:
    """What a program reports that calls `configure`: a pipeline of ours?, spans of its own provider, that kept?"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + (PROGRAM_ENDS if ends else ""), json.dumps([arguments, own])],
        env=clean | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    report: list[Any] = json.loads(done.stdout)
    return report


ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.mark.parametrize("ends", [True, False], ids=["shutdown", "forgotten shutdown"])
def test_the_variables_alone_set_up_the_export(receiver: Any, protocol: str, ends: bool) -> None:
    env = {ENDPOINT: receiver.endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_SERVICE_NAME": "till"}
    assert configured({}, env, ends=ends) == [True, 0, True]
    assert [(span.name, span.service) for span in receiver.received.spans] == [("enqueue q", "till")]


@over_http
@pytest.mark.parametrize(
    ("arguments", "env", "service"),
    [
        ({}, {"OTEL_SDK_DISABLED": "true"}, None),
        ({}, {"OTEL_TRACES_EXPORTER": "none"}, None),
        ({}, {"OTEL_TRACES_SAMPLER": "always_off"}, None),
        ({}, {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, None),
        ({"sample_ratio": 0.0}, {}, None),
        ({"sample_ratio": 1.0}, {"OTEL_TRACES_SAMPLER": "always_off"}, "queue-system"),
        ({}, {"OTEL_TRACES_EXPORTER": "zipkin"}, "queue-system"),
        ({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=stall"}, "stall"),
        ({"service_name": "kiosk"}, {"OTEL_SERVICE_NAME": "till"}, "kiosk"),
    ],
)
def test_the_variables_are_respected(
    receiver: Any, arguments: dict[str, Any], env: dict[str, str], service: str | None
) -> None:
    configured(arguments, {ENDPOINT: receiver.endpoint} | env)
    assert [span.service for span in receiver.received.spans] == ([] if service is None else [service])


@over_http
def test_an_applications_own_provider_stays_and_gets_the_spans(receiver: Any) -> None:
    assert configured({"otlp_endpoint": receiver.endpoint}, {}, own=True) == [False, 1, True]
    assert receiver.received.spans == []


def test_without_an_endpoint_nothing_is_set_up() -> None:
    assert configured({}, {}) == [False, 0, True]
