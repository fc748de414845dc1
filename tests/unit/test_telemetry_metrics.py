"""Metrics without Redis: what each event counts, bounded labels, children at 0, collectors, the catalogue's page."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from queue_system.errors import BrokerUnavailableError
from queue_system.events import (
    AttemptFinished,
    AttemptStarted,
    BreakerChanged,
    BrokerCall,
    BrokerError,
    ClockCorrected,
    Depth,
    Enqueued,
    Event,
    LeaseLost,
    OperationInfo,
    OutcomeApplied,
    PoolStarted,
    PoolStats,
    QueueDepth,
    Reclaimed,
    WorkerStats,
    WorkerTaskFailed,
)
from queue_system.hooks import HookChain, Hooks
from telemetry import catalogue
from telemetry.catalogue import CATALOGUE, EVENTS, REDIS, WORKER
from telemetry.collector import QueueCollector, TelemetryCollector, WorkerCollector
from telemetry.metrics import (
    FAILURE_REASONS,
    MAX_PAIRS,
    OTHER,
    OUTCOMES,
    RETRY_REASONS,
    Bounded,
    MetricsListener,
    event_metrics,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"
PAIR = {"queue": "mail", "processor": "send"}
QUEUE = {"queue": "mail"}


class Watched:
    """A listener on a registry of its own."""

    def __init__(self, **options) -> None:
        self.registry = CollectorRegistry()
        self.listener = MetricsListener(self.registry, **options)

    def tell(self, *events: Event) -> None:
        for event in events:
            self.listener.on_event(event)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"queue_system_{name}", labels)

    def changed(self) -> dict[str, float]:
        """All series of events that are not 0, as ``name{values}``."""
        return {
            f"{sample.name.removeprefix('queue_system_')}{{{','.join(sample.labels.values())}}}": sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.value and not sample.name.endswith(("_bucket", "_sum", "_state"))
        }


@pytest.fixture
def watched() -> Watched:
    return Watched()


def info(kind: str = "operation", processor: str = "send", queue: str = "mail") -> OperationInfo:
    return OperationInfo("1", queue, "normal", processor, kind, is_async=True, attempt=1, headers={})


def applied(result: str, outcome: str = "", reason: str = "", kind: str = "operation") -> OutcomeApplied:
    return OutcomeApplied(info(kind), result, outcome, reason, "ValueError" if reason else "", 1.5)


@pytest.mark.parametrize(
    ("event", "counts"),
    [
        (Enqueued("mail", "high", "send", 3, 0, ("a",)), {"enqueued_total{mail,high,send}": 3}),
        (Enqueued("mail", "low", "send", 0, 2, ()), {"deduplicated_total{mail}": 2}),
        (
            AttemptStarted(info(), 0.5),
            {"attempts_started_total{mail,send}": 1, "queue_wait_seconds_count{mail}": 1},
        ),
        (AttemptStarted(info("callback"), 0.5), {}),
        (AttemptFinished(info(), "success", 1, "done"), {"process_duration_seconds_count{mail,send,success}": 1}),
        (
            AttemptFinished(info(), "error", 1, "retry", 0, "KeyError"),
            {"process_duration_seconds_count{mail,send,error}": 1, "errors_total{send,KeyError}": 1},
        ),
        (
            AttemptFinished(info(), "exhausted", 1, "retry", 0, "ThreadPoolExhaustedError"),
            {"errors_total{send,ThreadPoolExhaustedError}": 1},
        ),
        (AttemptFinished(info(), "abandoned", 1, "requeue"), {"attempts_total{mail,send,abandoned}": 1}),
        (AttemptFinished(info(), "abandoned", 1, "dropped"), {"attempts_total{mail,send,abandoned}": 1}),
        (AttemptFinished(info(), "", 0, "requeue"), {}),
        (AttemptFinished(info(), "", 0, "failed", 0, "UnknownProcessor"), {}),
        (AttemptFinished(info("callback"), "success", 1, "done"), {"callback_duration_seconds_count{success}": 1}),
        (AttemptFinished(info("callback"), "abandoned", 1, "requeue"), {"callbacks_total{abandoned}": 1}),
        (
            applied("processed", "success"),
            {
                "attempts_total{mail,send,success}": 1,
                "processed_total{mail,send}": 1,
                "end_to_end_seconds_count{mail}": 1,
            },
        ),
        (
            applied("retried", "timeout", "timeout"),
            {
                "attempts_total{mail,send,timeout}": 1,
                "retried_total{mail,send,timeout}": 1,
                "timeouts_total{mail,send,attempt}": 1,
            },
        ),
        (
            applied("retried", "exhausted", "thread_pool_exhausted"),
            {
                "attempts_total{mail,send,exhausted}": 1,
                "retried_total{mail,send,thread_pool_exhausted}": 1,
                "thread_pool_exhaustion_total{}": 1,
            },
        ),
        (
            applied("failed", "timeout", "total_timeout"),
            {
                "attempts_total{mail,send,timeout}": 1,
                "failed_total{mail,send,total_timeout}": 1,
                "timeouts_total{mail,send,total}": 1,
                "end_to_end_seconds_count{mail}": 1,
            },
        ),
        (
            applied("failed", "", "crashed"),
            {
                "failed_total{mail,send,crashed}": 1,
                "failed_without_attempt_total{mail,send}": 1,
                "end_to_end_seconds_count{mail}": 1,
            },
        ),
        (
            applied("failed", "", "unknown_processor"),
            {
                "failed_total{mail,other,unknown_processor}": 1,
                "failed_without_attempt_total{mail,other}": 1,
                "end_to_end_seconds_count{mail}": 1,
            },
        ),
        (applied("rejected", "", "DecodeError"), {"rejected_total{mail}": 1}),
        (applied("requeued", "", "shutdown"), {"requeued_total{mail,shutdown}": 1}),
        (
            applied("stale", "success", "lease_lost"),
            {"stale_acks_total{}": 1, "attempts_total{mail,send,abandoned}": 1},
        ),
        (applied("stale", "exhausted", "lease_lost"), {"stale_acks_total{}": 1}),
        (applied("stale", "", "lease_lost"), {"stale_acks_total{}": 1}),
        (applied("stale", "error", "sent_again"), {"attempts_total{mail,send,abandoned}": 1}),
        (applied("stale", "", "released"), {}),
        (applied("processed", "success", kind="callback"), {"callbacks_total{success}": 1}),
        (applied("retried", "error", "error", "callback"), {"callbacks_total{error}": 1}),
        (
            applied("failed", "error", "error", "callback"),
            {"callbacks_total{error}": 1, "callbacks_failed_total{error}": 1},
        ),
        (
            applied("failed", "", "unknown_processor", "callback"),
            {"callbacks_failed_total{unknown_processor}": 1},
        ),
        (PoolStarted(0.01), {"thread_pool_wait_seconds_count{}": 1}),
        (LeaseLost("1"), {"leases_lost_total{}": 1}),
        (Reclaimed(2, 1), {"reclaimed_total{}": 3}),
        (ClockCorrected(3), {"clock_corrected_total{}": 3}),
        (WorkerTaskFailed("worker-3", "why"), {"worker_task_failures_total{worker}": 1}),
        (WorkerTaskFailed("outbox", "why"), {"worker_task_failures_total{outbox}": 1}),
        (BrokerError("turn", "timeout"), {"redis_errors_total{turn,timeout}": 1}),
        (BrokerCall("claim", 0.001), {"redis_command_duration_seconds_count{claim}": 1}),
        (BrokerCall("else", 0.001), {}),
    ],
)
def test_what_each_event_counts(watched: Watched, event: Event, counts: dict[str, float]) -> None:
    watched.tell(event)
    assert watched.changed() == counts


def test_the_state_of_the_circuit_breaker(watched: Watched) -> None:
    def states() -> list[float | None]:
        return [watched("circuit_breaker_state", breaker="redis", state=one) for one in ("closed", "open", "half_open")]

    assert states() == [1, 0, 0]
    watched.tell(BreakerChanged("redis", "open"))
    assert states() == [0, 1, 0]
    MetricsListener(watched.registry)  # another configuration of the process is not news about Redis
    assert states() == [0, 1, 0]


def test_children_of_registered_processors_are_there_before_their_first_event(watched: Watched) -> None:
    watched.listener.attach(SimpleNamespace(served=lambda: [("mail", "send")]), None)
    assert watched.changed() == {}
    for name in ("attempts_started_total", "processed_total", "failed_without_attempt_total"):
        assert watched(name, **PAIR) == 0
    assert [watched("attempts_total", **PAIR, outcome=one) for one in OUTCOMES] == [0] * len(OUTCOMES)
    assert [watched("failed_total", **PAIR, reason=one) for one in FAILURE_REASONS] == [0] * len(FAILURE_REASONS)
    assert [watched("retried_total", **PAIR, reason=one) for one in RETRY_REASONS] == [0] * len(RETRY_REASONS)
    assert [watched("timeouts_total", **PAIR, kind=one) for one in ("attempt", "total")] == [0, 0]
    assert watched("process_duration_seconds_count", **PAIR, outcome="timeout") == 0
    assert watched("queue_wait_seconds_count", **QUEUE) == watched("end_to_end_seconds_count", **QUEUE) == 0
    assert watched("rejected_total", **QUEUE) == watched("requeued_total", **QUEUE, reason="shutdown") == 0


def test_a_name_that_stands_for_nothing_gets_no_series(watched: Watched) -> None:
    watched.tell(AttemptFinished(info(), "", 0, "failed", 0, "UnknownProcessor"))
    watched.tell(applied("failed", "", "unknown_processor"))
    assert watched("failed_total", queue="mail", processor=OTHER, reason="unknown_processor") == 1
    assert watched("attempts_started_total", **PAIR) is None


def test_children_of_a_producer_are_its_own_only(watched: Watched) -> None:
    watched.tell(Enqueued("mail", "high", "send", 1, 0, ("a",)))
    assert [watched("enqueued_total", **PAIR, priority=one) for one in ("high", "normal", "low")] == [1, 0, 0]
    assert watched("deduplicated_total", **QUEUE) == 0
    assert watched("processed_total", **PAIR) is None  # a hundred series that a producer never needs


def test_worker_and_redis_troubles_are_there_before_the_first(watched: Watched) -> None:
    assert watched("worker_task_failures_total", reason="fetch") == 0
    assert watched("redis_errors_total", op="turn", kind="connection") == 0
    assert watched("redis_errors_total", op="renew", kind="timeout") == 0
    assert watched("telemetry_failures_total", listener="LogListener") == 0
    assert watched("callbacks_failed_total", reason="error") == 0


def test_a_label_has_a_bounded_number_of_values() -> None:
    bounded = Bounded(2, OTHER)
    assert [bounded(value) for value in ("a", "b", "c", "a", "d")] == ["a", "b", OTHER, "a", OTHER]
    assert len(bounded) == 2


def test_threads_do_not_get_past_the_bound() -> None:
    bounded, start = Bounded(10, OTHER), threading.Barrier(8)

    def ask(thread: int) -> set[str]:
        start.wait(10)
        return {bounded(f"{thread}-{number}") for number in range(200)}

    with ThreadPoolExecutor(8) as threads:
        answers = set().union(*threads.map(ask, range(8)))
    assert len(answers - {OTHER}) == len(bounded) == 10


def test_pairs_beyond_the_bound_count_as_others(watched: Watched) -> None:
    for number in range(MAX_PAIRS + 10):
        watched.tell(AttemptStarted(info(processor=f"work_{number % 50}", queue=f"queue_{number // 50}"), 0.0))
    assert watched("attempts_started_total", queue="queue_0", processor="work_0") == 1
    assert watched("attempts_started_total", queue=OTHER, processor=OTHER) == 10


def test_listeners_of_a_registry_share_their_bounds_and_counts(watched: Watched) -> None:
    other = MetricsListener(watched.registry)
    watched.tell(applied("processed", "success"))
    other.on_event(applied("processed", "success"))
    assert watched("processed_total", **PAIR) == 2
    assert event_metrics(watched.registry) is event_metrics(watched.registry)
    assert event_metrics(CollectorRegistry()) is not event_metrics(watched.registry)


def test_exemplars_come_from_the_current_span() -> None:
    watched = Watched(exemplar=lambda: {"trace_id": "a" * 32})
    watched.tell(AttemptStarted(info(), 0.02), AttemptFinished(info(), "success", 0.02, "done"), PoolStarted(0.02))
    found = {
        sample.name.removesuffix("_bucket").removeprefix("queue_system_")
        for family in watched.registry.collect()
        for sample in family.samples
        if sample.exemplar is not None and sample.exemplar.labels == {"trace_id": "a" * 32}
    }
    assert found == {"queue_wait_seconds", "process_duration_seconds", "thread_pool_wait_seconds"}


def test_a_listener_that_raises_is_counted(watched: Watched) -> None:
    class Broken(Hooks):
        def on_event(self, event: Event) -> None:
            raise ValueError(event)

        def listener_failed(self, listener: str) -> None:
            raise ValueError(listener)

    chain = HookChain([Broken(), watched.listener])
    chain.on_event(LeaseLost("1"))
    chain.on_event(LeaseLost("2"))
    assert watched("telemetry_failures_total", listener="Broken") == 2
    assert watched("leases_lost_total") == 2


class View:
    """A queue that answers what it is told."""

    def __init__(self, name: str = "redis queue:", answer: Depth | Exception | None = None) -> None:
        self.name = name
        self.answer = answer or Depth((), 0, 0, 0)
        self.asked = 0

    def depth(self) -> Depth:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def values(collector) -> dict[str, float]:
    return {
        f"{sample.name.removeprefix('queue_system_')}{{{','.join(sample.labels.values())}}}": sample.value
        for family in collector.collect()
        for sample in family.samples
    }


DEPTH = Depth((QueueDepth("mail", "high", 1, 2, 3, 4, 9.5), QueueDepth("mail", "low", 5, 0, 0, 0, 0.0)), 4, 1, 0)


def test_the_queue_in_redis() -> None:
    collector = QueueCollector()
    collector.attach(View(answer=DEPTH))
    shown = values(collector)
    assert shown.pop("collector_duration_seconds{}") >= 0
    assert shown == {
        "collector_up{}": 1,
        "failures{}": 4,
        "system_errors{}": 1,
        "unaccounted_operations{}": 0,
        "queue_depth{mail,high,ready}": 1,
        "queue_depth{mail,high,delayed}": 2,
        "queue_depth{mail,high,in_flight}": 3,
        "queue_depth{mail,high,failed}": 4,
        "queue_depth{mail,low,ready}": 5,
        "queue_depth{mail,low,delayed}": 0,
        "queue_depth{mail,low,in_flight}": 0,
        "queue_depth{mail,low,failed}": 0,
        "queue_oldest_age_seconds{mail,high}": 9.5,
        "queue_oldest_age_seconds{mail,low}": 0,
    }


@pytest.mark.parametrize("error", [BrokerUnavailableError("away"), TypeError("a counter that is a word")])
def test_what_cannot_be_read_is_told_and_hides_nothing_else(error: Exception) -> None:
    collector = QueueCollector()
    collector.attach(View(answer=error))
    shown = values(collector)
    assert shown.pop("collector_duration_seconds{}") >= 0
    assert shown == {"collector_up{}": 0}


def test_a_scrape_within_a_second_asks_redis_once() -> None:
    collector, view = QueueCollector(cache=60), View()
    collector.attach(view)
    values(collector)
    values(collector)
    assert view.asked == 1
    collector.attach(View("another"))  # nothing is known of this one
    values(collector)
    assert view.asked == 2
    fresh = QueueCollector(cache=0.0)
    fresh.attach(view)
    values(fresh)
    values(fresh)
    assert view.asked == 4


def test_two_workers_of_one_queue_have_it_read_once_until_both_are_gone() -> None:
    collector, one, two = QueueCollector(cache=0.0), View(answer=DEPTH), View(answer=DEPTH)
    collector.attach(one)
    collector.attach(two)
    assert values(collector)["failures{}"] == 4
    assert one.asked + two.asked == 1
    collector.detach(two)
    assert values(collector)["failures{}"] == 4
    collector.detach(one)
    assert values(collector) == {}


def test_queues_beyond_the_bound_and_odd_priorities_are_added_up() -> None:
    rows = tuple(QueueDepth(f"queue_{number}", "normal", 1, 0, 0, 0, float(number)) for number in range(150))
    collector = QueueCollector()
    collector.attach(View(answer=Depth((*rows, QueueDepth("queue_0", "odd", 7, 0, 0, 0, 1.0)), 0, 0, 0)))
    shown = values(collector)
    assert shown["queue_depth{other,normal,ready}"] == 50
    assert shown["queue_oldest_age_seconds{other,normal}"] == 149
    assert shown["queue_depth{queue_0,other,ready}"] == 7


def test_the_workers_of_the_process_are_added_up() -> None:
    collector = WorkerCollector()
    assert values(collector) == {}
    workers = [worker("a", busy=3.0, utilization=0.5, contact=100.0), worker("b", busy=4.0, utilization=1.0)]
    for one in workers:
        collector.attach(one)
    shown = values(collector)
    assert shown["thread_pool_size{}"] == 8
    assert shown["thread_pool_busy_seconds_total{}"] == 7
    assert shown["thread_pool_utilization_ratio{}"] == 0.75
    assert shown["worker_heartbeat_timestamp_seconds{}"] == 100
    assert len(shown) == len(WORKER)
    for one in workers:
        collector.detach(one)
    assert values(collector) == {}


def worker(name: str, *, busy: float, utilization: float, contact: float = 200.0) -> SimpleNamespace:
    pool = PoolStats(4, 1, 0, 0, 10, 0, busy, 40.0, 0.0, 0.0)
    stats = WorkerStats("running", pool, utilization, 5, 5, 1, 2.0, 0.0, 0.0, contact)
    return SimpleNamespace(worker_id=name, stats=lambda: stats)


def test_collectors_describe_what_they_collect_without_asking_anybody() -> None:
    view = View(answer=DEPTH)
    queue = QueueCollector()
    queue.attach(view)
    described = {family.name for collector in (queue, WorkerCollector()) for family in collector.describe()}
    assert described == {metric.full_name.removesuffix("_total") for metric in (*WORKER, *REDIS)}
    assert view.asked == 0
    telemetry = TelemetryCollector("1.2.3", "3.11.2")
    assert values(telemetry)["build_info{1.2.3,3.11.2}"] == 1
    assert {family.name for family in telemetry.collect()} == {family.name for family in telemetry.describe()}


def test_the_catalogue_is_sound() -> None:
    assert len(CATALOGUE) == len({metric.full_name for metric in CATALOGUE.values()})
    for metric in CATALOGUE.values():
        assert re.fullmatch(r"queue_system_[a-z_]+", metric.full_name)
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.help.endswith(".")
        assert "|" not in metric.help
    assert {metric.name for metric in EVENTS} == {metric.name for metric in EVENTS if metric.name in CATALOGUE}


def test_the_page_shows_the_catalogue() -> None:
    page = PAGE.read_text()
    assert catalogue.markdown() in page, "docs/metrics.md: put in what `python -m telemetry.catalogue` prints"
    named = set(re.findall(r"`(queue_system_[a-z_]+)", page))
    suffixed = {
        f"{metric.full_name}{end}" for metric in CATALOGUE.values() for end in ("", "_bucket", "_count", "_sum")
    }
    assert named <= suffixed
