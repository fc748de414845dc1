"""Something that each event loop has its own of, closed when its loop ends: connections cannot be moved to another."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_Anchor = AsyncGenerator[None, None]


class PerLoop(Generic[T]):
    """One thing for each event loop that asks for it. Thread-safe, and safe to fork.

    An event loop ends its asynchronous generators before it is closed: one of ours stands for each thing, and closes
    it. A loop that was closed without that is noticed when another one asks.

    Args:
        make: makes one, within its event loop.
        close: closes one, within its event loop.
        abandon: does what can be done for one whose event loop is closed.
    """

    def __init__(
        self, make: Callable[[], T], close: Callable[[T], Awaitable[None]], abandon: Callable[[T], None]
    ) -> None:
        self._make, self._close, self._abandon = make, close, abandon
        self._begin()

    def get(self) -> T:
        """That of the event loop that runs."""
        loop = asyncio.get_running_loop()
        last = self._last
        if last is not None and last[0] is loop:
            return last[1]
        return self._look_up(loop)

    async def close(self) -> None:
        """Close all: that of the event loop that runs at once, those of others as soon as they come to it."""
        own = asyncio.get_running_loop()
        for loop in list(self._of):
            if loop is not own:
                self._close_elsewhere(loop)
        known = self._of.get(own)
        if known is not None:
            await known[1].aclose()

    def _begin(self) -> None:
        # A dict needs no lock: nobody but the thread of an event loop adds an entry for it.
        self._of: dict[asyncio.AbstractEventLoop, tuple[T, _Anchor]] = {}
        self._last: tuple[asyncio.AbstractEventLoop, T] | None = None
        self._process = os.getpid()
        self._inherited: object = None

    def _look_up(self, loop: asyncio.AbstractEventLoop) -> T:
        if self._process != os.getpid():  # forked: they are the parent's, and so are their loops: kept, and left alone
            inherited = self._of
            self._begin()
            self._inherited = inherited
        for other in list(self._of):
            if other.is_closed():
                self._drop(other)
        known = self._of.get(loop)
        if known is None:
            thing = self._make()
            anchor = self._until_the_end(loop, thing)
            self._of[loop] = thing, anchor
            _begin(anchor)
        else:
            thing = known[0]
        self._last = loop, thing
        return thing

    async def _until_the_end(self, loop: asyncio.AbstractEventLoop, thing: T) -> _Anchor:
        try:
            yield
        finally:
            self._forget(loop)
            await self._close(thing)

    def _drop(self, loop: asyncio.AbstractEventLoop) -> None:
        known = self._forget(loop)
        if known is not None:
            self._abandon(known[0])

    def _forget(self, loop: asyncio.AbstractEventLoop) -> tuple[T, _Anchor] | None:
        last = self._last
        if last is not None and last[0] is loop:
            self._last = None
        return self._of.pop(loop, None)

    def _close_elsewhere(self, loop: asyncio.AbstractEventLoop) -> None:
        known = self._of.get(loop)
        if known is None:
            return
        ending = _ended(known[1])
        try:
            asyncio.run_coroutine_threadsafe(ending, loop)
        except RuntimeError:  # it is closed
            ending.close()
            self._drop(loop)


async def _ended(anchor: _Anchor) -> None:
    await anchor.aclose()


def _begin(anchor: _Anchor) -> None:
    """Up to its `yield`, before which it awaits nothing: from there on the event loop knows of it."""
    with contextlib.suppress(StopIteration):
        anchor.__anext__().send(None)
