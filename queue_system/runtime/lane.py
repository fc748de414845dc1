"""Where claims wait for the task that takes them next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

TURN: Final = 0.001
"""Seconds after which a task that need never wait lets others have the event loop."""


class Lane(Generic[T]):
    """First in, first out. Not thread-safe: for the event loop's own thread.

    One waiting task is woken at a time, and wakes the next one as it takes something and leaves something. So work that
    never waits is done by one task without any switching, and work that does is spread over all of them.

    Args:
        others_wait: whether a task that goes on and on should let others have the event loop now.
        on_empty: called whenever the last thing was taken.
    """

    def __init__(
        self, others_wait: Callable[[], bool] = lambda: False, on_empty: Callable[[], None] = lambda: None
    ) -> None:
        self._others_wait = others_wait
        self._on_empty = on_empty
        self._things: deque[T] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._woken = False  # one is on its way here
        self._turn_ends = 0.0

    def __len__(self) -> int:
        return len(self._things)

    def put(self, thing: T) -> None:
        """Add one."""
        self._things.append(thing)
        self._wake()

    async def get(self) -> T:
        """Take the next one; wait until there is one."""
        if not self._things:
            await self._wait()
        if self._others_wait() or time.monotonic() > self._turn_ends:
            await self._let_others()
            if not self._things:
                await self._wait()
        thing = self._things.popleft()
        if self._things:
            self._wake()
        else:
            self._on_empty()
        return thing

    def drain(self) -> list[T]:
        """Take out everything."""
        left = list(self._things)
        self._things.clear()
        return left

    async def _let_others(self) -> None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if self._things:  # it may have been woken for them, and nobody else
                self._wake()
            raise
        self._turn_ends = time.monotonic() + TURN

    async def _wait(self) -> None:
        while not self._things:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._left(waiter)
                raise
            self._woken = False
        self._turn_ends = time.monotonic() + TURN

    def _left(self, waiter: asyncio.Future[None]) -> None:
        """A waiting task was cancelled; if it had been woken, another one is woken instead."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif not waiter.cancelled():
            self._woken = False
            if self._things:
                self._wake()

    def _wake(self) -> None:
        while self._waiting and not self._woken:
            waiter = self._waiting.popleft()
            if not waiter.done():  # cancelled: its task has not run since
                waiter.set_result(None)
                self._woken = True
