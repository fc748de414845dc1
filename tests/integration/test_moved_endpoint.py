"""A stable address that is moved to another primary, while the old one lives on as its replica."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from relay import Relay
from scaffold import add, named

from queue_system import AsyncQueueManager, QueueConfig, QueueManager
from queue_system.embedded import EmbeddedServer
from support import running, until


@dataclass
class Address:
    """Names one of two servers, each as the primary of the other."""

    relay: Relay
    primary: EmbeddedServer
    replica: EmbeddedServer

    def move(self) -> None:
        """As a planned failover does: the replica is promoted, the address follows, connections stand."""
        old, new = redis.Redis(port=self.primary.port), redis.Redis(port=self.replica.port)
        with old, new:
            old.set("last", time.monotonic())
            assert old.wait(1, 5000) == 1
            new.replicaof("NO", "ONE")
            self.relay.target = self.replica.port
            old.replicaof("127.0.0.1", self.replica.port)


@pytest.fixture
def address() -> Iterator[Address]:
    no_delay = ("--repl-diskless-sync-delay", "0")
    with EmbeddedServer(extra=no_delay) as primary, EmbeddedServer(extra=no_delay) as replica:
        with redis.Redis(port=replica.port) as client:
            client.replicaof("127.0.0.1", primary.port)
        with Relay(primary.port) as relay:
            yield Address(relay, primary, replica)


async def test_producers_and_workers_go_on_without_an_error(address, make_config, registry):
    done: set[int] = set()

    async def work(entity):
        done.add(entity["n"])

    def configuration() -> QueueConfig:
        return make_config(redis_url=address.relay.url, connection_timeout=5.0)

    worker_config = configuration()
    add(worker_config, work)
    queue, async_queue = QueueManager(configuration()), AsyncQueueManager(configuration())
    numbers = itertools.count()
    sent = []

    async def produce() -> None:
        """By each way once, in its own connections: one and many, and the status."""
        for _ in range(3):
            batch = [{"n": next(numbers)}, {"n": next(numbers)}]
            sent.extend(queue.enqueue_batch(batch, named(work)))
            sent.append(queue.enqueue({"n": next(numbers)}, named(work)))
            batch = [{"n": next(numbers)}, {"n": next(numbers)}]
            sent.extend(await async_queue.enqueue_batch(batch, named(work)))
            sent.append(await async_queue.enqueue({"n": next(numbers)}, named(work)))
        queue.get_queue_status()
        await async_queue.get_queue_status()

    async with running(worker_config, lease=2.0) as worker:
        await produce()
        await until(lambda: len(done) == len(sent), what="the work before")
        address.move()
        await produce()
        await until(lambda: len(done) == len(sent) == 36, what="the work after")
        await until(lambda: worker.health().ready, what="a worker that is ready")
    await async_queue.close()


async def test_a_worker_that_waits_is_woken_by_work_on_the_new_primary(address, make_config):
    """Its blocking read ends with UNBLOCKED; all of its connections must find the new server without a producer's."""
    done = []

    async def work(entity):
        done.append(entity["n"])

    config = make_config(redis_url=address.relay.url, connection_timeout=5.0)
    add(config, work)
    async with running(config, lease=2.0) as worker:
        await until(lambda: worker.health().ready)
        address.move()
        direct = QueueManager(make_config(redis_url=address.replica.url))
        direct.enqueue({"n": 1}, named(work))
        await until(lambda: done == [1], what="work that was enqueued elsewhere")
