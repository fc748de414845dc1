"""``durability="wait"`` on a real primary with a real replica, which is stopped in its tracks."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from relay import Relay

from queue_system import (
    AsyncQueueManager,
    BrokerUnavailableError,
    NotDurableError,
    QueueConfig,
    QueueManager,
)
from queue_system.embedded import EmbeddedServer
from support import until

WORK = "tests:work"


@dataclass
class Pair:
    """A primary and its replica, with a client for each."""

    server: EmbeddedServer
    replica_server: EmbeddedServer
    primary: redis.Redis
    replica: redis.Redis

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The replica does not run, and its connection stands."""
        os.kill(self.replica_server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.replica_server.pid, signal.SIGCONT)

    async def in_step(self) -> None:
        def linked() -> bool:
            self.primary.set("in_step", time.monotonic())  # WAIT is about what this connection has written
            return self.replica.info("replication")["master_link_status"] == "up" and self.primary.wait(1, 100) == 1

        await until(linked, what="the replica follows")


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[EmbeddedServer, EmbeddedServer]]:
    no_delay = ("--repl-diskless-sync-delay", "0")
    with EmbeddedServer(extra=no_delay) as server, EmbeddedServer() as replica:
        yield server, replica


@pytest.fixture
async def pair(servers: tuple[EmbeddedServer, EmbeddedServer]) -> Any:
    server, replica_server = servers
    with redis.Redis(port=server.port) as primary, redis.Redis(port=replica_server.port) as replica:
        primary.replicaof("NO", "ONE")
        replica.replicaof("127.0.0.1", str(server.port))
        pair = Pair(server, replica_server, primary, replica)
        await pair.in_step()
        yield pair


@pytest.fixture
def config(pair: Pair, make_config: Callable[..., QueueConfig]) -> QueueConfig:
    return make_config(redis_url=pair.server.url, durability="wait", durability_timeout=0.3, telemetry=None)


@pytest.fixture(params=[QueueManager, AsyncQueueManager], ids=lambda manager: manager.__name__)
def call(request: Any) -> Callable[..., Any]:
    """Calls a method of a manager of either kind, in a thread of its own."""

    def run(config: QueueConfig, method: str, *args: Any, **options: Any) -> Any:
        manager = request.param(config)

        async def awaited() -> Any:
            try:
                return await getattr(manager, method)(*args, **options)
            finally:
                await manager.close()

        if inspect.iscoroutinefunction(getattr(manager, method)):
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(asyncio.run, awaited()).result()
        return getattr(manager, method)(*args, **options)

    return run


def known(client: redis.Redis, config: QueueConfig, *results: dict[str, Any]) -> int:
    return client.exists(*(config.keys.operation(result["operation_id"]) for result in results))


def test_what_is_confirmed_is_on_the_replica(pair, config, call):
    for n in range(50):
        result = call(config, "enqueue", {"n": n}, WORK)
        assert known(pair.replica, config, result) == 1, f"number {n} was told as confirmed"
    results = call(config, "enqueue_batch", [{}] * 2500, WORK)
    assert known(pair.replica, config, *results) == 2500


def test_after_the_scripts_were_flushed_as_well(pair, config, call):
    for n in range(10):
        pair.primary.script_flush()
        assert known(pair.replica, config, call(config, "enqueue", {"n": n}, WORK)) == 1


def test_a_replica_that_stands_still_is_told_in_time(pair, config, call):
    with pair.stopped():
        began = time.monotonic()
        with pytest.raises(NotDurableError, match=r"0 of 1 replicas within 0\.3 s") as caught:
            call(config, "enqueue", {}, WORK, operation_id="mine")
        assert 0.2 < time.monotonic() - began < 5
        assert caught.value.operation_ids == ("mine",)
        assert known(pair.primary, config, *caught.value.results) == 1
        with pytest.raises(NotDurableError) as caught:
            call(config, "enqueue", {}, WORK, operation_id="mine")
        assert caught.value.results[0]["status"] == "duplicate", "asked again, and not accepted again"
    result = call(config, "enqueue", {}, WORK, operation_id="mine")
    assert (result["status"], known(pair.replica, config, result)) == ("duplicate", 1)


def test_a_call_may_do_without(pair, config, call):
    with pair.stopped():
        result = call(config, "enqueue", {}, WORK, durability="primary")
        assert (result["status"], known(pair.primary, config, result)) == ("queued", 1)


def test_more_replicas_than_there_are(pair, make_config, call):
    config = make_config(
        redis_url=pair.server.url, durability="wait", durability_replicas=2, durability_timeout=0.2, telemetry=None
    )
    with pytest.raises(NotDurableError) as caught:
        call(config, "enqueue", {}, WORK)
    assert (caught.value.confirmed, caught.value.replicas) == (1, 2)


def test_a_server_without_replicas_takes_the_whole_time(redis_url, make_config, call):
    config = make_config(redis_url=redis_url, durability="wait", durability_timeout=0.2, telemetry=None)
    began = time.monotonic()
    with pytest.raises(NotDurableError, match="0 of 1 replicas"):
        call(config, "enqueue", {}, WORK)
    assert time.monotonic() - began > 0.15


async def test_a_primary_that_is_demoted_meanwhile_has_confirmed_nothing(pair, make_config, call):
    config = make_config(redis_url=pair.server.url, durability="wait", durability_timeout=4.0, telemetry=None)
    with ThreadPoolExecutor(1) as pool, pair.stopped():
        pending = pool.submit(call, config, "enqueue", {}, WORK)
        await until(lambda: pair.primary.info("clients")["blocked_clients"] == 1)
        pair.primary.replicaof("127.0.0.1", str(pair.replica_server.port))
        error = await asyncio.to_thread(pending.exception, 10)
    assert isinstance(error, NotDurableError)
    assert isinstance(error.__cause__, BrokerUnavailableError)
    assert error.__cause__.kind == "unblocked"


def test_a_lost_reply_is_asked_for_again(pair, make_config, call):
    with Relay(pair.server.port) as relay:
        config = make_config(redis_url=relay.url, durability="wait", telemetry=None)
        relay.losses = 1
        relay.meanwhile = lambda: pair.primary.delete(config.keys.operation("mine"))  # as when it was processed
        result = call(config, "enqueue", {}, WORK, operation_id="mine")
    assert (result["status"], relay.requests) == ("queued", 2)
    assert known(pair.primary, config, result) == 0, "accepted once"


def test_a_user_who_may_not_wait_is_told(pair, make_config, call, prefix):
    name = prefix.rstrip(":")
    pair.primary.acl_setuser(name, enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-wait"])
    url = pair.server.url.replace("redis://", f"redis://{name}:any@")
    config = make_config(redis_url=url, durability="wait", telemetry=None)
    with pytest.raises(NotDurableError, match="wait"):
        call(config, "enqueue", {}, WORK)
