"""An async processor blocks the event loop: its lease is kept, but no longer than a dead loop deserves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from chaos import jobs, processors
from chaos.lab import Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario

LEASE: Final = 1.0
REAP_INTERVAL: Final = 1.0
STALL_LIMIT: Final = 2.0
SLACK: Final = 3.0
"""Seconds: two cores, and many processes."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one half of the scenario has shown."""

    operations: int
    lost: int
    extra_runs: int
    took_over: float | None
    stale: int
    problems: tuple[str, ...]


def _lab() -> Lab:
    options: dict[str, Any] = {"lease": LEASE, "max_workers": 3, "thread_pool_size": 2}
    return Lab(worker=options, config={"importable_modules": jobs.MODULES})


def within_the_limit(seconds: float) -> Part:
    """Blocked for several leases: the operation and its neighbours stay where they are."""
    with _lab() as lab:
        lab.enqueue(1, processors.work_sync, name="neighbour", entity={"seconds": seconds})
        lab.enqueue(1, jobs.block_loop, name="blocking", entity={"seconds": seconds})
        lab.start_workers(1)
        until(lambda: lab.ledger.count("start") == 2, 20, "both operations at work")
        lab.start_workers(1)
        lab.wait_settled(30 + seconds)
        lab.stop_workers()
        result = lab.check()
        counters = lab.metrics()
    problems = list(result.problems)
    if result.extra_runs or counters.get("reclaimed", 0):
        problems.append(f"{result.extra_runs} extra runs, {counters.get('reclaimed', 0)} leases taken back")
    if counters.get("stale_acks", 0):
        problems.append(f"{counters['stale_acks']} acks refused")
    stale = counters.get("stale_acks", 0)
    return Part(result.accepted, len(result.lost), result.extra_runs, None, stale, tuple(problems))


def beyond_the_limit() -> Part:
    """Blocked beyond the stall limit: another worker takes over, and the late end does not count."""
    limit = STALL_LIMIT + 2 * LEASE + REAP_INTERVAL + SLACK
    seconds = limit + 1.0
    with _lab() as lab:
        (operation,) = lab.enqueue(1, jobs.block_loop, name="blocking", entity={"seconds": seconds})
        lab.start_workers(1, stall_limit=STALL_LIMIT)
        until(lambda: lab.ledger.count("start") == 1, 20, "the operation at work")
        lab.start_workers(1)
        until(lambda: lab.ledger.count("start") == 2 or lab.ledger.count("end"), limit + 20, "another run")
        lab.wait_settled(60 + seconds)
        lab.stop_workers()
        result = lab.check()
        counters = lab.metrics()
        runs = lab.ledger.runs()[operation]
        told = [line.words[0] if line.words else line.what for line in lab.ledger.lines() if line.what in _TOLD]
    problems = list(result.problems)
    took_over = runs[1].started - runs[0].started if len(runs) > 1 else None
    if took_over is None or not STALL_LIMIT <= took_over <= limit:
        problems.append(f"taken over after {took_over} s, which is not {STALL_LIMIT} to {limit} s")
    if counters["processed"] != 1 or told.count("processed") != 1:
        problems.append(f"completed {counters['processed']} times, told {told}")
    if len(runs) != 2:
        problems.append(f"{len(runs)} runs")
    stale = counters.get("stale_acks", 0) + told.count("lease_lost")
    return Part(result.accepted, len(result.lost), result.extra_runs, took_over, stale, tuple(problems))


_TOLD: Final = ("applied", "lease_lost")


@scenario("blocked_loop", "an async processor blocks the event loop", operations=(3, 3, 3))
def blocked_loop(plan: Plan) -> Report:
    """Once within the stall limit, and once beyond it."""
    with ThreadPoolExecutor(2) as pool:
        within = pool.submit(within_the_limit, plan.scale.pick(short=3.0, default=5.0, long=30.0))
        beyond = pool.submit(beyond_the_limit)
        parts = within.result(), beyond.result()
    return plan.report(
        operations=sum(part.operations for part in parts),
        lost=sum(part.lost for part in parts),
        extra_runs=sum(part.extra_runs for part in parts),
        recovery=parts[1].took_over,
        details={"stall limit": STALL_LIMIT, "late ends that did not count": parts[1].stale},
        problems=tuple(problem for part in parts for problem in part.problems),
    )
