"""The index of the ready queues: exact under every script, put right by claim and reap; and what is forgotten."""

from __future__ import annotations

import pytest

EMPTY = 6e15  # where the places of empty queues begin
YEAR = 365 * 86400 * 10**6


def listed(rig) -> list[str]:
    """The queues that are listed as ready, in their order, first those that need no thread."""
    return [
        name.decode()
        for key in (rig.keys.ready_index, rig.keys.ready_index_sync)
        for name in rig.redis.zrangebyscore(key, "-inf", EMPTY - 1)
    ]


def ids(claimed) -> list[str]:
    return [delivery.operation_id for delivery in claimed.deliveries]


def sweep(rig, **options) -> None:
    """A reaping at which the index is looked at."""
    rig.redis.zrem(rig.keys.reaper, "swept")
    rig.reap(**options)


def make_old(rig, *names: str, key: str | None = None) -> None:
    """So many queues have been empty for years."""
    for name in names:
        rig.redis.zadd(key or rig.keys.ready_index, {name: EMPTY})


def test_ready_queues_are_listed_by_priority_and_by_side(rig):
    rig.enqueue("l", priority="low")
    rig.enqueue("s", priority="high", queue="pdf", kind="s")
    rig.enqueue("n")
    rig.enqueue("h", priority="high")
    assert listed(rig) == ["high:mail", "normal:mail", "low:mail", "high:pdf"]
    rig.claim()
    assert listed(rig) == []
    assert {name.decode() for name in rig.redis.zrange(rig.keys.ready_index_sync, 0, -1)} == {"high:pdf"}


def test_every_script_that_puts_something_into_a_list_lists_it(rig):
    rig.enqueue("later", queue="delayed", delay=60.0)
    rig.enqueue("back", queue="released")
    rig.enqueue("crash", queue="reaped")
    rig.enqueue("fail", queue="requeued")
    rig.enqueue("parent", queue="parent")
    held = {one.operation_id: one for one in rig.claim().deliveries}
    assert listed(rig) == []
    rig.make_due("later")
    rig.promote()
    assert rig.release(held["back"])
    assert rig.fail(held["fail"])
    assert rig.run(rig.commands.requeue_failure("fail"))
    assert rig.fail(held["parent"], callback=rig.callback())
    rig.reap()
    rig.expire_leases(held["crash"])
    assert rig.reap().returned == 1
    queues = ["high:__callbacks__", "normal:delayed", "normal:released", "normal:requeued", "normal:reaped"]
    assert listed(rig) == queues
    for name in queues:
        priority, _, queue = name.partition(":")
        assert rig.run(rig.commands.purge_ready(queue, priority)) == 1
    assert listed(rig) == []


def test_the_queues_of_a_priority_take_turns(rig):
    for queue in ("a", "b", "c"):
        rig.enqueue(*(f"{queue}{number}" for number in range(3)), queue=queue)
    rig.enqueue("low", queue="a", priority="low")
    assert [ids(rig.claim(1)) for _ in range(10)] == [
        [one] for one in ("a0", "b0", "c0", "a1", "b1", "c1", "a2", "b2", "c2", "low")
    ]


def test_who_comes_again_and_again_starves_nobody(rig):
    rig.enqueue("b0", "b1", queue="b")
    taken = []
    for number in range(4):
        rig.enqueue(f"a{number}", queue="a")
        taken += ids(rig.claim(1))
    assert taken == ["b0", "a0", "b1", "a1"]


def test_a_suspect_that_waits_does_not_hold_up_the_others(rig):
    rig.enqueue("suspect", queue="a")
    rig.redis.hset(rig.keys.operation("suspect"), mapping={"al": 5, "cr": 2, "dc": 2})
    rig.enqueue("b", queue="b")
    assert ids(rig.claim(suspect=False)) == []
    assert ids(rig.claim(suspect=False)) == ["b"]


