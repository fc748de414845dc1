"""A mixed load for as long as you like, with faults: memory stays flat, and Redis keeps only what can be explained."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import psutil
import redis

from chaos import jobs, processors
from chaos.lab import Lab, WorkerProcess, until
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager, QueueRetryConfig
from queue_system.errors import BrokerUnavailableError
from queue_system.keys import Keys
from queue_system.summary import unaccounted

RATE: Final = 200.0
"""Operations a second."""

DONE_TTL: Final = 2.0
RETENTION: Final = 8.0
SHORT_RETENTION: Final = 3.0
DEDUP_WINDOW: Final = 3.0
LEASE: Final = 2.0
TASKS: Final = 10
THREADS: Final = 6
SAMPLE_SECONDS: Final = 0.25
RSS_LIMIT: Final = 0.05
SHORT_RSS_LIMIT: Final = 0.25
"""Within a minute caches still fill: only what runs away is then seen."""

KEYS_SLACK: Final = 16 * 1024
REDIS_SLACK: Final = 2 * 1024 * 1024
"""Bytes by which the keys, and all of Redis, may differ from the baseline: more digits in the counters; buffers of its
clients, and another process after a restart."""

SENT_SECONDS: Final = 120.0
"""For so long at most Redis remembers that a call was carried out."""

FAILURE_HASH_SECONDS: Final = RETENTION + 3600.0
"""For so long a failure's hash may live at most: it is dropped with its entry, unless nobody reaps."""

FAST: Final = QueueRetryConfig.fixed(delay=0.2, max_attempts=5)
TWICE: Final = QueueRetryConfig.fixed(delay=0.1, max_attempts=2)

Options = dict[str, Any]
MIX: Final[tuple[tuple[Callable[..., Any], Options], ...]] = (
    *((processors.work, {}),) * 5,
    (processors.work, {"priority": "high"}),
    (processors.work, {"priority": "low"}),
    (processors.work, {"delay": 0.5}),
    (processors.work, {"on_success": jobs.called_back}),
    (processors.work, {"on_success": jobs.called_back_sync}),
    (processors.work, {"deduplication_key": "", "deduplication_window": DEDUP_WINDOW}),
    *((processors.work_sync, {}),) * 4,
    (processors.work_sync, {"priority": "low"}),
    (jobs.fail_once, {"retry_config": FAST}),
    (jobs.fail_once, {"retry_config": FAST, "on_success": jobs.called_back}),
    (jobs.fail, {"retry_config": TWICE, "on_failure": jobs.called_back}),
    (processors.work, {"delay": 1.0, "priority": "high"}),
)
"""What is enqueued, in turn."""


@dataclass
class Load:
    """What the producer has got confirmed."""

    accepted: list[int] = field(default_factory=list)
    duplicates: int = 0
    refused: int = 0

    def produce(self, queue: QueueManager, count: int) -> None:
        """Enqueue so many at the rate, and insist on each until it is confirmed."""
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
            self._enqueue(queue, number)

    def _enqueue(self, queue: QueueManager, number: int) -> None:
        function, options = MIX[number % len(MIX)]
        if "deduplication_key" in options:
            options = options | {"deduplication_key": f"key-{number // (2 * len(MIX))}"}
        entity = {"name": str(number), "seconds": 0.002 * (number % 5)}
        for _ in range(200):
            try:
                result = queue.enqueue(entity, function, operation_id=f"s{number}", **options)
            except BrokerUnavailableError:
                self.refused += 1
                time.sleep(0.05)
                continue
            # One that was accepted before its reply was lost is a duplicate of itself.
            if result["status"] == "duplicate" and result["duplicate_of"] != f"s{number}":
                self.duplicates += 1
            else:
                self.accepted.append(number)
            return
        raise AssertionError(f"operation {number} was not confirmed")


