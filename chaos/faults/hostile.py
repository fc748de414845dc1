"""Thousands of hostile operations are written straight into Redis, while good ones go on at a steady rate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Final

import redis

from chaos.lab import Lab, LabError, until
from chaos.payloads import QUEUE, Hostile, hostile_operations, kinds, large
from chaos.report import Report
from chaos.scenario import Plan, scenario
from queue_system import QueueManager
from queue_system.failures import FailureStore
from queue_system.keys import Keys

RATE: Final = 50.0
"""Good operations a second."""

BATCH: Final = 20
"""Hostile operations that are written at once."""

LEAST_P99: Final = 0.01
"""Seconds: below this a p99 says more about the machine's scheduling than about the queue."""

WORKERS: Final = 2
_SHOWN: Final = 5


@scenario("hostile", "hostile operations written straight into Redis", operations=(300, 20_000, 60_000))
def hostile(plan: Plan) -> Report:
    """No worker dies, nothing is imported, every byte is kept, and good operations do not wait."""
    seconds = plan.scale.pick(short=3.0, default=60.0, long=180.0)
    with Lab() as lab:
        attack = Attack(lab)
        attack.start_workers()
        attack.warm_up()
        baseline = attack.measure(seconds / 2)
        with attack.writing(hostile_operations(plan.operations), plan.operations / seconds):
            under_attack = attack.measure(seconds)
        if plan.scale.factor > 1:
            attack.write_and_note(list(large(3, megabytes=64)))
        problems = attack.settle(60.0 + plan.operations / 100)  # on a busy machine
        problems += attack.judge()
        least = 50 * LEAST_P99 if plan.scale.is_short else LEAST_P99
        p99, limit = percentile(under_attack), max(2 * percentile(baseline), least)
        if p99 > limit:
            problems.append(f"the p99 of good operations is {1000 * p99:.1f} ms, more than {1000 * limit:.1f} ms")
        return plan.report(
            operations=attack.written,
            lost=len(attack.lost),
            extra_runs=sum(count for each, count in lab.ledger.extra_runs().items() if each in attack.good),
            details={
                "kinds": kinds(),
                "good operations": len(attack.good),
                "p99 without (ms)": round(1000 * percentile(baseline), 1),
                "p99 under attack (ms)": round(1000 * p99, 1),
                "ended": dict(attack.ended),
                "noted by the audit hook": lab.ledger.count("audit"),
            },
            problems=tuple(problems),
        )


