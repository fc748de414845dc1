"""A worker dies at each boundary of its path: at every script that it sends, and at every step and await.

One run without a fault finds the boundaries (`chaos.boundary`), so that a new step is there by itself. Then, for each,
a worker that dies there gets a few operations of every kind, and a second worker finishes them.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from chaos.lab import Lab, LabError, check_conservation, until
from chaos.ledger import Ledger
from chaos.nursery import Child, Nursery
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager, QueueRetryConfig
from queue_system.keys import Keys
from queue_system.summary import unaccounted

LEASE: Final = 1.0
MAX_CRASHES: Final = 4
PARALLEL: Final = 12
TRIES: Final = 3
"""How often to try a boundary that a run did not come by: what a run does depends on its timing."""

VICTIM_SECONDS: Final = 15.0
FINISH_SECONDS: Final = 40.0
SHARES: Final = 16
"""So many times the time of a usual scenario: on two quiet cores, three minutes are enough for all."""

POLL_SECONDS: Final = 0.08
MIN_LIFE: Final = 1.2
"""Seconds that a worker lives at least when nothing kills it: renewal and reaping have their turns."""

WORKER: Final = {"lease": LEASE, "max_crashes": MAX_CRASHES, "max_workers": 6, "thread_pool_size": 2, "grace": 0.2}
FAST: Final = QueueRetryConfig.fixed(delay=0.05, max_attempts=6)
TWICE: Final = QueueRetryConfig.fixed(delay=0.05, max_attempts=2)


@dataclass(frozen=True, slots=True)
class Job:
    """One operation of a case: what is enqueued, and how it must end.

    `again` is how often the same attempt may begin anew without a fault; `ready` whether the victim ends it when
    nothing kills it.
    """

    name: str
    processor: str = "work"
    entity: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    again: int = 0
    ends: str = "done"
    callback: bool = False
    ready: bool = True


JOBS: Final = (
    Job("async", options={"on_success": "jobs:called_back"}, callback=True),
    Job("sync", "work_sync", options={"on_success": "jobs:called_back_sync"}, callback=True),
    Job("fails_once", entity={"fails": [1]}, options={"retry_config": FAST}),
    Job(
        "fails", "work_sync", {"fails": [1, 2]}, {"retry_config": TWICE, "on_failure": "jobs:called_back"},
        ends="failed", callback=True,
    ),
    Job("hangs_once", entity={"hangs": [1]}, options={"retry_config": FAST, "timeout": 0.3}),
    Job("delayed", options={"delay": 0.2}),
    Job("sync_1", "work_sync", {"seconds": 0.3}),
    Job("sync_2", "work_sync", {"seconds": 0.3}),
    Job("slow", entity={"slow": True}, again=1, ready=False),
    Job("slow_sync", "work_sync", {"slow": True}, again=1, ready=False),
    Job("newer", "newer", ready=False),
    Job("garbage", ends="system_error"),
    Job("inherited"),
    Job("poisonous", options={"on_failure": "jobs:called_back"}, ends="failed", callback=True),
)  # fmt: skip
"""`inherited` and `poisonous` were held by a worker that has died, the latter once too often; the body of `garbage` is
no operation; `newer` is known to the second worker only; the slow ones go on when the worker is stopped."""

NEVER_RUN: Final = ("garbage", "poisonous")

DEAD_HOLD: Final = {"inherited": 0, "poisonous": MAX_CRASHES}
"""Who was held by a dead worker, and the crashes on record before that."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one case. `died`: at its boundary, so it counts; else the run did not come by there."""

    target: tuple[str, int] | None
    died: bool
    lost: int
    extra_runs: int
    recovery: float
    problems: tuple[str, ...]
    hits: dict[str, int] = field(default_factory=dict)


