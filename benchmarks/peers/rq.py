"""RQ: sync jobs; its SimpleWorker runs them in its own process, the default one forks for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker, Worker

from benchmarks.peers.common import REDIS, Peer, Producer, Role, run


def produce() -> Producer:
    connection = Redis.from_url(REDIS)
    queue = Queue("bench", connection=connection)

    def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        queue.enqueue(job, payload, result_ttl=0)

    def many(job: Callable[..., Any], batch: Sequence[dict[str, Any]]) -> None:
        queue.enqueue_many([Queue.prepare_data(job, (payload,), result_ttl=0) for payload in batch])

    return Producer(one, many, chunk=1000, close=connection.close)


def work(role: Role) -> None:
    kind = Worker if role.purpose == "recovery" else SimpleWorker
    kind(["bench"], connection=Redis.from_url(REDIS)).work(logging_level="ERROR")


if __name__ == "__main__":
    run(
        Peer(
            package="rq",
            kinds=("sync",),
            settings={
                "noop": "SimpleWorker, one job at a time, result_ttl=0",
                "recovery": "Worker, which forks for each job; defaults, result_ttl=0",
            },
            produce=produce,
            work=work,
            bulk="enqueue_many of 1,000",
        )
    )
