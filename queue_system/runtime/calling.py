"""Calls a processor: with or without its context, on the event loop under a time limit, or in a thread."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable
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
    """The result of an async processor. It runs in a task of its own: what it sets in its context stays there.

    Raises:
        AttemptTimeoutError: it was cancelled after `timeout` seconds, and did not return a result all the same.
    """
    call = call_processor(function, attempt, time.monotonic() + timeout, logger)
    attempt.task = task = asyncio.get_running_loop().create_task(_contained(call))
    deadlines.set(attempt, timeout)
    try:
        return await task
    except asyncio.CancelledError as error:
        own = asyncio.current_task()
        if attempt.cancelled_for == TIMED_OUT and not (own is not None and own.cancelling()):
            raise AttemptTimeoutError(f"cancelled after {timeout:g} s") from error
        raise
    finally:
        deadlines.clear(attempt)


def cancel_late(attempt: Attempt) -> None:
    """Its time is over: cancel the processor, unless it is being cancelled for something else already."""
    if attempt.task is not None and not attempt.cancelled_for:
        attempt.cancelled_for = TIMED_OUT
        attempt.task.cancel()


async def _contained(call: Awaitable[Any]) -> Any:
    """Keep `SystemExit` of a processor from ending the worker."""
    if not hasattr(call, "__await__"):
        return call  # a decorator has made a sync function of an async one: this is its result
    try:
        return await call
    except SystemExit as error:
        raise RuntimeError(f"the processor raised SystemExit({error.code!r})") from error
