"""What a scenario found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Report:
    """The result of one scenario.

    Attributes:
        fault: what was broken, in words.
        operations: how many operations were put to the test.
        lost: confirmed operations that are neither done nor failed at the end.
        extra_runs: runs beyond the first of each operation, without retries that were asked for.
        recovery: seconds from the end of the fault until work went on; None where there is nothing to recover from.
        details: further figures.
        problems: broken promises, in words; none means passed.
    """

    fault: str
    operations: int
    lost: int
    extra_runs: int
    recovery: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """The same in the form of JSON, with ``passed``."""
        return asdict(self) | {"details": dict(self.details), "passed": self.passed}
