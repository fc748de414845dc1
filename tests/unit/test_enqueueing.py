"""Both managers, with a broker in place of Redis: what is sent, what is answered, and what is refused."""

import json
from contextlib import contextmanager

import pytest
from fakes import Recorder, compute, done, gave_up, send, sent

from queue_system import (
    BrokerUnavailableError,
    CircuitOpenError,
    ConfigurationError,
    EntityTooLargeError,
    QueueError,
    QueueRetryConfig,
    processor,
)
from queue_system.events import (
    Enqueued,
    EnqueueFailed,
)
from queue_system.registry import Registry

HERE = __name__
REGISTRY = Registry()
RETRY = QueueRetryConfig.fixed(9, 2)


@processor(
    registry=REGISTRY, queue="mail", priority="high", timeout=5, retry_config=RETRY, on_success=done, on_failure="app:f"
)
async def prepared(entity):
    return entity


@pytest.fixture
def producer(make):
    return make(registry=REGISTRY)


def test_an_operation_says_what_a_worker_needs(producer):
    result = producer.enqueue({"n": 1}, send)
    (operation,) = sent(producer.broker)
    assert operation.body == {
        "v": 1,
        "operation_id": operation.id,
        "processor": "send",
        "processor_module": "fakes",
        "queue": "send",
        "priority": "normal",
        "entity": {"n": 1},
    }
    assert (operation.queue, operation.kind) == ("normal:send", "a")
    assert (operation.delay, operation.digest) == (0, "")
    assert result == {
        "operation_id": operation.id,
        "status": "queued",
        "queue": "send",
        "priority": "normal",
        "processor": "send",
        "is_async": True,
    }


def test_what_is_said_of_one_operation_is_not_said_of_the_next(make):
    producer = make(registry=REGISTRY)
    for function in (send, compute):
        for queue in ("one", "two"):
            for priority in ("low", "high"):
                for timeout in (None, 5.0):
                    body = producer.enqueued({"n": 1}, function, queue, priority, timeout=timeout).body
                    assert (body["processor"], body["queue"], body["priority"]) == (function.__name__, queue, priority)
                    assert body.get("timeout") == timeout
                    assert list(body["entity"]) == ["n"]


def test_a_limit_is_that_of_the_configuration_whoever_was_first(make):
    assert make().enqueued({"n": "1" * 200}, send)
    with pytest.raises(EntityTooLargeError):
        make(max_operation_bytes=200).enqueue({"n": "1" * 200}, send)


@pytest.mark.parametrize("queue", ["", "a b", "__callbacks__", ["mail"], 1])
def test_a_bad_queue_is_refused_each_time(producer, queue):
    for _ in range(2):
        with pytest.raises(QueueError, match="queue"):
            producer.enqueue({}, send, queue)


def test_all_that_can_be_said_is_said(producer):
    operation = producer.enqueued(
        {"n": 1},
        compute,
        "reports",
        "low",
        "my-id",
        RETRY,
        done,
        "app.tasks:failed",
        2.5,
        "key",
        None,
        delay=1.5,
        deduplication_window=60,
    )
    assert (operation.queue, operation.kind, operation.id) == ("low:reports", "s", "my-id")
    assert (operation.delay, operation.window, len(operation.digest)) == (1500, 60_000, 64)
    assert operation.body["retry_config"] == RETRY.to_dict()
    assert operation.body["on_success"] == ("done", "fakes")
    assert operation.body["on_failure"] == ("failed", "app.tasks")
    assert operation.body["timeout"] == 2.5
    assert json.loads(operation.raw).keys() <= {*operation.body}, "nothing else goes over the wire"


def test_ids_are_unique_unless_given(producer):
    ids = {producer.enqueue({}, send)["operation_id"] for _ in range(100)}
    assert len(ids) == 100
    assert all(len(each) == 32 for each in ids)
    assert producer.enqueue({}, send, operation_id="mine")["operation_id"] == "mine"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"q", {"status": "queued"}),
        (b"s", {"status": "scheduled"}),
    ],
)
def test_the_result_says_what_became_of_it(producer, answer, told):
    producer.answer = lambda _: [answer]
    result = producer.enqueue({}, compute, operation_id="mine")
    common = {"queue": "compute", "priority": "normal", "processor": "compute", "is_async": False}
    assert result == {"operation_id": "mine", **common, **told}


