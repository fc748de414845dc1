"""What becomes of an attempt: decided here, by pure code, and applied by one script of the broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from queue_system.operation import Operation
from queue_system.retry import QueueRetryConfig

ERROR: Final = "error"
TIMEOUT: Final = "timeout"
CANCELLED: Final = "cancelled"
POOL_EXHAUSTED: Final = "thread_pool_exhausted"
TOTAL_TIMEOUT: Final = "total_timeout"
UNKNOWN_PROCESSOR: Final = "unknown_processor"
CRASHED: Final = "crashed"
INTERNAL_ERROR: Final = "internal_error"
"""A step of the worker itself raised, before or after the processor."""

MAX_UNKNOWN_DELIVERIES: Final = 20
"""How often an operation whose processor no worker knows is put back before it is given up."""

UNKNOWN_DELAY: Final = 3.0
"""Seconds between such tries: with 20 of them a rolling deploy has one minute."""


EXHAUSTION_BACKOFF: Final = QueueRetryConfig(max_attempts=10)  # as many as it takes to get to 60 s
"""Exponential from 1 s to 60 s with full jitter: when an operation that found no thread comes back."""


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as it is kept: `type` is the class name, the texts are cut to a bound."""

    type: str
    message: str
    traceback: str = ""


class Success(msgspec.Struct, frozen=True, gc=False):
    """The processor returned; `result` is what it returned."""

    result: object = None


@dataclass(frozen=True, slots=True)
class Retry:
    """The attempt counts, and another one follows after `delay` seconds."""

    delay: float
    reason: str
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class Failure:
    """Given up: to the failures queue. `attempted` is false when no attempt was made this time.

    `cause` is why the last attempt ended; `reason` why no other follows (the same, unless the total time is over).
    """

    reason: str
    error: ErrorInfo
    cause: str
    attempted: bool = True


@dataclass(frozen=True, slots=True)
class Requeue:
    """Back to where it came from, without burning an attempt: at the head, or after `delay` seconds."""

    delay: float = 0.0
    reason: str = "released"


@dataclass(frozen=True, slots=True)
class Reject:
    """Not understood, or not allowed: to the system errors, with its raw bytes."""

    reason: str
    error: ErrorInfo


Outcome = Success | Retry | Failure | Requeue | Reject


def decide(item: Operation, retry: QueueRetryConfig, cause: str, error: ErrorInfo, now: float) -> Retry | Failure:
    """What follows an attempt that ended badly.

    Args:
        item: the operation as claimed; ``attempts`` and ``first_attempt_time`` are read. Without the latter its
            processor was never called: the total time does not run yet.
        retry: its schedule.
        cause: ``error``, ``timeout``, ``cancelled``, ``thread_pool_exhausted`` or ``internal_error``.
        error: what is kept about it.
        now: seconds on the clock of ``first_attempt_time``.
    """
    attempt = item.get("attempts", 0) + 1
    if attempt >= retry.max_attempts:
        return Failure(cause, error, cause)
    # A full pool says nothing about the operation: it backs off by how often that happened, not by its own schedule.
    exhausted = cause == POOL_EXHAUSTED
    schedule = EXHAUSTION_BACKOFF if exhausted else retry
    delay = schedule.get_delay_for_attempt(item.get("exhaustions", 0) + 1 if exhausted else attempt)
    first_called = item.get("first_attempt_time")
    if first_called is not None and retry.would_exceed_timeout(first_called, now + delay):
        return Failure(TOTAL_TIMEOUT, error, cause)
    return Retry(delay, cause, error)


def decide_unknown(item: Operation, error: ErrorInfo) -> Requeue | Failure:
    """What follows when no function of that name is known here: perhaps a newer worker has it."""
    if item.get("delivery", 1) >= MAX_UNKNOWN_DELIVERIES:
        return Failure(UNKNOWN_PROCESSOR, error, UNKNOWN_PROCESSOR, attempted=False)
    return Requeue(UNKNOWN_DELAY, UNKNOWN_PROCESSOR)


def total_timeout_exceeded(item: Operation, retry: QueueRetryConfig, now: float) -> bool:
    """Whether the total time, which runs from the first call of the processor, was over before this attempt."""
    return retry.would_exceed_timeout(item.get("first_attempt_time", now), now)
