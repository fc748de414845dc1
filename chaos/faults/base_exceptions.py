"""A storm of attempts that end with a `BaseException`: each is that attempt's failure, and every worker lives on."""

from __future__ import annotations

from typing import Final

from chaos import panics
from chaos.lab import Lab
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager, QueueRetryConfig

WORKERS: Final = 2
SLOTS: Final = 4
ATTEMPTS: Final = 2

IN_A_TASK: Final = sorted(set(panics.ENDS) - {"cancelled"})
"""How a task of the processor's own may fail its group: a cancelled one does not."""


@scenario("base_exceptions", "attempts that end with a BaseException", operations=(160, 2_000, 20_000))
def base_exceptions(plan: Plan) -> Report:
    """Every way to end, in a task, in a task group and in a thread, among good work."""
    kinds = [
        *((panics.end_badly, how) for how in panics.ENDS),
        *((panics.end_badly_in_group, how) for how in IN_A_TASK),
        *((panics.end_badly_sync, how) for how in panics.ENDS),
    ]
    each = max(1, plan.operations // (2 * len(kinds)))
    retry = QueueRetryConfig.fixed(0.05, max_attempts=ATTEMPTS)
    with Lab(config={"importable_modules": panics.MODULES}) as lab:
        manager = QueueManager(lab.config())
        workers = lab.start_workers(WORKERS, max_workers=SLOTS, thread_pool_size=SLOTS)
        bad: list[str] = []
        for function, how in kinds:
            bad += lab.enqueue(
                each,
                function,
                manager=manager,
                name=how,
                entity={"how": how},
                retry_config=retry,
                on_failure=panics.call_back_badly,
            )
        good = lab.enqueue(plan.operations - len(bad), manager=manager, name="good", entity={"seconds": 0.01})
        lab.wait_settled(60 + plan.scale.seconds)
        died = [worker for worker in workers if not worker.alive]
        lab.stop_workers()
        result = lab.check()
        states = {each: lab.stored(each) for each in (*bad, *good)}
        runs = lab.ledger.runs()
        failures = lab.ledger.count("task_failed")
    problems = list(result.problems)
    undone = [each for each in good if states[each].get("st") != "done"]
    if undone:
        problems.append(f"{len(undone)} good operations not done, e.g. {states[undone[0]]}")
    wrong = [each for each in bad if states[each].get("st") != "failed" or len(runs.get(each, ())) != ATTEMPTS]
    if wrong:
        problems.append(f"{len(wrong)} bad ones not given up after {ATTEMPTS} attempts, e.g. {states[wrong[0]]}")
    if died or failures or result.crashed:
        problems.append(f"{len(died)} workers died, {failures} tasks failed, {len(result.crashed)} leases ran out")
    return plan.report(
        lost=len(result.lost),
        extra_runs=result.extra_runs - len(bad) * (ATTEMPTS - 1),
        details={"bad": len(bad), "ways to end": len(kinds), "given up": result.failed},
        problems=tuple(problems),
    )
