"""Redis's clock was ahead for a while and is right again, or refused its service: what is kept is put right."""

from __future__ import annotations

import pytest

HOUR = 3_600_000


def ahead(rig, key: str, *members: str, by: int = HOUR) -> None:
    """As if they had been written while the clock was ahead."""
    for member in members:
        rig.redis.zincrby(key, by, member)


def between(score: int, low: int, rig, more: int) -> bool:
    return low + more <= score <= rig.now_ms() + more


def test_a_lease_that_is_longer_than_any_comes_down_and_is_taken_over(rig):
    rig.held("a")
    rig.reap(lease=10.0)
    ahead(rig, rig.keys.leases, "a")
    now = rig.now_ms()
    rig.reap(lease=10.0)
    assert between(rig.score(rig.keys.leases, "a"), now, rig, 10_000)
    assert rig.metric("clock_corrected") == 1


def test_a_lease_of_a_worker_with_longer_ones_is_left_alone(rig):
    delivery = rig.held(
        "a",
    )
    rig.reap(lease=100.0)
    assert rig.renew(delivery, lease=100.0) == []
    until = rig.score(rig.keys.leases, "a")
    rig.reap(lease=10.0)
    assert rig.score(rig.keys.leases, "a") == until
    assert rig.metric("clock_corrected") == 0


def test_a_grace_that_is_longer_than_a_lease_comes_down(rig):
    rig.reap()
    rig.redis.zadd(rig.keys.reaper, {"grace": rig.now_ms() + HOUR})
    now = rig.now_ms()
    assert rig.reap(lease=10.0).in_grace
    assert between(rig.score(rig.keys.reaper, "grace"), now, rig, 10_000)


def enqueued(rig) -> None:
    rig.enqueue("a", delay=10.0)
    rig.redis.hincrby(rig.keys.operation("a"), "ts", HOUR)


def retried(rig) -> None:
    assert rig.retry(rig.held("a"), delay=10.0)


def released(rig) -> None:
    assert rig.release(rig.held("a"), 10.0)


@pytest.mark.parametrize("put", [enqueued, retried, released])
def test_what_is_due_too_late_is_due_after_the_delay_that_was_asked_for(rig, put):
    rig.reap()
    put(rig)
    rig.redis.hincrby(rig.keys.operation("a"), "rd", HOUR)
    ahead(rig, rig.keys.delayed, "a")
    rig.enqueue("right", delay=7200.0)
    right = rig.score(rig.keys.delayed, "right")
    ahead(rig, rig.keys.reaper, "last")
    rig.clear_markers()
    now = rig.now_ms()
    rig.reap()
    assert between(rig.score(rig.keys.delayed, "a"), now, rig, 10_000)
    assert rig.score(rig.keys.delayed, "right") == right
    assert (rig.metric("clock_corrected"), rig.marked()) == (1, {"async", "sync"})
    rig.reap()
    assert rig.metric("clock_corrected") == 1


def test_many_that_are_delayed_are_looked_at_in_steps(rig):
    rig.reap()
    ids = [f"{number:04}" for number in range(1_200)]
    rig.enqueue(*ids[:600], delay=10.0)
    rig.enqueue(*ids[600:], delay=10.0)
    with rig.redis.pipeline(transaction=False) as pipeline:
        for one in ids:
            pipeline.zincrby(rig.keys.delayed, HOUR, one)
        pipeline.execute()
    ahead(rig, rig.keys.reaper, "last")
    for _ in range(9):
        rig.reap()
    assert rig.metric("clock_corrected") == 1_200


def test_a_worker_and_a_failure_of_the_future_come_down(rig):
    assert rig.fail(rig.held("a"))
    rig.redis.zadd(rig.keys.workers, {"gone": rig.now_ms() + HOUR})
    ahead(rig, rig.keys.failures, "a")
    now = rig.now_ms()
    rig.reap()
    assert between(rig.score(rig.keys.failures, "a"), now, rig, 0)
    assert between(rig.score(rig.keys.workers, "gone"), now, rig, 0)


def test_a_good_moment_among_bad_ones_takes_nothing_from_its_owner(rig):
    delivery = rig.held("a")
    rig.reap(interval=2.0, lease=10.0)
    rig.expire_leases(delivery)
    for good_for in (0.1, 0.2, 9.999):
        reaped = rig.reap(interval=2.0, lease=10.0, good_for=good_for)
        assert (reaped.returned, reaped.in_grace) == (0, True)
    assert rig.renew(delivery) == []
    rig.expire_leases(delivery)
    assert rig.reap(interval=2.0, lease=10.0, good_for=10.0).returned == 1
