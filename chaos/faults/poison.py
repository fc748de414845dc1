"""An operation kills whoever runs it: it alone is given up, whatever ran beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from chaos import jobs, processors
from chaos.lab import Conservation, Lab, LabError
from chaos.report import Report
from chaos.scenario import Plan, scenario

LEASE: Final = 1.0
MAX_CRASHES: Final = 3
CONCURRENCY: Final = 50
WORK_SECONDS: Final = 0.05
POISON_SECONDS: Final = 0.02

KINDS: Final[dict[str, Sequence[Callable[..., Any]]]] = {
    "async": (jobs.kill_worker,),
    "sync": (jobs.kill_worker_sync,),
    "two": (jobs.kill_worker, jobs.kill_worker),
}


def keep_alive(lab: Lab, seconds: float) -> int:
    """What a supervisor does: start the worker again whenever it has died, until all is settled; how often it died."""
    deaths, deadline = 0, time.monotonic() + seconds
    worker, client = lab.worker(), lab.redis
    while not lab.is_settled(client):
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:g} s: all settled; {lab.depths()}, {deaths} deaths")
        if not worker.alive:
            deaths += 1
            worker = lab.worker()
        time.sleep(0.05)
    return deaths


def poisoned(kind: str, good: int, seconds: float) -> tuple[list[str], Conservation, int]:
    """Good operations, and poison among them; the problems, what became of all, and how many workers died."""
    poisons = KINDS[kind]
    options = {"lease": LEASE, "max_crashes": MAX_CRASHES, "max_workers": CONCURRENCY, "thread_pool_size": 20}
    with Lab(worker=options, config={"importable_modules": jobs.MODULES}) as lab:
        half: dict[str, Any] = {"entity": {"seconds": WORK_SECONDS}, "queue_name": "mixed"}
        innocent = lab.enqueue(good // 4, processors.work, name="a", **half)
        innocent += lab.enqueue(good // 4, processors.work_sync, name="s", **half)
        evil = [
            lab.enqueue(1, each, name="p", entity={"seconds": POISON_SECONDS}, queue_name="mixed")[0]
            for each in poisons
        ]
        innocent += lab.enqueue(good - len(innocent), processors.work, name="b", **half)
        deaths = keep_alive(lab, seconds)
        lab.stop_workers()
        result = lab.check()
        states = {each: lab.stored(each) for each in (*innocent, *evil)}
    problems = list(result.problems)
    given_up = [each for each in innocent if states[each].get("st") != "done"]
    if given_up:
        problems.append(f"{len(given_up)} innocent operations not done, e.g. {states[given_up[0]]}")
    spared = [states[each] for each in evil if "crashed" not in states[each].get("err", "")]
    problems += [f"the poison was not quarantined: {each}" for each in spared]
    # From its third death on a poison dies alone; two of them may bring each other one.
    if deaths > len(evil) * (MAX_CRASHES + 1):
        problems.append(f"{deaths} workers died of {len(evil)} poisons at a limit of {MAX_CRASHES} crashes")
    return [f"{kind}: {problem}" for problem in problems], result, deaths


@scenario("poison", "operations that kill their worker", operations=(600, 6_000, 6_000))
def poison(plan: Plan) -> Report:
    """Three times: an async poison, a sync one, and two at once; each among a third of the operations."""
    good = plan.operations // len(KINDS)
    limit = 90 + plan.scale.seconds
    with ThreadPoolExecutor(len(KINDS)) as pool:
        found = dict(zip(KINDS, pool.map(lambda kind: poisoned(kind, good, limit), KINDS), strict=True))
    return plan.report(
        operations=good * len(KINDS),
        lost=sum(len(result.lost) for _, result, _ in found.values()),
        extra_runs=sum(result.extra_runs for _, result, _ in found.values()),
        details={
            "deaths": {kind: deaths for kind, (_, _, deaths) in found.items()},
            "quarantined": sum(result.quarantined for _, result, _ in found.values()),
        },
        problems=tuple(problem for problems, _, _ in found.values() for problem in problems),
    )
