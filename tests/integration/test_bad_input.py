"""Bad input gets one clear error of `QueueError`'s hierarchy that says what to do, and enqueues nothing."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import math
import re
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from old_redis import old_redis
from scaffold import redis_of

from queue_system import (
    AsyncQueueManager,
    BrokerUnavailableError,
    CircuitOpenError,
    ConfigurationError,
    EntityTooLargeError,
    InvalidOperationError,
    QueueConfig,
    QueueError,
    QueueManager,
    QueueRetryConfig,
    QueueWorker,
    SerializationError,
    UnresolvableFunctionError,
    UnsupportedServerError,
)


def work(entity):
    return entity


class Tool:
    def method(self, entity):
        return entity


def make_local() -> Callable[..., Any]:
    def local(entity):
        return entity

    return local


def nested(levels: int) -> dict:
    entity: dict = {}
    for _ in range(levels):
        entity = {"a": entity}
    return entity


def circle() -> dict:
    entity: dict = {}
    entity["self"] = entity
    return entity


@dataclass
class Bad:
    """One bad call: what is given, the error, and what its text must say."""

    error: type[QueueError]
    says: str
    given: dict[str, Any] = field(default_factory=dict)


BAD_CALLS = {
    "entity-list": Bad(InvalidOperationError, "an entity is a dict, not list: wrap it", {"entity": [1, 2]}),
    "entity-text": Bad(InvalidOperationError, "an entity is a dict, not str", {"entity": "text"}),
    "entity-none": Bad(InvalidOperationError, "an entity is a dict, not NoneType", {"entity": None}),
    "priority": Bad(
        ConfigurationError, "unknown priority 'urgent': use one of high, normal, low", {"priority": "urgent"}
    ),
    "priority-none": Bad(ConfigurationError, "unknown priority None", {"priority": None}),
    "priority-list": Bad(ConfigurationError, "unknown priority", {"priority": ["high"]}),
    "lambda": Bad(
        UnresolvableFunctionError, "define it with def at module level, or register it", {"processor": lambda e: e}
    ),
    "local-function": Bad(
        UnresolvableFunctionError, "define it with def at module level, or register it", {"processor": make_local()}
    ),
    "bound-method": Bad(UnresolvableFunctionError, "register it", {"processor": Tool().method}),
    "partial": Bad(UnresolvableFunctionError, "register it", {"processor": functools.partial(work, 1)}),
    "processor-number": Bad(InvalidOperationError, "a processor is a function or 'module:name'", {"processor": 7}),
    "processor-none": Bad(InvalidOperationError, "a processor is a function or 'module:name'", {"processor": None}),
    "processor-empty": Bad(UnresolvableFunctionError, "module:name", {"processor": ""}),
    "processor-command": Bad(UnresolvableFunctionError, "module:name", {"processor": "os:system('ls')"}),
    "callback-lambda": Bad(UnresolvableFunctionError, "register it", {"on_success": lambda d: d}),
    "callback-local": Bad(UnresolvableFunctionError, "register it", {"on_failure": make_local()}),
    "object-in-entity": Bad(
        SerializationError,
        r"entity\['items'\]\[2\]\['tool'\] cannot be serialised: .*Tool.*custom_serializer",
        {"entity": {"items": [1, 2, {"tool": Tool()}]}},
    ),
    "nan": Bad(SerializationError, r"entity\['ratio'\] is nan.*use None or a string", {"entity": {"ratio": math.nan}}),
    "infinity": Bad(
        SerializationError, r"entity\['list'\]\[1\] is inf", {"entity": {"list": [1.0, math.inf]}}
    ),
    "key": Bad(SerializationError, r"entity cannot be serialised: its key \(1, 2\)", {"entity": {(1, 2): "x"}}),
    "surrogate": Bad(SerializationError, r"entity\['name'\]", {"entity": {"name": "\ud800"}}),
    "serializer-raises": Bad(
        SerializationError,
        r"entity\['tool'\] cannot be serialised: no idea",
        {"entity": {"tool": Tool()}, "custom_serializer": lambda value: (_ for _ in ()).throw(ValueError("no idea"))},
    ),
    "too-large": Bad(
        EntityTooLargeError,
        "more than max_operation_bytes=262,144: enqueue a reference",
        {"entity": {"x": "x" * 300_000}},
    ),
    "too-deep": Bad(EntityTooLargeError, r"deeper than max_depth=100", {"entity": nested(101)}),
    "circle": Bad(EntityTooLargeError, "nested too deep, or contains itself", {"entity": circle()}),
    "queue-space": Bad(ConfigurationError, "bad queue name 'a b': use 1 to 64 characters", {"queue_name": "a b"}),
    "queue-colon": Bad(ConfigurationError, "bad queue name", {"queue_name": "high:x"}),
    "queue-long": Bad(ConfigurationError, "bad queue name", {"queue_name": "x" * 65}),
    "queue-empty": Bad(ConfigurationError, "bad queue name ''", {"queue_name": ""}),
    "queue-number": Bad(ConfigurationError, "bad queue name 7", {"queue_name": 7}),
    "queue-of-callbacks": Bad(InvalidOperationError, "choose another name", {"queue_name": "__callbacks__"}),
    "delay-negative": Bad(InvalidOperationError, "delay must be 0 or more seconds, got -1", {"delay": -1}),
    "delay-nan": Bad(InvalidOperationError, "delay must be", {"delay": math.nan}),
    "delay-text": Bad(InvalidOperationError, "delay must be", {"delay": "soon"}),
    "delay-time": Bad(InvalidOperationError, "delay must be", {"delay": dt.timedelta(seconds=3)}),
    "timeout-negative": Bad(InvalidOperationError, "timeout must be more than 0 seconds, got -0.5", {"timeout": -0.5}),
    "timeout-zero": Bad(InvalidOperationError, "timeout must be more than 0 seconds", {"timeout": 0}),
    "timeout-infinite": Bad(InvalidOperationError, "timeout must be", {"timeout": math.inf}),
    "window-negative": Bad(
        InvalidOperationError,
        "deduplication_window must be more than 0 seconds",
        {"deduplication_window": -3, "deduplication_key": "k"},
    ),
    "key-empty": Bad(InvalidOperationError, "deduplication_key must be a non-empty string", {"deduplication_key": ""}),
    "key-number": Bad(InvalidOperationError, "deduplication_key must be a non-empty string", {"deduplication_key": 7}),
    "id-space": Bad(InvalidOperationError, "bad operation_id 'a b': use 1 to 128", {"operation_id": "a b"}),
    "id-empty": Bad(InvalidOperationError, "bad operation_id ''", {"operation_id": ""}),
    "id-long": Bad(InvalidOperationError, "bad operation_id", {"operation_id": "x" * 129}),
    "id-number": Bad(InvalidOperationError, "bad operation_id 7", {"operation_id": 7}),
    "retry-dict": Bad(
        InvalidOperationError, "retry_config must be a QueueRetryConfig", {"retry_config": {"delays": [1]}}
    ),
}  # fmt: skip


def nothing_enqueued(config: QueueConfig) -> bool:
    """Not only the counter: no key at all but those that any look at the queue makes."""
    keys = {key.decode() for key in redis_of(config).scan_iter(f"{config.queue_prefix}*", count=1000)}
    return not keys and config.get_metrics()["enqueued"] == 0


@pytest.mark.parametrize("name", BAD_CALLS)
@pytest.mark.parametrize("how", ["one", "batch", "async"])
def test_a_bad_call_gets_one_clear_error_and_enqueues_nothing(config, name, how):
    bad = BAD_CALLS[name]
    given = {"entity": {"n": 1}, "processor": work} | bad.given
    config.registry.register(work, name="work", module="tests")

    def call() -> object:
        if how == "one":
            return QueueManager(config).enqueue(**given)
        if how == "batch":
            entity, processor = given.pop("entity"), given.pop("processor")
            return QueueManager(config).enqueue_batch([{"good": 1}, entity, {"good": 2}], processor, **given)
        return asyncio.run(enqueue_async(config, given))

    if how == "batch" and "operation_id" in given:
        bad = Bad(InvalidOperationError, "operation_id cannot be given for a batch")
    if how == "batch" and given.get("deduplication_key") == "k":  # one key for all is refused for itself
        given["deduplication_key"] = str
    with pytest.raises(QueueError) as caught:
        call()
    assert type(caught.value) is bad.error
    assert re.search(bad.says, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert nothing_enqueued(config)


async def enqueue_async(config: QueueConfig, given: dict[str, Any]) -> object:
    manager = AsyncQueueManager(config)
    try:
        return await manager.enqueue(**given)
    finally:
        await manager.close()


def test_a_serialisation_error_says_where(config):
    config.registry.register(work, name="work", module="tests")
    with pytest.raises(SerializationError) as caught:
        QueueManager(config).enqueue({"a": {"b": [0, {"c": object()}]}}, work)
    assert caught.value.path == "entity['a']['b'][1]['c']"


@pytest.mark.parametrize("entities", [{"n": 1}, "text", b"bytes", 7, None, {1, 2}])
def test_a_batch_needs_a_list(config, entities):
    config.registry.register(work, name="work", module="tests")
    with pytest.raises(InvalidOperationError, match="entities must be a list of dicts"):
        QueueManager(config).enqueue_batch(entities, work)
    assert nothing_enqueued(config)


def test_an_unknown_argument_of_a_batch_is_a_type_error_and_enqueues_nothing(config):
    config.registry.register(work, name="work", module="tests")
    with pytest.raises(TypeError, match="priorty"):
        QueueManager(config).enqueue_batch([{"n": 1}], work, priorty="high")
    assert nothing_enqueued(config)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: QueueRetryConfig.fixed(-1), "delay must be 0 or more seconds, got -1"),
        (lambda: QueueRetryConfig.custom([1, -2]), r"delays\[1\] must be 0 or more seconds"),
        (lambda: QueueRetryConfig.custom([]), "delays needs 1 to 1000 entries"),
        (lambda: QueueRetryConfig(max_attempts=0), "max_attempts must be"),
        (lambda: QueueRetryConfig(timeout=-1), "timeout must be"),
        (lambda: QueueRetryConfig.exponential(base=0.5), "base must be 1 or more"),
        (lambda: QueueRetryConfig.exponential(min_delay=10, max_delay=1), "must not be above max_delay"),
        (lambda: QueueConfig(connection_timeout=-1), "connection_timeout must be"),
        (lambda: QueueConfig(backup_ttl=0), "backup_ttl must be"),
        (lambda: QueueConfig(queue_prefix="with space:"), "bad queue_prefix"),
        (lambda: QueueConfig(importable_modules="app"), "importable_modules must be a list"),
        (lambda: QueueWorker(QueueConfig(), max_workers=0), "max_workers must be an integer of 1 or more, got 0"),
        (lambda: QueueWorker(QueueConfig(), thread_pool_size=-3), "thread_pool_size must be"),
        (lambda: QueueWorker(QueueConfig(), work_timeout=-1), "work_timeout must be more than 0 seconds"),
        (lambda: QueueWorker(QueueConfig(), lease=0), "lease must be more than 0 seconds"),
        (lambda: QueueWorker(QueueConfig(), grace=-1), "grace must be 0 or more seconds"),
        (lambda: QueueWorker(QueueConfig(), queues=["bad name"]), "bad queue name"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_connected(make, says):
    with pytest.raises(ConfigurationError, match=says):
        make()


@pytest.mark.parametrize("queue_name", ["bad name", "", "a:b"])
def test_a_purge_with_a_bad_name_is_refused(queue, queue_name):
    with pytest.raises(ConfigurationError, match="bad queue name"):
        queue.purge_queue(queue_name)
    with pytest.raises(ConfigurationError, match="unknown priority"):
        queue.purge_queue("fine", priority="urgent")


# The server.

SECRET = "s3cr3t-and-l0ng"


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]  # free again in a moment, and nobody listens there


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://localhost:6379", r"redis_url has the scheme 'http': use one of redis://, rediss://, valkey"),
        ("localhost:6379", r"redis_url has the scheme 'localhost'"),
        ("", r"redis_url has the scheme ''"),
        ("redis://localhost:port/0", "not a valid URL: use redis://"),
        ("redis://localhost:99999/0", "not a valid URL"),
        (f"http://user:{SECRET}@localhost/0", "redis_url has the scheme 'http'"),
        (f"redis://user:{SECRET}@localhost:x/0", "not a valid URL"),
        (f"redis://user:{SECRET}/more@localhost/0", "not a valid URL.*%2F for '/'"),
        (f"redis://{SECRET}/more@localhost/0", "redis_url has an '@' after its host: .*%2F for '/'"),
        (7, "redis_url must be a string, not int"),
    ],
)
def test_a_wrong_redis_url_is_refused_at_once(url, says):
    with pytest.raises(ConfigurationError, match=says) as caught:
        QueueConfig(redis_url=url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_client_and_a_url_at_once_are_refused():
    with pytest.raises(ConfigurationError, match="not both"):
        QueueConfig(redis_client=redis.Redis(), redis_url="redis://localhost")
    with pytest.raises(ConfigurationError, match=r"must be a redis\.Redis, not object"):
        QueueConfig(redis_client=object())


def test_a_dead_redis_says_which_and_what_to_look_at(make_config, dead_port):
    config = make_config(redis_url=f"redis://user:{SECRET}@127.0.0.1:{dead_port}/0", connection_timeout=1.0)
    config.registry.register(work, name="work", module="tests")
    with pytest.raises(BrokerUnavailableError) as caught:
        QueueManager(config).enqueue({"n": 1}, work)
    assert f"redis://user:***@127.0.0.1:{dead_port}/0" in str(caught.value)
    assert "is Redis running, and is the address right?" in str(caught.value)
    assert caught.value.kind == "connection"
    assert not caught.value.ambiguous  # it was never sent: safe to try again
    assert_no_secret(caught.value, config)


def test_a_dead_redis_opens_the_circuit_and_then_fails_at_once(make_config, dead_port):
    config = make_config(redis_url=f"redis://127.0.0.1:{dead_port}/0", max_connection_retries=1)
    config.registry.register(work, name="work", module="tests")
    queue = QueueManager(config)
    errors = []
    for _ in range(20):
        with pytest.raises(BrokerUnavailableError) as caught:
            queue.enqueue({"n": 1}, work)
        errors.append(caught.value)
        if isinstance(caught.value, CircuitOpenError):
            break
    assert isinstance(errors[-1], CircuitOpenError)
    assert errors[-1].retry_after > 0


async def test_an_asynchronous_manager_and_a_worker_say_the_same(make_config, dead_port):
    config = make_config(redis_url=f"redis://user:{SECRET}@127.0.0.1:{dead_port}/0", max_connection_retries=1)
    config.registry.register(work, name="work", module="tests")
    manager, worker = AsyncQueueManager(config), QueueWorker(config)
    for call in (manager.enqueue({"n": 1}, work), manager.get_queue_status(), worker.start()):
        with pytest.raises(BrokerUnavailableError, match="is Redis running") as caught:
            await call
        assert_no_secret(caught.value, config)
    assert worker.state == "new"
    await manager.close()


@pytest.mark.parametrize("wrong", ["password", "user", "missing"])
def test_a_wrong_password_is_told_and_never_shown(make_config, redis_server, wrong):
    """On the user of a test, so that the server stays open to all others."""
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "alice", "on", f">{SECRET}", "~*", "+@all")
        try:
            login = {"password": f"alice:not-{SECRET}@", "user": f"nobody:{SECRET}@", "missing": "alice:@"}[wrong]
            config = make_config(redis_url=f"redis://{login}127.0.0.1:{redis_server.port}/0")
            config.registry.register(work, name="work", module="tests")
            with pytest.raises(BrokerUnavailableError, match="check the user name and password") as caught:
                QueueManager(config).enqueue({"n": 1}, work)
            assert caught.value.kind == "auth"
            assert_no_secret(caught.value, config)
            right = make_config(redis_url=f"redis://alice:{SECRET}@127.0.0.1:{redis_server.port}/0")
            assert QueueManager(right).get_queue_status()["total_items"] == 0
            assert nothing_enqueued(right)
            assert SECRET not in repr(right)
        finally:
            admin.execute_command("ACL", "DELUSER", "alice")


def assert_no_secret(error: BaseException, config: QueueConfig) -> None:
    """Neither in a text nor in a repr nor in a traceback with all its causes."""
    assert SECRET not in "".join(traceback.format_exception(error))
    for text in (
        str(error),
        repr(error),
        repr(config),
        repr(config.clients),
        config.clients.address,
        repr(vars(error)),
    ):
        assert SECRET not in text


async def test_a_redis_that_is_too_old_is_refused(make_config):
    with old_redis() as server:
        config = make_config(redis_url=server.url)
        config.registry.register(work, name="work", module="tests")
        for call in (lambda: QueueManager(config).enqueue({"n": 1}, work), QueueManager(config).get_queue_status):
            with pytest.raises(UnsupportedServerError) as caught:
                await asyncio.to_thread(call)
            assert "is version 6.0.16: 6.2 or newer (or Valkey) is needed" in str(caught.value)
            assert server.url.removesuffix("/0") in str(caught.value)
        worker = QueueWorker(config)
        with pytest.raises(UnsupportedServerError):
            await worker.start()
        assert worker.state == "new"
        assert set(server.asked) <= {b"PING", b"INFO", b"CLIENT", b"SELECT", b"HELLO"}  # no script was sent


async def test_an_asynchronous_manager_refuses_a_redis_that_is_too_old(make_config):
    with old_redis() as server:
        config = make_config(redis_url=server.url)
        config.registry.register(work, name="work", module="tests")
        manager = AsyncQueueManager(config)
        try:
            with pytest.raises(UnsupportedServerError, match=r"6\.2 or newer"):
                await manager.enqueue({"n": 1}, work)
        finally:
            await manager.close()
