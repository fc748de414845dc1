"""Numbers the requests of one producer, so that one that is sent again is known by its number and carried out once.

Redis keeps, for each lane, the number and the answer of its last request. A lane serves one request at a time; so there
are as many lanes as there were requests at once, and never one for each request.
"""

from __future__ import annotations

import os
import uuid
from itertools import count
from typing import Final

LEAST_MEMORY: Final = 60.0
_BACKOFF: Final = 5.0  # the longest pause between two tries, see `resilience.backoff`
_ROUND_TRIPS: Final = 3  # a try connects, sends the script's digest, and at worst its source
_MARGIN: Final = 30.0


class Lane:
    """One key in Redis, and the number of the last request that was given it."""

    __slots__ = ("key", "number")

    def __init__(self, key: str) -> None:
        self.key = key
        self.number = 0


class LanePool:
    """The lanes of one process. Thread-safe without a lock: `list.pop` and `list.append` are atomic.

    Args:
        prefix: of the lanes' keys; each process adds a name of its own.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._begin()

    def take(self) -> Lane:
        """A lane that nobody else uses, with the next number."""
        if self._process != os.getpid():  # forked: with the parent's names, its answers would pass for ours
            self._begin()
        try:
            lane = self._free.pop()
        except IndexError:
            lane = Lane(f"{self._own_prefix}{next(self._serial)}")
        lane.number += 1
        return lane

    def give_back(self, lane: Lane) -> None:
        """Let others use it. Nothing may be sent for its last request from now on."""
        self._free.append(lane)

    def _begin(self) -> None:
        self._own_prefix = f"{self._prefix}{uuid.uuid4().hex[:16]}:"
        self._free: list[Lane] = []
        self._serial = count(1)
        self._process = os.getpid()


def answer_memory(tries: int, timeout: float) -> float:
    """Seconds for which an answer must be kept: longer than the last try can come after the first.

    Args:
        tries: how often a request is sent at most.
        timeout: seconds for connecting and for each command.
    """
    return max(LEAST_MEMORY, tries * (_ROUND_TRIPS * timeout + _BACKOFF) + _MARGIN)
