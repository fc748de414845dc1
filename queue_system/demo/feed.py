"""What happens in the queue, counted while it happens."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from queue_system.demo.files import PRIORITIES
from queue_system.events import (
    BrokerError,
    Event,
    OutcomeApplied,
    WorkerTaskFailed,
)
from queue_system.hooks import Hooks

KINDS: Final = {False: "sync", True: "async"}

_LATEST: Final = 3
_ENDS: Final = frozenset({"processed", "failed", "rejected"})


class Lane(NamedTuple):
    """Operations that wait for one another, by priority. Sync and async ones do not: they run in different places."""

    is_async: bool
    priority: str

    def __str__(self) -> str:
        return f"{KINDS[self.is_async]} {self.priority}"


LANES: Final = tuple(Lane(is_async, priority) for is_async in KINDS for priority in PRIORITIES)


class Feed(Hooks):
    """Listens to what the worker says about itself, as metrics, spans and logs do, and keeps count of it.

    Give it to ``QueueConfig(telemetry=[feed])``. `latest` are the latest things that did not go well, in words.
    """

    def __init__(self) -> None:
        self.enqueued: Counter[Lane] = Counter()
        self.done: Counter[Lane] = Counter()
        self.results: Counter[str] = Counter()
        self.latest: deque[str] = deque(maxlen=_LATEST)
        self._started: float | None = None
        self._ended: float | None = None

    def expect(self, receipts: Iterable[Mapping[str, Any]]) -> None:
        """Note what `enqueue` or `enqueue_batch` returned."""
        self.enqueued.update(Lane(bool(receipt["is_async"]), receipt["priority"]) for receipt in receipts)

    def on_event(self, event: Event) -> None:
        """See `Hooks`."""
        match event:
            case OutcomeApplied() if event.operation.kind == "operation":
                self._outcome(event)
            case WorkerTaskFailed():
                self.latest.append(f"{event.task} failed: {event.reason}")
            case BrokerError():
                self.latest.append(f"Redis: {event.kind}")

    def start(self) -> None:
        """The work begins: the clock runs."""
        self._started = time.monotonic()

    def stop(self) -> None:
        """The work has ended: the clock stands."""
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """From the start until now, or until the end."""
        if self._started is None:
            return 0.0
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    def summary(self) -> str:
        """The counts so far, on one line."""
        done, results = self.done.total(), self.results
        rate = done / self.seconds if self.seconds else 0.0
        return (
            f"{done:,} of {self.enqueued.total():,} operations in {self.seconds:.1f} s, {rate:,.0f} per second; "
            f"{results['retried']:,} retries, {results['timed out']:,} timeouts, {results['failed']:,} failures"
        )

    def _outcome(self, event: OutcomeApplied) -> None:
        operation, timed_out = event.operation, event.outcome == "timeout"
        self.results[event.result] += 1
        self.results["timed out"] += timed_out
        if event.result in _ENDS:
            self.done[Lane(operation.is_async, operation.priority)] += 1
        if event.result in {"retried", "failed"}:
            what = "timed out" if timed_out else f"failed ({event.error_type})"
            then = "to be tried again" if event.result == "retried" else "given up"
            self.latest.append(f"{operation.processor}: attempt {operation.attempt} {what}, {then}")
