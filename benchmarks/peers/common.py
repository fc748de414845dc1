"""What every job of every system does, how it is counted, and how an adapter is called.

Imports no queue, ours included: each adapter runs in an environment that has its own system and nothing else.

A worker process counts its jobs in a file of its own that it maps into memory: one byte for each job, which costs some
100 ns and is safe under threads. Whoever measures looks at the files, from outside. Jobs that carry a number store the
time of their start at that place of one more file. The adapters' commands::

    python -m benchmarks.peers.NAME info
    python -m benchmarks.peers.NAME enqueue --how single|bulk --kind async|sync --job JOB --count N --seconds S
    python -m benchmarks.peers.NAME latency --kind async|sync --count N --seconds S
    python -m benchmarks.peers.NAME work --purpose PURPOSE --kind async|sync --concurrency N

All but `work`, which runs until it is killed, print one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import itertools
import json
import mmap
import os
import pathlib
import random
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

PAYLOAD = {"user_id": "123", "action": "update"}
WORK_SECONDS = 0.01
CAPACITY = 4_000_000  # jobs that one worker process can count
MOST_STAMPS = 100_000
BULK = 100  # calls in flight where a system has no bulk call of its own
WARM_UP = 10
STAMP = struct.Struct("<q")

REDIS = os.environ.get("BENCH_REDIS", "redis://127.0.0.1:6379/0")
DIRECTORY = pathlib.Path(os.environ.get("BENCH_COUNTS", "."))

_next: Callable[[], int] = itertools.count().__next__
_flags: mmap.mmap | None = None
_stamps: mmap.mmap | None = None


def _forget() -> None:
    """A forked child counts in a file of its own."""
    global _flags, _next
    _flags, _next = None, itertools.count().__next__


os.register_at_fork(after_in_child=_forget)


def map_file(path: pathlib.Path, size: int) -> mmap.mmap:
    """The file's bytes in memory, made and filled with zeros if it is not there (no disk space is used for them)."""
    with path.open("a+b") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)


def _count() -> None:
    global _flags  # noqa: PLW0603
    if _flags is None:
        _flags = map_file(DIRECTORY / f"{os.getpid()}.count", CAPACITY)
    _flags[_next()] = 1


def _stamp(payload: dict[str, Any]) -> None:
    global _stamps  # noqa: PLW0603
    if _stamps is None:
        _stamps = map_file(DIRECTORY / "stamps", MOST_STAMPS * STAMP.size)
    STAMP.pack_into(_stamps, payload["n"] * STAMP.size, time.monotonic_ns())


def noop(_payload: dict[str, Any]) -> None:
    _count()


async def noop_async(_payload: dict[str, Any]) -> None:
    _count()


def work(_payload: dict[str, Any]) -> None:
    time.sleep(WORK_SECONDS)
    _count()


async def work_async(_payload: dict[str, Any]) -> None:
    await asyncio.sleep(WORK_SECONDS)
    _count()


def stamp(payload: dict[str, Any]) -> None:
    _stamp(payload)


async def stamp_async(payload: dict[str, Any]) -> None:
    _stamp(payload)


def work_stamp(payload: dict[str, Any]) -> None:
    time.sleep(WORK_SECONDS)
    _stamp(payload)


async def work_stamp_async(payload: dict[str, Any]) -> None:
    await asyncio.sleep(WORK_SECONDS)
    _stamp(payload)


JOBS: dict[str, dict[str, Callable[..., Any]]] = {
    "sync": {"noop": noop, "work": work, "stamp": stamp, "work_stamp": work_stamp},
    "async": {"noop": noop_async, "work": work_async, "stamp": stamp_async, "work_stamp": work_stamp_async},
}


@dataclass
class Producer:
    """How a system enqueues: functions, or coroutine functions. `close` is called at the end."""

    one: Callable[[Callable[..., Any], dict[str, Any]], Any]
    many: Callable[[Callable[..., Any], Sequence[dict[str, Any]]], Any] | None = None
    chunk: int = BULK
    close: Callable[[], Any] | None = None


@dataclass
class Role:
    """What a worker is started for.

    `purpose` is noop, work, latency, scaling (one of several processes) or recovery (the system's defaults).
    """

    purpose: str
    kind: str
    concurrency: int


