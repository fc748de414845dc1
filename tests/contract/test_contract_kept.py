"""How much is kept of what was given up: a number of entries, and bytes; the oldest go first."""

from __future__ import annotations

import pytest

from queue_system.broker.commands import Commands

ERROR = b'{"reason":"error"}'


def limit(rig, *, most: int = 100, most_bytes: int = 10**9, retention: float = 0.0) -> None:
    rig.commands = Commands(rig.keys, max_failures=most, max_failure_bytes=most_bytes, retention=retention)


def give_up(rig, *names: str, system_error: bool = False) -> None:
    for name in names:
        assert rig.fail(rig.held(name), error=ERROR, system_error=system_error)


def size_of(name: str) -> int:
    return len(f"body of {name}") + len(ERROR)


def kept_bytes(rig) -> int:
    sizes = sum(int(size) for size in rig.redis.hvals(rig.keys.sizes))
    assert int(rig.redis.hget(rig.keys.depths, "bytes") or 0) == sizes
    return sizes


@pytest.mark.parametrize("system_error", [False, True])
def test_the_oldest_go_when_there_are_too_many(rig, system_error):
    limit(rig, most=2)
    give_up(rig, "a", "b", "c", "d", system_error=system_error)
    entries = rig.keys.system_errors if system_error else rig.keys.failures
    assert rig.members(entries) == ["c", "d"]
    assert (rig.fields("a"), rig.metric("failures_evicted")) == ({}, 2)
    assert kept_bytes(rig) == size_of("c") + size_of("d")
    assert int(rig.redis.hget(rig.keys.depths, "f:normal:mail") or 0) == (0 if system_error else 2)


def test_the_oldest_go_when_they_are_too_large_and_the_newest_stays(rig):
    limit(rig, most_bytes=2 * size_of("a"))
    give_up(rig, "a", "b")
    assert (rig.members(rig.keys.failures), rig.metric("failures_evicted")) == (["a", "b"], 0)
    give_up(rig, "c")
    assert (rig.members(rig.keys.failures), rig.metric("failures_evicted")) == (["b", "c"], 1)
    limit(rig, most_bytes=1)
    give_up(rig, "d")
    assert (rig.members(rig.keys.failures), rig.metric("failures_evicted")) == (["d"], 3)


def test_one_that_is_given_up_takes_few_with_it_and_a_reaping_the_rest(rig):
    give_up(rig, *(f"{number:03}" for number in range(120)))
    limit(rig, most=5)
    give_up(rig, "new")
    assert rig.redis.zcard(rig.keys.failures) == 118
    for left in (18, 5):
        rig.reap()
        assert rig.redis.zcard(rig.keys.failures) == left
    assert rig.members(rig.keys.failures)[-1] == "new"
    assert rig.metric("failures_evicted") == 116


def test_whatever_takes_an_entry_out_gives_its_bytes_back(rig):
    give_up(rig, "a", "b", "c")
    assert kept_bytes(rig) == 3 * size_of("a")
    assert rig.run(rig.commands.requeue_failure("a"))
    assert kept_bytes(rig) == 2 * size_of("a")
    assert rig.run(rig.commands.purge_failures(["b"])) == 1
    assert kept_bytes(rig) == size_of("a")
    rig.redis.zadd(rig.keys.failures, {"c": 1})
    rig.reap()
    assert (kept_bytes(rig), rig.metric("failures_evicted")) == (0, 0)


def test_the_status_counts_what_is_within_the_retention(rig):
    give_up(rig, "a", "b")
    give_up(rig, "s", system_error=True)
    rig.redis.zadd(rig.keys.failures, {"a": rig.now_ms() - 60_001})
    limit(rig, retention=60.0)
    status = rig.status()
    assert (status.failures, status.system_errors) == (1, 1)
    limit(rig)
    assert rig.status().failures == 2
