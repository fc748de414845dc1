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


def suspects(rig, *ids, **options):
    """Their worker has died while it held them, and one more death than that is too many."""
    rig.enqueue(*ids, **options)
    taken = rig.claim(len(ids), len(ids)).deliveries
    rig.reap()
    rig.expire_leases(*taken)
    assert rig.reap(max_crashes=1).returned == len(ids)


def ids_of(claimed):
    return [delivery.operation_id for delivery in claimed.deliveries]


def test_suspects_are_claimed_one_by_one(rig):
    suspects(rig, "a", "b")
    rig.enqueue("c", "d")
    order = rig.ready()
    claims = [rig.claim() for _ in range(3)]
    assert [ids_of(claimed) for claimed in claims] == [order[:1], order[1:2], ["c", "d"]]
    assert [claimed.alone_for > 0 for claimed in claims] == [True, True, False]
    assert [claimed.more_async for claimed in claims] == [True, True, False]
    assert not any(claimed.suspect_waits for claimed in claims)


def test_a_worker_that_is_not_empty_leaves_suspects_and_what_is_behind_them(rig):
    suspects(rig, "a", "b")
    rig.enqueue("c", "d", "e")
    order = rig.ready()
    rig.clear_markers()
    claimed = rig.claim(suspect=False)
    assert (ids_of(claimed), claimed.suspect_waits, claimed.alone_for) == ([], True, 0.0)
    assert rig.ready() == order
    assert rig.marked() == {"async"}  # for a worker that is empty


def test_a_suspect_stops_the_claims_of_all_queues_behind_it(rig):
    suspects(rig, "a", priority="normal")
    rig.enqueue("first", "second", priority="high")
    rig.enqueue("last", priority="low")
    claimed = rig.claim()
    assert (ids_of(claimed), claimed.suspect_waits) == (["first", "second"], True)
    assert ids_of(rig.claim()) == ["a"]
    assert ids_of(rig.claim(suspect=False)) == ["last"]


def test_a_suspect_is_alone_for_as_long_as_it_had_run_and_a_minute_at_most(rig):
    rig.enqueue("short", "long")
    short, long = rig.claim().deliveries
    rig.reap()
    now = rig.now_ms()
    for one, age in ((short, 3_000), (long, 500_000)):
        rig.redis.hset(rig.keys.operation(one.operation_id), "w", f"{now - 1_000 - age} someone")
        rig.redis.zadd(rig.keys.leases, {one.operation_id: now - 1_000})
    assert rig.reap(max_crashes=2).returned == 2
    alone = {claimed.deliveries[0].operation_id: claimed.alone_for for claimed in (rig.claim(), rig.claim())}
    assert alone == {"short": 3.0, "long": 60.0}


def test_the_first_of_several_deaths_makes_no_suspect(rig):
    rig.enqueue("a", "b")
    for alone in (False, True):
        taken = rig.claim().deliveries
        assert ids_of(rig.claim()) == []
        rig.reap()
        rig.expire_leases(*taken)
        assert rig.reap(max_crashes=3).returned == 2
        claimed = rig.claim()
        assert (len(claimed.deliveries), claimed.alone_for > 0) == ((1, True) if alone else (2, False))
        assert all(map(rig.release, claimed.deliveries))


def test_a_lease_shorter_than_three_reapings_gives_grace_when_it_could_not_be_renewed(rig):
    delivery = rig.held("a")
    rig.reap(interval=2.0)
    rig.expire_leases(delivery)
    rig.redis.zincrby(rig.keys.reaper, -3_500, "last")
    reaped = rig.reap(interval=2.0, lease=2.0)
    assert (reaped.returned, reaped.in_grace) == (0, True)


def test_a_failure_that_is_requeued_is_no_suspect(rig):
    suspects(rig, "a")
    assert rig.fail(rig.one())
    assert rig.run(rig.commands.requeue_failure("a"))
    rig.enqueue("b")
    claimed = rig.claim(suspect=False)
    assert (sorted(ids_of(claimed)), claimed.suspect_waits) == (["a", "b"], False)


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
