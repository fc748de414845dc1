"""Bad input: one clear error from one hierarchy, whose text says what to do, and nothing is sent."""

import functools

import pytest
from fakes import compute

from queue_system import (
    ConfigurationError,
    EntityTooLargeError,
    InvalidOperationError,
    QueueError,
    SerializationError,
    UnresolvableFunctionError,
)


def nested(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


class Tasks:
    def method(self, entity):
        return entity


def fails(_):
    raise OSError("broken serializer")


A_CIRCLE: dict = {}
A_CIRCLE["self"] = A_CIRCLE

BAD = [
    ("entity", None, InvalidOperationError, "an entity is a dict, not NoneType: wrap it"),
    ("entity", [1], InvalidOperationError, "wrap it"),
    ("entity", "text", InvalidOperationError, "wrap it"),
    (
        "entity",
        {"a": [0, object()]},
        SerializationError,
        r"entity\['a'\]\[1\] .* convert it, or pass custom_serializer",
    ),
    ("entity", {"a": float("nan")}, SerializationError, r"entity\['a'\] is nan.*: use None or a string"),
    ("entity", {("a", 1): 1}, SerializationError, "is not a string"),
    ("entity", {"a": "\ud800"}, SerializationError, r"entity\['a'\]"),
    ("entity", {"a": "x" * 300_000}, EntityTooLargeError, "enqueue a reference .* or raise the limit"),
    ("entity", nested(101), EntityTooLargeError, "max_depth=100: flatten it"),
    ("entity", A_CIRCLE, EntityTooLargeError, "contains itself"),
    (
        "processor",
        lambda entity: entity,
        UnresolvableFunctionError,
        "it is a lambda: define it with def at module level",
    ),
    ("processor", functools.partial(compute), UnresolvableFunctionError, "functools.partial: define it"),
    ("processor", Tasks().method, UnresolvableFunctionError, "bound to an object: define it"),
    ("processor", Tasks.method, UnresolvableFunctionError, "inside of a class: define it"),
    ("processor", Tasks, UnresolvableFunctionError, "not a Python function: define it"),
    ("processor", print, UnresolvableFunctionError, "not a Python function"),
    ("processor", None, InvalidOperationError, "a processor is a function or 'module:name', not NoneType"),
    ("processor", 5, InvalidOperationError, "a processor is a function"),
    ("processor", "", UnresolvableFunctionError, "use 'module:name'"),
    ("processor", "os system", UnresolvableFunctionError, "use 'module:name'"),
    ("processor", "a:b:c", UnresolvableFunctionError, "use 'module:name'"),
    ("queue_name", "", ConfigurationError, "use 1 to 64 characters"),
    ("queue_name", "a b", ConfigurationError, "use 1 to 64 characters"),
    ("queue_name", "x" * 65, ConfigurationError, "use 1 to 64 characters"),
    ("queue_name", 5, ConfigurationError, "use 1 to 64 characters"),
    ("queue_name", "__callbacks__", InvalidOperationError, "for callbacks only: choose another name"),
    ("priority", "urgent", ConfigurationError, "use one of high, normal, low"),
    ("priority", "High", ConfigurationError, "use one of high, normal, low"),
    ("priority", None, ConfigurationError, "use one of high, normal, low"),
    ("operation_id", "", InvalidOperationError, "use 1 to 128 printable ASCII characters"),
    ("operation_id", "a b", InvalidOperationError, "use 1 to 128"),
    ("operation_id", "ü", InvalidOperationError, "use 1 to 128"),
    ("operation_id", "x" * 129, InvalidOperationError, "use 1 to 128"),
    ("operation_id", 5, InvalidOperationError, "use 1 to 128"),
    ("retry_config", {"max_attempts": 3}, InvalidOperationError, "must be a QueueRetryConfig, not dict"),
    ("retry_config", {}, InvalidOperationError, "must be a QueueRetryConfig, not dict"),
    ("retry_config", 0, InvalidOperationError, "must be a QueueRetryConfig, not int"),
    ("on_success", lambda data: data, UnresolvableFunctionError, "it is a lambda: define it with def at module level"),
    ("on_success", 5, UnresolvableFunctionError, "not a Python function: define it"),
    ("on_success", "", UnresolvableFunctionError, "use 'module:name'"),
    ("on_failure", "not a name", UnresolvableFunctionError, "use 'module:name'"),
    ("timeout", 0, InvalidOperationError, "timeout must be more than 0 seconds"),
    ("timeout", -1, InvalidOperationError, "more than 0 seconds"),
    ("timeout", "5", InvalidOperationError, "timeout must be a finite number"),
    ("timeout", True, InvalidOperationError, "finite number"),
    ("timeout", float("inf"), InvalidOperationError, "finite number"),
    ("deduplication_key", "", InvalidOperationError, "must be a non-empty string"),
    ("deduplication_key", 5, InvalidOperationError, "must be a non-empty string"),
    ("delay", -1, InvalidOperationError, "delay must be 0 or more seconds"),
    ("delay", None, InvalidOperationError, "delay must be a finite number"),
    ("delay", float("nan"), InvalidOperationError, "finite number"),
    ("delay", 1e300, InvalidOperationError, "at most a hundred years"),
    ("delay", 10**400, InvalidOperationError, "finite number"),
    ("deduplication_window", 0, InvalidOperationError, "more than 0 seconds"),
    ("deduplication_window", 1e300, InvalidOperationError, "at most a hundred years"),
]
BAD_IDS = [f"{name}-{number}" for number, (name, *_) in enumerate(BAD)]


@pytest.mark.parametrize(("name", "value", "error", "told"), BAD, ids=BAD_IDS)
def test_bad_input_is_one_clear_error_and_sends_nothing(producer, name, value, error, told):
    arguments = {"entity": {"n": 1}, "processor": compute, name: value}
    with pytest.raises(error, match=told) as caught:
        producer.enqueue(**arguments)
    assert isinstance(caught.value, QueueError)
    assert producer.broker.calls == []


def test_a_local_function_is_refused(producer):
    def local(entity):
        return entity

    with pytest.raises(UnresolvableFunctionError, match="inside of a function: define it with def at module level"):
        producer.enqueue({}, local)
    assert producer.broker.calls == []


@pytest.mark.parametrize("serializer", [fails, lambda value: value, 5])
def test_a_serializer_that_does_not_work_is_told(producer, serializer):
    with pytest.raises(InvalidOperationError):
        producer.enqueue({"z": 1j}, compute, custom_serializer=serializer)
    assert producer.broker.calls == []


def test_the_limits_are_those_of_the_configuration(make):
    with pytest.raises(EntityTooLargeError):
        make(max_operation_bytes=200).enqueue({"a": "x" * 100}, compute)
    assert make(max_depth=200).enqueued(nested(150), compute, deduplicate=True)
