"""A bounded number of places for things that are used by one thread at a time, handed over in the order of asking."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

import redis.exceptions as rex

T = TypeVar("T")


class CrowdedError(rex.TimeoutError):
    """No connection became free in time: nothing was sent."""

    def __init__(self, most: int, timeout: float | None) -> None:
        super().__init__(f"none of {most} connections became free within {timeout or 0:g} s: nothing was sent")


class _Waiter(Generic[T]):
    __slots__ = ("given", "thing")

    def __init__(self) -> None:
        self.thing: T | None = None
        self.given = threading.Lock()
        self.given.acquire()


class Places(Generic[T]):
    """Places with things that are kept, or empty. Thread-safe.

    No lock is needed as long as nobody has to wait: `list.pop` and `list.append` are atomic.

    Args:
        most: places.
        timeout: seconds to wait for one at most; None for as long as it takes.
    """

    def __init__(self, most: int, timeout: float | None) -> None:
        self._most = most
        self._timeout = timeout
        self._free: list[T | None] = [None] * most  # the empty ones come last
        self._waiting: deque[_Waiter[T]] = deque()
        self._lock = threading.Lock()

    def take(self) -> T | None:
        """A place that is nobody else's until it is put back: its thing, the one that was used last, or None.

        Raises:
            CrowdedError: none became free in time.
        """
        if not self._waiting:  # else it would be their turn
            try:
                return self._free.pop()
            except IndexError:
                pass
        return self._wait()

    def put(self, thing: T | None) -> None:
        """Give a place back, with its thing, or empty."""
        if thing is None:
            self._free.insert(0, None)
        else:
            self._free.append(thing)
        if self._waiting:
            self._hand_over()

    def take_all(self) -> list[T | None]:
        """All places that are free now."""
        taken: list[T | None] = []
        while self._free:
            try:
                taken.append(self._free.pop())
            except IndexError:  # another thread was quicker
                break
        return taken

    def _wait(self) -> T | None:
        waiter: _Waiter[T] = _Waiter()
        with self._lock:
            self._waiting.append(waiter)
        is_given = False
        try:
            self._hand_over()  # one that was put back before anybody could know that it is waited for
            is_given = waiter.given.acquire(timeout=-1 if self._timeout is None else self._timeout)
        finally:
            if not is_given:
                self._leave(waiter)
        if not is_given:
            raise CrowdedError(self._most, self._timeout)
        return waiter.thing

    def _leave(self, waiter: _Waiter[T]) -> None:
        with self._lock:
            is_given = waiter not in self._waiting
            if not is_given:
                self._waiting.remove(waiter)
        if is_given:  # at this very moment
            self.put(waiter.thing)

    def _hand_over(self) -> None:
        with self._lock:
            while self._waiting:
                try:
                    thing = self._free.pop()
                except IndexError:
                    return
                waiter = self._waiting.popleft()
                waiter.thing = thing
                waiter.given.release()
