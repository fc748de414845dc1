"""No script ends half-way: with a key of another type where a container should be, all is as before, or all is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from queue_system.audit_rules import FIXED_NAMES
from queue_system.broker.messages import Call, Completion, NewOperation
from queue_system.broker.scripts import load_scripts
from queue_system.errors import QueueError

READS = {
    "EXISTS", "GET", "HEXISTS", "HGET", "HGETALL", "HKEYS", "HMGET", "HSTRLEN", "LINDEX", "LLEN", "LPOS", "LRANGE",
    "PTTL", "HRANDFIELD", "HSCAN", "ZMSCORE", "TIME", "TYPE", "ZCARD", "ZCOUNT", "ZRANGE", "ZRANGEBYSCORE",
    "ZREVRANGE", "ZREVRANGEBYSCORE",
    "ZSCAN", "ZSCORE",
}  # fmt: skip
CONTAINERS = (*FIXED_NAMES, "normal:mail", "high:__callbacks__")
TOLERATED = ("sent:", "wake", "registry:version", "token", "metrics", "depths", "reaper", "ready", "broken:")
"""Not compared after a refusal: a producer's lane, markers, counters, and what only ever goes forward."""


def enqueue(rig, *operations: NewOperation) -> Call[Any]:
    return rig.commands.enqueue("mail", "normal", "a", operations)


def enqueue_one(rig):
    return enqueue(rig, NewOperation("new", b"body"))


def enqueue_many(rig):
    return enqueue(
        rig,
        NewOperation("now", b"body"),
        NewOperation("with a key", b"body", 0.0, "key", 60.0),
        NewOperation("later", b"body", 60.0),
    )


def claim(rig):
    rig.enqueue("due", delay=60.0)
    rig.make_due("due")
    return rig.commands.claim(async_slots=3, sync_slots=0, lease=10.0, retention=60.0, worker="w", suspect=True)


def claim_garbage(rig):
    rig.redis.lpush(rig.keys.ready("mail", "normal"), "garbage")
    rig.redis.set(rig.keys.operation("garbage"), "no hash")
    return claim(rig)


def complete(rig):
    done = [
        Completion("held", rig.deliveries["held"].token, "o"),
        Completion("second", rig.deliveries["second"].token, "o", rig.callback()),
    ]
    return rig.commands.complete(done, done_ttl=0.0, again=False)


def retry(rig):
    options: dict[str, Any] = {
        "delay": 60.0,
        "exhausted": True,
        "counters": ["retried"],
        "record": b"{}",
        "again": False,
    }
    rig.redis.hset(rig.keys.operation("held"), mapping={"at": "text", "ex": "text"})
    return rig.commands.retry("held", rig.deliveries["held"].token, trace="00-1", **options)


def fail(rig, *, system_error=False):
    return rig.commands.fail(
        "held", rig.deliveries["held"].token, system_error=system_error, attempted=True,
        counters=["system_errors", "rejected"] if system_error else ["failed"], error=b"{}", record=b"{}",
        retention=60.0, callback=rig.callback(), again=False,
    )  # fmt: skip


def release(rig, delay=0.0):
    return rig.commands.release("held", rig.deliveries["held"].token, delay=delay)


def renew(rig):
    return rig.commands.renew([(one.operation_id, one.token) for one in rig.deliveries.values()], 10.0)


def reap(rig, max_crashes=3):
    rig.expire_leases(*rig.deliveries.values())
    rig.redis.set(rig.keys.operation("garbage"), "no hash")
    rig.redis.zadd(rig.keys.leases, {"garbage": 1})
    rig.redis.zadd(rig.keys.failures, {"given up": 2})
    return rig.commands.reap(max_crashes=max_crashes, interval=2.0, lease=10.0, retention=60.0)


SCENARIOS: dict[str, dict[str, Callable[[Any], Call[Any]]]] = {
    "claim": {"claim": claim, "claim, garbage": claim_garbage},
    "complete": {"complete": complete},
    "enqueue": {"enqueue": enqueue_many},
    "enqueue_one": {"enqueue_one": enqueue_one},
    "fail": {"fail": fail, "fail, system error": lambda rig: fail(rig, system_error=True)},
    "heartbeat": {"heartbeat": lambda rig: rig.commands.heartbeat("w", expiry=30.0, fields={"threads": "1"})},
    "learn": {"learn": lambda rig: rig.commands.learn("mail", "normal", "s")},
    "purge": {"purge": lambda rig: rig.commands.purge_ready("mail", "normal")},
    "purge_delayed": {"purge_delayed": lambda rig: rig.commands.purge_delayed("mail", "normal", 0)},
    "purge_failures": {"purge_failures": lambda rig: rig.commands.purge_failures(["given up"])},
    "reap": {"reap": reap, "reap, quarantine": lambda rig: reap(rig, max_crashes=0)},
    "release": {"release": release, "release, later": lambda rig: release(rig, 60.0)},
    "renew": {"renew": renew},
    "requeue_failure": {"requeue_failure": lambda rig: rig.commands.requeue_failure("given up")},
    "retry": {"retry": retry},
    "ring": {"ring": lambda rig: rig.commands.ring("w")},
}
CASES = {case: make for cases in SCENARIOS.values() for case, make in cases.items()}


def writing_scripts() -> set[str]:
    calls = {name: set(re.findall(r"redis\.p?call\('(\w+)'", each.source)) for name, each in load_scripts().items()}
    return {name for name, commands in calls.items() if commands - READS}