NOBODY_KNOWS = (None, None, None, None)


@pytest.mark.parametrize(
    ("answer", "reason", "holder", "place"),
    [
        (b"i", "operation_id", "mine", NOBODY_KNOWS),
        (b"i\x1fhigh:compute\x1fcompute", "operation_id", "mine", ("compute", "high", "compute", False)),
        (b"i\x1f\x1f", "operation_id", "mine", NOBODY_KNOWS),
        (b"dother", "deduplication_key", "other", NOBODY_KNOWS),
        (b"dother\x1flow:mail\x1fsend", "deduplication_key", "other", ("mail", "low", "send", None)),
        (b"dother\x1flow:mail\x1fcompute", "deduplication_key", "other", ("mail", "low", "compute", None)),
        (b"dother\x1flow:mail\x1f", "deduplication_key", "other", ("mail", "low", None, None)),
        (b"dother\x1fno queue\x1fsend", "deduplication_key", "other", (None, None, "send", None)),
    ],
)
def test_a_duplicate_is_told_of_the_operation_that_is_there(producer, answer, reason, holder, place):
    producer.answer = lambda _: [answer]
    assert producer.enqueue({}, compute, operation_id="mine") == {
        "operation_id": holder,
        "status": "duplicate",
        "reason": reason,
        "duplicate_of": holder,
        **dict(zip(("queue", "priority", "processor", "is_async"), place, strict=True)),
    }


def test_what_the_processor_was_registered_with_is_its_default(producer):
    operation = producer.enqueued({}, prepared)
    assert operation.queue == "high:mail"
    assert (operation.body["timeout"], operation.body["retry_config"]) == (5.0, RETRY.to_dict())
    assert (operation.body["on_success"], operation.body["on_failure"]) == (("done", "fakes"), ("f", "app"))


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ({"priority": "normal"}, "priority", "normal"),  # although that is the default of the argument
        ({"priority": "low"}, "priority", "low"),
        ({"queue_name": "other"}, "queue", "other"),
        ({"timeout": 7}, "timeout", 7.0),
        ({"retry_config": QueueRetryConfig()}, "retry_config", QueueRetryConfig().to_dict()),
        ({"on_success": gave_up}, "on_success", ("gave_up", "fakes")),
        ({"on_failure": "app:other"}, "on_failure", ("other", "app")),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_what_is_said_when_enqueuing_wins(producer, given, field, value, batch):
    if batch:
        producer.enqueue_batch([{}], prepared, **given)
    else:
        producer.enqueue({}, prepared, **given)
    (operation,) = sent(producer.broker)
    assert operation.body[field] == value
    assert operation.queue == f"{operation.body['priority']}:{operation.body['queue']}"


@pytest.mark.parametrize(
    ("name", "reference", "is_async"),
    [
        (f"{HERE}:prepared", ("prepared", HERE), True),
        (f"{HERE}.prepared", ("prepared", HERE), True),
        ("prepared", ("prepared", HERE), True),
        ("elsewhere.tasks:work", ("work", "elsewhere.tasks"), None),
        ("elsewhere.tasks.work", ("work", "elsewhere.tasks"), None),
        ("unknown", ("unknown", None), None),
    ],
)
def test_a_processor_may_be_a_name(producer, name, reference, is_async):
    result = producer.enqueue({}, name)
    (operation,) = sent(producer.broker)
    assert (operation.body["processor"], operation.body["processor_module"]) == reference
    assert result["is_async"] is is_async
    assert operation.kind == ("u" if is_async is None else "a")
    assert operation.body["queue"] == ("mail" if is_async else reference[0])


def test_a_name_has_the_registered_defaults(producer):
    assert producer.enqueued({}, f"{HERE}:prepared").body["timeout"] == 5.0


@pytest.mark.parametrize("given", [f"{compute.__module__}:compute", compute])
def test_what_is_registered_between_two_calls_holds_for_the_second(make, given):
    registry = Registry()
    producer = make(registry=registry)
    assert "timeout" not in producer.enqueued({}, given).body
    registry.register(compute, timeout=7.0)
    assert producer.enqueued({}, given).body["timeout"] == 7.0


