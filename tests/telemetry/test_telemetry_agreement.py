"""One worker under mixed load: the metrics hash, the Prometheus counters and the log events say the same numbers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

import telemetry
from queue_system import QueueConfig, QueueManager, QueueRetryConfig
from queue_system.failures import FailureStore
from support import running, until

QUICK = QueueRetryConfig.fixed(0.02, max_attempts=3)
ONCE = QueueRetryConfig(max_attempts=1)
TWICE = QueueRetryConfig.fixed(0.02, max_attempts=2)
BAD_ENDS = ("error", "timeout", "cancelled", "exhausted")


class Events(logging.Handler):
    """Keeps the fields of each event, as they come out of the package's logger."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(structlog.stdlib.ProcessorFormatter(processor=structlog.dev.ConsoleRenderer()))
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(dict(record.msg) if isinstance(record.msg, dict) else {"event": record.getMessage()})

    def named(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def by(self, field: str, *events: str) -> Counter[str]:
        return Counter(line[field] for event in events for line in self.named(event))


class Prometheus:
    """The numbers of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def samples(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        full = f"queue_system_{name}"
        return [
            (sample.labels, sample.value)
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == full and labels.items() <= sample.labels.items()
        ]

    def sum(self, name: str, **labels: str) -> float:
        return sum(value for _, value in self.samples(name, **labels))

    def by(self, label: str, name: str) -> Counter[str]:
        """The sums that are not 0, by the values of one label."""
        totals: Counter[str] = Counter()
        for labels, value in self.samples(name):
            totals[labels[label]] += value
        return +totals


class Bench:
    """A configuration with its own registry and log, and processors of every kind."""

    def __init__(self, make_config: Callable[..., QueueConfig]) -> None:
        self.logger = logging.getLogger(f"queue_system.test.{uuid.uuid4().hex}")
        self.logger.setLevel(logging.DEBUG)
        self.logger.propagate = False
        self.events = Events()
        self.logger.addHandler(self.events)
        registry = CollectorRegistry()
        self.prometheus = Prometheus(registry)
        config = make_config(logger=self.logger, telemetry=None)
        self.config = make_config(logger=self.logger, telemetry=telemetry.default_listeners(config.logger, registry))
        self.queue = QueueManager(self.config)
        self.let_go = threading.Event()
        self.running: Counter[str] = Counter()
        for function in (self.good, self.good_sync, self.flaky, self.slow, self.broken, self.broken_sync):
            self.register(function)
        for function in (self.cancelled, self.nap, self.hang, self.hold):
            self.register(function)
        for callback in (self.told, self.told_sync, self.flaky_callback, self.broken_callback):
            self.config.register_callback(callback, name=callback.__name__, module="tests")

    def register(self, function: Callable[..., Any]) -> None:
        self.config.registry.register(function, name=function.__name__, module="tests", queue=f"q.{function.__name__}")

    def hash(self) -> dict[str, Any]:
        return self.config.get_metrics()

    async def until_at_rest(self) -> None:
        """Nothing waits or runs any more, and this process has told everything that Redis knows."""

        def at_rest() -> bool:
            status = self.queue.get_queue_status()
            failures, errors = status[self.config.keys.failures], status[self.config.keys.system_errors]
            metrics, ended = status["metrics"], ("processed", "failed")
            told = sum(self.prometheus.sum(f"{one}_total") for one in (*ended, "callbacks_failed"))
            told += self.prometheus.sum("callbacks_total", outcome="success")
            known = sum(metrics[one] + metrics.get(f"callbacks_{one}", 0) for one in ended)
            open_ones = status["total_items"] - failures - errors + status["delayed"] + status["in_flight"]
            return bool(open_ones == 0 and told == known)

        await until(at_rest, 30.0, "everything at rest")

    async def good(self, entity: dict[str, Any]) -> str:
        return "done"

    def good_sync(self, entity: dict[str, Any]) -> str:
        return "done"

    async def flaky(self, entity: dict[str, Any], context: Any) -> None:
        if context.attempt < entity["good_at"]:
            raise ValueError("not yet")

    async def slow(self, entity: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    async def broken(self, entity: dict[str, Any]) -> None:
        raise KeyError("broken")

    def broken_sync(self, entity: dict[str, Any]) -> None:
        raise KeyError("broken")

    async def cancelled(self, entity: dict[str, Any]) -> None:
        raise asyncio.CancelledError

    def nap(self, entity: dict[str, Any]) -> None:
        time.sleep(0.15)

    async def hang(self, entity: dict[str, Any]) -> None:
        self.running["hang"] += 1
        await until(self.let_go.is_set, 60)

    def hold(self, entity: dict[str, Any]) -> None:
        self.running["hold"] += 1
        assert self.let_go.wait(60)

    async def told(self, data: dict[str, Any]) -> None:
        self.running["told"] += 1

    def told_sync(self, data: dict[str, Any]) -> None:
        self.running["told"] += 1

    async def flaky_callback(self, data: dict[str, Any]) -> None:
        self.running["flaky_callback"] += 1
        if self.running["flaky_callback"] % 3:
            raise ValueError("not yet")

    async def broken_callback(self, data: dict[str, Any]) -> None:
        raise ValueError("never")


@pytest.fixture
def bench(make_config: Callable[..., QueueConfig]) -> Iterator[Bench]:
    made = Bench(make_config)
    yield made
    made.let_go.set()


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no schedule of its own waits for seconds and minutes, as it should; not here."""
    quick = QueueRetryConfig.fixed(0.1, max_attempts=10)
    monkeypatch.setattr("queue_system.outcome.EXHAUSTION_BACKOFF", quick)
    monkeypatch.setattr("queue_system.outcome.UNKNOWN_DELAY", 0.01)
    monkeypatch.setattr("queue_system.runtime.attempts.DEFAULT_RETRY", QUICK)


def enqueue_mixed_load(bench: Bench) -> None:
    queue = bench.queue
    queue.enqueue_batch([{"n": n} for n in range(25)], bench.good)
    queue.enqueue_batch([{"n": n} for n in range(15)], bench.good_sync, priority="high")
    for number in range(6):
        queue.enqueue({"good_at": 1 + number % 3}, bench.flaky, retry_config=QUICK, priority="low")
        queue.enqueue({}, bench.slow, timeout=0.03, retry_config=TWICE)
        queue.enqueue({}, bench.broken, retry_config=TWICE)
        queue.enqueue({}, bench.broken_sync, retry_config=ONCE)
        queue.enqueue({}, bench.cancelled, retry_config=TWICE)
        # The next try would begin after the total time: given up with the first, which raised or ran out of time.
        late = QueueRetryConfig.fixed(30, timeout=5)
        queue.enqueue({}, bench.broken, retry_config=late)
        queue.enqueue({}, bench.slow, timeout=0.03, retry_config=late)
    queue.enqueue_batch([{"n": n} for n in range(12)], bench.nap, retry_config=QueueRetryConfig(max_attempts=5))
    enqueue_duplicates(bench)
    enqueue_with_callbacks(bench)
    queue.enqueue({}, "nobody_knows_it")
    queue.enqueue({}, "os:system")
    queue.enqueue({}, bench.good, operation_id="garbled")
    bench.config._ensure_redis_sync().hset(bench.config.keys.operation("garbled"), "b", b"\xff{")


def enqueue_duplicates(bench: Bench) -> None:
    queue = bench.queue
    for _ in range(4):
        queue.enqueue({}, bench.good, operation_id="the-same", delay=0.3)
        queue.enqueue({"same": 1}, bench.good, deduplicate=True, delay=0.3)
    queue.enqueue_batch([{"n": n // 2} for n in range(8)], bench.good_sync, deduplicate=True, delay=0.2)


def enqueue_with_callbacks(bench: Bench) -> None:
    for callback in (bench.told, bench.told_sync, bench.flaky_callback, bench.broken_callback):
        reference = f"tests:{callback.__name__}"
        bench.queue.enqueue({}, bench.good, on_success=reference)
        bench.queue.enqueue({}, bench.broken, retry_config=TWICE, on_failure=reference)
    bench.queue.enqueue({}, bench.good, on_success="nobody_knows_it")


async def interrupt(bench: Bench) -> None:
    """A worker that is stopped in the midst of its work: what runs is given back, one after its total time is over."""
    over = QueueRetryConfig(max_attempts=5, timeout=0.4)
    bench.queue.enqueue_batch([{} for _ in range(3)], bench.hang)
    bench.queue.enqueue({}, bench.hang, retry_config=over)
    bench.queue.enqueue_batch([{} for _ in range(2)], bench.hold)
    async with running(bench.config, thread_pool_size=2) as worker:
        await until(lambda: bench.running["hang"] == 4)
        await until(lambda: bench.running["hold"] == 2)
        began = time.monotonic()
        await worker.stop(grace=0.0)
    bench.let_go.set()
    await until(lambda: time.monotonic() - began > 0.5)


async def test_hash_prometheus_and_logs_agree_number_for_number(bench: Bench) -> None:
    await interrupt(bench)
    enqueue_mixed_load(bench)
    async with running(bench.config, max_workers=4, thread_pool_size=2):
        await bench.until_at_rest()
        store = FailureStore(bench.config)
        again = [entry for entry in store.list(limit=100) if entry.queue == "q.broken"][:2]
        assert [store.retry(entry.operation_id) for entry in again] == [True, True]
        await bench.until_at_rest()
        await until_redis_gauges_agree(bench)
    assert_they_agree(bench)
    assert_every_kind_of_thing_happened(bench)
    assert_the_laws_hold(bench)


async def until_redis_gauges_agree(bench: Bench) -> None:
    """They may be a second old."""
    prometheus, status = bench.prometheus, bench.queue.get_queue_status()
    failures = status[bench.config.keys.failures]
    assert failures > 0

    def read() -> tuple[float, ...]:
        depths = (prometheus.sum("queue_depth", state=one) for one in ("ready", "delayed", "in_flight", "failed"))
        others = ("failures", "system_errors", "unaccounted_operations", "collector_up")
        return (*depths, *(prometheus.sum(one) for one in others))

    await until(lambda: read() == (0, 0, 0, failures, failures, 2, 0, 1), 5.0, f"the gauges, which are {read()}")


def assert_they_agree(bench: Bench) -> None:
    hashed, prometheus, events = bench.hash(), bench.prometheus, bench.events
    enqueued = events.named("operations_enqueued")
    timeouts = [
        line
        for line in (*events.named("operation_retried"), *events.named("operation_failed"))
        if line["reason"] == "total_timeout" or line["reason"] == "timeout"
    ]
    for field, name, logged in (
        ("enqueued", "enqueued_total", sum(line["accepted"] for line in enqueued)),
        ("deduplicated", "deduplicated_total", sum(line["duplicates"] for line in enqueued)),
        ("processed", "processed_total", len(events.named("operation_processed"))),
        ("failed", "failed_total", len(events.named("operation_failed"))),
        ("retried", "retried_total", len(events.named("operation_retried"))),
        ("timeouts", "timeouts_total", len(timeouts)),
        ("thread_pool_exhaustion", "thread_pool_exhaustion_total", len(events.named("thread_pool_exhausted"))),
        ("system_errors", "rejected_total", len(events.named("operation_rejected"))),
        ("rejected", "rejected_total", len(events.named("operation_rejected"))),
    ):
        assert (field, hashed[field], logged) == (field, prometheus.sum(name), prometheus.sum(name))
        assert logged > 0, field
    assert (
        hashed.get("stale_acks", 0) == prometheus.sum("stale_acks_total") == len(events.named("operation_stale")) == 0
    )
    assert prometheus.by("reason", "failed_total") == events.by("reason", "operation_failed")
    assert prometheus.by("reason", "retried_total") == events.by("reason", "operation_retried")
    assert prometheus.by("reason", "requeued_total") == events.by("reason", "operation_requeued")
    assert prometheus.by("queue", "processed_total") == events.by("queue", "operation_processed")
    assert prometheus.by("queue", "failed_total") == events.by("queue", "operation_failed")
    assert prometheus.by("queue", "rejected_total") == events.by("queue", "operation_rejected")
    assert prometheus.sum("attempts_started_total") == len(events.named("operation_started"))
    assert_callbacks_agree(hashed, prometheus, events)


def assert_callbacks_agree(hashed: dict[str, Any], prometheus: Prometheus, events: Events) -> None:
    callbacks = prometheus.by("outcome", "callbacks_total")
    for result in ("processed", "retried", "failed"):
        assert hashed[f"callbacks_{result}"] == len(events.named(f"callback_{result}")) > 0
    unknown = prometheus.sum("callbacks_failed_total", reason="unknown_processor")
    assert callbacks == {
        "success": hashed["callbacks_processed"],
        "error": hashed["callbacks_retried"] + hashed["callbacks_failed"] - unknown,
    }
    assert hashed["callbacks_failed"] == prometheus.sum("callbacks_failed_total")
    assert prometheus.by("reason", "callbacks_failed_total") == events.by("reason", "callback_failed")
    assert unknown == 1


def assert_every_kind_of_thing_happened(bench: Bench) -> None:
    """What has not happened agrees easily."""
    prometheus = bench.prometheus
    assert set(prometheus.by("outcome", "attempts_total")) == {"success", *BAD_ENDS, "abandoned"}
    assert set(prometheus.by("reason", "retried_total")) == {"error", "timeout", "cancelled", "thread_pool_exhausted"}
    assert set(prometheus.by("reason", "failed_total")) == {
        "error",
        "timeout",
        "cancelled",
        "total_timeout",
        "unknown_processor",
    }
    assert prometheus.by("reason", "requeued_total") == {"shutdown": 6, "unknown_processor": 19}
    assert prometheus.by("kind", "timeouts_total") == {"attempt": 12, "total": 13}
    assert prometheus.by("outcome", "attempts_total")["abandoned"] == 6
    assert prometheus.sum("failed_without_attempt_total") == 2  # total time over before the call, and unknown
    assert bench.hash()["requeued"] == 2


def assert_the_laws_hold(bench: Bench) -> None:
    """Those of docs/metrics.md."""
    hashed, prometheus = bench.hash(), bench.prometheus
    ends = prometheus.by("outcome", "attempts_total")
    assert ends["success"] == prometheus.sum("processed_total")
    attempted_failures = prometheus.sum("failed_total") - prometheus.sum("failed_without_attempt_total")
    assert sum(ends[one] for one in BAD_ENDS) == prometheus.sum("retried_total") + attempted_failures
    assert prometheus.sum("attempts_started_total") == ends.total() - ends["exhausted"]
    assert ends["exhausted"] == prometheus.sum("thread_pool_exhaustion_total")
    callbacks = prometheus.sum("callbacks_total") - prometheus.sum("callbacks_total", outcome="success")
    assert sum(ends[one] for one in BAD_ENDS) + callbacks == prometheus.sum("errors_total")
    assert prometheus.sum("process_duration_seconds_count") == ends.total() - ends["exhausted"] - ends["abandoned"]
    assert prometheus.sum("queue_wait_seconds_count") == prometheus.sum("attempts_started_total")
    ended = prometheus.sum("processed_total") + prometheus.sum("failed_total")
    assert prometheus.sum("end_to_end_seconds_count") == ended
    assert hashed["enqueued"] + hashed["requeued"] == ended + hashed["rejected"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_lost_lease_breaks_no_law(bench: Bench, kind: str) -> None:
    function = {"async": bench.hang, "sync": bench.hold}[kind]
    bench.queue.enqueue({}, function, operation_id="taken")
    async with running(bench.config, lease=0.6):
        await until(lambda: bench.running[function.__name__] == 1)
        take_over(bench.config, "taken")
        await until(lambda: bench.prometheus.sum("leases_lost_total") == 1)
        bench.let_go.set()
        await bench.until_at_rest()
        await until(lambda: bench.prometheus.sum("attempts_total") == 2)
    hashed, ends = bench.hash(), bench.prometheus.by("outcome", "attempts_total")
    assert ends == {"success": 1, "abandoned": 1}
    assert bench.prometheus.sum("attempts_started_total") == 2
    assert hashed["processed"] == bench.prometheus.sum("processed_total") == 1
    stale = {"async": 0, "sync": 1}[kind]  # an async one is cancelled, a thread cannot be
    assert hashed.get("stale_acks", 0) == bench.prometheus.sum("stale_acks_total") == stale


def take_over(config: QueueConfig, operation_id: str) -> None:
    """What the reaper does with an expired lease."""
    client, keys = config._ensure_redis_sync(), config.keys
    queue = client.hget(keys.operation(operation_id), "q").decode()
    with client.pipeline() as together:
        together.zrem(keys.leases, operation_id)
        together.hset(keys.operation(operation_id), "st", "ready")
        together.hincrby(keys.depths, f"l:{queue}", -1)
        together.lpush(f"{keys.prefix}{queue}", operation_id)
        together.zadd(keys.wake, {"0": 0})
        together.execute()


async def test_two_configurations_of_a_process_count_together(
    make_config: Callable[..., QueueConfig],
) -> None:
    registry, prefix = CollectorRegistry(), f"t{uuid.uuid4().hex[:12]}:"
    logger = make_config(telemetry=None).logger

    async def work(entity: dict[str, Any]) -> None:
        return None

    configs = [
        make_config(telemetry=telemetry.default_listeners(logger, registry), queue_prefix=prefix) for _ in range(2)
    ]
    configs[0].registry.register(work, name="work", module="tests")
    for config in configs:
        QueueManager(config).enqueue_batch([{}] * 5, work)
    prometheus = Prometheus(registry)
    async with running(configs[0]), running(configs[1]):
        await until(lambda: prometheus.sum("processed_total") == 10)
        assert prometheus.sum("enqueued_total") == 10
        assert prometheus.sum("worker_tasks") == 10
    assert prometheus.samples("worker_tasks") == prometheus.samples("collector_up") == []
