"""Everything fails at once, again and again: the retries come back spread out, and capped."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from chaos import jobs
from chaos.lab import Lab
from chaos.ledger import Ledger
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueRetryConfig

CAP: Final = 3.0
RETRY: Final = QueueRetryConfig.exponential(base=2.0, min_delay=1.5, max_delay=CAP, max_attempts=5)
LIMITS: Final = (1.5, 3.0, 3.0)
"""Before the second, third and fourth attempt: 1.5, twice that, and the cap instead of 6."""

FAILS: Final = 3
BINS: Final = 5


@dataclass(frozen=True, slots=True)
class Wait:
    """The pause before an attempt: what was decided, and what it was in the end (seconds)."""

    decided: float
    real: float


def waits_of(ledger: Ledger, attempt: int) -> list[Wait]:
    """The pauses after an attempt: from its start to the next one's, for the processor itself takes no time."""
    starts = {(line.operation_id, int(line.words[1])): line.at for line in ledger.lines("start")}
    return [
        Wait(float(line.words[1]), starts[line.operation_id, attempt + 1] - starts[line.operation_id, attempt])
        for line in ledger.lines("retry")
        if int(line.words[0]) == attempt and (line.operation_id, attempt + 1) in starts
    ]


def wrong_with(waits: list[Wait], limit: float) -> str:
    """What is wrong with pauses that should be anything from 0 to the limit; empty when nothing is."""
    bins = Counter(min(BINS - 1, int(BINS * wait.decided / limit)) for wait in waits)
    shares = [bins[number] / len(waits) for number in range(BINS)]
    longest = max(wait.decided for wait in waits)
    if longest > limit:
        return f"a delay of {longest:.2f} s, the limit is {limit} s"
    if min(shares) < 0.5 / BINS or max(shares) > 1.7 / BINS:
        return f"the delays are not spread from 0 to {limit} s: shares {[round(share, 2) for share in shares]}"
    early = sum(wait.real < wait.decided - 0.01 for wait in waits)
    return f"{early} attempts before they were due" if early else ""


@scenario("retry_storm", "everything fails at once", operations=(300, 1_000, 20_000))
def retry_storm(plan: Plan) -> Report:
    """All operations fail three times."""
    options = {"max_workers": 100, "thread_pool_size": 2}
    with Lab(worker=options, config={"importable_modules": jobs.MODULES}) as lab:
        lab.enqueue(plan.operations, jobs.fail_first, entity={"fails": FAILS}, retry_config=RETRY)
        lab.start_workers(1)
        lab.wait_settled(60 + plan.scale.seconds + plan.operations / 200)
        lab.stop_workers()
        result = lab.check()
        runs = Counter(line.operation_id for line in lab.ledger.lines("start"))
        waits = {f"before attempt {number + 1}": waits_of(lab.ledger, number) for number in range(1, FAILS + 1)}
    problems = list(result.problems)
    for (name, found), limit in zip(waits.items(), LIMITS, strict=True):
        if len(found) != plan.operations:
            problems.append(f"{len(found)} of {plan.operations} retries {name}")
        elif wrong := wrong_with(found, limit):
            problems.append(f"{name}: {wrong}")
    extra = sum(count - FAILS - 1 for count in runs.values())
    if extra:
        problems.append(f"{extra} runs that were not asked for")
    return plan.report(
        lost=len(result.lost),
        extra_runs=extra,
        details={
            name: f"{min(each.decided for each in found):.2f} to {max(each.decided for each in found):.2f} s, "
            f"at most {max(each.real - each.decided for each in found):.2f} s late"
            for name, found in waits.items()
            if found
        },
        problems=tuple(problems),
    )