def test_a_queue_that_changes_its_kind_changes_sides(rig):
    rig.enqueue("s", queue="first", kind="s")
    rig.enqueue("u", queue="second", kind="u")
    assert listed(rig) == ["normal:second", "normal:first"]
    rig.run(rig.commands.learn("first", "normal", "a"))  # both by now
    rig.run(rig.commands.learn("second", "normal", "s"))
    assert listed(rig) == ["normal:first", "normal:second"]
    assert (ids(rig.claim(0, 9)), ids(rig.claim(9, 9))) == (["u"], ["s"])


@pytest.mark.parametrize("number", [31, 32, 33, 600])
def test_all_that_is_ready_is_found_among_any_number_of_queues(rig, number):
    """The index is read in steps, the first of 32."""
    for n in range(number):
        rig.redis.rpush(rig.keys.ready(f"stale-{n}", "high"), "x")
        rig.redis.zadd(rig.keys.ready_index, {f"high:stale-{n}": n})
    for n in range(number):
        rig.redis.delete(rig.keys.ready(f"stale-{n}", "high"))
    rig.enqueue("a")
    rig.enqueue("s", queue="pdf", kind="s")
    claimed = rig.claim(1, 1)
    assert (ids(claimed), claimed.more_async, claimed.more_sync) == (["a", "s"], False, False)
    assert listed(rig) == []


def test_only_the_named_queues_are_taken_from(rig):
    for priority in ("high", "low"):
        for queue in ("mine", "other"):
            rig.enqueue(f"{priority}-{queue}", queue=queue, priority=priority)
    only = ["low:mine", *(f"normal:none-{n}" for n in range(600)), "high:mine"]
    claimed = rig.claim(only=only)
    assert (ids(claimed), claimed.more_async) == (["high-mine", "low-mine"], False)
    assert listed(rig) == ["high:other", "low:other"]


@pytest.mark.parametrize("only", [(), ("normal:mail",)])
def test_what_is_not_listed_is_found_when_there_is_nothing_else(rig, only):
    """Written by hand or by a producer of an earlier version, or the index is lost."""
    rig.enqueue("a", "b")
    rig.redis.delete(rig.keys.ready_index)
    assert ids(rig.claim(1, 1, only=only)) == ["a"]
    assert listed(rig) == ["normal:mail"]
    assert ids(rig.claim(1, 1)) == ["b"]


def test_an_index_of_the_wrong_type_is_moved_out_of_the_way(rig):
    rig.redis.set(rig.keys.ready_index, "text")
    rig.enqueue("a")
    assert ids(rig.claim()) == ["a"]
    aside = f"{rig.keys.prefix}broken:ready"
    assert rig.redis.get(aside) == b"text"
    assert 0 < rig.redis.pttl(aside) <= 3_600_000


def test_a_reaping_puts_right_whatever_is_wrong(rig):
    rig.enqueue("a", queue="unlisted")
    rig.enqueue("b", queue="misplaced")
    rig.enqueue("c", queue="ahead")
    rig.enqueue("d", queue="elsewhere", kind="s")
    rig.enqueue("e", queue="stale")
    rig.redis.zrem(rig.keys.ready_index, "normal:unlisted")
    rig.redis.zadd(rig.keys.ready_index, {"normal:misplaced": 5})
    rig.redis.zincrby(rig.keys.ready_index, YEAR, "normal:ahead")
    rig.redis.zrem(rig.keys.ready_index_sync, "normal:elsewhere")
    rig.redis.zadd(rig.keys.ready_index, {"normal:elsewhere": 2e15 + 1})
    rig.redis.hdel(rig.keys.registry, "normal:stale")
    rig.redis.hset(rig.keys.registry, "normal:stale", "a")
    rig.complete(*(one for one in rig.claim(only=["normal:stale"]).deliveries))
    rig.redis.zadd(rig.keys.ready_index, {"normal:stale": 2e15 + 1})
    assert set(rig.index_faults()) == {
        f"normal:{each}" for each in ("unlisted", "misplaced", "ahead", "elsewhere", "stale")
    }
    rig.clear_markers()
    sweep(rig)
    assert rig.index_faults() == {}
    assert rig.marked() == {"async", "sync"}


