"""The clock of Redis is set an hour ahead and right again, an hour back and right again. A worker dies each time."""

from __future__ import annotations

import time
from typing import Final

from chaos.clock import Clock
from chaos.lab import Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager
from queue_system.embedded import find_server

HOUR: Final = 3_600
STEPS: Final = (HOUR, 0, -HOUR, 0)
"""How far the clock is ahead, one after the other."""

WORKERS: Final = 2
SLOTS: Final = 5
RECOVERY_LIMIT: Final = 30.0
"""Seconds after a step until all has run: a grace, a lease brought down, a few reapings, a delay, a worker's start."""
KEPT: Final = 10.0 * HOUR
"""What is done expires by the clock of Redis, and is to be asked for at the end."""


@scenario("clock_steps", "the clock of Redis is set", operations=(80, 400, 4_000), waits=True)
def clock_steps(plan: Plan) -> Report:
    """Before each step a part is enqueued, half of it with a delay; after it a worker is killed, and another comes."""
    part = plan.operations // (2 * len(STEPS))
    recovery, in_flight = 0.0, 0
    with Clock() as clock, Lab(server=clock.server(find_server()), config={"done_ttl": KEPT}) as lab:
        manager = QueueManager(lab.config())
        workers = lab.start_workers(WORKERS, max_workers=SLOTS)
        for ahead in STEPS:
            lab.enqueue(part, manager=manager, name=f"now, {ahead} ", entity={"seconds": 0.3})
            lab.enqueue(part, manager=manager, name=f"later, {ahead} ", delay=1.0)
            victim = workers.pop(0)
            until(lambda pid=victim.pid: lab.ledger.in_flight_of(pid), 20, "operations in flight")
            clock.set(ahead)
            stepped = time.monotonic()
            victim.kill()
            in_flight += len(lab.ledger.in_flight_of(victim.pid))
            workers += lab.start_workers(1, max_workers=SLOTS)
            lab.wait_settled(60)
            recovery = max(recovery, time.monotonic() - stepped)
        corrected = lab.metrics().get("clock_corrected", 0)
        lab.stop_workers()
        result = lab.check()
    problems = list(result.problems)
    if result.extra_runs > in_flight:
        problems.append(f"{result.extra_runs} extra runs, and {in_flight} were in flight where workers died")
    if result.failed or result.attempts_burned:
        problems.append(f"{result.failed} failed, {result.attempts_burned} attempts burned")
    if recovery > RECOVERY_LIMIT:
        problems.append(f"all was done after {recovery:.1f} s, not within {RECOVERY_LIMIT:g} s")
    if not corrected:
        problems.append("no time was put right, so the clock was not set")
    return plan.report(
        operations=2 * part * len(STEPS),
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={"steps": len(STEPS), "times put right": corrected},
        problems=tuple(problems),
    )
