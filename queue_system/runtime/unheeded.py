"""Async processors that do not heed their cancellation.

A processor that swallows its `CancelledError` cannot be ended, like a thread. Its attempt is *abandoned* some seconds
after the cancellation: its outcome is decided without it, and what it returns or raises later counts for nothing. Its
worker task stays taken until it ends. That is counted, told, and a reason not to be ready, as it is with threads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from queue_system.runtime.attempts import Attempt

HEED_LIMIT: Final = 3.0
"""Seconds that a processor has to clean up after its cancellation, before its attempt is decided without it."""

RECYCLE_AFTER: Final = 10.0
"""Seconds for which an abandoned one may still come back, before the worker ends because there are too many."""


class Unheeded:
    """The abandoned attempts whose processor has not ended yet. May be counted from any thread."""

    def __init__(self) -> None:
        self._since: dict[Attempt, float] = {}

    def __iter__(self) -> Iterator[Attempt]:
        return iter(list(self._since))

    def __len__(self) -> int:
        return len(self._since)

    def add(self, attempt: Attempt) -> None:
        """It is abandoned from now on."""
        attempt.abandoned = True
        self._since[attempt] = time.monotonic()

    def discard(self, attempt: Attempt) -> None:
        """Its processor has ended after all."""
        self._since.pop(attempt, None)

    def count(self, *, is_async: bool, longer_than: float = 0.0) -> int:
        """How many hold a worker task (`is_async`), or the place of a sync operation, for so many seconds."""
        now = time.monotonic()
        return sum(
            attempt.info.is_async is is_async and now - since >= longer_than
            for attempt, since in list(self._since.items())
        )