def test_it_is_looked_at_once_in_an_interval(rig):
    rig.enqueue("a")
    rig.reap(interval=60.0)
    rig.redis.zrem(rig.keys.ready_index, "normal:mail")
    rig.reap(interval=60.0)
    assert listed(rig) == []
    rig.redis.zincrby(rig.keys.reaper, -60_000, "swept")
    rig.reap(interval=60.0)
    assert listed(rig) == ["normal:mail"]


def test_all_queues_of_a_large_registry_have_their_turn(rig):
    rig.redis.hset(rig.keys.registry, mapping={f"normal:q-{n}": "a" for n in range(1500)})
    rig.enqueue("a", queue="q-700")
    rig.redis.delete(rig.keys.ready_index)
    for _ in range(30):
        sweep(rig)
    assert listed(rig) == ["normal:q-700"]
    assert rig.redis.zcard(rig.keys.ready_index) == 1500


def test_a_queue_that_is_empty_and_unused_for_the_retention_is_forgotten(rig):
    rig.enqueue("a")
    rig.enqueue("b", queue="recent")
    rig.complete(*rig.claim().deliveries)
    sweep(rig)
    assert set(rig.status().queues) == {"normal:mail", "normal:recent"}
    make_old(rig, "normal:mail")
    version = int(rig.redis.get(rig.keys.registry_version))
    sweep(rig)
    assert set(rig.status().queues) == {"normal:recent"}
    assert rig.redis.zscore(rig.keys.ready_index, "normal:mail") is None
    assert not [field for field in rig.redis.hkeys(rig.keys.depths) if b"mail" in field]
    assert int(rig.redis.get(rig.keys.registry_version)) == version + 1
    rig.enqueue("a", kind="s")
    assert (rig.status().queues["normal:mail"], ids(rig.claim(0, 1))) == (1, ["a"])


@pytest.mark.parametrize("state", ["ready", "delayed", "leased", "failed"])
def test_a_queue_that_has_something_anywhere_is_not_forgotten(rig, state):
    rig.enqueue("x")
    rig.complete(*rig.claim().deliveries)
    if state == "delayed":
        rig.enqueue("a", delay=60.0)
    else:
        rig.enqueue("a")
        if state != "ready":
            delivery = rig.one()
        if state == "failed":
            rig.fail(delivery)
    make_old(rig, "normal:mail")
    sweep(rig)
    assert set(rig.status().queues) == {"normal:mail"}
    assert rig.index_faults() == {}
    assert rig.redis.zscore(rig.keys.ready_index, "normal:mail") > 1e15


def test_a_reaping_forgets_a_bounded_number(rig):
    names = [f"normal:q-{n}" for n in range(120)]
    rig.redis.hset(rig.keys.registry, mapping=dict.fromkeys(names, "s"))
    make_old(rig, *names, key=rig.keys.ready_index_sync)
    left = []
    for _ in range(3):
        make_old(rig, *(name.decode() for name in rig.redis.hkeys(rig.keys.registry)), key=rig.keys.ready_index_sync)
        sweep(rig, retention=1.0)
        left.append(rig.redis.hlen(rig.keys.registry))
    assert left == [70, 20, 0]


def test_what_becomes_ready_in_a_queue_that_is_not_known_makes_it_known(rig):
    rig.enqueue("a", delay=60.0)
    rig.redis.hdel(rig.keys.registry, "normal:mail")
    rig.make_due("a")
    assert ids(rig.claim()) == ["a"]
    assert rig.redis.hget(rig.keys.registry, "normal:mail") == b"u"
