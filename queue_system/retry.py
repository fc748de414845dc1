"""How often and when a failed operation is tried again. Pure: the source of jitter is injected."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from queue_system.checks import check_count, check_number, check_seconds
from queue_system.errors import ConfigurationError

MAX_ATTEMPTS_LIMIT: Final = 1000
"""The schedule travels with every operation, so it is bounded."""

_DEFAULT_BASE = 2.0
_DEFAULT_MIN_DELAY = 1.0
_DEFAULT_MAX_DELAY = 60.0
_FULL_JITTER = 1.0
_SLIGHT_JITTER = 0.1


class QueueRetryConfig:
    """Retry schedule of an operation.

    An *attempt* is one run of the processor: ``max_attempts=3`` means the first run and at most two retries. The delay
    before the retry that follows attempt *n* is ``delays[n - 1]``; the last delay repeats when the list is shorter.

    Jitter takes away up to a fraction of the delay, at random. An exponential schedule has full jitter (1.0: anything
    from 0 to the delay), which spreads a retry storm best; a fixed or custom schedule, which states what its author
    wants, has 0.1. It never adds to the delay.

    Args:
        max_attempts: 1 to 1,000 runs in total.
        delays: seconds before each retry, each 0 or more; None for exponential ones (base 2 from 1 s to 60 s).
        timeout: seconds from the first call of the processor after which no retry may start, more than 0; None for no
            limit. While it waits, also for a thread, it does not run.
        jitter: fraction of each delay that is random, 0 to 1; None for the default of the kind.
        rng: returns a float in [0, 1); `random.random` by default.

    Raises:
        ConfigurationError: an argument is out of its range; the text names it and the range.
    """

    __slots__ = ("_rng", "delays", "jitter", "max_attempts", "timeout")

    def __init__(
        self,
        max_attempts: int = 5,
        delays: list[float] | None = None,
        timeout: float | None = None,
        *,
        jitter: float | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.max_attempts = _check_attempts(max_attempts)
        self.timeout = None if timeout is None else _check_timeout(timeout)
        default_jitter = _FULL_JITTER if delays is None else _SLIGHT_JITTER
        self.jitter = _check_jitter(default_jitter if jitter is None else jitter)
        self.delays = self._generate_exponential_delays() if delays is None else _check_delays(delays)
        self._rng = rng

    @classmethod
    def fixed(cls, delay: float, max_attempts: int = 5, timeout: float | None = None) -> QueueRetryConfig:
        """The same delay, in seconds, before each retry (less up to 10 % of jitter)."""
        return cls(max_attempts, [check_seconds("delay", delay, zero=True)], timeout)

    @classmethod
    def exponential(
        cls,
        base: float = 2.0,
        min_delay: float = 1.0,
        max_delay: float = 60.0,
        max_attempts: int = 5,
        timeout: float | None = None,
    ) -> QueueRetryConfig:
        """`min_delay`, multiplied by `base` before each further retry, never above `max_delay`; full jitter."""
        delays = _exponential(base, min_delay, max_delay, _check_attempts(max_attempts))
        return cls(max_attempts, delays, timeout, jitter=_FULL_JITTER)

    @classmethod
    def custom(
        cls, delays: list[float], max_attempts: int | None = None, timeout: float | None = None
    ) -> QueueRetryConfig:
        """The given delays in turn. `max_attempts` defaults to ``len(delays) + 1``: each delay is used once."""
        checked = _check_delays(delays)
        return cls(len(checked) + 1 if max_attempts is None else max_attempts, checked, timeout)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> QueueRetryConfig:
        """The inverse of `to_dict`. Unknown keys are ignored, so that a newer producer may add some.

        A timeout of 0, which older producers could write, is read as what it says: one attempt, and no retry.

        Raises:
            ConfigurationError: not a mapping, or a value out of its range.
        """
        if not isinstance(data, Mapping):
            raise ConfigurationError(f"a retry configuration is a mapping, not {type(data).__name__}")
        max_attempts, timeout = data.get("max_attempts", 5), data.get("timeout")
        if isinstance(timeout, int | float) and timeout == 0 and not isinstance(timeout, bool):
            max_attempts, timeout = 1, None
        return cls(max_attempts, data.get("delays"), timeout, jitter=data.get("jitter"))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: ``{"max_attempts", "delays", "timeout", "jitter"}``."""
        return {
            "max_attempts": self.max_attempts,
            "delays": list(self.delays),
            "timeout": self.timeout,
            "jitter": self.jitter,
        }

    def get_delay_for_attempt(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (1 for the first run; less counts as 1), with jitter."""
        index = min(max(attempt, 1), len(self.delays)) - 1
        return self.delays[index] * (1.0 - self.jitter * self._rng())

    def would_exceed_timeout(self, first_attempt_time: float, current_time: float) -> bool:
        """Whether a retry that starts at `current_time` is beyond the total timeout.

        Both are in seconds on the same clock. To ask about the next retry, pass now plus its delay.
        """
        return self.timeout is not None and current_time - first_attempt_time > self.timeout

    def _generate_exponential_delays(self) -> list[float]:
        """Base 2 from 1 s to at most 60 s, one delay for each possible retry."""
        return _exponential(_DEFAULT_BASE, _DEFAULT_MIN_DELAY, _DEFAULT_MAX_DELAY, self.max_attempts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QueueRetryConfig) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.max_attempts, tuple(self.delays), self.timeout, self.jitter))

    def __repr__(self) -> str:
        return (
            f"QueueRetryConfig(max_attempts={self.max_attempts}, delays={self.delays}, "
            f"timeout={self.timeout}, jitter={self.jitter})"
        )


def _exponential(base: float, min_delay: float, max_delay: float, max_attempts: int) -> list[float]:
    base = check_number("base", base)
    if base < 1:
        raise ConfigurationError(f"base must be 1 or more, got {base}")
    delay, cap = check_seconds("min_delay", min_delay, zero=True), check_seconds("max_delay", max_delay, zero=True)
    if delay > cap:
        raise ConfigurationError(f"min_delay ({delay}) must not be above max_delay ({cap})")
    delays = [delay]
    # Stops where the cap is reached: the last delay repeats, so a longer list would say the same.
    while len(delays) < max_attempts - 1 and delays[-1] < cap and base > 1:
        delays.append(min(delays[-1] * base, cap))
    return delays


def _check_attempts(value: object) -> int:
    return check_count("max_attempts", value, most=MAX_ATTEMPTS_LIMIT)


def _check_timeout(value: object) -> float:
    seconds = check_seconds("timeout", value, zero=True)
    if seconds == 0:
        raise ConfigurationError(
            "timeout must be more than 0 seconds, got 0: no retry at all is max_attempts=1, no limit is timeout=None"
        )
    return seconds


def _check_jitter(value: object) -> float:
    jitter = check_number("jitter", value)
    if not 0 <= jitter <= 1:
        raise ConfigurationError(f"jitter must be from 0 to 1, got {value!r}")
    return jitter


def _check_delays(delays: object) -> list[float]:
    if isinstance(delays, str | bytes | bytearray) or not isinstance(delays, Sequence):
        raise ConfigurationError(f"delays must be a list of seconds, got {delays!r}")
    if not 1 <= len(delays) <= MAX_ATTEMPTS_LIMIT:
        raise ConfigurationError(f"delays needs 1 to {MAX_ATTEMPTS_LIMIT} entries, got {len(delays)}")
    return [check_seconds(f"delays[{index}]", delay, zero=True) for index, delay in enumerate(delays)]
