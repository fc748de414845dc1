"""The audit: silent about every state that the scripts make, and each violation is found and named."""

from __future__ import annotations

from itertools import count

import pytest

from queue_system.audit import audit
from queue_system.audit_rules import CHECKS, PROBLEMS
from queue_system.broker.messages import AUDIT_STEP, NewOperation
from queue_system.keys import dedup_digest

LAST = f"many-{2 * AUDIT_STEP}"
DEDUP = f"dedup:{dedup_digest('k')}"


@pytest.fixture
def rig(rig):
    """The states here are broken on purpose."""
    rig.check_invariants = lambda: None  # monkeypatch would have undone this by then
    return rig


@pytest.fixture
def look(rig, make_config):
    """Audits, and returns what was found as {problem: {subject}}."""
    config = make_config(backup_ttl=3600.0)

    def found(**options):
        report = audit(config, **{"pause": 0.0, **options})
        assert report.complete
        return {
            problem.name: {example.subject for example in problem.examples}
            for check in report.checks
            for problem in check.problems
        }

    return found


def populate(rig) -> None:
    """An operation in each state, on each way that leads there."""
    rig.enqueue(*(f"done-{n}" for n in range(4)), NewOperation("kept", b"b", 0.0, "done", 60.0))
    rig.complete(*rig.claim().deliveries, done_ttl=60.0)
    rig.complete(rig.held("forgotten"))
    for operation_id, system_error in (("failed", False), ("rejected", True), ("again", False)):
        rig.enqueue(NewOperation(operation_id, b"b", 0.0, operation_id, 60.0))
        callback = rig.callback(f"callback-of-{operation_id}")
        assert rig.fail(rig.one(), system_error=system_error, callback=callback)
        rig.complete(rig.one(), kind="c")
    rig.run(rig.commands.requeue_failure("again"))
    rig.release(rig.one())
    rig.release(rig.one(), delay=60.0)
    rig.retry(rig.held("retried"))
    rig.enqueue(NewOperation("late", b"b", 60.0, "late", 60.0))
    rig.redis.rpush(rig.keys.ready("mail", "normal"), "nothing-there")
    rig.claim()
    rig.enqueue("gone", queue="purged")
    rig.run(rig.commands.purge_ready("purged", "normal"))
    rig.run(rig.commands.heartbeat("worker", expiry=60.0, fields={"threads": "4"}))
    rig.held("leased")
    rig.reap()
    rig.enqueue(*(f"ready-{n}" for n in range(2 * AUDIT_STEP + 7)), priority="low")
    rig.enqueue("ready", NewOperation("unique", b"b", 0.0, "k", 60.0))


def test_what_the_scripts_make_is_sound(rig, look, make_config):
    populate(rig)
    assert look() == {}
    report = audit(make_config(backup_ttl=3600.0))
    assert [check.name for check in report.checks] == list(CHECKS)
    assert report.ok
    assert report.notes == ()
    assert report.operations == len(list(rig.redis.scan_iter(f"{rig.keys.operation_prefix}*", count=1000)))
    assert report.keys == len(list(rig.redis.scan_iter(f"{rig.keys.prefix}*", count=1000))) - report.operations


def test_nothing_at_all_is_sound(look):
    assert look() == {}


def test_an_expired_lease_is_sound_and_after_a_minute_noted(rig, look, make_config):
    delivery = rig.held("a")
    rig.redis.zadd(rig.keys.leases, {"a": rig.now_ms() - 5000})
    assert look() == {}
    rig.expire_leases(delivery)
    assert look() == {}
    assert "1 leases ended over a minute ago" in audit(make_config()).notes[0]


def test_taken_back_and_quarantined_operations_are_sound(rig, look):
    rig.expire_leases(rig.held("a"))
    rig.reap()
    rig.reap()
    for _ in range(3):
        rig.expire_leases(*rig.claim().deliveries)
        quarantined = rig.reap().quarantined
        assert look() == {}
    assert rig.fail(quarantined[0], attempted=False)
    assert look() == {}


