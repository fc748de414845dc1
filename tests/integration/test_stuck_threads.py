"""Threads that never return: their stack is told, and when they are too many the worker drains and stops by itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from scaffold import add, add_callbacks, given_up, leased, named, stored

from queue_system import QueueManager, QueueRetryConfig, QueueWorker
from queue_system.events import AttemptFinished, OutcomeApplied, ThreadAbandoned, WorkerChanged
from queue_system.hooks import Hooks
from queue_system.runtime.recycle import resident_memory
from support import running, until, until_metrics


class Seen(Hooks):
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def states(self) -> list[tuple[str, str]]:
        return [(event.state, event.reason) for event in self.of(WorkerChanged)]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def config(make_config, seen):
    return make_config(telemetry=[seen])


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """Not set before the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def hangs_on(event: threading.Event):
    def wait_for_the_peer():
        event.wait(60)

    def hangs(entity):
        wait_for_the_peer()

    return hangs


async def test_the_stack_of_an_abandoned_thread_is_told_once_without_values(config, seen, never):
    hangs = hangs_on(never)
    add(config, hangs)
    QueueManager(config).enqueue({"card": "4111-1111"}, hangs, operation_id="hung")
    async with running(config, thread_pool_size=2, abandon_after=0.2) as worker:
        (told,) = await until(lambda: seen.of(ThreadAbandoned))
        assert (told.operation.operation_id, told.operation.processor) == ("hung", "hangs")
        assert told.seconds >= 0.2
        assert "wait_for_the_peer" in told.stack
        assert "4111" not in told.stack
        beats = len(seen.of(ThreadAbandoned))
        await until(lambda: worker.stats().pool.longest_running > 1.5)  # several looks later
        assert len(seen.of(ThreadAbandoned)) == beats == 1
        assert worker.state == "running"  # one of two: not too many
        never.set()


async def test_too_many_abandoned_threads_end_the_worker_and_each_operation_has_used_an_attempt(config, seen, never):
    done: list[str] = []
    hangs = hangs_on(never)

    async def flows(entity, context):
        await asyncio.sleep(0.05)
        done.append(context.operation_id)

    def innocent(entity, context):
        done.append(context.operation_id)

    add(config, hangs, flows, innocent)
    queue = QueueManager(config)
    retry = QueueRetryConfig.fixed(600, max_attempts=2)
    for name in ("hung-0", "hung-1"):
        queue.enqueue({}, hangs, operation_id=name, retry_config=retry)
    worker = QueueWorker(config, thread_pool_size=2, abandon_after=0.6, grace=20)
    await worker.start()
    await until(lambda: worker.stats().pool.active == 2)
    queue.enqueue({}, innocent, operation_id="innocent", retry_config=QueueRetryConfig(max_attempts=1))
    queue.enqueue({}, flows, operation_id="flows")
    await until(lambda: leased(config) >= {"innocent"})
    began = time.monotonic()
    async with asyncio.timeout(15):  # less than the grace: what hangs is not waited for
        assert await worker.wait_stopped() == "threads_abandoned"
    assert worker.drained_in <= time.monotonic() - began
    assert (worker.state, worker.stop_reason) == ("stopped", "threads_abandoned")
    assert seen.states()[-2:] == [("draining", "threads_abandoned"), ("stopped", "threads_abandoned")]
    assert len(seen.of(ThreadAbandoned)) == 2
    assert leased(config) == set()
    assert done == ["flows"]
    for name in ("hung-0", "hung-1"):
        fields = stored(config, name)
        assert (fields["st"], fields["at"]) == ("delayed", "1")
        assert '"reason":"timeout"' in fields["hist"]
    assert stored(config, "innocent")["st"] == "ready"
    assert "at" not in stored(config, "innocent")
    ends = {each.operation.operation_id: each for each in seen.of(AttemptFinished)}
    assert (ends["hung-0"].outcome, ends["hung-0"].next) == ("timeout", "retry")
    assert (ends["innocent"].outcome, ends["innocent"].next) == ("", "requeue")


async def test_an_operation_that_hangs_ends_in_the_failures_after_its_last_attempt_with_the_stack(config, never):
    told: list[dict] = []
    hangs = hangs_on(never)

    async def on_failure(data):
        told.append(data)

    add(config, hangs)
    add_callbacks(config, on_failure)
    queue = QueueManager(config)
    retry = QueueRetryConfig.fixed(0.01, max_attempts=2)
    queue.enqueue({}, hangs, operation_id="hung", retry_config=retry, on_failure=named(on_failure))
    for attempt in (1, 2):  # the supervisor's restarts
        worker = QueueWorker(config, thread_pool_size=1, abandon_after=0.2)
        await worker.start()
        async with asyncio.timeout(15):
            assert await worker.wait_stopped() == "threads_abandoned"
        assert stored(config, "hung")["at"] == str(attempt)
    (entry,) = given_up(config)
    assert (entry.operation_id, entry.attempts) == ("hung", 2)
    assert (entry.reason, entry.error_type) == ("timeout", "TimeoutError")
    assert "its thread had not returned after" in entry.error_message
    assert "wait_for_the_peer" in entry.traceback
    async with running(config):
        await until_metrics(config, callbacks_processed=1)
    assert told[0]["reason"] == "timeout"


