"""The primary dies while its replica has stalled, and the replica is promoted: what it had not got is gone."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import Any, Final

from chaos import processors
from chaos.lab import Lab, LabError, until
from chaos.proxy import Proxy
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager
from queue_system.embedded import EmbeddedServer
from queue_system.errors import BrokerUnavailableError, CircuitOpenError, NotDurableError

BATCH: Final = 10
WORKERS: Final = 2
SLOTS: Final = 5
SLACK: Final = 1.0
"""Seconds of completions before the stall that the replica may not have got."""

RECOVERY_LIMIT: Final = 5.0


@dataclass
class Pair:
    """A primary, a replica that follows it over `link`, and the address of the clients, `front`."""

    lab: Lab
    front: Proxy
    link: Proxy
    replica: EmbeddedServer
    stalled: float = 0.0
    unconfirmed: int = 0
    confirmed_late: list[str] = field(default_factory=list)

    def wait_synced(self) -> None:
        """Wait until the replica has all that the primary has now."""
        offset = self.lab.redis.info("replication")["master_repl_offset"]
        client = self.lab.client(self.replica)
        until(lambda: client.info("replication").get("slave_repl_offset", -1) >= offset, 20, "a replica that follows")

    def stall(self) -> None:
        """Nothing gets to the replica any more, and the primary does not know."""
        self.link.partition()
        self.stalled = time.monotonic()

    def enqueue(self, manager: QueueManager, count: int, **options: Any) -> None:
        """Enqueue in batches, and stall after a third of them; notes which are confirmed."""
        for start in range(0, count, BATCH):
            if not self.stalled and start >= count // 3:
                self.stall()
            entities = [{"name": "late", "seconds": 0.05}] * min(BATCH, count - start)
            try:
                results = manager.enqueue_batch(entities, processors.work, **options)
            except NotDurableError:
                self.unconfirmed += len(entities)
            else:
                self.confirmed_late += [each["operation_id"] for each in results]

    def fail_over(self) -> float:
        """Kill the primary, promote the replica, and let the clients' address lead to it."""
        self.lab.server.kill()
        self.lab.client(self.replica).replicaof("NO", "ONE")
        self.front.target = self.replica.port
        return time.monotonic()


@scenario("failover", "failover to a stalled replica", operations=(200, 1_000, 10_000), may_lose=True)
def failover(plan: Plan) -> Report:
    """What was confirmed by the primary alone is lost with it: nothing else was promised, so it is measured."""
    return _fail_over(plan, {})


@scenario("failover_durable", 'failover to a stalled replica, durability="wait"', operations=(200, 1_000, 10_000))
def failover_durable(plan: Plan) -> Report:
    """What was confirmed is not lost; what the replica did not get was never confirmed."""
    return _fail_over(plan, {"durability": "wait", "durability_timeout": 0.2})


def _fail_over(plan: Plan, durability: dict[str, Any]) -> Report:
    options = {"max_workers": SLOTS, "config": {"connection_timeout": 1.0}}
    with Lab(extra=("--repl-diskless-sync-delay", "0")) as lab:
        pair = _pair(lab)
        manager = QueueManager(lab.config(pair.front.url, connection_timeout=1.0, **durability))
        early = plan.operations // 2
        lab.enqueue(early, manager=manager, entity={"seconds": WORKERS * SLOTS * 4 / early})
        lab.start_workers(WORKERS, pair.front.url, **options)
        until(lambda: lab.ledger.count("end") >= SLOTS, 20, "operations that end")
        pair.wait_synced()
        pair.enqueue(manager, plan.operations - early - 1)
        ended = lab.ledger.count("end")
        until(lambda: lab.ledger.count("end") > ended, 20, "operations that end during the stall")
        back = pair.fail_over()
        recovery = _recover(lab, manager, pair, back)
        lab.wait_settled(60, pair.replica)
        lab.stop_workers()
        promised = [*lab.accepted, *(pair.confirmed_late if durability else [])]
        result = lab.check(promised, server=pair.replica)
        known = lab.ledger.done()
        lost_late = [each for each in pair.confirmed_late if each not in known]
        problems = [*result.problems, *_complaints(lab, pair, result.attempts_burned + result.failed, durability)]
    if recovery > RECOVERY_LIMIT:
        problems.append(f"work went on after {recovery:.1f} s, not within {RECOVERY_LIMIT:g} s")
    return plan.report(
        operations=len(lab.accepted) + len(pair.confirmed_late) + pair.unconfirmed,
        lost=len({*result.lost, *lost_late}),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={
            "confirmed long before the stall": early,
            "just before it and during it": len(pair.confirmed_late),
            "of these lost": len(lost_late),
            "refused as not durable": pair.unconfirmed,
        },
        problems=tuple(problems),
    )


def _pair(lab: Lab) -> Pair:
    link, front = lab.proxy(), lab.proxy()
    replica = lab.start_server(extra=("--replicaof", "127.0.0.1", str(link.port)))
    primary = lab.redis

    def confirms() -> bool:
        """Its link is up before it takes part: only a write of this connection that it confirms shows that."""
        primary.set("in_step", time.monotonic())
        return bool(primary.wait(1, 100) == 1)

    until(confirms, 20, "a replica that follows")
    return Pair(lab, front, link, replica)


def _recover(lab: Lab, manager: QueueManager, pair: Pair, back: float) -> float:
    """Seconds until an operation that is enqueued after the failover has run."""

    def accepted() -> list[str]:
        with contextlib.suppress(BrokerUnavailableError, CircuitOpenError):
            # There is no replica any more that could confirm it.
            return lab.enqueue(1, manager=manager, name="after", priority="high", durability="primary")
        return []

    (after,) = until(accepted, 30, "an enqueue that is accepted")
    until(lambda: after in lab.ledger.done(), 30, "the run of what was enqueued afterwards")
    if pair.front.target != pair.replica.port:
        raise LabError("the clients' address does not lead to the replica")
    return next(line.at for line in lab.ledger.lines("end") if line.operation_id == after) - back


def _complaints(lab: Lab, pair: Pair, burned: int, durability: dict[str, Any]) -> list[str]:
    problems = [f"{burned} attempts burned or operations given up"] if burned else []
    runs = lab.ledger.runs()
    unexplained = [
        each
        for each in lab.ledger.extra_runs()
        if all(run.ended is not None and run.ended < pair.stalled - SLACK for run in runs[each][:-1])
    ]
    if unexplained:
        problems.append(f"{len(unexplained)} ran again, though the replica knew that they were done")
    if durability and not pair.unconfirmed:
        problems.append("no enqueue was refused as not durable, though the replica had stalled")
    if not pair.confirmed_late:
        problems.append("no such fault: nothing was confirmed around the stall")
    return problems
