"""Many threads and tasks enqueue at once: over few connections, without an error, each operation once."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis
from relay import Relay
from scaffold import add

from queue_system import (
    AsyncQueueManager,
    BrokerReplyError,
    BrokerUnavailableError,
    ClosedError,
    QueueManager,
    SerializationError,
)
from queue_system.broker.exchange_sync import MOST_CONNECTIONS
from queue_system.broker.messages import Call
from queue_system.embedded import EmbeddedServer
from queue_system.failures import FailureStore
from support import until


async def work(entity):
    return entity


@pytest.fixture
def named_url(redis_server, prefix):
    """The server's URL, by which the connections of this test have its name."""
    return f"{redis_server.url}?client_name={prefix.strip(':')}"


@pytest.fixture
def connections(redis_server, prefix):
    """How many connections this test has now."""
    with redis.Redis.from_url(redis_server.url) as admin:
        yield lambda: sum(each["name"] == prefix.strip(":") for each in admin.client_list())


def in_threads(count: int, do: Callable[[], Any]) -> list[BaseException]:
    """Do it in so many threads at once; what was raised."""
    errors: list[BaseException] = []
    begin = threading.Barrier(count)

    def one() -> None:
        begin.wait()
        try:
            do()
        except BaseException as error:  # noqa: BLE001  the errors are what is looked at
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_threads_that_enqueue_wait_for_a_connection_of_a_few(make_config, named_url, connections):
    config = make_config(redis_url=named_url)
    add(config, work)
    queue, ids = QueueManager(config), []
    assert in_threads(150, lambda: ids.extend(queue.enqueue({"n": n}, work)["operation_id"] for n in range(3))) == []
    assert len(set(ids)) == queue.get_queue_status()["total_items"] == 450
    assert connections() <= MOST_CONNECTIONS + 1  # that of the first look at the server
    assert config.breaker.state == "closed"


def test_a_limit_of_the_clients_own_is_kept(make_config, named_url, connections):
    config = make_config(redis_url=f"{named_url}&max_connections=2")
    add(config, work)
    queue = QueueManager(config)
    assert in_threads(30, lambda: queue.enqueue({}, work)) == []
    assert connections() <= 2
    assert config.get_metrics()["enqueued"] == 30


def test_whatever_else_threads_ask_for_waits_as_well(make_config, named_url, connections):
    config = make_config(redis_url=f"{named_url}&max_connections=2")
    queue, failures = QueueManager(config), FailureStore(config)
    for ask in (queue.get_queue_status, config.get_metrics, lambda: queue.purge_queue("work"), failures.count):
        assert in_threads(20, ask) == []
    assert connections() <= 2


def test_one_connects_for_all_that_come_first(make_config, named_url, monkeypatch):
    config = make_config(redis_url=named_url)
    made = []
    make = config.clients.sync
    monkeypatch.setattr(config.clients, "sync", lambda **options: made.append(1) or make(**options))
    assert in_threads(20, config.get_metrics) == []
    assert made == [1]


def test_who_connects_after_a_fork_does_not_wait_for_a_thread_that_is_no_more(make_config, named_url):
    config = make_config(redis_url=named_url, connection_timeout=0.05)
    config._connecting.acquire()  # as a thread of the parent's had it
    assert config.get_metrics()["enqueued"] == 0
    assert config._connecting.locked()


async def test_tasks_that_enqueue_share_a_few_connections(make_config, named_url, connections):
    config = make_config(redis_url=named_url)
    add(config, work)
    queue = AsyncQueueManager(config)

    async def one(number: int) -> list[dict[str, Any]]:
        return [await queue.enqueue({"n": number}, work, operation_id=f"{number}.{n}") for n in range(3)]

    results = await asyncio.gather(*(one(number) for number in range(200)))
    assert [[each["operation_id"] for each in own] for own in results] == [
        [f"{number}.{n}" for n in range(3)] for number in range(200)
    ]
    assert {each["status"] for own in results for each in own} == {"queued"}
    assert connections() <= 4
    assert (await queue.get_queue_status())["total_items"] == 600
    await queue.close()
    await until(lambda: connections() == 0)


async def test_whatever_else_tasks_ask_for_shares_them(make_config, named_url, connections):
    config = make_config(redis_url=named_url)
    add(config, work)
    queue = AsyncQueueManager(config)
    asked = [
        ask
        for n in range(40)
        for ask in (
            queue.get_queue_status(),
            queue.purge_queue(f"empty{n}"),
            queue.enqueue_batch([{"n": n}] * 3, work),
            queue.enqueue({}, work, delay=60.0),
            queue.enqueue({}, work, deduplication_key=str(n), queue_name=f"own{n}"),
        )
    ]
    results = await asyncio.gather(*asked)
    assert connections() <= 4
    assert [result[0]["status"] for result in results[2::5]] == ["queued"] * 40
    assert [result["status"] for result in results[3::5]] == ["scheduled"] * 40
    assert [result["status"] for result in results[4::5]] == ["queued"] * 40
    await queue.close()