def test_an_entry_whose_hash_has_expired_is_sound(rig, look):
    rig.fail(rig.held("a"))
    rig.redis.zadd(rig.keys.failures, {"a": rig.now_ms() - 3_600_000})
    rig.redis.delete(rig.keys.operation("a"))
    assert look() == {}
    rig.redis.zadd(rig.keys.failures, {"a": rig.now_ms() - 3_000_000})
    assert look() == {"stray": {"a"}}


def test_an_id_that_came_again_and_failed_does_not_hold_the_key_of_its_forerunner(rig, look):
    rig.enqueue(NewOperation("a", b"b", 0.0, "k", 60.0))
    rig.complete(rig.one())
    assert rig.fail(rig.held("a"))
    assert rig.redis.get(f"{rig.keys.prefix}{DEDUP}") == b"a\x1fnormal:mail\x1f"
    assert look() == {}


# Each violation: what is done to a sound queue that has "ready" ... in those states, and what must be found.


def put(rig, operation_id, **fields):
    rig.redis.hset(rig.keys.operation(operation_id), mapping=fields)


def lost(rig):
    rig.redis.lpop(rig.keys.ready("other", "low"))


def lost_whole(rig):
    rig.redis.hincrby(rig.keys.metrics, "enqueued", 2)


def unknown_state(rig):
    put(rig, "delayed", st="sleeping")
    rig.redis.zrem(rig.keys.delayed, "delayed")
    rig.redis.hincrby(rig.keys.depths, "d:normal:mail", -1)
    rig.redis.hincrby(rig.keys.metrics, "discarded", 1)


def no_hash(rig):
    rig.redis.delete(rig.keys.operation("ready"))
    rig.redis.set(rig.keys.operation("ready"), "text")


def no_body(rig):
    rig.redis.hdel(rig.keys.operation("ready"), "b")


def not_in_leases(rig):
    rig.redis.zrem(rig.keys.leases, "leased")
    rig.redis.zadd(rig.keys.leases, {"other": 1})


def hash_gone(rig):
    rig.redis.delete(rig.keys.operation("ready"), rig.keys.operation("delayed"))


def leased_and_ready(rig):
    rig.redis.rpush(rig.keys.ready("mail", "normal"), "leased")
    rig.redis.hincrby(rig.keys.metrics, "enqueued", 1)


def leased_and_delayed(rig):
    rig.redis.zadd(rig.keys.delayed, {"leased": 1})
    rig.redis.hincrby(rig.keys.depths, "d:normal:mail", 1)
    rig.redis.hincrby(rig.keys.metrics, "enqueued", 1)


def twice(rig):
    rig.redis.rpush(rig.keys.ready("mail", "normal"), "ready")
    rig.redis.hincrby(rig.keys.metrics, "enqueued", 1)


def far_twice(rig):
    rig.redis.rpush(rig.keys.ready("other", "low"), "many-0")
    rig.redis.hincrby(rig.keys.metrics, "enqueued", 1)


def wrong_list(rig):
    rig.redis.lmove(rig.keys.ready("mail", "normal"), rig.keys.ready("other", "low"), "LEFT", "RIGHT")


def no_token(rig):
    rig.redis.hdel(rig.keys.operation("leased"), "tk")


def counter_gone(rig):
    rig.redis.set(f"{rig.keys.prefix}token", 1)


def done_and_leased(rig):
    rig.redis.zadd(rig.keys.leases, {"done": 1})
    rig.redis.hincrby(rig.keys.depths, "l:normal:mail", 1)
    rig.redis.hincrby(rig.keys.metrics, "enqueued", 1)


def done_and_ready(rig):
    rig.redis.lpush(rig.keys.ready("mail", "normal"), "done")
    rig.redis.hincrby(rig.keys.metrics, "enqueued", 1)


def crashes(rig):
    put(rig, "ready", cr=5, dc=9)


def deliveries(rig):
    put(rig, "ready", at=2, cr=1, dc=2)


def no_number(rig):
    put(rig, "ready", at="many")


def dedup_forever(rig):
    rig.redis.persist(f"{rig.keys.prefix}{DEDUP}")


def dedup_of_a_failure(rig):
    rig.redis.set(f"{rig.keys.prefix}{DEDUP}", "failed", px=60_000)
    put(rig, "failed", dk=dedup_digest("k"))


def live_expires(rig):
    for operation_id in ("ready", "delayed", "leased"):
        rig.redis.pexpire(rig.keys.operation(operation_id), 60_000)


