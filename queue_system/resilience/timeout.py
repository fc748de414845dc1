"""`with_timeout`: a limit to how long a call may take."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any, TypeAlias, overload

from queue_system.resilience._common import UNSET, AnyFunction, Decorator, P, R, check_seconds, decorate, name_of

_Seconds: TypeAlias = float | Callable[..., float | None] | None


@overload
def with_timeout(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def with_timeout(seconds: float | None, /) -> Decorator: ...
@overload
def with_timeout(*, seconds: _Seconds = 30.0) -> Decorator: ...
def with_timeout(func: Any = UNSET, /, *, seconds: _Seconds = 30.0) -> Any:
    """Limit how long a call may take.

    An async function is cancelled. **A sync function cannot be stopped**: it runs in a daemon thread of its own, with
    a copy of the caller's context variables, and a call that took too long is abandoned: *it goes on in the background*
    and its result is dropped. Within an event loop, the wait for it blocks the loop.

    Args:
        func: the function, when the decorator is used bare; a number of seconds or None is taken as `seconds`.
        seconds: the limit, above 0 (default 30.0); None for none; or a callable, by name only, that takes the call's
            arguments and returns one of these. When it returns 0 or less, the time is up before the call starts.

    Raises:
        ConfigurationError: at decoration, when `seconds` is not above 0.
        TimeoutError: at the call, with the function's name and the limit. One that the function raised itself passes
            through unchanged.

    Example:
        >>> @with_timeout(seconds=lambda url, budget=5.0: budget)
        ... async def fetch(url: str, budget: float = 5.0) -> bytes: ...
    """
    if func is None or isinstance(func, int | float):
        func, seconds = UNSET, func
    return decorate(func, _TimeLimit(seconds))


class _TimeLimit:
    def __init__(self, seconds: _Seconds) -> None:
        if seconds is not None and not callable(seconds):
            check_seconds("seconds", seconds, hint="; None for no limit")
        self._seconds = seconds

    def wrap_sync(self, target: AnyFunction) -> AnyFunction:
        def timed(*args: Any, **kwargs: Any) -> Any:
            limit = self._limit(target, args, kwargs)
            if limit is None:
                return target(*args, **kwargs)
            return _call_in_thread(functools.partial(target, *args, **kwargs), name_of(target), limit)

        return timed

    def wrap_async(self, target: AnyFunction) -> AnyFunction:
        async def timed(*args: Any, **kwargs: Any) -> Any:
            limit = self._limit(target, args, kwargs)
            if limit is None:
                return await target(*args, **kwargs)
            try:
                async with asyncio.timeout(limit) as scope:
                    return await target(*args, **kwargs)
            except TimeoutError as error:
                if not scope.expired():
                    raise
                raise _too_long(name_of(target), limit) from error

        return timed

    def _limit(self, target: AnyFunction, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
        limit = self._seconds(*args, **kwargs) if callable(self._seconds) else self._seconds
        if limit is not None and not limit > 0:
            raise TimeoutError(f"{name_of(target)} was not called: its limit of {limit:g} s is over")
        return limit


def _too_long(name: str, limit: float) -> TimeoutError:
    return TimeoutError(f"{name} took longer than its limit of {limit:g} s")


def _call_in_thread(call: Callable[[], Any], name: str, limit: float) -> Any:
    future = futures.Future[Any]()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(call))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, name=f"with_timeout {name}", daemon=True).start()
    # wait(), since result(limit) could not tell its own TimeoutError from the function's
    if not futures.wait((future,), min(limit, threading.TIMEOUT_MAX)).done:
        raise _too_long(name, limit)
    return future.result()
