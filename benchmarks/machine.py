"""What the figures were measured on, and small helpers that every benchmark needs."""

from __future__ import annotations

import os
import pathlib
import platform
import statistics
from collections.abc import Sequence


def describe(redis_version: str) -> str:
    """One line: processors, Python, Redis."""
    cores = os.cpu_count() or 1
    return (
        f"{cores} x {_processor()}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, Redis {redis_version} on loopback, no persistence"
    )


def median(values: Sequence[float]) -> float:
    """The middle one: a noisy neighbour spoils a mean."""
    return statistics.median(values)


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