def test_every_script_that_writes_is_tried_here():
    assert writing_scripts() == set(SCENARIOS)


@pytest.fixture
def filled(rig):
    """Something in each container, and two operations held."""
    rig.enqueue("given up")
    assert rig.fail(rig.one())
    rig.enqueue("rejected")
    assert rig.fail(rig.one(), system_error=True)
    rig.enqueue("delayed", delay=60.0)
    rig.enqueue("held", "second")
    rig.deliveries = {one.operation_id: one for one in rig.claim().deliveries}
    rig.enqueue("ready", "behind")
    rig.run(rig.commands.heartbeat("w", expiry=30.0, fields={"threads": "1"}))
    rig.reap()
    rig.garbage = True  # what is checked at the end is checked here
    return rig


def contents(rig, but: tuple[str, ...] = TOLERATED) -> dict[str, Any]:
    read = {
        b"string": rig.redis.get,
        b"hash": rig.redis.hgetall,
        b"list": lambda key: rig.redis.lrange(key, 0, -1),
        b"zset": lambda key: rig.redis.zrange(key, 0, -1, withscores=True),
    }
    keys = sorted(rig.redis.scan_iter(match=f"{rig.keys.prefix}*", count=1000))
    found = {key.decode().removeprefix(rig.keys.prefix): read[rig.redis.type(key)](key) for key in keys}
    return {name: value for name, value in found.items() if not name.startswith(but)}


def put_in_the_way(rig, container: str) -> None:
    key = f"{rig.keys.prefix}{container}"
    if rig.redis.exists(key):
        rig.redis.rename(key, "aside:" + key)
    if container in {"token", "registry:version"}:
        rig.redis.rpush(key, "in the way")
    else:
        rig.redis.set(key, "in the way")


def take_away(rig, container: str) -> None:
    """What is in the way; what was there comes back, beside what a script has put there since."""
    key = f"{rig.keys.prefix}{container}"
    aside = "aside:" + key
    if rig.redis.type(key) in {b"string", b"list"} and container != "registry:version":
        rig.redis.delete(key)
    if rig.redis.exists(aside):
        if rig.redis.exists(key) and rig.redis.type(aside) == b"zset":
            rig.redis.zunionstore(key, [key, aside])
            rig.redis.delete(aside)
        else:
            rig.redis.rename(aside, key)


def nothing_is_lost(rig) -> None:
    places = rig._places()
    for key, state, _ in rig._operations():
        operation_id = key.decode().removeprefix(rig.keys.operation_prefix)
        where = {"failed": "failures", "system_error": "system_errors"}.get(state, state)
        assert places.pop(operation_id, []) == [where], f"{operation_id} is {state}"
    assert places.keys() <= {"garbage"}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("case", CASES)
def test_all_or_nothing(filled, case, container):
    rig, call = filled, CASES[case](filled)
    put_in_the_way(rig, container)
    before = contents(rig)
    try:
        rig.run(call)
        refused = False
    except QueueError:
        refused = True
    after = contents(rig)
    take_away(rig, container)
    if refused and "claim" not in call.name:  # a claim may have moved what is due
        assert after == before
    nothing_is_lost(rig)
    if refused:  # and nothing has come of it that would hinder it now
        rig.run(call)
        nothing_is_lost(rig)


@pytest.mark.parametrize("case", CASES)
def test_it_declares_the_key_that_never_exists(filled, case):
    call = CASES[case](filled)
    assert filled.keys.guard in call.keys
    filled.run(call)
    assert not filled.redis.exists(filled.keys.guard)


@pytest.mark.parametrize(
    "container", ["wake", "wake:sync", "ready", "metrics", "depths", "registry:version", "system_errors"]
)
def test_what_holds_no_work_hinders_none(filled, container):
    rig = filled
    put_in_the_way(rig, container)
    rig.enqueue("new", queue="another")
    rig.redis.lpush(rig.keys.ready("mail", "normal"), "garbage")
    rig.redis.set(rig.keys.operation("garbage"), "no hash")
    claimed = rig.claim()
    assert {one.operation_id for one in claimed.deliveries} == {"new", "ready", "behind"}
    assert rig.complete(*claimed.deliveries) == [True, True, True]
    take_away(rig, container)
    nothing_is_lost(rig)


def test_what_was_taken_goes_back_in_its_order(filled):
    rig = filled
    order = rig.ready()
    put_in_the_way(rig, "token")
    with pytest.raises(QueueError, match=r"WRONGTYPE|wrong kind"):
        rig.claim()
    assert rig.ready() == order == ["ready", "behind"]
    take_away(rig, "token")
    rig.redis.set(f"{rig.keys.prefix}token", "text")
    with pytest.raises(QueueError, match="integer"):
        rig.claim()
    assert rig.ready() == order


def test_an_operation_of_another_type_does_not_hold_up_its_batch(filled):
    rig = filled
    held, second = rig.deliveries["held"], rig.deliveries["second"]
    rig.redis.set(rig.keys.operation("held"), "no hash")
    assert rig.complete(held, second) == [False, True]
    assert rig.renew(held) == [("held", held.token)]


@pytest.mark.parametrize("window", [0.0, 1e300])
def test_a_window_that_redis_would_refuse_is_refused_before_anything_is_written(filled, window):
    before = contents(filled)
    with pytest.raises(QueueError, match="deduplication window"):
        filled.enqueue(NewOperation("first", b"body"), NewOperation("new", b"body", 0.0, "key", window))
    assert contents(filled) == before
    assert filled.enqueue("new")[0][1] == "new"