def ended_forever(rig):
    for operation_id in ("done", "failed"):
        rig.redis.persist(rig.keys.operation(operation_id))


def done_and_failed(rig):
    rig.redis.zadd(rig.keys.failures, {"done": rig.now_ms()})
    rig.redis.hincrby(rig.keys.depths, "f:normal:mail", 1)


def failed_twice(rig):
    rig.redis.zadd(rig.keys.system_errors, {"failed": rig.now_ms()})


def failed_and_nowhere(rig):
    rig.redis.zrem(rig.keys.failures, "failed")
    rig.redis.hincrby(rig.keys.depths, "f:normal:mail", -1)


def depths_total(rig):
    rig.redis.hincrby(rig.keys.depths, "d:normal:mail", 3)


def depths_swapped(rig):
    rig.redis.hincrby(rig.keys.depths, "d:normal:mail", -1)
    rig.redis.hincrby(rig.keys.depths, "d:low:other", 1)


def unknown_key(rig):
    rig.redis.set(f"{rig.keys.prefix}stranger", 1)
    rig.redis.rpush(f"{rig.keys.prefix}urgent:mail", 1)
    rig.redis.set(f"{rig.keys.prefix}dedup:short", 1, px=60_000)


def forever(rig):
    rig.redis.hset(f"{rig.keys.prefix}worker:w", "threads", 1)
    rig.redis.set(f"{rig.keys.prefix}sent:client:1", "1 q")


def wrong_type(rig):
    rig.redis.delete(rig.keys.ready("other", "high"))
    rig.redis.set(rig.keys.ready("other", "high"), 1)


def unregistered(rig):
    rig.redis.hdel(rig.keys.registry, "normal:mail")
    rig.redis.hincrby(rig.keys.metrics, "discarded", 1)


def index_lies(rig):
    rig.redis.zrem(rig.keys.ready_index, "normal:mail")
    rig.redis.zadd(rig.keys.ready_index_sync, {"low:other": 5e15})
    rig.redis.zadd(rig.keys.ready_index, {"high:empty": 1})


VIOLATIONS = {
    lost: {"unaccounted": {"accepted"}, "missing": {"many-0"}},
    lost_whole: {"unaccounted": {"accepted"}},
    unknown_state: {"unknown_state": {"delayed"}},
    no_hash: {"no_operation": {"ready"}},
    no_body: {"incomplete": {"ready"}},
    not_in_leases: {"missing": {"leased"}, "stray": {"other"}},
    hash_gone: {"stray": {"ready", "delayed"}},
    leased_and_ready: {"elsewhere": {"leased"}},
    leased_and_delayed: {"elsewhere": {"leased"}},
    twice: {"twice": {"ready"}},
    far_twice: {"twice": {"many-0"}},
    wrong_list: {"wrong_list": {"ready"}, "wrong_index": {"normal:mail"}},
    no_token: {"no_token": {"leased"}},
    counter_gone: {"token_ahead": {"leased", "failed"}},
    done_and_leased: {"claimed_after_done": {"done"}},
    done_and_ready: {"claimed_after_done": {"done"}},
    crashes: {"too_many_crashes": {"ready"}},
    deliveries: {"counts": {"ready"}},
    no_number: {"counts": {"ready"}},
    dedup_forever: {"dedup_forever": {DEDUP}},
    dedup_of_a_failure: {"dedup_after_failure": {DEDUP}},
    live_expires: {"live_expires": {"ready", "delayed", "leased"}},
    ended_forever: {"ended_forever": {"done", "failed"}},
    done_and_failed: {"ended_twice": {"done"}},
    failed_twice: {"ended_twice": {"failed"}},
    failed_and_nowhere: {"missing": {"failed"}},
    depths_total: {"depth_total": {"delayed"}, "depth_of_queue": {"delayed of normal:mail"}},
    depths_swapped: {"depth_of_queue": {"delayed of normal:mail", "delayed of low:other"}},
    unknown_key: {"unknown_key": {"stranger", "urgent:mail", "dedup:short"}},
    forever: {"forever": {"worker:w", "sent:client:1"}},
    wrong_type: {"wrong_type": {"high:other"}},
    unregistered: {"unregistered": {"normal:mail"}, "wrong_index": {"normal:mail"}},
    index_lies: {"wrong_index": {"normal:mail", "low:other", "high:empty"}},
}


