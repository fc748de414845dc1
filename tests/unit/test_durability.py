"""``durability``: how it is chosen, what is sent for it, and what is told when replicas do not confirm."""

import pytest
from fakes import Producer, Recorder, compute, queued, sent

from queue_system import BrokerUnavailableError, ConfigurationError, NotDurableError, QueueConfig
from queue_system.events import Enqueued, EnqueueFailed
from queue_system.settings import Settings

FEW = {"durability": "wait", "durability_replicas": 2, "durability_timeout": 0.25}


def answering(confirmed):
    def answer(call):
        return confirmed if call.name == "WAIT" else queued(call)

    return answer


def waits(producer: Producer) -> list[list[int]]:
    return [call.args for call in producer.broker.named("WAIT")]


def test_by_default_the_primary_is_enough(make):
    producer = make()
    assert producer.enqueue({}, compute)["status"] == "queued"
    assert waits(producer) == []


def test_a_configuration_may_ask_for_replicas(make):
    producer = make(**FEW)
    producer.answer = answering(2)
    assert producer.enqueue({}, compute)["status"] == "queued"
    assert [each["status"] for each in producer.enqueue_batch([{}] * 3, compute)] == ["queued"] * 3
    assert waits(producer) == [[2, 250]] * 2


def test_a_call_may_ask_for_replicas_or_not(make):
    producer = make()
    producer.answer = answering(1)
    producer.enqueue({}, compute, durability="wait")
    producer.enqueue_batch([{}, {}], compute, durability="wait")
    assert waits(producer) == [[1, 1000]] * 2
    producer = make(**FEW)
    producer.enqueue({}, compute, durability="primary")
    producer.enqueue_batch([{}, {}], compute, durability="primary")
    assert waits(producer) == []


def test_each_part_of_a_large_batch_is_confirmed(make):
    producer = make(**FEW)
    producer.answer = answering(2)
    assert len(producer.enqueue_batch([{}] * 2500, compute)) == 2500
    assert [call.name for call in producer.broker.calls] == ["enqueue", "WAIT"] * 3
    assert len({call.keys[-2] for call in producer.broker.named("enqueue")}) == 3, "each part has a lane of its own"


def test_a_large_batch_waits_once_for_replicas_that_do_not_confirm(make):
    producer = make(**FEW)
    producer.answer = answering(1)
    with pytest.raises(NotDurableError, match="1 of 2 replicas") as caught:
        producer.enqueue_batch([{}] * 2500, compute)
    assert [call.name for call in producer.broker.calls] == ["enqueue", "WAIT", "enqueue", "enqueue"]
    assert (caught.value.confirmed, len(caught.value.results)) == (1, 2500)


def test_the_choice_does_not_go_over_the_wire(make):
    producer = make(**FEW)
    producer.answer = answering(2)
    producer.enqueue({}, compute)
    (operation,) = sent(producer.broker)
    assert "durability" not in operation.body


def test_too_few_replicas_are_told_with_all_that_was_accepted(make):
    recorder = Recorder()
    producer = make(**FEW, listeners=[recorder])
    producer.answer = answering(1)
    with pytest.raises(NotDurableError, match=r"not confirmed \(1 of 2 replicas within 0.25 s\)") as caught:
        producer.enqueue_batch([{}] * 5, compute)
    error = caught.value
    assert (error.confirmed, error.replicas, len(error.results)) == (1, 2, 5)
    assert error.operation_ids == tuple(each.id for each in sent(producer.broker))
    assert error.operation_ids[0] in str(error)
    assert "and 2 more" in str(error)
    (told,) = recorder.of(Enqueued)
    assert (told.accepted, recorder.of(EnqueueFailed)) == (5, [EnqueueFailed("compute", "NotDurableError")])


def test_why_redis_could_not_tell_is_the_cause(make):
    producer = make(**FEW)
    cause = BrokerUnavailableError("instance state changed", kind="readonly")
    carry_out = producer.broker.carry_out
    producer.broker.carry_out = lambda call: cause if call.name == "WAIT" else carry_out(call)
    with pytest.raises(NotDurableError, match="instance state changed") as caught:
        producer.enqueue({}, compute)
    assert caught.value.__cause__ is cause


def test_replicas_that_are_away_do_not_open_the_breaker(make):
    producer = make(**FEW)
    producer.answer = answering(0)
    for _ in range(20):
        with pytest.raises(NotDurableError):
            producer.enqueue({}, compute)
    assert producer.enqueue({}, compute, durability="primary")["status"] == "queued"


@pytest.mark.parametrize("bad", ["WAIT", "none", "", True, 1, ["wait"]])
def test_another_value_is_refused_before_anything_is_sent(make, bad):
    with pytest.raises(ConfigurationError, match="use one of primary, wait"):
        QueueConfig(durability=bad, telemetry=None)
    producer = make()
    with pytest.raises(ConfigurationError, match="use one of primary, wait"):
        producer.enqueue({}, compute, durability=bad)
    with pytest.raises(ConfigurationError, match="use one of primary, wait"):
        producer.enqueue_batch([{}], compute, durability=bad)
    assert producer.broker.calls == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durability_replicas": 0}, "durability_replicas must be an integer of 1 or more"),
        ({"durability_timeout": 0}, "durability_timeout must be more than 0"),
        ({"durability_timeout": 5}, r"durability_timeout must be below connection_timeout \(5 s\)"),
        ({"durability_timeout": 0.5, "connection_timeout": 0.5}, "below connection_timeout"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        QueueConfig(**options, telemetry=None)


def test_the_time_limit_stays_below_that_of_a_command():
    assert QueueConfig(telemetry=None).durability_timeout == 1
    assert QueueConfig(connection_timeout=0.5, telemetry=None).durability_timeout == 0.25


def test_it_is_set_in_the_environment(monkeypatch):
    assert Settings.load().config(telemetry=None).durability == "primary"
    for name, value in {"": "Wait", "_REPLICAS": "2", "_TIMEOUT": "0.5"}.items():
        monkeypatch.setenv(f"QUEUE_SYSTEM_DURABILITY{name}", value)
    config = Settings.load().config(telemetry=None)
    assert (config.durability, config.durability_replicas, config.durability_timeout) == ("wait", 2, 0.5)
    monkeypatch.setenv("QUEUE_SYSTEM_DURABILITY", "always")
    with pytest.raises(ConfigurationError, match="QUEUE_SYSTEM_DURABILITY='always'"):
        Settings.load()


def test_an_error_of_an_enqueue_names_its_operations(make):
    producer = make()

    def unavailable(_):
        raise BrokerUnavailableError("away", ambiguous=True)

    producer.answer = unavailable
    with pytest.raises(BrokerUnavailableError) as caught:
        producer.enqueue({}, compute, operation_id="mine")
    assert caught.value.operation_ids == ("mine",)


def test_lanes_are_given_back_whatever_happens(make):
    producer = make(**FEW)
    producer.answer = answering(0)
    for _ in range(3):
        with pytest.raises(NotDurableError):
            producer.enqueue({}, compute)

    def broken(_):
        raise RuntimeError("in the middle of it")

    producer.answer = broken
    for _ in range(3):
        with pytest.raises(RuntimeError):
            producer.enqueue({}, compute)
    assert len({call.keys[0] for call in producer.broker.named("enqueue_one")}) == 1
