"""Whatever is raised, wherever, ends one attempt and is told: no worker task dies of it, and no lease runs out."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
from typing import Any

import pytest
from scaffold import MODULE, add, add_callbacks, given_up, leased, named

from queue_system import QueueManager, QueueRetryConfig, QueueWorker
from queue_system.events import WorkerTaskFailed
from queue_system.hooks import Hooks
from support import running, until, until_metrics


class Panic(BaseException):
    """As a panic in an extension module is."""


class Unprintable(BaseException):
    def __str__(self):
        raise SystemExit(7)

    __repr__ = __str__


class Seen(Hooks):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_event(self, event: Any) -> None:
        self.events.append(event)

    def failures(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, WorkerTaskFailed)]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def config(make_config, seen):
    return make_config(telemetry=[seen])


ERRORS = [Panic, SystemExit, KeyboardInterrupt, GeneratorExit, Unprintable]
TWICE = QueueRetryConfig.fixed(0.01, max_attempts=2)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_what_is_no_exception_fails_an_attempt_like_any_other(config, seen, kind, error):
    done: list[int] = []

    async def on_the_loop(entity):
        raise error

    def in_a_thread(entity):
        raise error

    async def good(entity):
        done.append(1)

    def also_good(entity):
        done.append(1)

    add(config, on_the_loop, in_a_thread, good, also_good)
    queue = QueueManager(config)
    async with running(config, max_workers=2, thread_pool_size=2) as worker:
        bad = on_the_loop if kind == "async" else in_a_thread
        queue.enqueue_batch([{}] * 4, bad, retry_config=TWICE)
        await until_metrics(config, failed=4, retried=4)
        queue.enqueue_batch([{}] * 3, good)
        queue.enqueue_batch([{}] * 3, also_good)
        await until_metrics(config, processed=6)
        assert worker.stats().tasks_alive == 2
        assert worker.health().ready
        assert leased(config) == set()
    assert len(done) == 6
    entries = given_up(config)
    assert {(entry.reason, entry.error_type, entry.attempts) for entry in entries} == {("error", error.__name__, 2)}
    assert len(entries) == 4
    assert seen.failures() == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_callback_fails_of_it_like_of_any_other_error(config, seen, kind, error):
    async def fine(entity):
        return None

    async def tell(data):
        raise error

    def tell_in_a_thread(data):
        raise error

    add(config, fine)
    add_callbacks(config, tell, tell_in_a_thread)
    callback = tell if kind == "async" else tell_in_a_thread
    async with running(config, max_workers=1) as worker:
        for _ in range(2):
            QueueManager(config).enqueue({}, fine, on_success=named(callback))
        await until_metrics(config, processed=2, callbacks_retried=2)
        assert worker.stats().tasks_alive == 1
    assert seen.failures() == []


async def _awaited(part):
    await asyncio.get_running_loop().create_task(part())


async def _gathered(part):
    await asyncio.gather(part(), asyncio.sleep(0))


async def _in_a_group(part):
    async with asyncio.TaskGroup() as group:
        group.create_task(part())


async def _in_a_task_of_a_task(part):
    await asyncio.create_task(_awaited(part))


async def _in_a_thread(part):
    def run():
        asyncio.run(part())

    await asyncio.to_thread(run)


async def _in_a_task_with_a_thread(part):
    await asyncio.create_task(_in_a_thread(part))


WAYS = {
    _awaited: "",
    _gathered: "",
    _in_a_group: "ExceptionGroup",
    _in_a_task_of_a_task: "",
    _in_a_thread: "",
    _in_a_task_with_a_thread: "",
}


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_what_would_end_the_event_loop_fails_the_attempt_whose_task_raised_it(config, seen, way, error):
    async def part():
        await asyncio.sleep(0)
        raise error(4)

    async def bad(entity):
        await way(part)

    async def good(entity):
        return None

    add(config, bad, good)
    before = asyncio.get_running_loop().get_task_factory()
    queue = QueueManager(config)
    async with running(config, max_workers=2) as worker:
        queue.enqueue_batch([{}] * 2, bad, retry_config=TWICE)
        queue.enqueue_batch([{}] * 2, good)
        await until_metrics(config, failed=2, retried=2, processed=2)
        assert worker.stats().tasks_alive == 2
        assert leased(config) == set()
    assert {(entry.reason, entry.error_type) for entry in given_up(config)} == {("error", WAYS[way] or error.__name__)}
    assert seen.failures() == []
    assert asyncio.get_running_loop().get_task_factory() is before


async def test_a_task_that_nobody_awaits_is_told_and_does_no_harm(config, seen):
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))

    async def leaves():
        raise SystemExit(4)

    async def makes_one(entity):
        task = asyncio.create_task(leaves(), name="left alone")
        await asyncio.wait([task])

    add(config, makes_one)
    async with running(config, max_workers=1):
        QueueManager(config).enqueue({}, makes_one)
        await until_metrics(config, processed=1)
        gc.collect()
    (context,) = told
    assert context["message"] == "Task exception was never retrieved"
    assert str(context["exception"]) == "the processor raised SystemExit"
    assert isinstance(context["exception"].__cause__, SystemExit)
    assert seen.failures() == []


async def test_a_result_that_cannot_be_looked_at_is_a_result(config):
    told: list[dict] = []

    class Opaque:
        @property
        def model_dump(self):
            raise KeyboardInterrupt

        def __repr__(self):
            raise SystemExit(5)

    async def opaque(entity):
        return {"it": Opaque()}

    async def on_success(data):
        told.append(data)

    add(config, opaque)
    add_callbacks(config, on_success)
    async with running(config, max_workers=1):
        QueueManager(config).enqueue({}, opaque, on_success=named(on_success))
        await until_metrics(config, processed=1, callbacks_processed=1)
    assert told[0]["result"]["it"]["__unserializable__"].endswith(".Opaque")


@dataclasses.dataclass
class Counter:
    """A plain dataclass, which has no hash."""

    calls: int = 0

    def __call__(self, entity):
        self.calls += 1


async def test_a_callable_without_a_hash_is_a_processor(config):
    counter = Counter()
    config.registry.register(counter, name="counter", module=MODULE)
    async with running(config):
        QueueManager(config).enqueue({}, f"{MODULE}:counter")
        await until_metrics(config, processed=1)
    assert counter.calls == 1


STEPS = ["_find_processor", "_calculate_effective_timeout", "_dispatch", "_run_async", "_finish"]


@pytest.mark.parametrize("error", [TypeError("unhashable"), SystemExit(3)], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", STEPS)
async def test_a_step_of_the_workers_own_that_raises_has_an_outcome_at_once(config, seen, monkeypatch, step, error):
    async def fine(entity):
        return None

    add(config, fine)
    queue = QueueManager(config)
    broken = getattr(QueueWorker, step)

    def breaks(self, *args, **options):
        if len(seen.failures()) < 1:
            raise error
        return broken(self, *args, **options)

    monkeypatch.setattr(QueueWorker, step, breaks)
    queue.enqueue({}, fine, retry_config=QueueRetryConfig.fixed(0.01, max_attempts=3), operation_id="op")
    async with running(config, lease=60) as worker:
        await until_metrics(config, retried=1, processed=1, reclaimed=0)
        assert worker.stats().tasks_alive == 5
        assert leased(config) == set()
    assert seen.failures() == [f"{type(error).__name__}: {error}"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_what_our_step_raises_each_time_ends_in_the_failures_under_its_own_name(config, seen, monkeypatch, kind):
    async def fine(entity):
        return None

    def also_fine(entity):
        return None

    add(config, fine, also_fine)

    def breaks(self, *args):
        raise LookupError("broken step")

    monkeypatch.setattr(QueueWorker, "_run_async" if kind == "async" else "_note_patience", breaks)
    QueueManager(config).enqueue({}, fine if kind == "async" else also_fine, retry_config=TWICE)
    async with running(config, lease=60, thread_pool_size=1):
        await until_metrics(config, retried=1, failed=1)
        assert leased(config) == set()
    (entry,) = given_up(config)
    assert (entry.reason, entry.error_type, entry.attempts) == ("internal_error", "WorkerInternalError", 2)
    assert entry.error_message == "LookupError: broken step"
    assert "in breaks" in entry.traceback
    assert seen.failures() == ["LookupError: broken step"] * 2


async def test_what_cannot_even_be_decoded_for_an_error_of_ours_goes_to_the_system_errors(config, monkeypatch):
    async def fine(entity):
        return None

    def breaks(self, *args):
        raise RecursionError("broken decoder")

    add(config, fine)
    monkeypatch.setattr(QueueWorker, "_decode", breaks)
    QueueManager(config).enqueue({}, fine, operation_id="op")
    async with running(config, lease=60):
        await until_metrics(config, system_errors=1, rejected=1)
    (entry,) = given_up(config, system_errors=True)
    assert (entry.operation_id, entry.reason) == ("op", "internal_error")
    assert entry.error_message == "RecursionError: broken decoder"


async def test_a_decision_that_raises_is_an_outcome_too(config, seen, monkeypatch):
    async def fine(entity):
        return None

    def breaks(*args, **options):
        raise ArithmeticError("broken decision")

    add(config, fine)
    monkeypatch.setattr(QueueWorker, "_run_async", breaks)
    monkeypatch.setattr("queue_system.worker.decide", breaks)
    QueueManager(config).enqueue({}, fine)
    async with running(config, lease=60):
        await until_metrics(config, system_errors=1, rejected=1)
        assert leased(config) == set()
    (entry,) = given_up(config, system_errors=True)
    assert (entry.reason, entry.error_type) == ("internal_error", "ArithmeticError")


async def test_a_listener_that_raises_what_is_no_exception_is_isolated(make_config):
    class Raises(Hooks):
        def on_event(self, event):
            raise SystemExit(9)

        def attempt_context(self, event):
            raise KeyboardInterrupt

        def inject(self, headers):
            raise Panic

    async def fine(entity):
        return None

    config = make_config(telemetry=[Raises()])
    add(config, fine)
    async with running(config):
        QueueManager(config).enqueue({}, fine)
        await until_metrics(config, processed=1)
    await until(lambda: leased(config) == set())
    assert not asyncio.current_task().cancelling()
