"""Deduplication: one operation for a key within its window, and the answer says which one holds it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from scaffold import add, redis_of

from queue_system import QueueManager, QueueRetryConfig
from queue_system.failures import FailureStore
from support import running, until, until_metrics


async def nothing(entity):
    return None


async def fails(entity):
    raise ValueError("no")


def dedup_ttl(config, key):
    """Milliseconds until the key is free; -2 when it is."""
    return redis_of(config).pttl(config.keys.dedup(key))


def duplicate(result, holder):
    return (result["status"], result["reason"], result["duplicate_of"]) == ("duplicate", "deduplication_key", holder)


def test_the_second_is_told_who_holds_the_key(config, queue):
    add(config, nothing)
    first = queue.enqueue({"n": 1}, nothing, deduplication_key="order-7")
    second = queue.enqueue({"n": 2}, nothing, deduplication_key="order-7", priority="high")
    other = queue.enqueue({"n": 3}, nothing, deduplication_key="order-8")
    assert (first["status"], other["status"]) == ("queued", "queued")
    assert duplicate(second, first["operation_id"])
    assert "duplicate_of" not in first
    status = queue.get_queue_status()
    assert (status["total_items"], status["metrics"]["enqueued"], status["metrics"]["deduplicated"]) == (2, 2, 1)


def test_an_id_that_is_in_the_queue_is_not_accepted_again(config, queue):
    add(config, nothing)
    assert queue.enqueue({}, nothing, operation_id="mine")["status"] == "queued"
    again = queue.enqueue({}, nothing, operation_id="mine")
    assert (again["status"], again["reason"], again["duplicate_of"]) == ("duplicate", "operation_id", "mine")
    assert queue.get_queue_status()["total_items"] == 1


def test_the_entity_itself_can_be_the_key(config, queue):
    add(config, nothing)
    first = queue.enqueue({"a": 1, "b": [1, {"c": 2}]}, nothing, deduplicate=True)
    same = queue.enqueue({"b": [1, {"c": 2}], "a": 1}, nothing, deduplicate=True)  # whatever the order of keys
    different = queue.enqueue({"a": 1, "b": [1, {"c": 3}]}, nothing, deduplicate=True)
    not_asked = queue.enqueue({"a": 1, "b": [1, {"c": 2}]}, nothing)
    assert duplicate(same, first["operation_id"])
    assert (different["status"], not_asked["status"]) == ("queued", "queued")


def test_the_same_entity_is_other_work_for_another_processor_or_queue(config, queue):
    for function in (nothing, fails):
        add(config, function)
        assert queue.enqueue({"order": 7}, function, deduplicate=True)["status"] == "queued"
        assert queue.enqueue({"order": 7}, function, "other", deduplicate=True)["status"] == "queued"
    told = queue.enqueue({"order": 7}, nothing, priority="high", deduplicate=True)
    assert (told["status"], told["processor"], told["queue"], told["priority"]) == (
        "duplicate", "nothing", "nothing", "normal"
    )  # fmt: skip


def test_a_key_counts_for_all_processors_and_says_whose_it_is(config, queue):
    first = queue.enqueue({}, nothing, "mail", deduplication_key="k")
    told = queue.enqueue({}, fails, "reports", deduplication_key="k")
    assert told == {
        "operation_id": first["operation_id"],
        "status": "duplicate",
        "reason": "deduplication_key",
        "duplicate_of": first["operation_id"],
        "queue": "mail",
        "priority": "normal",
        "processor": "nothing",
        "is_async": None,
    }


async def test_a_failure_that_is_put_back_has_its_key_again(config, queue):
    add(config, fails)
    once = QueueRetryConfig(max_attempts=1)
    first = queue.enqueue({}, fails, deduplication_key="k", retry_config=once)
    async with running(config):
        await until_metrics(config, failed=1)
    assert FailureStore(config).retry(first["operation_id"])
    assert duplicate(queue.enqueue({}, fails, deduplication_key="k"), first["operation_id"])


def test_a_batch_tells_of_each_duplicate(config, queue):
    add(config, nothing)
    (earlier,) = queue.enqueue_batch([{"n": 1}], nothing, deduplicate=True)
    results = queue.enqueue_batch([{"n": 0}, {"n": 1}, {"n": 2}, {"n": 0}], nothing, deduplicate=True)
    assert [result["status"] for result in results] == ["queued", "duplicate", "queued", "duplicate"]
    assert results[1]["duplicate_of"] == earlier["operation_id"]
    assert results[3]["duplicate_of"] == results[0]["operation_id"]
    assert queue.get_queue_status()["metrics"]["enqueued"] == 3


async def test_the_key_is_held_after_success_until_the_window_ends(config, queue):
    add(config, nothing)
    first = queue.enqueue({}, nothing, deduplication_key="k", deduplication_window=1.5)
    async with running(config):
        await until_metrics(config, processed=1)
        assert 0 < dedup_ttl(config, "k") <= 1500
        assert duplicate(queue.enqueue({}, nothing, deduplication_key="k"), first["operation_id"])
        await until(lambda: dedup_ttl(config, "k") == -2, 5, "the end of the window")
        assert queue.enqueue({}, nothing, deduplication_key="k")["status"] == "queued"
        await until_metrics(config, processed=2)


async def test_the_key_is_free_after_a_failure(config, queue):
    add(config, fails)
    once = QueueRetryConfig(max_attempts=1)
    queue.enqueue({}, fails, deduplication_key="k", retry_config=once)
    async with running(config):
        await until_metrics(config, failed=1)
        assert queue.enqueue({}, fails, deduplication_key="k", retry_config=once)["status"] == "queued"
        await until_metrics(config, failed=2)


async def test_the_key_is_held_while_the_operation_is_retried(config, queue):
    add(config, fails)
    retry = QueueRetryConfig.fixed(60, max_attempts=2)
    first = queue.enqueue({}, fails, deduplication_key="k", retry_config=retry)
    async with running(config):
        await until_metrics(config, retried=1)
        assert duplicate(queue.enqueue({}, fails, deduplication_key="k"), first["operation_id"])


def test_a_purge_frees_the_key(config, queue):
    add(config, nothing)
    queue.enqueue({}, nothing, deduplication_key="ready")
    queue.enqueue({}, nothing, deduplication_key="delayed", delay=60)
    assert queue.purge_queue("nothing") == 2
    assert queue.enqueue({}, nothing, deduplication_key="ready")["status"] == "queued"
    assert queue.enqueue({}, nothing, deduplication_key="delayed")["status"] == "queued"


def test_the_window_starts_when_the_operation_is_due(config, queue):
    add(config, nothing)
    queue.enqueue({}, nothing, deduplication_key="k", delay=100, deduplication_window=50)
    assert 100_000 < dedup_ttl(config, "k") <= 150_000


def test_the_default_window_is_an_hour_and_the_configurations_wins(queue, config, make_config):
    add(config, nothing)
    queue.enqueue({}, nothing, deduplication_key="hour")
    assert 3_590_000 < dedup_ttl(config, "hour") <= 3_600_000
    QueueManager(make_config(deduplication_window=5.0)).enqueue({}, nothing, deduplication_key="short")
    assert 0 < dedup_ttl(config, "short") <= 5000


async def test_of_200_producers_that_race_on_a_key_one_is_accepted_and_the_others_told_whose(config):
    add(config, nothing)
    queue = QueueManager(config)
    queue.get_queue_status()  # connected before the race

    def produce(number: int):
        return queue.enqueue({"n": number}, nothing, deduplication_key="contested")

    with ThreadPoolExecutor(50) as pool:
        results = await asyncio.to_thread(lambda: list(pool.map(produce, range(200))))
    accepted = [result for result in results if result["status"] == "queued"]
    assert len(accepted) == 1
    holder = accepted[0]["operation_id"]
    assert all(duplicate(result, holder) for result in results if result is not accepted[0])
    assert queue.get_queue_status()["metrics"]["deduplicated"] == 199
