"""A request that is sent again because its reply was lost is carried out once, whatever has happened in between."""

from __future__ import annotations

import copy

import pytest

from queue_system.broker.messages import MAX_ENQUEUE, Accepted, NewOperation
from queue_system.errors import BrokerReplyError, BrokerUnavailableError

QUEUED, SCHEDULED = Accepted.QUEUED, Accepted.SCHEDULED
DUPLICATE_ID, DUPLICATE_KEY = Accepted.DUPLICATE_ID, Accepted.DUPLICATE_KEY


def new(operation_id: str, key: str | None = None, *, delay: float = 0.0) -> NewOperation:
    return NewOperation(operation_id, b"{}", delay, key, 600.0)


@pytest.fixture
def request_for(rig):
    """Makes the request for some operations; each run of it is one sending of it."""

    def make(*operations: NewOperation):
        return rig.commands.enqueue("mail", "normal", "a", operations)

    return make


def end_all(rig, how: str) -> None:
    for delivery in rig.claim().deliveries:
        if how == "done":
            assert rig.complete(delivery) == [True]
        else:
            assert rig.fail(delivery)
    if how == "purged":
        rig.run(rig.commands.purge_oldest_failures())


def test_what_waits_is_not_accepted_again(rig, request_for):
    request = request_for(new("a"), new("b", delay=60.0))
    assert rig.run(request) == rig.run(request) == [(QUEUED, "a"), (SCHEDULED, "b")]
    assert (rig.ready(), rig.metric("enqueued"), rig.metric("deduplicated")) == (["a"], 2, 0)


@pytest.mark.parametrize("how", ["done", "failed", "purged"])
def test_what_has_ended_is_not_accepted_again(rig, request_for, how):
    request = request_for(new("a"), new("b", "key"))
    assert rig.run(request) == [(QUEUED, "a"), (QUEUED, "b")]
    end_all(rig, how)
    rig.clear_markers()
    assert rig.run(request) == [(QUEUED, "a"), (QUEUED, "b")]
    assert (rig.ready(), rig.marked(), rig.metric("enqueued")) == ([], set(), 2)


def test_the_answer_is_that_of_the_first_sending(rig, request_for):
    rig.run(request_for(new("taken"), new("holder", "key")))
    request = request_for(new("a", "key"), new("taken"), new("b", delay=60.0), new("c"))
    answer = rig.run(request)
    assert answer == [(DUPLICATE_KEY, "holder"), (DUPLICATE_ID, "taken"), (SCHEDULED, "b"), (QUEUED, "c")]
    end_all(rig, "done")
    rig.redis.delete(rig.keys.dedup("key"))  # as its expiry does
    assert rig.run(request) == answer
    assert rig.ready() == []


def test_a_late_request_takes_nothing_from_the_answer_of_the_last(rig, request_for):
    late = request_for(new("late"))
    rig.commands.lanes.give_back(late.lane)
    last = request_for(new("a"))
    rig.run(last)
    with pytest.raises(BrokerReplyError, match="given up"):
        rig.run(late)
    end_all(rig, "done")
    assert rig.run(last) == [(QUEUED, "a")]
    assert rig.ready() == []


def test_another_request_for_the_same_is_another(rig, request_for):
    first = request_for(new("a"))
    rig.run(first)
    assert rig.run(request_for(new("a"))) == [(DUPLICATE_ID, "a")]
    end_all(rig, "done")
    rig.commands.lanes.give_back(first.lane)
    second = request_for(new("a"))
    assert second.keys == first.keys
    assert rig.run(second) == [(QUEUED, "a")]
    assert rig.run(second) == [(QUEUED, "a")]
    assert rig.ready() == ["a"]


def test_one_that_was_given_up_long_ago_is_refused(rig, request_for):
    """As when a connection has held it back: its lane has gone on, and its answer is forgotten."""
    late = request_for(new("late"))
    rig.commands.lanes.give_back(late.lane)
    rig.run(request_for(new("a")))
    with pytest.raises(BrokerReplyError, match="given up"):
        rig.run(late)
    assert (rig.ready(), rig.metric("enqueued")) == (["a"], 1)