@pytest.fixture
def states(rig):
    """One operation in each state, many in another queue."""
    rig.complete(rig.held("done"), done_ttl=60.0)
    rig.fail(rig.held("failed"))
    rig.held("leased")
    rig.enqueue("delayed", delay=60.0)
    rig.enqueue(NewOperation("ready", b"b", 0.0, "k", 60.0))
    rig.enqueue(*(f"many-{n}" for n in range(2 * AUDIT_STEP + 1)), queue="other", priority="low")


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize("break_it", VIOLATIONS, ids=lambda function: function.__name__)
def test_a_violation_is_found_and_named(rig, look, break_it):
    assert look() == {}
    break_it(rig)
    assert look() == VIOLATIONS[break_it]


def test_every_kind_of_violation_is_tried():
    assert {name for found in VIOLATIONS.values() for name in found} == set(PROBLEMS)


def test_every_invariant_is_tried():
    assert {PROBLEMS[name].check for found in VIOLATIONS.values() for name in found} == set(CHECKS)


@pytest.mark.usefixtures("states")
def test_a_container_of_the_wrong_type_is_told_and_the_rest_not_looked_at(rig, make_config):
    rig.redis.delete(rig.keys.leases)
    rig.redis.set(rig.keys.leases, "text")
    report = audit(make_config(), pause=0.0)
    assert not report.ok
    assert not report.complete
    assert [problem.name for check in report.checks for problem in check.problems] == ["wrong_type"]
    assert report.notes == ("not everything was looked at: a key of the queue has the wrong type",)


@pytest.mark.usefixtures("states")
def test_what_stood_at_the_key_of_an_operation_is_noted(rig, look, make_config):
    rig.redis.set(f"{rig.keys.prefix}broken:x", "text", px=60_000)
    assert look() == {}
    assert "1 keys broken:*" in audit(make_config()).notes[0]


def test_ids_of_any_bytes_are_looked_at(rig, look):
    rig.enqueue(*(NewOperation(each, b"b") for each in ("ü", "\udcff\udcfe", "with space")))
    assert look() == {}
    rig.redis.delete(rig.keys.ready("mail", "normal"))
    missing = {"ü", "\udcff\udcfe", "with space"}
    assert look() == {"unaccounted": {"accepted"}, "missing": missing, "wrong_index": {"normal:mail"}}


def test_a_prefix_is_no_pattern(rig, make_config, back_end):
    config = make_config(queue_prefix="a[b]*?^\\:")
    client = back_end.clients.sync(timeout=5.0)
    try:
        client.set("a[b]*?^\\:stranger", 1)
        client.set("ab:stranger", 1)
        report = audit(config, pause=0.0)
        assert [each.subject for each in report.checks[-1].problems[0].examples] == ["stranger"]
    finally:
        client.delete("a[b]*?^\\:stranger", "ab:stranger")


@pytest.mark.usefixtures("states")
def test_examples_are_bounded_and_everything_is_counted(rig, make_config):
    rig.redis.delete(rig.keys.ready("other", "low"))
    report = audit(make_config(), examples=2, pause=0.0)
    (missing,) = report.checks[1].problems
    assert (missing.name, missing.found, len(missing.examples), missing.unconfirmed) == (
        "missing",
        2 * AUDIT_STEP + 1,
        2,
        0,
    )


# While everything moves


@pytest.fixture
def moving(rig, make_config):
    """A configuration before each of whose calls operations come, go, return and end."""
    config = make_config(backup_ttl=3600.0)
    run, numbers = config.broker.run, count()

    def move(call):
        rig.enqueue(*(f"new-{next(numbers)}" for _ in range(7)), queue="other", priority="low")
        rig.enqueue(NewOperation(f"new-{next(numbers)}", b"b", 60.0, f"key-{next(numbers)}", 60.0))
        done, released, retried, failed, *_ = rig.claim(5, 5).deliveries
        rig.complete(done, done_ttl=60.0 * (next(numbers) % 2))
        rig.release(released)
        rig.retry(retried)
        rig.fail(failed)
        return run(call)

    config.broker.run = move
    return config


