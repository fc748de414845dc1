"""A place to break things in: a Redis of its own, worker processes, a ledger, and the check that nothing was lost.

Everything that a lab has started is ended by process id when its ``with`` block ends.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import redis

from chaos import processors
from chaos.ledger import Ledger
from chaos.liveness import LIMIT, Checker, Sign, Worker, read_sign
from chaos.proxy import Proxy
from queue_system import QueueConfig, QueueManager
from queue_system.embedded import EmbeddedServer
from queue_system.keys import Keys
from queue_system.registry import Registry

T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parents[1]
PREFIX: Final = "chaos:"
LEASE: Final = 2.0
"""Seconds: short, so that what a dead worker held runs again soon."""

BATCH: Final = 500
_POLL_SECONDS: Final = 0.02
_SCAN_COUNT: Final = 1000


class LabError(Exception):
    """The lab itself did not work: what was awaited did not come, or a worker ended by itself."""


class MissingError(LabError):
    """What a scenario needs is not on this machine."""


def until(condition: Callable[[], T], seconds: float, what: str) -> T:
    """Wait until the condition is true, and return its value; `LabError` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"not within {seconds:g} s: {what}")
        time.sleep(_POLL_SECONDS)
    return value


class WorkerProcess:
    """A worker in a process of its own. Its output is in `output`."""

    def __init__(self, settings: dict[str, Any], output: Path) -> None:
        self.output = output
        self.health = output.with_suffix(".health")
        settings = settings | {"health": str(self.health)}
        command = [sys.executable, "-m", "chaos.worker", json.dumps(settings)]
        with output.open("wb") as sink:
            # Nothing is ever written to its input: it is a lifeline, whose end tells that the suite was killed.
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs (or is stopped)."""
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it has said so."""
        return "ready\n" in self.text()

    def sign(self) -> Sign | None:
        """What it says of itself; None when it says nothing, or has ended."""
        return read_sign(self.health, self.health.stem) if self.alive else None

    def text(self) -> str:
        """What it has printed."""
        return self.output.read_text(errors="replace")

    def wait_ready(self, seconds: float = 30.0) -> Self:
        """Wait until it works."""
        until(lambda: self.ready or not self.alive, seconds, f"a worker that is ready: {self.text()[-2000:]}")
        if not self.alive:
            raise LabError(f"a worker ended with {self._process.returncode} at its start: {self.text()[-2000:]}")
        return self

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when it is gone."""
        self._process.send_signal(number)

    def pause(self) -> None:
        """SIGSTOP."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.send(signal.SIGCONT)

    def kill(self) -> float:
        """`kill -9`, and wait for its end; returns the time (`time.monotonic`) after it."""
        self._process.kill()
        self._process.wait(timeout=10)
        return time.monotonic()

    def close(self) -> None:
        """Let go of its lifeline."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self._process.terminate()

    def wait(self, seconds: float = 40.0) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        until(lambda: not self.alive, seconds, "the end of a worker")
        return int(self._process.returncode)


class Lab:
    """See the module.

    Args:
        persistence: whether Redis keeps an append-only file (everysec), so that its data outlives `kill`.
        extra: more arguments of the Redis server.
        server: its binary; the one that is found by default.
        prefix: of the keys.
        worker: options of every `QueueWorker`, over the lab's (``lease=2``, ``max_crashes=1000``).
        config: options of every `QueueConfig`, over the lab's (``done_ttl=3600``: so the check can ask Redis what
            became of each id).
        liveness: seconds within which a worker must claim what is ready, or say that it is not alive. That is checked
            as long as the lab lasts; a standstill is a `LabError` at its end.
    """

    def __init__(
        self,
        *,
        persistence: bool = False,
        extra: Sequence[str] = (),
        server: Path | None = None,
        prefix: str = PREFIX,
        worker: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        liveness: float = LIMIT,
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="queue-system-chaos-"))
        self.server = EmbeddedServer(path=self.directory / "redis", persistence=persistence, extra=extra, server=server)
        self.ledger = Ledger(self.directory / "ledger")
        self.keys = Keys(prefix)
        self.workers: list[WorkerProcess] = []
        self.watched: list[Worker] = []
        """Those whose liveness is checked."""
        self._liveness = Checker(self._reader, self.keys, lambda: list(self.watched), liveness)
        self.accepted: list[str] = []
        self._worker_options = {"lease": LEASE, "max_crashes": 1000, **(worker or {})}
        self._config_options = {"queue_prefix": prefix, "done_ttl": 3600.0, **(config or {})}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
            undo.enter_context(self.server)
            undo.callback(self._end_workers)
            self._liveness.start()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        problems = self._liveness.stop()
        self._undo.close()
        if problems and kind is None:
            raise LabError("; ".join(problems))

    def _reader(self, timeout: float) -> redis.Redis:
        return redis.Redis(
            host="127.0.0.1",
            port=self.server.port,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
        )

    @property
    def redis(self) -> redis.Redis:
        """A plain client of the lab's server, with a short limit: what an operator has."""
        return self.client(self.server)

    def client(self, server: EmbeddedServer) -> redis.Redis:
        """A plain client of a server, closed at the end of the lab."""
        client = redis.Redis(
            host="127.0.0.1", port=server.port, decode_responses=True, socket_timeout=5, socket_connect_timeout=5
        )
        self._undo.callback(client.close)
        return client

    def start_server(
        self, *, persistence: bool = False, extra: Sequence[str] = (), server: Path | None = None
    ) -> EmbeddedServer:
        """Another server, e.g. a replica."""
        path = self.directory / f"redis-{len(list(self.directory.glob('redis*')))}"
        return self._undo.enter_context(EmbeddedServer(path=path, persistence=persistence, extra=extra, server=server))

    def proxy(self, server: EmbeddedServer | None = None, *, seed: int = 1) -> Proxy:
        """A proxy before the lab's server, or another."""
        return self._undo.enter_context(Proxy((server or self.server).port, seed=seed))

    def config(self, url: str | None = None, **options: Any) -> QueueConfig:
        """A configuration on the lab's server and prefix, closed at the end of the lab."""
        options = {"telemetry": None, "registry": Registry(), **self._config_options, **options}
        config = QueueConfig(redis_url=url or self.server.url, **options)
        self._undo.callback(config.close)
        return config

    def worker(
        self,
        url: str | None = None,
        *,
        config: dict[str, Any] | None = None,
        register: dict[str, str] | None = None,
        **options: Any,
    ) -> WorkerProcess:
        """Start a worker process (`WorkerProcess.wait_ready` waits for it); options as for `QueueWorker`.

        `register` has what this version of the application knows besides: names with their functions.
        """
        settings = {
            "register": register or {},
            "redis_url": url or self.server.url,
            "ledger": str(self.ledger.path),
            "config": self._config_options | (config or {}),
            "worker": self._worker_options | options,
        }
        worker = WorkerProcess(settings, self.directory / f"worker-{len(self.workers)}.txt")
        self.workers.append(worker)
        self.watched.append(worker)
        return worker

    def start_workers(self, count: int, url: str | None = None, **options: Any) -> list[WorkerProcess]:
        """Start several at once, and wait until all work."""
        workers = [self.worker(url, **options) for _ in range(count)]
        return [worker.wait_ready() for worker in workers]

    def enqueue(
        self,
        count: int,
        processor: Callable[..., Any] | str = processors.work,
        *,
        manager: QueueManager | None = None,
        name: str = "n",
        entity: dict[str, Any] | None = None,
        **options: Any,
    ) -> list[str]:
        """Enqueue `count` operations in batches, with entities ``{"name": "n0", ...}``; their ids join `accepted`."""
        manager = manager or QueueManager(self.config())
        ids: list[str] = []
        for start in range(0, count, BATCH):
            entities = [{"name": f"{name}{number}"} | (entity or {}) for number in range(count)[start : start + BATCH]]
            ids += [each["operation_id"] for each in manager.enqueue_batch(entities, processor, **options)]
        self.accepted += ids
        return ids

    def wait_settled(self, seconds: float, server: EmbeddedServer | None = None) -> float:
        """Wait until nothing is ready, delayed or leased (Redis may be away meanwhile); returns the time it took."""
        began = time.monotonic()
        client = self.client(server or self.server)
        try:
            until(lambda: self._settled(client), seconds, "all settled")
        except LabError as error:
            raise LabError(f"{error}; there are {self.depths()}, done {len(self.ledger.done())}") from error
        return time.monotonic() - began

    def wait_on_disk(self, seconds: float = 10.0) -> None:
        """Wait until what Redis has confirmed is in its append-only file, where a `kill` cannot reach it."""
        client = self.redis

        def written() -> bool:
            info = client.info("persistence")
            return not any(int(info.get(name, 0)) for name in ("aof_buffer_length", "aof_pending_bio_fsync"))

        until(written, seconds, "the append-only file")

    def is_settled(self, client: redis.Redis) -> bool:
        """Whether nothing is ready, delayed or leased now; false, too, when Redis does not answer."""
        return self._settled(client)

    def metrics(self) -> dict[str, int]:
        """The counters in Redis."""
        return {name: int(value) for name, value in self.redis.hgetall(self.keys.metrics).items() if value.isdigit()}

    def depths(self) -> dict[str, int]:
        """How many are ready, delayed, leased and failed now, read from the containers."""
        client = self.redis
        ready = sum(client.llen(self.keys.prefix + queue) for queue in client.hkeys(self.keys.registry))
        return {
            "ready": ready,
            "delayed": client.zcard(self.keys.delayed),
            "leased": client.zcard(self.keys.leases),
            "failed": client.zcard(self.keys.failures),
            "system_errors": client.zcard(self.keys.system_errors),
        }

    def stored(self, operation_id: str) -> dict[str, str]:
        """The fields of an operation in Redis; empty when it is gone."""
        return self.redis.hgetall(self.keys.operation(operation_id))

    def in_flight(self) -> set[str]:
        """The operations that are leased."""
        return set(self.redis.zrange(self.keys.leases, 0, -1))

    def stop_workers(self) -> None:
        """End all workers in good order, and wait."""
        for worker in self.workers:
            worker.resume()
            worker.terminate()
        for worker in self.workers:
            worker.wait()

    def check(self, operations: Iterable[str] | None = None, *, server: EmbeddedServer | None = None) -> Conservation:
        """What became of the accepted operations, once all is settled. Reads; changes nothing.

        Args:
            operations: the confirmed ids; all that `enqueue` returned, by default.
            server: to ask instead of the lab's own: a promoted replica, which may not know all that was done.
        """
        accepted = list(self.accepted if operations is None else operations)
        kept = self._config_options["done_ttl"] > 0 and server is None
        return check_conservation(self.client(server or self.server), self.keys, self.ledger, accepted, kept=kept)

    def _settled(self, client: redis.Redis) -> bool:
        """Whether all containers are empty, in one instant: an operation that moves is in one of them at any time."""
        with contextlib.suppress(redis.RedisError, OSError):
            queues = client.hkeys(self.keys.registry)
            pipeline = client.pipeline(transaction=True)
            for key in (self.keys.delayed, self.keys.leases, *(self.keys.prefix + queue for queue in queues)):
                pipeline.exists(key)
            return not any(pipeline.execute())
        return False

    def _end_workers(self) -> None:
        for worker in self.workers:
            if worker.alive:
                worker.kill()
            worker.close()


