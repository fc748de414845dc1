"""Redis is away, or refuses: what all such faults have in common.

Before the fault long operations are in flight and short ones wait. Afterwards a new operation is enqueued, and the time
until it has run is the recovery. No live lease may be taken back, no attempt burned, nothing may run twice.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from chaos import processors
from chaos.lab import Conservation, Lab, LabError, until
from chaos.report import Report
from chaos.scenario import Plan
from queue_system import QueueConfig, QueueManager
from queue_system.broker.messages import Call
from queue_system.errors import BrokerUnavailableError, CircuitOpenError

LEASE: Final = 2.0
HELD: Final = 20
WORKERS: Final = 2
SLOTS: Final = 20
RECOVERY_LIMIT: Final = 5.0
_REFUSED_BATCH: Final = 10


@dataclass(frozen=True)
class Fault:
    """How Redis is broken.

    Attributes:
        breaks: a context manager in whose block it is broken; what it yields is ignored.
        seconds: how long.
        refuses: the kind of error with which every enqueue is refused before anything is written; empty when it may
            be answered, or may time out.
        drains: whether workers go on with what is there.
        answers: whether enqueueing works all the same.
    """

    breaks: Callable[[Lab], AbstractContextManager[Any]]
    seconds: float
    refuses: str = ""
    drains: bool = False
    answers: bool = False


def outage_seconds(plan: Plan) -> float:
    """Ten leases; in the tests two, which is what the reaper takes for an outage."""
    return plan.scale.pick(short=2.1, default=10.0, long=10.0) * LEASE


def ride_out(plan: Plan, lab: Lab, fault: Fault) -> Report:
    """Let it happen, and report."""
    manager = QueueManager(lab.config(connection_timeout=0.5, max_connection_retries=1))
    _load(plan, lab, manager, fault)
    refused: Counter[str] = Counter()
    with fault.breaks(lab):
        began = time.monotonic()
        broken_off = lab.ledger.count("end")
        while time.monotonic() - began < fault.seconds:
            refused[_try_enqueue(manager)] += 1
            time.sleep(0.1)
        ended_meanwhile = lab.ledger.count("end") - broken_off
        if fault.drains:
            until(lambda: lab.depths()["ready"] == 0, 30, "workers that drain what is there")
    back = time.monotonic()
    _reap(manager)
    recovery = _recover(lab, manager, back)
    lab.wait_settled(fault.seconds + 30)
    lab.stop_workers()
    result = lab.check()
    # The lease of a claim whose reply was lost has no holder: to take it back is right.
    live = [each for each in result.crashed if any(run.started < back for run in lab.ledger.runs()[each])]
    problems = [*result.problems, *_complaints(result, live), *_refusals(lab, fault, refused)]
    if recovery > RECOVERY_LIMIT:
        problems.append(f"work went on after {recovery:.1f} s, not within {RECOVERY_LIMIT:g} s")
    return plan.report(
        operations=len(lab.accepted),
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={
            "away": f"{fault.seconds:g} s ({fault.seconds / LEASE:g} leases)",
            "in flight": HELD,
            "ended meanwhile": ended_meanwhile,
            "enqueues meanwhile": dict(refused),
            "live leases taken back": len(live),
            "leases of lost claims": len(result.crashed) - len(live),
            "attempts burned": result.attempts_burned,
        },
        problems=tuple(problems),
    )


def _load(plan: Plan, lab: Lab, manager: QueueManager, fault: Fault) -> None:
    """Long operations in flight on all workers, short ones behind them, one left over for `_recover`."""
    held = {"seconds": fault.seconds + 1.0}
    lab.enqueue(HELD, manager=manager, name="held", priority="high", entity=held)
    lab.start_workers(WORKERS, lease=LEASE, max_workers=SLOTS)
    until(lambda: lab.ledger.count("start") >= HELD, 20, "long operations in flight")
    lab.enqueue(plan.operations - HELD - 1, manager=manager, name="short", entity={"seconds": 0.2})
    until(lambda: lab.ledger.count("end") > 0, 20, "short operations that end")


def _reap(manager: QueueManager) -> None:
    """What any worker may do the moment Redis is back, before a single owner has renewed its leases."""
    config = manager.config
    reap = config.commands.reap(max_crashes=1000, interval=1.0, lease=LEASE, retention=config.backup_ttl)
    until(lambda: _answered(config, reap), 20, "a reaping")


def _answered(config: QueueConfig, call: Call[Any]) -> bool:
    with contextlib.suppress(BrokerUnavailableError):
        config.broker.run(call)
        return True
    return False


def _try_enqueue(manager: QueueManager) -> str:
    """What an enqueue of a batch meets: the kind of the error, ``open`` (the breaker's), or ``answered``."""
    manager.config.breaker.record_success()  # each time ask Redis itself
    try:
        manager.enqueue_batch([{"name": "meanwhile"}] * _REFUSED_BATCH, processors.work)
    except CircuitOpenError:
        return "open"
    except BrokerUnavailableError as error:
        return error.kind
    return "answered"


def _recover(lab: Lab, manager: QueueManager, back: float) -> float:
    """Seconds from Redis's return until an operation that was enqueued after it has run."""

    def accepted() -> list[str]:
        with contextlib.suppress(BrokerUnavailableError, CircuitOpenError):
            return lab.enqueue(1, manager=manager, name="after", priority="high")
        return []

    (after,) = until(accepted, 30, "an enqueue that is accepted")
    until(lambda: after in lab.ledger.done(), 30, "the run of what was enqueued afterwards")
    return next(line.at for line in lab.ledger.lines("end") if line.operation_id == after) - back


def _complaints(result: Conservation, live: list[str]) -> list[str]:
    problems = []
    if live:
        problems.append(f"{len(live)} live leases were taken back")
    if result.attempts_burned or result.failed:
        problems.append(f"{result.attempts_burned} attempts burned, {result.failed} given up")
    if result.extra_runs:
        problems.append(f"{result.extra_runs} extra runs")
    return problems


def _refusals(lab: Lab, fault: Fault, refused: Counter[str]) -> list[str]:
    """A refusal must say why, and must have written nothing."""
    answered = refused["answered"]
    if fault.answers:
        return [] if answered == refused.total() else [f"enqueues failed: {dict(refused)}"]
    if not fault.refuses:
        return [f"{answered} enqueues were answered by a Redis that was away"] if answered else []
    if set(refused) != {fault.refuses}:
        return [f"enqueues met {dict(refused)}, not {fault.refuses}"]
    pattern = f"{lab.keys.operation_prefix}*"
    written = sum(1 for _ in lab.redis.scan_iter(pattern, count=1000)) - len(set(lab.accepted))
    counted = lab.metrics()["enqueued"] - len(lab.accepted)
    if written or counted:
        return [f"refused enqueues left {written} operations and {counted} in the count"]
    return []


def wait_info(lab: Lab, section: str, name: str, value: object, seconds: float = 20.0) -> None:
    """Wait until INFO says so."""
    until(lambda: lab.redis.info(section).get(name) == value, seconds, f"{name} {value}")


def must(true: object, what: str) -> None:
    """Raise `LabError` unless the fault was produced."""
    if not true:
        raise LabError(f"the fault was not produced: {what}")
