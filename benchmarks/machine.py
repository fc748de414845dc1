"""What the figures were measured on, and small helpers that every benchmark needs."""

from __future__ import annotations

import argparse
import os
import pathlib
import platform
import statistics
from collections.abc import Callable, Sequence


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


def names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A type for `argparse`: some of the known names, with commas between them."""

    def parse_names(text: str) -> list[str]:
        chosen = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
        return chosen

    return parse_names


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
