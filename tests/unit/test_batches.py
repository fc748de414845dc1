"""Batches: one call for many, one result for each."""

import asyncio
from copy import copy
from operator import itemgetter

import pytest
from fakes import AsyncFakeBroker, Recorder, compute, done, queued, sent

from queue_system import (
    AsyncQueueManager,
    BrokerReplyError,
    BrokerUnavailableError,
    QueueConfig,
    QueueError,
    QueueRetryConfig,
    SerializationError,
)
from queue_system.events import Enqueued, EnqueueFailed
from queue_system.keys import dedup_digest

RETRY = QueueRetryConfig.fixed(9, 2)


def test_a_batch_is_one_call_with_one_result_for_each(producer):
    producer.answer = lambda _: [b"q", b"dfirst", b"s"]
    results = producer.enqueue_batch(
        [{"n": n} for n in range(3)], compute, priority="high", retry_config=RETRY, delay=2, on_success=done
    )
    assert [result["status"] for result in results] == ["queued", "duplicate", "scheduled"]
    assert results[1]["duplicate_of"] == "first"
    operations = sent(producer.broker)
    assert len(producer.broker.calls) == 1
    assert [operation.body["entity"] for operation in operations] == [{"n": 0}, {"n": 1}, {"n": 2}]
    ids = [operation.id for operation in operations]
    assert [result["operation_id"] for result in results] == [ids[0], "first", ids[2]], "a duplicate has the holder's"
    assert len(set(ids)) == 3
    for operation in operations:
        assert (operation.queue, operation.delay) == ("high:compute", 2000)
        assert (operation.body["on_success"], operation.body["retry_config"]) == (("done", "fakes"), RETRY.to_dict())


