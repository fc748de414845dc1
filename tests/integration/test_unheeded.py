"""Async processors that do not heed their cancellation: decided without them, told, counted, and got rid of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from scaffold import add, add_callbacks, given_up, leased, named, redis_of

from queue_system import QueueManager, QueueRetryConfig, QueueWorker
from queue_system.events import AttemptFinished, OutcomeApplied, TaskAbandoned, WorkerChanged
from queue_system.hooks import Hooks
from support import running, until, until_metrics

ONCE = QueueRetryConfig(max_attempts=1)


class Seen(Hooks):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


class Stubborn:
    """Swallows its cancellation, until it is let go: then it ends in the way it was told to."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.cancelled = self.ended = 0
        self.error: BaseException | None = None

    async def stubborn(self, entity):
        while not self.free.is_set():
            await self.wait_for_the_peer()
        self.ended += 1
        if self.error is not None:
            raise self.error

    async def wait_for_the_peer(self):
        try:
            await self.free.wait()
        except asyncio.CancelledError:
            self.cancelled += 1


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def config(make_config, seen):
    return make_config(telemetry=[seen])


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr("queue_system.runtime.engine.HEED_LIMIT", 0.1)
    monkeypatch.setattr("queue_system.runtime.engine.RECYCLE_AFTER", 600.0)


@pytest.fixture
async def stubborn(config):
    made = Stubborn()
    add(config, made.stubborn)
    yield made
    made.free.set()


@pytest.mark.parametrize("error", [None, ValueError("late"), SystemExit(3), asyncio.CancelledError()])
async def test_it_is_decided_once_and_its_task_goes_on_when_it_ends(config, seen, stubborn, error):
    stubborn.error = error
    ran: list[int] = []

    async def good(entity):
        ran.append(1)

    add(config, good)
    queue = QueueManager(config)
    queue.enqueue({}, stubborn.stubborn, timeout=0.05, retry_config=ONCE, operation_id="op")
    async with running(config, max_workers=1) as worker:
        await until_metrics(config, failed=1, timeouts=1)
        assert (worker.stats().tasks_abandoned, worker.stats().tasks_busy) == (1, 1)
        assert worker.health().alive
        assert not worker.health().ready
        assert worker.health().ready_checks["worker_tasks"] == (
            "all 1 worker tasks are held by processors that did not heed their cancellation"
        )
        assert leased(config) == set()
        (told,) = seen.of(TaskAbandoned)
        assert (told.operation.operation_id, told.task, told.reason) == ("op", "worker-0", "timed_out")
        assert told.seconds >= 0.15
        assert "in stubborn\n" in told.stack
        assert "in wait_for_the_peer\n" in told.stack
        (entry,) = given_up(config)
        assert (entry.reason, entry.error_type, entry.attempts) == ("timeout", "TimeoutError", 1)
        assert "does not heed its cancellation" in entry.error_message
        assert "in wait_for_the_peer\n" in entry.traceback

        queue.enqueue({}, good)
        stubborn.free.set()
        await until_metrics(config, processed=1, failed=1, retried=0, stale_acks=0)
        assert worker.stats().tasks_abandoned == 0
        assert worker.health().ready
        assert worker.stats().tasks_alive == 1
    assert (stubborn.cancelled, stubborn.ended, ran) == (1, 1, [1])
    ends = [each.outcome for each in seen.of(AttemptFinished) if each.operation.operation_id == "op"]
    assert ends == ["timeout"]
    assert [each.result for each in seen.of(OutcomeApplied) if each.operation.operation_id == "op"] == ["failed"]
    assert len(seen.of(TaskAbandoned)) == 1


async def test_it_is_retried_by_its_schedule_while_it_still_runs(config, stubborn):
    queue = QueueManager(config)
    queue.enqueue({}, stubborn.stubborn, timeout=0.05, retry_config=QueueRetryConfig.fixed(0.01, max_attempts=2))
    async with running(config, max_workers=3) as worker:
        await until_metrics(config, retried=1, failed=1, timeouts=2)
        assert worker.stats().tasks_abandoned == 2
        assert worker.health().ready  # two of three
        stubborn.free.set()
        await until(lambda: worker.stats().tasks_abandoned == 0)
    assert stubborn.ended == 2


