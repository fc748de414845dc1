"""dramatiq: sync jobs in threads, with the prefetch that its documentation names for small jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.common import JOBS, REDIS, Peer, Producer, Role, run

broker = RedisBroker(url=REDIS)
dramatiq.set_broker(broker)
ACTORS = {job: dramatiq.actor(job) for job in JOBS["sync"].values()}


def produce() -> Producer:
    def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        ACTORS[job].send(payload)

    return Producer(one, close=broker.close)


def work(role: Role) -> None:
    command = [sys.executable, "-m", "dramatiq", "benchmarks.peers.dramatiq", "--skip-logging"]
    if role.purpose != "recovery":
        threads = 8 if role.purpose in {"noop", "scaling"} else role.concurrency
        command += ["--processes", "1", "--threads", str(threads)]
        os.environ["dramatiq_queue_prefetch"] = "1000"  # noqa: SIM112  the name that it reads
    os.execv(sys.executable, command)


if __name__ == "__main__":
    run(
        Peer(
            package="dramatiq",
            kinds=("sync",),
            settings={
                "noop": "1 process, 8 threads, dramatiq_queue_prefetch=1000, default middleware, no results",
                "work": "1 process, N threads, the same",
                "recovery": "defaults",
            },
            produce=produce,
            work=work,
        )
    )