async def test_each_of_those_that_go_together_has_its_own_answer(make_config):
    config = make_config()
    add(config, work)
    queue = AsyncQueueManager(config)
    await queue.enqueue({}, work)  # connected
    config.broker.run(Call("SET", (), [f"{config.queue_prefix}normal:broken", "x"], lambda reply: reply, plain=True))
    same = [queue.enqueue({"n": n}, work, operation_id="same") for n in range(3)]
    keyed = [queue.enqueue({"n": n}, work, deduplication_key="key") for n in range(3)]
    bad = [queue.enqueue({}, work, queue_name="broken"), queue.enqueue({"x": object()}, work)]
    *results, broken, unserializable = await asyncio.gather(*same, *keyed, *bad, return_exceptions=True)
    assert [each["status"] for each in results] == ["queued", "duplicate", "duplicate"] * 2
    assert {each["duplicate_of"] for each in results[1:3]} == {"same"}
    assert {each["duplicate_of"] for each in results[4:]} == {results[3]["operation_id"]}
    assert (type(broken), type(unserializable)) == (BrokerReplyError, SerializationError)
    await queue.close()


async def test_a_group_whose_reply_is_lost_is_carried_out_once(make_config, redis_server):
    with Relay(redis_server.port) as relay:
        config = make_config(redis_url=relay.url, max_connection_retries=5)
        add(config, work)
        queue = AsyncQueueManager(config)
        await queue.enqueue({}, work)
        relay.losses = 2  # that of the one that goes alone, and that of the group beside it
        results = await asyncio.gather(*(queue.enqueue({"n": n}, work) for n in range(50)))
        assert relay.losses == 0
        assert {each["status"] for each in results} == {"queued"}
        assert (await queue.get_queue_status())["metrics"]["enqueued"] == 51
        await queue.close()


async def test_those_that_are_cancelled_break_no_others(make_config, named_url, connections):
    config = make_config(redis_url=named_url)
    add(config, work)
    queue = AsyncQueueManager(config)
    for turns in range(6):  # before they are sent, and after
        tasks = [asyncio.create_task(queue.enqueue({"n": n}, work, operation_id=f"{turns}.{n}")) for n in range(60)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each["operation_id"] for each in results[1::2]] == [f"{turns}.{n}" for n in range(1, 60, 2)]
        for n, each in enumerate(results[::2]):  # or it was done by then
            assert isinstance(each, asyncio.CancelledError) or each["operation_id"] == f"{turns}.{2 * n}"
    assert connections() <= 4
    await queue.close()


async def test_calls_that_are_pending_at_the_end_are_told_so(make_config):
    with EmbeddedServer() as server:
        config = make_config(redis_url=server.url)
        add(config, work)
        queue = AsyncQueueManager(config)
        await queue.enqueue({}, work)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            pending = [asyncio.create_task(queue.enqueue({"n": n}, work)) for n in range(50)]
            pending.append(asyncio.create_task(queue.get_queue_status()))
            groups = queue._producers.get().primary
            await until(lambda: len(groups._groups) == 1)
            await asyncio.sleep(0)
            await queue.close()
            errors = await asyncio.gather(*pending, return_exceptions=True)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert {type(error) for error in errors} == {ClosedError}
        assert all(error.operation_ids for error in errors[:-1])
        assert len({error.operation_ids for error in errors[:-1]}) == 50
        assert config.breaker.state == "closed"
        assert (await queue.enqueue({}, work))["status"] == "queued"
        await queue.close()


async def test_each_of_many_is_told_in_time_that_redis_does_not_answer(make_config):
    with EmbeddedServer() as server:
        config = make_config(redis_url=server.url, connection_timeout=0.2, max_connection_retries=1)
        add(config, work)
        queue = AsyncQueueManager(config)
        await queue.enqueue({}, work)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                errors = await asyncio.gather(*(queue.enqueue({}, work) for _ in range(50)), return_exceptions=True)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert {(type(error), error.kind) for error in errors} == {(BrokerUnavailableError, "timeout")}
        await queue.close()


def test_one_manager_serves_one_event_loop_after_the_other(make_config, named_url, connections, recwarn):
    config = make_config(redis_url=named_url)
    add(config, work)
    queue = AsyncQueueManager(config)

    async def some() -> int:
        return len(await asyncio.gather(*(queue.enqueue({"n": n}, work) for n in range(20))))

    for _ in range(3):
        assert asyncio.run(some()) == 20
    deadline = time.monotonic() + 10
    while connections() and time.monotonic() < deadline:
        pass
    assert connections() == 0, "each loop closes its own"
    gc.collect()
    assert not [str(each.message) for each in recwarn if "unclosed" in str(each.message)]


def test_that_of_a_loop_that_nobody_ended_is_let_go(make_config, named_url, connections):
    config = make_config(redis_url=named_url)
    add(config, work)
    queue = AsyncQueueManager(config)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(queue.enqueue({}, work))
    loop.close()
    assert asyncio.run(queue.enqueue({}, work))["status"] == "queued"
    deadline = time.monotonic() + 10
    while connections() and time.monotonic() < deadline:
        pass
    assert connections() == 0


def test_one_manager_serves_loops_in_several_threads(make_config, named_url, connections):
    config = make_config(redis_url=named_url)
    add(config, work)
    queue = AsyncQueueManager(config)

    async def some() -> None:
        await asyncio.gather(*(queue.enqueue({"n": n}, work) for n in range(20)))

    assert in_threads(4, lambda: asyncio.run(some())) == []
    assert config.get_metrics()["enqueued"] == 80


def test_a_child_has_connections_of_its_own(make_config, named_url):
    config = make_config(redis_url=named_url)
    add(config, work)
    queue = AsyncQueueManager(config)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(queue.enqueue({}, work))
    child = os.fork()
    if child == 0:
        try:
            asyncio.run(queue.enqueue({}, work))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert loop.run_until_complete(queue.enqueue({}, work))["status"] == "queued"
    loop.run_until_complete(queue.close())
    loop.close()
    assert config.get_metrics()["enqueued"] == 3
