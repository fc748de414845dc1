"""`retry_with_backoff`: call again after a failure, less and less often."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, cast, overload

import tenacity

from queue_system.errors import ConfigurationError
from queue_system.resilience._common import (
    UNSET,
    AnyFunction,
    Decorator,
    Exceptions,
    P,
    R,
    check_count,
    check_exceptions,
    check_seconds,
    decorate,
    name_of,
    notify,
)

_RetryIf: TypeAlias = Callable[[Exception], bool] | None
_OnRetry: TypeAlias = Callable[[Exception, int, float], object] | None
_Sleep: TypeAlias = Callable[[float], Awaitable[None] | None] | None
_Attempts: TypeAlias = Callable[..., int | None] | None


@overload
def retry_with_backoff(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def retry_with_backoff(
    *,
    max_attempts: int = 3,
    base_delay: float = 0.1,
    max_delay: float = 5.0,
    exceptions: Exceptions = (Exception,),
    jitter: bool = True,
    retry_if: _RetryIf = None,
    on_retry: _OnRetry = None,
    sleep: _Sleep = None,
    attempts: _Attempts = None,
) -> Decorator: ...
def retry_with_backoff(
    func: Any = UNSET,
    /,
    *,
    max_attempts: int = 3,
    base_delay: float = 0.1,
    max_delay: float = 5.0,
    exceptions: Exceptions = (Exception,),
    jitter: bool = True,
    retry_if: _RetryIf = None,
    on_retry: _OnRetry = None,
    sleep: _Sleep = None,
    attempts: _Attempts = None,
) -> Any:
    """Call again after a failure, with delays of `base_delay`, then twice as much each time, up to `max_delay`.

    The last error is raised as it is. The function may run more than once, so it should be idempotent.

    Args:
        func: the function, when the decorator is used bare.
        max_attempts: calls in total, 1 or more (default 3: the first one and two retries).
        base_delay: seconds before the first retry, 0 or more (default 0.1).
        max_delay: seconds that no delay exceeds, `base_delay` or more (default 5.0).
        exceptions: what is worth a retry (default: every `Exception`).
        jitter: wait a random time from 0 to the delay, which spreads a storm of retries (default True).
        retry_if: takes the error and says whether it is worth a retry; asked in addition to `exceptions`.
        on_retry: called before each delay with the error, the number of the attempt that failed (from 1), and the
            delay in seconds.
        sleep: replaces `time.sleep` or `asyncio.sleep`, e.g. in tests; takes seconds.
        attempts: takes the call's arguments and returns the `max_attempts` for that call; None for the default, and
            less than 1 counts as 1. Asked only after a failure.

    Raises:
        ConfigurationError: at decoration, when an argument is out of its range.

    Example:
        >>> @retry_with_backoff(max_attempts=5, exceptions=(ConnectionError,))
        ... async def publish(message: str) -> None: ...
    """
    check_count("max_attempts", max_attempts)
    check_exceptions(exceptions)
    wait = _wait(base_delay, max_delay, jitter=jitter)
    return decorate(func, _Retries(max_attempts, exceptions, wait, retry_if, on_retry, sleep, attempts))


def _wait(base_delay: float, max_delay: float, *, jitter: bool) -> tenacity.wait.wait_base:
    check_seconds("base_delay", base_delay, zero=True)
    check_seconds("max_delay", max_delay, zero=True)
    if max_delay < base_delay:
        raise ConfigurationError(f"base_delay {base_delay} is above max_delay {max_delay}: lower it or raise max_delay")
    if base_delay == 0:  # tenacity takes its logarithm
        return tenacity.wait_none()
    strategy = tenacity.wait_random_exponential if jitter else tenacity.wait_exponential
    return strategy(multiplier=base_delay, max=max_delay, exp_base=2)


@dataclass(frozen=True, slots=True)
class _Retries:
    """The first attempt is made without tenacity, which costs more than most calls that succeed.

    When it fails, tenacity takes over with a function that first raises that error again: its count starts with 1.
    """

    max_attempts: int
    exceptions: Exceptions
    wait: tenacity.wait.wait_base
    retry_if: _RetryIf
    on_retry: _OnRetry
    sleep: _Sleep
    attempts: _Attempts

    def wrap_sync(self, target: AnyFunction) -> AnyFunction:
        if inspect.iscoroutinefunction(self.sleep):
            raise ConfigurationError(f"sleep is async and {name_of(target)} is not: give one that is not async")
        sleep = cast("Callable[[float], None]", self.sleep or time.sleep)

        def retried(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            except self.exceptions as error:
                first = [error]  # in a list, to let go of it: its traceback refers to this frame

            def again() -> Any:
                if first:
                    raise first.pop()
                return target(*args, **kwargs)

            return tenacity.Retrying(sleep=sleep, **self._policy(args, kwargs))(again)

        return retried

    def wrap_async(self, target: AnyFunction) -> AnyFunction:
        async def pause(delay: float) -> None:
            if (waiting := (self.sleep or asyncio.sleep)(delay)) is not None:
                await waiting

        async def retried(*args: Any, **kwargs: Any) -> Any:
            try:
                return await target(*args, **kwargs)
            except self.exceptions as error:
                first = [error]

            async def again() -> Any:
                if first:
                    raise first.pop()
                return await target(*args, **kwargs)

            return await tenacity.AsyncRetrying(sleep=pause, **self._policy(args, kwargs))(again)

        return retried

    def _policy(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        own_limit = self.attempts(*args, **kwargs) if self.attempts is not None else None
        return {
            "stop": tenacity.stop_after_attempt(self.max_attempts if own_limit is None else max(own_limit, 1)),
            "wait": self.wait,
            "retry": tenacity.retry_if_exception(self._is_worth_it),
            "before_sleep": self._announce,
            "reraise": True,
        }

    def _is_worth_it(self, error: BaseException) -> bool:
        return isinstance(error, self.exceptions) and (self.retry_if is None or self.retry_if(error))

    def _announce(self, state: tenacity.RetryCallState) -> None:
        if self.on_retry is not None and state.outcome is not None:
            notify(self.on_retry, state.outcome.exception(), state.attempt_number, state.upcoming_sleep)
