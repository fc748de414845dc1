"""Claim: order, slots, leases, promotion, the registry, and what is in the lists but is no operation."""

from __future__ import annotations

import pytest

from queue_system.broker.messages import MAX_CLAIM


def ids(claimed) -> list[str]:
    return [delivery.operation_id for delivery in claimed.deliveries]


def push_by_hand(rig, *operation_ids: str | bytes) -> None:
    """Ids in a known ready list that enqueue has not put there."""
    rig.garbage = True
    rig.enqueue("known")
    rig.redis.rpush(rig.keys.ready("mail", "normal"), *operation_ids)


def test_strict_priority_and_in_order_within_it(rig):
    rig.enqueue("l1", priority="low")
    rig.enqueue("n1", "n2", priority="normal")
    rig.enqueue("h1", priority="high")
    rig.enqueue("h2", priority="high")
    assert ids(rig.claim(3)) == ["h1", "h2", "n1"]
    rig.enqueue("h3", priority="high")
    assert ids(rig.claim(3)) == ["h3", "n2", "l1"]
    assert ids(rig.claim(3)) == []


def test_a_delivery_says_all_there_is_to_know(rig):
    rig.enqueue("a", priority="high")
    claimed = rig.claim(lease=7.5)
    (delivery,) = claimed.deliveries
    fields = rig.fields("a")
    assert delivery.ready_key == rig.keys.ready("mail", "high")
    assert delivery.body == b"body of a"
    assert (delivery.deliveries, delivery.attempts, delivery.crashes, delivery.exhaustions) == (1, 0, 0, 0)
    assert delivery.claimed_at == claimed.now
    assert delivery.first_attempt_time == 0.0  # its processor was never called
    assert delivery.ready_at * 1000 == pytest.approx(int(fields["rd"]))
    assert (fields["st"], fields["dc"], fields["tk"]) == ("leased", "1", str(delivery.token))
    assert rig.score(rig.keys.leases, "a") == round(claimed.now * 1000) + 7500


def test_each_delivery_is_counted_and_has_a_token_above_the_last(rig):
    rig.enqueue("a")
    deliveries = []
    for _ in range(3):
        deliveries.append(rig.one())
        assert rig.release(deliveries[-1])
    first, second, third = deliveries
    assert first.token < second.token < third.token
    assert [one.deliveries for one in deliveries] == [1, 2, 3]
    assert {one.first_attempt_time for one in deliveries} == {0.0}


def test_async_and_sync_slots_are_apart(rig):
    rig.enqueue("a1", "a2", "a3", queue="async", kind="a")
    rig.enqueue("s1", "s2", "s3", queue="sync", kind="s")
    claimed = rig.claim(1, 2)
    assert ids(claimed) == ["a1", "s1", "s2"]
    assert (claimed.more_async, claimed.more_sync) == (True, True)
    claimed = rig.claim(0, 5)
    assert ids(claimed) == ["s3"]
    assert (claimed.more_async, claimed.more_sync) == (True, False)
    claimed = rig.claim(5, 0)
    assert ids(claimed) == ["a2", "a3"]
    assert (claimed.more_async, claimed.more_sync) == (False, False)


def test_a_mixed_queue_needs_a_slot_of_both_sides(rig):
    rig.enqueue("m1", "m2", "m3", priority="high", queue="mixed", kind="m")
    rig.enqueue("a1", queue="async", kind="a")
    rig.enqueue("s1", queue="sync", kind="s")
    assert ids(rig.claim(3, 0)) == ["a1"]
    claimed = rig.claim(5, 2)
    assert ids(claimed) == ["m1", "m2"]
    assert (claimed.more_async, claimed.more_sync) == (True, True)
    assert ids(rig.claim(1, 2)) == ["m3", "s1"]


def test_a_full_side_does_not_hold_up_the_other(rig):
    rig.enqueue("s1", priority="high", kind="s", queue="sync")
    rig.enqueue("a1", priority="low", queue="async")
    assert ids(rig.claim(1, 0)) == ["a1"]


