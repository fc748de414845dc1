"""Families of our own: the same pages as prometheus-client's, whole events in every scrape, threads and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from queue_system.events import AttemptFinished, AttemptStarted, OperationInfo, OutcomeApplied, PoolStarted
from telemetry.catalogue import EVENTS, Metric
from telemetry.families import LOCK, MAX_EXEMPLAR, Counter, Families, Gauge, Histogram
from telemetry.metrics import MetricsListener

ROOT = Path(__file__).resolve().parents[2]
EXEMPLAR = {"trace_id": "a" * 32, "span_id": "b" * 16}
WORDS = ("mail", 'with "quotes"', "with \\ and \n", "")
COUNTER = Metric("sent_total", "counter", "Letters.", ("queue",))
HISTOGRAM = Metric("size", "histogram", "Pages.", (), (1, 2.5))


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def theirs(metric: Metric, registry: CollectorRegistry) -> Any:
    kinds = {
        "counter": prometheus_client.Counter,
        "gauge": prometheus_client.Gauge,
        "histogram": prometheus_client.Histogram,
    }
    options = {"buckets": metric.buckets} if metric.buckets else {}
    return kinds[metric.kind](metric.full_name, metric.help, metric.labels, registry=registry, **options)


def feed(metric: Metric, child: Any, step: int) -> None:
    if metric.kind == "counter":
        child.inc()
        child.inc(step / 3)
    elif metric.kind == "gauge":
        child.set(step % 2 == 0)
    else:
        values = [0, *metric.buckets, *(bound * 1.01 for bound in metric.buckets), float("inf")]
        for number, value in enumerate(values[step:]):
            child.observe(value, EXEMPLAR if number % 3 == 0 else None)


def test_both_pages_are_those_of_prometheus_client(
    monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    monkeypatch.setattr("prometheus_client.metrics._use_created", False)
    monkeypatch.setattr(time, "time", lambda: 1234.5)
    reference = CollectorRegistry()
    ours = Families(EVENTS, registry)
    for metric in EVENTS:
        other = theirs(metric, reference)
        for step, word in enumerate(WORDS if metric.labels else WORDS[:1]):
            values = [f"{word}{place}" for place in range(len(metric.labels))]
            child = ours[metric.name].labels(*values)
            for one in (child, other.labels(*values) if values else other):
                feed(metric, one, step)
    assert generate_latest(registry) == generate_latest(reference)
    page = generate_openmetrics(registry).decode()
    assert page == generate_openmetrics(reference).decode()
    assert page.count('# {span_id="bbbb') > 50


def test_families_without_children_are_shown_by_name_only(registry: CollectorRegistry) -> None:
    Families((COUNTER,), registry)
    page = generate_latest(registry).decode()
    assert page == "# HELP queue_system_sent_total Letters.\n# TYPE queue_system_sent_total counter\n"


def test_a_restricted_registry_shows_what_it_is_asked_for(registry: CollectorRegistry) -> None:
    families = Families((COUNTER, HISTOGRAM), registry)
    families["size"].labels().observe(2)
    families["sent_total"].labels("mail").inc()
    page = generate_latest(registry.restricted_registry(["queue_system_size_sum"])).decode()
    assert [line for line in page.splitlines() if line[0] != "#"] == ["queue_system_size_sum 2.0"]
    assert registry.get_sample_value("queue_system_sent_total", {"queue": "mail"}) == 1


def test_a_name_that_is_taken_is_refused_and_nothing_is_registered(registry: CollectorRegistry) -> None:
    prometheus_client.Gauge("queue_system_size_bucket", "of somebody else", registry=registry)
    with pytest.raises(ValueError, match="queue_system_size_bucket"):
        Families((COUNTER, HISTOGRAM), registry)
    assert [family.name for family in registry.collect()] == ["queue_system_size_bucket"]


def test_children_are_made_once(registry: CollectorRegistry) -> None:
    family = Families((COUNTER,), registry)["sent_total"]
    assert family.labels("mail") is family.labels("mail")
    assert family.labels("mail") is not family.labels("news")
    for values in ((), ("mail", "high")):
        with pytest.raises(ValueError, match=r"sent_total has the labels \('queue',\)"):
            family.labels(*values)


def test_a_counter_does_not_go_down() -> None:
    counter = Counter()
    counter.inc(2)
    counter.inc(0)
    with pytest.raises(ValueError, match="-1: a counter only grows"):
        counter.inc(-1)
    assert counter.read() == 2


def test_a_gauge_is_what_it_was_set_to() -> None:
    gauge = Gauge()
    assert gauge.read() == 0
    gauge.set(3.5)
    gauge.set(1.5)
    assert gauge.read() == 1.5


def test_an_exemplar_that_prometheus_would_refuse_is_refused_but_its_value_counts() -> None:
    histogram = Histogram((1.0,))
    longest = {"trace_id": "a" * (MAX_EXEMPLAR - len("trace_id"))}
    histogram.observe(0.5, longest)
    with pytest.raises(ValueError, match="an exemplar of 129 characters"):
        histogram.observe(0.25, {"trace_id": longest["trace_id"] + "a"})
    counts, exemplars, total = histogram.read()
    assert (counts, total) == ([2, 0], 0.75)
    assert exemplars[0][:2] == (longest, 0.5)


def test_what_was_read_does_not_change() -> None:
    histogram = Histogram((1.0,))
    before = histogram.read()
    histogram.observe(0.5, EXEMPLAR)
    assert before == ([0, 0], {}, 0)


INFO = OperationInfo("1", "mail", "normal", "send", "operation", is_async=True, attempt=1, headers={})
EVENTS_OF_ONE = (
    AttemptStarted(INFO, 0.5),
    AttemptFinished(INFO, "success", 0.5, "done"),
    OutcomeApplied(INFO, "processed", "success", age=0.5),
    OutcomeApplied(INFO, "failed", "error", "error", "ValueError", 0.5),
)


@pytest.fixture
def hasty_threads() -> Any:
    """Threads take turns so often that they meet everywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_every_scrape_sees_whole_events_and_none_is_lost(registry: CollectorRegistry, hasty_threads: None) -> None:
    listener, stop = MetricsListener(registry), threading.Event()

    def work() -> int:
        operations = 0
        while not stop.is_set():
            for event in EVENTS_OF_ONE:
                listener.on_event(event)
            operations += 1
        return operations

    with ThreadPoolExecutor(2) as threads:
        work_done = [threads.submit(work) for _ in range(2)]
        try:
            for _ in range(100):
                check_that_all_agrees(registry)
        finally:
            stop.set()
        operations = sum(one.result() for one in work_done)
    assert check_that_all_agrees(registry) == operations