class Faults:
    """What goes wrong meanwhile, in turn: each of these is a fault."""

    def __init__(self, lab: Lab, worker_options: dict[str, Any]) -> None:
        self._lab = lab
        self._options = worker_options
        self._redis = lab.redis
        self._victim = lab.worker(**worker_options)
        self.count: Counter[str] = Counter()
        self.broken = ""

    def kill_worker(self) -> None:
        """Kill -9 of the second worker, and a new one."""
        until(lambda: self._victim.ready or not self._victim.alive, 30, "a second worker")
        if self._victim.alive:
            self._victim.kill()
        else:  # it could not start while Redis was away: its supervisor starts it again
            self.count["start refused"] += 1
        self._lab.workers.remove(self._victim)
        self._victim = self._lab.worker(**self._options)

    def flush_scripts(self) -> None:
        """As if Redis were a new one."""
        self._redis.script_flush()

    def pause_redis(self) -> None:
        """No answer for a moment."""
        self._redis.execute_command("CLIENT", "PAUSE", "300", "ALL")

    def kill_redis(self) -> None:
        """Kill -9 of Redis, which comes back with its append-only file."""
        self._lab.server.kill()
        self._lab.server.start()

    def purge_failures(self) -> None:
        """Somebody tidies up."""
        config = self._lab.config()
        with contextlib.closing(config):
            config.broker.run(config.commands.purge_oldest_failures())

    def go_on(self, stop: threading.Event, interval: float) -> None:
        """One fault after the other, until told to stop."""
        turns = (self.kill_worker, self.flush_scripts, self.pause_redis, self.purge_failures, self.kill_redis)
        try:
            for fault in cycle(turns):
                if stop.wait(interval):
                    return
                fault()
                self.count[fault.__name__] += 1
        except Exception as error:  # noqa: BLE001  the scenario must be told: without faults it shows nothing
            self.broken = f"the faults ended: {type(error).__name__}: {error}"


