"""Sync or async, with or without a context, and whether a worker's call would run it: known before the call."""

import asyncio
import functools
import inspect
import types
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from queue_system.errors import ConfigurationError
from queue_system.functions import check_callable, is_async, takes_context
from queue_system.registry import Registry


def module_level(entity):
    return entity


async def module_level_async(entity):
    return entity


def passing_on(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


def with_loop(function):
    @functools.wraps(function)
    def wrapper(entity):
        return asyncio.run(function(entity))

    return wrapper


def awaiting(function):
    @functools.wraps(function)
    async def wrapper(entity):
        return function(entity)

    return wrapper


def generator(entity):
    yield entity


async def async_generator(entity):
    yield entity


@types.coroutine
def generator_coroutine(entity):
    yield entity


class Callable:
    def __call__(self, entity):
        return entity


class AsyncCallable:
    async def __call__(self, entity, context):
        return entity, context


class GeneratorCallable:
    def __call__(self, entity):
        yield entity


class Tasks:
    def method(self, entity):
        return entity

    async def async_method(self, entity):
        return entity

    def generator_method(self, entity):
        yield entity

    @classmethod
    async def of_class(cls, entity):
        return entity

    @staticmethod
    async def static(entity):
        return entity

    async def two(self, kind, entity):
        return kind, entity

    def two_sync(self, kind, entity):
        return kind, entity

    partial_async = functools.partialmethod(two, "kind")
    partial_sync = functools.partialmethod(two_sync, "kind")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (module_level, False),
        (module_level_async, True),
        (functools.partial(module_level_async), True),
        (functools.partial(functools.partial(module_level_async)), True),
        (functools.partial(module_level), False),
        (passing_on(module_level_async), False),
        (functools.partial(passing_on(module_level_async)), False),
        (with_loop(module_level_async), False),
        (awaiting(module_level), True),
        (AsyncCallable(), True),
        (functools.partial(AsyncCallable(), 1), True),
        (AsyncCallable, False),
        (AsyncCallable().__call__, True),
        (Callable(), False),
        (Tasks().method, False),
        (Tasks().async_method, True),
        (functools.partial(Tasks().async_method), True),
        (Tasks.of_class, True),
        (Tasks.static, True),
        (vars(Tasks)["static"], True),
        (Tasks().partial_async, True),
        (Tasks().partial_sync, False),
        (generator_coroutine, True),
        (AsyncMock(), True),
        (Mock(), False),
        (MagicMock(), False),
        (len, False),
        (lambda entity: module_level_async({**entity}), False),
        (Mock(spec=module_level), False),
    ],
)
def test_is_async(function, expected):
    assert is_async(function) is expected


@pytest.mark.skipif(not hasattr(inspect, "markcoroutinefunction"), reason="Python 3.12 and newer")
def test_what_is_marked_is_async():
    marked = inspect.markcoroutinefunction(lambda entity: module_level_async({**entity}))
    assert is_async(marked) is True
    assert is_async(functools.partial(marked)) is True


def test_what_leads_to_itself_ends():
    wrapping = types.FunctionType(module_level.__code__, globals())
    wrapping.__wrapped__ = wrapping
    assert is_async(wrapping) is False
    assert takes_context(wrapping) is False
    check_callable(wrapping)


def positional_only(entity, context, /):
    pass


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (module_level, False),
        (lambda entity, context: None, True),
        (lambda entity, anything: None, True),
        (lambda entity, context=None: None, True),
        (lambda entity, verbose=False: None, False),
        (lambda entity, *, context: None, False),
        (lambda entity, *rest: None, False),
        (lambda entity, **rest: None, False),
        (lambda *args: None, False),
        (lambda: None, False),
        (positional_only, True),
        (functools.partial(positional_only, 1), False),
        (functools.partial(lambda entity, context: None, context=1), False),
        (passing_on(lambda entity, context: None), True),
        (passing_on(module_level), False),
        (functools.wraps(positional_only)(lambda entity: None), False),
        (AsyncCallable(), True),
        (Callable(), False),
        (Tasks().method, False),
        (max, False),
        (print, False),
    ],
)
def test_takes_context(function, expected):
    assert takes_context(function) is expected


# check_callable


@pytest.mark.parametrize(
    "function",
    [
        module_level,
        module_level_async,
        generator_coroutine,
        positional_only,
        passing_on(generator),
        passing_on(lambda: None),
        functools.partial(lambda db, entity: None, 1),
        lambda entity, context, more=1, *, most=2: None,
        lambda *args: None,
        lambda entity, **options: None,
        Callable(),
        AsyncCallable(),
        Callable,
        Tasks().method,
        Tasks.of_class,
        Tasks.static,
        Tasks().partial_async,
        AsyncMock(),
        MagicMock(),
        Mock(spec=module_level),
        print,
        max,
    ],
)
def test_what_a_worker_can_call(function):
    if function is Callable:  # a class, of which a call makes an object
        with pytest.raises(ConfigurationError, match="takes no argument"):
            check_callable(function)
    else:
        check_callable(function)


@pytest.mark.parametrize(
    "function",
    [
        generator,
        async_generator,
        functools.partial(generator),
        GeneratorCallable(),
        functools.partial(GeneratorCallable()),
        Tasks().generator_method,
        staticmethod(generator),
    ],
)
def test_generator_functions_are_refused(function):
    with pytest.raises(
        ConfigurationError, match="is a generator function, and calling it runs nothing: return a value"
    ):
        check_callable(function)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda: None, "takes no argument: a worker calls it with (entity), or with (entity, context)"),
        (lambda **options: None, "takes no argument: "),
        (lambda a, b, c: None, "needs 3 arguments (a, b, c), but a worker calls it with (entity), or with"),
        (lambda a, b, c, /, d=1: None, "needs 3 arguments (a, b, c), but "),
        (lambda entity, *, key: None, "needs key by keyword, but a worker calls it with (entity)"),
        (lambda entity, *rest, key, other: None, "needs key, other by keyword, but "),
        (functools.partial(module_level, "secret"), "takes no argument"),
        (Tasks().two, ""),
    ],
)
def test_what_cannot_be_called_with_an_entity_is_refused(function, text):
    if not text:
        check_callable(function)  # (entity, context)
        return
    with pytest.raises(ConfigurationError) as caught:
        check_callable(function)
    assert text in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_text_says_what_to_do():
    with pytest.raises(ConfigurationError, match=r"give the others a default, or bind them with functools.partial$"):
        check_callable(lambda a, b, c: None)


@pytest.mark.parametrize("function", [Tasks.method, Tasks.async_method, Tasks.two])
def test_a_method_without_its_object_is_refused(function):
    with pytest.raises(ConfigurationError, match="is a method without its object: register it bound"):
        check_callable(function)


def test_a_parameter_named_self_is_free_outside_of_a_class():
    def work(self):
        return self

    check_callable(work)


@pytest.mark.parametrize("function", [generator, lambda: None])
def test_what_is_refused_is_not_registered(function):
    registry = Registry()
    with pytest.raises(ConfigurationError):
        registry.register(function, name="work", module="tasks")
    assert registry.names() == ()
