"""Every connection dies without a word: what is sent vanishes, nothing arrives, and nobody says that it is closed."""

from __future__ import annotations

import time
from typing import Final

from chaos.lab import Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager

DETECTION_LIMIT: Final = 10.0
WORKERS: Final = 2
SLOTS: Final = 20


@scenario("half_open", "all connections half-open: bytes swallowed", operations=(200, 1_000, 10_000), waits=True)
def half_open(plan: Plan) -> Report:
    """Noticed by the time limit of a command, well within the lease; then all goes on over new connections."""
    timeout, lease = (2.0, 5.0) if plan.scale.is_short else (5.0, 10.0)  # the latter are the defaults
    lasts = timeout + 2.0
    with Lab() as lab:
        proxy = lab.proxy()
        manager = QueueManager(lab.config(proxy.url, connection_timeout=timeout))
        held = WORKERS * SLOTS // 2
        lab.enqueue(held, manager=manager, name="held", priority="high", entity={"seconds": lasts})
        options = {"lease": lease, "max_workers": SLOTS, "config": {"connection_timeout": timeout}}
        lab.start_workers(WORKERS, proxy.url, **options)
        until(lambda: lab.ledger.count("start") >= held, 20, "long operations in flight")
        lab.enqueue(plan.operations - held - 1, manager=manager, entity={"seconds": 0.05})
        until(lambda: lab.ledger.count("applied") >= 1, 20, "short operations that end")
        connections = proxy.half_open()
        broken = time.monotonic()
        lab.enqueue(1, manager=manager, name="after")  # its connection is one of them
        accepted = time.monotonic() - broken
        until(lambda: _applied_after(lab, broken), DETECTION_LIMIT + 10, "an outcome over a new connection")
        recovery = _applied_after(lab, broken)[0] - broken
        lab.wait_settled(lease + 30)
        lab.stop_workers()
        result = lab.check()
        swallowed = proxy.did["swallowed_bytes"]
    problems = list(result.problems)
    if max(recovery, accepted) > DETECTION_LIMIT:
        problems.append(f"noticed after {recovery:.1f} s by workers and {accepted:.1f} s by the producer")
    if result.extra_runs or result.attempts_burned:
        problems.append(f"{result.extra_runs} extra runs, {result.attempts_burned} attempts burned")
    if not swallowed or not connections:
        problems.append(f"no such fault: {connections} connections, {swallowed} bytes swallowed")
    return plan.report(
        operations=len(lab.accepted),
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=recovery,
        details={
            "connections": connections,
            "swallowed": f"{swallowed} bytes",
            "producer went on after": f"{accepted:.2f} s",
            "leases of lost claims": len(result.crashed),
        },
        problems=tuple(problems),
    )


def _applied_after(lab: Lab, moment: float) -> list[float]:
    """When outcomes were confirmed after a moment; a reply that was on its way by then is not meant."""
    return [line.at for line in lab.ledger.lines("applied") if line.at > moment + 0.2]
