"""Redis refuses the claims of idle workers for a while, as an ACL that is rolled out half does: then work goes on."""

from __future__ import annotations

import time
from typing import Any, Final

import redis

from chaos.lab import Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager

USER: Final = "chaos-worker"
RIGHTS: Final = ("lpop", "zrange")
"""What a claim needs, and a renewal, an outcome and a heartbeat do not: one after the other, then both."""

WORKERS: Final = 2
REFUSALS: Final = 4
RECOVERY_LIMIT: Final = 5.0


def login(lab: Lab) -> str:
    """Make the workers' user, and say where they connect as it."""
    lab.redis.execute_command("ACL", "SETUSER", USER, "reset", "on", ">chaos", "~*", "&*", "+@all")
    return lab.server.url.replace("://", f"://{USER}:chaos@")


def set_rights(client: redis.Redis, sign: str, rights: tuple[str, ...]) -> None:
    """Give (+) or take (-) them; for the connections that are open, too."""
    client.acl_log_reset()
    client.execute_command("ACL", "SETUSER", USER, *(sign + right for right in rights))


def refusals(client: redis.Redis) -> int:
    """How many commands were refused since the rights changed."""
    entries: list[dict[str, Any]] = client.acl_log()
    return sum(int(entry["count"]) for entry in entries if entry["object"].lower() in RIGHTS)


@scenario("refused_claims", "Redis refuses claims (NOPERM)", operations=(60, 600, 6_000), waits=True)
def refused_claims(plan: Plan) -> Report:
    """Three times: idle workers, a right goes, operations arrive, workers are refused, the right is back."""
    rounds = [(right,) for right in RIGHTS] + [RIGHTS]
    part = plan.operations // len(rounds)
    recovery = 0.0
    refused = []
    with Lab() as lab:
        client = lab.redis
        lab.start_workers(WORKERS, login(lab))
        manager = QueueManager(lab.config())
        for rights in rounds:
            set_rights(client, "-", rights)
            lab.enqueue(part, manager=manager)
            until(lambda: refusals(client) >= REFUSALS, 30, f"claims that are refused without {rights}")
            refused.append(refusals(client))
            set_rights(client, "+", rights)
            back = time.monotonic()
            lab.wait_settled(30)
            recovery = max(recovery, time.monotonic() - back)
        alive = [worker.alive for worker in lab.workers]
        lab.stop_workers()
        result = lab.check()
    problems = list(result.problems)
    if result.extra_runs or result.attempts_burned or not all(alive):
        problems.append(f"{result.extra_runs} extra runs, {result.attempts_burned} attempts burned, alive: {alive}")
    if recovery > RECOVERY_LIMIT:
        problems.append(f"all was done after {recovery:.1f} s, not within {RECOVERY_LIMIT:g} s")
    return plan.report(
        operations=part * len(rounds),
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={"refusals": refused},
        problems=tuple(problems),
    )