def check_that_all_agrees(registry: CollectorRegistry) -> float:
    """Returns how many attempts have started."""
    sums: dict[tuple[str, ...], float] = {}
    for family in registry.collect():
        for sample in family.samples:
            outcome = sample.labels.get("outcome") or sample.labels.get("reason") or ""
            key = (sample.name.removeprefix("queue_system_"), outcome, sample.labels.get("le", ""))
            sums[key] = sums.get(key, 0) + sample.value
    started = sums.get(("attempts_started_total", "", ""), 0)
    assert started == sums.get(("queue_wait_seconds_count", "", ""), 0)
    assert started == sums.get(("queue_wait_seconds_sum", "", ""), 0) * 2
    ended_well = sums.get(("processed_total", "", ""), 0)
    assert ended_well == sums.get(("attempts_total", "success", ""), 0)
    ended_badly = sums.get(("failed_total", "error", ""), 0)
    assert ended_badly == sums.get(("attempts_total", "error", ""), 0)
    assert ended_well + ended_badly == sums.get(("end_to_end_seconds_count", "", ""), 0)
    for (name, outcome, bound), number in sums.items():
        if bound == "+Inf":
            histogram = name.removesuffix("_bucket")
            assert number == sums[f"{histogram}_count", outcome, ""] == sums[f"{histogram}_sum", outcome, ""] * 2
    return started


def another_thread_gets_the_lock() -> bool:
    def try_it() -> bool:
        taken = LOCK.acquire(blocking=False)
        if taken:
            LOCK.release()
        return taken

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(try_it).result()


class Watching(float):
    """Looks, whenever it is compared with a bound, whether a scrape could come in between."""

    def __new__(cls, value: float) -> Self:
        one = super().__new__(cls, value)
        one.seen = []
        return one

    def __gt__(self, bound: float) -> bool:
        self.seen.append(another_thread_gets_the_lock())
        return super().__gt__(bound)


@pytest.mark.parametrize(
    "make",
    [
        lambda value: AttemptStarted(INFO, value),
        lambda value: AttemptFinished(INFO, "success", value, "done"),
        lambda value: OutcomeApplied(INFO, "processed", "success", age=value),
        lambda value: OutcomeApplied(INFO, "failed", "error", "error", age=value),
        PoolStarted,
    ],
)
def test_no_scrape_comes_in_while_an_event_is_counted(
    registry: CollectorRegistry, make: Callable[[float], Any]
) -> None:
    value = Watching(0.5)
    MetricsListener(registry).on_event(make(value))
    assert value.seen
    assert not any(value.seen)
    assert another_thread_gets_the_lock()


@pytest.mark.parametrize(
    "event",
    [
        AttemptStarted(INFO, "soon"),
        AttemptFinished(INFO, "success", "long", "done"),
        OutcomeApplied(INFO, "processed", "success", age="old"),
        OutcomeApplied(INFO, "failed", "error", "error", age="old"),
    ],
    ids=lambda event: f"{type(event).__name__}-{getattr(event, 'result', '')}",
)
def test_an_event_that_cannot_be_counted_leaves_the_lock_free(registry: CollectorRegistry, event: Any) -> None:
    with pytest.raises(TypeError):
        MetricsListener(registry).on_event(event)
    assert another_thread_gets_the_lock()


def test_an_event_in_the_midst_of_an_event_does_not_wait_for_itself() -> None:
    with LOCK:
        assert LOCK.acquire(blocking=False)
        LOCK.release()


FORKING = """
import os, signal, threading
from telemetry.families import LOCK, Counter

counter, held, go_on = Counter(), threading.Event(), threading.Event()

def hold():
    with LOCK:
        held.set()
        go_on.wait(20)

threading.Thread(target=hold).start()
held.wait(20)
threading.Timer(0.1, go_on.set).start()
child = os.fork()
if not child:
    signal.alarm(10)
    counter.inc()
    os._exit(int(counter.value))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
counter.inc()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_in_the_midst_of_an_event_can_count() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
