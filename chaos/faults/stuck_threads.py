"""Threads that never return fill the pool: the worker drains, ends, and is started again, and async work flows on."""

from __future__ import annotations

import json
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Final, Self

from chaos import hangs, processors
from chaos.lab import Lab, until
from chaos.report import Report
from chaos.scenario import Plan, scenario
from chaos.supervisor import Supervisor, last_lines
from queue_system import QueueManager, QueueRetryConfig
from queue_system.cli.exits import RESTART

THREADS: Final = 4
ATTEMPTS: Final = 2
"""Of each operation that hangs: it takes its thread in two processes, and is then given up."""

INNOCENT: Final = 20
"""Sync operations behind those that hang."""

GRACE: Final = 5.0
SLACK: Final = 3.0
"""Seconds: two cores, and many processes."""

RATE: Final = 50
SLOWER: Final = 2.0
"""What the latency of async operations may become, as a multiple, while threads hang."""

NOISE: Final = 0.02
"""Seconds: below that a 95th percentile says more about the machine than about the worker."""


@dataclass(slots=True)
class Stream:
    """Async operations at a steady rate, each with the time at which it was enqueued; a thread of the producer's."""

    lab: Lab
    sent: dict[str, float] = field(default_factory=dict)
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def begin(self) -> None:
        """Enqueue from now on."""
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Enqueue no more."""
        self._ending.set()
        if self._thread is not None:
            self._thread.join(timeout=30)

    def p95(self, since: float, to: float) -> float:
        """Seconds from the call of enqueue to the end of the processor, of what was sent in that time."""
        ends = {line.operation_id: line.at for line in self.lab.ledger.lines("end")}
        took = [ends[each] - at for each, at in list(self.sent.items()) if since <= at < to and each in ends]
        return statistics.quantiles(took, n=20)[-1]

    def _run(self) -> None:
        queue, number, began = QueueManager(self.lab.config()), 0, time.monotonic()
        while not self._ending.wait(max(0.0, began + number / RATE - time.monotonic())):
            at, number = time.monotonic(), number + 1
            entity = {"name": f"flow{number}", "seconds": 0.002}
            self.sent[queue.enqueue(entity, processors.work)["operation_id"]] = at


@dataclass(slots=True)
class Watch:
    """What the probe of readiness has said of the pool, and since when."""

    unready_at: list[float] = field(default_factory=list)

    def look(self, worker: Supervisor) -> bool:
        """Ask once; true when the pool was found to be full of abandoned threads."""
        status, body = worker.probe("/readyz")
        found = status == 503 and "threads are held" in json.loads(body)["checks"]["thread_pool"]
        if found:
            self.unready_at.append(time.monotonic())
        return found


OPERATIONS: Final = THREADS + INNOCENT


@scenario("stuck_threads", "threads that never return fill the pool", operations=(OPERATIONS,) * 3)
def stuck_threads(plan: Plan) -> Report:
    """A baseline; then hung threads in two processes, one after the other; a third one works on."""
    calm = plan.scale.pick(short=3.0, default=6.0, long=30.0)
    args = [
        *("chaos.processors", "chaos.hangs", "--thread-pool-size", str(THREADS), "--max-workers", "10"),
        *("--abandon-after", f"{calm:g}", "--grace", str(GRACE), "--metrics-port", "0"),
    ]
    with Lab(config={"done_ttl": 0.0}) as lab, Supervisor(lab, "stuck", args) as worker, Stream(lab) as stream:
        until(lambda: worker.starts == 1, 30, f"a worker: {last_lines(worker.output)}")
        stream.begin()
        until(lambda: lab.ledger.count("end") > RATE, 30, "a warm worker")
        calm_from = time.monotonic()
        until(lambda: time.monotonic() - calm_from >= calm, calm + 10, "the baseline")
        hung, hung_at = _hang(lab)
        watch = Watch()
        until(lambda: watch.look(worker), calm + 20, "readiness that fails")
        until(lambda: len(worker.exits) == 1, GRACE + SLACK + 10, "the end of the process")
        until(lambda: len(worker.exits) == ATTEMPTS, 2 * calm + GRACE + 60, "the end of the second process")
        until(lambda: worker.starts == ATTEMPTS + 1, 30, "the third process")
        stream.end()
        lab.accepted += list(stream.sent)
        lab.wait_settled(60)
        exits = list(worker.exits)
        result = lab.check()
        runs = lab.ledger.runs()
        text = worker.text()
        baseline, while_hung = stream.p95(calm_from, hung_at), stream.p95(hung_at, watch.unready_at[0])
        first_after = _first_start_after(lab, exits[0].at)
    problems = list(result.problems)
    problems += _latency_problems(baseline, while_hung)
    problems += _end_problems(exits, watch.unready_at[0], text)
    problems += [f"{each} ran {len(runs[each])} times" for each in hung if len(runs[each]) != ATTEMPTS]
    if result.failed != len(hung):
        problems.append(f"{result.failed} failed, {len(hung)} hang at each attempt")
    extra = result.extra_runs - len(hung) * (ATTEMPTS - 1)
    if extra:
        problems.append(f"{extra} extra runs")
    return plan.report(
        lost=len(result.lost),
        extra_runs=extra,
        recovery=first_after - exits[0].at,
        details={
            "async operations beside": len(stream.sent),
            "baseline p95": f"{baseline * 1000:.1f} ms",
            "p95 while threads hang": f"{while_hung * 1000:.1f} ms",
            "from unready to the exit": f"{exits[0].at - watch.unready_at[0]:.1f} s",
            "exit codes": [end.code for end in exits],
        },
        problems=tuple(problems),
    )


def _hang(lab: Lab) -> tuple[list[str], float]:
    """Fill the pool with operations that hang, and queue innocent ones behind them; their ids, and since when."""
    retry = QueueRetryConfig.fixed(0.5, max_attempts=ATTEMPTS)
    hung = lab.enqueue(THREADS, hangs.read_for_ever, name="hangs", retry_config=retry)
    until(lambda: set(hung) <= set(lab.ledger.runs()), 20, "threads that hang")
    at = time.monotonic()
    lab.enqueue(INNOCENT, processors.work_sync, name="innocent")
    return hung, at


def _latency_problems(baseline: float, while_hung: float) -> list[str]:
    if while_hung <= max(SLOWER * baseline, NOISE):
        return []
    return [f"async operations took {while_hung:.3f} s (p95) while threads hung, {baseline:.3f} s before"]


def _end_problems(exits: list[Any], unready_at: float, text: str) -> list[str]:
    problems = [f"a worker ended with {end.code}, not {RESTART}" for end in exits if end.code != RESTART]
    took = exits[0].at - unready_at
    if not 0 <= took <= GRACE + SLACK:
        problems.append(f"the process ended {took:.1f} s after it was not ready, the grace is {GRACE} s")
    logged = [json.loads(line) for line in text.splitlines() if '"thread_abandoned"' in line]
    if len(logged) != THREADS * ATTEMPTS:
        problems.append(f"{len(logged)} threads were said to be abandoned, {THREADS * ATTEMPTS} are")
    if not all("read_for_ever" in line["stack"] and line["operation_id"] for line in logged):
        problems.append("the log does not say in which function the threads stand")
    return problems


def _first_start_after(lab: Lab, at: float) -> float:
    return min(line.at for line in lab.ledger.lines("start") if line.at > at)