async def test_a_slow_clean_up_within_its_time_is_heeding(config, seen, monkeypatch):
    monkeypatch.setattr("queue_system.runtime.engine.HEED_LIMIT", 30.0)
    cleaned: list[int] = []

    async def cleans_up(entity):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)
            cleaned.append(1)

    add(config, cleans_up)
    QueueManager(config).enqueue({}, cleans_up, timeout=0.05, retry_config=ONCE)
    async with running(config, max_workers=1):
        await until_metrics(config, failed=1, timeouts=1)
    assert cleaned == [1]
    assert seen.of(TaskAbandoned) == []


async def test_one_that_has_lost_its_lease_is_dropped(config, seen, stubborn):
    queue = QueueManager(config)
    queue.enqueue({}, stubborn.stubborn, operation_id="op")
    async with running(config, max_workers=1, lease=1) as worker:
        await until(lambda: leased(config) == {"op"})
        redis_of(config).zrem(config.keys.leases, "op")
        redis_of(config).delete(config.keys.operation("op"))
        (told,) = await until(lambda: seen.of(TaskAbandoned))
        assert (told.operation.operation_id, told.reason) == ("op", "lease_lost")
        assert worker.stats().tasks_abandoned == 1
        stubborn.free.set()
        await until(lambda: worker.stats().tasks_abandoned == 0)
    assert [(each.outcome, each.next) for each in seen.of(AttemptFinished)] == [("abandoned", "dropped")]


async def test_too_many_end_the_worker_which_waits_for_none_of_them(config, seen, stubborn, monkeypatch):
    monkeypatch.setattr("queue_system.runtime.engine.RECYCLE_AFTER", 0.2)
    queue = QueueManager(config)
    for number in range(2):
        queue.enqueue({}, stubborn.stubborn, timeout=0.05, retry_config=ONCE, operation_id=f"op-{number}")
    worker = QueueWorker(config, max_workers=2, grace=60)
    await worker.start()
    async with asyncio.timeout(20):
        assert await worker.wait_stopped() == "tasks_abandoned"
    assert worker.drained_in < 15
    states = [(event.state, event.reason) for event in seen.of(WorkerChanged)]
    assert states[-2:] == [("draining", "tasks_abandoned"), ("stopped", "tasks_abandoned")]
    assert config.get_metrics()["failed"] == 2
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("worker-")]


@pytest.mark.parametrize(("most", "held"), [(1, True), (0, False)])
async def test_fewer_can_be_too_many_and_none_ever(config, seen, stubborn, monkeypatch, most, held):
    monkeypatch.setattr("queue_system.runtime.engine.RECYCLE_AFTER", 0.0)
    QueueManager(config).enqueue({}, stubborn.stubborn, timeout=0.05, retry_config=ONCE)
    worker = QueueWorker(config, max_workers=2 if held else 1, max_abandoned=most)
    await worker.start()
    try:
        await until(lambda: seen.of(TaskAbandoned))
        assert not worker.health().ready
        if held:
            async with asyncio.timeout(20):
                assert await worker.wait_stopped() == "tasks_abandoned"
        else:
            assert worker.state == "running"
    finally:
        stubborn.free.set()
        await worker.stop()


async def test_a_callback_is_treated_like_a_processor(config, seen, stubborn):
    async def fine(entity):
        return None

    add(config, fine)
    add_callbacks(config, stubborn.stubborn)
    QueueManager(config).enqueue({}, fine, on_success=named(stubborn.stubborn))
    async with running(config, max_workers=2, work_timeout=0.1):
        await until_metrics(config, processed=1, callbacks_retried=1)
        (told,) = seen.of(TaskAbandoned)
        assert told.operation.kind == "callback"
        stubborn.free.set()


async def test_a_stop_ends_what_does_not_heed_it_either(config, stubborn):
    QueueManager(config).enqueue({}, stubborn.stubborn, operation_id="op")
    worker = QueueWorker(config, max_workers=1)
    await worker.start()
    await until(lambda: leased(config) == {"op"})
    await worker.stop(grace=0)
    assert stubborn.ended == 0
    assert stubborn.cancelled > 0
    assert QueueManager(config).get_queue_status()["total_items"] == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("worker-")]
