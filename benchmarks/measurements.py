"""What is measured of each system. Each measurement is a function from a system to its figures, a flat dict."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.driver import SETTLE_SECONDS, START_SECONDS, Load, Server, Step, StepError, step
from benchmarks.results import medians
from benchmarks.systems import OURS, REDIS_PY, ROOT, System

Figures = dict[str, float]


@dataclass(frozen=True)
class Effort:
    """How much is done: numbers of jobs, and the seconds after which what a slower system has done counts."""

    jobs: int
    fill_seconds: float
    run_seconds: float
    samples: int
    latency_seconds: float
    idle_seconds: float
    backlogs: tuple[int, ...]
    limit_seconds: float
    recovery_seconds: float


FULL: Final = Effort(40_000, 2.0, 3.0, 300, 8.0, 4.0, (1_000, 10_000, 100_000, 1_000_000), 2.0, 90.0)
QUICK: Final = Effort(10_000, 1.0, 2.0, 60, 5.0, 2.0, (1_000, 100_000), 0.5, 30.0)

PAIRS: Final = 5
PASSES: Final = 7
RECOVERY_JOBS: Final = 1_000
BLOCKING: Final = frozenset({"blpop", "brpop", "brpoplpush", "blmove", "bzpopmin", "xread", "xreadgroup"})


@dataclass(frozen=True)
class Measurement:
    """One of the things that are measured.

    `kinds` are those of the jobs that it is for; `once`: in the first round only, as it takes long; `variants`: whether
    this project's settings beside the default are measured, too.
    """

    name: str
    title: str
    run: Callable[[System, Effort, Mapping[str, str]], Figures]
    kinds: tuple[str, ...] = ("async", "sync")
    once: bool = False
    variants: bool = False
    only_ours: bool = False


def enqueue(system: System, effort: Effort, extra: Mapping[str, str], *, how: str = "single") -> Figures:
    """As fast as one producer can, nothing else running."""
    with step(system, extra) as at:
        at.ask("enqueue", how=how, count=50, seconds=5, kind=preferred(at))  # scripts are loaded, lists known
        memory = at.server.memory()
        figures = enqueue_cost(at, how, preferred(at), effort.jobs, effort.fill_seconds)
        return {**figures, "bytes": (at.server.memory() - memory) / figures["count"]}


def enqueue_cost(at: Step, how: str, kind: str, count: int, seconds: float) -> Figures:
    """What it costs to enqueue so many no-ops, or as many as there is time for."""
    before = at.server.load()
    done = at.ask("enqueue", how=how, count=count, seconds=seconds, kind=kind)
    load = at.server.load().since(before)
    return {
        "per_second": done["count"] / done["seconds"],
        "client_us": done["cpu"] / done["count"] * 1e6,
        **redis_figures(load, done["count"]),
        "count": done["count"],
    }


def beside(system: System, effort: Effort, extra: Mapping[str, str]) -> Figures:
    """Enqueue one at a time by turns with redis-py's own round trips, which begin and end. Each has its own process.

    Where the scheduler puts a producer and Redis decides on the rate of either, and changes within seconds.
    """
    with step(system, extra) as at, Step(REDIS_PY, at.server) as bare:
        rates: list[float] = []
        for one in (bare, *(at, bare) * PAIRS):
            one.ask("enqueue", how="single", count=50, seconds=5)
            rates.append(enqueue_cost(one, "single", "sync", effort.jobs, effort.fill_seconds)["per_second"])
        limits = [statistics.mean(around) for around in itertools.pairwise(rates[::2])]
        return {
            "per_second": statistics.median(rates[1::2]),
            "round_trips_per_second": statistics.median(limits),
            "percent": statistics.median(100 * ours / limit for ours, limit in zip(rates[1::2], limits, strict=True)),
        }


def bulk(system: System, effort: Effort, extra: Mapping[str, str]) -> Figures:
    return enqueue(system, effort, extra, how="bulk")


def drain(
    system: System,
    effort: Effort,
    extra: Mapping[str, str],
    *,
    kind: str = "",
    concurrency: int = 100,
    job: str = "noop",
    purpose: str = "noop",
    processes: int = 1,
) -> Figures:
    """Fill, start the worker, watch."""
    with step(system, extra) as at:
        kind = kind or preferred(at)
        jobs = effort.jobs * processes if job == "noop" else effort.jobs // 2
        filled = at.ask("enqueue", how="bulk", job=job, kind=kind, count=jobs, seconds=effort.fill_seconds)["count"]
        for _ in range(processes):
            at.start_worker(purpose, kind, concurrency)
        at.wait_for(1, START_SECONDS, "start")
        while at.tally.workers < processes and at.tally.count() < filled // 2:
            time.sleep(0.002)
        return watched(at, filled, effort.run_seconds)


def watched(at: Step, filled: int, seconds: float) -> Figures:
    """From now to the last job, or for so many seconds."""
    first, before, cpu, began = at.tally.count(), at.server.load(), at.cpu(), time.perf_counter()
    while (count := at.tally.count()) < filled and time.perf_counter() - began < seconds:
        at.check_alive()
        time.sleep(0.002)
    took, done = time.perf_counter() - began, count - first
    if count < filled:  # it has more to do, so what it costs is taken now
        load, cpu = at.server.load().since(before), at.cpu() - cpu
        costed = at.tally.count() - first
    else:
        time.sleep(SETTLE_SECONDS)  # the last outcomes are written
        load, cpu, costed = at.server.load().since(before), at.cpu() - cpu, done
    if not done:
        raise StepError(f"{first} of {filled} jobs, then none for {seconds:.0f} s; {at.log()}")
    return {
        "per_second": done / took,
        "worker_us": cpu / costed * 1e6,
        "peak_mb": at.resident("VmHWM") / 2**20,
        "jobs": done,
        **redis_figures(load, costed),
    }


def latency(system: System, effort: Effort, extra: Mapping[str, str]) -> Figures:
    """One job at a time for an idle worker; then nothing for some seconds: what does it do, and hold?"""
    with step(system, extra) as at:
        kind = preferred(at)
        at.start_worker("latency", kind, 10)
        limit = START_SECONDS + effort.latency_seconds + 30
        samples = at.ask("latency", kind=kind, count=effort.samples, seconds=effort.latency_seconds, timeout=limit)[
            "nanoseconds"
        ]
        at.check_alive()
        if len(samples) < 10:
            raise StepError(f"{len(samples)} samples within {effort.latency_seconds:.0f} s; {at.log()}")
        before, cpu = at.server.load(), at.cpu()
        time.sleep(effort.idle_seconds)
        load, cpu = at.server.load().since(before), at.cpu() - cpu
        return {
            "p50_ms": percentile(samples, 50) / 1e6,
            "p99_ms": percentile(samples, 99) / 1e6,
            "samples": len(samples),
            "idle_mb": at.resident() / 2**20,
            "idle_commands_s": load.calls / effort.idle_seconds,
            "idle_round_trips_s": load.reads / effort.idle_seconds,
            # Those that wait for work apart; one of our own looks is among the readings.
            "idle_beyond_s": max(0, load.reads - 1 - blocking(load)) / effort.idle_seconds,
            "idle_cpu_percent": 100 * cpu / effort.idle_seconds,
        }


def blocking(load: Load) -> int:
    """Commands that wait for work."""
    return sum(calls for name, calls in load.commands.items() if name in BLOCKING)


def recovery(system: System, effort: Effort, extra: Mapping[str, str]) -> Figures:
    """`kill -9` in the middle of 1,000 jobs of 10 ms, a restart, and no new traffic: when are all done?

    Default settings. A job counts when it has run to its end at least once.
    """
    with step(system, extra) as at:
        kind = preferred(at)
        at.ask("enqueue", how="bulk", job="work_stamp", kind=kind, count=RECOVERY_JOBS, seconds=30)
        at.start_worker("recovery", kind, 10)
        wait_stamped(at, RECOVERY_JOBS // 4, START_SECONDS + 30)
        at.kill_workers()
        killed, left = time.monotonic(), RECOVERY_JOBS - at.tally.stamped(RECOVERY_JOBS)
        at.start_worker("recovery", kind, 10)
        while at.tally.stamped(RECOVERY_JOBS) < RECOVERY_JOBS:
            if time.monotonic() - killed > effort.recovery_seconds:
                break
            time.sleep(0.05)
        return {
            "seconds": time.monotonic() - killed,
            "missing": RECOVERY_JOBS - at.tally.stamped(RECOVERY_JOBS),
            "left_at_kill": left,
        }


def wait_stamped(at: Step, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (done := at.tally.stamped(RECOVERY_JOBS)) < count:
        at.check_alive()
        if time.monotonic() > deadline:
            raise StepError(f"{done} of {count} jobs within {seconds:.0f} s; {at.log()}")
        time.sleep(0.01)


def backlog(_: System, effort: Effort, __: Mapping[str, str]) -> Figures:
    """This project's cost for each operation as the backlog grows, and the memory that it takes.

    The sizes take turns, and the medians count: the machine's speed changes within seconds.
    """
    with contextlib.ExitStack() as stack:
        servers = {size: stack.enter_context(Server()) for size in effort.backlogs}
        passes: dict[int, list[Figures]] = {size: [] for size in servers}
        for number in range(PASSES):
            for size, server in servers.items():
                passes[size].append(run_module("benchmarks.backlog", server, 0 if number else size))
        return {f"{name}@{size}": value for size, found in passes.items() for name, value in medians(found).items()}


def limits(effort: Effort) -> Figures:
    with Server() as server:
        return run_module("benchmarks.limits", server, effort.limit_seconds, timeout=60 + 60 * effort.limit_seconds)


def run_module(module: str, server: Server, number: float, timeout: float = 300) -> Figures:
    """A program of this package in a process of its own."""
    environment = os.environ | {"BENCH_REDIS": server.url, "BENCH_SECONDS": str(number), "BENCH_BACKLOG": str(number)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module], env=environment, cwd=ROOT, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        raise StepError(f"{module}: no end within {timeout:.0f} s") from None
    if done.returncode:
        raise StepError(f"{module}: {done.stderr.decode(errors='replace').strip().splitlines()[-1]}")
    figures: Figures = json.loads(done.stdout)
    return figures


def redis_figures(load: Load, count: int) -> Figures:
    """What one operation costs Redis."""
    return {"redis_us": load.cpu / count * 1e6, "commands": load.calls / count, "round_trips": load.reads / count}


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


_info: dict[str, Any] = {}


def info(at: Step) -> dict[str, Any]:
    """What the adapter says of its system; asked once."""
    if at.system.name not in _info:
        _info[at.system.name] = at.ask("info", timeout=60)
    described: dict[str, Any] = _info[at.system.name]
    return described


def preferred(at: Step) -> str:
    """The kind of job in which the system is at its best."""
    kind: str = info(at)["kinds"][0]
    return kind


def _drain(**options: Any) -> Callable[[System, Effort, Mapping[str, str]], Figures]:
    return lambda system, effort, extra: drain(system, effort, extra, **options)


def _lease5(_: System, effort: Effort, extra: Mapping[str, str]) -> Figures:
    return recovery(System(OURS.name, OURS.adapter, variant="lease5"), effort, extra)


ALL: Final = (
    Measurement("enqueue", "enqueue, one at a time", enqueue),
    Measurement("beside", "enqueue, by turns with redis-py's round trips", beside, only_ours=True),
    Measurement("bulk", "enqueue, in bulk", bulk),
    Measurement("drain_100", "no-ops, async 100 or the system's best", _drain(concurrency=100), variants=True),
    Measurement("drain_10", "no-ops, concurrency 10", _drain(concurrency=10, purpose="noop"), variants=True),
    Measurement("drain_sync", "no-ops, sync", _drain(kind="sync", concurrency=20), ("sync",), variants=True),
    Measurement(
        "work_async", "10 ms of waiting, async 100", _drain(kind="async", job="work", purpose="work"), ("async",),
        variants=True,
    ),
    Measurement(
        "work_sync", "10 ms of waiting, 20 threads", _drain(kind="sync", concurrency=20, job="work", purpose="work"),
        ("sync",), variants=True,
    ),
    Measurement("latency", "latency on an idle worker", latency, variants=True),
    Measurement("scale_1", "no-ops, 1 process", _drain(purpose="scaling"), once=True),
    Measurement("scale_2", "no-ops, 2 processes", _drain(purpose="scaling", processes=2), once=True),
    Measurement("scale_4", "no-ops, 4 processes", _drain(purpose="scaling", processes=4), once=True),
    Measurement("backlog", "cost as the backlog grows", backlog, once=True, only_ours=True),
    Measurement("recovery", "kill -9, default settings", recovery, once=True),
    Measurement("recovery_lease_5", "kill -9, lease of 5 s", _lease5, once=True, only_ours=True),
)  # fmt: skip
