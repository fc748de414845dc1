"""Is everything accounted for? Each check says what is wrong, in words; no words, nothing wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from queue_system.demo.processors import endless, hopeless, measure, parse, unsteady
from queue_system.demo.totals import Ledger


@dataclass(frozen=True, slots=True)
class Ending:
    """How the operations of a processor are to end. `attempts` is None where any number will do."""

    what: str
    succeeds: bool
    attempts: int | None = None
    reason: str = ""

    def fits(self, data: Mapping[str, Any]) -> bool:
        """Whether a callback's data tells of such an end."""
        if self.attempts not in (None, data["attempts"]):
            return False
        return ("result" in data) if self.succeeds else (data.get("reason") == self.reason)


ENDINGS: Final = {
    measure.__name__: Ending("digest, lines and words of a file", succeeds=True),
    parse.__name__: Ending("definitions of a file", succeeds=True),
    unsteady.__name__: Ending("fails twice, then succeeds", succeeds=True, attempts=3),
    endless.__name__: Ending("times out, ends in failures", succeeds=False, attempts=2, reason="timeout"),
    hopeless.__name__: Ending("raises each time, ends in failures", succeeds=False, attempts=3, reason="error"),
}


def lost(ledger: Ledger) -> Iterator[str]:
    """Operations of which no callback told."""
    for operation_id in sorted(ledger.missing()):
        yield f"{ledger.enqueued[operation_id]} {operation_id} was enqueued and never heard of again"


def strays(ledger: Ledger) -> Iterator[str]:
    """Operations that ended, but not in the way they should, or twice, or that nobody enqueued."""
    for data in (*ledger.succeeded.values(), *ledger.failed.values()):
        operation_id, processor = data["operation_id"], data["processor"]
        if operation_id not in ledger.enqueued:
            yield f"{processor} {operation_id} ended, but was never enqueued"
        elif not ENDINGS[processor].fits(data):
            reason = data.get("reason", "success")
            yield f"{processor} {operation_id} ended otherwise than it should: {reason}, attempts={data['attempts']}"
    for operation_id in sorted(ledger.succeeded.keys() & ledger.failed.keys()):
        yield f"{ledger.enqueued.get(operation_id)} {operation_id} both succeeded and failed"


def differences(queue: Mapping[str, object], plain: Mapping[str, object]) -> Iterator[str]:
    """Totals that the plain loop sees otherwise."""
    for label, value in plain.items():
        if queue.get(label) != value:
            yield f"{label}: {queue.get(label)} by the queue, {value} by the plain loop"


def status_mismatches(status: Mapping[str, Any], ledger: Ledger, failures_key: str) -> Iterator[str]:
    """Counts of `get_queue_status` that contradict what the callbacks told."""
    metrics = status["metrics"]
    counts = {
        "enqueued": (metrics["enqueued"], len(ledger.enqueued)),
        "processed": (metrics["processed"], len(ledger.succeeded)),
        "failed": (metrics["failed"], len(ledger.failed)),
        failures_key: (status[failures_key], len(ledger.failed)),
        "total_items": (status["total_items"], len(ledger.failed)),  # the failures are all that is left
        "delayed": (status["delayed"], 0),
        "in_flight": (status["in_flight"], 0),
    }
    for name, (actual, expected) in counts.items():
        if actual != expected:
            yield f"the status says {name}={actual}; by what was enqueued and called back it is {expected}"
