"""The documented API, table by table, against the code.

Each row says what the specification says of a method: its decorators, its positional arguments with their defaults, in
order. Arguments of our own may follow, by keyword only. What a row does not say (annotations, the text) is free.

Decorators: `@classmethod` is looked up in the class. The others keep the function that they wrap as ``__wrapped__``,
one layer each, and each is defined in a module of its own; so the layers' modules must be those of the named
decorators, from the outside in.
"""

import inspect
from typing import Any, NamedTuple

import pytest

import queue_system
from queue_system import AsyncQueueManager, QueueConfig, QueueManager, QueueRetryConfig, QueueWorker, utils

REQUIRED = inspect.Parameter.empty
KWARGS = object()  # a row that ends with **kwargs

DECORATORS = {
    "circuit_breaker": "queue_system.resilience.breaker",
    "retry_with_backoff": "queue_system.resilience.backoff",
    "try_catch": "queue_system.resilience.catch",
    "with_timeout": "queue_system.resilience.timeout",
}


class Row(NamedTuple):
    owner: type
    method: str
    arguments: dict[str, Any]
    decorators: tuple[str, ...] = ()
    is_async: bool = False


def required(*names: str) -> dict[str, Any]:
    return dict.fromkeys(names, REQUIRED)


STEP = required("item", "entity", "operation_id")  # what most steps of the worker begin with

ENQUEUE = {
    **required("entity", "processor"),
    "queue_name": None,
    "priority": "normal",
    "operation_id": None,
    "retry_config": None,
    "on_success": None,
    "on_failure": None,
    "timeout": None,
    "deduplication_key": None,
    "custom_serializer": None,
}
BATCH = {**required("entities", "processor"), "kwargs": KWARGS}
PURGE = {**required("queue_name"), "priority": "normal"}
QUEUE_OPERATION = {**required("queue_data", "queue_name"), "priority": "normal", "custom_serializer": None}

CONFIG = [
    Row(QueueConfig, "get_queue_key", {**required("queue_name"), "priority": "normal"}),
    Row(QueueConfig, "get_registry_key", {}),
    Row(QueueConfig, "get_callback_key", {**required("callback_name"), "callback_module": None}),
    Row(QueueConfig, "register_callback", {**required("callback"), "name": None, "module": None}),
    Row(QueueConfig, "update_metric", {**required("metric_name"), "value": 1, "force_log": False}),
    Row(QueueConfig, "get_metrics", {}),
    Row(
        QueueConfig,
        "__init__",
        {
            "redis_client": None,
            "redis_url": None,
            "queue_prefix": "queue:",
            "backup_ttl": 86400 * 7,
            "logger": None,
            "connection_timeout": 5.0,
            "max_connection_retries": 3,
        },
    ),
    Row(QueueConfig, "_define_queue_keys", {}),
    Row(QueueConfig, "_ensure_redis_sync", {"retry_count": None}, ("circuit_breaker", "retry_with_backoff")),
]

MANAGER = [
    Row(QueueManager, "enqueue", ENQUEUE, ("try_catch",)),
    Row(QueueManager, "enqueue_batch", BATCH, ("try_catch",)),
    Row(QueueManager, "get_queue_status", {}, ("try_catch", "circuit_breaker")),
    Row(QueueManager, "purge_queue", PURGE, ("try_catch",)),
    Row(QueueManager, "__init__", required("config")),
    Row(QueueManager, "_generate_operation_id", {}),
    Row(QueueManager, "_hash_entity", required("entity")),
    Row(QueueManager, "_serialize_entity", {**required("entity"), "default_serializer": None}),
    Row(QueueManager, "_queue_operation", QUEUE_OPERATION, ("try_catch",)),
]

WORKER = [
    Row(QueueWorker, "start", {}, is_async=True),
    Row(QueueWorker, "stop", {}, is_async=True),
    Row(
        QueueWorker,
        "__init__",
        {**required("config"), "max_workers": 5, "work_timeout": 30.0, "thread_pool_size": 20},
    ),
    Row(QueueWorker, "_worker_loop", required("worker_id"), ("with_timeout",), is_async=True),
    Row(QueueWorker, "_process_queue_item", required("worker_id"), ("circuit_breaker",), is_async=True),
    Row(QueueWorker, "_handle_queue_item", required("worker_id", "queue", "item_data"), is_async=True),
    Row(QueueWorker, "_find_processor", {**required("processor_name"), "processor_module": None}),
    Row(QueueWorker, "_calculate_effective_timeout", required("item")),
    Row(QueueWorker, "_execute_sync_processor", required("processor", "entity", "operation_id"), is_async=True),
    Row(QueueWorker, "_update_thread_metrics", required("start_time")),
    Row(QueueWorker, "_handle_pool_exhaustion", {**STEP, **required("queue", "redis", "worker_id")}, is_async=True),
    Row(QueueWorker, "_handle_timeout_exceeded", {**STEP, **required("redis")}, is_async=True),
    Row(
        QueueWorker,
        "_handle_execution_timeout",
        {**STEP, **required("effective_timeout", "queue", "redis", "worker_id")},
        is_async=True,
    ),
    Row(QueueWorker, "_handle_would_exceed_timeout", {**STEP, **required("redis")}, is_async=True),
    Row(
        QueueWorker,
        "_handle_processing_exception",
        {**required("exception"), **STEP, **required("worker_id", "queue", "redis"), "item_data": None},
        is_async=True,
    ),
    Row(
        QueueWorker,
        "_execute_callback",
        required("callback_name", "callback_module", "data"),
        ("retry_with_backoff",),
        is_async=True,
    ),
]

