"""A great many delayed operations are due at the same moment: Redis is never blocked by them."""

from __future__ import annotations

import time
from typing import Any, Final

import redis

from chaos import processors
from chaos.lab import BATCH, Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager

SLOW_MS: Final = 20.0
BLOCKED_MS: Final = 40.0
MAY_BE_SLOW: Final = 2
"""So many commands may take longer than `SLOW_MS`, and none `BLOCKED_MS`: on a busy machine Redis has to wait, too."""

ENQUEUED_A_SECOND: Final = 4_000
WORKERS: Final = 2


def enqueue_for(lab: Lab, count: int, due: float) -> None:
    """Operations that are all due at this time (`time.monotonic`)."""
    manager = QueueManager(lab.config())
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        lab.enqueue(size, processors.work, manager=manager, name=f"{start}.", delay=max(0.001, due - time.monotonic()))


def watch_slow(client: redis.Redis) -> None:
    """From now on Redis keeps each command that takes longer than a millisecond."""
    client.config_set("slowlog-log-slower-than", 1000)
    client.config_set("slowlog-max-len", 100_000)
    client.slowlog_reset()


def slow(client: redis.Redis) -> list[float]:
    """Milliseconds of the slow scripts, the slowest first. What this scenario asks itself does not count."""
    entries: list[dict[str, Any]] = client.slowlog_get(100_000)
    return sorted((each["duration"] / 1000 for each in entries if b"EVAL" in each["command"].upper()), reverse=True)


@scenario("due_at_once", "many delayed operations are due at once", operations=(2_000, 10_000, 100_000))
def due_at_once(plan: Plan) -> Report:
    """Enqueue them with a delay, and start workers before they are due."""
    with Lab(worker={"max_workers": 100, "thread_pool_size": 2}) as lab:
        lab.start_workers(WORKERS)
        due = time.monotonic() + 1.0 + plan.operations / ENQUEUED_A_SECOND
        enqueue_for(lab, plan.operations, due)
        client = redis.Redis(host="127.0.0.1", port=lab.server.port)
        watch_slow(client)
        late = time.monotonic() > due
        until(lambda: time.monotonic() > due, 60, "the moment at which all are due")
        took = lab.wait_settled(60 + plan.operations / 200)
        slowest = slow(client)
        client.close()
        lab.stop_workers()
        result = lab.check()
        early = sum(line.at < due - 0.1 for line in lab.ledger.lines("start"))
    problems = list(result.problems)
    if late or early:
        problems.append(f"not all were due at once: enqueued too late: {late}, run before: {early}")
    if result.extra_runs:
        problems.append(f"{result.extra_runs} extra runs")
    too_slow = [each for each in slowest if each > SLOW_MS]
    if len(too_slow) > MAY_BE_SLOW or max(slowest, default=0.0) > BLOCKED_MS:
        problems.append(f"{len(too_slow)} scripts took longer than {SLOW_MS} ms, the longest {slowest[0]:.1f} ms")
    return plan.report(
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=took,
        details={
            "longest script": f"{max(slowest, default=0.0):.1f} ms",
            "scripts above 20 ms": len(too_slow),
            "operations a second": round(plan.operations / took),
        },
        problems=tuple(problems),
    )