@dataclass(frozen=True, slots=True)
class Conservation:
    """What became of the accepted operations.

    Attributes:
        accepted: how many.
        done: how many Redis has as done, and the ledger as run to the end.
        failed: how many were given up (`quarantined` of them over crashes).
        lost: ids that are neither.
        extra_runs: of the accepted ones, by the ledger.
        attempts_burned: attempts that Redis counts (`at`) over all of them.
        crashed: ids whose lease was taken back at least once (`cr`), also that of a claim whose reply was lost.
        problems: broken promises, in words.
    """

    accepted: int
    done: int
    failed: int
    quarantined: int
    lost: tuple[str, ...]
    extra_runs: int
    attempts_burned: int
    crashed: tuple[str, ...]
    problems: tuple[str, ...]


def check_conservation(
    client: redis.Redis, keys: Keys, ledger: Ledger, accepted: Sequence[str], *, kept: bool = True
) -> Conservation:
    """Check I1 and I8: accepted = done + failed, each exactly one of the two, and nothing is left over in Redis.

    The states come from Redis, and the ledger must agree. Unless Redis has `kept` what is done (`done_ttl`), an
    operation that it does not know is done when the ledger says so.
    """
    found = _read_operations(client, keys, accepted)
    failures = set(client.zrange(keys.failures, 0, -1))
    ended = ledger.done()
    done = {each for each in accepted if found[each].get("st") == "done" or (not kept and _is_gone(each, found, ended))}
    failed = {each for each in accepted if found[each].get("st") == "failed"}
    lost = tuple(each for each in accepted if each not in done and each not in failed)
    extra = ledger.extra_runs()
    problems = [
        *_complaint("lost", lost),
        *_complaint("done in Redis, but no run came to its end", done - ended),
        *_complaint("done as well as among the failures", done & failures),
        *_complaint("failed, but not among the failures", failed - failures),
        *_complaint("accepted twice", [each for each, count in Counter(accepted).items() if count > 1]),
        *_leftovers(client, keys),
    ]
    reasons = [found[each].get("err", "") for each in failed]
    return Conservation(
        accepted=len(accepted),
        done=len(done),
        failed=len(failed),
        quarantined=sum("crashed" in reason or "workers died" in reason for reason in reasons),
        lost=lost,
        extra_runs=sum(extra.get(each, 0) for each in set(accepted)),
        attempts_burned=sum(int(found[each].get("at", 0)) for each in accepted),
        crashed=tuple(each for each in accepted if int(found[each].get("cr", 0))),
        problems=tuple(problems),
    )


