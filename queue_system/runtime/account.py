"""How busy something with a number of places is, integrated over time."""

from __future__ import annotations

import threading
import time


class BusyAccount:
    """Integrates on every change instead of by samples: a sampled ten-minute job reads 0 %, then 4,000 %.

    Thread-safe.

    Args:
        size: how many places there are.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._started = self._since = time.monotonic()
        self._active = 0
        self._busy = 0.0
        self._saturated = 0.0
        self._lock = threading.Lock()

    def change(self, taken: int) -> None:
        """So many places are taken from now on; more than there are count as all."""
        with self._lock:
            self._advance(time.monotonic())
            self._active = min(taken, self._size)

    def read(self) -> tuple[float, float, float]:
        """Seconds of places taken, of places there, and of all of them being taken."""
        with self._lock:
            now = time.monotonic()
            self._advance(now)
            return self._busy, (now - self._started) * self._size, self._saturated

    def _advance(self, now: float) -> None:
        elapsed = max(0.0, now - self._since)
        self._busy += elapsed * self._active
        if self._active == self._size:
            self._saturated += elapsed
        self._since = now
