"""The reply of an enqueue is lost, and what it has accepted is processed and forgotten before it is sent again."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from relay import Relay
from scaffold import add, named

from queue_system import AsyncQueueManager, BrokerUnavailableError, QueueConfig, QueueManager
from queue_system.testing import process_all

MANAGERS = (QueueManager, AsyncQueueManager)


class Producer:
    """A manager of either kind behind a relay, called in the same way; and what its processor was given."""

    def __init__(self, manager: type[Any], config: QueueConfig, direct: QueueConfig, relay: Relay) -> None:
        self.config, self.direct, self.relay = config, direct, relay
        self.runs: list[Any] = []
        self._make = manager

        async def work(entity: dict[str, Any]) -> None:
            self.runs.append(entity["n"])

        add(direct, work)
        self.processor = named(work)

    def lose(self, replies: int, *, processed: bool = True) -> None:
        """Lose so many replies; what was accepted by the first is processed before its loss is noticed."""
        steps = [self.process] if processed else []
        self.relay.losses, self.relay.meanwhile = replies, lambda: steps and steps.pop()()

    def process(self) -> None:
        process_all(self.direct, timeout=20.0)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        manager = self._make(self.config)

        async def awaited() -> Any:
            try:
                return await getattr(manager, method)(*args, self.processor, **options)
            finally:
                await manager.close()

        if inspect.iscoroutinefunction(getattr(manager, method)):
            return asyncio.run(awaited())
        return getattr(manager, method)(*args, self.processor, **options)

    def metric(self, name: str) -> int:
        return int(self.direct.get_metrics().get(name, 0))


@pytest.fixture(params=MANAGERS, ids=lambda manager: manager.__name__)
def producer(request: Any, redis_server: Any, make_config: Callable[..., QueueConfig]) -> Iterator[Producer]:
    with Relay(redis_server.port) as relay:
        yield Producer(request.param, make_config(redis_url=relay.url), make_config(), relay)


def test_what_was_processed_in_the_meantime_is_not_accepted_again(producer):
    producer.lose(1)
    result = producer.call("enqueue", {"n": 1})
    assert (result["status"], producer.relay.requests) == ("queued", 2)
    producer.process()
    assert (producer.runs, producer.metric("enqueued")) == ([1], 1)


def test_however_often_it_is_sent(producer):
    producer.lose(2)
    assert producer.call("enqueue", {"n": 1})["status"] == "queued"
    producer.process()
    assert (producer.runs, producer.relay.requests) == ([1], 3)


def test_a_deduplication_key_does_not_find_its_own_operation(producer):
    producer.lose(1)
    assert producer.call("enqueue", {"n": 1}, deduplication_key="key")["status"] == "queued"
    again = producer.call("enqueue", {"n": 2}, deduplication_key="key")
    assert (again["status"], again["reason"]) == ("duplicate", "deduplication_key")
    producer.process()
    assert producer.runs == [1]


def test_a_duplicate_stays_one_though_its_holder_is_gone(producer):
    producer.call("enqueue", {"n": 1}, operation_id="mine")
    producer.lose(1)
    assert producer.call("enqueue", {"n": 2}, operation_id="mine")["status"] == "duplicate"
    producer.process()
    assert producer.runs == [1]


@pytest.mark.parametrize("size", [3, 2500], ids=["one-request", "three-requests"])
def test_a_batch_is_accepted_once(producer, size):
    producer.lose(1)
    results = producer.call("enqueue_batch", [{"n": n} for n in range(size)])
    assert {each["status"] for each in results} == {"queued"}
    producer.process()
    assert (sorted(producer.runs), producer.metric("enqueued")) == (list(range(size)), size)


def test_when_all_replies_are_lost_the_error_names_what_may_have_been_accepted(producer):
    producer.lose(3, processed=False)
    with pytest.raises(BrokerUnavailableError) as caught:
        producer.call("enqueue", {"n": 1})
    assert caught.value.ambiguous
    (operation_id,) = caught.value.operation_ids
    again = producer.call("enqueue", {"n": 2}, operation_id=operation_id)
    assert (again["status"], again["reason"]) == ("duplicate", "operation_id")
    producer.process()
    assert producer.runs == [1]


def test_a_caller_who_tries_again_is_safe_within_done_ttl(producer, make_config):
    producer.direct.done_ttl = 60.0
    producer.lose(3)
    with pytest.raises(BrokerUnavailableError):
        producer.call("enqueue", {"n": 1}, operation_id="mine")
    assert producer.call("enqueue", {"n": 2}, operation_id="mine")["status"] == "duplicate"
    producer.process()
    assert producer.runs == [1]


def test_lanes_are_few_and_expire(producer):
    producer.lose(1)
    manager = QueueManager(producer.config)
    for n in range(50):
        manager.enqueue({"n": n}, producer.processor)
    client = producer.direct._ensure_redis_sync()
    keys = list(client.scan_iter(f"{producer.direct.queue_prefix}sent:*"))
    assert len(keys) == 1
    assert 0 < client.ttl(keys[0]) <= 120
