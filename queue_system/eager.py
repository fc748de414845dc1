"""A future whose waiters go on at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class EagerFuture(asyncio.Future[T], Generic[T]):
    """Whoever waits for it goes on within `set_result` or `set_exception`, not in the next turn of the event loop.

    A turn takes about as long as to read a reply of Redis. Within a task, where no other can go on, it is a future like
    others, and so it is for whoever waits when it is cancelled.

    Args:
        loop: the event loop that runs.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._waiting: list[tuple[Callable[[Any], object], Context | None]] = []

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        """See `asyncio.Future`."""
        if self.done():
            super().add_done_callback(fn, context=context)
        else:
            self._waiting.append((fn, context))

    def remove_done_callback(self, fn: Callable[[Any], object], /) -> int:
        """See `asyncio.Future`."""
        left = [one for one in self._waiting if one[0] != fn]
        removed, self._waiting = len(self._waiting) - len(left), left
        return removed + super().remove_done_callback(fn)

    def set_result(self, result: T, /) -> None:
        """See `asyncio.Future`."""
        super().set_result(result)
        self._go_on()

    def set_exception(self, exception: type | BaseException, /) -> None:
        """See `asyncio.Future`."""
        super().set_exception(exception)
        self._go_on()

    def cancel(self, msg: Any | None = None) -> bool:
        """See `asyncio.Future`."""
        self._hand_over()
        return super().cancel(msg)

    def _go_on(self) -> None:
        loop = self.get_loop()
        if asyncio.current_task(loop) is not None:
            self._hand_over()
            return
        waiting, self._waiting = self._waiting, []
        for fn, context in waiting:
            try:
                fn(self) if context is None else context.run(fn, self)
            except BaseException as error:  # noqa: BLE001  as the event loop does it: nobody else is to suffer from it
                loop.call_exception_handler({"message": f"Exception in callback {fn!r}", "exception": error})

    def _hand_over(self) -> None:
        """Leave them to the event loop."""
        waiting, self._waiting = self._waiting, []
        for fn, context in waiting:
            super().add_done_callback(fn, context=context)