@dataclass
class Peer:
    """A system: the distribution whose version counts, the kinds of its jobs, and its settings in words."""

    package: str
    kinds: tuple[str, ...]
    settings: dict[str, str]
    produce: Callable[[], Any]  # -> Producer, or a coroutine of one
    work: Callable[[Role], None]
    bulk: str = ""  # how it enqueues in bulk; empty when it cannot
    also: tuple[str, ...] = field(default=("redis", "hiredis", "uvloop"))


def run(peer: Peer) -> None:
    """The command line of an adapter."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("info", "enqueue", "latency", "work"))
    parser.add_argument("--how", choices=("single", "bulk"), default="single")
    parser.add_argument("--kind", choices=("async", "sync"), default="sync")
    parser.add_argument("--job", default="noop")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--purpose", default="noop")
    parser.add_argument("--concurrency", type=int, default=10)
    options = parser.parse_args()
    if options.command == "info":
        print(json.dumps(_info(peer)))
    elif options.command == "work":
        peer.work(Role(options.purpose, options.kind, options.concurrency))
    else:
        print(json.dumps(run_loop(_produce(peer, options)) if _is_async(peer) else _produce_sync(peer, options)))


def run_loop(main: Any, *, fast: bool = True) -> Any:
    """Run a coroutine, with uvloop where it is installed."""
    if fast:
        try:
            import uvloop  # noqa: PLC0415
        except ImportError:
            pass
        else:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(main)
    return asyncio.run(main)


def _info(peer: Peer) -> dict[str, Any]:
    versions = {}
    for package in (peer.package, *peer.also):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "kinds": peer.kinds, "settings": peer.settings, "bulk": peer.bulk}


def _is_async(peer: Peer) -> bool:
    return inspect.iscoroutinefunction(peer.produce)


# The two ways to enqueue are written out twice, so that neither pays for the other.


def _produce_sync(peer: Peer, options: argparse.Namespace) -> Any:
    producer = peer.produce()
    try:
        if options.command == "latency":
            return _latency_sync(producer, JOBS[options.kind]["stamp"], options)
        return _enqueue_sync(producer, JOBS[options.kind][options.job], options)
    finally:
        if producer.close is not None:
            producer.close()


def _enqueue_sync(producer: Producer, job: Callable[..., Any], options: argparse.Namespace) -> dict[str, float]:
    done = 0
    cpu, began = time.process_time(), time.perf_counter()
    deadline = began + options.seconds
    if options.how == "bulk" and producer.many is not None:
        while done < options.count and time.perf_counter() < deadline:
            size = min(producer.chunk, options.count - done)
            producer.many(job, payloads(options.job, done, size))
            done += size
    else:
        for payload in endless(options.job, options.count):
            producer.one(job, payload)
            done += 1
            if not done % 32 and time.perf_counter() > deadline:
                break
    return enqueued(done, began, cpu)


def _latency_sync(producer: Producer, job: Callable[..., Any], options: argparse.Namespace) -> dict[str, Any]:
    probe = Probe(options.count, options.seconds)
    for number in probe:
        time.sleep(probe.pause())
        probe.sent()
        producer.one(job, {**PAYLOAD, "n": number})
        while not probe.arrived():
            time.sleep(0.0005)
    return probe.result()


async def _produce(peer: Peer, options: argparse.Namespace) -> Any:
    producer = await peer.produce()
    try:
        if options.command == "latency":
            return await _latency(producer, JOBS[options.kind]["stamp"], options)
        return await _enqueue(producer, JOBS[options.kind][options.job], options)
    finally:
        if producer.close is not None:
            await producer.close()


async def _enqueue(producer: Producer, job: Callable[..., Any], options: argparse.Namespace) -> dict[str, float]:
    done = 0
    cpu, began = time.process_time(), time.perf_counter()
    deadline = began + options.seconds
    if options.how == "bulk" and producer.many is not None:
        while done < options.count and time.perf_counter() < deadline:
            size = min(producer.chunk, options.count - done)
            await producer.many(job, payloads(options.job, done, size))
            done += size
    else:
        for payload in endless(options.job, options.count):
            await producer.one(job, payload)
            done += 1
            if not done % 32 and time.perf_counter() > deadline:
                break
    return enqueued(done, began, cpu)


async def _latency(producer: Producer, job: Callable[..., Any], options: argparse.Namespace) -> dict[str, Any]:
    probe = Probe(options.count, options.seconds)
    for number in probe:
        await asyncio.sleep(probe.pause())
        probe.sent()
        await producer.one(job, {**PAYLOAD, "n": number})
        while not probe.arrived():  # noqa: ASYNC110  another process sets it
            await asyncio.sleep(0.0005)
    return probe.result()


def gathered(one: Callable[..., Any]) -> Callable[..., Any]:
    """Bulk for asyncio systems without a bulk call: many calls at once."""

    async def many(job: Callable[..., Any], batch: Sequence[dict[str, Any]]) -> None:
        await asyncio.gather(*[one(job, payload) for payload in batch])

    return many


def payloads(job: str, first: int, count: int) -> list[dict[str, Any]]:
    """The entities of one batch: numbered where the job stores its start."""
    if not job.endswith("stamp"):
        return [PAYLOAD] * count
    return [{**PAYLOAD, "n": number} for number in range(first, first + count)]


def endless(job: str, count: int) -> Any:
    """The entities one by one."""
    return iter(payloads(job, 0, count)) if job.endswith("stamp") else itertools.repeat(PAYLOAD, count)


def enqueued(done: int, began: float, cpu: float) -> dict[str, float]:
    """What an enqueue prints."""
    return {"count": done, "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}


class Probe:
    """One job at a time to an idle worker: how long from before the enqueue call to the start of the job.

    The first job waits for the worker to be up; the first `WARM_UP` may take 30 s, and do not count.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self._stamps = map_file(DIRECTORY / "stamps", MOST_STAMPS * STAMP.size)
        self._count, self._seconds = count + WARM_UP, seconds
        self._number = -1
        self._sent = 0
        self._samples: list[int] = []
        self._random = random.Random(1)
        self._deadline = time.monotonic() + 30.0

    def __iter__(self) -> Any:
        for number in range(self._count):
            self._number = number
            if self._number == WARM_UP:
                self._deadline = time.monotonic() + self._seconds
            if time.monotonic() > self._deadline:
                return
            yield number

    def pause(self) -> float:
        """Seconds, of no fixed rhythm, so that no poll keeps step."""
        return self._random.uniform(0.005, 0.02)

    def sent(self) -> None:
        self._sent = time.monotonic_ns()

    def arrived(self) -> bool:
        """Whether the job has started (then its latency is noted), or too much time is gone."""
        (started,) = STAMP.unpack_from(self._stamps, self._number * STAMP.size)
        if started and self._number >= WARM_UP:
            self._samples.append(started - self._sent)
        return bool(started) or time.monotonic() > self._deadline + 10.0

    def result(self) -> dict[str, Any]:
        return {"nanoseconds": self._samples}


class Tally:
    """The counts of all workers, read from outside."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._seen: dict[pathlib.Path, tuple[mmap.mmap, int]] = {}

    def count(self) -> int:
        """How many jobs have run. Looks only at what is new since the last call."""
        for path in self._directory.glob("*.count"):
            if path not in self._seen and path.stat().st_size == CAPACITY:
                self._seen[path] = (map_file(path, CAPACITY), 0)
        for path, (flags, known) in self._seen.items():
            first_free = flags.find(b"\0", known)
            self._seen[path] = (flags, CAPACITY if first_free < 0 else first_free)
        return sum(known for _, known in self._seen.values())

    @property
    def workers(self) -> int:
        """How many processes have run a job."""
        return len(self._seen)

    def stamped(self, count: int) -> int:
        """How many of the first `count` numbered jobs have run."""
        path = self._directory / "stamps"
        if not path.exists() or not path.stat().st_size:
            return 0
        stamps = map_file(path, MOST_STAMPS * STAMP.size)
        try:
            return sum(1 for (at,) in STAMP.iter_unpack(stamps[: count * STAMP.size]) if at)
        finally:
            stamps.close()