def test_no_slots_take_nothing_and_tell_what_waits(rig):
    rig.enqueue("a")
    claimed = rig.claim(0, 0)
    assert (claimed.deliveries, claimed.more_async, claimed.more_sync) == ([], True, False)
    assert rig.ready() == ["a"]


def test_a_claim_is_bounded(rig):
    rig.enqueue(*(f"{number:03}" for number in range(500)))
    claimed = rig.claim(1000, 1000)
    assert len(claimed.deliveries) == MAX_CLAIM
    assert claimed.more_async


def test_markers_are_set_for_what_is_left(rig):
    rig.enqueue("a1", "a2", queue="async")
    rig.enqueue("s1", "s2", queue="sync", kind="s")
    for async_slots, sync_slots, left in [(1, 0, {"async", "sync"}), (1, 1, {"sync"}), (1, 1, set())]:
        rig.clear_markers()
        rig.claim(async_slots, sync_slots)
        assert rig.marked() == left


def test_the_kinds_of_the_queues_are_told_with_what_is_taken(rig):
    rig.enqueue("a", queue="mail", priority="high", kind="a")
    rig.enqueue("b", queue="pdf", priority="low", kind="s")
    rig.enqueue("c", queue="both", kind="m")
    rig.enqueue("d", queue="later", kind="u")
    kinds = {"high:mail": "a", "low:pdf": "s", "normal:both": "m", "normal:later": "u"}
    assert rig.claim().kinds == {f"{rig.keys.prefix}{name}": kind for name, kind in kinds.items()}
    assert rig.claim().kinds == {}


def test_a_queue_that_gets_both_kinds_is_mixed_from_then_on(rig):
    for number, (kind, expected) in enumerate([("a", "a"), ("s", "m"), ("a", "m"), ("m", "m")]):
        rig.enqueue(f"op-{number}", kind=kind)
        assert set(rig.claim().kinds.values()) == {expected}
    assert rig.redis.get(rig.keys.registry_version) == b"2"  # what workers of an earlier version look at


def test_an_empty_back_end_has_nothing(rig):
    claimed = rig.claim()
    assert (claimed.deliveries, claimed.kinds, claimed.next_due) == ([], {}, None)


def test_what_is_not_due_stays_and_says_when_it_will_be(rig):
    rig.enqueue("later", delay=600.0)
    rig.enqueue("sooner", delay=60.0)
    claimed = rig.claim()
    assert claimed.deliveries == []
    assert 55.0 < claimed.next_due <= 60.0


def test_what_is_due_is_promoted_in_the_order_of_its_time(rig):
    rig.enqueue("b", "a", delay=60.0)
    rig.enqueue("c", kind="s", queue="sync", delay=60.0)
    rig.enqueue("ready")
    rig.clear_markers()
    rig.redis.zadd(rig.keys.delayed, {"b": 1, "a": 2, "c": 3})
    rig.promote()
    assert (rig.ready(), rig.ready("sync")) == (["ready", "b", "a"], ["c"])
    assert {rig.fields(one)["st"] for one in "abc"} == {"ready"}
    assert rig.marked() == {"async", "sync"}
    due = int(rig.fields("a")["rd"])
    claimed = rig.claim()
    assert claimed.next_due is None
    deliveries = {one.operation_id: one for one in claimed.deliveries}
    assert set(deliveries) == {"ready", "a", "b", "c"}
    assert deliveries["a"].ready_at * 1000 == pytest.approx(due)


def test_promotion_is_bounded(rig):
    names = [f"{number:03}" for number in range(130)]
    rig.enqueue(*names, delay=60.0)
    rig.make_due(*names)
    rig.promote()
    assert (len(rig.ready()), rig.status().delayed) == (100, 30)
    claimed = rig.claim(400, 400)
    assert (len(claimed.deliveries), claimed.next_due) == (130, None)