async def test_a_worker_that_is_told_to_stop_counts_the_attempt_of_an_abandoned_thread_only(config, seen, never):
    hangs = hangs_on(never)
    add(config, hangs)
    queue = QueueManager(config)
    queue.enqueue({}, hangs, operation_id="hung")
    queue.enqueue({}, hangs, operation_id="long", timeout=60)  # says itself that it may take that long
    worker = QueueWorker(config, thread_pool_size=3, abandon_after=0.3)
    await worker.start()
    await until(lambda: worker.stats().pool.active == 2)
    began = time.monotonic()
    await until(lambda: seen.of(ThreadAbandoned) and time.monotonic() - began > 0.3)  # both have run beyond it
    assert worker.stats().pool.abandoned == 1
    await worker.stop(grace=0.0)
    assert worker.stop_reason == "stop"
    assert [each.operation.operation_id for each in seen.of(ThreadAbandoned)] == ["hung"]
    assert (stored(config, "hung")["st"], stored(config, "hung")["at"]) == ("delayed", "1")
    assert stored(config, "long")["st"] == "ready"
    assert "at" not in stored(config, "long")


async def test_fewer_threads_can_be_too_many_and_none_ever(config, seen, never):
    hangs = hangs_on(never)
    add(config, hangs)
    queue = QueueManager(config)
    queue.enqueue({}, hangs)
    worker = QueueWorker(config, thread_pool_size=4, abandon_after=0.2, max_abandoned=1, grace=0.1)
    await worker.start()
    async with asyncio.timeout(15):
        assert await worker.wait_stopped() == "threads_abandoned"
    before = len(seen.of(ThreadAbandoned))
    queue.enqueue({}, hangs)
    async with running(config, thread_pool_size=1, abandon_after=0.2, max_abandoned=0) as patient:
        await until(lambda: len(seen.of(ThreadAbandoned)) > before)
        await until(lambda: patient.stats().pool.longest_running > 1.5)
        assert patient.state == "running"
        assert not patient.health().ready
        never.set()


async def test_callbacks_that_never_return_end_the_worker_too(config, seen, never):
    async def fine(entity):
        return None

    def tell(data):
        never.wait(60)

    add(config, fine)
    add_callbacks(config, tell)
    QueueManager(config).enqueue_batch([{}] * 4, fine, on_success=named(tell))
    worker = QueueWorker(config, abandon_after=0.3, grace=0.1)
    await worker.start()
    async with asyncio.timeout(20):
        assert await worker.wait_stopped() == "threads_abandoned"
    assert [each.operation.kind for each in seen.of(ThreadAbandoned)] == ["callback"] * 4
    assert config.get_metrics()["processed"] == 4
    assert leased(config) == set()


async def test_a_stop_while_the_worker_ends_by_itself_waits_for_that(config, never):
    slow = asyncio.Event()
    hangs = hangs_on(never)

    async def finishes(entity):
        async with asyncio.timeout(20):
            await slow.wait()

    add(config, hangs, finishes)
    queue = QueueManager(config)
    queue.enqueue({}, finishes, operation_id="finishes")
    queue.enqueue({}, hangs)
    worker = QueueWorker(config, thread_pool_size=1, abandon_after=0.2, grace=20)
    await worker.start()
    await until(lambda: worker.state == "draining")
    told = asyncio.create_task(worker.stop(grace=0))
    slow.set()  # within the grace of the drain that goes on
    async with asyncio.timeout(15):
        await told
        assert await worker.wait_stopped() == "threads_abandoned"
    assert config.get_metrics()["processed"] == 1


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_worker_stops_after_so_many_operations(config, seen, kind):
    ran: list[str] = []

    async def on_the_loop(entity, context):
        ran.append(context.operation_id)

    def in_a_thread(entity, context):
        ran.append(context.operation_id)

    processor = on_the_loop if kind == "async" else in_a_thread
    add(config, on_the_loop, in_a_thread)
    QueueManager(config).enqueue_batch([{}] * 200, processor)
    worker = QueueWorker(config, max_workers=2, thread_pool_size=1, max_operations=20)
    await worker.start()
    async with asyncio.timeout(20):
        assert await worker.wait_stopped() == "max_operations"
    assert seen.states()[-1] == ("stopped", "max_operations")
    assert 19 <= len(ran) <= 20 + 2 * 4  # what it held, and what a claim on its way brought
    applied = [event.result for event in seen.of(OutcomeApplied)]
    assert applied.count("processed") == len(ran) == len(set(ran))
    assert QueueManager(config).get_queue_status()["total_items"] == 200 - len(ran)
    assert leased(config) == set()


async def test_a_worker_stops_when_its_process_has_grown(config, seen):
    hoard: list[bytearray] = []
    mib = 1024 * 1024

    async def leaks(entity):
        hoard.append(bytearray(8 * mib))
        hoard[-1][::1024] = b"x" * (8 * 1024)  # pages are taken when they are written to

    add(config, leaks)
    worker = QueueWorker(config, max_memory=(resident_memory() or 0) + 200 * mib)
    QueueManager(config).enqueue_batch([{}] * 60, leaks)
    await worker.start()
    async with asyncio.timeout(20):
        assert await worker.wait_stopped() == "max_memory"
    grown = sum(map(len, hoard))
    hoard.clear()
    assert grown >= 100 * mib
    assert seen.states()[-1] == ("stopped", "max_memory")
