"""Workers that end by themselves after a number of operations, and are started again, under load: nothing is lost."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from chaos import processors
from chaos.lab import Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario
from chaos.supervisor import Supervisor

WORKERS: Final = 2
LIVES: Final = 6
"""Into so many parts of the work the limit of one process divides it."""

RESTARTS: Final = 3
"""Of all workers together, at least."""

TASKS: Final = 10
THREADS: Final = 4
MAX_OVERSHOOT: Final = 2 * (TASKS + 4 * THREADS)
"""What a worker may hold (each thread has 3 waiting places) when its number is full, and what a claim then brings."""

ARGS: Final = [
    *("chaos.processors", "--grace", "5"),
    *("--max-workers", str(TASKS), "--thread-pool-size", str(THREADS)),
]


@scenario("recycle", "workers end after --max-operations and are started again", operations=(600, 3_000, 30_000))
def recycle(plan: Plan) -> Report:
    """Two supervised workers, async and sync operations; each process may do a sixth of all."""
    limit = plan.operations // LIVES
    with Lab(config={"done_ttl": 0.0}) as lab, ExitStack() as undo:
        half = plan.operations // 2
        lab.enqueue(half, processors.work, name="async", entity={"seconds": 0.02})
        lab.enqueue(plan.operations - half, processors.work_sync, name="sync", entity={"seconds": 0.005})
        args = [*ARGS, "--max-operations", str(limit)]
        workers = [undo.enter_context(Supervisor(lab, f"recycled-{number}", args)) for number in range(WORKERS)]
        lab.wait_settled(60 + plan.operations / 50)
        until(lambda: sum(len(worker.exits) for worker in workers) >= RESTARTS, 30, f"{RESTARTS} ends of workers")
        exits = [end for worker in workers for end in worker.exits]
        undo.close()
        result = lab.check()
        by_process = [sum(line.pid == pid for line in lab.ledger.lines("end")) for pid in _pids(lab)]
    problems = list(result.problems)
    if result.extra_runs:
        problems.append(f"{result.extra_runs} extra runs")
    if result.failed:
        problems.append(f"{result.failed} failed")
    if codes := {end.code for end in exits} - {0}:
        problems.append(f"a recycled worker ended with {codes}")
    if max(by_process) > limit + MAX_OVERSHOOT:
        problems.append(f"one process did {max(by_process)} operations, {limit} were allowed")
    return plan.report(
        operations=result.accepted,
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        details={"restarts": len(exits), "allowed": limit, "most by one process": max(by_process)},
        problems=tuple(problems),
    )


def _pids(lab: Lab) -> set[int]:
    return {line.pid for line in lab.ledger.lines("end")}
