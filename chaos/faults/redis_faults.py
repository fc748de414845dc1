"""Redis is stopped, restarted, read-only, full, loading, without a disk, or paused."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Final

import redis

from chaos.lab import Lab, until
from chaos.outage import SLOTS, Fault, must, outage_seconds, ride_out, wait_info
from chaos.report import Report
from chaos.scenario import Plan, scenario

SIZES: Final = (200, 1_000, 10_000)
NOBODY_LISTENS: Final = 1  # a port that is nobody's
LOAD_DELAY_MICROSECONDS: Final = 100
FILLERS: Final = 36_000
"""Keys to load: for more than 3.6 s, which is an outage to the reaper, and less than a server has for its start."""


@contextlib.contextmanager
def stopped(lab: Lab) -> Iterator[None]:
    """SIGSTOP: connections stay, nothing answers."""
    os.kill(lab.server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(lab.server.pid, signal.SIGCONT)


@contextlib.contextmanager
def gone(lab: Lab) -> Iterator[None]:
    """Shut down in good order; nobody listens. Back with the data of its append-only file."""
    client = lab.redis
    with contextlib.suppress(redis.ConnectionError):
        client.shutdown()
    try:
        yield
    finally:
        lab.server.start()


@contextlib.contextmanager
def read_only(lab: Lab) -> Iterator[None]:
    """A replica of nobody, which refuses writes."""
    lab.redis.replicaof("127.0.0.1", NOBODY_LISTENS)
    try:
        yield
    finally:
        lab.redis.replicaof("NO", "ONE")


@contextlib.contextmanager
def full(lab: Lab) -> Iterator[None]:
    """Less ``maxmemory`` than it uses already, and nothing that may be evicted."""
    lab.redis.config_set("maxmemory-policy", "noeviction")
    lab.redis.config_set("maxmemory", "500kb")
    must(lab.redis.info("memory")["used_memory"] > 500_000, "Redis uses less memory than that")
    try:
        yield
    finally:
        lab.redis.config_set("maxmemory", "0")


@contextlib.contextmanager
def loading(lab: Lab) -> Iterator[None]:
    """Killed, and started again with so much to load that it says LOADING for a while."""
    lab.server.kill()
    failed: list[Exception] = []

    def start() -> None:
        try:
            lab.server.start()
        except Exception as error:  # noqa: BLE001  raised below, in the thread that asked for it
            failed.append(error)

    starting = threading.Thread(target=start, name="chaos-start")
    starting.start()
    try:
        yield
    finally:
        starting.join()
    if failed:
        raise failed[0]


@contextlib.contextmanager
def without_disk(lab: Lab) -> Iterator[None]:
    """Its snapshot cannot be written, because a directory has the name of the file: MISCONF."""
    blocker = lab.server.directory / "dump.rdb"
    (blocker / "in-the-way").mkdir(parents=True)
    lab.redis.config_set("save", "3600 1")
    lab.redis.bgsave()
    wait_info(lab, "persistence", "rdb_last_bgsave_status", "err")
    try:
        yield
    finally:
        (blocker / "in-the-way").rmdir()
        blocker.rmdir()
        until(lambda: _saved(lab), 20, "a snapshot that can be written")


@contextlib.contextmanager
def paused(lab: Lab, seconds: float) -> Iterator[None]:
    """CLIENT PAUSE: no client gets an answer. It ends by itself."""
    lab.redis.execute_command("CLIENT", "PAUSE", int(seconds * 1000), "ALL")
    yield
    until(lambda: _answers(lab), seconds + 10, "the end of the pause")


@scenario("redis_stopped", "Redis hangs (SIGSTOP)", operations=SIZES, waits=True)
def redis_stopped(plan: Plan) -> Report:
    """Commands time out, and what was sent is carried out late."""
    with Lab() as lab:
        return ride_out(plan, lab, Fault(stopped, outage_seconds(plan)))


@scenario("redis_gone", "Redis is shut down, and comes back", operations=SIZES, waits=True)
def redis_gone(plan: Plan) -> Report:
    """Connections are refused; it comes back with its append-only file."""
    with Lab(persistence=True) as lab:
        return ride_out(plan, lab, Fault(gone, outage_seconds(plan), refuses="connection"))


@scenario("readonly", "Redis is read-only (READONLY)", operations=SIZES, waits=True)
def readonly(plan: Plan) -> Report:
    """As after a failover that clients have not followed."""
    with Lab() as lab:
        return ride_out(plan, lab, Fault(read_only, outage_seconds(plan), refuses="readonly"))


@scenario("oom", "Redis is out of memory (OOM)", operations=SIZES)
def oom(plan: Plan) -> Report:
    """Enqueue is refused whole, workers drain what is there."""
    seconds = plan.scale.pick(short=2.0, default=10.0, long=10.0)  # renewals are not refused, so it may be shorter
    with Lab() as lab:
        return ride_out(plan, lab, Fault(full, seconds, refuses="oom", drains=True))


@scenario("loading", "Redis is killed and loads its data (LOADING)", operations=SIZES)
def redis_loading(plan: Plan) -> Report:
    """Redis can be told to load slowly (``key-load-delay``); it answers once in 1,024 keys: with LOADING."""
    with Lab(persistence=True, extra=("--key-load-delay", str(LOAD_DELAY_MICROSECONDS))) as lab:
        pipeline = lab.redis.pipeline(transaction=False)
        for number in range(FILLERS):
            pipeline.set(f"filler:{number}", "")
        pipeline.execute()
        least = FILLERS * LOAD_DELAY_MICROSECONDS / 1e6
        report = ride_out(plan, lab, Fault(loading, 0.9 * least))
    met = report.details["enqueues meanwhile"]
    must(met.get("loading"), f"no enqueue met LOADING, but {met}")
    return report


@scenario("misconf", "Redis cannot write to its disk (MISCONF)", operations=SIZES, waits=True)
def misconf(plan: Plan) -> Report:
    """It refuses every write until a snapshot has succeeded."""
    with Lab() as lab:
        return ride_out(plan, lab, Fault(without_disk, outage_seconds(plan), refuses="misconf"))


@scenario("client_pause", "Redis lets clients wait (CLIENT PAUSE)", operations=SIZES, waits=True)
def client_pause(plan: Plan) -> Report:
    """As in a managed failover."""
    seconds = outage_seconds(plan)
    with Lab() as lab:
        return ride_out(plan, lab, Fault(lambda lab: paused(lab, seconds), seconds - 0.5))


@scenario("script_flush", "SCRIPT FLUSH all the time (NOSCRIPT)", operations=(600, 4_000, 50_000))
def script_flush(plan: Plan) -> Report:
    """Scripts vanish under load: they are sent anew, once, and nobody notices."""
    lasts = plan.scale.pick(short=2.0, default=6.0, long=60.0)
    with Lab() as lab:
        lab.enqueue(plan.operations, entity={"seconds": 2 * SLOTS * lasts / plan.operations})
        lab.start_workers(2, max_workers=SLOTS)
        client, flushes, began = lab.redis, 0, time.monotonic()
        while len(lab.ledger.done()) < plan.operations and time.monotonic() - began < 60 + 10 * lasts:
            client.script_flush()
            flushes += 1
            time.sleep(0.005)
        lab.wait_settled(30)
        lab.stop_workers()
        result = lab.check()
        failures = lab.ledger.count("task_failed")
    problems = list(result.problems)
    if result.extra_runs or result.attempts_burned or result.crashed or failures:
        problems.append(
            f"{result.extra_runs} extra runs, {result.attempts_burned} attempts burned, "
            f"{len(result.crashed)} leases taken back, {failures} tasks failed"
        )
    details = {"flushes": flushes, "attempts burned": result.attempts_burned}
    return plan.report(lost=len(result.lost), extra_runs=result.extra_runs, details=details, problems=tuple(problems))


def _saved(lab: Lab) -> bool:
    with contextlib.suppress(redis.ResponseError):  # one is being written
        lab.redis.bgsave()
    return lab.redis.info("persistence").get("rdb_last_bgsave_status") == "ok"


def _answers(lab: Lab) -> bool:
    with contextlib.suppress(redis.RedisError, OSError):
        return bool(lab.redis.ping())
    return False
