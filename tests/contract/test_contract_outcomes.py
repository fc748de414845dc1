"""What ends an attempt: renew, complete, retry, fail, release; each only for the latest token."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from queue_system.broker.messages import Accepted, Completion, NewOperation

CALLBACKS = "__callbacks__"


def stale(delivery):
    """The same delivery as an owner sees it that has lost its lease."""
    return replace(delivery, token=delivery.token - 1)


def unchanged(rig, delivery) -> bool:
    fields = rig.fields(delivery.operation_id)
    leased = rig.score(rig.keys.leases, delivery.operation_id) is not None
    return leased and fields["st"] == "leased" and fields["tk"] == str(delivery.token)


ENDINGS = {
    "complete": lambda rig, delivery: rig.complete(delivery) == [True],
    "retry": lambda rig, delivery: rig.retry(delivery),
    "fail": lambda rig, delivery: rig.fail(delivery),
    "system_error": lambda rig, delivery: rig.fail(delivery, system_error=True),
    "release": lambda rig, delivery: rig.release(delivery),
    "release_later": lambda rig, delivery: rig.release(delivery, delay=60.0),
    "renew": lambda rig, delivery: rig.renew(delivery) == [],
}
ending = pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())


@ending
def test_only_the_latest_token_moves_an_operation(rig, ending):
    rig.release(rig.held("a"))
    delivery = rig.one()
    assert not ending(rig, stale(delivery))
    assert not ending(rig, replace(delivery, token=delivery.token + 1))
    assert not ending(rig, replace(delivery, operation_id="unknown"))
    assert unchanged(rig, delivery)
    assert ending(rig, delivery)


@ending
def test_an_id_that_comes_back_after_its_end_has_nothing_to_do_with_its_former_owner(rig, ending):
    former = rig.held("a")
    rig.complete(former)
    delivery = rig.held("a")
    assert not ending(rig, former)
    assert unchanged(rig, delivery)


@ending
def test_nothing_moves_an_operation_that_is_done(rig, ending):
    delivery = rig.held("a")
    rig.complete(delivery, done_ttl=60.0)
    assert not ending(rig, delivery)
    assert rig.fields("a")["st"] == "done"
    assert rig.claim().deliveries == []


@ending
def test_nothing_moves_an_operation_that_was_taken_back(rig, ending):
    delivery = rig.held("a")
    rig.reap()
    rig.expire_leases(delivery)
    assert rig.reap().returned == 1
    assert not ending(rig, delivery)
    assert rig.ready() == ["a"]


@pytest.mark.parametrize("name", ["complete", "retry", "fail"])
def test_stale_outcomes_are_counted_but_not_when_sent_again(rig, name):
    delivery = rig.held("a")
    late = stale(delivery)
    send = getattr(rig, name)
    send(late)
    assert rig.metric("stale_acks") == 1
    send(late, again=True)
    assert rig.metric("stale_acks") == 1
    assert unchanged(rig, delivery)


def test_renewal_prolongs_from_now(rig):
    rig.enqueue("a", "b", "c")
    a, b, c = rig.claim(lease=1.0).deliveries
    before = rig.now_ms()
    assert rig.renew(a, b, lease=30.0) == []
    for operation_id in ("a", "b"):
        assert before + 30_000 <= rig.score(rig.keys.leases, operation_id) <= rig.now_ms() + 30_000
    assert rig.score(rig.keys.leases, "c") == round(c.claimed_at * 1000) + 1000


def test_renewal_names_what_is_lost(rig):
    rig.enqueue("a", "b")
    a, b = rig.claim().deliveries
    rig.complete(b)
    assert rig.renew(b, a, stale(a), replace(a, operation_id="unknown")) == [
        ("b", b.token),
        ("a", stale(a).token),
        ("unknown", a.token),
    ]
    assert unchanged(rig, a)


def test_an_expired_lease_that_nobody_has_taken_can_be_renewed(rig):
    delivery = rig.held("a")
    rig.reap()
    rig.expire_leases(delivery)
    assert rig.renew(delivery) == []
    assert rig.reap().returned == 0
    assert unchanged(rig, delivery)


def test_a_lease_that_is_gone_is_lost(rig):
    delivery = rig.held("a")
    rig.redis.zrem(rig.keys.leases, "a")
    assert rig.renew(delivery) == [("a", delivery.token)]
    assert rig.redis.zcard(rig.keys.leases) == 0
    rig.redis.zadd(rig.keys.leases, {"a": 1})  # for the invariants


def test_done_is_gone(rig):
    rig.enqueue("a", "b")
    a, b = rig.claim().deliveries
    assert rig.complete(a, b) == [True, True]
    assert rig.ttl("a") == rig.ttl("b") == -2
    assert rig.status().leased == 0
    assert rig.metric("processed") == 2
    assert rig.enqueue("a") == [(Accepted.QUEUED, "a")]


@pytest.mark.parametrize("done_ttl", [0.0, 60.0])
def test_the_same_operation_twice_in_a_call_is_done_once(rig, done_ttl):
    delivery = rig.held("a")
    assert rig.complete(delivery, stale(delivery), delivery, done_ttl=done_ttl) == [True, False, False]
    assert (rig.metric("processed"), rig.metric("stale_acks")) == (1, 2)


def test_a_done_operation_is_kept_for_its_time(rig):
    delivery = rig.held("a")
    assert rig.complete(delivery, done_ttl=60.0) == [True]
    assert rig.fields("a")["st"] == "done"
    assert 55_000 < rig.ttl("a") <= 60_000


def test_a_success_brings_its_callback_to_life(rig):
    delivery = rig.held("a")
    done = Completion("a", delivery.token, "o", rig.callback("cb"))
    rig.clear_markers()
    assert rig.run(rig.commands.complete([done], done_ttl=0.0, again=False)) == [True]
    assert rig.ready(CALLBACKS, "high") == ["cb"]
    assert rig.marked() == {"async"}
    assert rig.metric("callbacks_enqueued") == 1
    fields = rig.fields("cb")
    assert (fields["st"], fields["q"], fields["k"]) == ("ready", f"high:{CALLBACKS}", "c")
    callback = rig.one()
    assert (callback.operation_id, callback.body) == ("cb", b"body of the callback")
    assert rig.complete(callback, kind="c") == [True]
    assert (rig.metric("processed"), rig.metric("callbacks_processed"), rig.metric("enqueued")) == (1, 1, 1)


def test_a_stale_success_brings_no_callback_to_life(rig):
    delivery = rig.held("a")
    done = Completion("a", delivery.token + 1, "o", rig.callback())
    assert rig.run(rig.commands.complete([done], done_ttl=0.0, again=False)) == [False]
    assert rig.ready(CALLBACKS, "high") == []
    assert rig.ttl("callback") == -2


def test_three_hundred_in_one_call(rig):
    rig.enqueue(*map(str, range(300)))
    deliveries = rig.claim(300, 300).deliveries
    assert rig.complete(*deliveries) == [True] * 300
    assert rig.metric("processed") == 300


def test_a_retry_is_delayed_with_its_attempt_counted(rig):
    delivery = rig.held("a")
    before = rig.now_ms()
    assert rig.retry(delivery, delay=30.0, counters=["retried", "timeouts"], record=b'{"attempt":1}')
    due = rig.score(rig.keys.delayed, "a")
    assert before + 30_000 <= due <= rig.now_ms() + 30_000
    assert rig.status().leased == 0
    fields = rig.fields("a")
    assert (fields["st"], fields["at"], fields["rd"], fields["hist"]) == ("delayed", "1", str(due), '{"attempt":1}')
    assert (rig.metric("retried"), rig.metric("timeouts")) == (1, 1)
    rig.make_due("a")
    again = rig.one()
    assert (again.attempts, again.exhaustions, again.deliveries) == (1, 0, 2)
    assert again.first_attempt_time == 0.0


@pytest.mark.parametrize("delay", [0.0, 30.0])
@pytest.mark.parametrize("way", ["retry", "release"])
def test_when_its_processor_was_first_called_is_kept(rig, way, delay):
    back = getattr(rig, way)
    assert back(rig.held("a"), delay=delay)
    rig.make_due("a")
    assert back(rig.one(), delay=delay, first_called=1234.567)
    rig.make_due("a")
    again = rig.one()
    assert again.first_attempt_time == 1234.567
    assert rig.fields("a")["fa"] == "1234567"
    assert back(again, delay=delay)  # by a worker that did not call it: that says nothing new
    rig.make_due("a")
    assert rig.one().first_attempt_time == 1234.567


def test_what_a_dead_worker_held_may_never_have_been_called(rig):
    rig.expire_leases(rig.held("a"))
    rig.reap()
    assert rig.one().first_attempt_time == 0.0


def test_exhaustions_are_counted_apart(rig):
    assert rig.retry(rig.held("a"), exhausted=True)
    rig.make_due("a")
    again = rig.one()
    assert (again.attempts, again.exhaustions) == (1, 1)


def test_the_history_keeps_the_latest_records_below_its_limit(rig):
    rig.enqueue("a")
    for number in range(5):
        assert rig.retry(rig.one(), record=b"%d" % number + b"x" * 10_000)
        rig.make_due("a")
    records = rig.fields("a")["hist"].split("\n")
    assert [record[0] for record in records] == ["2", "3", "4"]
    assert sum(map(len, records)) < 32_768


@pytest.mark.parametrize("system_error", [False, True])
def test_a_failure_is_kept_and_self_contained(rig, system_error):
    rig.enqueue("a", priority="high")
    delivery = rig.one()
    rig.retry(delivery, record=b"first")
    rig.make_due("a")
    before = rig.now_ms()
    assert rig.fail(rig.one(), system_error=system_error, record=b"second", retention=100.0)
    target, other = rig.keys.failures, rig.keys.system_errors
    if system_error:
        target, other = other, target
    assert (rig.members(target), rig.members(other)) == (["a"], [])
    assert 3_695_000 < rig.ttl("a") <= 3_700_000  # an hour longer than it is listed
    (row,) = rig.run(rig.commands.failures(system_errors=system_error))
    assert (row.operation_id, row.queue, row.body) == ("a", "high:mail", b"body of a")
    assert row.state == ("system_error" if system_error else "failed")
    assert (row.attempts, row.error, row.history) == (2, b'{"reason":"error"}', [b"first", b"second"])
    assert before / 1000 <= row.failed_at <= rig.status().now
    assert rig.status().leased == 0


def test_a_failure_without_an_attempt_counts_none(rig):
    assert rig.fail(rig.held("a"), attempted=False)
    (row,) = rig.run(rig.commands.failures())
    assert (row.attempts, row.history) == (0, [])


def test_a_failure_brings_its_callback_to_life(rig):
    delivery = rig.held("a")
    rig.clear_markers()
    assert rig.fail(delivery, callback=rig.callback("cb"))
    assert rig.ready(CALLBACKS, "high") == ["cb"]
    assert rig.marked() == {"async"}
    assert (rig.metric("failed"), rig.metric("callbacks_enqueued")) == (1, 1)


def test_a_failure_frees_its_deduplication_key(rig):
    rig.enqueue(NewOperation("a", b"{}", 0.0, "k", 600.0))
    assert rig.fail(rig.one())
    assert rig.enqueue(NewOperation("b", b"{}", 0.0, "k", 600.0)) == [(Accepted.QUEUED, "b")]


def test_a_failure_leaves_the_key_of_another_holder(rig):
    rig.enqueue(NewOperation("a", b"{}", 0.0, "k", 600.0))
    rig.redis.delete(rig.keys.dedup("k"))  # as its expiry does
    rig.enqueue(NewOperation("b", b"{}", 0.0, "k", 600.0))
    assert rig.fail(rig.one())
    assert rig.redis.get(rig.keys.dedup("k")) == b"b\x1fnormal:mail\x1f"


def test_a_retry_keeps_its_deduplication_key(rig):
    rig.enqueue(NewOperation("a", b"{}", 0.0, "k", 600.0))
    assert rig.retry(rig.one())
    assert rig.redis.get(rig.keys.dedup("k")) == b"a\x1fnormal:mail\x1f"


BODY = b'{"v":1,"operation_id":"a","processor":"send","processor_module":"app","queue":"mail"}'


def requeued(rig, **fields):
    """An operation with a key fails, and is put back."""
    rig.enqueue(NewOperation("a", BODY, 0.0, "k", 600.0))
    assert rig.fail(rig.one())
    if fields:
        rig.redis.hset(rig.keys.operation("a"), mapping=fields)
    assert rig.run(rig.commands.requeue_failure("a")) is True


def test_a_failure_that_is_put_back_takes_its_deduplication_key_again(rig):
    requeued(rig)
    assert rig.redis.get(rig.keys.dedup("k")) == b"a\x1fnormal:mail\x1fsend"
    assert 590_000 < rig.redis.pttl(rig.keys.dedup("k")) <= 600_000
    ((what, holder),) = rig.enqueue(NewOperation("b", b"{}", 0.0, "k", 600.0))
    assert (what, holder, holder.name, holder.processor) == (Accepted.DUPLICATE_KEY, "a", "normal:mail", "send")


def test_a_failure_that_is_put_back_leaves_its_key_to_the_one_that_has_it_now(rig):
    rig.enqueue(NewOperation("a", BODY, 0.0, "k", 600.0))
    assert rig.fail(rig.one())
    rig.enqueue(NewOperation("b", b"{}", 0.0, "k", 60.0))
    assert rig.run(rig.commands.requeue_failure("a")) is True
    assert rig.redis.get(rig.keys.dedup("k")) == b"b\x1fnormal:mail\x1f"
    assert rig.redis.pttl(rig.keys.dedup("k")) <= 60_000


@pytest.mark.parametrize("window", ["", "0", "text", "9" * 16])
def test_a_window_that_is_none_takes_no_key(rig, window):
    requeued(rig, dw=window)
    assert rig.ready() == ["a"]
    assert rig.redis.get(rig.keys.dedup("k")) is None


@pytest.mark.parametrize(("kind", "side"), [("a", "async"), ("s", "sync")])
def test_what_is_released_goes_to_the_head_without_burning_an_attempt(rig, kind, side):
    rig.enqueue("a", "b", "c", kind=kind)
    delivery = rig.one()
    rig.clear_markers()
    assert rig.release(delivery)
    assert rig.ready() == ["a", "b", "c"]
    assert rig.marked() == {side}
    again = rig.one()
    assert (again.operation_id, again.attempts, again.crashes, again.deliveries) == ("a", 0, 0, 2)


def test_what_is_released_with_a_delay_waits(rig):
    delivery = rig.held("a")
    before = rig.now_ms()
    assert rig.release(delivery, delay=30.0)
    assert before + 30_000 <= rig.score(rig.keys.delayed, "a") <= rig.now_ms() + 30_000
    assert (rig.ready(), rig.fields("a")["st"]) == ([], "delayed")


def test_a_stale_release_is_not_counted(rig):
    delivery = rig.held("a")
    assert not rig.release(stale(delivery))
    assert rig.metric("stale_acks") == 0
