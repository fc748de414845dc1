"""Calls a processor: with or without its context, on the event loop under a time limit, or in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import sys
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

from queue_system.context import OperationContext
from queue_system.errors import UnrunResultError
from queue_system.functions import is_async, takes_context
from queue_system.operation import KIND_CALLBACK
from queue_system.runtime import forked
from queue_system.runtime.attempts import Attempt
from queue_system.runtime.deadlines import Deadlines
from queue_system.runtime.incident import ProcessorRaisedError
from queue_system.runtime.returned import MAX_AWAITS, Returned, is_awaitable, is_unrun, refuse_unrun

TIMED_OUT: Final = "timed_out"


def _once_each(ask: Callable[[Callable[..., Any]], bool]) -> Callable[[Callable[..., Any]], bool]:
    """Inspecting a signature takes longer than a claim: once for each function is enough."""
    known = functools.lru_cache(maxsize=4096)(ask)

    def answer(function: Callable[..., Any]) -> bool:
        try:
            return known(function)
        except Exception:  # noqa: BLE001  it has no hash, as an object of a plain dataclass has none
            return ask(function)

    return answer


runs_on_loop = _once_each(is_async)
_takes_context = _once_each(takes_context)


class AttemptAbandonedError(Exception):
    """The processor has ended, but too late: its attempt was decided without it."""


class AttemptTimeoutError(Exception):
    """The worker's own time limit of so many `seconds`, as opposed to a `TimeoutError` that a processor raises."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"cancelled after {seconds:g} s")
        self.seconds = seconds


def call_processor(function: Callable[..., Any], attempt: Attempt, deadline: float | None, logger: Any) -> Any:
    """Call it with ``(entity)``, or with ``(entity, context)`` when it takes that."""
    item = attempt.item
    if attempt.info.kind == KIND_CALLBACK:  # a step of the worker, which calls the callback
        return function(item["entity"], functools.partial(_context_of, attempt, deadline, logger))
    if not _takes_context(function):
        return function(item["entity"])
    return function(item["entity"], _context_of(attempt, deadline, logger))


def _context_of(attempt: Attempt, deadline: float | None, logger: Any) -> OperationContext:
    item, number = attempt.item, attempt.number
    operation_id, queue = item["operation_id"], item["queue"]
    bound = logger.bind(operation_id=operation_id, attempt=number, queue=queue)
    return OperationContext(operation_id, number, deadline, queue, item["priority"], bound)


def call_in_thread(function: Callable[..., Any], attempt: Attempt, logger: Any) -> Any:
    """The result of a sync processor; as `Returned` if it is to be awaited, with the context as it is then.

    Raises:
        UnrunResultError: it returned what has not run, and cannot be awaited.
    """
    result = call_processor(function, attempt, None, logger)
    if result is not None and is_unrun(result):
        if is_awaitable(result):
            return Returned(result, contextvars.copy_context())
        refuse_unrun(result)
    return result


async def await_processor(
    function: Callable[..., Any] | Returned,
    attempt: Attempt,
    timeout: float,
    logger: Any,
    deadlines: Deadlines[Attempt],
) -> Any:
    """The result of an async processor, or of the awaitable that a sync one returned.

    What it sets in its context stays there. It runs in the task that calls this, and not in one of its own, which would
    cost its making and two wake-ups.

    Raises:
        AttemptAbandonedError: it ended, in any way, after it was abandoned.
        AttemptTimeoutError: it was cancelled after `timeout` seconds, and did not return a result all the same.
        ProcessorRaisedError: it raised what is no `Exception`.
        UnrunResultError: it returned what has not run, and cannot be awaited.
    """
    attempt.task, forks = asyncio.current_task(), forked.forks
    deadlines.set(attempt, timeout)
    try:
        context, result = _begin(function, attempt, timeout, logger)
        if hasattr(result, "__await__"):
            result = await in_context(context, result)
        if result is not None and is_unrun(result):
            result = await _settled(context, result)
        if attempt.cancelled_from_outside():
            await asyncio.sleep(0)  # it has cancelled its own task, and would not be there any more to notice
    except (Exception, asyncio.CancelledError) as error:
        if attempt.abandoned:
            raise AttemptAbandonedError from error
        if isinstance(error, asyncio.CancelledError) and _is_timeout(attempt):
            raise AttemptTimeoutError(timeout) from error
        raise
    finally:
        if forked.forks != forks:
            _end_child(sys.exc_info()[1])
        attempt.awaited = None
        deadlines.clear(attempt)
        attempt.take_back_cancels()
    if attempt.abandoned:
        raise AttemptAbandonedError
    return result


def _end_child(error: BaseException | None) -> None:
    forked.end(error.__cause__ if isinstance(error, ProcessorRaisedError) else error)


def _is_timeout(attempt: Attempt) -> bool:
    return attempt.cancelled_for == TIMED_OUT and not attempt.cancelled_from_outside()


def _begin(
    function: Callable[..., Any] | Returned, attempt: Attempt, timeout: float, logger: Any
) -> tuple[contextvars.Context, Any]:
    """Call the processor: what it returns, and the context in which to await it."""
    if isinstance(function, Returned):
        context, result = function.context, function.awaitable
    else:
        context = contextvars.copy_context()
        result = _contained(call_processor, function, attempt, time.monotonic() + timeout, logger)
    attempt.context, attempt.awaited = context, result
    return context, result


async def _settled(context: contextvars.Context, result: Any) -> Any:
    """Await what was returned, and what that gives, until it is a result."""
    for _ in range(MAX_AWAITS):
        if not is_awaitable(result) or result is asyncio.current_task():
            refuse_unrun(result)
            return result
        result = await in_context(context, result)
    raise UnrunResultError(f"the processor's result was awaited {MAX_AWAITS} times, and is still to be awaited")


def cancel_late(attempt: Attempt) -> None:
    """Its time is over: cancel the processor, unless it is being cancelled for something else already."""
    if not attempt.cancelled_for:
        attempt.cancel(TIMED_OUT)


@types.coroutine
def in_context(context: contextvars.Context, call: Any) -> Generator[Any, Any, Any]:
    """Await `call` in `context`: each of its steps runs in there, as those of a task of its own would.

    Raises:
        ProcessorRaisedError: it raised what is no `Exception`.
    """
    run = context.run
    coroutine: Coroutine[Any, Any, Any] = call if asyncio.iscoroutine(call) else _awaited(call)
    closed = False
    try:
        waits_for = run(coroutine.send, None)
        while True:
            try:
                answer = yield waits_for
            except GeneratorExit:  # not the processor's: the task itself is closed, its event loop being gone
                closed = True
                with contextlib.suppress(BaseException):
                    run(coroutine.close)
                raise
            except BaseException as error:  # noqa: BLE001  a cancellation, most often: it is for the coroutine
                waits_for = run(coroutine.throw, error)
            else:
                waits_for = run(coroutine.send, answer)
    except StopIteration as done:
        return done.value
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        if closed:
            raise
        raise ProcessorRaisedError(error) from error


def _contained(call: Callable[..., Any], *args: Any) -> Any:
    """Call it; what it raises that is no `Exception` must not end the worker."""
    try:
        return call(*args)
    except (Exception, asyncio.CancelledError):
        raise
    except BaseException as error:
        raise ProcessorRaisedError(error) from error


async def _awaited(call: Any) -> Any:
    return await call