def percentile(values: Sequence[float], share: float = 0.99) -> float:
    """The value below which that share of them is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def write(client: redis.Redis, keys: Keys, operations: Iterable[Hostile], prefix: bytes = b"") -> None:
    """Write them straight into Redis."""
    pipeline = client.pipeline(transaction=False)
    for each in operations:
        own = prefix + each.operation_id
        key = keys.operation_prefix.encode() + own
        if each.plain is not None:
            pipeline.set(key, each.plain)
        else:
            fields: dict[str, bytes] = {"st": b"ready", "q": QUEUE.encode(), "ts": b"1", "rd": b"1", **each.fields}
            pipeline.hset(key, mapping=fields if each.body is None else {**fields, "b": each.body})
        if each.delayed:
            pipeline.zadd(keys.delayed, {own: 1})
        else:
            pipeline.rpush(f"{keys.prefix}{QUEUE}", own)
    pipeline.zadd(keys.wake, {"0": 0})
    pipeline.execute()


def write_steadily(url: str, prefix: str, operations: Sequence[Hostile], rate: float) -> None:
    """Write so many a second, in a process that does nothing else."""
    keys, began = Keys(prefix), time.monotonic()
    with redis.Redis.from_url(url) as client:
        for start in range(0, len(operations), BATCH):
            time.sleep(max(0.0, began + start / rate - time.monotonic()))
            write(client, keys, operations[start : start + BATCH])


class Attack:
    """Writes the hostile ones, enqueues the good ones, and knows what has to become of them."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._config = lab.config()
        self._queue = QueueManager(self._config)
        self._client = redis.Redis.from_url(lab.server.url)  # bytes, as they are
        self._hostile: list[Hostile] = []
        self.good: dict[str, float] = {}
        self.lost: set[bytes] = set()
        self.ended: Counter[str] = Counter()

    @property
    def written(self) -> int:
        """How many hostile operations there are."""
        return len(self._hostile)

    def start_workers(self) -> None:
        """The workers, which also know `chaos.watch`."""
        known = {"watch:watch": "chaos.watch:watch", "watch:import": "chaos.watch:import_something"}
        self._lab.start_workers(WORKERS, register=known)
        self._lab.redis.hset(self._lab.keys.registry, QUEUE, "m")
        self._lab.redis.incr(self._lab.keys.registry_version)

    def warm_up(self) -> None:
        """One of each kind, so that all that a worker itself needs is loaded; then each worker starts to watch."""
        self.write(hostile_operations(3 * kinds(), seed=0), prefix=b"warm-")
        until(lambda: not self._waiting(), 30, "the end of the warm-up")
        watching: set[int] = set()
        for _ in range(500):
            self._queue.enqueue({}, "watch:watch", queue_name="watch")
            until(
                lambda: not self._lab.redis.llen(self._lab.keys.ready("watch", "normal")), 10, "a worker that watches"
            )
            watching = {line.pid for line in self._lab.ledger.lines("watching")}
            if len(watching) == WORKERS:
                return
        raise LabError(f"of {WORKERS} workers only {watching} watch")

    def measure(self, seconds: float) -> list[float]:
        """Enqueue good operations at a steady rate; seconds from enqueue to end of each."""
        began, mine = time.monotonic(), {}
        for number in range(int(seconds * RATE)):
            time.sleep(max(0.0, began + number / RATE - time.monotonic()))
            at = time.monotonic()
            done = self._queue.enqueue({"name": "good"}, "chaos.processors:work", queue_name="good")
            mine[done["operation_id"]] = at
        self.good |= mine
        until(lambda: mine.keys() <= self._lab.ledger.done(), 30, "the end of the good operations")
        ends = {line.operation_id: line.at for line in self._lab.ledger.lines("end")}
        return [ends[each] - at for each, at in mine.items()]

    @contextmanager
    def writing(self, operations: Iterable[Hostile], rate: float) -> Iterator[None]:
        """Write operations at that rate while the block lasts; all of them at its end.

        From a process of its own: in this one it would delay the good operations that are measured here.
        """
        mine = list(operations)
        self._hostile += mine
        arguments = (self._lab.server.url, self._lab.keys.prefix, mine, rate)
        attacker = get_context("spawn").Process(target=write_steadily, args=arguments, daemon=True)
        attacker.start()
        yield
        attacker.join(60)
        if attacker.exitcode != 0:
            attacker.kill()
            raise LabError("the hostile operations could not be written")

    def write(self, operations: Iterable[Hostile], prefix: bytes = b"") -> None:
        """Write them straight into Redis."""
        write(self._client, self._lab.keys, operations, prefix)

    def write_and_note(self, operations: Sequence[Hostile]) -> None:
        """Write them straight into Redis, and remember what has to become of them."""
        self._hostile += operations
        self.write(operations)

    def _waiting(self) -> int:
        keys = self._lab.keys
        return int(
            self._client.llen(f"{keys.prefix}{QUEUE}")
            + self._client.zcard(keys.delayed)
            + self._client.zcard(keys.leases)
        )

    def settle(self, seconds: float) -> list[str]:
        """Wait until nothing waits; what hinders it is a problem."""
        try:
            until(lambda: not self._waiting(), seconds, "the end of all hostile operations")
        except (LabError, redis.RedisError) as error:
            return [f"{error}; there are {self._lab.depths()}"]
        return []

    def judge(self) -> list[str]:
        """What was promised and not kept."""
        problems = [*self._bytes_kept(), *self._audited()]
        dead = [worker for worker in self._lab.workers if not worker.alive]
        problems += [f"a worker died: {worker.text()[-500:]}" for worker in dead]
        failed = Counter(line.operation_id for line in self._lab.ledger.lines("task_failed"))
        texts = "".join(worker.text() for worker in self._lab.workers)
        if failed:
            told = [line for line in texts.splitlines() if "failed:" in line]
            problems.append(f"{sum(failed.values())} times a loop of a worker failed, e.g. {told[:2]}")
        if "Traceback" in texts:
            problems.append(f"a worker wrote a traceback: {texts[texts.index('Traceback') :][:1500]}")
        listed = FailureStore(self._config, system_errors=True).list(limit=200)
        if not listed:
            problems.append("the system errors cannot be listed")
        return problems

    def _bytes_kept(self) -> list[str]:
        wrong: dict[str, list[str]] = {}
        for each, found in zip(self._hostile, self._found(), strict=True):
            fault = self._fault(each, *found)
            if fault:
                self.lost.add(each.operation_id)
                wrong.setdefault(f"{each.kind}: {fault}", []).append(repr(each.operation_id)[:60])
        return [f"{len(ids)} of {what}, e.g. {', '.join(ids[:_SHOWN])}" for what, ids in wrong.items()]

    def _found(self) -> Iterator[tuple[bytes | None, bytes | None, float | None, bytes | None]]:
        """State, body, place among the system errors and, beside it, the bytes that were no hash, of each."""
        keys = self._lab.keys
        for start in range(0, len(self._hostile), BATCH):
            part = self._hostile[start : start + BATCH]
            pipeline = self._client.pipeline(transaction=False)
            for each in part:
                own = each.operation_id
                pipeline.hmget(keys.operation_prefix.encode() + own, "st", "b")
                pipeline.zscore(keys.system_errors, own)
                pipeline.get(f"{keys.prefix}broken:".encode() + own)
            replies = pipeline.execute(raise_on_error=False)
            for fields, score, plain in zip(replies[::3], replies[1::3], replies[2::3], strict=True):
                state, body = fields if isinstance(fields, list) else (None, None)
                yield state, body, score, plain

    def _fault(
        self, each: Hostile, state: bytes | None, body: bytes | None, score: float | None, plain: bytes | None
    ) -> str:
        """What is wrong with what became of it; empty when nothing is."""
        shown = repr(state or b"gone")[2:-1][:20]
        self.ended[shown] += 1
        if shown not in each.ends:
            return f"it is {shown}, which is none of {', '.join(sorted(each.ends))}"
        if body != each.body or plain != each.plain:
            return "its bytes are not what was written"
        if state == b"system_error" and score is None:
            return "it is not among the system errors"
        return ""

    def _audited(self) -> list[str]:
        """What the audit hooks have noted; and whether they note at all."""
        noted = [" ".join(line.words) for line in self._lab.ledger.lines("audit")]
        problems = [f"{len(noted)} imports, programs or the like, e.g. {noted[:_SHOWN]}"] if noted else []
        self._queue.enqueue({}, "watch:import", queue_name="watch")
        until(lambda: self._lab.ledger.count("imported"), 10, "the import that the hooks must note")
        if not any("zipapp" in " ".join(line.words) for line in self._lab.ledger.lines("audit")):
            problems.append("the audit hook does not note an import, so it shows nothing")
        return problems
