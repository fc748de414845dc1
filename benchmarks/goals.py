"""The goals, as ratios within one run, and whether they are held."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.results import Results


@dataclass
class Goal:
    """One line. `held` is None when this run has not measured it."""

    number: str
    text: str
    figure: float | None
    bound: float
    at_least: bool
    unit: str = ""
    against: str = ""

    @property
    def held(self) -> bool | None:
        if self.figure is None:
            return None
        return self.figure >= self.bound if self.at_least else self.figure <= self.bound


NO_OPS = ("drain_100", "drain_10", "drain_sync")
WITH_UVLOOP = "the same with uvloop"


def check_goals(results: Results) -> list[Goal]:
    """All goals, in the order of their numbers."""
    goals: list[Goal] = []

    def least(number: str, text: str, figure: float | None, bound: float, unit: str = "", against: str = "") -> None:
        goals.append(Goal(number, text, figure, bound, at_least=True, unit=unit, against=against))

    def most(number: str, text: str, figure: float | None, bound: float, unit: str = "", against: str = "") -> None:
        goals.append(Goal(number, text, figure, bound, at_least=False, unit=unit, against=against))

    get = results.figure
    name, peer = best(results, NO_OPS)
    least("1", "no-ops, concurrency 100, by the fastest peer's", ratio(get("drain_100", "ours"), peer), 5, "x", name)
    least("1", WITH_UVLOOP, ratio(get("drain_100", "ours+uvloop"), peer), 5, "x", name)
    most("1", "CPU of the worker for each", get("drain_100", "ours", "worker_us"), 60, "us")
    name10, peer10 = best(results, ("drain_10",))
    least("1", "no-ops, concurrency 10, by the fastest peer's", ratio(get("drain_10", "ours"), peer10), 3, "x", name10)
    least("1", WITH_UVLOOP, ratio(get("drain_10", "ours+uvloop"), peer10), 3, "x", name10)
    least("2", "every span exported, by the fastest peer's", ratio(get("drain_100", "ours+spans"), peer), 2, "x", name)
    sync_name, sync = best(results, ("drain_sync",))
    least("3", "sync no-ops, by the fastest peer's", ratio(get("drain_sync", "ours"), sync), 3, "x", sync_name)
    least("3", WITH_UVLOOP, ratio(get("drain_sync", "ours+uvloop"), sync), 3, "x", sync_name)
    least("4", "10 ms async at 100, of 10,000/s", percent(get("work_async", "ours"), 10_000), 80, "%")
    least("4", WITH_UVLOOP, percent(get("work_async", "ours+uvloop"), 10_000), 80, "%")
    least("4", "10 ms in 20 threads, of 2,000/s", percent(get("work_sync", "ours"), 2_000), 95, "%")
    least("5", "enqueue, of redis-py's round trips beside it", get("beside", "ours", "percent"), 75, "%")
    bulk_name, bulk = best(results, ("bulk", "enqueue"))
    least("5", "enqueue in bulk, by the fastest peer's", ratio(get("bulk", "ours"), bulk), 4, "x", bulk_name)
    least("5", "enqueue in bulk, of redis-py pipelined",
          percent(get("bulk", "ours"), results.limit("redis-py pipelined")), 40, "%")  # fmt: skip
    for figure, bound in (("p50_ms", 1.2), ("p99_ms", 2.0)):
        fast_name, fast = best(results, ("latency",), figure, lowest=True)
        most("6", f"idle latency {figure[:3]}, by the best peer's",
             ratio(get("latency", "ours", figure), fast), bound, "x", fast_name)  # fmt: skip
        most("6", WITH_UVLOOP, ratio(get("latency", "ours+uvloop", figure), fast), bound, "x", fast_name)
    # One a second, and one for reaping and heartbeat.
    most("6", "idle round trips a second, upkeep included, blocking reads not",
         get("latency", "ours", "idle_beyond_s"), 2)  # fmt: skip
    most("7", "CPU of Redis, enqueue to completion", redis_cpu(results), 25, "us")
    most("7", "round trips for each in a full drain", get("drain_100", "ours", "round_trips"), 0.2)
    for what in ("enqueue_redis_us", "claim_complete_redis_us"):
        small, large = get("backlog", "ours", f"{what}@1000"), get("backlog", "ours", f"{what}@1000000")
        most("8", f"{what.removesuffix('_redis_us')}, 1,000,000 waiting, by 1,000", ratio(large, small), 1.1, "x")
    most("8", "memory in Redis for each waiting", get("backlog", "ours", "bytes@1000000"), 1200, "bytes")
    most("9", "kill -9, default settings: all done", recovered(results, "recovery"), 20, "s")
    most("9", "kill -9, lease of 5 s: all done", recovered(results, "recovery_lease_5"), 8, "s")
    most("9", "resident memory of an idle worker", get("latency", "ours", "idle_mb"), 60, "MiB")
    return goals


def best(
    results: Results, measurements: tuple[str, ...], figure: str = "per_second", *, lowest: bool = False
) -> tuple[str, float | None]:
    """The best peer in any of these measurements, and its figure."""
    candidates = [
        (value, name) for measurement in measurements for name, value in results.peers(measurement, figure).items()
    ]
    if not candidates:
        return "", None
    choose: Callable[..., tuple[float, str]] = min if lowest else max
    value, name = choose(candidates)
    return name, value


def ratio(ours: float | None, other: float | None) -> float | None:
    return ours / other if ours is not None and other else None


def percent(ours: float | None, limit: float | None) -> float | None:
    return 100 * ours / limit if ours is not None and limit else None


def redis_cpu(results: Results) -> float | None:
    """Enqueue in bulk, claim, complete."""
    parts = results.figure("bulk", "ours", "redis_us"), results.figure("drain_100", "ours", "redis_us")
    return None if None in parts else sum(part for part in parts if part is not None)


def recovered(results: Results, measurement: str) -> float | None:
    """Seconds; infinite when operations were missing at the end."""
    seconds = results.figure(measurement, "ours", "seconds")
    return float("inf") if results.figure(measurement, "ours", "missing") else seconds
