"""Enqueue, and the markers that wake workers."""

from __future__ import annotations

import time

import pytest

from queue_system.broker.messages import MAX_ENQUEUE, Accepted, NewOperation
from queue_system.errors import BrokerReplyError

QUEUED, SCHEDULED = Accepted.QUEUED, Accepted.SCHEDULED
DUPLICATE_ID, DUPLICATE_KEY = Accepted.DUPLICATE_ID, Accepted.DUPLICATE_KEY


def keyed(operation_id: str, key: str, *, window: float = 600.0, delay: float = 0.0) -> NewOperation:
    return NewOperation(operation_id, b"{}", delay, key, window)


def test_queued_in_order(rig):
    before = rig.now_ms()
    assert rig.enqueue("a", "b", "c") == [(QUEUED, "a"), (QUEUED, "b"), (QUEUED, "c")]
    assert rig.ready() == ["a", "b", "c"]
    fields = rig.fields("a")
    assert before <= int(fields["ts"]) == int(fields["rd"]) <= rig.now_ms()
    assert fields == {"st": "ready", "q": "normal:mail", "b": "body of a", "ts": fields["ts"], "rd": fields["rd"]}
    assert rig.metric("enqueued") == 3


@pytest.mark.parametrize(
    ("first", "second", "on_record", "marked"),
    [
        ("a", "a", "a", "async"), ("s", "s", "s", "sync"), ("u", "u", "u", "async"),
        ("a", "u", "a", "async"), ("s", "u", "s", "sync"), ("u", "s", "s", "sync"),
        ("a", "s", "m", "async"), ("s", "a", "m", "async"),
    ],
)  # fmt: skip
def test_what_follows_one_of_its_like_makes_its_queue_known_and_wakes_the_right_worker(
    rig, first, second, on_record, marked
):
    rig.enqueue("elsewhere", queue="other")  # the lane's first request, which is looked at more closely
    rig.enqueue("a", kind=first)
    rig.redis.delete(rig.keys.wake, rig.keys.wake_sync)
    rig.enqueue("b", kind=second)
    assert rig.ready() == ["a", "b"]
    assert rig.redis.hget(rig.keys.registry, "normal:mail") == on_record.encode()
    assert rig.marked() == {marked}
    rig.enqueue("c", kind=second)
    assert rig.redis.hget(rig.keys.registry, "normal:mail") == on_record.encode()
    assert rig.enqueue("c", kind=second) == [(DUPLICATE_ID, "c")]
    assert (rig.ready(), rig.metric("enqueued"), rig.metric("deduplicated")) == (["a", "b", "c"], 4, 1)


def test_what_is_refused_makes_no_queue_known(rig):
    rig.enqueue("a", queue="other")
    rig.garbage = True
    rig.redis.set(rig.keys.prefix + "normal:mail", "no list")
    with pytest.raises(BrokerReplyError):
        rig.enqueue("b")
    assert rig.redis.hkeys(rig.keys.registry) == [b"normal:other"]


def test_scheduled_is_due_after_its_delay(rig):
    before = rig.now_ms()
    assert rig.enqueue("a", delay=60.0) == [(SCHEDULED, "a")]
    due = rig.score(rig.keys.delayed, "a")
    assert before + 60_000 <= due <= rig.now_ms() + 60_000
    assert rig.fields("a")["st"] == "delayed"
    assert rig.fields("a")["rd"] == str(due)
    assert (rig.ready(), rig.metric("enqueued")) == ([], 1)
    assert rig.marked() == {"async"}, "a worker that waits has to learn when to look again"


def test_an_id_that_exists_is_not_accepted_again(rig):
    rig.enqueue("a")
    assert rig.enqueue("b", "a") == [(QUEUED, "b"), (DUPLICATE_ID, "a")]
    assert rig.enqueue("a", queue="other", priority="high", delay=60.0) == [(DUPLICATE_ID, "a")]
    assert rig.ready() == ["a", "b"]
    assert rig.fields("a")["q"] == "normal:mail"
    assert (rig.metric("enqueued"), rig.metric("deduplicated")) == (2, 2)


