"""Two versions of an application are deployed in turn, under load: nothing is lost, nothing runs twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import Final, Self

from chaos.lab import ROOT, Lab, LabError, WorkerProcess, until
from chaos.report import Report
from chaos.scenario import Plan, scenario

RATE: Final = 300
GRACE: Final = 3.0
EXIT_LIMIT: Final = GRACE + 1.0
SECONDS: Final = [0.005, 0.02, 0.08, 0.3]
"""What operations take: less than the grace."""

NEWEST: Final = "chaos.processors:newest"
"""What version 2 has and version 1 has not."""

VERSIONS: Final[dict[int, dict[str, str]]] = {1: {}, 2: {NEWEST: "chaos.jobs:newest"}}
MIX: Final = ["chaos.processors:work"] * 16 + ["chaos.processors:work_sync"] * 3 + [NEWEST]
OPERATIONS_A_RESTART: Final = 1_200


def versions() -> Iterator[tuple[int, int]]:
    """Place and version of each restart: forward and back again, with a newest version always there."""
    yield from ((0, 2), (1, 2))
    while True:
        yield from ((0, 1), (0, 2), (1, 1), (1, 2))


class Producer:
    """A producer process at work, and what it has got confirmed."""

    def __init__(self, lab: Lab, count: int) -> None:
        self._path = lab.directory / "confirmed"
        self._path.touch()
        settings = {
            "redis_url": lab.server.url,
            "config": {"queue_prefix": lab.keys.prefix},
            "confirmed": str(self._path),
            "rate": RATE,
            "count": count,
            "mix": MIX,
            "seconds": SECONDS,
        }
        self._process = subprocess.Popen([sys.executable, "-m", "chaos.producer", json.dumps(settings)], cwd=ROOT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def confirmed(self) -> list[str]:
        """The ids so far."""
        return self._path.read_text().split()

    def wait_confirmed(self, count: int) -> None:
        """Wait until so many are confirmed."""
        limit = 60 + 3 * count / RATE
        until(lambda: len(self.confirmed()) >= count or self._process.poll() is not None, limit, f"{count} confirmed")
        if self._process.poll():
            raise LabError(f"the producer ended with {self._process.returncode}")


def restart(lab: Lab, old: WorkerProcess, version: int) -> tuple[WorkerProcess, float]:
    """SIGTERM one, start the other; the new one, and how long the old one took to end."""
    old.terminate()
    began = time.monotonic()
    new = lab.worker(register=VERSIONS[version])
    code = old.wait()
    took = time.monotonic() - began
    if code:
        raise LabError(f"a worker ended with {code}: {old.text()[-1000:]}")
    return new.wait_ready(), took


@scenario("rolling_restart", "rolling restarts of two versions at 300 operations/s", operations=(3_000, 6_000, 36_000))
def rolling_restart(plan: Plan) -> Report:
    """One restart for each 1,200 operations, three at least."""
    options = {"grace": GRACE, "max_workers": 40, "thread_pool_size": 10}
    count = max(3, plan.operations // OPERATIONS_A_RESTART)
    took: list[float] = []
    with Lab(worker=options) as lab:
        workers = [lab.worker(register=VERSIONS[1]) for _ in range(2)]
        for worker in workers:
            worker.wait_ready()
        with Producer(lab, plan.operations) as producer:
            for number, (place, version) in enumerate(islice(versions(), count)):
                producer.wait_confirmed(plan.operations * (number + 1) // (count + 1))
                workers[place], seconds = restart(lab, workers[place], version)
                took.append(seconds)
            producer.wait_confirmed(plan.operations)
            accepted = producer.confirmed()
        lab.wait_settled(60)
        lab.stop_workers()
        result = lab.check(accepted)
        put_back = sum(line.words[0] == "requeued" for line in lab.ledger.lines("applied"))
    problems = list(result.problems)
    if result.extra_runs:
        problems.append(f"{result.extra_runs} extra runs of operations that are shorter than the grace")
    if result.failed:
        problems.append(f"{result.failed} failed")
    problems += [
        f"a worker took {seconds:.2f} s to end, the grace is {GRACE} s" for seconds in took if seconds > EXIT_LIMIT
    ]
    return plan.report(
        operations=len(accepted),
        lost=len(result.lost),
        extra_runs=result.extra_runs,
        details={"restarts": len(took), "slowest exit": f"{max(took):.2f} s", "put back": put_back},
        problems=tuple(problems),
    )
