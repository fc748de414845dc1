"""pydocket: async jobs on streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from docket import Docket, Worker

from benchmarks.peers.common import JOBS, REDIS, Peer, Producer, Role, run, run_loop


def connect(*, defaults: bool) -> Docket:
    # Each running job takes a connection, and redis-py's pool has 100 by default.
    url = f"{REDIS}?max_connections=1000"
    docket = Docket("bench", REDIS) if defaults else Docket("bench", url, execution_ttl=timedelta(0))
    for job in JOBS["async"].values():
        docket.register(job)
    return docket


async def produce() -> Producer:
    docket = connect(defaults=False)
    await docket.__aenter__()

    async def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        await docket.add(job)(payload)

    async def many(job: Callable[..., Any], batch: Sequence[dict[str, Any]]) -> None:
        await docket.add_many([docket.call(job)(payload) for payload in batch])

    async def close() -> None:
        await docket.__aexit__(None, None, None)

    return Producer(one, many, chunk=1000, close=close)


def work(role: Role) -> None:
    run_loop(_work(role), fast=role.purpose != "recovery")


async def _work(role: Role) -> None:
    settings: dict[str, Any] = {}
    if role.purpose != "recovery":
        # As long as all slots are taken it sleeps for this interval: 40 jobs a second at concurrency 10 by default.
        settings = {"concurrency": role.concurrency, "minimum_check_interval": timedelta(milliseconds=2)}
        if role.purpose == "latency":
            settings.pop("minimum_check_interval")
    async with connect(defaults=role.purpose == "recovery") as docket, Worker(docket, **settings) as worker:
        await worker.run_forever()
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(
        Peer(
            package="pydocket",
            kinds=("async",),
            settings={
                "noop": "concurrency=N, minimum_check_interval of 2 ms, max_connections=1000, "
                "execution_ttl=0 (no results kept), uvloop",
                "latency": "the same with the default minimum_check_interval of 250 ms",
                "recovery": "defaults",
            },
            produce=produce,
            work=work,
            bulk="add_many of 1,000",
        )
    )
