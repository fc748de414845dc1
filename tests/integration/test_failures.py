"""The failures API on a real Redis: entries as workers write them, put back, and deleted."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from queue_system import QueueConfig, QueueManager, QueueRetryConfig
from queue_system.broker.messages import Callback, Completion, Delivery
from queue_system.errors import ConfigurationError
from queue_system.failures import PAGE, FailureStore
from queue_system.summary import unaccounted
from support import running, until_metrics

QUEUE = "failing"
ERROR = json.dumps({"reason": "error", "type": "ValueError", "message": "no", "traceback": "T"}).encode()


@pytest.fixture
def store(config) -> FailureStore:
    return FailureStore(config)


@pytest.fixture
def system_errors(config) -> FailureStore:
    return FailureStore(config, system_errors=True)


def enqueue(config: QueueConfig, count: int, **options: Any) -> list[str]:
    entities = [{"n": n} for n in range(count)]
    results = QueueManager(config).enqueue_batch(entities, "tests:never", queue_name=QUEUE, **options)
    return [result["operation_id"] for result in results]


def claim(config: QueueConfig) -> list[Delivery]:
    """All that is ready, as a worker gets it."""
    deliveries: list[Delivery] = []
    while True:
        call = config.commands.claim(
            only=[f"normal:{QUEUE}"], async_slots=400, sync_slots=400, lease=60.0, retention=60.0
        )
        claimed = config.broker.run(call).deliveries
        if not claimed:
            return deliveries
        deliveries += claimed


def give_up(config: QueueConfig, *, system_error: bool = False, counter: str = "failed") -> int:
    """Give up all that is ready, as a worker does, by the very scripts; say how many those were."""
    calls = [
        config.commands.fail(
            delivery.operation_id,
            delivery.token,
            system_error=system_error,
            attempted=not system_error,
            counters=["system_errors", "rejected"] if system_error else [counter],
            error=ERROR,
            record=b"",
            retention=60.0,
            callback=None,
            again=False,
        )
        for delivery in claim(config)
    ]
    for start in range(0, len(calls), 200):
        assert all(config.broker.run_many(calls[start : start + 200]))
    return len(calls)


def status(config: QueueConfig):
    return config.broker.run(config.commands.status())


async def test_an_entry_tells_the_whole_story_of_a_failure(config, store):
    async def always_late(entity):
        raise LookupError(f"no {entity['what']}")

    config.registry.register(always_late, name="always_late", module="tests")
    before = datetime.now(UTC)
    result = QueueManager(config).enqueue(
        {"what": "sugar"}, always_late, priority="high", retry_config=QueueRetryConfig.fixed(0.01, max_attempts=2)
    )
    async with running(config) as worker:
        await until_metrics(config, failed=1)
        worker_id = worker.worker_id
    (entry,) = store.list()
    assert entry == store.get(result["operation_id"])
    assert (entry.queue, entry.priority, entry.processor) == ("always_late", "high", "tests:always_late")
    assert (entry.kind, entry.entity, entry.attempts) == ("operation", {"what": "sugar"}, 2)
    assert (entry.error_type, entry.error_message) == ("LookupError", "no sugar")
    assert "raise LookupError" in entry.traceback
    assert entry.reason
    assert json.loads(entry.raw)["entity"] == {"what": "sugar"}
    assert [record["attempt"] for record in entry.history] == [1, 2]
    assert {record["worker"] for record in entry.history} == {worker_id}
    assert all(record["started"] <= record["ended"] for record in entry.history)
    assert abs(entry.failed_at - before) < timedelta(minutes=2)
    assert entry.failed_at.utcoffset() == timedelta(0)
    assert json.loads(json.dumps(entry.to_dict()))["history"] == entry.history


async def test_a_retried_failure_runs_again_with_all_its_attempts(config, store):
    fails = True
    attempts: list[int] = []

    async def sometimes(_, context):
        attempts.append(context.attempt)
        if fails:
            raise ValueError

    config.registry.register(sometimes, name="sometimes", module="tests")
    operation_id = QueueManager(config).enqueue({}, sometimes, retry_config=QueueRetryConfig.fixed(0.01, 2))[
        "operation_id"
    ]
    async with running(config):
        await until_metrics(config, failed=1)
        assert store.count() == 1
        fails = False
        assert store.retry(operation_id) is True
        await until_metrics(config, processed=1, requeued=1)
    assert attempts == [1, 2, 1]
    assert store.count() == 0
    assert store.get(operation_id) is None
    assert store.retry(operation_id) is False
    assert unaccounted(status(config)) == 0


async def test_a_refused_import_can_be_retried_once_it_is_allowed(config, system_errors, make_config):
    result = QueueManager(config).enqueue({"n": 1}, "not_allowed.module:run")
    async with running(make_config(importable_modules=[])):
        await until_metrics(config, system_errors=1)
    (entry,) = system_errors.list()
    assert (entry.operation_id, entry.entity, entry.attempts) == (result["operation_id"], {"n": 1}, 0)
    assert entry.processor == "not_allowed.module:run"
    assert entry.error_type == "ImportRefusedError"
    seen: list[dict[str, Any]] = []

    async def run(entity):
        seen.append(entity)

    config.registry.register(run, name="run", module="not_allowed.module")
    assert system_errors.retry(entry.operation_id) is True
    async with running(config):
        await until_metrics(config, processed=1)
    assert seen == [{"n": 1}]
    assert system_errors.count() == 0
    assert unaccounted(status(config)) == 0


async def test_garbage_written_by_hand_is_an_entry_that_cannot_be_retried_into_a_loop(config, system_errors):
    redis = config._ensure_redis_sync()
    redis.hset(config.keys.registry, f"normal:{QUEUE}", "m")
    redis.incr(config.keys.registry_version)
    for name, fields in (
        ("bytes", {"st": "ready", "q": f"normal:{QUEUE}", "b": b"\xff\xfe\x00{"}),
        ("deep", {"st": "ready", "q": f"normal:{QUEUE}", "b": b"[" * 5000}),
        ("no-body", {"st": "ready", "q": f"normal:{QUEUE}"}),
    ):
        redis.hset(config.keys.operation(name), mapping=fields)
        redis.rpush(config.get_queue_key(QUEUE), name)
    async with running(config):
        await until_metrics(config, system_errors=3)
        entries = {entry.operation_id: entry for entry in system_errors.list()}
        assert set(entries) == {"bytes", "deep", "no-body"}
        assert all(entry.entity is None and entry.kind == "unknown" for entry in entries.values())
        assert entries["bytes"].raw == b"\xff\xfe\x00{"
        assert entries["deep"].raw == b"[" * 5000
        assert entries["no-body"].raw == b""
        assert all(json.dumps(entry.to_dict()) for entry in entries.values())
        assert system_errors.retry("no-body") is False
        assert system_errors.retry("bytes") is True
        await until_metrics(config, system_errors=4)
    assert system_errors.count() == 3


def test_an_id_of_any_bytes_can_be_got_retried_and_purged(config, store):
    redis = config._ensure_redis_sync()
    for raw_id in (b"\xff one", b"\xff two"):
        key = config.keys.operation_prefix.encode() + raw_id
        redis.hset(key, mapping={"st": "failed", "q": f"normal:{QUEUE}", "b": b"{}", "fl": 1})
        redis.zadd(config.keys.failures, {raw_id: 1})
    one, two = sorted(entry.operation_id for entry in store.list())
    assert store.get(one).operation_id == one
    assert store.retry(one) is True
    assert store.purge(two) == 1
    assert redis.lrange(config.get_queue_key(QUEUE), 0, -1) == [b"\xff one"]
    assert store.count() == 0


def test_the_list_is_paged_newest_first(config, store, system_errors):
    assert store.list() == []
    for _ in range(3):
        enqueue(config, 50)
        give_up(config)
    everything = store.list(limit=1000)
    assert len(everything) == store.count() == 150
    times = [entry.failed_at for entry in everything]
    assert times == sorted(times, reverse=True)
    ids = [entry.operation_id for entry in everything]
    assert len(set(ids)) == 150
    assert [entry.operation_id for entry in store.list()] == ids[:50]
    assert [entry.operation_id for entry in store.list(limit=120, offset=20)] == ids[20:140]
    assert [entry.operation_id for entry in store.list(limit=7, offset=147)] == ids[147:]
    assert store.list(limit=0) == store.list(offset=500) == []
    assert system_errors.list() == []
    for bad in ({"limit": -1}, {"offset": -1}, {"limit": 1.5}, {"offset": True}):
        with pytest.raises(ConfigurationError, match="0 or more"):
            store.list(**bad)


def test_failures_and_system_errors_are_two_stores(config, store, system_errors):
    (failed,) = enqueue(config, 1)
    give_up(config)
    (rejected,) = enqueue(config, 1)
    give_up(config, system_error=True)
    assert [entry.operation_id for entry in store.list()] == [failed]
    assert [entry.operation_id for entry in system_errors.list()] == [rejected]
    assert store.get(rejected) is system_errors.get(failed) is None
    assert store.retry(rejected) is system_errors.retry(failed) is False
    assert store.purge(rejected) == system_errors.purge(failed) == 0
    assert store.count() == system_errors.count() == 1


def test_retry_puts_back_only_what_was_given_up(config, store):
    (waiting,) = enqueue(config, 1)
    assert store.get(waiting) is None
    assert store.retry(waiting) is False
    assert store.retry("nobody") is False
    assert status(config).queues == {f"normal:{QUEUE}": 1}


@pytest.mark.parametrize("count", [0, 1, PAGE, 2 * PAGE + 50])
def test_retry_all_puts_everything_back(config, store, count):
    ids = enqueue(config, count)
    give_up(config)
    assert store.retry_all() == count
    assert store.count() == 0
    assert sorted(delivery.operation_id for delivery in claim(config)) == sorted(ids)
    assert unaccounted(status(config)) == 0


def test_retry_all_heeds_its_limit(config, store):
    enqueue(config, 2 * PAGE)
    give_up(config)
    assert store.retry_all(limit=0) == 0
    assert store.retry_all(limit=3) == 3
    assert store.retry_all(limit=PAGE + 1) == PAGE + 1
    assert store.count() == PAGE - 4
    assert store.retry_all(limit=10**6) == PAGE - 4
    for bad in (-1, 1.5, True):
        with pytest.raises(ConfigurationError, match="limit"):
            store.retry_all(limit=bad)


def test_retry_all_puts_everything_back_once_though_it_fails_again_at_once(config, store, monkeypatch):
    count = 3 * PAGE + 50
    enqueue(config, count)
    give_up(config)
    requeue = store._requeue

    def requeue_and_fail_again(ids):
        done = requeue(ids)
        give_up(config)
        return done

    monkeypatch.setattr(store, "_requeue", requeue_and_fail_again)
    # A failure in the very millisecond of the call counts as one from before it.
    assert count <= store.retry_all() <= count + PAGE
    assert store.count() == count
    assert unaccounted(status(config)) == 0


def test_retry_all_ends_though_more_fails_than_it_puts_back(config, store, monkeypatch):
    enqueue(config, PAGE)
    give_up(config)
    page = store._page

    def page_and_more_failures(offset, limit):
        rows = page(offset, limit)
        enqueue(config, PAGE)
        give_up(config)
        return rows

    monkeypatch.setattr(store, "_page", page_and_more_failures)
    assert store.retry_all() <= 2 * PAGE


def test_retry_all_passes_over_what_cannot_go_back(config, store):
    """Entries whose retention is over, but which no worker has tidied up yet."""
    enqueue(config, PAGE + 10)
    give_up(config)
    stuck = [entry.operation_id for entry in store.list(limit=PAGE)]
    redis = config._ensure_redis_sync()
    redis.delete(*map(config.keys.operation, stuck))
    assert store.retry_all() == 10
    assert store.count() == PAGE
    assert store.list() == []
    assert store.purge_all() == PAGE


def test_purge_deletes_what_is_named(config, store):
    ids = enqueue(config, 5)
    give_up(config)
    assert store.purge() == store.purge(*[]) == 0
    assert store.count() == 5
    assert store.purge(ids[0], ids[1], "nobody", ids[0]) == 2
    assert sorted(entry.operation_id for entry in store.list()) == sorted(ids[2:])
    assert not config._ensure_redis_sync().exists(config.keys.operation(ids[0]))


def test_purge_deletes_everything_in_bounded_steps(config, store, system_errors):
    enqueue(config, 1)
    give_up(config, system_error=True)
    ids = enqueue(config, 1100)
    give_up(config)
    assert store.purge(*ids[:600]) == 600
    enqueue(config, 600)
    give_up(config)
    assert store.purge_all() == 1100
    assert store.purge_all() == 0
    assert store.count() == 0
    assert system_errors.count() == 1
    redis = config._ensure_redis_sync()
    assert len(list(redis.scan_iter(f"{config.keys.operation_prefix}*", count=1000))) == 1
    assert unaccounted(status(config)) == 0


def test_purge_of_everything_ends_though_more_fails_meanwhile(config, store):
    enqueue(config, 3)
    give_up(config)
    run, calls = config.broker.run, []

    def run_and_fail_more(call):
        reply = run(call)
        calls.append(call.name)
        if call.name == "purge_failures":
            enqueue(config, 2)
            give_up(config)
        return reply

    config.broker.run = run_and_fail_more
    assert store.purge_all() == 3
    assert calls.count("purge_failures") == 1
    assert store.count() == 2


def test_a_failed_callback_is_an_entry_of_its_own(config, store):
    enqueue(config, 1)
    (parent,) = claim(config)
    body = json.loads(parent.body) | {"operation_id": "cb", "kind": "callback", "processor": "notify"}
    callback = Callback("cb", QUEUE, "normal", json.dumps(body).encode())
    done = Completion(parent.operation_id, parent.token, "o", callback)
    assert config.broker.run(config.commands.complete([done], done_ttl=0, again=False)) == [True]
    give_up(config, counter="callbacks_failed")
    (entry,) = store.list()
    assert (entry.operation_id, entry.kind, entry.processor) == ("cb", "callback", "tests:notify")
    assert store.retry_all() == 1
    assert config.get_metrics()["callbacks_requeued"] == 1
    assert unaccounted(status(config)) == 0
