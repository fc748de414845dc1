"""What people and scrapers ask for: failures, requeuing, purging, status, heartbeats."""

from __future__ import annotations

import pytest

from queue_system.broker.messages import Accepted, NewOperation


def failed(rig, *operation_ids: str, system_error: bool = False) -> None:
    """Failures of which each is a second later than the one before."""
    rig.enqueue(*operation_ids)
    for delivery in rig.claim(400, 400).deliveries:
        assert rig.fail(delivery, system_error=system_error, record=b"record")
    key = rig.keys.system_errors if system_error else rig.keys.failures
    now = rig.now_ms()
    rig.redis.zadd(key, {one: now - 1000 * age for age, one in enumerate(reversed(operation_ids))}, xx=True)


def names(rows) -> list[str]:
    return [row.operation_id for row in rows]


def test_pages_of_failures_newest_first(rig):
    failed(rig, "a", "b", "c", "d")
    assert names(rig.run(rig.commands.failures())) == ["d", "c", "b", "a"]
    assert names(rig.run(rig.commands.failures(limit=2))) == ["d", "c"]
    assert names(rig.run(rig.commands.failures(offset=2, limit=2))) == ["b", "a"]
    assert names(rig.run(rig.commands.failures(offset=9))) == []
    assert rig.run(rig.commands.failures(system_errors=True)) == []


def test_one_failure_by_its_id(rig):
    failed(rig, "a", "b")
    assert names(rig.run(rig.commands.failures(operation_id="a"))) == ["a"]
    assert rig.run(rig.commands.failures(operation_id="unknown")) == []


def test_what_is_no_failure_is_not_shown_as_one(rig):
    rig.held("a")
    assert rig.run(rig.commands.failures(operation_id="a")) == []


def test_a_failure_goes_back_with_all_its_attempts_before_it(rig):
    failed(rig, "a")
    rig.clear_markers()
    assert rig.run(rig.commands.requeue_failure("a")) is True
    assert (rig.members(rig.keys.failures), rig.ready(), rig.marked()) == ([], ["a"], {"async"})
    assert (rig.ttl("a"), rig.metric("requeued")) == (-1, 1)
    delivery = rig.one()
    assert (delivery.attempts, delivery.crashes, delivery.deliveries) == (0, 0, 2)
    assert delivery.first_attempt_time == 0.0
    assert rig.fields("a")["hist"] == "record"
    assert "err" not in rig.fields("a")
    assert rig.complete(delivery) == [True]


def test_a_system_error_goes_back_as_well(rig):
    failed(rig, "a", system_error=True)
    assert rig.run(rig.commands.requeue_failure("a")) is False
    assert rig.run(rig.commands.requeue_failure("a", system_errors=True)) is True
    assert (rig.members(rig.keys.system_errors), rig.ready()) == ([], ["a"])


def test_only_a_failure_goes_back(rig):
    rig.held("a")
    assert rig.run(rig.commands.requeue_failure("a")) is False
    assert rig.run(rig.commands.requeue_failure("unknown")) is False
    assert (rig.fields("a")["st"], rig.metric("requeued")) == ("leased", 0)


def test_purging_a_queue_discards_what_is_ready_in_it(rig):
    rig.enqueue(NewOperation("a", b"{}", 0.0, "k", 600.0), "b")
    rig.enqueue("other", queue="other")
    rig.enqueue("high", priority="high")
    assert rig.run(rig.commands.purge_ready("mail", "normal")) == 2
    assert rig.run(rig.commands.purge_ready("mail", "normal")) == 0
    assert (rig.ready(), rig.ready("other"), rig.ready(priority="high")) == ([], ["other"], ["high"])
    assert (rig.ttl("a"), rig.metric("discarded")) == (-2, 2)
    assert rig.enqueue(NewOperation("c", b"{}", 0.0, "k", 600.0)) == [(Accepted.QUEUED, "c")]


def test_purging_leaves_what_is_not_ready_though_its_id_is_in_the_list(rig):
    delivery = rig.held("a")
    rig.redis.rpush(rig.keys.ready("mail", "normal"), "a")
    assert rig.run(rig.commands.purge_ready("mail", "normal")) == 1
    assert (rig.ready(), rig.metric("discarded")) == ([], 0)
    assert rig.complete(delivery) == [True]


def test_purging_is_bounded(rig):
    rig.enqueue(*(f"{number:03}" for number in range(600)))
    purge = rig.commands.purge_ready("mail", "normal")
    assert [rig.run(purge) for _ in range(3)] == [500, 100, 0]