@dataclass
class Memory:
    """The resident memory of a process, sampled."""

    samples: list[int] = field(default_factory=list)

    def watch(self, pid: int, stop: threading.Event, interval: float) -> None:
        """Sample until told to stop."""
        process = psutil.Process(pid)
        while not stop.wait(interval):
            self.samples.append(process.memory_info().rss)

    def fifths(self) -> list[float]:
        """Medians (MiB) of the fifths of the time."""
        size = max(1, len(self.samples) // 5)
        return [statistics.median(self.samples[n * size : (n + 1) * size]) / 2**20 for n in range(5)]


def unexplained(client: redis.Redis, keys: Keys) -> list[str]:
    """Keys that nothing accounts for. An operation's hash is where its state says, or expires in time."""
    found = []
    fixed = {getattr(keys, name) for name in Keys.__slots__} | {f"{keys.prefix}token"}
    ready = {keys.prefix + queue for queue in client.hkeys(keys.registry)}
    for name in client.scan_iter(f"{keys.prefix}*", count=1000):
        if name in fixed or name in ready:
            continue
        if name.startswith(keys.operation_prefix):
            explained = _operation_explained(client, keys, name.removeprefix(keys.operation_prefix))
        elif name.startswith(keys.dedup_prefix):
            explained = 0 <= client.pttl(name) <= (DEDUP_WINDOW + 1) * 1000
        elif name.startswith(keys.heartbeat_prefix):
            explained = 0 <= client.pttl(name) <= 30_000
        elif name.startswith(keys.sent_prefix):
            explained = 0 <= client.pttl(name) <= SENT_SECONDS * 1000
        else:
            explained = False
        if not explained and client.exists(name):
            found.append(f"{name} {client.type(name)} {client.pttl(name)} ms")
    return found


def _operation_explained(client: redis.Redis, keys: Keys, operation_id: str) -> bool:
    key = keys.operation(operation_id)
    state, ttl = client.hget(key, "st"), client.pttl(key)
    if state == "done":
        return 0 <= ttl <= DONE_TTL * 1000
    if state == "failed":
        return client.zscore(keys.failures, operation_id) is not None and 0 <= ttl <= FAILURE_HASH_SECONDS * 1000
    return ttl == -2  # gone meanwhile


def read_lines(path: Path) -> Iterator[list[str]]:
    """The words of each line of a ledger, without keeping them all."""
    with path.open() as file:
        for line in file:
            yield line.split()


@dataclass
class Seen:
    """What the ledger says, in sets of numbers: a long soak has millions of lines."""

    ended: set[int] = field(default_factory=set)
    called_back: set[int] = field(default_factory=set)
    runs: Counter[tuple[int, str]] = field(default_factory=Counter)

    @classmethod
    def of(cls, path: Path) -> Seen:
        """Read a ledger."""
        seen = cls()
        for _, _, what, operation_id, *words in read_lines(path):
            if what not in {"start", "end", "callback"}:
                continue
            number = int(operation_id[1:])
            if what == "start":
                attempt = words[1] if MIX[number % len(MIX)][0] in {jobs.fail, jobs.fail_once} else "1"
                seen.runs[number, attempt] += 1
            else:
                (seen.ended if what == "end" else seen.called_back).add(number)
        return seen

    def judge(self, accepted: list[int], killed: int) -> tuple[int, int, list[str]]:
        """Lost operations, extra runs, and problems; `killed` is how many workers were."""
        kinds = {number: MIX[number % len(MIX)] for number in accepted}
        failing = {number for number, (function, _) in kinds.items() if function is jobs.fail}
        called = {number for number, (_, options) in kinds.items() if {"on_success", "on_failure"} & set(options)}
        lost = {number for number in accepted if number not in self.ended and number not in failing}
        silent = called - self.called_back
        extra = sum(count - 1 for count in self.runs.values())
        problems = []
        if lost:
            problems.append(f"{len(lost)} lost, e.g. {sorted(lost)[:5]}")
        if silent:
            problems.append(f"{len(silent)} callbacks not called, e.g. of {sorted(silent)[:5]}")
        if self.ended & failing:
            problems.append("one that fails has ended well")
        if extra > killed * (TASKS + THREADS):
            problems.append(f"{extra} extra runs at {killed} kills of a worker with {TASKS + THREADS} slots")
        return len(lost), extra, problems


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that Redis has allocated, and those of them that keys without an expiry take."""

    total: int
    keys: int

    @classmethod
    def by(cls, client: redis.Redis, keys: Keys) -> Held:
        """What Redis holds now."""
        lasting = [name for name in client.scan_iter(f"{keys.prefix}*", count=1000) if client.pttl(name) == -1]
        total = int(client.info("memory")["used_memory"])
        return cls(total, sum(int(client.memory_usage(name, samples=0) or 0) for name in lasting))


@scenario("soak", "a mixed load with all faults in turn", operations=(1_000, 4_000, 360_000))
def soak(plan: Plan) -> Report:
    """`plan.operations` at 200 a second."""
    seconds = plan.operations / RATE
    config = {
        "done_ttl": DONE_TTL,
        "backup_ttl": SHORT_RETENTION if plan.scale.is_short else RETENTION,
        "importable_modules": jobs.MODULES,
    }
    options = {"max_workers": TASKS, "thread_pool_size": THREADS, "lease": LEASE}
    with Lab(persistence=True, worker=options, config=config) as lab:
        survivor = lab.worker(config={"telemetry": "default"}).wait_ready()
        faults = Faults(lab, {"config": {"telemetry": "default"}})
        queue = QueueManager(lab.config())
        _warm_up(lab, queue)
        baseline = Held.by(lab.redis, lab.keys)
        load, memory, stop = Load(), Memory(), threading.Event()
        threads = [
            threading.Thread(target=memory.watch, args=(survivor.pid, stop, SAMPLE_SECONDS)),
            threading.Thread(target=faults.go_on, args=(stop, max(0.7, min(5.0, seconds / 12)))),
        ]
        for thread in threads:
            thread.start()
        try:
            load.produce(queue, plan.operations)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        problems, figures = _after(lab, survivor, baseline)
        seen = Seen.of(lab.ledger.path)
    killed = faults.count["kill_worker"]
    lost, extra, found = seen.judge(load.accepted, killed)
    fifths = memory.fifths()
    growth = fifths[-1] / fifths[1] - 1.0  # the first fifth is its warming up
    limit = RSS_LIMIT if seconds >= 120 else SHORT_RSS_LIMIT
    if faults.broken:
        problems.append(faults.broken)
    if growth > limit:
        problems.append(f"the worker's memory grew by {growth:.1%}")
    return plan.report(
        lost=lost,
        extra_runs=extra,
        details={
            "seconds": round(seconds),
            "accepted": len(load.accepted),
            "worker RSS": f"{', '.join(f'{each:.1f}' for each in fifths)} MiB by fifths ({growth:+.1%})",
            **figures,
            "faults": dict(faults.count),
            "duplicates": load.duplicates,
            "enqueues refused meanwhile": load.refused,
        },
        problems=(*problems, *found),
    )


def _warm_up(lab: Lab, queue: QueueManager) -> None:
    """Every queue is known and every script loaded: then Redis has what it always has."""
    for number, (function, options) in enumerate(MIX):
        more = options | ({"deduplication_key": "warm"} if "deduplication_key" in options else {})
        queue.enqueue({"name": "warm"}, function, operation_id=f"w{number}", **more)
    until(lambda: _idle(lab), 30, "the end of the first operations")
    client = lab.redis
    until(lambda: not _rest(client, lab.keys), RETENTION + DEDUP_WINDOW + 20, "the end of all that is kept")
    lab.ledger.path.write_text("")


def _after(lab: Lab, survivor: WorkerProcess, baseline: Held) -> tuple[list[str], dict[str, Any]]:
    """Wait until all has ended, then until all that is kept for a while is gone."""
    problems = []
    until(lambda: _idle(lab), 60, f"all settled: {lab.depths()}")
    client = lab.redis
    orphans = unexplained(client, lab.keys)
    until(lambda: not _rest(client, lab.keys), RETENTION + DEDUP_WINDOW + 40, "the end of all that is kept")
    orphans += unexplained(client, lab.keys)
    config = lab.config()
    with contextlib.closing(config):
        status = config.broker.run(config.commands.status())
    if orphans:
        problems.append(f"{len(orphans)} orphan keys, e.g. {orphans[:3]}")
    if unaccounted(status):
        problems.append(f"I1: {unaccounted(status)} unaccounted for")
    if not survivor.alive:
        problems.append(f"the worker died: {survivor.text()[-1000:]}")
    now = Held.by(client, lab.keys)
    if now.total > baseline.total + REDIS_SLACK or now.keys > baseline.keys + KEYS_SLACK:
        problems.append(f"Redis holds more than before: {now}, and it was {baseline}")
    return problems, {
        "orphan keys": len(orphans),
        "Redis memory": f"{(now.total - baseline.total) / 1024:+.0f} KiB of {baseline.total / 1024:.0f}",
        "keys that stay": f"{now.keys - baseline.keys:+d} bytes of {baseline.keys:,}",
    }


def _idle(lab: Lab) -> bool:
    depths, counters = lab.depths(), lab.metrics()
    ended = sum(counters.get(f"{kind}{name}", 0) for kind in ("", "callbacks_") for name in ("processed", "failed"))
    accepted = counters.get("enqueued", 0) + counters.get("callbacks_enqueued", 0)
    return not (depths["ready"] or depths["delayed"] or depths["leased"]) and ended == accepted


def _rest(client: redis.Redis, keys: Keys) -> list[str]:
    """Operations and deduplication keys that Redis still has."""
    prefixes = keys.operation_prefix, keys.dedup_prefix
    return [name for prefix in prefixes for name in client.scan_iter(f"{prefix}*", count=1000)]