class Case:
    """One prefix with its operations, a worker that dies, and one that finishes."""

    def __init__(self, lab: Lab, nursery: Nursery, number: int, target: tuple[str, int] | None) -> None:
        self._lab = lab
        self._nursery = nursery
        self._target = target
        self._prefix = f"case{number}:"
        self._directory = lab.directory / f"case{number}"
        self._directory.mkdir()
        self._config = lab.config(queue_prefix=self._prefix)
        self._keys = Keys(self._prefix)
        self._redis = lab.redis
        self._ledger = Ledger(self._directory / "ledger")

    def run(self) -> Verdict:
        """Put the case to the test."""
        try:
            self._enqueue()
            victim = self._fork(victim=True, target=self._target, record=str(self._directory / "hits"))
            code, in_flight = self._end(victim)
            ended = time.monotonic()
            finisher = self._fork()
            until(self._settled, FINISH_SECONDS, f"the end of the case at {self._target}: {self._state()}")
            recovery = time.monotonic() - ended
            finisher.send(signal.SIGTERM)
            finisher.ended.result(timeout=20)
        except (LabError, TimeoutError) as error:
            output = (self._directory / "output").read_text(errors="replace")[-2000:]
            return Verdict(self._target, died=True, lost=0, extra_runs=0, recovery=0.0, problems=(f"{error} {output}",))
        died = code == -signal.SIGKILL
        return self._judge(died=died, in_flight=in_flight, recovery=recovery)

    def close(self) -> None:
        """Close the connections, and drop the keys."""
        for key in self._redis.scan_iter(f"{self._prefix}*", count=1000):
            self._redis.delete(key)
        self._config.close()
        self._redis.close()

    def _enqueue(self) -> None:
        queue = QueueManager(self._config)
        for job in (job for job in JOBS if job.name in DEAD_HOLD):
            queue.enqueue(job.entity, "jobs:work", operation_id=job.name, queue_name="work", **job.options)
        self._hold_and_die()
        for job in JOBS:
            if job.name not in DEAD_HOLD:
                queue.enqueue(
                    job.entity, f"jobs:{job.processor}", operation_id=job.name, queue_name=job.processor, **job.options
                )
        self._redis.hset(self._keys.operation("garbage"), "b", b"\xff{")

    def _hold_and_die(self) -> None:
        claim = self._config.commands.claim(
            only=["normal:work"], async_slots=len(DEAD_HOLD), sync_slots=len(DEAD_HOLD), lease=0.001, retention=3600.0
        )
        held = self._config.broker.run(claim).deliveries
        if len(held) != len(DEAD_HOLD):
            raise LabError(f"claimed {len(held)} operations for the dead worker, not {len(DEAD_HOLD)}")
        for name, crashes in DEAD_HOLD.items():
            if crashes:
                self._redis.hset(self._keys.operation(name), "cr", crashes)

    def _fork(self, **more: Any) -> Child:
        common = {
            "redis_url": self._lab.server.url,
            "prefix": self._prefix,
            "ledger": str(self._ledger.path),
            "worker": WORKER,
            "output": str(self._directory / "output"),
        }
        return self._nursery.fork(common | more)

    def _end(self, victim: Child) -> tuple[int, set[str]]:
        """Wait until it dies, or end it in good order when it has ended all that it can; then what it still held."""
        born, deadline = time.monotonic(), time.monotonic() + VICTIM_SECONDS
        while not victim.ended.done() and time.monotonic() < deadline:
            if time.monotonic() > born + MIN_LIFE and self._nothing_to_do():
                victim.send(signal.SIGTERM)
            time.sleep(POLL_SECONDS)
        if not victim.ended.done():
            victim.send(signal.SIGKILL)
            raise LabError(f"the victim of {self._target} neither died nor ended; {self._state()}")
        return victim.ended.result(), {str(each) for each in self._redis.zrange(self._keys.leases, 0, -1)}

    def _nothing_to_do(self) -> bool:
        open_callbacks = self._counter("callbacks_enqueued") - self._counter("callbacks_processed")
        return self._ended() >= sum(job.ready for job in JOBS) and not open_callbacks

    def _settled(self) -> bool:
        time.sleep(POLL_SECONDS)
        if self._ended() < len(JOBS):
            return False
        status = self._config.broker.run(self._config.commands.status())
        live = sum(status.queues.values()) + status.delayed + status.leased
        return live == 0

    def _ended(self) -> int:
        return sum(int(each or 0) for each in self._redis.hmget(self._keys.metrics, "processed", "failed", "rejected"))

    def _counter(self, name: str) -> int:
        return int(self._redis.hget(self._keys.metrics, name) or 0)

    def _state(self) -> dict[str, Any]:
        return {job.name: self._redis.hmget(self._keys.operation(job.name), "st", "cr", "dc") for job in JOBS}

    def _judge(self, *, died: bool, in_flight: set[str], recovery: float) -> Verdict:
        status = self._config.broker.run(self._config.commands.status())
        checked = check_conservation(
            self._redis, self._keys, self._ledger, [j.name for j in JOBS if j.ends != "system_error"]
        )
        states = {job.name: self._redis.hget(self._keys.operation(job.name), "st") for job in JOBS}
        starts = Counter((line.operation_id, line.words[1]) for line in self._ledger.lines("start"))
        callbacks = Counter(line.operation_id for line in self._ledger.lines("callback"))
        again = Counter({name: sum(n - 1 for (own, _), n in starts.items() if own == name) for name, _ in starts})
        extra = {job.name: again[job.name] - job.again for job in JOBS if again[job.name] > job.again}
        extra |= {f"callback of {name}": count - 1 for name, count in callbacks.items() if count > 1}
        problems = [
            *checked.problems,
            *(f"{job.name} is {states[job.name]}, not {job.ends}" for job in JOBS if states[job.name] != job.ends),
            *(f"{name} ran {count} times too often" for name, count in extra.items() if count > 1),
            *(f"{name} ran" for name, _ in starts if name in NEVER_RUN),
            *(f"no callback of {job.name}" for job in JOBS if job.callback and not callbacks[job.name]),
        ]
        taken_back = self._counter("reclaimed") - len(DEAD_HOLD)
        if sum(extra.values()) > max(len(in_flight), taken_back):  # on a busy machine a lease may run out as well
            problems.append(f"extra runs {extra}, but in flight were {sorted(in_flight)}, taken back {taken_back}")
        if unaccounted(status):
            problems.append(f"I1: {unaccounted(status)} unaccounted for")
        hits: dict[str, int] = {}
        if self._target is None:
            hits = json.loads((self._directory / "hits").read_text())
        return Verdict(
            self._target,
            died=died,
            lost=len(checked.lost),
            extra_runs=sum(extra.values()),
            recovery=recovery,
            problems=tuple(f"at {self._target}: {problem}" for problem in problems),
            hits=hits,
        )


