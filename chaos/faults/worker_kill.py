"""A worker is killed in the middle of its work: the smallest scenario, and an example of one."""

from __future__ import annotations

from chaos.lab import Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario


@scenario("worker_kill", "kill -9 of a worker at work", operations=(100, 500, 5_000))
def worker_kill(plan: Plan) -> Report:
    """Kill the only worker, start another: everything ends, and only what was in flight runs again."""
    with Lab() as lab:
        lab.enqueue(plan.operations, entity={"seconds": 0.02})
        (first,) = lab.start_workers(1)
        until(lambda: lab.ledger.count("end") >= plan.operations // 4, 30, "a quarter of the work")
        killed = first.kill()
        in_flight = lab.in_flight()
        lab.start_workers(1)
        ended = lab.ledger.count("end")
        until(lambda: lab.ledger.count("end") > ended, 30, "work of the second worker")
        recovery = lab.ledger.lines("end")[ended].at - killed
        lab.wait_settled(30 + plan.scale.seconds)
        lab.stop_workers()
        result = lab.check()
        extra = lab.ledger.extra_runs()
    problems = list(result.problems)
    if not set(extra) <= in_flight or any(count > 1 for count in extra.values()):
        problems.append(f"extra runs {extra}, but in flight were {sorted(in_flight)}")
    return plan.report(
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={"in flight at the kill": len(in_flight)},
        problems=tuple(problems),
    )
