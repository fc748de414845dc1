"""A stable address moves to the promoted replica, as a planned failover does: the old primary, and every connection to
it, stays, and answers READONLY. Producers and workers follow.
"""  # noqa: D205

from __future__ import annotations

import contextlib
import time
from typing import Final

from chaos import processors
from chaos.lab import Lab, until
from chaos.proxy import Proxy
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager
from queue_system.embedded import EmbeddedServer
from queue_system.errors import BrokerUnavailableError, CircuitOpenError

WORKERS: Final = 2
SLOTS: Final = 5
RECOVERY_LIMIT: Final = 5.0
FAILOVER_MILLISECONDS: Final = 10_000


def hand_over(lab: Lab, front: Proxy, replica: EmbeddedServer) -> float:
    """A coordinated failover, in which Redis loses nothing; then new connections go to the new primary."""
    old, new = lab.redis, lab.client(replica)
    old.execute_command("FAILOVER", "TO", "127.0.0.1", replica.port, "TIMEOUT", FAILOVER_MILLISECONDS)
    until(lambda: new.info("replication")["role"] == "master", 20, "a replica that is promoted")
    until(lambda: old.info("replication")["role"] == "slave", 20, "a primary that is demoted")
    front.target = replica.port
    return time.monotonic()


@scenario("moved_endpoint", "a stable address moves to a new primary", operations=(200, 1_000, 10_000), waits=True)
def moved_endpoint(plan: Plan) -> Report:
    """Half of the operations are enqueued before, half after it, by the same producer."""
    half = plan.operations // 2
    with Lab(extra=("--repl-diskless-sync-delay", "0")) as lab:
        front = lab.proxy()
        replica = lab.start_server(extra=("--replicaof", "127.0.0.1", str(lab.server.port)))
        until(lambda: lab.client(replica).info("replication")["master_link_status"] == "up", 20, "a replica")
        manager = QueueManager(lab.config(front.url, connection_timeout=1.0))
        lab.enqueue(half, manager=manager, name="before", entity={"seconds": 4 * WORKERS * SLOTS / plan.operations})
        lab.start_workers(WORKERS, front.url, max_workers=SLOTS, config={"connection_timeout": 1.0})
        until(lambda: lab.ledger.count("end") >= SLOTS, 20, "operations that end")
        links = front.open_links
        back = hand_over(lab, front, replica)
        recovery = _recover(lab, manager, back)
        lab.enqueue(plan.operations - half - 1, manager=manager, name="later")
        lab.wait_settled(60, replica)
        lab.stop_workers()
        result = lab.check(server=replica)
        failures = lab.ledger.count("task_failed")
    problems = list(result.problems)
    if result.extra_runs or result.attempts_burned or failures:
        problems.append(
            f"{result.extra_runs} extra runs, {result.attempts_burned} attempts burned, {failures} tasks failed"
        )
    if recovery > RECOVERY_LIMIT:
        problems.append(f"work went on after {recovery:.1f} s, not within {RECOVERY_LIMIT:g} s")
    return plan.report(
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={"connections to the old primary": links},
        problems=tuple(problems),
    )


def _recover(lab: Lab, manager: QueueManager, back: float) -> float:
    """Seconds until an operation that is enqueued after the move has run."""

    def accepted() -> list[str]:
        with contextlib.suppress(BrokerUnavailableError, CircuitOpenError):
            return lab.enqueue(1, processors.work, manager=manager, name="after", priority="high")
        return []

    (after,) = until(accepted, 30, "an enqueue that is accepted")
    until(lambda: after in lab.ledger.done(), 30, "the run of what was enqueued afterwards")
    return next(line.at for line in lab.ledger.lines("end") if line.operation_id == after) - back