def test_purging_callbacks_counts_them_apart(rig):
    rig.fail(rig.held("a"), callback=rig.callback())
    assert rig.run(rig.commands.purge_ready("__callbacks__", "high")) == 1
    assert (rig.metric("discarded"), rig.metric("callbacks_discarded")) == (0, 1)


def test_purging_what_is_delayed_takes_that_queue_only(rig):
    many = [f"{number:04}" for number in range(700)]
    rig.enqueue(*many, delay=60.0)
    rig.enqueue(NewOperation("keyed", b"{}", 60.0, "k", 600.0))
    rig.enqueue("other", queue="other", delay=60.0)
    rig.enqueue("low", priority="low", delay=60.0)
    total, cursor = 0, 0
    for _ in range(100):
        cursor, taken = rig.run(rig.commands.purge_delayed("mail", "normal", cursor))
        total += taken
        if cursor == 0:
            break
    assert (total, cursor, rig.metric("discarded")) == (701, 0, 701)
    assert sorted(rig.members(rig.keys.delayed)) == ["low", "other"]
    assert (rig.ttl("0000"), rig.redis.exists(rig.keys.dedup("k"))) == (-2, 0)


@pytest.mark.parametrize("system_error", [False, True])
def test_purging_failures(rig, system_error):
    failed(rig, "a", "b", "c", system_error=system_error)

    def purge(*ids):
        return rig.run(rig.commands.purge_failures(ids, system_errors=system_error))

    assert purge("b", "unknown", "b") == 1
    assert names(rig.run(rig.commands.failures(system_errors=system_error))) == ["c", "a"]
    assert purge() == 0
    assert names(rig.run(rig.commands.failures(system_errors=system_error))) == ["c", "a"], "none named, none deleted"
    assert rig.run(rig.commands.purge_oldest_failures(system_errors=system_error)) == 2
    assert rig.run(rig.commands.purge_oldest_failures(system_errors=system_error)) == 0
    assert {rig.ttl(one) for one in "abc"} == {-2}


def test_purging_failures_leaves_what_is_no_failure(rig):
    rig.held("a")
    assert rig.run(rig.commands.purge_failures(["a"])) == 0
    assert rig.fields("a")["st"] == "leased"


def test_status_has_all_counts(rig):
    rig.enqueue("r1", "r2", "r3", "gone", "odd", "l1", "l2")
    rig.enqueue("s", queue="pdf", priority="low", kind="s")
    rig.enqueue("d1", "d2", "d3", queue="pdf", priority="low", kind="s", delay=60.0)
    deliveries = {one.operation_id: one for one in rig.claim(7, 0).deliveries}
    assert rig.fail(deliveries["gone"])
    assert rig.fail(deliveries["odd"], system_error=True)
    for one in ("r3", "r2", "r1"):
        assert rig.release(deliveries[one])
    status = rig.status()
    assert status.queues == {"normal:mail": 3, "low:pdf": 1}
    assert (status.delayed, status.leased, status.failures, status.system_errors) == (3, 2, 1, 1)
    assert status.metrics == {"enqueued": "11", "failed": "1", "system_errors": "1", "rejected": "1"}
    assert status.workers == []


def test_status_of_an_empty_back_end(rig):
    status = rig.status()
    assert (status.queues, status.metrics, status.workers) == ({}, {}, [])
    assert (status.delayed, status.leased, status.failures, status.system_errors) == (0, 0, 0, 0)
    assert status.now > 1_700_000_000


def test_workers_live_until_they_leave_or_fall_silent(rig):
    def beat(worker: str, expiry: float = 30.0, threads: str = "4", utilization: str = "0.2500") -> float:
        fields = {"threads": threads, "utilization": utilization} if expiry else {}
        return rig.run(rig.commands.heartbeat(worker, expiry=expiry, fields=fields))

    before = rig.status().now
    assert before <= beat("one") <= rig.status().now
    beat("two", threads="8", utilization="1.0000")
    assert sorted(rig.status().workers) == [("one", 4, 0.25), ("two", 8, 1.0)]
    assert 25_000 < rig.redis.pttl(f"{rig.keys.heartbeat_prefix}one") <= 30_000
    beat("one", utilization="0.5000")
    assert sorted(rig.status().workers) == [("one", 4, 0.5), ("two", 8, 1.0)]
    beat("one", expiry=0.0)
    assert rig.status().workers == [("two", 8, 1.0)]
    assert rig.redis.exists(f"{rig.keys.heartbeat_prefix}one") == 0
    rig.redis.zincrby(rig.keys.workers, -31_000, "two")
    assert rig.status().workers == []
    assert rig.run(rig.commands.status(alive_within=60.0)).workers == [("two", 8, 1.0)]
