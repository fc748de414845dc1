"""Where claims wait for the task that takes them next."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

from queue_system.eager import EagerFuture

T = TypeVar("T")

TURN: Final = 0.001
"""Seconds after which a task that need never wait lets others have the event loop."""


class Lane(Generic[T]):
    """First in, first out. Not thread-safe: for the event loop's own thread.

    One waiting task after the other goes on, each until it waits for something itself, as long as there is something to
    take. So work that never waits is done by one task without any switching, and work that does is spread over all of
    them.

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
        self._waiting: deque[EagerFuture[None]] = deque()
        self._waking = False  # they are being woken, or will be
        self._turn_ends = 0.0

    def __len__(self) -> int:
        return len(self._things)

    def put(self, thing: T) -> None:
        """Add one."""
        self._things.append(thing)
        self._wake()

    def extend(self, things: Iterable[T]) -> None:
        """Add several at once: a task that is woken, which may go on before this returns, finds all of them."""
        self._things.extend(things)
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
            waiter: EagerFuture[None] = EagerFuture(asyncio.get_running_loop())
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                self._wake()  # it may have been woken, and nobody else
                raise
        self._turn_ends = time.monotonic() + TURN

    def _wake(self) -> None:
        if not self._things or not self._waiting or self._waking:
            return
        loop = asyncio.get_running_loop()
        if asyncio.current_task(loop) is None:
            self._wake_all()
        else:  # when this one waits, or is through
            self._waking = True
            loop.call_soon(self._wake_all)

    def _wake_all(self) -> None:
        ends = time.monotonic() + TURN
        self._waking = True
        try:
            while self._things and self._waiting:
                waiter = self._waiting.popleft()
                if not waiter.done():  # cancelled: its task has not run since
                    waiter.set_result(None)
                if self._others_wait() or time.monotonic() > ends:
                    asyncio.get_running_loop().call_soon(self._wake)
                    break
        finally:
            self._waking = False
