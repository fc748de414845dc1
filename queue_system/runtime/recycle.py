"""When a worker has done enough: it then drains and ends, so that its supervisor starts a fresh process.

For processors that leak, or a library of theirs that does.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from queue_system.errors import ConfigurationError

JITTER: Final = 0.05
"""Each limit is drawn from its last 5 %, anew for each worker: a fleet that starts together does not end together."""

_STATM: Final = Path("/proc/self/statm")
_MIB: Final = 1024 * 1024


def resident_memory() -> int | None:
    """Bytes of this process in memory now; without ``/proc`` the most they ever were; None where neither is known."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_memory()


def _peak_memory() -> int | None:
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return None  # Windows
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Recycling:
    """The limits of one worker.

    Args:
        max_operations: operations, callbacks included, whose processor was called; None for no limit.
        max_memory: resident bytes of the process; None for no limit.
        memory: measures them.
        uniform: draws a number between two.
    """

    def __init__(
        self,
        max_operations: int | None = None,
        max_memory: int | None = None,
        *,
        memory: Callable[[], int | None] = resident_memory,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        share = uniform(1 - JITTER, 1.0)
        self.operations = None if max_operations is None else max(1, round(max_operations * share))
        self.memory = None if max_memory is None else int(max_memory * share)
        self._max_memory = max_memory
        self._measure = memory

    def check(self) -> None:
        """Before the worker starts.

        Raises:
            ConfigurationError: the process is beyond `max_memory` before any work, or cannot be measured here.
        """
        if self.memory is None or self._max_memory is None:
            return
        used = self._measure()
        if used is None:
            raise ConfigurationError("max_memory: the memory of a process cannot be measured on this system")
        if used >= self._max_memory * (1 - JITTER):
            raise ConfigurationError(
                f"max_memory is {self._max_memory / _MIB:.0f} MiB, but this process takes {used / _MIB:.0f} MiB before"
                " any work: give it a multiple of that"
            )

    def due_by_operations(self, done: int) -> bool:
        """Whether so many are enough."""
        return self.operations is not None and done >= self.operations

    def due_by_memory(self) -> bool:
        """Whether the process has grown beyond its limit; measured now."""
        return self.memory is not None and (self._measure() or 0) >= self.memory
