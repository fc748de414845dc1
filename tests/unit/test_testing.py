"""`queue_system.testing`: the queue in memory, and running it dry."""

from __future__ import annotations

import asyncio
import sys
import textwrap
import threading
import types

import pytest

import queue_system.testing
from queue_system import (
    AsyncQueueManager,
    ConfigurationError,
    NotDurableError,
    QueueConfig,
    QueueManager,
    QueueRetryConfig,
    QueueWorker,
    WorkerStateError,
)
from queue_system.broker.messages import Claimed, Status
from queue_system.errors import BrokerUnavailableError
from queue_system.registry import Registry
from queue_system.summary import unaccounted
from queue_system.testing import MemoryClients, NotDrainedError, _Watch, drain, memory_config, process_all
from support import until_metrics


@pytest.fixture
def config(registry: Registry) -> QueueConfig:
    return memory_config(registry=registry, telemetry=None)


@pytest.fixture
def register(registry: Registry):
    def register(*functions):
        for function in functions:
            registry.register(function, name=function.__name__, module="tests")

    return register


@pytest.fixture
def runs(register) -> list[int]:
    """What the processors `on_loop` and `in_thread` have run."""
    runs: list[int] = []

    async def on_loop(entity):
        runs.append(entity["n"])

    def in_thread(entity):
        runs.append(entity["n"])

    register(on_loop, in_thread)
    return runs


def total(config: QueueConfig) -> int:
    return QueueManager(config).get_queue_status()["total_items"]


def test_each_configuration_starts_empty(runs, config, registry):
    QueueManager(config).enqueue({"n": 1}, "tests:on_loop")
    assert (total(config), total(memory_config(registry=registry, telemetry=None))) == (1, 0)


def test_configurations_can_share_a_server(runs, config):
    other = memory_config(server=config.clients.server, telemetry=None)
    QueueManager(other).enqueue({"n": 1}, "tests:on_loop")
    assert process_all(config)["processed"] == 1
    assert total(other) == 0


def test_what_is_enqueued_outlives_the_connections(runs, config):
    with config:
        QueueManager(config).enqueue({"n": 1}, "tests:on_loop")
    assert total(config) == 1


def test_the_usual_options_and_telemetry_are_there(runs, registry):
    config = memory_config(registry=registry, queue_prefix="mine:")
    QueueManager(config).enqueue({"n": 1}, "tests:on_loop")
    assert process_all(config)["processed"] == 1
    assert repr(config) == "QueueConfig(redis='memory://', queue_prefix='mine:')"


@pytest.mark.parametrize("option", ["redis_url", "redis_client", "client_factory"])
def test_a_configuration_in_memory_takes_no_server_of_another_kind(option):
    with pytest.raises(ConfigurationError, match=option):
        memory_config(**{option: None})