def test_an_id_without_a_body_goes_to_the_system_errors(rig):
    push_by_hand(rig, "ghost")
    rig.enqueue("after")
    assert ids(rig.claim()) == ["known", "after"]
    assert rig.members(rig.keys.system_errors) == ["ghost"]
    fields = rig.fields("ghost")
    assert (fields["st"], fields["err"]) == ("system_error", '{"reason":"body_missing"}')
    assert 0 < rig.ttl("ghost") <= 3_600_000
    assert rig.metric("system_errors") == 1


def test_a_delayed_id_without_a_body_goes_to_the_system_errors(rig):
    rig.garbage = True
    rig.redis.zadd(rig.keys.delayed, {"ghost": 1})
    assert ids(rig.claim()) == []
    assert (rig.members(rig.keys.delayed), rig.members(rig.keys.system_errors)) == ([], ["ghost"])
    assert rig.fields("ghost")["st"] == "system_error"


def test_a_body_of_the_wrong_type_is_kept_aside(rig):
    rig.redis.set(rig.keys.operation("odd"), "a string")
    push_by_hand(rig, "odd")
    rig.enqueue("after")
    assert ids(rig.claim()) == ["known", "after"]
    assert rig.redis.get(f"{rig.keys.prefix}broken:odd") == b"a string"
    assert rig.members(rig.keys.system_errors) == ["odd"]
    assert rig.fields("odd")["err"] == '{"reason":"wrong_type"}'
    assert rig.ttl("odd") > 0


def test_a_hash_without_a_state_goes_to_the_system_errors_with_its_body(rig):
    rig.redis.hset(rig.keys.operation("odd"), "b", "raw")
    push_by_hand(rig, "odd")
    assert ids(rig.claim()) == ["known"]
    assert (rig.fields("odd")["err"], rig.fields("odd")["b"]) == ('{"reason":"not_an_operation"}', "raw")


def test_an_id_twice_in_a_list_is_delivered_once(rig):
    rig.enqueue("a", "b")
    rig.redis.rpush(rig.keys.ready("mail", "normal"), "a")
    assert ids(rig.claim()) == ["a", "b"]
    assert rig.metric("skipped") == 1
    assert rig.redis.zcard(rig.keys.leases) == 2


def test_a_skipped_id_does_not_use_up_a_slot(rig):
    rig.enqueue("a")
    rig.redis.rpush(rig.keys.ready("mail", "normal"), "a", "a")
    rig.enqueue("b")
    claimed = rig.claim(2, 2)
    assert ids(claimed) == ["a", "b"]
    assert not claimed.more_async


def test_an_operation_written_by_hand_is_accepted_when_it_is_claimed(rig):
    rig.enqueue("known")
    rig.redis.hset(rig.keys.operation("own"), mapping={"st": "ready", "q": "normal:mail", "b": "{}"})
    rig.redis.rpush(rig.keys.ready("mail", "normal"), "own")
    claimed = rig.claim()
    assert ids(claimed) == ["known", "own"]
    assert rig.metric("enqueued") == 2
    assert rig.fields("own")["ts"] == rig.fields("own")["rd"] == str(round(claimed.now * 1000))
    assert rig.complete(*claimed.deliveries) == [True, True]


def test_ids_of_any_bytes_go_there_and_back(rig):
    raw = b"\xff\xfe\x00 id"
    rig.redis.hset(rig.keys.operation_prefix.encode() + raw, mapping={"st": "ready", "q": "normal:mail", "b": "{}"})
    rig.enqueue("known")
    rig.redis.rpush(rig.keys.ready("mail", "normal"), raw)
    known, odd = rig.claim().deliveries
    assert odd.operation_id.encode("utf-8", "surrogateescape") == raw
    assert rig.renew(odd) == []
    assert rig.complete(odd, known) == [True, True]
    assert rig.redis.exists(rig.keys.operation_prefix.encode() + raw) == 0
