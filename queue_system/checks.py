"""Checks of numbers that callers give, with errors that say what to do. Used wherever a number comes in."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from queue_system.errors import ConfigurationError, QueueError

MAX_SECONDS: Final = 100 * 365 * 86400
"""A hundred years: in milliseconds still an exact number everywhere, and an expiry that Redis accepts."""

MIN_SECONDS: Final = 0.001
"""What becomes milliseconds and must not be 0 is at least one."""

DURABILITIES: Final = ("primary", "wait")
"""When an operation counts as accepted: when the primary has it, or when replicas have said that they have it, too."""


def check_number(name: str, value: object, *, error: type[QueueError] = ConfigurationError) -> float:
    """Return `value` as a float; raise `error` unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise error(f"{name} must be a finite number, got {value!r}")
    return float(value)


def check_seconds(
    name: str, value: object, *, zero: bool = False, error: type[QueueError] = ConfigurationError
) -> float:
    """Return `value` as a float; raise `error` unless it is a number of seconds from 0.001 on (from 0 if `zero`).

    Redis counts in milliseconds: less than one would be none, and an expiry of none is refused. A hundred years is the
    most: what is longer is a mistake, and an expiry that Redis refuses.
    """
    seconds = check_number(name, value, error=error)
    if seconds < 0 or (seconds == 0 and not zero):
        raise error(f"{name} must be {'0 or more' if zero else 'more than 0'} seconds, got {value!r}")
    if seconds < MIN_SECONDS and not zero:
        raise error(f"{name} must be at least a millisecond (0.001 seconds), got {value!r}")
    if seconds > MAX_SECONDS:
        raise error(f"{name} must be at most a hundred years in seconds, got {value!r}")
    return seconds


def check_durability(durability: object) -> str:
    """Return `durability`, or raise `ConfigurationError` unless it is ``primary`` or ``wait``."""
    if durability not in DURABILITIES:
        raise ConfigurationError(f"unknown durability {durability!r}: use one of {', '.join(DURABILITIES)}")
    return str(durability)


def check_names(
    name: str, values: object, of_what: str, *, error: type[QueueError] = ConfigurationError
) -> tuple[Any, ...]:
    """Return what a collection holds; raise `error` for a text, which would count as its letters."""
    if isinstance(values, str | bytes | bytearray | Mapping) or not isinstance(values, Iterable):
        raise error(f"{name} must be a list of {of_what}, got {values!r}")
    return tuple(values)


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """Return `value`; raise `ConfigurationError` unless it is an integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f"of {least} or more" if most is None else f"from {least} to {most:,}"
        raise ConfigurationError(f"{name} must be an integer {limits}, got {value!r}")
    return value
