"""This project. `BENCH_VARIANT` names what differs from the default, with commas between.

``uvloop`` and ``lease5`` concern the worker's process; ``unsampled`` and ``spans`` trace what it runs. `SETTINGS` has
what concerns the configuration (``off`` is no telemetry at all), `OPTIONS` and `EACH` what concerns each operation:
with ``dedup`` it has a key of its own, with ``large`` 10 kB, with ``context`` a processor that takes its context.

With `BENCH_PROFILE` the worker writes there where its time has gone.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from benchmarks.peers.common import JOBS, PAYLOAD, REDIS, Peer, Producer, Role, noop, noop_async, run, run_loop
from queue_system import QueueConfig, QueueManager, QueueRetryConfig, QueueWorker
from queue_system.context import OperationContext
from queue_system.garbage import tune_gc
from queue_system.registry import default_registry

VARIANT: Final = frozenset(filter(None, os.environ.get("BENCH_VARIANT", "").split(",")))
SAMPLE_RATIOS: Final = {"spans": 1.0, "unsampled": 0.0}
SETTINGS: Final[dict[str, dict[str, Any]]] = {  # of the configuration
    "off": {"telemetry": None},
    "signed": {"signing_keys": ["bench:" + "0123456789abcdef" * 4]},
    "done_ttl": {"done_ttl": 60.0},
}
OPTIONS: Final[dict[str, dict[str, Any]]] = {  # of each operation
    "retry": {"retry_config": QueueRetryConfig(max_attempts=10, delays=[1.0, 5.0, 30.0], timeout=3600.0)},
    "callback": {"on_success": noop_async},
}
EACH: Final = frozenset({"dedup", "large", "context"})
if _unknown := VARIANT - EACH - {"uvloop", "lease5", *SAMPLE_RATIOS, *SETTINGS, *OPTIONS}:
    raise SystemExit(f"BENCH_VARIANT: unknown: {', '.join(sorted(_unknown))}")
LARGE: Final = {**PAYLOAD, "text": "x" * 10_000}
_PROFILE: Final = os.environ.get("BENCH_PROFILE", "")


async def noop_context(payload: dict[str, Any], _context: OperationContext) -> None:
    """A no-op that is given its context, too."""
    noop(payload)


for _kind in JOBS.values():
    for _job in _kind.values():
        default_registry.register(_job)
default_registry.register(noop_context)


def configuration() -> QueueConfig:
    return QueueConfig(redis_url=REDIS, **_chosen(SETTINGS))


def produce() -> Producer:
    manager, options = QueueManager(configuration()), _chosen(OPTIONS)
    keys = itertools.count()

    def one(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        manager.enqueue(payload, job, **options)

    def one_unlike_the_others(job: Callable[..., Any], payload: dict[str, Any]) -> None:
        key = str(next(keys)) if "dedup" in VARIANT else None
        entity = LARGE if "large" in VARIANT else payload
        one_of_its_kind = noop_context if "context" in VARIANT else job
        manager.enqueue(entity, one_of_its_kind, deduplication_key=key, **options)

    def many(job: Callable[..., Any], batch: Sequence[dict[str, Any]]) -> None:
        manager.enqueue_batch(list(batch), job, **options)

    if VARIANT & EACH:
        return Producer(one_unlike_the_others, close=manager.config.close)
    return Producer(one, many, chunk=1000, close=manager.config.close)


def work(role: Role) -> None:
    for name in VARIANT & SAMPLE_RATIOS.keys():
        from telemetry import configure  # noqa: PLC0415

        configure(otlp_endpoint=os.environ["BENCH_OTLP"], sample_ratio=SAMPLE_RATIOS[name])
    run_loop(_work(role), fast="uvloop" in VARIANT)


async def _work(role: Role) -> None:
    slots = "thread_pool_size" if role.kind == "sync" else "max_workers"
    settings: dict[str, Any] = {} if role.purpose == "recovery" else {slots: role.concurrency}
    if "lease5" in VARIANT:
        settings["lease"] = 5.0
    told_to_stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told_to_stop.set)
    async with QueueWorker(configuration(), **settings) as worker:
        tune_gc(worker.max_workers, worker.thread_pool_size)  # as `queue-system worker` does
        if _PROFILE:
            from benchmarks.recorder import recorded  # noqa: PLC0415  nobody else's memory has it

            with recorded(_PROFILE):
                await told_to_stop.wait()
        else:
            await told_to_stop.wait()


def _chosen(possible: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for word in VARIANT & possible.keys() for name, value in possible[word].items()}


if __name__ == "__main__":
    run(
        Peer(
            package="queue-system",
            kinds=("async", "sync"),
            settings={
                "noop": "max_workers or thread_pool_size = concurrency; tune_gc, metrics and logs, no tracer provider",
                "recovery": "defaults",
            },
            produce=produce,
            work=work,
            bulk="enqueue_batch of 1,000",
        )
    )
