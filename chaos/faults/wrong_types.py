"""Somebody overwrites containers of the queue with keys of another type, under load, and puts them right again."""

from __future__ import annotations

import time
from typing import Final

import redis

from chaos.lab import Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager

CONTAINERS: Final = ("token", "leases", "delayed", "workers", "reaper", "normal:work")
"""Those without which work cannot go on. The counters are not among them: what they lose, they lose."""

WORKERS: Final = 2
SLOTS: Final = 5
REFUSALS: Final = 4
RECOVERY_LIMIT: Final = 15.0
PUT_IN_THE_WAY: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('RENAME', KEYS[1], KEYS[2]) end
redis.call(KEYS[1]:find('token$') and 'RPUSH' or 'SET', KEYS[1], 'in the way')
"""
TAKE_AWAY: Final = """
redis.call('DEL', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('RENAME', KEYS[2], KEYS[1]) end
"""


def refusals(client: redis.Redis) -> int:
    """How often a command met a key of another type."""
    found = client.info("errorstats").get("errorstat_WRONGTYPE", {})
    return int(found.get("count", 0))


@scenario("wrong_types", "containers of the wrong type", operations=(180, 1_200, 12_000), waits=True)
def wrong_types(plan: Plan) -> Report:
    """One container after the other, each until some commands have met it; a part is enqueued before each."""
    part = plan.operations // (2 * len(CONTAINERS))
    recovery, met = 0.0, {}
    with Lab() as lab:
        client, manager = lab.redis, QueueManager(lab.config())
        lab.start_workers(WORKERS, max_workers=SLOTS)
        for container in CONTAINERS:
            key, ended = lab.keys.prefix + container, lab.ledger.count("end")
            lab.enqueue(part, manager=manager, queue_name="work", entity={"seconds": 0.2})
            lab.enqueue(part, manager=manager, queue_name="later", delay=0.5)
            until(lambda least=ended: lab.ledger.count("end") > least, 20, "operations that end")
            before = refusals(client)
            client.eval(PUT_IN_THE_WAY, 2, key, f"aside:{key}")
            until(lambda least=before: refusals(client) >= least + REFUSALS, 30, f"commands that meet {container}")
            client.eval(TAKE_AWAY, 2, key, f"aside:{key}")
            met[container] = refusals(client) - before
            back = time.monotonic()
            lab.wait_settled(60)
            recovery = max(recovery, time.monotonic() - back)
        alive = [worker.alive for worker in lab.workers]
        lab.stop_workers()
        result = lab.check()
    problems = list(result.problems)
    # Without its leases Redis refuses an outcome, which is told, and no more: that operation runs again.
    if result.extra_runs > WORKERS * SLOTS or result.attempts_burned or result.failed or not all(alive):
        problems.append(
            f"{result.extra_runs} extra runs, {result.attempts_burned} attempts burned, {result.failed} failed, "
            f"alive: {alive}"
        )
    if recovery > RECOVERY_LIMIT:
        problems.append(f"all was done after {recovery:.1f} s, not within {RECOVERY_LIMIT:g} s")
    return plan.report(
        operations=2 * part * len(CONTAINERS),
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={"met": met},
        problems=tuple(problems),
    )
