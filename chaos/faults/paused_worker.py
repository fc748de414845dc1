"""A whole worker is stopped (SIGSTOP) beyond its lease while it holds work, and goes on when others have done that."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from chaos import processors
from chaos.lab import Lab, WorkerProcess, until
from chaos.report import Report
from chaos.scenario import Plan, scenario

LEASE: Final = 1.0
LANES: Final = 6
OF_A_KIND: Final = 3
"""Async and sync operations of a cycle."""

WORK_SECONDS: Final = 0.3
LIMIT_SECONDS: Final = 30.0


@dataclass
class Found:
    """What the cycles of a lane have shown."""

    operations: int = 0
    taken_over: int = 0
    refused: int = 0
    accepted_stale: int = 0
    lost: int = 0
    extra_runs: int = 0
    longest: float = 0.0
    problems: list[str] = field(default_factory=list)


class Lane:
    """A queue with two workers, one of which is stopped in each cycle."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._workers = lab.start_workers(2)
        self.found = Found()

    def cycle(self, number: int) -> None:
        """Stop a worker that holds something until others have taken that over, then let it go on.

        In turn it comes back while the other one is at it (then only the fencing token says whose it is), and when
        the other one has done everything.
        """
        lab = self._lab
        own = {
            *lab.enqueue(OF_A_KIND, processors.work, name=f"a{number}.", entity={"seconds": WORK_SECONDS}),
            *lab.enqueue(OF_A_KIND, processors.work_sync, name=f"s{number}.", entity={"seconds": WORK_SECONDS}),
        }
        paused, other = until(lambda: self._holder(own), LIMIT_SECONDS, "a worker with something in its hands")
        paused.pause()
        held = lab.ledger.in_flight_of(paused.pid) & own
        if number % 2:
            until(lambda: lab.ledger.in_flight_of(other.pid) & held, LIMIT_SECONDS, "somebody who takes over")
        else:
            lab.wait_settled(LIMIT_SECONDS)
        paused.resume()
        took = lab.wait_settled(LIMIT_SECONDS)
        taken_over = held & {line.operation_id for line in lab.ledger.lines("start") if line.pid == other.pid}
        told = f"{len(taken_over)} operations told as lost or stale"
        until(lambda: taken_over <= self._told(paused), LIMIT_SECONDS, told)
        self.found.operations += len(own)
        self.found.taken_over += len(taken_over)
        self.found.accepted_stale += len(taken_over & self._completed(paused))
        self.found.longest = max(self.found.longest, took)

    def judge(self) -> None:
        """After all cycles: each operation was done exactly once, whoever ran it."""
        lab, found = self._lab, self.found
        lab.stop_workers()
        result = lab.check()
        applied = Counter(line.operation_id for line in lab.ledger.lines("applied") if line.words[0] == "processed")
        counters = lab.metrics()
        found.refused = counters.get("stale_acks", 0)
        found.lost, found.extra_runs = len(result.lost), result.extra_runs
        found.problems += result.problems
        found.problems += [f"{each} was completed {times} times" for each, times in applied.items() if times != 1]
        found.problems += [f"{each} ran {more + 1} times" for each, more in lab.ledger.extra_runs().items() if more > 1]
        if counters["processed"] != found.operations or found.accepted_stale:
            late = f"{found.accepted_stale} of them late"
            found.problems.append(f"{counters['processed']} completions of {found.operations} operations, {late}")

    def _holder(self, own: set[str]) -> tuple[WorkerProcess, WorkerProcess] | None:
        """A worker that is at one of these, and the other one."""
        first, second = self._workers
        for each, other in ((first, second), (second, first)):
            if self._lab.ledger.in_flight_of(each.pid) & own:
                return each, other
        return None

    def _told(self, worker: WorkerProcess) -> set[str]:
        """Of which operations a worker was told what its end, or its lease, was worth."""
        lines = [line for line in self._lab.ledger.lines() if line.pid == worker.pid]
        return {line.operation_id for line in lines if line.what in {"lease_lost", "applied"}}

    def _completed(self, worker: WorkerProcess) -> set[str]:
        lines = [line for line in self._lab.ledger.lines("applied") if line.pid == worker.pid]
        return {line.operation_id for line in lines if line.words[0] == "processed"}


def run_lane(cycles: int) -> Found:
    """So many cycles on a Redis of their own."""
    with Lab(worker={"lease": LEASE, "max_workers": 4, "thread_pool_size": 3}) as lab:
        lane = Lane(lab)
        for number in range(cycles):
            lane.cycle(number)
        lane.judge()
        return lane.found


@scenario("paused_worker", "SIGSTOP of a worker beyond its lease", operations=(30, 120, 1_200))
def paused_worker(plan: Plan) -> Report:
    """One cycle for each six operations, several at once."""
    cycles = plan.operations // (2 * OF_A_KIND)
    lanes = min(LANES, (cycles + 1) // 2)
    shares = [cycles // lanes + (number < cycles % lanes) for number in range(lanes)]
    with ThreadPoolExecutor(lanes) as pool:
        found = list(pool.map(run_lane, shares))
    taken_over = sum(each.taken_over for each in found)
    problems = [problem for each in found for problem in each.problems]
    if taken_over < cycles:
        problems.append(f"in {cycles} cycles no more than {taken_over} operations were taken over")
    return plan.report(
        operations=sum(each.operations for each in found),
        lost=sum(each.lost for each in found),
        extra_runs=sum(each.extra_runs for each in found),
        recovery=max(each.longest for each in found),
        details={
            "cycles": cycles,
            "taken over": taken_over,
            "stale acks refused": sum(each.refused for each in found),
            "stale acks accepted": sum(each.accepted_stale for each in found),
        },
        problems=tuple(problems),
    )
