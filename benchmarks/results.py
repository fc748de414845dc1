"""The figures of one run: of each round, and their medians."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.machine import median

Figures = dict[str, float]

QUIET = 1.0  # of load average, at which nobody else is to be seen


@dataclass
class Results:
    """`rounds` is measurement -> system -> figures of each round; `errors` is measurement -> system -> text."""

    machine: str = ""
    command: str = ""
    rounds: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    limits: list[Figures] = field(default_factory=list)
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)  # versions and settings
    absent: dict[str, str] = field(default_factory=dict)
    busy: float = 0.0  # the machine's load average before the first measurement

    def add(self, measurement: str, system: str, figures: Figures) -> None:
        self.rounds.setdefault(measurement, {}).setdefault(system, []).append(figures)

    def fail(self, measurement: str, system: str, error: str) -> None:
        self.errors.setdefault(measurement, {})[system] = error

    def of(self, measurement: str) -> dict[str, Figures]:
        """The medians of each system that has figures, in the order in which they came."""
        return {system: medians(rounds) for system, rounds in self.rounds.get(measurement, {}).items() if rounds}

    def figure(self, measurement: str, system: str, name: str = "per_second") -> float | None:
        """One median; None when it was not measured."""
        return self.of(measurement).get(system, {}).get(name)

    def limit(self, name: str) -> float | None:
        return medians(self.limits).get(name)

    def peers(self, measurement: str, name: str = "per_second") -> dict[str, float]:
        """The medians of the systems that are not ours."""
        return {
            system: figures[name]
            for system, figures in self.of(measurement).items()
            if not system.startswith("ours") and name in figures
        }

    @property
    def disturbed(self) -> str:
        """A warning when others used the machine; empty when it was ours."""
        if self.busy < QUIET:
            return ""
        return f"others used the machine (load average {self.busy:.1f} at the start): CPU figures tell more than rates"

    def save(self, path: str, goals: Sequence[Any] = ()) -> None:
        medians_of = {measurement: self.of(measurement) for measurement in self.rounds}
        content = {
            **asdict(self),
            "medians": medians_of,
            "limit_medians": medians(self.limits),
            "goals": [asdict(goal) for goal in goals],
        }
        pathlib.Path(path).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str) -> Results:
        content = json.loads(pathlib.Path(path).read_text())
        return cls(**{name: content[name] for name in cls.__dataclass_fields__ if name in content})


def medians(rounds: Sequence[Figures]) -> Figures:
    """Of each figure that the rounds have."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: median([figures[name] for figures in rounds if name in figures]) for name in names}