@pytest.mark.parametrize("package", ["fakeredis", "lupa"])
def test_a_missing_package_is_told_with_what_to_install(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    queue_system.testing._memory_classes.cache_clear()
    with pytest.raises(ConfigurationError, match=rf"needs {package}: pip install 'queue-system\[testing\]'"):
        MemoryClients()


def test_everything_is_processed_with_retries_and_callbacks(config, register, runs):
    called: list[dict] = []

    def flaky(entity, context):
        if context.attempt == 1:
            raise ValueError("not yet")
        return "at last"

    def on_success(data):
        called.append(data)

    register(flaky, on_success)
    queue = QueueManager(config)
    queue.enqueue_batch([{"n": n} for n in range(20)], "tests:on_loop")
    queue.enqueue_batch([{"n": n} for n in range(20, 40)], "tests:in_thread")
    queue.enqueue(
        {}, "tests:flaky", on_success="tests:on_success", retry_config=QueueRetryConfig.fixed(delay=0.2, max_attempts=2)
    )
    metrics = process_all(config)
    assert sorted(runs) == list(range(40))
    assert [data["result"] for data in called] == ["at last"]
    assert (metrics["processed"], metrics["retried"], metrics["callbacks_processed"]) == (41, 1, 1)
    assert metrics == config.get_metrics()


def test_what_processors_enqueue_is_processed_too(config, register):
    seen: list[int] = []

    def countdown(entity):
        seen.append(entity["n"])
        if entity["n"]:
            QueueManager(config).enqueue({"n": entity["n"] - 1}, "tests:countdown")

    register(countdown)
    QueueManager(config).enqueue({"n": 5}, "tests:countdown")
    process_all(config)
    assert seen == [5, 4, 3, 2, 1, 0]


def test_an_empty_queue_is_drained_at_once(config):
    assert process_all(config)["processed"] == 0


async def test_draining_again_and_again(config, runs):
    queue = QueueManager(config)
    for n in range(3):
        queue.enqueue({"n": n}, "tests:on_loop", delay=0.05)
        assert (await drain(config))["processed"] == n + 1
    assert runs == [0, 1, 2]


async def test_what_is_due_after_the_time_stays_delayed(config, runs):
    queue = QueueManager(config)
    queue.enqueue({"n": 1}, "tests:on_loop", delay=0.2)
    queue.enqueue({"n": 2}, "tests:on_loop", delay=60.0)
    assert (await drain(config, timeout=20.0))["processed"] == 1
    assert runs == [1]
    assert queue.get_queue_status()["delayed"] == 1


async def test_what_is_not_done_in_time_is_told_and_given_back(config, register):
    async def endless(entity):
        await asyncio.Event().wait()

    register(endless)
    QueueManager(config).enqueue_batch([{}] * 3, "tests:endless")
    with pytest.raises(NotDrainedError, match=r"not drained within 0.1 s: 2 ready, 0 delayed, 1 in flight") as caught:
        await drain(config, timeout=0.1, max_workers=1)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.status.leased == 1
    status = QueueManager(config).get_queue_status()
    assert (status["total_items"], status["in_flight"], status["metrics"]["workers"]) == (3, 0, 0)


async def test_only_some_queues_and_their_callbacks(config, runs, register):
    async def on_success(data):
        runs.append(data["entity"]["n"] + 100)

    register(on_success)
    queue = QueueManager(config)
    queue.enqueue({"n": 1}, "tests:on_loop", queue_name="mail", on_success="tests:on_success")
    queue.enqueue({"n": 2}, "tests:on_loop", queue_name="other")
    await drain(config, queues=(name for name in ["mail"]))
    assert runs == [1, 101]
    assert total(config) == 1


class Scripted:
    """A broker that answers what it is told to, one after the other."""

    def __init__(self, *replies):
        self.replies = list(replies)

    async def run(self, _):
        return self.replies.pop(0)


def counts(ready: int = 0, *, queue: str = "mail", delayed: int = 0, leased: int = 0, retried: int = 0) -> Status:
    return Status(0.0, {f"normal:{queue}": ready}, delayed, leased, 0, 0, {"retried": str(retried)})


def peeked(next_due: float | None) -> Claimed:
    return Claimed(0.0, [], next_due, more_async=False, more_sync=False)


@pytest.mark.parametrize(
    ("replies", "idle"),
    [
        ([counts()], True),
        ([counts(ready=1)], False),
        ([counts(leased=1)], False),
        ([counts(ready=1, queue="other")], True),
        ([counts(ready=1, queue="__callbacks__")], False),
        ([counts(delayed=1), peeked(11.0), counts(delayed=1)], True),
        ([counts(delayed=1), peeked(9.0), counts(delayed=1)], False),
        ([counts(delayed=1), peeked(None), counts(ready=1)], False),
        # Promoted, claimed and retried between the looks: what was said in between did not see it.
        ([counts(delayed=2), peeked(11.0), counts(delayed=2, retried=1)], False),
        ([counts(delayed=2), peeked(11.0), counts(delayed=1)], False),
    ],
)
async def test_when_nothing_is_left_to_do(config, replies, idle):
    watch = _Watch(Scripted(*replies), config, frozenset({"mail"}))
    assert await watch.idle(10.0) is idle


async def test_inside_an_event_loop_drain_is_to_be_awaited(config):
    with pytest.raises(WorkerStateError, match="await drain"):
        process_all(config)


def test_bad_worker_options_are_told(config):
    with pytest.raises(ConfigurationError, match="max_workers"):
        process_all(config, max_workers=0)


def test_an_outage_can_be_tried(runs, registry):
    config = memory_config(registry=registry, telemetry=None, max_connection_retries=1)
    queue = QueueManager(config)
    queue.enqueue({"n": 1}, "tests:on_loop")
    config.clients.server.connected = False
    with pytest.raises(BrokerUnavailableError) as caught:
        queue.enqueue({"n": 2}, "tests:on_loop")
    assert caught.value.kind == "connection"
    with pytest.raises(BrokerUnavailableError):
        process_all(config)
    config.clients.server.connected = True
    assert process_all(config)["processed"] == 1
    assert runs == [1]


async def test_a_worker_goes_on_after_an_outage(config, runs):
    queue = QueueManager(config)
    worker = QueueWorker(config)
    await worker.start()
    try:
        queue.enqueue({"n": 1}, "tests:on_loop")
        await until_metrics(config, processed=1)
        config.clients.server.connected = False
        with pytest.raises(BrokerUnavailableError):
            queue.get_queue_status()
        config.clients.server.connected = True
        queue.enqueue({"n": 2}, "tests:on_loop")
        await until_metrics(config, processed=2)
    finally:
        await worker.stop()


async def test_a_blocking_read_lasts_a_moment_so_that_a_cancelled_one_cannot_take_a_later_marker(config):
    broker = config.new_async_broker()
    wait = config.commands.wait(for_sync=True, for_async=True, timeout=600.0)
    async with asyncio.timeout(10):
        assert await broker.run(wait) is None
        await asyncio.to_thread(QueueManager(config).enqueue, {}, "tests:in_thread")
        assert await broker.run(wait) == "async"  # for whoever learns which it is
    await broker.close()


async def test_threads_and_the_event_loop_share_a_server(config, runs):
    """Producers in threads, the lease thread, which is kept busy by a short lease, and the worker's event loop."""
    each, errors = 40, []

    def produce(start: int) -> None:
        try:
            for n in range(start, start + each):
                QueueManager(config).enqueue({"n": n}, "tests:on_loop" if n % 2 else "tests:in_thread")
                config.get_metrics()
        except Exception as error:  # noqa: BLE001  the thread's failure is the test's
            errors.append(error)

    threads = [threading.Thread(target=produce, args=(start,)) for start in range(0, 4 * each, each)]
    worker = QueueWorker(config, lease=0.05)
    await worker.start()
    try:
        for thread in threads:
            thread.start()
        await until_metrics(config, processed=4 * each)
    finally:
        for thread in threads:
            await asyncio.to_thread(thread.join, 20.0)
        await worker.stop()
    assert errors == []
    assert sorted(runs) == list(range(4 * each))
    assert unaccounted(config.broker.run(config.commands.status())) == 0


async def test_memory_confirms_as_many_replicas_as_it_is_told(config, runs):
    async_queue, queue = AsyncQueueManager(config), QueueManager(config)
    await async_queue.enqueue({"n": 1}, "tests:on_loop", durability="wait")
    queue.enqueue({"n": 2}, "tests:on_loop", durability="wait")
    config.clients.replicas = 0
    with pytest.raises(NotDurableError):
        await async_queue.enqueue({"n": 3}, "tests:on_loop", durability="wait")
    with pytest.raises(NotDurableError):
        queue.enqueue_batch([{"n": 4}], "tests:on_loop", durability="wait")
    await async_queue.close()
    await drain(config)
    assert sorted(runs) == [1, 2, 3, 4]


def test_the_example_of_the_documentation_works(monkeypatch):
    outbox: list[str] = []
    mail = types.ModuleType("shop.mail")
    mail.outbox = outbox
    code = "async def send_receipt(entity): outbox.append(f\"receipt for order {entity['order']}\")"
    exec(code, mail.__dict__)
    monkeypatch.setitem(sys.modules, "shop", types.ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.mail", mail)
    example = queue_system.testing.__doc__.partition("::\n")[2].partition("\nNothing is mocked")[0]
    names: dict = {}
    exec(compile(textwrap.dedent(example), "example", "exec"), names)
    names["test_a_receipt_is_sent"](outbox)
    assert outbox == ["receipt for order 7"]
