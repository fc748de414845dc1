"""The network drops replies: each request is carried out, and its sender does not learn it."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

from chaos import processors
from chaos.lab import Lab, LabError
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager
from queue_system.errors import BrokerUnavailableError, CircuitOpenError

PROBABILITY: Final = 0.05
BATCH: Final = 10
WORKERS: Final = 2
TRIES: Final = 20


@scenario("replies_dropped", "5 % of the replies dropped, for producers and workers", operations=(300, 2_000, 20_000))
def replies_dropped(plan: Plan) -> Report:
    """What the library sends again is accepted once, also when the first sending has ended and left no trace."""
    with Lab(config={"done_ttl": 0.0}) as lab:
        return _drop(plan, lab, Producer.enqueue_by_name)


@scenario(
    "replies_dropped_by_id",
    "5 % of the replies dropped, and callers enqueue again by id",
    operations=(150, 600, 20_000),
)
def replies_dropped_by_id(plan: Plan) -> Report:
    """What the caller sends again under the same id is accepted once, within `done_ttl` of its end."""
    with Lab() as lab:
        return _drop(plan, lab, Producer.enqueue_by_id)


def _drop(plan: Plan, lab: Lab, enqueue: Callable[[Producer, int], None]) -> Report:
    proxy = lab.proxy(seed=20)
    proxy.drop_replies = PROBABILITY
    _start_workers(lab, proxy.url)
    producer = Producer(lab, QueueManager(lab.config(proxy.url)))
    enqueue(producer, plan.operations)
    lab.wait_settled(60 + plan.operations / 50)
    proxy.drop_replies = 0.0
    lab.stop_workers()
    result = lab.check()
    did, counters, twice = proxy.did, lab.metrics(), _accepted_twice(lab)
    known = len(set(lab.accepted) | set(lab.ledger.runs()))
    problems = list(result.problems)
    if twice or counters["enqueued"] > known:
        problems.append(f"{counters['enqueued']} acceptances of {known} operations; under two ids {twice[:3]}")
    if counters["processed"] > known:
        problems.append(f"{counters['processed']} completions accepted of {known} operations")
    if producer.false_duplicates:
        problems.append(f"{len(producer.false_duplicates)} new operations were called duplicates of themselves")
    if result.extra_runs or result.attempts_burned:
        problems.append(f"{result.extra_runs} extra runs, {result.attempts_burned} attempts burned")
    if did["replies_dropped"] < did["replies"] * PROBABILITY / 3:
        problems.append(f"no such fault: {did['replies_dropped']} of {did['replies']} replies dropped")
    return plan.report(
        operations=len(lab.accepted),
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        details={
            "replies": did["replies"],
            "dropped": did["replies_dropped"],
            "duplicates accepted": counters["enqueued"] - known + len(twice),
            "enqueues that failed": producer.failed,
            "completions told stale": lab.ledger.applied()["stale"],
            "leases of lost claims": counters.get("reclaimed", 0),
        },
        problems=tuple(problems),
    )


class Producer:
    """Enqueues, and does not give up."""

    def __init__(self, lab: Lab, manager: QueueManager) -> None:
        self._lab, self._manager = lab, manager
        self.failed = 0
        self.false_duplicates: list[str] = []

    def enqueue_by_id(self, count: int) -> None:
        """One by one with ids of the caller's, who may send one again: a duplicate of itself is a confirmation."""
        for number in range(count):
            operation_id = f"own-{number}"
            for attempt in _tries():
                with self._failing():
                    result = self._manager.enqueue({"name": operation_id}, processors.work, operation_id=operation_id)
                    self._confirm([result] if attempt == 0 else [result | {"status": "queued"}])
                    break

    def enqueue_by_name(self, count: int) -> None:
        """Half of them one by one, half in batches. To call again is to enqueue others: only the library may resend."""
        half = count // 2
        for number in range(half):
            for attempt in _tries():
                with self._failing():
                    self._confirm([self._manager.enqueue({"name": f"n{number}.{attempt}"}, processors.work)])
                    break
        for start in range(half, count, BATCH):
            for attempt in _tries():
                names = [f"n{number}.{attempt}" for number in range(start, min(start + BATCH, count))]
                with self._failing():
                    self._confirm(self._manager.enqueue_batch([{"name": name} for name in names], processors.work))
                    break

    def _confirm(self, results: list[dict[str, Any]]) -> None:
        self.false_duplicates += [each["operation_id"] for each in results if each["status"] == "duplicate"]
        self._lab.accepted += [each["operation_id"] for each in results]

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except CircuitOpenError as error:
            time.sleep(error.retry_after)
        except BrokerUnavailableError:
            self.failed += 1


def _tries() -> Iterator[int]:
    yield from range(TRIES)
    raise LabError(f"no answer in {TRIES} tries")


def _start_workers(lab: Lab, url: str) -> None:
    """Their start asks Redis, too: one whose question was never answered ends, and is started anew."""
    for started in [lab.worker(url) for _ in range(WORKERS)]:
        worker = started
        for _ in _tries():
            with contextlib.suppress(LabError):
                worker.wait_ready()
                break
            worker = lab.worker(url)


def _accepted_twice(lab: Lab) -> list[str]:
    """Names of operations that ran under two ids."""
    ids: dict[str, set[str]] = defaultdict(set)
    for operation_id, runs in lab.ledger.runs().items():
        ids[runs[0].words[0]].add(operation_id)
    return sorted(name for name, each in ids.items() if len(each) > 1)