RETRY = [
    Row(QueueRetryConfig, "get_delay_for_attempt", required("attempt")),
    Row(QueueRetryConfig, "to_dict", {}),
    Row(QueueRetryConfig, "would_exceed_timeout", required("first_attempt_time", "current_time")),
    Row(QueueRetryConfig, "from_dict", required("data"), ("classmethod",)),
    Row(QueueRetryConfig, "fixed", {**required("delay"), "max_attempts": 5, "timeout": None}, ("classmethod",)),
    Row(
        QueueRetryConfig,
        "exponential",
        {"base": 2.0, "min_delay": 1.0, "max_delay": 60.0, "max_attempts": 5, "timeout": None},
        ("classmethod",),
    ),
    Row(QueueRetryConfig, "custom", {**required("delays"), "max_attempts": None, "timeout": None}, ("classmethod",)),
    Row(QueueRetryConfig, "__init__", {"max_attempts": 5, "delays": None, "timeout": None}),
    Row(QueueRetryConfig, "_generate_exponential_delays", {}),
]

ASYNC_MANAGER = [  # the same methods, awaited: all that talk to Redis
    row._replace(owner=AsyncQueueManager, is_async=bool(row.decorators)) for row in MANAGER
]

ROWS = pytest.mark.parametrize(
    "row",
    [*CONFIG, *MANAGER, *WORKER, *RETRY, *ASYNC_MANAGER],
    ids=lambda row: f"{row.owner.__name__}.{row.method}",
)


def declared(row: Row) -> Any:
    return inspect.getattr_static(row.owner, row.method)


def parameters(row: Row) -> list[inspect.Parameter]:
    """Without self or cls."""
    method = declared(row)
    if isinstance(method, classmethod):
        method = method.__func__
    return list(inspect.signature(method).parameters.values())[1:]


def layers(function: Any) -> list[Any]:
    """A decorated function and all that it wraps, from the outside in."""
    found = [function]
    while hasattr(found[-1], "__wrapped__"):
        found.append(found[-1].__wrapped__)
    return found


def test_the_tables_are_complete():
    """As many rows as the specification's tables have, so that none gets lost here."""
    assert [len(table) for table in (CONFIG, MANAGER, WORKER, RETRY)] == [9, 9, 16, 9]


@ROWS
def test_arguments_have_their_names_order_and_defaults(row):
    ours = parameters(row)
    positional = [each for each in ours if each.kind is each.POSITIONAL_OR_KEYWORD]
    expected = {name: default for name, default in row.arguments.items() if default is not KWARGS}
    names = [each.name for each in positional]
    assert names == [*expected]
    for parameter, default in zip(positional, expected.values(), strict=True):
        assert parameter.default is REQUIRED if default is REQUIRED else parameter.default == default, parameter
    for parameter in ours[len(expected) :]:
        optional = parameter.default is not REQUIRED or parameter.kind is parameter.VAR_KEYWORD
        assert optional, f"{parameter} is not documented, so it must have a default"


@ROWS
def test_more_keywords_are_taken_where_the_table_says_so(row):
    takes = [each.name for each in parameters(row) if each.kind is each.VAR_KEYWORD]
    documented = [name for name, default in row.arguments.items() if default is KWARGS]
    assert takes == documented or (row.owner is AsyncQueueManager and takes == ["options"])
    assert not [each for each in parameters(row) if each.kind is each.VAR_POSITIONAL]


@ROWS
def test_decorators_are_those_of_the_table(row):
    method = declared(row)
    assert isinstance(method, classmethod) is ("classmethod" in row.decorators)
    assert not isinstance(method, staticmethod)
    if isinstance(method, classmethod):
        method = method.__func__
    modules = [layer.__code__.co_filename for layer in layers(method)[:-1]]
    used = [
        name for file in modules for name, home in DECORATORS.items() if file.endswith(home.replace(".", "/") + ".py")
    ]
    documented = [name for name in row.decorators if name in DECORATORS]
    if row.method == "_queue_operation":  # every call to Redis goes through the breaker
        documented = [*documented, "circuit_breaker"]
    assert used == documented


@ROWS
def test_what_is_awaited_is_a_coroutine_function(row):
    method = declared(row)
    assert inspect.iscoroutinefunction(getattr(method, "__func__", method)) is row.is_async


@ROWS
def test_every_method_is_documented(row):
    if row.method != "__init__":  # the class says it
        assert inspect.getdoc(getattr(row.owner, row.method))
    assert inspect.getdoc(row.owner)


@pytest.mark.parametrize("name", ["with_timeout", "circuit_breaker", "retry_with_backoff", "try_catch"])
def test_the_decorators_are_found_under_the_documented_import_path(name):
    import utils as top_level  # noqa: PLC0415  the very line of the documentation

    assert getattr(top_level, name) is getattr(utils, name)
    assert getattr(utils, name).__module__ == DECORATORS[name]


@pytest.mark.parametrize("name", ["QueueConfig", "QueueManager", "QueueWorker", "QueueRetryConfig"])
def test_the_classes_are_found_under_the_documented_import_path(name):
    assert name in queue_system.__all__
    assert inspect.isclass(getattr(queue_system, name))


def test_all_that_is_exported_is_there():
    assert [name for name in queue_system.__all__ if not hasattr(queue_system, name)] == []
    assert sorted(queue_system.__all__) == queue_system.__all__
