"""Whether a worker is alive and ready, from figures that another thread may read. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from queue_system.events import (
    Health,
)

LOOP_LIMIT: Final = 10.0
"""Seconds that the event loop may be blocked before the worker counts as not alive."""

TURN_LIMIT: Final = 30.0
"""Seconds that one round trip of the claim loop may take, its own time limits included."""

PROGRESS_LIMIT: Final = 8.0
"""Seconds for which work may be seen to be ready for free slots without a claim. It is first seen up to 4 s after the
claims have ceased, so a worker that stands still is not alive within 13 s.
"""

CLAIM_LIMIT: Final = 10.0
"""Seconds since Redis last accepted a claim, though one was due, after which the worker is not ready."""

CONTACT_LIMIT: Final = 15.0
"""Seconds since Redis last answered, after which the worker is not ready. It is asked every third of a lease."""

OK: Final = "ok"

STOPPED: Final = Health(
    alive=True, ready=False, alive_checks={"state": OK}, ready_checks={"state": "not started, or stopped"}
)
"""Of a worker that does not run: nothing is wrong with it, and it must not be given work."""


@dataclass(frozen=True, slots=True)
class Signs:
    """What is looked at. Times in seconds, None where nothing is under way; `abandoned_limit` 0 for all threads.

    `stuck_for`: since when work has been seen that the worker could claim, and does not. `claim_accepted`: whether a
    claim ever was; `claim_refusal`: why the latest was not.
    """

    state: str
    loop_blocked_for: float
    loops_down: tuple[str, ...]
    turning_for: float | None
    without_contact_for: float
    breaker: str
    threads: int
    threads_abandoned: int
    abandoned_limit: int = 0
    callback_threads_abandoned: bool = False
    tasks_down: tuple[str, ...] = ()
    stuck_for: float = 0.0
    claim_accepted: bool = True
    claim_overdue_for: float = 0.0
    claim_refusal: str = ""
    tasks: int = 1
    tasks_abandoned: int = 0

    @property
    def too_many_tasks_abandoned(self) -> bool:
        """Whether so many worker tasks are held by processors that do not heed their cancellation."""
        return self.tasks_abandoned >= min(self.abandoned_limit or self.tasks, self.tasks)

    @property
    def too_many_abandoned(self) -> bool:
        """Whether so many threads are held by operations that never return that only a new process helps."""
        return self.threads_abandoned >= (self.abandoned_limit or self.threads) or self.callback_threads_abandoned


def judge(signs: Signs) -> Health:
    """Alive: all its loops run, and what is ready is claimed. Ready: it may be given work, and can do it."""
    alive = {
        "event_loop": _limit("blocked", signs.loop_blocked_for, LOOP_LIMIT),
        "loops": f"down: {', '.join(signs.loops_down)}" if signs.loops_down else OK,
        "tasks": f"down: {', '.join(signs.tasks_down)}" if signs.tasks_down else OK,
        "claim_loop": _limit("in one round trip", signs.turning_for or 0.0, TURN_LIMIT),
        "progress": _progress(signs),
    }
    ready = {
        "state": OK if signs.state == "running" else signs.state,
        "redis": _redis(signs),
        "claims": _claims(signs),
        "thread_pool": _pool(signs),
        "worker_tasks": _tasks(signs),
    }
    return Health(_all_ok(alive), _all_ok(alive) and _all_ok(ready), alive, {**alive, **ready})


def _limit(what: str, seconds: float, limit: float) -> str:
    return OK if seconds <= limit else f"{what} for {seconds:.1f} s"


def _redis(signs: Signs) -> str:
    if signs.breaker == "open":
        return "the circuit breaker is open"
    return _limit("no answer", signs.without_contact_for, CONTACT_LIMIT)


def _progress(signs: Signs) -> str:
    if signs.stuck_for <= PROGRESS_LIMIT:
        return OK
    refused = f" ({signs.claim_refusal})" if signs.claim_refusal else ""
    return f"work is ready and slots are free, but nothing was claimed for {signs.claim_overdue_for:.1f} s{refused}"


def _claims(signs: Signs) -> str:
    if signs.claim_refusal:
        return f"claims are refused: {signs.claim_refusal}"
    if not signs.claim_accepted:
        return "no claim was accepted yet"
    return _limit("no claim was accepted", signs.claim_overdue_for, CLAIM_LIMIT)


def _pool(signs: Signs) -> str:
    if not signs.too_many_abandoned:
        return OK
    if signs.callback_threads_abandoned:
        return "all threads for callbacks are held by callbacks beyond their limit"
    held = "all" if signs.threads_abandoned >= signs.threads else f"{signs.threads_abandoned} of"
    return f"{held} {signs.threads} threads are held by operations beyond their limit"


def _tasks(signs: Signs) -> str:
    if not signs.too_many_tasks_abandoned:
        return OK
    held = "all" if signs.tasks_abandoned >= signs.tasks else f"{signs.tasks_abandoned} of"
    return f"{held} {signs.tasks} worker tasks are held by processors that did not heed their cancellation"


def _all_ok(checks: dict[str, str]) -> bool:
    return all(finding == OK for finding in checks.values())
