"""Workers are killed at random, and Redis is killed and restarted, while operations run."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from chaos.lab import Conservation, Lab, LabError, WorkerProcess
from chaos.report import Report
from chaos.scenario import Plan, scenario

WORKERS: Final = 4
SLOTS: Final = 5
"""Few: what a worker held when it died runs again alone, one after the other."""

LEASE: Final = 3.0
PAUSES: Final = (0.5, 2.0)
"""Seconds between two kills of workers: at random from the first to the second."""

FSYNC_WINDOW: Final = 1.0
"""Seconds of confirmed writes that Redis may forget when it is killed: ``appendfsync everysec``."""


@dataclass
class Storm:
    """Kills workers and Redis, replaces them as a supervisor would, and notes what was in flight each time.

    `forgotten` is what ended so shortly before a kill of Redis that Redis may not remember it.
    """

    lab: Lab
    plan: Plan
    dice: random.Random
    redis_kills: int
    most_kills: int
    in_flight: Counter[str] = field(default_factory=Counter)
    forgotten: Counter[str] = field(default_factory=Counter)
    worker_kills: int = 0
    returns: list[float] = field(default_factory=list)

    def rage(self, limit: float) -> None:
        """Kill until no operation is left to do."""
        workers = self.lab.start_workers(WORKERS)
        began, next_kill = time.monotonic(), time.monotonic() + self.dice.uniform(*PAUSES)
        while (ended := len(self.lab.ledger.done())) < self.plan.operations:
            if time.monotonic() - began > limit:
                raise LabError(f"{ended} of {self.plan.operations} ended within {limit:g} s; {self.lab.depths()}")
            if len(self.returns) < self.redis_kills and ended >= self._due_at(len(self.returns)):
                self._kill_redis()
            calm = time.monotonic() < next_kill or self.worker_kills >= self.most_kills
            if not calm and self._kill_one(workers):
                next_kill = time.monotonic() + self.dice.uniform(*PAUSES)
            workers = [each if each.alive else self.lab.worker() for each in workers]
            time.sleep(0.05)

    def _due_at(self, number: int) -> float:
        return (number + 1) / (self.redis_kills + 1) * self.plan.operations

    def _kill_one(self, workers: list[WorkerProcess]) -> bool:
        ready = [each for each in workers if each.alive and each.ready]
        if not ready:
            return False
        victim = self.dice.choice(ready)
        victim.kill()
        self.worker_kills += 1
        self.in_flight.update(self._held_by(victim) | self.lab.ledger.in_flight_of(victim.pid))
        return True

    def _kill_redis(self) -> None:
        self.lab.server.kill()
        killed = time.monotonic()
        self.lab.server.start()
        self.returns.append(time.monotonic())
        in_flight = self.lab.in_flight() | self.lab.ledger.in_flight_at(killed)
        self.in_flight.update(in_flight)
        # A completion that Redis confirmed and then forgot is a run that was in flight as far as Redis can tell.
        self.forgotten.update(self.lab.ledger.in_flight_at(killed, margin=FSYNC_WINDOW) - in_flight)

    def _held_by(self, worker: WorkerProcess) -> set[str]:
        """What a dead worker had claimed: the leases whose last claim names its process id."""
        with contextlib.closing(self.lab.client(self.lab.server)) as client:
            leased = client.zrange(self.lab.keys.leases, 0, -1)
            pipeline = client.pipeline(transaction=False)
            for each in leased:
                pipeline.hget(self.lab.keys.operation(each), "w")
            claims = pipeline.execute()
        mark = f"-{worker.pid}-"
        return {each for each, claim in zip(leased, claims, strict=True) if claim and mark in claim}


@scenario("kill_storm", "kill -9 of workers every 0.5 to 2 s, and of Redis", operations=(600, 4_000, 100_000))
def kill_storm(plan: Plan) -> Report:
    """Nothing is lost, each operation ends once, and only what was in flight at a kill runs again."""
    lasts = plan.scale.pick(short=4.0, default=12.0, long=120.0)
    kills = round(plan.scale.pick(short=1, default=2, long=5))
    options = {"lease": LEASE, "max_workers": SLOTS}
    with Lab(persistence=True, worker=options) as lab:
        lab.enqueue(plan.operations, entity={"seconds": WORKERS * SLOTS * lasts / plan.operations})
        lab.wait_on_disk()
        storm = Storm(lab, plan, random.Random(5), kills, round(plan.scale.pick(short=4, default=12, long=10_000)))
        began = time.monotonic()
        storm.rage(limit=60 + 15 * lasts)
        lab.wait_settled(60)
        took = time.monotonic() - began
        lab.stop_workers()
        result = lab.check()
        extra = lab.ledger.extra_runs()
        recovery = max((_work_after(lab, back) for back in storm.returns), default=None)
    return plan.report(
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={
            "kills of workers": storm.worker_kills,
            "kills of Redis": len(storm.returns),
            "in flight at the kills": storm.in_flight.total(),
            "extra runs by a forgotten completion": sum((Counter(extra) - storm.in_flight).values()),
            "done": result.done,
            "failed": result.failed,
            "quarantined": result.quarantined,
            "took": f"{took:.1f} s",
        },
        problems=(*result.problems, *_complaints(result, extra, storm, kills)),
    )


def _complaints(result: Conservation, extra: dict[str, int], storm: Storm, kills: int) -> list[str]:
    problems = []
    explained = storm.in_flight + storm.forgotten
    unexplained = {each: count for each, count in extra.items() if count > explained[each]}
    if unexplained:
        problems.append(f"{len(unexplained)} ran more often than they were in flight at a kill: {unexplained}"[:300])
    if result.failed:
        problems.append(f"{result.failed} given up, {result.quarantined} of them over crashes: kills are no failures")
    if not storm.worker_kills or len(storm.returns) != kills:
        problems.append(f"no storm: {storm.worker_kills} kills of workers, {len(storm.returns)} of Redis")
    return problems


def _work_after(lab: Lab, moment: float) -> float:
    """Seconds from a moment until the next outcome that Redis has confirmed."""
    return next((line.at - moment for line in lab.ledger.lines("applied") if line.at > moment), 0.0)