def test_functions_that_are_given_are_found_by_a_worker_of_this_process(make):
    producer = make(registry=Registry())
    operation = producer.enqueued({}, compute, on_success=done)
    body = operation.body
    assert producer.config.find_processor(body["processor"], body["processor_module"]).function is compute
    assert producer.config.find_callback(*body["on_success"]).function is done


def test_a_callback_may_be_a_registered_processor_of_any_name(make):
    registry = Registry()
    registry.register(lambda entity: entity, name="follow_up", module="app")
    producer = make(registry=registry)
    follow_up = registry.find("follow_up", "app").function
    assert producer.enqueued({}, compute, on_success=follow_up).body["on_success"] == ("follow_up", "app")


def test_a_local_callback_can_be_given_once_it_is_registered(producer):
    def local(data):
        return data

    producer.config.register_callback(local, name="local", module="app")
    assert producer.enqueued({}, compute, on_success=local).body["on_success"] == ("local", "app")
    assert producer.enqueued({}, compute, on_success="app:local").body["on_success"] == ("local", "app")


def test_a_second_callback_of_a_taken_name_is_refused(producer):
    producer.config.register_callback(done, name="after", module="app")
    producer.config.register_callback(done, name="after", module="app")
    with pytest.raises(ConfigurationError, match="is taken by"):
        producer.config.register_callback(gave_up, name="after", module="app")


def test_a_custom_serializer_gives_the_form_of_what_json_lacks(producer):
    operation = producer.enqueued({"z": 1j}, compute, custom_serializer=lambda z: [z.real, z.imag])
    assert operation.body["entity"] == {"z": [0.0, 1.0]}


def digest(producer, entity, **options):
    return producer.enqueued(entity, compute, deduplicate=True, **options).digest


def test_equal_content_has_an_equal_hash_whatever_the_order_of_keys(producer):
    assert digest(producer, {"a": 1, "b": {"x": 1, "y": [1, 2]}}) == digest(
        producer, {"b": {"y": [1, 2], "x": 1}, "a": 1}
    )
    assert digest(producer, {"a": (1, 2)}) == digest(producer, {"a": [1, 2]})
    assert digest(producer, {1: "a", "b": 2}) == digest(producer, {"b": 2, 1: "a"})
    assert digest(producer, {"a": {"x", "y", "z"}}) == digest(producer, {"a": {"z", "y", "x"}})


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": 1, "b": None}, {"a": "1"}, {"a": [1]}, {}])
def test_other_content_has_another_hash(producer, other):
    assert digest(producer, {"a": 1}) != digest(producer, other)


def test_the_hash_is_of_what_a_custom_serializer_makes(producer):
    options = {"custom_serializer": lambda z: [z.real, z.imag]}
    assert digest(producer, {"z": 1j}, **options) == digest(producer, {"z": [0.0, 1.0]}, **options)


def test_the_same_content_for_another_processor_or_queue_is_other_work(producer):
    one = digest(producer, {"a": 1})
    assert digest(producer, {"a": 1}, priority="high") == one
    assert digest(producer, {"a": 1}, queue_name="compute") == one
    assert digest(producer, {"a": 1}, queue_name="other") != one
    assert producer.enqueued({"a": 1}, "fakes:compute", deduplicate=True).digest == one
    assert producer.enqueued({"a": 1}, "fakes2:compute", deduplicate=True).digest != one
    assert producer.enqueued({"a": 1}, send, queue_name="compute", deduplicate=True).digest != one


def test_a_key_of_ones_own_goes_before_the_hash(producer):
    assert digest(producer, {"a": 1}, deduplication_key="k") == digest(producer, {"a": 2}, deduplication_key="k")


def test_the_window_is_that_of_the_configuration_unless_given(make):
    producer = make(deduplication_window=120)
    assert producer.enqueued({}, compute, deduplication_key="k").window == 120_000
    assert producer.enqueued({}, compute, deduplication_key="k", deduplication_window=1).window == 1000


def down(_):
    raise BrokerUnavailableError("Redis is away")


def test_an_outage_is_told_and_opens_the_breaker(producer):
    producer.answer = down
    for _ in range(5):
        with pytest.raises(BrokerUnavailableError, match="Redis is away"):
            producer.enqueue({}, compute)
    tried = len(producer.broker.calls)
    with pytest.raises(CircuitOpenError):
        producer.enqueue({}, compute)
    assert len(producer.broker.calls) == tried


