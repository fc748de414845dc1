"""Many producers enqueue the same at the same moment: one is accepted, the others are told whose it is."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from chaos import processors
from chaos.lab import Lab
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager

PRODUCERS: Final = 200
LIMIT_SECONDS: Final = 60.0


class Race:
    """So many producers, each with connections of its own, that start at the same moment."""

    def __init__(self, managers: list[QueueManager]) -> None:
        self._managers = managers
        self._gate = threading.Barrier(len(managers))
        self._pool = ThreadPoolExecutor(len(managers))

    def run(self, **options: Any) -> list[dict[str, Any]]:
        """Everybody enqueues with these options; ``{}`` in a text is the number of the producer."""
        return list(self._pool.map(lambda number: self._enqueue(number, options), range(len(self._managers))))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()

    def _enqueue(self, number: int, options: dict[str, Any]) -> dict[str, Any]:
        own = {name: text.format(number) for name, text in options.items()}
        self._gate.wait(LIMIT_SECONDS)
        return self._managers[number].enqueue({"name": f"n{number}"}, processors.work, **own)


def judge(results: list[dict[str, Any]], reason: str) -> tuple[str, list[str]]:
    """The id of who was accepted, and what is wrong."""
    accepted = [result["operation_id"] for result in results if result["status"] == "queued"]
    if len(accepted) != 1:
        return "", [f"{len(accepted)} accepted by {reason}"]
    others = [result for result in results if result["status"] != "queued"]
    wrong = [each for each in others if (each["reason"], each["duplicate_of"]) != (reason, accepted[0])]
    return accepted[0], [f"{len(wrong)} others were not told, e.g. {wrong[0]}"] if wrong else []


@scenario("producers_race", "200 producers race on one id and on one key", operations=(4, 20, 200))
def producers_race(plan: Plan) -> Report:
    """`plan.operations` is how many races; half of them on an id, half on a deduplication key."""
    problems: list[str] = []
    winners: list[str] = []
    with Lab() as lab, contextlib.ExitStack() as stack:
        race = Race([QueueManager(lab.config()) for _ in range(PRODUCERS)])
        stack.callback(race.close)
        lab.start_workers(1)
        for number in range(0, plan.operations, 2):
            by_id = judge(race.run(operation_id=f"same{number}"), "operation_id")
            by_key = judge(
                race.run(operation_id=f"own{number}.{{}}", deduplication_key=f"key{number}"), "deduplication_key"
            )
            winners += [by_id[0], by_key[0]]
            problems += by_id[1] + by_key[1]
        lab.wait_settled(30)
        lab.stop_workers()
        result = lab.check([each for each in winners if each])
        counters = lab.metrics()
    problems += result.problems
    if counters["enqueued"] != len(winners) or result.extra_runs:
        problems.append(f"{counters['enqueued']} accepted in {len(winners)} races, {result.extra_runs} extra runs")
    return plan.report(
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        operations=len(winners),
        details={"producers": PRODUCERS, "told that they are duplicates": counters.get("deduplicated", 0)},
        problems=tuple(problems),
    )
