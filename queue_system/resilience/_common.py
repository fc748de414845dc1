"""What the decorators share: bare or with arguments, sync or async, checks of arguments, isolated listeners."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final, ParamSpec, Protocol, TypeAlias, TypeVar

from queue_system.checks import MAX_SECONDS
from queue_system.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")

Exceptions: TypeAlias = type[Exception] | tuple[type[Exception], ...]
AnyFunction: TypeAlias = Callable[..., Any]

UNSET: Final[Any] = object()
LOG: Final = logging.getLogger("queue_system")


class Decorator(Protocol):
    """Takes a function and returns one with the same signature."""

    def __call__(self, func: Callable[P, R], /) -> Callable[P, R]: ...


class Wrapper(Protocol):
    """One decorator with its arguments, checked."""

    def wrap_sync(self, target: AnyFunction) -> AnyFunction: ...

    def wrap_async(self, target: AnyFunction) -> AnyFunction: ...


def decorate(func: Any, wrapper: Wrapper) -> Any:
    """Decorate `func`, or return the decorator when there is none yet."""

    def apply(target: AnyFunction) -> AnyFunction:
        _check_target(target)
        wrap = wrapper.wrap_async if _is_async(target) else wrapper.wrap_sync
        return functools.update_wrapper(wrap(target), target)

    return apply if func is UNSET else apply(func)


def _check_target(target: Any) -> None:
    if not callable(target) or isinstance(target, staticmethod):
        raise ConfigurationError(
            f"cannot decorate a {type(target).__name__}: give arguments by name, "
            "and stand below @classmethod and @staticmethod"
        )
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise ConfigurationError(f"{name_of(target)} is a generator function: decorate what it calls instead")


def _is_async(target: AnyFunction) -> bool:
    if inspect.isclass(target):
        return False
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)


def name_of(target: AnyFunction) -> str:
    """The name for logs and errors. Not `repr`, which shows the arguments of a partial."""
    name: str = getattr(target, "__qualname__", None) or type(target).__qualname__
    return name


def notify(listener: Callable[..., object], *args: Any) -> None:
    """Call a listener; if it raises, log that."""
    try:
        listener(*args)
    except Exception:
        LOG.exception("the callback %s failed", name_of(listener))


def check_seconds(name: str, value: Any, *, zero: bool = False, hint: str = "") -> None:
    """Raise ConfigurationError unless `value` is a number above 0, or 0 if `zero`, and no more than a hundred years."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # noqa: PLR0124  NaN
    if not is_number or value < 0 or (value == 0 and not zero):
        least = "of 0 or more" if zero else "above 0"
        raise ConfigurationError(f"{name} is {value!r}: give a number of seconds {least}{hint}")
    if value > MAX_SECONDS:
        raise ConfigurationError(f"{name} is {value!r}: give at most a hundred years in seconds{hint}")


def check_count(name: str, value: Any) -> None:
    """Raise ConfigurationError unless `value` is a whole number, 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"{name} is {value!r}: give a whole number, 1 or more")


def check_exceptions(exceptions: Any) -> None:
    """Raise ConfigurationError unless these are subclasses of `Exception`: cancellation is never caught."""
    kinds = exceptions if isinstance(exceptions, tuple) else (exceptions,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise ConfigurationError(f"exceptions is {exceptions!r}: give subclasses of Exception, in a tuple")