def test_one_request_may_have_the_same_twice(rig):
    answers = rig.enqueue("a", "a", keyed("b", "k"), keyed("c", "k"), keyed("b", "other"), keyed("d", "other"))
    assert answers == [
        (QUEUED, "a"), (DUPLICATE_ID, "a"), (QUEUED, "b"), (DUPLICATE_KEY, "b"), (DUPLICATE_ID, "b"), (QUEUED, "d")
    ]  # fmt: skip
    assert rig.ready() == ["a", "b", "d"]
    assert (rig.metric("enqueued"), rig.metric("deduplicated")) == (3, 3)
    assert rig.fields("a")["b"] == "body of a"


@pytest.mark.parametrize("state", ["leased", "delayed", "failed", "done"])
def test_an_id_is_taken_in_every_state(rig, state):
    delivery = rig.held("a")
    if state == "delayed":
        assert rig.retry(delivery)
    elif state == "failed":
        assert rig.fail(delivery)
    elif state == "done":
        assert rig.complete(delivery, done_ttl=60.0) == [True]
    assert rig.fields("a")["st"] == state
    assert rig.enqueue("a") == [(DUPLICATE_ID, "a")]


def test_a_deduplication_key_names_its_holder(rig):
    assert rig.enqueue(keyed("a", "k")) == [(QUEUED, "a")]
    assert rig.enqueue(keyed("b", "k"), keyed("c", "other")) == [(DUPLICATE_KEY, "a"), (QUEUED, "c")]
    assert rig.ready() == ["a", "c"]
    assert rig.ttl("b") == -2
    assert (rig.metric("enqueued"), rig.metric("deduplicated")) == (2, 1)


SENDS = (
    b'K1:\x02 {"v":1,"operation_id":"\\",\\"processor\\":\\"other\\"","processor":"send.now","processor_module":"app"}'
)


@pytest.mark.parametrize(
    ("body", "processor"),
    [(SENDS, "send.now"), (b"bytes", ""), (b'"processor":"two words"', ""), (b'"processor":"a\\b"', "")],
)
def test_a_duplicate_is_told_the_holders_queue_and_processor(rig, body, processor):
    rig.enqueue(NewOperation("a", body, 0.0, "k", 600.0), queue="mail", priority="high")
    for again in (keyed("b", "k"), "a", NewOperation("a", b"", delay=60.0)):  # by key, and by id in both scripts
        ((_, holder),) = rig.enqueue(again, queue="other")
        assert (holder, holder.name, holder.processor) == ("a", "high:mail", processor)


def test_a_duplicate_within_a_request_is_told_the_holders_queue_and_processor(rig):
    one = NewOperation("a", SENDS, 0.0, "k", 600.0)
    answers = rig.enqueue(one, keyed("b", "k"), "a", queue="mail", priority="low")
    assert [(holder, holder.name, holder.processor) for _, holder in answers[1:]] == [("a", "low:mail", "send.now")] * 2


def test_a_holder_is_told_when_its_operation_is_gone(rig):
    rig.enqueue(NewOperation("a", SENDS, 0.0, "k", 600.0))
    assert rig.complete(rig.one()) == [True]
    ((_, holder),) = rig.enqueue(keyed("b", "k"))
    assert (holder, holder.name, holder.processor) == ("a", "normal:mail", "send.now")


@pytest.mark.parametrize("entry", ["a", "a b\x1fno queue\x1fc d"])
def test_what_an_entry_does_not_say_is_not_known(rig, entry):
    rig.redis.set(rig.keys.dedup("k"), entry)
    ((_, holder),) = rig.enqueue(keyed("b", "k"))
    assert (holder, holder.name) == (entry.partition("\x1f")[0].replace(" ", ""), "")


def test_an_id_whose_key_is_no_hash_is_told_without_its_place(rig):
    rig.redis.set(rig.keys.operation("a"), "text")
    for again in ("a", NewOperation("a", b"", delay=60.0)):
        ((what, holder),) = rig.enqueue(again)
        assert (what, holder, holder.name, holder.processor) == (DUPLICATE_ID, "a", "", "")
    rig.redis.delete(rig.keys.operation("a"))


