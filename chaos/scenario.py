"""The registry of scenarios, and how big each is to be."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from chaos import faults
from chaos.report import Report

DEFAULT_SECONDS: Final = 300.0
"""For about so long `make chaos` runs."""

_SHARE: Final = 20  # of the total time, about so many parts: what one scenario may take


@dataclass(frozen=True, slots=True)
class Scale:
    """How big the scenarios are.

    Attributes:
        seconds: for about so long one scenario may take.
        factor: 1 for the default size; 0 for the short one, which is part of the tests.
    """

    seconds: float
    factor: float

    @classmethod
    def short(cls) -> Self:
        """A few seconds for each."""
        return cls(seconds=5.0, factor=0.0)

    @classmethod
    def lasting(cls, total: float = DEFAULT_SECONDS) -> Self:
        """For a suite that takes about `total` seconds; 300 is the default size."""
        return cls(seconds=total / _SHARE, factor=total / DEFAULT_SECONDS)

    @property
    def is_short(self) -> bool:
        """Whether this is the size of the tests."""
        return self.factor == 0.0

    def pick(self, *, short: float, default: float, long: float) -> float:
        """The short number, or the default one times the factor: no more than the long one, no less than the short."""
        return short if self.is_short else max(min(short, default), min(default * self.factor, max(default, long)))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many operations a scenario works on: in the tests, by default, and at most."""

    short: int
    default: int
    long: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a scenario is given.

    Attributes:
        fault: what is broken, in words.
        operations: how many operations to put to the test.
        scale: for its other numbers (`Scale.pick`).
    """

    fault: str
    operations: int
    scale: Scale

    def report(
        self,
        *,
        lost: int,
        extra_runs: int,
        recovery: float | None = None,
        details: Mapping[str, Any] | None = None,
        problems: tuple[str, ...] = (),
        operations: int | None = None,
    ) -> Report:
        """A report on this plan; `operations` is what was really put to the test, the planned number by default."""
        done = self.operations if operations is None else operations
        return Report(self.fault, done, lost, extra_runs, recovery, details or {}, problems)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario: `run` breaks something and reports.

    With `may_lose` a loss is measured, and breaks no promise. One that `waits` leaves the processor alone for most of
    its time, so that several of them may run at once.
    """

    name: str
    fault: str
    sizes: Sizes
    run: Callable[[Plan], Report]
    may_lose: bool = False
    waits: bool = False

    def plan(self, scale: Scale) -> Plan:
        """What to do at this scale."""
        sizes = self.sizes
        operations = round(scale.pick(short=sizes.short, default=sizes.default, long=sizes.long))
        return Plan(self.fault, operations, scale)


_scenarios: dict[str, Scenario] = {}


def scenario(
    name: str, fault: str, *, operations: tuple[int, int, int], may_lose: bool = False, waits: bool = False
) -> Callable[[Callable[[Plan], Report]], Callable[[Plan], Report]]:
    """Register a scenario.

    Args:
        name: for the command line.
        fault: what is broken, in words.
        operations: how many in the tests, by default, and at most.
        may_lose: whether a loss is what the scenario measures, where nothing was promised.
        waits: whether it may run beside others.
    """

    def register(run: Callable[[Plan], Report]) -> Callable[[Plan], Report]:
        if name in _scenarios:
            raise ValueError(f"two scenarios have the name {name!r}: give one another name")
        _scenarios[name] = Scenario(name, fault, Sizes(*operations), run, may_lose, waits)
        return run

    return register


def all_scenarios() -> dict[str, Scenario]:
    """Every scenario of `chaos.faults`, by name, in the order of the names of their modules."""
    for module in sorted(module.name for module in pkgutil.iter_modules(faults.__path__)):
        importlib.import_module(f"{faults.__name__}.{module}")
    return dict(_scenarios)
