"""huey: sync jobs, in processes (no-ops) or threads (waiting)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from huey import RedisHuey

from benchmarks.peers.common import JOBS, REDIS, Peer, Producer, Role, run

huey = RedisHuey("bench", url=REDIS, results=False)
TASKS = {job: huey.task()(job) for job in JOBS["sync"].values()}


def produce() -> Producer:
    def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        TASKS[job](payload)

    return Producer(one)


def work(role: Role) -> None:
    # Its documentation's advice: processes for what needs the CPU, threads for what waits.
    worker = {
        "noop": ["-k", "process", "-w", "2"],
        "scaling": ["-k", "process", "-w", "1"],
        "recovery": [],
    }.get(role.purpose, ["-k", "thread", "-w", str(role.concurrency)])
    options = [] if role.purpose == "recovery" else ["-n"]
    command = [sys.executable, "-m", "huey.bin.huey_consumer", "benchmarks.peers.huey.huey", *worker, *options, "-q"]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    run(
        Peer(
            package="huey",
            kinds=("sync",),
            settings={
                "noop": "results=False, 2 processes, no periodic tasks (-k process -w 2 -n)",
                "work": "results=False, threads (-k thread -w N -n)",
                "scaling": "results=False, 1 process each",
                "recovery": "defaults, results=False",
            },
            produce=produce,
            work=work,
        )
    )