@pytest.mark.parametrize(("delay", "window"), [(0.0, 600.0), (60.0, 600.0)])
def test_the_window_counts_from_the_due_time(rig, delay, window):
    rig.enqueue(keyed("a", "k", window=window, delay=delay))
    left = rig.redis.pttl(rig.keys.dedup("k"))
    assert (delay + window) * 1000 - 5000 < left <= (delay + window) * 1000


def test_a_key_is_free_after_its_window(rig):
    rig.enqueue(keyed("a", "k"))
    rig.redis.delete(rig.keys.dedup("k"))  # as its expiry does
    assert rig.enqueue(keyed("b", "k")) == [(QUEUED, "b")]


def test_a_key_stays_held_when_its_operation_is_done(rig):
    rig.enqueue(keyed("a", "k"))
    rig.complete(rig.one())
    assert rig.enqueue(keyed("b", "k")) == [(DUPLICATE_KEY, "a")]


def test_keys_of_any_content(rig):
    odd = "ключ with spaces\n\x00 and \ud800" * 100
    assert rig.enqueue(keyed("a", odd), keyed("b", odd)) == [(QUEUED, "a"), (DUPLICATE_KEY, "a")]


def test_duplicates_within_one_call(rig):
    replies = rig.enqueue(keyed("a", "k"), keyed("a", "l"), keyed("b", "k"), keyed("c", "l"))
    assert replies == [(QUEUED, "a"), (DUPLICATE_ID, "a"), (DUPLICATE_KEY, "a"), (QUEUED, "c")]
    assert rig.ready() == ["a", "c"]


def test_ready_and_scheduled_in_one_call(rig):
    replies = rig.enqueue(NewOperation("a", b"{}"), NewOperation("b", b"{}", 60.0), NewOperation("c", b"{}"))
    assert replies == [(QUEUED, "a"), (SCHEDULED, "b"), (QUEUED, "c")]
    assert (rig.ready(), rig.members(rig.keys.delayed)) == (["a", "c"], ["b"])


def test_a_thousand_in_one_call(rig):
    ids = [f"operation-{number:04}" for number in range(MAX_ENQUEUE)]
    assert rig.enqueue(*ids) == [(QUEUED, one) for one in ids]
    assert rig.ready() == ids
    assert rig.metric("enqueued") == 1000


def test_bodies_are_any_bytes(rig):
    body = bytes(range(256)) * 40
    rig.enqueue(NewOperation("a", body))
    assert rig.one().body == body


@pytest.mark.parametrize(("kind", "side"), [("a", "async"), ("s", "sync"), ("m", "async")])
def test_a_marker_is_set_for_the_side_that_can_take_it(rig, kind, side):
    rig.enqueue("a", kind=kind)
    assert rig.marked() == {side}
    wait = rig.commands.wait(for_sync=True, for_async=True, timeout=5.0)
    assert rig.run(wait) == side
    assert rig.marked() == set()


def test_a_duplicate_wakes_nobody(rig):
    rig.enqueue("a")
    rig.clear_markers()
    rig.enqueue("a")
    assert rig.marked() == set()


def test_waiting_is_for_the_wanted_side_only_and_bounded(rig):
    rig.enqueue("a", kind="s")
    assert rig.run(rig.commands.wait(for_sync=False, for_async=True, timeout=0.01)) is None
    assert rig.marked() == {"sync"}
    assert rig.run(rig.commands.wait(for_sync=True, for_async=False, timeout=5.0)) == "sync"
    assert rig.run(rig.commands.wait(for_sync=True, for_async=True, timeout=0.0)) is None


def test_one_worker_can_be_rung(rig):
    rig.run(rig.commands.ring("me"))
    rig.run(rig.commands.ring("me"))
    assert 0 < rig.redis.pttl(rig.keys.ring("me")) <= 5_000
    assert rig.run(rig.commands.wait(for_sync=True, for_async=True, timeout=0.01, worker="you")) is None
    assert rig.redis.exists(rig.keys.ring("me"))
    began = time.monotonic()
    assert rig.run(rig.commands.wait(for_sync=True, for_async=True, timeout=30.0, worker="me")) is None
    assert time.monotonic() - began < 20
    assert not rig.redis.exists(rig.keys.ring("me"))
