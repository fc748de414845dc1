"""`try_catch`: one place for what happens to an exception."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, overload

from queue_system.resilience._common import (
    LOG,
    UNSET,
    AnyFunction,
    Decorator,
    Exceptions,
    P,
    R,
    check_exceptions,
    decorate,
    name_of,
    notify,
)

D = TypeVar("D")
D_co = TypeVar("D_co", covariant=True)

_OnError: TypeAlias = Callable[[Exception], object] | None
_Translate: TypeAlias = Callable[[Exception], Exception] | None
_Logger: TypeAlias = "logging.Logger | logging.LoggerAdapter[Any]"
_Log: TypeAlias = bool | Callable[[Exception], bool]


class DefaultDecorator(Protocol[D_co]):
    """Takes a function and returns one that may also return the default."""

    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> Callable[P, Coroutine[Any, Any, R | D_co]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, R | D_co]: ...


@overload
def try_catch(func: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def try_catch(
    *,
    exceptions: Exceptions = (Exception,),
    on_error: _OnError = None,
    translate: _Translate = None,
    logger: _Logger | None = None,
    log: _Log = True,
) -> Decorator: ...
@overload
def try_catch(
    *,
    default: D,
    exceptions: Exceptions = (Exception,),
    on_error: _OnError = None,
    translate: _Translate = None,
    logger: _Logger | None = None,
    log: _Log = True,
) -> DefaultDecorator[D]: ...
def try_catch(
    func: Any = UNSET,
    /,
    *,
    default: Any = UNSET,
    exceptions: Exceptions = (Exception,),
    on_error: _OnError = None,
    translate: _Translate = None,
    logger: _Logger | None = None,
    log: _Log = True,
) -> Any:
    """Log an exception; then return a default, raise another exception, or let it pass.

    Never catches what is not an `Exception`: cancellation, `KeyboardInterrupt` and `SystemExit` pass untouched. The
    log has the function's name, the error and its traceback, but not the arguments.

    Args:
        func: the function, when the decorator is used bare.
        default: returned instead of raising; the same object each time. Without it, the error is raised.
        exceptions: what is caught (default: every `Exception`); others pass untouched.
        on_error: called with the error, after it was logged.
        translate: takes the error and returns the one to raise ``from`` it, or the error itself to let it pass. Without
            effect when `default` is given.
        logger: where to log (default: the logger ``queue_system``).
        log: whether to log (default True), or a predicate on the error, e.g. to leave out expected bad input.

    Raises:
        ConfigurationError: at decoration, when `exceptions` has anything but subclasses of `Exception`.

    Example:
        >>> @try_catch(default=None, exceptions=(KeyError,), log=False)
        ... def lookup(name: str) -> str: ...
    """
    check_exceptions(exceptions)
    return decorate(func, _Catching(default, exceptions, on_error, translate, logger or LOG, log))


@dataclass(frozen=True, slots=True)
class _Catching:
    default: Any
    exceptions: Exceptions
    on_error: _OnError
    translate: _Translate
    logger: _Logger
    log: _Log

    def wrap_sync(self, target: AnyFunction) -> AnyFunction:
        def caught(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            except self.exceptions as error:
                if (result := self._settle(target, error)) is UNSET:
                    raise
                return result

        return caught

    def wrap_async(self, target: AnyFunction) -> AnyFunction:
        async def caught(*args: Any, **kwargs: Any) -> Any:
            try:
                return await target(*args, **kwargs)
            except self.exceptions as error:
                if (result := self._settle(target, error)) is UNSET:
                    raise
                return result

        return caught

    def _settle(self, target: AnyFunction, error: Exception) -> Any:
        """What to return instead of raising; UNSET to let the error pass."""
        if self.log(error) if callable(self.log) else self.log:
            self.logger.error("%s failed: %s", name_of(target), type(error).__name__, exc_info=error)
        if self.on_error is not None:
            notify(self.on_error, error)
        if self.default is UNSET and self.translate is not None:
            other = self.translate(error)
            if other is not error:
                raise other from error
        return self.default
