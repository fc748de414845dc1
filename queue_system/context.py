"""What a processor may ask about the operation that it works on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class OperationContext:
    """The second argument of a processor ``(entity, context)``.

    Attributes:
        operation_id: the operation's id; the same in every attempt, so it can serve as an idempotency key.
        attempt: 1 for the first run.
        deadline: when this attempt is cancelled, on the clock of `time.monotonic`; None without a limit (sync).
        queue: the queue's name.
        priority: ``high``, ``normal`` or ``low``.
        logger: a structlog logger bound to the ids above.
    """

    operation_id: str
    attempt: int
    deadline: float | None
    queue: str
    priority: str
    logger: Any

    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 or more; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