def test_the_status_is_that_of_redis(producer):
    producer.answer = lambda _: [1500, [b"high:mail", 2], 1, 0, 0, 0, [b"enqueued", b"3"], []]
    status = producer.get_queue_status()
    assert (status["queue:high:mail"], status["total_items"], status["delayed"]) == (2, 2, 1)
    assert (status["metrics"]["enqueued"], status["status_time"]) == (3, 1.5)


def test_purging_goes_on_until_nothing_is_left(producer):
    replies = iter([500, 20, 0, [b"17", 3], [b"0", 4]])
    producer.answer = lambda _: next(replies)
    assert producer.purge_queue("mail", "low") == 527
    names = [call.name for call in producer.broker.calls]
    assert names == ["purge", "purge", "purge", "purge_delayed", "purge_delayed"]
    assert producer.broker.calls[0].keys[0] == "queue:low:mail"
    assert [call.args[2] for call in producer.broker.calls[3:]] == [0, 17]


@pytest.mark.parametrize("arguments", [("a b",), ("mail", "urgent"), ("",)])
def test_a_bad_purge_sends_nothing(producer, arguments):
    with pytest.raises(ConfigurationError):
        producer.purge_queue(*arguments)
    assert producer.broker.calls == []


class Tracer(Recorder):
    """Writes its trace into headers while an enqueue call is under way."""

    def __init__(self):
        super().__init__()
        self.started = []
        self.active = False

    @contextmanager
    def enqueue_context(self, event):
        self.started.append(event)
        self.active = True
        try:
            yield
        finally:
            self.active = False

    def inject(self, headers):
        headers["traceparent"] = "00-a" if self.active else "outside"


def test_listeners_see_the_call_and_write_the_headers(make):
    tracer = Tracer()
    producer = make(telemetry=[tracer])
    operation = producer.enqueued({}, compute, operation_id="mine", delay=3)
    assert operation.body["headers"] == {"traceparent": "00-a"}
    (started,) = tracer.started
    assert (started.queue, started.priority, started.processor) == ("compute", "normal", "compute")
    assert (started.count, started.operation_id, started.delay) == (1, "mine", 3.0)
    assert tracer.of(Enqueued) == [Enqueued("compute", "normal", "compute", 1, 0, ("mine",))]


def test_listeners_are_told_how_many_were_accepted(make):
    tracer = Tracer()
    producer = make(telemetry=[tracer])
    producer.answer = lambda _: [b"q", b"dx", b"s"]
    results = producer.enqueue_batch([{}, {}, {}], compute)
    (event,) = tracer.of(Enqueued)
    assert (event.accepted, event.duplicates) == (2, 1)
    assert event.operation_ids == (results[0]["operation_id"], results[2]["operation_id"])
    assert (tracer.started[0].count, tracer.started[0].operation_id) == (3, None)


def test_listeners_are_told_of_a_failure(make):
    tracer = Tracer()
    producer = make(telemetry=[tracer])
    producer.answer = down
    with pytest.raises(BrokerUnavailableError):
        producer.enqueue({}, compute)
    assert tracer.of(EnqueueFailed) == [EnqueueFailed("compute", "BrokerUnavailableError")]
    assert tracer.of(Enqueued) == []


def test_only_what_is_unexpected_is_logged(producer, caplog):
    with pytest.raises(QueueError):
        producer.enqueue(None, compute)
    assert [record for record in caplog.records if record.name.startswith("queue_system")] == []
    producer.answer = lambda _: 1 / 0
    with pytest.raises(ZeroDivisionError):
        producer.enqueue({}, compute)
    assert "ZeroDivisionError" in caplog.text


def test_the_timeout_of_a_sync_function_is_told_once(producer, caplog):
    for _ in range(2):
        producer.enqueue({}, compute, timeout=5)
    assert caplog.text.count("timeout_of_sync_processor") == 1
    assert "compute" in caplog.text
    assert "timeout=5" in caplog.text
    assert sent(producer.broker)[0].body["timeout"] == 5.0  # it counts for when the thread is abandoned


def test_the_timeout_of_an_async_or_unknown_function_is_not_told(producer, caplog):
    producer.enqueue({}, send, timeout=5)
    producer.enqueue({}, "elsewhere:work", timeout=5)
    producer.enqueue({}, compute)
    assert "timeout_of_sync_processor" not in caplog.text