class Bench:
    """Runs cases, several at once."""

    def __init__(self, lab: Lab, nursery: Nursery) -> None:
        self._lab = lab
        self._nursery = nursery
        self._numbers = iter(range(1_000_000))

    def case(self, target: tuple[str, int] | None) -> Verdict:
        """One case on a prefix of its own."""
        case = Case(self._lab, self._nursery, next(self._numbers), target)
        try:
            return case.run()
        finally:
            case.close()

    def insist(self, target: tuple[str, int]) -> Verdict:
        """A case that is tried again when its run did not come by the boundary."""
        for _ in range(TRIES):
            verdict = self.case(target)
            if verdict.died or verdict.problems:
                return verdict
        return verdict

    def all(self, targets: list[tuple[str, int]], seconds: float) -> list[Verdict]:
        """Several cases at once; none is begun after so many seconds."""
        deadline = time.monotonic() + seconds

        def in_time(target: tuple[str, int]) -> Verdict | None:
            return self.insist(target) if time.monotonic() < deadline else None

        with ThreadPoolExecutor(PARALLEL) as pool:
            return [verdict for verdict in pool.map(in_time, targets) if verdict is not None]


def agreed(records: list[dict[str, int]]) -> dict[str, int]:
    """The boundaries of several runs, each with the least number of hits that it had where it was hit at all."""
    labels = {label for record in records for label in record}
    return {label: min(record[label] for record in records if label in record) for label in labels}


def targets_of(hits: dict[str, int], *, every_hit: bool) -> list[tuple[str, int]]:
    """Where to kill: at every hit of a script, and in the midst of the hits of a step; or at every hit of all."""
    targets = []
    for label, count in sorted(hits.items()):
        if every_hit or label.startswith("redis"):
            targets += [(label, number) for number in range(1, count + 1)]
        else:
            targets.append((label, (count + 1) // 2))
    return targets


def spread(targets: list[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    """At most `count` of them, in a fixed order, spread over the list."""
    if count >= len(targets):
        return targets
    return [targets[int((number + 0.5) * len(targets) / count)] for number in range(count)]


@scenario("boundaries", "kill -9 at every script, step and await of a worker", operations=(168, 14_000, 84_000))
def boundaries(plan: Plan) -> Report:
    """As many boundaries as there are operations for, at most all."""
    with Lab() as lab, Nursery("chaos.boundary") as nursery:
        bench = Bench(lab, nursery)
        unharmed = [bench.case(None) for _ in range(2)]
        hits = agreed([one.hits for one in unharmed])
        every = targets_of(hits, every_hit=plan.scale.factor > 1)
        chosen = spread(every, plan.operations // len(JOBS))
        random.Random(1).shuffle(chosen)
        verdicts = bench.all(chosen, 60 + SHARES * plan.scale.seconds)
    died = [one for one in verdicts if one.died]
    missed = sorted(str(one.target) for one in verdicts if not one.died)
    problems = [problem for one in (*unharmed, *verdicts) for problem in one.problems]
    if len(missed) > max(1, len(verdicts) // 20):
        problems.append(f"{len(missed)} boundaries were not come by again, e.g. {missed[:5]}")
    return plan.report(
        operations=len(JOBS) * len(verdicts),
        lost=sum(one.lost for one in verdicts),
        extra_runs=sum(one.extra_runs for one in verdicts),
        recovery=max((one.recovery for one in died), default=None),
        details={
            "boundaries found": len(hits),
            "points": len(every),
            "killed at": len(died),
            "no time for": len(chosen) - len(verdicts),
            "not come by again": len(missed),
            "most extra runs at one": max((one.extra_runs for one in died), default=0),
        },
        problems=tuple(problems),
    )
