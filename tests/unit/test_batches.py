"""Batches: one call for many, one result for each."""

import pytest
from fakes import compute, done, sent

from queue_system import QueueError, QueueRetryConfig

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
    assert [operation.id for operation in operations] == [result["operation_id"] for result in results]
    assert len({operation.id for operation in operations}) == 3
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


def test_a_given_key_is_that_of_all(producer):
    producer.enqueue_batch([{"n": 1}, {"n": 2}], compute, deduplicate=True, deduplication_key="k")
    one, two = [operation.digest for operation in sent(producer.broker)]
    assert one == two != ""


def test_a_custom_serializer_serves_the_whole_batch(producer):
    producer.enqueue_batch([{"z": 1j}, {"z": 2j}], compute, custom_serializer=abs, deduplicate=True)
    assert [operation.body["entity"] for operation in sent(producer.broker)] == [{"z": 1.0}, {"z": 2.0}]


@pytest.mark.parametrize(
    ("entities", "options", "told"),
    [
        ({"n": 1}, {}, "entities must be a list of dicts, not dict"),
        ("text", {}, "not str"),
        (None, {}, "not NoneType"),
        (({"n": n} for n in range(3)), {}, "not generator"),
        ([{}, 5], {}, "an entity is a dict, not int"),
        ([{}, {"a": object()}], {}, r"entity\['a'\]"),
        ([{}, {}], {"operation_id": "x"}, "each operation gets its own"),
        ([{}, {}], {"priority": "urgent"}, "use one of high, normal, low"),
        ([{}, {"x": "y" * 300_000}], {}, "more than max_operation_bytes"),
    ],
)
def test_one_bad_entity_refuses_the_whole_batch(producer, entities, options, told):
    with pytest.raises(QueueError, match=told):
        producer.enqueue_batch(entities, compute, **options)
    assert producer.broker.calls == []
