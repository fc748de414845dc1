"""The time limits of all attempts, kept by one timer.

A timer of its own for each attempt would cost more than the claim of an operation, and almost none ever fires.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """Calls back when a time is over. Not thread-safe: for the event loop's own thread.

    Args:
        on_expired: given each key whose time is over; the key is forgotten by then.
    """

    def __init__(self, on_expired: Callable[[K], None]) -> None:
        self._on_expired = on_expired
        self._loop = asyncio.get_running_loop()
        self._at: dict[K, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = float("inf")

    def set(self, key: K, seconds: float) -> None:
        """`on_expired` is called with `key` after so many seconds, unless it is cleared before."""
        at = self._loop.time() + seconds
        self._at[key] = at
        if at < self._fires_at:
            self._arm(at)

    def clear(self, key: K) -> None:
        """The time of this key is not up for notice any more."""
        # The timer is left as it is: it finds nothing, or what is next. Moving it each time would be the cost saved.
        self._at.pop(key, None)

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires_at = at
        self._timer = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer, self._fires_at = None, float("inf")
        now = self._loop.time()
        for key in [key for key, at in self._at.items() if at <= now]:
            if self._at.pop(key, None) is not None:
                self._expire(key)
        if self._at:
            self._arm(min(self._at.values()))

    def _expire(self, key: K) -> None:
        try:
            self._on_expired(key)
        except BaseException as error:  # noqa: BLE001  of one: the time of the others is kept all the same
            self._loop.call_exception_handler({"message": "a time limit could not be enforced", "exception": error})
