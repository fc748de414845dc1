"""Metric families that are cheap to feed: counters, gauges and histograms, shown by one collector.

A histogram of prometheus-client walks its buckets in Python, and every number there has a lock of its own. Here all
numbers share one: whoever counts several things of one event takes it once, and a scrape reads all of them in one
instant, so that what belongs together is seen together.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Exemplar, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Shown

from telemetry.catalogue import Metric

MAX_EXEMPLAR: Final = 128
"""Characters of an exemplar, names and values together: Prometheus refuses a whole scrape because of a longer one."""

LOCK: Final = threading.RLock()
"""Of all numbers. An event holds it for about a microsecond, a scrape until it has copied them.

It lets the same thread in again: a finalizer or a signal handler may cause an event in the midst of another.
"""

acquire, release = LOCK.acquire, LOCK.release
"""For what happens with every operation: they take half the time of a with statement.

`acquire` stands inside the try whose finally releases: a signal's handler may raise as soon as the lock is taken.
"""

if hasattr(os, "register_at_fork"):  # a child must find it free, and the numbers whole
    os.register_at_fork(before=acquire, after_in_parent=release, after_in_child=release)

_Values: TypeAlias = tuple[str, ...]  # of the labels
_Kept: TypeAlias = tuple[dict[str, str], float, float]
"""What an exemplar is made of: its labels, the value, the Unix time."""


class Child(Protocol):
    """The numbers of one set of label values."""

    def read(self) -> Any:
        """A copy of them. `LOCK` is held."""
        ...


class Counter:
    """A number that only grows. Whoever holds `LOCK` may add to its `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, amount: float = 1) -> None:
        """Add to it.

        Raises:
            ValueError: the amount is negative.
        """
        if amount < 0:
            raise ValueError(f"{amount!r}: a counter only grows")
        try:
            acquire()
            self.value += amount
        finally:
            release()

    def read(self) -> float:
        """See `Child`."""
        return self.value


class Gauge:
    """A number that is set."""

    __slots__ = ("_value",)

    def __init__(self) -> None:
        self._value: float = 0

    def set(self, value: float) -> None:
        """This is what it is now."""
        self._value = value

    def read(self) -> float:
        """See `Child`."""
        return self._value


class Histogram:
    """How many values fell into each bucket, and their sum.

    Args:
        bounds: of the buckets, upwards; a bound is within its bucket. There is one more bucket, for what is above.
    """

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum: float = 0
        self._exemplars: dict[int, _Kept] = {}

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Count a value. Its exemplar, if it has one, takes the place of the last one of the bucket.

        Raises:
            ValueError: the exemplar has more than `MAX_EXEMPLAR` characters; the value is counted all the same.
        """
        with LOCK:
            self.add(value, exemplar)

    def add(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """As `observe`, for whoever holds `LOCK`."""
        bucket = bisect_left(self._bounds, value)
        self._counts[bucket] += 1
        self._sum += value
        if exemplar:
            self._exemplars[bucket] = (_checked(exemplar), value, time.time())

    def read(self) -> tuple[list[int], dict[int, _Kept], float]:
        """See `Child`."""
        return self._counts.copy(), self._exemplars.copy(), self._sum


_Child = TypeVar("_Child", bound=Child)


class Family(Generic[_Child]):
    """One metric: a child for each set of label values; without labels there is one, from the beginning."""

    def __init__(self, metric: Metric, make: Callable[[], _Child]) -> None:
        self.metric = metric
        self._make = make
        self._children: dict[_Values, _Child] = {}
        if not metric.labels:
            self.labels()

    def labels(self, *values: str) -> _Child:
        """The child of these values, in the order of the metric's labels; made, at 0, when there is none yet.

        Raises:
            ValueError: they are too many or too few.
        """
        child = self._children.get(values)
        return self._begin(values) if child is None else child

    def _begin(self, values: _Values) -> _Child:
        if len(values) != len(self.metric.labels):
            raise ValueError(f"{values!r}: {self.metric.name} has the labels {self.metric.labels!r}")
        with LOCK:
            return self._children.setdefault(values, self._make())

    def read(self) -> list[tuple[_Values, Any]]:
        """What the children have read, by their values. `LOCK` is held."""
        return [(values, child.read()) for values, child in self._children.items()]


class Families:
    """The families of some metrics, by name, and the collector that shows them in a registry.

    Raises:
        ValueError: the registry has a metric of such a name.
    """

    def __init__(self, metrics: Iterable[Metric], registry: CollectorRegistry) -> None:
        self._families = {metric.name: Family(metric, _maker(metric)) for metric in metrics}
        registry.register(self)

    def __getitem__(self, name: str) -> Family[Any]:
        return self._families[name]

    def describe(self) -> list[Shown]:
        """The families without their numbers, so that registering reads nothing."""
        return [_shown(family.metric, []) for family in self._families.values()]

    def collect(self) -> Iterator[Shown]:
        """The families with their numbers, all of one instant."""
        with LOCK:
            read = [(family.metric, family.read()) for family in self._families.values()]
        for metric, numbers in read:
            yield _shown(metric, numbers)


def _maker(metric: Metric) -> Callable[[], Child]:
    if metric.kind == "histogram":
        bounds = tuple(map(float, metric.buckets))  # a float is compared with another in less time than with an int
        return lambda: Histogram(bounds)
    return Counter if metric.kind == "counter" else Gauge


def _shown(metric: Metric, numbers: list[tuple[_Values, Any]]) -> Shown:
    if metric.kind == "histogram":
        return _shown_histogram(metric, numbers)
    family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    shown = family(metric.full_name, metric.help, labels=metric.labels)
    for values, number in numbers:
        shown.add_metric(values, number)
    return shown


def _shown_histogram(metric: Metric, numbers: list[tuple[_Values, Any]]) -> Shown:
    shown = HistogramMetricFamily(metric.full_name, metric.help, labels=metric.labels)
    bounds = [*(str(float(bound)) for bound in metric.buckets), "+Inf"]
    for values, (counts, kept, total) in numbers:
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = [*zip(bounds, accumulate(counts), strict=True)]
        for bucket, one in kept.items():
            buckets[bucket] = (*buckets[bucket][:2], Exemplar(*one))
        shown.add_metric(values, buckets, total)
    return shown


def _checked(exemplar: dict[str, str]) -> dict[str, str]:
    length = 0
    for name, value in exemplar.items():
        length += len(name) + len(value)
    if length > MAX_EXEMPLAR:
        raise ValueError(f"an exemplar of {length} characters: at most {MAX_EXEMPLAR} are allowed")
    return exemplar