def test_as_many_as_one_request_may_have(rig, request_for):
    request = request_for(*(new(f"operation-{n}", delay=60.0 * (n % 2)) for n in range(MAX_ENQUEUE)))
    answer = rig.run(request)
    rig.run(rig.commands.purge_ready("mail", "normal"))
    rig.run(rig.commands.purge_ready("mail", "normal"))
    assert len(answer) == MAX_ENQUEUE
    assert rig.run(request) == answer
    assert rig.ready() == []
    assert rig.redis.strlen(request.lane.key) < 3 * MAX_ENQUEUE


def test_an_answer_is_kept_for_a_while(rig, request_for):
    request = request_for(new("a"))
    rig.run(request)
    memory = request.args[4]
    assert memory - 5000 < rig.redis.pttl(request.lane.key) <= memory
    rig.redis.delete(request.lane.key)  # as its expiry does
    assert rig.run(request) == [(DUPLICATE_ID, "a")]


@pytest.mark.parametrize(("container", "delay", "accepted"), [("list", 0.0, QUEUED), ("delayed", 60.0, SCHEDULED)])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_is_refused_leaves_nothing(rig, request_for, container, delay, accepted, earlier):
    rig.garbage = True
    if earlier:
        first = request_for(new("earlier", "other"))
        rig.run(first)
        rig.commands.lanes.give_back(first.lane)
        end_all(rig, "done")
    key = rig.keys.delayed if container == "delayed" else rig.keys.ready("mail", "normal")
    rig.redis.set(key, "no container")
    request, before = request_for(new("a", "key", delay=delay)), all_but_lane(rig)
    with pytest.raises(BrokerReplyError):
        rig.run(request)
    assert all_but_lane(rig) == before
    rig.redis.delete(key)
    if earlier:
        assert rig.run(first) == [(QUEUED, "earlier")], "its answer is still there"
    assert rig.run(request) == [(accepted, "a")]


@pytest.mark.parametrize("key", ["registry", "dedup"])
def test_what_cannot_be_read_is_refused_before_anything_is_written(rig, request_for, key):
    rig.garbage = True
    broken = rig.keys.registry if key == "registry" else rig.keys.dedup("key")
    rig.redis.rpush(broken, "neither a hash nor a text")
    request, before = request_for(new("a"), new("b", "key")), all_but_lane(rig)
    with pytest.raises(BrokerReplyError):
        rig.run(request)
    assert (all_but_lane(rig), rig.redis.exists(request.lane.key)) == (before, 0)
    rig.redis.delete(broken)
    assert rig.run(request) == [(QUEUED, "a"), (QUEUED, "b")]


def all_but_lane(rig) -> set[bytes]:
    """The names of all keys, but for those that only say what was answered."""
    return {key for key in rig.redis.scan_iter(f"{rig.keys.prefix}*") if b":sent:" not in key}


@pytest.mark.on_servers
def test_an_answer_is_given_though_nothing_can_be_written_any_more(rig, request_for):
    """As when Redis has run out of memory meanwhile: the back end in memory has no limit to be set."""
    request = request_for(new("a"))
    rig.run(request)
    rig.redis.config_set("maxmemory", 1)
    try:
        assert rig.run(request) == [(QUEUED, "a")]
        with pytest.raises(BrokerUnavailableError, match="out of memory"):
            rig.run(request_for(new("b")))
    finally:
        rig.redis.config_set("maxmemory", 0)
    assert rig.ready() == ["a"]


def test_many_requests_in_one_round_trip(rig, request_for):
    requests = [request_for(new(name)) for name in "abc"]
    answers = rig.broker.run_many(requests)
    end_all(rig, "done")
    one_more = request_for(new("d"))
    assert rig.broker.run_many([*requests, one_more]) == [*answers, [(QUEUED, "d")]]
    assert rig.ready() == ["d"]


def test_the_source_is_the_same_request_too(rig, request_for):
    request = request_for(new("a"))
    rig.run(request)
    end_all(rig, "done")
    rig.redis.script_flush()
    assert rig.run(copy.copy(request)) == [(QUEUED, "a")]
    assert rig.ready() == []
