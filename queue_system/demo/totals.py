"""What came of it: gathered by callbacks, summed up, and summed up again by a plain loop."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from queue_system.demo.processors import measure, parse

COUNTED: Final = (measure.__name__, parse.__name__)
"""The processors whose results make up the totals."""

_ROWS: Final = {
    "measured": "files measured",
    "not_read": "files not readable",
    "bytes": "bytes",
    "lines": "lines",
    "words": "words",
    "parsed": "files parsed",
    "not_parsed": "files not parsable",
    "functions": "functions",
    "classes": "classes",
}
_SHOWN_DIGITS: Final = 12


class Totals:
    """Sums of the results of `measure` and `parse`, in whatever order they come."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._digests: list[str] = []

    def add(self, result: Mapping[str, Any]) -> None:
        """Add the result of one operation."""
        for name, value in result.items():
            if name == "sha256":
                self._digests.append(value)
            else:
                self._counts[name] += value

    def rows(self) -> dict[str, int | str]:
        """Each total under its label; the last one is the digest of all files' digests."""
        digest = hashlib.sha256("".join(sorted(self._digests)).encode()).hexdigest()
        sums = {label: self._counts[name] for name, label in _ROWS.items()}
        return {**sums, "digest of digests": digest[:_SHOWN_DIGITS]}


class Ledger:
    """Knows which operations were enqueued, and hears how each of them ended.

    Delivery is at least once, so the same news may come twice: it is kept by operation id, and counts once.

    `on_success` and `on_failure` are the callbacks. They are methods of an object in this process, which is all that a
    worker in this process needs; for workers elsewhere, make them functions of a module, and write to a database.
    """

    def __init__(self) -> None:
        self.enqueued: dict[str, str] = {}
        self.succeeded: dict[str, dict[str, Any]] = {}
        self.failed: dict[str, dict[str, Any]] = {}

    def expect(self, receipts: Iterable[Mapping[str, Any]]) -> None:
        """Note what `enqueue` or `enqueue_batch` returned."""
        self.enqueued |= {receipt["operation_id"]: receipt["processor"] for receipt in receipts}

    async def on_success(self, data: dict[str, Any]) -> None:
        """An operation succeeded."""
        self.succeeded[data["operation_id"]] = data

    async def on_failure(self, data: dict[str, Any]) -> None:
        """An operation was given up."""
        self.failed[data["operation_id"]] = data

    @property
    def heard(self) -> int:
        """How many operations have ended, as far as the callbacks told."""
        return len(self.succeeded) + len(self.failed)

    def missing(self) -> set[str]:
        """The ids of the operations of which nothing was heard."""
        return self.enqueued.keys() - self.succeeded.keys() - self.failed.keys()

    def totals(self) -> Totals:
        """The sums of what `measure` and `parse` returned."""
        totals = Totals()
        for data in self.succeeded.values():
            if data["processor"] in COUNTED:
                totals.add(data["result"])
        return totals


async def plain_loop(paths: Iterable[Path], advance: Callable[[], None]) -> Totals:
    """The same totals without a queue: one file after the other, each function called directly.

    Args:
        paths: the files.
        advance: called after each file.
    """
    totals = Totals()
    for path in paths:
        entity = {"path": str(path)}
        totals.add(measure(entity))
        totals.add(await parse(entity))
        advance()
    return totals