@pytest.mark.usefixtures("states")
def test_nothing_is_found_wrong_while_everything_moves(rig, moving):
    looks = []
    report = audit(moving, pause=0.0, on_progress=lambda part, *_: looks.append(part))
    assert [problem for check in report.checks for problem in check.problems] == []
    assert looks.count("second look") == 2, "there must have been something to look at again"
    assert "operations moved meanwhile" in report.notes[0]


@pytest.mark.usefixtures("states")
def test_what_is_wrong_is_found_while_everything_moves(rig, moving):
    rig.redis.zadd(rig.keys.leases, {"done": rig.now_ms() + 60_000})
    rig.redis.hset(
        rig.keys.operation("lost"), mapping={"st": "ready", "q": "low:other", "b": "b", "ts": "1", "rd": "1"}
    )
    rig.redis.rpush(rig.keys.ready("other", "low"), LAST)
    rig.redis.persist(rig.keys.operation("failed"))
    rig.redis.persist(f"{rig.keys.prefix}{DEDUP}")
    report = audit(moving, pause=0.0)
    found = {
        problem.name: {each.subject for each in problem.examples}
        for check in report.checks
        for problem in check.problems
    }
    expected = {
        "claimed_after_done": {"done"},
        "missing": {"lost"},
        "twice": {LAST},
        "ended_forever": {"failed"},
        "dedup_forever": {DEDUP},
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found.keys() - expected.keys() == {"unaccounted", "depth_total"}


@pytest.mark.usefixtures("states")
def test_a_list_that_grows_faster_than_it_is_read_is_noted(rig, make_config):
    """Each page then has the ids of the page before, in every look: they are not there twice."""
    config = make_config(backup_ttl=3600.0)
    run, numbers = config.broker.run, count()

    def grow(call):
        if call.name == "audit_list":
            rig.enqueue(*(f"new-{next(numbers)}" for _ in range(AUDIT_STEP)), queue="other", priority="low")
        return run(call)

    config.broker.run = grow
    report = audit(config, pause=0.0)
    assert [problem for check in report.checks for problem in check.problems] == []
    assert any(note.startswith("low:other grows faster") for note in report.notes)


def test_an_id_is_twice_in_a_list_only_when_both_are_seen_at_once(rig):
    rig.enqueue(*"abcdefgh")

    def twice(*places):
        return rig.run(rig.commands.audit_twice("normal:mail", "c", places))

    assert not twice(6, 6)
    assert not twice(2, 6), "seen twice, because the tail has moved"
    rig.redis.rpush(rig.keys.ready("mail", "normal"), "c")
    assert twice(1, 7)
    assert twice(1, 3), "the tail has moved since"
    assert not twice(2, 7), "the last one is behind where it was seen: it is another"
    rig.redis.lpush(rig.keys.ready("mail", "normal"), "c")
    assert twice(2, 7)


@pytest.mark.usefixtures("states")
def test_an_id_that_moves_from_page_to_page_in_every_look_is_not_there_twice(rig, make_config, monkeypatch):
    """The id at the head of a page is pushed into the next one before that is read."""
    config = make_config(backup_ttl=3600.0)
    run, numbers, sweeps, asked = config.broker.run, count(), count(1), []

    def move(call):
        if call.name == "audit_list" and "low:other" in call.args:
            page = -(call.args[-1] + 1) // AUDIT_STEP
            sweep = next(sweeps) if page == 0 else asked[-1]
            asked.append(sweep)
            more = AUDIT_STEP - 1 if page == 0 and sweep > 1 else int(page == sweep)
            rig.enqueue(*(f"new-{next(numbers)}" for _ in range(more)), queue="other", priority="low")
        return run(call)

    twice = []
    monkeypatch.setattr(config.commands, "audit_twice", spy(config.commands.audit_twice, twice))
    config.broker.run = move
    report = audit(config, pause=0.0)
    moved = f"many-{AUDIT_STEP + 1}"
    assert [operation_id for _, operation_id, _ in twice] == [moved], "one look is enough to find out"
    assert [problem for check in report.checks for problem in check.problems] == []


def spy(function, calls):
    def called(*args):
        calls.append(args)
        return function(*args)

    return called