def _is_gone(operation_id: str, found: dict[str, dict[str, str]], ended: set[str]) -> bool:
    return not found[operation_id] and operation_id in ended


def _read_operations(client: redis.Redis, keys: Keys, accepted: Sequence[str]) -> dict[str, dict[str, str]]:
    fields = ("st", "at", "cr", "err")
    found: dict[str, dict[str, str]] = {}
    for start in range(0, len(accepted), _SCAN_COUNT):
        part = accepted[start : start + _SCAN_COUNT]
        pipeline = client.pipeline(transaction=False)
        for each in part:
            pipeline.hmget(keys.operation(each), fields)
        for each, values in zip(part, pipeline.execute(), strict=True):
            found[each] = {name: value for name, value in zip(fields, values, strict=True) if value is not None}
    return found


def _leftovers(client: redis.Redis, keys: Keys) -> list[str]:
    """What is in containers, counted as live, or a key that belongs to nothing."""
    problems = [f"{client.zcard(key)} left in {key}" for key in (keys.leases, keys.delayed) if client.exists(key)]
    problems += [
        f"{client.llen(keys.prefix + queue)} left in the queue {queue}"
        for queue in client.hkeys(keys.registry)
        if client.exists(keys.prefix + queue)
    ]
    depths = {name: value for name, value in client.hgetall(keys.depths).items() if name[:1] in "dl" and value != "0"}
    if depths:
        problems.append(f"depths that are not zero: {depths}")
    return problems + _complaint("orphan keys", find_orphans(client, keys))


def find_orphans(client: redis.Redis, keys: Keys) -> list[str]:
    """Keys below the prefix that no part of the model accounts for: neither fixed, live, retained, nor expiring."""
    fixed = {getattr(keys, name) for name in Keys.__slots__} | {f"{keys.prefix}token"}
    fixed |= {keys.prefix + queue for queue in client.hkeys(keys.registry)}
    retained = set(client.zrange(keys.failures, 0, -1)) | set(client.zrange(keys.system_errors, 0, -1))
    retained_keys = {keys.operation(each) for each in retained}
    names = [name for name in client.scan_iter(f"{keys.prefix}*", count=_SCAN_COUNT) if name not in fixed]
    pipeline = client.pipeline(transaction=False)
    for name in names:
        pipeline.pttl(name)
    return [
        name for name, ttl in zip(names, pipeline.execute(), strict=True) if ttl == -1 and name not in retained_keys
    ]


def _complaint(what: str, found: Iterable[str]) -> list[str]:
    names = sorted(found)
    return [f"{len(names)} {what}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"] if names else []