def test_many_go_in_one_round_trip_of_bounded_calls(producer):
    results = producer.enqueue_batch([{"n": n} for n in range(2500)], compute)
    assert [(len(call.args) - 3) // 5 for call in producer.broker.calls] == [1000, 1000, 500]
    assert [operation.id for operation in sent(producer.broker)] == [result["operation_id"] for result in results]


def test_an_empty_batch_sends_nothing(producer):
    assert producer.enqueue_batch([], compute) == []
    assert producer.broker.calls == []


def test_each_entity_of_a_batch_has_a_hash_of_its_own(producer):
    producer.enqueue_batch([{"n": 1}, {"n": 2}, {"n": 1}], compute, deduplicate=True)
    one, two, three = [operation.digest for operation in sent(producer.broker)]
    assert one == three != two


def test_each_entity_of_a_batch_may_have_a_key_of_its_own(producer):
    entities = [{"n": n} for n in (1, 2, 1)]
    producer.enqueue_batch(entities, compute, deduplicate=True, deduplication_key=lambda entity: f"n-{entity['n']}")
    digests = [operation.digest for operation in sent(producer.broker)]
    assert digests == [dedup_digest("n-1"), dedup_digest("n-2"), dedup_digest("n-1")]


def test_a_batch_of_one_may_have_one_key(producer):
    producer.enqueue_batch([{"n": 1}], compute, deduplication_key="k")
    assert [operation.digest for operation in sent(producer.broker)] == [dedup_digest("k")]
    assert producer.enqueue_batch([], compute, deduplication_key="k") == []


@pytest.mark.parametrize("ids", [["a", "b", "a"], ("a", "b", "c")])
def test_each_operation_of_a_batch_may_have_an_id_of_its_own(producer, ids):
    results = producer.enqueue_batch([{"n": n} for n in range(3)], compute, operation_ids=ids)
    assert [operation.id for operation in sent(producer.broker)] == list(ids)
    assert [result["operation_id"] for result in results] == list(ids)


def test_a_custom_serializer_serves_the_whole_batch(producer):
    producer.enqueue_batch([{"z": 1j}, {"z": 2j}], compute, custom_serializer=abs, deduplicate=True)
    assert [operation.body["entity"] for operation in sent(producer.broker)] == [{"z": 1.0}, {"z": 2.0}]


@pytest.mark.parametrize(
    ("entities", "options", "told"),
    [
        ({"n": 1}, {}, "entities must be a list of dicts, not dict"),
        ([{}, {}], {"deduplication_key": "k"}, "one deduplication_key for 2 entities .* give a function"),
        ([{}], {"deduplication_key": ""}, "non-empty string"),
        ([{}, {}], {"deduplication_key": 5}, "non-empty string"),
        ([{"k": "a"}, {}], {"deduplication_key": itemgetter("k")}, r"entities\[1\]: .* raised KeyError: 'k'"),
        ([{"k": "a"}, {"k": 5}], {"deduplication_key": itemgetter("k")}, r"entities\[1\]: .* must return .* got 5"),
        ([{"k": ""}], {"deduplication_key": itemgetter("k")}, r"entities\[0\]: .* must return .* got ''"),
        ([{}, {}], {"operation_ids": ["a"]}, "one id for each of the 2 entities, not 1"),
        ([], {"operation_ids": ["a"]}, "one id for each of the 0 entities, not 1"),
        ([{}, {}], {"operation_ids": "ab"}, "operation_ids must be a list of texts, one for each entity, not str"),
        ([{}, {}], {"operation_ids": {"a", "b"}}, "not set"),
        ([{}, {}], {"operation_ids": ["a", "b c"]}, r"entities\[1\]: bad operation_id 'b c'"),
        ("text", {}, "not str"),
        (None, {}, "not NoneType"),
        (({"n": n} for n in range(3)), {}, "not generator"),
        ([{}, 5], {}, r"entities\[1\]: an entity is a dict, not int"),
        ([{}, {"a": object()}], {}, r"entities\[1\]: entity\['a'\]"),
        ([{}, {}], {"operation_id": "x"}, "use operation_ids"),
        ([{}, {}], {"priority": "urgent"}, "use one of high, normal, low"),
        ([{}, {"x": "y" * 300_000}], {}, "more than max_operation_bytes"),
    ],
)
def test_one_bad_entity_refuses_the_whole_batch(producer, entities, options, told):
    with pytest.raises(QueueError, match=told):
        producer.enqueue_batch(entities, compute, **options)
    assert producer.broker.calls == []


@pytest.mark.parametrize("count", [1, 2500])
def test_an_error_says_which_entity_it_is_about(producer, count):
    entities = [{} for _ in range(count)]
    entities[-1] = {"a": object()}
    with pytest.raises(SerializationError) as caught:
        producer.enqueue_batch(entities, compute)
    assert (caught.value.index, caught.value.path) == (count - 1, "entity['a']")
    with pytest.raises(SerializationError) as caught:
        producer.enqueue({"a": object()}, compute)
    assert caught.value.index is None
    assert "entities" not in str(caught.value)


def failing_after(parts, error):
    """Answers so many calls, and then raises."""

    def answer(call):
        nonlocal parts
        parts -= 1
        if parts < 0:
            raise copy(error)
        return queued(call)

    return answer


IDS = [f"id-{n}" for n in range(3500)]


def outcome(error):
    return len(error.results), error.accepted, error.unknown, error.refused, error.operation_ids, error.ambiguous


@pytest.mark.parametrize(
    ("parts", "error", "unknown", "told"),
    [
        (0, BrokerUnavailableError("full", kind="oom"), 0, "full; none of the 3,500 operations was accepted"),
        (1, BrokerUnavailableError("full", kind="oom"), 0, "1,000 accepted, 2,500 not accepted"),
        (2, BrokerUnavailableError("gone", ambiguous=True), 1000, "2,000 accepted, 1,000 perhaps accepted, 500 not"),
        (3, BrokerUnavailableError("gone", ambiguous=True), 500, "3,000 accepted, 500 perhaps accepted$"),
        (1, BrokerReplyError("WRONGTYPE"), 0, "WRONGTYPE; of 3,500 operations: 1,000 accepted, 2,500 not accepted$"),
    ],
)
def test_a_batch_that_ends_half_way_says_what_was_accepted(make, parts, error, unknown, told):
    recorder = Recorder()
    producer = make(listeners=[recorder])
    producer.answer = failing_after(parts, error)
    with pytest.raises(type(error), match=told) as caught:
        producer.enqueue_batch([{}] * 3500, compute, operation_ids=IDS)
    done, sent_by_then = 1000 * parts, 1000 * parts + unknown
    assert outcome(caught.value) == (
        done,
        tuple(IDS[:done]),
        tuple(IDS[done:sent_by_then]),
        tuple(IDS[sent_by_then:]),
        tuple(IDS[done:]),
        bool(unknown),
    )
    assert len(producer.broker.calls) == parts + 1, "nothing was sent after it"
    assert [len(event.operation_ids) for event in recorder.of(Enqueued)] == [done] * (parts > 0)
    assert len(recorder.of(EnqueueFailed)) == 1


def test_a_duplicate_is_not_among_what_was_accepted(producer):
    answers = iter([[b"q"] * 999 + [b"dother"]])
    producer.answer = lambda _: next(answers, None) or failing_after(0, BrokerUnavailableError("full"))(_)
    with pytest.raises(BrokerUnavailableError, match="999 accepted, 1 duplicate, 500 not accepted") as caught:
        producer.enqueue_batch([{}] * 1500, compute, operation_ids=IDS[:1500])
    assert (caught.value.accepted, len(caught.value.results)) == (tuple(IDS[:999]), 1000)


def test_an_answer_that_nobody_knows_leaves_open_what_was_accepted(producer):
    producer.answer = lambda _: [b"?"] * 2
    with pytest.raises(BrokerReplyError, match="2 perhaps accepted") as caught:
        producer.enqueue_batch([{}, {}], compute, operation_ids=["a", "b"])
    assert outcome(caught.value) == (0, (), ("a", "b"), (), ("a", "b"), True)


def test_one_operation_that_is_refused_is_told_in_the_words_of_redis(producer):
    producer.answer = failing_after(0, BrokerUnavailableError("gone", ambiguous=True))
    with pytest.raises(BrokerUnavailableError, match=r"^gone$") as caught:
        producer.enqueue({}, compute, operation_id="mine")
    assert outcome(caught.value) == (0, (), ("mine",), (), ("mine",), True)


class NoServer(AsyncFakeBroker):
    async def server_version(self):
        raise BrokerUnavailableError("gone", kind="misconf", ambiguous=True)


async def test_what_was_never_sent_was_not_accepted(monkeypatch):
    config = QueueConfig(telemetry=None)
    monkeypatch.setattr(config, "new_async_broker", lambda **_: NoServer())
    with pytest.raises(BrokerUnavailableError, match="gone") as caught:
        await AsyncQueueManager(config).enqueue_batch([{}, {}], compute, operation_ids=["a", "b"])
    assert outcome(caught.value) == (0, (), (), ("a", "b"), ("a", "b"), False)


class Counting(AsyncFakeBroker):
    """Notes, for each call, how many turns another task has had by then."""

    def __init__(self):
        super().__init__(queued)
        self.turns, self.seen = 0, []

    async def run_all(self, calls, meanwhile):
        self.seen.append(self.turns)
        await asyncio.sleep(0)
        return await super().run_all(calls, meanwhile)

    async def count(self):
        while True:
            self.turns += 1
            await asyncio.sleep(0)


@pytest.mark.parametrize(("turn", "turns"), [(0.0, 3001), (float("inf"), 0)])
async def test_others_have_their_turn_while_a_large_batch_is_encoded(monkeypatch, turn, turns):
    monkeypatch.setattr("queue_system.manager._TURN", turn)
    config, broker = QueueConfig(telemetry=None), Counting()
    monkeypatch.setattr(config, "new_async_broker", lambda **_: broker)
    manager = AsyncQueueManager(config)
    manager._producers.get().checked = True  # the look at the server has turns of its own
    other = asyncio.create_task(broker.count())
    results = await manager.enqueue_batch([{}] * 3000, compute)
    other.cancel()
    assert len(results) == 3000
    assert broker.seen[0] in {turns, turns - 1}
    assert [after - before for before, after in zip(broker.seen, broker.seen[1:], strict=False)] == [1, 1]
