"""Calls a processor: with or without its context, on the event loop under a time limit, or in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

from queue_system.context import OperationContext
from queue_system.operation import KIND_CALLBACK
from queue_system.registry import is_async, takes_context
from queue_system.runtime.attempts import Attempt
from queue_system.runtime.deadlines import Deadlines

# Inspecting a signature takes longer than a claim: once for each function is enough.
runs_on_loop = functools.lru_cache(maxsize=4096)(is_async)
_takes_context = functools.lru_cache(maxsize=4096)(takes_context)


TIMED_OUT: Final = "timed_out"


class AttemptTimeoutError(Exception):
    """The worker's own time limit, as opposed to a `TimeoutError` that a processor raises."""


def call_processor(function: Callable[..., Any], attempt: Attempt, deadline: float | None, logger: Any) -> Any:
    """Call it with ``(entity)``, or with ``(entity, context)`` when it takes that."""
    item = attempt.item
    if attempt.info.kind == KIND_CALLBACK or not _takes_context(function):
        return function(item["entity"])
    operation_id, number, queue = item["operation_id"], attempt.number, item["queue"]
    bound = logger.bind(operation_id=operation_id, attempt=number, queue=queue)
    context = OperationContext(operation_id, number, deadline, queue, item["priority"], bound)
    return function(item["entity"], context)


async def await_processor(
    function: Callable[..., Any], attempt: Attempt, timeout: float, logger: Any, deadlines: Deadlines[Attempt]
) -> Any:
    """The result of an async processor. What it sets in its context stays there.

    It runs in the task that calls this, and not in one of its own, which would cost its making and two wake-ups.

    Raises:
        AttemptTimeoutError: it was cancelled after `timeout` seconds, and did not return a result all the same.
    """
    attempt.task = asyncio.current_task()
    deadlines.set(attempt, timeout)
    try:
        call = call_processor(function, attempt, time.monotonic() + timeout, logger)
        result = await in_context(contextvars.copy_context(), call) if hasattr(call, "__await__") else call
        if attempt.cancelled_from_outside():
            await asyncio.sleep(0)  # it has cancelled its own task, and would not be there any more to notice
    except asyncio.CancelledError as error:
        if attempt.cancelled_for == TIMED_OUT and not attempt.cancelled_from_outside():
            raise AttemptTimeoutError(f"cancelled after {timeout:g} s") from error
        raise
    except SystemExit as error:  # it must not end the worker
        raise RuntimeError(f"the processor raised SystemExit({error.code!r})") from error
    else:
        return result
    finally:
        deadlines.clear(attempt)
        attempt.take_back_cancels()


def cancel_late(attempt: Attempt) -> None:
    """Its time is over: cancel the processor, unless it is being cancelled for something else already."""
    if not attempt.cancelled_for:
        attempt.cancel(TIMED_OUT)


@types.coroutine
def in_context(context: contextvars.Context, call: Any) -> Generator[Any, Any, Any]:
    """Await `call` in `context`: each of its steps runs in there, as those of a task of its own would."""
    run = context.run
    coroutine: Coroutine[Any, Any, Any] = call if asyncio.iscoroutine(call) else _awaited(call)
    try:
        waits_for = run(coroutine.send, None)
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:  # noqa: BLE001  a cancellation, most often: it is for the coroutine
                waits_for = run(coroutine.throw, error)
            else:
                waits_for = run(coroutine.send, answer)
    except StopIteration as done:
        return done.value


async def _awaited(call: Any) -> Any:
    return await call
