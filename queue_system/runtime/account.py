"""How busy something with a number of places is, integrated over time."""

from __future__ import annotations

import time


class BusyAccount:
    """Integrates on every change instead of by samples: a sampled ten-minute job reads 0 %, then 4,000 %.

    One thread changes it, any may read.

    Args:
        size: how many places there are.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._started = now = time.monotonic()
        self._state = now, 0, 0.0, 0.0  # since when, places taken, seconds taken, seconds saturated: changed as one

    def change(self, taken: int) -> None:
        """So many places are taken from now on; more than there are count as all."""
        taken = min(taken, self._size)
        if taken != self._state[1]:
            now, _, busy, saturated = self._advanced()
            self._state = now, taken, busy, saturated

    def read(self) -> tuple[float, float, float]:
        """Seconds of places taken, of places there, and of all of them being taken."""
        now, _, busy, saturated = self._advanced()
        return busy, (now - self._started) * self._size, saturated

    def _advanced(self) -> tuple[float, int, float, float]:
        # The clock first: a reader that is held up before it looks must not count the time twice, and then go back.
        now = time.monotonic()
        since, active, busy, saturated = self._state
        elapsed = now - since
        if elapsed <= 0.0:
            return since, active, busy, saturated
        return now, active, busy + elapsed * active, saturated + (elapsed if active == self._size else 0.0)
