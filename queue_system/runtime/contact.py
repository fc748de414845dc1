"""Whether Redis can be reached, by all that this worker asks of it: what closes the breaker, and when it was away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from queue_system.utils import CircuitBreaker


class Contact:
    """One account for the claim loop, the blocking read, the lease thread and the reaper. Thread-safe.

    Any answer closes the breaker: an idle worker has no operation that could be its probe.

    Args:
        breaker: opens while Redis is away.
        on_back: told once after each outage for how many seconds Redis was away; called in the thread that noticed.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        on_back: Callable[[float], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._breaker = breaker
        self._on_back = on_back
        self._clock = clock
        self._lock = threading.Lock()
        self._away_since: float | None = None

    def failed(self) -> None:
        """Redis could not serve."""
        with self._lock:
            if self._away_since is None:
                self._away_since = self._clock()
        self._breaker.record_failure()

    def made(self) -> None:
        """Redis has answered, if only with a refusal."""
        if self._away_since is None and not self._breaker.failures:
            return
        with self._lock:
            since, self._away_since = self._away_since, None
        self._breaker.restore()
        if since is not None:
            self._on_back(self._clock() - since)
