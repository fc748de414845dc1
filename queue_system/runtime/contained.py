"""Tasks that a processor makes: a `SystemExit` or `KeyboardInterrupt` in one is an error, not the end of the worker.

asyncio raises these two out of the event loop, whoever awaits the task. The worker would end, the operation would run
again elsewhere, and end the next worker. So the worker's event loop has a task factory for as long as a worker runs on
it: in a task made within an operation the two become a `ProcessorRaisedError`. All other tasks are as they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Final

from queue_system.events import current_operation
from queue_system.runtime.incident import ProcessorRaisedError

_ENDS_LOOP: Final = (SystemExit, KeyboardInterrupt)


class Contained(Coroutine[Any, Any, Any]):
    """A coroutine in whose stead it runs, and that it looks like. Raises `ProcessorRaisedError` as said above.

    No coroutine that awaits the other: cancelled before its first step, it would leave that one never awaited.
    """

    __slots__ = ("_coroutine",)

    def __init__(self, coroutine: Any) -> None:
        self._coroutine = coroutine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # cr_frame and the like: for stacks, and for libraries that look

    def __repr__(self) -> str:
        return repr(self._coroutine)

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._coroutine.__await__())

    def send(self, value: Any) -> Any:
        """One step."""
        try:
            return self._coroutine.send(value)
        except _ENDS_LOOP as error:
            raise ProcessorRaisedError(error) from error

    def throw(self, *error: Any) -> Any:
        """One step, which begins with that error."""
        try:
            return self._coroutine.throw(*error)
        except _ENDS_LOOP as raised:
            raise ProcessorRaisedError(raised) from raised

    def close(self) -> None:
        """End it where it stands."""
        self._coroutine.close()


class _Factory:
    """The task factory of one event loop, for `workers` of them; makes the tasks as `before` did."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.workers = 0

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        context = options.get("context")
        operation = current_operation.get() if context is None else context.get(current_operation)
        if operation is not None and not isinstance(coroutine, Contained):
            coroutine = Contained(coroutine)
        if self.before is None:
            return asyncio.Task(coroutine, loop=loop, **options)
        return self.before(loop, coroutine, **options)


def contain(loop: asyncio.AbstractEventLoop) -> None:
    """A worker begins on this event loop."""
    factory: Any = loop.get_task_factory()
    if not isinstance(factory, _Factory):
        factory = _Factory(factory)
        loop.set_task_factory(factory)
    factory.workers += 1


def release(loop: asyncio.AbstractEventLoop) -> None:
    """A worker ends on this event loop: the last one puts back what was there, unless another was set since."""
    factory: Any = loop.get_task_factory()
    if isinstance(factory, _Factory):
        factory.workers -= 1
        if factory.workers <= 0:
            loop.set_task_factory(factory.before)
