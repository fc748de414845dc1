"""Many threads and tasks enqueue at once: over few connections, without an error, each operation once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from scaffold import add

from queue_system import QueueManager
from queue_system.broker.exchange_sync import MOST_CONNECTIONS
from queue_system.failures import FailureStore


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
