"""Celery with the Redis transport: sync jobs, solo (no-ops) or in threads (waiting)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from celery import Celery

from benchmarks.peers.common import JOBS, REDIS, Peer, Producer, Role, run

app = Celery("bench", broker=REDIS)
app.conf.task_ignore_result = True
app.conf.worker_prefetch_multiplier = 100 if os.environ.get("BENCH_PREFETCH") else 4
TASKS = {job: app.task(name=job.__name__)(job) for job in JOBS["sync"].values()}


def produce() -> Producer:
    def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        TASKS[job].delay(payload)

    return Producer(one, close=app.close)


def work(role: Role) -> None:
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery:app", "worker", "--loglevel", "ERROR"]
    if role.purpose != "recovery":
        os.environ["BENCH_PREFETCH"] = "1"
        pool = ["--pool", "solo"] if role.purpose in {"noop", "scaling"} else ["--pool", "threads"]
        command += [*pool, "--concurrency", str(role.concurrency)]
        command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    if role.purpose == "scaling":
        command += ["--hostname", f"{os.getpid()}@bench"]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    run(
        Peer(
            package="celery",
            kinds=("sync",),
            settings={
                "noop": "--pool solo, prefetch multiplier 100, without gossip, mingle, heartbeat; results ignored",
                "work": "--pool threads --concurrency N, the same",
                "recovery": "defaults (prefork), results ignored",
            },
            produce=produce,
            work=work,
            also=("kombu", "redis", "hiredis"),
        )
    )
