"""Reaping: expired leases, quarantine, the grace after an outage, and what is past its retention."""

from __future__ import annotations


def test_nothing_is_taken_back_before_its_lease_is_over(rig):
    delivery = rig.held("a")
    for _ in range(2):
        reaped = rig.reap()
        assert (reaped.returned, reaped.in_grace, reaped.quarantined) == (0, False, [])
    assert rig.fields("a")["st"] == "leased"
    assert rig.complete(delivery) == [True]


def test_what_has_expired_goes_back_to_the_head_with_a_crash_counted(rig):
    rig.enqueue("a", "b", kind="s")
    delivery = rig.one()
    rig.reap()
    rig.expire_leases(delivery)
    rig.clear_markers()
    assert rig.reap().returned == 1
    assert rig.ready() == ["a", "b"]
    assert rig.marked() == {"sync"}
    assert (rig.fields("a")["st"], rig.status().leased, rig.metric("reclaimed")) == ("ready", 0, 1)
    again = rig.one()
    assert (again.operation_id, again.crashes, again.attempts, again.deliveries) == ("a", 1, 0, 2)
    assert rig.complete(delivery) == [False]
    assert rig.complete(again) == [True]


def test_only_what_has_expired_is_taken_back(rig):
    rig.enqueue("a", "b", "c")
    a, b, c = rig.claim().deliveries
    rig.reap()
    rig.expire_leases(a, c)
    assert rig.reap().returned == 2
    assert sorted(rig.ready()) == ["a", "c"]
    assert rig.members(rig.keys.leases) == ["b"]
    assert rig.renew(b) == []


def test_after_too_many_crashes_it_is_quarantined_with_the_caller(rig):
    rig.enqueue("a")
    rig.reap()
    for crashes in (1, 2):
        victim = rig.one()
        rig.expire_leases(victim)
        assert rig.reap(max_crashes=2).returned == 1
        assert rig.fields("a")["cr"] == str(crashes)
    victim = rig.one()
    rig.expire_leases(victim)
    before = rig.now_ms()
    reaped = rig.reap(max_crashes=2, lease=5.0)
    assert reaped.returned == 0
    (suspect,) = reaped.quarantined
    assert (suspect.operation_id, suspect.deliveries, suspect.crashes) == ("a", 4, 3)
    assert (suspect.body, suspect.token > victim.token) == (b"body of a", True)
    assert before + 5_000 <= rig.score(rig.keys.leases, "a") <= rig.now_ms() + 5_000
    assert (rig.ready(), rig.metric("reclaimed")) == ([], 3)
    assert rig.complete(victim) == [False]
    assert rig.fail(suspect, attempted=False)
    assert rig.members(rig.keys.failures) == ["a"]


def test_with_no_crash_allowed_the_first_is_the_last(rig):
    delivery = rig.held("a")
    rig.reap()
    rig.expire_leases(delivery)
    reaped = rig.reap(max_crashes=0)
    assert [one.operation_id for one in reaped.quarantined] == ["a"]
    assert rig.release(reaped.quarantined[0])


def test_a_reaping_is_bounded(rig):
    rig.enqueue(*(f"{number:03}" for number in range(130)))
    deliveries = rig.claim(130, 130).deliveries
    rig.reap()
    rig.expire_leases(*deliveries)
    assert [rig.reap().returned for _ in range(3)] == [100, 30, 0]
    assert rig.metric("reclaimed") == 130


def test_after_an_outage_owners_get_one_lease_of_grace(rig):
    delivery = rig.held("a")
    rig.reap(interval=2.0)
    rig.expire_leases(delivery)
    rig.redis.zincrby(rig.keys.reaper, -7_000, "last")  # nobody has reaped for 7 s
    before = rig.now_ms()
    reaped = rig.reap(interval=2.0, lease=10.0)
    assert (reaped.returned, reaped.in_grace) == (0, True)
    assert before + 10_000 <= rig.score(rig.keys.reaper, "grace") <= rig.now_ms() + 10_000
    assert rig.reap(interval=2.0).in_grace
    assert rig.renew(delivery) == []
    rig.expire_leases(delivery)
    rig.redis.zadd(rig.keys.reaper, {"grace": 1})  # it is over
    assert rig.reap(interval=2.0).returned == 1


def test_a_missed_turn_is_no_outage(rig):
    delivery = rig.held("a")
    rig.reap(interval=2.0)
    rig.expire_leases(delivery)
    rig.redis.zincrby(rig.keys.reaper, -5_000, "last")
    reaped = rig.reap(interval=2.0)
    assert (reaped.returned, reaped.in_grace) == (1, False)


def test_a_lease_without_an_operation_is_dropped(rig):
    rig.garbage = True
    rig.redis.zadd(rig.keys.leases, {"ghost": 1})
    reaped = rig.reap()
    assert (reaped.returned, reaped.quarantined) == (0, [])
    assert (rig.redis.zcard(rig.keys.leases), rig.ttl("ghost")) == (0, -2)


def test_what_is_past_its_retention_is_dropped(rig):
    rig.garbage = True
    rig.enqueue("old", "new", "odd")
    old, new, odd = rig.claim().deliveries
    assert rig.fail(old)
    assert rig.fail(new)
    assert rig.fail(odd, system_error=True)
    now = rig.now_ms()
    rig.redis.zadd(rig.keys.failures, {"old": now - 61_000, "new": now - 50_000}, xx=True)
    rig.redis.zadd(rig.keys.system_errors, {"odd": now - 61_000}, xx=True)
    rig.redis.zadd(rig.keys.workers, {"gone": now - 61_000, "here": now - 50_000})
    rig.reap(retention=60.0)
    assert rig.members(rig.keys.failures) == ["new"]
    assert rig.members(rig.keys.system_errors) == []
    assert rig.members(rig.keys.workers) == ["here"]
