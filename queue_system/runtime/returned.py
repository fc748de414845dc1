"""What a processor returns that has not run yet: an awaitable is awaited, anything else of the kind is refused.

``return send(entity)`` of a plain function, where `send` is async, is a success to Python, though nothing was sent.
"""

from __future__ import annotations

import inspect
import itertools
from contextvars import Context
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Final

from queue_system.errors import UnrunResultError

MAX_AWAITS: Final = 10
"""How often what was awaited may give something to be awaited again."""

_LAZY: Final = frozenset({GeneratorType, AsyncGeneratorType, map, filter, itertools.starmap})
_SERIES: Final = frozenset({list, tuple})


class Returned:
    """An awaitable that a sync processor returned in its thread, and the context it was made in."""

    __slots__ = ("awaitable", "context")

    def __init__(self, awaitable: Any, context: Context) -> None:
        self.awaitable = awaitable
        self.context = context

    def close(self) -> None:
        """It is awaited no more. Without this, Python would warn of a coroutine that was never begun."""
        if isinstance(self.awaitable, CoroutineType | GeneratorType):
            self.awaitable.close()


def is_unrun(result: object) -> bool:
    """Whether there may be something in the result that has not run. Quick, for it is asked of each result."""
    kind = type(result)
    if kind in _SERIES:
        return bool(result) and is_unrun(result[0])  # type: ignore[index]  # a list or a tuple
    return kind in _LAZY or hasattr(kind, "__await__")


def is_awaitable(result: object) -> bool:
    """Whether it can be awaited: a coroutine, a future, a task, an object with ``__await__``."""
    return inspect.isawaitable(result)


def refuse_unrun(result: object) -> None:
    """Check that there is nothing in the result that has not run.

    Raises:
        UnrunResultError: there is; the text says what to do.
    """
    kind = type(result)
    if kind in _SERIES and is_unrun(result):
        for each in result:  # type: ignore[attr-defined]  # a list or a tuple
            if isinstance(each, CoroutineType):
                each.close()
        name = type(result[0]).__name__  # type: ignore[index]
        raise UnrunResultError(f"the processor returned a {kind.__name__} of {name} objects, which nobody runs: "
                               "await them, e.g. with asyncio.gather(), or go through them")  # fmt: skip
    if kind in _LAZY and not _has_begun(result):
        raise UnrunResultError(f"the processor returned a {kind.__name__} object, whose code has not run: "
                               "go through it in the processor, e.g. with list() or a for loop")  # fmt: skip


def _has_begun(result: Any) -> bool:
    if isinstance(result, GeneratorType):
        return inspect.getgeneratorstate(result) != inspect.GEN_CREATED
    if isinstance(result, AsyncGeneratorType):
        return result.ag_frame is None  # one that is half-way does not tell before Python 3.12
    return False  # nor do the others
