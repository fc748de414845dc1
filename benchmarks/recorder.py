"""Writes where the time of a process goes: of the thread that records by function, of the others as a sum.

cProfile sees one thread (from Python 3.12 on it mixes in what others call, so figures of a process with busy threads
are less exact there). The others' seconds of CPU are read from their clocks, by name.
"""

from __future__ import annotations

import cProfile
import json
import pathlib
import pstats
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

Function: TypeAlias = tuple[str, int, str]
"""File, line and name, as cProfile has them; the file of what is written in C is ``~``."""


@dataclass(frozen=True)
class Entry:
    """A function: its calls, its own seconds, and both by who called it."""

    calls: int
    own: float
    callers: dict[Function, tuple[int, float]]


@dataclass(frozen=True)
class Recording:
    """What the recorded thread did, and seconds of CPU of the other threads by name."""

    entries: dict[Function, Entry]
    threads: dict[str, float]


@contextmanager
def recorded(path: str) -> Iterator[None]:
    """Record what is done in this thread meanwhile, and in the others; written to `path` at the end."""
    profile = cProfile.Profile()
    before = cpu_of_others()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        spent = {name: seconds - before.get(name, 0.0) for name, seconds in cpu_of_others().items()}
        profile.dump_stats(path)
        _beside(path).write_text(json.dumps(spent))


def read(path: str) -> Recording:
    """What `recorded` has written."""
    stats: dict[Function, Any] = pstats.Stats(path).stats  # type: ignore[attr-defined]  # not in its stub
    return Recording(entries_of(stats), json.loads(_beside(path).read_text()))


def entries_of(stats: dict[Function, Any]) -> dict[Function, Entry]:
    return {
        function: Entry(calls, own, {caller: (one[0], one[2]) for caller, one in callers.items()})
        for function, (_, calls, own, _, callers) in stats.items()
    }


def cpu_of_others() -> dict[str, float]:
    """Seconds of CPU of each other thread that lives; those whose names differ by a number only are one."""
    total: dict[str, float] = defaultdict(float)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.ident is not None:
            name = re.sub(r"[-_ ]?\d+\b.*", "", thread.name)
            total[name] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return dict(total)


def _beside(path: str) -> pathlib.Path:
    return pathlib.Path(f"{path}.threads")
